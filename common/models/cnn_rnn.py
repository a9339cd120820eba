"""A convolutional network whose features a recurrent one reads in order: over the slices of a series, or over rows.

``params``:

- ``sequence``: ``rows`` (default) reads the rows of the last feature map, head to foot; ``channels`` takes each channel
  of an image as one picture of a series (slices, MRI sequences, points in time), gives all of them to the same
  convolutions, and reads what they make of each in the channels' order;
- ``filters``, ``pool_every``, ``kernel``: as of ``cnn``;
- ``state``: length of the recurrent layer's state, default 64.

The recurrent layer is a GRU (Cho et al. 2014, arXiv:1406.1078); what goes to the output is the mean of its states over
the sequence, so that the first step counts as much as the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.errors import ModelError
from common.models.cnn import FEATURES, Features
from common.models.params import check_keys, integer, text
from common.study import Study


class GRU(nn.Module):
    """``(B, T, inputs)`` -> states ``(B, T, state)``, from a first state of zeros.

    Parameters, their names, their fresh values and the function are those of ``torch.nn.GRU`` with one layer (tested),
    written as plain products: torch's own kernel gives no gradients image by image.
    """

    def __init__(self, inputs: int, state: int) -> None:
        super().__init__()
        self.state = state
        self.weight_ih_l0 = nn.Parameter(torch.empty(3 * state, inputs))
        self.weight_hh_l0 = nn.Parameter(torch.empty(3 * state, state))
        self.bias_ih_l0 = nn.Parameter(torch.empty(3 * state))
        self.bias_hh_l0 = nn.Parameter(torch.empty(3 * state))
        bound = 1.0 / math.sqrt(state)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, steps: Tensor) -> Tensor:
        given = functional.linear(steps, self.weight_ih_l0, self.bias_ih_l0)
        state = given.new_zeros(len(steps), self.state)
        states = []
        for at in range(steps.shape[1]):
            kept = functional.linear(state, self.weight_hh_l0, self.bias_hh_l0)
            reset_in, update_in, new_in = given[:, at].chunk(3, -1)
            reset_kept, update_kept, new_kept = kept.chunk(3, -1)
            reset, update = torch.sigmoid(reset_in + reset_kept), torch.sigmoid(update_in + update_kept)
            new = torch.tanh(new_in + reset * new_kept)
            state = new + update * (state - new)
            states.append(state)
        return torch.stack(states, 1)


class CnnRnn(nn.Module):
    """``(B, channels, size, size)`` -> logits ``(B, outputs)``."""

    def __init__(
        self, features: nn.Module, steps: Callable[[nn.Module, Tensor], Tensor], rnn: GRU, dropout: float, outputs: int
    ) -> None:
        super().__init__()
        self.features, self.rnn = features, rnn
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(rnn.state, outputs)
        self._steps = steps

    def forward(self, images: Tensor) -> Tensor:
        states = self.rnn(self._steps(self.features, images))
        logits: Tensor = self.fc(self.dropout(states.mean(1)))
        return logits


def rows(features: nn.Module, images: Tensor) -> Tensor:
    """``(B, channels, H, W)`` -> ``(B, h, C · w)``: each row of the feature map ``(B, C, h, w)``."""
    found: Tensor = features(images)
    return found.transpose(1, 2).flatten(2)


def channels(features: nn.Module, images: Tensor) -> Tensor:
    """``(B, S, H, W)`` -> ``(B, S, C)``: the mean over the feature map of each picture of a series."""
    found: Tensor = features(images.flatten(0, 1)[:, None])
    return found.mean((2, 3)).reshape(*images.shape[:2], -1)


def build_cnn_rnn(study: Study) -> nn.Module:
    """Raises :class:`ModelError` for unknown params, images too small for the pools, and a series of one picture."""
    spec = study.model
    check_keys(spec, (*FEATURES, "sequence", "state"))
    over = text(spec, "sequence", ("rows", "channels"))
    state = integer(spec, "state", 64, 1, 4096)
    series = over == "channels"
    if series and study.image.channels == 1:
        raise ModelError(
            "model.params.sequence: channels reads a series, and image.channels is 1; use image.channels: 3 with three "
            "pictures in an image, or sequence: rows"
        )
    features = Features.of(study)
    width = features.filters[-1]
    rnn_inputs = width if series else width * features.side
    layers = features.layers(1 if series else study.image.channels)
    return CnnRnn(layers, channels if series else rows, GRU(rnn_inputs, state), spec.dropout, study.outputs)
