"""Commands killed with SIGKILL at random moments: the site verifies, and the same command finishes what was begun."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from client import upkeep
from client.home import Home
from tests.conftest import SOAK

ROOT = Path(__file__).parents[2]
IMAGES = 40
# Small transactions, so that a kill meets one; the command is otherwise as a user runs it.
RUN = """
import sys
import client.ingest.importer
client.ingest.importer.COMMIT_BYTES = 8_000
sys.argv = ["fedward", *sys.argv[1:]]
import fedward
fedward.main()
"""


def start(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def killed(wait_s: float, *arguments: object) -> bool:
    """Run the command and kill it after ``wait_s``; whether that was before its end."""
    process = start(*arguments)
    try:
        process.wait(wait_s)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def finished(*arguments: object) -> float:
    """Run the command to its end; seconds."""
    begun = time.monotonic()
    assert start(*arguments).wait(120) == 0
    return time.monotonic() - begun


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(5)
    lines = ["file,patient,label"]
    for number in range(IMAGES):
        cv2.imwrite(str(folder / f"{number:03}.png"), rng.integers(0, 256, (50, 60), dtype=np.uint8))
        lines.append(f"{number:03}.png,P{number // 2},{'normal' if number % 3 else 'pneumonia'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return Home.init(tmp_path / "site", alias="north", synthetic=True).directory


def content(site: Path) -> list[tuple[str, str, tuple[str, ...]]]:
    with Home.open(site).vault(read_only=True) as vault:
        return sorted((row.digest, row.patient, row.labels["label"]) for row in vault.each())


def moments(count: int, whole_s: float) -> Sequence[float]:
    """Random moments of a command that takes ``whole_s``; its start-up is killed less often than its work."""
    rng = random.Random(11)
    return [whole_s * rng.triangular(0.2, 1.0, 0.8) for _ in range(count)]


@pytest.mark.slow
def test_imports_killed_at_random_moments(site: Path, scans: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    shutil.copytree(site, empty)
    arguments = ("site", "import", scans, "--labels", scans / "labels.csv", "--site", site)
    whole_s = finished(*arguments)
    wanted = content(site)
    assert len(wanted) == IMAGES
    shutil.rmtree(site)
    shutil.copytree(empty, site)
    begun = site.stat().st_ino
    met, partly = 0, 0
    for wait_s in moments(200 if SOAK else 10, whole_s):
        met += killed(wait_s, *arguments)
        home = Home.open(site)
        found = upkeep.verify(home)
        assert content(site) <= wanted or set(content(site)) <= set(wanted)
        partly += 0 < found.images < IMAGES
        if found.images == IMAGES:  # through: begin anew
            finished(*arguments)
            assert content(site) == wanted
            shutil.rmtree(site)
            shutil.copytree(empty, site)
    finished(*arguments)
    assert content(site) == wanted
    assert upkeep.verify(Home.open(site)).whole_file
    assert met > 0, (begun, whole_s)
    assert not SOAK or partly > 20, "kills met too few imports in their middle"


CHANGES = {
    "rotate-key": ("rotate-key",),
    "reencrypt": ("rotate-key", "--reencrypt"),
    "erase": ("erase", "--patient", "P3", "--yes"),
    "label": ("label",),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CHANGES))
def test_other_commands_killed_at_random_moments(site: Path, scans: Path, name: str) -> None:
    finished("site", "import", scans, "--labels", scans / "labels.csv", "--site", site)
    arguments: tuple[object, ...] = ("site", *CHANGES[name], "--site", site)
    if name == "label":
        new = site.parent / "new.csv"
        new.write_text("patient,label\n" + "".join(f"P{number},tumour\n" for number in range(IMAGES // 2)))
        arguments = ("site", "label", new, "--site", site)
    before = content(site)
    whole_s = 1.0
    for wait_s in moments(25 if SOAK else 3, whole_s):
        killed(wait_s, *arguments)
        upkeep.verify(Home.open(site))
        assert len(content(site)) in (len(before), len(before) - 2)
    finished(*arguments)
    home = Home.open(site)
    assert upkeep.verify(home).whole_file
    assert home.config.previous_key is None
    after = content(site)
    if name == "erase":
        assert len(after) == len(before) - 2
    elif name == "label":
        assert {labels for _, _, labels in after} == {("tumour",)}
    else:
        assert after == before
    assert not [path for path in site.rglob(".*") if path.name != ".lock"], "left-overs"
