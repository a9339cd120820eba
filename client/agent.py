"""The site agent: a resident process that answers a coordinator's messages with what is installed here.

No code comes with a message. Before anything is computed the site's people and its policy are asked; what was
computed is kept, encrypted, before it leaves, so that a message that comes again is answered with the same bytes.
What leaves is a typed reply or a code; the words stay in this machine's log.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections import deque
from importlib.metadata import version
from typing import Any

import torch
from flwr.app import Message

from client import delivery
from client.alarms import Alarms
from client.anchoring import Anchoring
from client.app import Resident, handle
from client.approvals import Approvals
from client.federation import Membership, update_roster
from client.feedback import RESIDUALS, Residuals
from client.fleet import Connection, Pace, serve
from client.health import Pulse, Task, Work
from client.home import Home
from client.judgement import OVER, Federation
from client.leaving import LEDGER_HEAD, kinds
from client.ledger import Ledger
from client.left import REPLY
from client.own_package import has_own, keep_own, own_folder
from client.payment import Payment, Purse
from client.peers import Peers
from client.personal import PERSONAL, Personal
from client.policy import Policy
from client.releases import RELEASES, Releases
from client.replies import Identity, Replies
from client.secagg import Memory, SecureSums
from client.settled import SETTLED, Settled
from client.survey import left_in_survey
from common import protocol
from common.errors import FedwardError, IdentityError, PolicyError, RoundSpent
from common.protocol import secure
from common.secagg import Context
from common.study import Study
from common.weights import digest

logger = logging.getLogger("fedward.agent")

REPLIES = "replies.sqlite"
PROGRAM = version("fedward")
MOST_ROSTERS_A_DAY = 256
"""Each is a line or two of the audit log."""
_DAY_S = 86_400.0
_REMEMBERED = 256
_DIGEST = 64


class Agent:
    """Answers messages for one site; used in one thread. Close it."""

    def __init__(self, home: Home) -> None:
        """Raises :class:`IdentityError` where the site has not joined, :class:`VaultError` for an unusable vault."""
        self.home = home
        self.membership = Membership.open(home)
        self._ledger = Ledger(home, lambda: self._resident.site(home.directory).vaults[0])
        self._anchoring = Anchoring(home, self._ledger)
        self._approvals = Approvals(home, Purse(self._ledger, self._units))
        self._resident = Resident(_device(self._approvals.policy()), passphrase=home.passphrase, masks=False)
        self._releases = Releases(home.state / RELEASES)
        self._settled = Settled(home.state / SETTLED)
        self._sums = SecureSums(
            lambda: Peers.of_member(self.membership), Memory(), self._releases, note=self._note_unmasked
        )
        self._said: dict[str, str] = {}  # study -> verdict, as it was last logged
        self._surveyed: dict[str, dict[str, int]] = {}  # study -> counts, as they last left
        self._recorded: dict[Identity, int] = {}  # what left -> the vault's generation it was made of
        self._counted: dict[tuple[str, int], int] = {}  # study, the vault's generation -> units
        self._rosters: deque[float] = deque(maxlen=MOST_ROSTERS_A_DAY)  # when the latest were taken
        self._distrusted = False
        self._at_work: Study | None = None  # whose results the last answer may hold
        self._undecided: Study | None = None
        self._doing = Work()
        self._replies = self._open_replies()
        for study in self._replies.studies():
            if self._approvals.over(study):
                self._forget(study)
        try:
            self._ledger.begin(self._replies.trained())
        except FedwardError as error:
            logger.error("nothing will be trained: %s", error)

    def close(self) -> None:
        self._replies.close()
        self._releases.close()
        self._settled.close()
        self._approvals.close()
        self._resident.close()

    def _open_replies(self) -> Replies:
        with self.home.vault(read_only=True) as vault:
            return Replies(self.home.state / REPLIES, vault)

    def answer(self, message: Message) -> Message:
        """The reply to one message; never raises."""
        alias, self._at_work = self.membership.alias, None
        try:
            request = protocol.open_request(message)
            if isinstance(request, protocol.SurveyRequest):
                self._doing = self._doing.model_copy(update={"program": request.program})
                if request.roster:
                    self._take_roster(request.roster)
            if self._distrusted:
                return protocol.answer(protocol.Refusal(alias, "roster-refused"), message)
            task = request.task
            if _works(request) and task.roster != self.membership.roster.hash:
                logger.info("asked by another roster than this site has; the coordinator is to send its own")
                return protocol.answer(protocol.Refusal(alias, "roster-differs"), message)
            if (task.arm, task.repeat) != ("federated", 0):
                # Approved is one training; arms and repeats are a simulation's, and would be as many more.
                logger.error("arm %s, repeat %d: a site takes part in one federated run", task.arm, task.repeat)
                return protocol.answer(protocol.Refusal(alias, "not-approved"), message)
            if isinstance(request, protocol.DeliveryRequest):
                return protocol.answer(self._take_model(request), message)
            self._anchoring.take(task.anchors, self.membership, trains=isinstance(request, protocol.TrainRequest))
            no = self._objection(task.study)
            # In mid-run the coordinator asks again with the next round; before it, with the next survey.
            self._undecided = task.study if no is not None and isinstance(request, protocol.SurveyRequest) else None
            if no is not None:
                return protocol.answer(no, message)
            if task.study.privacy is not None:
                self._anchoring.check(alias)
            self._at_work = task.study
            return self._work(request, message)
        except RoundSpent as error:
            logger.error("%s", error)
            return protocol.answer(protocol.Refusal(alias, error.code), message)
        except FedwardError as error:
            logger.error("%s", error)
            return protocol.answer(protocol.Refusal(alias, error.code), message)
        except Exception:
            logger.exception("unexpected failure")
            return protocol.answer(protocol.Refusal(alias, "internal-error"), message)

    def recheck(self, message: Message, reply: Message) -> Message:
        """What may leave now in answer to ``message``, the last that was answered: ``reply``, or a refusal.

        The way to the coordinator may be shut for days; whoever withdraws or pauses meanwhile is obeyed. Never raises.
        """
        if self._at_work is None:
            return reply  # a code
        try:
            no = self._objection(self._at_work)
        except FedwardError as error:
            logger.error("%s", error)
            no = protocol.Refusal(self.membership.alias, error.code)
        except Exception:
            logger.exception("unexpected failure")
            no = protocol.Refusal(self.membership.alias, "internal-error")
        return reply if no is None else protocol.answer(no, message)

    def doing(self) -> dict[str, Any]:
        """What it works on and what it answered last, for ``status``; from any thread."""
        return self._doing.model_dump()

    def undecided(self) -> bool:
        """Whether the study that was last surveyed waits for this site's people, or for its hours."""
        if self._undecided is None:
            return False
        try:
            return self._objection(self._undecided) is not None
        except FedwardError as error:
            logger.error("%s", error)
            return True

    def _objection(self, study: Study) -> protocol.Refusal | None:
        """What to refuse ``study`` with now; ``None`` where it may work."""
        verdict = self._approvals.seen(study, self._federation())
        if self._said.get(study.hash) != verdict.why:
            while len(self._said) >= _REMEMBERED:
                del self._said[next(iter(self._said))]
            self._said[study.hash] = verdict.why
            logger.info("study %s %s: %s", study.name, study.hash[:12], verdict.why)
            if verdict.state in OVER:
                self._forget(study.hash)
        if verdict.code is None:
            return None
        until = 0 if verdict.opens is None else int(verdict.opens.timestamp())
        return protocol.Refusal(self.membership.alias, verdict.code, until, PROGRAM)

    def _take_model(self, request: protocol.DeliveryRequest) -> protocol.Reply:
        """Kept first, then the site's own, then the study ends, then replies go: killed in between, it comes again."""
        study, federation = request.task.study, self._federation()
        code = self._approvals.delivery(study, federation)
        if code is not None:
            logger.info("the model of study %s %s is not taken: %s", study.name, study.hash[:12], code)
            return protocol.Refusal(self.membership.alias, code)
        kept = delivery.receive(self.home, self.membership, request)
        later = self._keep_own(study)
        if later is not None:
            return later
        self._approvals.finish(study.hash, federation)
        self._forget(study.hash)
        return protocol.Receipt(self.membership.alias, kept)

    def _keep_own(self, study: Study) -> protocol.Refusal | None:
        """Put this site's own model, where the study has one, beside that of all; a refusal where it must wait.

        Images are read for it, so its people must let the study work now; taking the model of all asks for less.
        """
        if not has_own(study) or own_folder(self.home, study).exists():
            return None
        no = self._objection(study)
        if no is not None and no.code == "outside-hours":
            return no
        made = None if no is not None else keep_own(self.home, self.membership, self._resident, study)
        if made is not None:
            logger.info("this site's own model of study %s %s is in %s", study.name, study.hash[:12], made.name)
        else:
            why = "nothing of it is left here" if no is None else f"the study may not work here now ({no.code})"
            logger.warning("this site keeps no own model of study %s %s: %s", study.name, study.hash[:12], why)
        return None

    def _units(self, study: Study) -> int:
        """Training patients (or images) that ``study`` would protect here; counted once for each state of the vault."""
        site = self._resident.site(self.home.directory)
        key = (study.hash, site.vaults[0].generation)
        if key not in self._counted:
            self._counted = {key: site.training_units(study)}
        return self._counted[key]

    def _forget(self, study: str) -> None:
        Residuals.forget(self.home.state / RESIDUALS, study)
        Personal.forget(self.home.state / PERSONAL, study)
        erased = self._replies.forget(study)
        if erased:
            self.home.record("replies-erased", {"study": study, "replies": erased})

    def _work(self, request: _Work | secure.PhaseRequest, message: Message) -> Message:
        if isinstance(request, secure.PhaseRequest):
            return protocol.answer(self._sums.answer(request), message)
        if isinstance(request, protocol.SurveyRequest) and not _works(request):
            payment = Payment(self._ledger, request.task.study, identity_of(request), self._approvals.policy())
            reply = handle(message, lambda: self.home.directory, self._resident, spend=payment)
            self._record_survey(request, reply)
            return reply
        task = request.task
        now = Task(
            study=task.study.hash,
            name=task.study.name,
            kind=message.metadata.message_type,
            round=task.round,
            at=self.home.clock().timestamp(),
        )
        self._doing = self._doing.model_copy(update={"now": now})
        try:
            return self._round(request, message)
        finally:
            last = now.model_copy(update={"at": self.home.clock().timestamp()})
            self._doing = self._doing.model_copy(update={"now": None, "last": last})

    def _round(self, request: _Work, message: Message) -> Message:
        identity, task = identity_of(request), request.task
        basis = task.basis
        if basis is not None and self._replies.bases(identity.study, identity.arm, identity.repeat) - {basis.digest}:
            raise RoundSpent(
                f"study {identity.study[:12]} was trained with other numbers of all sites; the coordinator must go on "
                "with those of the run's survey"
            )
        if isinstance(request, protocol.TrainRequest) and request.secured is not None:
            self._sums.join(request)  # before hours of work
        if isinstance(request, protocol.EvaluateRequest | protocol.MomentsRequest):
            started = self._replies.spent(identity.study, identity.arm, identity.repeat, 1)
            self._settled.hold(request, identity.digest[:_DIGEST], None if started is None else started[:_DIGEST])
        kept = self._replies.kept(identity)
        if kept is not None:
            logger.info("%s of round %d was answered before; the same reply goes again", identity.kind, identity.round)
            return self._anchored(request, self._masked(request, protocol.thaw(kept, message), message))
        if task.study.noised_at_sites and self._spent(identity):
            # With other noise: who may ask again and again averages the noise away.
            raise RoundSpent(
                f"round {identity.round} of study {identity.study[:12]} was trained with noise, and the reply is not "
                "kept any more; the coordinator must go on from a later checkpoint, or start another study"
            )
        payment = Payment(self._ledger, task.study, identity, self._approvals.policy())
        reply = handle(message, lambda: self.home.directory, self._resident, spend=payment)
        if isinstance(protocol.open_reply(reply), protocol.Refusal):
            return reply
        # A fit takes hours; its people may have thought better of it meanwhile.
        no = self._objection(task.study)
        if no is not None:
            return protocol.answer(no, message)
        leaving = self._masked(request, reply, message)
        frozen, told = protocol.freeze(reply), protocol.open_reply(leaving)
        facts: dict[str, Any] = {"study": identity.study, "kind": identity.kind, "round": identity.round}
        sent = len(frozen) if leaving is reply else protocol.size(leaving.content)
        with_it = [LEDGER_HEAD] if isinstance(request, protocol.TrainRequest) else []
        facts |= {"kinds": [*kinds(task.study, told), *with_it], "bytes": sent}
        # On record first: killed in between, the log says more than has left, never less. And once: what was dropped
        # and is made again is the same, and a coordinator must not be able to fill a disk by asking.
        generation = self._resident.site(self.home.directory).vaults[0].generation
        if self._recorded.get(identity) != generation:
            if isinstance(request, protocol.SurveyRequest):
                left = left_in_survey(task.study, told)
            else:
                left = {"weights": identity.digest}
            self.home.record(REPLY, {**facts, **left})
            self._recorded[identity] = generation
        self._replies.keep(identity, frozen)
        payment.kept()
        return self._anchored(request, leaving)

    def _anchored(self, request: _Work, leaving: Message) -> Message:
        """A fit leaves with the head of the privacy ledger as it is now, whenever the fit was made."""
        if isinstance(request, protocol.TrainRequest):
            signed = self._anchoring.signed(self.membership, request.task.study.hash, request.task.round)
            if signed is not None:
                protocol.add_anchors(leaving, signed)
        return leaving

    def _masked(self, request: _Work, reply: Message, message: Message) -> Message:
        """What leaves of a reply that is kept as it is: its row for the sum, where the study sums under masks."""
        if not isinstance(request, protocol.TrainRequest) or request.secured is None:
            return reply
        plain = protocol.open_reply(reply)
        assert isinstance(plain, protocol.TrainReply)  # nothing is compressed under masks
        return protocol.answer(self._sums.masked(request, plain), message)

    def _note_unmasked(self, context: Context, survivors: tuple[str, ...]) -> None:
        """On record before the first share leaves."""
        facts = {"study": context.study, "round": context.round, "of": list(survivors)}
        self.home.record("sum-unmasked", facts)

    def _spent(self, identity: Identity) -> bool:
        """Whether this very training has left before; a site that was restored knows it from its ledger alone."""
        if identity.kind != protocol.TRAIN:
            return False
        round_ = (identity.study, identity.arm, identity.repeat, identity.round)
        return self._replies.spent(*round_) is not None or self._ledger.book().committed(*round_)

    def _record_survey(self, request: protocol.SurveyRequest, message: Message) -> None:
        """Counts that leave are on record; once, as a survey comes again and again."""
        reply = protocol.open_reply(message)
        if isinstance(reply, protocol.SurveyReply):
            study, images = request.task.study, dict(reply.images)
            if self._surveyed.get(study.hash) != images:
                facts = {"kinds": kinds(study, reply), "bytes": len(protocol.freeze(message)), "images": images}
                self.home.record(REPLY, {"study": study.hash, "kind": protocol.SURVEY, **facts})
                self._surveyed[study.hash] = images

    def _take_roster(self, roster: bytes) -> None:
        """One that is refused (forged, older, two of one version) stops everything until a good one comes."""
        before, now = self.membership.roster.hash, time.monotonic()
        self._distrusted = True
        try:
            if len(self._rosters) == MOST_ROSTERS_A_DAY and now - self._rosters[0] < _DAY_S:
                raise IdentityError(f"{MOST_ROSTERS_A_DAY} rosters came within a day; call the coordinator")
            update_roster(self.home, roster)
            self.membership = Membership.open(self.home)  # it may be one that this site is not on any more
            self._distrusted = False
        except IdentityError as error:
            logger.error("the roster that came is not taken, and no study works: %s", error)
        if self.membership.roster.hash != before:
            self._rosters.append(now)
            logger.info("a new roster: %d sites", len(self.membership.roster.active))

    def _federation(self) -> Federation:
        roster = self.membership.roster
        return Federation(
            coordinator=self.membership.coordinator.fingerprint,
            name=self.membership.federation,
            sites={entry.alias: entry.public_key.fingerprint for entry in roster.active},
            roster=roster.hash,
        )


