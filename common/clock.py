"""The time, as what is above passes it in: nothing below a command line reads a clock by itself."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def now() -> datetime:
    """The present, with its time zone."""
    return datetime.now(UTC).astimezone()
