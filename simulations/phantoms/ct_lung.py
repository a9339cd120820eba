"""Axial slices of the chest, as of a CT: Hounsfield units, with a nodule in a lung or none.

Tissues have their usual values (lung −860, fat −100, muscle 50, bone up to 900; blood 45 or, with contrast, more). A
nodule is a ball cut by a slab as thick as the slice, so that thick slices blur small ones away (partial volume), and
thin slices are noisier. "Solid" nodules are as dense as muscle, "ground glass" leaves vessels visible. Vessels seen
end on look like small nodules: that is what makes the task a task. The field of view is 360 mm.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from common.study import PhantomSpec
from simulations.datasets.source import Item
from simulations.phantoms.drawing import (
    Image,
    Mask,
    blurred,
    closed_curve,
    cloud,
    filled,
    grid,
    lay_disc,
    mixed_in,
    posed,
    stroked,
)
from simulations.phantoms.people import NORMAL

HALF_MM: Final = 180.0
"""Half of the field of view: what a length of 1 stands for."""
AIR, LUNG, FAT, MUSCLE = -1000.0, -860.0, -100.0, 50.0
LUNG_WINDOW: Final = (-600.0, 1500.0)
"""Centre and width of the usual lung window, in Hounsfield units."""
_KERNELS = {"scanner A": (0.7, 0.8), "scanner B": (0.5, 1.0), "scanner C": (0.3, 1.5)}
"""Smoothing in pixels, and relative noise, of each device's reconstruction."""
# Knots of the lung on the image's right, seen from the feet; the other has no notch for the heart.
_LEFT_LUNG = np.array(
    [[0.16, -0.47], [0.42, -0.50], [0.64, -0.33], [0.75, -0.02], [0.70, 0.27], [0.51, 0.47], [0.29, 0.50],
     [0.17, 0.40], [0.19, 0.24], [0.21, 0.08], [0.33, -0.05], [0.31, -0.22]]
)  # fmt: skip
_RIGHT_LUNG = np.array(
    [[-0.10, -0.47], [-0.40, -0.51], [-0.64, -0.34], [-0.76, -0.02], [-0.71, 0.27], [-0.52, 0.47], [-0.29, 0.51],
     [-0.15, 0.42], [-0.13, 0.25], [-0.20, 0.08], [-0.17, -0.06], [-0.14, -0.24]]
)  # fmt: skip


Lines = NDArray[np.float64]


@dataclass(frozen=True)
class _Body:
    """One patient's shape and the level of the slice: 0 near the top of the lungs, 1 near the diaphragm."""

    wide: float
    deep: float
    fat: float
    level: float
    contrast: float  # of blood, in HU
    bone: float


def draw(
    item: Item, spec: PhantomSpec, person: np.random.Generator, rng: np.random.Generator
) -> tuple[NDArray[np.int16], Mask]:
    """Pixels ``(size, size)`` int16 in Hounsfield units, and the nodule's mask. See ``people.Draw``."""
    size, hard = spec.size, spec.difficulty
    female = item.attributes["sex"] == "F"
    old = (int(item.attributes["age"]) - 52) / 40
    u = person.uniform(-1.0, 1.0, 4).tolist()
    body = _Body(
        wide=0.90 + 0.05 * u[0] - 0.02 * female,
        deep=0.66 + 0.05 * u[1],
        fat=0.075 + 0.04 * u[2] + 0.015 * female,
        level=float(rng.uniform(0.0, 1.0)),
        contrast=float(rng.choice([45.0, 45.0, 190.0])),
        bone=1.0 - 0.25 * old + 0.1 * u[3],
    )
    lungs = _lungs(body, person, size)
    hounsfield = _thorax(body, lungs, rng, hard)
    thick = float(item.attributes["slice_thickness_mm"])
    finding = item.labels["finding"][0]
    mask = np.zeros((size, size), np.uint8)
    if finding != NORMAL:
        hounsfield, mask = _with_nodule(hounsfield, lungs, finding, thick, hard, rng)
    hounsfield, mask = posed(hounsfield, mask, rng.spawn(1)[0])
    smooth, grain = _KERNELS[item.attributes["device"]]
    noise = (10.0 + 30.0 * hard) * grain * np.sqrt(3.0 / thick) * rng.uniform(0.7, 1.3)
    hounsfield = hounsfield + np.float32(noise) * rng.standard_normal((size, size), dtype=np.float32)
    hounsfield = blurred(np.asarray(hounsfield, np.float32), smooth * size / 128)
    return np.asarray(np.clip(np.rint(hounsfield), -1024, 3071), np.int16), mask


def windowed(hounsfield: NDArray[np.int16]) -> NDArray[np.uint8]:
    """8 bits through :data:`LUNG_WINDOW`."""
    centre, width = LUNG_WINDOW
    share = (hounsfield.astype(np.float32) - np.float32(centre - width / 2)) * np.float32(1 / width)
    return np.asarray(np.clip(share, 0.0, 1.0) * 255.0 + 0.5, np.uint8)


