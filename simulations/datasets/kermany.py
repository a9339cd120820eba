"""Kermany's paediatric chest X-rays as downloaded: ``chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg``.

Kermany et al. 2018, doi:10.1016/j.cell.2018.02.010. Patients stand in the file names:

- ``person123_bacteria_45.jpeg`` is patient ``P-123``, finding bacteria;
- ``IM-0115-0001.jpeg`` and ``NORMAL2-IM-0115-0001.jpeg`` are patient ``N-115``;
- ``BACTERIA-30629-0001.jpeg``, ``VIRUS-…`` and ``NORMAL-…`` (the third release) are ``Z-30629``.

Whether ``person1_bacteria`` and ``person1_virus``, or the two NORMAL series, are one
child is not documented. They are taken for one: that can only keep images
together that could have been apart, never part a patient.

The folders' own split puts patients into several parts and its ``val`` has 16
images, so it is **not used**: ``split`` is empty and is made by patient. ``notes``
says how many patients it would have parted.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from common.errors import DataError
from common.study import Study
from simulations.datasets.decode import read_image
from simulations.datasets.source import Inside, Item, UnreadableImage, owner, shown

PARTS = ("train", "val", "test")
CLASSES = {"NORMAL": "normal", "PNEUMONIA": "pneumonia"}
SUFFIXES = (".jpeg", ".jpg", ".png")

_PERSON = re.compile(r"person0*(\d+)_(bacteria|virus)_", re.IGNORECASE)
_NORMAL = re.compile(r"(?:NORMAL2-)?IM-0*(\d+)-", re.IGNORECASE)
_THIRD = re.compile(r"(NORMAL|BACTERIA|VIRUS)-0*(\d+)-", re.IGNORECASE)


def find(path: Path) -> Path | None:
    """The folder that holds ``train/NORMAL`` or the like: ``path`` itself or ``path/chest_xray``."""
    for base in (path, path / "chest_xray"):
        if any((base / part / folder).is_dir() for part in PARTS for folder in CLASSES):
            return base
    return None


class KermanySource:
    """``label`` is normal or pneumonia, ``finding`` normal, bacteria or virus (read off the file name)."""

    synthetic = False

    def __init__(self, study: Study, base: Path) -> None:
        if study.data.label_column not in ("label", "finding"):
            raise DataError(
                f"chest_xray: has no column {study.data.label_column!r}; "
                "set data.label_column: label (normal, pneumonia) or finding (normal, bacteria, virus)"
            )
        self.name = "Kermany chest X-rays"
        self._inside = Inside(base)
        self.items: tuple[Item, ...] = tuple(
            self._item(part, folder, file)
            for part in PARTS
            for folder in CLASSES
            if (base / part / folder).is_dir()
            for file in sorted((base / part / folder).iterdir())
            if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
        )
        if not self.items:
            raise DataError("chest_xray: the folders hold no .jpeg files; unpack the download again")
        self.notes: tuple[str, ...] = (_leak(self.items),)

    def read(self, item: Item) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """See :class:`simulations.datasets.Source`."""
        try:
            return read_image(self._inside.path(item.key), item.key), None
        except ValueError as error:
            raise UnreadableImage(item.key, str(error)) from None

    def _item(self, part: str, folder: str, file: Path) -> Item:
        try:
            key = self._inside.key(f"{part}/{folder}/{file.name}")
        except ValueError as error:
            raise DataError(f"chest_xray: {part}/{folder}/{shown(file.name)} {error}; copy the file in") from None
        patient, finding = who(file.name)
        if folder == "NORMAL":
            finding = "normal"
        name, known = owner(patient, key)
        labels = {"label": (CLASSES[folder],), "finding": (finding,) if finding else ()}
        return Item(key=key, patient=name, patient_known=known, labels=labels)


def who(name: str) -> tuple[str, str]:
    """Patient and finding that a file name tells; ``""`` for what it does not."""
    if match := _PERSON.match(name):
        return f"P-{match[1]}", match[2].lower()
    if match := _NORMAL.match(name):
        return f"N-{match[1]}", "normal"
    if match := _THIRD.match(name):
        return f"Z-{match[2]}", match[1].lower()
    return "", ""


def _leak(items: tuple[Item, ...]) -> str:
    parts: dict[str, set[str]] = defaultdict(set)
    for item in items:
        parts[item.patient].add(item.key.partition("/")[0])
    parted = sum(len(found) > 1 for found in parts.values())
    return (
        f"the folders' own split is not used: it puts {parted} of {len(parts)} patients into more than one part; "
        "splits are made by patient"
    )
