"""The small-cell rule for one set of patients counted twice: whole, and by the values of an attribute.

Beside the whole (``common.metrics.cells``), a group that is left out is what the others leave of it, and a group's
finer blocks are what they leave of the whole's. So what leaves by groups is one table for all groups of an attribute:

* of a class, groups of fewer than k patients are withheld, and with them the next smallest until those withheld have k
  patients together;
* its blocks of scores are the whole's, joined with their neighbours until in each block every group, and all that is
  withheld together, is empty or has k patients;
* of a confusion matrix, a column leaves for all groups of a row or for none.

Every number that leaves, and every one that follows by adding and subtracting those of the whole and of this
attribute, is then of no patient or of at least k. Counts of patients are rounded down to a multiple of k, for a patient
may have images in two groups, and sums would tell how many have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.metrics import cells
from common.metrics.layout import Ints, Scored, Task

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Joint:
    """What may leave of each group: entries kept, and the first and last bin each is told to be in."""

    scored: Scored
    """Without what is withheld."""
    low: Ints
    """``(N, C)``."""
    high: Ints
    """``(N, C)``."""
    withheld: Ints
    """``(groups, C, 2)`` 0/1."""
    unreleased: Mask
    """``(C, C)`` multiclass: cells of the confusion matrix that leave for no group; else ``(0, 0)``."""


def joint(scored: Scored, group: Ints, groups: int, task: Task, bins: int, k: int) -> Joint:
    """The rule for images of ``group`` ``(N,)`` 0 … ``groups`` - 1, of which the whole has left under ``k`` > 1."""
    whole, _ = cells.withhold(scored, task, k)
    low, high = cells.placed(whole, bins, k)
    withheld = np.zeros((groups, scored.known.shape[1], 2), dtype=np.int64)
    drop = np.zeros(scored.known.shape, dtype=np.bool_)
    rule = _multilabel if task == "multilabel" else _exclusive
    rule(whole, group, groups, task, k, withheld, drop)
    kept = Scored(scored.scores, scored.position, whole.known & ~drop, whole.positive & ~drop, scored.patient)
    unreleased = np.zeros((0, 0), dtype=np.bool_)
    if task == "multiclass":
        unreleased = _confusion(whole, kept, group, groups, k)
    gone = whole.known & ~kept.known
    for column in range(scored.known.shape[1]):
        for sign in (False, True):
            of = np.flatnonzero(whole.known[:, column] & (whole.positive[:, column] == sign))
            owner = np.where(gone[of, column], groups, group[of])
            first, last = _joined(low[of, column], high[of, column], owner, scored.patient[of], groups + 1, k)
            low[of, column], high[of, column] = first, last
    return Joint(kept, low, high, withheld, unreleased)


def _sets(patient: Ints, group: Ints, groups: int, of: Mask) -> list[set[int]]:
    """The patients of each group among images ``of`` ``(N,)``."""
    return [set(patient[of & (group == number)].tolist()) for number in range(groups)]


def _exclusive(whole: Scored, group: Ints, groups: int, task: Task, k: int, withheld: Ints, drop: Mask) -> None:
    """An image has one class: withheld with it, it leaves every count."""
    known = whole.known.any(axis=1)
    signs = (0, 1) if task == "binary" else (1,)
    for column in range(whole.known.shape[1]):
        for sign in signs:
            of = known & (whole.positive[:, column] == bool(sign))
            for number in cells.withheld(_sets(whole.patient, group, groups, of), k):
                withheld[number, column, sign] = 1
                drop[of & (group == number)] = True


def _multilabel(whole: Scored, group: Ints, groups: int, task: Task, k: int, withheld: Ints, drop: Mask) -> None:
    """Of a class, both signs of a group leave or neither: with the group's size, one would tell the other."""
    for column in range(whole.known.shape[1]):
        known = whole.known[:, column]
        pair = [
            _sets(whole.patient, group, groups, known & (whole.positive[:, column] == sign)) for sign in (False, True)
        ]
        hidden = {number for number in range(groups) if any(0 < len(signs[number]) < k for signs in pair)}
        rest = sorted(set(range(groups)) - hidden, key=lambda number: sum(len(signs[number]) for signs in pair))
        for number in rest:
            together = [set().union(*(signs[one] for one in hidden)) for signs in pair]
            if all(not one or len(one) >= k for one in together):
                break
            hidden.add(number)
        for number in hidden:
            withheld[number, column] = [bool(signs[number]) for signs in pair]
            drop[known & (group == number), column] = True


