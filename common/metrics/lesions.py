"""Second pass over outlines: lesions as pieces of masks and outlines, which were found, and how many in vain.

A lesion is a connected piece (8 neighbours) and its box. A true one is found where a predicted box overlaps its own by
enough (IoU), each box counting once; predicted boxes without a partner are false. Sensitivity against false lesions an
image, at each of a few thresholds, is the free-response ROC curve (P. C. Bunch et al., J. Appl. Photogr. Eng. 4 (1978)
166-171; D. P. Chakraborty, Medical Physics 16 (1989) 561-568).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.errors import ProtocolError
from common.metrics import cells
from common.metrics.clustered import Ratio
from common.metrics.intervals import Interval
from common.metrics.layout import Arrays, Ints, expect
from common.metrics.outlines import GRID
from common.study_outlines import LesionSpec

SIZES = ("small", "medium", "large")
PLACES = ("upper left", "upper right", "middle left", "middle right", "lower left", "lower right")
"""Of a box's centre: thirds of the image's height, halves of its width, left and right as one looks at it."""
METRICS = ("lesions_found", "false_lesions")
_T = len(GRID)
_EIGHT = np.ones((3, 3), dtype=np.int64)
_Boxes = NDArray[np.float64]
"""``(n, 4)``: top, left, bottom, right in pixels, the last two exclusive."""


@dataclass(frozen=True, eq=False)
class Found:
    """One site's lesions, one by one; it never leaves the site."""

    rows: Ints
    """``(M,)``: which of the split's images these are: those with a mask, be it empty."""
    false: Ints
    """``(M, T)`` false lesions of each image at each threshold of ``GRID``."""
    empty: NDArray[np.bool_]
    """``(M,)``: whose mask is empty."""
    image: Ints
    """``(L,)``: which of ``rows`` each true lesion is in, 0 … M - 1."""
    size: Ints
    """``(L,)`` place in :data:`SIZES`."""
    place: Ints
    """``(L,)`` place in :data:`PLACES`."""
    hit: NDArray[np.bool_]
    """``(L, T)``: whether it was found."""

    @classmethod
    def of(cls, probabilities: NDArray[np.floating], masks: NDArray[np.uint8], rows: Ints, spec: LesionSpec) -> Found:
        """From probabilities and masks in {0, 1}, both ``(M, H, W)``."""
        count = len(masks)
        false = np.zeros((count, _T), dtype=np.int64)
        image: list[int] = []
        size: list[int] = []
        place: list[int] = []
        hits = [np.zeros((0, _T), dtype=np.bool_)]
        for number in range(count):
            boxes, areas = pieces(masks[number] > 0, spec.smallest)
            hit = np.zeros((len(boxes), _T), dtype=np.bool_)
            for at, threshold in enumerate(GRID):
                drawn, _ = pieces(probabilities[number] >= threshold, spec.smallest)
                found = matched(boxes, drawn, spec.overlap)
                hit[:, at] = found
                false[number, at] = len(drawn) - found.sum()
            hits.append(hit)
            image += [number] * len(boxes)
            size += np.digitize(areas / masks[number].size, spec.sizes).tolist()
            place += _places(boxes, masks.shape[1:]).tolist()
        return cls(
            np.asarray(rows, dtype=np.int64),
            false,
            np.logical_not(masks.any(axis=(1, 2))),
            np.array(image, dtype=np.int64),
            np.array(size, dtype=np.int64),
            np.array(place, dtype=np.int64),
            np.concatenate(hits),
        )

    @classmethod
    def joined(cls, parts: Sequence[Found]) -> Found:
        """One after the other."""
        parts = [_NOBODY, *parts]
        starts = np.cumsum([0, *(len(part.rows) for part in parts)])
        return cls(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.false for part in parts]),
            np.concatenate([part.empty for part in parts]),
            np.concatenate([part.image + start for part, start in zip(parts, starts, strict=False)]),
            np.concatenate([part.size for part in parts]),
            np.concatenate([part.place for part in parts]),
            np.concatenate([part.hit for part in parts]),
        )


