"""The front door: one command, ``fedward``; sub-commands import their room only when called."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import click
import typer
import typer.core
import typer.main

from client.agent_commands import app as agent_app
from client.audit_commands import app as audit_app
from client.commands import app as site_app
from client.join_commands import app as join_app
from client.ledger_commands import app as ledger_app
from client.model_commands import app as model_app
from client.person_commands import app as person_app
from client.study_commands import app as decide_app
from server.commands import app as coordinator_app
from server.privacy_commands import app as plan_app
from server.run_commands import app as run_app

typer.core.HAS_RICH = False  # or it escapes brackets for rich's markup, which is off, and help shows "\\[required]"

app = typer.Typer(
    name="fedward",
    help="Federated learning between hospitals for medical images. Weights travel; patients' data never does.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
)
study_app = typer.Typer(help="Check and describe study files.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(study_app, name="study")
for _part in (
    join_app,
    decide_app,
    audit_app,
    ledger_app,
    person_app,
    model_app,
    agent_app,
):  # without a name: their commands become those of `site`
    site_app.add_typer(_part)
coordinator_app.add_typer(run_app)
privacy_app = typer.Typer(
    help="What a study's differential privacy costs and withstands.", no_args_is_help=True, rich_markup_mode=None
)
privacy_app.add_typer(plan_app)
app.add_typer(privacy_app, name="privacy")
app.add_typer(site_app, name="site")
app.add_typer(coordinator_app, name="coordinator")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PIPE_CLOSED = 141

Json = Annotated[bool, typer.Option("--json", help="One JSON object per line on standard output.")]


@app.command()
def simulate(
    study: Annotated[Path | None, typer.Argument(help="Study file, for example configs/quickstart.yaml.")] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="[NAME=]PATH",
            help="Folder with labels.csv, a public set as downloaded (docs/researcher.md lists them), or vaults. "
            "Give it again for several sources as one dataset: each image's attribute `source` is the NAME. "
            "Default: phantoms.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder. Default: runs/<time>-<study>.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue an interrupted run from its last round.")] = None,
    arms: Annotated[
        str | None, typer.Option(help="Any of federated, local, pooled, with commas between. Default: all three.")
    ] = None,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Train this often, each time with other seeds. Default: 1.")
    ] = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Cross-validate by patient instead: no arms, no repeats, no test.")
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="Overrides federation.rounds.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Overrides the study's seed.")] = None,
    engine: Annotated[
        str | None, typer.Option(help="inprocess, or ray: Flower's own simulation. Default: inprocess.")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes. Default: 1.")] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Torch threads per worker; another count gives other last digits. Default: 1."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto (a GPU where there is one), cpu or cuda:N.")] = None,
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
        folds=folds,
        rounds=rounds,
        seed=seed,
        engine=engine,
        workers=workers,
        threads=threads,
        device=device,
        as_json=as_json,
    )


@app.command()
def search(
    study: Annotated[Path | None, typer.Argument(help="Study file, for example configs/quickstart.yaml.")] = None,
    space: Annotated[Path | None, typer.Argument(help="Space file, for example configs/search.yaml.")] = None,
    data: Annotated[
        list[Path] | None, typer.Option(metavar="[NAME=]PATH", help="Images, as for simulate. Default: phantoms.")
    ] = None,
    trials: Annotated[int | None, typer.Option(min=1, help="Overrides the space file's trials.")] = None,
    folds: Annotated[int | None, typer.Option(min=2, help="Overrides its folds: cross-validation by patient.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes, a training each. Default: 1.")] = None,
    out: Annotated[Path | None, typer.Option(help="The search's folder. Default: runs/<time>-search-<study>.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Continue an interrupted search.")] = None,
    device: Annotated[str | None, typer.Option(help="auto (a GPU where there is one), cpu or cuda:N.")] = None,
    as_json: Json = False,
) -> None:
    """Try values of a study's fields and rank them by validation; test patients are never read."""
    from simulations.search import cli

    cli.search(
        study,
        space,
        data=data,
        trials=trials,
        folds=folds,
        workers=workers,
        out=out,
        resume=resume,
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
    device: Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu or cuda:N.")] = "auto",
    as_json: Json = False,
) -> None:
    """Test a run's model on another dataset, at the threshold the run chose."""
    from simulations import cli

    cli.evaluate(run, data, as_json=as_json, device=device)


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(help="A finished run.")],
    method: Annotated[
        str | None,
        typer.Option(help="grad-cam, hirescam, integrated-gradients or rollout. Default: what suits the model."),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Test images of each hospital, at most.")] = 50,
    public: Annotated[
        bool, typer.Option("--public", help="The images are public: show some in the report, as of phantoms.")
    ] = False,
    device: Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu or cuda:N.")] = "auto",
    as_json: Json = False,
) -> None:
    """Show what a run's model looked at, and measure how far the heat maps can be believed."""
    from simulations.cli import check_device
    from simulations.explaining import explain

    explain(run, method=method, images=images, public=public, device=check_device(device), as_json=as_json)


