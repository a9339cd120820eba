"""Stock Flower from end to end: its SuperLink, its SuperNodes, our thin FAB; TLS and node authentication.

The less safe way (docs/coordinator.md): nobody at a hospital is asked, so a hospital's site must say that it wants it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from flwr.app import Context, RecordDict

from client.approvals import Approvals
from client.federation import join, join_request
from client.home import Home
from client.policy import POLICY_FILE
from client.stock import locate_by_config, permit
from common import protocol
from common.errors import PolicyError
from common.study import Study
from server.provision import Coordinator
from tests.integration.federation_fixtures import STUDY, fill
from tests.integration.fleet_fixtures import Authority, new_key
from tests.integration.services_keys import free_port
from tests.unit import federation as fed

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
OURS = Study.parse(STUDY)
SITES = ("north", "south")

# What a coordinator writes for stock Flower: no code, only the names of installed apps, and the study.
APP = """\
[project]
name = "thorax"
version = "1.0.0"
description = "A study for stock Flower"
license = {file = "LICENSE"}
dependencies = ["flwr>=1.41,<1.42"]

[tool.flwr.app]
publisher = "hub"
fab-format-version = 1
flwr-version-target = "1.41.0"
fab-include = ["LICENSE", "study.yaml"]

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"

[tool.flwr.app.config]
study = ""
run = ""
"""


def opened_to_stock(home: Home, allow: bool = True) -> None:
    path = home.directory / POLICY_FILE
    path.write_text(path.read_text().replace("stock_flower: false", f"stock_flower: {str(allow).lower()}"))


class Stock:
    """A SuperLink and SuperNodes, each a process group of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.authority = Authority.make(folder / "pki")
        (folder / "flwr").mkdir()
        (folder / "flwr" / "config.toml").write_text(
            f'[superlink]\ndefault = "hub"\n\n[superlink.hub]\naddress = "127.0.0.1:{self.port}"\n'
            f'root-certificates = "{self.authority.ca}"\n'
        )
        self.processes: list[subprocess.Popen[bytes]] = []
        self.environment: Mapping[str, str] = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(folder / "flwr"),
            "HOME": str(folder),
            "OMP_NUM_THREADS": "1",
        }

    def start(self, name: str, *command: object) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes.append(
                subprocess.Popen(
                    [str(part) for part in command],
                    env=dict(self.environment),
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )

    def superlink(self) -> None:
        pki = self.authority
        self.start(
            "superlink", BIN / "flower-superlink", "--ssl-certfile", pki.path("server.crt"),
            "--ssl-keyfile", pki.path("server.key"), "--ssl-ca-certfile", pki.ca, "--enable-supernode-auth",
            "--disable-runtime-dependency-installation", "--host", "127.0.0.1", "--port", self.port,
        )  # fmt: skip
        self.wait("the SuperLink", lambda: self.flwr("supernode", "list", "hub").returncode == 0)

    def supernode(self, home: Home) -> None:
        key = new_key()
        private, public = (self.folder / f"{home.config.alias}{end}" for end in (".key", ".pub"))
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        public.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
        done = self.flwr("supernode", "register", public, "hub", "--name", home.config.alias)
        assert done.returncode == 0, done.stdout + done.stderr
        self.start(
            home.config.alias, BIN / "flower-supernode", "--root-certificates", self.authority.ca,
            "--superlink", f"127.0.0.1:{self.port}", "--auth-supernode-private-key", private,
            "--node-config", f'site-dir="{home.directory}"', "--port", free_port(),
        )  # fmt: skip

    def flwr(self, *arguments: object, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(BIN / "flwr"), *map(str, arguments)],
            env=dict(self.environment), capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    def wait(self, what: str, ready: object, seconds: float = 90.0) -> None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            if ready():  # type: ignore[operator]
                return
            time.sleep(0.3)
        raise AssertionError(f"no {what} within {seconds} s\n{self.logs()}")

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-5000:]}" for path in sorted(self.folder.glob("*.log")))

    def end(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            for process in self.processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(15 if number == signal.SIGTERM else None)


@pytest.fixture
def stock(tmp_path: Path) -> Iterator[Stock]:
    made = Stock(tmp_path)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def homes(tmp_path: Path) -> dict[str, Home]:
    made = {}
    for number, alias in enumerate(SITES, start=1):
        made[alias] = Home.init(tmp_path / "sites" / alias, alias=alias, synthetic=True)
        fill(made[alias], 120, number)
    return made


@pytest.mark.soak  # a fresh Python for every message: minutes for one round
@pytest.mark.timeout(900)
def test_stock_supernodes_train_a_study_of_a_thin_fab(stock: Stock, homes: dict[str, Home], tmp_path: Path) -> None:
    app = tmp_path / "thorax"
    app.mkdir()
    (app / "pyproject.toml").write_text(APP)
    (app / "study.yaml").write_text(STUDY.replace("rounds: 4", "rounds: 1"))
    shutil.copy(ROOT / "LICENSE", app)
    stock.superlink()
    for home in homes.values():
        opened_to_stock(home)
        stock.supernode(home)
    stock.wait("SuperNodes", lambda: stock.flwr("supernode", "list", "hub").stdout.count("online") == len(SITES))
    run = tmp_path / "run"
    began = time.monotonic()
    done = stock.flwr("run", app, "hub", "--run-config", f'study="{app / "study.yaml"}" run="{run}"')
    assert done.returncode == 0, done.stdout + done.stderr
    stock.wait("results", (run / "results.json").exists, 600.0)
    print(f"one round and the test: {time.monotonic() - began:.0f} s")
    found = json.loads((run / "results.json").read_text())
    assert sorted(found["arms"]["federated"]["sites"]) == list(SITES)
    assert (run / "model.safetensors").stat().st_size > 0
    for home in homes.values():
        assert [entry.facts["name"] for entry in home.audit.entries() if entry.event == "study-used"] == ["tiny"]


def test_a_hospitals_site_is_closed_to_stock_flower_unless_its_policy_says_otherwise(
    homes: dict[str, Home], tmp_path: Path
) -> None:
    home = homes["north"]
    node = Context(1, 1, {"site-dir": str(home.directory)}, RecordDict(), {})
    assert locate_by_config(node) == home.directory
    with pytest.raises(PolicyError, match="does not allow stock Flower") as refused:
        permit(home.directory, OURS)
    assert refused.value.code == "policy-objects"
    opened_to_stock(home)
    permit(home.directory, OURS)
    with pytest.raises(PolicyError, match=r"federation\.rounds is 999"):
        permit(home.directory, OURS.derive(**{"federation.rounds": 999}))
    approvals = Approvals(home)
    approvals.pause(by="Ann")
    with pytest.raises(PolicyError, match="paused"):
        permit(home.directory, OURS)
    approvals.resume(by="Ann")
    approvals.close()
    policy = home.directory / POLICY_FILE
    whole = policy.read_text()
    policy.unlink()
    with pytest.raises(PolicyError, match="is missing, so nothing is allowed"):
        permit(home.directory, OURS)
    policy.write_text(whole)
    coordinator = Coordinator.init(tmp_path / "hub", name="t", address="127.0.0.1:9", listen="127.0.0.1:9", also=[])
    kit = coordinator.admit(join_request(home).read_bytes())
    join(home, kit, coordinator=coordinator.key.public.fingerprint)
    with pytest.raises(PolicyError, match="has joined a federation"):
        permit(home.directory, OURS)


def test_the_app_that_stock_flower_loads_asks_that_policy(homes: dict[str, Home]) -> None:
    """Not only the function: the object that the FAB names."""
    from client.app import app

    home = homes["south"]
    node = Context(1, 1, {"site-dir": str(home.directory)}, RecordDict(), {})
    asked = fed.request(protocol.seal(protocol.SurveyRequest(protocol.Task(OURS))).content, protocol.SURVEY)
    reply = protocol.open_reply(app(asked, node))
    assert isinstance(reply, protocol.Refusal) and reply.code == "policy-objects"
    opened_to_stock(home)
    assert isinstance(protocol.open_reply(app(asked, node)), protocol.SurveyReply)
