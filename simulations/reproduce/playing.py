"""The runs of a reproduction: each an ordinary run folder, made by the same machinery as ``fedward simulate``.

A reproduction may be stopped at any moment and started again with the same command: finished runs are kept,
a run that was begun goes on where it was.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from common.errors import Interrupted, RunError
from common.files import write_atomically
from common.study import Study
from simulations.cli import check_device, check_parts
from simulations.datasets import Source, open_source
from simulations.datasets.derived import joined
from simulations.environment import Stopwatch
from simulations.reproduce.paper import PAPERS, Changes, Paper, Planned, study_of
from simulations.run import Plan, Run
from simulations.runfolder import Folder

FORMAT = 1
MANIFEST = "reproduction.json"
"""Its mark: written before the first run."""


@dataclass(frozen=True)
class Order:
    """What is asked for. ``data``: folders by the paper's names for its sets."""

    paper: Paper
    out: Path
    data: Mapping[str, Path]
    seeds: int = 1
    workers: int = 1
    quick: bool = False
    full: bool = False
    """Whether nothing is scaled down to what a CPU can do."""

    @property
    def wanted(self) -> dict[str, Planned]:
        """The runs that can be played: all those of ``--quick`` or else all, whose data is there or not needed."""
        names = self.paper.quick.runs if self.quick else tuple(self.paper.runs)
        runs = {name: run for name, run in self.paper.runs.items() if name in names and self.full >= run.only_full}
        if not self.data:
            return runs
        return {name: run for name, run in runs.items() if all(needed in self.data for needed in run.images)}

    @property
    def left_out(self) -> dict[str, str]:
        """The runs that are not played, and why."""
        found = {}
        for name, run in self.paper.runs.items():
            if name in self.wanted:
                continue
            lacking = [one for one in run.images if one not in self.data] if self.data else []
            by_size = (
                "too large for a CPU, --full plays it" if run.only_full and not self.full else "left out by --quick"
            )
            found[name] = f"no --data {lacking[0]}=DIR was given" if lacking else by_size
        return found

    def sources(self, run: Planned) -> list[Path] | None:
        """What ``run`` reads, as ``--data`` of ``fedward simulate`` has it; ``None``: phantoms."""
        return [Path(f"{name}={self.data[name]}") for name in run.images] if self.data and run.images else None

    def _kinds(self, run: Planned) -> dict[str, Changes]:
        """The phantoms that stand for a run's sets, where they differ."""
        kinds = {name: self.paper.sets[name].phantoms for name in run.images}
        return {} if all(kind == next(iter(kinds.values())) for kind in kinds.values()) else kinds

    def _one_kind(self, run: Planned) -> Changes:
        return {} if self._kinds(run) or not run.images else self.paper.sets[run.images[0]].phantoms

    def source(self, run: Planned, study: Study) -> Source:
        """The images of ``run``."""
        folders, kinds = self.sources(run), self._kinds(run)
        if folders is not None or not kinds:
            return open_source(study, folders)
        return joined(study, [(name, open_source(study.derive(**kind), None)) for name, kind in kinds.items()])

    def study(self, name: str) -> Study:
        """The study of a run: the paper's, changed for its data, for what the run is about, and to be quick."""
        run = self.paper.runs[name]
        real = self.sources(run) is not None
        under: dict[str, Any] = {} if real else {**self.paper.phantoms, **self._one_kind(run), **run.phantoms}
        if real and not self.full:
            under |= self.paper.scaled_down.changes
        for one in run.images if real else ():
            under |= self.paper.sets[one].changes
            under |= {} if self.full else self.paper.sets[one].scaled
        study = study_of(self.paper, run, under)
        changes: Changes = dict(self.paper.quick.changes) if self.quick else {}
        if run.starts_from is not None:
            changes = {**changes, "model.weights": f"{run.starts_from}/model.safetensors"}
        return study.derive(**{"name": f"paper {self.paper.paper} {name}", **changes})

    def folder(self, name: str) -> Path:
        return self.out / name


class Listener(Protocol):
    """What hears a run's events, until it is closed."""

    def __call__(self, event: Mapping[str, Any], /) -> None: ...

    def close(self) -> None: ...


def play(order: Order, listen: Callable[[str], Listener]) -> None:
    """Play every wanted run that is not finished. ``listen`` gives a run's name its listener.

    Raises :class:`RunError` where ``order.out`` holds something else, :class:`Interrupted` with how to go on.
    """
    studies = {name: order.study(name) for name in order.wanted}
    for name, study in studies.items():
        check_parts(study, PAPERS / (order.paper.runs[name].study or order.paper.study))
    _claim(order, studies)
    for name, study in studies.items():
        if Folder(order.folder(name)).finished:
            continue
        try:
            run = _opened(order, name, study)
            with contextlib.closing(listen(name)) as listener:
                run.execute(listener)
        except Interrupted:
            raise Interrupted("stopped; finished rounds are kept: give the same command again to continue") from None


def _opened(order: Order, name: str, study: Study) -> Run:
    folder, stopwatch = order.folder(name), Stopwatch(whole_process=False)
    if Folder(folder).manifest.exists():
        return Run.resume(folder, stopwatch, workers=order.workers)
    if folder.exists():  # killed while its hospitals were being made: nothing was computed yet
        shutil.rmtree(folder)
    run = order.paper.runs[name]
    source = order.source(run, study)
    plan = Plan(run.arms, order.seeds, "inprocess", order.workers, 1, check_device("auto"), str(order.out.resolve()))
    return Run.start(study, plan, source, folder, stopwatch)


def _claim(order: Order, studies: Mapping[str, Study]) -> None:
    """Mark ``order.out`` as this reproduction's, or see that it is; its table's words may have changed since."""
    wanted = {
        "format": FORMAT,
        "paper": order.paper.paper,
        "data": {name: str(path.resolve()) for name, path in order.data.items()},
        "seeds": order.seeds,
        "runs": {name: [study.hash, *order.paper.runs[name].arms] for name, study in studies.items()},
    }
    path = order.out / MANIFEST
    try:
        if not path.exists():
            if order.out.exists() and (not order.out.is_dir() or any(order.out.iterdir())):
                raise RunError(f"{order.out} is in use by something else; choose another --out")
            order.out.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(wanted, indent=1).encode())
            return
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{order.out}: {error.strerror}; choose another --out") from None
    except ValueError:
        raise RunError(f"{path} is damaged; remove {order.out}, or choose another --out") from None
    changed = [key for key in wanted if not isinstance(found, dict) or found.get(key) != wanted[key]]
    if changed:
        raise RunError(
            f"{order.out} holds another reproduction ({', '.join(changed)} differ); give the command it was made with, "
            "or choose another --out"
        )
