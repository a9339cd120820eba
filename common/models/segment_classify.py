"""Segment, then classify: a U-Net outlines the region, a residual network judges what lies in it, trained as one.

The stages, as in computer-aided diagnosis since its beginnings:

1. *segmentation*: a U-Net gives each pixel's probability of belonging to the finding;
2. *region*: the image is multiplied by that (``gate``), or cut out around it as well (``crop``);
3. *feature extraction*: residual blocks (He et al. 2016) see the region only;
4. *feature selection and noise removal*: each channel's features are made smaller by a threshold of its own, learnt
   from the channels' mean sizes, down to nothing where they are smaller than it (the shrinkage of Zhao et al. 2020,
   IEEE Transactions on Industrial Informatics 16: 4681-4690, after Donoho 1995);
5. *classification* of what is left, pooled.

The region stays soft, so that the classifier's errors teach the U-Net as the masks do. ``params``:

- ``region``: ``gate`` (default), ``crop`` or ``none``: the last leaves the whole segmentation stage out;
- ``select``: stage 4, on (default) or off;
- ``outline_depth``, ``outline_width``: the U-Net's, default 3 and 16;
- ``width``: channels of the classifier's first level, doubled at each of the others, default 32;
- ``blocks``: residual blocks of each level, default ``[1, 1, 1, 1]``; each level but the first halves the side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.models.norms import norm_layer, require_norm
from common.models.params import check_keys, flag, integer, integers, text
from common.models.resnet import BasicBlock, stage
from common.models.unet import UNet, require_multiple
from common.study import Study
from common.study_outlines import REGIONS

_LEAST_SIDE = 0.25
"""A cut-out shows at least this share of the image's side: a region of one pixel would be a blur."""
_REACH = 2.5
"""Half a cut-out's side, in standard deviations of the region around its centre; a disc ends at two."""


class Selection(nn.Module):
    """Feature selection and noise removal: ``(B, C, H, W)`` -> the same, every channel soft-thresholded."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, channels)
        self.excite = nn.Linear(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        size = features.abs().mean(dim=(2, 3))
        share = self.excite(functional.relu(self.squeeze(size))).sigmoid()
        threshold = (share * size)[:, :, None, None]
        return features.sign() * functional.relu(features.abs() - threshold)


class SegmentClassify(nn.Module):
    """Images ``(B, channels, H, W)`` -> logits ``(B, outputs)``; :meth:`stages` gives the outline's logits as well."""

    def __init__(self, study: Study) -> None:
        super().__init__()
        spec, channels = study.model, study.image.channels
        self.region = text(spec, "region", REGIONS)
        self.outline: nn.Module | None = None
        if self.region != "none":
            depth = integer(spec, "outline_depth", 3, 1, 7)
            require_multiple(study, depth, "outline_depth")
            width = integer(spec, "outline_width", 16, 1, 512)
            self.outline = UNet(channels, 1, depth=depth, width=width, norm=spec.norm, dropout=0.0, up="resize")
        width, blocks = integer(spec, "width", 32, 4, 512), integers(spec, "blocks", (1, 1, 1, 1), (1, 5), 16)
        levels, before = [], width

        def norm(channels: int) -> nn.Module:
            return norm_layer(spec.norm, channels)

        for level, count in enumerate(blocks):
            after = width << level
            levels.append(stage(BasicBlock, before, after, count, 2 if level else 1, norm, lambda _: nn.Identity()))
            before = after
        self.stem = nn.Conv2d(channels, width, 5, stride=2, padding=2, bias=False)
        self.stem_norm = norm_layer(spec.norm, width)
        self.features = nn.Sequential(*levels)
        self.selection = Selection(before) if flag(spec, "select", True) else nn.Identity()
        self.dropout = nn.Dropout(spec.dropout)
        self.classifier = nn.Linear(before, study.outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.stages(images)[0]

    def stages(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits ``(B, outputs)``, and of the outline ``(B, 1, H, W)``; ``None`` without a segmentation stage."""
        outline = None if self.outline is None else self.outline(images)
        shown = images if outline is None else self._shown(images, outline.sigmoid())
        features = self.features(functional.relu(self.stem_norm(self.stem(shown))))
        pooled = self.selection(features).mean(dim=(2, 3))
        return self.classifier(self.dropout(pooled)), outline

    def _shown(self, images: Tensor, region: Tensor) -> Tensor:
        """What the classifier sees."""
        gated = images * region
        return cut_out(gated, region) if self.region == "crop" else gated


def cut_out(images: Tensor, region: Tensor) -> Tensor:
    """Around each image's ``region`` ``(B, 1, H, W)`` in [0, 1] a square, as large as the image, by bilinear sampling.

    Its centre and half side are the region's mean place and spread, so that gradients reach the region through them.
    Beyond the image's edge there is black.
    """
    batch, _, height, width = images.shape
    y = torch.linspace(-1.0, 1.0, height, device=images.device)[None, :, None]
    x = torch.linspace(-1.0, 1.0, width, device=images.device)[None, None, :]
    weight = region[:, 0].float() + 1e-6  # nothing outlined: the middle
    weight = weight / weight.sum(dim=(1, 2), keepdim=True)
    centre_x, centre_y = (weight * x).sum((1, 2)), (weight * y).sum((1, 2))
    spread = (weight * ((x - centre_x[:, None, None]) ** 2 + (y - centre_y[:, None, None]) ** 2)).sum((1, 2)) / 2
    half = (_REACH * (spread + 1e-6).sqrt()).clamp(_LEAST_SIDE, 1.0)
    grid = torch.stack(
        [
            (centre_x[:, None, None] + half[:, None, None] * x).expand(batch, height, width),
            (centre_y[:, None, None] + half[:, None, None] * y).expand(batch, height, width),
        ],
        dim=3,
    )
    return functional.grid_sample(images.float(), grid, align_corners=True).to(images.dtype)


def build_segment_classify(study: Study) -> nn.Module:
    """Raises :class:`ModelError` for unknown params, missing norms and sides that the U-Net cannot halve."""
    spec = study.model
    check_keys(spec, ("region", "select", "outline_depth", "outline_width", "width", "blocks"))
    require_norm(spec.norm, spec.name)
    return SegmentClassify(study)
