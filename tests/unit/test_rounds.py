"""The round loop over real sites, and over sites that lie, die, are late, or say things twice."""

from __future__ import annotations

import json
import random
import re
import shutil
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from client import app as client_app
from client.app import Resident
from client.site import Site as OpenSite
from common import protocol
from common.errors import DataError, FedwardError, Interrupted, ProtocolError, QuorumError
from common.metrics import Counts
from common.metrics import Layout as CountsLayout
from common.packing import pack
from common.study import Study
from common.weights import DTYPES, STATISTICS, digest
from server.app import federate
from server.asking import Link, ask
from server.checkpoints import Progress
from server.events import EventLog
from server.presence import survey
from server.results import finish
from server.rounds import Arm
from server.testing import test_model as run_test
from server.work import Work
from simulations.engine import InProcessGrid
from tests.unit import federation as fed

SITES = ("site-1", "site-2", "site-3")
NODES = {alias: 1000 + index for index, alias in enumerate(SITES)}


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three hospitals with vaults of phantoms."""
    return fed.make_sites(tmp_path_factory.mktemp("rounds") / "sites", fed.study())


@pytest.fixture
def grid(homes: dict[str, Path]) -> Iterator[InProcessGrid]:
    with closing(InProcessGrid(list(homes.values()))) as made:
        yield made


@pytest.fixture
def damaged(homes: dict[str, Path], tmp_path: Path) -> Iterator[InProcessGrid]:
    """The same hospitals, but somebody has overwritten the images of site-2's vault."""
    copies = {}
    for alias, home in homes.items():
        copies[alias] = tmp_path / alias
        shutil.copytree(home, copies[alias])
    with closing(sqlite3.connect(copies["site-2"] / "vault.sqlite")) as connection, connection:
        connection.execute("UPDATE pixels SET data = zeroblob(length(data))")
    with closing(InProcessGrid(list(copies.values()))) as made:
        yield made


def link_to(grid: Any, events: fed.Events | None = None, **more: Any) -> Link:
    return Link(grid, (events or fed.Events()).log, **more)


def work(study: Study, sites: Iterable[str] = SITES, **more: Any) -> Work:
    return Work(study, "federated", 0, {site: NODES[site] for site in sites}, **more)


def train(grid: Any, made: Work, events: fed.Events | None = None, **more: Any) -> Progress:
    return Arm(link_to(grid, events, **more), made).run()


def kill_in_the_third_round(grid: Any, made: Work) -> None:
    """Leaves a checkpoint of two rounds, at sites that have trained the third."""
    arm = Arm(link_to(grid), made)
    for round_ in (1, 2):
        arm._round(round_, 3)
    Arm(link_to(grid), made)._fits.train(3, arm.progress.weights, {"bytes": 0, "sites": {}}, {})


