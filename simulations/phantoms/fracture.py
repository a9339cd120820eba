"""Radiographs of a wrist and forearm, with a fracture of the radius or the ulna, or none.

A bone is a tube: attenuation along the beam is that of its wall, thick in the shaft and thin at the end, and of the
spongy bone inside. A fracture is a dark, jagged line through it, with a step and a bend of what lies beyond. What could
be taken for one is there without: the canal of the feeding artery, the scar of the growth plate. The mask is a band
along the line, inside the bone. From the side (``LAT``) the two bones lie over each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from common.study import PhantomSpec
from simulations.datasets.source import Item
from simulations.phantoms.drawing import Image, Mask, cloud, exposed, grid, lay_disc, posed, stroked
from simulations.phantoms.people import NORMAL

BAND = 0.05
"""Half the mask's width across a line, in half image widths."""
_TONES = {"scanner A": 1.0, "scanner B": 0.85, "scanner C": 1.2}


@dataclass(frozen=True)
class _Bone:
    """A long bone along the image: ``x`` of its axis at the middle, its lean, its widths, and where it ends below."""

    x: float
    lean: float
    shaft: float
    flare: float  # how much wider its end is
    end: float
    wall: float  # share of the half width that is wall, in the shaft


@dataclass(frozen=True)
class _Line:
    """A fracture line: its height on the axis, slope, gap, and how far what lies below is moved and bent."""

    y: float
    slope: float
    gap: float
    depth: float
    step: float
    bend: float


def draw(
    item: Item, spec: PhantomSpec, person: np.random.Generator, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], Mask]:
    """Pixels ``(size, size)`` uint8, and the fracture's mask. See ``people.Draw``."""
    size, hard = spec.size, spec.difficulty
    finding = item.labels["finding"][0]
    side_view = item.attributes["view"] == "LAT"
    radius, ulna = _bones(item, person, side_view=side_view)
    lines = _lines(finding, hard, rng)
    broken = radius if rng.random() < 0.7 else ulna
    mask = np.zeros((size, size), np.uint8)
    film: Image = np.zeros((size, size), np.float32)
    for bone in (ulna, radius):
        film += _bone(bone, lines if bone is broken else (), mask, rng, size)
    film += _hand(person, size, side_view=side_view)
    film += _soft(person, size, side_view=side_view)
    film *= np.float32(_TONES[item.attributes["device"]] * rng.uniform(0.9, 1.1))
    film, mask = posed(film, mask, rng.spawn(1)[0], 9.0)
    _marker(film, rng)
    return exposed(film, hard, rng), mask


def _bones(item: Item, person: np.random.Generator, *, side_view: bool) -> tuple[_Bone, _Bone]:
    u = person.uniform(-1.0, 1.0, 6).tolist()
    thin = 0.03 * (item.attributes["sex"] == "F") + 0.10 * max(0.0, (int(item.attributes["age"]) - 50) / 40)
    apart = 0.05 if side_view else 0.21 + 0.02 * u[0]
    radius = _Bone(-apart + 0.03, 0.03 * u[1], 0.125 + 0.012 * u[2], 0.115, 0.44 + 0.03 * u[3], 0.46 - thin)
    ulna = _Bone(apart, 0.03 * u[4] - 0.04, 0.105 + 0.010 * u[5], 0.035, 0.38 + 0.03 * u[3], 0.48 - thin)
    return radius, ulna


def _lines(finding: str, hard: float, rng: np.random.Generator) -> tuple[_Line, ...]:
    """The lines of a fracture of that kind: one, or several of a comminuted one."""
    if finding == NORMAL:
        return ()
    plain = 1.0 - 0.7 * hard  # how much of a displacement is left at this difficulty

    def either() -> float:
        return math.copysign(1.0, rng.random() - 0.5)

    y = rng.uniform(-0.65, 0.28)
    slopes: Sequence[float] = (rng.uniform(-0.15, 0.15),)
    if finding == "oblique":
        slopes = (either() * rng.uniform(0.6, 1.3),)
    elif finding == "comminuted":
        slopes = (rng.uniform(0.35, 0.9), -rng.uniform(0.35, 0.9), rng.uniform(-0.1, 0.1))
    return tuple(
        _Line(
            y=y + rng.uniform(-0.08, 0.08) * (number > 0),
            slope=slope,
            gap=rng.uniform(0.034, 0.060) * (1.0 - 0.5 * hard),
            depth=rng.uniform(0.8, 1.0) * (1.0 - 0.45 * hard),
            step=either() * rng.uniform(0.06, 0.17) * plain,
            bend=either() * rng.uniform(0.08, 0.30) * plain * (number == 0),
        )
        for number, slope in enumerate(slopes)
    )


