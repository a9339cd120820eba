"""``fedward search`` and ``simulate --folds`` as they are used: killed, taken up again, and blind to test patients."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pytest

from client.config import SiteConfig
from client.vault.keys import provider
from client.vault.store import Vault
from common.errors import RunError
from common.study import Study
from server.events import EventLog
from simulations.datasets import open_source
from simulations.environment import Stopwatch
from simulations.search.fit import Job, Outcome, Trainer
from simulations.search.lanes import Lanes
from simulations.search.run import Plan, Schedule, Search
from simulations.search.space import SearchSpec
from simulations.search.write import write_results
from tests.integration.commandline import command, refused

STUDY = """\
name: tiny
task: binary
classes: [normal, pneumonia]
seed: 7
image: {size: 16}
model: {name: cnn, norm: none, params: {filters: [2], hidden: [4]}}
federation: {rounds: 2}
partition: {kind: iid, sites: 2, min_per_site: 2}
evaluation: {bins: 64}
"""
OUTLINES = """\
name: outlines
task: segmentation
classes: {normal: [normal], opacity: [pneumonia]}
seed: 7
data: {phantoms: {images: 48, size: 32, difficulty: 0.1}}
image: {size: 16}
model: {name: unet, params: {depth: 1, width: 4}}
training: {optimiser: {name: adam, lr: 0.01}}
federation: {rounds: 3, evaluate_every: 2}
partition: {kind: iid, sites: 2, min_per_site: 2}
evaluation: {bins: 64}
"""
SPACE = """\
method: grid
folds: 2
space:
  training.optimiser.lr: [0.003, 0.03, 1.0e+30]
