"""How an arm's sites train one round: fits asked for, each checked and folded, or their sum taken under masks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray
from torch import nn

from common import protocol
from common.central import check_colluders, check_sites, effect_of, effect_words, spec_of
from common.compression import decompress
from common.errors import ModelError, QuorumError, ReplyRefused
from common.noise_shares import shares_of
from common.personal import own_names
from common.weights import Weights, changing_names, trainable_names
from server.aggregation import Aggregator, Layout, build_aggregator
from server.asking import Answer, Link
from server.central import NoisedMean
from server.checks import ReplyChecks, check_sum
from server.quorum import failed, quorum_lost, require_quorum
from server.recall import Call
from server.secure import AttemptFailed, RoundLost, SecureSum, secure_sum
from server.standing import Standing
from server.variates import VARIATE, MeanVariate
from server.work import Work

_LISTED = 5
_MOST_LOST = 3


class Fits:
    """What an arm's training holds beside its weights: sums, control variates, checks that learn from round to round.

    Raises :class:`PrivacyError`, :class:`ModelError` where central privacy would mean nothing, or not cover all that
    leaves.
    """

    def __init__(self, link: Link, work: Work, model: nn.Module, weights: Weights, standing: Standing) -> None:
        """``weights``: all of the model's, as names and shapes are taken from them."""
        self._link, self._work, self._study, self._standing = link, work, work.study, standing
        self._template = weights
        personal = work.task(0).personal
        own = own_names(model, personal)
        self._trainable, changing = _without(own, trainable_names(model)), _without(own, changing_names(model))
        self._changing = {name: self._template[name] for name in changing}
        central = self._central(model)
        self._aggregator: Aggregator = build_aggregator(
            self._study, Layout.of(self._template, self._trainable, changing), sites=len(work.sites), central=central
        )
        self.variate: MeanVariate | None = None
        """Of SCAFFOLD."""
        if personal is not None and personal.method == "scaffold":
            trained = {name: self._template[name] for name in self._trainable}
            self.variate = MeanVariate(trained, self._study.training, sites=len(work.sites))
        self._checks = ReplyChecks(
            self._study.federation, self._trainable, private=self._study.counts_kept, clipped=central is not None
        )
        self._sums = secure_sum(
            link, work.task(0), work.sites, self._changing, work.quorum, work.answer_s, work.checkpoint
        )

    def _central(self, model: nn.Module) -> NoisedMean | None:
        """The noised mean, where the coordinator makes one, and under central privacy word of what noise does here."""
        if not self._work.central:
            return None
        check_sites(self._study, len(self._work.sites))
        changing = [name for name, _ in model.named_buffers() if name in self._changing]
        if changing:
            raise ModelError(
                f"central_privacy: {', '.join(changing[:_LISTED])} may change in training without being parameters, "
                "and no noise covers them; choose a model without such layers (model.norm: group)"
            )
        parameters = self._parameters
        words = effect_words(effect_of(self._study, len(self._work.sites), parameters))
        self._link.events.emit("central-privacy", **self._work.named, told=words)
        if self._study.noised_by_sites:
            check_colluders(self._study, len(self._link.roster().keys))
            shares_of(self._study, parameters)  # the sites would refuse
            return None
        return NoisedMean(self._study, parameters)

    @property
    def _parameters(self) -> int:
        return sum(self._template[name].size for name in self._trainable)

    # --- between rounds ---------------------------------------------------------------------------------------------

    def state(self) -> dict[str, NDArray[Any]]:
        """For a checkpoint; :meth:`facts` goes with it."""
        return self._aggregator.state() | (self.variate.state() if self.variate is not None else {})

    def facts(self) -> dict[str, Any]:
        """Of the same checkpoint."""
        variates = {"variates": self.variate.facts()} if self.variate is not None else {}
        return variates | {"norm_cap": self._checks.cap}

    def restore(self, state: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> None:
        """From a checkpoint's."""
        if self.variate is not None:
            self.variate.restore(state, facts["variates"])
        self._aggregator.restore({name: array for name, array in state.items() if not name.startswith(VARIATE)})
        self._checks.cap = facts.get("norm_cap", self._checks.cap)

    # --- one round --------------------------------------------------------------------------------------------------

    def train(self, round_: int, sent: Weights, record: dict[str, Any], facts: dict[str, Any]) -> Weights:
        """The weights after ``round_``, which began with ``sent``; what came of it goes into the round's ``record``.

        ``facts`` are the run's, which count lost rounds. Raises :class:`QuorumError` for too few accepted replies.
        """
        if self._sums is not None:
            return self._train_masked(self._sums, round_, sent, record, facts)
        self._aggregator.begin(round_, sent)
        accepted: dict[str, tuple[int, float | None]] = {}
        request = protocol.TrainRequest(self._work.task(round_), sent)
        if self.variate is not None:
            self.variate.begin(round_, sent)
            request = replace(request, variates=self.variate.sent())
        sites = self._standing.asked(self._work.sites)
        call = Call(self._link, request, sites, self._work.answer_s, lambda: self._work.quorum - len(accepted))
        for answer in call.answers():
            record["bytes"] += answer.bytes
            outcome = self._accept(round_, sent, answer, accepted)
            record["sites"][answer.site] = outcome
            self._link.events.emit("site", **self._work.named, round=round_, site=answer.site, **outcome)
            del answer  # a whole model, while the next one is on its way
        aside = bool(self._standing.aside)
        require_quorum(self._link, self._work, round_, len(accepted), record, "status", aside=aside)
        self._checks.next_round()
        # In site order, so that the printed loss is the same whoever answered first. Private sites tell none.
        told = [(n, loss) for n, loss in (accepted[site] for site in sorted(accepted)) if loss is not None]
        record["train_loss"] = sum(n * loss for n, loss in told) / sum(n for n, _ in told) if told else None
        weights = self._aggregator.finish()
        if self.variate is not None:
            self.variate.finish()
        record |= self._aggregator.told()
        return weights

    def _accept(
        self, round_: int, sent: Weights, answer: Answer, accepted: dict[str, tuple[int, float | None]]
    ) -> dict[str, Any]:
        try:
            reply = self._plain(round_, sent, answer.reply)
            if reply is None:
                return nothing(answer.reason or "wrong kind of reply")
            norm = self._checks.judge(reply, site=answer.site, round_=round_, sent=sent)
            moved = None if self.variate is None else self.variate.judge(reply)
            self._aggregator.add(reply)
            if self.variate is not None and moved is not None:
                self.variate.add(reply, moved)
            self._checks.accepted(norm)
        except ReplyRefused as error:
            return nothing(f"refused: {error}")
        accepted[answer.site] = (reply.examples, reply.loss)
        return {
            "status": "ok",
            "loss": reply.loss,
            "examples": reply.examples,
            "seconds": round(reply.seconds, 4),
            "norm": None if self._work.central else norm,  # exact, and of one site
        }

    def _plain(self, round_: int, sent: Weights, reply: protocol.Reply | None) -> protocol.TrainReply | None:
        """A fit's weights in full, however the study has them sent; ``None``: no fit. Raises :class:`ReplyRefused`.

        What the study freezes, or leaves at the sites, does not come back: it is what was sent.
        """
        compression = self._work.task(round_).compression
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

    # --- one round under masks --------------------------------------------------------------------------------------

    def _train_masked(
        self, sums: SecureSum, round_: int, sent: Weights, record: dict[str, Any], facts: dict[str, Any]
    ) -> Weights:
        """The same from a secure sum. A round whose sum is lost, or is none, leaves the weights as they were.

        Raises :class:`QuorumError` where too few sites stay, and for the third lost round in a row.
        """
        asked = self._standing.asked(self._work.sites)
        found, lost, broken = None, "", ""
        try:
            found = sums.collect(round_, sent, asked)
            check_sum(found.total, len(found.survivors), self._study, sent, self._trainable)
        except AttemptFailed as error:
            broken = str(error)
        except (RoundLost, ReplyRefused) as error:
            lost = str(error)
        survivors = found.survivors if found is not None else ()
        record["bytes"] += sums.moved
        for site in asked:
            word = "ok" if site in survivors else sums.reasons.get(site, "no sum without the others")
            record["sites"][site] = nothing(word) | {"examples": None}
            self._link.events.emit("site", **self._work.named, round=round_, site=site, **record["sites"][site])
        if broken:
            listed = failed(self._link, self._work, round_, 0, record, "status")
            raise quorum_lost(
                f"round {round_} of the {self._work.arm} arm has no secure sum: {broken} ({listed}); mend these sites, "
                "then --resume",
                record,
            )
        self._lost(round_, lost, record, facts)
        record["train_loss"] = None
        if found is None or lost:
            return sent
        record["train_loss"] = found.total.loss
        if self._work.central:
            record["central"] = self._shared_noise(len(survivors))
        self._aggregator.begin(round_, sent)
        self._aggregator.add_sum(found.total.arrays, found.total.examples)
        return self._aggregator.finish()

    def _shared_noise(self, sites: int) -> dict[str, Any]:
        """Of a round whose noise came from ``sites`` sites, as :attr:`NoisedMean.told`."""
        parameters, clip = self._parameters, spec_of(self._study).clip
        noise = effect_of(self._study, sites, parameters).each * clip
        return {"clip": clip, "noise": noise, "sites": sites, "parameters": parameters}

    def _lost(self, round_: int, why: str, record: dict[str, Any], facts: dict[str, Any]) -> None:
        """Note whether a round was lost (``why``). Raises :class:`QuorumError` for the third in a row."""
        facts["lost"] = facts.get("lost", 0) + 1 if why else 0
        if not why:
            return
        record["lost"] = why
        self._link.events.emit("round-lost", **self._work.named, round=round_, why=why)
        if facts["lost"] >= _MOST_LOST:
            raise QuorumError(f"{facts['lost']} rounds in a row were lost, last: {why}")


def nothing(status: str) -> dict[str, Any]:
    """What a round's record says of a site that gave nothing."""
    return {"status": status, "loss": None, "examples": 0, "seconds": None}


def _without(own: Collection[str], names: Iterable[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name not in own)
