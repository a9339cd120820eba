"""Whether scores are probabilities, and whether acting on them helps; from the merged histograms alone.

A score counts at the middle of its bin: of 16,384 bins it is moved by at most 2⁻¹⁵. Brier's score moves by no more than
twice that, a group's mean by once, and an image changes its group only where its bin holds the groups' border.
Where small cells were hidden nothing of this is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from common.metrics.counts import Counts
from common.metrics.layout import Floats, divide

GROUPS = 10
"""Of equal width; as in Guo et al. 2017 (arXiv:1706.04599), who took 15, and most reports since."""
_TEMPERATURES = (1 / 32, 32.0)
_PRECISION = 1e-9


@dataclass(frozen=True, eq=False)
class Scale:
    """One class's scores against the rest: images by score, in bins that are not empty."""

    score: Floats
    """``(U,)`` rising, middles of bins."""
    negatives: Floats
    """``(U,)`` images."""
    positives: Floats
    """``(U,)`` images."""

    @classmethod
    def of(cls, counts: Counts, column: int) -> Scale | None:
        """None where small cells are hidden, or a class is missing."""
        bins = counts.layout.bins
        if not counts.exact or not counts.totals[column].all():
            return None
        groups = [counts.low.group(2 * column + sign, bins) for sign in (0, 1)]
        used = np.union1d(groups[0][0], groups[1][0])
        images = np.zeros((2, len(used)))
        for sign, (at, n) in enumerate(groups):
            images[sign, np.searchsorted(used, at)] = n
        return cls((used + 0.5) / bins, images[0], images[1])

    def at(self, temperature: float) -> Scale:
        """The same images, each logit divided by ``temperature``."""
        return Scale(_sigmoid(_logit(self.score) / temperature), self.negatives, self.positives)

    @property
    def images(self) -> Floats:
        return self.negatives + self.positives

    @property
    def brier(self) -> float:
        """Mean squared distance of score and truth (Brier 1950)."""
        squares = self.positives * (1 - self.score) ** 2 + self.negatives * self.score**2
        return float(squares.sum() / self.images.sum())

    @property
    def log_loss(self) -> float:
        """Mean of -log of the score that the truth was given."""
        losses = self.positives * -np.log(self.score) + self.negatives * -np.log1p(-self.score)
        return float(losses.sum() / self.images.sum())

    def groups(self, count: int = GROUPS) -> tuple[Floats, Floats, Floats]:
        """Images, mean score and share of positives, each ``(count,)``, of groups of equal width; NaN in empty ones."""
        which = np.minimum((self.score * count).astype(np.int64), count - 1)
        images, score, positives = (
            np.bincount(which, weights, count).astype(np.float64)
            for weights in (self.images, self.images * self.score, self.positives)
        )
        return images, divide(score, images), divide(positives, images)

    def expected_error(self, count: int = GROUPS) -> float:
        """Expected calibration error (Naeini et al. 2015): the groups' distance of score and truth, by their images."""
        images, score, positives = self.groups(count)
        return float(np.nansum(images * np.abs(score - positives)) / images.sum())

    def net_benefit(self, thresholds: Floats) -> tuple[Floats, Floats]:
        """Net benefit of acting from each of ``thresholds`` in (0, 1) on, and of acting always (Vickers, Elkin 2006).

        Right alarms less false ones, each of which costs as the threshold's odds say, per image; never to act is 0.
        """
        # Bins from the threshold's own on: as everywhere, positive is a score at or above it.
        first = np.searchsorted(self.score, thresholds)
        above = [np.append(np.cumsum(n[::-1])[::-1], 0.0)[first] for n in (self.positives, self.negatives)]
        odds, total = thresholds / (1 - thresholds), self.images.sum()
        always = (self.positives.sum() - self.negatives.sum() * odds) / total
        return (above[0] - above[1] * odds) / total, always


def temperature(scale: Scale) -> float:
    """What validation's logits are to be divided by for the least log loss (Guo et al. 2017); between 1/32 and 32.

    Of the histogram that all sites have added up: no score leaves any of them.
    """
    logits = _logit(scale.score)

    def slope(inverse: float) -> float:
        """Of the log loss, which is convex in 1/T, so that its slope rises."""
        share = _sigmoid(logits * inverse)
        return float((logits * (share * scale.images - scale.positives)).sum())

    low, high = 1 / _TEMPERATURES[1], 1 / _TEMPERATURES[0]
    while high > low * (1 + _PRECISION):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / math.sqrt(low * high)


def _logit(score: Floats) -> Floats:
    return np.asarray(np.log(score) - np.log1p(-score))


def _sigmoid(logits: Floats) -> Floats:
    """Within (0, 1) however far the logits are out, so that a logarithm is a number."""
    return np.asarray(np.clip(1 / (1 + np.exp(-np.clip(logits, -700, 700))), 2.0**-52, 1 - 2.0**-52))
