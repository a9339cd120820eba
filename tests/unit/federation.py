"""A small federation for tests: a study, weights with a norm layer, replies, real sites on disk, Grids to bend."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from common import protocol
from common.metrics import Counts
from common.metrics import Layout as CountsLayout
from common.protocol import TrainReply
from common.study import Study
from common.weights import Weights
from server.aggregation import Layout
from server.events import EventLog
from simulations.datasets import open_source
from simulations.sites import Machine, prepare_sites

# Flower stamps every message with the task that this process is.
TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1

TINY = """
name: tiny
task: binary
classes: [normal, pneumonia]
seed: 7
data: {phantoms: {images: 60, size: 32, difficulty: 0.2}, split: [0.6, 0.2, 0.2]}
image: {size: 32}
model: {name: cnn, norm: batch, params: {filters: [4], hidden: [8]}}
training: {batch_size: 8}
federation: {rounds: 3}
partition: {kind: iid, sites: 3}
evaluation: {bootstrap: 100, bins: 1024}
"""


def study(**changes: Any) -> Study:
    """The tiny study with dotted-path changes, as ``study(**{"federation.rounds": 1})``."""
    made = Study.parse(TINY)
    return made.derive(**changes) if changes else made


def weights(seed: int, spread: float = 1.0, *, around: Weights | None = None) -> dict[str, np.ndarray[Any, Any]]:
    """Weights of an imagined model: parameters (one without a dimension), a norm layer's buffers, its counter."""
    random = np.random.default_rng(seed)
    shapes = {"conv.weight": (4, 1, 3, 3), "norm.weight": (4,), "norm.bias": (4,), "scale": (), "fc.weight": (2, 4)}
    made: dict[str, np.ndarray[Any, Any]] = {
        name: np.asarray(random.normal(size=shape) * spread, np.float32) for name, shape in shapes.items()
    }
    made["norm.running_mean"] = np.asarray(random.normal(size=4) * spread, np.float32)
    if around is not None:
        made = {name: np.asarray(around[name] + value, np.float32) for name, value in made.items()}
    made["norm.running_var"] = np.asarray(random.uniform(0.0, 1e-3, size=4), np.float32)
    counted = 0 if around is None else int(around["norm.num_batches_tracked"])
    made["norm.num_batches_tracked"] = np.array(counted + int(random.integers(1, 9)), np.int64)
    return made


PARAMETERS = ("conv.weight", "norm.weight", "norm.bias", "scale", "fc.weight")
BUFFERS = ("norm.running_mean", "norm.running_var")
COUNTER = "norm.num_batches_tracked"


def layout(template: Weights) -> Layout:
    return Layout.of(template, PARAMETERS)


def replies(sent: Weights, count: int, round_: int, *, spread: float = 0.1) -> list[TrainReply]:
    """What ``count`` honest sites might answer to ``sent``."""
    return [
        TrainReply(
            f"site-{index + 1}",
            round_,
            weights(1000 * round_ + index, spread, around=sent),
            examples=10 + 7 * index,
            loss=0.2 + 0.1 * index,
            seconds=0.5,
        )
        for index in range(count)
    ]


def make_sites(root: Path, made: Study) -> dict[str, Path]:
    """Real vaults of phantoms under ``root``: alias -> directory."""
    prepared = prepare_sites(made, open_source(made, None), root, Machine())
    return {site: root / site for site in sorted(prepared.sites)}


class Events:
    """A sink that keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[Mapping[str, Any]] = []
        self.log = EventLog(self.lines.append, now=lambda: "now")

    def of(self, event: str) -> list[Mapping[str, Any]]:
        return [line for line in self.lines if line["event"] == event]


class FakeTime:
    """A clock that moves only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += max(seconds, 1e-6)


