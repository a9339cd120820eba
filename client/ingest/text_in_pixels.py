"""A simple detector of text that was written into an image: a warning, never a proof that there is none.

Text is a row of thin strokes in strong contrast, in pieces of nearly the same height side by side. A lone side marker
(``L``, ``R``) or a pair of letters is not a row. Measured rates: ``docs/deidentification.md``.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_SIDE = 1024  # longest side of the picture that is looked at
_STROKE = 9  # pixels there; the structuring element that strokes are thinner than
_CONTRAST = 64  # of 255, between a stroke and what surrounds it
_LEAST_HEIGHT, _MOST_HEIGHT = 6, 48
_LETTERS = 5  # in a row
_MOST_PIECES = 1500


def detect(picture: NDArray[Any]) -> bool:
    """Whether a picture ``(H, W)`` or ``(H, W, 3)``, uint8, uint16 or int16, seems to have a row of letters in it."""
    grey = _reduced(picture)
    kernel = cv2.getStructuringElement(cv2.MORPH_RECT, (_STROKE, _STROKE))
    return any(_has_row(cv2.morphologyEx(grey, kind, kernel)) for kind in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT))


def _reduced(picture: NDArray[Any]) -> NDArray[np.uint8]:
    """Grey, at most ``_SIDE`` pixels long (small ones doubled), darkest and brightest percentiles at 0 and 255."""
    longest = max(picture.shape[:2])
    if longest > _SIDE:
        # A whole number of pixels into one: OpenCV averages that twenty times faster than any other ratio.
        step = -(-longest // _SIDE)
        height, width = (max(1, side // step) for side in picture.shape[:2])
        whole = picture[: height * step, : width * step]
        picture = np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA))
    elif 2 * longest <= _SIDE:
        picture = np.asarray(cv2.resize(picture, None, fx=2.0, fy=2.0, interpolation=cv2.INTER_LINEAR))
    if picture.ndim == 3:
        picture = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY))
    low, high = (int(end) for end in np.percentile(picture[::4, ::4], (1.0, 99.5)))
    scale = 255.0 / max(high - low, 1)
    return np.asarray(cv2.convertScaleAbs(np.maximum(picture, low), alpha=scale, beta=-low * scale), dtype=np.uint8)


def _has_row(strokes: NDArray[Any]) -> bool:
    _, mask = cv2.threshold(strokes, _CONTRAST, 255, cv2.THRESH_BINARY)
    # Labels of 16 bits cost a third, and suffice where there are fewer pixels than labels.
    depth = cv2.CV_16U if cv2.countNonZero(mask) < 1 << 16 else cv2.CV_32S
    _, _, found, _ = cv2.connectedComponentsWithStats(mask, connectivity=8, ltype=depth)
    found = found[1:]  # the first is the background
    height, width, area = found[:, cv2.CC_STAT_HEIGHT], found[:, cv2.CC_STAT_WIDTH], found[:, cv2.CC_STAT_AREA]
    filled = area / (height * width)
    letters = (
        (height >= _LEAST_HEIGHT)
        & (height <= _MOST_HEIGHT)
        & (width >= 0.1 * height)
        & (width <= 4.0 * height)  # letters that touch are one piece
        & (filled >= 0.2)
        & ((filled <= 0.85) | (width <= 0.6 * height))  # a solid block is no letter, unless it is an I
    )
    boxes = found[letters].astype(np.float64)
    if not 1 <= len(boxes) <= _MOST_PIECES:
        return False
    tall, left, top = boxes[:, cv2.CC_STAT_HEIGHT], boxes[:, cv2.CC_STAT_LEFT], boxes[:, cv2.CC_STAT_TOP]
    right, bottom = left + boxes[:, cv2.CC_STAT_WIDTH], top + tall
    larger = np.maximum(tall[:, None], tall[None, :])
    gap = left[None, :] - right[:, None]
    follows = (
        (np.abs(tall[:, None] - tall[None, :]) <= 0.34 * larger)  # capitals, and small letters on the same line
        & (np.abs(bottom[:, None] - bottom[None, :]) <= 0.15 * larger + 0.5)
        & (gap >= -1.0)
        & (gap <= 1.2 * larger)  # a space or a hyphen between them
        & (left[None, :] > left[:, None])
    )
    # Letters in the longest chain of neighbours, left to right; a wide piece counts for as many as it is long.
    worth = np.maximum(1.0, np.rint((right - left) / (0.8 * tall)))
    length = worth.copy()
    for index in np.argsort(left, kind="stable"):
        before = follows[:, index]
        if before.any():
            length[index] += length[before].max()
    return bool(length.max() >= _LETTERS)
