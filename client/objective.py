"""What a fit makes small: the loss of a batch, whose pieces add up, and the loss of each image by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.vault.prepared import NO_MASK
from common.basis import Basis
from common.errors import ProtocolError
from common.models.segment_classify import SegmentClassify
from common.study import Study

Outputs = Tensor | tuple[Tensor, Tensor]
"""Logits of classes, of outlines, or both."""
_SMOOTH = 1.0
"""Added above and below the line of Dice (Milletari et al. 2016, arXiv:1606.04797, and most since): an empty mask then
has a gradient, and an empty outline of it no loss."""


@dataclass(frozen=True)
class Truth:
    """What is known of a batch: ``targets`` ``(B, classes)``, NaN for masked; ``masks`` ``(B, H, W)`` in {0, 1}."""

    targets: Tensor
    masks: Tensor | None = None
    """Of an image without a mask :data:`~client.vault.prepared.NO_MASK` throughout."""

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, part: slice) -> Truth:
        return Truth(self.targets[part], None if self.masks is None else self.masks[part])

    @property
    def outlined(self) -> Tensor:
        """The masks of a study that has them."""
        assert self.masks is not None, "a view without masks"
        return self.masks


class Objective(Protocol):
    """A batch's loss is ``total / weight``, summed where there are several.

    Pieces of a batch add up their totals and share the batch's weight, so that gradient accumulation changes nothing.
    """

    def outputs(self, model: nn.Module, images: Tensor) -> Outputs:
        """What the model says of images ``(B, C, H, W)``."""

    def weight(self, truth: Truth) -> Tensor:
        """What a batch's total is divided by."""

    def total(self, outputs: Outputs, truth: Truth) -> Tensor:
        """Sum of the losses of a batch or of a piece of one, float32."""


def objective_of(study: Study, targets: Tensor, basis: Basis | None = None) -> Objective:
    """The objective of a study; ``targets`` ``(N, classes)`` are all of this site's, ``basis`` what all sites share."""
    if study.task == "segmentation":
        return Outlining(study)
    classifying = Classifying(study, targets, basis)
    return Both(study, classifying) if study.outlines else classifying


class Classifying:
    """Loss of logits ``(B, outputs)`` against targets ``(B, classes)``, masked entries NaN."""

    def __init__(self, study: Study, targets: Tensor, basis: Basis | None = None) -> None:
        """``targets`` are all of this site's; ``basis`` has what all sites share."""
        self.task = study.task
        self.smoothing = study.training.label_smoothing
        self.weights = class_weights(study, targets, basis)

    def outputs(self, model: nn.Module, images: Tensor) -> Outputs:
        logits: Tensor = model(images)
        return logits

    def weight(self, truth: Truth) -> Tensor:
        """A batch's known entries; for classes of different weight their weights' sum."""
        targets = truth.targets
        if self.task == "multiclass":
            if self.weights is None:
                return torch.tensor(float(len(targets)), device=targets.device)
            return self.weights[targets.argmax(1)].sum()
        wanted = targets[:, 1:] if self.task == "binary" else targets
        return (~torch.isnan(wanted)).sum().clamp(min=1).float()

    def total(self, outputs: Outputs, truth: Truth) -> Tensor:
        assert isinstance(outputs, Tensor)
        logits, targets = outputs.float(), truth.targets
        if self.task == "multiclass":
            return functional.cross_entropy(
                logits, targets.argmax(1), weight=self.weights, label_smoothing=self.smoothing, reduction="sum"
            )
        wanted = targets[:, 1:] if self.task == "binary" else targets
        known = ~torch.isnan(wanted)
        clean = torch.where(known, wanted, torch.zeros_like(wanted))
        smooth = clean * (1 - self.smoothing) + 0.5 * self.smoothing
        losses = functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none")
        if self.weights is not None:
            negative, positive = self.weights
            losses = losses * torch.where(clean > 0.5, positive, negative)
        return (losses * known).sum()


