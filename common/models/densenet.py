"""DenseNet-121 (Huang et al. 2017, arXiv:1608.06993) without memory-saving checkpoints.

Names of parameters, their shapes and the function computed are torchvision's (tested); why the definition is our
own stands in ``resnet.py``. The norm layers keep their names with group normalisation.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.errors import ModelError
from common.models.norms import Norm, norm_layer, require_norm
from common.models.params import check_keys
from common.study import Study

GROWTH = 32
"""Channels that each layer adds."""
BOTTLENECK = 4 * GROWTH
BLOCKS = (6, 12, 24, 16)
SMALLEST = 29
"""Side in pixels below which the third transition has nothing left to pool: 29 → 15 → 8 → 4 → 2 → 1."""


class DenseLayer(nn.Module):
    """``(B, C, H, W)`` -> ``(B, C + 32, H, W)``: its input, and behind it what it adds."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.norm1 = norm_layer(norm, channels)
        self.conv1 = nn.Conv2d(channels, BOTTLENECK, 1, bias=False)
        self.norm2 = norm_layer(norm, BOTTLENECK)
        self.conv2 = nn.Conv2d(BOTTLENECK, GROWTH, 3, padding=1, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        out = self.conv1(functional.relu(self.norm1(images)))
        out = self.conv2(functional.relu(self.norm2(out)))
        return torch.cat([images, out], 1)


class DenseNet(nn.Module):
    """``(B, channels, H, W)``, H and W at least 29 -> logits ``(B, outputs)``."""

    def __init__(self, channels: int, outputs: int, norm: Norm, dropout: float) -> None:
        super().__init__()
        width = 64
        parts = OrderedDict[str, nn.Module](
            conv0=nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False),
            norm0=norm_layer(norm, width),
            relu0=nn.ReLU(),
            pool0=nn.MaxPool2d(3, stride=2, padding=1),
        )
        for number, count in enumerate(BLOCKS, start=1):
            layers = OrderedDict[str, nn.Module]()
            for index in range(count):
                layers[f"denselayer{index + 1}"] = DenseLayer(width + index * GROWTH, norm)
            parts[f"denseblock{number}"] = nn.Sequential(layers)
            width += count * GROWTH
            if number < len(BLOCKS):
                parts[f"transition{number}"] = _transition(width, norm)
                width //= 2
        parts["norm5"] = norm_layer(norm, width)
        self.features = nn.Sequential(parts)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        out = functional.relu(self.features(images))
        out = torch.flatten(functional.adaptive_avg_pool2d(out, 1), 1)
        logits: Tensor = self.classifier(self.dropout(out))
        return logits


def _transition(width: int, norm: Norm) -> nn.Sequential:
    """Halves channels and sides between two blocks."""
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            norm=norm_layer(norm, width),
            relu=nn.ReLU(),
            conv=nn.Conv2d(width, width // 2, 1, bias=False),
            pool=nn.AvgPool2d(2),
        )
    )


def build_densenet121(study: Study) -> nn.Module:
    """DenseNet-121: 7 M parameters."""
    spec = study.model
    check_keys(spec, ())
    require_norm(spec.norm, spec.name)
    if study.image.size < SMALLEST:
        raise ModelError(
            f"image.size: {study.image.size} is too small for densenet121, which needs at least {SMALLEST}; "
            "enlarge the images or use model.name: cnn"
        )
    return DenseNet(study.image.channels, study.outputs, spec.norm, spec.dropout)
