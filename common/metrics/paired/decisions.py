"""What two deciders say of the same images: two models at their thresholds, a model and a reader, or two readers.

A decision is a number: of a binary or multilabel question 0 (no) or 1 (yes), of a multiclass one the class. One more
than the last stands for "not told": under the small-cell rule a block of scores may lie on both sides of a threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.metrics import cells
from common.metrics.layout import Ints, Layout, Scored
from common.metrics.ratios import Tally

UNREAD = -1
"""A decision that was never made: the reader did not see the image, or was uncertain."""


def options(layout: Layout) -> int:
    """How many answers a question has, "not told" aside."""
    return layout.classes if layout.task == "multiclass" else 2


def groups(layout: Layout) -> int:
    """In how many groups the truth puts images: classes of a multiclass task, else both signs of each class."""
    return layout.classes if layout.task == "multiclass" else 2 * layout.classes


def questions(layout: Layout) -> int:
    """One for each class, but for multiclass: there all classes are one question."""
    return 1 if layout.task == "multiclass" else layout.classes


def called(scored: Scored, thresholds: Ints, layout: Layout, min_cell: int = 1) -> Ints:
    """A model's decisions, ``(N, Q)``, as the counts that leave this site tell them.

    ``thresholds``: ``(Q,)`` bins from which on an image is positive; of multiclass, which takes the greatest score,
    none. ``scored`` without what :func:`cells.withhold` takes away.
    """
    if layout.task == "multiclass":
        return _largest(scored, layout, min_cell)[:, None]
    low, high = cells.placed(scored, layout.bins, min_cell) if min_cell > 1 else (scored.position, scored.position)
    decisions: Ints = np.where(low >= thresholds, 1, np.where(high < thresholds, 0, 2)).astype(np.int64)
    return decisions


def _largest(scored: Scored, layout: Layout, min_cell: int) -> Ints:
    best: Ints = scored.scores.argmax(axis=1).astype(np.int64)
    rows = np.flatnonzero(scored.known.any(axis=1))
    true = scored.positive[rows].argmax(axis=1).astype(np.int64)
    hidden = cells.unreleased(true, best[rows], scored.patient[rows], layout.classes, min_cell)
    best[rows[hidden[true, best[rows]]]] = layout.classes
    return best


@dataclass(frozen=True)
class Decided:
    """Both deciders' word, one entry for each image and question that both have answered, as far as it may be told.

    Small cells: both deciders' margins follow from what each tells by itself, so that of a table with one small cell
    nothing may leave, or subtraction would give it away. Of a group with a cell of 1 to k - 1 patients (images that
    were not read are a cell too) no entry is here, and the group is marked.
    """

    layout: Layout
    group: Ints
    """``(M,)`` by truth: the class, or 2·class + sign."""
    first: Ints
    """``(M,)`` decisions."""
    second: Ints
    patient: Ints
    patients: int
    withheld: Ints
    """``(G,)`` 0/1."""

    @classmethod
    def of(cls, scored: Scored, first: Ints, second: Ints, layout: Layout, min_cell: int = 1) -> Decided:
        """Of images whose truth is known; both deciders ``(N, Q)``. Raises :class:`DataError` for other shapes."""
        shape = (len(scored.patient), questions(layout))
        if first.shape != shape or second.shape != shape:
            raise DataError(f"decisions must be {shape}, one for each image and question, got {first.shape}")
        known = scored.known.any(axis=1, keepdims=True) if layout.task == "multiclass" else scored.known
        row, question = np.nonzero(known)
        if layout.task == "multiclass":
            group = scored.positive[row].argmax(axis=1).astype(np.int64)
        else:
            group = 2 * question + scored.positive[row, question]
        one, other, patient = first[row, question], second[row, question], scored.patient[row]
        small = _small(group, one, other, patient, layout, min_cell)
        keep = (one != UNREAD) & (other != UNREAD) & (small[group] == 0)
        return cls(layout, group[keep], one[keep], other[keep], patient[keep], scored.patients, small)

    @property
    def question(self) -> Ints:
        """``(M,)``."""
        return np.zeros_like(self.group) if self.layout.task == "multiclass" else self.group // 2

    def tallies(self) -> tuple[Tally, Tally]:
        """Each patient's confusion counts ``(patients, C)`` under either decider; "not told" counts as wrong."""
        first, second = (self._tally(decision) for decision in (self.first, self.second))
        return first, second

    def _tally(self, decision: Ints) -> Tally:
        classes, shape = self.layout.classes, (self.patients, self.layout.classes)

        def count(column: Ints, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
            at = self.patient[mask] * classes + column[mask]
            return np.bincount(at, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)

        if self.layout.task != "multiclass":
            column, sign = self.group // 2, self.group % 2 == 1
            tp, tn = count(column, sign & (decision == 1)), count(column, ~sign & (decision == 0))
            return Tally(tp, count(column, ~sign) - tn, count(column, sign) - tp, tn)
        right, told = decision == self.group, decision < classes
        tp, fn = count(self.group, right), count(self.group, ~right)
        fp = count(decision, ~right & told)
        everybody = np.bincount(self.patient, minlength=self.patients).astype(np.float64)[:, None]
        return Tally(tp, fp, fn, everybody - tp - fp - fn)


def read(readings: NDArray[np.floating], layout: Layout) -> Ints:
    """A reader's decisions ``(N, Q)`` from readings ``(N, C)`` in {0, 1}, NaN where the image was not read."""
    unread = np.isnan(readings)
    if layout.task == "multiclass":
        decided = np.where(unread.any(axis=1), UNREAD, readings.argmax(axis=1))[:, None]
    else:
        decided = np.where(unread, UNREAD, readings == 1.0)
    return np.asarray(decided, dtype=np.int64)


def _small(group: Ints, first: Ints, second: Ints, patient: Ints, layout: Layout, min_cell: int) -> Ints:
    """``(G,)`` 1 where a cell holds 1 to k - 1 patients."""
    found = np.zeros(groups(layout), dtype=np.int64)
    if min_cell > 1 and len(group):
        cell = np.stack([group, first, second, patient])
        names, patients = np.unique(np.unique(cell, axis=1)[:3], axis=1, return_counts=True)
        found[names[0, patients < min_cell]] = 1
    return found
