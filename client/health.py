"""Whether a site's agent works, for health checks: it says so in a file every few seconds, and that file is judged.

The file holds what the agent's connection knows; a process that hangs or has ended writes none.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from pydantic import BaseModel, ValidationError

from common.errors import Unhealthy
from common.files import show

logger = logging.getLogger("fedward.agent")

PULSE = "agent.json"
BEAT_S = 5.0
SILENT_S = 30.0
"""A pulse this old is nobody's."""
UNANSWERED_S = 90.0
"""An agent speaks to its coordinator every 30 s at least, also in the middle of hours of training."""


class Link(Protocol):
    """What a pulse tells of: ``client.fleet.Connection``."""

    state: str
    why: str
    answered: float | None


class Pulse:
    """Writes ``state/agent.json`` while it is entered."""

    def __init__(
        self,
        state: Path,
        link: Link,
        *,
        beat_s: float = BEAT_S,
        work: Callable[[], dict[str, Any]] = dict,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        """``work``: what the agent does, for ``status``. ``look`` is called at each beat, and logs its own troubles."""
        self._path, self._link, self._beat_s = state / PULSE, link, beat_s
        self._work, self._look = work, look
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._go, name="fedward-pulse", daemon=True)

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _go(self) -> None:
        failed = False
        while True:
            try:
                self._write()
                failed = False
            except OSError as error:  # a full disk: whoever asks sees no pulse, the agent goes on
                if not failed:
                    logger.error("cannot write %s: %s", self._path.name, error.strerror)
                failed = True
            self._look()
            if self._end.wait(self._beat_s):
                return

    def _write(self) -> None:
        link = self._link
        told = {"at": time.time(), "state": link.state, "why": link.why, "answered": link.answered}
        told["work"] = self._work()
        show(self._path, json.dumps(told))


class Task(BaseModel):
    """A request of a round that the agent works on, or that it answered last."""

    study: str
    name: str
    kind: str
    round: int
    at: float
    """When it was begun or answered, in seconds of the epoch."""


class Work(BaseModel):
    """What an agent does and did."""

    now: Task | None = None
    last: Task | None = None
    program: str = ""
    """Version of fedward at the coordinator."""


class Told(BaseModel):
    """What an agent last told of itself."""

    at: float
    state: str
    why: str
    answered: float | None
    work: Work = Work()


def read(state: Path) -> Told:
    """What the agent that keeps its memory in ``state`` last told. Raises :class:`Unhealthy` where none did."""
    try:
        return Told.model_validate_json((state / PULSE).read_bytes())
    except FileNotFoundError:
        raise Unhealthy("no agent runs here; start it with `fedward site up`") from None
    except (OSError, ValidationError):
        raise Unhealthy(f"{state / PULSE} cannot be read; look at logs/agent.log and the disk") from None


def judge(state: Path, at: float) -> str:
    """How the agent is that keeps its memory in ``state``, in words; ``at``: the time now, in seconds.

    Raises :class:`Unhealthy` where none runs, where it hangs, and where its coordinator has not answered lately.
    """
    told = read(state)
    if abs(at - told.at) > SILENT_S:
        raise Unhealthy(
            f"the agent has said nothing for {at - told.at:.0f} s: it was killed or hangs, or the disk is full; "
            "look at logs/agent.log and start it again"
        )
    why = f" ({told.why})" if told.why else ""
    if told.answered is None:
        heard = "has not answered yet"
    else:
        heard = f"answered {max(0.0, at - told.answered):.0f} s ago"
        if told.state == "online" and at - told.answered <= UNANSWERED_S:
            return f"online, the coordinator {heard}"
    if told.state == "refused":
        raise Unhealthy(f"the coordinator refuses this site{why}; call them")
    raise Unhealthy(
        f"{told.state}, the coordinator {heard}{why}; it tries again by itself: "
        "look whether the coordinator runs and the firewall lets this site reach it"
    )
