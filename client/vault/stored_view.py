"""Views whose images come batch by batch: from a file, or from several sites' views of either kind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from client.vault.private_memory import private_tensor
from client.vault.record_file import Records

if TYPE_CHECKING:
    from client.vault.prepared import PreparedView


class StoredView:
    """A view whose images and masks lie in a file and come batch by batch; the rest is in memory.

    What a :class:`~client.vault.view.View` is, number for number; it stays in main memory whatever the device.
    """

    def __init__(
        self, records: Records, shape: tuple[int, int, int], targets: Tensor, patients: Tensor, count: int, masked: int
    ) -> None:
        """``shape`` is an image's (C, H, W); records that are larger hold a mask (H, W) after it."""
        self.targets, self.patients, self.patient_count, self.masked = targets, patients, count, masked
        self._records, self._shape = records, shape
        self._pixels = prod(shape)
        self._plain = private_tensor((records.at_once, records.name.size))
        self._lock = threading.Lock()  # of the buffers

    def __len__(self) -> int:
        return self._records.name.count

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def bytes(self) -> int:
        """Memory, not disk."""
        return 2 * self._plain.nbytes + self.targets.nbytes + self.patients.nbytes

    def floats(self, rows: Tensor) -> Tensor:
        """The images ``rows`` ``(B,)`` int64 as float32 ``(B, C, H, W)`` in [0, 1]. Raises :class:`VaultError`."""
        images = torch.empty((len(rows), *self._shape), dtype=torch.float32)
        self._copy(rows, slice(None, self._pixels), images)
        return images.div_(255.0)

    def masks_of(self, rows: Tensor) -> Tensor | None:
        """The masks of ``rows``, ``(B, H, W)`` uint8; ``None`` where the study has none."""
        if self._records.name.size == self._pixels:
            return None
        masks = torch.empty((len(rows), *self._shape[1:]), dtype=torch.uint8)
        self._copy(rows, slice(self._pixels, None), masks)
        return masks

    def _copy(self, rows: Tensor, part: slice, into: Tensor) -> None:
        numbers: list[int] = rows.tolist()
        if numbers and not 0 <= min(numbers) <= max(numbers) < len(self):
            raise IndexError(f"a view of {len(self)} images has no rows {min(numbers)} to {max(numbers)}")
        most = self._records.at_once
        with self._lock:
            plain = self._plain.numpy().data.cast("B")
            for start in range(0, len(numbers), most):
                some = numbers[start : start + most]
                self._records.read(some, plain)
                into[start : start + most] = self._plain[: len(some), part].view(len(some), *into.shape[1:])


class JoinedView:
    """Several sites' views one after the other: a ``PreparedView`` whose batches are gathered from its members.

    Patients of different sites stay different patients.
    """

    def __init__(self, views: Sequence[PreparedView]) -> None:
        """Rows are asked for, and images come, in main memory, unless all ``views`` are on one other device."""
        devices = {view.device for view in views}
        self.device = devices.pop() if len(devices) == 1 else torch.device("cpu")
        self._views = tuple(views)
        self._ends = torch.tensor([len(view) for view in views], device=self.device).cumsum(0)
        self.targets = torch.cat([view.targets.to(self.device) for view in views])
        self.patients = joined_patients(views, self.device)
        self.patient_count = sum(view.patient_count for view in views)
        self.masked = sum(view.masked for view in views)

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def bytes(self) -> int:
        """Memory, the members' included."""
        return sum(view.bytes for view in self._views) + self.targets.nbytes + self.patients.nbytes

    def floats(self, rows: Tensor) -> Tensor:
        """The images ``rows`` ``(B,)`` int64 as float32 ``(B, C, H, W)`` in [0, 1]. Raises :class:`VaultError`."""
        images = self._gathered(rows, lambda view, own: view.floats(own))
        assert images is not None
        return images

    def masks_of(self, rows: Tensor) -> Tensor | None:
        """The masks of ``rows``, ``(B, H, W)`` uint8; ``None`` where the study has none."""
        return self._gathered(rows, lambda view, own: view.masks_of(own))

    def _gathered(self, rows: Tensor, read: Callable[[PreparedView, Tensor], Tensor | None]) -> Tensor | None:
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise IndexError(f"a view of {len(self)} images has no rows {int(rows.min())} to {int(rows.max())}")
        member = torch.bucketize(rows, self._ends, right=True)
        whole: Tensor | None = None
        for number, view in enumerate(self._views):
            at = (member == number).nonzero()[:, 0]
            if whole is not None and not len(at):
                continue
            own = rows[at] - (int(self._ends[number]) - len(view))
            part = read(view, own.to(view.device))
            if part is None:
                return None
            if whole is None:
                whole = part.new_empty((len(rows), *part.shape[1:]), device=self.device)
            whole[at] = part.to(self.device)
        return whole


def joined_patients(views: Sequence[PreparedView], device: torch.device) -> Tensor:
    """The patients of ``views`` one after the other, numbered on from view to view."""
    numbers, first = [], 0
    for view in views:
        numbers.append(view.patients.to(device) + first)
        first += view.patient_count
    return torch.cat(numbers)
