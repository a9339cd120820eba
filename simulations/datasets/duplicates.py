"""Images that stand in a data set twice, and splits that part them.

Public sets without patients are often collections of other sets, and hold an image several times: once under
training and once under test it makes a result look better than it is. Two images are near-duplicates where their
thumbnails, 32 × 32 averages of grey values, correlate at :data:`ALIKE` or more. Of 800 real images each was found
again after JPEG of quality 10, at half or twice the size, with another gain, offset or gamma (1.3), or noise of 10 of
256 grey values. After a turn by 1° 85% were, after cutting off 2% on each side 2%; turned by 3°, mirrored or with
equalised contrast (CLAHE) none.

Whoever is joined by a chain of near-duplicates becomes one unit, with one patient's name: named patients too, since two
people do not have the same image.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from common.study import Study
from simulations.datasets.derived import ATTRIBUTE, DerivedSource, with_splits
from simulations.datasets.source import Item, Source, UnreadableImage

SIDE = 32
ALIKE = 0.99
"""Of 6,625 real images (brain MRI, chest radiographs of children and adults) 89 pairs have equal pixels; the most alike
of the other 22 million pairs, two slices of one brain by their looks, is at 0.982, and of two patients at 0.975."""
_FLAT = 1e-3  # relative deviation below which an image has no pattern to compare
_AXES = 16


def grouped(study: Study, source: Source) -> DerivedSource:
    """``source`` with near-duplicates under one patient; where such a unit stood in two splits, splits are made anew.

    That is done for every source of images which such a unit touches, and told in the notes. Reads every image once;
    one that cannot be read is alike to none.
    """
    alike = _alike_rows(source)
    groups = _groups(source.items, alike)
    items = _united(source.items, groups)
    notes = [*source.notes, _told(source.items, groups, len(np.unique(alike)))]
    torn = [rows for rows in groups if len({items[row].split for row in rows}) > 1]
    if torn:
        affected = _affected(items, torn)
        mine = [row for row, item in enumerate(items) if item.attributes.get(ATTRIBUTE, "") in affected]
        for row, item in zip(mine, with_splits(study, [items[row] for row in mine]), strict=True):
            items[row] = item
        where = ", ".join(sorted(affected - {""}))
        notes.append(
            f"{where or 'the data'}: the given splits part {len(torn)} of these units, so a test would be of images "
            "that were trained on; they are not used, and splits were made anew by unit"
        )
    rows = ((item, source, original) for item, original in zip(items, source.items, strict=True))
    return DerivedSource(source.name, source.synthetic, notes, rows)


def thumbnail(pixels: NDArray[Any]) -> NDArray[np.float32] | None:
    """``(1024,)`` with mean 0 and length 1, so products are correlations; ``None`` for an image without contrast."""
    grey = pixels.astype(np.float32)
    if grey.ndim == 3:
        grey = grey.mean(axis=2)
    small = np.asarray(cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.float64).ravel()
    small -= small.mean()
    length = float(np.linalg.norm(small))
    if length <= _FLAT * SIDE * max(float(np.abs(grey).max(initial=0.0)), 1.0):
        return None
    return (small / length).astype(np.float32)


def pairs(thumbnails: NDArray[np.float32], alike: float = ALIKE) -> NDArray[np.int64]:
    """All pairs ``(P, 2)`` of rows whose correlation is at least ``alike``; equal rows only with the first of them.

    Exact: a projection shortens distances, and at a correlation *r* unit vectors are √(2 − 2r) apart, so a search in
    the axes of largest variance loses none.
    """
    unique, first, of = np.unique(thumbnails, axis=0, return_index=True, return_inverse=True)
    same = np.column_stack([first[of.ravel()], np.arange(len(thumbnails))])
    same = same[same[:, 0] != same[:, 1]]
    wide = unique.astype(np.float64)
    _, axes = np.linalg.eigh(wide.T @ wide)
    near = cKDTree(wide @ axes[:, -_AXES:]).query_pairs(np.sqrt(2.0 - 2.0 * alike) + 1e-6, output_type="ndarray")
    close = np.concatenate([_alike(wide, block, alike) for block in np.array_split(near, len(near) // 4096 + 1)])
    return np.asarray(np.concatenate([same, first[close]]), np.int64)


def _alike(vectors: NDArray[np.float64], block: NDArray[np.int64], alike: float) -> NDArray[np.int64]:
    return np.asarray(block[(vectors[block[:, 0]] * vectors[block[:, 1]]).sum(axis=1) >= alike])


def _alike_rows(source: Source) -> NDArray[np.int64]:
    """Pairs ``(P, 2)`` of rows of ``source.items`` that are near-duplicates and join all of them."""
    seen: list[int] = []
    found: list[NDArray[np.float32]] = []
    for row, item in enumerate(source.items):
        try:
            small = thumbnail(source.read(item)[0])
        except UnreadableImage:
            continue
        if small is not None:
            seen.append(row)
            found.append(small)
    return np.array(seen)[pairs(np.stack(found))] if found else np.empty((0, 2), np.int64)


def _groups(items: Sequence[Item], alike: NDArray[np.int64]) -> list[list[int]]:
    """Rows that are one unit, for each unit that has near-duplicates: all images of the patients that those join."""
    units: dict[str, int] = {}
    unit = np.array([units.setdefault(item.patient, len(units)) for item in items])
    links = coo_array((np.ones(len(alike)), (unit[alike[:, 0]], unit[alike[:, 1]])), shape=(len(units), len(units)))
    _, component = connected_components(links, directed=False)
    together: dict[int, list[int]] = defaultdict(list)
    for row, of in enumerate(component[unit].tolist()):
        together[of].append(row)
    touched = set(component[unit[alike.ravel()]].tolist())
    return [rows for of, rows in together.items() if of in touched]


def _united(items: Sequence[Item], groups: Sequence[Sequence[int]]) -> list[Item]:
    """``items`` with one patient a group: the first by name, of the named ones where there are such."""
    result = list(items)
    for rows in groups:
        known = [items[row].patient for row in rows if items[row].patient_known]
        patient = min(known or [items[row].patient for row in rows])
        for row in rows:
            result[row] = replace(items[row], patient=patient, patient_known=bool(known))
    return result


def _affected(items: Sequence[Item], torn: Sequence[Sequence[int]]) -> set[str]:
    """The sources to split anew: those of torn groups, and whoever shares a patient with them."""
    of: Mapping[str, set[str]] = defaultdict(set)
    for item in items:
        of[item.patient].add(item.attributes.get(ATTRIBUTE, ""))
    affected = {source for rows in torn for source in of[items[rows[0]].patient]}
    while more := {source for several in of.values() if several & affected for source in several} - affected:
        affected |= more
    return affected


def _told(items: Sequence[Item], groups: Sequence[Sequence[int]], duplicates: int) -> str:
    if not groups:
        return f"data.group_duplicates: no near-duplicates among {len(items)} images"
    joined = sum(len({items[row].patient for row in rows if items[row].patient_known}) > 1 for rows in groups)
    text = (
        f"data.group_duplicates: {duplicates} of {len(items)} images have near-duplicates; with those they are "
        f"{len(groups)} unit{'s' * (len(groups) > 1)}, each counted as one patient"
    )
    return f"{text}; {joined} of these unite{'s' * (joined == 1)} named patients" if joined else text
