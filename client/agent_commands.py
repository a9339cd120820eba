"""``fedward site up|status|health``: the resident agent. Attached to ``fedward site``."""

from __future__ import annotations

from typing import Annotated

import typer

from client.commands import HERE, Json, Site

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command()
def up(site: Site = HERE) -> None:
    """Take part in the federation: wait for studies, answer those that were approved. Ends with Ctrl-C or SIGTERM."""
    from client import agent_cli

    agent_cli.up(site)


@app.command()
def status(
    site: Site = HERE,
    as_json: Json = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only the alerts; exit code 0 for none, 1 a warning, 2 something critical.")
    ] = False,
) -> None:
    """Say what is going on: the agent, the coordinator, studies that wait, the work, certificates, what to do next."""
    from client import agent_cli

    if check:
        raise typer.Exit(agent_cli.check(site))
    agent_cli.status(site, as_json=as_json)


@app.command()
def health(site: Site = HERE) -> None:
    """Say whether the agent works and the coordinator answers it; exit code 1 and the reason if not."""
    from client import agent_cli

    agent_cli.health(site)
