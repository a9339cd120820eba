"""A coordinator and hospitals in processes of their own, over TLS on loopback, quick of pace."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from client.approvals import Approvals
from client.federation import join, join_request
from client.home import Home
from client.ingest.pseudonyms import Pseudonyms
from client.judgement import Record as Record_
from client.vault.store import Record
from server.provision import Coordinator
from tests.integration.services_keys import free_port

ROOT = Path(__file__).resolve().parents[2]
STUDY = """\
name: tiny
task: binary
classes: [normal, pneumonia]
seed: 7
image: {size: 24}
model: {name: cnn, norm: group, params: {filters: [4, 4], hidden: [8]}}
training: {batch_size: 8}
federation: {rounds: 4, deadline_s: 60}
evaluation: {bootstrap: 100, min_cell: 10}
"""

# As `fedward coordinator up` and `fedward site up`, but for the pauses.
UP = """
import logging, signal, sys, threading
from pathlib import Path
logging.basicConfig(level=logging.INFO, format="%(message)s")
from server.coordinate import Running
from server.provision import Coordinator
from server.reporting import write_pages
stop = threading.Event()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: stop.set())
coordinator = Coordinator.open(Path(sys.argv[1]))
report = {"report": write_pages} if "report" in sys.argv else {}  # a page takes a second
running = Running(coordinator, tick_s=0.1, patience_s=float(sys.argv[2]), pause_s=0.3, **report)
running.run(stop=stop, resume="resume" in sys.argv)
"""
AGENT = """
import logging, signal, sys, threading, time
from pathlib import Path
logging.basicConfig(level=logging.INFO, format="%(message)s")
from client import agent
from client.fleet import Pace
from client.home import Home
from client.judgement import Record as Record_
stop = threading.Event()
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: stop.set())
pace = Pace(quick_s=0.05, idle_s=0.2, heartbeat_s=10.0, retry_s=(0.1, 0.5), connect_s=2.0, silence_s=10.0)
slow = float(sys.argv[2])
if slow:  # as a real model would be, so that there is time to be killed in
    work = agent.handle
    agent.handle = lambda *arguments, **named: (time.sleep(slow), work(*arguments, **named))[1]
agent.run(Home.open(Path(sys.argv[1])), stop=stop, pace=pace)
"""


def fill(home: Home, images: int, seed: int) -> None:
    """Pictures of patients; half of them with a bright spot, which is what the model is to find."""
    rng = np.random.default_rng(seed)
    with home.exclusive(), home.vault() as vault:
        pseudonyms = Pseudonyms(vault.secret)
        records = []
        for number in range(images):
            pixels = rng.integers(0, 120, (28, 28)).astype(np.uint8)
            if number % 2:
                pixels[8:18, 8:18] += 90
            split = ("train", "train", "train", "val", "test")[number // 2 % 5]
            labels = {"label": ("pneumonia" if number % 2 else "normal",), "sex": ("FM"[number // 10 % 2],)}
            records.append(Record(pixels, pseudonyms.patient(f"{seed}/{number}"), labels, split))
        vault.add(records)
        home.witness.note(vault)
        home.seal(vault)


@dataclass
class Federation:
    """Its directories, and the processes that run now."""

    folder: Path
    port: int
    sites: tuple[str, ...]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    inside: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What stands before a process's command, for example ``ip netns exec``."""
    prelude: str = ""
    """Python that each process runs first; ``WHO`` is its name."""

    @classmethod
    def make(cls, folder: Path, *sites: str, images: int = 120, host: str = "127.0.0.1", **more: Any) -> Federation:
        """Provisioned: every site has joined. The coordinator listens on ``host``."""
        port = free_port()
        address = f"{host}:{port}"
        coordinator = Coordinator.init(folder / "coordinator", name="trial", address=address, listen=address, also=[])
        for number, alias in enumerate(sites, start=1):
            home = Home.init(folder / alias, alias=alias, synthetic=True)
            fill(home, images, number)
            kit = coordinator.admit(join_request(home).read_bytes())
            join(home, kit, coordinator=coordinator.key.public.fingerprint)
        return cls(folder, port, sites, **more)

    @property
    def coordinator(self) -> Coordinator:
        return Coordinator.open(self.folder / "coordinator")

    def home(self, alias: str) -> Home:
        return Home.open(self.folder / alias)

    def up(self, *arguments: object, patience: float = 1.0) -> None:
        self._start("coordinator", UP, self.folder / "coordinator", patience, *arguments)

    def agent(self, alias: str, slow: float = 0.0) -> None:
        self._start(alias, AGENT, self.folder / alias, slow)

    def _start(self, name: str, script: str, *arguments: object) -> None:
        script = f"WHO = {name!r}\n{self.prelude}\n{script}"
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                [*self.inside.get(name, ()), sys.executable, "-c", script, *map(str, arguments)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=log,
            )

    def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; the exit code."""
        process = self.running.pop(name)
        process.send_signal(number)
        return process.wait(60)

    def launch(self, text: str = STUDY, *, survey_only: bool = False) -> str:
        """The new run's name."""
        from server import run_cli

        (self.folder / "study.yaml").write_text(text)
        run_cli.launch(self.folder / "study.yaml", self.folder / "coordinator", survey_only=survey_only)
        return sorted(path.name for path in (self.folder / "coordinator" / "runs").iterdir())[-1]

    def run(self, name: str) -> Path:
        return self.folder / "coordinator" / "runs" / name

    def facts(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run(name) / "run.json").read_text())
        return found

    def events(self, name: str) -> list[dict[str, Any]]:
        path = self.run(name) / "events.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def record(self, alias: str, name: str) -> tuple[Approvals, Record_]:
        """The study of a run at a site, when it has come; close the first."""
        approvals, wanted = Approvals(self.home(alias)), self.facts(name)["hash"]

        def found() -> list[Record_]:
            return [record for record in approvals.records() if record.hash == wanted]

        wait_for(lambda: bool(found()), f"the study at {alias}", self)
        return approvals, found()[0]

    def approve(self, name: str, *sites: str) -> None:
        """As the sites' people do, when the study of the run has come."""
        for alias in sites:
            approvals, record = self.record(alias, name)
            approvals.approve(record, role="operator", by="Ann")
            approvals.close()

    def state(self, name: str, *wanted: str, timeout_s: float = 200.0) -> dict[str, Any]:
        """Wait until the run is in one of these states."""
        wait_for(lambda: self.facts(name)["state"] in wanted, f"{name} to be {wanted}", self, timeout_s)
        return self.facts(name)

    def delivered(self, name: str) -> dict[str, str]:
        """Alias -> whether it has the run's model."""
        path = self.run(name) / "delivery.json"
        return {alias: one["state"] for alias, one in json.loads(path.read_bytes()).items()} if path.exists() else {}

    def rounds(self, name: str) -> int:
        return sum(event["event"] == "round" for event in self.events(name))

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""


def wait_for(ready: Callable[[], bool], what: str, federation: Federation, timeout_s: float = 150.0) -> None:
    """Poll; on a timeout, all logs are shown."""
    ends = time.monotonic() + timeout_s
    while time.monotonic() < ends:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            if ready():
                return
        time.sleep(0.05)
    logs = "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in federation.folder.glob("*.log"))
    raise AssertionError(f"waited {timeout_s} s for {what}\n{logs}")


@contextlib.contextmanager
def federation(folder: Path, sites: Sequence[str], **options: Any) -> Iterator[Federation]:
    """Nothing of it is left running."""
    made = Federation.make(folder, *sites, **options)
    try:
        yield made
    finally:
        for process in made.running.values():
            process.kill()
            process.wait()
