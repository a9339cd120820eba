"""Many comparisons at once: p-values that keep their meaning when only the striking ones are read."""

from __future__ import annotations

import math
from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Each p-value adjusted for all of them, in their order (Holm 1979, Scandinavian Journal of Statistics 6, 65-70).

    Called where an adjusted value is at most α, the chance of any false call among all is at most α, whatever depends
    on what. The i-th smallest of m is multiplied by m - i + 1, and none is less than a smaller one's. Raises
    ``ValueError`` for what is no probability.
    """
    adjusted, highest = [math.nan] * len(p_values), 0.0
    for place, index in enumerate(_rising(p_values)):
        highest = max(highest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Each p-value adjusted for the false discovery rate, in their order (Benjamini, Hochberg 1995, JRSS B 57).

    Of all that are at most α an expected share of at most α is false, where the tests are independent or depend
    positively. It finds more than :func:`holm`, and promises less. Raises ``ValueError`` for what is no probability.
    """
    adjusted, lowest = [math.nan] * len(p_values), 1.0
    for place, index in reversed(list(enumerate(_rising(p_values), start=1))):
        lowest = min(lowest, len(p_values) / place * p_values[index])
        adjusted[index] = lowest
    return adjusted


def _rising(p_values: Sequence[float]) -> list[int]:
    """Their places, smallest first."""
    if not all(0.0 <= p <= 1.0 for p in p_values):  # said this way, NaN is refused too
        raise ValueError(f"p-values must be in [0, 1], got {list(p_values)}")
    return sorted(range(len(p_values)), key=lambda index: p_values[index])
