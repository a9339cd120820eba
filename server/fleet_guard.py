"""The gate before the SuperLink: who may say what, decided before a byte of a body is read.

Flower verifies a node's signature after it has read the whole body, takes any node's word for whose
reply it pushes, and gives any object to whoever knows its hash. Here a request passes only if its
path is one of the fleet's, its key is on the roster and signed these headers now, its length is
announced and fits; then the body must arrive steadily, and concern only what this site was offered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from base64 import b64decode
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from server import flower_private as flower

logger = logging.getLogger("fedward.fleet")

PREFIX = "/v1/fleet/"
FLEET = frozenset(
    PREFIX + name
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
"""What a site may call. A node is registered by the roster, so those two routes of the fleet's are shut as well."""

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Head = list[tuple[bytes, bytes]]
App = Callable[[Any, Any, Any], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """Bounds of what one peer can make this process hold. Bytes and seconds."""

    small_bytes: int = 64 << 10
    announcement_bytes: int = 16 << 20  # the tree of a reply's hashes: about 150 bytes an object
    object_bytes: int = 32 << 20
    reply_bytes: int = 4 << 30
    reply_objects: int = 100_000
    announcements: int = 100  # of one reply, over all reconnections
    in_flight: int = 8  # requests of one site at a time
    connections: int = 1024
    handshake_s: float = 10.0
    head_s: float = 10.0
    body_pause_s: float = 20.0  # the longest silence within a body
    body_rate: float = 8 << 10  # the slowest body, bytes a second, over its whole length
    idle_s: float = 30.0
    clock_s: float = 60.0  # the oldest signature taken; the newest is flower.CLOCK_AHEAD_S ahead

    def body(self, path: str) -> int:
        """The longest body of a request to ``path``."""
        kinds = {"push-object": self.object_bytes, "push-messages": self.announcement_bytes}
        return kinds.get(path.removeprefix(PREFIX), self.small_bytes)


class _Refused(Exception):
    """Answered with ``status`` and nothing else; the connection ends."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


@dataclass
class _Work:
    """A message that a site was handed, and what its reply may consist of."""

    offer: flower.Offer
    reply: frozenset[str] = frozenset()
    bytes_left: int = 0
    announced: int = 0


@dataclass(eq=False)
class Member:
    """One site on the roster, as the gate knows it."""

    alias: str
    node_id: int
    key: bytes
    public: ec.EllipticCurvePublicKey
    revoked: bool = False
    last_seen: float | None = None
    in_flight: int = 0
    work: OrderedDict[str, _Work] = field(default_factory=OrderedDict)
    stamps: set[str] = field(default_factory=set)
    _order: deque[tuple[float, str]] = field(default_factory=deque)

    def first_use(self, stamp: str, now: float, keep_s: float) -> bool:
        """Whether this site has not signed with ``stamp`` before; stamps too old to pass are forgotten."""
        while self._order and self._order[0][0] < now:
            self.stamps.discard(self._order.popleft()[1])
        if stamp in self.stamps:
            return False
        self.stamps.add(stamp)
        self._order.append((now + keep_s, stamp))
        return True


class Guard:
    """ASGI application around the SuperLink's."""

    def __init__(self, link: flower.SuperLink, limits: Limits, clock: Callable[[], float] = time.time) -> None:
        self._link, self._app, self.limits, self._clock = link, link.app, limits, clock
        self._members: dict[bytes, Member] = {}
        self.requests: Counter[str] = Counter()
        """Authenticated requests by the path's last part."""
        self.refusals: Counter[str] = Counter()
        """Refused requests by reason."""

    def admit(self, member: Member) -> None:
        self._members[member.key] = member

    def expel(self, member: Member) -> None:
        """From here on nothing of this site passes, a body that is just arriving included."""
        member.revoked = True
        self._members.pop(member.key, None)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        member: Member | None = None
        try:
            path = self._path(scope)
            headers = _headers(scope)
            member = self._authenticate(headers)
            length = self._length(headers, path)
            if member.in_flight >= self.limits.in_flight:
                raise _Refused(429, "too many requests at once")
            member.in_flight += 1
            try:
                await self._pass(path, member, length, scope, receive, send)
            finally:
                member.in_flight -= 1
        except _Refused as refusal:
            self.refusals[refusal.reason] += 1
            count = self.refusals[refusal.reason]
            if member is not None or count.bit_count() == 1:  # a stranger could else push all else out of the log
                who = member.alias if member is not None else f"somebody unknown, {count} by now"
                logger.info("refused %s: %s", who, refusal.reason)
            await _deny(send, refusal.status)
        except _Gone:
            self.refusals["left in the middle"] += 1

    def _path(self, scope: Scope) -> str:
        path = str(scope["path"])
        # As it was sent: an escaped spelling of a path that is allowed is nobody's honest spelling.
        if (
            scope["method"] != "POST"
            or path not in FLEET
            or scope.get("raw_path") != path.encode()
            or scope.get("query_string")
        ):
            raise _Refused(404, "not a route of the fleet")
        return path

    def _authenticate(self, headers: dict[str, str]) -> Member:
        try:
            key = b64decode(headers[flower.PUBLIC_KEY_HEADER], validate=True)
            signature = b64decode(headers[flower.SIGNATURE_HEADER], validate=True)
            stamp = headers[flower.STAMP_HEADER]
            signed = stamp.encode("ascii")
        except (KeyError, ValueError):
            raise _Refused(401, "no signature") from None
        member = self._members.get(key)
        if member is None:
            raise _Refused(401, "not on the roster")
        now = self._clock()
        try:
            age = now - datetime.fromisoformat(stamp).astimezone(UTC).timestamp()
        except (ValueError, OverflowError):
            raise _Refused(401, "no signature") from None
        if not -flower.CLOCK_AHEAD_S < age < self.limits.clock_s:
            raise _Refused(401, "signed at another time")
        try:
            member.public.verify(signature, signed, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            raise _Refused(401, "foreign signature") from None
        if not member.first_use(stamp, now, self.limits.clock_s + flower.CLOCK_AHEAD_S):
            raise _Refused(401, "replayed")
        member.last_seen = now
        return member

    def _length(self, headers: dict[str, str], path: str) -> int:
        text = headers.get("content-length", "")
        if "transfer-encoding" in headers or not text.isascii() or not text.isdigit():
            raise _Refused(411, "no length")
        if len(text) > 18 or int(text) > self.limits.body(path):
            raise _Refused(413, "too long")
        return int(text)

    async def _pass(self, path: str, member: Member, length: int, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._body(receive, length)
        if member.revoked:
            raise _Refused(401, "not on the roster")
        name = path.removeprefix(PREFIX)
        self.requests[name] += 1
        try:
            if name == "confirm-message-received":
                # A message's objects stay until its reply is in hand: a site that is killed gets it again.
                status, head, answer = 200, _GOOD, b""
            elif name in ("pull-object", "push-object"):
                status, head, answer = 200, _GOOD, await self._object(name, member, body)
            else:
                status, head, answer = await self._rest(name, member, body, scope, receive)
        except ValueError:
            raise _Refused(400, "malformed") from None
        if member.revoked:
            raise _Refused(401, "not on the roster")
        await self._deliver(send, status, head, answer)

    async def _deliver(self, send: Send, status: int, head: Head, answer: bytes) -> None:
        """In pieces, each once the one before has left: who asks and does not read cannot fill this process."""
        head = [pair for pair in head if pair[0].lower() != b"content-length"]
        head.append((b"content-length", str(len(answer)).encode()))
        try:
            await send({"type": "http.response.start", "status": status, "headers": head})
            for start in range(0, len(answer), _PIECE):
                async with asyncio.timeout(self.limits.body_pause_s):
                    piece = answer[start : start + _PIECE]
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
            async with asyncio.timeout(self.limits.body_pause_s):
                await send({"type": "http.response.body", "body": b""})
        except TimeoutError:
            raise _Gone from None

    async def _object(self, name: str, member: Member, body: bytes) -> bytes:
        """Objects, nearly all requests of a round, go to Flower's store without its eight layers of middleware."""
        if name == "pull-object":
            wanted = flower.read_wanted_object(body)
            offers = (work.offer for work in member.work.values())
            if not any(wanted.object_id in offer.objects and wanted.run_id == offer.run_id for offer in offers):
                raise _Refused(403, "another site's object")
            self._own(member, wanted.node_id)
            return self._link.give(wanted)
        pushed = flower.read_pushed_object(body)
        self._own(member, pushed.node_id)
        for work in reversed(member.work.values()):
            if pushed.object_id in work.reply and pushed.run_id == work.offer.run_id:
                if len(pushed.content) > work.bytes_left:
                    raise _Refused(413, "reply too large")
                work.bytes_left -= len(pushed.content)
                return await asyncio.to_thread(self._link.take, pushed)  # it hashes what it stores
        raise _Refused(403, "object of no reply")

    def _own(self, member: Member, node_id: int) -> None:
        if node_id != member.node_id:
            raise _Refused(401, "another site's name")

    async def _rest(
        self, name: str, member: Member, body: bytes, scope: Scope, receive: Receive
    ) -> tuple[int, Head, bytes]:
        announced = self._authorise(name, member, body)
        if name == "activate-node":
            self._link.release(member.node_id)
        status, head, answer = await self._ask(scope, _replayed(body, receive))
        if status == 200:
            if name == "activate-node":
                self._link.redeliver(member.node_id)
            elif name == "pull-messages":
                self._offer(member, answer)
            elif announced is not None:
                self._link.answered(announced)
        return status, head, answer

    async def _body(self, receive: Receive, length: int) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_pause_s + length / self.limits.body_rate):
                more = True
                while more:
                    async with asyncio.timeout(self.limits.body_pause_s):
                        event = await receive()
                    if event["type"] != "http.request":
                        raise _Gone
                    body += event.get("body", b"")
                    more = event.get("more_body", False)
        except TimeoutError:
            raise _Refused(408, "too slow") from None
        return bytes(body)

    async def _ask(self, scope: Scope, receive: Receive) -> tuple[int, Head, bytes]:
        """Flower's whole answer; what it offers must be noted before it leaves."""
        status, head, parts = 500, Head(), list[bytes]()

        async def take(event: Event) -> None:
            nonlocal status, head
            if event["type"] == "http.response.start":
                status, head = int(event["status"]), list(event.get("headers", ()))
            else:
                parts.append(event.get("body", b""))

        try:
            await self._app(scope, receive, take)
        except Exception as error:
            logger.error("Flower failed on %s: %s", scope["path"], type(error).__name__)
            return 500, [], b""
        return status, head, b"".join(parts)

    # --- what concerns whom -----------------------------------------------------------------------------------

    def _authorise(self, name: str, member: Member, body: bytes) -> str | None:
        """Hold a request to what this site was offered. Returns the message that a push answers.

        The node a request names beside is held to the key by Flower itself.
        Raises ``ValueError`` for a body that cannot be read.
        """
        if name == "activate-node":
            if flower.read_activation(body) != member.key:
                raise _Refused(403, "another site's key")
        elif name == "push-messages":
            return self._announce(member, flower.read_pushed(body))
        return None

    def _announce(self, member: Member, pushed: flower.Pushed) -> str:
        work = member.work.get(pushed.reply_to)
        if work is None:  # made before this side was started anew: it is asked for again; or in another site's name
            raise _Refused(403, "reply to nothing asked")
        if pushed.source != member.node_id or pushed.target != flower.SERVER_NODE:
            raise _Refused(403, "another site's reply")
        if pushed.run_id != work.offer.run_id or pushed.root != pushed.message_id:
            raise _Refused(403, "another site's reply")
        work.announced += 1
        if len(pushed.objects) > self.limits.reply_objects or work.announced > self.limits.announcements:
            raise _Refused(413, "reply too large")
        if pushed.objects != work.reply:
            # An agent that was killed in the middle of its upload may have made another reply since.
            if work.reply and not self._link.withdraw(pushed.reply_to):
                raise _Refused(403, "second reply")
            work.reply, work.bytes_left = pushed.objects, self.limits.reply_bytes
        return pushed.reply_to

    def _offer(self, member: Member, answer: bytes) -> None:
        for offer in flower.read_offers(answer):
            known = member.work.pop(offer.message_id, None)
            member.work[offer.message_id] = known or _Work(offer)
            while len(member.work) > _REMEMBERED:
                member.work.popitem(last=False)


_REMEMBERED = 4
_PIECE = 256 << 10


_GOOD: Head = [(b"content-type", flower.MEDIA_TYPE.encode())]


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body that was read, given once; after it whatever else the connection brings."""
    waiting = [body]
    del body

    async def hand_over() -> Event:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return hand_over


class _Gone(Exception):
    """The peer hung up; there is nobody to answer."""


_ONCE = (flower.PUBLIC_KEY_HEADER, flower.SIGNATURE_HEADER, flower.STAMP_HEADER, "content-length")


def _headers(scope: Scope) -> dict[str, str]:
    """Headers by lower-case name. Given twice, those that decide would be read one way here and another by Flower."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1").lower()
        if key in found and key in _ONCE:
            raise _Refused(400, "a header twice")
        found[key] = value.decode("latin-1")
    return found


async def _deny(send: Send, status: int) -> None:
    with contextlib.suppress(Exception):  # the peer may be gone
        headers = [(b"content-length", b"0"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b""})
