"""The round loop: train, evaluate, judge, checkpoint; with quorum, early stop and resume.

Flower's own ``Strategy.start`` waits for ever for missing nodes, cannot stop early and calls
a run in which every site failed "completed" (DESIGN 5); this loop uses Flower's Grid and
Flower's arithmetic and nothing else of it.
"""

from __future__ import annotations

from typing import Any

from common import protocol
from common.errors import ReplyRefused, RunError
from common.metrics import FirstPass
from common.models import build_initial
from common.randomness import seed_for
from common.weights import state_of
from server.adding import TOO_LARGE, added
from server.asking import Link, statistics_of
from server.checkpoints import Progress, load_progress, save_progress
from server.fits import Fits, nothing
from server.judging import judge, keep
from server.quorum import Unpaid, require_quorum
from server.recall import Call
from server.standing import SET_ASIDE, Standing
from server.work import Work

_TRAINED = "trained"
"""Fact of a checkpoint that lies between a round's training and its evaluation: the round's record so far."""


class Arm:
    """The state of one arm while it trains; ``run`` brings it from its last checkpoint to its end."""

    def __init__(self, link: Link, work: Work) -> None:
        self.link, self.work, self.study = link, work, work.study
        model, loaded = build_initial(self.study, seed_for(self.study.seed, work.repeat, "weights"), work.base)
        if loaded is not None:
            link.events.emit("weights-loaded", **work.named, report=str(loaded))
        self._standing = Standing(self.study.federation.set_aside_after)
        self.progress = Progress(weights=state_of(model))
        self._fits = Fits(link, work, model, self.progress.weights, self._standing)

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
                kept = self.progress.facts["kept_round"]
                self.link.events.emit("unpaid", **self.work.named, kept=kept, sites=list(error.sites), why=str(error))
                break
        return self.progress

    def _paid_for(self) -> bool:
        """Whether there is a model that sites' privacy budgets have paid for; then it is the one that is kept.

        The checkpoint stays as it was: with larger budgets the run goes on from there.
        """
        if self.progress.round and self.study.metrics_suppressed:
            keep(self.progress, self.progress.round, FirstPass.zero(self.study))
        return bool(self.progress.kept)

    def _resume(self) -> None:
        saved = load_progress(self.work.checkpoint, key=self.work.key) if self.work.checkpoint else None
        if saved is None:
            return
        if not set(saved.weights) == set(self.progress.weights) >= set(saved.kept):
            raise RunError(f"{self.work.checkpoint} is of another model; start the run anew")
        # The file sorts its tensors; an uninterrupted run has them in the model's order.
        names = list(self.progress.weights)
        saved.weights = {name: saved.weights[name] for name in names}
        saved.kept = {name: saved.kept[name] for name in names if name in saved.kept}
        self.progress = saved
        self._fits.restore(saved.strategy, saved.facts)
        self._standing.restore(saved.facts.get("refused", {}))
        if self.study.privacy and not (self.work.resends or saved.done or _TRAINED in saved.facts):
            # The round at which it stopped may have been trained; trained anew, with other noise, it counts twice.
            saved.facts["rounds_redone"] = saved.facts.get("rounds_redone", 0) + 1
            if self.work.checkpoint is not None:
                save_progress(self.work.checkpoint, saved, key=self.work.key)
        redone = {"redone": n} if (n := saved.facts.get("rounds_redone")) else {}
        self.link.events.emit("resumed", **self.work.named, round=saved.round, **redone)

    def _round(self, round_: int, rounds: int) -> None:
        started = self.link.clock()
        sent = self.progress.weights
        aside = dict.fromkeys(sorted(self._standing.aside), SET_ASIDE)
        sites = {site: nothing(word) | {"evaluation": word} for site, word in aside.items()}
        record: dict[str, Any] = {"round": round_, "bytes": 0, "sites": sites, "val_loss": None, "val_auc": None}
        trained = self.progress.facts.pop(_TRAINED, None)
        if trained is not None:  # and its noise was drawn: another draw would be paid for again
            record = trained
        else:
            self.progress.weights = self._fits.train(round_, sent, record, self.progress.facts)
            if self.work.central:
                self._save_trained(record)
        federation = self.study.federation
        last = round_ == rounds
        if self.study.metrics_suppressed:
            self.progress.facts["stopped_early"] = False
            if last:
                keep(self.progress, round_, FirstPass.zero(self.study))
        elif last or (federation.evaluate_every and round_ % federation.evaluate_every == 0):
            found = self._evaluate(round_, record)
            judge(self.link, self.work, self.progress, round_, found, record, last)
        record["wall_s"] = round(self.link.clock() - started, 4)
        self.progress.round = round_
        self._take_state()
        for site in self._standing.judge(record["sites"]):
            self.link.events.emit("set-aside", **self.work.named, round=round_, site=site)
        self.progress.facts["refused"] = self._standing.state()
        self.progress.history.append(record)
        self.progress.done = self.progress.done or last
        self._save()
        self.link.events.emit("round", **self.work.named, rounds=rounds, **record)

    def _take_state(self) -> None:
        self.progress.strategy = self._fits.state()
        self.progress.facts |= self._fits.facts()

    def _save(self) -> None:
        if self.work.checkpoint is not None:
            save_progress(self.work.checkpoint, self.progress, key=self.work.key)

    def _save_trained(self, record: dict[str, Any]) -> None:
        """Keep the noised weights before anybody is sent them: after a kill these go on, and no second draw leaves."""
        self._take_state()
        self.progress.facts[_TRAINED] = record
        self._save()
        del self.progress.facts[_TRAINED]

    def _evaluate(self, round_: int, record: dict[str, Any]) -> FirstPass:
        own = self.work.own_round(round_)
        request = protocol.EvaluateRequest(self.work.task(round_), "val", self.progress.weights, personal=own)
        answered: dict[str, FirstPass] = {}
        sites = self._standing.asked(self.work.sites)
        call = Call(self.link, request, sites, self.work.answer_s, lambda: self.work.quorum - len(answered))
        for answer in call.answers():
            record["bytes"] += answer.bytes
            try:
                parsed = statistics_of(answer, round_, lambda arrays: FirstPass.from_arrays(arrays, self.study))
                answered[answer.site] = parsed
                record["sites"][answer.site]["evaluation"] = "ok"
            except ReplyRefused as error:
                self._not_evaluated(round_, answer.site, str(error), record)
        merged, refused = added(answered, FirstPass.zero(self.study))
        for site in refused:
            self._not_evaluated(round_, site, TOO_LARGE, record)
        aside, accepted = bool(self._standing.aside), len(answered) - len(refused)
        require_quorum(self.link, self.work, round_, accepted, record, "evaluation", aside=aside)
        return merged

    def _not_evaluated(self, round_: int, site: str, why: str, record: dict[str, Any]) -> None:
        record["sites"][site]["evaluation"] = why
        self.link.events.emit("site", **self.work.named, round=round_, site=site, status=f"evaluation: {why}")
