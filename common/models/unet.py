"""U-Net (Ronneberger et al. 2015, arXiv:1505.04597): a path down, a path up, and skips between them.

Each level has two 3×3 convolutions, each with norm and ReLU; 2×2 max pooling leads down, a convolution that doubles the
side leads up, and a 1×1 convolution ends it. Borders are padded with zeros, so that the outline is as large as the
image. ``params``:

- ``depth``: how often it goes down, default 4; the image's side must be a multiple of 2^depth;
- ``width``: channels of the first level, doubled at each level below, default 32 (the paper's is 64);
- ``up``: ``transpose`` (default, the paper's 2×2 transposed convolution) or ``resize`` (nearest neighbour, then a 3×3
  convolution), which differentially private training clips without holding each image's gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.errors import ModelError
from common.models.norms import Norm, norm_layer
from common.models.params import check_keys, integer, text
from common.study import Study

UP = ("transpose", "resize")


class TwoConvolutions(nn.Module):
    """``(B, channels, H, W)`` -> ``(B, width, H, W)``."""

    def __init__(self, channels: int, width: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=norm == "none")
        self.norm1 = norm_layer(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=norm == "none")
        self.norm2 = norm_layer(norm, width)

    def forward(self, features: Tensor) -> Tensor:
        features = functional.relu(self.norm1(self.conv1(features)))
        return functional.relu(self.norm2(self.conv2(features)))


class UNet(nn.Module):
    """Images ``(B, channels, H, W)`` -> logits ``(B, outputs, H, W)``; H and W multiples of ``2^depth``."""

    def __init__(
        self, channels: int, outputs: int, *, depth: int, width: int, norm: Norm, dropout: float, up: str = "transpose"
    ) -> None:
        super().__init__()
        widths = [width << level for level in range(depth + 1)]
        self.down = nn.ModuleList(
            TwoConvolutions(before, after, norm) for before, after in zip([channels, *widths], widths, strict=False)
        )
        self.up = nn.ModuleList(_doubled(2 * after, after, up) for after in reversed(widths[:-1]))
        self.merge = nn.ModuleList(TwoConvolutions(2 * after, after, norm) for after in reversed(widths[:-1]))
        self.dropout = nn.Dropout(dropout)
        self.last = nn.Conv2d(width, outputs, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module is not self.last:
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        features, skips = images, []
        for level, convolutions in enumerate(self.down):
            if level:
                features = functional.max_pool2d(features, 2)
            features = convolutions(features)
            skips.append(features)
        features = self.dropout(skips.pop())
        for up, merge in zip(self.up, self.merge, strict=True):
            features = merge(torch.cat([skips.pop(), up(features)], dim=1))
        logits: Tensor = self.last(features)
        return logits


def _doubled(channels: int, width: int, up: str) -> nn.Module:
    """``(B, channels, H, W)`` -> ``(B, width, 2H, 2W)``."""
    if up == "transpose":
        return nn.ConvTranspose2d(channels, width, 2, stride=2)
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(channels, width, 3, padding=1))


def require_multiple(study: Study, depth: int, key: str) -> None:
    """Raises :class:`ModelError` where the study's images cannot be halved ``depth`` times."""
    if study.image.size % (1 << depth):
        raise ModelError(
            f"image.size: {study.image.size} is no multiple of {1 << depth}, which {study.model.name} with {key} "
            f"{depth} needs; change image.size or lower model.params.{key}"
        )


def build_unet(study: Study) -> nn.Module:
    """Images ``(B, channels, size, size)`` -> logits ``(B, 1, size, size)`` of the study's last class at each pixel.

    Raises :class:`ModelError` for unknown params and for images whose side cannot be halved often enough.
    """
    spec = study.model
    check_keys(spec, ("depth", "width", "up"))
    depth = integer(spec, "depth", 4, 1, 7)
    require_multiple(study, depth, "depth")
    return UNet(
        study.image.channels,
        study.outputs,
        depth=depth,
        width=integer(spec, "width", 32, 1, 512),
        norm=spec.norm,
        dropout=spec.dropout,
        up=text(spec, "up", UP),
    )
