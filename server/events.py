"""One structured line per fact: the run's only output, read by the terminal, the report and later dashboards."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from common.errors import RunError

Sink = Callable[[Mapping[str, Any]], None]
_BLOCK = 1 << 16


def utc_now() -> str:
    """The wall clock, ISO 8601 in UTC with seconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class EventLog:
    """Hands every event to its sinks, in order, also from several threads."""

    def __init__(self, *sinks: Sink, now: Callable[[], str] = utc_now) -> None:
        self._sinks = sinks
        self._now = now
        self._lock = threading.Lock()

    def emit(self, event: str, **facts: Any) -> None:
        """Record one fact, e.g. ``emit("round", arm="federated", round=3, train_loss=0.41)``."""
        line = {"time": self._now(), "event": event, **facts}
        with self._lock:
            for sink in self._sinks:
                sink(line)


class JsonLines:
    """Sink that appends to a text stream, a line a fact, flushed so that a crash loses none.

    Raises :class:`RunError` where the line cannot be written (disk full).
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @classmethod
    def append_to(cls, path: Path) -> JsonLines:
        """A log at ``path``, continued where there is one; half a line that a kill left is cut off."""
        try:
            with path.open("ab+") as file:
                file.truncate(_end_of_last_line(file))
            return cls(path.open("a", encoding="utf-8"))
        except OSError as error:
            raise _unwritable(path.name, error) from None

    def __call__(self, line: Mapping[str, Any]) -> None:
        # Written in one piece, and no NaN: half the world's JSON readers refuse it.
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:
            raise _unwritable("the run's events", error) from None

    def close(self) -> None:
        """Close the stream; whatever could not be written by now has been reported."""
        with contextlib.suppress(OSError):
            self._stream.close()


def _unwritable(what: str, error: OSError) -> RunError:
    return RunError(f"{what} cannot be written: {error.strerror}; free some space, then --resume")


def _end_of_last_line(file: BinaryIO) -> int:
    """Offset behind the last line break; 0 where there is none."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
