"""``fedward site person …``: personal keys for approvals. Attached to ``fedward site``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from client.commands import HERE, Json, Site

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
person_app = typer.Typer(help="Personal keys for signed approvals.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(person_app, name="person")

By = Annotated[str | None, typer.Option(help="Who does this. Default: the user who is logged in.")]
Key = Annotated[Path, typer.Option("--key", help="Your personal key: an encrypted PEM or OpenSSH file, P-384.")]


@person_app.command("new-key")
def new_key(
    file: Annotated[Path, typer.Argument(help="File for the key; its public half goes into FILE.pub.")],
) -> None:
    """Make a personal key, locked with a passphrase; on your own machine, with or without a site."""
    from client import person_cli

    person_cli.new_key(file)


@person_app.command()
def add(
    name: Annotated[str, typer.Argument(help="The person's name, as it will stand in the log.")],
    role: Annotated[list[str], typer.Option("--role", help="data_manager, privacy_officer or operator; repeatable.")],
    key: Annotated[Path, typer.Option("--key", help="Their public key: FILE.pub, OpenSSH or PEM, P-384.")],
    site: Site = HERE,
    by: By = None,
) -> None:
    """Let a person's key sign approvals here."""
    from client import person_cli

    person_cli.add(site, name, role, key, by=by)


@person_app.command()
def remove(
    name: Annotated[str, typer.Argument(help="The person's name.")],
    site: Site = HERE,
    why: Annotated[str, typer.Option(help="Why; for the audit log.")] = "",
    by: By = None,
) -> None:
    """Let a person sign no more; what they signed counts no more either."""
    from client import person_cli

    person_cli.remove(site, name, by=by, why=why)


@person_app.command("list")
def list_(site: Site = HERE, as_json: Json = False) -> None:
    """List who may sign approvals here, with roles and fingerprints."""
    from client import person_cli

    person_cli.list_(site, as_json=as_json)


@person_app.command()
def sign(
    request: Annotated[Path, typer.Argument(help="What `site approve --request-out` wrote.")],
    key: Key,
    out: Annotated[Path, typer.Option("--out", help="File for the signed decision; must not exist.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Sign a decision on another machine; it goes back with `site approve --signature`."""
    from client import person_cli

    person_cli.sign(request, key, out, yes=yes)
