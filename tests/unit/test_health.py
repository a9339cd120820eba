"""Health checks tell the truth: who is at work and heard is healthy, everybody else is not, with the reason."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from client import health
from client.health import PULSE, Pulse
from common.errors import Unhealthy
from server.coordinate import Running
from server.desk import STATUS, read_status
from server.health import judge as judge_coordinator
from server.provision import Coordinator
from tests.integration.services_keys import free_port

NOW = 1_000_000.0


@dataclass
class Link:
    state: str = "online"
    why: str = ""
    answered: float | None = None


def told(folder: Path, **changed: object) -> Path:
    facts = {"at": NOW - 1, "state": "online", "why": "", "answered": NOW - 4, **changed}
    (folder / PULSE).write_text(json.dumps(facts))
    return folder


def test_an_agent_that_is_heard_is_healthy(tmp_path: Path) -> None:
    assert health.judge(told(tmp_path), NOW) == "online, the coordinator answered 4 s ago"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"at": NOW - 31}, "killed or hangs"),
        ({"at": NOW + 31}, "killed or hangs"),  # left by one from before the clock was put back
        ({"answered": NOW - 91}, "answered 91 s ago"),
        ({"answered": None, "state": "connecting"}, "connecting, the coordinator has not answered yet"),
        ({"state": "unreachable", "why": "ConnectError"}, r"unreachable, .*\(ConnectError\); it tries again"),
        ({"state": "refused", "why": "unknown key"}, r"refuses this site \(unknown key\); call"),
        ({"answered": "yesterday"}, "cannot be read"),
    ],
)
def test_any_other_is_not_and_the_reason_is_told(tmp_path: Path, changed: dict[str, object], says: str) -> None:
    with pytest.raises(Unhealthy, match=says):
        health.judge(told(tmp_path, **changed), NOW)


def test_a_pulse_follows_the_connection_and_ends_with_the_agent(tmp_path: Path) -> None:
    link = Link(answered=time.time())
    with Pulse(tmp_path, link, beat_s=0.05):
        wait(lambda: (tmp_path / PULSE).exists())
        assert health.judge(tmp_path, time.time()).startswith("online")
        assert (tmp_path / PULSE).stat().st_mode & 0o077 == 0
        link.state = "unreachable"
        wait(lambda: "unreachable" in (tmp_path / PULSE).read_text())
    with pytest.raises(Unhealthy, match="no agent runs here"):
        health.judge(tmp_path, time.time())


def test_a_pulse_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    with Pulse(tmp_path / "gone", Link(), beat_s=0.01) as pulse:
        time.sleep(0.1)
        assert pulse._thread.is_alive()


def test_a_coordinator_is_healthy_while_sites_can_connect(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    coordinator = Coordinator.init(tmp_path / "hub", name="trial", address=address, listen=address, also=[])
    with pytest.raises(Unhealthy, match="not running"):
        judge_coordinator(coordinator, time.time())
    stop = threading.Event()
    running = Running(coordinator, tick_s=0.1)
    thread = threading.Thread(target=running.run, kwargs={"stop": stop})
    thread.start()
    try:
        wait(lambda: read_status(coordinator.directory) is not None)
        assert judge_coordinator(coordinator, time.time()) == "up, 0 of 0 sites online"
        with pytest.raises(Unhealthy, match="said nothing for 60 s"):
            judge_coordinator(coordinator, time.time() + 60)
        # Its port no longer answers as a coordinator does, though its process goes round.
        running.fleet.stop()
        with pytest.raises(Unhealthy, match="nothing answers"):
            judge_coordinator(coordinator, time.time())
        with socket.create_server(("127.0.0.1", running.fleet.port)), pytest.raises(Unhealthy, match="nothing answers"):
            judge_coordinator(coordinator, time.time())  # connected, and then silence
    finally:
        stop.set()
        thread.join()
    (coordinator.directory / STATUS).unlink()
    with pytest.raises(Unhealthy, match="not running"):
        judge_coordinator(coordinator, time.time())


def test_a_certificate_that_sites_refuse_is_noticed(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    coordinator = Coordinator.init(tmp_path / "hub", name="trial", address=address, listen=address, also=[])
    other = Coordinator.init(tmp_path / "other", name="trial", address=address, listen=address, also=[])
    stop = threading.Event()
    thread = threading.Thread(target=Running(coordinator, tick_s=0.1).run, kwargs={"stop": stop})
    thread.start()
    try:
        wait(lambda: read_status(coordinator.directory) is not None)
        coordinator.authority_path.write_bytes(other.authority_path.read_bytes())
        with pytest.raises(Unhealthy, match="do not trust"):
            judge_coordinator(coordinator, time.time())
    finally:
        stop.set()
        thread.join()


def wait(ready: Callable[[], bool]) -> None:
    ends = time.monotonic() + 60.0
    while not ready():
        assert time.monotonic() < ends
        time.sleep(0.02)
