"""An image and its heat map side by side, as a PNG. A picture of a patient: nothing here writes one anywhere."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_LEAST_SIDE = 256
_STRENGTH = 0.6
_OUTLINE = (255, 255, 0)  # cyan, as OpenCV orders colours: on greys and on the map's reds and yellows alike


def picture(pixels: Tensor, heat: Tensor, mask: NDArray[np.uint8] | None = None) -> bytes:
    """PNG: ``pixels`` ``(C, H, W)`` in [0, 1], and beside it the same under ``heat`` ``(H, W)`` in [0, 1].

    Small images are enlarged, pixel by pixel, to at least 256 a side. ``mask`` ``(H, W)`` in {0, 1} is outlined.
    """
    grey = np.rint(pixels.mul(255.0).clamp(0.0, 255.0).permute(1, 2, 0).numpy()).astype(np.uint8)
    plain = np.repeat(grey, 3, axis=2) if grey.shape[2] == 1 else np.ascontiguousarray(grey[..., ::-1])
    warmth = heat.clamp(0.0, 1.0).numpy()
    colours = cv2.applyColorMap(np.rint(warmth * 255.0).astype(np.uint8), cv2.COLORMAP_INFERNO)
    share = (_STRENGTH * warmth)[..., None]
    overlaid = np.rint(plain * (1.0 - share) + colours * share).astype(np.uint8)
    factor = max(1, -(-_LEAST_SIDE // min(warmth.shape)))
    sides = [_enlarged(one, factor) for one in (plain, overlaid)]
    if mask is not None:
        edges, _ = cv2.findContours(_enlarged(mask, factor), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(sides[1], edges, -1, _OUTLINE, max(1, factor // 3))
    good, data = cv2.imencode(".png", np.concatenate(sides, axis=1))
    assert good
    return data.tobytes()


def _enlarged(array: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array.repeat(factor, axis=0).repeat(factor, axis=1))
