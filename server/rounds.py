"""The round loop: ask, check, fold, evaluate, checkpoint; with quorum, deadline, early stop and resume.

Flower's own ``Strategy.start`` waits for ever for missing nodes, cannot stop early and calls
a run in which every site failed "completed" (DESIGN 5); this loop uses Flower's Grid and
Flower's arithmetic and nothing else of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import nn

from common import protocol
from common.basis import Basis
from common.central import check_colluders, check_sites, effect_of, effect_words, spec_of
from common.compression import decompress
from common.errors import (
    BudgetExhausted,
    DataError,
    FedwardError,
    ModelError,
    ProtocolError,
    QuorumError,
    ReplyRefused,
    RunError,
)
from common.metrics import Counts, FirstPass, Outlines, auc, auc_bounds
from common.models import build_initial
from common.noise_shares import shares_of
from common.personal import own_names
from common.randomness import seed_for
from common.study import Study
from common.weights import Weights, changing_names, state_of, trainable_names
from server.aggregation import Aggregator, Layout, build_aggregator
from server.asking import DECLINED, Answer, Link, ask
from server.central import NoisedMean
from server.checkpoints import Progress, load_progress, save_progress
from server.checks import ReplyChecks, check_sum
from server.recall import Call
from server.secure import AttemptFailed, RoundLost, SecureSum, secure_sum
from server.standing import SET_ASIDE, Standing
from server.variates import VARIATE, MeanVariate


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
    basis: Basis | None = None
    """What the study takes from its survey (``server.survey``)."""
    resends: bool = True
    """Whether a site asked again for a round gives the reply it has kept; simulated sites train again."""

    @property
    def key(self) -> dict[str, Any]:
        return {"study": self.study.hash, "arm": self.arm, "repeat": self.repeat, "sites": sorted(self.sites)}

    @property
    def central(self) -> bool:
        """Whether the sites' mean gets noise: not where one hospital trains alone, or all images are pooled."""
        return self.study.central_privacy is not None and self.arm == "federated"

    def task(self, round_: int) -> protocol.Task:
        return protocol.Task(self.study, self.arm, self.repeat, round_, basis=self.basis)

    def own_round(self, round_: int) -> int | None:
        """Of an evaluation of the arm's model after ``round_``: under FedBN each site's has its own norm layers."""
        personal = self.task(0).personal
        return round_ if personal is not None and personal.split else None

    @property
    def quorum(self) -> int:
        return quorum_of(self.study, len(self.sites))


def quorum_of(study: Study, sites: int) -> int:
    """How many of ``sites`` must answer."""
    return max(1, math.ceil(study.federation.quorum * sites - 1e-9))


class Unpaid(QuorumError):
    """A round for which too few privacy budgets pay; ``sites``: whose do not."""

    def __init__(self, text: str, sites: Sequence[str]) -> None:
        super().__init__(text)
        self.sites = sites


