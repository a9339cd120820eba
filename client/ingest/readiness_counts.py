"""What a vault holds, in counts: :func:`examine`. No name or pseudonym is in the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from client.ingest.kinds import ATTRIBUTES
from client.ingest.readers import PREFIX, Agreement, agreement
from client.ingest.readiness_columns import Codes, Columns, Words
from client.ingest.readiness_looks import NearDuplicates, Twins, near_duplicates, twins
from client.ingest.readiness_quality import Outlier, outliers
from client.vault.records import Row
from client.vault.store import Vault

CROSSED = ("split", "device", "view")
"""What each class is counted against."""
MANY_IMAGES = 20
"""A patient with more images than this, and than ten times the median, has very many."""
_XRAY = frozenset(("CR", "DX", "MG", "XA", "RF", "RG", "CT", "PX", "IO"))
_VOLUMES = frozenset(("CT", "MR", "PT", "NM"))
_ONLY: Mapping[str, frozenset[str]] = {
    "view": frozenset(("CR", "DX", "MG", "RG", "")),
    "laterality": frozenset(("MG", "OP", "OPT")),
    "kvp": _XRAY,
    "exposure_mas": _XRAY,
    "sequence": frozenset(("MR",)),
    "field_strength_t": frozenset(("MR",)),
    "slice_thickness_mm": _VOLUMES,
    "slice_position_mm": _VOLUMES,
    "kernel": frozenset(("CT",)),
}
"""Attributes that only images of some modalities have; where the modality is unknown (``""``) most are not missed."""
_NEVER_MISSED = ("slice", "frame", "contrast", "lossy", "photometric")


class Count(NamedTuple):
    images: int
    patients: int


class Missing(NamedTuple):
    """Images without an attribute, of those that should have it."""

    without: int
    of: int


class Spread(NamedTuple):
    least: int
    median: int
    most: int


class Busy(NamedTuple):
    """A patient with very many images, by the number of the first."""

    first: int
    images: int


NONE, NO_SIZE, NO_PAIRS = Count(0, 0), Spread(0, 0, 0), NearDuplicates()
Crossed = Mapping[tuple[str, str], Count]
"""(class, other value) -> count; without images that lack either."""


@dataclass(frozen=True)
class Readiness:
    """A vault in counts. Words (classes, devices …) are the hospital's own; ``""`` stands for none."""

    synthetic: bool = False
    generation: int = 0
    images: int = 0
    patients: int = 0
    labelled: Count = NONE
    """With a value in a label column; a reader's own reading is not yet a label."""
    anonymous: int = 0
    """Images of unknown patients: each file counts as a patient of its own."""
    masks: int = 0
    boxes: int = 0
    classes: Mapping[str, Mapping[str, Count]] = field(default_factory=dict)
    """Label column -> class -> count. An image with two findings counts for both."""
    groups: Mapping[str, Mapping[str, Count]] = field(default_factory=dict)
    """``split``, ``sex``, ``age`` … -> value -> count."""
    crossed: Mapping[str, Mapping[str, Crossed]] = field(default_factory=dict)
    """``split``, ``device``, ``view`` -> label column -> counts."""
    split_patients: int = 0
    """Patients with images in two splits."""
    missing: Mapping[str, Missing] = field(default_factory=dict)
    per_patient: Spread = NO_SIZE
    """Images of a patient."""
    busy: tuple[Busy, ...] = ()
    """All patients with very many images, most first."""
    near: NearDuplicates = NO_PAIRS
    """Candidates by hash and measures."""
    twins: tuple[Twins, ...] = ()
    """Of ``near.pairs`` those whose pixels are nearly the same: one picture under two patients."""
    odd: int = 0
    """Images with an unusual measure."""
    outliers: tuple[Outlier, ...] = ()
    """The most unusual of them."""
    forms: Mapping[str, int] = field(default_factory=dict)
    """Type of pixels, e.g. ``uint16 grey`` -> images."""
    shorter: Spread = NO_SIZE
    longer: Spread = NO_SIZE
    """Sides in pixels."""
    lossy: int = 0
    agreements: tuple[Agreement, ...] = ()
    """Between every two readers whose readings are kept."""


def examine(vault: Vault) -> Readiness:
    """Count what is in ``vault``. Rows are read one at a time; of each some numbers are kept.

    Pixels are read of at most 400 images, to tell near duplicates. Raises :class:`VaultError`.
    """
    return examine_rows(vault.each(), vault.read, synthetic=vault.synthetic, generation=vault.generation)


