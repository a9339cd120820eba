"""Axial slices of a head, as of an MRI: T1 after contrast medium, T2 and diffusion as the three channels.

Three levels: the base (orbits, temporal lobes, brainstem, cerebellum), the ventricles, and the vertex. Tumours look as
textbooks have them: a glioma lies in white matter, with a ragged enhancing rim, a necrotic core and oedema around; a
meningioma sits on the skull, round, even and bright after contrast; a pituitary adenoma fills the sella. The mask is
the tumour without its oedema. Levels are as frequent without a tumour as with one, so that the level does not tell.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.study import PhantomSpec
from simulations.datasets.source import Item
from simulations.phantoms.drawing import Image, Mask, blurred, cloud, grid, lay_disc, posed, stroked

Image3 = NDArray[np.float32]
"""``(3, size, size)``: T1, T2 and diffusion while drawing, black 0 and white 1."""
Tissue = NDArray[np.float32]
"""``(3, 1, 1)``: how bright a tissue is on each."""


def _tissue(t1: float, t2: float, diffusion: float) -> Tissue:
    return np.array([t1, t2, diffusion], np.float32)[:, None, None]


AIR: Final = _tissue(0.0, 0.0, 0.0)
FAT: Final = _tissue(0.85, 0.55, 0.08)
BONE: Final = _tissue(0.07, 0.05, 0.02)
MUSCLE: Final = _tissue(0.32, 0.22, 0.10)
FLUID: Final = _tissue(0.14, 0.95, 0.06)
GREY: Final = _tissue(0.44, 0.60, 0.46)
WHITE: Final = _tissue(0.64, 0.42, 0.38)
NUCLEI: Final = _tissue(0.50, 0.50, 0.42)
RIM: Final = _tissue(0.98, 0.68, 0.72)
NECROSIS: Final = _tissue(0.20, 0.88, 0.12)
OEDEMA: Final = _tissue(0.42, 0.84, 0.42)
MENINGIOMA: Final = _tissue(0.95, 0.62, 0.66)
VEIN: Final = _tissue(0.92, 0.06, 0.04)
ADENOMA: Final = _tissue(0.86, 0.66, 0.52)

BASE_SHARE: Final = 0.10 / 0.45
"""Share of slices through the base: that of adenomas among tumours (``modalities.MRI_BRAIN``)."""
_GAINS = {"scanner A": (1.0, 1.0, 1.0), "scanner B": (0.88, 1.08, 1.15), "scanner C": (1.10, 0.90, 0.85)}


def draw(
    item: Item, spec: PhantomSpec, person: np.random.Generator, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], Mask]:
    """Pixels ``(size, size, 3)`` uint8, and the tumour's mask. See ``people.Draw``."""
    size, hard = spec.size, spec.difficulty
    finding = item.labels["finding"][0]
    base = finding == "pituitary" or (finding == "normal" and rng.random() < BASE_SHARE)
    top = not base and rng.random() < 0.4
    head = _Head(person, size, int(item.attributes["age"]), 0.92 if top else 1.0)
    image = _base(head) if base else _hemispheres(head, top=top)
    if not base:
        _lay_veins(image, head, hard, rng)
    mask = np.zeros((size, size), np.uint8)
    if finding != "normal":
        mask = {"glioma": _glioma, "meningioma": _meningioma, "pituitary": _adenoma}[finding](image, head, hard, rng)
    image, mask = posed(np.ascontiguousarray(image.transpose(1, 2, 0)), mask, rng, 3.0)
    return _scanned(image, item, hard, rng), mask


