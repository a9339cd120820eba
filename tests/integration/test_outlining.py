"""Whole runs of studies that outline: their numbers, their page, and what a stage more or less changes."""

from __future__ import annotations

import copy
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.describe import describe
from client.policy import TEMPLATE, Policy
from common.study import Study
from simulations import Simulation, simulate
from simulations.external import evaluate_run
from tests.unit.test_approvals import OURS

SMALL: dict[str, Any] = {
    "name": "small",
    "seed": 3,
    "image": {"size": 32},
    "data": {"phantoms": {"images": 120, "size": 32, "difficulty": 0.0}},
    "training": {"batch_size": 8, "local_epochs": 2, "optimiser": {"lr": 0.01}},
    "federation": {"rounds": 4, "keep": "best"},
    "partition": {"kind": "iid", "sites": 2},
    "evaluation": {"bootstrap": 200, "lesions": {"smallest": 3, "sizes": [0.02, 0.06]}},
}
SEGMENT = SMALL | {
    "task": "segmentation",
    "classes": {"normal": ["normal"], "opacity": ["pneumonia"]},
    "model": {"name": "unet", "params": {"depth": 2, "width": 6}},
}
TWO = SMALL | {
    "task": "binary",
    "classes": ["normal", "pneumonia"],
    "model": {
        "name": "segment_classify",
        "params": {"outline_depth": 2, "outline_width": 4, "width": 8, "blocks": [1, 1]},
    },
}


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    return simulate(SEGMENT, out=tmp_path_factory.mktemp("runs") / "segment", quiet=True)


def text_of(run: Simulation) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", run.report.read_text(encoding="utf-8"))))


def test_hospitals_learn_together_to_outline(segmented: Simulation) -> None:
    """Dice far above outlining everything (which is about 0.2 of these images) and nothing (0)."""
    (result,) = segmented.results
    for arm in ("federated", "pooled"):
        found = result["arms"][arm]
        assert found["test"]["dice"]["value"] > 0.5
        assert found["test"]["dice"]["low"] < found["test"]["dice"]["value"] < found["test"]["dice"]["high"]
        assert found["test"]["iou"]["value"] < found["test"]["dice"]["value"]
        outlines = found["outlines"]
        assert sum(outlines["images"].values()) == sum(site["images"]["test"] for site in result["sites"].values())
        assert sum(group["lesions"] for group in outlines["by_size"].values()) == outlines["lesions"]
        assert sum(group["lesions"] for group in outlines["by_place"].values()) == outlines["lesions"]
        curve = outlines["froc"]
        at = curve["threshold"].index(found["outline_threshold"])
        assert found["test"]["lesions_found"]["value"] == pytest.approx(curve["lesions_found"][at], abs=1e-5)
        assert found["test"]["false_lesions"]["value"] == pytest.approx(curve["false_lesions"][at], abs=1e-5)
        assert set(found["sites"]) == set(result["sites"])
    kept = max(result["arms"]["federated"]["history"], key=lambda round_: round_["val_dice"])
    assert result["arms"]["federated"]["kept_round"] == kept["round"]
    compared = [row for row in result["differences"] if row["metric"] == "dice" and row["on"] == "all"]
    assert {row["b"] for row in compared} == {"pooled", "local:site-1", "local:site-2"}
    pooled = result["arms"]["pooled"]["test"]["dice"]["value"]
    (against,) = (row["value"] for row in compared if row["b"] == "pooled")
    assert against == pytest.approx(result["arms"]["federated"]["test"]["dice"]["value"] - pooled, abs=1e-6)


def test_the_page_says_how_well_it_outlines(segmented: Simulation) -> None:
    text = text_of(segmented)
    assert "How well does it outline?" in text
    assert "Judged by Dice on everyone's test patients" in text
    assert "FROC" in text
    assert "By size: lesions found" in text
    assert "Are scores probabilities?" not in text  # an image's score is no probability here


def test_a_run_s_model_outlines_elsewhere(segmented: Simulation) -> None:
    """On a hospital's vault the model gives what the run has told of it."""
    (result,) = segmented.results
    home = segmented.path / "sites" / "site-1"
    found = evaluate_run(segmented.path, home)
    assert found["outline_threshold"] == result["arms"]["federated"]["outline_threshold"]
    assert 0.3 < found["test"]["dice"]["value"] < 1.0
    assert found["outlines"]["lesions"] > 0
    model = segmented.model()
    assert not model.training


def test_small_cells_are_hidden_and_training_is_the_same(segmented: Simulation, tmp_path: Path) -> None:
    hidden = copy.deepcopy(SEGMENT)
    hidden["evaluation"]["min_cell"] = 2
    run = simulate(hidden, out=tmp_path / "hidden", arms=["federated"], quiet=True)
    (result,), (open_,) = run.results, segmented.results
    arm, other = result["arms"]["federated"], open_["arms"]["federated"]
    assert arm["test"]["dice"] == other["test"]["dice"]  # of more patients than that
    assert len(arm["outlines"]["froc"]["threshold"]) <= 1 < len(other["outlines"]["froc"]["threshold"])
    assert "How well does it outline?" in text_of(run)


def test_two_stages_end_to_end_and_without_the_first(tmp_path: Path) -> None:
    run = simulate(TWO, out=tmp_path / "two", arms=["federated"], quiet=True)
    without = copy.deepcopy(TWO)
    without["model"]["params"] = {**without["model"]["params"], "region": "none"}
    del without["evaluation"]["lesions"]
    ablated = simulate(without, out=tmp_path / "one", arms=["federated"], quiet=True)
    both, one = (each.results[0]["arms"]["federated"] for each in (run, ablated))
    assert both["test"]["dice"]["value"] > 0.3
    assert "dice" not in one["test"]
    assert "outlines" not in one
    assert both["test"]["auc"] != one["test"]["auc"]
    assert "How well does it outline?" in text_of(run)
    assert "How well does it outline?" not in text_of(ablated)
    assert np.isfinite(run.metrics.query("metric == 'iou'")["value"]).all()


def test_a_hospital_reads_what_leaves_of_outlines() -> None:
    policy = Policy.decode(TEMPLATE.encode())
    plain = " ".join(describe(Study.parse(json.dumps(SEGMENT)), OURS, policy).split())
    assert "A model is trained that outlines in each image: opacity." in plain
    assert "how many lesions were found, by size and by sixth of the image" in plain
    assert "and how many at each of the others" in plain
    two = " ".join(describe(Study.parse(json.dumps(TWO)), OURS, policy).split())
    assert "tells pneumonia from normal, from what it first outlines" in two
    strict = Policy.decode(TEMPLATE.replace(", outlines", "").encode())
    objections = [str(found.text) for found in strict.objections(Study.parse(json.dumps(TWO)))]
    assert any("asks for outlines" in text for text in objections)
