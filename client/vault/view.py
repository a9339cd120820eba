"""The prepared view: a vault's images decrypted and preprocessed for one study, as one dense tensor.

Plaintext pixels exist only here, in a site's memory, and only as long as somebody holds the view.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from common.errors import DataError
from common.labels import targets
from common.preprocess import prepare, prepare_mask
from common.study import Study

if TYPE_CHECKING:
    from client.vault.store import Row, Vault


@dataclass(frozen=True, eq=False)
class View:
    """One split of a vault, ready to train on; rows are ordered by pixel digest.

    ``patients`` numbers the patients 0 … ``patient_count - 1`` in order of first appearance: neither their names nor
    their order in the hospital shows. ``masked`` counts the split's rows left out because the study has no target
    for them (label missing or uncertain; in segmentation also a missing mask).
    """

    images: Tensor
    """``(N, C, H, W)`` uint8; 255 stands for 1.0."""
    targets: Tensor
    """``(N, classes)`` float32 in {0, 1}."""
    patients: Tensor
    """``(N,)`` int64."""
    patient_count: int
    masked: int
    masks: Tensor | None = None
    """``(N, H, W)`` uint8 in {0, 1}; only in segmentation."""

    def __len__(self) -> int:
        return int(self.images.shape[0])

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def bytes(self) -> int:
        """Memory of all tensors."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def floats(self, rows: Tensor) -> Tensor:
        """The images ``rows`` ``(B,)`` int64 as float32 ``(B, C, H, W)`` in [0, 1], on the view's device."""
        return self.images[rows].to(torch.float32).div_(255.0)

    def to(self, device: torch.device | str) -> View:
        """This view on ``device``; itself where it is there already."""
        if self.device == torch.device(device):
            return self
        return View(
            self.images.to(device),
            self.targets.to(device),
            self.patients.to(device),
            self.patient_count,
            self.masked,
            None if self.masks is None else self.masks.to(device),
        )

    @staticmethod
    def concatenate(views: Sequence[View]) -> View:
        """Views of several sites one after the other; patients of different sites stay different patients.

        Raises ``ValueError`` where there is nothing to join or some have masks and some not.
        """
        if not views:
            raise ValueError("there is no view to concatenate")
        if len(views) == 1:
            return views[0]
        masks = [view.masks for view in views if view.masks is not None]
        if masks and len(masks) != len(views):
            raise ValueError("views with and without masks cannot be concatenated")
        offsets = np.cumsum([0, *(view.patient_count for view in views)]).tolist()
        return View(
            torch.cat([view.images for view in views]),
            torch.cat([view.targets for view in views]),
            torch.cat([view.patients + offset for view, offset in zip(views, offsets[:-1], strict=True)]),
            offsets[-1],
            sum(view.masked for view in views),
            torch.cat(masks) if masks else None,
        )

    def _tensors(self) -> list[Tensor]:
        return [self.images, self.targets, self.patients, *([] if self.masks is None else [self.masks])]


def prepare_view(vault: Vault, study: Study, split: str | None) -> View:
    """Decrypt and preprocess the rows of ``split`` ("train", "val", "test"; ``None`` for every row).

    One image at a time is held beside the result. A split without rows is an empty view. Raises
    :class:`DataError` for labels or images that do not fit the study, naming the row; a row that cannot be
    decrypted is the vault's :class:`VaultError`.
    """
    segmentation = study.task == "segmentation"
    rows = [row for row in vault.rows() if split is None or row.split == split]
    values = targets(study, [row.labels for row in rows])
    usable = np.asarray(np.isfinite(values).any(axis=1), dtype=np.bool_)
    if segmentation:
        usable = usable & np.array([row.has_mask for row in rows], dtype=bool)
    kept = [row for row, use in zip(rows, usable.tolist(), strict=True) if use]
    size = study.image.size
    images = torch.empty((len(kept), study.image.channels, size, size), dtype=torch.uint8)
    masks = torch.empty((len(kept), size, size), dtype=torch.uint8) if segmentation else None
    for index, (row, pixels) in enumerate(zip(kept, vault.read_many([row.id for row in kept]), strict=True)):
        try:
            images[index] = torch.from_numpy(prepare(pixels, study))
            if masks is not None:
                masks[index] = torch.from_numpy(prepare_mask(vault.read_mask(row.id), study))
        except DataError as error:
            raise type(error)(f"vault row {row.id}: {error}") from None
    numbers = _numbered(kept)
    return View(
        images,
        torch.from_numpy(values[usable]),
        torch.tensor(numbers, dtype=torch.int64),
        max(numbers, default=-1) + 1,
        len(rows) - len(kept),
        masks,
    )


def _numbered(rows: Sequence[Row]) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(row.patient, len(numbers)) for row in rows]


def view_key(study: Study) -> str:
    """SHA-256 of all in a study that a view depends on; studies that differ elsewhere share their views."""
    parts = study.model_dump(mode="json", include={"task", "classes", "data", "image", "preprocess"})
    return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()


class ViewCache:
    """Least-recently-used views of one process, shared by all its arms, repeats and sites.

    Holds at most ``cap_bytes`` of tensors; a view larger than that is made afresh each time. When a vault's generation
    changes (import, erasure), its older views are dropped at once: an erased patient's pixels do not linger.
    """

    def __init__(self, cap_bytes: int) -> None:
        if cap_bytes < 0:
            raise ValueError(f"cap_bytes must be ≥ 0, got {cap_bytes}")
        self.cap_bytes = cap_bytes
        self._views: OrderedDict[tuple[str, int, str, str | None, str], View] = OrderedDict()
        self._generations: dict[str, int] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Memory of all views held now."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._views)

    def get(self, vault: Vault, study: Study, split: str | None, device: torch.device | str = "cpu") -> View:
        """``prepare_view(vault, study, split).to(device)``, kept if it fits."""
        key = (vault.id, vault.generation, view_key(study), split, str(torch.device(device)))
        with self._lock:
            # Looked through only when a vault changed: a thousand sites ask a thousand times a round.
            if self._generations.setdefault(key[0], key[1]) != key[1]:
                for old in [k for k in self._views if k[0] == key[0] and k[1] != key[1]]:
                    self._drop(old)
                self._generations[key[0]] = key[1]
            view = self._views.get(key)
            if view is not None:
                self._views.move_to_end(key)
                return view
        view = prepare_view(vault, study, split).to(device)
        with self._lock:
            latest = self._generations.get(key[0]) == key[1]  # another thread may have seen a newer one since
            if latest and view.bytes <= self.cap_bytes and key not in self._views:
                while self._bytes + view.bytes > self.cap_bytes:
                    self._drop(next(iter(self._views)))
                self._views[key] = view
                self._bytes += view.bytes
        return view

    def forget(self, vault_id: str | None = None) -> None:
        """Drop the views of one vault, or all of them."""
        with self._lock:
            for key in [k for k in self._views if vault_id in (None, k[0])]:
                self._drop(key)

    def _drop(self, key: tuple[str, int, str, str | None, str]) -> None:
        self._bytes -= self._views.pop(key).bytes