def _device(policy: Policy | PolicyError) -> str | None:
    """Where the policy lets studies train, its share of the GPU taken; ``None`` where it leaves that to ``site.yaml``.

    Read once: another device needs the agent to start anew.
    """
    if isinstance(policy, PolicyError):
        return None  # nothing is allowed at all
    if policy.gpu_share == 0.0:
        return "cpu"
    if policy.gpu_share < 1.0 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(policy.gpu_share)
    return policy.device


_OfARound = protocol.TrainRequest | protocol.EvaluateRequest | protocol.MomentsRequest
_Work = protocol.SurveyRequest | _OfARound


def _works(request: protocol.Request) -> bool:
    """Whether it is a round's work, or reads images; a survey that only counts rows is asked again and again."""
    return isinstance(request, _OfARound | secure.PhaseRequest) or (
        isinstance(request, protocol.SurveyRequest) and request.measure
    )


def identity_of(request: _Work) -> Identity:
    """What tells a request from every other: asked again, it is answered with the reply that was kept."""
    task = request.task
    if isinstance(request, protocol.SurveyRequest):
        return Identity(task.study.hash, task.arm, task.repeat, protocol.SURVEY, 0, "")
    if isinstance(request, protocol.TrainRequest):
        kind, arrays = protocol.TRAIN, _digest_of_fit(request)
    elif isinstance(request, protocol.MomentsRequest):
        kind = f"{protocol.MOMENTS} {request.about}"
        arrays = digest(request.weights) + digest(request.reference) + _digest_asked(request)
    else:
        kind = f"{protocol.EVALUATE} {request.about}"
        arrays = digest(request.weights) + _digest_asked(request)
    if task.basis is not None:
        arrays += task.basis.digest
    return Identity(task.study.hash, task.arm, task.repeat, kind, task.round, arrays)


