"""The prepared view: a vault's images decrypted and preprocessed for one study, as one dense tensor.

Plaintext pixels exist only here, in a site's memory, and only as long as somebody holds the view. A view larger than
the memory it is allowed lies encrypted on the disk and comes batch by batch (``stored_view``, ``record_file``).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from client.vault import record_file
from client.vault.prepared import PreparedView
from client.vault.preparing import Chosen, Prepared, choose, in_order
from client.vault.private_memory import private_tensor
from client.vault.record_file import Seal, ViewName
from client.vault.stored_view import JoinedView, StoredView, joined_patients
from common.study import Study

if TYPE_CHECKING:
    from client.vault.store import Vault


@dataclass(frozen=True, eq=False)
class View:
    """A :class:`PreparedView` whose images are one tensor in memory."""

    images: Tensor
    """``(N, C, H, W)`` uint8; 255 stands for 1.0."""
    targets: Tensor
    patients: Tensor
    patient_count: int
    masked: int
    masks: Tensor | None = None
    """``(N, H, W)`` uint8 in {0, 1}; only in a study that outlines."""

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

    def masks_of(self, rows: Tensor) -> Tensor | None:
        """The masks of ``rows``, ``(B, H, W)`` uint8; ``None`` in a study that does not outline."""
        return None if self.masks is None else self.masks[rows]

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
    def concatenate(views: Sequence[PreparedView]) -> PreparedView:
        """Views of several sites one after the other; patients of different sites stay different patients.

        One dense view where all lie in memory, else one that reads through its members. Raises ``ValueError`` where
        there is nothing to join or some have masks and some not.
        """
        if not views:
            raise ValueError("there is no view to concatenate")
        if len(views) == 1:
            return views[0]
        none = torch.zeros(0, dtype=torch.int64)
        if len({view.masks_of(none.to(view.device)) is None for view in views}) > 1:
            raise ValueError("views with and without masks cannot be concatenated")
        held = [view for view in views if isinstance(view, View)]
        if len(held) < len(views):
            return JoinedView(views)
        masks = [view.masks for view in held if view.masks is not None]
        return View(
            _joined([view.images for view in held]),
            torch.cat([view.targets for view in held]),
            joined_patients(held, held[0].device),
            sum(view.patient_count for view in held),
            sum(view.masked for view in held),
            _joined(masks) if masks else None,
        )

    def _tensors(self) -> list[Tensor]:
        return [self.images, self.targets, self.patients, *([] if self.masks is None else [self.masks])]


def _joined(images: Sequence[Tensor]) -> Tensor:
    """``torch.cat`` into memory that is as private as that of the parts."""
    if images[0].device.type != "cpu":
        return torch.cat(list(images))
    return torch.cat(list(images), out=private_tensor((sum(map(len, images)), *images[0].shape[1:])))


def prepare_view(vault: Vault, study: Study, split: str | None) -> View:
    """Decrypt and preprocess the rows of ``split`` ("train", "val", "test"; ``None`` for every row) in memory.

    Few images are held beside the result. A split without rows is an empty view. Raises
    :class:`DataError` for labels or images that do not fit the study, naming the row; a row that cannot be
    decrypted is the vault's :class:`VaultError`.
    """
    return _held(vault, study, choose(vault, study, split))


def _held(vault: Vault, study: Study, chosen: Chosen) -> View:
    images = private_tensor((len(chosen.ids), *chosen.shape))
    masks = private_tensor((len(chosen.ids), *chosen.shape[1:])) if chosen.outlines else None

    def place(start: int, prepared: list[Prepared]) -> None:
        for index, parts in enumerate(prepared, start=start):
            images[index] = torch.from_numpy(parts[0])
            if masks is not None:
                masks[index] = torch.from_numpy(parts[1])

    for _ in in_order(vault, study, chosen, 0, place):
        pass
    return View(images, chosen.targets, chosen.patients, chosen.patient_count, chosen.masked, masks)


def _stored(vault: Vault, study: Study, split: str | None, chosen: Chosen, folder: Path, now: datetime) -> StoredView:
    count, size = len(chosen.ids), chosen.record_bytes
    name = ViewName(vault.id, vault.generation, view_key(study), split, chosen.content, count, size)

    def records(seal: Seal, whole: int) -> Generator[bytes]:
        def sealed(start: int, prepared: list[Prepared]) -> bytes:
            return b"".join(
                seal(number, b"".join(part.tobytes() for part in parts))
                for number, parts in enumerate(prepared, start=start)
            )

        return in_order(vault, study, chosen, whole, sealed)

    found = record_file.find(folder, name, vault.view_key, now)
    if found is None:
        found = record_file.build(folder, name, vault.view_key, now, records)
    return StoredView(found, chosen.shape, chosen.targets, chosen.patients, chosen.patient_count, chosen.masked)


def view_key(study: Study) -> str:
    """SHA-256 of all in a study that a view depends on; studies that differ elsewhere share their views."""
    parts = study.model_dump(
        mode="json",
        include={
            **dict.fromkeys(("task", "classes", "data", "preprocess"), True),
            "image": {"size", "channels", "sequences"},  # normalised when read: a view's pixels stay as they are
        },
    )
    if study.outlines and study.task != "segmentation":
        parts["masks"] = "where there are any"
    return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()


_Key = tuple[str, int, str, str | None, str]


def _now() -> datetime:
    return datetime.now(UTC)


class ViewCache:
    """Least-recently-used views of one process, shared by all its arms, repeats and sites.

    Holds at most ``cap_bytes`` of memory. A view that would be larger is stored: built once, encrypted on the disk, and
    read in batches. When a vault's generation changes (import, erasure), its older views are dropped at once, on the
    disk too: an erased patient's pixels do not linger. Stored views that nobody used for 30 days go as well.
    """

    def __init__(self, cap_bytes: int, clock: Callable[[], datetime] = _now) -> None:
        if cap_bytes < 0:
            raise ValueError(f"cap_bytes must be ≥ 0, got {cap_bytes}")
        self.cap_bytes = cap_bytes
        self._clock = clock
        self._views: OrderedDict[_Key, PreparedView] = OrderedDict()
        self._generations: dict[str, int] = {}
        self._folders: dict[str, Path] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def bytes(self) -> int:
        """Memory of all views held now."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._views)

    def get(
        self,
        vault: Vault,
        study: Study,
        split: str | None,
        device: torch.device | str = "cpu",
        *,
        folder: Path | None = None,
        room: int | None = None,
    ) -> PreparedView:
        """The view of a split, kept if it fits: in memory, on ``device``, where it takes at most the cap, else stored.

        ``folder`` is where stored views lie: ``views`` beside the vault, unless said. ``room`` is a lower cap for this
        view (bytes). Raises as :func:`prepare_view`, and :class:`VaultError` for a disk that is full.
        """
        key = (vault.id, vault.generation, view_key(study), split, str(torch.device(device)))
        folder = folder or vault.path.parent / "views"
        with self._lock:
            # Looked through only when a vault changed: a thousand sites ask a thousand times a round.
            changed = self._generations.get(key[0]) != key[1]
            if changed:
                for old in [k for k in self._views if k[0] == key[0] and k[1] != key[1]]:
                    self._drop(old)
                self._generations[key[0]], self._folders[key[0]] = key[1], folder
            view = self._views.get(key)
            if view is not None:
                self._views.move_to_end(key)
                return view
        if changed:
            record_file.sweep(folder, vault.id, vault.generation, self._clock())
        chosen = choose(vault, study, split)
        if not chosen.ids or chosen.bytes <= min(self.cap_bytes, self.cap_bytes if room is None else room):
            view = _held(vault, study, chosen).to(device)
        else:
            view = _stored(vault, study, split, chosen, folder, self._clock())
        with self._lock:
            latest = self._generations.get(key[0]) == key[1]  # another thread may have seen a newer one since
            if latest and view.bytes <= self.cap_bytes and key not in self._views:
                while self._bytes + view.bytes > self.cap_bytes:
                    self._drop(next(iter(self._views)))
                self._views[key] = view
                self._bytes += view.bytes
        return view

    def forget(self, vault_id: str | None = None) -> None:
        """Drop the views of one vault, or of all that were asked for; stored ones are removed."""
        with self._lock:
            for key in [k for k in self._views if vault_id in (None, k[0])]:
                self._drop(key)
            for known in [k for k in self._folders if vault_id in (None, k)]:
                record_file.sweep(self._folders.pop(known), known, None, self._clock())
                del self._generations[known]

    def _drop(self, key: _Key) -> None:
        self._bytes -= self._views.pop(key).bytes
