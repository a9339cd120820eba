"""``fedward search`` and ``fedward simulate --folds``: the commands, behind the front door."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from common.errors import FedwardError, RunError
from common.study import Study
from simulations.cli import check_device, check_parts, given, refuse_changes
from simulations.datasets import open_source
from simulations.environment import Stopwatch
from simulations.run import default_out
from simulations.search.progress import choose_progress
from simulations.search.proposals import Learnt, Proposer
from simulations.search.results import Judged
from simulations.search.run import Plan, Search
from simulations.search.space import SearchSpec
from simulations.search.words import closing
from simulations.search.write import BEST, PAGE, write_results

_TRIED = 8


def search(
    study_path: Path | None,
    space_path: Path | None,
    *,
    data: Sequence[Path] | None,
    trials: int | None,
    folds: int | None,
    workers: int | None,
    out: Path | None,
    resume: Path | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Run or resume a search and print its outcome. ``None`` is an option that was not given."""
    stopwatch = Stopwatch()
    if resume is not None:
        fixed = {"STUDY": study_path, "SPACE": space_path, "--data": data or None, "--trials": trials}
        refuse_changes({**fixed, "--folds": folds, "--out": out, "--device": device})
        found = Search.resume(resume, stopwatch, **given({"workers": workers}))
    else:
        if study_path is None or space_path is None:
            raise RunError("name a study file and a space file, for example configs/search.yaml, or --resume SEARCH")
        spec = SearchSpec.load(space_path).changed(str(space_path), **given({"trials": trials, "folds": folds}))
        found = _start("search", study_path, spec, str(space_path), data, workers, out, device, stopwatch, {})
    _finish(found, as_json=as_json)


def cross_validate(
    study_path: Path | None,
    *,
    folds: int | None,
    data: Sequence[Path] | None,
    workers: int | None,
    out: Path | None,
    resume: Path | None,
    device: str | None,
    changes: Mapping[str, Any],
    other: Mapping[str, Any],
    as_json: bool,
) -> None:
    """``fedward simulate --folds``: one trial, the study itself, changed by ``changes``; ``other`` options do not fit.

    Raises :class:`RunError` for these.
    """
    stopwatch = Stopwatch()
    if other:
        raise RunError(
            f"--folds trains the federated arm of the study once for each fold: leave out {', '.join(other)}, or leave "
            "out --folds"
        )
    if resume is not None:
        fixed = {"STUDY": study_path, "--data": data, "--folds": folds, "--out": out, "--device": device}
        refuse_changes({**fixed, **changes})
        found = Search.resume(resume, stopwatch, **given({"workers": workers}))
    else:
        if study_path is None:
            raise RunError("name a study file, for example configs/quickstart.yaml, or --resume RUN")
        spec = SearchSpec.parse({"method": "grid", "folds": folds}, "--folds")
        found = _start("simulate", study_path, spec, str(study_path), data, workers, out, device, stopwatch, changes)
    _finish(found, as_json=as_json)


def _start(
    command: str,
    study_path: Path,
    spec: SearchSpec,
    where: str,
    data: Sequence[Path] | None,
    workers: int | None,
    out: Path | None,
    device: str | None,
    stopwatch: Stopwatch,
    changes: Mapping[str, Any],
) -> Search:
    study = Study.load(study_path)
    if changes:
        study = study.derive(**changes)
    if study.task == "segmentation" and "metric" not in spec.model_fields_set:  # by what its rounds are kept
        spec = spec.model_copy(update={"metric": "dice"})
    check_parts(study, study_path)
    require_some(study, spec, where)
    plan = Plan(command, workers or 1, device=check_device(device or "auto"), base=str(study_path.parent.resolve()))
    suffix = "-search" if command == "search" else "-folds"
    target = out or default_out(study, lambda: datetime.now().strftime("%Y%m%d-%H%M%S") + suffix)
    return Search.start(study, spec, plan, open_source(study, data or None), target, stopwatch, where)


def require_some(study: Study, spec: SearchSpec, where: str) -> None:
    """Raises the first error where none of the first trials makes a study whose model can be built.

    Some combinations of several fields may be impossible; such a trial fails by itself, and the search goes on.
    """
    proposer = Proposer(
        spec.model_copy(update={"method": "random"}) if spec.method == "tpe" else spec, study.seed, where
    )
    first: FedwardError | None = None
    earlier: list[Learnt] = []
    for _ in range(min(proposer.trials, _TRIED)):
        earlier.append(Learnt(proposer.propose(earlier)))
        try:
            check_parts(study.derive(**earlier[-1].params), Path(where))
            return
        except FedwardError as error:
            first = first or error
    if first is not None:
        raise first


def _finish(found: Search, *, as_json: bool) -> None:
    progress = choose_progress(as_json)
    try:
        judged = found.execute(progress)
        best, together = write_results(found, judged)
    finally:
        progress.close()
    if not as_json:
        print("\n".join(closing(found.spec, judged, best, together)))
        if best is not None and found.spec.space:
            print(f"\nbest study: {found.store.path / BEST}")
        print(f"page: {found.store.path / PAGE}")
    _require_result(found, judged)


def _require_result(found: Search, judged: Sequence[Judged]) -> None:
    """Raises :class:`RunError` where every trial failed: the first one's reason is most likely everybody's."""
    if not any(one.score is not None for one in judged):
        first = next(one for one in judged if one.status != "done")
        raise RunError(f"no trial has a result; trial {first.trial.number}: {first.reason}; the page lists all")
