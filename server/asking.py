"""One request to many sites, and what becomes of it at each: a reply, or the reason why there is none."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

from common import protocol
from common.errors import FedwardError, Interrupted, ProtocolError, ReplyRefused, VersionMismatch
from common.identity import PublicKey
from server.answer_words import DECLINED
from server.events import EventLog
from server.watch import Watch

if TYPE_CHECKING:
    from server.anchoring import AnchorDesk

UNREACHED = ("offline", "not reachable", "no answer before the deadline")
PENDING = frozenset(
    {
        # People, who may yet decide otherwise
        "approval-pending",
        "site-paused",
        "outside-hours",
        "roster-changed",
        # Trouble at a site, which somebody will mend
        "busy",
        "internal-error",
        "policy-unusable",
        "key-unavailable",
        "vault-unusable",
        "audit-unusable",
        "site-store-unusable",
        "ledger-unusable",
        "roster-refused",
        "protocol-mismatch",
        "ledger-rolled-back",
        "anchor-refused",
    }
)
"""Codes of sites that may yet say yes."""
_FLOWER_ERROR = "failed (Flower error"
OTHER_VERSION = "another version: "
"""Before what is wrong, in :attr:`Answer.reason`."""
T = TypeVar("T")


@dataclass(frozen=True)
class SignedRoster:
    """The coordinator's roster as sites are sent it, and the hash by which they know it; empty in a simulation."""

    signed: bytes = b""
    hash: str = ""
    keys: Mapping[str, PublicKey] = field(default_factory=dict)
    """By alias, of all sites that take part in the federation; of a simulation's where it sums under masks."""


@dataclass
class Link:
    """The Grid and what else the loop needs from outside: events, a clock, a stop signal."""

    grid: Grid
    events: EventLog
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    stop: threading.Event = field(default_factory=threading.Event)
    roster: Callable[[], SignedRoster] = SignedRoster
    anchors: AnchorDesk | None = None
    """What sites' privacy ledgers had come to; ``None`` in a simulation."""
    pause_s: float = 5.0
    """Between two questions to a site that answers "not now"."""
    watch: Watch = field(default_factory=Watch)

    @property
    def all_anchors(self) -> tuple[bytes, ...]:
        """What goes with a request to train, and with a survey, which asks whether a site could."""
        return () if self.anchors is None else self.anchors.bundle()

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
    until: int = 0
    """When a closed site opens, in seconds of the epoch; 0: not known."""
    program: str = ""
    """Version of fedward at a site that declined."""

    @property
    def word(self) -> str:
        """A site's code, or the reason in words."""
        return self.reason.removeprefix(DECLINED)


def may_yet(word: str) -> bool:
    """Whether a site that answered so may yet say yes."""
    return word in PENDING or word in UNREACHED or word.startswith((_FLOWER_ERROR, OTHER_VERSION))


_POLL_S = (0.005, 0.2)
_STILL_S = 5.0


