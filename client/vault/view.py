"""The prepared view: a vault's images decrypted and preprocessed for one study, as one dense tensor.

Plaintext pixels exist only here, in a site's memory, and only as long as somebody holds the view. A view larger than
the memory it is allowed lies encrypted on the disk and comes batch by batch (``stored_view``, ``record_file``).
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.vault import record_file
from client.vault.private_memory import private_tensor
from client.vault.record_file import Seal, ViewName
from client.vault.stored_view import JoinedView, StoredView, joined_patients
from common import preprocess
from common.errors import DataError
from common.labels import targets
from common.preprocess import prepare, prepare_mask
from common.study import Study

if TYPE_CHECKING:
    from client.vault.store import Row, Vault

_T = TypeVar("_T")
_TASK_BYTES, _TASK_IMAGES = 1 << 20, 64
"""Small images are prepared some at a time: handing over a single one costs as much as preparing it."""


class PreparedView(Protocol):
    """One split of a vault, ready to train on, wherever its images lie; rows are ordered by pixel digest."""

    @property
    def targets(self) -> Tensor:
        """``(N, classes)`` float32 in {0, 1}, on ``device``."""

    @property
    def patients(self) -> Tensor:
        """``(N,)`` int64, on ``device``: 0 … ``patient_count - 1`` in order of first appearance.

        Neither the patients' names nor their order in the hospital shows.
        """

    @property
    def patient_count(self) -> int: ...

    @property
    def masked(self) -> int:
        """How many of the split's rows are left out: label missing or uncertain; in segmentation also no mask."""

    @property
    def device(self) -> torch.device:
        """Where rows are asked for and images come."""

    @property
    def bytes(self) -> int:
        """Memory that the view takes."""

    def __len__(self) -> int: ...

    def floats(self, rows: Tensor) -> Tensor:
        """The images ``rows`` ``(B,)`` int64 as float32 ``(B, C, H, W)`` in [0, 1].

        Raises :class:`VaultError` where they lie in a file that was damaged.
        """

    def masks_of(self, rows: Tensor) -> Tensor | None:
        """The masks of ``rows``, ``(B, H, W)`` uint8 in {0, 1}; ``None`` but in segmentation."""


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

    def masks_of(self, rows: Tensor) -> Tensor | None:
        """The masks of ``rows``, ``(B, H, W)`` uint8 in {0, 1}; ``None`` but in segmentation."""
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
            torch.cat([view.images for view in held]),
            torch.cat([view.targets for view in held]),
            joined_patients(held, held[0].device),
            sum(view.patient_count for view in held),
            sum(view.masked for view in held),
            torch.cat(masks) if masks else None,
        )

    def _tensors(self) -> list[Tensor]:
        return [self.images, self.targets, self.patients, *([] if self.masks is None else [self.masks])]


@dataclass(frozen=True, eq=False)
class _Chosen:
    """What a view is made of, before any image is decrypted."""

    ids: list[int]
    """Rows of the vault, in the view's order."""
    targets: Tensor
    patients: Tensor
    patient_count: int
    masked: int
    content: bytes
    """Digest of the rows and of the code that prepares them."""
    shape: tuple[int, int, int]
    """Of an image: (C, H, W)."""
    segmentation: bool

    @property
    def record_bytes(self) -> int:
        """Of one image and its mask."""
        channels, height, width = self.shape
        return (channels + self.segmentation) * height * width

    @property
    def bytes(self) -> int:
        """Memory of all as tensors."""
        return len(self.ids) * self.record_bytes + self.targets.nbytes + self.patients.nbytes


def _choose(vault: Vault, study: Study, split: str | None) -> _Chosen:
    rows = [row for row in vault.rows() if split is None or row.split == split]
    values = targets(study, [row.labels for row in rows])
    usable = np.asarray(np.isfinite(values).any(axis=1), dtype=np.bool_)
    segmentation = study.task == "segmentation"
    if segmentation:
        usable = usable & np.array([row.has_mask for row in rows], dtype=bool)
    kept = [row for row, use in zip(rows, usable.tolist(), strict=True) if use]
    numbers = _numbered(kept)
    content = hashlib.sha256(_preparation())
    for row in kept:
        content.update(f"{row.id} {row.generation} {row.digest}\n".encode())
    return _Chosen(
        [row.id for row in kept],
        torch.from_numpy(values[usable]),
        torch.tensor(numbers, dtype=torch.int64),
        max(numbers, default=-1) + 1,
        len(rows) - len(kept),
        content.digest(),
        (study.image.channels, study.image.size, study.image.size),
        segmentation,
    )


def _numbered(rows: Sequence[Row]) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(row.patient, len(numbers)) for row in rows]


