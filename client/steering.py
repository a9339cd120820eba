"""What bends a local fit: Ditto's pull towards the shared model, SCAFFOLD's correction of each gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.weights import Weights, trainable_names


class Steering:
    """Called around every step of a fit; this one bends nothing. A fit that is steered has no proximal term."""

    def gradients(self) -> None:
        """After the gradients are there, before they are clipped and used."""

    def stepped(self, rate: float) -> None:
        """After the optimiser's step with learning rate ``rate``."""


class Pull(Steering):
    """Ditto's λ/2·‖v − w‖² as a proximal step: v ← (v + η·λ·w) / (1 + η·λ) after each step of learning rate η.

    To first order the gradient step of Li et al. 2021 (algorithm 1); unlike that it is stable for every λ, and stays
    what it says under Adam, which would divide the term's gradient by its own size (Loshchilov & Hutter 2019).
    """

    def __init__(self, model: nn.Module, towards: Weights, strength: float) -> None:
        device = next(model.parameters()).device
        self._strength = strength
        self._pairs = [
            (parameter, _tensor(towards[name]).to(device))
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]

    def stepped(self, rate: float) -> None:
        share = rate * self._strength / (1.0 + rate * self._strength)
        with torch.no_grad():
            for parameter, target in self._pairs:
                parameter.lerp_(target, share)


class Correction(Steering):
    """SCAFFOLD's c − cᵢ, added to every gradient (Karimireddy et al. 2020, algorithm 1, line 10)."""

    def __init__(self, model: nn.Module, all_sites: Weights, own: Weights) -> None:
        device = next(model.parameters()).device
        self.pace = 0.0
        """Sum of the learning rates of all steps so far."""
        self._pairs: Sequence[tuple[nn.Parameter, Tensor]] = [
            (parameter, _tensor(all_sites[name] - own[name]).to(device))
            for name, parameter in model.named_parameters()
            if name in all_sites
        ]

    def gradients(self) -> None:
        for parameter, correction in self._pairs:
            if parameter.grad is not None:
                parameter.grad.add_(correction)

    def stepped(self, rate: float) -> None:
        self.pace += rate


def zeros(model: nn.Module) -> dict[str, NDArray[np.float32]]:
    """A variate before the first round."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return {name: np.zeros(shapes[name], np.float32) for name in trainable_names(model)}


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.tensor(array)  # a copy: what came in a message may not be written to
