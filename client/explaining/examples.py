"""Images of a site's split that heat maps are made of, with their masks where there are some."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.site import Site, Split
from client.vault.preparing import choose
from common.preprocess import prepare, prepare_mask
from common.study import Study


@dataclass(frozen=True)
class Example:
    """One image, and one class of it."""

    pixels: Tensor
    """``(C, H, W)`` float32 in [0, 1], as the model sees it before it is normalised."""
    output: int
    """Which of the model's outputs stands for the class."""
    label: str
    patient: int
    """Tells this site's patients apart."""
    row: int
    """Of the vault."""
    mask: NDArray[np.uint8] | None
    """``(H, W)`` in {0, 1}: where the finding is; ``None`` where nobody drew it."""


def examples(site: Site, study: Study, split: Split, most: int) -> Iterator[Example]:
    """At most ``most`` images of ``split`` that show a class, in the order of the view, which is by pixels' digest.

    Of a binary study those of its second class; of a multilabel one once for each label that an image has. A mask is
    the finding's only where an image has one label.
    """
    first = 0
    for vault in site.vaults:
        chosen = choose(vault, study, split)
        masked = {row.id for row in vault.each() if row.has_mask}
        wanted = [
            (place, labels) for place, labels in enumerate(map(_shown, chosen.targets)) if _outputs(study, labels)
        ]
        rows = [chosen.ids[place] for place, _ in wanted[:most]]
        for row, pixels, (place, labels) in zip(rows, vault.read_many(rows), wanted, strict=False):
            image = torch.from_numpy(prepare(pixels, study)).float() / 255.0
            drawn = prepare_mask(vault.read_mask(row), study) if row in masked and len(labels) == 1 else None
            mask = drawn if drawn is not None and drawn.any() else None
            patient = first + int(chosen.patients[place])
            for label in _outputs(study, labels):
                output = 0 if study.task == "binary" else label
                yield Example(image, output, study.class_names[label], patient, row, mask)
        most -= len(rows)
        first += chosen.patient_count


def _shown(targets: Tensor) -> list[int]:
    """Numbers of the classes that an image shows."""
    return torch.nonzero(targets == 1.0).flatten().tolist()


def _outputs(study: Study, labels: list[int]) -> list[int]:
    """Those to explain."""
    return [label for label in labels if study.task != "binary" or label == 1]
