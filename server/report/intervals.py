"""Numbers as ``results.json`` has them, and what they are shown with: an interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval, or the least and the most that it can be; any of them may be undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Interval:
        """Raises :class:`TypeError` for what is no number."""
        return cls(*(number_in(raw.get(key)) for key in ("value", "low", "high")))

    @classmethod
    def parse_given(cls, raw: Mapping[str, Any] | None) -> Interval:
        """As :meth:`parse`; undefined where there is nothing."""
        return cls(None) if raw is None else cls.parse(raw)


def number_in(raw: Any) -> float | None:
    """``None`` for null and for what is not finite. Raises :class:`TypeError` for what is no number."""
    if raw is None:
        return None
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise TypeError(f"{str(raw)[:40]!r} stands where a number belongs")
    return float(raw) if math.isfinite(raw) else None
