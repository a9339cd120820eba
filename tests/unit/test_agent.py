"""The agent's answers: who must have said yes, what is sent again, what is never done."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from client import agent as agents
from client.agent import Agent
from client.approvals import Approvals
from client.federation import join, join_request
from client.fleet import Pace, _Agent
from client.home import Home
from client.policy import POLICY_FILE, TEMPLATE
from common import protocol
from common.basis import Basis
from common.errors import ProtocolError, VaultError
from common.models import build_initial
from common.protocol import messages
from common.study import Study
from common.survey import Survey
from common.weights import digest, state_of
from server.asking import _opened as opened
from server.asking import may_yet
from server.provision import Coordinator
from tests.integration.federation_fixtures import STUDY, fill
from tests.integration.services_keys import free_port
from tests.unit import federation as fed

PASSPHRASE = "correct horse battery"
OURS = Study.parse(STUDY)


class Site:
    """A site that has joined, its coordinator, and the messages between them."""

    def __init__(self, folder: Path, images: int = 120, **options: object) -> None:
        address = f"127.0.0.1:{free_port()}"
        self.coordinator = Coordinator.init(folder / "hub", name="trial", address=address, listen=address, also=[])
        self.home = Home.init(folder / "north", alias="north", synthetic=True, **options)  # type: ignore[arg-type]
        fill(self.home, images, 1)
        kit = self.coordinator.admit(join_request(self.home).read_bytes())
        join(self.home, kit, coordinator=self.coordinator.key.public.fingerprint)
        self.agent = Agent(self.home)
        model, _ = build_initial(OURS, 1, Path())
        self.weights = state_of(model)

    def send(self, request: protocol.Request) -> protocol.Reply:
        return protocol.open_reply(self.agent.answer(self.message(request)))

    def message(self, request: protocol.Request) -> Message:
        return protocol.seal(request).to(1, 60.0)

    def survey(self, study: Study = OURS, roster: bytes | None = None) -> protocol.Reply:
        signed = self.coordinator.signed_roster if roster is None else roster
        return self.send(protocol.SurveyRequest(protocol.Task(study), signed))

    def task(self, study: Study, **more: Any) -> protocol.Task:
        return protocol.Task(study, roster=self.coordinator.roster.hash, **more)

    def train(self, round_: int = 1, shift: float = 0.0, **task: object) -> protocol.Reply:
        weights = {name: np.asarray(value + np.asarray(shift, value.dtype)) for name, value in self.weights.items()}
        task = {"roster": self.coordinator.roster.hash, **task}
        return self.send(protocol.TrainRequest(protocol.Task(OURS, round=round_, **task), weights))  # type: ignore[arg-type]

    def decide(self, act: Callable[[Approvals], object]) -> None:
        approvals = Approvals(self.home)
        act(approvals)
        approvals.close()

    def approve(self) -> None:
        self.decide(lambda found: found.approve(found.records()[0], role="operator", by="Ann"))

    def events(self, event: str) -> list[dict[str, object]]:
        return [dict(entry.facts) for entry in self.home.audit.entries() if entry.event == event]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    assert fed.TINY  # and Flower's task identity is set
    made = Site(tmp_path)
    yield made
    made.agent.close()


def refused(reply: protocol.Reply) -> str:
    assert isinstance(reply, protocol.Refusal), reply
    return reply.code


def test_nothing_is_done_before_people_have_said_yes(site: Site) -> None:
    assert refused(site.train()) == "approval-pending"
    assert refused(site.survey()) == "approval-pending"
    site.approve()
    assert site.survey() == protocol.SurveyReply("north", {"train": 72, "val": 24, "test": 24}, site.survey().program)  # type: ignore[union-attr]
    assert isinstance(site.train(), protocol.TrainReply)
    other = OURS.derive(**{"federation.rounds": 5})
    assert refused(site.survey(other)) == "approval-pending", "one number changed"


def test_noise_is_drawn_once_a_round(site: Site) -> None:
    """Whoever could have a round trained again, with other noise, would average it away."""
    change = {"training.local_epochs": None, "training.local_steps": 2, "federation.keep": "last"}
    change |= {"model.norm": "group", "federation.early_stopping": None, "training.class_weighting": "none"}
    private = OURS.derive(
        **change, privacy={"noise_multiplier": 1.0, "sample_rate": 0.1, "delta": 1e-3, "accountant": "rdp"}
    )
    text = TEMPLATE.replace("most_steps_a_round: null", "most_steps_a_round: 10")
    (site.home.directory / POLICY_FILE).write_text(text)
    model, _ = build_initial(private, 1, Path())

    def train(round_: int) -> protocol.Reply:
        return site.send(protocol.TrainRequest(site.task(private, round=round_), state_of(model)))

    site.survey(private)
    site.approve()
    first = train(1)
    assert isinstance(first, protocol.TrainReply)
    again = train(1)
    assert isinstance(again, protocol.TrainReply)
    assert digest(again.weights) == digest(first.weights), "the one that was kept"
    assert isinstance(train(2), protocol.TrainReply)
    assert refused(train(1)) == "round-spent"
    site.agent.close()
    site.agent = Agent(site.home)
    assert refused(train(1)) == "round-spent"
    assert isinstance(train(2), protocol.TrainReply)


def test_a_reply_is_sent_again_and_nothing_is_computed_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.survey()
    site.approve()
    first = site.train()
    assert isinstance(first, protocol.TrainReply)
    monkeypatch.setattr(agents, "handle", lambda *_, **__: pytest.fail("computed again"))
    again = site.train()
    assert isinstance(again, protocol.TrainReply)
    assert all(np.array_equal(first.weights[name], again.weights[name]) for name in first.weights)
    assert refused(site.train(shift=0.1)) == "round-spent"
    site.agent.close()
    site.agent = Agent(site.home)  # after a crash too
    assert isinstance(site.train(), protocol.TrainReply)
    assert len([facts for facts in site.events("reply") if facts["kind"] == protocol.TRAIN]) == 1


def test_one_approval_is_one_training(site: Site) -> None:
    site.survey()
    site.approve()
    for task in ({"repeat": 1}, {"arm": "local:north"}, {"arm": "pooled"}):
        assert refused(site.train(**task)) == "not-approved"
    assert isinstance(site.train(), protocol.TrainReply)


def test_a_withdrawal_during_a_fit_keeps_its_weights_here(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.survey()
    site.approve()
    work = agents.handle

    def thinking_better(*arguments: object, **named: object) -> Message:
        reply = work(*arguments, **named)  # type: ignore[arg-type]
        site.decide(lambda found: found.withdraw(found.records()[0], by="Bob"))
        return reply

    monkeypatch.setattr(agents, "handle", thinking_better)
    assert refused(site.train()) == "study-withdrawn"
    assert not [facts for facts in site.events("reply") if facts["kind"] == protocol.TRAIN]
    monkeypatch.setattr(agents, "handle", work)
    assert refused(site.train()) == "study-withdrawn"


def test_a_reply_that_could_not_leave_is_judged_again(site: Site) -> None:
    """The line was down when it was ready: what its people say until it is up again counts."""
    site.survey()
    site.approve()
    task = protocol.Task(OURS, round=1, roster=site.coordinator.roster.hash)
    request = site.message(protocol.TrainRequest(task, site.weights))
    reply = site.agent.answer(request)
    assert site.agent.recheck(request, reply) is reply
    policy = site.home.directory / POLICY_FILE
    good = policy.read_text()
    policy.write_text("nonsense: 1\n")
    assert refused(protocol.open_reply(site.agent.recheck(request, reply))) == "policy-objects"
    policy.write_text(good)
    assert site.agent.recheck(request, reply) is reply
    site.decide(lambda found: found.withdraw(found.records()[0], by="Bob"))
    assert refused(protocol.open_reply(site.agent.recheck(request, reply))) == "study-withdrawn"
    code = site.agent.answer(request)
    assert site.agent.recheck(request, code) is code


def test_what_leaves_is_on_record_before_it_can_leave(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.survey()
    site.approve()
    site.survey()
    site.survey()
    surveys = [facts for facts in site.events("reply") if facts["kind"] == protocol.SURVEY]
    assert len(surveys) == 1, "the same counts once"

    def killed(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("client.replies.Replies.keep", killed)
        with pytest.raises(SystemExit):
            site.train()
    assert len([facts for facts in site.events("reply") if facts["kind"] == protocol.TRAIN]) == 1


def test_a_roster_that_is_refused_stops_everything(site: Site, tmp_path: Path) -> None:
    site.survey()
    site.approve()
    assert isinstance(site.train(), protocol.TrainReply)
    assert refused(site.survey(roster=b"junk")) == "roster-refused"
    assert refused(site.train(round_=2)) == "roster-refused"
    stranger = Coordinator.init(tmp_path / "other", name="trial", address="127.0.0.1:9", listen="127.0.0.1:9", also=[])
    assert refused(site.survey(roster=stranger.signed_roster)) == "roster-refused"
    assert isinstance(site.survey(), protocol.SurveyReply)
    assert isinstance(site.train(round_=2), protocol.TrainReply)


def test_a_request_of_another_roster_is_not_worked_on(site: Site, tmp_path: Path) -> None:
    """The coordinator's roster moved on: the site says so, is sent it, and its people decide about who is new."""
    site.survey()
    site.approve()
    assert isinstance(site.train(), protocol.TrainReply)
    assert refused(site.train(round_=2, roster="")) == "roster-differs", "none named is none known"
    site.coordinator.admit(join_request(Home.init(tmp_path / "west", alias="west", synthetic=True)).read_bytes())
    assert refused(site.train(round_=2)) == "roster-differs"
    assert refused(site.survey()) == "roster-changed"
    assert refused(site.train(round_=2)) == "roster-changed"
    site.approve()
    assert isinstance(site.train(round_=2), protocol.TrainReply)
    site.coordinator.revoke("west")
    assert refused(site.train(round_=3)) == "roster-differs"
    assert isinstance(site.survey(), protocol.SurveyReply), "who leaves asks nobody"
    assert isinstance(site.train(round_=3), protocol.TrainReply)


