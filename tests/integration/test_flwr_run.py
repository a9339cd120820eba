"""``flwr run .`` with stock Flower: the same study, the same apps, started by Flower's own command line."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

STUDY = """
name: flower
task: binary
classes: [normal, pneumonia]
data: {phantoms: {images: 60, size: 32, difficulty: 0.0}}
image: {size: 16}
model: {params: {filters: [4, 4], hidden: [8]}}
federation: {rounds: 2}
partition: {kind: iid}
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture
def superlink(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A local SuperLink in simulation mode that installs nothing; the environment in which ``flwr`` finds it."""
    port = free_port()
    home = tmp_path / "flwr"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    environment = {
        **os.environ,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "HOME": str(tmp_path),
    }
    command = [BIN / "flower-superlink", "--insecure", "--simulation", "--disable-runtime-dependency-installation"]
    with (
        (tmp_path / "superlink.log").open("wb") as log,
        subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        try:
            wait_for(port)
            yield environment
        finally:
            os.killpg(process.pid, 15)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)


def wait_for(port: int) -> None:
    for _ in range(300):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError("the SuperLink did not come up")


@pytest.mark.slow
def test_flwr_run_plays_a_study(superlink: dict[str, str], tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(STUDY)
    run = tmp_path / "run"
    done = subprocess.run(
        [BIN / "flwr", "run", str(ROOT), "--stream", "--run-config", f'study="{study}" run="{run}"'],
        env=superlink,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    log = (tmp_path / "superlink.log").read_text()
    assert (run / "results.json").exists(), f"{done.stdout}\n{done.stderr}\n{log}"
    found = json.loads((run / "results.json").read_text())
    assert found["arms"]["federated"]["rounds"] == 2
    assert len(found["arms"]["federated"]["sites"]) == 2
    assert (run / "model.safetensors").stat().st_size > 0
