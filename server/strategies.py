"""Strategies by name: Flower's classes, or a researcher's own installed entry point."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from flwr.serverapp import strategy as flower

from common.errors import StudyError
from common.study import STRATEGIES, StrategySpec

_CLASSES: Mapping[str, type[flower.FedAvg]] = {
    "fedavg": flower.FedAvg,
    "fedavgm": flower.FedAvgM,
    "fedprox": flower.FedProx,
    "fedadam": flower.FedAdam,
    "fedyogi": flower.FedYogi,
    "fedadagrad": flower.FedAdagrad,
    "qfedavg": flower.QFedAvg,
    "fedmedian": flower.FedMedian,
    "fedtrimmedavg": flower.FedTrimmedAvg,
    "krum": flower.Krum,
    "multikrum": flower.MultiKrum,
    "bulyan": flower.Bulyan,
}
assert set(_CLASSES) == set(STRATEGIES)

# Which sites take part, what is weighted and under which keys is the round loop's business, not a study's.
_OURS = frozenset(inspect.signature(flower.FedAvg).parameters) | {"selection_rule", "train_loss_key"}

# Flower's defaults that would silently turn a strategy into another one.
_REQUIRED = {"fedprox": "proximal_mu", "qfedavg": "client_learning_rate"}


def build_strategy(spec: StrategySpec) -> flower.Strategy:
    """The Flower strategy that ``spec`` names. Raises :class:`StudyError` for parameters it does not have."""
    if spec.name not in _CLASSES:
        (entry,) = (e for e in metadata.entry_points(group="fedward.strategies") if e.name == spec.name)
        made = entry.load()(**spec.params)
        if not isinstance(made, flower.Strategy):
            raise StudyError(
                f"federation.strategy.name: {spec.name!r} does not make a flwr.serverapp Strategy; fix its package"
            )
        return made
    kind = _CLASSES[spec.name]
    known = [name for name in inspect.signature(kind).parameters if name not in _OURS]
    for name in spec.params:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes: {', '.join(known) or 'none'}"
            raise StudyError(f"federation.strategy.params.{name}: unknown for {spec.name}; {hint}")
    needed = _REQUIRED.get(spec.name)
    if needed and needed not in spec.params:
        raise StudyError(f"federation.strategy.params: {spec.name} needs {needed}")
    values: dict[str, Any] = dict(spec.params)
    try:
        return kind(**values)
    except (TypeError, ValueError) as error:
        raise StudyError(f"federation.strategy.params: {error}") from None
