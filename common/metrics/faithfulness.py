"""How far heat maps can be believed, as sums that merge: a site sends sums over patients, never an image's number.

Of each patient first the mean over her images is taken; then sums and sums of squares over patients. Intervals follow
from these by the central limit theorem, patients being independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.metrics.intervals import Interval

MEASURES = (
    "pointed",
    "chance",
    "pointed_gain",
    "mass",
    "mass_gain",
    "deletion",
    "random",
    "deletion_gain",
    "fresh",
)
"""What is measured of each image that shows its class.

``pointed``: 1 where the map's highest point lies in the mask (the pointing game, Zhang et al. 2018, IJCV 126);
``chance``: the mask's share of the image, which is what a random point would score; ``mass``: the share of the map that
lies in the mask (Wang et al. 2020, arXiv:1910.01279); ``deletion``: area under the class's score while the image is
taken away, hottest cells first (Petsiuk et al. 2018, arXiv:1806.07421); ``random``: the same in random order; gains:
``pointed`` and ``mass`` less ``chance``, ``random`` less ``deletion``, of the same image. ``fresh``: Spearman's rank
correlation with the map of the same network with fresh weights (Adebayo et al. 2018, arXiv:1810.03292): near 1, and the
map shows the image and not what was learnt.
"""


@dataclass(frozen=True)
class Faithfulness:
    """Each ``(len(MEASURES),)``: patients of whom it was measured, sum and sum of squares over them."""

    patients: NDArray[np.int64]
    sums: NDArray[np.float64]
    squares: NDArray[np.float64]
    images: int = 0

    @classmethod
    def zero(cls) -> Faithfulness:
        nothing = np.zeros(len(MEASURES))
        return cls(nothing.astype(np.int64), nothing, nothing)

    @classmethod
    def of(cls, values: NDArray[np.float64], patients: NDArray[np.int64], least: int = 1) -> Faithfulness:
        """From ``values`` ``(N, len(MEASURES))``, NaN where there is none, of ``patients`` ``(N,)``, numbered anyhow.

        A measure of fewer than ``least`` patients is left out, and the number of images is, where all are.
        """
        _, number = np.unique(patients, return_inverse=True)
        known = np.isfinite(values)
        size = int(number.max(initial=-1)) + 1
        total, count = np.zeros((size, len(MEASURES))), np.zeros((size, len(MEASURES)))
        np.add.at(total, number, np.where(known, values, 0.0))
        np.add.at(count, number, known)
        means = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
        having = (count > 0).sum(0)
        told = having >= max(1, least)
        return cls(
            np.where(told, having, 0).astype(np.int64),
            np.where(told, means.sum(0), 0.0),
            np.where(told, np.square(means).sum(0), 0.0),
            len(values) if told.any() else 0,
        )

    def __add__(self, other: Faithfulness) -> Faithfulness:
        return Faithfulness(
            self.patients + other.patients,
            self.sums + other.sums,
            self.squares + other.squares,
            self.images + other.images,
        )

    def interval(self, measure: str, confidence: float) -> Interval:
        """Mean over patients; without a patient undefined, with one alone without bounds."""
        at = MEASURES.index(measure)
        count, total = int(self.patients[at]), float(self.sums[at])
        if count == 0:
            return Interval(None, None, None)
        mean = total / count
        if count == 1:
            return Interval(mean, None, None)
        variance = max(0.0, (float(self.squares[at]) - total * mean) / (count - 1))
        half = NormalDist().inv_cdf(0.5 + confidence / 2) * math.sqrt(variance / count)
        return Interval(mean, mean - half, mean + half)

    def to_dict(self, confidence: float) -> Mapping[str, Any]:
        """As it stands in ``results.json``."""
        return {
            "images": self.images,
            **{
                name: {**self.interval(name, confidence).to_dict(), "patients": int(count)}
                for name, count in zip(MEASURES, self.patients, strict=True)
            },
        }
