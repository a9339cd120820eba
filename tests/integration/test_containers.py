"""A newcomer follows docs/containers.md on a real engine: a coordinator and three hospitals train, in containers.

By default torch stands beside the images instead of in them: the base image is built without its packages, and those
of this test's own environment are mounted, which saves the five gigabytes and their minutes. All else is as shipped.
`make soak` builds the whole base image too.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import SOAK
from tests.integration.container_engine import ROOT, USER, Engine, engine

GUIDE = (ROOT / "docs" / "containers.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
SITES = ("site-1", "site-2", "site-3")
STUDY = """\
name: trial
task: binary
classes: [normal, pneumonia]
seed: 7
data: {split: [0.6, 0.2, 0.2]}
image: {size: 24}
model: {name: cnn, norm: group, params: {filters: [4, 4], hidden: [8]}}
training: {batch_size: 8}
federation: {rounds: 2, deadline_s: 120}
partition: {kind: iid, sites: 3}
evaluation: {bootstrap: 100, min_cell: 10}
"""
MOUNTED = """\
services:
""" + "".join(
    f"""\
  {name}:
    volumes: ["{sysconfig.get_paths()["purelib"]}:/packages:ro"]
"""
    for name in ("coordinator", *SITES)
)
PROBE = """
import json, pathlib, socket
def tried(act):
    try:
        act()
    except OSError as error:
        return type(error).__name__
    return "done"
def reach(host, port=8443):
    return tried(lambda: socket.create_connection((host, port), 5).close())
def write(path):
    return tried(lambda: pathlib.Path(path).write_text("x"))
listening = [line.split()[1] for name in ("tcp", "tcp6", "udp", "udp6")
             for line in pathlib.Path("/proc/net", name).read_text().splitlines()[1:]
             if line.split()[3] in ("0A", "07") and not line.split()[1].startswith("0B00007F")]
status = dict(line.split(":\\t") for line in pathlib.Path("/proc/1/status").read_text().splitlines() if ":\\t" in line)
print(json.dumps({
    "reached": {host: reach(host) for host in ("coordinator", *PEERS, "1.1.1.1")},
    "written": {path: write(path) for path in ("/x", "/opt/fedward/x", "/run/x", "/srv/fedward/x", "/tmp/x")},
    "listening": listening, "status": status,
    "environment": pathlib.Path("/proc/1/environ").read_text(),
}))
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's, which no other user can enter."""
    with tempfile.TemporaryDirectory(prefix="fedward-containers-") as made:
        Path(made).chmod(0o711)
        yield Path(made)


@pytest.fixture
def docker(folder: Path) -> Iterator[Engine]:
    (folder / "engine").mkdir()
    with engine(folder / "engine") as made:
        yield made


def work_folder(folder: Path) -> Path:
    """A clone as the newcomer has it: theirs to write, with images for three hospitals dealt by the example."""
    work = folder / "work"
    work.mkdir()
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in listed.split("\0"):
        if name and (ROOT / name).is_file() and not name.startswith("tests/"):
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, work / name)
    data = folder / "data"
    (data / "images").mkdir(parents=True)
    rng, rows = np.random.default_rng(1), ["file,label,patient"]
    for number in range(450):
        pixels = rng.integers(0, 120, (28, 28)).astype(np.uint8)
        if number % 2:
            pixels[8:18, 8:18] += 90
        Image.fromarray(pixels).save(data / "images" / f"{number:03}.png")
        rows.append(f"images/{number:03}.png,{('normal', 'pneumonia')[number % 2]},P{number:03}")
    (data / "labels.csv").write_text("\n".join(rows) + "\n")
    (folder / "study.yaml").write_text(STUDY)
    example = ROOT / "docs" / "examples" / "deal_to_hospitals.py"
    subprocess.run([sys.executable, example, folder / "study.yaml", data, folder / "scans"], check=True)
    for name in ("work", "scans", "study.yaml"):
        subprocess.run(["chown", "--recursive", f"{USER}:{USER}", folder / name], check=True)
    return work


