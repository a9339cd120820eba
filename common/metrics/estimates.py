"""A metric of one group of patients, another's, and their difference: each with its interval, and how surprising it is.

An interval of a difference is put together from the two groups' own (method of variance estimates recovery; Newcombe
1998, Statistics in Medicine 17, 873-890, method 10; with patients in both groups, Zou and Donner 2008, Statistics in
Medicine 27, 1693-1702). So it holds in small groups too, where all are right and a variance of 0 would claim certainty.
Its p-value is that of the widest interval that leaves out 0.

Where the small-cell rule left only bounds, the interval runs from the lower end of the worst case's to the upper end of
the best case's, each as wide as if a patient's images were one, and a p-value is the largest that the bounds allow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from common.metrics.intervals import UNDEFINED, Interval, interval_at, quantile

_FARTHEST = 40.0
"""Normal quantile beyond which a p-value is 0 in floating point."""
_STEPS = 60


@dataclass(frozen=True)
class Estimate:
    """A metric of a group: between ``worst`` and ``best``, which are the same where all is told."""

    worst: float
    best: float
    variance: float | None
    """``None``: as of a proportion of ``n``."""
    n: float
    """Patients that it rests on."""
    proportion: bool = True
    """In [0, 1], with an interval that stays there; else any number, with a normal one."""

    @property
    def value(self) -> float | None:
        return self.worst if self.worst == self.best else None

    def limits(self, z: float) -> tuple[float, float]:
        """The interval's ends at normal quantile ``z``."""
        low, high = self._interval(self.worst, z)[0], self._interval(self.best, z)[1]
        return low, high

    def interval(self, confidence: float) -> Interval:
        low, high = self.limits(quantile(confidence))
        return Interval(self.value, low, high)

    def _interval(self, value: float, z: float) -> tuple[float, float]:
        if not self.proportion:
            reach = z * math.sqrt(self.variance or 0.0)
            return value - reach, value + reach
        found = interval_at(value, self.variance if self.worst == self.best else None, self.n, z)
        assert found.low is not None  # a value that is no NaN has an interval
        assert found.high is not None
        return found.low, found.high


@dataclass(frozen=True)
class Difference:
    """``a - b``."""

    value: float | None
    low: float
    high: float
    p: float

    @property
    def interval(self) -> Interval:
        return Interval(self.value, self.low, self.high)


def difference(a: Estimate, b: Estimate, confidence: float, correlation: float = 0.0) -> Difference:
    """``a - b``; ``correlation`` of the two, in [-1, 1], where patients are in both."""
    low, high = _limits(a, b, quantile(confidence), correlation)
    value = a.worst - b.worst if a.value is not None and b.value is not None else None
    return Difference(value, low, high, _p_value(a, b, correlation))


def _limits(a: Estimate, b: Estimate, z: float, correlation: float) -> tuple[float, float]:
    (a_low, a_high), (b_low, b_high) = a.limits(z), b.limits(z)
    return (
        a.worst - b.best - _together(a.worst - a_low, b_high - b.best, correlation),
        a.best - b.worst + _together(a_high - a.best, b.worst - b_low, correlation),
    )


def _together(one: float, other: float, correlation: float) -> float:
    return math.sqrt(max(one * one + other * other - 2.0 * correlation * one * other, 0.0))


def _p_value(a: Estimate, b: Estimate, correlation: float) -> float:
    """Two-sided: of the greatest normal quantile at which 0 is outside."""

    def outside(z: float) -> bool:
        low, high = _limits(a, b, z, correlation)
        return low > 0.0 or high < 0.0

    near, far = 0.0, _FARTHEST
    if not outside(1e-9):
        return 1.0
    for _ in range(_STEPS):
        middle = (near + far) / 2.0
        near, far = (middle, far) if outside(middle) else (near, middle)
    return math.erfc(near / math.sqrt(2.0))


def shown(estimate: Estimate | None, confidence: float) -> Interval:
    """Its interval, or that it is undefined."""
    return UNDEFINED if estimate is None else estimate.interval(confidence)
