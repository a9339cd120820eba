"""Masks: which file is the mask of which image, and how masks come to lie on images in the vault.

A file that is a mask is no image of its own. Where two masks could belong to an image, or one to two images, none is
taken: a mask on the wrong image would be learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from client.ingest.import_reasons import MASK_SHAPE, MASK_UNCLEAR, NO_MASK
from client.ingest.kinds import Refused, Rules
from client.ingest.labels import normal
from client.ingest.sources import Found, discover
from client.ingest.summary import Summary
from client.vault.records import Row
from client.vault.store import Vault
from common.errors import DataError

COMMIT_BYTES = 64 * 2**20
_ROW_BYTES = 2048  # what else is written for a mask


@dataclass(frozen=True)
class MaskFile:
    """A mask as a file; ``for_one`` where its name alone says whose it is, so that it can be of one image only."""

    file: Found = field(repr=False)
    for_one: bool


class MaskFiles:
    """The mask files of an import: those in a folder, named as their images, and those that a label sheet names.

    Suffixes need not agree: a PNG may have an NPZ mask. ``look_at`` all files of the import before asking.
    """

    def __init__(self, folder: Path | None = None, said: Collection[str] = (), rules: Rules | None = None) -> None:
        """``said`` are the sheet's names. Raises :class:`DataError` where there is no such folder."""
        if folder is not None and not folder.is_dir():
            raise DataError(f"{folder}: no such folder of masks; check --masks")
        self._said: dict[str, Found | None] = {}
        self._wanted = frozenset(said)
        self._folder: dict[str, Found | None] = {}
        for mask in discover([folder], rules or Rules()) if folder is not None else ():
            stem = _stem(mask.name)
            self._folder[stem] = None if stem in self._folder else mask
        self._names: set[int] = set()  # hashes: names are long, and there may be a million
        self._stems: dict[int, int] = {}
        self._twice: set[int] = set()
        self._shared: set[int] = set()

    def look_at(self, files: Iterable[Found]) -> int:
        """Note which names there are; how many of the files are images'."""
        count = 0
        for file in files:
            name = normal(file.name)
            if name in self._wanted:
                self._said[name] = None if name in self._said else file
                continue
            count += 1
            if self._folder:
                stem = _stem(name)
                base = hash(_base(stem))
                if hash(name) in self._names:  # in two sources
                    self._twice.add(hash(stem))
                    self._shared.add(base)
                if self._stems.setdefault(base, hash(stem)) != hash(stem):
                    self._shared.add(base)
                self._names.add(hash(name))
        return count

    def images(self, files: Iterable[Found]) -> Iterator[Found]:
        """Those of ``files`` that are no masks."""
        return (file for file in files if normal(file.name) not in self._wanted)

    def find(self, name: str, said: str) -> MaskFile | None:
        """The mask of the image file ``name``, of which the sheet says ``said`` or nothing.

        Raises :class:`Refused` where it is not certain, or not there.
        """
        stem = _stem(name)
        for wanted, unclear in ((stem, self._twice), (_base(stem), self._shared)):
            if wanted in self._folder:
                mask = self._folder[wanted]
                if mask is None or hash(wanted) in unclear:
                    raise Refused(MASK_UNCLEAR)
                return MaskFile(mask, for_one=True)
        if not said:
            return None
        mask = self._said.get(said)
        if mask is None:
            raise Refused(MASK_UNCLEAR if said in self._said else NO_MASK)
        return MaskFile(mask, for_one=False)


class MaskWriter:
    """Puts masks on images, some 64 MB in one transaction; several of one import for one image are united."""

    def __init__(self, vault: Vault, summary: Summary, committed: Callable[[Vault], None]) -> None:
        self._vault, self._summary, self._committed = vault, summary, committed
        self._pending: dict[int, NDArray[np.uint8]] = {}
        self._bytes = 0
        self._done: set[int] = set()

    def put(self, masks: Sequence[tuple[Row, NDArray[np.uint8]]]) -> None:
        """Take the masks of one file, each fitted to its image. An image that had a mask before keeps that."""
        for row, mask in masks:
            if row.id in self._pending:
                self._pending[row.id] = self._pending[row.id] | mask
                continue
            if row.has_mask:
                before = self._vault.read_mask(row.id)
                if not (mask & ~before).any():
                    continue
                if row.id not in self._done:
                    self._summary.warnings["other-mask"] += 1
                    continue
                mask = before | mask
            self._pending[row.id] = mask
            self._bytes += mask.nbytes + _ROW_BYTES
        if self._bytes >= COMMIT_BYTES:
            self.commit()

    def commit(self) -> None:
        """Write what is pending."""
        pending, self._pending, self._bytes = self._pending, {}, 0
        if not pending:
            return
        with self._vault.changing() as change:
            for row_id, mask in pending.items():
                change.replace(self._vault.row(row_id), mask)
        self._summary.masks += len(pending.keys() - self._done)
        self._done |= pending.keys()
        self._committed(self._vault)


def fitted(mask: NDArray[np.uint8], row: Row) -> NDArray[np.uint8]:
    """``mask``, drawn on the pixels of the source or of the vault, on those of the vault: nearest neighbour."""
    height, width = row.shape[:2]
    source = round(height / row.measures.get("scale_down", 1.0)), round(width / row.measures.get("scale_across", 1.0))
    near = all(abs(side - wanted) <= 1 for side, wanted in zip(mask.shape, source, strict=True))
    if not near and mask.shape != (height, width):
        raise Refused(MASK_SHAPE)
    if mask.shape != (height, width):
        mask = np.asarray(cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
    return np.ascontiguousarray(mask)


def _stem(name: str) -> str:
    name = normal(name).removesuffix(".gz")
    head, dot, _ = name.rpartition(".")
    return head if dot and "/" not in name[len(head) :] else name


def _base(name: str) -> str:
    return name.rpartition("/")[2]
