"""``fedward explain`` on phantoms whose findings are drawn: maps of a trained network find them, of a fresh one not."""

from __future__ import annotations

import base64
import html
import json
from pathlib import Path
from typing import Any

import pytest

from common.errors import RunError, StudyError
from common.models import build
from common.study import Study
from common.weights import save, state_of
from server.report import write_report
from simulations.datasets import open_source
from simulations.environment import Stopwatch
from simulations.explaining import explain
from simulations.run import Plan, Run

STUDY = """
name: explained
task: binary
classes: [normal, pneumonia]
seed: 3
data: {phantoms: {images: 240, size: 48, difficulty: 0.1}, split: [0.7, 0.15, 0.15]}
image: {size: 48}
model: {name: cnn, params: {filters: [12, 24, 24], hidden: [24]}}
training: {batch_size: 16, local_epochs: 3, optimiser: {lr: 2.0e-3}}
federation: {rounds: 4, evaluate_every: 0}
partition: {kind: iid, sites: 2}
evaluation: {bootstrap: 100}
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, out = Study.parse(STUDY), tmp_path_factory.mktemp("explain") / "run"
    Run.start(made, Plan(arms=("federated",)), open_source(made, None), out, Stopwatch()).execute()
    return out


def explained(run: Path, **options: Any) -> dict[str, Any]:
    given = {"method": None, "images": 20, "public": False, "device": "cpu", "as_json": False, **options}
    explain(run, **given)
    found: dict[str, Any] = json.loads((run / "results.json").read_text())["explanations"]
    return found


def test_maps_of_what_was_learnt_point_at_findings_and_their_removal_costs_the_score(trained: Path) -> None:
    found = explained(trained)
    assert found["method"] == "integrated-gradients"
    assert found["all"]["pointed_gain"]["low"] > 0.0
    assert found["all"]["mass_gain"]["low"] > 0.0
    assert found["all"]["deletion_gain"]["low"] > 0.0
    # Integrated gradients multiply by the image, which maps of any weights share: some likeness always stays.
    assert found["all"]["fresh"]["high"] < 0.6, "maps depend on the weights (Adebayo et al. 2018)"
    for name in ("pointed", "deletion"):
        parts = [site[name] for site in found["sites"].values()]
        assert found["all"][name]["patients"] == sum(part["patients"] for part in parts)
    page = html.unescape((trained / "report.html").read_text())
    assert "What did it look at?" in page
    assert "(better than chance)" in page
    pictures = [base64.b64decode(picture["png"]) for picture in found["pictures"]]
    assert len(pictures) == 6 and all(one.startswith(b"\x89PNG") for one in pictures)
    again = explained(trained)
    assert again == found, "the same again"


def test_a_network_that_learnt_nothing_does_not_find_them(trained: Path) -> None:
    model = trained / "model.safetensors"
    kept = model.read_bytes()
    try:
        save(state_of(build(Study.parse(STUDY), 4)), model)
        found = explained(trained, images=10)
        assert found["all"]["pointed_gain"]["low"] <= 0.0
        assert abs(found["all"]["deletion_gain"]["value"]) < 0.05
    finally:
        model.write_bytes(kept)


def test_pictures_of_images_that_are_not_computer_made_need_a_word(trained: Path) -> None:
    path = trained / "results.json"
    kept = path.read_bytes()
    try:
        path.write_text(json.dumps(json.loads(kept) | {"synthetic": False}))
        assert explained(trained, images=3)["pictures"] == []
        assert "data:image/png" not in (trained / "report.html").read_text()
        assert explained(trained, images=3, public=True, method="integrated-gradients")["pictures"]
    finally:
        path.write_bytes(kept)
        write_report([json.loads(kept)], trained)


def test_small_groups_stay_at_their_hospital(trained: Path) -> None:
    card = trained / "model.json"
    kept = card.read_bytes()
    try:
        told = json.loads(kept)
        told["study"]["evaluation"]["min_cell"] = 1000
        card.write_text(json.dumps(told))
        with pytest.raises(RunError, match="no hospital has"):
            explained(trained, images=3)
    finally:
        card.write_bytes(kept)


def test_what_cannot_be_explained(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="unknown method 'gradcam'; known: grad-cam, hirescam"):
        explained(trained, method="gradcam")
    with pytest.raises(RunError, match="no result to explain"):
        explained(tmp_path)
