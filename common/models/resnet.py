"""Residual networks (He et al. 2016, arXiv:1512.03385; the stride at the 3×3 convolution, "v1.5").

Names of parameters, their shapes and the function computed are torchvision's (tested), so its published weights
load. The definition is our own because torchvision adds residuals in place, which per-sample gradients do not
survive, and because importing it more than doubles the time of importing torch.

``params``: ``attention: se`` weighs the channels of each block before its residual (SE-ResNet, Hu et al. 2018,
arXiv:1709.01507); default ``none``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.models.attention import SqueezeExcitation
from common.models.norms import norm_layer, require_norm
from common.models.params import check_keys, text
from common.study import Study

Maker = Callable[[int], nn.Module]
"""Channels -> a layer that keeps ``(B, channels, H, W)``."""


class BasicBlock(nn.Module):
    """Two 3×3 convolutions around a residual: ``(B, channels, H, W)`` -> ``(B, width, H/stride, W/stride)``."""

    expansion = 1

    def __init__(
        self, channels: int, width: int, stride: int, shortcut: nn.Module | None, norm: Maker, attention: Maker
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = norm(width)
        self.attention = attention(width * self.expansion)
        self.downsample = shortcut

    def forward(self, images: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(images)))
        out = self.attention(self.bn2(self.conv2(out)))
        return functional.relu(out + (images if self.downsample is None else self.downsample(images)))


class Bottleneck(nn.Module):
    """1×1, 3×3, 1×1 convolutions around a residual; the output has ``4 · width`` channels."""

    expansion = 4

    def __init__(
        self, channels: int, width: int, stride: int, shortcut: nn.Module | None, norm: Maker, attention: Maker
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = norm(width * self.expansion)
        self.attention = attention(width * self.expansion)
        self.downsample = shortcut

    def forward(self, images: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(images)))
        out = functional.relu(self.bn2(self.conv2(out)))
        out = self.attention(self.bn3(self.conv3(out)))
        return functional.relu(out + (images if self.downsample is None else self.downsample(images)))


class ResNet(nn.Module):
    """``(B, channels, H, W)`` -> logits ``(B, outputs)``; ``blocks`` per stage at widths 64, 128, 256, 512."""

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        blocks: tuple[int, int, int, int],
        channels: int,
        outputs: int,
        norm: Maker,
        attention: Maker,
        dropout: float,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = stage(block, 64, 64, blocks[0], 1, norm, attention)
        self.layer2 = stage(block, 64 * block.expansion, 128, blocks[1], 2, norm, attention)
        self.layer3 = stage(block, 128 * block.expansion, 256, blocks[2], 2, norm, attention)
        self.layer4 = stage(block, 256 * block.expansion, 512, blocks[3], 2, norm, attention)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(512 * block.expansion, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        out = self.maxpool(functional.relu(self.bn1(self.conv1(images))))
        out = self.layer4(self.layer3(self.layer2(self.layer1(out))))
        out = torch.flatten(functional.adaptive_avg_pool2d(out, 1), 1)
        logits: Tensor = self.fc(self.dropout(out))
        return logits


def stage(
    block: type[BasicBlock] | type[Bottleneck],
    channels: int,
    width: int,
    count: int,
    stride: int,
    norm: Maker,
    attention: Maker,
) -> nn.Sequential:
    """``count`` blocks, the first of them from ``channels`` and by ``stride``."""
    after = width * block.expansion
    shortcut: nn.Module | None = None
    if stride != 1 or channels != after:
        shortcut = nn.Sequential(nn.Conv2d(channels, after, 1, stride=stride, bias=False), norm(after))
    first = block(channels, width, stride, shortcut, norm, attention)
    return nn.Sequential(first, *(block(after, width, 1, None, norm, attention) for _ in range(count - 1)))


def _build(study: Study, block: type[BasicBlock] | type[Bottleneck], blocks: tuple[int, int, int, int]) -> ResNet:
    spec = study.model
    check_keys(spec, ("attention",))
    require_norm(spec.norm, spec.name)
    attend = text(spec, "attention", ("none", "se")) == "se"
    return ResNet(
        block,
        blocks,
        study.image.channels,
        study.outputs,
        lambda width: norm_layer(spec.norm, width),
        SqueezeExcitation if attend else lambda width: nn.Identity(),
        spec.dropout,
    )


def build_resnet18(study: Study) -> nn.Module:
    """ResNet-18: 11 M parameters."""
    return _build(study, BasicBlock, (2, 2, 2, 2))


def build_resnet50(study: Study) -> nn.Module:
    """ResNet-50: 24 M parameters."""
    return _build(study, Bottleneck, (3, 4, 6, 3))
