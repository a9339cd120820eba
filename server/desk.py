"""A coordinator's runs on the disk: what the command line asks for, and what the running coordinator makes of it.

There is no control socket. ``launch`` puts a run's folder into ``runs/``, ``stop`` a mark into it; the process that
``up`` starts looks there every second and writes ``status.json``. Who may write to the directory is in command. That
process holds a lock on ``.up.lock``, which the kernel frees however it ends: the lock tells whether one is at work.

::

    runs/20261121-140000-pneumonia/   study.yaml  run.json (state)  stop  events.jsonl  state/  results.json  model…
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from common.errors import FedwardError, RunError
from common.files import take_lock, write_atomically
from common.study import Study

State = Literal["queued", "waiting", "running", "finished", "failed", "stopped", "interrupted"]
STATUS, STUDY, RUN, STOP, EVENTS = "status.json", "study.yaml", "run.json", "stop", "events.jsonl"
RESULTS = "results.json"
CHECKPOINT = Path("state", "federated", "checkpoint.safetensors")
SURVEY = CHECKPOINT.with_name("survey.json")
_UP = ".up.lock"
_LOCK_S = 1.0
RESUMABLE: tuple[State, ...] = ("failed", "stopped", "interrupted")
UNFINISHED: tuple[State, ...] = ("waiting", "running")


@dataclass(frozen=True)
class RunFolder:
    """One run."""

    path: Path

    @classmethod
    def launch(cls, runs: Path, study: Study, base: Path, at: datetime, *, survey_only: bool = False) -> RunFolder:
        """A new run of ``study``, queued. ``base`` is what paths in the study are relative to.

        ``survey_only``: it stops after its survey, until it is resumed.
        """
        # In universal time: names sort as runs were launched, when clocks are put back too.
        name = f"{at.astimezone(UTC).strftime('%Y%m%d-%H%M%S')}-{study.name}"
        path, number = runs / name, 2
        while True:
            try:
                path.mkdir(mode=0o700, parents=True)
                break
            except FileExistsError:
                path, number = runs / f"{name}-{number}", number + 1
        folder = cls(path)
        write_atomically(path / STUDY, study.canonical(), mode=0o600)
        facts = {"state": "queued", "hash": study.hash, "base": str(base.resolve()), "launched": _stamp(at)}
        folder._write(facts | ({"survey_only": True} if survey_only else {}))
        return folder

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def facts(self) -> dict[str, Any]:
        """``run.json``. Raises :class:`RunError`."""
        try:
            return _Facts.model_validate_json((self.path / RUN).read_bytes()).model_dump(exclude_unset=True)
        except (OSError, ValueError):
            raise RunError(
                f"{self.path / RUN} is missing or damaged; restore it from a backup, or launch anew"
            ) from None

    @property
    def state(self) -> State | Literal["damaged"]:
        """``damaged``: ``run.json`` cannot be read; :attr:`facts` says the remedy."""
        try:
            state: State = self.facts["state"]
        except RunError:
            return "damaged"
        return state

    def turn(
        self, state: State, at: datetime, *, known: Mapping[str, Any] | None = None, **facts: Any
    ) -> dict[str, Any]:
        """Change the state; ``facts`` are kept beside it. What ``run.json`` holds then.

        ``known``: what it held, for the one whose run it is while it goes on.
        """
        new = {**(self.facts if known is None else known), "state": state, state: _stamp(at), **facts}
        self._write(new)
        return new

    @property
    def hash(self) -> str | None:
        """The study's; ``None`` where neither ``run.json`` nor the study can be read."""
        try:
            found: str = self.facts["hash"]
        except RunError:
            try:
                return self.study.hash
            except FedwardError:
                return None
        return found

    @property
    def begun(self) -> frozenset[str]:
        """The sites whose checkpoint it has; empty where it has none."""
        if not (self.path / CHECKPOINT).exists():
            return frozenset()
        return frozenset(self.facts.get("sites", ()))

    @property
    def trained(self) -> tuple[str, ...]:
        """The sites whose fits are in a finished run's model, to whom it goes."""
        return tuple(self.facts.get("trained", ()))

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

    def resume(self, at: datetime, *, killed: bool = False, train: bool = False) -> None:
        """Queue it again, from its checkpoint. ``killed``: no coordinator is at work, whatever the state says.

        ``train``: its survey, if it was to stop after that, has been looked at.

        Raises :class:`RunError` where there is nothing to resume.
        """
        state = self.facts["state"]
        if state not in RESUMABLE and not (killed and state in UNFINISHED):
            raise RunError(f"run {self.name} is {state}; only {', '.join(RESUMABLE)} ones are resumed")
        (self.path / STOP).unlink(missing_ok=True)
        facts: dict[str, Any] = {"survey_only": False} if train and (self.path / SURVEY).exists() else {}
        self.turn("queued", at, why="", **facts)

    def _write(self, facts: Mapping[str, Any]) -> None:
        write_atomically(self.path / RUN, json.dumps(facts, indent=1, ensure_ascii=False).encode(), mode=0o600)


