"""One structured line per fact: the run's only output, read by the terminal, the report and later dashboards."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

Sink = Callable[[Mapping[str, Any]], None]


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
    """Sink that appends to a text stream, a line a fact, flushed so that a crash loses none."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @classmethod
    def append_to(cls, path: Path) -> JsonLines:
        return cls(path.open("a", encoding="utf-8"))

    def __call__(self, line: Mapping[str, Any]) -> None:
        self._stream.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._stream.close()