def test_a_closed_site_says_when_it_opens(site: Site) -> None:
    site.survey()
    site.approve()
    policy = site.home.directory / "policy.yaml"
    at = site.home.clock()
    opens = (at + timedelta(hours=3)).replace(minute=0, second=0, microsecond=0)
    text = policy.read_text()
    policy.write_text(text.replace("opening_hours: null", f'opening_hours: "{opens:%H}:00-{opens:%H}:30"'))
    reply = site.survey()
    assert reply == protocol.Refusal("north", "outside-hours", int(opens.timestamp()), agents.PROGRAM)
    assert refused(site.train()) == "outside-hours"


def test_the_agent_knows_whether_people_have_yet_to_decide(site: Site) -> None:
    assert not site.agent.undecided()
    site.survey()
    assert site.agent.undecided()
    site.approve()
    assert not site.agent.undecided()
    site.survey()
    assert not site.agent.undecided()


def test_it_looks_seldom_while_people_decide_and_at_once_when_they_have() -> None:
    decided = threading.Event()
    connection = SimpleNamespace(pace=Pace(quick_s=0.0, idle_s=300.0))
    waits, stop = lambda: not decided.is_set(), threading.Event()
    made = _Agent(connection, lambda message: message, lambda _, reply: reply, waits, stop)  # type: ignore[arg-type]
    made._quick_until = time.monotonic() + 300
    resting = threading.Thread(target=made._rest, daemon=True)
    resting.start()
    resting.join(1.5)
    assert resting.is_alive(), "a message came a moment ago, yet people decide"
    decided.set()
    resting.join(60)
    assert not resting.is_alive()
    made._rest()  # would take 300 s


