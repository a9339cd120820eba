"""Second pass by groups: how sure a group's metrics are, and those of all others, and how far the two differ.

A patient may have images in a group and in the rest (of two views, of two years): the difference's squared influences
are summed too, from which follows how the two go together. Only where the small-cell rule hides nothing: else the
bounds of the first pass are all that is told (``common.metrics.estimates``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from common.errors import ProtocolError
from common.metrics.counts import Counts
from common.metrics.layout import Arrays, Floats, Ints, Layout, Scored, divide, expect, integers
from common.metrics.moments import Influences, Moments, fixed
from common.metrics.ratios import METRICS
from common.metrics.reference import Reference, Thresholds
from common.metrics.subgroups import OTHER, Subgroups, by_group, replace_known, told

GAP = "gap"
"""Mean score less share of positives: calibration in the large. 0 is right, above it scores promise too much."""
COMPARED = (*METRICS, GAP)
_MOST = 1 << 60


def gaps(counts: Counts) -> Floats:
    """``(C + 1,)`` of each class, and their mean (NaN for multiclass, where it is always 0); a score counts at the
    middle of its bin."""
    layout, low = counts.layout, counts.low
    column, middle = low.at // (2 * layout.bins), (low.at % layout.bins + 0.5) / layout.bins
    score = np.bincount(column, weights=middle * low.n, minlength=layout.classes).astype(np.float64)
    images = counts.totals.sum(axis=1).astype(np.float64)
    found = divide(score - counts.totals[:, 1], images)
    known = found[~np.isnan(found)]
    overall = known.mean() if len(known) and layout.task != "multiclass" else np.nan
    return np.append(found, overall)


@dataclass(frozen=True, eq=False)
class GroupMoments:
    """One group against the rest."""

    own: Moments
    rest: Moments
    gaps: Ints
    """``(2, C + 1)`` squares of the gap's influences, in the group and in the rest; units of 2^-56."""
    contrast: Ints
    """``(8, C + 1)`` squares of the differences' influences, of :data:`COMPARED`."""

    @classmethod
    def zero(cls, layout: Layout) -> GroupMoments:
        nothing = np.zeros((len(COMPARED), layout.classes + 1), dtype=np.int64)
        return cls(Moments.zero(layout), Moments.zero(layout), nothing[:2], nothing)

    def __add__(self, other: GroupMoments) -> GroupMoments:
        gaps_, contrast = self.gaps + other.gaps, self.contrast + other.contrast
        if max(gaps_.max(), contrast.max()) > _MOST:
            raise ProtocolError("sums of squares are greater than any patients could make them; a site sent wrong ones")
        return GroupMoments(self.own + other.own, self.rest + other.rest, gaps_, contrast)

    @property
    def load(self) -> float:
        """As of :class:`Moments`."""
        return max(self.own.load, self.rest.load, float(max(self.gaps.max(), self.contrast.max())) / _MOST)

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        return {
            **{f"own {key}": value for key, value in self.own.to_arrays().items()},
            **{f"rest {key}": value for key, value in self.rest.to_arrays().items()},
            "gaps": self.gaps,
            "contrast": self.contrast,
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays, layout: Layout) -> GroupMoments:
        """Raises :class:`ProtocolError` for anything that no honest site could send."""
        sides = {
            side: {key.removeprefix(f"{side} "): value for key, value in arrays.items() if key.startswith(f"{side} ")}
            for side in ("own", "rest")
        }
        expect({key: arrays[key] for key in arrays if not key.startswith(("own ", "rest "))}, {"gaps", "contrast"})
        width = layout.classes + 1
        return cls(
            Moments.from_arrays(sides["own"], layout),
            Moments.from_arrays(sides["rest"], layout),
            integers(arrays, "gaps", (2, width), _MOST).copy(),
            integers(arrays, "contrast", (len(COMPARED), width), _MOST).copy(),
        )


