"""Torch's optimisers, without torch's compiler.

Making an optimiser, and its first step, import ``torch._dynamo``: a thousand modules and 2 to 4 s of CPU time in
every process, to tell a compiler that we never use to keep out. Both are plain functions underneath.
"""

from __future__ import annotations

import inspect
from functools import lru_cache

import torch
from torch import nn
from torch.optim import Optimizer

from common.study import OptimiserSpec
from common.weights import trainable


def make_optimiser(model: nn.Module, spec: OptimiserSpec) -> Optimizer:
    """A fresh optimiser; its state does not travel (docs/decisions/0002)."""
    keep_the_compiler_out()
    parameters = trainable(model)
    if spec.name == "sgd":
        return torch.optim.SGD(parameters, spec.lr, momentum=spec.momentum, weight_decay=spec.weight_decay, fused=True)
    kind = torch.optim.AdamW if spec.name == "adamw" else torch.optim.Adam
    return kind(parameters, spec.lr, weight_decay=spec.weight_decay, fused=True)


def step(optimiser: Optimizer) -> None:
    """``optimiser.step()``, to the same bits."""
    with torch.no_grad():
        inspect.unwrap(type(optimiser).step)(optimiser)


@lru_cache(maxsize=1)
def keep_the_compiler_out() -> None:
    """Where ``torch._disable_dynamo`` looks for what it would make of a function, put the function itself."""
    for method in (Optimizer.add_param_group, Optimizer.zero_grad):
        plain = getattr(method, "__wrapped__", None)
        if plain is not None:
            plain.__dynamo_disable = plain
