"""``fedward coordinator …``: provisioning. Each command imports what it needs when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="A federation's coordinator: its identity, its sites, its runs.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Directory = Annotated[Path, typer.Option("--dir", help="The coordinator's directory.", envvar="FEDWARD_COORDINATOR")]
HERE = Path()
RequestFile = Annotated[Path, typer.Argument(help="The site's federation/request.json, as it came.")]
Kit = Annotated[Path, typer.Option("--out", help="Where the kit for the site goes.")]
Fingerprint = Annotated[
    str | None, typer.Option(help="The site's fingerprint as its people read it out by phone; must fit the request.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask; at a terminal only, scripts need --fingerprint.")]


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The new coordinator's directory.")],
    name: Annotated[str, typer.Option(help="The federation's name; it stays.")],
    address: Annotated[str, typer.Option(help="HOST:PORT as sites reach it.")],
    listen: Annotated[
        str | None, typer.Option(help="HOST:PORT to listen on; without it every interface, the address's port.")
    ] = None,
    also: Annotated[
        list[str] | None,
        typer.Option(help="Another name or IP address under which sites reach it, for example localhost."),
    ] = None,
    site_certificates: Annotated[
        bool, typer.Option("--site-certificates", help="Give each site a certificate too (mutual TLS).")
    ] = False,
) -> None:
    """Make a coordinator: identity, certificate authority, server certificate, empty roster."""
    from server import cli

    cli.init(directory, name=name, address=address, listen=listen, also=also or [], site_certificates=site_certificates)


@app.command()
def admit(
    request: RequestFile,
    out: Kit,
    directory: Directory = HERE,
    fingerprint: Fingerprint = None,
    yes: Yes = False,
    again: Annotated[bool, typer.Option("--again", help="Let a key come back that was revoked.")] = False,
) -> None:
    """Take a site in, once its fingerprint was compared by phone, and write its kit."""
    from server import cli

    cli.admit(request, directory, out, fingerprint=fingerprint, yes=yes, again=again)


@app.command()
def replace(
    request: RequestFile, out: Kit, directory: Directory = HERE, fingerprint: Fingerprint = None, yes: Yes = False
) -> None:
    """Give a known site its new key, once compared by phone; the old one is revoked."""
    from server import cli

    cli.replace(request, directory, out, fingerprint=fingerprint, yes=yes)


@app.command()
def revoke(
    alias: Annotated[str, typer.Argument(help="The site.")],
    directory: Directory = HERE,
    why: Annotated[str, typer.Option(help="For the audit log.")] = "",
) -> None:
    """Take a site out, at once."""
    from server import cli

    cli.revoke(alias, directory, why=why)


@app.command()
def renew(
    directory: Directory = HERE,
    authority: Annotated[
        bool, typer.Option("--authority", help="The authority's certificate too; sites then need new kits.")
    ] = False,
) -> None:
    """A new server certificate for another year, for the addresses in coordinator.yaml."""
    from server import cli

    cli.renew(directory, authority=authority)


@app.command()
def roster(
    directory: Directory = HERE,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")] = False,
) -> None:
    """List the sites with fingerprint, status and days of certificates."""
    from server import cli

    cli.roster(directory, as_json=as_json)
