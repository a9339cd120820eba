"""Chest radiographs: pneumonia in the lungs, or none.

Each phantom is drawn from geometry (body, lungs, ribs, heart, vessels) as X-ray
attenuation along the beam, then exposed: gain, gamma, blur and noise vary from
image to image as they do between detectors. A phantom with pneumonia has
opacities inside its lungs: dense and focal ("bacteria") or faint, diffuse and
on both sides ("virus"). Their mask is the truth for segmentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from common.randomness import generator
from common.study import PhantomSpec
from simulations.datasets.source import Item
from simulations.phantoms.drawing import Image, Mask, closed_curve, cloud, exposed, filled, grid, posed, stroked
from simulations.phantoms.people import CHANGED

BACTERIA, VIRUS = 0.25, 0.20
"""Share of images with each finding; the rest, 55%, are normal."""
_RIBS = 9


def items(spec: PhantomSpec, seed: int) -> list[Item]:
    """The set's list: patients with one or more images each, attributes independent of the findings."""
    count = spec.images
    images = 1 + generator(seed, "phantom", "images").poisson(spec.images_per_patient - 1.0, count)
    patients = np.repeat(np.arange(count), images)[:count]
    sex = generator(seed, "phantom", "sex").random(count) < 0.5
    age = np.clip(generator(seed, "phantom", "age").normal(52.0, 18.0, count), 18, 90).astype(int)
    view = generator(seed, "phantom", "view").random(count) < 0.6
    ill = _findings(generator(seed, "phantom", "patient finding").random(count))
    anew = _findings(generator(seed, "phantom", "image finding").random(count))
    changed = generator(seed, "phantom", "changed").random(count) < CHANGED
    listed = []
    for number, patient in enumerate(patients.tolist()):
        finding = anew[number] if changed[number] else ill[patient]
        listed.append(
            Item(
                key=f"synthetic-{number:06d}",
                patient=f"synthetic-patient-{patient:06d}",
                patient_known=True,
                labels={"label": ("normal" if finding == "normal" else "pneumonia",), "finding": (finding,)},
                attributes={
                    "sex": "F" if sex[patient] else "M",
                    "age": str(age[patient]),
                    "view": "PA" if view[number] else "AP",
                },
            )
        )
    return listed


def draw(item: Item, number: int, spec: PhantomSpec, seed: int) -> tuple[Mask, Mask]:
    """Pixels and opacity mask, both ``(size, size)`` uint8."""
    rng = generator(seed, "phantom", "image", number)
    return _draw(_anatomy(seed, item), item.labels["finding"][0], spec, rng)


def _findings(uniform: NDArray[np.float64]) -> list[str]:
    index = (uniform < BACTERIA + VIRUS).astype(int) + (uniform < VIRUS)
    return [("normal", "bacteria", "virus")[number] for number in index.tolist()]


@dataclass(frozen=True)
class _Anatomy:
    """One patient's shape, the same in all of the patient's images. Lengths in half image widths, x to the right."""

    width: float  # of the thorax
    lung_top: float
    lung_base: float  # of the right dome (image left); the other stands lower
    hilum: float  # half width of the mediastinum
    heart: float
    rib_gap: float
    rib_slope: float
    bone: float  # attenuation of cortical bone
    soft: float  # thickness of soft tissue
    breast: float  # 0 where there is no shadow
    outline: NDArray[np.float64]  # (2, 48) relative perturbation of each lung's outline
    vessels: NDArray[np.float64]  # (14, 4) side, angle, length, bend


def _anatomy(seed: int, item: Item) -> _Anatomy:
    rng = generator(seed, "phantom", "anatomy", item.patient)
    old = (int(item.attributes["age"]) - 52) / 40
    female, ap = item.attributes["sex"] == "F", item.attributes["view"] == "AP"
    u = rng.uniform(-1.0, 1.0, 10).tolist()  # Python floats: they keep images float32
    phase = rng.uniform(0.0, 2 * np.pi, (2, 3, 1))
    angle = np.linspace(0.0, 2 * np.pi, 48, endpoint=False)
    order = np.array([[1.0], [2.0], [3.0]])
    waves = (np.sin(order * angle + phase) * rng.uniform(0.0, 0.02, (2, 3, 1))).sum(axis=1)
    vessels = np.column_stack(
        [
            np.tile([-1.0, 1.0], 7),
            np.repeat(np.linspace(-1.15, 1.25, 7), 2) + rng.uniform(-0.15, 0.15, 14),
            rng.uniform(0.25, 0.55, 14),
            rng.uniform(-0.3, 0.3, 14),
        ]
    )
    return _Anatomy(
        width=0.82 + 0.05 * u[0] - 0.03 * female,
        lung_top=-0.72 + 0.05 * u[1] + 0.05 * ap,
        lung_base=0.50 + 0.09 * u[2] - 0.10 * ap,
        hilum=0.15 + 0.025 * u[3] + 0.02 * ap,
        heart=0.34 + 0.04 * u[4] + 0.05 * ap + 0.02 * old,
        rib_gap=0.150 + 0.012 * u[5],
        rib_slope=0.24 + 0.07 * u[6] - 0.06 * ap,
        bone=0.17 + 0.04 * u[7] - 0.04 * old,
        soft=0.62 + 0.10 * u[8],
        breast=(0.11 + 0.07 * u[9]) if female else 0.0,
        outline=waves,
        vessels=vessels,
    )


