"""First pass: how many images of which class scored where."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError, ProtocolError
from common.metrics import cells
from common.metrics.histogram import Histogram
from common.metrics.layout import Arrays, Floats, Ints, Layout, Scored, divide, expect, integers, reals

_LOSS_UNIT = 2.0**-20
"""Loss sums are multiples of this, so that adding them is exact and order cannot show (up to 2^33)."""


@dataclass(frozen=True, eq=False)
class Counts:
    """Sums over images; ``a + b`` is both sites together. Every count is of images unless it says patients.

    An image whose bin may be told counts at the same place in ``low`` and ``high``. Under the
    small-cell rule it counts at the first bin of its block in ``low`` and at the last in
    ``high``, which is all that bounds need and still adds up over sites with other blocks.
    """

    layout: Layout
    low: Histogram
    high: Histogram
    """The same object as ``low`` where every image's bin is told."""
    confusion: Ints
    """Multiclass by argmax: ``(C, C + 1)`` ``[true, predicted]``, last column not released; else ``(0, 0)``."""
    class_patients: Ints
    """``(C, 2)``: patients with a negative, with a positive image of each class."""
    withheld: Ints
    """``(C, 2)``: sites that withheld a class because of too few patients."""
    images: int
    patients: int
    loss: float
    """Sum of the images' losses."""

    @classmethod
    def of(
        cls,
        scores: NDArray[np.floating],
        targets: NDArray[np.floating],
        patients: NDArray[np.generic],
        losses: NDArray[np.floating],
        layout: Layout,
        min_cell: int = 1,
    ) -> Counts:
        """Count a site's images.

        Args:
            scores: ``(N, C)`` probabilities in [0, 1]; binary: one column, of the positive class.
            targets: ``(N, C)`` in {0, 1}; NaN is masked (binary, multiclass: masks the image).
            patients: ``(N,)`` any values that tell patients apart.
            losses: ``(N,)`` each image's loss.
            layout: task, columns and bins.
            min_cell: k of the small-cell rule (``common.metrics.cells``); 1 releases everything.

        Raises :class:`DataError` (shapes, targets) or :class:`ModelError` (scores, losses not finite).
        """
        scored = Scored.of(scores, targets, patients, layout)
        if losses.shape != (len(scores),) or min_cell < 1:
            raise DataError(f"losses must be ({len(scores)},) and min_cell at least 1, got {losses.shape}, {min_cell}")
        withheld = np.zeros((layout.classes, 2), dtype=np.int64)
        if min_cell > 1:
            scored, withheld = cells.withhold(scored, layout.task, min_cell)
        present = cells.presence(scored.patient, scored.patients, cells.signs(scored))
        low, high = _histograms(scored, layout, min_cell)
        confusion = np.zeros((0, 0), dtype=np.int64)
        rows = scored.known.any(axis=1)
        if layout.task == "multiclass":
            confusion = cells.confusion(
                scored.positive[rows].argmax(axis=1),
                scored.scores[rows].argmax(axis=1),
                scored.patient[rows],
                layout.classes,
                min_cell,
            )
        loss = float(losses[rows].sum(dtype=np.float64))
        if not np.isfinite(loss) or loss < 0:
            raise DataError(
                "the images' losses do not add up to a finite, non-negative number; lower the learning rate"
            )
        return cls(
            layout=layout,
            low=low,
            high=high,
            confusion=confusion,
            class_patients=present.sum(axis=0, dtype=np.int64),
            withheld=withheld,
            images=int(rows.sum()),
            patients=int(present.any(axis=(1, 2)).sum()),
            loss=round(loss / _LOSS_UNIT) * _LOSS_UNIT,
        )

    @classmethod
    def zero(cls, layout: Layout) -> Counts:
        """No image at all: where a sum starts."""
        nothing = np.zeros((0, layout.classes))
        return cls.of(nothing, nothing, np.zeros(0, dtype=np.int64), np.zeros(0), layout)

    def __add__(self, other: Counts) -> Counts:
        if self.layout != other.layout:
            raise ValueError(f"cannot add counts of {self.layout} and {other.layout}")
        low = self.low + other.low
        return Counts(
            layout=self.layout,
            low=low,
            high=low if self.exact and other.exact else self.high + other.high,
            confusion=self.confusion + other.confusion,
            class_patients=self.class_patients + other.class_patients,
            withheld=self.withheld + other.withheld,
            images=self.images + other.images,
            patients=self.patients + other.patients,
            loss=self.loss + other.loss,
        )

    @property
    def exact(self) -> bool:
        """Whether every counted image's bin is told."""
        return self.high is self.low

    @cached_property
    def totals(self) -> Ints:
        """``(C, 2)`` negatives and positives."""
        return self.low.totals(2 * self.layout.classes, self.layout.bins)

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """For the wire: histograms as (index, count) of their non-empty bins."""
        arrays: dict[str, NDArray[np.generic]] = {
            "layout": self.layout.code(),
            "confusion": self.confusion,
            "class_patients": self.class_patients,
            "withheld": self.withheld,
            "size": np.array([self.images, self.patients], dtype=np.int64),
            "loss": np.array([self.loss]),
        }
        for name, histogram in [("low", self.low)] if self.exact else [("low", self.low), ("high", self.high)]:
            arrays[f"{name}_at"], arrays[f"{name}_n"] = histogram.at, histogram.n
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Arrays, layout: Layout) -> Counts:
        """Counts that came from elsewhere, for the ``layout`` that the receiver's study has.

        Raises :class:`ProtocolError` for anything that no honest sender could send: other fields,
        types or shapes, negative or not finite numbers, sums that contradict each other.
        """
        keys = {"layout", "confusion", "class_patients", "withheld", "size", "loss", "low_at", "low_n"}
        coarse = "high_at" in arrays
        expect(arrays, keys | {"high_at", "high_n"} if coarse else keys)
        if not np.array_equal(integers(arrays, "layout", (3,)), layout.code()):
            raise ProtocolError("statistics are of another task, number of classes or number of bins than the study's")
        classes = layout.classes
        end = 2 * classes * layout.bins
        low = Histogram.from_arrays(arrays, "low", end)
        images, patients = (int(number) for number in integers(arrays, "size", (2,)))
        shape = (classes, classes + 1) if layout.task == "multiclass" else (0, 0)
        counts = cls(
            layout=layout,
            low=low,
            high=Histogram.from_arrays(arrays, "high", end) if coarse else low,
            confusion=integers(arrays, "confusion", shape).copy(),
            class_patients=integers(arrays, "class_patients", (classes, 2)).copy(),
            withheld=integers(arrays, "withheld", (classes, 2)).copy(),
            images=images,
            patients=patients,
            loss=float(reals(arrays, "loss", (1,))[0]),
        )
        counts._check()
        return counts

    def _check(self) -> None:
        """Raises :class:`ProtocolError` where the parts contradict each other."""
        totals, task = self.totals, self.layout.task
        sizes = totals.sum(axis=1)
        holds = [
            self.patients <= self.images,
            (self.patients == 0) == (self.images == 0),
            bool((sizes == self.images).all() if task != "multilabel" else (sizes <= self.images).all()),
            bool((self.class_patients <= np.minimum(totals, self.patients)).all()),
            bool(((self.class_patients == 0) == (totals == 0)).all()),
            self.images > 0 or self.loss == 0.0,
            self.loss / _LOSS_UNIT < 2.0**53 and (self.loss / _LOSS_UNIT).is_integer(),
        ]
        if task == "multiclass":
            holds.append(bool((self.confusion.sum(axis=1) == totals[:, 1]).all()) and totals[:, 1].sum() == self.images)
        if not self.exact:
            holds.append(np.array_equal(self.high.totals(2 * self.layout.classes, self.layout.bins), totals))
            holds.append(bool((self.high.before(self.low.at) <= self.low.before(self.low.at)).all()))
            holds.append(bool((self.high.before(self.high.at) <= self.low.before(self.high.at)).all()))
        if not all(holds):
            raise ProtocolError("a statistics message contradicts itself: its counts do not add up")


