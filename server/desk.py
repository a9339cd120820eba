"""A coordinator's runs on the disk: what the command line asks for, and what the running coordinator makes of it.

There is no control socket. ``launch`` puts a run's folder into ``runs/``, ``stop`` a mark into it; the process that
``up`` starts looks there every second and writes ``status.json``. Who may write to the directory is in command.

::

    runs/20261121-140000-pneumonia/   study.yaml  run.json (state)  stop  events.jsonl  state/  results.json  model…
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from common.errors import RunError
from common.files import write_atomically
from common.study import Study

State = Literal["queued", "waiting", "running", "finished", "failed", "stopped", "interrupted"]
STATUS, STUDY, RUN, STOP, EVENTS = "status.json", "study.yaml", "run.json", "stop", "events.jsonl"
RESUMABLE: tuple[State, ...] = ("failed", "stopped", "interrupted")
UNFINISHED: tuple[State, ...] = ("waiting", "running")


@dataclass(frozen=True)
class RunFolder:
    """One run."""

    path: Path

    @classmethod
    def launch(cls, runs: Path, study: Study, base: Path, at: datetime) -> RunFolder:
        """A new run of ``study``, queued. ``base`` is what paths in the study are relative to."""
        name = f"{at.strftime('%Y%m%d-%H%M%S')}-{study.name}"
        path, number = runs / name, 2
        while path.exists():
            path, number = runs / f"{name}-{number}", number + 1
        path.mkdir(mode=0o700, parents=True)
        folder = cls(path)
        write_atomically(path / STUDY, study.canonical(), mode=0o600)
        folder._write({"state": "queued", "hash": study.hash, "base": str(base.resolve()), "launched": _stamp(at)})
        return folder

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def facts(self) -> dict[str, Any]:
        """``run.json``. Raises :class:`RunError`."""
        try:
            found = json.loads((self.path / RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict) or found.get("state") not in get_args(State):
            raise RunError(f"{self.path / RUN} is missing or damaged; restore it from a backup, or launch anew")
        return found

    @property
    def state(self) -> State:
        state: State = self.facts["state"]
        return state

    def turn(self, state: State, at: datetime, **facts: Any) -> None:
        """Change the state; ``facts`` are kept beside it."""
        self._write({**self.facts, "state": state, state: _stamp(at), **facts})

    @property
    def study(self) -> Study:
        return Study.load(self.path / STUDY)

    @property
    def base(self) -> Path:
        return Path(self.facts["base"])

    @property
    def to_stop(self) -> bool:
        return (self.path / STOP).exists()

    def ask_to_stop(self) -> None:
        """Leave the mark."""
        write_atomically(self.path / STOP, b"")

    def resume(self, at: datetime) -> None:
        """Queue it again, from its checkpoint. Raises :class:`RunError` where there is nothing to resume."""
        if self.state not in RESUMABLE:
            raise RunError(f"run {self.name} is {self.state}; only {', '.join(RESUMABLE)} ones are resumed")
        (self.path / STOP).unlink(missing_ok=True)
        self.turn("queued", at, why="")

    def _write(self, facts: Mapping[str, Any]) -> None:
        write_atomically(self.path / RUN, json.dumps(facts, indent=1, ensure_ascii=False).encode(), mode=0o600)


def all_runs(runs: Path) -> Iterator[RunFolder]:
    """Every run, the earliest first."""
    if runs.is_dir():
        yield from (RunFolder(path) for path in sorted(runs.iterdir()) if (path / RUN).is_file())


def find_run(runs: Path, name: str | None, *states: State) -> RunFolder:
    """The run of that name, or the latest in one of ``states``. Raises :class:`RunError`."""
    if name is not None:
        path = runs / Path(name).name
        if not (path / RUN).is_file():
            raise RunError(f"there is no run {Path(name).name!r}; `fedward coordinator status` lists them")
        return RunFolder(path)
    found = [run for run in all_runs(runs) if run.state in states]
    if not found:
        raise RunError(f"no run is {' or '.join(states)}; `fedward coordinator status` lists them")
    return found[-1]


def _stamp(at: datetime) -> str:
    return at.isoformat(timespec="seconds")
