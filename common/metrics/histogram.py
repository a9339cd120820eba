"""Score histograms that cost what their images cost, however fine the bins."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from common.errors import ProtocolError
from common.metrics.layout import Arrays, Ints, integers


@dataclass(frozen=True, eq=False)
class Histogram:
    """Histograms of negatives and positives of ``C`` classes as one list of non-empty cells.

    A cell's number is ``(2·class + sign)·bins + bin``; ``end = 2·C·bins``.
    """

    at: Ints
    """``(U,)`` rising cell numbers."""
    n: Ints
    """``(U,)`` images in each, at least 1."""

    @classmethod
    def of(cls, cells: Ints) -> Histogram:
        """From each image's cell number."""
        at, n = np.unique(cells, return_counts=True)
        return cls(at.astype(np.int64, copy=False), n.astype(np.int64, copy=False))

    def __add__(self, other: Histogram) -> Histogram:
        if not len(self.at) or not len(other.at):
            return other if len(other.at) else self
        both = np.concatenate([self.at, other.at])
        order = np.argsort(both, kind="stable")  # merges two sorted runs
        at = both[order]
        first = np.flatnonzero(np.diff(at, prepend=-1))
        return Histogram(at[first], np.add.reduceat(np.concatenate([self.n, other.n])[order], first))

    def before(self, cells: Ints) -> Ints:
        """How many images stand in cells with smaller numbers than each of ``cells``; any shape."""
        return np.asarray(self._cumulative[np.searchsorted(self.at, cells)])

    def totals(self, groups: int, bins: int) -> Ints:
        """``(groups // 2, 2)`` images of each class and sign."""
        return np.diff(self.before(np.arange(groups + 1) * bins)).reshape(-1, 2)

    def group(self, group: int, bins: int) -> tuple[Ints, Ints]:
        """Non-empty bins of one class and sign, and how many images they hold."""
        start, stop = np.searchsorted(self.at, [group * bins, (group + 1) * bins])
        return self.at[start:stop] - group * bins, self.n[start:stop]

    @cached_property
    def _cumulative(self) -> Ints:
        return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(self.n)])

    @classmethod
    def from_arrays(cls, arrays: Arrays, name: str, end: int) -> Histogram:
        """Raises :class:`ProtocolError` unless ``name_at`` rises below ``end`` and ``name_n`` holds counts."""
        at = integers(arrays, f"{name}_at", None, end - 1).copy()
        n = integers(arrays, f"{name}_n", at.shape).copy()
        if len(at) and (n.min() < 1 or (np.diff(at) <= 0).any()):
            raise ProtocolError(f"statistics histogram {name!r} is not a list of rising bins with counts of at least 1")
        if n.sum(dtype=np.float64) > 2.0**62:
            raise ProtocolError(f"statistics histogram {name!r} counts more images than there can be")
        return cls(at, n)
