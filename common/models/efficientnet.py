"""EfficientNet-Lite0 (Tan & Le 2019, arXiv:1905.11946, in its form without squeeze-and-excitation and with ReLU6).

Inverted residuals with depthwise convolutions: 3.4 million parameters and about a fifth of the arithmetic of ResNet-18,
so that a network that has seen ImageNet can be fine-tuned without a GPU. The function is that of the published PyTorch
conversion and the names are its, but for leading underscores (tested), so that its weights load. Padding is
TensorFlow's: what a strided convolution needs more at one side is put at the right and at the bottom.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.models.norms import Norm, norm_layer, require_norm
from common.models.params import check_keys
from common.study import Study

STEM, HEAD = 32, 1280
STAGES = (
    # blocks, kernel, stride of the first, expansion, channels
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
EPSILON = 1e-3
"""Of batch norms, as the published weights were trained with."""


class Block(nn.Module):
    """Widen, convolve each channel by itself, narrow: ``(B, channels, H, W)`` to ``(B, width, ⌈H/stride⌉, …)``."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int, expansion: int, norm: Norm) -> None:
        super().__init__()
        inner = channels * expansion
        if expansion != 1:
            self.expand_conv = nn.Conv2d(channels, inner, 1, bias=False)
            self.bn0 = normal(norm, inner)
        self.widens = expansion != 1
        self.depthwise_conv = nn.Conv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self.bn1 = normal(norm, inner)
        self.project_conv = nn.Conv2d(inner, width, 1, bias=False)
        self.bn2 = normal(norm, width)
        self.residual = stride == 1 and channels == width

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = functional.relu6(self.bn0(self.expand_conv(images))) if self.widens else images
        out = functional.relu6(self.bn1(self.depthwise_conv(padded(out, self.depthwise_conv))))
        out = self.bn2(self.project_conv(out))
        return out + images if self.residual else out


class EfficientNetLite0(nn.Module):
    """``(B, channels, H, W)`` -> logits ``(B, outputs)``."""

    def __init__(self, channels: int, outputs: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        self.conv_stem = nn.Conv2d(channels, STEM, 3, stride=2, bias=False)
        self.bn0 = normal(norm, STEM)
        blocks, before = [], STEM
        for count, kernel, stride, expansion, width in STAGES:
            for index in range(count):
                blocks.append(Block(before, width, kernel, stride if index == 0 else 1, expansion, norm))
                before = width
        self.blocks = nn.Sequential(*blocks)
        self.conv_head = nn.Conv2d(before, HEAD, 1, bias=False)
        self.bn1 = normal(norm, HEAD)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(HEAD, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        out = functional.relu6(self.bn0(self.conv_stem(padded(images, self.conv_stem))))
        out = functional.relu6(self.bn1(self.conv_head(self.blocks(out))))
        out = torch.flatten(functional.adaptive_avg_pool2d(out, 1), 1)
        logits: Tensor = self.fc(self.dropout(out))
        return logits


def padded(images: Tensor, conv: nn.Conv2d) -> Tensor:
    """With the zeros that let ``conv`` give ``⌈size / stride⌉`` positions a side.

    Outside of the convolution, where a private fit's hooks see them.
    """
    sides: list[int] = []
    for axis in (1, 0):  # torch pads the last dimension first
        size, kernel, stride = images.shape[2 + axis], conv.kernel_size[axis], conv.stride[axis]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        sides += [total // 2, total - total // 2]
    return functional.pad(images, sides)


def normal(kind: Norm, channels: int) -> nn.Module:
    layer = norm_layer(kind, channels)
    if isinstance(layer, nn.BatchNorm2d):
        layer.eps = EPSILON
    return layer


def build_efficientnet_lite0(study: Study) -> nn.Module:
    """EfficientNet-Lite0: 3.4 M parameters and the last layer."""
    check_keys(study.model, ())
    require_norm(study.model.norm, study.model.name)
    return EfficientNetLite0(study.image.channels, study.outputs, study.model.norm, study.model.dropout)