def _digest_of_fit(request: protocol.TrainRequest) -> str:
    """Of all that a fit begins with: 64 characters. Other control variates make another fit of the same weights."""
    weights, variates = digest(request.weights), request.variates
    if not variates.counted:
        return weights
    parts = [weights, digest(variates.all_sites), json.dumps(dict(variates.counted), sort_keys=True)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _digest_asked(request: protocol.EvaluateRequest | protocol.MomentsRequest) -> str:
    """Of what is asked of the weights: with what they are compared, and whose own model they are made."""
    beside, round_ = request.beside, request.personal
    compared = "" if beside is None else digest(beside.weights or {}) + digest(beside.given)
    return compared + ("" if round_ is None else hashlib.sha256(f"own {round_}".encode()).hexdigest())


def run(home: Home, *, stop: threading.Event, pace: Pace | None = None) -> None:
    """Serve until ``stop`` is set. Raises what cannot be mended by waiting."""
    with home.serving():
        _serve(Agent(home), stop, pace)


def _serve(agent: Agent, stop: threading.Event, pace: Pace | None) -> None:
    try:
        membership = agent.membership
        pair = (membership.tls_path, membership.tls_path) if membership.tls_path else None
        connection = Connection.open(
            membership.address, membership.ca_path, membership.key_path, certificate=pair, pace=pace
        )
        logger.info("site %s, coordinator %s", membership.alias, membership.address)
        alarms = Alarms(agent.home, connection)
        with alarms, Pulse(agent.home.state, connection, work=agent.doing, look=alarms.look):
            serve(connection, agent.answer, stop=stop, recheck=agent.recheck, undecided=agent.undecided)
    finally:
        agent.close()
