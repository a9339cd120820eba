"""Small convolutional network of the papers: convolutions with pooling, then fully connected layers.

``params``:

- ``filters``: output channels of each convolution, default ``[32, 64, 64, 64]``;
- ``pool_every``: 2×2 max pooling after every so many convolutions; 1 (default) is four conv + pool
  blocks, 2 is pooling after every two;
- ``hidden``: widths of the fully connected layers before the output, default ``[128, 64]``;
- ``kernel``: odd side of the convolutions' kernels, default 3; borders are padded with zeros;
- ``attention``: ``se`` weighs the channels after each convolution (``common.models.attention``); default ``none``.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import nn

from common.errors import ModelError
from common.models.attention import SqueezeExcitation
from common.models.norms import norm_layer
from common.models.params import check_keys, integer, integers, text
from common.study import Study

FEATURES = ("filters", "pool_every", "kernel", "attention")
"""The params of the convolutions."""

MAX_LINEAR_WEIGHTS = 1 << 28
"""A fully connected layer of 1 GiB: beyond this a study is more likely mistaken than meant."""


def build_cnn(study: Study) -> nn.Module:
    """Images ``(B, channels, size, size)`` -> logits ``(B, outputs)``.

    Raises :class:`ModelError` for unknown params, for images too small for the pools, and for
    a first fully connected layer out of all proportion.
    """
    spec = study.model
    check_keys(spec, (*FEATURES, "hidden"))
    hidden = integers(spec, "hidden", (128, 64), (0, 8), 65_536)
    features = Features.of(study)
    flat = features.filters[-1] * features.side**2
    widths = (flat, *hidden, study.outputs)
    if flat * widths[1] > MAX_LINEAR_WEIGHTS:
        raise ModelError(
            f"model: cnn's first fully connected layer would have {flat} × {widths[1]} weights; "
            "reduce image.size or model.params.hidden, or pool more often"
        )
    parts = OrderedDict(features=features.layers(study.image.channels), flatten=nn.Flatten())
    parts["classifier"] = _classifier(widths, spec.dropout)
    return nn.Sequential(parts)


@dataclass(frozen=True)
class Features:
    """The convolutions of a study's model: ``(B, channels, size, size)`` -> ``(B, filters[-1], side, side)``."""

    study: Study
    filters: tuple[int, ...]
    pool_every: int
    kernel: int
    attention: str

    @classmethod
    def of(cls, study: Study) -> Features:
        """Raises :class:`ModelError` for params that are none, and for images too small for the pools."""
        spec, size = study.model, study.image.size
        filters = integers(spec, "filters", (32, 64, 64, 64), (1, 16), 4096)
        pool_every = integer(spec, "pool_every", 1, 1, len(filters))
        kernel = integer(spec, "kernel", 3, 1, 15)
        if kernel % 2 == 0:
            raise ModelError(f"model.params.kernel: must be odd, so that padding keeps the image's size, got {kernel}")
        pools = len(filters) // pool_every
        if size < 1 << pools:
            raise ModelError(
                f"image.size: {size} is too small for {spec.name} with {pools} poolings, which need at least "
                f"{1 << pools}; enlarge the images, raise model.params.pool_every or shorten model.params.filters"
            )
        return cls(study, filters, pool_every, kernel, text(spec, "attention", ("none", "se")))

    @property
    def side(self) -> int:
        """Of the last feature map, in pixels."""
        return self.study.image.size >> len(self.filters) // self.pool_every

    def layers(self, channels: int) -> nn.Module:
        """Convolution, norm, pooling where due, ReLU, attention where wanted. Pooling first is bit for bit the same
        function as ReLU first, gradients included, and leaves ReLU a quarter of the work."""
        norm, layers = self.study.model.norm, OrderedDict[str, nn.Module]()
        for index, width in enumerate(self.filters, start=1):
            # A norm layer subtracts a mean and adds a bias of its own, so the convolution needs none.
            layers[f"conv{index}"] = nn.Conv2d(
                channels, width, self.kernel, padding=self.kernel // 2, bias=norm == "none"
            )
            if norm != "none":
                layers[f"norm{index}"] = norm_layer(norm, width)
            if index % self.pool_every == 0:
                layers[f"pool{index}"] = nn.MaxPool2d(2)
            layers[f"relu{index}"] = nn.ReLU()
            if self.attention == "se":
                layers[f"attention{index}"] = SqueezeExcitation(width)
            channels = width
        return nn.Sequential(layers)


def _classifier(widths: tuple[int, ...], dropout: float) -> nn.Module:
    """Fully connected layers through ``widths``, dropout before each, ReLU between them."""
    layers, last = OrderedDict[str, nn.Module](), len(widths) - 1
    for index in range(1, len(widths)):
        if dropout > 0.0:
            layers[f"dropout{index}"] = nn.Dropout(dropout)
        layers[f"fc{index}"] = nn.Linear(widths[index - 1], widths[index])
        if index < last:
            layers[f"relu{index}"] = nn.ReLU()
    return nn.Sequential(layers)
