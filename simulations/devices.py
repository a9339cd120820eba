"""Device shift: the same patients seen through every hospital's own X-ray machine.

A site's detector has a gain, a characteristic curve (gamma), blur, noise, a coarser pitch,
and sometimes an inverted photometric interpretation (DICOM PS3.3 C.7.6.3.1.2, MONOCHROME1).
The shift is a simulation's and is applied before the images enter the site's vault.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.randomness import generator

HOUNSFIELD = (-1024.0, 3071.0)  # the 12 bits of a CT
DEPTHS = (4095.0, 16383.0, 65535.0)  # 12, 14 and 16 bits, as detectors write into uint16
INVERT_ABOVE = 0.75  # strength from which some sites are inverted
INVERTED_SITES = 0.25  # about this share of them


@dataclass(frozen=True)
class Device:
    """One site's detector. The defaults change nothing."""

    gain: float = 1.0
    """Factor on intensity, from the lower end of its range; above the range it saturates."""
    gamma: float = 1.0
    """Exponent on intensity in [0, 1]."""
    blur_sigma: float = 0.0
    """Standard deviation of a Gaussian blur, as a part of the image's shorter side."""
    noise_sigma: float = 0.0
    """Standard deviation of additive Gaussian noise, as a part of the intensity range."""
    resolution: float = 1.0
    """Scale to which an image is sampled down, and up again to its size."""
    invert: bool = False

    def __post_init__(self) -> None:
        for name in ("gain", "gamma"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"device.{name} must be > 0, got {getattr(self, name)}")
        for name in ("blur_sigma", "noise_sigma"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"device.{name} must be in [0, 1], got {getattr(self, name)}")
        if not 0.0 < self.resolution <= 1.0:
            raise ValueError(f"device.resolution must be in (0, 1], got {self.resolution}")

    @property
    def identity(self) -> bool:
        return self == Device()

    def describe(self) -> str:
        """The device in plain words, e.g. "gain +12%, gamma 0.91, noise 2.1% of the range"."""
        words = []
        if self.gain != 1.0:
            words.append(f"gain {self.gain - 1.0:+.0%}")
        if self.gamma != 1.0:
            words.append(f"gamma {self.gamma:.2f}")
        if self.blur_sigma > 0.0:
            words.append(f"blur {self.blur_sigma:.2%} of the image's size")
        if self.noise_sigma > 0.0:
            words.append(f"noise {self.noise_sigma:.1%} of the range")
        if self.resolution < 1.0:
            words.append(f"{self.resolution:.0%} resolution")
        if self.invert:
            words.append("inverted")
        return ", ".join(words) or "unchanged"


def device_for(site_index: int, sites: int, strength: float, seed: int) -> Device:
    """The device of site ``site_index`` (from 0) of ``sites``; ``strength`` 0 is no shift, 1 a severe one.

    Every parameter's range is cut into as many steps as there are sites and each site gets
    another step (a Latin hypercube; McKay, Beckman, Conover 1979), so that no two are alike.
    Inversion happens above strength ``INVERT_ABOVE``, at about a quarter of the sites.
    """
    if not 0 <= site_index < sites:
        raise ValueError(f"site_index must be in [0, {sites}), got {site_index}")
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength must be in [0, 1], got {strength}")
    if strength == 0.0:
        return Device()
    gain, gamma, blur, noise, coarse, turn = _hypercube(sites, seed)[site_index].tolist()
    inverted = math.floor(INVERTED_SITES * sites + 0.5) if strength > INVERT_ABOVE else 0
    return Device(
        gain=math.exp(strength * 0.4 * (2.0 * gain - 1.0)),
        gamma=math.exp(strength * 0.6 * (2.0 * gamma - 1.0)),
        blur_sigma=strength * 0.015 * blur,
        noise_sigma=strength * 0.06 * noise,
        resolution=1.0 - strength * 0.6 * coarse,
        invert=turn * sites < inverted,
    )


@lru_cache(maxsize=4)
def _hypercube(sites: int, seed: int) -> NDArray[np.float64]:
    """``(sites, 6)`` in [0, 1); in each column every site lies in another of ``sites`` equal steps."""
    rng = generator(seed, "devices", sites)
    steps = np.stack([rng.permutation(sites) for _ in range(6)], axis=1)
    table: NDArray[np.float64] = (steps + rng.random((sites, 6))) / sites
    table.setflags(write=False)
    return table


def apply(pixels: NDArray[Any], device: Device, seed: int) -> NDArray[Any]:
    """``pixels`` as ``device`` would have recorded them; dtype and shape stay.

    In this order: blur, resolution, gain, gamma, noise, inversion.

    ``pixels``: ``(H, W)`` or ``(H, W, 3)``, uint8, uint16 or int16. The identity device returns
    them as they are. ``seed`` names the noise and should differ between images
    (``seed_for(study.seed, site, image)``). Raises :class:`DataError` for another kind of array.
    """
    if device.identity:
        return pixels
    if pixels.dtype not in (np.uint8, np.uint16, np.int16) or not (
        pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    ):
        raise DataError(
            f"device shift: an image is (H, W) or (H, W, 3) of uint8, uint16 or int16, not {pixels.shape} of "
            f"{pixels.dtype}; convert it when it is read"
        )
    low, high = _range(pixels)
    height, width = pixels.shape[:2]
    values = (pixels.astype(np.float32) - np.float32(low)) / np.float32(high - low)
    if device.blur_sigma > 0.0:
        sigma = device.blur_sigma * min(height, width)
        values = cv2.GaussianBlur(values, (0, 0), sigma, borderType=cv2.BORDER_REFLECT_101)  # type: ignore[assignment]
    if device.resolution < 1.0:
        small = (max(1, round(width * device.resolution)), max(1, round(height * device.resolution)))
        coarse = cv2.resize(values, small, interpolation=cv2.INTER_AREA)
        values = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
    np.multiply(values, np.float32(device.gain), out=values)
    np.clip(values, 0.0, 1.0, out=values)
    if device.gamma != 1.0:
        np.power(values, np.float32(device.gamma), out=values)
    if device.noise_sigma > 0.0:
        noise = generator(seed, "device noise").standard_normal((height, width), dtype=np.float32)
        noise *= np.float32(device.noise_sigma)
        values += noise if values.ndim == 2 else noise[:, :, None]
        np.clip(values, 0.0, 1.0, out=values)
    if device.invert:
        np.subtract(np.float32(1.0), values, out=values)
    values *= np.float32(high - low)
    values += np.float32(low)
    shifted: NDArray[Any] = np.rint(values, out=values).astype(pixels.dtype)
    return shifted


def _range(pixels: NDArray[Any]) -> tuple[float, float]:
    """The intensities a detector of this kind writes: 8 bits; 12, 14 or 16 bits as the image needs;
    or Hounsfield units, widened to what the image holds."""
    if pixels.dtype == np.uint8 or pixels.size == 0:
        return 0.0, 255.0
    low, high = float(pixels.min()), float(pixels.max())
    if pixels.dtype == np.uint16:
        return 0.0, next(depth for depth in DEPTHS if high <= depth)
    return min(low, HOUNSFIELD[0]), max(high, HOUNSFIELD[1])
