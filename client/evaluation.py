"""Scores of a model on one split of a site, and the mergeable statistics made of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.training import device_of, layout, precision
from client.vault.prepared import PreparedView
from common.basis import Basis
from common.study import Study

MOST_IMAGES, MOST_PIXELS = 256, 1 << 20
"""At most so many in one forward pass, 256 images of 64 × 64 or 20 of 224 × 224: memory does not grow with size."""


@dataclass(frozen=True)
class Scores:
    """``scores`` and ``targets`` float ``(N, C)``: probabilities, and 0/1 with NaN for masked; C = 1 for binary.

    ``patients`` ``(N,)`` int64 tells images of one patient; ``loss`` ``(N,)`` is each image's loss.
    """

    scores: NDArray[np.float64]
    targets: NDArray[np.float32]
    patients: NDArray[np.int64]
    loss: NDArray[np.float64]


def predict(model: nn.Module, view: PreparedView, study: Study, basis: Basis | None = None) -> Scores:
    """Score every image of ``view``, normalised by ``basis``; the model is left in evaluation mode."""
    device = device_of(model)
    batch = max(1, min(MOST_IMAGES, MOST_PIXELS // study.image.size**2))
    model.eval()
    outputs: list[torch.Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(view), batch):
            rows = torch.arange(start, min(start + batch, len(view)), device=view.device)
            with precision(device):
                images = view.floats(rows).to(device)
                logits = model(layout(images if basis is None else basis.normalised(images)))
            outputs.append(logits.float().cpu())
    logits = torch.cat(outputs).double() if outputs else torch.zeros((0, study.outputs), dtype=torch.float64)
    targets = view.targets.cpu().double()
    if study.task == "binary":
        targets = targets[:, 1:]
    return Scores(
        _probabilities(logits, study).numpy(),
        targets.float().numpy(),
        view.patients.cpu().numpy(),
        _losses(logits, targets, study).numpy(),
    )


def _probabilities(logits: torch.Tensor, study: Study) -> torch.Tensor:
    return logits.softmax(1) if study.task == "multiclass" else logits.sigmoid()


def _losses(logits: torch.Tensor, targets: torch.Tensor, study: Study) -> torch.Tensor:
    """Unweighted loss of each image, in nats (multilabel: mean over its known classes)."""
    if not len(logits):
        return torch.zeros(0, dtype=torch.float64)
    if study.task == "multiclass":
        return torch.nn.functional.cross_entropy(logits, targets.argmax(1), reduction="none")
    known = ~torch.isnan(targets)
    clean = torch.where(known, targets, torch.zeros_like(targets))
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, clean, reduction="none")
    return (losses * known).sum(1) / known.sum(1).clamp(min=1)
