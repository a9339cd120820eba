"""First pass of a comparison: how many images of which truth both deciders called what.

From the sums come McNemar's table, both deciders' rates on the same images, and their agreement. A group whose table
may not leave a site (:class:`~common.metrics.paired.Decided`) counts nowhere in it, and is marked.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from common.errors import ProtocolError
from common.metrics.histogram import Histogram
from common.metrics.layout import Arrays, Floats, Ints, Layout, expect, integers
from common.metrics.paired.decisions import Decided, groups, options, questions
from common.metrics.ratios import Tally


@dataclass(frozen=True, eq=False)
class Joint:
    """Sums over images; ``a + b`` is both sites together."""

    layout: Layout
    table: Histogram
    """Images by ``(group, first's decision, second's)``; cell ``(group·O + first)·O + second``, O options and one."""
    asked: Ints
    """``(Q,)`` patients with an image of each question in the table."""
    patients: Ints
    """``(G,)`` patients with an image of each group in the table."""
    withheld: Ints
    """``(G,)`` sites that withheld a group's table for a small cell."""

    @classmethod
    def of(cls, decided: Decided) -> Joint:
        """A site's table."""
        layout, wide = decided.layout, options(decided.layout) + 1
        cell = (decided.group * wide + decided.first) * wide + decided.second
        asked = _patients(decided.question, decided.patient, questions(layout))
        patients = _patients(decided.group, decided.patient, groups(layout))
        return cls(layout, Histogram.of(cell), asked, patients, decided.withheld)

    @classmethod
    def zero(cls, layout: Layout) -> Joint:
        """No image at all: where a sum starts."""
        nothing = np.zeros(0, dtype=np.int64)
        none = np.zeros(groups(layout), dtype=np.int64)
        return cls.of(Decided(layout, nothing, nothing, nothing, nothing, 0, none))

    def __add__(self, other: Joint) -> Joint:
        if self.layout != other.layout:
            raise ValueError(f"cannot add tables of {self.layout} and {other.layout}")
        return Joint(
            self.layout,
            self.table + other.table,
            self.asked + other.asked,
            self.patients + other.patients,
            self.withheld + other.withheld,
        )

    @cached_property
    def _decoded(self) -> tuple[Ints, Ints, Ints]:
        """Group, first's and second's decision of each cell."""
        wide = options(self.layout) + 1
        at = self.table.at
        return at // (wide * wide), at // wide % wide, at % wide

    @cached_property
    def exact(self) -> NDArray[np.bool_]:
        """``(Q,)``: whether all that was decided is told."""
        group, first, second = self._decoded
        unknown = np.zeros(questions(self.layout), dtype=np.bool_)
        most = options(self.layout)
        for at in (group[(first == most) | (second == most)], np.flatnonzero(self.withheld)):
            unknown[np.zeros_like(at) if self.layout.task == "multiclass" else at // 2] = True
        return ~unknown

    @cached_property
    def tallies(self) -> tuple[Tally, Tally]:
        """Confusion counts ``(C,)`` of the first and of the second decider; "not told" counts as wrong."""
        group, first, second = self._decoded
        return self._tally(group, first), self._tally(group, second)

    def _tally(self, group: Ints, decision: Ints) -> Tally:
        classes = self.layout.classes

        def count(column: Ints, mask: NDArray[np.bool_]) -> Floats:
            return np.bincount(column[mask], self.table.n[mask], classes).astype(np.float64)

        if self.layout.task != "multiclass":
            column, sign = group // 2, group % 2 == 1
            tp, tn = count(column, sign & (decision == 1)), count(column, ~sign & (decision == 0))
            return Tally(tp, count(column, ~sign) - tn, count(column, sign) - tp, tn)
        right = decision == group
        tp, fn = count(group, right), count(group, ~right)
        fp = count(decision, ~right & (decision < classes))
        return Tally(tp, fp, fn, self.table.n.sum() - tp - fp - fn)

    def signs(self, column: int) -> Floats:
        """``(2, 3, 3)``: of a class's negatives and positives, images by both decisions (no, yes, not told)."""
        group, first, second = self._decoded
        if self.layout.task == "multiclass":
            most = options(self.layout)
            sign = (group == column).astype(np.int64)
            first, second = (np.where(one == most, 2, one == column) for one in (first, second))
            mine = np.ones(len(group), dtype=np.bool_)
        else:
            mine, sign = group // 2 == column, group % 2
        found = np.zeros((2, 3, 3))
        np.add.at(found, (sign[mine], first[mine], second[mine]), self.table.n[mine])
        return found

    def right(self) -> Floats:
        """``(2, 2)`` of a multiclass task: images by whether the first, and the second, named the true class."""
        group, first, second = self._decoded
        found = np.zeros((2, 2))
        np.add.at(found, ((first == group).astype(np.int64), (second == group).astype(np.int64)), self.table.n)
        return found

    def crossed(self, question: int) -> Floats:
        """``(O, O)`` images by the first's and the second's decision, whatever the truth."""
        group, first, second = self._decoded
        most = options(self.layout)
        mine = (first < most) & (second < most)
        if self.layout.task != "multiclass":
            mine &= group // 2 == question
        found = np.zeros((most, most))
        np.add.at(found, (first[mine], second[mine]), self.table.n[mine])
        return found

    def images(self, question: int) -> int:
        """How many images the table holds of a question."""
        group = self._decoded[0]
        mine = np.ones(len(group), np.bool_) if self.layout.task == "multiclass" else group // 2 == question
        return int(self.table.n[mine].sum())

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        return {
            "layout": self.layout.code(),
            "table_at": self.table.at,
            "table_n": self.table.n,
            "asked": self.asked,
            "patients": self.patients,
            "withheld": self.withheld,
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays, layout: Layout) -> Joint:
        """Raises :class:`ProtocolError` for anything that no honest sender could send."""
        expect(arrays, {"layout", "table_at", "table_n", "asked", "patients", "withheld"})
        if not np.array_equal(integers(arrays, "layout", (3,)), layout.code()):
            raise ProtocolError(
                "a joint table is of another task, number of classes or number of bins than the study's"
            )
        found = cls(
            layout,
            Histogram.from_arrays(arrays, "table", groups(layout) * _each(layout)),
            integers(arrays, "asked", (questions(layout),)).copy(),
            integers(arrays, "patients", (groups(layout),)).copy(),
            integers(arrays, "withheld", (groups(layout),)).copy(),
        )
        of_group = np.bincount(found._decoded[0], found.table.n, groups(layout))
        of_question = np.array([found.images(question) for question in range(questions(layout))])
        for patients, images in ((found.patients, of_group), (found.asked, of_question)):
            if (patients > images).any() or ((patients == 0) != (images == 0)).any():
                raise ProtocolError("a joint table contradicts itself: it counts other patients than images")
        return found


def _each(layout: Layout) -> int:
    """Cells of one group."""
    return (options(layout) + 1) ** 2


def _patients(of: Ints, patient: Ints, least: int) -> Ints:
    """How many patients stand behind each of ``least`` groups or questions ``of`` ``(M,)``."""
    pairs = np.unique(np.stack([of, patient]), axis=1)
    return np.bincount(pairs[0], minlength=least).astype(np.int64)