def _scanned(image: Image, item: Item, hard: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Coil and gain, resolution, and noise, which is Rician: the magnitude of a complex signal (Gudbjartsson 1995)."""
    size = image.shape[0]
    image = image * np.exp(0.10 * cloud(rng, size, 3))[..., None]
    image = image * np.array(_GAINS[item.attributes["device"]], np.float32) * rng.uniform(0.85, 1.1)
    image = blurred(image, 0.004 * size)
    image[..., 2] = blurred(image[..., 2], 0.014 * size)  # diffusion is read in one shot, with few lines
    spread = (0.012 + 0.045 * hard * rng.uniform(0.5, 1.4)) * (1.5 / float(item.attributes["field_strength_t"])) ** 0.5
    noise = rng.standard_normal((2, *image.shape), dtype=np.float32) * np.array((1.0, 1.0, 1.6), np.float32) * spread
    image = np.hypot(image + noise[0], noise[1])
    return np.asarray(np.clip(image * 255.0 + 0.5, 0.0, 255.0), np.uint8)


class _Head:
    """One patient's skull, and where in it a pixel lies."""

    def __init__(self, person: np.random.Generator, size: int, age: int, scale: float) -> None:
        u = person.uniform(-1.0, 1.0, 5).tolist()
        self.size = size
        self.old = (age - 52) / 40
        self.wide, self.deep = (0.60 + 0.03 * u[0]) * scale, (0.75 + 0.03 * u[1]) * scale  # of the brain
        self.ventricles = 1.0 + 0.2 * u[2] + 0.25 * self.old
        self.fat = 0.05 + 0.02 * u[3]
        half = cloud(person, size, 15)
        # Both halves of a brain fold alike, but not quite.
        self.folds: Image = np.asarray(0.62 * (half + half[:, ::-1]) + 0.35 * cloud(person, size, 15), np.float32)
        x, y = grid(size)
        self.radius: Image = np.asarray(np.sqrt((x / self.wide) ** 2 + (y / self.deep) ** 2), np.float32)

    def within(self, radius: float) -> Image:
        """Coverage of the brain's outline, scaled by ``radius``."""
        return np.asarray(np.clip((radius - self.radius) * (self.wide * self.size / 2) + 0.5, 0.0, 1.0), np.float32)


def _lay(image: Image3, coverage: NDArray[np.floating[Any]], tissue: Tissue) -> None:
    """Fill ``image`` with ``tissue`` where ``coverage`` ``(size, size)`` is 1, in place; partly where it is between."""
    image += np.asarray(coverage, np.float32) * (tissue - image)


def _ramp(values: Image, start: float, end: float) -> Image:
    return np.asarray(np.clip((values - start) * (1.0 / (end - start)), 0.0, 1.0), np.float32)


def _skull(head: _Head) -> Image3:
    image: Image3 = np.zeros((3, head.size, head.size), np.float32)
    _lay(image, head.within(1.15 + head.fat), MUSCLE)  # skin
    _lay(image, head.within(1.13 + head.fat), FAT)
    _lay(image, head.within(1.13), BONE)
    _lay(image, head.within(1.085) * (1 - head.within(1.06)), _tissue(0.30, 0.22, 0.05))  # marrow
    _lay(image, head.within(1.025), FLUID)
    return image


def _hemispheres(head: _Head, *, top: bool) -> Image3:
    size = head.size
    x, y = grid(size)
    brain = head.within(1.0)
    image = _skull(head)
    _lay(image, brain, WHITE)
    outer = _ramp(head.radius, 0.58, 0.80)
    cortex = np.maximum(np.exp(-((head.folds / 0.42) ** 2)) * outer, _ramp(head.radius, 0.88, 0.94)) * brain
    _lay(image, cortex, GREY)
    width = 0.10 + 0.05 * max(head.old, 0.0)
    sulci = np.exp(-((head.folds / width) ** 2)) * _ramp(head.radius, 0.68, 0.82) * brain
    _lay(image, sulci, FLUID)
    gap = np.ones_like(y) if top else np.maximum(_ramp(-y, 0.22, 0.32), _ramp(y, 0.30, 0.42))
    _lay(image, np.exp(-((x / 0.055) ** 2)) * gap * brain, GREY)
    _lay(image, np.exp(-((x / 0.016) ** 2)) * gap * brain, FLUID)
    if top:
        return image
    wide = head.ventricles
    for side in (-1.0, 1.0):
        lay_disc(image, side * 0.165 * wide**0.5, -0.15, 0.040, 0.10, NUCLEI, -side * 0.35)  # caudate
        lay_disc(image, side * 0.095, 0.09, 0.075, 0.115, NUCLEI, side * 0.25)  # thalamus
        lay_disc(image, side * 0.255, -0.03, 0.055, 0.145, NUCLEI, -side * 0.22)  # lentiform
        island = np.array([[[side * 0.40, -0.16], [side * 0.36, -0.04], [side * 0.38, 0.10], [side * 0.50, 0.14]]])
        _lay(image, stroked(island, size, 0.09, 0.012), GREY)
        _lay(image, stroked(island, size, 0.03, 0.010), FLUID)
        lay_disc(image, side * 0.085, -0.19, 0.042 * wide, 0.135, FLUID, side * -0.28)  # frontal horn
        lay_disc(image, side * 0.205, 0.27, 0.046 * wide, 0.125, FLUID, side * -0.38)  # atrium
    lay_disc(image, 0.0, 0.07, 0.016 * wide, 0.10, FLUID)
    return image


def _base(head: _Head) -> Image3:
    size = head.size
    x, y = grid(size)
    image = _skull(head)
    _lay(image, _ramp(y, -0.20, -0.27) * head.within(1.02), MUSCLE)  # the face lies in front
    lobes: Image = np.zeros((size, size), np.float32)
    rear: Image = np.zeros((size, size), np.float32)
    for side in (-1.0, 1.0):
        lay_disc(lobes, side * 0.34, -0.04, 0.24, 0.29, 1.0, side * -0.15)
        lay_disc(rear, side * 0.24, 0.44, 0.27, 0.25, 1.0)
    lobes *= head.within(0.99)
    rear *= head.within(0.97)
    _lay(image, lobes, WHITE)
    _lay(image, np.exp(-((head.folds / 0.5) ** 2)) * lobes, GREY)
    _lay(image, np.exp(-((head.folds / 0.09) ** 2)) * lobes, FLUID)
    leaves = 0.5 + 0.5 * np.sin(60.0 * np.sqrt(x * x * 0.5 + (y - 0.1) ** 2) + 2.0 * head.folds)
    _lay(image, rear, GREY)
    _lay(image, rear * leaves * 0.55, WHITE)
    petrous = np.array([[[side * 0.13, 0.13], [side * 0.55, 0.27]] for side in (-1.0, 1.0)])
    _lay(image, stroked(petrous, size, 0.085, 0.012), BONE)
    lay_disc(image, 0.0, 0.16, 0.15, 0.125, WHITE)  # pons
    lay_disc(image, 0.0, 0.30, 0.06, 0.040, FLUID)  # fourth ventricle
    lay_disc(image, 0.0, 0.015, 0.022, 0.022, AIR)  # basilar artery: flow leaves no signal
    lay_disc(image, 0.0, -0.32, 0.12, 0.085, AIR)  # sphenoid sinus
    lay_disc(image, 0.0, -0.155, 0.075, 0.045, _tissue(0.66, 0.50, 0.40))  # pituitary gland
    for side in (-1.0, 1.0):
        lay_disc(image, side * 0.11, -0.16, 0.028, 0.034, AIR)  # internal carotid artery
        lay_disc(image, side * 0.25, -0.56, 0.165, 0.175, FAT)  # orbit
        lay_disc(image, side * 0.255, -0.62, 0.105, 0.105, FLUID)
        lay_disc(image, side * 0.26, -0.705, 0.045, 0.022, BONE)  # lens
        nerve = np.array([[[side * 0.245, -0.52], [side * 0.17, -0.38]]])
        _lay(image, stroked(nerve, size, 0.035, 0.008), MUSCLE)
    cells = np.array([[[line, -0.70], [line, -0.46]] for line in (-0.05, 0.0, 0.05)])
    _lay(image, stroked(cells, size, 0.035, 0.006), AIR)  # ethmoid
    return image


def _lay_veins(image: Image3, head: _Head, hard: float, rng: np.random.Generator) -> None:
    """What else shines after contrast: the sagittal sinus, and veins of the cortex, more the harder the task."""
    lay_disc(image, 0.0, 1.0 * head.deep, 0.035, 0.045, VEIN)
    veins = rng.uniform((0.0, 0.78, 0.012), (2 * math.pi, 0.98, 0.040), (3 + round(9 * hard), 3))
    for angle, far, wide in veins.tolist():
        lay_disc(image, far * head.wide * math.cos(angle), far * head.deep * math.sin(angle), wide, 0.8 * wide, VEIN)


def _ragged(head: _Head, cx: float, cy: float, radius: float, rough: float, rng: np.random.Generator) -> Image:
    """1 in the middle of an irregular ball, 0 at its edge, negative outside: in units of its radius."""
    x, y = grid(head.size)
    stretch = rng.uniform(0.8, 1.25)
    distance = np.sqrt(((x - cx) / stretch) ** 2 + ((y - cy) * stretch) ** 2) / radius
    return np.asarray(1.0 - distance + rough * np.clip(cloud(rng, head.size, 13), -1.5, 1.5), np.float32)


def _edge(field: Image, radius: float, size: int) -> Image:
    return np.asarray(np.clip(field * (radius * size / 2) + 0.5, 0.0, 1.0), np.float32)


def _covered(inside: Image, cx: float, cy: float) -> Mask:
    """The mask; never empty, even where a pixel is larger than the tumour."""
    size = inside.shape[0]
    mask = np.asarray(inside > 0.5, np.uint8)
    mask[int((cy + 1) * size / 2), int((cx + 1) * size / 2)] = 1
    return mask


def _glioma(image: Image3, head: _Head, hard: float, rng: np.random.Generator) -> Mask:
    size, seen = head.size, 1.0 - 0.8 * hard * rng.uniform(0.7, 1.0)
    radius = rng.uniform(0.10, 0.25 - 0.08 * hard)
    angle, far = rng.uniform(0.0, 2 * math.pi), rng.uniform(0.38, 0.62)
    cx = far * head.wide * math.copysign(max(abs(math.cos(angle)), 0.45), math.cos(angle))
    cy = far * head.deep * math.sin(angle)
    field = _ragged(head, cx, cy, radius, 0.16, rng)
    brain = head.within(0.97)
    spread = rng.uniform(0.5, 1.0)
    # Oedema follows white matter, so that it ends in fingers at the cortex.
    white = _ramp(np.abs(head.folds), 0.15, 0.5) * (1.0 - 0.6 * _ramp(head.radius, 0.75, 0.92))
    _lay(image, _ramp(field, -spread, -0.1) * white * brain * (0.9 * seen), OEDEMA)
    inside = np.asarray(_edge(field, radius, size) * brain, np.float32)
    _lay(image, inside * (seen), RIM)
    core = rng.uniform(0.25, 0.5)
    _lay(image, _edge(field - core, radius, size) * brain * (seen), NECROSIS)
    return _covered(inside, cx, cy)


def _meningioma(image: Image3, head: _Head, hard: float, rng: np.random.Generator) -> Mask:
    size, seen = head.size, 1.0 - 0.8 * hard * rng.uniform(0.7, 1.0)
    radius = rng.uniform(0.09, 0.20 - 0.06 * hard)
    angle = rng.uniform(0.0, 2 * math.pi)
    far = 1.0 - 0.6 * radius / head.wide
    cx, cy = far * head.wide * math.cos(angle), far * head.deep * math.sin(angle)
    field = _ragged(head, cx, cy, radius, 0.03, rng)
    brain = head.within(1.02)
    _lay(image, _edge(field + 0.14, radius, size) * brain * (0.7 * seen), FLUID)  # a cleft of fluid around it
    inside = _edge(field, radius, size) * brain
    _lay(image, inside * seen, MENINGIOMA)
    return _covered(inside, cx, cy)


def _adenoma(image: Image3, head: _Head, hard: float, rng: np.random.Generator) -> Mask:
    size, seen = head.size, 1.0 - 0.8 * hard * rng.uniform(0.7, 1.0)
    radius = rng.uniform(0.10, 0.17 - 0.04 * hard)
    cx, cy = rng.uniform(-0.03, 0.03), -0.15 - 0.3 * (radius - 0.1)
    field = _ragged(head, cx, cy, radius, 0.05, rng)
    inside = _edge(field, radius, size)
    _lay(image, inside * seen, ADENOMA)
    return _covered(inside, cx, cy)