T = TypeVar("T")
_LISTED = 5
_UNPAID = f"{DECLINED}{BudgetExhausted.code}"
_MOST_LOST = 3
_TRAINED = "trained"
"""Fact of a checkpoint that lies between a round's training and its evaluation: the round's record so far."""


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
        personal = work.task(0).personal
        own = own_names(model, personal)
        self._trainable, changing = _without(own, trainable_names(model)), _without(own, changing_names(model))
        self._changing = {name: self._template[name] for name in changing}
        central = self._central(model)
        self._aggregator: Aggregator = build_aggregator(
            self.study, Layout.of(self._template, self._trainable, changing), sites=len(work.sites), central=central
        )
        self._variate: MeanVariate | None = None
        if personal is not None and personal.method == "scaffold":
            trained = {name: self._template[name] for name in self._trainable}
            self._variate = MeanVariate(trained, self.study.training, sites=len(work.sites))
        self._checks = ReplyChecks(
            self.study.federation, self._trainable, private=self.study.counts_kept, clipped=central is not None
        )
        self._sums = secure_sum(
            link, work.task(0), work.sites, self._changing, work.quorum, self._deadline_s, work.checkpoint
        )
        self._standing = Standing(self.study.federation.set_aside_after)
        self.progress = Progress(weights=self._template)

    def _central(self, model: nn.Module) -> NoisedMean | None:
        """The noised mean, where the coordinator makes one, and under central privacy word of what noise does here.

        Raises :class:`PrivacyError`, :class:`ModelError` where it would mean nothing, or not cover all that leaves.
        """
        if not self.work.central:
            return None
        check_sites(self.study, len(self.work.sites))
        changing = [name for name, _ in model.named_buffers() if name in self._changing]
        if changing:
            raise ModelError(
                f"central_privacy: {', '.join(changing[:_LISTED])} may change in training without being parameters, "
                "and no noise covers them; choose a model without such layers (model.norm: group)"
            )
        parameters = sum(self._template[name].size for name in self._trainable)
        words = effect_words(effect_of(self.study, len(self.work.sites), parameters))
        self.link.events.emit("central-privacy", arm=self.work.arm, repeat=self.work.repeat, told=words)
        if self.study.noised_by_sites:
            check_colluders(self.study, len(self.link.roster().keys))
            shares_of(self.study, parameters)  # the sites would refuse
            return None
        return NoisedMean(self.study, parameters)

    @property
    def _deadline_s(self) -> float:
        return self.work.deadline_s or self.study.federation.deadline_s

    def run(self) -> Progress:
        """Train to the end. Raises :class:`QuorumError` for a round with too few accepted replies."""
        self._resume()
        rounds = self.study.federation.rounds
        while not self.progress.done:
            try:
                self._round(self.progress.round + 1, rounds)
            except Unpaid as error:
                if not self._paid_for():
                    raise
                self.progress.facts["unpaid"] = list(error.sites)
                facts = {"arm": self.work.arm, "repeat": self.work.repeat, "kept": self.progress.facts["kept_round"]}
                self.link.events.emit("unpaid", **facts, sites=list(error.sites), why=str(error))
                break
        return self.progress

    def _paid_for(self) -> bool:
        """Whether there is a model that sites' privacy budgets have paid for; then it is the one that is kept.

        The checkpoint stays as it was: with larger budgets the run goes on from there.
        """
        if self.progress.round and self.study.metrics_suppressed:
            self._keep(self.progress.round, FirstPass.zero(self.study))
        return bool(self.progress.kept)

    def _resume(self) -> None:
        saved = load_progress(self.work.checkpoint, key=self.work.key) if self.work.checkpoint else None
        if saved is None:
            return
        if not set(saved.weights) == set(self._template) >= set(saved.kept):
            raise RunError(f"{self.work.checkpoint} is of another model; start the run anew")
        # The file sorts its tensors; an uninterrupted run has them in the model's order.
        saved.weights = {name: saved.weights[name] for name in self._template}
        saved.kept = {name: saved.kept[name] for name in self._template if name in saved.kept}
        self.progress = saved
        state = dict(saved.strategy)
        if self._variate is not None:
            self._variate.restore(state, saved.facts["variates"])
            state = {name: array for name, array in state.items() if not name.startswith(VARIATE)}
        self._aggregator.restore(state)
        self._checks.cap = saved.facts.get("norm_cap", self._checks.cap)
        self._standing.restore(saved.facts.get("refused", {}))
        if self.study.privacy and not (self.work.resends or saved.done or _TRAINED in saved.facts):
            # The round at which it stopped may have been trained; trained anew, with other noise, it counts twice.
            saved.facts["rounds_redone"] = saved.facts.get("rounds_redone", 0) + 1
            if self.work.checkpoint is not None:
                save_progress(self.work.checkpoint, saved, key=self.work.key)
        redone = {"redone": n} if (n := saved.facts.get("rounds_redone")) else {}
        self.link.events.emit("resumed", arm=self.work.arm, repeat=self.work.repeat, round=saved.round, **redone)

    def _round(self, round_: int, rounds: int) -> None:
        started = self.link.clock()
        sent = self.progress.weights
        aside = dict.fromkeys(sorted(self._standing.aside), SET_ASIDE)
        sites = {site: _nothing(word) | {"evaluation": word} for site, word in aside.items()}
        record: dict[str, Any] = {"round": round_, "bytes": 0, "sites": sites, "val_loss": None, "val_auc": None}
        trained = self.progress.facts.pop(_TRAINED, None)
        if trained is not None:  # and its noise was drawn: another draw would be paid for again
            record = trained
        else:
            self.progress.weights = self._train(round_, sent, record)
            if self.work.central:
                self._save_trained(record)
        federation = self.study.federation
        last = round_ == rounds
        if self.study.metrics_suppressed:
            self.progress.facts["stopped_early"] = False
            if last:
                self._keep(round_, FirstPass.zero(self.study))
        elif last or (federation.evaluate_every and round_ % federation.evaluate_every == 0):
            found = self._evaluate(round_, record)
            self._judge(round_, found, record, last)
        record["wall_s"] = round(self.link.clock() - started, 4)
        self.progress.round = round_
        self._take_state()
        for site in self._standing.judge(record["sites"]):
            self.link.events.emit("set-aside", arm=self.work.arm, repeat=self.work.repeat, round=round_, site=site)
        self.progress.facts["refused"] = self._standing.state()
        self.progress.history.append(record)
        self.progress.done = self.progress.done or last
        self._save()
        self.link.events.emit("round", arm=self.work.arm, repeat=self.work.repeat, rounds=rounds, **record)

    def _take_state(self) -> None:
        self.progress.strategy = self._aggregator.state()
        if self._variate is not None:
            self.progress.strategy |= self._variate.state()
            self.progress.facts["variates"] = self._variate.facts()
        self.progress.facts["norm_cap"] = self._checks.cap

    def _save(self) -> None:
        if self.work.checkpoint is not None:
            save_progress(self.work.checkpoint, self.progress, key=self.work.key)

    def _save_trained(self, record: dict[str, Any]) -> None:
        """Keep the noised weights before anybody is sent them: after a kill these go on, and no second draw leaves."""
        self._take_state()
        self.progress.facts[_TRAINED] = record
        self._save()
        del self.progress.facts[_TRAINED]

    def _train(self, round_: int, sent: Weights, record: dict[str, Any]) -> Weights:
        if self._sums is not None:
            return self._train_masked(self._sums, round_, sent, record)
        self._aggregator.begin(round_, sent)
        accepted: dict[str, tuple[int, float | None]] = {}
        request = protocol.TrainRequest(self.work.task(round_), sent)
        if self._variate is not None:
            self._variate.begin(round_, sent)
            request = replace(request, variates=self._variate.sent())
        for answer in self._call(request, lambda: self.work.quorum - len(accepted)).answers():
            record["bytes"] += answer.bytes
            outcome = self._accept(round_, sent, answer, accepted)
            record["sites"][answer.site] = outcome
            self.link.events.emit(
                "site", arm=self.work.arm, repeat=self.work.repeat, round=round_, site=answer.site, **outcome
            )
            del answer  # a whole model, while the next one is on its way
        self._require_quorum(round_, len(accepted), record, "status")
        self._checks.next_round()
        # In site order, so that the printed loss is the same whoever answered first. Private sites tell none.
        told = [(n, loss) for n, loss in (accepted[site] for site in sorted(accepted)) if loss is not None]
        record["train_loss"] = sum(n * loss for n, loss in told) / sum(n for n, _ in told) if told else None
        weights = self._aggregator.finish()
        if self._variate is not None:
            self._variate.finish()
        record |= self._aggregator.told()
        return weights

    def _train_masked(self, sums: SecureSum, round_: int, sent: Weights, record: dict[str, Any]) -> Weights:
        """The same from a secure sum. A round whose sum is lost, or is none, leaves the weights as they were.

        Raises :class:`QuorumError` where too few sites stay, and for the third lost round in a row.
        """
        asked = self._standing.asked(self.work.sites)
        found, lost, failed = None, "", ""
        try:
            found = sums.collect(round_, sent, asked)
            check_sum(found.total, len(found.survivors), self.study, sent, self._trainable)
        except AttemptFailed as error:
            failed = str(error)
        except (RoundLost, ReplyRefused) as error:
            lost = str(error)
        survivors = found.survivors if found is not None else ()
        record["bytes"] += sums.moved
        for site in asked:
            word = "ok" if site in survivors else sums.reasons.get(site, "no sum without the others")
            record["sites"][site] = _nothing(word) | {"examples": None}
            self.link.events.emit(
                "site", arm=self.work.arm, repeat=self.work.repeat, round=round_, site=site, **record["sites"][site]
            )
        if failed:
            listed = self._failed(round_, 0, record, "status")
            raise _quorum_lost(
                f"round {round_} of the {self.work.arm} arm has no secure sum: {failed} ({listed}); mend these sites, "
                "then --resume",
                record,
            )
        self._lost(round_, lost, record)
        record["train_loss"] = None
        if found is None or lost:
            return sent
        record["train_loss"] = found.total.loss
        if self.work.central:
            record["central"] = self._shared_noise(len(survivors))
        self._aggregator.begin(round_, sent)
        self._aggregator.add_sum(found.total.arrays, found.total.examples)
        return self._aggregator.finish()

    def _shared_noise(self, sites: int) -> dict[str, Any]:
        """Of a round whose noise came from ``sites`` sites, as :attr:`NoisedMean.told`."""
        parameters, clip = sum(self._template[name].size for name in self._trainable), spec_of(self.study).clip
        noise = effect_of(self.study, sites, parameters).each * clip
        return {"clip": clip, "noise": noise, "sites": sites, "parameters": parameters}

    def _lost(self, round_: int, why: str, record: dict[str, Any]) -> None:
        """Note whether a round was lost (``why``). Raises :class:`QuorumError` for the third in a row."""
        facts = self.progress.facts
        facts["lost"] = facts.get("lost", 0) + 1 if why else 0
        if not why:
            return
        record["lost"] = why
        self.link.events.emit("round-lost", arm=self.work.arm, repeat=self.work.repeat, round=round_, why=why)
        if facts["lost"] >= _MOST_LOST:
            raise QuorumError(f"{facts['lost']} rounds in a row were lost, last: {why}")

    def _call(self, request: protocol.TrainRequest | protocol.EvaluateRequest, lacking: Callable[[], int]) -> Call:
        return Call(self.link, request, self._standing.asked(self.work.sites), self._deadline_s, lacking)

    def _accept(
        self, round_: int, sent: Weights, answer: Answer, accepted: dict[str, tuple[int, float | None]]
    ) -> dict[str, Any]:
        try:
            reply = self._plain(round_, sent, answer.reply)
            if reply is None:
                return _nothing(answer.reason or "wrong kind of reply")
            norm = self._checks.judge(reply, site=answer.site, round_=round_, sent=sent)
            moved = None if self._variate is None else self._variate.judge(reply)
            self._aggregator.add(reply)
            if self._variate is not None and moved is not None:
                self._variate.add(reply, moved)
            self._checks.accepted(norm)
        except ReplyRefused as error:
            return _nothing(f"refused: {error}")
        accepted[answer.site] = (reply.examples, reply.loss)
        return {
            "status": "ok",
            "loss": reply.loss,
            "examples": reply.examples,
            "seconds": round(reply.seconds, 4),
            "norm": None if self.work.central else norm,  # exact, and of one site
        }

    def _plain(self, round_: int, sent: Weights, reply: protocol.Reply | None) -> protocol.TrainReply | None:
        """A fit's weights in full, however the study has them sent; ``None``: no fit. Raises :class:`ReplyRefused`.

        What the study freezes, or leaves at the sites, does not come back: it is what was sent.
        """
        compression = self.work.task(round_).compression
        weights: Weights
        if isinstance(reply, protocol.UpdateReply) and compression != "none":
            changed = {name: sent[name] for name in self._changing}
            weights = decompress(compression, reply.update, changed, self._trainable)
        elif isinstance(reply, protocol.TrainReply) and compression == "none":
            weights = reply.weights
        else:
            return None
        frozen = {name: value for name, value in sent.items() if name not in self._changing}
        given = next((name for name in frozen if name in weights), None)
        if given is not None:
            raise ReplyRefused(
                f"its weights hold {given}, which the study freezes or leaves at its site; it must build the same study"
            )
        whole, pace = {**frozen, **weights}, reply.pace if isinstance(reply, protocol.TrainReply) else None
        return protocol.TrainReply(reply.site, reply.round, whole, reply.examples, reply.loss, reply.seconds, pace)

    def _require_quorum(self, round_: int, accepted: int, record: dict[str, Any], field_: str) -> None:
        """Raises :class:`QuorumError` naming the sites whose ``field_`` ("status", "evaluation") is not "ok"."""
        if accepted >= self.work.quorum:
            return
        listed = self._failed(round_, accepted, record, field_)
        what = "replies" if field_ == "status" else "evaluations"
        raise _quorum_lost(
            f"round {round_} of the {self.work.arm} arm has {accepted} of {self.work.quorum} {what} that the quorum "
            f"asks for ({listed}); mend these sites, then --resume, or start anew with a lower federation.quorum"
            + ("; who was set aside stays so in this run" if self._standing.aside else ""),
            record,
        )

    def _failed(self, round_: int, accepted: int, record: dict[str, Any], field_: str) -> str:
        """Tell that a round has failed; the sites that are not "ok", and why, in words."""
        failed = {site: facts[field_] for site, facts in sorted(record["sites"].items()) if facts[field_] != "ok"}
        self.link.events.emit(
            "failed", arm=self.work.arm, repeat=self.work.repeat, round=round_, accepted=accepted, sites=failed
        )
        listed = "; ".join(f"{site}: {reason}" for site, reason in list(failed.items())[:_LISTED])
        return listed + (f"; and {len(failed) - _LISTED} more" if len(failed) > _LISTED else "")

    def _evaluate(self, round_: int, record: dict[str, Any]) -> FirstPass:
        own = self.work.own_round(round_)
        request = protocol.EvaluateRequest(self.work.task(round_), "val", self.progress.weights, personal=own)
        merged = FirstPass.zero(self.study)
        answered: set[str] = set()
        for answer in self._call(request, lambda: self.work.quorum - len(answered)).answers():
            record["bytes"] += answer.bytes
            try:
                merged += statistics_of(answer, round_, lambda arrays: FirstPass.from_arrays(arrays, self.study))
                outcome = "ok"
                answered.add(answer.site)
            except ReplyRefused as error:
                outcome = str(error)
                self.link.events.emit(
                    "site",
                    arm=self.work.arm,
                    repeat=self.work.repeat,
                    round=round_,
                    site=answer.site,
                    status=f"evaluation: {outcome}",
                )
            record["sites"][answer.site]["evaluation"] = outcome
        self._require_quorum(round_, len(answered), record, "evaluation")
        return merged

    def _judge(self, round_: int, found: FirstPass, record: dict[str, Any], last: bool) -> None:
        """Record the validation result; keep the best model where the study says so; stop early."""
        federation, facts, counts = self.study.federation, self.progress.facts, found.counts
        facts["stopped_early"] = False
        if not counts.images:
            self._without_validation(round_, found, last)
            return
        loss = counts.loss / counts.images
        area, bounds = _area(counts)
        record["val_auc"], record["val_loss"] = area, loss
        if bounds is not None:
            record["val_auc_bounds"] = bounds
        if found.outlines is not None:
            record["val_dice"] = pooled_dice(found.outlines)
        stopping = federation.early_stopping
        by_outline = self.study.task == "segmentation"
        if by_outline:
            area = record["val_dice"]
        # Where validation lacks a class there is no AUC: the loss decides then, and in every later round too. So it
        # does where small cells are hidden: the AUC's bounds move with the blocks more than with the model.
        by_loss = (
            area is None
            or (self.study.evaluation.min_cell > 1 and not by_outline)
            or (stopping is not None and stopping.metric == "loss")
        )
        score = -loss if facts.setdefault("judged_by", "loss" if by_loss else "auc") == "loss" else area
        best = facts.get("best_score")
        if score is not None and (best is None or (score, -loss) > (best, -facts["best_loss"])):
            facts["best_score"], facts["best_loss"], facts["best_round"] = score, loss, round_
            if federation.keep == "best":
                self._keep(round_, found)
        # Patience counts from the last step that was worth min_delta, as small steps may add up to one.
        bar, delta = facts.get("bar"), stopping.min_delta if stopping is not None else 0.0
        improved = score is not None and (bar is None or score > bar + delta)
        facts["bar"], facts["stale"] = (score, 0) if improved else (bar, facts.get("stale", 0) + 1)
        stop = stopping is not None and facts["stale"] >= stopping.patience and not last
        facts["stopped_early"] = stop
        if federation.keep == "last" and (last or stop):
            self._keep(round_, found)
        self.progress.done = stop

    def _without_validation(self, round_: int, found: FirstPass, last: bool) -> None:
        """A hospital alone may have no validation image: it keeps its last model, at a threshold of 0.5.

        Raises :class:`DataError` where several sites have none between them.
        """
        if len(self.work.sites) > 1:
            raise DataError(
                f"the sites of the {self.work.arm} arm have no validation image, so neither a model nor a threshold "
                "can be chosen; give data.split a larger validation share"
            )
        if last:
            self.link.events.emit("unvalidated", arm=self.work.arm, repeat=self.work.repeat, round=round_)
            self._keep(round_, found)

    def _keep(self, round_: int, found: FirstPass) -> None:
        self.progress.kept = self.progress.weights
        self.progress.validation = found.to_arrays()
        self.progress.facts["kept_round"] = round_