def auc(counts: Counts) -> Floats:
    """``(C,)`` area under each class's ROC curve on the binned scores, ties by mid-rank; NaN with one class only.

    One against the rest. Of the finest bins that were released; see :func:`auc_bounds`.
    """
    below, upto = _pairs(counts, counts.low, counts.low, 0), _pairs(counts, counts.low, counts.low, 1)
    return divide((below + upto) / 2, _all_pairs(counts))


def auc_bounds(counts: Counts) -> tuple[Floats, Floats]:
    """Least and greatest AUC, both ``(C,)``, that the *unbinned* scores of the counted images can have.

    Every pair of a positive and a negative whose order the bins (or blocks) do not tell counts 0
    in the one and 1 in the other. With all bins told, :func:`auc` is the middle and
    ``|AUC(raw) - auc| <= Σ_bin positives·negatives / (2·P·N)``. NaN with one class only.
    """
    surely, perhaps = _pairs(counts, counts.low, counts.high, 0), _pairs(counts, counts.high, counts.low, 1)
    return divide(surely, _all_pairs(counts)), divide(perhaps, _all_pairs(counts))


def _pairs(counts: Counts, positives: Histogram, negatives: Histogram, ties: int) -> Floats:
    """``(C,)`` pairs whose positive stands in a higher bin than the negative, or (``ties`` = 1) in the same one."""
    bins = counts.layout.bins
    group = positives.at // bins
    positive = group % 2 == 1
    at, group = positives.at[positive], group[positive]
    beaten = negatives.before(at - bins + ties) - negatives.before((group - 1) * bins)
    pairs = positives.n[positive].astype(np.float64) * beaten
    summed = np.bincount(group // 2, weights=pairs, minlength=counts.layout.classes)
    return summed.astype(np.float64)


def _all_pairs(counts: Counts) -> Floats:
    return counts.totals[:, 0].astype(np.float64) * counts.totals[:, 1]


def roc(counts: Counts, column: int, points: int = 200) -> tuple[Floats, Floats] | None:
    """ROC curve of a class, (false, true positive rate), from (0, 0) to (1, 1) in at most ``points`` points.

    Points lie on the binned curve, evenly along its length. None where a class is missing.
    Under the small-cell rule images count at the first bin of their block.
    """
    bins = counts.layout.bins
    negatives, positives = counts.totals[column]
    if not negatives or not positives:
        return None
    used = np.union1d(counts.low.group(2 * column, bins)[0], counts.low.group(2 * column + 1, bins)[0])[::-1]
    above = [
        counts.low.before(np.array((2 * column + sign + 1) * bins))
        - counts.low.before((2 * column + sign) * bins + used)
        for sign in (0, 1)
    ]
    fpr, tpr = np.append(0.0, above[0] / negatives), np.append(0.0, above[1] / positives)
    if len(fpr) > points:
        keep = np.searchsorted(fpr + tpr, np.linspace(0.0, 2.0, points - 1))
        keep = np.unique(np.append(np.minimum(keep, len(fpr) - 1), len(fpr) - 1))
        fpr, tpr = fpr[keep], tpr[keep]
    return fpr, tpr


def _histograms(scored: Scored, layout: Layout, min_cell: int) -> tuple[Histogram, Histogram]:
    row, column = np.nonzero(scored.known)
    group = (column * 2 + scored.positive[row, column]) * layout.bins
    low = Histogram.of(group + scored.position[row, column])
    if min_cell == 1:
        return low, low
    first, last = (position[row, column] for position in cells.placed(scored, layout.bins, min_cell))
    if np.array_equal(first, last):
        return low, low
    return Histogram.of(group + first), Histogram.of(group + last)
