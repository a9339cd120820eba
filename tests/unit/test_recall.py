"""Sites that are closed, paused or behind with the roster in the middle of a run, and sites that are set aside."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common import protocol
from common.errors import Interrupted, QuorumError
from common.study import Study
from common.weights import digest
from server.asking import Link, SignedRoster
from server.checkpoints import Progress
from server.events import EventLog
from server.rounds import Arm
from server.standing import Standing
from server.work import Work
from tests.unit import federation as fed

SITES = ("east", "north", "west")
NEW, OLD = "b" * 64, "a" * 64


class Hospitals:
    """Scripted sites: ``says(site, request, hours)`` is a refusal's code, or ``None`` for one that works."""

    def __init__(self, says: Callable[[str, protocol.Request, float], str | None] | None = None) -> None:
        self.time, self.events, self.asked = fed.FakeTime(), fed.Events(), Counter[str]()
        self.says = says or (lambda site, request, hours: None)
        self.grid = fed.Scripted(SITES, self._answer)
        self.roster = SignedRoster(b"signed", NEW)
        self.bad: Callable[[str, int], bool] = lambda site, round_: False
        self.seen: Callable[[Any], None] = lambda line: None
        self.stop = threading.Event()

    def _answer(self, alias: str, request: protocol.Request) -> protocol.Reply:
        self.asked[f"{type(request).__name__} {alias}"] += 1
        code = self.says(alias, request, self.time.now / 3600)
        if code is not None:
            return protocol.Refusal(alias, code, until=7 * 3600 if code == "outside-hours" else 0)
        if isinstance(request, protocol.SurveyRequest):
            return protocol.SurveyReply(alias, {"train": 10})
        round_ = request.task.round
        if isinstance(request, protocol.TrainRequest):
            moved = {name: np.array(value) for name, value in request.weights.items()}
            first = next(name for name, value in moved.items() if value.dtype == np.float32)
            moved[first].flat[0] += np.float32(0.01 * (1 + SITES.index(alias)))
            loss = float("nan") if self.bad(alias, round_) else 0.5
            return protocol.TrainReply(alias, round_, moved, 10, loss, 0.0)
        assert isinstance(request, protocol.EvaluateRequest)
        return protocol.StatisticsReply(alias, round_, fed.counts(request.task.study).to_arrays(), 0.0)

    def train(self, study: Study, checkpoint: Path | None = None) -> Progress:
        link = Link(
            self.grid,
            EventLog(self.events.lines.append, self.seen),
            self.time.clock,
            self.time.sleep,
            self.stop,
            roster=lambda: self.roster,
        )
        self.link = link
        return Arm(link, Work(study, "federated", 0, self.grid.sites, checkpoint=checkpoint)).run()


def closed(site: str, *, opens: float, code: str = "outside-hours") -> Callable[..., str | None]:
    """``site`` declines everything until ``opens`` hours, from its first evaluation on."""
    began = False

    def says(alias: str, request: protocol.Request, hours: float) -> str | None:
        nonlocal began
        began |= isinstance(request, protocol.EvaluateRequest)
        return code if alias == site and began and hours < opens else None

    return says


@pytest.mark.parametrize("code", ["outside-hours", "site-paused", "roster-changed", "approval-pending"])
def test_a_round_that_needs_a_closed_site_waits_until_it_opens(code: str) -> None:
    undisturbed = Hospitals().train(fed.study())
    made = Hospitals(closed("north", opens=13.5, code=code))
    progress = made.train(fed.study())
    assert digest(progress.weights) == digest(undisturbed.weights)
    assert 13.5 * 3600 <= made.time.now <= 13.5 * 3600 + 60
    (waits,) = made.events.of("waits")
    assert waits["round"] == 1
    assert waits["sites"] == {"north": {"answer": code, "until": 25200 if code == "outside-hours" else 0}}
    assert made.link.watch.facts()["waits"] == {}
    # The others are not asked again meanwhile, and who is closed is asked small questions only.
    assert made.asked["TrainRequest east"] == made.asked["TrainRequest north"] == 3
    assert made.asked["EvaluateRequest east"] == 3
    assert made.asked["EvaluateRequest north"] == 4
    assert made.asked["SurveyRequest east"] == 0


def test_a_round_that_has_its_quorum_goes_on_without_the_closed_site() -> None:
    made = Hospitals(closed("north", opens=13.5))
    progress = made.train(fed.study(**{"federation.quorum": 0.6}))
    assert made.time.now < 60
    assert not made.events.of("waits")
    assert progress.history[0]["sites"]["north"]["evaluation"] == "declined: outside-hours"
    assert progress.history[1]["sites"]["north"]["status"] == "declined: outside-hours"