def all_runs(runs: Path) -> Iterator[RunFolder]:
    """Every run, the earliest first, damaged ones too; what cannot even be looked into is left out."""
    try:
        paths = sorted(runs.iterdir())
    except OSError:
        return
    for path in paths:
        try:
            found = (path / RUN).is_file()
        except OSError:
            continue
        if found:
            yield RunFolder(path)


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


@contextmanager
def at_work(directory: Path) -> Iterator[None]:
    """Be the one running coordinator of ``directory``. Raises :class:`RunError` where there is one."""
    ends = time.monotonic() + _LOCK_S
    while True:
        try:
            file = take_lock(directory / _UP)
            break
        except BlockingIOError:
            if time.monotonic() > ends:  # and not at once: is_at_work holds it for a moment
                raise RunError(f"a coordinator is running in {directory} already; stop that one first") from None
            time.sleep(0.02)
        except OSError as error:
            raise RunError(f"cannot write in {directory}: {error.strerror}; check its owner and permissions") from None
    try:
        yield
    finally:
        os.close(file)


def is_at_work(directory: Path) -> bool:
    """Whether a coordinator runs in ``directory`` now. Raises :class:`RunError` where that cannot be told."""
    try:
        os.close(take_lock(directory / _UP, fcntl.LOCK_SH))
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    except OSError as error:
        raise RunError(f"cannot read {directory / _UP}: {error.strerror}; check its owner and permissions") from None
    return False


class _Facts(BaseModel, extra="allow"):
    state: State
    hash: str
    base: str
    sites: list[str] = []
    why: str = ""
    survey_only: bool = False


class _Site(BaseModel):
    online: bool
    last_seen: float | None
    answer: str
    program: str
    until: int


class _Closed(BaseModel):
    answer: str
    until: int


class _Run(BaseModel):
    name: str
    phase: str = ""
    round: int = 0
    since: float = 0.0
    deadline: float = 0.0
    answered: list[str] = []
    awaited: list[str] = []
    waits: dict[str, _Closed] = {}
    begins: float = 0.0
    set_aside: list[str] = []


class _Alert(BaseModel):
    kind: str
    about: str
    level: Literal["info", "warning", "critical"]
    text: str
    since: str


class _Status(BaseModel):
    at: float
    since: float
    port: int
    sites: dict[str, _Site]
    run: _Run | None
    refused: dict[str, int]
    alerts: list[_Alert]


def read_status(directory: Path) -> dict[str, Any] | None:
    """What a running coordinator last told; ``None`` where none has run, or the file is damaged."""
    try:
        return _Status.model_validate_json((directory / STATUS).read_bytes()).model_dump()
    except (OSError, ValueError):
        return None


def _stamp(at: datetime) -> str:
    """In UTC, so that the later one sorts behind the earlier one."""
    return at.astimezone(UTC).isoformat(timespec="seconds")
