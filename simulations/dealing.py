"""How patients are dealt to sites and to splits once each site's shares are known.

Patients go, within a class (and split), to the site that is furthest below its share, those
with most images first; with one image each this is the method of largest remainders.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heapify, heapreplace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from common.randomness import generator

SPLITS = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)


@dataclass(frozen=True)
class Patients:
    """The cohort's ``P`` patients in the order of their names."""

    owner: NDArray[np.int64]  # (N,) image -> patient
    images: NDArray[np.int64]  # (P,)
    labelled: NDArray[np.int64]  # (P, C) images of each class
    stratum: NDArray[np.int64]  # (P,) class; C: labelled, but of no class; C + 1: unlabelled
    split: NDArray[np.int64]  # (P,) index in SPLITS, or -1 in a cohort without splits
    rank: NDArray[np.int64]  # (P,) random order

    @property
    def count(self) -> int:
        return len(self.images)

    @property
    def strata(self) -> int:
        return int(self.labelled.shape[1]) + 2

    @property
    def images_per_stratum(self) -> NDArray[np.float64]:
        """``(strata,)``"""
        return np.bincount(self.stratum, weights=self.images, minlength=self.strata).astype(np.float64)

    @property
    def may_train(self) -> NDArray[np.bool_]:
        """``(P,)`` patients that are, or may yet come to be, in split train."""
        return self.split <= TRAIN

    @property
    def given(self) -> bool:
        return bool(self.split[0] >= 0)


# -- dealing -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dealt:
    """Where each patient went."""

    site: NDArray[np.int64]  # (P,)
    split: NDArray[np.int64]  # (P,)


def deal_and_split(
    patients: Patients, shares: NDArray[np.float64], fractions: tuple[float, float, float], seed: int
) -> Dealt:
    """Deal by ``shares`` ``(sites, strata)`` whose columns sum to 1; then split, unless splits are given."""
    site = _deal(patients, shares, generator(seed, "partition", "ties").permutation(len(shares)).tolist())
    for split in range(len(SPLITS)) if patients.given else (-1,):
        _fill(patients, site, shares > 0.0, patients.split == split)
    return Dealt(site, patients.split if patients.given else split_within(patients, site, fractions, seed))


def _deal(patients: Patients, shares: NDArray[np.float64], ties: list[int]) -> NDArray[np.int64]:
    """Each patient's site: cell by cell (stratum × split), always to the site furthest below its
    share of the cell, then below its share of the split, then by a random order of sites."""
    sites = len(shares)
    cell = patients.stratum * 4 + patients.split + 1
    order = np.lexsort((patients.rank, -patients.images, cell))
    bounds = np.flatnonzero(np.diff(cell[order], prepend=-1, append=-1))
    cells = [order[start:stop] for start, stop in pairwise(bounds.tolist())]
    cells.sort(key=lambda members: -int(patients.images[members].sum()))
    per_split = np.zeros((patients.strata, len(SPLITS) + 1))  # the last for "no split given"
    np.add.at(per_split, (patients.stratum, patients.split), patients.images)
    of_split = shares @ per_split
    result = np.empty(patients.count, dtype=np.int64)
    for members in cells:
        sizes = patients.images[members].tolist()
        split = patients.split[members[0]]
        quota = (shares[:, patients.stratum[members[0]]] * sum(sizes)).tolist()
        also = of_split[:, split].tolist()
        heap = [(-round(quota[s], 6), -round(also[s], 6), ties[s], s) for s in range(sites) if quota[s] > 0.0]
        heapify(heap)
        chosen = []
        for size in sizes:
            below, of_all, tie, s = heap[0]
            heapreplace(heap, (round(below + size, 6), round(of_all + size, 6), tie, s))
            chosen.append(s)
        result[members] = chosen
        np.subtract.at(of_split, (result[members], split), patients.images[members])
    return result


def _fill(patients: Patients, site: NDArray[np.int64], allowed: NDArray[np.bool_], within: NDArray[np.bool_]) -> None:
    """Where rounding left a site no labelled patient ``within`` a split, move it the smallest one
    of the best supplied site, if there are as many patients as sites. Changes ``site`` in place."""
    unlabelled = patients.strata - 1
    counted = within & (patients.stratum != unlabelled)
    table = np.zeros((len(allowed), patients.strata), dtype=np.int64)
    np.add.at(table, (site[counted], patients.stratum[counted]), 1)
    if table.sum() < len(table):
        return
    for empty in np.flatnonzero(table.sum(axis=1) == 0).tolist():
        totals = table.sum(axis=1)
        usable = np.where(totals >= 2, (table * allowed[empty]).sum(axis=1), 0)
        if not usable.any():
            continue
        donor = int(np.argmax(np.where(usable > 0, totals, 0)))
        stratum = int(np.argmax(table[donor] * allowed[empty]))
        members = np.flatnonzero(counted & (site == donor) & (patients.stratum == stratum))
        moved = members[np.lexsort((patients.rank[members], patients.images[members]))[0]]
        site[moved] = empty
        table[donor, stratum] -= 1
        table[empty, stratum] += 1


def split_within(
    patients: Patients, site: NDArray[np.int64], fractions: tuple[float, float, float], seed: int
) -> NDArray[np.int64]:
    """``(P,)`` index in ``SPLITS`` for each patient, stratified by class within its site."""
    order = np.lexsort((generator(seed, "partition", "splits").permutation(patients.count), patients.stratum, site))
    group = site[order] * patients.strata + patients.stratum[order]
    bounds = np.flatnonzero(np.diff(group, prepend=-1, append=-1)).tolist()
    by_site: dict[int, list[list[int]]] = {}
    for start, stop in pairwise(bounds):
        by_site.setdefault(int(site[order[start]]), []).append(order[start:stop].tolist())
    result = np.empty(patients.count, dtype=np.int64)
    for groups in by_site.values():
        groups.sort(key=len, reverse=True)
        parts: tuple[list[int], list[int], list[int]] = ([], [], [])
        for members in groups:
            _split_class(members, parts, fractions)
        if sum(map(len, parts)) >= 3:
            for empty in (part for part in parts if not part):
                empty.append(max(parts, key=len).pop(0))  # of the commonest class
        for split, chosen in enumerate(parts):
            result[chosen] = split
    return result


def _split_class(members: list[int], parts: tuple[list[int], ...], fractions: tuple[float, float, float]) -> None:
    """Add one class's patients to a site's parts: the first to train, then test and val one each
    where there are three, the rest to the part furthest below its fraction, ties by the site's."""
    count, before = len(members), [len(part) for part in parts]
    given = [0, 0, 0]
    total = sum(before) + count

    def lack(split: int) -> tuple[float, float, int]:
        of_site = fractions[split] * total - before[split] - given[split]
        return round(fractions[split] * count - given[split], 9), round(of_site, 9), split

    for position, member in enumerate(members):
        if position == 0:
            split = TRAIN
        elif position == 1 and count == 2:
            split = max((VAL, TEST), key=lambda s: lack(s)[1:])
        elif position < 3 <= count:
            split = 3 - position
        else:
            split = max(range(3), key=lack)
        given[split] += 1
        parts[split].append(member)
