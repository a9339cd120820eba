"""From a vault's rows to images as a model sees them, in parallel and in order: what every view is made of."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.vault.prepared import NO_MASK
from common import preprocess, resize
from common.errors import DataError
from common.folds import DEALT, assign
from common.labels import Labels, targets
from common.preprocess import prepare, prepare_mask
from common.study import Study

if TYPE_CHECKING:
    from client.vault.store import Vault

_T = TypeVar("_T")
_TASK_BYTES, _TASK_IMAGES = 1 << 20, 64
"""Small images are prepared some at a time: handing over a single one costs as much as preparing it."""

Prepared = tuple[NDArray[np.uint8], ...]
"""An image ``(C, H, W)`` and, in a study that outlines, its mask ``(H, W)``."""


@dataclass(frozen=True, eq=False)
class Chosen:
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
    outlines: bool
    """Whether masks belong to it."""
    maskless: frozenset[int]
    """Rows whose mask is :data:`~client.vault.prepared.NO_MASK` throughout."""

    @property
    def record_bytes(self) -> int:
        """Of one image and its mask."""
        channels, height, width = self.shape
        return (channels + self.outlines) * height * width

    @property
    def bytes(self) -> int:
        """Memory of all as tensors."""
        return len(self.ids) * self.record_bytes + self.targets.nbytes + self.patients.nbytes


class _Row(NamedTuple):
    digest: str
    id: int
    patient: str
    labels: Labels
    generation: int
    has_mask: bool
    split: str


def choose(vault: Vault, study: Study, split: str | None) -> Chosen:
    dealt = DEALT if study.data.fold is not None and split in DEALT else (split,)
    # Of each row what is needed here: all of it would take five times as much for a hundred thousand images.
    rows = sorted(
        _Row(row.digest, row.id, row.patient, row.labels, row.generation, row.has_mask, row.split)
        for row in vault.each()
        if split is None or row.split in dealt
    )
    values = targets(study, [row.labels for row in rows])
    usable = np.asarray(np.isfinite(values).any(axis=1), dtype=np.bool_)
    if study.task == "segmentation":
        usable = usable & np.array([row.has_mask for row in rows], dtype=bool)
    masked = len(rows) - int(usable.sum())
    if dealt is DEALT:
        used = [row for row, use in zip(rows, usable.tolist(), strict=True) if use]
        usable[usable] = [found == split for found in assign(study, used, values[usable])]
    kept = [row for row, use in zip(rows, usable.tolist(), strict=True) if use]
    numbers = _numbered(kept)
    content = hashlib.sha256(_preparation())
    for row in kept:
        content.update(f"{row.id} {row.generation} {row.digest}\n".encode())
    return Chosen(
        [row.id for row in kept],
        torch.from_numpy(values[usable]),
        torch.tensor(numbers, dtype=torch.int64),
        max(numbers, default=-1) + 1,
        masked,
        content.digest(),
        (study.image.channels, study.image.size, study.image.size),
        study.outlines,
        frozenset(row.id for row in kept if study.outlines and not row.has_mask),
    )


def _numbered(rows: Sequence[_Row]) -> list[int]:
    numbers: dict[str, int] = {}
    return [numbers.setdefault(row.patient, len(numbers)) for row in rows]


@cache
def _preparation() -> bytes:
    """Digest of the code that prepares images: a view on the disk may be older than it."""
    code = Path(preprocess.__file__).read_bytes() + Path(resize.__file__).read_bytes()
    return hashlib.sha256(f"{cv2.__version__} {np.__version__}\n".encode() + code).digest()


_Raw = tuple[int, NDArray[Any], NDArray[np.uint8] | None]
Finish = Callable[[int, list[Prepared]], _T]


def in_order(vault: Vault, study: Study, chosen: Chosen, start: int, finish: Finish[_T]) -> Generator[_T]:
    """What ``finish(start, prepared)`` makes of the images from ``start`` on, some at a time, in the rows' order.

    The vault is read in the calling thread (SQLite wants that); images are prepared and finished in as many threads
    as torch may use, which is this process's share of the machine.
    """
    threads = torch.get_num_threads()

    def work(first: int, raws: list[_Raw]) -> _T:
        return finish(first, [_prepared(study, chosen.outlines, *raw) for raw in raws])

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


def _tasks(vault: Vault, chosen: Chosen, start: int) -> Iterator[tuple[int, list[_Raw]]]:
    """(number of the first, images) of each piece of work, as the vault has them."""
    raws: list[_Raw] = []
    size, first = 0, start
    ids = chosen.ids[start:]
    for number, (row_id, pixels) in enumerate(zip(ids, vault.read_many(ids), strict=True), start=start):
        masked = chosen.outlines and row_id not in chosen.maskless
        raws.append((row_id, pixels, vault.read_mask(row_id) if masked else None))
        size += pixels.nbytes
        if size >= _TASK_BYTES or len(raws) == _TASK_IMAGES:
            yield first, raws
            raws, size, first = [], 0, number + 1
    if raws:
        yield first, raws


def _prepared(
    study: Study, outlines: bool, row_id: int, pixels: NDArray[Any], mask: NDArray[np.uint8] | None
) -> Prepared:
    """An image as the model sees it, and its mask in a study that outlines."""
    try:
        image = prepare(pixels, study)
        if not outlines:
            return (image,)
        return image, np.full(image.shape[1:], NO_MASK, np.uint8) if mask is None else prepare_mask(mask, study)
    except DataError as error:
        raise type(error)(f"vault row {row_id}: {error}") from None
