"""``fedward coordinator up|launch|status|…``: running a federation. Attached to ``fedward coordinator``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from server.commands import HERE, Directory

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
RunName = Annotated[str | None, typer.Argument(metavar="RUN", help="A run's name. Default: the latest that fits.")]


@app.command()
def up(
    directory: Directory = HERE,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the latest interrupted run, from its checkpoint.")
    ] = False,
    patience: Annotated[
        float, typer.Option(min=0.0, help="Seconds to wait for the others once the quorum has approved.")
    ] = 300.0,
) -> None:
    """Open the door to the sites on the roster, and carry out what is launched. Ends with Ctrl-C or SIGTERM."""
    from server import run_cli

    run_cli.up(directory, resume=resume, patience_s=patience)


@app.command()
def launch(
    study: Annotated[Path, typer.Argument(help="Study file.")],
    directory: Directory = HERE,
) -> None:
    """Put a study before the sites; it begins when their people have approved it."""
    from server import run_cli

    run_cli.launch(study, directory)


@app.command()
def survey(
    study: Annotated[Path, typer.Argument(help="Study file.")],
    directory: Directory = HERE,
) -> None:
    """As `launch`, but stop before the first round: survey.html says whether the sites' data are ready."""
    from server import run_cli

    run_cli.launch(study, directory, survey_only=True)


@app.command()
def status(
    directory: Directory = HERE,
    as_json: Json = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only the alerts; exit code 0 for none, 1 a warning, 2 something critical.")
    ] = False,
) -> None:
    """Say what is going on: sites, approvals, the run and its round, alerts, and what to do next."""
    from server import run_cli

    if check:
        raise typer.Exit(run_cli.check(directory))
    run_cli.status(directory, as_json=as_json)


@app.command()
def health(directory: Directory = HERE) -> None:
    """Say whether the coordinator runs and sites can connect; exit code 1 and the reason if not."""
    from server import run_cli

    run_cli.health(directory)


@app.command()
def doctor(directory: Directory = HERE, as_json: Json = False) -> None:
    """Look for what is wrong or soon will be: keys, certificates, roster, runs, port, disk, clock."""
    from server import run_cli

    run_cli.doctor(directory, as_json=as_json)


@app.command()
def stop(run: RunName = None, directory: Directory = HERE) -> None:
    """Stop a run after the message at hand; `resume` goes on."""
    from server import run_cli

    run_cli.stop(run, directory)


@app.command()
def resume(run: RunName = None, directory: Directory = HERE) -> None:
    """Go on with a run that was stopped, interrupted or failed, from its checkpoint."""
    from server import run_cli

    run_cli.resume(run, directory)


@app.command()
def logs(
    run: RunName = None,
    directory: Directory = HERE,
    coordinator: Annotated[bool, typer.Option("--coordinator", help="The coordinator's own log instead.")] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what is added, until Ctrl-C.")] = False,
) -> None:
    """Print a run's events, one JSON object a line."""
    from server import run_cli

    run_cli.logs(run, directory, coordinator=coordinator, follow=follow)


@app.command()
def report(run: RunName = None, directory: Directory = HERE) -> None:
    """Write a run's report.html and metrics.csv again, from its results; `up` does so when a run has finished."""
    from server import run_cli

    run_cli.report(run, directory)


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="Folder to write to; must not exist.")],
    run: Annotated[str | None, typer.Option(help="A run's name. Default: the latest finished one.")] = None,
    directory: Directory = HERE,
) -> None:
    """Copy a finished run's model, card and results."""
    from server import run_cli

    run_cli.export(out, run, directory)
