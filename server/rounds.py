"""The round loop: ask, check, fold, evaluate, checkpoint; with quorum, deadline, early stop and resume.

Flower's own ``Strategy.start`` waits for ever for missing nodes, cannot stop early and calls
a run in which every site failed "completed" (DESIGN 5); this loop uses Flower's Grid and
Flower's arithmetic and nothing else of it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from common import protocol
from common.errors import DataError, FedwardError, Interrupted, ProtocolError, QuorumError, ReplyRefused
from common.metrics import Counts, auc
from common.metrics import Layout as CountsLayout
from common.models import build_initial
from common.randomness import seed_for
from common.study import Study
from common.weights import Weights, state_of, trainable_names
from server.aggregation import Aggregator, Layout, build_aggregator
from server.checkpoints import Progress, load_progress, save_progress
from server.checks import ReplyChecks
from server.events import EventLog


@dataclass(frozen=True)
class Work:
    """One arm of one repeat: which sites (alias -> Flower node id) train this study together.

    ``base`` is the directory that the study's ``model.weights`` path is relative to.
    """

    study: Study
    arm: str
    repeat: int
    sites: Mapping[str, int]
    deadline_s: float = 0.0
    checkpoint: Path | None = None
    base: Path = Path()

    @property
    def key(self) -> dict[str, Any]:
        return {"study": self.study.hash, "arm": self.arm, "repeat": self.repeat, "sites": sorted(self.sites)}

    def task(self, round_: int) -> protocol.Task:
        return protocol.Task(self.study, self.arm, self.repeat, round_)

    @property
    def quorum(self) -> int:
        return max(1, math.ceil(self.study.federation.quorum * len(self.sites) - 1e-9))


@dataclass
class Link:
    """The Grid and what else the loop needs from outside: events, a clock, a stop signal."""

    grid: Grid
    events: EventLog
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    stop: threading.Event = field(default_factory=threading.Event)

    def check_stop(self) -> None:
        if self.stop.is_set():
            raise Interrupted("stopped; the last finished round is kept, continue with --resume")


@dataclass(frozen=True)
class Answer:
    """What became of one request: a reply, or the reason why there is none."""

    site: str
    reply: protocol.Reply | None
    reason: str
    bytes: int


_POLL_S = (0.005, 0.2)


def ask(link: Link, sealed: protocol.Sealed, sites: Mapping[str, int], deadline_s: float) -> Iterator[Answer]:
    """Send one request to ``sites`` and yield an :class:`Answer` for each, as they arrive or give up.

    A dead node's error reply has ``src_node_id=1``, so replies are told apart by the message
    they answer. Sites that have not answered after ``deadline_s`` seconds come last.
    """
    ends = link.clock() + deadline_s
    names = {node: site for site, node in sites.items()}
    messages = [sealed.to(node, deadline_s + 60.0) for node in sites.values()]
    ids = list(link.grid.push_messages(messages))
    waiting = {id_: names[message.metadata.dst_node_id] for id_, message in zip(ids, messages, strict=False) if id_}
    unsent = set(sites) - set(waiting.values())
    pause = _POLL_S[0]
    while waiting and link.clock() < ends:
        link.check_stop()
        arrived = list(link.grid.pull_messages(list(waiting)))
        for message in arrived:
            site = waiting.pop(message.metadata.reply_to_message_id, None)
            if site is None:
                continue
            if message.has_error():
                yield Answer(site, None, f"failed (Flower error {message.error.code})", 0)
                continue
            try:
                reply = protocol.open_reply(message)
            except ProtocolError as error:
                yield Answer(site, None, f"unreadable reply: {error}", 0)
                continue
            if isinstance(reply, protocol.Refusal):
                yield Answer(site, None, f"declined: {reply.code}", 0)
            else:
                yield Answer(site, reply, "", protocol.size(message.content))
        pause = _POLL_S[0] if arrived else min(pause * 2, _POLL_S[1])
        if not arrived and waiting:
            link.sleep(pause)
    for site in sorted({*waiting.values(), *unsent}):
        yield Answer(site, None, "no answer before the deadline" if site not in unsent else "not reachable", 0)


def survey(link: Link, study: Study, *, deadline_s: float = 600.0) -> dict[str, tuple[int, Mapping[str, int]]]:
    """Ask every node who it is: alias -> (node id, images per split). Nodes without a site are left out.

    Raises :class:`ProtocolError` when two nodes claim one alias.
    """
    nodes = {f"node-{node}": node for node in link.grid.get_node_ids()}
    found: dict[str, tuple[int, Mapping[str, int]]] = {}
    sealed = protocol.seal(protocol.SurveyRequest(protocol.Task(study)))
    for answer in ask(link, sealed, nodes, deadline_s):
        if not isinstance(answer.reply, protocol.SurveyReply):
            link.events.emit("site-absent", node=answer.site, reason=answer.reason or "wrong kind of reply")
            continue
        if answer.reply.site in found:
            raise ProtocolError(f"two nodes say they are {answer.reply.site}; give each site its own directory")
        found[answer.reply.site] = (nodes[answer.site], answer.reply.images)
    return dict(sorted(found.items()))


class Arm:
    """The state of one arm while it trains; ``run`` brings it from its last checkpoint to its end."""

    def __init__(self, link: Link, work: Work) -> None:
        self.link, self.work, self.study = link, work, work.study
        model, loaded = build_initial(self.study, seed_for(self.study.seed, work.repeat, "weights"), work.base)
        if loaded is not None:
            link.events.emit("weights-loaded", arm=work.arm, repeat=work.repeat, report=str(loaded))
        self._template = state_of(model)
        self._trainable = trainable_names(model)
        self._aggregator: Aggregator = build_aggregator(self.study, Layout.of(self._template, self._trainable))
        self._checks = ReplyChecks(self.study.federation, self._trainable)
        self.progress = Progress(weights=self._template)

    @property
    def _deadline_s(self) -> float:
        return self.work.deadline_s or self.study.federation.deadline_s

    def run(self) -> Progress:
        """Train to the end. Raises :class:`QuorumError` for a round with too few accepted replies."""
        self._resume()
        rounds = self.study.federation.rounds
        while not self.progress.done:
            self._round(self.progress.round + 1, rounds)
        return self.progress

    def _resume(self) -> None:
        saved = load_progress(self.work.checkpoint, key=self.work.key) if self.work.checkpoint else None
        if saved is None:
            return
        self.progress = saved
        self._aggregator.restore(saved.strategy)
        self._checks.cap = saved.facts.get("norm_cap", self._checks.cap)
        self.link.events.emit("resumed", arm=self.work.arm, repeat=self.work.repeat, round=saved.round)

    def _round(self, round_: int, rounds: int) -> None:
        started = self.link.clock()
        sent = self.progress.weights
        record: dict[str, Any] = {"round": round_, "bytes": 0, "sites": {}, "val_loss": None, "val_auc": None}
        self.progress.weights = self._train(round_, sent, record)
        federation = self.study.federation
        last = round_ == rounds
        if last or (federation.evaluate_every and round_ % federation.evaluate_every == 0):
            counts = self._evaluate(round_, record)
            self._judge(round_, counts, record, last)
        record["wall_s"] = round(self.link.clock() - started, 4)
        self.progress.round = round_
        self.progress.strategy = self._aggregator.state()
        self.progress.facts["norm_cap"] = self._checks.cap
        self.progress.history.append(record)
        self.progress.done = self.progress.done or last
        if self.work.checkpoint is not None:
            save_progress(self.work.checkpoint, self.progress, key=self.work.key)
        self.link.events.emit("round", arm=self.work.arm, repeat=self.work.repeat, rounds=rounds, **record)

    def _train(self, round_: int, sent: Weights, record: dict[str, Any]) -> Weights:
        sealed = protocol.seal(protocol.TrainRequest(self.work.task(round_), sent))
        record["bytes"] += sealed.bytes * len(self.work.sites)
        self._aggregator.begin(round_, sent)
        accepted: dict[str, tuple[int, float]] = {}
        for answer in ask(self.link, sealed, self.work.sites, self._deadline_s):
            record["bytes"] += answer.bytes
            outcome = self._accept(round_, sent, answer, accepted)
            record["sites"][answer.site] = outcome
            self.link.events.emit(
                "site", arm=self.work.arm, repeat=self.work.repeat, round=round_, site=answer.site, **outcome
            )
        self._require_quorum(round_, len(accepted), record)
        self._checks.next_round()
        total = sum(examples for examples, _ in accepted.values())
        # In site order, so that the printed loss is the same whoever answered first.
        record["train_loss"] = sum(accepted[site][0] * accepted[site][1] for site in sorted(accepted)) / total
        return self._aggregator.finish()

    def _accept(
        self, round_: int, sent: Weights, answer: Answer, accepted: dict[str, tuple[int, float]]
    ) -> dict[str, Any]:
        reply = answer.reply
        if not isinstance(reply, protocol.TrainReply):
            return {"status": answer.reason or "wrong kind of reply", "loss": None, "examples": 0, "seconds": None}
        try:
            norm = self._checks.accept(reply, site=answer.site, round_=round_, sent=sent)
            self._aggregator.add(reply)
        except ReplyRefused as error:
            return {"status": f"refused: {error}", "loss": None, "examples": 0, "seconds": None}
        accepted[answer.site] = (reply.examples, reply.loss)
        return {
            "status": "ok",
            "loss": reply.loss,
            "examples": reply.examples,
            "seconds": round(reply.seconds, 4),
            "norm": norm,
        }

    def _require_quorum(self, round_: int, accepted: int, record: dict[str, Any]) -> None:
        if accepted >= self.work.quorum:
            return
        bad = "; ".join(
            f"{site}: {facts['status']}" for site, facts in sorted(record["sites"].items()) if facts["status"] != "ok"
        )
        self.link.events.emit("failed", arm=self.work.arm, repeat=self.work.repeat, round=round_, accepted=accepted)
        raise QuorumError(
            f"round {round_} of the {self.work.arm} arm has {accepted} of {self.work.quorum} replies that the quorum "
            f"asks for ({bad}); mend these sites or lower federation.quorum, then --resume"
        )

    def _evaluate(self, round_: int, record: dict[str, Any]) -> Counts:
        request = protocol.EvaluateRequest(self.work.task(round_), "val", self.progress.weights)
        sealed = protocol.seal(request)
        record["bytes"] += sealed.bytes * len(self.work.sites)
        merged = Counts.zero(CountsLayout.of(self.study))
        answered = 0
        for answer in ask(self.link, sealed, self.work.sites, self._deadline_s):
            record["bytes"] += answer.bytes
            counts = _counts(answer, self.study)
            if isinstance(counts, str):
                record["sites"].setdefault(answer.site, {})["evaluation"] = counts
                continue
            merged += counts
            answered += 1
        if answered < self.work.quorum:
            raise QuorumError(
                f"round {round_} of the {self.work.arm} arm: {answered} of {self.work.quorum} sites evaluated it; "
                "mend the others or lower federation.quorum, then --resume"
            )
        return merged

    def _judge(self, round_: int, counts: Counts, record: dict[str, Any], last: bool) -> None:
        """Record the validation result; keep the best model where the study says so; stop early."""
        federation, facts = self.study.federation, self.progress.facts
        if not counts.images:
            raise DataError(
                f"the sites of the {self.work.arm} arm have no validation image, so neither a model nor a threshold "
                "can be chosen; give data.split a larger validation share"
            )
        loss = counts.loss / counts.images
        by_class = auc(counts)
        area = None if np.isnan(by_class).any() else float(by_class.mean())
        record["val_auc"], record["val_loss"] = area, loss
        stopping = federation.early_stopping
        by_loss = stopping is not None and stopping.metric == "loss"
        # Where validation lacks a class there is no AUC: the loss decides, in every round alike.
        score = -loss if by_loss or area is None else area
        best = facts.get("best_score")
        delta = stopping.min_delta if stopping is not None else 0.0
        tie = best is not None and score == best and loss < facts["best_loss"]
        improved = best is None or score > best + delta
        if improved or tie:
            facts["best_score"], facts["best_loss"] = score, loss
            facts["best_round"] = round_
            if federation.keep == "best":
                self._keep(round_, counts)
        facts["stale"] = 0 if improved else facts.get("stale", 0) + 1
        stop = stopping is not None and facts["stale"] >= stopping.patience and not last
        facts["stopped_early"] = stop
        if federation.keep == "last" and (last or stop):
            self._keep(round_, counts)
        self.progress.done = stop

    def _keep(self, round_: int, counts: Counts) -> None:
        self.progress.kept = self.progress.weights
        self.progress.validation = counts.to_arrays()
        self.progress.facts["kept_round"] = round_


def _counts(answer: Answer, study: Study) -> Counts | str:
    if not isinstance(answer.reply, protocol.StatisticsReply):
        return answer.reason or "wrong kind of reply"
    try:
        return Counts.from_arrays(answer.reply.statistics, CountsLayout.of(study))
    except FedwardError as error:
        return f"refused: {error}"
