"""The front door: one command, ``fedward``; sub-commands import their room only when called."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

app = typer.Typer(
    name="fedward",
    help="Federated learning between hospitals for medical images. Weights travel; patients' data never does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
study_app = typer.Typer(help="Check and describe study files.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(study_app, name="study")

Json = Annotated[bool, typer.Option("--json", help="One JSON object per line on standard output.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda:N.")]


@app.command()
def simulate(
    study: Annotated[Path | None, typer.Argument(help="Study file, for example configs/quickstart.yaml.")] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Folder with labels.csv, MedMNIST .npz, Kermany or NIH folders, or vaults. Default: phantoms."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder. Default: runs/<time>-<study>.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue an interrupted run from its last round.")] = None,
    arms: Annotated[str, typer.Option(help="Any of federated, local, pooled.")] = "federated,local,pooled",
    repeats: Annotated[int, typer.Option(min=1, help="Repeat the training with other seeds.")] = 1,
    rounds: Annotated[int | None, typer.Option(min=1, help="Overrides federation.rounds.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Overrides the study's seed.")] = None,
    engine: Annotated[str, typer.Option(help="inprocess, or ray: Flower's own simulation.")] = "inprocess",
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    threads: Annotated[
        int, typer.Option(min=1, help="Torch threads per worker; another count gives other last digits.")
    ] = 1,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Play a whole federation on this machine and report who gained."""
    from simulations import cli

    cli.simulate(
        study,
        data=data,
        out=out,
        resume=resume,
        arms=arms,
        repeats=repeats,
        rounds=rounds,
        seed=seed,
        engine=engine,
        workers=workers,
        threads=threads,
        device=device,
        as_json=as_json,
    )


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="One or more finished runs.")],
    out: Annotated[Path | None, typer.Option(help="Where the report goes; needed to compare several runs.")] = None,
) -> None:
    """Rebuild a run's report, or compare several runs."""
    from simulations import cli

    cli.report(runs, out)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    data: Annotated[Path, typer.Option(help="Labelled images that the run has never seen; all rows are used.")],
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Test a run's model on another dataset, at the threshold the run chose."""
    from simulations import cli

    cli.evaluate(run, data, as_json=as_json, device=device)


@study_app.command("check")
def study_check(file: Annotated[Path, typer.Argument(help="Study file.")]) -> None:
    """Check a study file and print its hash."""
    from common.study import Study
    from simulations.cli import check_parts

    study = Study.load(file)
    check_parts(study)
    print(f"{file}: good\nhash {study.hash}")


@study_app.command("schema")
def study_schema() -> None:
    """Print the JSON schema of study files, for editors."""
    import json

    from common.study import schema

    print(json.dumps(schema(), indent=1))


@app.command()
def version() -> None:
    """Print the version."""
    from importlib import metadata

    print(metadata.version("fedward"))


def main() -> None:
    """Run the command line; expected errors are one line, without a traceback."""
    from common.errors import FedwardError, Interrupted

    try:
        app(standalone_mode=True)
    except FedwardError as error:
        print(f"fedward: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("fedward: stopped", file=sys.stderr)
        sys.exit(Interrupted.exit_code)
    except BrokenPipeError:
        # The reader has gone (fedward … | head); keep Python from complaining about it at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)


if __name__ == "__main__":
    main()
