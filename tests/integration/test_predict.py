"""``fedward predict``: the scores of an evaluation, in the order of urgency, and no file without a line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from client.app import Resident
from common.errors import RunError, StudyError
from common.metrics.calibration import Scale
from common.models import build
from common.study import Study
from common.weights import load, save, state_of
from server.results import read_card
from simulations.predict.cases import Image, Unreadable
from simulations.predict.model import Model, Temperatures
from simulations.predict.trust import UNVERIFIED
from simulations.predict.worklist import BATCH, NOTICE, SYNTHETIC, Urgency, make, rows, table
from tests.integration.commandline import command, refused
from tests.unit.dicom_objects import content, dataset

TINY = {"name": "tiny", "image": {"size": 16}, "model": {"name": "cnn", "params": {"filters": [2], "hidden": [4]}}}


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory) -> tuple[Path, dict[str, float], dict[str, list[float]]]:
    """A run's images as files, their scores by evaluation, and these by the vaults' patients."""
    home = tmp_path_factory.mktemp("images")
    card, weights = read_card(finished), load(finished / "model.safetensors")
    of_file: dict[str, float] = {}
    of_patient: dict[str, list[float]] = {}
    resident = Resident()
    for directory in sorted((finished / "sites").glob("site-*")):
        site = resident.site(directory)
        (vault,) = site.vaults
        for split in ("train", "val", "test"):
            scores = resident.scores(site, card.study, split, weights, card.basis).scores[:, 0]
            in_order = [row for row in vault.rows() if row.split == split]
            assert len(in_order) == len(scores)
            for row, score in zip(in_order, scores.tolist(), strict=True):
                (home / site.alias).mkdir(exist_ok=True)
                cv2.imwrite(str(home / site.alias / f"{row.id}.png"), vault.read(row.id))
                of_file[f"{site.alias}/{row.id}.png"] = score
                of_patient.setdefault(f"{site.alias} {row.patient}", []).append(score)
    resident.close()
    return home, of_file, of_patient


def listed(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.slow
def test_files_get_the_scores_of_the_runs_own_evaluation(finished, folder, tmp_path):
    home, of_file, _ = folder
    out = tmp_path / "worklist.csv"
    done = command("predict", finished, home, "--out", out, "--workers", 2, "--device", "cpu", "--unverified")
    assert done.code == 0, done.err
    found = listed(out.read_text())
    assert {row["case"]: float(row["score pneumonia"]) for row in found} == pytest.approx(of_file, abs=2e-6)
    urgency = [float(row["probability of abnormality"]) for row in found]
    assert urgency == sorted(urgency, reverse=True)
    assert [int(row["rank"]) for row in found] == list(range(1, len(found) + 1))
    edge = json.loads((finished / "model.json").read_text())["thresholds"]["pneumonia"]
    assert all((row["decision"] == "pneumonia") == (of_file[row["case"]] >= edge) for row in found)
    notice = f"{NOTICE} {SYNTHETIC} {UNVERIFIED}"
    assert all(row["notice"] == notice for row in found) and NOTICE in done.err and "NOT VERIFIED" in done.err
    assert f"counts as pneumonia from a score of {edge:.4f} on" in done.err
    assert "ms to read and prepare" in done.err and "ms in the model (CPU" in done.err
    assert out.stat().st_mode & 0o077 == 0


@pytest.mark.slow
def test_a_vaults_patients_are_cases_by_their_pseudonyms(finished, folder):
    _, _, of_patient = folder
    vault = finished / "sites" / "site-1"
    done = command("predict", finished, "--site", vault, "--json", "--device", "cpu", "--unverified")
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in done.out.splitlines()]
    worst = {name.removeprefix("site-1 "): max(all_) for name, all_ in of_patient.items() if name.startswith("site-1 ")}
    assert {line["case"]: line["scores"]["pneumonia"] for line in lines[:-1]} == pytest.approx(worst, abs=1e-6)
    assert {line["case"]: line["images"] for line in lines[:-1]} == {
        name: len(of_patient[f"site-1 {name}"]) for name in worst
    }
    assert lines[-1]["trained_on_synthetic"]
    assert lines[-1]["event"] == "finished" and lines[-1]["calibrated"]
    assert lines[-1]["notice"].startswith(NOTICE) and (lines[-1]["verified"], lines[-1]["signed_by"]) == (False, None)


@pytest.mark.slow
def test_what_cannot_be_read_is_listed_with_its_reason_and_nothing_is_dropped(finished, folder, tmp_path):
    home, of_file, _ = folder
    scans = tmp_path / "scans"
    (scans / "sub").mkdir(parents=True)
    good = (home / next(iter(of_file))).read_bytes()
    (scans / "=1+1.png").write_bytes(good)
    (scans / "sub" / "cut.png").write_bytes(good[: len(good) // 2])
    (scans / "empty.png").write_bytes(b"")
    (scans / "notes.txt").write_text("not an image\n")
    (scans / "labels.csv").write_text("file,label\n")
    cv2.imwrite(str(scans / "blank.png"), np.full((32, 32), 7, np.uint8))
    (scans / "away.png").symlink_to(home / next(iter(of_file)))
    pixels = np.random.default_rng(0).integers(0, 4096, (40, 40), dtype=np.uint16)
    (scans / "chest.dcm").write_bytes(content(dataset(pixels)))
    done = command("predict", finished, scans, "--device", "cpu", "--unverified")
    assert done.code == 0, done.err
    found = listed(done.out)
    assert {row["case"] for row in found if row["rank"]} == {"'=1+1.png", "chest.dcm"}
    problems = {row["case"]: row["problem"] for row in found if not row["rank"]}
    assert set(problems) == {"sub/cut.png", "empty.png", "notes.txt", "blank.png", "away.png"}
    assert "the file is empty" in problems["empty.png"] and "known format" in problems["notes.txt"]
    assert "damaged" in problems["sub/cut.png"] and "leads out" in problems["away.png"]
    assert "one value" in problems["blank.png"]
    for name in problems:
        assert f"not scored: {name}" in done.err
    for path in scans.rglob("*"):
        if path.is_file() and path.name not in ("empty.png", "labels.csv"):
            path.unlink()
    assert "none of 1 files could be scored: empty.png" in refused(3, "predict", finished, scans, "--unverified")


def test_what_cannot_be_asked_for_is_said(finished, tmp_path):
    assert "one of the two" in refused(8, "predict", finished)
    assert "add --unverified if you know both" in refused(8, "predict", finished, tmp_path)
    assert "ask for the signed package" in refused(6, "predict", finished, tmp_path, "--signed-by", "7G3K")
    assert "no such file or folder" in refused(3, "predict", finished, tmp_path / "none", "--unverified")
    assert "has no model" in refused(8, "predict", tmp_path, tmp_path)
    pooled = finished / "sites" / "pooled"
    assert "pooled" in refused(3, "predict", finished, "--site", pooled, "--unverified")
    normal = ("--normal", "normal")
    assert "--normal is for multiclass" in refused(2, "predict", finished, tmp_path, *normal, "--unverified")


def model(folder: Path, **study: object) -> Model:
    """An untrained model's folder, with thresholds at a half."""
    made = Study.parse(json.dumps({**TINY, **study}))
    folder.mkdir(exist_ok=True)
    save(state_of(build(made, 3)), folder / "model.safetensors")
    edges = {} if made.task == "multiclass" else dict.fromkeys(made.scored_classes, 0.5)
    card = {"study": json.loads(made.canonical()), "arm": "federated", "thresholds": edges, "basis": None}
    if made.outlines:
        card["outline_threshold"] = 0.5
    (folder / "model.json").write_text(json.dumps(card))
    return Model(folder)


