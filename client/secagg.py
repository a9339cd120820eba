"""A site's part in a secure sum: its keys, its shares, its masks, and what it refuses (``common.secagg``).

The coordinator carries every message and is believed in nothing: who takes part, the site's own roster says; that all
are at work on the same, signatures say; who has survived, enough signatures say. What is secret lives in memory, one
attempt of each run at a time: an agent that is started anew has left its attempt, and has forgotten its shares and
whom it was at work with together, so that it cannot be made to give both shares of a site. What must outlive it, for
which survivors a round was unmasked, is on the disk (``client.releases``).
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from pydantic import ConfigDict, TypeAdapter

from client.peers import Peers
from client.releases import Releases
from common import protocol
from common.central import check_colluders
from common.contribution import RowLayout
from common.errors import AggregationRefused, AttemptOver
from common.files import write_atomically
from common.masking import KEY_BYTES, Pair, agree, derive, mask, seal, unseal
from common.protocol import secure
from common.secagg import Bundle, Context, Group, incoming
from common.shamir import SHARE_BYTES, share
from common.study import SecureAggregationSpec

_RUNS = 8
_REMEMBERED = 256
Run = tuple[str, str, int]
"""Study's hash, arm, repeat."""


@dataclass(frozen=True)
class Session:
    """One attempt, as far as it has come."""

    __pydantic_config__ = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    context: Context
    bundle: Bundle
    """This site's, as the coordinator has it."""
    mask: Pair
    seal: Pair
    seed: bytes
    """Of the site's own mask."""
    past: tuple[str, ...] = ()
    """Earlier attempts of this run."""
    bundles: tuple[Bundle, ...] = ()
    """Everybody's, once they are known."""
    own: bytes = b""
    """What this site holds of its own shares."""
    envelopes: Mapping[str, bytes] = field(default_factory=dict)
    """What it has sealed for its neighbours."""
    parties: tuple[str, ...] = ()
    """Those whose rows are to be summed, once it has agreed to them."""
    held: Mapping[str, bytes] = field(default_factory=dict)
    """Neighbour -> the two shares that it has given this site."""
    masked: str = ""
    """SHA-256 of its row before it was masked, once it was."""
    signed: tuple[str, ...] = ()
    """The survivors that it has signed, or given its shares for."""


class Store(Protocol):
    """Where sessions are."""

    def load(self, run: Run) -> Session | None: ...

    def save(self, run: Run, session: Session) -> None: ...


class Memory:
    """A hospital's: gone with the process, on purpose."""

    def __init__(self) -> None:
        self._sessions: OrderedDict[Run, Session] = OrderedDict()

    def load(self, run: Run) -> Session | None:
        return self._sessions.get(run)

    def save(self, run: Run, session: Session) -> None:
        self._sessions[run] = session
        self._sessions.move_to_end(run)
        while len(self._sessions) > _RUNS:
            self._sessions.popitem(last=False)