def ask(
    link: Link, sealed: protocol.Sealed, sites: Mapping[str, int], deadline_s: float, *, needed: int = 0
) -> Iterator[Answer]:
    """Send one request to ``sites`` and yield an :class:`Answer` for each, as they arrive or give up.

    A dead node's error reply has ``src_node_id=1``, so replies are told apart by the message
    they answer; a second answer, or one to a message that is not ours, is dropped. Sites that
    have not answered after ``deadline_s`` seconds come last. A site that is offline is given up before
    that, unless ``needed`` replies can only be had with it: a line that is down comes up again, and a
    site that goes on training meanwhile brings its reply then.
    """
    ends = link.clock() + deadline_s
    link.watch.asks(sealed, sites, deadline_s)
    waiting = _push(link.grid, sealed, sites, deadline_s + 60.0)
    kind, task = sealed.kind, sealed.task
    del sealed  # a model, which the Grid has by now
    unsent = set(sites) - set(waiting.values())
    pause, got, held = _POLL_S[0], 0, list[str]()
    try:
        while waiting and link.clock() < ends:
            link.check_stop()
            arrived, before = deque(link.grid.pull_messages(list(waiting))), len(waiting)
            while arrived:  # taken off one by one, so that a folded reply is freed while the next one is read
                message = arrived.popleft()
                site = waiting.pop(message.metadata.reply_to_message_id, None)
                if site is not None:
                    answer = _opened(site, message)
                    if kind == protocol.TRAIN and answer.reply is not None:
                        answer = _vouched(link, task, answer, message)
                    link.watch.answered(site)
                    got += answer.reply is not None
                    yield answer
                    del answer
                del message
            if len(waiting) < before:
                pause = _POLL_S[0]
                continue
            if pause == _POLL_S[1]:
                away = _offline(link.grid, waiting, sites)
                if len(waiting) - len(away) < needed - got <= len(waiting):
                    if held != (held := sorted(away.values())):
                        link.events.emit("waiting-for", sites=held, why="offline, and the quorum needs them")
                else:
                    _forget(link.grid, away)
                    for id_, site in away.items():
                        del waiting[id_]
                        yield Answer(site, None, "offline", 0)
            pause = min(pause * 2, _POLL_S[1])
            ends += _rest(link, min(pause, max(0.0, ends - link.clock())))
    finally:
        _forget(link.grid, waiting)
    for site in sorted({*waiting.values(), *unsent}):
        yield Answer(site, None, "not reachable" if site in unsent else "no answer before the deadline", 0)


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


def _rest(link: Link, seconds: float) -> float:
    """Sleep; by how many seconds this process stood still beyond that (stopped, its machine paused): no site is late
    for what could not be heard."""
    begun = link.clock()
    link.sleep(seconds)
    over = link.clock() - begun - seconds
    return over if over > _STILL_S else 0.0


def _offline(grid: Grid, waiting: Mapping[str, str], sites: Mapping[str, int]) -> dict[str, str]:
    """Of ``waiting`` (id of the message -> site) those whose node is not there now."""
    online = set(grid.get_node_ids())
    return {id_: site for id_, site in waiting.items() if sites[site] not in online}


def _forget(grid: Grid, ids: Iterable[str]) -> None:
    """An engine that works here need not work on these any more; a late reply to one of them is dropped."""
    forget, gone = getattr(grid, "forget", None), list(ids)
    if gone and forget is not None:
        forget(gone)


def _push(grid: Grid, sealed: protocol.Sealed, sites: Mapping[str, int], ttl_s: float) -> dict[str, str]:
    """Send a request to every site: id of the message -> site, for those that the Grid took."""
    messages = [sealed.to(node, ttl_s) for node in sites.values()]
    ids = list(grid.push_messages(messages))
    if len(ids) == len(messages):
        return {id_: site for id_, site in zip(ids, sites, strict=True) if id_}
    # Flower's in-memory Grid leaves out what it could not send, so that places no longer tell.
    names = {message.metadata.message_id: site for message, site in zip(messages, sites, strict=True)}
    return {id_: names[id_] for id_ in ids if id_ in names}


def _vouched(link: Link, task: protocol.Task, answer: Answer, message: Message) -> Answer:
    """``answer`` to a training request, or its refusal where the site's privacy ledger is not what it was."""
    if link.anchors is None:
        return answer
    try:
        link.anchors.judge(answer.site, task, protocol.anchors_of(message))
    except (ReplyRefused, ProtocolError) as error:
        link.events.emit("alert", kind="anchor-refused", sites=[answer.site], why=str(error))
        return Answer(answer.site, None, f"refused: {error}", 0)
    return answer


def _opened(site: str, message: Message) -> Answer:
    if message.has_error():
        return Answer(site, None, f"{_FLOWER_ERROR} {message.error.code})", 0)
    try:
        reply = protocol.open_reply(message)
    except VersionMismatch as error:
        return Answer(site, None, f"{OTHER_VERSION}{error}", 0)
    except ProtocolError as error:
        return Answer(site, None, f"unreadable reply: {error}", 0)
    if isinstance(reply, protocol.Refusal):
        return Answer(site, None, f"{DECLINED}{reply.code}", 0, reply.until, reply.program)
    return Answer(site, reply, "", protocol.size(message.content))
