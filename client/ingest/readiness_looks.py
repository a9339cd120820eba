"""Pictures that look nearly the same: pairs of 64-bit difference hashes at most three bits apart.

G. S. Manku, A. Jain, A. Das Sarma, "Detecting near-duplicates for web crawling", WWW 2007
(doi:10.1145/1242572.1242592), section 3: of four bands of 16 bits at least one is equal in such a pair, and of four
parts of the other 48 bits again at least one; sorted by band and part, candidates are neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NEAR_BITS = 3
LISTED = 20
PLAIN_PATIENTS = 20
"""A look of more patients than this says that the picture is plain (a blank background), not that it is one picture."""
FARTHEST = 256
"""Neighbours that a look is compared with, for each of the 16 orders: bounds the time where looks crowd together."""
MOST_PAIRS = 200_000
"""Pairs of looks that are kept: bounds the memory where looks crowd together."""

_BANDS, _BAND_BITS, _PARTS, _PART_BITS = 4, 16, 4, 12


@dataclass(frozen=True)
class Pair:
    """Two images (numbers in the vault, the smaller first) of different patients, ``bits`` of 64 apart."""

    one: int
    other: int
    bits: int


@dataclass(frozen=True)
class NearDuplicates:
    """Pairs of images at most :data:`NEAR_BITS` apart; those of plain looks are not among them."""

    different: int = 0
    """Pairs of images of two patients."""
    same: int = 0
    """Pairs of images of one patient: a second exposure, the next slice."""
    pairs: tuple[Pair, ...] = ()
    """The first :data:`LISTED`, the most alike first; of two patients and two looks one pair."""
    plain: int = 0
    """Images whose look more than :data:`PLAIN_PATIENTS` patients share: not compared."""
    complete: bool = True
    """Whether every pair was found; else looks crowd together and the counts are lower bounds."""


def near_duplicates(looks: NDArray[np.uint64], patients: NDArray[np.int64], ids: NDArray[np.int64]) -> NearDuplicates:
    """Near duplicates among images: their looks, patients and numbers, each ``(N,)``; the order does not matter.

    Time grows as N log N and is bounded (:data:`FARTHEST`); equal looks are counted without being paired.
    """
    if not len(looks):
        return NearDuplicates()
    holders = _Holders(looks, patients, ids)
    common = holders.patients_of_look > PLAIN_PATIENTS
    kept = np.flatnonzero(~common)
    firsts, seconds, complete = near_pairs(holders.looks[kept])
    different = same = 0
    listed: list[Pair] = []
    several = kept[holders.images_of_look[kept] > 1]
    for a, b in (*zip(several, several, strict=True), *zip(kept[firsts], kept[seconds], strict=True)):
        one, other = holders.of(a), holders.of(b)
        alike, total = _pairs_of(one, other)
        same += alike
        different += total - alike
        if total > alike:
            bits = int(np.bitwise_count(holders.looks[a] ^ holders.looks[b]))
            listed += {
                Pair(min(i, j), max(i, j), bits)
                for patient, (i, _) in one.items()
                for stranger, (j, _) in other.items()
                if patient != stranger
            }
            if len(listed) > 1000:
                listed = _first(listed)
    return NearDuplicates(different, same, tuple(_first(listed)), int(holders.images_of_look[common].sum()), complete)


class _Holders:
    """Who has which look: for each look its patients, with the first of their images that has it, and how many do."""

    def __init__(self, looks: NDArray[np.uint64], patients: NDArray[np.int64], ids: NDArray[np.int64]) -> None:
        order = np.lexsort((ids, patients, looks))
        looks, patients, ids = looks[order], patients[order], ids[order]
        look_begins = np.append(True, looks[1:] != looks[:-1])
        starts = np.flatnonzero(look_begins | np.append(True, patients[1:] != patients[:-1]))
        self.looks = looks[look_begins]
        """``(L,)``, ascending, each once."""
        self.images_of_look = np.diff(np.append(np.flatnonzero(look_begins), len(looks)))
        self._begins = np.append(np.flatnonzero(look_begins[starts]), len(starts))
        self.patients_of_look = np.diff(self._begins)
        self._patients, self._firsts = patients[starts], ids[starts]
        self._counts = np.diff(np.append(starts, len(looks)))

    def of(self, look: int) -> dict[int, tuple[int, int]]:
        """Patient -> first image and number of images, of the look at that position."""
        part = slice(self._begins[look], self._begins[look + 1])
        found = zip(self._firsts[part].tolist(), self._counts[part].tolist(), strict=True)
        return dict(zip(self._patients[part].tolist(), found, strict=True))


def _pairs_of(one: dict[int, tuple[int, int]], other: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Pairs of images between two looks, or within one (``one == other``): those of one patient, and all."""
    counts, others = ({patient: n for patient, (_, n) in side.items()} for side in (one, other))
    total, more = sum(counts.values()), sum(others.values())
    if one == other:
        return sum(n * (n - 1) // 2 for n in counts.values()), total * (total - 1) // 2
    return sum(n * others.get(patient, 0) for patient, n in counts.items()), total * more


def _first(pairs: list[Pair]) -> list[Pair]:
    return sorted(pairs, key=lambda pair: (pair.bits, pair.one, pair.other))[:LISTED]


def near_pairs(looks: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64], bool]:
    """Positions ``i < j`` of all pairs of ``looks`` (``(N,)``, ascending, each once) at most :data:`NEAR_BITS` apart.

    The third value says whether these are all.
    """
    count = len(looks)
    found: NDArray[np.int64] = np.empty(0, np.int64)
    complete = True
    for band in range(_BANDS):
        turned = _turned(looks, band * _BAND_BITS)
        for part in range(_PARTS):
            keys = _key(turned, part)
            order = np.argsort(keys, kind="stable")
            pairs, through = _neighbours(keys[order], looks[order], order)
            complete &= through
            found = np.unique(np.concatenate([found, pairs]))
            if len(found) > MOST_PAIRS:
                return *_split(found[:MOST_PAIRS], count), False
    return *_split(found, count), complete


