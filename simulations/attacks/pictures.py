"""Originals, and what attacks made of what left, side by side on a page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from torch import Tensor

from common import pictures
from common.html import Figure


@dataclass(frozen=True)
class Shown:
    """A picture ``(C, H, W)`` float in [0, 1], one or three channels, and the words below it."""

    pixels: Tensor
    words: str


def figure(heads: Sequence[tuple[str, str]], rows: Sequence[Sequence[Shown | None]], caption: str) -> Figure:
    """One column for each of ``heads`` (two lines each), one row of pictures below another."""
    encoded = [[None if one is None else pictures.Shown(_png(one.pixels), one.words) for one in row] for row in rows]
    return pictures.figure(heads, encoded, caption)


def _png(pixels: Tensor) -> str:
    array = np.ascontiguousarray((pixels.clamp(0.0, 1.0) * 255.0).round().byte().permute(1, 2, 0).numpy())
    good, data = cv2.imencode(".png", array[..., ::-1] if array.shape[2] == 3 else array)
    if not good:
        raise ValueError(f"pixels {array.shape} cannot be written as PNG")
    return base64.b64encode(data.tobytes()).decode()