@cache
def _preparation() -> bytes:
    """Digest of the code that prepares images: a view on the disk may be older than it."""
    code = Path(preprocess.__file__).read_bytes()
    return hashlib.sha256(f"{cv2.__version__} {np.__version__}\n".encode() + code).digest()


def prepare_view(vault: Vault, study: Study, split: str | None) -> View:
    """Decrypt and preprocess the rows of ``split`` ("train", "val", "test"; ``None`` for every row) in memory.

    Few images are held beside the result. A split without rows is an empty view. Raises
    :class:`DataError` for labels or images that do not fit the study, naming the row; a row that cannot be
    decrypted is the vault's :class:`VaultError`.
    """
    return _held(vault, study, _choose(vault, study, split))


def _held(vault: Vault, study: Study, chosen: _Chosen) -> View:
    images = private_tensor((len(chosen.ids), *chosen.shape))
    masks = private_tensor((len(chosen.ids), *chosen.shape[1:])) if chosen.segmentation else None

    def place(start: int, prepared: list[tuple[NDArray[np.uint8], ...]]) -> None:
        for index, parts in enumerate(prepared, start=start):
            images[index] = torch.from_numpy(parts[0])
            if masks is not None:
                masks[index] = torch.from_numpy(parts[1])

    for _ in _in_order(vault, study, chosen, 0, place):
        pass
    return View(images, chosen.targets, chosen.patients, chosen.patient_count, chosen.masked, masks)


def _stored(vault: Vault, study: Study, split: str | None, chosen: _Chosen, folder: Path, now: datetime) -> StoredView:
    count, size = len(chosen.ids), chosen.record_bytes
    name = ViewName(vault.id, vault.generation, view_key(study), split, chosen.content, count, size)

    def records(seal: Seal, whole: int) -> Iterator[bytes]:
        def sealed(start: int, prepared: list[tuple[NDArray[np.uint8], ...]]) -> bytes:
            return b"".join(
                seal(number, b"".join(part.tobytes() for part in parts))
                for number, parts in enumerate(prepared, start=start)
            )

        return _in_order(vault, study, chosen, whole, sealed)

    found = record_file.find(folder, name, vault.view_key, now)
    if found is None:
        found = record_file.build(folder, name, vault.view_key, now, records)
    return StoredView(found, chosen.shape, chosen.targets, chosen.patients, chosen.patient_count, chosen.masked)


_Raw = tuple[int, NDArray[Any], NDArray[np.uint8] | None]
_Finish = Callable[[int, list[tuple[NDArray[np.uint8], ...]]], _T]


def _in_order(vault: Vault, study: Study, chosen: _Chosen, start: int, finish: _Finish[_T]) -> Iterator[_T]:
    """What ``finish(start, prepared)`` makes of the images from ``start`` on, some at a time, in the rows' order.

    The vault is read in the calling thread (SQLite wants that); images are prepared and finished in as many threads
    as torch may use, which is this process's share of the machine.
    """
    threads = torch.get_num_threads()

    def work(first: int, raws: list[_Raw]) -> _T:
        return finish(first, [_prepared(study, *raw) for raw in raws])

    tasks = _tasks(vault, chosen, start)
    if threads == 1:
        for first, raws in tasks:
            yield work(first, raws)
        return
    waiting: deque[Future[_T]] = deque()
    with ThreadPoolExecutor(threads, "fedward-view") as pool:
        try:
            for first, raws in tasks:
                waiting.append(pool.submit(work, first, raws))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _tasks(vault: Vault, chosen: _Chosen, start: int) -> Iterator[tuple[int, list[_Raw]]]:
    """(number of the first, images) of each piece of work, as the vault has them."""
    raws: list[_Raw] = []
    size, first = 0, start
    ids = chosen.ids[start:]
    for number, (row_id, pixels) in enumerate(zip(ids, vault.read_many(ids), strict=True), start=start):
        raws.append((row_id, pixels, vault.read_mask(row_id) if chosen.segmentation else None))
        size += pixels.nbytes
        if size >= _TASK_BYTES or len(raws) == _TASK_IMAGES:
            yield first, raws
            raws, size, first = [], 0, number + 1
    if raws:
        yield first, raws


def _prepared(
    study: Study, row_id: int, pixels: NDArray[Any], mask: NDArray[np.uint8] | None
) -> tuple[NDArray[np.uint8], ...]:
    """An image as the model sees it, and its mask where there is one."""
    try:
        image = prepare(pixels, study)
        return (image,) if mask is None else (image, prepare_mask(mask, study))
    except DataError as error:
        raise type(error)(f"vault row {row_id}: {error}") from None


def view_key(study: Study) -> str:
    """SHA-256 of all in a study that a view depends on; studies that differ elsewhere share their views."""
    parts = study.model_dump(mode="json", include={"task", "classes", "data", "image", "preprocess"})
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
        chosen = _choose(vault, study, split)
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
