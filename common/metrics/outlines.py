"""First pass over outlines: how well they overlap with the masks, at each of a few thresholds.

An image's outline at a threshold is the pixels whose probability is at least that. Dice and IoU are of each image by
itself and averaged over the images whose mask is not empty: an empty mask has no overlap to speak of. It counts in the
Dice of all pixels of all images together, where every pixel outlined in vain weighs alike. By this one models and
thresholds are chosen, on validation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError, ProtocolError
from common.metrics import cells
from common.metrics.clustered import Ratio
from common.metrics.intervals import Interval
from common.metrics.layout import Arrays, Floats, Ints, divide, expect, integers

GRID: tuple[float, ...] = (0.01, 0.02, *(round(0.05 * step, 2) for step in range(1, 20)), 0.98, 0.99)
"""Thresholds at which outlines are looked at. Fixed, so that nobody can choose one to single out a patient."""
MIDDLE = GRID.index(0.5)
"""Where a threshold stands that validation cannot choose."""
_T = len(GRID)
_PIXELS = 1 << 52
"""No message may claim more pixels than this."""
METRICS = ("dice", "iou")


@dataclass(frozen=True, eq=False)
class Overlaps:
    """What one site's outlines and masks have in common, image by image; it never leaves the site."""

    rows: Ints
    """``(M,)``: which of the split's images these are: those with a mask, be it empty."""
    truth: Ints
    """``(M,)`` pixels of the mask."""
    predicted: Ints
    """``(M, T)`` pixels outlined at each threshold of :data:`GRID`."""
    both: Ints
    """``(M, T)`` pixels in both."""

    @classmethod
    def of(cls, probabilities: NDArray[np.floating], masks: NDArray[np.uint8], rows: Ints) -> Overlaps:
        """From probabilities and masks in {0, 1}, both ``(M, H, W)``."""
        count, pixels = len(masks), masks[0].size if len(masks) else 0
        level = np.digitize(probabilities, GRID).reshape(count, pixels)  # thresholds that a pixel reaches
        cell = (np.arange(count)[:, None] * 2 + masks.reshape(count, pixels)) * (_T + 1) + level
        found = np.bincount(cell.ravel(), minlength=count * 2 * (_T + 1)).reshape(count, 2, _T + 1)
        reached = found[:, :, ::-1].cumsum(axis=2)[:, :, ::-1].astype(np.int64)
        return cls(np.asarray(rows, dtype=np.int64), reached[:, 1, 0], reached[:, :, 1:].sum(axis=1), reached[:, 1, 1:])

    @classmethod
    def joined(cls, parts: list[Overlaps]) -> Overlaps:
        """One after the other."""
        empty = np.zeros((0, _T), dtype=np.int64)
        return cls(
            np.concatenate([empty[:, 0], *(part.rows for part in parts)]),
            np.concatenate([empty[:, 0], *(part.truth for part in parts)]),
            np.concatenate([empty, *(part.predicted for part in parts)]),
            np.concatenate([empty, *(part.both for part in parts)]),
        )

    @classmethod
    def following(cls, parts: Sequence[tuple[Overlaps | None, int]]) -> Overlaps:
        """Of several splits of so many images one after the other: rows are those of all images together."""
        starts = np.cumsum([0, *(images for _, images in parts)])
        return cls.joined(
            [
                cls(part.rows + start, part.truth, part.predicted, part.both)
                for (part, _), start in zip(parts, starts.tolist(), strict=False)
                if part is not None
            ]
        )

    @property
    def having(self) -> NDArray[np.bool_]:
        """``(M,)``: whose mask is not empty."""
        return np.asarray(self.truth > 0)

    @property
    def dice(self) -> Floats:
        """``(M, T)``; 0 where mask and outline are both empty, which counts nowhere."""
        together = self.truth[:, None] + self.predicted
        return np.asarray(2.0 * self.both / np.maximum(together, 1))

    @property
    def iou(self) -> Floats:
        """``(M, T)``, as :attr:`dice`."""
        union = self.truth[:, None] + self.predicted - self.both
        return np.asarray(self.both / np.maximum(union, 1))


