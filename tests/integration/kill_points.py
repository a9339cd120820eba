"""Where a process of the federation may be killed or held, and the blow itself, struck by the process on itself.

The product knows nothing of this: a test's process wraps the functions below before it begins. A :class:`Point` is
armed through a file, so that a process stays up from one kill to the next, and is disarmed as it strikes.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Point:
    """``when`` the ``call``-th call of ``where`` whose arguments hold ``only`` begins or has ended."""

    phase: str
    who: str
    """``agent`` or ``coordinator``: its SuperLink, its ServerApp and its files' keeper are one process."""
    where: str
    when: str = "before"
    call: int = 1
    only: str = ""
    rounds: int = 1
    """Armed once so many rounds are over; with 0 before the study is launched."""
    hold: bool = False
    """Not killed: held there until the test lets go."""

    def __str__(self) -> str:
        which = f" {self.call}" if self.call > 1 else ""
        about = f" ({self.only})" if self.only else ""
        return f"{self.phase}: {self.when} {self.where.partition(':')[2]}{about}{which}"


def _around(phase: str, who: str, where: str, **more: Any) -> list[Point]:
    return [Point(phase, who, where, when, **more) for when in ("before", "after")]


AGENT = [
    *_around("waiting for approval", "agent", "client.approvals:Approvals.seen", rounds=0),
    *_around("pulling", "agent", "client.flower_private:pull_objects"),
    Point("pulling", "agent", "client.fleet:Connection.call", "after", only="pull-object"),
    # The fit runs in the agent's own process, in the thread that asks for messages: there is no child to kill.
    *_around("training", "agent", "client.app:train"),
    Point("training", "agent", "client.training:step", "after", call=4),
    *_around("on record", "agent", "client.home:Home.record", only="'train.fit'"),
    *_around("keeping the reply", "agent", "client.replies:Replies.keep"),
    Point("keeping the reply", "agent", "client.replies:Replies._tidy"),
    *_around("pushing", "agent", "client.fleet:_Agent._bring"),
    Point("pushing", "agent", "client.flower_private:push_objects"),
    Point("pushing", "agent", "client.fleet:Connection.call", "after", only="push-object"),
    *_around("evaluating", "agent", "client.app:evaluate"),
    Point("testing", "agent", "client.app:moments"),
    *_around("taking the model", "agent", "client.delivery:keep"),
]
COORDINATOR = [
    *_around("waiting for approval", "coordinator", "server.coordinate:admit", rounds=0),
    Point("waiting for approval", "coordinator", "server.coordinate:train", rounds=0),
    *_around("waiting for approval", "coordinator", "os:replace", only="run.json", rounds=0),
    *_around("sending", "coordinator", "server.flower_private:SuperLink.send"),
    *_around("receiving", "coordinator", "server.flower_private:SuperLink.take"),
    Point("receiving", "coordinator", "server.flower_private:SuperLink.answered", "after"),
    *_around("aggregating", "coordinator", "server.fits:Fits._accept"),
    Point("aggregating", "coordinator", "server.fits:Fits._accept", "after", call=2),
    Point("aggregating", "coordinator", "server.fits:require_quorum"),
    *_around("evaluating", "coordinator", "server.rounds:Arm._evaluate"),
    *_around("checkpointing", "coordinator", "server.rounds:save_progress"),
    *_around("checkpointing", "coordinator", "os:replace", only="checkpoint.safetensors"),
    Point("testing", "coordinator", "server.app:test_model"),
    *_around("writing results", "coordinator", "server.app:write_model"),
    *_around("writing results", "coordinator", "os:replace", only="results.json"),
    *_around("writing the run's state", "coordinator", "os:replace", only="run.json"),
    *_around("delivering the model", "coordinator", "os:replace", only="manifest.json"),
    *_around("delivering the model", "coordinator", "os:replace", only="delivery.json"),
    *_around("writing the status", "coordinator", "os:replace", only="status.json"),
]
POINTS = {str(point) + f" [{point.who}]": point for point in (*AGENT, *COORDINATOR)}

_SUMS, _SUM = "client.secagg:SecureSums", "server.secure:SecureSum"
SECURE = {
    str(point) + f" [{point.who}]": point
    for point in (
        Point("keys", "agent", f"{_SUMS}._keys", "after"),
        *_around("shares", "agent", f"{_SUMS}._shares"),
        *_around("masking", "agent", f"{_SUMS}.masked"),
        *_around("survivors", "agent", f"{_SUMS}._sign"),
        *_around("releasing", "agent", "client.releases:Releases.commit"),
        Point("releasing", "agent", f"{_SUMS}._unmask", "after"),
        *_around("keys", "coordinator", f"{_SUM}._keys"),
        *_around("shares", "coordinator", f"{_SUM}._shares"),
        *_around("masking", "coordinator", f"{_SUM}._rows"),
        *_around("survivors", "coordinator", f"{_SUM}._signatures"),
        *_around("releasing", "coordinator", "server.secure:Releases.note"),
        *_around("releasing", "coordinator", f"{_SUM}._open"),
        Point("unmasking", "coordinator", "server.unmasking:Shares.unmask", "after"),
    )
}
"""Of a round that is summed under masks."""


HELD = ".held"
"""Suffix of what the armed file becomes while the process is held; it goes on when the test removes that."""


def arm(file: Path, point: Point) -> None:
    partial = file.with_name(f".{file.name}")
    partial.write_text(json.dumps(asdict(point)))
    partial.replace(file)


def install(who: str, file: Path) -> None:
    """In the process that is to be struck: wrap every place where it may be."""
    blow = _Blow(file)
    for where in dict.fromkeys(point.where for point in (POINTS | SECURE).values() if point.who == who):
        module, _, path = where.partition(":")
        *owners, name = path.split(".")
        owner: Any = functools.reduce(getattr, owners, importlib.import_module(module))
        kept = vars(owner)[name]
        assert not isinstance(kept, (staticmethod, classmethod, property)), where
        setattr(owner, name, _wrapped(kept, where, blow))


def _wrapped(inner: Callable[..., Any], where: str, blow: _Blow) -> Callable[..., Any]:
    @functools.wraps(inner)
    def outer(*arguments: Any, **named: Any) -> Any:
        blow.fall(where, "before", arguments)
        result = inner(*arguments, **named)
        blow.fall(where, "after", arguments)
        return result

    return outer


class _Blow:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._seen = 0
        self._lock = threading.Lock()

    def fall(self, where: str, when: str, arguments: tuple[Any, ...]) -> None:
        try:
            point = Point(**json.loads(self._file.read_text()))
        except (FileNotFoundError, json.JSONDecodeError):
            return
        if (point.where, point.when) != (where, when) or not (not point.only or point.only in repr(arguments)):
            return
        with self._lock:
            self._seen += 1
            if self._seen != point.call:
                return
            self._seen = 0
            if not point.hold:
                self._file.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
            held = self._file.replace(self._file.with_suffix(HELD))
        while held.exists():
            time.sleep(0.02)
