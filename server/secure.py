"""A round's sum under masks: the phases of an attempt, who drops out of them, and when another attempt helps.

The coordinator sees keys, sealed shares, masked rows, signatures, and then the sum (``common.secagg``). Sites that
drop out are done without as long as the quorum and the threshold are kept; an attempt that fails is followed by
another, with fresh keys, where that can mend it: an agent that was started anew has left its attempt, and sends the
update that it has kept in the next. Once shares have been asked for, the round can only be had for the same survivors,
which are on the disk before (``release.json`` beside the checkpoint): where it cannot, the round is lost.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from common import protocol
from common.contribution import Row, RowLayout, Sum
from common.errors import (
    AggregationRefused,
    AttemptOver,
    FedwardError,
    ReplyRefused,
    RoundReleased,
    RunError,
    StudyError,
)
from common.files import make_folder, sweep, write_atomically
from common.identity import PublicKey
from common.protocol import secure
from common.secagg import Bundle, Context, Group, incoming
from common.study import Study
from common.study_secure import FEWEST
from common.weights import Weights
from server.asking import Answer, Link, ask
from server.recall import NOT_NOW, OTHER_ROSTER, Call
from server.unmasking import Shares

MOST_ATTEMPTS = 5
RELEASE = "release.json"
_MENDED = frozenset({AttemptOver.code, OTHER_ROSTER, *NOT_NOW})
"""Answers of sites that another attempt may have back."""


class RoundLost(FedwardError):
    """Shares of a round were asked for and its sum was not had; it cannot be had for other sites any more."""

    code = "round-lost"


class AttemptFailed(FedwardError):
    """Too few sites have stayed to the end."""

    code = "attempt-failed"


@dataclass(frozen=True)
class Summed:
    """What came of a round: the sum, of whom, and how the others were lost."""

    total: Sum
    survivors: tuple[str, ...]


@dataclass
class Releases:
    """For which survivors shares of a round were asked; on the disk where the run has a folder."""

    path: Path | None
    _last: tuple[int, tuple[str, ...]] = (0, ())

    def of(self, round_: int) -> tuple[str, ...]:
        """Those of ``round_``; empty where none were asked for. Raises :class:`RunError` for a damaged file."""
        if self._last[0] != round_ and self.path is not None:
            sweep(self.path)
            try:
                kept = json.loads(self.path.read_bytes())
                self._last = int(kept["round"]), tuple(map(str, kept["survivors"]))
            except FileNotFoundError:
                pass
            except (OSError, ValueError, KeyError, TypeError):
                raise RunError(f"{self.path} is damaged; restore it, or start the run anew") from None
        return self._last[1] if self._last[0] == round_ else ()

    def note(self, round_: int, survivors: tuple[str, ...]) -> None:
        """Raises :class:`RunError` where it cannot be written."""
        self._last = round_, survivors
        if self.path is not None:
            make_folder(self.path.parent)
            write_atomically(self.path, json.dumps({"round": round_, "survivors": survivors}).encode())


@dataclass
class SecureSum:
    """Secure sums of one arm's rounds."""

    link: Link
    task: protocol.Task
    """Of the arm; its round is filled in."""
    changing: frozenset[str]
    """What of the weights a fit may change: this is summed."""
    quorum: int
    deadline_s: float
    releases: Releases
    reasons: dict[str, str] = field(default_factory=dict)
    """Of the last attempt: site -> why it is not in the sum."""
    moved: int = 0
    """Bytes that the last round moved, all attempts together."""
    _words: set[str] = field(default_factory=set)
    """What those said who are not in the last attempt."""

    def collect(self, round_: int, sent: Weights, sites: Mapping[str, int]) -> Summed:
        """The sum of ``sites``' updates of ``round_``.

        Raises :class:`AttemptFailed` where too few stay, :class:`RoundLost` where they did after shares were asked for.
        """
        self.moved = 0
        task = replace(self.task, round=round_)
        weights = incoming(sent, task.basis)
        for number in range(1, MOST_ATTEMPTS + 1):
            committed = self.releases.of(round_)
            asked = {site: node for site, node in sites.items() if not committed or site in committed}
            self._words = set()
            self.reasons = {site: "not among the round's survivors" for site in sites if site not in asked}
            try:
                return self._attempt(task, weights, sent, asked, committed)
            except (AttemptFailed, AggregationRefused) as error:
                mends = bool(_MENDED & self._words)
                self._tell("attempt", round_, number=number, why=str(error), sites=dict(sorted(self.reasons.items())))
                if number == MOST_ATTEMPTS or not mends:
                    if self.releases.of(round_) or RoundReleased.code in self._words:
                        raise RoundLost(f"round {round_} is lost: {error}") from None
                    raise AttemptFailed(str(error)) from None
        raise AssertionError

    def _attempt(
        self,
        task: protocol.Task,
        weights: str,
        sent: Weights,
        sites: Mapping[str, int],
        committed: tuple[str, ...],
    ) -> Summed:
        task = replace(task, roster=self.link.roster().hash)
        attempt = secrets.token_hex(16)
        least = len(committed) or self.quorum
        group = self._keys(task, attempt, weights, sites, least)
        least = len(committed) or max(self.quorum, group.needed)
        envelopes = self._shares(task, group, sites, least)
        parties = tuple(sorted(envelopes))
        anchored = replace(task, anchors=self.link.all_anchors)
        request = protocol.TrainRequest(anchored, sent, secure.Secured(attempt, envelopes))
        changed = {name: value for name, value in sent.items() if name in self.changing}
        layout = RowLayout.of(changed, with_loss=not task.study.counts_kept)
        total, survivors = self._rows(request, layout, {site: sites[site] for site in parties}, least)
        self._require(len(survivors), least, "masked updates")
        if not group.connected(survivors):
            raise AttemptFailed("the sites that are left hold no masks together")
        left = {site: sites[site] for site in survivors}
        signatures = self._signatures(task, group, parties, left)
        self.releases.note(task.round, survivors)
        shares = self._open(task, group, parties, left, signatures)
        shares.unmask(total)
        return Summed(layout.read(total), survivors)

    def _keys(self, task: protocol.Task, attempt: str, weights: str, sites: Mapping[str, int], least: int) -> Group:
        """Asked as a plain round would ask to train: closed sites are waited for, others given the present roster."""
        bundles: dict[str, Bundle] = {}
        request = secure.KeysRequest(task, attempt, weights)
        context = Context(task.study.hash, task.arm, task.repeat, task.round, attempt, task.roster, weights)
        for answer in Call(self.link, request, sites, self.deadline_s, lambda: least - len(bundles)).answers():
            self.moved += answer.bytes
            with self._judged(answer, "keys"):
                reply = _expected(answer, secure.KeysReply)
                reply.bundle.check(context, self._key(answer.site))
                bundles[answer.site] = reply.bundle
        self._require(len(bundles), least, "sites' keys")
        assert task.summed is not None
        return Group.of(context, task.summed, bundles.values(), len(self.link.roster().keys))

    def _shares(
        self, task: protocol.Task, group: Group, sites: Mapping[str, int], least: int
    ) -> dict[str, Mapping[str, bytes]]:
        """Sender -> receiver -> a share, sealed."""
        envelopes: dict[str, Mapping[str, bytes]] = {}
        request = secure.SharesRequest(task, group.context.attempt, tuple(group.bundles.values()))
        for answer in self._ask(request, {site: sites[site] for site in group.sites}, lambda: least - len(envelopes)):
            with self._judged(answer, "shares"):
                reply = _expected(answer, secure.SharesReply)
                if set(reply.envelopes) != group.neighbours(answer.site):
                    raise ReplyRefused("its shares are not for its neighbours")
                envelopes[answer.site] = reply.envelopes
        self._require(len(envelopes), least, "sites' shares")
        return envelopes

    def _rows(
        self, request: protocol.TrainRequest, layout: RowLayout, sites: Mapping[str, int], least: int
    ) -> tuple[Row, tuple[str, ...]]:
        """The sum of masked rows, and of whom."""
        total, survivors = np.zeros(layout.length, np.uint64), list[str]()
        for answer in self._ask(request, sites, lambda: least - len(survivors)):
            with self._judged(answer, "training"):
                reply = _expected(answer, secure.MaskedReply)
                if reply.round != request.task.round or reply.row.shape != total.shape:
                    raise ReplyRefused("its masked update is not the study's model's, or another round's")
                np.add(total, reply.row, out=total)
                survivors.append(answer.site)
            del answer  # a whole model, while the next one is on its way
        return total, tuple(sorted(survivors))

    def _signatures(
        self, task: protocol.Task, group: Group, parties: Sequence[str], sites: Mapping[str, int]
    ) -> dict[str, bytes]:
        """As many as are needed; who is slow is not waited for."""
        survivors, signatures = tuple(sites), dict[str, bytes]()
        request = secure.SurvivorsRequest(task, group.context.attempt, survivors)
        statement = group.statement(parties, survivors)
        for answer in self._ask(request, sites, lambda: group.needed - len(signatures)):
            with self._judged(answer, "survivors"):
                reply = _expected(answer, secure.SurvivorsReply)
                if not self._key(answer.site).verify(reply.signature, statement):
                    raise ReplyRefused("it did not sign the survivors")
                signatures[answer.site] = reply.signature
            if len(signatures) == group.needed:
                break
        self._require(len(signatures), group.needed, "signatures")
        return signatures

    def _open(
        self,
        task: protocol.Task,
        group: Group,
        parties: Sequence[str],
        sites: Mapping[str, int],
        signatures: Mapping[str, bytes],
    ) -> Shares:
        """Shares that restore all secrets; who is slow is not waited for."""
        shares = Shares(group, parties, tuple(sites))
        request = secure.UnmaskRequest(task, group.context.attempt, tuple(sites), signatures)
        for answer in self._ask(request, sites, lambda: group.needed):
            with self._judged(answer, "unmasking"):
                shares.add(_expected(answer, secure.UnmaskReply))
            if shares.restored:
                break
        if shares.misfits:
            self._tell("bad-shares", task.round, shares=sorted(map(list, shares.misfits)))
        if not shares.restored:
            raise AttemptFailed("the sites' shares do not restore the masks")
        return shares

    def _ask(
        self,
        request: secure.SharesRequest | protocol.TrainRequest | secure.SurvivorsRequest | secure.UnmaskRequest,
        sites: Mapping[str, int],
        lacking: Callable[[], int],
    ) -> Iterator[Answer]:
        """One :class:`Answer` for each of ``sites``; closed ones are drop-outs: their turn is the next attempt's."""
        sealed = protocol.seal(request)
        size = sealed.bytes
        answers = ask(self.link, sealed, sites, self.deadline_s, needed=max(0, lacking()))
        del sealed  # a model, which the Grid has by then
        for answer in answers:
            self.moved += size + answer.bytes
            yield answer
            del answer

    def _key(self, site: str) -> PublicKey:
        """Raises :class:`ReplyRefused` for a site that is not on the roster any more."""
        key = self.link.roster().keys.get(site)
        if key is None:
            raise ReplyRefused("it is not on the roster")
        return key

    @contextlib.contextmanager
    def _judged(self, answer: Answer, phase: str) -> Iterator[None]:
        """Within it, an answer that cannot be taken makes its site a drop-out, and is told."""
        try:
            yield
        except (ReplyRefused, AggregationRefused) as error:
            self.reasons[answer.site] = f"{answer.reason or f'refused: {error}'} ({phase})"
            self._words.add(answer.word)

    def _require(self, found: int, least: int, what: str) -> None:
        if found < least:
            raise AttemptFailed(f"{found} of {least} {what} that are needed have come")

    def _tell(self, event: str, round_: int, **facts: Any) -> None:
        task = self.task
        self.link.events.emit(event, arm=task.arm, repeat=task.repeat, round=round_, **facts)


