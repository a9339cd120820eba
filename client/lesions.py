"""Lesions of one split of a site: which of them a model's outlines find, at each of a few thresholds."""

from __future__ import annotations

import torch
from torch import nn

from client.evaluation import Scores, forward, masks_of, outline_of
from client.objective import known_masks
from client.vault.prepared import PreparedView
from common.basis import Basis
from common.metrics import Found, Lesions, Moments, Question, SecondPass
from common.study import Study


def find(model: nn.Module, view: PreparedView, study: Study, basis: Basis | None = None) -> Found:
    """The lesions of every image of ``view`` that has a mask; the model is left in evaluation mode.

    Outlines are looked at batch by batch, and none is held.
    """
    model.eval()
    parts: list[Found] = []
    for rows, said in forward(model, view, study, basis):
        masks = masks_of(view, rows).cpu()
        known, probabilities = known_masks(masks), outline_of(said).sigmoid().cpu()
        numbers: torch.Tensor = rows.cpu()[known]
        parts.append(
            Found.of(probabilities[known].numpy(), masks[known].numpy(), numbers.numpy(), study.evaluation.lesions)
        )
    return Found.joined(parts)


def second_pass(scores: Scores, found: Found | None, question: Question, min_cell: int = 1) -> SecondPass:
    """What of ``scores`` and lesions ``found`` may leave in the second pass, none of it of too few patients."""
    moments = Moments.of(scores.scores, scores.targets, scores.patients, question.reference, min_cell)
    if found is None or question.outline is None:
        return SecondPass(moments)
    return SecondPass(moments, Lesions.of(found, scores.patients, question.outline, min_cell))
