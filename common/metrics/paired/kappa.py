"""Cohen's kappa: how far two agree beyond what chance would make them (Cohen 1960, doi:10.1177/001316446002000104)."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

from common.metrics.layout import Floats


@dataclass(frozen=True)
class Kappa:
    """``standard_error`` takes images for independent."""

    value: float
    observed: float
    """Share on which both agree."""
    standard_error: float


def kappa_of(table: Floats, weights: Floats | None = None) -> Kappa | None:
    """Of images ``(K, K)`` by the first's and the second's class; ``None`` where chance alone would agree as well.

    ``weights`` ``(K, K)``, 1 on the diagonal down to 0 (Cohen 1968, doi:10.1037/h0026256). Standard error for a kappa
    that is not 0: Fleiss, Cohen and Everitt 1969, doi:10.1037/h0028106, equation 13 (without weights: 8).
    """
    images = float(table.sum())
    if not images:
        return None
    p, w = table / images, np.eye(len(table)) if weights is None else weights
    first, second = p.sum(axis=1), p.sum(axis=0)
    chance, observed = float(first @ w @ second), float((w * p).sum())
    if 1.0 - chance < 1e-12:
        return None
    kappa = (observed - chance) / (1.0 - chance)
    means = (w @ second)[:, None] + (first @ w)[None, :]
    spread = float((p * (w - means * (1.0 - kappa)) ** 2).sum()) - (kappa - chance * (1.0 - kappa)) ** 2
    return Kappa(kappa, observed, sqrt(max(spread, 0.0) / images) / (1.0 - chance))
