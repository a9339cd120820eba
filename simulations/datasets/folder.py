"""A folder of images with a label sheet: ``labels.csv``.

``file,label[,finding,patient,sex,age,view,site,device,split,mask]``, where ``file`` and
``mask`` are relative to the folder. ``label``, ``finding`` and the study's
``data.label_column`` are kept as labels (several values in a cell separated by
``|``); ``sex``, ``age``, ``view``, ``site``, ``device`` and the study's
``partition.column`` as attributes. No other column is read: what a study does not
use does not enter a vault.

A ``boxes.csv`` beside it (``file,label,x,y,width,height``, see :mod:`client.ingest.boxes`) becomes weak masks: all that
lies in a box. An image without a row there has an empty mask, so the sheet must name every finding; a mask that
``labels.csv`` names is taken instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from client.ingest.boxes import BoxSheet, mask_from
from client.ingest.kinds import Identity
from common.errors import DataError
from common.sheet import Sheet, plain_age, values
from common.study import Study
from simulations.datasets.decode import read_image, read_mask
from simulations.datasets.source import Inside, Item, UnreadableImage, owner, shown

SHEET = "labels.csv"
BOXES = "boxes.csv"
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
        self._boxes = BoxSheet.load(folder / BOXES) if (folder / BOXES).is_file() else None
        self.notes: tuple[str, ...] = self._told_of_boxes() if self._boxes else ()

    def read(self, item: Item) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """See :class:`simulations.datasets.Source`."""
        try:
            pixels = read_image(self._inside.path(item.key), item.key)
            if item.key not in self._masks:
                return pixels, self._boxed(item, pixels.shape)
            return pixels, read_mask(self._inside.path(self._masks[item.key]), item.key, pixels.shape)
        except ValueError as error:
            raise UnreadableImage(item.key, str(error)) from None

    def _boxed(self, item: Item, shape: tuple[int, ...]) -> NDArray[Any] | None:
        if self._boxes is None:
            return None
        boxes = self._boxes.lookup(item.key, Identity())
        if any(box.x + box.width > shape[1] + 1 or box.y + box.height > shape[0] + 1 for box in boxes):
            raise UnreadableImage(item.key, f"a box of {BOXES} reaches out of the image; give it in the image's pixels")
        return mask_from(boxes, (shape[0], shape[1]))

    def _told_of_boxes(self) -> tuple[str, ...]:
        """That masks are weak; raises :class:`DataError` where rows name no image of the sheet."""
        assert self._boxes is not None
        with_box = sum(bool(self._boxes.lookup(item.key, Identity())) for item in self.items)
        unused = self._boxes.unused()
        if unused.rows:
            raise DataError(
                f"{BOXES} line {unused.lines[0]}: names no image of {SHEET}, as {unused.rows} of its rows; name "
                "files alike in both"
            )
        return (f"masks of {with_box} images are the boxes of {BOXES}: whole rectangles, not outlines",)

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
