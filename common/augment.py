"""Batched augmentation on the training device."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from common.study import AugmentSpec

_DRAWS = 7  # rotate, shift x, shift y, zoom, flip horizontal, flip vertical, brightness


class Augmenter:
    """Random rotation, shift, zoom, flips and brightness of a batch, each image with its own draw.

    Rotation, shift, zoom and flips are one bilinear resampling; flips alone are exact. Where an image is moved
    off its frame, its border is continued (as Keras' ``nearest``, which the studies this follows used), so that no
    edge appears that test images do not have. Brightness multiplies, and the result is cut to [0, 1].

    Every call takes seven numbers per image from the caller's CPU generator, whatever the spec uses: CPU and CUDA see
    the same draws, switching one change on leaves the others' draws alone, and two microbatches draw what
    their batch would.
    """

    def __init__(self, spec: AugmentSpec) -> None:
        self.spec = spec
        self._active = spec.active
        self._warps = spec.rotate_deg > 0.0 or spec.shift > 0.0 or spec.zoom > 0.0
        self._flips = spec.flip_horizontal or spec.flip_vertical

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """``images`` ``(B, C, H, W)`` float in [0, 1], changed; with nothing to do, ``images`` itself and no draw."""
        return self._run(images, None, generator)[0]

    def apply_with_masks(self, images: Tensor, masks: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``apply``, with ``masks`` ``(B, H, W)`` of any type moved the same way by nearest neighbour."""
        if masks.shape != (images.shape[0], *images.shape[2:]):
            raise ValueError(f"masks {tuple(masks.shape)} do not lie over images {tuple(images.shape)}")
        changed, moved = self._run(images, masks, generator)
        return changed, masks if moved is None else moved

    @torch.no_grad()
    def _run(self, images: Tensor, masks: Tensor | None, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        if not self._active or images.shape[0] == 0:
            return images, masks
        if generator.device.type != "cpu":
            raise ValueError(f"augmentation draws from a CPU generator, got one on {generator.device}")
        draws = torch.rand((images.shape[0], _DRAWS), generator=generator, dtype=torch.float32)
        result = images
        if self._warps:
            grid = self._grid(draws, images)
            result = functional.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
            result = result.to(images.dtype).clamp_(0.0, 1.0)  # bilinear weights can sum to 1 + 1e-7
            if masks is not None:
                masks = _sampled_nearest(masks, grid)
        elif self._flips:
            result, masks = self._flipped(draws, images, masks)
        if self.spec.brightness > 0.0:
            factors = 1.0 + self.spec.brightness * (2.0 * draws[:, 6] - 1.0)
            factors = factors.to(images.device, images.dtype, non_blocking=True)
            result = (result * factors[:, None, None, None]).clamp_(0.0, 1.0)
        return result, masks

    def _grid(self, draws: Tensor, images: Tensor) -> Tensor:
        """Where each output pixel is read: ``(B, H, W, 2)`` in [-1, 1], x first.

        Element-wise on purpose: ``affine_grid`` is a matrix product, which autocast or TF32 would round to
        a third of a pixel.
        """
        spec, (height, width) = self.spec, images.shape[2:]
        signed = 2.0 * draws - 1.0
        angle = signed[:, 0] * math.radians(spec.rotate_deg)
        inverse = 1.0 / (1.0 + spec.zoom * signed[:, 3])  # zoom 1.1 shows a smaller part
        cosine, sine = torch.cos(angle) * inverse, torch.sin(angle) * inverse
        mirror_x = 1.0 - 2.0 * (draws[:, 4] < 0.5) if spec.flip_horizontal else torch.ones_like(angle)
        mirror_y = 1.0 - 2.0 * (draws[:, 5] < 0.5) if spec.flip_vertical else torch.ones_like(angle)
        shift_x, shift_y = 2.0 * spec.shift * signed[:, 1], 2.0 * spec.shift * signed[:, 2]
        rows = torch.stack(
            [
                mirror_x * cosine,
                -mirror_x * sine * (height / width),
                mirror_x * shift_x,
                mirror_y * sine * (width / height),
                mirror_y * cosine,
                mirror_y * shift_y,
            ]
        )
        rows = rows.to(images.device, non_blocking=True)[..., None, None]
        x = _centres(width, images.device)[None, None, :]
        y = _centres(height, images.device)[None, :, None]
        grid = torch.empty((images.shape[0], height, width, 2), device=images.device)
        grid[..., 0] = rows[0] * x + (rows[1] * y + rows[2])
        grid[..., 1] = rows[3] * x + (rows[4] * y + rows[5])
        return grid

    def _flipped(self, draws: Tensor, images: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor | None]:
        for wanted, column, axis in ((self.spec.flip_horizontal, 4, -1), (self.spec.flip_vertical, 5, -2)):
            if not wanted:
                continue
            chosen = (draws[:, column] < 0.5).to(images.device, non_blocking=True)
            images = torch.where(chosen[:, None, None, None], images.flip(axis), images)
            if masks is not None:
                masks = torch.where(chosen[:, None, None], masks.flip(axis), masks)
        return images, masks


def _centres(length: int, device: torch.device) -> Tensor:
    """Pixel centres along one side in [-1, 1] (``align_corners=False``)."""
    return (2.0 * torch.arange(length, device=device, dtype=torch.float32) + 1.0) / length - 1.0


def _sampled_nearest(masks: Tensor, grid: Tensor) -> Tensor:
    values = masks[:, None].float()
    return functional.grid_sample(values, grid, "nearest", "border", align_corners=False)[:, 0].to(masks.dtype)
