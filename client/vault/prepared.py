"""What training and evaluation see of a prepared view, wherever its images are."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

NO_MASK = 255
"""Stands in every pixel of the mask of an image that has none, where the study takes such images too."""


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
        """The masks of ``rows``, ``(B, H, W)`` uint8 in {0, 1}; ``None`` in a study that does not outline.

        Where it classifies too, :data:`NO_MASK` throughout for an image without one.
        """
