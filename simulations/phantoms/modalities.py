"""Lung CT, brain MRI and radiographs of bones: which phantoms there are of each, and the three of them mixed."""

from __future__ import annotations

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
_DRAW = {modality.dicom: modality for modality in (CT_LUNG, MRI_BRAIN, FRACTURE)}


def items(spec: PhantomSpec, seed: int) -> list[Item]:
    """The list of the set; patients of ``mixed`` have one modality each."""
    return listed(_PATTERNS[spec.kind], spec, seed)


def draw(item: Item, number: int, spec: PhantomSpec, seed: int) -> tuple[NDArray[Any], Mask]:
    """Pixels and mask. In a ``mixed`` set CT is windowed to 8 bits: one study has one window, or none."""
    modality = _DRAW[item.attributes["modality"]]
    person = generator(seed, "phantom", modality.name, "anatomy", item.patient)
    image = generator(seed, "phantom", modality.name, "image", number)
    pixels, mask = modality.draw(item, spec, person, image)
    if spec.kind == "mixed" and pixels.dtype == np.int16:
        pixels = ct_lung.windowed(pixels)
    return pixels, mask
