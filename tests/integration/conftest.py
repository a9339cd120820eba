"""Runs and disks that several files of tests take."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.commandline import LONG, STUDY, Outcome, command, meanwhile, rounds_done, saved, send


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return saved(tmp_path / "tiny.yaml", STUDY)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run. Not to be changed: take a copy."""
    home = tmp_path_factory.mktemp("finished")
    outcome = command("simulate", saved(home / "tiny.yaml", STUDY), "--out", home / "run", "--arms", "federated,local")
    assert outcome.code == 0, outcome.err
    return home / "run"


@pytest.fixture(scope="session")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    """A run that Ctrl-C stopped after a few of its rounds, and what it said. Not to be changed."""
    home = tmp_path_factory.mktemp("stopped")
    run = home / "run"
    with meanwhile(rounds_done(run, 2), send(signal.SIGINT)):
        outcome = command("simulate", saved(home / "long.yaml", LONG), "--out", run, "--arms", "federated")
    return run, outcome


@pytest.fixture
def unfinished(stopped: tuple[Path, Outcome], tmp_path: Path) -> Path:
    """A copy of that run."""
    return shutil.copytree(stopped[0], tmp_path / "unfinished")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """``disk(bytes)``: a folder on a disk of its own, of that size."""
    mounted: list[Path] = []

    def mount(size: int) -> Path:
        path = tmp_path / f"disk-{len(mounted)}"
        path.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
        mounted.append(path)
        return path

    if os.geteuid():
        pytest.skip("only root can mount a small disk")
    yield mount
    for path in mounted:
        subprocess.run(["umount", path], check=True)