def images(count: int, cases: int) -> list[Image]:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 255, (count, 1, 16, 16), dtype=np.uint8)
    return [Image(f"case {n % cases}", n // cases + 1, pixels[n]) for n in range(count)]


def test_of_several_classes_urgency_is_not_being_normal(tmp_path):
    made = model(tmp_path / "m", task="multiclass", classes=["tumor", "normal", "pneumonia"])
    with pytest.raises(StudyError, match="no class 'norml'"):
        Urgency(made, "norml")
    given = images(BATCH + 5, 20)
    scores = made.scores([one.pixels for one in given])
    found = make(made, Urgency(made, "normal"), [Unreadable("broken", "why"), *given])
    assert [one.case for one in found.unreadable] == ["broken"]
    assert len(found.cases) == 20
    for case in found.cases:
        mine = [n for n, one in enumerate(given) if one.case == case.case]
        most = max(mine, key=lambda n: 1 - scores[n, 1])
        assert case.probability == pytest.approx(1 - scores[most, 1], abs=1e-6)
        assert (case.images, case.image) == (len(mine), given[most].number)
        assert case.decision == ("tumor", "normal", "pneumonia")[scores[most].argmax()]
    assert [line["event"] for line in rows(found)] == ["case"] * 20 + ["unreadable"]
    assert listed(table(found, made.card.study))[-1]["decision"] == "not scored"


def test_of_several_findings_each_ones_worst_image_counts(tmp_path):
    made = model(tmp_path / "m", task="multilabel", classes=["effusion", "nodule"])
    given = images(30, 3)
    scores = made.scores([one.pixels for one in given])
    found = make(made, Urgency(made), given)
    for case in found.cases:
        worst = scores[[n for n, one in enumerate(given) if one.case == case.case]].max(axis=0)
        assert list(case.scores.values()) == pytest.approx(worst.tolist(), abs=1e-6)
        above = [name for name, score in case.scores.items() if score >= 0.5]
        assert case.decision == (" + ".join(above) or "none")


def test_an_outlining_model_orders_cases_too(tmp_path):
    made = model(
        tmp_path / "m",
        task="segmentation",
        classes=["lesion"],
        model={"name": "unet", "params": {"depth": 1, "width": 4}},
    )
    found = make(made, Urgency(made), images(6, 6))
    assert len(found.cases) == 6 and all(0 <= case.probability <= 1 for case in found.cases)
    assert {case.decision for case in found.cases} <= {"lesion", "nothing outlined"}
    assert all((case.decision == "lesion") == (case.scores["lesion"] >= 0.5) for case in found.cases)
    assert "score of abnormality (no probability)" in table(found, made.card.study, calibrated=False)


def test_a_packages_summary_says_its_temperatures(tmp_path):
    made = model(tmp_path / "m", task="multilabel", classes=["effusion", "nodule"])
    assert not made.temperatures.values
    calibration = {"effusion": {"scaled": {"temperature": 2.0}}, "nodule": {"scaled": {"temperature": 0.5}}}
    (tmp_path / "m" / "summary.json").write_text(json.dumps({"calibration": calibration}))
    calibrated = Model(tmp_path / "m")
    assert calibrated.temperatures == Temperatures([2.0, 0.5])
    given = images(4, 4)
    scores = calibrated.scores([one.pixels for one in given])
    wanted = [Scale(scores[:, n], np.ones(4), np.ones(4)).at(by).score for n, by in ((0, 2.0), (1, 0.5))]
    assert Urgency(calibrated).of(scores) == pytest.approx(np.maximum(*wanted), abs=1e-9)
    for nonsense in (0, -1.0, "2", float("inf")):
        calibration["nodule"]["scaled"]["temperature"] = nonsense
        (tmp_path / "m" / "summary.json").write_text(json.dumps({"calibration": calibration}))
        with pytest.raises(RunError, match="a temperature that is none"):
            Model(tmp_path / "m")
    del calibration["nodule"]
    (tmp_path / "m" / "summary.json").write_text(json.dumps({"calibration": calibration}))
    assert not Model(tmp_path / "m").temperatures.values  # half of it would mislead
    (tmp_path / "m" / "summary.json").write_text("1")
    with pytest.raises(RunError, match=r"summary\.json is damaged"):
        Model(tmp_path / "m")


def test_temperatures_keep_the_order_and_are_those_of_the_report():
    scores = np.array([0.001, 0.2, 0.5, 0.9, 0.9999])
    scale = Scale(scores, np.ones(5), np.ones(5))
    found = Temperatures([1.7]).probabilities(scores[:, None])[:, 0]
    assert found == pytest.approx(scale.at(1.7).score, abs=1e-12)
    assert (np.diff(found) > 0).all()
    assert (Temperatures().probabilities(scores[:, None])[:, 0] == scores).all()
    assert Temperatures([2.0]).probabilities(np.array([[0.0], [1.0]])).ravel() == pytest.approx([0, 1], abs=1e-6)
