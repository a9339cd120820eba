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

    @property
    def hidden(self) -> bool:
        """Whether small cells are hidden behind it: no more is known than the least and the most that it can be."""
        return self.value is None and self.low is not None and self.high is not None

    @property
    def known(self) -> bool:
        """Whether there is a value, or bounds of it."""
        return self.value is not None or self.hidden

    @property
    def least(self) -> float | None:
        """The value, or the least that it can be."""
        return self.low if self.hidden else self.value

    @property
    def most(self) -> float | None:
        """The value, or the most that it can be."""
        return self.high if self.hidden else self.value

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
