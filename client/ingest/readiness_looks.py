"""Pictures that look nearly the same: candidates by their 64-bit difference hashes and measures, then by their pixels.

The hash alone does not tell two chest X-rays apart: of 2,985 images of the Guangzhou set 37,342 pairs of two patients
are within three bits. One picture saved twice also keeps its brightness, contrast and sharpness, which leaves 509 of
all 5,234 images, and correlates by more than 0.98 at 64 x 64 pixels: of the 20 most alike of those 509 none did, the
most was 0.94.

G. S. Manku, A. Jain, A. Das Sarma, "Detecting near-duplicates for web crawling", WWW 2007
(doi:10.1145/1242572.1242592), section 3: of four bands of 16 bits at least one is equal in such a pair, and of four
parts of the other 48 bits again at least one; sorted by band, part and brightness, candidates are neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

NEAR_BITS = 3
TOLERANCE = {"mean": 0.005, "spread": 0.01, "dark": 0.01, "bright": 0.01, "sharpness": 1.0}
"""How far the measures of one picture saved twice may be apart: shares of the grey range, and octaves.

Of 120 X-rays and MR images saved as JPEG (quality 40), at half and at 0.7 of the size, the 90% quantiles of the
differences were at most 0.0013, 0.007, 0.007, 0.006 and 0.8.
"""
CHECKED = 200
"""Pairs of different patients whose pixels are compared, the most alike by their hashes."""
SIDE = 64
CORRELATION = 0.98
PLAIN_PATIENTS = 20
"""A look of more patients than this says that the picture is plain (a blank background), not that it is one picture."""
FARTHEST = 256
"""Neighbours that an image is compared with, for each of the 16 orders: bounds the time where looks crowd together."""
MOST_PAIRS = 200_000
"""Pairs that are kept: bounds the memory where looks crowd together."""

_BANDS, _BAND_BITS, _PARTS, _PART_BITS = 4, 16, 4, 12
_SHARPEST_BLUR = 1e-4  # below it differences of sharpness are rounding

Ints = NDArray[np.int64]
Looks = NDArray[np.uint64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """Two images (numbers in the vault, the smaller first) of different patients, ``bits`` of 64 apart."""

    one: int
    other: int
    bits: int


@dataclass(frozen=True)
class Twins(Pair):
    """Two whose pixels, too, are nearly the same."""

    correlation: float


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of images that may be nearly the same; of a patient's images with one hash the first stands for all."""

    different: int = 0
    """Pairs of images of two patients."""
    same: int = 0
    """Pairs of images of one patient: a second exposure, the next slice."""
    pairs: tuple[Pair, ...] = ()
    """The first :data:`CHECKED` of two patients, the most alike first."""
    plain: int = 0
    """Images whose hash more than :data:`PLAIN_PATIENTS` patients share: not compared."""
    complete: bool = True
    """Whether every pair was found; else looks crowd together and the counts are lower bounds."""


