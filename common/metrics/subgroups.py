"""Counts by the values of an attribute: the first pass of a test, once for each group of images.

The groups of an attribute part the images: each image is in one. What leaves of them under the small-cell rule is made
for all groups at once (``common.metrics.joint``). A group that is withheld altogether has no name here, for that there
is one patient of a kind is told too; only that some group was withheld is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError, ProtocolError
from common.metrics import cells
from common.metrics.counts import Counts
from common.metrics.histogram import Histogram
from common.metrics.joint import Joint, joint
from common.metrics.layout import Arrays, Ints, Layout, Scored, integers

NOT_RECORDED, OTHER, SEVERAL = "not recorded", "other", "several"
"""Groups of images without a value, with a rare or unprintable one, with more than one."""
MOST_VALUES = 12
"""Groups that one site tells of an attribute; the smaller ones are told together as :data:`OTHER`."""
MOST_GROUPS = 24
"""Groups of an attribute over all sites; the smaller ones are shown together."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+<>/-]{0,63}")
_SUPPRESSED = "suppressed"


def is_name(value: str) -> bool:
    """Whether ``value`` is short and plain enough to be told."""
    return _NAME.fullmatch(value) is not None


def told(values: Sequence[str], known: Sequence[str] | None = None) -> list[str]:
    """Each image's group: its value, or :data:`OTHER` where it is not among the ``known`` or, without these, among the
    :data:`MOST_VALUES` most frequent."""
    if known is None:
        frequent = Counter(values)
        known = sorted(frequent, key=lambda value: (-frequent[value], value))[:MOST_VALUES]
    kept = set(known)
    return [value if value in kept else OTHER for value in values]


@dataclass(frozen=True, eq=False)
class Subgroups:
    """Of one attribute; ``a + b`` is both sites together. ``loss`` of the counts is 0: nobody asks for it."""

    layout: Layout
    counts: Mapping[str, Counts]
    """By value, sorted; each with an image."""
    suppressed: int
    """Sites that withheld whole groups."""

    @classmethod
    def of(
        cls,
        scores: NDArray[np.floating],
        targets: NDArray[np.floating],
        patients: NDArray[np.generic],
        values: Sequence[str],
        layout: Layout,
        min_cell: int = 1,
    ) -> Subgroups:
        """Count a site's images by ``values`` ``(N,)``; the rest as :meth:`Counts.of`, which has told of the whole.

        Raises :class:`DataError`, :class:`ModelError` as there.
        """
        if len(values) != len(scores):
            raise DataError(f"{len(values)} values of an attribute for {len(scores)} images; each image has one")
        scored = Scored.of(scores, targets, patients, layout)
        names = sorted(set(values))
        group = np.array([names.index(value) for value in values], dtype=np.int64)
        if min_cell == 1:
            no_loss = np.zeros(len(scores))
            found = {
                name: Counts.of(scores[of], targets[of], patients[of], no_loss[of], layout)
                for number, name in enumerate(names)
                for of in [group == number]
            }
            return cls(layout, {name: counts for name, counts in found.items() if counts.images}, 0)
        table = joint(scored, group, len(names), layout.task, layout.bins, min_cell)
        found = {name: _counted(table, group == n, table.withheld[n], layout, min_cell) for n, name in enumerate(names)}
        told = {name: counts for name, counts in found.items() if counts.images}
        hidden = any(not counts.images and counts.withheld.any() for counts in found.values())
        return cls(layout, told, int(hidden))

    @classmethod
    def zero(cls, layout: Layout) -> Subgroups:
        """No image at all: where a sum starts."""
        return cls(layout, {}, 0)

    def __add__(self, other: Subgroups) -> Subgroups:
        merged = dict(self.counts)
        for name, counts in other.counts.items():
            merged[name] = merged[name] + counts if name in merged else counts
        return Subgroups(self.layout, dict(sorted(merged.items())), self.suppressed + other.suppressed)

    def others(self, name: str) -> list[str]:
        """With what a group is compared: all others, but for images of which nobody knows whether they belong to it."""
        return [other for other in self.counts if other not in (name, NOT_RECORDED)]

    def rest(self, name: str) -> Counts:
        """The :meth:`others` together."""
        return sum((self.counts[other] for other in self.others(name)), Counts.zero(self.layout))

    def at_most(self, most: int) -> Subgroups:
        """With the smallest groups together in :data:`OTHER` where there are more than ``most``."""
        if len(self.counts) <= most:
            return self
        ranked = sorted(self.counts, key=lambda name: (name == OTHER, -self.counts[name].images, name))
        few = Subgroups(self.layout, {name: self.counts[name] for name in ranked[: most - 1]}, self.suppressed)
        for name in ranked[most - 1 :]:
            few += Subgroups(self.layout, {OTHER: self.counts[name]}, 0)
        return few

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """For the wire: each group's arrays under ``name/``."""
        found: dict[str, NDArray[np.generic]] = {_SUPPRESSED: np.array([self.suppressed], dtype=np.int64)}
        for name, counts in self.counts.items():
            found |= {f"{name}/{key}": value for key, value in counts.to_arrays().items()}
        return found

    @classmethod
    def from_arrays(cls, arrays: Arrays, layout: Layout) -> Subgroups:
        """One site's groups from outside. Raises :class:`ProtocolError` for what no honest site could send."""
        parts = by_group(arrays, MOST_VALUES + 1)
        rest = parts.pop("", {})
        if set(rest) != {_SUPPRESSED}:
            raise ProtocolError("a statistics message has other fields than expected; both sides need the same version")
        suppressed = int(integers(rest, _SUPPRESSED, (1,), most=1)[0])
        counts = {name: Counts.from_arrays(own, layout) for name, own in sorted(parts.items())}
        if not all(one.images for one in counts.values()):
            raise ProtocolError("a statistics message names a group of no image")
        return cls(layout, counts, suppressed)