_NOTHING = np.zeros(0, dtype=np.int64)
_NOBODY = Found(
    _NOTHING,
    np.zeros((0, _T), dtype=np.int64),
    np.zeros(0, dtype=np.bool_),
    _NOTHING,
    _NOTHING,
    _NOTHING,
    np.zeros((0, _T), dtype=np.bool_),
)


@dataclass(frozen=True, eq=False)
class Lesions:
    """Sums over lesions and images; ``a + b`` is both sites together."""

    found: Ratio
    """``(T,)`` lesions found, of all."""
    false: Ratio
    """``(T,)`` false lesions, by image."""
    by_size: Ratio
    """``(3,)`` as ``found``, at the study's threshold."""
    by_place: Ratio
    """``(6,)`` as ``found``, at the study's threshold."""
    clean: Ratio
    """``(1,)`` images with an empty mask in which no lesion was drawn, of all such, at the study's threshold."""

    @classmethod
    def of(cls, found: Found, patients: NDArray[np.generic], at: int, min_cell: int = 1) -> Lesions:
        """A site's sums. ``patients`` ``(N,)`` of the whole split; ``GRID[at]`` is the study's threshold.

        Under a ``min_cell`` above 1 the other thresholds are left out, for from one to the next it may be a single
        patient's lesion that is found; and of lesions found, lesions missed, images with and without false lesions,
        each is of so many patients or its ratio is withheld, and others with it from which it would follow.
        """
        patient = np.asarray(patients)[found.rows]
        owner = patient[found.image]
        lesions = np.ones((len(owner), _T))
        images = np.ones((len(patient), _T))
        kept = _kept(owner, np.zeros(len(owner), dtype=np.int64), found.hit[:, at], 1, min_cell)
        falsely = _kept(patient, np.zeros(len(patient), dtype=np.int64), found.false[:, at] > 0, 1, min_cell)
        told = np.arange(_T) == at if min_cell > 1 else np.ones(_T, dtype=np.bool_)
        clean = found.false[found.empty, at][:, None] == 0
        return cls(
            found=Ratio.of(found.hit.astype(np.float64), lesions, owner).only(told & kept),
            false=Ratio.of(found.false.astype(np.float64), images, patient).only(told & falsely),
            by_size=_grouped(found, owner, found.size, len(SIZES), at, min_cell),
            by_place=_grouped(found, owner, found.place, len(PLACES), at, min_cell),
            clean=Ratio.of(clean.astype(np.float64), np.ones(clean.shape), patient[found.empty]).only(
                _kept(patient[found.empty], np.zeros(len(clean), dtype=np.int64), clean[:, 0], 1, min_cell)
            ),
        )

    @classmethod
    def zero(cls) -> Lesions:
        """No image at all: where a sum starts."""
        return cls.of(_NOBODY, _NOTHING, 0)

    def __add__(self, other: Lesions) -> Lesions:
        return Lesions(*(mine + theirs for mine, theirs in zip(self._parts(), other._parts(), strict=True)))

    @property
    def load(self) -> float:
        """As of :class:`~common.metrics.clustered.Ratio`."""
        return max(part.load for part in self._parts())

    def metrics(self, at: int, confidence: float) -> dict[str, Interval]:
        """Each of :data:`METRICS` at threshold ``GRID[at]``."""
        values = (self.found.intervals(confidence)[at], self.false.rates(confidence)[at])
        return dict(zip(METRICS, values, strict=True))

    def _parts(self) -> tuple[Ratio, ...]:
        return self.found, self.false, self.by_size, self.by_place, self.clean

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        return {
            key: value
            for name, part in zip(_SHAPES, self._parts(), strict=True)
            for key, value in part.to_arrays(name).items()
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Lesions:
        """Raises :class:`ProtocolError` for anything that no honest site could send."""
        expect(arrays, {field for name in _SHAPES for field in Ratio.fields(name)})
        parts = [Ratio.from_arrays(arrays, name, shape, share=name != "false") for name, shape in _SHAPES.items()]
        found = cls(*parts)
        lesions = found.found.denominator.max(initial=0.0)
        told = found.found.patients > 0
        if told.any() and (found.found.denominator[told] != lesions).any():
            raise ProtocolError("a statistics message contradicts itself: lesions that change with the threshold")
        return found


_SHAPES: dict[str, tuple[int, ...]] = {
    "found": (_T,),
    "false": (_T,),
    "by_size": (len(SIZES),),
    "by_place": (len(PLACES),),
    "clean": (1,),
}


def pieces(drawn: NDArray[np.bool_], smallest: int) -> tuple[_Boxes, Ints]:
    """Boxes ``(n, 4)`` and pixels ``(n,)`` of the connected pieces of ``drawn`` ``(H, W)`` with enough pixels."""
    from scipy import ndimage

    if not drawn.any():
        return np.zeros((0, 4)), _NOTHING
    labelled, count = ndimage.label(drawn, structure=_EIGHT)
    areas = np.bincount(labelled.ravel(), minlength=count + 1)[1:].astype(np.int64)
    boxes = np.array(
        [[rows.start, columns.start, rows.stop, columns.stop] for rows, columns in ndimage.find_objects(labelled)],
        dtype=np.float64,
    )
    kept = areas >= smallest
    return boxes[kept], areas[kept]


def matched(true: _Boxes, drawn: _Boxes, overlap: float) -> NDArray[np.bool_]:
    """``(n,)``: which true boxes have a drawn one of their own, where as many as possible have one."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching

    if not len(true) or not len(drawn):
        return np.zeros(len(true), dtype=np.bool_)
    partner = maximum_bipartite_matching(csr_matrix(box_iou(true, drawn) >= overlap), perm_type="column")
    return np.asarray(partner >= 0)


def box_iou(a: _Boxes, b: _Boxes) -> NDArray[np.float64]:
    """``(n, m)`` intersection over union of every two boxes."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.clip(high - low, 0.0, None).prod(axis=2)
    area_a, area_b = ((boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b))
    return np.asarray(both / (area_a[:, None] + area_b[None, :] - both))


def _places(boxes: _Boxes, shape: tuple[int, ...]) -> Ints:
    """Of boxes ``(n, 4)``, each one's place in :data:`PLACES`."""
    row = (boxes[:, 0] + boxes[:, 2]) / 2 / shape[0]
    column = (boxes[:, 1] + boxes[:, 3]) / 2 / shape[1]
    return np.asarray(np.minimum(np.floor(3 * row), 2) * 2 + (column >= 0.5), dtype=np.int64)


def _grouped(found: Found, owner: NDArray[np.generic], group: Ints, groups: int, at: int, k: int) -> Ratio:
    """Lesions found, of each group of them."""
    member = (group[:, None] == np.arange(groups)).astype(np.float64)
    hit = found.hit[:, at]
    return Ratio.of(member * hit[:, None], member, owner).only(_kept(owner, group, hit, groups, k))


def _kept(owner: NDArray[np.generic], group: Ints, yes: NDArray[np.bool_], groups: int, k: int) -> NDArray[np.bool_]:
    """``(groups,)``: which shares of ``yes`` may leave, of things that have an ``owner`` and a ``group``.

    Those who own a yes and those who own a no are cells of their own (``cells.withheld``).
    """
    if k == 1:
        return np.ones(groups, dtype=np.bool_)
    owners = [set(owner[(group == number) & (yes == side)].tolist()) for number, side in _cells(groups)]
    hidden = {number // 2 for number in cells.withheld(owners, k)}
    return np.array([number not in hidden for number in range(groups)])


def _cells(groups: int) -> Iterator[tuple[int, bool]]:
    for number in range(groups):
        yield number, False
        yield number, True