def near_duplicates(looks: Looks, patients: Ints, ids: Ints, measures: dict[str, Floats]) -> NearDuplicates:
    """Near duplicates among images: their looks, patients, numbers and measures, each ``(N,)``, in any order.

    A measure that is NaN counts as 0. Time grows as N log N and is bounded by :data:`FARTHEST`.
    """
    if not len(looks):
        return NearDuplicates()
    order = np.lexsort((ids, patients, looks))
    looks, patients, ids = looks[order], patients[order], ids[order]
    traits = _traits({name: values[order] for name, values in measures.items()}, len(looks))
    new_look = np.append(True, looks[1:] != looks[:-1])
    # Of a patient's images with one look the first stands for all: a series of blank slices is not paired.
    firsts = np.flatnonzero(new_look | np.append(True, patients[1:] != patients[:-1]))
    counts = np.diff(np.append(firsts, len(looks)))
    which = np.cumsum(new_look[firsts]) - 1
    common = np.bincount(which)[which] > PLAIN_PATIENTS
    plain = int(counts[common].sum())
    firsts, counts = firsts[~common], counts[~common]
    looks, patients, ids, traits = looks[firsts], patients[firsts], ids[firsts], traits[:, firsts]
    one, other, complete = near_pairs(looks, traits)
    images = counts[one] * counts[other]
    alien = patients[one] != patients[other]
    same = int(images[~alien].sum() + (counts * (counts - 1) // 2).sum())
    one, other = one[alien], other[alien]
    bits = np.bitwise_count(looks[one] ^ looks[other])
    small, large = np.minimum(ids[one], ids[other]), np.maximum(ids[one], ids[other])
    listed = np.lexsort((large, small, bits))[:CHECKED]
    pairs = tuple(Pair(int(small[at]), int(large[at]), int(bits[at])) for at in listed)
    return NearDuplicates(int(images[alien].sum()), same, pairs, plain, complete)


def twins(pairs: Iterable[Pair], read: Callable[[int], NDArray[Any]]) -> tuple[Twins, ...]:
    """Those of ``pairs`` whose pixels correlate by :data:`CORRELATION` or more, the most alike first.

    ``read`` gives the pixels of an image, ``(H, W)`` or ``(H, W, 3)``. Of each a thumbnail of 16 KiB is kept meanwhile.
    """
    small: dict[int, NDArray[np.float32]] = {}
    found = []
    for pair in pairs:
        for image in (pair.one, pair.other):
            if image not in small:
                small[image] = _thumbnail(read(image))
        correlation = float((small[pair.one] * small[pair.other]).sum())
        if correlation >= CORRELATION:
            found.append(Twins(pair.one, pair.other, pair.bits, correlation))
    return tuple(sorted(found, key=lambda one: (-one.correlation, one.one, one.other)))


def _thumbnail(pixels: NDArray[Any]) -> NDArray[np.float32]:
    """``(64, 64)``, of mean 0 and length 1; all 0 where the image is of one value."""
    grey = pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    area = np.asarray(cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.float32)
    area = area - area.mean()
    return np.asarray(area / max(float(np.linalg.norm(area)), 1e-6), np.float32)


def _traits(measures: dict[str, Floats], count: int) -> Floats:
    """Measures ``(5, N)`` in units of their tolerance."""
    result = np.zeros((len(TOLERANCE), count))
    for row, (name, tolerance) in zip(result, TOLERANCE.items(), strict=True):
        if name in measures:
            values = np.nan_to_num(measures[name])
            row[:] = (np.log2(np.maximum(values, _SHARPEST_BLUR)) if name == "sharpness" else values) / tolerance
    return result


def near_pairs(looks: Looks, traits: Floats) -> tuple[Ints, Ints, bool]:
    """Positions ``i < j`` of all pairs that are near: ``looks`` ``(N,)`` by bits, ``traits`` ``(K, N)`` by 1 each.

    The third value says whether these are all.
    """
    count = max(len(looks), 1)
    found: Ints = np.empty(0, np.int64)
    complete = True
    for band in range(_BANDS):
        turned = _turned(looks, band * _BAND_BITS)
        for part in range(_PARTS):
            keys = _key(turned, part)
            order = np.lexsort((looks, traits[0], keys))
            near, through = _neighbours(keys[order], looks[order], traits[:, order])
            one, other = order[near[0]], order[near[1]]
            found = np.unique(np.concatenate([found, np.minimum(one, other) * count + np.maximum(one, other)]))
            complete &= through
            if len(found) > MOST_PAIRS:
                found, complete = found[:MOST_PAIRS], False
                return found // count, found % count, complete
    return found // count, found % count, complete


def _turned(looks: Looks, bits: int) -> Looks:
    """``looks`` rotated to the left: band after band comes to the top."""
    return looks if bits == 0 else (looks << np.uint64(bits)) | (looks >> np.uint64(64 - bits))


def _key(turned: Looks, part: int) -> Looks:
    """The uppermost band, and a part of the rest: 28 bits."""
    band = turned >> np.uint64(64 - _BAND_BITS)
    inner = (turned >> np.uint64(part * _PART_BITS)) & np.uint64((1 << _PART_BITS) - 1)
    return (band << np.uint64(_PART_BITS)) | inner


def _neighbours(keys: Looks, looks: Looks, traits: Floats) -> tuple[tuple[Ints, Ints], bool]:
    """Near pairs with equal keys, and whether these are all; sorted by key, then by the first trait."""
    count, kept = len(keys), 0
    at = np.arange(count)
    ones, others = [at[:0]], [at[:0]]
    through = False
    for apart in range(1, FARTHEST + 2):
        at = at[: np.searchsorted(at, count - apart)]
        at = at[(keys[at] == keys[at + apart]) & (traits[0, at + apart] - traits[0, at] <= 1.0)]
        if not at.size:
            through = True
            break
        if apart > FARTHEST or kept > MOST_PAIRS:
            break
        near = at[np.bitwise_count(looks[at] ^ looks[at + apart]) <= NEAR_BITS]
        near = near[(np.abs(traits[:, near] - traits[:, near + apart]) <= 1.0).all(axis=0)]
        ones.append(near)
        others.append(near + apart)
        kept += near.size
    return (np.concatenate(ones), np.concatenate(others)), through
