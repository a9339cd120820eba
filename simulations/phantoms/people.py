"""Who the phantoms of a set are: patients with their images, findings and attributes, before anything is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.randomness import generator
from common.study import PhantomSpec
from simulations.datasets.source import Item
from simulations.phantoms.drawing import Mask

CHANGED = 0.25
"""Share of images whose finding is drawn anew instead of being their patient's (recovered, newly ill)."""
NORMAL = "normal"
DEVICES = ("scanner A", "scanner B", "scanner C")
"""Each draws a little otherwise, so that hospitals parted by device differ."""

Draw = Callable[[Item, PhantomSpec, np.random.Generator, np.random.Generator], tuple[NDArray[Any], Mask]]
"""Pixels and mask of an item, at the spec's size and difficulty, from two sources of chance: patient and image."""


@dataclass(frozen=True)
class Modality:
    """One kind of phantom: what can be found in it, and how it is drawn."""

    name: str
    dicom: str
    """Its attribute ``modality``, as DICOM calls it (PS3.3 C.7.3.1.1.1)."""
    label: str
    """What an image with any finding is labelled; the others are "normal"."""
    findings: Mapping[str, float]
    """Share of patients with each finding; the rest are normal."""
    draw: Draw
    extra: Mapping[str, Sequence[str]]
    """Further attributes of an image, and their equally likely values."""


def listed(pattern: Sequence[Modality], spec: PhantomSpec, seed: int) -> list[Item]:
    """The set's list. Patient *p* is imaged with ``pattern[p % len(pattern)]``; attributes are independent of findings.

    The list of a set of *n* is the start of that of a larger one, but that its last patient may have fewer images.
    """
    name, count = spec.kind, spec.images

    def chance(what: str) -> NDArray[np.float64]:
        return generator(seed, "phantom", name, what).random(count)

    images = 1 + generator(seed, "phantom", name, "images").poisson(spec.images_per_patient - 1.0, count)
    patients = np.repeat(np.arange(count), images)[:count]
    sex, device = chance("sex"), chance("device")
    age = np.clip(generator(seed, "phantom", name, "age").normal(52.0, 18.0, count), 18, 90).astype(int)
    ill, anew, changed = chance("patient finding"), chance("image finding"), chance("changed")
    extra = generator(seed, "phantom", name, "attributes").random((count, 4))
    result = []
    for number, patient in enumerate(patients.tolist()):
        modality = pattern[patient % len(pattern)]
        finding = _finding(modality, anew[number] if changed[number] < CHANGED else ill[patient])
        attributes = {
            "sex": "F" if sex[patient] < 0.5 else "M",
            "age": str(age[patient]),
            "device": DEVICES[int(device[number] * len(DEVICES))],
            "modality": modality.dicom,
        }
        for at, (key, values) in enumerate(modality.extra.items()):
            attributes[key] = values[int(extra[number, at] * len(values))]
        result.append(
            Item(
                key=f"synthetic-{modality.name}-{number:06d}",
                patient=f"synthetic-patient-{patient:06d}",
                patient_known=True,
                labels={"label": (NORMAL if finding == NORMAL else modality.label,), "finding": (finding,)},
                attributes=attributes,
            )
        )
    return result


def _finding(modality: Modality, uniform: float) -> str:
    below = 0.0
    for finding, share in modality.findings.items():
        below += share
        if uniform < below:
            return finding
    return NORMAL