class Bent(Grid):
    """Another Grid's messages, with each reply passed through ``bend``: what comes out of it is what arrives.

    ``bend(site's node, reply)`` gives any number of replies, also none. ``lose`` says which nodes cannot be sent to.
    """

    def __init__(
        self,
        inner: Grid,
        bend: Callable[[int, Message], list[Message]] = lambda node, reply: [reply],
        *,
        lose: Iterable[int] = (),
        leave_out: bool = False,
    ) -> None:
        self.inner, self.bend, self.lose, self.leave_out = inner, bend, set(lose), leave_out
        self.nodes: dict[str, int] = {}
        self.forgotten: list[str] = []
        self.pulls = 0

    def set_run(self, run: Run) -> None:
        self.inner.set_run(run)

    @property
    def run(self) -> Run:
        return self.inner.run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return self.inner.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_node_ids(self) -> Iterable[int]:
        return self.inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids: list[str] = []
        for message in messages:
            node = message.metadata.dst_node_id
            if node in self.lose:
                ids += [] if self.leave_out else [""]
                continue
            (id_,) = self.inner.push_messages([message])
            self.nodes[id_] = node
            ids.append(id_)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        self.pulls += 1
        arrived: list[Message] = []
        for reply in self.inner.pull_messages(message_ids):
            arrived += self.bend(self.nodes[reply.metadata.reply_to_message_id], reply)
        return arrived

    def forget(self, message_ids: Iterable[str]) -> None:
        self.forgotten += message_ids

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.inner.send_and_receive(messages, timeout=timeout)


def request(content: RecordDict, kind: str, node: int = 1000) -> Message:
    """A message as a site receives it."""
    message = Message(content, node, kind, ttl=60.0)
    message.metadata.__dict__["_message_id"] = f"t{next(_numbers)}"
    return message


_numbers = itertools.count()


class Scripted(Grid):
    """Sites that answer what ``script`` says, at once and without training: ``script(alias, request) -> reply``.

    A reply of ``None`` is never sent. ``at_once`` hands out all waiting replies in one pull, else one.
    """

    def __init__(
        self,
        aliases: Iterable[str],
        script: Callable[[str, protocol.Request], protocol.Reply | None],
        *,
        at_once: bool = False,
    ) -> None:
        self.sites = {alias: 1 + index for index, alias in enumerate(aliases)}
        self._names = {node: alias for alias, node in self.sites.items()}
        self._script, self._at_once = script, at_once
        self._asked: dict[str, Message] = {}
        self.alive: weakref.WeakSet[Message] = weakref.WeakSet()

    def set_run(self, run: Run) -> None:
        raise AssertionError("the round loop sets no run")

    @property
    def run(self) -> Run:
        return Run.create_empty(1)

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        return list(self.sites.values())

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            id_ = f"s{next(_numbers)}"
            message.metadata.__dict__["_message_id"] = id_
            self._asked[id_] = message
            ids.append(id_)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = []
        for id_ in message_ids:
            message = self._asked.pop(id_, None)
            if message is None:
                continue
            reply = self._script(self._names[message.metadata.dst_node_id], protocol.open_request(message))
            if reply is None:
                continue
            replies.append(protocol.answer(reply, message))
            self.alive.add(replies[-1])
            if not self._at_once:
                break
        return replies

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise AssertionError("the round loop folds replies as they arrive")


def counts(made: Study, *, right: int = 2, wrong: int = 0, loss: float = 0.5, negatives: int = 2) -> Counts:
    """Validation counts of a binary study: of the positives ``right`` stand above all negatives, ``wrong`` below."""
    scores = np.array([0.5] * negatives + [0.9] * right + [0.1] * wrong)[:, None]
    targets = np.array([0.0] * negatives + [1.0] * (right + wrong))[:, None]
    layout, cell = CountsLayout.of(made), made.evaluation.min_cell
    return Counts.of(scores, targets, np.arange(len(scores)), np.full(len(scores), loss), layout, cell)


def failed(to: Message) -> Message:
    """What Flower answers for a dead node: an error, from node 1."""
    error = Message(Error(3, "node unavailable"), reply_to=to)
    error.metadata.__dict__["_src_node_id"] = 1
    return error
