"""A simulation that asks for whom its model works, what it gets wrong, and what if the images are worse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import simulations
from common.study import Study

STUDY = """
name: examined
task: binary
classes: [normal, pneumonia]
data: {phantoms: {images: 400, size: 48, difficulty: 0.2}}
image: {size: 32}
model: {name: cnn, params: {filters: [8, 16], hidden: []}}
training: {local_epochs: 2, optimiser: {lr: 0.004}}
federation: {rounds: 5}
evaluation: {subgroups: [sex, site], errors_by: [finding], robustness: [noise], bootstrap: 100}
partition: {kind: iid, sites: 2}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("examined") / "run"
    found = simulations.simulate(Study.parse(STUDY), out=out, arms=["federated"])
    return dict(found.results[0]), out


def test_groups_are_the_whole_and_hospitals_as_they_were_tested(run: tuple[dict[str, Any], Path]) -> None:
    arm = run[0]["arms"]["federated"]
    tested = sum(site["images"]["test"] for site in run[0]["sites"].values())
    for groups in arm["subgroups"]["by"].values():
        assert sum(group["images"] for group in groups["values"]) == tested
    for group in arm["subgroups"]["by"]["site"]["values"]:
        own = arm["sites"][group["value"]]["test"]
        for metric in ("auc", "sensitivity", "specificity"):
            for end in ("value", "low", "high"):
                assert group["metrics"][metric][end] == pytest.approx(own[metric][end], abs=1e-5)
    assert {row["value"] for row in arm["mistakes"]["by"]["finding"]} == {"normal", "bacteria", "virus"}


def test_strong_noise_takes_the_model_down(run: tuple[dict[str, Any], Path]) -> None:
    arm = run[0]["arms"]["federated"]
    levels = [level["test"]["auc"]["value"] for level in arm["robustness"]["noise"]]
    assert len(levels) == 5
    assert arm["test"]["auc"]["value"] > 0.8
    assert levels[4] < arm["test"]["auc"]["value"] - 0.1
    assert levels[4] < levels[1] + 0.02


def test_the_report_answers_first(run: tuple[dict[str, Any], Path]) -> None:
    page = (run[1] / "report.html").read_text(encoding="utf-8")
    places = [
        page.index(text)
        for text in (
            "For whom does it fail?",
            "How sure are you?",
            "What would my hospital gain?",
            'id="groups"',
            'id="mistakes"',
            'id="robustness"',
        )
    ]
    assert places == sorted(places)
    assert "names no subgroups" not in page