class Outlining:
    """Loss of logits ``(B, 1, H, W)`` against masks: the mean over images of :func:`outline_losses`."""

    def __init__(self, study: Study) -> None:
        self.study = study

    def outputs(self, model: nn.Module, images: Tensor) -> Outputs:
        logits: Tensor = model(images)
        return logits

    def weight(self, truth: Truth) -> Tensor:
        return torch.tensor(float(len(truth)), device=truth.targets.device)

    def total(self, outputs: Outputs, truth: Truth) -> Tensor:
        assert isinstance(outputs, Tensor)
        return outline_losses(outputs, truth.outlined, self.study).sum()


class Both:
    """Loss of classes plus ``outline_weight`` times that of outlines, each a mean over what is known of it."""

    def __init__(self, study: Study, classifying: Classifying) -> None:
        self.study, self.classifying = study, classifying

    def outputs(self, model: nn.Module, images: Tensor) -> Outputs:
        return both_stages(model, images)

    def weight(self, truth: Truth) -> Tensor:
        outlined = known_masks(truth.outlined).sum().clamp(min=1).float()
        return torch.stack([self.classifying.weight(truth), outlined])

    def total(self, outputs: Outputs, truth: Truth) -> Tensor:
        logits, outlines = outputs
        known = known_masks(truth.outlined)
        masks = truth.outlined * known[:, None, None]
        losses = outline_losses(outlines, masks, self.study) * known * self.study.training.outline_weight
        return torch.stack([self.classifying.total(logits, truth), losses.sum()])


def both_stages(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits ``(B, outputs)`` and of the outline ``(B, 1, H, W)``, of a model of two stages."""
    assert isinstance(model, SegmentClassify)
    logits, outline = model.stages(images)
    assert outline is not None, "a study without a segmentation stage has no masks"
    return logits, outline


def known_masks(masks: Tensor) -> Tensor:
    """``(B,)`` bool: which of ``(B, H, W)`` are masks."""
    return masks.flatten(1)[:, 0] != NO_MASK


def outline_losses(logits: Tensor, masks: Tensor, study: Study) -> Tensor:
    """Each image's loss ``(B,)`` float32 from logits ``(B, 1, H, W)`` and masks ``(B, H, W)`` in {0, 1}.

    1 - Dice on probabilities, of each image by itself, so that no image's loss depends on its batch; with ``dice_ce``
    plus the mean cross-entropy of its pixels.
    """
    logits, truth = logits[:, 0].float().flatten(1), masks.float().flatten(1)
    probability = logits.sigmoid()
    both, together = (probability * truth).sum(1), probability.sum(1) + truth.sum(1)
    losses = 1.0 - (2.0 * both + _SMOOTH) / (together + _SMOOTH)
    if study.training.outline_loss == "dice_ce":
        losses = losses + functional.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)
    return losses


def class_weights(study: Study, targets: Tensor, basis: Basis | None = None) -> Tensor | None:
    """Weights that balance the classes; ``None`` when off.

    ``balanced``: those of *this site*, so that no count has to leave it; ``federated``: those of all sites, from
    ``basis``. Multiclass: ``(C,)``. Binary and multilabel: ``(2, outputs)``, negatives then positives.
    A class that is absent weighs 1. Weights are n / (k · n_c) as in scikit-learn's "balanced".
    """
    if study.training.class_weighting == "none":
        return None
    if study.training.class_weighting == "federated":
        if basis is None:
            raise ProtocolError("a fit lacks the class weights of all sites")
        weights = torch.tensor(basis.class_weights, dtype=torch.float32, device=targets.device)
        return weights if study.task == "multiclass" else weights.reshape(2, -1)
    wanted = targets[:, 1:] if study.task == "binary" else targets
    positive = torch.nansum(wanted, 0)
    if study.task == "multiclass":
        return torch.where(positive > 0, positive.sum() / (len(positive) * positive.clamp(min=1)), 1.0)
    known = (~torch.isnan(wanted)).sum(0).float()
    counts = torch.stack([known - positive, positive])
    return torch.where(counts > 0, known / (2 * counts.clamp(min=1)), 1.0)
