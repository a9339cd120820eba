"""The arm of hospitals' own models: in a run's results, in its report, on the terminal, in its table of metrics."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from common.errors import RunError, StudyError
from server.report import own_models
from server.report.results import parse
from server.results import read_card
from simulations import simulate
from simulations.arms import arms_of, check_arms
from simulations.outcome import Simulation
from simulations.progress import closing
from tests.unit import federation as fed

SMALL = {"federation.rounds": 1, "partition.sites": 2, "data.phantoms.images": 90}


def play(folder: Path, **personal: Any) -> Simulation:
    study = fed.study(personalisation=personal or None, **SMALL)
    arms = ("federated", "local") if not personal else ("federated", "local", "personalised")
    return simulate(study, out=folder, arms=arms, quiet=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Simulation]:
    folder = tmp_path_factory.mktemp("runs")
    plain = {"plain": play(folder / "plain")}
    return plain | {method: play(folder / method, method=method) for method in ("finetune", "fedbn")}


def test_an_arm_that_a_study_cannot_have_is_refused() -> None:
    assert arms_of(fed.study()) == ("federated", "local", "pooled")
    ditto = fed.study(personalisation={"method": "ditto"})
    assert arms_of(ditto) == ("federated", "local", "pooled", "personalised")
    with pytest.raises(StudyError, match="models of their own"):
        check_arms(fed.study(), ["federated", "personalised"])
    with pytest.raises(StudyError, match="add federated"):
        check_arms(ditto, ["local", "personalised"])


def test_the_shared_arm_is_what_it_was(runs: Mapping[str, Simulation]) -> None:
    """Fine-tuning changes no number of the others; what differs is what it adds, and the study's name for itself."""
    plain, beside = runs["plain"].results[0], runs["finetune"].results[0]

    def told(result: Mapping[str, Any]) -> str:
        arms = {name: arm for name, arm in result["arms"].items() if name != "personalised"}
        text = json.dumps([arms, result["differences"]], sort_keys=True, default=str)
        record = json.loads(text)
        for arm in (record[0]["federated"], *record[0]["local"]["sites"].values()):
            for entry in arm["history"]:
                del entry["wall_s"]
                for facts in entry["sites"].values():
                    del facts["seconds"]
        return json.dumps(record)

    assert told(plain) == told(beside)
    folders = [runs[name].path / "model.safetensors" for name in ("plain", "finetune")]
    assert folders[0].read_bytes() == folders[1].read_bytes()


def test_each_hospital_has_its_test_its_choice_and_its_rivals(runs: Mapping[str, Simulation]) -> None:
    for method, rivals in (("finetune", {"global", "local"}), ("fedbn", {"local"})):
        arm = runs[method].results[0]["arms"]["personalised"]
        assert arm["method"] == method
        for facts in arm["sites"].values():
            assert facts["would_run"] in {"personal", *rivals}
            pairs = {(row["a"], row["b"]) for row in facts["differences"] if row["metric"] == "accuracy"}
            assert {("personal", rival) for rival in (*rivals, "best")} <= pairs
            of = {
                row["b"]: row for row in facts["differences"] if (row["a"], row["metric"]) == ("personal", "accuracy")
            }
            assert of["best"]["value"] == min(of[rival]["value"] for rival in rivals), "the harder rival"
            assert of["best"]["is"] in rivals


def test_report_table_and_terminal_say_what_each_would_run(runs: Mapping[str, Simulation]) -> None:
    for method in ("finetune", "fedbn"):
        run = runs[method]
        page = run.report.read_text()
        assert "What each hospital would run" in page and "by taking part" in page
        lines = closing(run.results[0])
        assert sum("would run: " in line for line in lines) == 2
        rows = list(csv.DictReader((run.path / "metrics.csv").read_text().splitlines()))
        assert {row["trained_by"] for row in rows if row["arm"] == "personalised"} == {"site-1", "site-2"}
        assert any(row["arm"] == "personal - best" for row in rows)
    assert "What each hospital would run" not in runs["plain"].report.read_text()


def test_who_would_lose_is_named_and_who_runs_its_own_alone_neither_gains_nor_loses(
    runs: Mapping[str, Simulation],
) -> None:
    raw = json.loads(json.dumps(runs["finetune"].results[0]))
    sites = raw["arms"]["personalised"]["sites"]
    gain = {"a": "global", "b": "local", "metric": "auc", "value": -0.2, "low": -0.3, "high": -0.1}
    sites["site-1"] |= {"would_run": "global", "differences": [gain]}
    sites["site-2"] |= {"would_run": "local", "differences": []}
    raw["differences"] = [row for row in raw["differences"] if row["metric"] == "auc"]
    first = own_models.blocks(parse(raw))[0]
    assert (first.text, first.tone) == ("site-1 would lose by taking part.", "bad")  # type: ignore[union-attr]
    found = parse(raw).own_models
    assert found is not None and own_models.gain(found.sites["site-2"], "auc").value == 0.0  # type: ignore[union-attr]


def test_a_model_without_its_norm_layers_is_not_passed_off_as_one(runs: Mapping[str, Simulation]) -> None:
    with pytest.raises(RunError, match="each hospital's own"):
        read_card(runs["fedbn"].path)
    with pytest.raises(RunError, match="each hospital's own"):
        runs["fedbn"].model()
    read_card(runs["finetune"].path)
