"""What the container and service files promise, read from the files; tests/integration/test_containers.py runs them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import IN_CI

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
BIN = Path(sys.executable).parent
IMAGES = ("site", "coordinator")
HOSPITALS = ("site-1", "site-2", "site-3")
COMPOSITIONS = (
    ("compose.yaml",),
    ("compose.site.yaml",),
    ("compose.site.yaml", "compose.gpu.yaml"),
    ("compose.coordinator.yaml",),
)


def composed(*files: str) -> dict[str, Any]:
    """The whole model as Compose reads it, with nothing set in the environment."""
    names = [word for file in files for word in ("-f", str(DOCKER / file))]
    done = subprocess.run(
        [BIN / "docker-compose", *names, "config", "--format", "json"],
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "warn" not in done.stderr, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def instructions(name: str) -> list[tuple[str, str]]:
    """Keyword and rest of each instruction of a Dockerfile."""
    text = re.sub(r"^#.*\n", "", (DOCKER / f"{name}.Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(None, 1)[1]) for line in lines if line.strip()]


def test_hadolint_finds_nothing() -> None:
    done = subprocess.run(
        [BIN / "hadolint", "--no-color", *DOCKER.glob("*.Dockerfile")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("files", COMPOSITIONS, ids=" and ".join)
def test_every_service_is_confined(files: tuple[str, ...]) -> None:
    found = composed(*files)
    for name, service in found["services"].items():
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service["user"]), name
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "cap_add" not in service and "privileged" not in service
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["init"] is True
        assert not any((service["ulimits"]["core"] or {}).values()), "Compose writes 0 as nothing"
        limits = service["deploy"]["resources"]["limits"]
        assert {"cpus", "memory", "pids"} <= set(limits)
        assert service["logging"]["options"]["max-size"]
        assert [volume["target"] for volume in service["volumes"]] == ["/srv/fedward"]
        assert all("noexec" in mount for mount in service["tmpfs"])
        for mode in ("network_mode", "pid", "ipc", "devices"):
            assert mode not in service
    for secret in found.get("secrets", {}).values():
        assert set(secret) <= {"name", "file"}, "a secret comes as a file, never by the environment"


@pytest.mark.parametrize("files", COMPOSITIONS, ids=" and ".join)
def test_no_key_comes_by_the_environment_and_no_site_opens_a_port(files: tuple[str, ...]) -> None:
    for name, service in composed(*files)["services"].items():
        assert not re.search("key|secret|password|token|passphrase", " ".join(service.get("environment", {})), re.I)
        if name != "coordinator":
            assert "ports" not in service and "expose" not in service
            assert [Path(secret.get("target", secret["source"])).name for secret in service["secrets"]] == ["vault.key"]


def test_hospitals_meet_the_coordinator_only() -> None:
    found = composed("compose.yaml")
    services = found["services"]
    assert set(services) == {"coordinator", *HOSPITALS}
    for one, other in combinations(HOSPITALS, 2):
        assert not set(services[one]["networks"]) & set(services[other]["networks"])
    for site in HOSPITALS:
        assert set(services[site]["networks"]) < set(services["coordinator"]["networks"])
        assert services[site]["depends_on"]["coordinator"]["condition"] == "service_healthy"
    assert all(network["internal"] for network in found["networks"].values())
    sources = [secret["source"] for site in HOSPITALS for secret in services[site]["secrets"]]
    assert len(set(sources)) == len(HOSPITALS), "each hospital has a key of its own"


def test_a_real_coordinator_opens_one_port_and_a_gpu_goes_to_the_site() -> None:
    (port,) = composed("compose.coordinator.yaml")["services"]["coordinator"]["ports"]
    assert (port["target"], port["published"]) == (8443, "8443")
    site = composed("compose.site.yaml", "compose.gpu.yaml")["services"]["site"]
    (device,) = site["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    assert "OMP_NUM_THREADS" in site["environment"], "overrides are merged, not put in place"


@pytest.mark.parametrize("name", ("base", *IMAGES))
def test_images_end_as_a_number_that_is_not_root(name: str) -> None:
    steps = instructions(name)
    assert [rest for keyword, rest in steps if keyword == "USER"][-1] == "10001:10001"
    assert not [rest for keyword, rest in steps if keyword == "ADD"]
    for keyword, rest in steps:
        if keyword in ("ARG", "ENV"):
            assert not re.search("key|secret|password|token", rest.split("PATH")[0], re.I), rest
        if keyword == "RUN" and "pip install" in rest:
            for command in re.findall(r"pip install[^&]*", rest):
                assert "--require-hashes" in command or ("--no-deps" in command and "--offline" in command), command


@pytest.mark.parametrize("name", IMAGES)
def test_both_images_stand_on_one_base_and_check_their_health(name: str) -> None:
    steps = instructions(name)
    stages = [rest for keyword, rest in steps if keyword == "FROM"]
    assert stages == ["${BASE} AS build", "${BASE}"]
    assert ("ARG", "BASE=fedward-base") in steps
    (health,) = [rest for keyword, rest in steps if keyword == "HEALTHCHECK"]
    assert f'CMD ["fedward", "{name}", "health"]' in health
    last = instructions(name)
    assert ("ENTRYPOINT", '["fedward"]') in last
    # What is installed, and the list of it, is made by the very same steps: one layer for both.
    builds = [[step for step in instructions(one) if step[0] in ("COPY", "RUN")] for one in IMAGES]
    assert builds[0] == builds[1]


def test_the_builder_gets_the_code_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = {rule[1:].removesuffix("/**") for rule in rules if rule.startswith("!")}
    needed = {
        word
        for name in ("base", *IMAGES)
        for keyword, rest in instructions(name)
        if keyword == "COPY" and "--from" not in rest
        for word in rest.split()[:-1]
    }
    assert allowed == needed


@pytest.mark.parametrize("unit", ["fedward-site@.service", "fedward-coordinator.service"])
def test_units_are_valid_and_hardened(unit: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        if IN_CI:
            pytest.fail("systemd-analyze is missing; .ci/run should have installed it")
        pytest.skip("systemd-analyze is not installed")
    text = (DOCKER / "systemd" / unit).read_text(encoding="utf-8")
    (tmp_path / unit).write_text(re.sub("ExecStart=[^ ]+", "ExecStart=/bin/true", text))
    for command in (["verify"], ["security", "--no-pager", "--offline=true", "--threshold=20"]):
        done = subprocess.run(
            ["systemd-analyze", *command, f"./{unit}"], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if command == ["verify"]:
            assert done.stderr == ""
