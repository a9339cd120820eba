"""Scores of a model on one split of a site, and the mergeable statistics made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.objective import Outputs, both_stages, known_masks, outline_losses
from client.training import device_of, layout, precision
from client.vault.prepared import PreparedView
from common.basis import Basis
from common.metrics import Counts, FirstPass, Layout, Outlines, Overlaps
from common.study import Study

Alter = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Images ``(B, C, H, W)`` float32 in [0, 1] and their rows in the view -> images to score in their place."""

MOST_IMAGES, MOST_PIXELS = 256, 1 << 20
"""At most so many in one forward pass, 256 images of 64 × 64 or 20 of 224 × 224: memory does not grow with size."""
OUTLINED_PIXELS = 1 << 18
"""The same where features keep the image's size."""


@dataclass(frozen=True)
class Scores:
    """``scores`` and ``targets`` float ``(N, C)``: probabilities, and 0/1 with NaN for masked; C = 1 for binary.

    In segmentation C is 1 too: the target is whether the mask is not empty, the score the greatest threshold at which
    the outline has as many pixels as the smallest lesion.

    ``patients`` ``(N,)`` int64 tells images of one patient; ``loss`` ``(N,)`` is each image's loss.
    """

    scores: NDArray[np.float64]
    targets: NDArray[np.float32]
    patients: NDArray[np.int64]
    loss: NDArray[np.float64]
    overlaps: Overlaps | None = None
    """In a study that outlines: how each image's outline lies over its mask."""


def predict(
    model: nn.Module, view: PreparedView, study: Study, basis: Basis | None = None, alter: Alter | None = None
) -> Scores:
    """Score every image of ``view``, altered by ``alter``, then normalised by ``basis``.

    The model is left in evaluation mode.
    """
    model.eval()
    if study.task == "segmentation":
        return _outlined(model, view, study, basis, alter)
    outputs: list[torch.Tensor] = []
    overlaps: list[Overlaps] = []
    for rows, said in forward(model, view, study, basis, alter):
        outputs.append((said[0] if isinstance(said, tuple) else said).float().cpu())
        if study.outlines:
            overlaps.append(_overlaps(outline_of(said).sigmoid().cpu(), masks_of(view, rows).cpu(), rows.cpu()))
    logits = torch.cat(outputs).double() if outputs else torch.zeros((0, study.outputs), dtype=torch.float64)
    targets = view.targets.cpu().double()
    if study.task == "binary":
        targets = targets[:, 1:]
    return Scores(
        _probabilities(logits, study).numpy(),
        targets.float().numpy(),
        view.patients.cpu().numpy(),
        _losses(logits, targets, study).numpy(),
        Overlaps.joined(overlaps) if study.outlines else None,
    )


def first_pass(scores: Scores, study: Study, min_cell: int = 1) -> FirstPass:
    """What of ``scores`` may leave in the first pass, no number of it of fewer than ``min_cell`` patients."""
    counts = Counts.of(scores.scores, scores.targets, scores.patients, scores.loss, Layout.of(study), min_cell)
    overlaps = scores.overlaps
    return FirstPass(counts, None if overlaps is None else Outlines.of(overlaps, scores.patients, min_cell))


def forward(
    model: nn.Module, view: PreparedView, study: Study, basis: Basis | None, alter: Alter | None = None
) -> Iterator[tuple[torch.Tensor, Outputs]]:
    """Rows of the view and what the model says of them, some at a time."""
    device = device_of(model)
    batch = max(1, min(MOST_IMAGES, (OUTLINED_PIXELS if study.outlines else MOST_PIXELS) // study.image.size**2))
    with torch.inference_mode():
        for start in range(0, len(view), batch):
            rows = torch.arange(start, min(start + batch, len(view)), device=view.device)
            with precision(device):
                images = (view.floats(rows) if alter is None else alter(view.floats(rows), rows)).to(device)
                images = layout(images if basis is None else basis.normalised(images))
                two = study.outlines and study.task != "segmentation"
                said: Outputs = both_stages(model, images) if two else model(images)
            yield rows, said


def _outlined(model: nn.Module, view: PreparedView, study: Study, basis: Basis | None, alter: Alter | None) -> Scores:
    """Outlines are counted batch by batch: no more of them is held."""
    smallest = min(study.evaluation.lesions.smallest, study.image.size**2)
    scores, losses, overlaps = [torch.zeros(0)], [torch.zeros(0)], []
    for rows, said in forward(model, view, study, basis, alter):
        logits, masks = outline_of(said), masks_of(view, rows)
        losses.append(outline_losses(logits[:, None], masks.to(logits.device), study).cpu())
        probabilities = logits.sigmoid().cpu()
        scores.append(probabilities.flatten(1).topk(smallest).values[:, -1])
        overlaps.append(_overlaps(probabilities, masks.cpu(), rows.cpu()))
    found = Overlaps.joined(overlaps)
    return Scores(
        torch.cat(scores).double()[:, None].numpy(),
        found.having[:, None].astype(np.float32),
        view.patients.cpu().numpy(),
        torch.cat(losses).double().numpy(),
        found,
    )


def _overlaps(probabilities: torch.Tensor, masks: torch.Tensor, rows: torch.Tensor) -> Overlaps:
    """Of those ``rows`` that have a mask."""
    known = known_masks(masks)
    return Overlaps.of(probabilities[known].numpy(), masks[known].numpy(), rows[known].numpy())


def outline_of(said: Outputs) -> torch.Tensor:
    """Logits ``(B, H, W)`` float32 of the outlines, from what a model that outlines says."""
    return (said[1] if isinstance(said, tuple) else said)[:, 0].float()


def masks_of(view: PreparedView, rows: torch.Tensor) -> torch.Tensor:
    """Masks of a study that outlines, ``(B, H, W)`` uint8."""
    masks = view.masks_of(rows)
    assert masks is not None, "a view without masks"
    return masks


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
