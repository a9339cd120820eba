"""What a site's people see and are told: the agent's state, studies that wait, the way to the coordinator."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from client import doctor
from client.agent import Agent
from client.agent_cli import check, status
from client.alarms import Alarms
from client.federation import Membership
from client.health import Pulse
from client.home import Home
from client.reach import reach
from client.situation import describe, look
from common import protocol
from common.alerts import Board
from server.superlink import Fleet
from tests.unit import federation as fed
from tests.unit.test_agent import OURS, Site
from tests.unit.test_alerts import Receiver, until
from tests.unit.test_approvals import by_hand


@dataclass
class Link:
    state: str = "online"
    why: str = ""
    answered: float | None = None


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    assert fed.TINY  # and Flower's task identity is set
    made = Site(tmp_path)
    yield made
    made.agent.close()


def read(site: Site) -> str:
    at = time.time()
    return "\n".join(describe(look(site.home, at), at))


def test_a_sites_status_at_each_moment(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    text = read(site)
    assert "agent: does not run" in text
    assert "critical: the agent does not run" in text
    assert "next: `fedward site up`" in text
    assert check(site.home.directory) == 2
    with Pulse(site.home.state, Link(answered=time.time()), beat_s=0.02, work=site.agent.doing):
        until(lambda: look(site.home, time.time())["agent"] == "runs")
        assert check(site.home.directory) == 0
        site.survey()
        text = read(site)
        assert "agent: runs; online, the coordinator answered" in text
        assert "(tiny): waits for an approval as operator" in text
        assert "next: `fedward site show " in text
        assert check(site.home.directory) == 1
        site.approve()
        site.train()
        until(lambda: "last reply: training round 1 of tiny" in read(site))
        site.decide(lambda found: found.pause(by="Ann"))
        assert "paused by Ann: no study works" in read(site)
        capsys.readouterr()
        status(site.home.directory, as_json=True)
        facts = json.loads(capsys.readouterr().out)
        assert facts["work"]["last"]["round"] == 1
        assert facts["agent"] == "runs"
        assert facts["alerts"] == []


def test_a_sites_alerts_go_to_its_webhook_once(site: Site) -> None:
    now = [time.time()]
    with Receiver(200) as there:
        text = (site.home.directory / "site.yaml").read_text() + f"webhook: {{url: '{there.url}'}}\n"
        (site.home.directory / "site.yaml").write_text(text)
        home = Home.open(site.home.directory)
        link = Link(answered=now[0])
        with Alarms(home, link, clock=lambda: now[0]) as alarms:
            alarms.look()
            site.survey()
            for _ in range(5):
                now[0] += 60
                alarms.look()
            until(lambda: len(there.got) == 1)
            now[0] += 13 * 3600
            alarms.look()
            link.answered = now[0]
            site.approve()
            now[0] += 60
            alarms.look()
            until(lambda: len(there.got) == 4)
    assert sorted(text.partition(":")[0] for text in there.texts[2:]) == ["over", "over"]
    assert "the study tiny waits for a decision" in there.texts[0]
    assert "the coordinator has not answered for 13 hours" in there.texts[1]


def test_a_clock_that_was_set_back_keeps_no_alert_back(site: Site) -> None:
    now, told = [time.time()], list[dict[str, Any]]()
    with Alarms(site.home, Link(answered=now[0]), clock=lambda: now[0]) as alarms:
        alarms._board = Board("north", told.append)
        alarms.look()
        site.survey()
        now[0] -= 86_400.0
        alarms.look()
    assert [one["kind"] for one in told] == ["approval-waits"]


def test_a_study_that_this_version_cannot_read_stops_neither_agent_nor_alerts(site: Site) -> None:
    site.survey()
    site.approve()
    site.train()
    by_hand(site.home, "UPDATE study SET text = ?", OURS.canonical().decode().replace("epochs", "eras"))
    site.agent.close()
    site.agent = Agent(site.home)
    told = list[dict[str, Any]]()
    other = protocol.SurveyRequest(protocol.Task(OURS.derive(seed=99)))
    site.send(other)
    with Alarms(site.home, Link(answered=time.time())) as alarms:
        alarms._board = Board("north", told.append)
        alarms.look()
        by_hand(site.home, "UPDATE decision SET federation = '{}'")
        alarms._next = 0.0
        alarms.look()
        assert "TypeError" in alarms._trouble
    assert [one["kind"] for one in told] == ["approval-waits"]


def test_doctor_tries_the_way_to_the_coordinator(site: Site, tmp_path: Path) -> None:
    membership = Membership.open(site.home)
    nobody = reach(membership)
    assert "the connection fails" in nobody.problem
    levels = {(one.about, one.level) for one in doctor.examine(site.home.directory)}
    assert ("network", "warn") in levels
    made = site.coordinator
    host, _, port = membership.address.rpartition(":")
    with Fleet({}, host=host, port=int(port), certificate=made.certificate_path, key=made.server_key_path):
        reached = reach(membership)
        assert reached.problem == ""
        assert reached.clock_s is not None
        assert abs(reached.clock_s) < 60
        behind = reach(membership, clock=lambda: time.time() - 3600).clock_s
        assert behind is not None
        assert behind < -3500
    pki = type(made).init(tmp_path / "other", name="x", address=membership.address, listen=membership.address)
    with Fleet({}, host=host, port=int(port), certificate=pki.certificate_path, key=pki.server_key_path):
        assert "a certificate of another authority" in reach(membership).problem
