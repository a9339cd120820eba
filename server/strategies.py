"""Strategies by name: Flower's classes, or a researcher's own installed entry point.

An installed strategy gets every reply, sorted by site. If it remembers something from round
to round it has two methods, ``state() -> dict[str, ndarray]`` and ``restore(dict)``, so that a
resumed run equals an uninterrupted one; what Flower's own classes remember is known.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from flwr.serverapp import strategy as flower

from common.errors import StudyError
from common.study import STRATEGIES, StrategySpec

ENTRY_POINTS = "fedward.strategies"

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

_REQUIRED = {
    "fedprox": "proximal_mu",
    "fedavgm": "server_momentum",
    "qfedavg": "client_learning_rate",
    "multikrum": "num_nodes_to_select",
}
"""What Flower's defaults would silently turn into another strategy (fedavg, krum), or has no default."""

_SHARE = (0.0, 1.0, "at least 0 and below 1")
_FROM_0 = (0.0, math.inf, "at least 0")
_ABOVE_0 = (math.ulp(0.0), math.inf, "above 0")
_RANGES = {
    "server_momentum": _SHARE,
    "beta_1": _SHARE,
    "beta_2": _SHARE,
    "beta": (0.0, 0.5, "at least 0 and below 0.5"),
    "proximal_mu": _FROM_0,
    "q": _FROM_0,
    "num_malicious_nodes": _FROM_0,
    "num_nodes_to_select": (1, math.inf, "at least 1"),
    "server_learning_rate": _ABOVE_0,
    "client_learning_rate": _ABOVE_0,
    "eta": _ABOVE_0,
    "eta_l": _ABOVE_0,
    "tau": _ABOVE_0,
}
"""From (included), to (excluded), in words. Flower checks none but ``beta``, and fails in the middle of a round."""


def build_strategy(spec: StrategySpec) -> flower.Strategy:
    """The Flower strategy that ``spec`` names. Raises :class:`StudyError` for parameters it does not have."""
    if spec.name not in _CLASSES:
        return _installed(spec)
    kind = _CLASSES[spec.name]
    defaults = {name: p.default for name, p in inspect.signature(kind).parameters.items() if name not in _OURS}
    for name, value in spec.params.items():
        key = f"federation.strategy.params.{name}"
        if name not in defaults:
            close = difflib.get_close_matches(name, defaults, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes: {', '.join(defaults) or 'none'}"
            raise StudyError(f"{key}: unknown for {spec.name}; {hint}")
        _check(key, value, whole=isinstance(defaults[name], int), limits=_RANGES[name])
    needed = _REQUIRED.get(spec.name)
    if needed and needed not in spec.params:
        raise StudyError(
            f"federation.strategy.params: {spec.name} needs {needed}, {_RANGES[needed][2]}; without it, it would be "
            "another strategy"
        )
    values: dict[str, Any] = dict(spec.params)
    return kind(**values)


def _check(key: str, value: Any, *, whole: bool, limits: tuple[float, float, str]) -> None:
    """Raises :class:`StudyError` unless ``value`` is a number within ``limits``."""
    low, high, words = limits
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise StudyError(f"{key}: must be a {'whole ' if whole else ''}number {words}, got {value!r}")
    if not low <= value < high:
        raise StudyError(f"{key}: must be {words}, got {value}")


def _installed(spec: StrategySpec) -> flower.Strategy:
    """A researcher's strategy: a class or function that takes the study's ``params`` as keywords."""
    where = f"federation.strategy.name {spec.name!r}"
    found = list(metadata.entry_points(group=ENTRY_POINTS, name=spec.name))
    if len(found) != 1:
        owners = ", ".join(sorted(entry.value for entry in found)) or "none"
        raise StudyError(
            f"{where}: {len(found)} entry points of group {ENTRY_POINTS!r} have this name ({owners}); "
            "exactly one installed package must provide it"
        )
    try:
        made = found[0].load()(**spec.params)
    except Exception as error:
        raise StudyError(
            f"{where} (entry point {found[0].value}): failed with {type(error).__name__}: {error}; "
            "correct federation.strategy.params or mend that package"
        ) from error
    if not isinstance(made, flower.Strategy):
        raise StudyError(
            f"{where} (entry point {found[0].value}): gave {type(made).__name__}; "
            "it must return a flwr.serverapp Strategy"
        )
    return made
