"""The examples in docs/ run as their readers run them."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

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
        "simulate_in_python.py",
    }