def measure(
    scores: NDArray[np.floating],
    targets: NDArray[np.floating],
    patients: NDArray[np.generic],
    values: Sequence[str],
    groups: Subgroups,
    thresholds: Thresholds,
) -> dict[str, GroupMoments]:
    """A site's sums for each of ``groups``, which all sites have added up; arguments as :meth:`Subgroups.of`.

    Raises :class:`ProtocolError` where ``groups`` lack this site's images.
    """
    layout = groups.layout
    scored = Scored.of(scores, targets, patients, layout)
    names = list(groups.counts)
    at = {name: number for number, name in enumerate(names)}
    group = np.array([at.get(value, len(names)) for value in told(values, names)], dtype=np.int64)
    if (scored.known[group == len(names)]).any():
        raise ProtocolError("the groups lack this site's images; they are of another split or round")
    found: dict[str, GroupMoments] = {}
    for number, name in enumerate(names):
        mine = scored.known & (group == number)[:, None]
        theirs = scored.known & np.isin(group, [at[other] for other in groups.others(name)])[:, None]
        own = _side(scored, mine, Reference(groups.counts[name], thresholds))
        rest = _side(scored, theirs, Reference(groups.rest(name), thresholds))
        found[name] = GroupMoments(
            Moments.summed(own.influences, layout),
            Moments.summed(rest.influences, layout),
            fixed(np.stack([own.gap, rest.gap]), axis=1),
            fixed(own.table - rest.table, axis=1),
        )
    return found


@dataclass(frozen=True, eq=False)
class _Side:
    influences: Influences
    gap: Floats
    """``(patients, C + 1)``."""

    @property
    def table(self) -> Floats:
        """``(8, patients, C + 1)``."""
        return np.concatenate([self.influences.values, self.gap[None]])


def _side(scored: Scored, known: NDArray[np.bool_], reference: Reference) -> _Side:
    part = replace_known(scored, known)
    layout, counts = reference.counts.layout, reference.counts
    value = gaps(counts)
    excess = (part.position + 0.5) / layout.bins - part.positive - np.nan_to_num(value[:-1])
    summed = np.zeros((part.patients, layout.classes))
    np.add.at(summed, part.patient, np.where(known, excess, 0.0))
    summed /= np.maximum(counts.totals.sum(axis=1), 1)
    columns = np.flatnonzero(~np.isnan(value[:-1]))
    overall = summed[:, columns].mean(axis=1) if len(columns) and layout.task != "multiclass" else summed[:, 0] * 0.0
    return _Side(Influences.of(part, reference), np.column_stack([summed, overall]))


def rest_of(groups: Subgroups, name: str, moments: GroupMoments) -> Counts:
    """The other groups' counts, each patient counted once: the sum of the groups' counts those of two groups twice."""
    counts, support = groups.rest(name), moments.rest.support
    each = np.stack([support[METRICS.index(side), :-1] for side in ("specificity", "sensitivity")], axis=1)
    return replace(counts, class_patients=each, patients=moments.rest.patients)


def reference_arrays(groups: Subgroups, thresholds: Thresholds) -> dict[str, NDArray[np.generic]]:
    """For the wire: what goes back out to the sites."""
    return {
        f"{name}/{key}": value
        for name, counts in groups.counts.items()
        for key, value in Reference(counts, thresholds).to_arrays().items()
    }


def open_reference(arrays: Arrays, layout: Layout, most: int) -> tuple[Subgroups, Thresholds]:
    """The inverse. Raises :class:`ProtocolError` for anything that no honest coordinator could send."""
    parts = {name: Reference.from_arrays(own, layout) for name, own in by_group(arrays, most).items()}
    if not parts or "" in parts:
        raise ProtocolError("a reference by groups names none")
    thresholds = next(iter(parts.values())).thresholds
    if not all(np.array_equal(part.thresholds.position, thresholds.position) for part in parts.values()):
        raise ProtocolError("a reference by groups has several operating points; there is one for all")
    return Subgroups(layout, {name: part.counts for name, part in sorted(parts.items())}, 0), thresholds


def moments_arrays(found: Mapping[str, GroupMoments]) -> dict[str, NDArray[np.generic]]:
    """For the wire."""
    return {f"{name}/{key}": value for name, one in found.items() for key, value in one.to_arrays().items()}


def open_moments(arrays: Arrays, names: Sequence[str], layout: Layout) -> dict[str, GroupMoments]:
    """One site's sums for all of ``names``. Raises :class:`ProtocolError`."""
    parts = by_group(arrays, len(names))
    if set(parts) != set(names):
        raise ProtocolError("sums by groups are of other groups than were asked for")
    return {name: GroupMoments.from_arrays(parts[name], layout) for name in names}


__all__ = ["COMPARED", "GAP", "OTHER", "GroupMoments", "gaps", "measure"]
