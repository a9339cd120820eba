"""What is done to test images to see how far a model carries: six conditions, five levels each.

As Hendrycks and Dietterich (2019, ICLR, arXiv:1903.12261) did for photographs, with what goes wrong with radiographs:
quantum noise, an unsharp or coarse detector, over-exposure, another tone curve, compression on the way. The levels
are ours: the first is hardly seen, the last spoils the image. They are fixed here, so that studies compare. What is
altered is the model's input, not the source image: of a size of 64 pixels, a blur of 1% is two thirds of a pixel.

Deterministic: an image's noise follows from its seed alone and is the same at every level but for its strength.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from common.randomness import generator
from common.study_examined import CONDITIONS, LEVELS

Image = NDArray[np.float32]
"""``(C, H, W)`` in [0, 1]."""

SETTINGS: Mapping[str, tuple[float, ...]] = {
    "noise": (0.02, 0.05, 0.10, 0.20, 0.40),
    "blur": (0.005, 0.01, 0.02, 0.04, 0.08),
    "gain": (1.1, 1.25, 1.5, 2.0, 3.0),
    "gamma": (1.2, 1.5, 2.0, 3.0, 4.0),
    "resolution": (0.75, 0.5, 0.35, 0.25, 0.125),
    "jpeg": (50, 30, 15, 8, 3),
}
WORDS: Mapping[str, str] = {
    "noise": "Gaussian noise, standard deviation {:g} of the range",
    "blur": "Gaussian blur, standard deviation {:.1%} of the image's side",
    "gain": "over-exposure, intensity × {:g}, cut off at white",
    "gamma": "another tone curve, exponent {:g}",
    "resolution": "sampled down to {:.4g} of the side and up again",
    "jpeg": "JPEG of quality {:g}",
}


def setting(condition: str, level: int) -> str:
    """In words, what a level of a condition does."""
    return WORDS[condition].format(SETTINGS[condition][level - 1])


def corrupted(image: Image, condition: str, level: int, seed: int) -> Image:
    """``image`` under ``condition`` at ``level`` 1 to 5; a new array in [0, 1]. Raises ``ValueError`` for others."""
    if condition not in CONDITIONS or level not in LEVELS:
        raise ValueError(f"conditions are {', '.join(CONDITIONS)} at levels 1 to 5, got {condition} {level}")
    found = _CHANGES[condition](np.ascontiguousarray(image, dtype=np.float32), SETTINGS[condition][level - 1], seed)
    return np.clip(found, np.float32(0.0), np.float32(1.0))


def _noise(image: Image, deviation: float, seed: int) -> Image:
    """One field for all channels: grey noise, as a detector's."""
    field = generator(seed, "robustness noise").standard_normal(image.shape[1:], dtype=np.float32)
    return image + np.float32(deviation) * field


def _blur(image: Image, share: float, seed: int) -> Image:
    sigma = share * min(image.shape[1:])
    return _each(image, lambda plane: cv2.GaussianBlur(plane, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101))


def _gain(image: Image, factor: float, seed: int) -> Image:
    return image * np.float32(factor)


def _gamma(image: Image, exponent: float, seed: int) -> Image:
    return np.power(image, np.float32(exponent))


def _resolution(image: Image, scale: float, seed: int) -> Image:
    height, width = image.shape[1:]
    small = (max(1, round(width * scale)), max(1, round(height * scale)))

    def coarse(plane: NDArray[Any]) -> NDArray[Any]:
        down = cv2.resize(plane, small, interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.resize(down, (width, height), interpolation=cv2.INTER_LINEAR))

    return _each(image, coarse)


def _jpeg(image: Image, quality: float, seed: int) -> Image:
    def through(plane: NDArray[Any]) -> NDArray[Any]:
        grey = np.rint(plane * 255.0).astype(np.uint8)
        _, data = cv2.imencode(".jpg", grey, [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
        return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)).astype(np.float32) / np.float32(255.0)

    return _each(image, through)


def _each(image: Image, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Image:
    """``change`` of each channel; equal channels (grey images as RGB) stay equal."""
    return np.stack([np.asarray(change(np.ascontiguousarray(plane)), dtype=np.float32) for plane in image])


_CHANGES: Mapping[str, Callable[[Image, float, int], Image]] = {
    "noise": _noise,
    "blur": _blur,
    "gain": _gain,
    "gamma": _gamma,
    "resolution": _resolution,
    "jpeg": _jpeg,
}
