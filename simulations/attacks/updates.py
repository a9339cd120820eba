"""What a coordinator sees of one step on somebody's images: the weights that come back less those it sent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from client.private import PrivateFit
from client.training import FitSeed, LocalFit
from client.vault.prepared import PreparedView
from common.accounting import Mechanism
from common.privacy import steps_of
from common.study import Study
from common.weights import trainable

Update = Sequence[Tensor]
"""One tensor for each parameter that is trained, in the model's order: a gradient, undefended; what is left of one,
defended."""

_SURELY = 1.0 - 1e-9
"""The step that is attacked is one for which the patients were drawn; a study names rates below 1 only."""


def undefended(model: nn.Module, view: PreparedView, study: Study) -> Update:
    """One step without differential privacy on all of ``view``, weighing 1; the model is as before afterwards."""
    open_ = study.derive(**_one_step(len(view)), **{"federation.rounds": 1, "privacy": None})
    return _difference(model, lambda: LocalFit(model, view, open_, FitSeed(study.seed, 0, "audit", 1)).run())


def defended(model: nn.Module, view: PreparedView, study: Study, mechanism: Mechanism) -> Update:
    """One private step on all of ``view``, clipped and noised as every step of ``study`` is."""
    privacy = {"epsilon": None, "noise_multiplier": mechanism.noise_multiplier, "sample_rate": _SURELY}
    changes = {f"privacy.{name}": value for name, value in privacy.items()}
    private = study.derive(**_one_step(len(view)), **changes, **{"federation.rounds": steps_of(study)})
    return _difference(model, lambda: PrivateFit(model, view, private, 1).run())


def summed(updates: Sequence[Update]) -> Update:
    """What secure aggregation lets a coordinator see of several sites' updates: their mean, none by itself."""
    return [torch.stack(parts).mean(0) for parts in zip(*updates, strict=True)]


def _one_step(images: int) -> dict[str, Any]:
    """The step that shows most: all the images at once, as they are, and a change of weights that is the gradient."""
    return {
        "training.local_steps": 1,
        "training.local_epochs": None,
        "training.batch_size": images,
        "training.microbatch": None,
        "training.label_smoothing": 0.0,
        "training.optimiser": {"name": "sgd", "lr": 1.0},
        "training.schedule": {"kind": "constant"},
        "federation.strategy": {"name": "fedavg"},
        "augment": {},
    }


def _difference(model: nn.Module, fit: Callable[[], object]) -> Update:
    before = [parameter.detach().clone() for parameter in trainable(model)]
    fit()
    found = [old - new.detach() for old, new in zip(before, trainable(model), strict=True)]
    with torch.no_grad():
        for parameter, old in zip(trainable(model), before, strict=True):
            parameter.copy_(old)
    return found
