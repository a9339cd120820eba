"""``fedward simulate``, ``report`` and ``evaluate``: the researcher's commands, behind the front door."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from common.errors import FedwardError, RunError, StudyError
from common.study import Study
from simulations.arms import ARMS, ArmName, arms_of, check_arms
from simulations.datasets import open_source
from simulations.environment import Stopwatch
from simulations.external import evaluate_run
from simulations.progress import choose_progress, closing, interval
from simulations.run import Plan, Run, default_out
from simulations.runfolder import SEARCH, Folder


def parse_arms(text: str) -> tuple[ArmName, ...]:
    """``federated,local`` as a tuple, in the order that reports use."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in ARMS]
    if unknown or not names:
        raise StudyError(f"--arms: unknown arm {unknown[0] if unknown else text!r}; known: {', '.join(ARMS)}")
    return tuple(arm for arm in ARMS if arm in names)


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the user gave."""
    return {key: value for key, value in options.items() if value is not None}


def refuse_changes(fixed: Mapping[str, Any]) -> None:
    """A resumed run computes what it was started to compute; only --engine and --workers may change."""
    changed = ", ".join(given(fixed))
    if changed:
        raise RunError(
            f"--resume RUN continues a run as it was started: leave out {changed}, or start another run with it"
        )


def tell_finished(run: Path, *, as_json: bool) -> None:
    """Nothing is left to do, and nothing is done: say so and show the outcome again."""
    page = run / "report.html"
    if as_json:
        print(json.dumps({"event": "finished", "report": page.name}))
        return
    print(f"{run} is finished already; nothing was computed again", file=sys.stderr)
    print("\n".join([*closing(read_results([run])[0]), "", f"report: {page}"]))


def simulate(
    study_path: Path | None,
    *,
    data: Sequence[Path] | None,
    out: Path | None,
    resume: Path | None,
    arms: str | None,
    repeats: int | None,
    folds: int | None,
    rounds: int | None,
    seed: int | None,
    engine: str | None,
    workers: int | None,
    threads: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Run or resume a simulation and print its outcome. ``None`` is an option that was not given."""
    stopwatch = Stopwatch()
    if engine not in (None, "inprocess", "ray"):
        raise StudyError(f"--engine: unknown engine {engine!r}; known: inprocess, ray")
    chosen = {"engine": engine, "workers": workers}
    if folds is not None or (resume is not None and (resume / SEARCH).exists()):
        from simulations.search import cli  # and Optuna's distributions: nothing else needs them

        whole = {"--arms": arms, "--repeats": repeats, "--engine": engine, "--threads": threads}
        cli.cross_validate(
            study_path,
            folds=folds,
            data=data or None,
            workers=workers,
            out=out,
            resume=resume,
            device=device,
            changes=given({"federation.rounds": rounds, "seed": seed}),
            other=given(whole),
            as_json=as_json,
        )
        return
    if resume is not None:
        fixed = {"STUDY": study_path, "--data": data or None, "--out": out, "--arms": arms, "--repeats": repeats}
        fixed |= {"--rounds": rounds, "--seed": seed, "--threads": threads, "--device": device}
        refuse_changes(fixed)
        if Folder(resume).finished:
            tell_finished(resume, as_json=as_json)
            return
        run = Run.resume(resume, stopwatch, **given(chosen))
    else:
        if study_path is None:
            raise StudyError("name a study file, for example configs/quickstart.yaml, or --resume RUN")
        study = Study.load(study_path)
        changes = given({"federation.rounds": rounds, "seed": seed})
        if changes:
            study = study.derive(**changes)
        check_parts(study, study_path)
        plan = Plan(
            arms=parse_arms(arms) if arms is not None else arms_of(study),
            device=check_device(device or "auto"),
            base=str(study_path.parent.resolve()),
            **given({**chosen, "repeats": repeats, "threads": threads}),
        )
        check_arms(study, plan.arms)
        source = open_source(study, data or None)
        target = out or default_out(study, lambda: datetime.now().strftime("%Y%m%d-%H%M%S"))
        run = Run.start(study, plan, source, target, stopwatch)
    progress = choose_progress(as_json)
    try:
        results = run.execute(progress)
    finally:
        progress.close()
    if not as_json:
        print("\n".join(closing(results[0])))
        print(f"\nreport: {run.folder.path / 'report.html'}")


def check_parts(study: Study, path: Path) -> None:
    """Build what the study names once, so that a mistake shows before any data is read; ``path`` names it in errors."""
    from common.models import build
    from server.strategies import build_strategy

    try:
        build_strategy(study.federation.strategy)
        build(study, 0)
    except FedwardError as error:
        raise type(error)(f"{path}: {error}") from None


def check_device(device: str) -> str:
    from client.devices import choose_device

    return str(choose_device(device))


def read_results(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Every repeat's results of every run, in order, checked. Raises :class:`RunError` naming the file."""
    from server.report.results import parse

    found: list[dict[str, Any]] = []
    for run in runs:
        repeats = {
            int(path.parent.name.removeprefix("repeat-")): path
            for path in run.glob("repeat-*/results.json")
            if path.parent.name.removeprefix("repeat-").isdecimal()
        }
        for path in [repeats[number] for number in sorted(repeats)] or [run / "results.json"]:
            try:
                result = json.loads(path.read_text(encoding="utf-8"))
            except (FileNotFoundError, NotADirectoryError):
                raise RunError(f"{run} has no results: {Folder(run).what_now}") from None
            except OSError as error:
                raise RunError(f"{path} cannot be read: {error.strerror}; check its permissions") from None
            except ValueError:
                result = None
            if not isinstance(result, dict):
                raise RunError(f"{path} is damaged; restore it from a copy, or remove it and resume the run")
            try:
                parse(result)
            except RunError as error:
                raise RunError(f"{path.parent}: {error}") from None
            found.append(result)
    return found


def report(runs: Sequence[Path], out: Path | None) -> None:
    """Rebuild a run's report from its results, or compare several runs."""
    from server.report import write_metrics_csv, write_report

    if out is None and len(runs) > 1:
        raise RunError("comparing runs needs a folder for the comparison; add --out DIR")
    results = read_results(runs)
    target = out or runs[0]
    made = not target.exists()
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_report(results, target)
        write_metrics_csv(results, target / "metrics.csv")
    except BaseException as error:
        if made:
            shutil.rmtree(target, ignore_errors=True)
        if isinstance(error, OSError):
            raise RunError(f"cannot write to {target}: {error.strerror}; choose another --out") from None
        raise
    print(target / "report.html")


def evaluate(run: Path, data: Path, *, as_json: bool, device: str) -> None:
    """Test a run's model on another labelled dataset, with the run's threshold."""
    found = evaluate_run(run, data, device=check_device(device))
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    _print_evaluation(found)


def _print_evaluation(found: Mapping[str, Any]) -> None:
    print(f"{found['images']} images of {found['patients']} patients from {found['source']}")
    for metric, cell in found["test"].items():
        print(f"{metric:<20}{interval(cell)}")
    for row in found["unreadable"]:
        print(f"left out: {row['file']}: {row['reason']}", file=sys.stderr)
