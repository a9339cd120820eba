"""A study that surveys, pictures, and their sums by numpy."""

from __future__ import annotations

from typing import Any

import numpy as np

from common.study import Study
from common.survey import PixelSums

SIZE = 8


def survey_study(task: str, classes: int, k: int, channels: int = 1, **changes: Any) -> Study:
    """Normalises and weighs by everybody's numbers."""
    made = Study.parse(
        f"""
name: surveyed
task: {task}
classes: [{", ".join(f"c{number}" for number in range(classes))}]
image: {{size: {SIZE}, channels: {channels}, normalise: federated}}
training: {{class_weighting: federated}}
evaluation: {{min_cell: {k}}}
"""
    )
    return made.derive(**changes) if changes else made


def sums_of(images: np.ndarray[Any, Any]) -> PixelSums:
    """Of ``(N, C, H, W)`` uint8."""
    wide = images.astype(np.int64)
    total, squares = (tuple(int(n) for n in part.sum(axis=(0, 2, 3))) for part in (wide, wide**2))
    return PixelSums(len(images), wide[:, 0].size, total, squares)
