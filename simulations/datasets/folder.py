"""A folder of images with a label sheet: ``labels.csv``.

``file,label[,finding,patient,sex,age,view,site,device,split,mask]``, where ``file`` and
``mask`` are relative to the folder. ``label``, ``finding`` and the study's
``data.label_column`` are kept as labels (several values in a cell separated by
``|``); ``sex``, ``age``, ``view``, ``site``, ``device`` and the study's
``partition.column`` as attributes. No other column is read: what a study does not
use does not enter a vault.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from common.errors import DataError
from common.sheet import Sheet, plain_age, values
from common.study import Study
from simulations.datasets.decode import read_image, read_mask
from simulations.datasets.source import Inside, Item, UnreadableImage, owner, shown

SHEET = "labels.csv"
SPLITS = ("train", "val", "test", "")
LABELS = ("label", "finding")
ATTRIBUTES = ("sex", "age", "view", "site", "device")
STRUCTURE = ("file", "patient", "split", "mask")


class FolderSource:
    """Images named by ``labels.csv``; opened without reading one of them.

    Raises :class:`DataError` for a sheet that cannot be trusted. A file that is
    missing or damaged is found when it is read (:class:`UnreadableImage`).
    """

    synthetic = False
    notes: tuple[str, ...] = ()

    def __init__(self, study: Study, folder: Path) -> None:
        self.name = f"folder {folder.resolve().name}"
        self._inside = Inside(folder)
        self._masks: dict[str, str] = {}
        sheet = Sheet(folder / SHEET)
        label_column, column = study.data.label_column, study.partition.column
        sheet.require("file", "the image's name relative to the folder")
        sheet.require(label_column, "the study's data.label_column")
        if label_column in STRUCTURE:
            raise DataError(f"data.label_column: {label_column!r} cannot be a label; name a column that holds labels")
        self._labels = [name for name in sheet.columns if name in {*LABELS, label_column, *study.evaluation.readers}]
        self._attributes = [
            name for name in sheet.columns if name in {*ATTRIBUTES, column} and name and name not in STRUCTURE
        ]
        used = dict.fromkeys([*(name for name in STRUCTURE if name in sheet.columns), *self._labels, *self._attributes])
        lines: dict[str, int] = {}
        items = []
        for line, cells in sheet.rows(list(used)):
            key = self._key(cells["file"], "file", line)
            if key in lines:
                raise DataError(
                    f"{SHEET} line {line}: {shown(key)} stands on line {lines[key]} too; keep one row per file"
                )
            lines[key] = line
            items.append(self._item(key, line, dict(cells)))
        if not items:
            raise DataError(f"{SHEET}: no rows under the header; add one row per image")
        self.items: tuple[Item, ...] = tuple(items)

    def read(self, item: Item) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """See :class:`simulations.datasets.Source`."""
        try:
            pixels = read_image(self._inside.path(item.key), item.key)
            if item.key not in self._masks:
                return pixels, None
            return pixels, read_mask(self._inside.path(self._masks[item.key]), item.key, pixels.shape)
        except ValueError as error:
            raise UnreadableImage(item.key, str(error)) from None

    def _item(self, key: str, line: int, cells: dict[str, str]) -> Item:
        split = cells.get("split", "").lower()
        if split not in SPLITS:
            raise DataError(f"{SHEET} line {line}: split {shown(cells['split'])}; it must be train, val, test or empty")
        if cells.get("mask"):
            self._masks[key] = self._key(cells["mask"], "mask", line)
        if "age" in self._attributes:
            cells["age"] = plain_age(cells["age"])
        patient, known = owner(cells.get("patient", ""), key)
        return Item(
            key=key,
            patient=patient,
            patient_known=known,
            labels={name: values(cells[name]) for name in self._labels},
            split=split,
            attributes={name: cells[name] for name in self._attributes},
        )

    def _key(self, name: str, column: str, line: int) -> str:
        if not name:
            raise DataError(f"{SHEET} line {line}: {column} is empty; name the image's file")
        try:
            return self._inside.key(name)
        except ValueError as error:
            raise DataError(
                f"{SHEET} line {line}: {column} {shown(name)} {error}; only files inside the folder are read"
            ) from None