def test_the_waiting_ends_with_the_studys_patience_and_with_a_no() -> None:
    made = Hospitals(closed("north", opens=1e9))
    with pytest.raises(QuorumError, match="north: declined: outside-hours"):
        made.train(fed.study(**{"federation.wait_s": 7200}))
    assert 7200 <= made.time.now <= 7260
    made = Hospitals()
    closed_then_gone = closed("north", opens=1e9, code="site-paused")
    made.says = lambda site, request, hours: (
        "study-withdrawn" if hours > 2 and site == "north" else closed_then_gone(site, request, hours)
    )
    with pytest.raises(QuorumError, match="north: declined: study-withdrawn"):
        made.train(fed.study())
    assert made.time.now < 7300


def test_waiting_for_one_closed_site_is_no_use_where_two_are_missing() -> None:
    def says(alias: str, request: protocol.Request, hours: float) -> str | None:
        return {"north": "outside-hours", "west": "study-withdrawn"}.get(alias)

    made = Hospitals(says)
    with pytest.raises(QuorumError, match="1 of 3 replies"):
        made.train(fed.study())
    assert made.time.now < 10


def test_a_stop_ends_the_waiting_and_a_resume_gives_the_same_weights(tmp_path: Path) -> None:
    made = Hospitals(closed("north", opens=5.0))
    sleep = made.time.sleep

    def stopping(seconds: float) -> None:
        sleep(seconds)
        if made.time.now > 3600:
            made.stop.set()

    made.time.sleep = stopping  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        made.train(fed.study(), tmp_path / "checkpoint")
    again = Hospitals()
    assert digest(again.train(fed.study(), tmp_path / "checkpoint").weights) == digest(
        Hospitals().train(fed.study()).weights
    )


def test_a_site_with_another_roster_is_sent_ours_and_asked_again() -> None:
    known = dict.fromkeys(SITES, NEW) | {"west": OLD}

    def says(alias: str, request: protocol.Request, hours: float) -> str | None:
        if isinstance(request, protocol.SurveyRequest):
            assert request.roster == b"signed"
            known[alias] = NEW
        return None if request.task.roster == known[alias] else "roster-differs"

    made = Hospitals(says)
    progress = made.train(fed.study())
    assert digest(progress.weights) == digest(Hospitals().train(fed.study()).weights)
    assert made.asked["SurveyRequest west"] == 1
    assert made.asked["TrainRequest west"] == 4
    assert made.asked["TrainRequest east"] == 3
    assert made.time.now < 60


def test_a_site_that_never_takes_the_roster_is_not_asked_for_ever() -> None:
    def says(alias: str, request: protocol.Request, hours: float) -> str | None:
        stubborn = alias == "west" and not isinstance(request, protocol.SurveyRequest)
        return "roster-differs" if stubborn else None

    made = Hospitals(says)
    with pytest.raises(QuorumError, match="west: declined: roster-differs"):
        made.train(fed.study())
    assert made.asked["TrainRequest west"] == 4


# --- set aside --------------------------------------------------------------------------------------


def test_a_site_refused_in_three_rounds_is_not_asked_any_more(tmp_path: Path) -> None:
    study = fed.study(**{"federation.rounds": 6, "federation.quorum": 0.6})

    def run(checkpoint: Path, until: int = 99) -> tuple[Hospitals, Progress | None]:
        made = Hospitals()
        made.bad = lambda site, round_: site == "west"
        made.seen = lambda line: made.stop.set() if (line["event"], line.get("round")) == ("round", until) else None
        try:
            return made, made.train(study, checkpoint)
        except Interrupted:
            return made, None

    made, whole = run(tmp_path / "whole")
    assert whole is not None
    assert made.asked["TrainRequest west"] == made.asked["EvaluateRequest west"] == 3
    (event,) = made.events.of("set-aside")
    assert (event["site"], event["round"]) == ("west", 3)
    said = [record["sites"]["west"]["status"] for record in whole.history]
    assert all(status.startswith("refused: ") for status in said[:3])
    assert said[3:] == ["set aside"] * 3
    # The counts are in the checkpoint: a run that was cut off sets the same site aside in the same round.
    run(tmp_path / "cut", until=2)
    again, resumed = run(tmp_path / "cut")
    assert resumed is not None
    assert again.asked["TrainRequest west"] == 1
    assert digest(resumed.weights) == digest(whole.weights)


def test_the_quorum_is_still_of_all_sites() -> None:
    made = Hospitals()
    made.bad = lambda site, round_: site == "west" or (site == "north" and round_ > 3)
    study = fed.study(**{"federation.rounds": 6, "federation.quorum": 0.6})
    with pytest.raises(QuorumError, match=r"round 4 .* 1 of 2 replies .*west: set aside"):
        made.train(study)


def test_only_refused_replies_in_a_row_count() -> None:
    standing = Standing(2)
    bad, away, good = {"status": "refused: NaN"}, {"status": "declined: outside-hours"}, {"status": "ok"}
    for facts in (bad, good, bad, away, away):
        assert standing.judge({"west": facts}) == []
    assert standing.judge({"west": {"status": "ok", "evaluation": "refused: NaN"}}) == ["west"]
    assert standing.asked({"west": 1, "east": 2}) == {"east": 2}
    never = Standing(0)
    for _ in range(9):
        assert never.judge({"west": bad}) == []
