"""From a value and its variance to an interval."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

_NO_VARIANCE = 1e-24
"""Below this a variance is rounding error (a standard error of 1e-12)."""


@dataclass(frozen=True)
class Interval:
    """A metric with its confidence interval, in [0, 1]; ``None`` is undefined or unknown, never a stand-in.

    ``value`` None with ``low`` and ``high`` set: not enough was released to tell (small-cell rule); the value on
    these very images lies between the two.
    """

    value: float | None
    low: float | None
    high: float | None

    def to_dict(self) -> dict[str, float | None]:
        return {"value": self.value, "low": self.low, "high": self.high}


UNDEFINED = Interval(None, None, None)


def interval(value: float, variance: float | None, n: float, confidence: float) -> Interval:
    """Interval of a proportion-like ``value``.

    With L = ln(p / (1 - p)) and the standard error s: L ± z·s / (p·(1 - p)), transformed back (delta method on
    the logit scale; Pepe 2003, The Statistical Evaluation of Medical Tests, 2.2.2 and 5.2), so within [0, 1] by
    itself. Where there is no variance to go by (None, or 0: all right, all wrong, or one patient) the
    interval of Wilson (1927, JASA 22) with ``n`` patients.
    """
    return interval_at(value, variance, n, quantile(confidence))


def interval_at(value: float, variance: float | None, n: float, z: float) -> Interval:
    """As :func:`interval`, for the normal quantile ``z`` > 0."""
    if math.isnan(value):
        return UNDEFINED
    value = min(max(value, 0.0), 1.0)
    if variance is None or variance <= _NO_VARIANCE or not 0.0 < value < 1.0:
        return wilson(value, n, z)
    logit = math.log(value) - math.log1p(-value)
    reach = z * math.sqrt(variance) / (value * (1.0 - value))
    return Interval(value, _expit(logit - reach), _expit(logit + reach))


def wilson(value: float, n: float, z: float) -> Interval:
    """Score interval of a proportion ``value`` of ``n`` (at least 1 is assumed)."""
    n = max(n, 1.0)
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    reach = z / (1 + z * z / n) * math.sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    return Interval(value, max(min(centre - reach, value), 0.0), min(max(centre + reach, value), 1.0))


@lru_cache(maxsize=16)
def quantile(confidence: float) -> float:
    """Two-sided normal quantile: 1.96 for 0.95."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    return NormalDist().inv_cdf((1.0 + confidence) / 2.0)


def _expit(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x)) if x > -700.0 else 0.0
