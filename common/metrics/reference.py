"""What goes back out to the sites: everybody's counts and the operating point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from common.errors import ProtocolError
from common.metrics.counts import Counts, auc
from common.metrics.histogram import Histogram
from common.metrics.layout import Arrays, Floats, Ints, Layout, integers
from common.metrics.ratios import Tally
from common.study import ThresholdSpec


@dataclass(frozen=True, eq=False)
class Thresholds:
    """An image is positive for a class when its bin is at least ``position``. Multiclass has none (argmax)."""

    position: Ints
    """``(C,)`` in 0 … bins; at ``bins`` nothing is positive."""
    chosen: NDArray[np.bool_]
    """``(C,)``: False where validation had only one class, and 0.5 stands in for a choice."""
    bins: int

    @property
    def edges(self) -> Floats:
        """``(C,)`` the same as scores: positive is ``score >= edge``."""
        return self.position / self.bins

    @classmethod
    def at(cls, edges: Sequence[float], bins: int) -> Thresholds:
        """Thresholds chosen earlier, at the nearest edges of ``bins``."""
        position = np.rint(np.asarray(edges, dtype=np.float64) * bins).astype(np.int64)
        if position.ndim != 1 or (len(position) and (position.min() < 0 or position.max() > bins)):
            raise ValueError(f"thresholds must be scores in [0, 1], got {edges}")
        return cls(position, np.ones(len(position), dtype=np.bool_), bins)


def choose_threshold(counts: Counts, spec: ThresholdSpec) -> Thresholds:
    """The operating point of each class, from *validation* counts.

    ``youden``: the edge with the greatest J = sensitivity + specificity - 1 (Youden 1950, Cancer 3).
    Where several edges share it, the lowest unbroken run of them is taken (most sensitive) and in it the middle
    edge, rounded down: between two separated groups that is halfway.
    ``sensitivity``: the highest edge whose sensitivity is at least the required one.
    Under the small-cell rule positives count at the first, negatives at the last bin of their
    block, so that what is promised holds wherever in the block they are.
    With one class only the edge is 0.5 and ``chosen`` is False. Multiclass: no thresholds.
    """
    layout = counts.layout
    columns = 0 if layout.task == "multiclass" else layout.classes
    position = np.full(columns, (layout.bins + 1) // 2, dtype=np.int64)
    chosen = np.zeros(columns, dtype=np.bool_)
    for column in range(columns):
        negative, positive = counts.high.group(2 * column, layout.bins), counts.low.group(2 * column + 1, layout.bins)
        if len(negative[0]) and len(positive[0]):
            chosen[column] = True
            position[column] = _edge(negative, positive, layout.bins, spec)
    return Thresholds(position, chosen, layout.bins)


@dataclass(frozen=True, eq=False)
class Reference:
    """Merged counts and thresholds."""

    counts: Counts
    thresholds: Thresholds

    def __post_init__(self) -> None:
        layout = self.counts.layout
        columns = 0 if layout.task == "multiclass" else layout.classes
        if self.thresholds.position.shape != (columns,) or self.thresholds.bins != layout.bins:
            raise ValueError(f"thresholds must be {columns} of {layout.bins} bins for {layout}")

    @cached_property
    def auc(self) -> Floats:
        return auc(self.counts)

    @cached_property
    def totals(self) -> Floats:
        """``(C, 2)`` negatives and positives."""
        return self.counts.totals.astype(np.float64)

    def below(self, position: Ints) -> Floats:
        """``(N, C, 2)``: the share of all negatives and of all positives that score below bins ``position`` ``(N, C)``.

        Those in the same bin count a half.
        """
        histogram, bins = self.counts.low, self.counts.layout.bins
        start = np.arange(2 * self.counts.layout.classes).reshape(-1, 2) * bins
        cells = start + position[:, :, None]
        below = (histogram.before(cells) + histogram.before(cells + 1)) / 2 - histogram.before(start)
        return np.asarray(below / np.maximum(self.totals, 1.0))

    @cached_property
    def tallies(self) -> tuple[Tally, Tally]:
        """Confusion counts ``(C,)`` at their worst and at their best; the same where all bins are told.

        Every rate rises with true positives and true negatives, so these two bound it.
        """
        counts = self.counts
        negatives, positives = self.totals[:, 0], self.totals[:, 1]
        if counts.layout.task == "multiclass":
            matrix, hidden = counts.confusion[:, :-1].astype(np.float64), counts.confusion[:, -1].astype(np.float64)
            tp = np.diagonal(matrix)
            tn = negatives - (matrix.sum(axis=0) - tp)
            worst, best = (tp, tn - (hidden.sum() - hidden)), (tp + hidden, tn)
        else:
            worst = (self._positive(counts.low)[:, 1], negatives - self._positive(counts.high)[:, 0])
            best = (self._positive(counts.high)[:, 1], negatives - self._positive(counts.low)[:, 0])
        return (
            Tally(worst[0], negatives - worst[1], positives - worst[0], worst[1]),
            Tally(best[0], negatives - best[1], positives - best[0], best[1]),
        )

    def _positive(self, histogram: Histogram) -> Floats:
        """``(C, 2)`` negatives and positives in bins at or above the threshold."""
        bins = self.counts.layout.bins
        start = np.arange(2 * self.counts.layout.classes).reshape(-1, 2) * bins
        above = histogram.before(start + bins) - histogram.before(start + self.thresholds.position[:, None])
        return above.astype(np.float64)

    @cached_property
    def exact(self) -> bool:
        """Whether rates are numbers and not bounds."""
        return self.counts.exact and not self.counts.confusion[:, -1:].any()

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        return {
            **self.counts.to_arrays(),
            "threshold": self.thresholds.position,
            "threshold_chosen": self.thresholds.chosen.astype(np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays, layout: Layout) -> Reference:
        """Raises :class:`ProtocolError` for anything that no honest coordinator could send."""
        rest = dict(arrays)
        columns = (0 if layout.task == "multiclass" else layout.classes,)
        own: Arrays = {key: rest.pop(key) for key in ("threshold", "threshold_chosen") if key in rest}
        if len(own) != 2:
            raise ProtocolError("a reference has no thresholds; both sides need the same version")
        position = integers(own, "threshold", columns, layout.bins).copy()
        chosen = integers(own, "threshold_chosen", columns, 1).astype(np.bool_)
        return cls(Counts.from_arrays(rest, layout), Thresholds(position, chosen, layout.bins))


def _edge(negative: tuple[Ints, Ints], positive: tuple[Ints, Ints], bins: int, spec: ThresholdSpec) -> int:
    """The threshold of one class from its (bins, images) of both signs; see :func:`choose_threshold`."""
    used = np.union1d(negative[0], positive[0])
    tp, fp = _from_above(positive, used), _from_above(negative, used)
    last = np.append(used, bins)  # edges in (used[i - 1], used[i]] all have tp[i], fp[i]
    if spec.sensitivity is not None:
        return int(last[np.flatnonzero(tp / tp[0] >= spec.sensitivity)[-1]])
    gain = tp * fp[0] - fp * tp[0]  # J·P·N, whole numbers: ties are exact
    best = np.flatnonzero(gain == gain.max())
    run = best[: np.flatnonzero(np.diff(best, append=len(gain) + 1) > 1)[0] + 1]
    first = used[run[0] - 1] + 1 if run[0] else 0
    return int((first + last[run[-1]]) // 2)


def _from_above(cells: tuple[Ints, Ints], used: Ints) -> Floats:
    """``(U + 1,)``: images in bins at or above each of ``used``, and 0 above all."""
    upto = np.append(0, np.cumsum(cells[1]))
    return np.append(upto[-1] - upto[np.searchsorted(cells[0], used)], 0).astype(np.float64)