def _joined(low: Ints, high: Ints, owner: Ints, patient: Ints, owners: int, k: int) -> tuple[Ints, Ints]:
    """First and last bin ``(N,)`` of each image's block: the whole's blocks ``low`` to ``high``, joined from the lowest
    on until every owner is empty or has ``k`` patients; what is left at the top joins what is below it."""
    order = np.argsort(low, kind="stable")
    blocks = [rows for rows in np.split(order, np.flatnonzero(np.diff(low[order])) + 1) if len(rows)]
    pending, closed = _Pending(owners, k), list[list[Ints]]()
    for rows in blocks:
        pending.take(rows, owner, patient)
        if pending.holds:
            closed.append(pending.rows)
            pending = _Pending(owners, k)
    while pending.rows and closed and not pending.holds:
        for rows in closed.pop():
            pending.take(rows, owner, patient)
    if pending.rows:
        closed.append(pending.rows)
    first, last = low.copy(), high.copy()
    for parts in closed:
        joined = np.concatenate(parts)
        first[joined], last[joined] = low[joined].min(), high[joined].max()
    return first, last


class _Pending:
    """Blocks that are being joined, each of whose rows is looked at once: who owns what of them."""

    def __init__(self, owners: int, k: int) -> None:
        self.rows: list[Ints] = []
        self._patients: list[set[int]] = [set() for _ in range(owners)]
        self._k, self._short = k, 0

    def take(self, rows: Ints, owner: Ints, patient: Ints) -> None:
        self.rows.append(rows)
        for who, whose in zip(owner[rows].tolist(), patient[rows].tolist(), strict=True):
            patients = self._patients[who]
            if whose not in patients:
                patients.add(whose)
                self._short += (len(patients) == 1) - (len(patients) == self._k)

    @property
    def holds(self) -> bool:
        """Whether every owner is empty or has ``k`` patients."""
        return self._short == 0


def _holds(rows: Sequence[int], owner: Ints, patient: Ints, owners: int, k: int) -> bool:
    """Whether among ``rows`` every owner is empty or has ``k`` patients."""
    pairs = np.unique(np.stack([owner[rows], patient[rows]]), axis=1)
    counts = np.bincount(pairs[0], minlength=owners)
    return bool(((counts == 0) | (counts >= k)).all())


def _confusion(whole: Scored, kept: Scored, group: Ints, groups: int, k: int) -> Mask:
    """``(C, C)``: cells that leave for no group. Where one does, the whole's leaves too, and every group's share of it,
    with the withheld ones' together, is empty or of ``k`` patients; so are what all unreleased cells of a row have."""
    classes = whole.known.shape[1]
    rows = np.flatnonzero(whole.known.any(axis=1))
    true, best = whole.positive[rows].argmax(axis=1), whole.scores[rows].argmax(axis=1)
    patient = whole.patient[rows]
    owner = np.where(kept.known[rows].any(axis=1), group[rows], groups)
    result = cells.unreleased(true, best, patient, classes, k)
    for row in range(classes):

        def fits(columns: Mask, row: int = row) -> bool:
            of = np.flatnonzero((true == row) & columns[best])
            return not len(of) or _holds(of.tolist(), owner, patient, groups + 1, k)

        hidden = result[row]
        sizes = np.bincount(best[true == row], minlength=classes)
        for column in range(classes):
            one = np.arange(classes) == column
            hidden[column] |= not fits(one)
        for column in np.argsort(sizes, kind="stable").tolist():
            if fits(hidden):
                break
            hidden[column] = True
    return result