def _lungs(anatomy: _Anatomy, side: int, breath: float) -> NDArray[np.float64]:
    """Outline ``(48, 2)`` of one lung; ``side`` -1 is the image's left (the patient's right)."""
    top, base = anatomy.lung_top, anatomy.lung_base + breath + (0.05 if side > 0 else 0.0)
    inner, outer = anatomy.hilum, anatomy.width - 0.13
    # Clockwise from the apex for the image's right side; mirrored for the left.
    knots = np.array(
        [
            [0.40 * outer + 0.06, top],
            [0.66 * outer, top + 0.12],
            [0.86 * outer, top + 0.34],
            [0.97 * outer, top + 0.66],
            [1.01 * outer, base - 0.12],
            [1.00 * outer, base + 0.13],  # costophrenic angle
            [0.84 * outer, base + 0.03],
            [0.62 * outer, base - 0.05],  # dome of the diaphragm
            [0.40 * outer, base - 0.03],
            [inner + 0.05, base + 0.04],
            [inner + 0.01, base - 0.30],
            [inner + 0.02, top + 0.45],
            [inner - 0.01, top + 0.22],
            [inner + 0.05, top + 0.07],
        ]
    )
    points = closed_curve(len(knots), 48) @ knots
    return np.asarray(points * (1.0 + anatomy.outline[(side + 1) // 2][:, None]) * [side, 1.0])


@lru_cache(maxsize=1)
def _rib_arcs() -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Ribs ``(R, 9, 2)``, their number ``(R, 1)`` from the top and side ``(R, 1)``: -1 on the image's left.

    x runs from the spine (0) to the flank (1), y in units of the rib's slope.
    """
    t = np.linspace(0.0, 1.0, 9)
    back = np.column_stack([t, 1.05 * t**1.6 - 0.35 * np.sin(np.pi * t)])
    front = np.column_stack([1.0 - 0.62 * t, 1.05 + 1.25 * t - 0.35 * t**2])
    # The lowest ribs have no bony front.
    ribs = [(back, n, side) for n in range(_RIBS) for side in (-1.0, 1.0)]
    ribs += [(front, n, side) for n in range(_RIBS - 2) for side in (-1.0, 1.0)]
    arcs, numbers, sides = zip(*ribs, strict=True)
    return np.stack(arcs), np.array(numbers, float)[:, None], np.array(sides)[:, None]


@lru_cache(maxsize=4)
def _spine(size: int) -> Image:
    """Vertebral column ``(size, size)`` in [0, 1]: brighter bodies, darker discs."""
    x, y = grid(size)
    return np.asarray(0.75 * np.exp(-((x / 0.085) ** 4)) * (0.8 + 0.2 * np.cos(y * (2 * np.pi / 0.17))), np.float32)


def _bones(anatomy: _Anatomy, size: int) -> tuple[Image, Image]:
    """Coverage of the ribs, and of the spine with the clavicles."""
    arcs, number, side = _rib_arcs()
    reach = (anatomy.width - 0.07) * np.minimum(1.0, 0.62 + 0.14 * number)  # the thorax narrows to its top
    x = side * (arcs[..., 0] * (reach - 0.06) + 0.06)
    y = arcs[..., 1] * (anatomy.rib_slope + 0.02 * number) + anatomy.lung_top + 0.02 + number * anatomy.rib_gap
    collar = np.array([[0.08, -0.52], [0.26, -0.58], [0.48, -0.64], [0.70, -0.72]])
    axial = stroked(np.stack([collar, collar * [-1.0, 1.0]]), size, 0.055, 0.012)
    return stroked(np.stack([x, y], axis=-1), size, 0.042, 0.011), np.maximum(axial, _spine(size))


def _vessels(anatomy: _Anatomy, size: int) -> Image:
    """Hilar vessels that thin out into the lungs: what makes faint opacities hard to tell."""
    side, angle, length, bend = anatomy.vessels.T[..., None]
    along = length * np.linspace(0.0, 1.0, 6)
    across = bend * along**2 / length
    x = side * (anatomy.hilum + 0.01 + along * np.cos(angle) - across * np.sin(angle))
    y = -0.08 + along * np.sin(angle) + across * np.cos(angle)
    return stroked(np.stack([x, y], axis=-1), size, 0.026, 0.014)


def _blobs(
    rng: np.random.Generator, size: int, lungs: Image, places: NDArray[np.float64], radii: NDArray[np.float64]
) -> Image:
    """Irregular soft patches in [0, 1] at ``places (K, 2)``, cut off at the lungs' edge."""
    x, y = grid(size)
    # Bounded, so that no patch is eaten up whole: a phantom with a finding always shows some of it.
    ragged = 0.45 * np.clip(cloud(rng, size, 10), -1.2, 1.5)
    field = np.zeros((size, size), np.float32)
    for (cx, cy), (rx, ry) in zip(places.tolist(), radii.tolist(), strict=True):
        distance = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2
        np.maximum(field, 1.0 - distance, out=field)
    field = np.clip((field + ragged * np.minimum(4.0 * field, 1.0)) * 1.5, 0.0, 1.0)
    return np.asarray(field * lungs, dtype=np.float32)


def _opacities(
    finding: str, rng: np.random.Generator, anatomy: _Anatomy, lungs: Image, difficulty: float
) -> tuple[Image, Mask]:
    """Attenuation added by the finding, and its mask. Nothing for "normal"."""
    size = lungs.shape[0]
    if finding == "normal":
        return np.zeros_like(lungs), np.zeros(lungs.shape, np.uint8)
    top, base, middle = anatomy.lung_top, anatomy.lung_base, (anatomy.hilum + anatomy.width - 0.13) / 2
    if finding == "bacteria":
        count, contrast = 1 + int(rng.random() < 0.25), 0.445 - 0.30 * difficulty
        sides = rng.choice([-1.0, 1.0], count)
        places = np.column_stack(
            [sides * (middle + rng.uniform(-0.14, 0.14, count)), rng.uniform(top + 0.28, base - 0.14, count)]
        )
        radii = rng.uniform(0.13, 0.30, (count, 1)) * rng.uniform(0.85, 1.2, (count, 2))
        spread = _blobs(rng, size, lungs, places, radii)
    else:
        count, contrast = 6, 0.29 - 0.23 * difficulty
        sides = np.tile([-1.0, 1.0], count // 2)
        places = np.column_stack(
            [sides * (middle + rng.uniform(-0.15, 0.15, count)), np.linspace(top + 0.30, base - 0.05, count)]
        )
        radii = rng.uniform(0.16, 0.30, (count, 2))
        spread = _blobs(rng, size, lungs, places, radii) * np.clip(0.75 + 0.30 * cloud(rng, size, 16), 0.2, 1.3)
    strength = contrast * rng.uniform(0.4, 2.2)
    return spread * strength, np.asarray(spread > 0.30, np.uint8)


def _draw(anatomy: _Anatomy, finding: str, spec: PhantomSpec, rng: np.random.Generator) -> tuple[Mask, Mask]:
    """One exposure: geometry to attenuation, then pose, detector and noise."""
    size, hard = spec.size, spec.difficulty
    x, y = grid(size)
    lungs = filled([_lungs(anatomy, side, rng.uniform(-0.05, 0.07)) for side in (-1, 1)], size, 0.016)
    opacity, mask = _opacities(finding, rng, anatomy, lungs, spec.difficulty)
    bone, axial = _bones(anatomy, size)

    flank = anatomy.width + 0.07 * np.abs(y) + np.clip(-y - 0.55, 0.0, None) * 0.9  # shoulders widen
    inside = np.clip((flank - np.abs(x)) * 9.0, 0.0, 1.0)
    heart_y, lean = anatomy.lung_base - 0.20, 0.13
    heart = ((x - lean) / anatomy.heart) ** 2 + ((y - heart_y - 0.35 * (x - lean)) / (0.86 * anatomy.heart)) ** 2
    middle = np.exp(-((x / (anatomy.hilum + 0.03)) ** 4)) * 0.13
    under = np.clip((y - anatomy.lung_base + 0.05) * 5.0, 0.0, 1.0) * 0.10

    attenuation: Image = anatomy.soft * np.sqrt(np.clip(1.0 - (x / (flank + 0.02)) ** 2 * 0.75, 0.0, None))
    attenuation = attenuation + under - 0.40 * lungs
    attenuation += 0.26 * np.clip((1.15 - heart) * 2.5, 0.0, 1.0) + middle
    attenuation += anatomy.bone * 0.55 * bone * (0.3 + 0.7 * lungs) + anatomy.bone * axial
    attenuation += 0.13 * _vessels(anatomy, size) * lungs + opacity
    if anatomy.breast:
        for centre in (-0.47, 0.47):
            shadow = ((x - centre) / 0.34) ** 2 + ((y - anatomy.lung_base + 0.12) / 0.30) ** 2
            attenuation += anatomy.breast * np.clip((1.0 - shadow) * 2.2, 0.0, 1.0)
    attenuation += (0.018 + 0.012 * hard) * cloud(rng, size, 7) * lungs
    attenuation += (0.006 + 0.022 * hard) * cloud(rng, size, 20) * lungs
    film, mask = posed(attenuation * inside, mask, rng)
    return exposed(film, hard, rng), mask
