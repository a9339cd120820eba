"""``fedward site models``: the finished models that came. Attached to ``fedward site``."""

from __future__ import annotations

from typing import Annotated

import typer

from client.commands import HERE, Json, Site

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command()
def models(
    site: Site = HERE,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check signatures, digests and weights, and that the log knows each.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the finished models that coordinators have brought, with what their cards say."""
    from client import model_cli

    model_cli.models(site, verify=verify, as_json=as_json)
