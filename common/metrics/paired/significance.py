"""P-values of paired comparisons from counts alone; two-sided throughout."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

_NORMAL = NormalDist()


@dataclass(frozen=True)
class McNemar:
    """Images that only the first, and that only the second decider had right, and what they say (McNemar 1947).

    All but ``clustered`` take images for independent.
    """

    first_only: int
    second_only: int
    exact: float
    """Binomial, conditional on the images that tell the two apart."""
    mid_p: float
    """The same with half the probability of what was seen: exact is too careful, this one is not (Fagerland, Lydersen
    and Laake 2013, BMC Medical Research Methodology 13:91)."""
    chi_square: float | None
    """(b - c)² / (b + c), without correction; None where nothing tells the two apart."""
    asymptotic: float | None
    """Its p-value."""
    clustered_chi_square: float | None
    """Obuchowski 1998: patients are the unit. None where no patient tells the two apart, or there is one patient."""
    clustered: float | None
    """Its p-value."""


def mcnemar(first_only: int, second_only: int, differing: float | None = None, patients: int = 0) -> McNemar:
    """``differing``: of each patient first_only - second_only, squared and added up; None where it is not known."""
    b, c = first_only, second_only
    exact, mid_p = binomial(b, c)
    chi = (b - c) ** 2 / (b + c) if b + c else None
    clustered = None
    if differing and patients > 1:
        clustered = (b - c) ** 2 / (differing * patients / (patients - 1))
    return McNemar(b, c, exact, mid_p, chi, tail(chi), clustered, tail(clustered))


def binomial(b: int, c: int) -> tuple[float, float]:
    """Exact and mid p-value of ``b`` against ``c`` under one half each."""
    from scipy.special import bdtr, gammaln

    n, least = b + c, min(b, c)
    if not n:
        return 1.0, 1.0
    below = 2.0 * float(bdtr(least, n, 0.5))
    log = gammaln(n + 1) - gammaln(least + 1) - gammaln(n - least + 1) - n * math.log(2.0)
    return min(1.0, below), min(1.0, below - math.exp(float(log)))


def tail(chi_square: float | None) -> float | None:
    """P-value of a chi-square with one degree of freedom."""
    return None if chi_square is None else math.erfc(math.sqrt(chi_square / 2.0))


def two_sided(value: float, variance: float) -> float:
    """P-value of a normal ``value`` under a mean of 0; ``variance`` above 0."""
    return tail(value * value / variance) or 0.0