"""


class Here:
    """One worker that is this process."""

    def __init__(self) -> None:
        self._trainer, self._job = Trainer(), None

    @property
    def free(self) -> bool:
        return self._job is None

    @property
    def jobs(self) -> set[tuple[int, int]]:
        return set() if self._job is None else {(self._job.trial, self._job.fold)}

    def start(self, job: Job) -> None:
        self._job = job

    def finished(self) -> list[Outcome]:
        job, self._job = self._job, None
        assert job is not None
        return [self._trainer.fit(job)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Sixty images with a bright spot where there is pneumonia; split as their sheet says."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(3)
    rows = ["file,label,patient,split"]
    for number in range(60):
        sick = number % 2
        pixels = rng.integers(0, 120, (16, 16)).astype(np.uint8)
        pixels[4:8, 4:8] += np.uint8(90 * sick)
        cv2.imwrite(str(folder / f"{number}.png"), pixels)
        split = ("train", "train", "val", "test")[number // 2 % 4]
        rows.append(f"{number}.png,{('normal', 'pneumonia')[sick]},p{number},{split}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    study, space = tmp_path / "study.yaml", tmp_path / "space.yaml"
    study.write_text(STUDY)
    space.write_text(SPACE)
    return study, space


def poison(data: Path) -> None:
    """Of the test images one is gone, the others are no images any more."""
    tests = [line.split(",")[0] for line in (data / "labels.csv").read_text().splitlines() if line.endswith(",test")]
    assert len(tests) > 4
    for name in tests:
        (data / name).write_bytes(b"not an image")
    (data / tests[0]).unlink()


def outcome(folder: Path) -> list[dict[str, Any]]:
    """All of ``trials.json`` but times."""
    trials = json.loads((folder / "trials.json").read_text())["trials"]
    for trial in trials:
        del trial["wall_s"]
        for fit in trial["folds"]:
            del fit["wall_s"], fit["cpu_s"]
    return trials


@pytest.mark.slow
def test_killed_and_resumed_with_other_workers_and_without_test_images_nothing_changes(tmp_path, data, files):
    study_path, space_path = files
    study, spec = Study.load(study_path), SearchSpec.load(space_path)
    search = Search.start(
        study, spec, Plan(), open_source(study, data), tmp_path / "whole", Stopwatch(whole_process=False), "space"
    )
    judged = Schedule(search, Here(), EventLog()).run()
    best, together = write_results(search, judged)
    assert best is not None and best.status == "done" and together is None
    assert [one.status for one in judged] == ["done", "done", "failed"]
    assert judged[2].reason.startswith("fold 1: round 1: site-1: refused: its update's norm")
    assert Study.load(tmp_path / "whole" / "best.yaml") == study.derive(**best.params)

    poison(data)
    out = tmp_path / "killed"
    arguments = ["search", study_path, space_path, "--data", data, "--out", out]
    running = [str(Path(sys.executable).with_name("fedward")), *map(str, arguments)]
    with subprocess.Popen(running, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "trial 1 fold 1/2" in line:
                process.kill()
                break
        assert process.wait(60) == -signal.SIGKILL
    kept = sorted((out / "trials").glob("*/fold-*.json"))
    assert 0 < len(kept) < 5
    before = {path: path.stat().st_mtime_ns for path in kept}
    done = command("search", "--resume", out, "--workers", 2)
    assert done.code == 0, done.err
    assert "chosen on validation" in done.out.lower() and "not a test result" in done.out
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    assert outcome(out) == outcome(tmp_path / "whole")

    for site in ("site-1", "site-2"):
        home = out / "sites" / site
        with Vault.open(home / SiteConfig.load(home).vault, provider("file:vault.key", base=home)) as vault:
            assert {row.split for row in vault.rows()} == {"train", "val"}
    page = (out / "search.html").read_text()
    assert "not a test result" in page and "<script" not in page and "https://" not in page
    assert (out / "trials.csv").read_text().splitlines()[3].startswith(",3,failed")

    assert "holds a search" in refused(8, "search", study_path, space_path, "--data", data, "--out", out)
    assert "leave out --trials" in refused(8, "search", "--resume", out, "--trials", 3)


@pytest.mark.slow
def test_a_cross_validation_judges_every_development_patient_once(tmp_path, data, files):
    out = tmp_path / "folds"
    done = command("simulate", files[0], "--data", data, "--folds", 2, "--out", out, "--rounds", 1)
    assert done.code == 0, done.err
    sheet = (data / "labels.csv").read_text().splitlines()[1:]
    development = sum(not line.endswith(",test") for line in sheet)
    (trial,) = outcome(out)
    assert trial["patients"] == development
    assert f"validation of {development} patients over 2 folds; not a test result" in done.out
    pooled = json.loads((out / "trials.json").read_text())["out_of_fold"]
    assert pooled["auc"]["value"] == pytest.approx(trial["pooled"])
    assert pooled["auc"]["low"] < pooled["auc"]["value"] < pooled["auc"]["high"]
    assert f"AUC {pooled['auc']['value']:.3f} [{pooled['auc']['low']:.3f}" in done.out
    again = command("simulate", "--resume", out)
    assert again.code == 0 and "2 of 2 fits are there already" in again.err
    assert "leave out --repeats" in refused(8, "simulate", files[0], "--folds", 2, "--repeats", 2)


@pytest.mark.slow
def test_outlines_are_judged_by_dice_on_every_page_and_in_every_table(tmp_path, monkeypatch):
    study_path, space_path = tmp_path / "study.yaml", tmp_path / "space.yaml"
    study_path.write_text(OUTLINES)
    space_path.write_text("method: grid\nspace:\n  training.optimiser.lr: [0.001, 0.01]\n")
    monkeypatch.setattr(Search, "execute", lambda search, progress: Schedule(search, Here(), EventLog(progress)).run())
    done = command("search", study_path, space_path, "--out", tmp_path / "s")
    assert done.code == 0, done.err
    best, other = outcome(tmp_path / "s")
    assert "judged by Dice" in done.err and f"  1. trial {best['trial']}    Dice {best['score']:.4f}" in done.out
    assert best["score"] >= other["score"] > 0 and best["metric"] == "dice"
    assert [round_ for round_, _ in best["folds"][0]["curve"]] == [2, 3], "the first round was not validated"
    assert max(score for _, score in best["folds"][0]["curve"]) == pytest.approx(best["score"])
    page = (tmp_path / "s" / "search.html").read_text()
    assert f"Trial {best['trial']}: Dice" in page and ">Dice<" in page
    assert (tmp_path / "s" / "trials.csv").read_text().startswith("rank,trial,status,dice,")
    kept = Study.load(tmp_path / "s" / "best.yaml")
    assert kept == Study.load(study_path).derive(**best["params"])
    # All patients out of fold: what is printed first is what was asked for.
    done = command("simulate", study_path, "--folds", 2, "--rounds", 1, "--out", tmp_path / "f")
    assert done.code == 0, done.err
    assert "out of fold        Dice" in done.out and "lesions found" in done.out
    assert "threshold of outlines" in (tmp_path / "f" / "search.html").read_text()


def test_a_two_stage_study_is_searched_by_what_it_classifies(tmp_path, monkeypatch):
    """It is kept by AUC; its outlines are a means."""
    study_path, space_path = tmp_path / "study.yaml", tmp_path / "space.yaml"
    two = OUTLINES.replace("task: segmentation", "task: binary")
    two = two.replace("{name: unet, params: {depth: 1, width: 4}}", "{name: segment_classify}")
    study_path.write_text(two)
    space_path.write_text("method: grid\nspace:\n  training.optimiser.lr: [0.01, 0.02]\n")
    asked: list[str] = []

    def started(study, spec, *_):
        asked.append(spec.metric)
        raise RunError("enough")

    monkeypatch.setattr(Search, "start", started)
    refused(8, "search", study_path, space_path, "--out", tmp_path / "s")
    space_path.write_text("metric: dice\n" + space_path.read_text())
    refused(8, "search", study_path, space_path, "--out", tmp_path / "s")
    assert asked == ["auc", "dice"]


def test_what_cannot_be_searched_is_said_before_anything_is_made(tmp_path, data, files):
    out = tmp_path / "never"
    space = tmp_path / "bad.yaml"
    space.write_text("space: {model.params.filter: [[2]]}")
    assert "did you mean 'filters'" in refused(2, "search", files[0], space, "--data", data, "--out", out)
    space.write_text("space: {training.batch_size: [-1, 0]}")
    assert "training.batch_size" in refused(2, "search", files[0], space, "--data", data, "--out", out)
    assert "name a study file and a space file" in refused(8, "search", files[0])
    assert "not a search" in refused(8, "search", "--resume", data)
    assert not out.exists()


@pytest.mark.soak
def test_a_killed_worker_costs_one_attempt_and_a_second_the_trial(tmp_path, data):
    study = Study.parse(STUDY).derive(**{"federation.rounds": 40})
    stopwatch = Stopwatch(whole_process=False)
    search = Search.start(
        study, SearchSpec(method="grid", folds=2), Plan(), open_source(study, data), tmp_path / "s", stopwatch, "x"
    )
    homes = {site: search.store.sites / site for site in search.prepared.sites}
    text = study.canonical().decode()
    for kills, status in ((1, "done"), (2, "failed")):
        lanes = Lanes(1, 1, tmp_path / "sites.log")
        before = {child.pid for child in psutil.Process().children()}
        lanes.start(Job(1, 1, text, homes, tmp_path, "auc"))
        for _ in range(kills):
            worker = next(child for child in psutil.Process().children() if child.pid not in before)
            before.add(worker.pid)
            worker.kill()
            found = lanes.finished()
        found = found or lanes.finished()
        assert [one.fit.status for one in found] == [status]
        lanes.close()
