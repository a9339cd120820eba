"""Normalisation layers by the study's word for them.

Group normalisation (Wu & He 2018, arXiv:1803.08494) is the default: it mixes no images
of a batch, so it suits differential privacy, small batches and sites that differ.

Batch normalisation takes its statistics over the batch. In training it raises
``ValueError`` for a batch that leaves one value per channel (one image whose feature map
has shrunk to one pixel), so a training loop must not end an epoch on a batch of one. It also
mixes the images of a batch, so per-sample gradients of it do not exist and Opacus refuses it.
"""

from __future__ import annotations

from typing import Literal

from torch import nn

from common.errors import ModelError

Norm = Literal["none", "batch", "group"]
MAX_GROUPS = 32
MIN_CHANNELS_PER_GROUP = 4


def groups_for(channels: int) -> int:
    """Groups of a GroupNorm: the largest divisor of ``channels`` up to 32 that leaves four channels to each.

    One channel a group would be instance normalisation, which forgets how bright a feature
    map is as a whole, and with it the density of a lung. Fewer than eight channels form one group.
    """
    limit = max(1, min(MAX_GROUPS, channels // MIN_CHANNELS_PER_GROUP))
    return next(groups for groups in range(limit, 0, -1) if channels % groups == 0)


def norm_layer(kind: Norm, channels: int) -> nn.Module:
    """A layer that normalises ``(B, channels, H, W)``; ``none`` is the identity, without parameters."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    if kind == "group":
        return nn.GroupNorm(groups_for(channels), channels)
    return nn.Identity()


def require_norm(kind: Norm, model: str) -> None:
    """Raises :class:`ModelError` for ``norm: none``, with which very deep networks do not train."""
    if kind == "none":
        raise ModelError(f"model.norm: {model} does not train without normalisation; use norm: group or norm: batch")