def _turned(looks: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    """``looks`` rotated to the left: band after band comes to the top."""
    return looks if bits == 0 else (looks << np.uint64(bits)) | (looks >> np.uint64(64 - bits))


def _key(turned: NDArray[np.uint64], part: int) -> NDArray[np.uint64]:
    """The uppermost band, and a part of the rest: 28 bits."""
    band = turned >> np.uint64(64 - _BAND_BITS)
    inner = (turned >> np.uint64(part * _PART_BITS)) & np.uint64((1 << _PART_BITS) - 1)
    return (band << np.uint64(_PART_BITS)) | inner


def _neighbours(
    keys: NDArray[np.uint64], looks: NDArray[np.uint64], order: NDArray[np.int64]
) -> tuple[NDArray[np.int64], bool]:
    """Pairs (coded as smaller · N + larger position) of near looks with equal keys, and whether these are all."""
    count = len(keys)
    at = np.arange(count)
    found: list[NDArray[np.int64]] = []
    kept = 0
    for apart in range(1, FARTHEST + 1):
        at = at[at + apart < count]
        at = at[keys[at] == keys[at + apart]]
        if not at.size:
            return _joined(found), True
        near = at[np.bitwise_count(looks[at] ^ looks[at + apart]) <= NEAR_BITS]
        one, other = order[near], order[near + apart]
        found.append(np.minimum(one, other) * count + np.maximum(one, other))
        kept += near.size
        if kept > MOST_PAIRS:
            return _joined(found), False
    at = at[at + FARTHEST + 1 < count]
    return _joined(found), not bool((keys[at] == keys[at + FARTHEST + 1]).any())


def _joined(found: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate(found) if found else np.empty(0, np.int64)


def _split(coded: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return coded // max(count, 1), coded % max(count, 1)
