"""A private study from file to report: what the pages say, what leaves, and what a resumed run owns up to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.app import Resident, handle
from common import protocol
from common.accounting import Mechanism, epsilon
from common.errors import Interrupted, PrivacyError
from common.models import build
from common.study import Study
from common.weights import load, state_of
from simulations.datasets import open_source
from simulations.environment import Stopwatch
from simulations.run import Plan, Run
from tests.unit import federation as fed

PRIVATE: dict[str, Any] = {
    "model.norm": "group",
    "training": {"batch_size": 8, "local_steps": 2},
    "federation.rounds": 2,
    "privacy": {"noise_multiplier": 1.5, "sample_rate": 0.3, "delta": 1e-3, "accountant": "rdp"},
}


def study(**changes: Any) -> Study:
    return fed.study(**{**PRIVATE, **changes})


def started(made: Study, out: Path, **plan: Any) -> Run:
    return Run.start(made, Plan(**plan), open_source(made, None), out, Stopwatch())


def test_every_page_of_a_private_run_says_what_it_cost(tmp_path: Path) -> None:
    made = study(privacy={"epsilon": 6.0, "delta": 1e-3, "accountant": "rdp", "evaluation": "exact"})
    run = started(made, tmp_path / "run")
    results = run.execute()[0]
    for name, sites in (("federated", ["site-1", "site-2", "site-3"]), ("pooled", ["pooled"])):
        found = results["arms"][name]["privacy"]
        assert sorted(found["sites"]) == sites
        assert (found["epsilon"], found["delta"], found["steps"], found["rounds_redone"]) == (6.0, 1e-3, 4, 0)
        for spent in found["sites"].values():
            done = Mechanism(spent["noise_multiplier"], spent["sample_rate"], spent["steps"])
            assert spent["epsilon"] == epsilon([done], 1e-3, "rdp")
            assert 5.9 < spent["epsilon"] <= 6.0
    sizes = {site: facts["patients"]["train"] for site, facts in run.prepared.sites.items()}
    rates = {site: spent["sample_rate"] for site, spent in results["arms"]["federated"]["privacy"]["sites"].items()}
    assert rates == {site: min(1.0, 8 / count) for site, count in sizes.items()}
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What protects each patient" in page
    assert "ε at most 6" in page
    assert "Counts of validation and test patients are exact: no ε covers them." in page
    card = json.loads((tmp_path / "run" / "model.json").read_text())
    assert card["privacy"]["epsilon"] == 6.0
    assert "sites" not in card["privacy"]
    # The sites count the same patients that the report does.
    resident = Resident()
    for site, directory in run.directories.items():
        assert resident.site(directory).training_units(made) == sizes[site]
        assert resident.site(directory).view(made, "train").patient_count == sizes[site]
    resident.close()


def test_suppressed_means_that_nothing_but_noised_weights_leaves(tmp_path: Path) -> None:
    made = study()
    run = started(made, tmp_path / "run", arms=("federated",))
    results = run.execute()[0]
    arm = results["arms"]["federated"]
    assert all(cell["value"] is None for cell in arm["test"].values())
    assert arm["kept_round"] == 2
    for record in arm["history"]:
        assert record["train_loss"] is record["val_auc"] is record["val_loss"] is None
        for reply in record["sites"].values():
            assert (reply["examples"], reply["loss"], reply["seconds"]) == (1, None, 0.0)
    # The mean of equally weighted sites, whatever their size.
    assert len({facts["images"]["train"] for facts in run.prepared.sites.values()}) > 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "No count of validation or test patients has left a hospital" in page
    resident, home = Resident(), run.directories["site-1"]
    weights = load(tmp_path / "run" / "model.safetensors")
    weights = {name: weights[name] for name in state_of(build(made, 0))}
    for request in (
        protocol.EvaluateRequest(protocol.Task(made, round=1), "val", weights),
        protocol.EvaluateRequest(protocol.Task(made, round=1), "test", weights),
    ):
        sealed = protocol.seal(request)
        reply = protocol.open_reply(handle(fed.request(sealed.content, sealed.kind), lambda: home, resident))
        assert reply == protocol.Refusal("site-1", "privacy-impossible")
    sealed = protocol.seal(protocol.SurveyRequest(protocol.Task(made)))
    survey = protocol.open_reply(handle(fed.request(sealed.content, sealed.kind), lambda: home, resident))
    assert isinstance(survey, protocol.SurveyReply)
    assert dict(survey.images) == {"train": 1, "val": 1, "test": 1}
    # Two fits of one round: no two alike, and no trace of how many images they saw.
    request = protocol.seal(protocol.TrainRequest(protocol.Task(made, round=1), weights))
    replies = [
        protocol.open_reply(handle(fed.request(request.content, request.kind), lambda: home, resident))
        for _ in range(2)
    ]
    assert all(
        isinstance(r, protocol.TrainReply) and (r.examples, r.loss, r.seconds) == (1, None, 0.0) for r in replies
    )
    first, second = (r.weights for r in replies if isinstance(r, protocol.TrainReply))
    assert all(not np.array_equal(first[name], second[name]) for name in first)
    resident.close()


def test_a_resumed_simulation_counts_the_round_that_it_may_have_trained_twice(tmp_path: Path) -> None:
    made = study(**{"federation.rounds": 3})
    run = started(made, tmp_path / "run", arms=("federated",))

    def stop(line: Any) -> None:
        if line["event"] == "site" and line.get("round") == 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        run.execute(stop)
    lines: list[Any] = []
    again = Run.resume(tmp_path / "run", Stopwatch())
    found = again.execute(lines.append)[0]["arms"]["federated"]["privacy"]
    assert [line["redone"] for line in lines if line["event"] == "resumed"] == [1]
    assert found["rounds_redone"] == 1
    for spent in found["sites"].values():
        assert spent["steps"] == (3 + 1) * 2
        assert spent["epsilon"] == epsilon([Mechanism(1.5, 0.3, 8)], 1e-3, "rdp")
        assert spent["epsilon"] > found["epsilon"]
    assert "1 round may have run twice" in (tmp_path / "run" / "report.html").read_text()


def test_a_hospital_too_large_for_delta_stops_the_run_before_it_trains(tmp_path: Path) -> None:
    made = study(privacy={"epsilon": 6.0, "delta": 0.2, "accountant": "rdp"})
    run = started(made, tmp_path / "run", arms=("federated",))
    with pytest.raises(PrivacyError, match=r"^site-1: privacy.delta 0.2 is not below one over this site's"):
        run.execute()
