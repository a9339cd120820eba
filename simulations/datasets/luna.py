"""Patches cut out of LUNA16 (LIDC-IDRI): ``candidates*.csv`` beside ``patches/``, one file a row that was cut out.

Setio et al. 2017, doi:10.1016/j.media.2017.06.015. A patch is called as the number of its row, counted from 0 under
the header (``patches/17.npy``, ``patches/000017.png``); ``.npy`` holds Hounsfield units, ``(H, W)`` int16. Column
``class`` is 1 for a nodule, else 0; the patient is the scan (``seriesuid``): the set has one of each. Rows without a
patch are left out and counted: of 750,000 candidates few are cut out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from common.errors import DataError
from common.sheet import Sheet
from common.study import Study
from simulations.datasets.files import Entry, FilesSource, is_image, key_of, only_labels
from simulations.datasets.source import Inside, Item, shown

PATCHES: Final = "patches"
LABELS: Final = {"0": "normal", "1": "nodule"}


def find(path: Path) -> Path | None:
    """The list of candidates, the newest edition last by name, where ``patches/`` is beside it."""
    lists = sorted(path.glob("candidates*.csv")) if (path / PATCHES).is_dir() else []
    return lists[-1] if lists else None


def open_(study: Study, path: Path) -> FilesSource:
    """The source. Raises :class:`DataError` for rows or files that contradict each other."""
    only_labels(study, path.name, ("label",), "normal, nodule")
    base = path.parent
    inside = Inside(base)
    files: dict[int, Path] = {}
    for file in sorted((base / PATCHES).iterdir()):
        if file.stem.isdecimal() and (file.suffix == ".npy" or is_image(file)):
            if int(file.stem) in files:
                raise DataError(f"{PATCHES}: {shown(file.name)} and another file are both of row {int(file.stem)}")
            files[int(file.stem)] = file
    sheet = Sheet(path)
    for column in ("seriesuid", "class"):
        sheet.require(column, "LUNA16's candidates have it")
    entries, rows = [], 0
    for number, (line, cells) in enumerate(sheet.rows(("seriesuid", "class"))):
        rows += 1
        found = files.pop(number, None)
        if found is None:
            continue
        if cells["class"] not in LABELS or not cells["seriesuid"]:
            raise DataError(f"{path.name} line {line}: needs a seriesuid and class 0 or 1; mend that row")
        item = Item(
            key=key_of(inside, base, found),
            patient=cells["seriesuid"],
            patient_known=True,
            labels={"label": (LABELS[cells["class"]],)},
            attributes={"modality": "CT"},
        )
        entries.append(Entry(item))
    if files or not entries:
        raise DataError(
            f"{path.name}: {len(files)} of {len(files) + len(entries)} patches are of no row of it; name each as its "
            "row's number, from 0 under the header"
        )
    notes = [f"{rows - len(entries)} of {rows} candidates have no patch here and are left out"]
    return FilesSource("LUNA16 patches", inside, entries, notes if rows > len(entries) else [])