def without_packages(dockerfile: str) -> str:
    """The base image's file, its packages left out but for uv, with which the wheel is installed."""
    beside = "echo /packages > lib/python3.11/site-packages/beside.pth"
    steps = f"COPY uv bin/\nRUN python3 -m venv --without-pip . && {beside}\n"
    found = re.sub(r"(?ms)^RUN awk .*?(?=^\n)", steps, dockerfile)
    assert found != dockerfile
    return found


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("base", ["beside", *([pytest.param("whole", marks=pytest.mark.soak)] if SOAK else [])])
def test_the_guide_leads_from_nothing_to_a_model(docker: Engine, folder: Path, base: str) -> None:
    work = work_folder(folder)
    images, *steps = BLOCKS
    assert len(steps) == 6
    if base == "beside":
        (work / "docker" / "base.Dockerfile").write_text(
            without_packages((work / "docker" / "base.Dockerfile").read_text(encoding="utf-8"))
        )
        shutil.copy(Path(sys.executable).parent / "uv", work / "uv")
        rules = work / ".dockerignore"
        rules.write_text(rules.read_text(encoding="utf-8") + "!uv\n")
        (work / "mounted.yaml").write_text(MOUNTED)
        steps = [step.replace("docker/compose.yaml", "docker/compose.yaml:mounted.yaml") for step in steps]
    docker.shell(images.replace("docker build", "docker build --quiet --network host"), work, timeout=1500)
    looks = {"SCANS": str(folder / "scans"), "STUDY": str(folder / "study.yaml"), "FEDWARD_SITE_CPUS": "1"}
    *before, launching, ending = steps
    train, end = ending.split("docker compose down")
    assert end.strip() == ""
    printed = docker.shell("".join(before), work, timeout=1500, **looks)
    assert "(healthy)" in printed
    try:
        # Each block goes on in the shell of the one before; here a new one, so what it had set is set again.
        printed = docker.shell(before[0].splitlines()[0] + "\n" + launching + train, work, timeout=1500, **looks)
        assert "approved until" in printed
        see_what_a_hospital_can(docker)
        see_how_health_is_told(docker)
    finally:
        docker.shell(before[0].splitlines()[0] + "\ndocker compose down --timeout 20", work, timeout=900, **looks)
    # The numbers of its simulation, in other processes, from other vaults.
    simulated = folder / "simulated"
    command = ["fedward", "simulate", "study.yaml", "--data", "data", "--arms", "federated", "--out", simulated]
    subprocess.run([Path(sys.executable).parent / command[0], *command[1:]], cwd=folder, check=True, timeout=900)
    results = work / "trial" / "coordinator" / "results"
    models = [next(path.glob("*.safetensors")).read_bytes() for path in (results, simulated)]
    assert models[0] == models[1], "other weights than in simulation"
    tests = [
        json.loads((path / "results.json").read_text())["arms"]["federated"]["test"] for path in (results, simulated)
    ]
    assert tests[0] == tests[1]


def see_what_a_hospital_can(docker: Engine) -> None:
    """Reach its coordinator and nobody else; write in its directory and nowhere else; listen nowhere; gain no right."""
    script = f"PEERS = {SITES[1:]!r}\n{PROBE}"
    seen = json.loads(docker.docker("exec", "fedward-trial-site-1-1", "python", "-c", script))
    assert seen["reached"].pop("coordinator") == "done"
    assert "done" not in seen["reached"].values(), seen["reached"]
    address = docker.docker(
        *("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "fedward-trial-site-2-1")
    ).strip()
    by_number = f"import socket; socket.create_connection(('{address}', 8443), 5)"
    with pytest.raises(AssertionError, match=r"unreachable|timed out"):
        docker.docker("exec", "fedward-trial-site-1-1", "python", "-c", by_number)
    written = {path for path, outcome in seen["written"].items() if outcome == "done"}
    assert written == {"/srv/fedward/x", "/tmp/x"}
    assert seen["listening"] == []
    status = seen["status"]
    assert status["Uid"].split() == [str(USER)] * 4
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert "vault" not in seen["environment"]
    bom = json.loads(docker.docker("exec", "fedward-trial-site-1-1", "cat", "/opt/fedward/share/sbom.cdx.json"))
    assert bom["bomFormat"] == "CycloneDX"
    assert bom["metadata"]["component"]["name"] == "fedward"


def see_how_health_is_told(docker: Engine) -> None:
    """The coordinator stops answering: a site is not healthy, and says why."""
    site = ("exec", "fedward-trial-site-1-1", "fedward", "site", "health")
    assert docker.docker(*site).startswith("online")
    docker.docker("stop", "--time", "20", "fedward-trial-coordinator-1")
    shell = f"while docker {' '.join(site)}; do sleep 1; done 2>&1; docker {' '.join(site)} 2>&1 || true"
    assert "unreachable" in docker.shell(shell, docker.folder / "home", timeout=600)
