"""``fedward simulate``, ``report`` and ``evaluate``: the researcher's commands, behind the front door."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from common.errors import RunError, StudyError
from common.study import Study
from simulations.arms import ARMS, ArmName
from simulations.datasets import open_source
from simulations.environment import Stopwatch
from simulations.external import evaluate_run
from simulations.progress import choose_progress, closing
from simulations.run import Engine, Plan, Run, default_out


def parse_arms(text: str) -> tuple[ArmName, ...]:
    """``federated,local`` as a tuple, in the order that reports use."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in ARMS]
    if unknown or not names:
        raise StudyError(f"--arms: unknown arm {unknown[0] if unknown else text!r}; known: {', '.join(ARMS)}")
    return tuple(arm for arm in ARMS if arm in names)


def overrides(rounds: int | None, seed: int | None) -> dict[str, int]:
    """Command-line changes as dotted study keys: they make a derived study, recorded with the run."""
    changes = {"federation.rounds": rounds, "seed": seed}
    return {key: value for key, value in changes.items() if value is not None}


def simulate(
    study_path: Path | None,
    *,
    data: Path | None,
    out: Path | None,
    resume: Path | None,
    arms: str,
    repeats: int,
    rounds: int | None,
    seed: int | None,
    engine: str,
    workers: int,
    threads: int,
    device: str,
    as_json: bool,
) -> None:
    """Run or resume a simulation and print its outcome."""
    stopwatch = Stopwatch()
    if engine not in ("inprocess", "ray"):
        raise StudyError(f"--engine: unknown engine {engine!r}; known: inprocess, ray")
    if resume is not None:
        if study_path is not None or data is not None or out is not None:
            raise RunError(
                "--resume RUN continues a run as it was started: give it neither a study nor --data or --out"
            )
        run = Run.resume(resume, stopwatch, engine=engine, workers=workers)
    else:
        if study_path is None:
            raise StudyError("name a study file, for example configs/quickstart.yaml, or --resume RUN")
        study = Study.load(study_path)
        changes = overrides(rounds, seed)
        if changes:
            study = study.derive(**changes)
        check_parts(study)
        plan = Plan(
            parse_arms(arms),
            repeats,
            cast(Engine, engine),
            workers,
            threads,
            check_device(device),
            str(study_path.parent),
        )
        source = open_source(study, data)
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


def check_parts(study: Study) -> None:
    """Build what the study names once, so that a mistake shows before any data is read."""
    from common.models import build
    from server.strategies import build_strategy

    build_strategy(study.federation.strategy)
    build(study, 0)


def check_device(device: str) -> str:
    from client.devices import choose_device

    return str(choose_device(device))


def read_results(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Every repeat's results of every run, in order."""
    found: list[dict[str, Any]] = []
    for run in runs:
        repeats = sorted(run.glob("repeat-*/results.json"), key=lambda path: int(path.parent.name.split("-")[1]))
        for path in repeats or [run / "results.json"]:
            try:
                found.append(json.loads(path.read_text(encoding="utf-8")))
            except FileNotFoundError:
                raise RunError(f"{run} has no results yet: finish it with `fedward simulate --resume {run}`") from None
            except ValueError:
                raise RunError(f"{path} is damaged; run that repeat again") from None
    return found


def report(runs: Sequence[Path], out: Path | None) -> None:
    """Rebuild a run's report from its results, or compare several runs."""
    from server.report import write_metrics_csv, write_report

    results = read_results(runs)
    if out is None and len(runs) > 1:
        raise RunError("comparing runs needs --out DIR for the comparison")
    target = out or runs[0]
    target.mkdir(parents=True, exist_ok=True)
    write_report(results, target)
    write_metrics_csv(results, target / "metrics.csv")
    print(target / "report.html")


def evaluate(run: Path, data: Path, *, as_json: bool, device: str) -> None:
    """Test a run's model on another labelled dataset, with the run's threshold."""
    found = evaluate_run(run, data, device=check_device(device))
    if as_json:
        json.dump(found, sys.stdout, indent=1)
        print()
        return
    _print_evaluation(found)


def _print_evaluation(found: Mapping[str, Any]) -> None:
    print(f"{found['images']} images of {found['patients']} patients from {found['source']}")
    for metric, cell in found["test"].items():
        value = (
            "undefined" if cell["value"] is None else f"{cell['value']:.3f}  [{cell['low']:.3f}, {cell['high']:.3f}]"
        )
        print(f"{metric:<20}{value}")
    for row in found["unreadable"]:
        print(f"left out: {row['file']}: {row['reason']}", file=sys.stderr)