def _bone(bone: _Bone, lines: Sequence[_Line], mask: Mask, rng: np.random.Generator, size: int) -> Image:
    """Attenuation of a bone; its fracture's band is added to ``mask``."""
    x, y = grid(size)
    axis = bone.x + bone.lean * y
    gaps: Image = np.ones((size, size), np.float32)
    bands: Image = np.zeros((size, size), np.float32)
    for line in lines:
        jag = np.interp(np.linspace(0, 9, size), np.arange(10), rng.normal(0.0, 0.022, 10)).astype(np.float32)
        below = y - (line.y + line.slope * (x - bone.x) + jag[None, :])
        across = below * np.float32(1.0 / math.hypot(1.0, line.slope))
        gaps *= 1.0 - np.float32(line.depth) * np.exp(-((across / line.gap) ** 2))
        np.maximum(bands, np.abs(across) < BAND, out=bands)
        beyond = np.clip(across * (size / 4) + 0.5, 0.0, 1.0)
        axis = axis + beyond * (line.step + line.bend * np.clip(y - line.y, 0.0, None))
    near_end = np.clip((y - bone.end + 0.42) / 0.38, 0.0, 1.0)
    near_end = near_end * near_end * (3.0 - 2.0 * near_end)
    wide = bone.shaft + bone.flare * near_end
    u = (x - axis) / wide
    hollow = (1.0 - bone.wall) + (bone.wall - 0.10) * near_end
    outer = np.sqrt(np.clip(1.0 - u * u, 0.0, None))
    inner = np.sqrt(np.clip(hollow * hollow - u * u, 0.0, None))
    spongy = 0.30 + 0.20 * near_end + 0.10 * cloud(rng, size, 30) * (0.3 + near_end)
    ends = np.clip((bone.end - 0.05 * u * u - y) * (size / 3), 0.0, 1.0)
    plate = 0.25 * np.exp(-(((y - bone.end + 0.035) / 0.02) ** 2)) + 0.16 * np.exp(
        -(((y - bone.end + 0.14) / 0.012) ** 2)
    )
    attenuation = wide * (4.6 * (outer - inner) + inner * 4.6 * spongy * 0.8) + plate * outer * 0.5
    canal_y = -0.45 + 0.3 * bone.shaft
    canal = np.exp(-(((x - axis - 0.35 * (y - canal_y)) / 0.014) ** 2)) * np.clip(
        1.0 - np.abs(y - canal_y) / 0.09, 0.0, 1.0
    )
    attenuation = attenuation * ends * gaps * (1.0 - 0.28 * canal)
    mask |= np.asarray((bands > 0) & (np.abs(u) < 1.0) & (ends > 0.5), np.uint8)
    return np.asarray(attenuation, np.float32)


def _hand(person: np.random.Generator, size: int, *, side_view: bool) -> Image:
    """Two rows of carpal bones and the bases of the metacarpals."""
    squeeze = 0.45 if side_view else 1.0
    places = [(-0.27, 0.53, 0.095, 0.070), (-0.10, 0.51, 0.085, 0.070), (0.06, 0.52, 0.075, 0.065),
              (-0.30, 0.68, 0.085, 0.065), (-0.16, 0.67, 0.065, 0.065), (-0.02, 0.66, 0.075, 0.085),
              (0.13, 0.66, 0.080, 0.070)]  # fmt: skip
    image: Image = np.zeros((size, size), np.float32)
    for cx, cy, rx, ry in places:
        moved = person.uniform(-0.012, 0.012, 2).tolist()
        lean = float(person.uniform(-0.5, 0.5))
        bone = np.zeros_like(image)
        lay_disc(bone, cx * squeeze + moved[0], cy + moved[1], rx, ry, 0.42, lean)
        lay_disc(bone, cx * squeeze + moved[0], cy + moved[1], rx * 0.8, ry * 0.78, 0.29, lean)
        image += bone
    thick = 0.09 * math.sqrt(squeeze)
    rays = np.array([[[squeeze * (-0.36 + 0.155 * n), 0.78], [squeeze * (-0.44 + 0.20 * n), 1.15]] for n in range(5)])
    image += 0.46 * stroked(rays, size, thick, 0.012) - 0.20 * stroked(rays, size, 0.45 * thick, 0.012)
    return image


def _soft(person: np.random.Generator, size: int, *, side_view: bool) -> Image:
    x, y = grid(size)
    wide = (0.42 if side_view else 0.56) + 0.04 * person.uniform(-1.0, 1.0) - 0.10 * np.clip(y + 0.1, 0.0, 0.5)
    wide = wide + 0.18 * np.clip(y - 0.45, 0.0, None)
    thick = np.sqrt(np.clip(1.0 - (x / wide) ** 2, 0.0, None))
    return np.asarray(0.26 * thick + 0.012 * cloud(person, size, 12) * (thick > 0), np.float32)


def _marker(film: Any, rng: np.random.Generator) -> None:
    """The lead letter of a side, and now and then the shutter's edge, which leaves a black border."""
    size = film.shape[0]
    corner = (int(size * 0.06), int(size * 0.12)) if rng.random() < 0.5 else (int(size * 0.86), int(size * 0.12))
    letter = "R" if rng.random() < 0.5 else "L"
    canvas = np.zeros((size, size), np.uint8)
    cv2.putText(canvas, letter, corner, cv2.FONT_HERSHEY_SIMPLEX, size / 330, 255, max(1, size // 90), cv2.LINE_AA)
    np.maximum(film, canvas * np.float32(1.6 / 255), out=film)
    if rng.random() < 0.4:
        edge = 1 + int(size * rng.uniform(0.02, 0.06))
        film[:edge] = film[-edge:] = 0.0
        film[:, :edge] = film[:, -edge:] = 0.0
