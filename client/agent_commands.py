"""``fedward site up|health``: the resident agent. Attached to ``fedward site``."""

from __future__ import annotations

import typer

from client.commands import HERE, Site

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@app.command()
def up(site: Site = HERE) -> None:
    """Take part in the federation: wait for studies, answer those that were approved. Ends with Ctrl-C or SIGTERM."""
    from client import agent_cli

    agent_cli.up(site)


@app.command()
def health(site: Site = HERE) -> None:
    """Say whether the agent works and the coordinator answers it; exit code 1 and the reason if not."""
    from client import agent_cli

    agent_cli.health(site)