@dataclass(frozen=True, eq=False)
class Outlines:
    """Sums over images at each threshold; ``a + b`` is both sites together."""

    dice: Ratio
    iou: Ratio
    """``(T,)`` each: means over the images with a mask that is not empty."""
    predicted: Ints
    """``(T,)`` pixels outlined, of all images together."""
    both: Ints
    """``(T,)`` pixels outlined that are in their masks."""
    truth: int
    """Pixels of all masks."""
    images: Ints
    """``(2,)``: images with an empty mask, and with another; of those that may be told."""

    @classmethod
    def of(cls, overlaps: Overlaps, patients: NDArray[np.generic], min_cell: int = 1) -> Outlines:
        """A site's sums. ``patients`` ``(N,)`` of the whole split.

        Images with and without the finding are two groups of patients: of 1 to ``min_cell`` - 1 patients a group is
        left out of all sums, as in :class:`~common.metrics.counts.Counts`. So is, at a threshold, what the model
        outlines in so few of a group: alone in a sum, it would be their own. Their pixels count as not outlined there,
        and the means of Dice and IoU are withheld.
        """
        if min_cell < 1:
            raise DataError(f"min_cell must be at least 1, got {min_cell}")
        patient, having = np.asarray(patients)[overlaps.rows], overlaps.having
        kept = np.ones(len(having), dtype=np.bool_)
        for group in (having, ~having):
            if len(np.unique(patient[group])) < min_cell:
                kept &= ~group
        chosen = having & kept
        ones = np.ones((int(chosen.sum()), _T))
        told = ~_few(overlaps.both[chosen], patient[chosen], min_cell)
        predicted = np.zeros(_T, dtype=np.int64)
        for group in (chosen, ~having & kept):
            predicted += _enough(overlaps.predicted[group], patient[group], min_cell)
        return cls(
            dice=Ratio.of(overlaps.dice[chosen], ones, patient[chosen]).only(told),
            iou=Ratio.of(overlaps.iou[chosen], ones, patient[chosen]).only(told),
            predicted=predicted,
            both=_enough(overlaps.both[chosen], patient[chosen], min_cell),
            truth=int(overlaps.truth[kept].sum()),
            images=np.array([(~having & kept).sum(), chosen.sum()], dtype=np.int64),
        )

    @classmethod
    def zero(cls) -> Outlines:
        """No image at all: where a sum starts."""
        return cls.of(Overlaps.joined([]), np.zeros(0, dtype=np.int64))

    def __add__(self, other: Outlines) -> Outlines:
        return Outlines(
            self.dice + other.dice,
            self.iou + other.iou,
            self.predicted + other.predicted,
            self.both + other.both,
            self.truth + other.truth,
            self.images + other.images,
        )

    @property
    def load(self) -> float:
        """As of :class:`~common.metrics.clustered.Ratio`."""
        return max(self.dice.load, self.iou.load)

    @property
    def pooled(self) -> Floats:
        """``(T,)``: Dice of all pixels together; NaN where there is neither mask nor outline."""
        return divide(np.multiply(self.both, 2.0), np.add(self.predicted, float(self.truth)))

    def metrics(self, at: int, confidence: float) -> dict[str, Interval]:
        """Each of :data:`METRICS` at threshold ``GRID[at]``."""
        return {name: getattr(self, name).intervals(confidence)[at] for name in METRICS}

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        return {
            **self.dice.to_arrays("dice"),
            **self.iou.to_arrays("iou"),
            "predicted": self.predicted,
            "both": self.both,
            "truth": np.array([self.truth], dtype=np.int64),
            "images": self.images,
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Outlines:
        """Raises :class:`ProtocolError` for anything that no honest site could send."""
        expect(arrays, {*Ratio.fields("dice"), *Ratio.fields("iou"), "predicted", "both", "truth", "images"})
        dice, iou = Ratio.from_arrays(arrays, "dice", (_T,)), Ratio.from_arrays(arrays, "iou", (_T,))
        predicted, both = (integers(arrays, name, (_T,), _PIXELS).copy() for name in ("predicted", "both"))
        truth = int(integers(arrays, "truth", (1,), _PIXELS)[0])
        images = integers(arrays, "images", (2,)).copy()
        holds = [
            *(
                bool(((ratio.denominator == images[1]) | ((ratio.patients == 0) & (ratio.withheld > 0))).all())
                for ratio in (dice, iou)
            ),
            bool((both <= np.minimum(predicted, truth)).all()),
            bool((np.diff(predicted) <= 0).all() and (np.diff(both) <= 0).all()),  # what a higher threshold outlines
            (truth > 0) == (images[1] > 0),
            images.any() or not predicted.any(),
        ]
        if not all(holds):
            raise ProtocolError("a statistics message contradicts itself: its outlines are not of its images")
        return cls(dice, iou, predicted, both, truth, images)


def _few(pixels: Ints, patient: NDArray[np.generic], k: int) -> NDArray[np.bool_]:
    """``(T,)``: where 1 to ``k`` - 1 patients have any of ``pixels`` ``(M, T)``."""
    names, number = np.unique(patient, return_inverse=True)
    there = cells.presence(number.reshape(-1), len(names), pixels > 0).sum(axis=0)
    return np.asarray((there > 0) & (there < k))


def _enough(pixels: Ints, patient: NDArray[np.generic], k: int) -> Ints:
    """``(T,)`` sums of ``pixels``; 0 where they are of few. A higher threshold outlines less: from there on it is 0."""
    return np.where(_few(pixels, patient, k), 0, pixels.sum(axis=0))


def choose_outline(outlines: Outlines) -> int:
    """The place in :data:`GRID` of the threshold with the greatest Dice of all pixels, from *validation* sums.

    Of several the one nearest the middle, then the lower; 0.5 where no image has anything to outline.
    """
    value = outlines.pooled
    if not outlines.images[1] or np.isnan(value).all():
        return MIDDLE
    best = np.flatnonzero(value == np.nanmax(value))
    return int(min(best, key=lambda at: (abs(at - MIDDLE), at)))
