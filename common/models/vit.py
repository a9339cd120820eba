"""Vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929), for images of any number of channels.

The function computed and the names of parameters are torchvision's (tested), but that the projection to queries, keys
and values is a layer of its own, ``in_proj.weight`` where torchvision has ``in_proj_weight``: so that its gradients can
be had image by image. Files with torchvision's names load (``pretrained.py``). Each attention layer tells its weights
(:meth:`SelfAttention.weights_of`), from which heat maps are made.

``params``:

- ``patch``: side of a patch in pixels, a divisor of ``image.size``; default 8;
- ``dim``: length of a token, default 192; ``depth``: layers, default 6; ``heads``: a divisor of ``dim``, default 3;
- ``mlp``: width of the layers between, default four times ``dim``.

``{patch: 16, dim: 768, depth: 12, heads: 12}`` at 224 pixels is ViT-B/16. ``model.dropout`` stands where torchvision's
``dropout`` does. Norms are layer norms: ``model.norm`` has no say.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn

from common.errors import ModelError
from common.models.params import check_keys, integer
from common.study import Study

MOST_TOKENS = 4096
_EPSILON = 1e-6


class SelfAttention(nn.Module):
    """Tokens ``(B, T, dim)`` -> ``(B, T, dim)``."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        # Not drawn: what it starts with comes below, and draws before it would shift those of all after it.
        self.in_proj = nn.Linear(dim, 3 * dim, device="meta").to_empty(device=torch.empty(0).device)
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj.weight)
        nn.init.zeros_(self.in_proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        # Not torch's fused attention, which has no per-image gradients and keeps its weights to itself.
        query, key, value = self._heads(tokens)
        mixed = _weights(query, key) @ value
        result: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return result

    def weights_of(self, tokens: Tensor) -> Tensor:
        """``(B, heads, T, T)``: how much each token takes from each, rows summing to 1, where this layer sees these."""
        query, key, _ = self._heads(tokens)
        return _weights(query, key)

    def _heads(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each ``(B, heads, T, dim / heads)``."""
        three = self.in_proj(tokens).unflatten(-1, (3, self.heads, -1)).movedim(1, -2)  # (B, 3, heads, T, d)
        query, key, value = three.unbind(1)
        return query, key, value


def _weights(query: Tensor, key: Tensor) -> Tensor:
    return (query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)


class EncoderBlock(nn.Module):
    """Attention, then two fully connected layers, each after a norm and around a residual: ``(B, T, dim)`` kept."""

    def __init__(self, dim: int, heads: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim, eps=_EPSILON)
        self.self_attention = SelfAttention(dim, heads)
        self.dropout = nn.Dropout(dropout)
        self.ln_2 = nn.LayerNorm(dim, eps=_EPSILON)
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp, dim), nn.Dropout(dropout)
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.normal_(layer.bias, std=_EPSILON)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.dropout(self.self_attention(self.ln_1(tokens)))
        result: Tensor = tokens + self.mlp(self.ln_2(tokens))
        return result


class Encoder(nn.Module):
    """Positions added, then ``depth`` blocks and a last norm: ``(B, T, dim)`` kept."""

    def __init__(self, tokens: int, dim: int, depth: int, heads: int, mlp: int, dropout: float) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.empty(1, tokens, dim).normal_(std=0.02))
        self.dropout = nn.Dropout(dropout)
        blocks = OrderedDict[str, nn.Module]()
        for index in range(depth):
            blocks[f"encoder_layer_{index}"] = EncoderBlock(dim, heads, mlp, dropout)
        self.layers = nn.Sequential(blocks)
        self.ln = nn.LayerNorm(dim, eps=_EPSILON)

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.ln(self.layers(self.dropout(tokens + self.pos_embedding)))
        return result


class VisionTransformer(nn.Module):
    """``(B, channels, size, size)`` -> logits ``(B, outputs)``, read off the class token, which comes first."""

    def __init__(
        self,
        *,
        size: int,
        channels: int,
        outputs: int,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        mlp: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.conv_proj = nn.Conv2d(channels, dim, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.encoder = Encoder((size // patch) ** 2 + 1, dim, depth, heads, mlp, dropout)
        self.heads = nn.Sequential(OrderedDict[str, nn.Module](head=nn.Linear(dim, outputs)))
        nn.init.trunc_normal_(self.conv_proj.weight, std=math.sqrt(1 / (channels * patch * patch)))
        assert self.conv_proj.bias is not None
        nn.init.zeros_(self.conv_proj.bias)
        for parameter in self.heads.parameters():
            nn.init.zeros_(parameter)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.conv_proj(images).flatten(2).mT  # (B, patches, dim), row by row
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], 1)
        logits: Tensor = self.heads(self.encoder(tokens)[:, 0])
        return logits


def build_vit(study: Study) -> nn.Module:
    """A vision transformer; 2.7 M parameters by default.

    Raises :class:`ModelError` for unknown params, and for patches and heads that do not divide.
    """
    spec, size = study.model, study.image.size
    check_keys(spec, ("patch", "dim", "depth", "heads", "mlp"))
    patch = integer(spec, "patch", 8, 1, size)
    dim = integer(spec, "dim", 192, 1, 4096)
    depth = integer(spec, "depth", 6, 1, 64)
    heads = integer(spec, "heads", 3, 1, 64)
    mlp = integer(spec, "mlp", 4 * dim, 1, 16_384)
    if spec.norm != "group":
        raise ModelError(f"model.norm: {spec.norm}: vit has layer norms and no others; leave model.norm out")
    if size % patch:
        raise ModelError(
            f"model.params.patch: {patch} does not divide image.size {size}; choose a divisor of it, or another size"
        )
    if dim % heads:
        raise ModelError(f"model.params.heads: {heads} does not divide model.params.dim {dim}")
    if (size // patch) ** 2 >= MOST_TOKENS:
        raise ModelError(
            f"model.params.patch: {(size // patch) ** 2} patches an image are too many, at most {MOST_TOKENS - 1}; "
            "use larger patches or smaller images"
        )
    return VisionTransformer(
        size=size,
        channels=study.image.channels,
        outputs=study.outputs,
        patch=patch,
        dim=dim,
        depth=depth,
        heads=heads,
        mlp=mlp,
        dropout=spec.dropout,
    )
