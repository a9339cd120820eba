"""Technical quality of an image, in a few numbers kept beside it: what a readiness report shows of the odd ones.

All are taken from a picture of at most 256 pixels a side, so a mammogram costs as little as a thumbnail.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_SIDE = 256
_LOOK = (9, 8)  # width, height: 8 × 8 comparisons of neighbours
_AIR_HU, _BONE_HU = -1024.0, 3071.0


def measure(pixels: NDArray[Any]) -> tuple[str, Mapping[str, float]]:
    """How an image looks (16 hexadecimal digits) and its measures.

    The look is a difference hash (N. Krawetz, "Kind of Like That", 2013): 64 signs of brightness steps; two that
    differ in a few bits are nearly the same picture. Measures, grey levels in [0, 1]: ``mean``, ``spread`` (standard
    deviation), ``dark`` and ``bright`` (shares of pixels within 1% of the range's ends), ``sharpness`` (standard
    deviation of the Laplacian). ``pixels`` is ``(H, W)`` or ``(H, W, 3)``; int16 is Hounsfield units, -1024 to 3071.
    """
    step = max(1, min(pixels.shape[:2]) // (2 * _SIDE))
    sample = np.ascontiguousarray(pixels[::step, ::step])
    if sample.ndim == 3:
        sample = np.asarray(cv2.cvtColor(sample, cv2.COLOR_RGB2GRAY))
    low, high = (
        (_AIR_HU, _BONE_HU)
        if sample.dtype == np.int16
        else (0.0, float((1 << max(8, int(sample.max()).bit_length())) - 1))
    )
    grey = np.clip((sample.astype(np.float32) - low) / (high - low), 0.0, 1.0)
    height, width = grey.shape
    scale = min(1.0, _SIDE / max(height, width))
    small = cv2.resize(
        grey, (max(1, round(width * scale)), max(1, round(height * scale))), interpolation=cv2.INTER_AREA
    )
    rows = cv2.resize(small, _LOOK, interpolation=cv2.INTER_AREA)
    bits = np.packbits(rows[:, 1:] > rows[:, :-1])
    values = {
        "mean": float(small.mean()),
        "spread": float(small.std()),
        "dark": float((small <= 0.01).mean()),
        "bright": float((small >= 0.99).mean()),
        "sharpness": float(cv2.Laplacian(small, cv2.CV_32F).std()),
    }
    return bits.tobytes().hex(), {name: round(value, 5) for name, value in values.items()}