@app.command()
def reproduce(
    paper: Annotated[int | None, typer.Argument(help="A paper's number. Without one: the papers there are.")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]DIR", help="Images of one of the paper's sets; again for another. Default: phantoms."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Its folder; the same again continues. Default: runs/<time>.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Train each model this often, with other seeds.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    quick: Annotated[bool, typer.Option("--quick", help="A first look: few runs, small images, few rounds.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Nothing scaled down for a CPU: hours, or a GPU.")] = False,
) -> None:
    """Play a paper's system, federated and split by patient, and set its published figures beside ours."""
    if paper is None:
        from simulations.reproduce.paper import listing

        print("\n".join(listing()))
        return
    from simulations.reproduce import cli

    cli.reproduce(paper, data=data or (), out=out, seeds=seeds, workers=workers, quick=quick, full=full)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="A finished run, or a model that a coordinator has exported.")],
    images: Annotated[Path | None, typer.Argument(help="Folder of images or DICOM files, or one file.")] = None,
    site: Annotated[Path | None, typer.Option(help="A site's directory: all images of its vault instead.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the worklist (CSV) here. Default: standard output.")] = None,
    normal: Annotated[
        str | None, typer.Option(help="Class without a finding, of several classes. Default: the study's first.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that decode files. Default: one a core.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu or cuda:N.")] = "auto",
    signed_by: Annotated[
        str | None, typer.Option(help="Fingerprint of the model's signer, as they read it out by phone.")
    ] = None,
    unverified: Annotated[
        bool, typer.Option("--unverified", help="Use a model for which no signature vouches, as of a run of your own.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Order images by how likely they are abnormal. Research software: every case must still be read.

    A model in a site's models/ is verified with that site's audit log; any other needs --signed-by or --unverified.
    """
    from simulations.predict import cli

    cli.predict(
        model,
        images,
        site=site,
        out=out,
        normal=normal,
        workers=workers,
        device=device,
        signed_by=signed_by,
        unverified=unverified,
        as_json=as_json,
    )


@privacy_app.command("audit")
def privacy_audit(
    study: Annotated[Path, typer.Argument(help="Study file, with privacy: in it.")],
    data: Annotated[Path | None, typer.Option(help="Images to attack, as for simulate. Default: phantoms.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the page. Default: runs/<time>-audit-<study>.")] = None,
    canaries: Annotated[
        int | None, typer.Option(min=100, max=50_000, help="Made-up patients; more prove more. Default: 4000.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu or cuda:N.")] = "auto",
    as_json: Json = False,
) -> None:
    """Attack a study's privacy on this machine: what could be learned about one patient? Minutes to an hour."""
    from simulations.attacks import cli

    cli.audit(study, data=data, out=out, canaries=canaries, device=device, as_json=as_json)


@study_app.command("check")
def study_check(file: Annotated[Path, typer.Argument(help="Study file.")]) -> None:
    """Check a study file and print its hash."""
    from common.study import Study
    from simulations.cli import check_parts

    study = Study.load(file)
    check_parts(study, file)
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


def _stop_on_signals() -> list[int]:
    """Let SIGTERM, and SIGHUP unless ``nohup`` ignores it, stop a command as Ctrl-C does. Returns those that came."""
    came: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise KeyboardInterrupt

    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, stop)
    return came


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody may be listening any more
        print(f"fedward: {text}", file=sys.stderr, flush=True)


def _outcome(came: list[int]) -> int:
    """Run the command line; the exit code. What goes wrong as expected is told in one line, without a traceback."""
    from common.errors import FedwardError, Interrupted

    try:
        # Not through Typer's own main, which has its ways with Ctrl-C and closed pipes.
        commands = typer.main.get_command(app)
        with commands.make_context("fedward", sys.argv[1:]) as context:
            commands.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as end:  # --help
        return end.exit_code
    except click.ClickException as error:  # a mistake on the command line
        error.show()
        return error.exit_code
    except KeyboardInterrupt:
        _say("stopped")
        return _stopped(came)
    except Interrupted as error:
        _say(str(error))
        return _stopped(came)
    except FedwardError as error:
        _say(str(error))
        return error.exit_code
    except BrokenPipeError:
        return _PIPE_CLOSED
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _say(f"{where}{error.strerror or error}; check the path, its permissions and the free space")
        return 1
    except MemoryError:
        _say("out of memory; use fewer --workers, a smaller image.size or training.microbatch")
        return 1
    return 0


def _stopped(came: list[int]) -> int:
    """The exit code that a shell gives to what these signals ended."""
    return 128 + (came[0] if came else signal.SIGINT)


def main() -> None:
    """Entry point: run the command line and exit."""
    came = _stop_on_signals()
    try:
        code = _outcome(came)
    except KeyboardInterrupt:  # a second one, while the first was being told
        code = _stopped(came)
    if code == _PIPE_CLOSED:
        # The reader has gone (fedward … | head); keep Python from complaining about it at exit.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for number in _SIGNALS:  # nothing is left that a second Ctrl-C could spoil, and nobody to catch what it raises
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    sys.exit(code)


if __name__ == "__main__":
    main()
