"""Frozen layers: what a study takes from a file and no round changes (transfer learning).

A module whose parameters are all frozen works as in evaluation, also while the rest is trained: its norm layers use
and keep the statistics they came with, its dropout is off. A batch norm that is frozen therefore mixes no images of a
batch, and published networks that have them can be trained on with privacy and under masks.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence

from torch import nn

from common.errors import ModelError
from common.study import Study
from common.weights import frozen_modules

_SHOWN = 12


def freeze(model: nn.Module, prefixes: Sequence[str]) -> None:
    """Take the parameters named by ``prefixes`` (``layer1``, ``features.conv1``, ``class_token``) out of training.

    A prefix is a parameter's name, or the beginning of one up to a dot. Raises :class:`ModelError` for one that names
    nothing, and where nothing would be left to train.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    for prefix in prefixes:
        found = [name for name in named if name == prefix or name.startswith(f"{prefix}.")]
        if not found:
            raise ModelError(f"model.frozen: no layer of this model is called {prefix!r}; {_hint(prefix, named)}")
        for name in found:
            named[name].requires_grad_(False)
    if prefixes and not any(parameter.requires_grad for parameter in named.values()):
        raise ModelError("model.frozen: names the whole model, so that nothing is trained; leave its last layers out")


def training_mode(model: nn.Module) -> None:
    """``model.train()``, with what is frozen as in evaluation."""
    model.train()
    for module in frozen_modules(model).values():
        module.eval()


def batch_norms(model: nn.Module) -> Iterator[str]:
    """Names of the layers that mix the images of a batch in training: batch norms that are not frozen."""
    frozen = {id(part) for module in frozen_modules(model).values() for part in module.modules()}
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and id(module) not in frozen:
            yield name


def check_norms(model: nn.Module, study: Study) -> None:
    """Raises :class:`ModelError` for a batch norm that would be trained where that voids what the study promises.

    A study says it of ``model.norm: batch`` by itself; where it freezes layers, only the model knows which are left.
    """
    asked: dict[str, object] = {"privacy": study.privacy}
    if not study.norms_stay:  # else they are in no sum
        asked["central_privacy"] = study.central_privacy
        asked["federation.secure_aggregation"] = study.federation.secure_aggregation
    promised = next((key for key, part in asked.items() if part is not None), None)
    left = next(batch_norms(model), None)
    if promised is not None and left is not None:
        raise ModelError(
            f"{promised}: batch norm {left} would be trained, which mixes the patients of a batch and counts them; "
            "name it in model.frozen too, or use model.norm: group"
        )


def _hint(prefix: str, names: dict[str, nn.Parameter]) -> str:
    parts = list(dict.fromkeys(".".join(name.split(".")[:depth]) for name in names for depth in (1, 2, 3)))
    close = difflib.get_close_matches(prefix, [*parts, *names], n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]!r}?"
    stages = list(dict.fromkeys(name.split(".")[0] for name in names))
    more = f" and {len(stages) - _SHOWN} more" if len(stages) > _SHOWN else ""
    return f"it has {', '.join(stages[:_SHOWN])}{more}, and layers in them (layer4.1)"
