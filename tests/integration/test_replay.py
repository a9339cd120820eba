"""From Python, end to end: a run, its vaults played again, its model tested on another run's vaults."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

import simulations
from common.study import Study
from common.weights import load
from server.results import read_card
from simulations import cli
from simulations.datasets import open_source

STUDY = Study.parse("""
name: tiny
task: binary
classes: [normal, pneumonia]
seed: 7
data: {phantoms: {images: 150, size: 32, difficulty: 0.2}}
image: {size: 32}
model: {name: cnn, params: {filters: [8, 8], hidden: [16]}}
augment: {rotate_deg: 5}
federation: {rounds: 2}
partition: {kind: dirichlet, sites: 3, alpha: 2.0, device_shift: 0.3}
evaluation: {bootstrap: 100}
""")
AGAIN = STUDY.derive(partition={"kind": "natural", "column": "site"})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> simulations.Simulation:
    """A run made as in a notebook: while an event loop runs, on a machine with more torch threads than one."""
    out = tmp_path_factory.mktemp("runs") / "first"

    async def cell() -> simulations.Simulation:
        return simulations.simulate(STUDY, out=out, quiet=True)

    torch.set_num_threads(2)
    try:
        found = asyncio.run(cell())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    return found


def test_python_gives_what_the_command_wrote(
    run: simulations.Simulation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run.report.is_file()
    assert run.study == STUDY
    written = pd.read_csv(run.path / "metrics.csv")
    overall = written[written["class"].isna() & written["tested_on"].eq("all") & written["arm"].eq("federated")]
    mine = run.metrics.query("arm == 'federated' and site == 'all'")
    assert mine["value"].tolist() == pytest.approx(overall["value"].tolist(), nan_ok=True)
    result = json.loads((run.path / "results.json").read_text())
    assert result["threads"] == 1
    assert 0 < result["wall_s"] < 250  # of the call, not of the process
    assert {phase["name"] for phase in result["phases"]} >= {"vaults", "training"}
    assert capsys.readouterr() == ("", "")

    study = tmp_path / "tiny.yaml"
    study.write_text(STUDY.canonical().decode())
    cli.simulate(
        study, data=None, out=tmp_path / "second", resume=None, arms=None, repeats=None, folds=None, rounds=None,
        seed=None, engine=None, workers=None, threads=None, device="cpu", as_json=True,
    )  # fmt: skip
    again = simulations.Simulation.open(tmp_path / "second")
    assert (again.path / "model.safetensors").read_bytes() == (run.path / "model.safetensors").read_bytes()
    assert again.metrics.equals(run.metrics)
    assert again.differences.equals(run.differences)


def test_the_model_scores_images(run: simulations.Simulation) -> None:
    model = run.model()
    weights = load(run.path / "model.safetensors")
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in weights.items()
    }
    assert all(torch.equal(value, torch.from_numpy(weights[name])) for name, value in model.state_dict().items())
    assert not model.training
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 1)


def test_vaults_that_exist_play_the_same_hospitals_again(run: simulations.Simulation, tmp_path: Path) -> None:
    """The same images, splits, aliases and seed: bit for bit the same model, from the vaults alone."""
    again = simulations.simulate(AGAIN, data=run.path, out=tmp_path / "again", arms=["federated"], quiet=True)
    assert (again.path / "model.safetensors").read_bytes() == (run.path / "model.safetensors").read_bytes()
    columns = ["site", "split", "images", "patients", "n_normal", "n_pneumonia"]
    assert again.sites[columns].equals(run.sites[columns])
    assert set(again.sites["origin"]) == {"site-1", "site-2", "site-3"}
    assert again.synthetic
    assert again.results[0]["source"] == "phantoms (synthetic), from the vaults of first"
    # and no machine's path is in what is shown to others
    for name in ("results.json", "report.html", "metrics.csv", "events.jsonl", "model.json"):
        for folder in (run.path, again.path):
            assert str(tmp_path.parent) not in (folder / name).read_text()
    # a vault made from vaults still says where the images came from at first
    assert open_source(STUDY, again.path / "sites" / "site-1").name == (
        "phantoms (synthetic), from the vaults of site-1"
    )


def test_a_model_is_tested_on_other_vaults(
    run: simulations.Simulation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = STUDY.derive(seed=8, **{"federation.rounds": 1})
    data = simulations.simulate(other, out=tmp_path / "other", arms=["federated"], quiet=True)
    cli.evaluate(run.path, data.path, as_json=True, device="cpu")
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 150
    assert found["synthetic"] is True
    assert found["source"] == "phantoms (synthetic), from the vaults of other"
    assert found["unreadable"] == []
    assert 0.0 <= found["test"]["auc"]["low"] <= found["test"]["auc"]["value"] <= found["test"]["auc"]["high"] <= 1.0
    one = data.path / "sites" / "site-1"
    cli.evaluate(run.path, one, as_json=True, device="cpu")
    assert json.loads(capsys.readouterr().out)["images"] == len(open_source(read_card(run.path).study, one).items)


@pytest.mark.slow
def test_workers_from_a_script(run: simulations.Simulation, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, simulations\n"
        f"STUDY = {STUDY.canonical().decode()!r}\n"
        "if __name__ == '__main__':\n"
        "    run = simulations.simulate(STUDY, out='run', workers=2, arms=['federated'], quiet=True)\n"
        "    print(run.results[0]['workers'])\n"
    )
    done = subprocess.run([sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert (done.returncode, done.stdout) == (0, "2\n"), done.stderr
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (run.path / "model.safetensors").read_bytes()
