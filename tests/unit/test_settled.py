"""A run's test is asked of one model at one set of thresholds; whoever asks otherwise could subtract two answers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from client.agent import Agent
from client.settled import SETTLED, Settled
from common import protocol
from common.basis import Basis
from common.errors import SettledOtherwise
from common.metrics import Counts, Layout, Question, Reference, Thresholds
from common.metrics.paired import Areas, Joint, Pair
from common.metrics.paired.wire import Given, ModelReference
from common.study import Study
from common.weights import digest
from server.app import federate
from server.asking import Link
from simulations.engine import InProcessGrid
from tests.unit import federation as fed
from tests.unit.test_agent import OURS, Site, refused
from tests.unit.test_comparing import STUDY as COMPARING
from tests.unit.test_comparing import hospital

STUDY = fed.study(**{"federation.keep": "best", "evaluation.compare": ["start"], "evaluation.readers": ["reader_1"]})
BOTH = STUDY.derive(**{"evaluation.compare": ["start", "last"]})
OUTLINING = fed.study(task="segmentation", classes=["lesion"], model={"name": "unet"})
KEPT, START, OTHER = ({"w": np.full(3, value, np.float32)} for value in (1, 2, 3))
Asked = protocol.EvaluateRequest | protocol.MomentsRequest


def first(study: Study = STUDY, at: int = 5, second: Any = None, second_at: int = 6, **more: Any) -> Asked:
    thresholds = [np.array([at])] if second is None else [np.array([at]), np.array([second_at])]
    beside = protocol.Beside(Given(tuple(thresholds)).to_arrays(), second)
    return protocol.EvaluateRequest(protocol.Task(study, round=3), "test", KEPT, beside=beside, **more)


def then(study: Study = STUDY, at: int = 5, second: Any = None, second_at: int = 6) -> Asked:
    """The second pass of :func:`first`, whatever all sites have answered."""
    layout = Layout.of(study)
    own, other = (
        Reference(Counts.zero(layout), Thresholds(np.array([edge]), np.array([True]), layout.bins))
        for edge in (at, second_at)
    )
    given = {} if second is None else ModelReference(Joint.zero(layout), other).to_arrays()
    beside = protocol.Beside(given, second)
    return protocol.MomentsRequest(protocol.Task(study, round=3), "test", KEPT, own.to_arrays(), beside=beside)


def plain(study: Study = STUDY, **more: Any) -> Asked:
    return replace(protocol.EvaluateRequest(protocol.Task(study, round=3), "test", KEPT), **more)


def outlined(at: int, split: str = "test") -> Asked:
    layout = Layout.of(OUTLINING)
    nothing = Reference(Counts.zero(layout), Thresholds(np.array([5]), np.array([True]), layout.bins))
    return protocol.MomentsRequest(protocol.Task(OUTLINING, round=3), split, KEPT, Question(nothing, at).to_arrays())


def hold(settled: Settled, request: Asked, started: Any = None) -> None:
    settled.hold(request, digest(request.weights), None if started is None else digest(started))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / SETTLED


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (plain(), plain(weights=OTHER)),
        (plain(), plain(task=protocol.Task(STUDY, round=2))),
        (plain(), plain(task=protocol.Task(STUDY, round=3, basis=Basis((0.5,), (0.2,), ())))),
        (plain(), replace(first(), weights=OTHER)),
        (plain(personal=1), plain(personal=2)),
        (first(), first(at=4)),
        (first(), then(at=4)),
        (then(), first(at=4)),
        (first(second=START), first(at=4)),
        (first(second=START), first(second=START, at=4)),
        (first(second=START), first(second=START, second_at=7)),
        (first(second=START), then(second=START, second_at=7)),
        (first(second=START), first(second=OTHER)),
        (outlined(3), outlined(4)),
        (outlined(3, "val"), outlined(4, "val")),
    ],
)
def test_what_was_settled_is_settled_for_ever(path: Path, before: Asked, after: Asked) -> None:
    with closing(Settled(path)) as settled:
        hold(settled, before)
        hold(settled, before)
    with closing(Settled(path)) as again:  # the agent was started anew
        for _ in range(2):
            with pytest.raises(SettledOtherwise, match=r"another when its run first asked; .* or start another study"):
                hold(again, after)
        hold(again, before)
        other = after.task.study.derive(seed=99)
        hold(again, replace(after, task=replace(after.task, study=other)))
        hold(again, replace(after, task=replace(after.task, repeat=1)))


def test_an_honest_run_is_never_refused(path: Path) -> None:
    """Counts and sums of the test, by groups, on worse images, of own models, and every comparison in both passes."""
    nothing = Reference(Counts.zero(Layout.of(BOTH)), Thresholds(np.array([9]), np.array([True]), 1024)).to_arrays()
    moments = protocol.MomentsRequest(protocol.Task(BOTH, round=3), "test", KEPT, nothing)
    with closing(Settled(path)) as settled:
        for request in (
            *(
                plain(BOTH, split="val", weights=weights, task=protocol.Task(BOTH, round=2))
                for weights in (KEPT, OTHER)
            ),
            plain(BOTH),
            plain(BOTH, by="sex"),
            plain(BOTH, condition="blur 2"),
            plain(BOTH, personal=2),
            moments,
            replace(moments, reference={**nothing, "threshold": np.array([8])}, personal=2),
            *(
                step(BOTH, second=second, second_at=at)
                for second, at in ((START, 6), (OTHER, 7))
                for step in (first, then)
            ),
            first(BOTH),
            then(BOTH),
        ):
            hold(settled, request, START)


def test_the_model_that_training_began_with_is_the_one_of_round_1(path: Path) -> None:
    with closing(Settled(path)) as settled:
        with pytest.raises(SettledOtherwise, match="not the one that round 1 was trained from"):
            hold(settled, first(second=OTHER), START)
        hold(settled, first(second=START), START)


def test_where_two_second_models_are_named_each_is_one(path: Path) -> None:
    with closing(Settled(path)) as settled:
        hold(settled, first(BOTH, second=OTHER), START)
        hold(settled, first(BOTH, second=START), START)
        for wrong in (first(BOTH, second=KEPT), first(BOTH, second=START, second_at=9)):
            with pytest.raises(SettledOtherwise):
                hold(settled, wrong, START)
    with closing(Settled(path.with_name("late.sqlite"))) as late:  # a site that has not trained round 1
        hold(late, first(BOTH, second=OTHER))
        hold(late, first(BOTH, second=START))
        with pytest.raises(SettledOtherwise):
            hold(late, first(BOTH, second=KEPT))
        hold(late, then(BOTH, second=OTHER))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.agent.close()


def test_a_site_compares_a_run_at_one_set_of_thresholds_also_when_started_anew(site: Site) -> None:
    study = OURS.derive(**{"evaluation.compare": ["start"]})
    site.survey(study)
    site.approve()
    middle, task = study.evaluation.bins // 2, site.task(study, round=study.federation.rounds)

    def ask(weights: Any, at: int) -> protocol.Reply:
        given = Given((np.array([middle]), np.array([at]))).to_arrays()
        beside = protocol.Beside(given, weights)
        return site.send(protocol.EvaluateRequest(task, "test", site.weights, beside=beside))

    assert isinstance(site.send(protocol.TrainRequest(site.task(study, round=1), site.weights)), protocol.TrainReply)
    moved = {name: value + np.asarray(1, value.dtype) for name, value in site.weights.items()}
    assert refused(ask(moved, middle)) == SettledOtherwise.code, "the start is what round 1 was trained from"
    told = ask(site.weights, middle)
    assert isinstance(told, protocol.StatisticsReply)
    assert refused(ask(site.weights, middle + 1)) == SettledOtherwise.code
    assert refused(site.send(protocol.EvaluateRequest(task, "test", moved))) == SettledOtherwise.code
    site.agent.close()
    site.agent = Agent(site.home)
    assert refused(ask(site.weights, middle + 1)) == SettledOtherwise.code
    again = ask(site.weights, middle)
    assert isinstance(again, protocol.StatisticsReply) and digest(again.statistics) == digest(told.statistics)


def paired(k: int) -> Pair:
    """Forty patients, of whom two change sides: both models call the others alike."""
    truth = np.repeat([0.0, 1.0], 20)[:, None]
    one = np.where(truth == 1, 0.8, 0.2) + np.linspace(0, 0.1, 40)[:, None]
    other = one.copy()
    other[[0, 39]] = 1.0 - other[[0, 39]]
    return Pair.of(one, other, truth, np.arange(40), Layout("binary", 1, 64), k)


def test_two_tables_that_may_leave_can_differ_by_two_patients() -> None:
    """Why thresholds are settled: no cell of either table is of fewer than five patients, and their difference is."""
    here = np.array([[8, 2, 5, 5], [5, 5, 5, 5]])  # patients by the first model's half and the second's bin
    half, place = (np.repeat(each.ravel(), here.ravel()) for each in np.indices(here.shape))
    one, other = (
        np.array(values)[at][:, None] for values, at in (([0.15, 0.65], half), ([0.15, 0.35, 0.65, 0.95], place))
    )
    pair = Pair.of(one, other, np.ones((40, 1)), np.arange(40), Layout("binary", 1, 10), 5)
    tables = [pair.joint((np.array([5]), np.array([edge]))) for edge in (2, 5)]
    cells = [table.signs(0)[1] for table in tables]
    assert all(not table.withheld.any() and table.exact.all() for table in tables)
    assert all(cell == 0 or cell >= 5 for table in cells for cell in table.ravel())
    assert (cells[1] - cells[0])[0, 0] == 2


def test_a_reference_that_jumps_tells_nobody_apart() -> None:
    """Sums for a difference of AUC, against shares that jump at one bin each, count who stands between the bins."""
    layout = Layout("binary", 1, 64)

    def jumping(at: int) -> Reference:
        """Of 1000 imagined positives at ``at`` and as many negatives below all."""
        targets = np.repeat([0.0, 1.0], 1000)[:, None]
        scores = np.where(targets == 1, (at + 0.5) / 64, 0.0)
        counts = Counts.of(scores, targets, np.arange(2000), np.zeros(2000), layout)
        return Reference(counts, Thresholds(np.array([32]), np.array([True]), 64))

    def asked(k: int, one: int, other: int) -> Areas:
        pair = paired(k)
        return Areas.of(pair.first, pair.second, (jumping(one), jumping(other)), k)

    open_ = asked(1, 20, 20)
    assert open_.squares.any() and not open_.withheld.any()
    for k in (2, 3):
        hidden = asked(k, 20, 20)
        assert hidden.withheld.all() and not hidden.squares.any() and not hidden.parts.any()
    same = paired(5)
    alike = Areas.of(same.first, same.first, (jumping(20), jumping(20)), 5)
    assert not alike.withheld.any() and alike.patients == 40


def test_a_run_goes_on_at_the_thresholds_that_sites_were_told(tmp_path: Path) -> None:
    """A hospital withdraws between the comparison's passes: the others are asked again, and as they were before."""
    for number in range(3):
        hospital(tmp_path / f"site-{number + 1}", number + 3, read=False)
    change = {"federation.rounds": 1, "federation.quorum": 0.6}
    study = COMPARING.derive(**change, **{"evaluation.readers": [], "evaluation.compare": ["start"]})
    asked: list[bytes] = []

    class Noted(fed.Bent):
        def push_messages(self, messages: Any) -> Any:
            found = list(messages)
            for message in found:
                request = protocol.open_request(message)
                if isinstance(request, protocol.EvaluateRequest) and request.beside is not None:
                    asked.append(digest(request.beside.given).encode())
            return super().push_messages(found)

    def bend(node: int, reply: Message) -> list[Message]:
        opened = protocol.open_reply(reply)
        if isinstance(opened, protocol.StatisticsReply) and opened.site == "site-3" and len(asked) >= 3:
            head = protocol.answer(
                protocol.Refusal("site-3", "study-withdrawn"), fed.request(reply.content, protocol.EVALUATE)
            )
            reply.content = head.content
        return [reply]

    with closing(InProcessGrid([tmp_path / f"site-{number}" for number in (1, 2, 3)])) as grid:
        out = tmp_path / "run"
        result = federate(Link(Noted(grid, bend), fed.Events().log), study, out, base=Path())
    assert result["absent"] == ["site-3"] and len(result["comparisons"]) == 1
    assert len(asked) == 3 + 2 and len(set(asked)) == 1
