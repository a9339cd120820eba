"""What all phantoms are drawn with: grids, filled and stroked shapes, smooth noise, and the exposure of a radiograph.

Lengths are in half image widths, x to the right and y down, both in [-1, 1].
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
Mask = NDArray[np.uint8]

_SUB = 6  # fractional bits of OpenCV's coordinates


@lru_cache(maxsize=4)
def grid(size: int) -> tuple[Image, Image]:
    """Pixel centres as rows ``x (1, size)`` and columns ``y (size, 1)`` in [-1, 1]."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0).astype(np.float32)
    return line[None, :], line[:, None]


def _pixels(points: NDArray[np.floating[Any]], size: int) -> NDArray[np.int32]:
    """Points ``(..., 2)`` in [-1, 1] as OpenCV's fixed-point pixel coordinates."""
    return np.asarray(np.rint(((points + 1.0) * (size / 2) - 0.5) * (1 << _SUB)), dtype=np.int32)


def filled(outlines: list[NDArray[np.float64]], size: int, blur: float) -> Image:
    """Filled polygons as coverage in [0, 1], softened by ``blur`` (half widths)."""
    canvas = np.zeros((size, size), np.uint8)
    cv2.fillPoly(canvas, [_pixels(points, size) for points in outlines], 255, cv2.LINE_AA, _SUB)
    return _soft(canvas, blur)


def stroked(lines: NDArray[np.float64], size: int, width: float, blur: float) -> Image:
    """Strokes ``lines (L, P, 2)`` of ``width`` (half widths) as coverage in [0, 1]."""
    canvas = np.zeros((size, size), np.uint8)
    pen = width * size / 2
    # A pen thinner than one pixel still covers one: its coverage is scaled instead.
    shade = int(255 * min(1.0, pen))
    cv2.polylines(canvas, list(_pixels(lines, size)), False, shade, max(1, round(pen)), cv2.LINE_AA, _SUB)
    return _soft(canvas, blur)


def _soft(canvas: Mask, blur: float) -> Image:
    image = canvas.astype(np.float32) * (1 / 255)
    return blurred(image, blur * canvas.shape[0] / 2)


def blurred(image: Image, sigma: float) -> Image:
    """``image`` under a Gaussian of ``sigma`` pixels, at least 0.3."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), max(0.3, sigma)), dtype=np.float32)


def cloud(rng: np.random.Generator, size: int, cells: int) -> Image:
    """Smooth noise, mean 0 and deviation about 1, ``cells`` features across."""
    coarse = rng.standard_normal((cells, cells), dtype=np.float32)
    return np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), dtype=np.float32)


@lru_cache(maxsize=8)
def closed_curve(knots: int, count: int) -> NDArray[np.float64]:
    """Weights ``(count, knots)`` that draw a closed Catmull–Rom curve through the knots."""
    at = np.linspace(0.0, knots, count, endpoint=False)
    index, t = at.astype(int), (at % 1.0)[:, None]
    p0, p1, p2, p3 = (np.eye(knots)[(index + shift) % knots] for shift in (-1, 0, 1, 2))
    linear, square, cube = p2 - p0, 2 * p0 - 5 * p1 + 4 * p2 - p3, 3 * p1 - p0 - 3 * p2 + p3
    return np.asarray(p1 + 0.5 * (linear * t + square * t**2 + cube * t**3))


def posed(image: Image, mask: Mask, rng: np.random.Generator, turn_deg: float = 2.0) -> tuple[Image, Mask]:
    """``image`` and ``mask`` as the patient lay: turned (a deviation of ``turn_deg``), scaled and shifted alike."""
    size = image.shape[0]
    turn, zoom = rng.normal(0.0, turn_deg), rng.uniform(0.95, 1.06)
    pose = cv2.getRotationMatrix2D((size / 2 - 0.5, size / 2 - 0.5), turn, zoom)
    pose[:, 2] = pose[:, 2] + rng.normal(0.0, 0.018 * size, 2)
    film = cv2.warpAffine(image, pose, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    laid = cv2.warpAffine(mask, pose, (size, size), flags=cv2.INTER_NEAREST)
    return np.asarray(film, np.float32), np.asarray(laid, np.uint8)


def exposed(film: Image, hard: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A radiograph ``(size, size)`` uint8 of attenuation: focal blur, exposure, tone curve and noise."""
    size = film.shape[0]
    film = np.asarray(cv2.GaussianBlur(film, (0, 0), size * rng.uniform(0.003, 0.008)), np.float32)
    x, y = grid(size)
    heel = 1.0 + rng.normal(0.0, 0.04) * x + rng.normal(0.0, 0.04) * y  # anode heel effect
    gain, offset, gamma = rng.uniform(0.85, 1.15), rng.uniform(-0.08, 0.0), rng.uniform(1.0, 1.35)
    # Transmission falls exponentially with attenuation (Beer–Lambert), so dense tissue is compressed, not cut off.
    dense = 1.06 * (1.0 - np.exp((-1.9 * gain) * np.clip(film * heel, 0.0, None)))
    tone = np.clip(dense + offset, 0.0, 1.0) ** gamma
    # Fewer quanta reach the detector behind dense tissue, so noise grows with attenuation.
    grain = (0.012 + 0.03 * hard * rng.uniform(0.5, 1.5)) * (0.4 + tone)
    tone = tone + grain * rng.standard_normal((size, size), dtype=np.float32)
    return np.asarray(np.clip(tone * 255.0 + 0.5, 0.0, 255.0), np.uint8)


def lay_disc(image: Image, cx: float, cy: float, rx: float, ry: float, value: float | Image, lean: float = 0.0) -> None:
    """Fill an ellipse of ``image`` ``(size, size)`` or ``(C, size, size)`` with ``value``, in place.

    ``lean`` turns it (radians). Its edge is about a pixel wide; only the pixels around it are touched.
    """
    size = image.shape[-1]
    cos, sin = math.cos(lean), math.sin(lean)
    reach_x, reach_y = math.hypot(rx * cos, ry * sin) + 4.0 / size, math.hypot(rx * sin, ry * cos) + 4.0 / size
    left, right = _span(cx, reach_x, size)
    upper, lower = _span(cy, reach_y, size)
    x, y = grid(size)
    x, y = x[:, left:right] - np.float32(cx), y[upper:lower] - np.float32(cy)
    along, across = x * np.float32(cos) + y * np.float32(sin), y * np.float32(cos) - x * np.float32(sin)
    distance = np.sqrt((along * np.float32(1 / rx)) ** 2 + (across * np.float32(1 / ry)) ** 2)
    cover = np.clip((1.0 - distance) * np.float32(min(rx, ry) * size / 2) + 0.5, 0.0, 1.0)
    part = image[..., upper:lower, left:right]
    part += cover * (value - part)


def _span(centre: float, reach: float, size: int) -> tuple[int, int]:
    return max(0, int((centre - reach + 1) * size / 2)), min(size, int((centre + reach + 1) * size / 2) + 2)


def mixed_in(image: Image, coverage: Image, value: float | Image) -> Image:
    """``image`` where ``coverage`` is 0, ``value`` where it is 1, both between: partial volume."""
    return np.asarray(image + coverage * (value - image), np.float32)
