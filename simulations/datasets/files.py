"""What the layouts of public downloads share: image files in folders, each an item, some with masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.randomness import seed_for
from common.study import Study
from simulations.datasets.decode import read_array, read_image, read_mask
from simulations.datasets.source import Inside, Item, UnreadableImage, shown

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"))


@dataclass(frozen=True)
class Entry:
    """One item; its key is the image's file, relative to the folder, and so are its masks, which are joined."""

    item: Item
    masks: tuple[str, ...] = ()


class FilesSource:
    """A source whose items are files under one folder."""

    synthetic = False

    def __init__(self, name: str, inside: Inside, entries: Sequence[Entry], notes: Sequence[str] = ()) -> None:
        self.name, self.notes = name, tuple(notes)
        self._inside = inside
        self._masks = {entry.item.key: entry.masks for entry in entries if entry.masks}
        self.items: tuple[Item, ...] = tuple(entry.item for entry in entries)

    def read(self, item: Item) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """See :class:`simulations.datasets.Source`."""
        try:
            file = self._inside.path(item.key)
            pixels = (read_array if file.suffix == ".npy" else read_image)(file, item.key)
            masks = [
                read_mask(self._inside.path(mask), item.key, pixels.shape) for mask in self._masks.get(item.key, ())
            ]
        except ValueError as error:
            raise UnreadableImage(item.key, str(error)) from None
        return pixels, np.bitwise_or.reduce(masks) if masks else None


def images(folder: Path) -> list[Path]:
    """The image files that lie in ``folder`` itself, by name; those that start with a dot are no images."""
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if is_image(file))


def is_image(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def folders(folder: Path) -> Iterator[Path]:
    """The folders in ``folder``, by name."""
    if folder.is_dir():
        yield from sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))


def key_of(inside: Inside, root: Path, file: Path) -> str:
    """``file``'s key. Raises :class:`DataError` for a link that leads out of the folder."""
    name = file.relative_to(root).as_posix()
    try:
        return inside.key(name)
    except ValueError as error:
        raise DataError(f"{shown(name)} {error}; copy the file in") from None


def only_labels(study: Study, layout: str, columns: Sequence[str], told: str) -> None:
    """Raise :class:`DataError` where the study asks for a label column that the layout does not have."""
    if study.data.label_column not in columns:
        raise DataError(
            f"{layout}: has no column {study.data.label_column!r}; set data.label_column to {' or '.join(columns)} "
            f"({told})"
        )


def validates(study: Study, layout: str, unit: str) -> bool:
    """Whether a unit (patient, or image) of a download's training part validates: a share of ``data.split``, drawn.

    For downloads that have a training and a test part, and none for validation.
    """
    train_share, val_share, _ = study.data.split
    return seed_for(study.seed, layout, "validation", unit) < val_share / (train_share + val_share) * 2**63
