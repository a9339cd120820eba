"""Transfer learning with frozen layers: whatever way updates travel, what is frozen keeps every bit of its file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open

from common.models import build
from common.study import Study
from common.weights import load, save, state_of
from simulations.datasets import open_source
from simulations.environment import Stopwatch
from simulations.run import Plan, Run
from tests.unit import federation as fed

FROZEN = {"features.conv1.weight", "features.norm1.weight", "features.norm1.bias"}
STATISTICS = {f"features.norm1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
BASE: dict[str, Any] = {
    "model.params": {"filters": [4, 4], "hidden": [8]},
    "model.weights": "given.safetensors",
    "model.frozen": ["features.conv1", "features.norm1"],
    "partition.sites": 3,
    "federation.rounds": 1,
}
ALL_FEATURES = {"model.frozen": ["features"]}
STEPS = {"batch_size": 8, "local_steps": 2}
PRIVACY = {"noise_multiplier": 1.5, "sample_rate": 0.3, "delta": 1e-3, "accountant": "rdp"}
MANY = {
    "partition.sites": 10,
    "partition.min_per_site": 2,
    "data.phantoms": {"images": 100, "size": 32, "difficulty": 0.2},
    **ALL_FEATURES,
}
CENTRAL = {"epsilon": 500.0, "delta": 1e-3, "clip": 1.0, "accountant": "rdp"}


def given(made: Study, folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """The study's weights file: what a run of the same model without frozen layers might have written."""
    model = build(made.derive(**{"model.frozen": [], "privacy": None, "central_privacy": None,
                                 "federation.secure_aggregation": None}), 99)  # fmt: skip
    weights = {
        name: np.asarray(value + 0.37, value.dtype) if value.dtype.kind == "f" else np.asarray(value + 5)
        for name, value in state_of(model).items()
    }
    save(weights, folder / "given.safetensors")
    return weights


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"federation.rounds": 2}, id="mean"),
        pytest.param(
            {"federation.strategy": {"name": "fedadam"}, "training.optimiser.l1": 1e-4}, id="server optimiser"
        ),
        pytest.param({"federation.strategy": {"name": "fedmedian"}}, id="median"),
        pytest.param({"federation.strategy": {"name": "fedprox", "params": {"proximal_mu": 0.1}}}, id="proximal"),
        pytest.param({"federation.compression": "int8"}, id="int8"),
        pytest.param({"federation.secure_aggregation": {}, **ALL_FEATURES}, id="masks"),
        pytest.param({"privacy": PRIVACY, "training": STEPS, **ALL_FEATURES}, id="private"),
        pytest.param({"central_privacy": CENTRAL, **MANY}, id="central"),
        pytest.param(
            {
                "federation.secure_aggregation": {"threshold": 10},
                "central_privacy": {**CENTRAL, "noise": "sites", "colluders": 1},
                **MANY,
            },
            id="noise of sites",
        ),
    ],
)
def test_what_is_frozen_keeps_every_bit_and_the_rest_is_trained(tmp_path: Path, change: dict[str, Any]) -> None:
    made = fed.study(**{**BASE, **change})
    before = given(made, tmp_path)
    run = Run.start(
        made, Plan(arms=("federated",), base=str(tmp_path)), open_source(made, None), tmp_path / "run", Stopwatch()
    )
    arm = run.execute()[0]["arms"]["federated"]
    after = load(tmp_path / "run" / "model.safetensors")
    assert all(site["status"] == "ok" for record in arm["history"] for site in record["sites"].values())
    frozen = (
        {name for name in before if name.startswith("features.")} if "model.frozen" in change else FROZEN | STATISTICS
    )
    assert {name for name in before if before[name].tobytes() == after[name].tobytes()} == frozen


def test_local_and_pooled_training_freeze_as_well(tmp_path: Path) -> None:
    made = fed.study(**{**BASE, "partition.sites": 2, "federation.rounds": 1})
    before = given(made, tmp_path)
    plan = Plan(arms=("federated", "local", "pooled"), base=str(tmp_path))
    run = Run.start(made, plan, open_source(made, None), tmp_path / "run", Stopwatch())
    run.execute()
    found = list((tmp_path / "run" / "state").rglob("checkpoint.safetensors"))
    assert len(found) == 4
    for path in found:
        with safe_open(str(path), "numpy") as file:
            for name in FROZEN | STATISTICS:
                assert file.get_tensor(f"weights:{name}").tobytes() == before[name].tobytes()
            name = "features.conv2.weight"
            assert file.get_tensor(f"weights:{name}").tobytes() != before[name].tobytes()
