"""The examples in docs/ run as their readers run them."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from common.study import Study
from simulations.datasets import open_source
from simulations.sites import Machine, prepare_sites

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


def test_deal_to_hospitals(tmp_path: Path) -> None:
    """Every image goes to one hospital, with the split that the simulation gives it there."""
    rng = np.random.default_rng(5)
    rows = ["file,label,patient"]
    (tmp_path / "data" / "images").mkdir(parents=True)
    for number in range(60):
        Image.fromarray(rng.integers(0, 255, (24, 24)).astype(np.uint8)).save(tmp_path / f"data/images/{number}.png")
        rows.append(f"images/{number}.png,{('normal', 'pneumonia')[number % 2]},P{number // 2}")
    (tmp_path / "data" / "labels.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "study.yaml").write_text(
        "name: dealt\ntask: binary\nclasses: [normal, pneumonia]\npartition: {kind: iid, sites: 3}\n"
    )
    script = EXAMPLES / "deal_to_hospitals.py"
    command = [sys.executable, script, "study.yaml", "data", "scans"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    study = Study.load(tmp_path / "study.yaml")
    prepared = prepare_sites(study, open_source(study, tmp_path / "data"), tmp_path / "virtual", Machine())
    seen: list[str] = []
    for site, facts in prepared.sites.items():
        with (tmp_path / "scans" / site / "labels.csv").open() as sheet:
            dealt = list(csv.DictReader(sheet))
        assert Counter(row["split"] for row in dealt) == facts["images"]
        assert all((tmp_path / "scans" / site / row["file"]).is_file() for row in dealt)
        seen += [row["file"] for row in dealt]
    assert sorted(seen) == sorted(f"{number}.png" for number in range(60))


@pytest.mark.slow
def test_privacy_utility(tmp_path: Path) -> None:
    """A run at an ε, a table and a curve; asked again it computes nothing again."""
    rng = np.random.default_rng(6)
    arrays = {}
    for split, count in (("train", 60), ("val", 20), ("test", 20)):
        labels = np.arange(count) % 2
        arrays[f"{split}_images"] = (rng.integers(0, 100, (count, 16, 16)) + 100 * labels[:, None, None]).astype(
            np.uint8
        )
        arrays[f"{split}_labels"] = labels.astype(np.uint8)[:, None]
    np.savez(tmp_path / "images.npz", **arrays)
    (tmp_path / "study.yaml").write_text(
        'name: curve\ntask: binary\nclasses: {normal: ["0"], ill: ["1"]}\nimage: {size: 16}\n'
        "model: {name: cnn, norm: group, params: {filters: [4], hidden: []}}\n"
        "training: {batch_size: 10, local_steps: 1, optimiser: {name: sgd, lr: 0.1}}\n"
        "federation: {rounds: 1}\npartition: {kind: iid, sites: 2}\nevaluation: {bootstrap: 100}\n"
        "privacy: {epsilon: 1, delta: 0.001, accountant: rdp, evaluation: exact}\n"
    )
    script = EXAMPLES / "privacy_utility.py"
    command = [sys.executable, script, "study.yaml", "images.npz", "out", "--epsilon", "8", "--repeats", "1"]
    for said in ("", "nothing was computed again"):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        assert said in done.stderr
    row = (tmp_path / "out" / "table.md").read_text().splitlines()[2]
    assert re.match(r"\| 8 \| 0\.\d+ \| 0\.\d{3} \(0\.\d{3}–0\.\d{3}\) \|", row), row
    page = ElementTree.fromstring((tmp_path / "out" / "curve.svg").read_text())
    assert page.tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.slow
def test_personalisation(tmp_path: Path) -> None:
    """One setting and one method of the table, on phantoms: three rows, and what each hospital would run."""
    script = EXAMPLES / "personalisation.py"
    options = ["--phantoms", "--repeats", "1", "--settings", "hospitals", "--methods", "fedavg"]
    done = subprocess.run(
        [sys.executable, script, "out", *options], cwd=tmp_path, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "out" / "table.md").read_text()
    rows = re.findall(r"^\| ([a-z-]+) \|(?: \d\.\d{3}  \|)+ \d\.\d{3} \| \d\.\d{3} \|$", table, re.MULTILINE)
    assert rows == ["alone", "fedavg", "finetune"]
    assert len(re.findall(r"^\| finetune \| site-\d \| [+-]\d", table, re.MULTILINE)) == 2


@pytest.mark.slow
def test_simulate_in_python(tmp_path: Path) -> None:
    """As a script, from a folder of the user's own."""
    script = EXAMPLES / "simulate_in_python.py"
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert "SYNTHETIC images" in done.stdout
    assert re.search(r"^all +0\.\d+ +0\.\d+ +0\.\d+$", done.stdout, re.MULTILINE)
    assert re.search(r"score for pneumonia 0\.\d\d, label (normal|pneumonia)", done.stdout)
    assert [line.split(":")[0] for line in done.stdout.splitlines()[-2:]] == ["fedavg", "fedprox"]
    for name in ("report.html", "roc.png", "learning.png", "partition.png"):
        assert len(list(tmp_path.glob(f"runs/*-first-steps/{name}"))) == 1


def test_every_example_is_run_here() -> None:
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix == ".py"} == {
        "deal_to_hospitals.py",
        "personalisation.py",
        "privacy_utility.py",
        "simulate_in_python.py",
    }