class SimulatedStore:
    """A virtual hospital's, whose messages any worker process may get: a file in its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, run: Run) -> Session | None:
        path = self._path(run)
        return _SESSION.validate_json(path.read_bytes()) if path.exists() else None

    def save(self, run: Run, session: Session) -> None:
        write_atomically(self._path(run), _SESSION.dump_json(session), mode=0o600)

    def _path(self, run: Run) -> Path:
        return self._folder / f"secure-{run[0][:16]}-{run[1]}-{run[2]}.json"


_SESSION = TypeAdapter(Session)


class SecureSums:
    """One site's attempts. Every method raises :class:`AggregationRefused` for what it does not take part in."""

    def __init__(
        self,
        peers: Callable[[], Peers],
        store: Store,
        releases: Releases,
        *,
        note: Callable[[Context, tuple[str, ...]], None] = lambda context, survivors: None,
    ) -> None:
        """``note`` is told before shares leave that unmask a round's sum for the first time."""
        self._peers, self._store, self._releases, self._note = peers, store, releases, note

    def answer(self, request: secure.PhaseRequest) -> secure.PhaseReply:
        """A phase's reply; asked the same again, the same."""
        if isinstance(request, secure.KeysRequest):
            return self._keys(request)
        if isinstance(request, secure.SharesRequest):
            return self._shares(request)
        if isinstance(request, secure.SurvivorsRequest):
            return self._sign(request)
        return self._unmask(request)

    def _keys(self, request: secure.KeysRequest) -> secure.KeysReply:
        peers, run, task = self._peers(), _run(request.task), request.task
        context = Context(*run, task.round, request.attempt, peers.roster, request.weights)
        before = self._store.load(run)
        past: tuple[str, ...] = ()
        if before is not None:
            if before.context == context:
                return secure.KeysReply(peers.alias, before.bundle)
            past = (*before.past, before.context.attempt)[-_REMEMBERED:]
        if request.attempt in past:
            raise AggregationRefused("an attempt's number was used before; the coordinator must draw another")
        masks, seals, seed = Pair.generate(), Pair.generate(), os.urandom(KEY_BYTES)
        bundle = Bundle.sign(context, peers.alias, masks, seals, seed, peers.key)
        self._store.save(run, Session(context, bundle, masks, seals, seed, past))
        return secure.KeysReply(peers.alias, bundle)

    def _shares(self, request: secure.SharesRequest) -> secure.SharesReply:
        session, peers = self._session(request.task, request.attempt)
        me, bundles = peers.alias, tuple(sorted(request.bundles, key=lambda bundle: bundle.site))
        if session.bundles:
            if bundles != session.bundles:
                raise AggregationRefused("other keys came for an attempt whose shares are made; call the coordinator")
            return secure.SharesReply(me, session.envelopes)
        for bundle in bundles:
            if bundle.site not in peers.keys:
                raise AggregationRefused(f"keys came of {bundle.site}, which is not on this site's roster")
            bundle.check(session.context, peers.keys[bundle.site])
        if session.bundle not in bundles:
            raise AggregationRefused("this site's own keys are missing, or were changed on their way")
        group = Group.of(session.context, _spec(request.task), bundles, len(peers.keys))
        places, needed = group.places(me), group.shares_needed(me)
        seeds, keys = (share(secret, needed, places.values()) for secret in (session.seed, session.mask.private))
        both = {holder: seeds[place] + keys[place] for holder, place in places.items()}
        envelopes = {
            holder: seal(
                agree(session.seal.private, group.bundles[holder].seal, group.share_info(me, holder)), both[holder]
            )
            for holder in sorted(group.neighbours(me))
        }
        self._store.save(_run(request.task), replace(session, bundles=bundles, own=both[me], envelopes=envelopes))
        return secure.SharesReply(me, envelopes)

    def join(self, request: protocol.TrainRequest) -> None:
        """Agree to train for the sum that ``request`` says; before the work is done, and again before it leaves."""
        assert request.secured is not None
        session, peers = self._session(request.task, request.secured.attempt)
        me, group = peers.alias, self._group(session, request.task, peers)
        if request.task.study.noised_by_sites:
            check_colluders(request.task.study, len(peers.keys))
        if incoming(request.weights, request.task.basis) != session.context.weights:
            raise AggregationRefused(
                "other weights came than this attempt's sites have agreed on; call the coordinator"
            )
        envelopes = request.secured.envelopes
        parties = tuple(sorted(envelopes))
        if session.parties:
            if parties != session.parties:
                raise AggregationRefused("this site has masked its row for a sum of other sites")
            return
        group.check_parties(parties, me)
        held = {}
        for sender in sorted(group.neighbours(me) & set(parties)):
            key = agree(session.seal.private, group.bundles[sender].seal, group.share_info(sender, me))
            if me not in envelopes[sender]:
                raise AggregationRefused(f"no share of {sender} came for this site")
            held[sender] = unseal(key, envelopes[sender][me])
        self._store.save(_run(request.task), replace(session, parties=parties, held=held))

    def masked(self, request: protocol.TrainRequest, plain: protocol.TrainReply) -> secure.MaskedReply:
        """``plain``, masked for the sum that ``request`` says. Raises :class:`ModelError` where it cannot be summed."""
        assert request.secured is not None
        self.join(request)
        session, peers = self._session(request.task, request.secured.attempt)
        me, group, parties = peers.alias, self._group(session, request.task, peers), session.parties
        study = request.task.study
        changed = {name: value for name, value in request.weights.items() if name in plain.weights}
        layout = RowLayout.of(changed, with_loss=not study.counts_kept)
        if study.central_privacy is not None:
            row = layout.write_steps(plain.weights, sites=len(parties))
        else:
            row = layout.write(plain.weights, plain.examples, plain.loss, sites=len(parties))
        made = hashlib.sha256(row.data).hexdigest()
        if session.masked not in ("", made):
            # The same masks over two rows would tell their difference: of a site whose images have changed, patients.
            raise AttemptOver("this site has another update now than it gave in this attempt; it begins another")
        mask(row, derive(session.seed, group.mask_info(parties, me)))
        for peer in sorted(group.neighbours(me) & set(parties)):
            key = agree(session.mask.private, group.bundles[peer].mask, group.mask_info(parties, me, peer))
            mask(row, key, subtract=peer < me)
        self._store.save(_run(request.task), replace(session, masked=made))
        return secure.MaskedReply(me, request.task.round, row)

    def _sign(self, request: secure.SurvivorsRequest) -> secure.SurvivorsReply:
        session, peers = self._session(request.task, request.attempt)
        group, survivors = self._survivors(session, request, peers)
        self._releases.check(session.context, survivors, session.masked)
        self._store.save(_run(request.task), replace(session, signed=survivors))
        return secure.SurvivorsReply(peers.alias, peers.key.sign(group.statement(session.parties, survivors)))

    def _unmask(self, request: secure.UnmaskRequest) -> secure.UnmaskReply:
        session, peers = self._session(request.task, request.attempt)
        group, survivors = self._survivors(session, request, peers)
        statement = group.statement(session.parties, survivors)
        for signer, signature in request.signatures.items():
            if signer not in survivors or not peers.keys[signer].verify(signature, statement):
                raise AggregationRefused(
                    f"the list of survivors that came with {signer}'s signature is not the one it signed; call the "
                    "coordinator"
                )
        if len(request.signatures) < group.needed:
            raise AggregationRefused(f"{len(request.signatures)} of {group.needed} sites have signed the survivors")
        if self._releases.commit(session.context, survivors, session.masked):
            self._note(session.context, survivors)
        self._store.save(_run(request.task), replace(session, signed=survivors))
        held = dict(session.held) | {peers.alias: session.own}
        left = set(survivors)
        return secure.UnmaskReply(
            peers.alias,
            seeds={site: both[:SHARE_BYTES] for site, both in sorted(held.items()) if site in left},
            keys={site: both[SHARE_BYTES:] for site, both in sorted(held.items()) if site not in left},
        )

    def _survivors(
        self, session: Session, request: secure.SurvivorsRequest | secure.UnmaskRequest, peers: Peers
    ) -> tuple[Group, tuple[str, ...]]:
        """The group, and the survivors in order, if a sum of them may become known."""
        survivors = tuple(sorted(request.survivors))
        group = self._group(session, request.task, peers)
        if not session.masked:
            raise AggregationRefused("a sum is to be unmasked before this site has given its row")
        group.check_survivors(survivors, session.parties, peers.alias)
        if session.signed not in ((), survivors):
            raise AggregationRefused("this site has signed other survivors in this attempt; call the coordinator")
        return group, survivors

    def _session(self, task: protocol.Task, attempt: str) -> tuple[Session, Peers]:
        session, peers = self._store.load(_run(task)), self._peers()
        if session is None or (session.context.attempt, session.context.round) != (attempt, task.round):
            raise AttemptOver("the coordinator goes on with an attempt that this site is not in; it begins another")
        if session.context.roster != peers.roster:
            raise AttemptOver("the roster has changed since this attempt began; the coordinator begins another")
        return session, peers

    def _group(self, session: Session, task: protocol.Task, peers: Peers) -> Group:
        if not session.bundles:
            raise AggregationRefused("the coordinator has left out a phase of this attempt")
        return Group.of(session.context, _spec(task), session.bundles, len(peers.keys))


def _run(task: protocol.Task) -> Run:
    return task.study.hash, task.arm, task.repeat


def _spec(task: protocol.Task) -> SecureAggregationSpec:
    assert task.summed is not None  # its messages are refused else (``common.protocol``)
    return task.summed


__all__ = ["Memory", "SecureSums", "Session", "SimulatedStore"]