def by_group(arrays: Arrays, most: int) -> dict[str, dict[str, NDArray[np.generic]]]:
    """Arrays named ``group/field`` as group -> field -> array. Raises :class:`ProtocolError` for other names."""
    parts: dict[str, dict[str, NDArray[np.generic]]] = {}
    for key, value in arrays.items():
        name, _, leaf = key.rpartition("/")
        parts.setdefault(name, {})[leaf] = value
    if len(parts) > most + 1 or not all(is_name(name) for name in parts if name):
        raise ProtocolError(f"a statistics message names more than {most} groups, or one that is no plain, short word")
    return parts


def _counted(table: Joint, of: NDArray[np.bool_], withheld: Ints, layout: Layout, k: int) -> Counts:
    """One group's counts as the joint table has them; patients rounded down to a multiple of ``k``."""
    scored = table.scored
    known = scored.known & of[:, None]
    row, column = np.nonzero(known)
    group = (column * 2 + scored.positive[row, column]) * layout.bins
    low, high = (Histogram.of(group + position[row, column]) for position in (table.low, table.high))
    present = cells.presence(scored.patient, scored.patients, cells.signs(replace_known(scored, known)))
    class_patients = present.sum(axis=0, dtype=np.int64) // k * k
    sizes = low.totals(2 * layout.classes, layout.bins).sum(axis=1)
    confusion = np.zeros((0, 0), dtype=np.int64)
    if layout.task == "multiclass":
        rows = np.flatnonzero(known.any(axis=1))
        true, best = scored.positive[rows].argmax(axis=1), scored.scores[rows].argmax(axis=1)
        confusion = np.zeros((layout.classes, layout.classes + 1), dtype=np.int64)
        np.add.at(confusion, (true, np.where(table.unreleased[true, best], layout.classes, best)), 1)
    same = np.array_equal(low.at, high.at) and np.array_equal(low.n, high.n)
    return Counts(
        layout=layout,
        low=low,
        high=low if same else high,
        confusion=confusion,
        class_patients=class_patients,
        withheld=withheld,
        images=int(sizes.max(initial=0)),
        patients=int(class_patients.max(initial=0)),
        loss=0.0,
    )


def replace_known(scored: Scored, known: NDArray[np.bool_]) -> Scored:
    """``scored`` with the labels of ``known`` only; patients keep their numbers."""
    return replace(scored, known=known, positive=scored.positive & known)
