"""Strategies by name: parameters are checked before a round, installed ones found by entry point."""

from __future__ import annotations

from importlib import metadata
from typing import Any

import pytest
from flwr.serverapp import strategy as flower

from common.errors import StudyError
from common.study import STRATEGIES, StrategySpec
from server.strategies import build_strategy
from tests.unit import federation as fed

NEEDED: dict[str, dict[str, Any]] = {
    "fedprox": {"proximal_mu": 0.1},
    "fedavgm": {"server_momentum": 0.9},
    "qfedavg": {"client_learning_rate": 0.1},
    "multikrum": {"num_nodes_to_select": 3},
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_name_builds_with_what_it_needs(name: str) -> None:
    made = build_strategy(StrategySpec(name=name, params=NEEDED.get(name, {})))
    assert isinstance(made, flower.Strategy)
    assert type(made).__name__.lower() == name
    for parameter, value in NEEDED.get(name, {}).items():
        assert getattr(made, parameter) == value


@pytest.mark.parametrize("name", NEEDED)
def test_a_strategy_that_would_silently_be_another_says_what_it_needs(name: str) -> None:
    (needed,) = NEEDED[name]
    with pytest.raises(StudyError, match=rf"federation\.strategy\.params: {name} needs {needed}, at least|above"):
        build_strategy(StrategySpec(name=name))


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("fedprox", {"proximal_nu": 0.1}, r"params\.proximal_nu: unknown for fedprox; did you mean 'proximal_mu'\?"),
        ("fedadam", {"beta1": 0.9}, r"params\.beta1: unknown for fedadam; did you mean 'beta_1'\?"),
        ("fedavg", {"eta": 1.0}, r"params\.eta: unknown for fedavg; it takes: none"),
        ("krum", {"zzz": 1}, r"params\.zzz: unknown for krum; it takes: num_malicious_nodes"),
        ("fedavg", {"fraction_train": 0.5}, r"params\.fraction_train: unknown for fedavg"),
        ("fedavg", {"weighted_by_key": "x"}, r"unknown for fedavg"),
        ("bulyan", {"selection_rule": "x"}, r"unknown for bulyan"),
        ("fedtrimmedavg", {"beta": 0.5}, r"params\.beta: must be at least 0 and below 0\.5, got 0\.5"),
        ("fedavgm", {"server_momentum": 1}, r"server_momentum: must be at least 0 and below 1, got 1"),
        ("fedadam", {"beta_1": 1.0}, r"beta_1: must be at least 0 and below 1"),
        ("fedyogi", {"eta": 0.0}, r"eta: must be above 0, got 0\.0"),
        ("fedyogi", {"eta": -1.0}, r"eta: must be above 0"),
        ("fedadam", {"eta": "fast"}, r"eta: must be a number above 0, got 'fast'"),
        ("fedadam", {"tau": True}, r"tau: must be a number above 0, got True"),
        ("fedprox", {"proximal_mu": -0.1}, r"proximal_mu: must be at least 0"),
        ("krum", {"num_malicious_nodes": -1}, r"num_malicious_nodes: must be at least 0"),
        ("krum", {"num_malicious_nodes": 0.5}, r"num_malicious_nodes: must be a whole number at least 0, got 0\.5"),
        ("multikrum", {"num_nodes_to_select": 0}, r"num_nodes_to_select: must be at least 1"),
        ("multikrum", {"num_nodes_to_select": (1, 2)}, r"must be a whole number at least 1, got \(1, 2\)"),
        ("qfedavg", {"client_learning_rate": 0}, r"client_learning_rate: must be above 0"),
    ],
)
def test_wrong_parameters_are_one_line_with_a_remedy(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError, match=message) as caught:
        build_strategy(StrategySpec(name=name, params=params))
    assert "\n" not in str(caught.value)


class Installed(flower.FedAvg):
    """What a researcher's package might provide."""

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        self.temperature = temperature


def no_strategy() -> dict[str, int]:
    return {}


def install(monkeypatch: pytest.MonkeyPatch, *values: str) -> None:
    """Entry points named ``mine``, as installed packages would declare them."""
    made = metadata.EntryPoints(
        metadata.EntryPoint(name="mine", value=value, group="fedward.strategies") for value in values
    )

    def entry_points(**wanted: str) -> metadata.EntryPoints:
        return made.select(**wanted)

    monkeypatch.setattr(metadata, "entry_points", entry_points)


def test_an_installed_strategy_is_named_like_flowers(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, f"{__name__}:Installed")
    spec = fed.study(**{"federation.strategy": {"name": "mine", "params": {"temperature": 2.5}}}).federation.strategy
    made = build_strategy(spec)
    assert isinstance(made, Installed)
    assert made.temperature == 2.5


@pytest.mark.parametrize(
    ("values", "params", "message"),
    [
        ([], {}, r"'mine': 0 entry points of group 'fedward.strategies' have this name \(none\)"),
        ([f"{__name__}:Installed", "b:C"], {}, r"2 entry points .* exactly one installed package must provide it"),
        (
            [f"{__name__}:Installed"],
            {"heat": 1},
            r"failed with TypeError: .*heat.*; correct federation\.strat",
        ),
        (["no_such_module:Thing"], {}, r"failed with ModuleNotFoundError"),
        ([f"{__name__}:Missing"], {}, r"failed with AttributeError"),
        ([f"{__name__}:no_strategy"], {}, r"gave dict; it must return a flwr\.serverapp Strategy"),
    ],
)
def test_an_installed_strategy_that_cannot_be_used_is_one_line(
    values: list[str], params: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, *values)
    with pytest.raises(StudyError, match=message) as caught:
        build_strategy(StrategySpec(name="mine", params=params))
    assert "\n" not in str(caught.value)