def _quorum_lost(text: str, record: Mapping[str, Any]) -> QuorumError:
    """That a round has failed, in ``text``; where a site it lacked has no privacy budget left, for that reason."""
    unpaid = sorted(site for site, facts in record["sites"].items() if facts["status"] == _UNPAID)
    return Unpaid(text, unpaid) if unpaid else QuorumError(text)


def _without(own: Collection[str], names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name not in own)


def _nothing(status: str) -> dict[str, Any]:
    """What a round's record says of a site that gave nothing."""
    return {"status": status, "loss": None, "examples": 0, "seconds": None}


def statistics_of(answer: Answer, round_: int, parse: Callable[[protocol.Statistics], T]) -> T:
    """What ``parse`` reads from an evaluation's answer. Raises :class:`ReplyRefused` with the reason."""
    reply = answer.reply
    if not isinstance(reply, protocol.StatisticsReply):
        raise ReplyRefused(answer.reason or "wrong kind of reply")
    if (reply.site, reply.round) != (answer.site, round_):
        raise ReplyRefused("refused: it answers under another name or for another round")
    try:
        return parse(reply.statistics)
    except FedwardError as error:
        raise ReplyRefused(f"refused: {error}") from None


def _area(counts: Counts) -> tuple[float | None, tuple[float, float] | None]:
    """Mean AUC over the classes, or its bounds where hidden small cells leave no more; neither where a class lacks."""
    low, high = auc_bounds(counts)
    if np.isnan(low).any():
        return None, None
    if counts.exact:
        return float(auc(counts).mean()), None
    return None, (round(float(low.mean()), 6), round(float(high.mean()), 6))


def pooled_dice(outlines: Outlines) -> float | None:
    """Dice of all pixels at the best of the thresholds; ``None`` where there is neither mask nor outline."""
    best = np.nanmax(outlines.pooled, initial=-1.0)
    return None if best < 0.0 else float(best)
