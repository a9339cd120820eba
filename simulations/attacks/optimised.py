"""What a picture looked like, by search: images whose gradient points where the update does (Geiping et al. 2020).

"Inverting Gradients" (arXiv:2003.14053): the cosine between gradients, total variation against noise, Adam on the
signs of the gradient. The labels are taken as known, which favours the attacker; they can be read off the update too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from client.optimiser import keep_the_compiler_out, step
from client.private import image_losses
from common.models import build
from common.randomness import seed_for
from common.study import Study
from common.weights import trainable
from simulations.attacks.updates import Update

ITERATIONS = 500
RATES = (0.1, 0.03)
"""First steps of two searches: either may end where nothing gets better, with nearly the same gradient."""
_SMOOTH = 0.1
_SLOWER = (3 / 8, 5 / 8, 7 / 8)
"""Where the search takes steps of a tenth, as the paper's code does."""
_NETWORK = {
    "name": "cnn",
    "norm": "group",
    "params": {"filters": [16, 32, 32], "pool_every": 2, "hidden": [32]},
    "dropout": 0.0,
    "weights": None,
}


def small_network(study: Study, size: int) -> nn.Module:
    """A small convolutional network with the study's outputs for images of ``size``, weights by the study's seed."""
    small = study.derive(**{"model": _NETWORK, "image.size": size})
    return build(small, seed_for(study.seed, "audit", "small network"))


def search(
    model: nn.Module,
    update: Update,
    study: Study,
    targets: Tensor,
    shape: torch.Size,
    *,
    iterations: int = ITERATIONS,
    rates: Sequence[float] = RATES,
) -> Tensor:
    """Images ``(r, n, C, H, W)`` in [0, 1] that would explain ``update``, from a search for each of the r ``rates``.

    ``shape`` ``(n, C, H, W)`` and ``targets`` ``(n, classes)`` are those of the images looked for.
    """
    keep_the_compiler_out()
    return torch.stack([_descend(model, update, study, targets, shape, iterations, rate) for rate in rates])


def _descend(
    model: nn.Module, update: Update, study: Study, targets: Tensor, shape: torch.Size, iterations: int, rate: float
) -> Tensor:
    draw = torch.Generator().manual_seed(seed_for(study.seed, "audit", "search"))
    images = (0.5 + 0.1 * torch.randn(shape, generator=draw)).requires_grad_()
    parameters, losses = trainable(model), image_losses(study)
    wanted = functional.normalize(_flat(update), dim=0)
    optimiser = torch.optim.Adam([images], lr=rate)
    slower = {int(share * iterations) for share in _SLOWER}
    for number in range(iterations):
        if number in slower:
            optimiser.param_groups[0]["lr"] *= 0.1
        found = _flat(torch.autograd.grad(losses(model(images), targets).mean(), parameters, create_graph=True))
        distance = 1.0 - functional.normalize(found, dim=0) @ wanted
        (images.grad,) = torch.autograd.grad(distance + _SMOOTH * _roughness(images), images)
        images.grad.sign_()
        step(optimiser)
        with torch.no_grad():
            images.clamp_(0.0, 1.0)
    return images.detach()


def _flat(parts: Update) -> Tensor:
    return torch.cat([part.flatten() for part in parts])


def _roughness(images: Tensor) -> Tensor:
    """Total variation: the mean difference between neighbours."""
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    return down + (images[..., 1:] - images[..., :-1]).abs().mean()
