"""MedMNIST files (``pneumoniamnist.npz``, ``chestmnist_64.npz`` …), Yang et al. 2023, doi:10.1038/s41597-022-01721-8.

Arrays ``{train,val,test}_images`` ``(N, H, W)`` or ``(N, H, W, 3)`` uint8 and
``{train,val,test}_labels`` ``(N, 1)`` class numbers or ``(N, K)`` of 0 and 1. The
files name no patients, so every image is its own, and their splits are kept.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError, FedwardError
from common.study import Study
from simulations.datasets.source import Item, UnreadableImage, one_line

NO_FINDING: Final = "no finding"
"""Value of a multi-label image without any label; a study lists it under ``data.other`` or as a class."""
MAX_BYTES: Final = 4 << 30
"""Largest array loaded: the largest split of ChestMNIST at 224×224 is 3.9 GB."""

NAMES: Final = {
    "pneumoniamnist": ("normal", "pneumonia"),
    "breastmnist": ("malignant", "normal, benign"),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "chestmnist": (
        "atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia",
        "pneumothorax", "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia",
    ),
}  # fmt: skip
"""Names of the class numbers by file name; the classes of other files are called "0", "1" …"""


class MedMnistSource:
    """Labels are read when opened, a split's images when the first of them is asked for."""

    synthetic = False
    notes: tuple[str, ...] = ("MedMNIST names no patients: every image counts as its own",)

    def __init__(self, study: Study, path: Path) -> None:
        if study.data.label_column != "label":
            raise DataError(
                f"{path.name}: has no column {study.data.label_column!r}; MedMNIST has one: data.label_column: label"
            )
        self.name = f"MedMNIST {path.stem}"
        self._path = path
        self._images: dict[str, NDArray[np.uint8]] = {}
        self._rows: dict[str, tuple[str, int]] = {}
        known = re.fullmatch(r"([a-z]+mnist)(?:_\d+)?", path.stem.casefold())
        names = NAMES.get(known[1]) if known else None
        items: list[Item] = []
        with self._archive() as archive:
            splits = [split for split in ("train", "val", "test") if f"{split}_images.npy" in archive.namelist()]
            if not splits:
                raise DataError(
                    f"{path.name}: holds no train_images, val_images or test_images; it is no MedMNIST file"
                )
            for split in splits:
                items += self._items(archive, split, names)
        if not items:
            raise DataError(f"{path.name}: holds no images; download it again")
        self.items: tuple[Item, ...] = tuple(items)

    def read(self, item: Item) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """See :class:`simulations.datasets.Source`."""
        if item.key not in self._rows:
            raise UnreadableImage(item.key, "is not in this file; take items from the source's own list")
        split, row = self._rows[item.key]
        if split not in self._images:
            with self._archive() as archive:
                self._images[split] = self._array(archive, f"{split}_images")
        return self._images[split][row].copy(), None

    def _items(self, archive: zipfile.ZipFile, split: str, names: tuple[str, ...] | None) -> Iterator[Item]:
        shape, dtype = self._header(archive, f"{split}_images")
        if dtype != np.uint8 or len(shape) not in (3, 4) or (len(shape) == 4 and shape[3] != 3) or 0 in shape[1:]:
            raise DataError(
                f"{self._path.name}: {split}_images is {dtype} {shape}; two-dimensional MedMNIST has uint8 "
                "(N, H, W) or (N, H, W, 3), and volumes are not read"
            )
        labels = self._array(archive, f"{split}_labels")
        if labels.dtype.kind not in "iub" or labels.ndim not in (1, 2) or len(labels) != shape[0]:
            raise DataError(
                f"{self._path.name}: {split}_labels is {labels.dtype} {labels.shape} for {shape[0]} images; "
                "one row of integers per image is needed: download the file again"
            )
        table = labels.reshape(len(labels), -1).astype(np.int64)
        multi = table.shape[1] > 1
        top = table.shape[1] - 1 if multi else int(table.max(initial=0))
        if table.min(initial=0) < 0 or (multi and table.max(initial=0) > 1) or (names and top >= len(names)):
            raise DataError(f"{self._path.name}: {split}_labels holds values that are no labels; download it again")
        for row, cells in enumerate(table.tolist()):
            found = [index for index, cell in enumerate(cells) if cell] if multi else cells
            key = f"{split}/{row}"
            self._rows[key] = (split, row)
            value = tuple(names[index] if names else str(index) for index in found) or (NO_FINDING,)
            yield Item(key=key, patient=key, patient_known=False, labels={"label": value}, split=split)

    @contextmanager
    def _damage_named(self) -> Iterator[None]:
        """Around every call that parses the file's bytes: zipfile and NumPy raise nearly anything for damaged ones."""
        try:
            yield
        except FedwardError:
            raise
        except Exception as error:
            reason = one_line(str(error).replace(str(self._path), "file")) or type(error).__name__
            raise DataError(f"{self._path.name}: not a readable .npz file: {reason}; download it again") from None

    def _archive(self) -> zipfile.ZipFile:
        with self._damage_named():
            return zipfile.ZipFile(self._path)

    def _header(self, archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
        with self._damage_named(), archive.open(f"{name}.npy") as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(member)
        return shape, dtype

    def _array(self, archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
        """One array, never unpickled, and only where header and stored size agree."""
        shape, dtype = self._header(archive, name)
        with self._damage_named():
            if min(shape, default=0) < 0:
                raise ValueError(f"{name} has a negative length")
            size = int(np.prod(shape, dtype=object)) * dtype.itemsize
            if size > MAX_BYTES:
                raise DataError(
                    f"{self._path.name}: {name} needs {size >> 30} GiB of memory; take a smaller image size"
                )
            stored = archive.getinfo(f"{name}.npy").file_size
            if not dtype.hasobject and not size < stored <= size + (1 << 16):
                raise ValueError(f"{name} has {stored} bytes, its header says {size}")
            with archive.open(f"{name}.npy") as member:
                array: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
        return array