def _lungs(body: _Body, person: np.random.Generator, size: int) -> Image:
    """Coverage of both lungs: outlines that are each patient's own, smaller at the top and the base."""
    middle = 1.0 - 0.35 * (2.0 * abs(body.level - 0.45)) ** 2
    outlines = []
    for knots in (_RIGHT_LUNG, _LEFT_LUNG):
        moved = knots * [0.92 + 0.06 * middle, 0.78 + 0.22 * middle] * [body.wide / 0.9, body.deep / 0.66]
        moved = moved + person.uniform(-0.012, 0.012, knots.shape)
        if knots is _LEFT_LUNG:  # the heart lies in the lower levels
            moved[[9, 10, 11], 0] += 0.14 * (body.level - 0.45)
        outlines.append(closed_curve(len(knots), 64) @ moved)
    return filled(outlines, size, 0.008)


def _thorax(body: _Body, lungs: Image, rng: np.random.Generator, hard: float) -> Image:
    size = lungs.shape[0]
    x, y = grid(size)
    trunk = np.abs(x / body.wide) ** 2.5 + np.abs(y / body.deep) ** 2.5
    inner = np.abs(x / (body.wide - body.fat)) ** 2.5 + np.abs(y / (body.deep - 0.8 * body.fat)) ** 2.5
    image: Image = np.full((size, size), AIR, np.float32)
    table = np.exp(-(((y - body.deep - 0.06 + 0.10 * x * x) / 0.012) ** 2))
    image = mixed_in(image, np.asarray(table * 0.8, np.float32), -300.0)
    image = mixed_in(image, _inside(trunk, size), FAT)
    image = mixed_in(image, _inside(inner, size), MUSCLE - 10.0)
    lay_disc(image, 0.02, -0.02, 0.34, 0.44, -60.0 + 50.0 * body.level)  # fat of the mediastinum
    _lay_mediastinum(image, body, rng)
    parenchyma = LUNG + 70.0 * y + 18.0 * cloud(rng, size, 9) + 14.0 * cloud(rng, size, 24)
    image = mixed_in(image, lungs, np.asarray(parenchyma, np.float32))
    image = mixed_in(image, _branches(rng, size, hard) * lungs, min(body.contrast, 90.0))
    return _bones(image, body, size)


def _inside(field: NDArray[np.float32], size: int) -> Image:
    """Where ``field`` is below 1, with an edge of about a pixel."""
    return np.asarray(np.clip((1.0 - field) * (size / 5.0) + 0.5, 0.0, 1.0), np.float32)


def _lay_mediastinum(image: Image, body: _Body, rng: np.random.Generator) -> None:
    """Heart below, great vessels and windpipe above."""
    blood, low = body.contrast, body.level
    lay_disc(image, 0.11, 0.33, 0.062, 0.062, blood)  # descending aorta
    lay_disc(image, 0.02, 0.24, 0.035, 0.025, MUSCLE)  # gullet
    if low > 0.45:
        grown = 0.6 + 0.5 * low
        lay_disc(image, 0.10, -0.14, 0.33 * grown, 0.27 * grown, MUSCLE, 0.5)
        lay_disc(image, 0.17, -0.12, 0.17 * grown, 0.14 * grown, blood, 0.5)
        lay_disc(image, -0.03, -0.19, 0.14 * grown, 0.15 * grown, blood, 0.4)
        return
    lay_disc(image, -0.05, -0.18, 0.085, 0.085, blood)  # ascending aorta
    lay_disc(image, -0.13, -0.08, 0.045, 0.055, blood * 0.9)  # upper vena cava
    if low > 0.25:
        lay_disc(image, 0.08, -0.10, 0.14, 0.06, blood, -0.6)  # trunk of the lung's artery
        for side in (-0.11, 0.12):
            lay_disc(image, side, 0.09, 0.045, 0.035, AIR)  # main bronchi
    else:
        lay_disc(image, rng.uniform(-0.02, 0.02), 0.06, 0.055, 0.05, AIR)  # windpipe


@lru_cache(maxsize=1)
def _fan() -> NDArray[np.float64]:
    """Directions of the vessels from each hilum: ``(14, 2)`` side and angle."""
    angle = np.tile(np.linspace(-1.35, 1.45, 7), 2)
    return np.column_stack([np.repeat([-1.0, 1.0], 7), angle])


