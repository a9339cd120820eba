"""What the workloads run on: made images in MedMNIST's layout, and study files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

STUDY = """
name: bench
description: "{description}"
task: binary
classes: {{normal: ["0"], pneumonia: ["1"]}}
image: {{size: {size}}}
model: {model}
training: {{batch_size: 32, optimiser: {{name: adam, lr: 0.001}}}}
federation: {{rounds: {rounds}, evaluate_every: {evaluate_every}}}
partition: {{kind: iid, sites: {sites}}}
evaluation: {{bootstrap: 200}}
"""

SMALL_CNN = "{name: cnn, norm: none, params: {filters: [32, 64, 64, 64], hidden: [128, 64]}}"
TRIVIAL = "{name: cnn, norm: none, params: {filters: [2], hidden: []}}"
RESNET18 = "{name: resnet18, norm: batch}"


def write_images(path: Path, *, size: int, train: int, other: int) -> Path:
    """``train`` images to train on and ``other`` each for validation and test: noise, brighter in the middle if ill."""
    numbers = np.random.default_rng(0)

    def part(count: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        labels = (np.arange(count) % 2).astype(np.uint8)
        images = numbers.normal(110.0, 40.0, (count, size, size))
        middle = slice(size // 4, 3 * size // 4)
        images[labels == 1, middle, middle] += 25.0
        return np.clip(images, 0, 255).astype(np.uint8), labels[:, None]

    arrays: dict[str, Any] = {}
    for split, count in (("train", train), ("val", other), ("test", other)):
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = part(count)
    np.savez(path, **arrays)
    return path


def write_study(
    path: Path, *, model: str, size: int, sites: int, rounds: int, evaluate_every: int = 0, description: str = ""
) -> Path:
    path.write_text(
        STUDY.format(
            model=model,
            size=size,
            sites=sites,
            rounds=rounds,
            evaluate_every=evaluate_every,
            description=description or "made by tests/benchmarks",
        )
    )
    return path
