"""The examples in docs/ run as their readers run them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"


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
    assert {path.name for path in EXAMPLES.iterdir() if path.suffix == ".py"} == {"simulate_in_python.py"}
