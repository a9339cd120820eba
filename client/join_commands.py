"""``fedward site join …``: joining a federation. Each command imports what it needs when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.commands import HERE, Json, Site

app = typer.Typer(help="Join a federation.", no_args_is_help=True, rich_markup_mode=None)

_HEARD = "as its people read it out by phone"


@app.command("join-request")
def join_request(site: Site = HERE) -> None:
    """Make the site's key, here, and a request to join for the coordinator."""
    from client import join_cli

    join_cli.join_request(site)


@app.command()
def join(
    kit: Annotated[Path, typer.Argument(help="The kit that the coordinator sent.")],
    site: Site = HERE,
    fingerprint: Annotated[str | None, typer.Option(help=f"The coordinator's fingerprint, {_HEARD}.")] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask; at a terminal only, scripts need --fingerprint.")
    ] = False,
) -> None:
    """Join, once the coordinator's fingerprint was compared by phone."""
    from client import join_cli

    join_cli.join(site, kit, fingerprint=fingerprint, yes=yes)


@app.command()
def peers(site: Site = HERE, as_json: Json = False) -> None:
    """List the other sites with fingerprints, and whether somebody here has compared them."""
    from client import join_cli

    join_cli.peers(site, as_json=as_json)


@app.command()
def confirm(
    alias: Annotated[str, typer.Argument(help="The other site.")],
    fingerprint: Annotated[str, typer.Option(help=f"Its fingerprint, {_HEARD}.")],
    site: Site = HERE,
) -> None:
    """Record that another site's fingerprint was compared by phone."""
    from client import join_cli

    join_cli.confirm(site, alias, fingerprint=fingerprint)


@app.command("new-identity")
def new_identity(site: Site = HERE) -> None:
    """Make another key in place of one that others may have; vault and ledger stay as they are."""
    from client import join_cli

    join_cli.new_identity(site)