def _branches(rng: np.random.Generator, size: int, hard: float) -> Image:
    """Vessels of the lungs: trunks that fork and thin out, and some that are cut across."""
    side, angle = _fan().T
    angle = angle + rng.uniform(-0.2, 0.2, len(angle))
    root = np.column_stack([side * 0.17, np.full(len(side), 0.05)])
    along = np.linspace(0.0, 1.0, 5)[None, :, None]

    def stem(start: Lines, heading: Lines, length: Lines) -> Lines:
        way = np.stack([side * np.cos(heading), np.sin(heading)], axis=-1) * length[:, None]
        across = np.stack([-way[:, 1], way[:, 0]], axis=-1) * rng.uniform(-0.25, 0.25, (len(side), 1))
        return start[:, None] + way[:, None] * along + across[:, None] * along**2

    trunks = stem(root, angle, rng.uniform(0.14, 0.30, len(side)))
    forks = [stem(trunks[:, -1], angle + turn, rng.uniform(0.08, 0.24, len(side))) for turn in (-0.45, 0.4)]
    forks.append(stem(trunks[:, 2], angle + 0.7, rng.uniform(0.05, 0.18, len(side))))
    dots = np.column_stack([rng.uniform(-0.7, 0.7, 16), rng.uniform(-0.4, 0.45, 16)])
    ends = np.stack([dots, dots + rng.uniform(-0.012, 0.012, dots.shape)], axis=1)
    drawn = np.maximum(stroked(trunks, size, 0.026, 0.006), 0.8 * stroked(np.concatenate(forks), size, 0.013, 0.005))
    return np.asarray(np.maximum(drawn, (0.35 + 0.6 * hard) * stroked(ends, size, 0.022, 0.006)), np.float32)


def _bones(image: Image, body: _Body, size: int) -> Image:
    spine = 0.44 * body.deep / 0.66
    lay_disc(image, 0.0, spine, 0.125, 0.095, 620.0 * body.bone)
    lay_disc(image, 0.0, spine, 0.105, 0.075, 190.0 * body.bone)
    arch = np.array([[[-0.05, spine + 0.07], [-0.10, spine + 0.13], [0.0, spine + 0.19], [0.10, spine + 0.13],
                      [0.05, spine + 0.07]]])  # fmt: skip
    limbs = np.array([[[side * 0.09, spine + 0.12], [side * 0.20, spine + 0.13]] for side in (-1.0, 1.0)]
                     + [[[0.0, spine + 0.18], [0.0, spine + 0.25]]])  # fmt: skip
    image = mixed_in(image, stroked(arch, size, 0.04, 0.006), 600.0 * body.bone)
    image = mixed_in(image, stroked(limbs, size, 0.045, 0.006), 480.0 * body.bone)
    lay_disc(image, 0.0, spine + 0.125, 0.048, 0.042, 25.0)  # the canal
    middle = np.linspace(0.35, 2.75, 6) + 0.25 * (body.level - 0.5)
    # A rib crosses the slice on a slant, so what is seen is a piece of it.
    angle = middle[:, None] + np.linspace(-0.11, 0.11, 5)
    reach = np.array([body.wide - body.fat - 0.045, body.deep - 0.8 * body.fat - 0.035])
    piece = np.stack([np.sin(angle), -np.cos(angle)], axis=-1)
    piece = np.sign(piece) * np.abs(piece) ** 0.8 * reach
    ribs = np.concatenate([piece, piece * [-1.0, 1.0]])
    image = mixed_in(image, stroked(ribs, size, 0.038, 0.006), 560.0 * body.bone)
    image = mixed_in(image, stroked(ribs, size, 0.012, 0.004), 150.0 * body.bone)
    front = -(body.deep - 0.8 * body.fat - 0.05)
    sternum = np.array([[[-0.09, front], [0.09, front]]])
    return mixed_in(image, stroked(sternum, size, 0.045, 0.006), 330.0 * body.bone)


def _with_nodule(
    image: Image, lungs: Image, finding: str, thick_mm: float, hard: float, rng: np.random.Generator
) -> tuple[Image, Mask]:
    size = image.shape[0]
    deep = np.flatnonzero(cv2.GaussianBlur(lungs, (0, 0), size * 0.03) > 0.93)
    at = int(deep[rng.integers(len(deep))]) if len(deep) else size * size // 2 + size // 4
    x, y = grid(size)
    dx, dy = x - x[0, at % size], y - y[at // size, 0]
    solid = finding == "solid"
    smallest, largest = (10.0 - 5.0 * hard, 22.0 - 11.0 * hard) if solid else (14.0 - 4.0 * hard, 30.0 - 12.0 * hard)
    radius = rng.uniform(smallest, largest) / HALF_MM
    angle = np.arctan2(dy, dx)
    wave = rng.uniform(-np.pi, np.pi, 3)
    uneven = (
        1.0
        + (0.10 * np.sin(2 * angle + wave[0]) + 0.08 * np.sin(3 * angle + wave[1]))
        + (0.07 * solid * np.sin(9 * angle + wave[2]))
    )
    distance = np.sqrt(dx * dx + dy * dy) / uneven
    chord = 2.0 * np.sqrt(np.clip(radius**2 - distance**2, 0.0, None))
    share = np.clip(chord * (HALF_MM / thick_mm), 0.0, 1.0)
    mask = np.asarray(share > 0.5, np.uint8)
    mask[at // size, at % size] = 1
    if solid:
        density = MUSCLE - 150.0 * hard * rng.uniform(0.3, 1.0)
        return mixed_in(image, np.asarray(share, np.float32), density), mask
    milky = (420.0 - 260.0 * hard) * rng.uniform(0.8, 1.2) * (1.0 + 0.25 * cloud(rng, size, 20))
    return np.asarray(np.minimum(image + share * milky, np.maximum(image, -250.0)), np.float32), mask