def examine_rows(
    rows: Iterable[Row], read: Callable[[int], NDArray[Any]], *, synthetic: bool, generation: int
) -> Readiness:
    """:func:`examine` for rows from anywhere; their order does not matter. ``read`` gives an image's pixels."""
    columns = Columns(rows)
    if not len(columns):
        return Readiness(synthetic=synthetic, generation=generation)
    patients, ids = columns.patients(), columns.ids
    labels = {name: words for name, words in sorted(columns.labels.items()) if not name.startswith(PREFIX)}
    labelled = np.zeros(len(columns), dtype=bool)
    for words in labels.values():
        labelled |= words.codes > 0
    sides = {"split": columns.splits, **columns.attributes}
    positions, looks = columns.looks()
    seen = {name: values[positions] for name, values in columns.measures()}
    near = near_duplicates(looks, patients[positions], ids[positions], seen)
    odd, listed = outliers(columns.measures(), columns.attributes["modality"], ids)
    shorter, longer = (_spread(side) for side in columns.sides())
    per_patient = np.bincount(patients)
    return Readiness(
        synthetic=synthetic,
        generation=generation,
        images=len(columns),
        patients=len(per_patient),
        labelled=Count(int(labelled.sum()), len(np.unique(patients[labelled]))),
        anonymous=columns.anonymous,
        masks=columns.masks,
        boxes=columns.boxes,
        classes={name: dict(_counted(words, patients)) for name, words in labels.items()},
        groups={name: dict(_counted(words, patients)) for name, words in sides.items()},
        crossed={
            side: {name: dict(_crossed(words, sides[side], patients)) for name, words in labels.items()}
            for side in CROSSED
        },
        split_patients=_in_two(columns.splits.codes, patients),
        missing=_missing(columns),
        per_patient=_spread(per_patient),
        busy=_busy(per_patient, patients, ids),
        near=near,
        twins=twins(near.pairs, read),
        odd=odd,
        outliers=listed,
        forms=dict(sorted(columns.forms().items())),
        shorter=shorter,
        longer=longer,
        lossy=columns.lossy,
        agreements=tuple(_agreements(columns.labels)),
    )


def _counted(words: Words, patients: Codes) -> Iterator[tuple[str, Count]]:
    positions, codes, values = words.spread()
    for code, count in _tally(codes, patients[positions]):
        yield values[code], count


def _crossed(words: Words, side: Words, patients: Codes) -> Iterator[tuple[tuple[str, str], Count]]:
    positions, codes, values = words.spread()
    against = side.codes[positions]
    for both, count in _tally(codes * len(side.words) + against, patients[positions]):
        value, other = values[both // len(side.words)], side.words[both % len(side.words)]
        if value and other:
            yield (value, other[0]), count


def _tally(codes: Codes, patients: Codes) -> Iterator[tuple[int, Count]]:
    """Images and patients by code."""
    many = int(patients.max(initial=0)) + 1
    found, images = np.unique(codes, return_counts=True)
    owners = np.unique(np.unique(codes * many + patients) // many, return_counts=True)[1]
    for code, count, people in zip(found.tolist(), images.tolist(), owners.tolist(), strict=True):
        yield code, Count(count, people)


def _in_two(splits: Codes, patients: Codes) -> int:
    many = int(splits.max()) + 1
    return int((np.unique(np.unique(patients * many + splits) // many, return_counts=True)[1] > 1).sum())


def _spread(values: NDArray[np.int64]) -> Spread:
    return Spread(int(values.min()), int(np.median(values)), int(values.max()))


def _missing(columns: Columns) -> dict[str, Missing]:
    counts = columns.attributes["modality"]
    of = {
        (word or ("",))[0]: count
        for word, count in zip(
            counts.words, np.bincount(counts.codes, minlength=len(counts.words)).tolist(), strict=True
        )
    }
    result = {}
    for name in ATTRIBUTES:
        asked = [modality for modality in of if name not in _ONLY or modality in _ONLY[name]]
        images = sum(of[modality] for modality in asked)
        if images and name not in _NEVER_MISSED:
            result[name] = Missing(images - sum(columns.has.get(m, {}).get(name, 0) for m in asked), images)
    return result


def _busy(per_patient: Codes, patients: Codes, ids: Codes) -> tuple[Busy, ...]:
    many = np.flatnonzero(per_patient > max(MANY_IMAGES, 10 * float(np.median(per_patient))))
    firsts = np.full(len(per_patient), np.iinfo(np.int64).max)
    np.minimum.at(firsts, patients, ids)
    found = (Busy(int(firsts[patient]), int(per_patient[patient])) for patient in many)
    return tuple(sorted(found, key=lambda busy: (-busy.images, busy.first)))


def _agreements(labels: Mapping[str, Words]) -> Iterator[Agreement]:
    """As ``readers.agreements``, from counts."""
    readers = sorted(name for name in labels if name.startswith(PREFIX))
    for one, other in combinations(readers, 2):
        first, second = labels[one], labels[other]
        found, counts = np.unique(first.codes * len(second.words) + second.codes, return_counts=True)
        pairs = (
            ("|".join(first.words[both // len(second.words)]), "|".join(second.words[both % len(second.words)]))
            for both, count in zip(found.tolist(), counts.tolist(), strict=True)
            for _ in range(count)
        )
        yield agreement(pairs, readers=(one.removeprefix(PREFIX), other.removeprefix(PREFIX)))
