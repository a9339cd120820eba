"""Channel attention for convolutional networks: squeeze and excitation (Hu et al. 2018, arXiv:1709.01507)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

REDUCTION = 16
LEAST_HIDDEN = 4


class SqueezeExcitation(nn.Module):
    """``(B, C, H, W)`` -> the same, each channel times a number in (0, 1) made of all channels' means of that image.

    Two fully connected layers with C / 16 channels between them, at least 4. No image sees another.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(LEAST_HIDDEN, channels // REDUCTION)
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, images: Tensor) -> Tensor:
        gates = torch.sigmoid(self.excite(torch.relu(self.squeeze(images.mean((2, 3))))))
        return images * gates[:, :, None, None]
