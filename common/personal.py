"""Which of a model's tensors stay at a site (``personalisation:`` of a study)."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from common.errors import ModelError
from common.study_personal import PersonalisationSpec
from common.weights import Weights

_NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)


def own_names(model: nn.Module, personal: PersonalisationSpec | None) -> frozenset[str]:
    """Names in the state dict of what a site keeps to itself: under FedBN norm layers, with their statistics.

    Raises :class:`ModelError` for FedBN of a model that has none.
    """
    if personal is None or not personal.split:
        return frozenset()
    norms = [name for name, module in model.named_modules() if isinstance(module, _NORMS)]
    names = frozenset(
        name for name in model.state_dict() if any(name.startswith(f"{norm}.") for norm in norms) or "" in norms
    )
    if not names:
        raise ModelError(
            "personalisation: fedbn keeps norm layers at the sites, and this model has none; choose a model with norm "
            "layers, or method: ditto"
        )
    return names


def shared(weights: Weights, own: Collection[str]) -> Weights:
    """``weights`` without a site's own, in their order."""
    return {name: array for name, array in weights.items() if name not in own} if own else weights


def only(weights: Weights, own: Collection[str]) -> Weights:
    """The site's own alone."""
    return {name: weights[name] for name in weights if name in own}
