"""NIH ChestX-ray14 as downloaded: ``Data_Entry_2017*.csv`` beside ``images/`` or ``images_001/images/`` ….

Wang et al. 2017, doi:10.1109/CVPR.2017.369. Both ``label`` and ``finding`` hold the
values of "Finding Labels" as the sheet spells them ("No Finding", "Pneumonia", …), so
a study maps them with ``classes:`` and ``data.other``.

Where ``test_list.txt`` is there, its images are the test split. The published lists
have no validation part, so of the other patients a share is drawn for it, by the
study's seed and in the proportion of ``data.split``. Without the lists ``split`` is
empty and is made by patient.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from common.errors import DataError
from common.randomness import seed_for
from common.sheet import Sheet, plain_age, values
from common.study import Study
from simulations.datasets.decode import read_image
from simulations.datasets.source import Inside, Item, UnreadableImage, owner, shown

SHEETS = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
TEST_LIST, TRAIN_LIST = "test_list.txt", "train_val_list.txt"
OLDEST = 120
"""Ages above are typing errors of the sheet (it has 414); such an age is left empty."""
_COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender", "View Position")


def find(path: Path) -> Path | None:
    """The sheet, newest edition first, or ``None`` where there is none."""
    return next((path / name for name in SHEETS if (path / name).is_file()), None)


class NihSource:
    """Rows whose image is not there are left out and counted: few people download all twelve archives."""

    synthetic = False

    def __init__(self, study: Study, path: Path) -> None:
        if study.data.label_column not in ("label", "finding"):
            raise DataError(
                f"{path.name}: data.label_column {study.data.label_column!r} is not known for ChestX-ray14; "
                "use label, which holds the values of 'Finding Labels'"
            )
        self.name = "NIH ChestX-ray14"
        self._inside = Inside(path.parent)
        sheet = Sheet(path, loose=True)
        for column in _COLUMNS:
            sheet.require(column, "ChestX-ray14 has it")
        files = dict(self._files(path.parent))
        split = _splitter(study, path.parent)
        items: dict[str, Item] = {}
        absent = 0
        for line, cells in sheet.rows(_COLUMNS):
            name = cells["Image Index"]
            if name not in files:
                absent += 1
                continue
            if files[name] in items:
                raise DataError(f"{path.name} line {line}: {shown(name)} stands there twice; keep one row per image")
            items[files[name]] = _item(files[name], cells, split)
        if not items:
            raise DataError(
                f"{path.name}: none of its {absent} images is under images/ or images_*/images/; "
                "unpack the archives there"
            )
        self.items: tuple[Item, ...] = tuple(items.values())
        self.notes: tuple[str, ...] = (
            (f"{absent} of {absent + len(items)} rows of {path.name} have no image here and are left out",)
            if absent
            else ()
        )

    def read(self, item: Item) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """See :class:`simulations.datasets.Source`."""
        try:
            return read_image(self._inside.path(item.key), item.key), None
        except ValueError as error:
            raise UnreadableImage(item.key, str(error)) from None

    def _files(self, root: Path) -> Iterator[tuple[str, str]]:
        """File name and key of every PNG under ``images*``."""
        for outer in sorted(folder for folder in root.glob("images*") if folder.is_dir()):
            for folder in (outer, outer / "images"):
                if not folder.is_dir():
                    continue
                place = folder.relative_to(root).as_posix()
                try:
                    with os.scandir(folder) as entries:
                        names = sorted(entry.name for entry in entries if entry.name.lower().endswith(".png"))
                    yield from ((name, self._inside.key(f"{place}/{name}")) for name in names)
                except ValueError as error:
                    raise DataError(f"{place}: {error}; move the images into the folder itself") from None


def _item(key: str, cells: Mapping[str, str], split: Callable[[str, str], str]) -> Item:
    patient, known = owner(cells["Patient ID"], key)
    age = plain_age(cells["Patient Age"])
    found = values(cells["Finding Labels"])
    return Item(
        key=key,
        patient=patient,
        patient_known=known,
        labels={"label": found, "finding": found},
        split=split(cells["Image Index"], patient),
        attributes={
            "sex": cells["Patient Gender"],
            "age": "" if age.isdecimal() and int(age) > OLDEST else age,
            "view": cells["View Position"],
        },
    )


def _splitter(study: Study, root: Path) -> Callable[[str, str], str]:
    """Image name and patient -> split, from the published lists where they are."""
    test, rest = _names(root / TEST_LIST), _names(root / TRAIN_LIST)
    if test is None:
        return lambda name, patient: ""
    train_share, val_share, _ = study.data.split
    below = val_share / (train_share + val_share) * 2**63

    def split(name: str, patient: str) -> str:
        if name in test:
            return "test"
        if rest is not None and name not in rest:
            raise DataError(
                f"{shown(name)} stands in neither {TEST_LIST} nor {TRAIN_LIST}; remove both or add it to one"
            )
        return "val" if seed_for(study.seed, "nih", "validation", patient) < below else "train"

    return split


def _names(path: Path) -> frozenset[str] | None:
    if not path.is_file():
        return None
    try:
        return frozenset(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError):
        raise DataError(f"{path.name}: cannot be read as UTF-8 text; download it again or remove it") from None
