"""``fedward site models``, ``export-model`` and ``explain``: finished models here. Attached to ``fedward site``."""

from __future__ import annotations

from pathlib import Path
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
    """List the finished models that coordinators have brought, and this site's own, with what their cards say."""
    from client import model_cli

    model_cli.models(site, verify=verify, as_json=as_json)


@app.command("export-model")
def export_model(
    model: Annotated[str, typer.Argument(help="A finished model's folder in models/, or its study's hash.")],
    out: Annotated[Path, typer.Argument(help="New folder for the copy; only you will be able to open it.")],
    site: Site = HERE,
) -> None:
    """Copy a finished model to another place in your hospital: verified first, and on record."""
    from client import model_cli

    model_cli.export(site, model, out)


@app.command()
def explain(
    model: Annotated[str, typer.Argument(help="A finished model's folder in models/, or its study's hash.")],
    out: Annotated[Path, typer.Option(help="New folder for pictures of patients, in the clear, for you alone.")],
    site: Site = HERE,
    method: Annotated[
        str | None,
        typer.Option(help="grad-cam, hirescam, integrated-gradients or rollout. Default: what suits the model."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Test images, at most.")] = 20,
    device: Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu or cuda:N.")] = "auto",
    as_json: Json = False,
) -> None:
    """Draw what a finished model looked at in this site's own test images; the audit log says so."""
    from client import explain_cli

    explain_cli.explain(site, model, out=out, method=method, images=images, device=device, as_json=as_json)
