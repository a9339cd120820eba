"""Lung CT, brain MRI and radiographs of bones: which phantoms there are of each, and the three of them mixed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.randomness import generator
from common.study import PhantomSpec
from simulations.datasets.source import Item
from simulations.phantoms import ct_lung, fracture, mri_brain
from simulations.phantoms.drawing import Mask
from simulations.phantoms.people import Modality, listed

CT_LUNG: Final = Modality(
    name="ct-lung",
    dicom="CT",
    label="nodule",
    findings={"solid": 0.28, "ground glass": 0.17},
    draw=ct_lung.draw,
    extra={"slice_thickness_mm": ("1", "2", "3", "4", "5")},
)
MRI_BRAIN: Final = Modality(
    name="mri-brain",
    dicom="MR",
    label="tumor",
    findings={"glioma": 0.20, "meningioma": 0.15, "pituitary": 0.10},
    draw=mri_brain.draw,
    extra={"field_strength_t": ("1.5", "3")},
)
FRACTURE: Final = Modality(
    name="fracture",
    dicom="DX",
    label="fracture",
    findings={"transverse": 0.18, "oblique": 0.15, "comminuted": 0.12},
    draw=fracture.draw,
    extra={"view": ("AP", "LAT")},
)
_PATTERNS: Final = {
    "ct_lung": (CT_LUNG,),
    "mri_brain": (MRI_BRAIN,),
    "fracture": (FRACTURE,),
    # of ten patients four, three and three: 2,000, 1,500 and 1,500 of 5,000
    "mixed": (CT_LUNG, MRI_BRAIN, FRACTURE) * 3 + (CT_LUNG,),
}
CLOSE: Final = frozenset({"ct-lung", "fracture"})
"""What is cut to half the frame in a ``mixed`` set: one network takes images of one size, and at the size of a head a
nodule or a fracture line is a pixel or two. Sets of CT patches (LUNA) and coned radiographs show such regions."""
_DRAW = {modality.dicom: modality for modality in (CT_LUNG, MRI_BRAIN, FRACTURE)}


def items(spec: PhantomSpec, seed: int) -> list[Item]:
    """The list of the set; patients of ``mixed`` have one modality each."""
    return listed(_PATTERNS[spec.kind], spec, seed)


def draw(item: Item, number: int, spec: PhantomSpec, seed: int) -> tuple[NDArray[Any], Mask]:
    """Pixels and mask. In a ``mixed`` set CT is windowed to 8 bits, as one study has one window or none, and CT and
    radiographs are cut to the region that was asked about (:data:`CLOSE`)."""
    modality = _DRAW[item.attributes["modality"]]
    if spec.kind != "mixed":
        return _whole(modality, item, number, spec, seed)
    close = modality.name in CLOSE
    pixels, mask = _whole(modality, item, number, _wider(spec) if close else spec, seed)
    if pixels.dtype == np.int16:
        pixels = ct_lung.windowed(pixels)
    if not close:
        return pixels, mask
    chance = generator(seed, "phantom", modality.name, "region", number)
    suspected = mask if mask.any() else _suspected(modality, item, number, spec, seed, chance)
    rows, columns = _region(suspected, spec.size, chance)
    return np.ascontiguousarray(pixels[rows, columns]), np.ascontiguousarray(mask[rows, columns])


def _whole(modality: Modality, item: Item, number: int, spec: PhantomSpec, seed: int) -> tuple[NDArray[Any], Mask]:
    person = generator(seed, "phantom", modality.name, "anatomy", item.patient)
    image = generator(seed, "phantom", modality.name, "image", number)
    return modality.draw(item, spec, person, image)


def _wider(spec: PhantomSpec) -> PhantomSpec:
    """A frame twice as wide, of which half is kept."""
    return spec.model_copy(update={"size": 2 * spec.size})


def _suspected(
    modality: Modality, item: Item, number: int, spec: PhantomSpec, seed: int, chance: np.random.Generator
) -> Mask:
    """Where a normal image's finding would lie: regions of ill and normal images must not differ by their place."""
    shares = np.array(list(modality.findings.values()))
    finding = list(modality.findings)[int(chance.choice(len(shares), p=shares / shares.sum()))]
    ill = replace(item, labels={**item.labels, "finding": (finding,)})
    return _whole(modality, ill, number, _wider(spec), seed)[1]


def _region(suspected: Mask, size: int, chance: np.random.Generator) -> tuple[slice, slice]:
    """``size`` pixels each way around what is suspected, which lies off its middle by up to a fifth of it."""
    corner = []
    for at in np.nonzero(suspected):
        centre = float(at.mean()) + chance.uniform(-0.2, 0.2) * size
        corner.append(min(max(round(centre - size / 2), 0), suspected.shape[0] - size))
    return slice(corner[0], corner[0] + size), slice(corner[1], corner[1] + size)