def test_a_coordinator_of_another_protocol_is_told_who_must_upgrade(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    ours = protocol.VERSION
    for theirs, older in ((ours + 1, "upgrade this site"), (ours - 1, "upgrade the coordinator")):
        message = site.message(protocol.SurveyRequest(protocol.Task(OURS)))
        message.content["head"]["protocol"] = theirs  # type: ignore[call-overload, index]
        answer = site.agent.answer(message)
        assert refused(protocol.open_reply(answer)) == "version-mismatch"
        assert older in caplog.text
        # What that coordinator makes of the answer, whose own protocol is theirs.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(messages, "VERSION", theirs)
            said = opened("north", answer)
        assert said.reason.startswith(f"another version: that site speaks protocol {ours}")
        assert may_yet(said.word), "it is waited for"
        assert said.reason.endswith("upgrade that site" if theirs > ours else "upgrade this coordinator")


SURVEYED = OURS.derive(**{"image.normalise": "federated", "training.class_weighting": "federated"})
BASIS = Basis((0.3,), (0.2,), (1.0, 1.0))


def test_a_survey_is_measured_once_and_on_record(tmp_path: Path) -> None:
    made = Site(tmp_path, images=120)

    def measured() -> protocol.Reply:
        return made.send(protocol.SurveyRequest(made.task(SURVEYED), measure=True))

    assert refused(measured()) == "approval-pending"
    made.approve()
    first = measured()
    assert isinstance(first, protocol.SurveyReply)
    assert first.statistics is not None
    told = Survey.from_arrays(first.statistics, SURVEYED, first.images)
    assert told.classes is not None
    assert told.classes.images[0, :, 1].tolist() == [36, 36]
    (record,) = (facts for facts in made.events("reply") if facts["kind"] == protocol.SURVEY)
    assert len(record["classes"]) == 6  # type: ignore[arg-type]
    assert record["classes"]["val pneumonia"] == [12, 12]  # type: ignore[index]
    assert record["images"] == {"train": 72, "val": 24, "test": 24}
    assert {"mean", "deviation", "statistics"} <= set(record)
    # A vault that has grown is not surveyed anew: who came in would be the difference. Not after a round either.
    fill(made.home, 60, 2)
    made.agent.close()
    made.agent = Agent(made.home)
    model, _ = build_initial(SURVEYED, 1, Path())
    task = made.task(SURVEYED, round=1, basis=BASIS)
    assert isinstance(made.send(protocol.TrainRequest(task, state_of(model))), protocol.TrainReply)
    again = measured()
    assert isinstance(again, protocol.SurveyReply)
    assert again.images == first.images
    assert again.statistics is not None
    assert digest(again.statistics) == digest(first.statistics)
    assert len([facts for facts in made.events("reply") if facts["kind"] == protocol.SURVEY]) == 1
    # A study that surveys nothing is not measured, whatever the coordinator asks.
    assert refused(made.send(protocol.SurveyRequest(made.task(OURS), measure=True))) == "protocol-mismatch"
    made.agent.close()


def test_the_numbers_of_all_sites_stay_what_they_were(tmp_path: Path) -> None:
    made = Site(tmp_path)
    made.survey(SURVEYED)
    made.approve()
    model, _ = build_initial(SURVEYED, 1, Path())

    def train(round_: int, basis: Basis | None) -> protocol.Reply:
        return made.send(protocol.TrainRequest(made.task(SURVEYED, round=round_, basis=basis), state_of(model)))

    assert refused(train(1, None)) == "protocol-mismatch"
    for wild in (replace(BASIS, mean=(1.5,)), replace(BASIS, class_weights=(1e9, 1.0)), replace(BASIS, deviation=())):
        assert refused(train(1, wild)) == "protocol-mismatch"
    assert isinstance(train(1, BASIS), protocol.TrainReply)
    other = replace(BASIS, mean=(0.31,))
    assert refused(train(1, other)) == "round-spent"
    assert refused(train(2, other)) == "round-spent"
    scored = protocol.EvaluateRequest(made.task(SURVEYED, round=1, basis=other), "val", state_of(model))
    assert refused(made.send(scored)) == "round-spent"
    assert isinstance(train(2, BASIS), protocol.TrainReply)
    made.agent.close()


def test_counts_of_few_patients_do_not_leave(tmp_path: Path) -> None:
    made = Site(tmp_path, images=20)
    made.survey()
    made.approve()
    reply = made.survey()
    assert isinstance(reply, protocol.SurveyReply)
    assert reply.images == {"train": 12, "val": 0, "test": 0}
    made.agent.close()


def test_two_models_are_compared_if_the_study_says_so_and_the_log_tells_it(site: Site) -> None:
    study = OURS.derive(**{"evaluation.compare": ["start"]})
    site.survey(study)
    site.approve()
    other = {name: np.asarray(value * np.asarray(0.5, value.dtype)) for name, value in site.weights.items()}
    bins = study.evaluation.bins
    given = {f"threshold.{number}": np.array([bins // 2]) for number in range(2)}
    request = protocol.EvaluateRequest(
        site.task(study, round=study.federation.rounds), "test", site.weights, beside=protocol.Beside(given, other)
    )
    first, again = site.send(request), site.send(request)
    assert isinstance(first, protocol.StatisticsReply) and isinstance(again, protocol.StatisticsReply)
    assert digest(first.statistics) == digest(again.statistics)
    assert {"joint.table_at", "second.low_at"} <= set(first.statistics)
    (entry,) = site.events("reply")[-1:]
    assert entry["kind"] == "evaluate.scores test against another model"
    assert entry["kinds"] == ["counts of scores", "joint counts of two models", "seconds"]
    unasked = replace(request, task=site.task(OURS, round=OURS.federation.rounds))
    assert refused(site.send(unasked)) == ProtocolError.code


def test_a_vault_behind_a_passphrase_takes_part(tmp_path: Path) -> None:
    made = Site(tmp_path, key="passphrase:", passphrase=lambda: PASSPHRASE)
    made.survey()
    made.approve()
    assert isinstance(made.train(), protocol.TrainReply)
    made.agent.close()


def test_a_message_that_cannot_be_read_is_answered_with_a_code(site: Site) -> None:
    message = site.message(protocol.SurveyRequest(protocol.Task(OURS)))
    del message.content["head"]
    assert refused(protocol.open_reply(site.agent.answer(message))) == "protocol-mismatch"


def test_two_agents_of_one_site_are_one_too_many(site: Site) -> None:
    with site.home.serving(), pytest.raises(VaultError, match="another command is at work"):
        agents.run(replace(site.home), stop=threading.Event())
