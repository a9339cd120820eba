"""A Docker engine of a test's own, and a base image without a registry. Needs root; nothing of it is left."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import IN_CI

ROOT = Path(__file__).resolve().parents[2]
PYTHON = "python:3.11-slim-bookworm"
USER = 10001
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
_NEEDED = ("dockerd", "containerd", "mmdebstrap", "iptables-save", "iptables-restore")


@dataclass(frozen=True)
class Engine:
    """A running engine. Its client does what it does as an ordinary user, number 10001."""

    folder: Path

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            # Before any other client that may be there: it came with the engine and has a builder.
            "PATH": os.pathsep.join(("/usr/bin", "/bin", "/usr/sbin", "/sbin")),
            "HOME": str(self.folder / "home"),
            "DOCKER_HOST": f"unix://{self.folder}/d.sock",
            "DOCKER_CONFIG": str(self.folder / "home"),
            "DOCKER_BUILDKIT": "1",
        }

    def shell(self, script: str, folder: Path, *, timeout: float, **environment: str) -> str:
        """Run lines of a guide in ``folder``; what they print. Fails with all of it where one of them does."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=folder,
            env={**self.environment, **environment},
            user=USER,
            group=USER,
            extra_groups=[],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def docker(self, *arguments: str) -> str:
        """One command of the client; what it prints."""
        done = subprocess.run(
            ["docker", *arguments], env=self.environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@contextlib.contextmanager
def engine(folder: Path) -> Iterator[Engine]:
    """Start one below ``folder``, with a base image of Debian's Python; firewall rules are put back at the end."""
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        why = f"missing: {', '.join(missing)}" if missing else "an engine needs root"
        if IN_CI:
            pytest.fail(f"{why}; .ci/run should have seen to it")
        pytest.skip(why)
    folder.chmod(0o711)
    plugins = folder / "home" / "cli-plugins"
    plugins.mkdir(parents=True)
    (plugins / "docker-compose").symlink_to(Path(sys.executable).parent / "docker-compose")
    os.chown(folder / "home", USER, USER)
    rules, forwarding = _rules(), FORWARDING.read_text()
    made = Engine(folder)
    with (folder / "dockerd.log").open("wb") as log:
        command = ["dockerd", "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec"]
        command += ["--pidfile", f"{folder}/pid", "--host", f"unix://{folder}/d.sock", "--group", str(USER)]
        process = subprocess.Popen(
            [*command, "--bridge", "none", "--default-ulimit", "nofile=8192:8192"],
            env={**os.environ, "PATH": made.environment["PATH"]},
            stdout=log,
            stderr=log,
        )
    try:
        _wait(made, process)
        _import_python(folder, made)
        yield made
    finally:
        _end(made, process)
        subprocess.run(["iptables-restore"], input=rules, text=True, check=True)
        FORWARDING.write_text(forwarding)
        shutil.rmtree(folder, ignore_errors=True)


def _rules() -> str:
    """The firewall's rules for ``iptables-restore``, which leaves a table alone that it is not told of."""
    found = subprocess.run(["iptables-save"], check=True, capture_output=True, text=True).stdout
    for table, chains in (("filter", "INPUT FORWARD OUTPUT"), ("nat", "PREROUTING INPUT OUTPUT POSTROUTING")):
        if f"*{table}\n" not in found:
            found += f"*{table}\n" + "".join(f":{chain} ACCEPT [0:0]\n" for chain in chains.split()) + "COMMIT\n"
    return found


def _end(made: Engine, process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(AssertionError):  # it never came up
        for container in made.docker("ps", "--all", "--quiet").split():
            made.docker("rm", "--force", container)
        made.docker("network", "prune", "--force")
    process.terminate()
    try:
        process.wait(180)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait(made: Engine, process: subprocess.Popen[bytes]) -> None:
    ends = time.monotonic() + 60.0
    while True:
        try:
            made.docker("version")
            return
        except AssertionError:
            log = (made.folder / "dockerd.log").read_text(errors="replace")[-3000:]
            assert process.poll() is None and time.monotonic() < ends, log
            time.sleep(0.2)


def _import_python(folder: Path, made: Engine) -> None:
    """Debian with Python under the name of the image that the Dockerfiles ask for, trusting whom this host trusts."""
    tar = folder / "python.tar"
    subprocess.run(
        [
            *("mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates,python3,python3-venv"),
            f"--customize-hook=copy-in {AUTHORITIES} {AUTHORITIES.parent}",
            *("bookworm", str(tar)),
        ],
        check=True,
        timeout=900,
    )
    made.docker("import", str(tar), PYTHON)
    tar.unlink()
