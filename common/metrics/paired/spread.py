"""Second pass of a comparison: how much its numbers vary from patient to patient.

As in :mod:`common.metrics.moments`, but of the *difference* of both deciders' influences, patient by patient. Its
squares are the variance of the difference at once: that of each, less twice their covariance. Sent so, two models
that are nearly the same keep every digit, which a covariance taken from three rounded sums would not.

Sources. AUC: E. R. DeLong, D. M. DeLong, D. L. Clarke-Pearson, Biometrics 44 (1988) 837-845, for clusters
N. A. Obuchowski, Biometrics 53 (1997) 567-578. Proportions: N. A. Obuchowski, On the comparison of correlated
proportions for clustered data, Statistics in Medicine 17 (1998) 1495-1507. Kappa: J. L. Fleiss, J. Cohen,
B. S. Everitt, Psychological Bulletin 72 (1969) 323-327, by influence, so that a patient's images go together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import ProtocolError
from common.metrics.layout import Arrays, Floats, Ints, Layout, expect, integers
from common.metrics.moments import MOST_SQUARED, SQUARED, fixed, influences
from common.metrics.paired.decisions import Decided, questions
from common.metrics.paired.joint import Joint
from common.metrics.paired.kappa import kappa_of
from common.metrics.ratios import RATES, Tally

UNIT = 4 * SQUARED
"""Of the sums of squares, which are fixed-point, so that order cannot show; of halves, see :func:`_fixed`."""
_MOST_DIFFERING = 1 << 50
"""Of a site; a thousand of them still fit int64."""
COUNTED = ("accuracy", "sensitivity", "specificity")
"""Rates that are shares of images, so that a test may count images by which the deciders differ."""


def halved(influence: Floats) -> Ints:
    """``(patients, …)`` -> sums of squares of half of each: a difference lies within twice what one metric may have."""
    return fixed(influence / 2, axis=0)


def added(one: Ints, other: Ints) -> Ints:
    summed = one + other
    if summed.size and summed.max() > MOST_SQUARED:
        raise ProtocolError("sums of squares are greater than any patients could make them; a site sent wrong ones")
    return summed


@dataclass(frozen=True, eq=False)
class Spread:
    """Sums over patients for what both deciders' decisions tell; the last column is over all classes."""

    layout: Layout
    squares: Ints
    """``(3, 6, C + 1)`` of the influences on each of RATES: of the first, of the second, of first less second."""
    differing: Ints
    """``(3, C + 1)``: of each patient the images by which the first was right more often than the second, squared."""
    kappa: Ints
    """``(Q,)`` of the influences on kappa, times chance's disagreement (1 - pe)."""
    asked: Ints
    """``(Q,)`` patients with an image of each question."""

    @classmethod
    def of(cls, kept: Decided, joint: Joint) -> Spread:
        """A site's sums. ``joint``: all sites' tables added. What the first pass withheld is in no sum here either."""
        layout = kept.layout
        tallies = kept.tallies()
        one, other = (
            influences(mine, whole, layout.task)[0] for mine, whole in zip(tallies, joint.tallies, strict=True)
        )
        squares = np.stack([halved(each.transpose(1, 0, 2)) for each in (one, other, one - other)])
        asked = np.unique(np.stack([kept.question, kept.patient]), axis=1)[0]
        return cls(
            layout,
            squares,
            _differing(*tallies, layout),
            halved(_kappa_influence(kept, joint)),
            np.bincount(asked, minlength=questions(layout)).astype(np.int64),
        )

    @classmethod
    def zero(cls, layout: Layout) -> Spread:
        """No patient at all: where a sum starts."""
        wide, each = layout.classes + 1, np.zeros(questions(layout), dtype=np.int64)
        squares = np.zeros((3, len(RATES), wide), dtype=np.int64)
        return cls(layout, squares, np.zeros((len(COUNTED), wide), dtype=np.int64), each, each)

    def __add__(self, other: Spread) -> Spread:
        """Both together. Raises :class:`ProtocolError` when squares exceed what any patients could have."""
        if self.layout != other.layout:
            raise ValueError(f"cannot add sums of {self.layout} and {other.layout}")
        return Spread(
            self.layout,
            added(self.squares, other.squares),
            self.differing + other.differing,
            added(self.kappa, other.kappa),
            self.asked + other.asked,
        )

    @property
    def load(self) -> float:
        """How much of what a sum may be its greatest number is: 1 is all of it."""
        return float(max(self.squares.max(), self.kappa.max(initial=0))) / MOST_SQUARED

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        return {
            "layout": self.layout.code(),
            "squares": self.squares,
            "differing": self.differing,
            "kappa": self.kappa,
            "asked": self.asked,
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays, layout: Layout) -> Spread:
        """Raises :class:`ProtocolError` for anything that no honest site could send."""
        expect(arrays, {"layout", "squares", "differing", "kappa", "asked"})
        if not np.array_equal(integers(arrays, "layout", (3,)), layout.code()):
            raise ProtocolError("sums of a comparison are of another task or number of classes than the study's")
        wide, asked = layout.classes + 1, (questions(layout),)
        return cls(
            layout,
            integers(arrays, "squares", (3, len(RATES), wide), MOST_SQUARED).copy(),
            integers(arrays, "differing", (len(COUNTED), wide), _MOST_DIFFERING).copy(),
            integers(arrays, "kappa", asked, MOST_SQUARED).copy(),
            integers(arrays, "asked", asked).copy(),
        )


def _differing(first: Tally, second: Tally, layout: Layout) -> Ints:
    more = [first.tp + first.tn - second.tp - second.tn, first.tp - second.tp, first.tn - second.tn]
    columns = [np.square(each).sum(axis=0) for each in more]
    if layout.task == "multiclass":
        overall = [np.square((first.tp - second.tp).sum(axis=1)).sum(), 0.0, 0.0]
    else:
        overall = [each[0] if layout.classes == 1 else 0.0 for each in columns]
    return np.column_stack([np.stack(columns), overall]).astype(np.int64)


def _kappa_influence(kept: Decided, joint: Joint) -> Floats:
    """``(patients, Q)``."""
    found = np.zeros((kept.patients, questions(kept.layout)))
    for question in range(found.shape[1]):
        table = joint.crossed(question)
        known = kappa_of(table)
        if known is None:
            continue
        most = len(table)
        mine = (kept.question == question) & (kept.first < most) & (kept.second < most)
        first, second = kept.first[mine], kept.second[mine]
        rows, columns = table.sum(axis=1) / table.sum(), table.sum(axis=0) / table.sum()
        chance = rows @ columns
        each = (first == second) - known.observed
        each = each - (1.0 - known.value) * (columns[first] + rows[second] - 2.0 * chance)
        found[:, question] = np.bincount(kept.patient[mine], each / table.sum(), kept.patients)
    return found