def comparable(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What must not depend on how long anything took."""
    return [
        {
            **{name: value for name, value in record.items() if name != "wall_s"},
            "sites": {
                site: {name: value for name, value in facts.items() if name != "seconds"}
                for site, facts in sorted(record["sites"].items())
            },
        }
        for record in history
    ]


# --- the way it should be ---------------------------------------------------------------------------


def test_a_run_says_what_happened_in_every_round(grid: InProcessGrid) -> None:
    events = fed.Events()
    progress = train(grid, work(fed.study()), events)
    assert progress.done
    assert progress.round == 3
    assert digest(progress.kept) == digest(progress.weights)
    assert progress.facts["kept_round"] == 3
    assert progress.facts["stopped_early"] is False
    json.dumps([progress.facts, progress.history, events.lines], allow_nan=False)
    for number, record in enumerate(progress.history, 1):
        assert record["round"] == number
        assert set(record["sites"]) == set(SITES)
        for facts in record["sites"].values():
            assert (facts["status"], facts["evaluation"]) == ("ok", "ok")
            assert facts["norm"] > 0
        assert record["bytes"] > 0
        assert 0 <= record["val_auc"] <= 1
    assert [line["round"] for line in events.of("round")] == [1, 2, 3]
    assert len(events.of("site")) == 9
    thresholds = finish(work(fed.study()), progress).thresholds
    assert thresholds.chosen.all()


class Shuffled(fed.Bent):
    """Replies arrive in an order drawn by lot."""

    def __init__(self, inner: Any, seed: int) -> None:
        super().__init__(inner)
        self._random = random.Random(seed)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        ids = list(message_ids)
        self._random.shuffle(ids)
        return super().pull_messages(ids)


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "fedmedian"])
def test_the_order_of_arrival_shows_in_nothing(strategy: str, grid: InProcessGrid) -> None:
    study = fed.study(**{"federation.strategy.name": strategy, "federation.rounds": 2})
    orderly = train(grid, work(study))
    for seed in (1, 2):
        shuffled = train(Shuffled(grid, seed), work(study))
        assert digest(shuffled.weights) == digest(orderly.weights)
        assert comparable(shuffled.history) == comparable(orderly.history)
        assert digest(shuffled.validation) == digest(orderly.validation)


@pytest.mark.parametrize(
    "federation",
    [
        {"strategy": {"name": "fedavg", "params": {}}, "keep": "best"},
        {"strategy": {"name": "fedavgm", "params": {"server_momentum": 0.9}}, "evaluate_every": 2},
        {"strategy": {"name": "fedadam", "params": {"eta": 0.01}}, "early_stopping": {"patience": 3}},
    ],
)
def test_resumed_after_any_round_equals_uninterrupted(
    federation: dict[str, Any], grid: InProcessGrid, tmp_path: Path
) -> None:
    rounds = 4
    study = fed.study(
        federation={"rounds": rounds} | federation, **{"training.schedule": {"kind": "cosine", "unit": "epoch"}}
    )
    made = work(study, checkpoint=tmp_path / "whole" / "checkpoint")
    events = fed.Events()

    def keep_copy(line: Any) -> None:
        if line["event"] == "round":
            assert made.checkpoint is not None
            shutil.copy(made.checkpoint, tmp_path / f"after-{line['round']}")

    whole = Arm(Link(grid, EventLog(events.lines.append, keep_copy)), made).run()
    for after in range(1, rounds + 1):
        here = replace(made, checkpoint=tmp_path / f"cut-{after}" / "checkpoint")
        assert here.checkpoint is not None
        here.checkpoint.parent.mkdir()
        shutil.copy(tmp_path / f"after-{after}", here.checkpoint)
        events = fed.Events()
        resumed = train(grid, here, events)
        assert [line["round"] for line in events.of("resumed")] == [after]
        assert [line["round"] for line in events.of("round")] == list(range(after + 1, rounds + 1))
        assert digest(resumed.weights) == digest(whole.weights)
        assert digest(resumed.kept) == digest(whole.kept)
        assert digest(resumed.validation) == digest(whole.validation)
        assert digest(resumed.strategy) == digest(whole.strategy)
        assert resumed.facts == whole.facts
        assert comparable(resumed.history) == comparable(whole.history)


def test_repeats_start_from_other_weights_and_train_in_another_order(grid: InProcessGrid) -> None:
    study = fed.study(**{"federation.rounds": 1})
    first, second = (train(grid, replace(work(study), repeat=repeat)) for repeat in (0, 1))
    assert digest(first.weights) != digest(second.weights)


# --- sites that fail --------------------------------------------------------------------------------


def test_a_damaged_vault_below_quorum_fails_the_run_and_is_named(damaged: InProcessGrid, tmp_path: Path) -> None:
    events = fed.Events()
    made = work(fed.study(), checkpoint=tmp_path / "checkpoint")
    with pytest.raises(QuorumError, match=r"round 1 .* 2 of 3 replies .*site-2: declined: vault-unusable") as caught:
        train(damaged, made, events)
    assert caught.value.exit_code != 0
    assert "--resume" in str(caught.value)
    assert not events.of("round")
    assert events.of("failed")[0]["sites"] == {"site-2": "declined: vault-unusable"}
    assert not (tmp_path / "checkpoint").exists()


def test_with_a_lower_quorum_the_others_go_on_as_if_it_were_not_there(damaged: InProcessGrid) -> None:
    study = fed.study(**{"federation.quorum": 0.6})
    events = fed.Events()
    progress = train(damaged, work(study), events)
    assert progress.round == 3
    for record in progress.history:
        assert record["sites"]["site-2"]["status"] == "declined: vault-unusable"
        assert record["sites"]["site-2"]["evaluation"] == "declined: vault-unusable"
        assert record["sites"]["site-2"]["examples"] == 0
    assert {line["status"] for line in events.of("site") if line["site"] == "site-2"} == {
        "declined: vault-unusable",
        "evaluation: declined: vault-unusable",
    }
    without = train(damaged, work(study, ["site-1", "site-3"]))
    assert digest(progress.weights) == digest(without.weights)


def with_weights(change: Callable[[dict[str, Any]], None]) -> Callable[[Message], list[Message]]:
    """A reply whose arrays went through ``change``."""

    def bend(reply: Message) -> list[Message]:
        found = protocol.open_reply(reply)
        assert isinstance(found, protocol.TrainReply)
        arrays = {name: value.copy() for name, value in found.weights.items()}
        change(arrays)
        reply.content["weights"] = pack(arrays, DTYPES)
        return [reply]

    return bend


def with_head(**fields: Any) -> Callable[[Message], list[Message]]:
    def bend(reply: Message) -> list[Message]:
        head = reply.content["head"]
        assert isinstance(head, ConfigRecord)
        for name, value in fields.items():
            head[name] = value
        return [reply]

    return bend


def with_facts(**fields: Any) -> Callable[[Message], list[Message]]:
    def bend(reply: Message) -> list[Message]:
        facts = reply.content["facts"]
        assert isinstance(facts, MetricRecord)
        for name, value in fields.items():
            facts[name] = value
        return [reply]

    return bend


def error_from_node_one(reply: Message) -> list[Message]:
    broken = Message.__new__(Message)
    broken.__dict__.update(reply.__dict__)
    broken.__dict__["_content"] = None
    broken.__dict__["_error"] = Error(3, "secret text of a site")
    broken.metadata.__dict__["_src_node_id"] = 1
    return [broken]


def emptied(reply: Message) -> list[Message]:
    reply.content = RecordDict()
    return [reply]


def fill(value: float) -> Callable[[dict[str, Any]], None]:
    def change(arrays: dict[str, Any]) -> None:
        next(iter(arrays.values())).fill(value)

    return change


HOSTILE: dict[str, tuple[Callable[[Message], list[Message]], str]] = {
    "NaN": (with_weights(fill(np.nan)), r"refused: weights are not finite in"),
    "huge": (with_weights(fill(1e30)), r"refused: its update's norm 6e\+30 is above the bound"),
    "missing": (with_weights(lambda arrays: arrays.clear()), r"refused: weights do not fit .*missing"),
    "extra": (with_weights(lambda arrays: arrays.update(x=np.zeros(1, np.float32))), r"unexpected 'x'"),
    "round": (with_head(round=7), r"refused: it answers round 7, not"),
    "name": (with_head(site="site-1"), r"refused: it answers under another site's name"),
    "version": (
        with_head(protocol=99),
        r"another version: .* speaks protocol 99, .*: upgrade this coordinator",
    ),
    "kind": (with_head(kind="statistics"), r"unreadable reply: the message has no ArrayRecord named 'statistics'"),
    "survey": (with_head(kind="survey", images="{}"), r"wrong kind of reply"),
    "refusal": (with_head(kind="refusal", code="vault-unusable"), r"declined: vault-unusable"),
    "code": (with_head(kind="refusal", code="Look\nhere"), r"unreadable reply: site-2 refused with a malformed code"),
    "zero": (with_facts(examples=0), r"refused: it says it trained on 0 examples"),
    "nan loss": (with_facts(loss=float("nan")), r"refused: its training loss is not finite"),
    "nan seconds": (with_facts(seconds=float("nan")), r"unreadable reply: site-2 says it took nan seconds"),
    "float examples": (with_facts(examples=3.5), r"unreadable reply: the message's field 'examples'"),
    "empty": (emptied, r"unreadable reply: the message has no ConfigRecord named 'head'"),
    "error": (error_from_node_one, r"failed \(Flower error 3\)"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_site_that_answers_nonsense_is_named_and_left_out(what: str, grid: InProcessGrid) -> None:
    how, message = HOSTILE[what]
    study = fed.study(**{"federation.quorum": 0.6, "federation.rounds": 1})

    def bend(node: int, reply: Message) -> list[Message]:
        return how(reply) if node == NODES["site-2"] and reply.metadata.message_type == protocol.TRAIN else [reply]

    events = fed.Events()
    progress = train(fed.Bent(grid, bend), work(study), events)
    statuses = {site: facts["status"] for site, facts in progress.history[0]["sites"].items()}
    assert statuses["site-1"] == statuses["site-3"] == "ok"
    assert re.search(message, statuses["site-2"]), statuses["site-2"]
    assert "secret" not in json.dumps(events.lines)
    assert [line["status"] for line in events.of("site") if line["site"] == "site-2"] == [statuses["site-2"]]
    assert digest(progress.weights) == digest(train(grid, work(study, ["site-1", "site-3"])).weights)
    with pytest.raises(QuorumError, match="site-2"):
        train(fed.Bent(grid, bend), work(fed.study(**{"federation.rounds": 1})))


def spoiled_counts(reply: Message) -> list[Message]:
    found = protocol.open_reply(reply)
    assert isinstance(found, protocol.StatisticsReply)
    arrays = {name: np.array(value) for name, value in found.statistics.items()}
    arrays["low_n"][:] = -1
    reply.content["statistics"] = pack(arrays, STATISTICS)
    return [reply]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (spoiled_counts, r"refused: statistics field 'low_n' holds numbers outside"),
        (with_head(site="site-1"), r"refused: it answers under another name"),
        (with_head(round=2), r"refused: it answers under another name or for another round"),
        (with_head(kind="survey", images="{}"), "wrong kind of reply"),
        (error_from_node_one, r"failed \(Flower error 3\)"),
    ],
)
def test_a_site_that_cannot_evaluate_is_named_and_counts_against_the_quorum(
    how: Callable[[Message], list[Message]], message: str, grid: InProcessGrid
) -> None:
    def bend(node: int, reply: Message) -> list[Message]:
        return how(reply) if node == NODES["site-2"] and reply.metadata.message_type == protocol.EVALUATE else [reply]

    events = fed.Events()
    with pytest.raises(QuorumError, match=rf"round 1 .* 2 of 3 evaluations .*site-2: {message}"):
        train(fed.Bent(grid, bend), work(fed.study(**{"federation.rounds": 1})), events)
    assert "site-2" in events.of("failed")[0]["sites"]
    lenient = fed.study(**{"federation.rounds": 1, "federation.quorum": 0.5})
    progress = train(fed.Bent(grid, bend), work(lenient))
    facts = progress.history[0]["sites"]["site-2"]
    assert facts["status"] == "ok"
    assert message.split(r"\(")[0].split(":")[0] in facts["evaluation"]


def test_testing_names_the_site_that_spoils_it(grid: InProcessGrid) -> None:
    study = fed.study(**{"federation.rounds": 1})
    arm = finish(work(study), train(grid, work(study)))
    tested = run_test(link_to(grid), arm.work, arm.weights, arm.thresholds, NODES, own=NODES)
    assert set(tested.sites) == set(SITES)
    assert tested.overall.images == sum(summary.images for summary in tested.sites.values())
    for kind in (protocol.EVALUATE, protocol.MOMENTS):

        def bend(node: int, reply: Message, kind: str = kind) -> list[Message]:
            spoiled = node == NODES["site-2"] and reply.metadata.message_type == kind
            return with_head(round=0)(reply) if spoiled else [reply]

        with pytest.raises(QuorumError, match=r"site-2 did not test the model \(refused: .*--resume"):
            run_test(link_to(fed.Bent(grid, bend)), arm.work, arm.weights, arm.thresholds, NODES, own=NODES)


# --- messages that are late, lost or doubled --------------------------------------------------------


def test_who_does_not_answer_before_the_deadline_is_left_out(grid: InProcessGrid) -> None:
    study = fed.study(**{"federation.quorum": 0.6, "federation.rounds": 2, "federation.deadline_s": 50.0})

    def bend(node: int, reply: Message) -> list[Message]:
        return [] if node == NODES["site-3"] else [reply]

    time, bent, events = fed.FakeTime(), fed.Bent(grid, bend), fed.Events()
    progress = train(bent, work(study), events, clock=time.clock, sleep=time.sleep)
    for record in progress.history:
        assert record["sites"]["site-3"]["status"] == "no answer before the deadline"
        assert record["sites"]["site-3"]["evaluation"] == "no answer before the deadline"
        assert record["wall_s"] == pytest.approx(100.0, abs=1.0)  # training, and evaluation
    assert len(bent.forgotten) == 4  # so that an engine need not work on them any more
    assert bent.pulls < 4 * (50 / 0.2 + 20)
    assert digest(progress.weights) == digest(train(grid, work(study, ["site-1", "site-2"])).weights)


class Flaky(fed.Bent):
    """The nodes in ``away`` are offline, and no reply of theirs arrives."""

    away: frozenset[int] = frozenset()

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in self.inner.get_node_ids() if node not in self.away]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return super().pull_messages([id_ for id_ in message_ids if self.nodes[id_] not in self.away])


def test_a_site_that_is_offline_is_given_up_where_the_quorum_does_not_need_it(grid: InProcessGrid) -> None:
    time, flaky = fed.FakeTime(), Flaky(grid)
    flaky.away = frozenset({NODES["site-3"]})
    study = fed.study(**{"federation.quorum": 0.6, "federation.rounds": 2, "federation.deadline_s": 500.0})
    progress = train(flaky, work(study), clock=time.clock, sleep=time.sleep)
    assert {record["sites"]["site-3"]["status"] for record in progress.history} == {"offline"}
    assert time.now < 10
    assert len(flaky.forgotten) == 4, "a reply that it brings later is not taken"
    assert digest(progress.weights) == digest(train(grid, work(study, ["site-1", "site-2"])).weights)


def test_a_site_that_is_offline_is_waited_for_where_the_quorum_needs_it(grid: InProcessGrid) -> None:
    time, events, flaky = fed.FakeTime(), fed.Events(), Flaky(grid)

    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        offline = 10 < time.now < 300
        flaky.away = frozenset({NODES["site-3"]}) if offline else frozenset()

    time.sleep(10)
    flaky.away = frozenset({NODES["site-3"]})
    study = fed.study(**{"federation.rounds": 2, "federation.deadline_s": 500.0})
    progress = train(flaky, work(study), events, clock=time.clock, sleep=sleep)
    assert {facts["status"] for record in progress.history for facts in record["sites"].values()} == {"ok"}
    assert time.now >= 300
    assert [event["sites"] for event in events.of("waiting-for")] == [["site-3"]]
    assert digest(progress.weights) == digest(train(grid, work(study)).weights)


def test_no_site_is_late_for_the_time_in_which_this_process_stood_still(grid: InProcessGrid) -> None:
    time, flaky = fed.FakeTime(), Flaky(grid)
    flaky.away = frozenset({NODES["site-3"]})
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        time.sleep(seconds + (3600 if len(slept) == 20 else 0))
        if len(slept) > 100:  # seconds after it went on
            flaky.away = frozenset()

    study = fed.study(**{"federation.rounds": 1, "federation.deadline_s": 60.0})
    progress = train(flaky, work(study), clock=time.clock, sleep=sleep)
    assert {facts["status"] for facts in progress.history[0]["sites"].values()} == {"ok"}


def test_a_quorum_that_cannot_be_had_any_more_waits_for_nobody(grid: InProcessGrid) -> None:
    def bend(node: int, reply: Message) -> list[Message]:
        return error_from_node_one(reply) if node == NODES["site-1"] else [reply]

    time, flaky = fed.FakeTime(), Flaky(grid, bend)
    flaky.away = frozenset({NODES["site-3"]})
    with pytest.raises(QuorumError, match=r"site-1: failed \(Flower error 3\); site-3: offline"):
        train(flaky, work(fed.study(**{"federation.deadline_s": 500.0})), clock=time.clock, sleep=time.sleep)
    assert time.now < 10


def test_nobody_answering_fails_at_the_deadline_of_the_work(grid: InProcessGrid) -> None:
    time = fed.FakeTime()
    made = work(fed.study(), deadline_s=7.0)
    with pytest.raises(QuorumError, match=r"0 of 3 replies .*site-1: no answer before the deadline; site-2: no"):
        train(fed.Bent(grid, lambda node, reply: []), made, clock=time.clock, sleep=time.sleep)
    assert time.now == pytest.approx(7.0, abs=0.3)


@pytest.mark.parametrize("leave_out", [False, True])
@pytest.mark.parametrize("lost", SITES)
def test_a_message_that_cannot_be_sent_is_put_down_to_its_own_site(
    lost: str, leave_out: bool, grid: InProcessGrid
) -> None:
    """Flower's Grids give an empty id for it, or leave it out so that the others' places shift."""
    study = fed.study(**{"federation.quorum": 0.6, "federation.rounds": 1})
    bent = fed.Bent(grid, lose=[NODES[lost]], leave_out=leave_out)
    statuses = {site: facts["status"] for site, facts in train(bent, work(study)).history[0]["sites"].items()}
    assert statuses == {site: "not reachable" if site == lost else "ok" for site in SITES}


def test_answers_given_twice_and_to_others_change_nothing(grid: InProcessGrid) -> None:
    study = fed.study(**{"federation.rounds": 2})
    stranger = fed.request(RecordDict(), "train.fit")
    kept: list[Message] = []

    def bend(node: int, reply: Message) -> list[Message]:
        foreign = Message(RecordDict(), reply_to=stranger)
        kept.append(reply)
        return [foreign, reply, reply, *kept]

    clean, doubled = train(grid, work(study)), train(fed.Bent(grid, bend), work(study))
    assert digest(doubled.weights) == digest(clean.weights)
    assert comparable(doubled.history) == comparable(clean.history)


def test_answers_to_others_do_not_keep_the_loop_awake(grid: InProcessGrid) -> None:
    """A Grid that hands out what nobody asked for must not turn waiting into spinning."""
    stranger = fed.request(RecordDict(), "train.fit")
    bent = fed.Bent(grid)
    bent.pull_messages = lambda ids: [Message(RecordDict(), reply_to=stranger)]  # type: ignore[method-assign]
    time = fed.FakeTime()
    sealed = protocol.seal(protocol.SurveyRequest(protocol.Task(fed.study())))
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        time.sleep(seconds)

    answers = list(ask(link_to(bent, clock=time.clock, sleep=sleep), sealed, NODES, 60.0))
    assert {answer.reason for answer in answers} == {"no answer before the deadline"}
    assert len(sleeps) < 60 / 0.2 + 20
    assert max(sleeps) <= 0.2


def test_stopping_ends_between_replies_and_keeps_the_last_round(grid: InProcessGrid, tmp_path: Path) -> None:
    study = fed.study(**{"federation.rounds": 50})
    made = work(study, checkpoint=tmp_path / "checkpoint")
    stop = threading.Event()
    events = fed.Events()

    def after_two(line: Any) -> None:
        if line["event"] == "round" and line["round"] == 2:
            stop.set()

    with pytest.raises(Interrupted, match="--resume") as caught:
        Arm(Link(grid, EventLog(events.lines.append, after_two), stop=stop), made).run()
    assert caught.value.exit_code == 130
    again = Arm(link_to(grid), made)
    again._resume()
    assert again.progress.round == 2


# --- scripted sites: what is kept, and when it ends -------------------------------------------------


def scripted(
    study: Study,
    validation: Callable[[int], Counts],
    *,
    sites: Iterable[str] = SITES,
    length: Callable[[str, int], float] = lambda site, round_: 0.01,
    at_once: bool = False,
) -> fed.Scripted:
    """Sites whose parameters move by ``length`` in every round, and which validate as the test says."""

    def answer(alias: str, request: protocol.Request) -> protocol.Reply:
        round_ = request.task.round
        if isinstance(request, protocol.TrainRequest):
            moved = {name: np.array(value) for name, value in request.weights.items()}
            first = next(name for name, value in moved.items() if value.dtype == np.float32)
            moved[first].flat[0] += np.float32(length(alias, round_))
            return protocol.TrainReply(alias, round_, moved, 10, 0.5, 0.0)
        counts = validation(round_) if alias == "site-1" else Counts.zero(CountsLayout.of(study))
        return protocol.StatisticsReply(alias, round_, counts.to_arrays(), 0.0)

    return fed.Scripted(sites, answer, at_once=at_once)


def play(study: Study, validation: Callable[[int], Counts], events: fed.Events | None = None, **more: Any) -> Progress:
    grid = scripted(study, validation, **more)
    return Arm(link_to(grid, events), Work(study, "federated", 0, grid.sites)).run()


def by_round(study: Study, aucs: list[tuple[int, int]], losses: list[float]) -> Callable[[int], Counts]:
    """Counts whose AUC is right / (right + wrong) in each round."""
    return lambda round_: fed.counts(
        study, right=aucs[round_ - 1][0], wrong=aucs[round_ - 1][1], loss=losses[round_ - 1]
    )


BEST = {"federation.keep": "best"}


def test_the_best_round_is_kept_by_auc_and_on_a_tie_by_loss() -> None:
    study = fed.study(**{"federation.rounds": 5, **BEST})
    aucs = [(2, 2), (3, 1), (4, 0), (4, 0), (3, 1)]
    progress = play(study, by_round(study, aucs, [0.9, 0.4, 0.6, 0.5, 0.1]))
    assert [record["val_auc"] for record in progress.history] == [0.5, 0.75, 1.0, 1.0, 0.75]
    assert progress.facts["kept_round"] == progress.facts["best_round"] == 4
    assert digest(progress.kept) != digest(progress.weights)
    assert Counts.from_arrays(progress.validation, CountsLayout.of(study)).loss == pytest.approx(0.5 * 6)


def test_by_default_the_last_round_is_kept() -> None:
    study = fed.study(**{"federation.rounds": 2})
    progress = play(study, by_round(study, [(4, 0), (1, 3)], [0.1, 0.9]))
    assert progress.facts["kept_round"] == 2
    assert digest(progress.kept) == digest(progress.weights)


def test_early_stopping_waits_for_its_patience() -> None:
    changes = {"federation.rounds": 9, "federation.early_stopping": {"patience": 2}}
    aucs = [(2, 2), (3, 1), (3, 1), (4, 0), (4, 0), (3, 1), (4, 0), (4, 0), (4, 0)]
    study = fed.study(**changes)
    progress = play(study, by_round(study, aucs, [0.5] * 9))
    assert (progress.round, progress.done, progress.facts["stopped_early"]) == (6, True, True)
    assert progress.facts["kept_round"] == 6
    study = fed.study(**changes, **BEST)
    progress = play(study, by_round(study, aucs, [0.5] * 9))
    assert progress.facts["kept_round"] == 4


def test_stopping_in_the_very_last_round_is_no_early_stop() -> None:
    study = fed.study(**{"federation.rounds": 3, "federation.early_stopping": {"patience": 2}})
    progress = play(study, by_round(study, [(4, 0), (3, 1), (3, 1)], [0.5] * 3))
    assert (progress.round, progress.facts["stopped_early"]) == (3, False)


def test_patience_by_loss() -> None:
    changes = {"federation.rounds": 6, "federation.early_stopping": {"patience": 2, "metric": "loss"}}
    study = fed.study(**changes, **BEST)
    losses = [0.9, 0.5, 0.6, 0.7, 0.1, 0.1]
    progress = play(study, by_round(study, [(4, 0)] * 6, losses))
    assert (progress.round, progress.facts["kept_round"]) == (4, 2)


def test_small_steps_add_up_for_patience_and_the_best_is_the_best_all_the_same() -> None:
    stopping = {"patience": 2, "metric": "loss", "min_delta": 0.1}
    study = fed.study(**{"federation.rounds": 6, "federation.early_stopping": stopping, **BEST})
    # 0.06 a round: every second one is worth a min_delta, then steps of 0.01 are not.
    progress = play(study, by_round(study, [(4, 0)] * 6, [0.9, 0.84, 0.78, 0.77, 0.76, 0.5]))
    assert progress.round == 5
    assert progress.facts["kept_round"] == 5  # the least loss, though it was not worth another round of patience


def test_stopped_early_and_resumed_stays_stopped(tmp_path: Path) -> None:
    study = fed.study(**{"federation.rounds": 9, "federation.early_stopping": {"patience": 1}})
    grid = scripted(study, by_round(study, [(4, 0)] * 9, [0.5] * 9))
    made = Work(study, "federated", 0, grid.sites, checkpoint=tmp_path / "c")
    first = Arm(link_to(grid), made).run()
    events = fed.Events()
    second = Arm(link_to(grid, events), made).run()
    assert (first.round, second.round, second.facts) == (2, 2, first.facts)
    assert not events.of("round")


@pytest.mark.parametrize(("every", "evaluated"), [(0, [5]), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (7, [5])])
def test_the_last_model_is_always_evaluated(every: int, evaluated: list[int]) -> None:
    study = fed.study(**{"federation.rounds": 5, "federation.evaluate_every": every})
    progress = play(study, lambda round_: fed.counts(study))
    assert [record["round"] for record in progress.history if record["val_loss"] is not None] == evaluated
    assert progress.facts["kept_round"] == 5


def test_where_small_cells_are_hidden_the_loss_decides() -> None:
    study = fed.study(**{"federation.rounds": 3, "evaluation.min_cell": 2, **BEST})
    sides, losses = [(5, 1), (6, 1), (4, 2)], [0.5, 0.3, 0.4]
    progress = play(study, by_round(study, sides, losses))
    assert progress.facts["kept_round"] == 2
    assert [record["val_auc"] for record in progress.history] == [None, None, 4 / 6]
    low, high = progress.history[0]["val_auc_bounds"]
    assert low < 5 / 6 < high
    assert "val_auc_bounds" not in progress.history[2]


def test_where_validation_lacks_a_class_the_loss_decides() -> None:
    study = fed.study(**{"federation.rounds": 3, **BEST})
    losses = [0.5, 0.3, 0.4]
    progress = play(study, lambda round_: fed.counts(study, right=0, wrong=0, loss=losses[round_ - 1]))
    assert [record["val_auc"] for record in progress.history] == [None] * 3
    assert progress.facts["kept_round"] == 2
    json.dumps(progress.history, allow_nan=False)


def test_auc_and_loss_are_never_compared_with_each_other() -> None:
    """A site that is away in one round may take a class with it."""
    study = fed.study(**{"federation.rounds": 4, **BEST})
    # without a class, with, without, with: the loss, which all four have, goes on deciding
    rows = [(0, 0, 0.5), (4, 0, 0.6), (0, 0, 0.4), (3, 1, 0.45)]
    progress = play(
        study,
        lambda round_: fed.counts(
            study, right=rows[round_ - 1][0], wrong=rows[round_ - 1][1], loss=rows[round_ - 1][2]
        ),
    )
    assert progress.facts["kept_round"] == 3
    # with first: a round without AUC is no better one, however small its loss
    rows = [(3, 1, 0.5), (0, 0, 0.1), (4, 0, 0.6), (0, 0, 0.1)]
    progress = play(
        study,
        lambda round_: fed.counts(
            study, right=rows[round_ - 1][0], wrong=rows[round_ - 1][1], loss=rows[round_ - 1][2]
        ),
    )
    assert progress.facts["kept_round"] == 3


def test_sites_without_any_validation_image_cannot_choose_a_model() -> None:
    study = fed.study()
    with pytest.raises(DataError, match=r"no validation image.*data\.split"):
        play(study, lambda round_: Counts.zero(CountsLayout.of(study)))


@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_hospital_alone_without_validation_images_keeps_its_last_model(keep: str) -> None:
    """So that one small hospital does not end everybody's comparison."""
    study = fed.study(**{"federation.keep": keep, "federation.early_stopping": {"patience": 1}})
    events = fed.Events()
    progress = play(study, lambda round_: Counts.zero(CountsLayout.of(study)), events, sites=["site-1"])
    assert (progress.round, progress.facts["kept_round"], progress.facts["stopped_early"]) == (3, 3, False)
    assert [line["round"] for line in events.of("unvalidated")] == [3]
    arm = finish(Work(study, "local:site-1", 0, {"site-1": 1}), progress)
    assert not arm.thresholds.chosen.any()
    assert arm.thresholds.edges.tolist() == [0.5]


# --- bounds and memory ------------------------------------------------------------------------------


def test_the_bound_comes_from_the_round_before_also_after_a_resume(tmp_path: Path) -> None:
    study = fed.study(**{"federation.rounds": 3, "federation.quorum": 0.5, "federation.norm_factor": 5.0})

    def length(site: str, round_: int) -> float:
        return 0.06 if site == "site-2" and round_ > 1 else 0.01

    def run(path: Path, rounds: int) -> Progress:
        grid = scripted(study, lambda round_: fed.counts(study), length=length)
        link = link_to(grid)

        def stop_after(line: Any) -> None:
            if line["event"] == "round" and line["round"] == rounds:
                link.stop.set()

        link.events = EventLog(stop_after)
        return Arm(link, Work(study, "federated", 0, grid.sites, checkpoint=path)).run()

    whole = run(tmp_path / "whole", 99)
    statuses = [record["sites"]["site-2"]["status"] for record in whole.history]
    assert statuses[0] == "ok"
    assert all(status.startswith("refused: its update's norm 0.06 is above the bound 0.05") for status in statuses[1:])
    with pytest.raises(Interrupted):
        run(tmp_path / "cut", 1)
    assert comparable(run(tmp_path / "cut", 99).history) == comparable(whole.history)


def test_a_reply_that_the_sum_refuses_does_not_move_the_next_bound() -> None:
    study = fed.study(**{"federation.rounds": 2, "federation.quorum": 0.5})
    grid = scripted(study, lambda round_: fed.counts(study))
    inner = grid._script

    def greedy(alias: str, request: protocol.Request) -> protocol.Reply | None:
        reply = inner(alias, request)
        if alias == "site-3" and isinstance(reply, protocol.TrainReply):
            first = next(name for name, value in reply.weights.items() if value.dtype == np.float32)
            moved = dict(reply.weights)
            moved[first] = moved[first] + np.float32(50)
            return replace(reply, weights=moved, examples=(1 << 31) - 1)
        return reply

    grid._script = greedy
    progress = Arm(link_to(grid), Work(study, "federated", 0, grid.sites)).run()
    assert "too large to add up" in progress.history[0]["sites"]["site-3"]["status"]
    assert progress.facts["norm_cap"] == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("at_once", [False, True])
def test_replies_are_freed_as_they_are_folded(at_once: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a message nor its weights are held while the next one is worked on, or read."""
    study = fed.study(**{"federation.rounds": 1})
    sites = [f"site-{number}" for number in range(1, 21)]
    grid = scripted(study, lambda round_: fed.counts(study), sites=sites, at_once=at_once)
    decoded: list[weakref.ref[Any]] = []
    messages, models = [], []
    open_reply, script = protocol.open_reply, grid._script

    def watched(message: Message) -> protocol.Reply:
        models.append(sum(array() is not None for array in decoded))
        reply = open_reply(message)
        if isinstance(reply, protocol.TrainReply):
            decoded.append(weakref.ref(next(iter(reply.weights.values()))))
        return reply

    def working(alias: str, request: protocol.Request) -> protocol.Reply | None:
        messages.append(len(grid.alive))
        return script(alias, request)

    monkeypatch.setattr(protocol, "open_reply", watched)
    grid._script = working
    Arm(link_to(grid, None), Work(study, "federated", 0, grid.sites)).run()
    assert len(models) == len(messages) == 40
    assert max(models) == 0
    assert max(messages) <= (19 if at_once else 0)
    if at_once:
        left: list[int] = []
        grid = scripted(study, lambda round_: fed.counts(study), sites=sites, at_once=True)

        def look(line: Any) -> None:
            if line["event"] == "site":
                left.append(len(grid.alive))

        Arm(Link(grid, EventLog(look)), Work(study, "federated", 0, grid.sites)).run()
        assert left == list(range(20, 0, -1))


# --- who is there -----------------------------------------------------------------------------------


def test_a_survey_finds_the_sites_and_their_images(grid: InProcessGrid) -> None:
    found = survey(link_to(grid), fed.study())
    assert {alias: node for alias, (node, _) in found.items()} == NODES
    assert sum(sum(images.values()) for _, images in found.values()) == 60


def test_a_survey_says_who_is_absent_and_why(damaged: InProcessGrid, tmp_path: Path) -> None:
    (tmp_path / "site-2" / "vault.key").write_bytes(b"nonsense")
    events = fed.Events()
    found = survey(link_to(damaged, events), fed.study())
    assert set(found) == {"site-1", "site-3"}
    (absent,) = events.of("site-absent")
    assert absent["reason"] == "declined: key-unavailable"


def test_two_nodes_of_one_name_are_refused(homes: dict[str, Path]) -> None:
    with (
        closing(InProcessGrid([homes["site-1"], homes["site-1"]])) as grid,
        pytest.raises(ProtocolError, match="two nodes say they are site-1"),
    ):
        survey(link_to(grid), fed.study())


def test_federate_trains_tests_and_goes_on_where_it_was(grid: InProcessGrid, tmp_path: Path) -> None:
    study = fed.study(**{"federation.rounds": 2})
    events = fed.Events()
    first = federate(link_to(grid, events), study, tmp_path, base=Path())
    assert set(first["arms"]["federated"]["sites"]) == set(SITES)
    model = (tmp_path / "model.safetensors").read_bytes()
    json.loads((tmp_path / "results.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert [line["event"] for line in events.lines][-1] == "finished"
    again = fed.Events()
    federate(link_to(grid, again), study, tmp_path, base=Path())
    assert again.of("resumed")
    assert not again.of("round")
    assert (tmp_path / "model.safetensors").read_bytes() == model


@pytest.mark.parametrize("step", ["evaluate", "moments"])
def test_who_withdraws_before_the_end_of_the_test_is_absent_from_it(
    step: str, grid: InProcessGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A month of training is not lost with it, as long as the quorum stays."""

    class Withdrawn(FedwardError):
        code = "study-withdrawn"

    work = getattr(client_app, step)

    def withdrawn(request: protocol.EvaluateRequest, site: OpenSite, resident: Resident) -> protocol.StatisticsReply:
        if request.split == "test" and site.alias == "site-2":
            raise Withdrawn("Ann has withdrawn it")
        return work(request, site, resident)  # type: ignore[no-any-return]

    monkeypatch.setattr(client_app, step, withdrawn)
    events = fed.Events()
    study = fed.study(**{"federation.rounds": 1, "federation.quorum": 0.6})
    result = federate(link_to(grid, events), study, tmp_path, base=Path())
    assert result["absent"] == ["site-2"]
    assert set(result["arms"]["federated"]["sites"]) == {"site-1", "site-3"}
    assert [line["sites"] for line in events.of("alert")] == [["site-2"]]
    with pytest.raises(QuorumError, match="site-2 did not test the model"):
        federate(link_to(grid), study.derive(**{"federation.quorum": 1.0}), tmp_path / "all", base=Path())


def test_federate_asks_for_the_quorum_of_all_that_are_connected(damaged: InProcessGrid, tmp_path: Path) -> None:
    (tmp_path / "site-2" / "site.yaml").unlink()
    out = tmp_path / "run"
    with pytest.raises(QuorumError, match=r"2 of 3 sites answered, the quorum asks for 3"):
        federate(link_to(damaged), fed.study(), out, base=Path())
    assert not out.exists()
    out.mkdir()
    result = federate(
        link_to(damaged), fed.study(**{"federation.quorum": 0.6, "federation.rounds": 1}), out, base=Path()
    )
    assert set(result["arms"]["federated"]["sites"]) == {"site-1", "site-3"}


def test_arrays_that_are_no_weights_at_all(grid: InProcessGrid) -> None:
    """Records of the right names with arrays that Flower can carry but nobody may read."""

    def bend(node: int, reply: Message) -> list[Message]:
        if node == NODES["site-2"] and reply.metadata.message_type == protocol.TRAIN:
            record = ArrayRecord()
            record["x"] = Array(dtype="object", shape=(1,), stype="numpy.ndarray", data=b"cos\nsystem\n(S'true'\ntR.")
            reply.content["weights"] = record
        return [reply]

    study = fed.study(**{"federation.rounds": 1, "federation.quorum": 0.5})
    progress = train(fed.Bent(grid, bend), work(study))
    assert "unreadable reply: the arrays are not packed" in progress.history[0]["sites"]["site-2"]["status"]