def check_sites(study: Study, template: Weights, *, sites: int, roster: int) -> None:
    """Whether ``sites`` of a ``roster`` can sum the model that ``template`` describes under the study's masks.

    Raises :class:`StudyError` for too few sites, :class:`ModelError` for a model that cannot be summed.
    """
    spec = study.federation.secure_aggregation
    assert spec is not None
    if sites < FEWEST:
        raise StudyError(
            f"federation.secure_aggregation: {sites} sites take part, and of two each learns the other's update "
            f"from the sum; it needs {FEWEST}, or leave it out"
        )
    if sites not in spec.sums(roster):
        raise StudyError(
            f"federation.secure_aggregation: {sites} of the {roster} sites on the roster take part, and its threshold "
            f"asks for {spec.needed(roster, FEWEST)}; take off the roster who has left the federation, or lower it"
        )
    RowLayout.of(template, with_loss=False)


def secure_sum(
    link: Link,
    task: protocol.Task,
    sites: Mapping[str, int],
    template: Weights,
    quorum: int,
    deadline_s: float,
    checkpoint: Path | None,
) -> SecureSum | None:
    """How an arm sums under masks; ``None`` where its study does not.

    ``template``: what of the model a fit may change. Raises as :func:`check_sites`.
    """
    if task.summed is None:
        return None
    roster = link.roster()
    if not roster.keys:
        raise StudyError(
            "federation.secure_aggregation: stock Flower has no roster by which sites could check each other's keys; "
            "run it with `fedward coordinator up` and `fedward site up`"
        )
    check_sites(task.study, template, sites=len(sites), roster=len(roster.keys))
    path = None if checkpoint is None else checkpoint.with_name(RELEASE)
    return SecureSum(link, task, frozenset(template), quorum, deadline_s, Releases(path))


T = TypeVar("T")


def _expected(answer: Answer, kind: type[T]) -> T:
    """The reply, of this kind and of the site that was asked. Raises :class:`ReplyRefused`."""
    reply = answer.reply
    if not isinstance(reply, kind):
        raise ReplyRefused("it is another kind of reply")
    if reply.site != answer.site:  # type: ignore[attr-defined]
        raise ReplyRefused("it answers under another site's name")
    return reply
