"""A site's end of the network: it asks, nobody can call it.

:func:`serve` stays for months. It asks the coordinator for messages, hands each to ``answer``, and
brings the reply back, through restarts of either side, hung sockets, proxies (``HTTPS_PROXY``), sleep
and clocks that are wrong. Code never comes this way: it asks for messages and their objects only.
"""

from __future__ import annotations

import contextlib
import logging
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import httpx
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key
from flwr.app import Message

from client import flower_private as flower
from common import objects
from common.errors import IdentityError
from common.protocol import SURVEY

logger = logging.getLogger("fedward.fleet")


@dataclass(frozen=True)
class Pace:
    """How often and how long; seconds and bytes."""

    quick_s: float = 0.2
    idle_s: float = 10.0
    quick_for_s: float = 60.0
    heartbeat_s: float = 30.0  # Flower lists a node as offline after two missed beats; at least 10
    retry_s: tuple[float, float] = (1.0, 60.0)  # the first and the longest pause before connecting anew
    connect_s: float = 10.0  # also the longest wait for a short answer, and so for the end after ``stop``
    silence_s: float = 30.0  # the longest wait for an object's next byte
    request_s: float = 600.0  # the longest exchange, however steadily it drips
    objects_s: float = 1800.0  # the longest wait for a message's objects
    message_bytes: int = (1 << 30) + (16 << 20)  # a reply of more could not be kept (client.replies)
    survey_bytes: int = 8 << 20  # a study and a roster, whether anybody has approved it or not


class _Unreachable(Exception):
    """The exchange failed; connect anew."""


class _Refused(_Unreachable):
    """The coordinator does not take this site's signature."""


class _Dropped(Exception):
    """The coordinator does not want this: the message is over, or was never ours."""


class _Sized(Protocol):
    def SerializeToString(self) -> bytes: ...  # noqa: N802 protobuf's name


T = TypeVar("T")

_FAILURES: tuple[tuple[type[Exception], str], ...] = (
    (httpx.ConnectTimeout, "nobody answers at its address"),
    (httpx.ProxyError, "the proxy refuses the way to it"),
    (httpx.ConnectError, "no connection to its address"),
    (httpx.TimeoutException, "it fell silent"),
    (httpx.NetworkError, "the connection broke off"),
    (httpx.RemoteProtocolError, "the connection broke off"),
)
"""In words, the narrower kinds first."""


class Connection:
    """Signed exchanges with one coordinator. :attr:`state` is for status pages: ``connecting``, ``online``,
    ``unreachable`` or ``refused`` (not on the roster, or the roster's key is another); :attr:`why` says more,
    :attr:`answered` when the coordinator last took a request (seconds, by this machine's clock)."""

    def __init__(self, address: str, tls: ssl.SSLContext, key: ec.EllipticCurvePrivateKey, pace: Pace) -> None:
        self.pace = pace
        self.state = "connecting"
        self.why = ""
        self.answered: float | None = None
        self.node_id = 0
        self._base, self._key = f"https://{address}/v1/fleet/", key
        self._http = httpx.Client(
            verify=tls,
            timeout=httpx.Timeout(pace.silence_s, connect=pace.connect_s),
            # Shorter than the coordinator keeps them, so that it is not he who hangs up on a request.
            limits=httpx.Limits(keepalive_expiry=20.0),
            follow_redirects=False,
        )
        self._signing = threading.Lock()
        self._last_stamp, self._skew_s = 0.0, 0.0

    @classmethod
    def open(
        cls,
        address: str,
        ca: Path,
        key: Path,
        *,
        certificate: tuple[Path, Path] | None = None,
        pace: Pace | None = None,
    ) -> Connection:
        """Prepare to talk to ``address`` (host:port); nothing is sent yet.

        ``ca``: the coordinator's authority, PEM, the only one that is trusted. ``key``: the site's private
        P-384 key, PEM or OpenSSH. ``certificate``: the site's own certificate and its key, where the coordinator
        asks for one.

        Raises :class:`IdentityError` for files that cannot be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            context.load_verify_locations(ca)
            if certificate is not None:
                context.load_cert_chain(*certificate)
        except OSError as error:  # SSLError is one
            raise IdentityError(
                f"the coordinator's certificate {ca.name} cannot be used ({error.strerror or type(error).__name__}); "
                "join again with the kit"
            ) from None
        return cls(address, context, _private(key), pace or Pace())

    def close(self) -> None:
        self._http.close()

    def call(
        self, name: str, request: _Sized, answer: type[T], *, silence_s: float | None = None, most: int = 4 << 20
    ) -> T:
        """One exchange; an answer has at most ``most`` bytes. Raises ``_Unreachable``, ``_Refused`` or ``_Dropped``."""
        pace = self.pace
        head = {"content-type": flower.MEDIA_TYPE, "accept": flower.MEDIA_TYPE, "accept-encoding": "identity"}
        silence_s = silence_s or pace.connect_s
        timeout = httpx.Timeout(silence_s, connect=min(pace.connect_s, silence_s))
        body = request.SerializeToString()
        ends, got = time.monotonic() + pace.request_s, bytearray()
        try:
            with self._http.stream(
                "POST", self._base + name, content=body, headers=head | self._signature(), timeout=timeout
            ) as response:
                # A coordinator's answer is bounded, whatever it says of its length.
                for part in response.iter_raw():
                    got += part
                    if len(got) > most or time.monotonic() > ends:
                        raise _Unreachable("an answer without end")
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            raise _Unreachable(_words(error)) from None
        self._judge(response)
        try:
            return answer.FromString(bytes(got))  # type: ignore[attr-defined, no-any-return]
        except Exception:  # protobuf's, and whatever its two implementations raise
            raise _Unreachable("not an answer of the fleet's") from None

    def _judge(self, response: httpx.Response) -> None:
        status = response.status_code
        if status == 200:
            self.answered = time.time()
            return
        if status == 401:
            self._learn_clock(response)
            raise _Refused("the coordinator does not know this site's key, or its clock is another")
        if status in (400, 403, 404, 411, 413):
            raise _Dropped(f"status {status}")
        raise _Unreachable(f"status {status}")

    def _signature(self) -> dict[str, str]:
        with self._signing:
            # Never one stamp twice: the coordinator takes a second for a replay.
            self._last_stamp = max(time.time() + self._skew_s, self._last_stamp + 1e-5)
            stamp = self._last_stamp
        return flower.sign(self._key, stamp)

    def _learn_clock(self, response: httpx.Response) -> None:
        """A site whose clock is wrong signs by the coordinator's, which it told over TLS."""
        with contextlib.suppress(KeyError, ValueError, TypeError, OverflowError):
            told = parsedate_to_datetime(response.headers["date"]).timestamp()
            if not _CLOCKS[0] < told < _CLOCKS[1]:
                return
            skew = told - time.time()
            if abs(skew - self._skew_s) > _CLOCK_S:
                logger.warning("this machine's clock is %+.0f s off the coordinator's; signing by his", -skew)
                with self._signing:
                    self._skew_s, self._last_stamp = skew, 0.0


_OBJECT_BYTES = 32 << 20
_MOST_OBJECTS = 100_000
_AT_ONCE = 4
_CLOCK_S = 2.0
_CLOCKS = (1_500_000_000.0, 32_500_000_000.0)
"""Wall clocks that may be told, 2017 to 2999: with the last second that a calendar has, no stamp could be written."""
_LOOK_S = 1.0
"""Between two looks at what people have decided."""


Answer = Callable[[Message], Message]
Recheck = Callable[[Message, Message], Message]
Undecided = Callable[[], bool]


def serve(
    connection: Connection,
    answer: Answer,
    *,
    stop: threading.Event,
    recheck: Recheck | None = None,
    undecided: Undecided = lambda: False,
) -> None:
    """Answer messages until ``stop`` is set; closes the connection at the end.

    ``answer`` is called in this thread, once per message that comes; a reply that cannot be brought back is tried
    again until it is taken or nobody wants it, without another call. ``recheck(request, reply)`` is asked before every
    attempt, which may be days after the first, and gives what may leave now: that reply, or another in its place.
    Neither should raise; where one does, the coordinator learns that much and nothing else. After a crash the
    unanswered message comes again.

    ``undecided``, called in this thread too: whether people have yet to decide, for days perhaps. Meanwhile it looks
    as seldom as when idle, and quickly again once they have.
    """
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line a request, otherwise
    agent = _Agent(connection, answer, recheck or (lambda _, reply: reply), undecided, stop)
    try:
        agent.run()
    finally:
        connection.close()


class _Agent:
    def __init__(
        self, connection: Connection, answer: Answer, recheck: Recheck, undecided: Undecided, stop: threading.Event
    ) -> None:
        self._to, self._answer, self._recheck, self._stop = connection, answer, recheck, stop
        self._undecided = undecided
        self._pace = connection.pace
        self._quick_until = 0.0
        self._busy = self._brought = False
        self._arrays: objects.Arrays = {}  # of the last message
        self._beat = threading.Event()  # set: the heart-beat found that we must connect anew

    def run(self) -> None:
        heart: threading.Thread | None = None
        with self._connected():
            heart = threading.Thread(target=self._heartbeats, name="fedward-heartbeat", daemon=True)
            heart.start()
            while not self._stop.is_set():
                try:
                    self._turn()
                except Exception:
                    # Whatever a coordinator may have sent: it must not end an agent that is to stay for months.
                    logger.exception("unexpected failure; connecting anew")
                    self._busy = False
                    self._beat.set()
                    self._stop.wait(self._pace.retry_s[1])
        heart.join(self._pace.connect_s)

    def _turn(self) -> None:
        """Ask once, and answer what comes."""
        taken = self._tried(self._pull)
        if self._stop.is_set():
            return
        if taken is None:
            self._rest()
            return
        self._quick_until = time.monotonic() + self._pace.quick_for_s
        self._work(*taken)
        self._quick_until = time.monotonic() + self._pace.quick_for_s

    def _rest(self) -> None:
        """Until the next look: short in the middle of a run, long when idle or while people decide."""
        deciding = self._undecided()
        if not deciding and time.monotonic() < self._quick_until:
            self._stop.wait(self._pace.quick_s)
            return
        self._arrays = {}
        # Idle sites that a restart has set off together come apart again.
        ends = time.monotonic() + self._pace.idle_s * random.uniform(0.9, 1.1)  # noqa: S311
        while (left := ends - time.monotonic()) > 0 and not self._stop.wait(min(left, _LOOK_S)):
            if deciding and not self._undecided():
                self._quick_until = time.monotonic() + self._pace.quick_for_s
                return

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        self._tried(self._activate)
        yield
        # Stopped in the middle of work we leave without a word: until the coordinator misses us, a restarted
        # agent finds its message waiting.
        if not self._busy and self._to.state == "online":
            with contextlib.suppress(_Unreachable, _Dropped):
                request = flower.DeactivateNodeRequest(node_id=self._to.node_id)
                self._to.call("deactivate-node", request, flower.DeactivateNodeResponse, silence_s=2.0)

    # --- one message ------------------------------------------------------------------------------------------

    def _pull(self) -> tuple[Message, Any] | None:
        node = flower.Node(node_id=self._to.node_id)
        found = self._to.call("pull-messages", flower.PullMessagesRequest(node=node), flower.PullMessagesResponse)
        if not found.messages_list:
            return None
        try:
            return flower.message_from_proto(found.messages_list[0]), found.message_object_trees[0]
        except Exception:  # what Flower raises for records of no known type, and no tree
            raise _Unreachable("a message that cannot be read") from None

    def _work(self, announced: Message, tree: Any) -> None:
        """Fetch, answer, bring back. Until then the coordinator keeps it for this agent's next life."""
        self._busy = True
        run_id, message_id = announced.metadata.run_id, announced.metadata.message_id
        try:
            kind = announced.metadata.message_type
            most = self._pace.survey_bytes if kind == SURVEY else self._pace.message_bytes
            request = self._tried(lambda: self._fetch(run_id, tree, most))
            if request is None:
                return
            facts = request.metadata
            told = (self._to.node_id, run_id, message_id, kind)
            if (facts.dst_node_id, facts.run_id, facts.message_id, facts.message_type) != told:
                raise ValueError("for another site, or another than was announced")
            reply = self._replied(request)
            self._brought = False
            self._tried(lambda: self._bring(self._rechecked(request, reply)), at_least_once=True)
            self._busy = not self._brought
        except _Dropped as reason:
            self._busy = False
            logger.info("the coordinator does not want an answer to this message any more (%s)", reason)
        except ValueError as error:
            logger.error("a message that cannot be read (%s); not answered", error)
            with contextlib.suppress(_Dropped):
                reply = flower.settle(flower.failed(announced), announced)
                self._tried(lambda: self._bring(reply))
            self._busy = False

    def _fetch(self, run_id: int, tree: Any, most: int) -> Message:
        """The message, of at most ``most`` bytes on the wire and put together. Raises ``ValueError``, ``_Dropped``."""
        node, left, lock = flower.Node(node_id=self._to.node_id), [most], threading.Lock()
        # The next round starts from the weights that were just evaluated: they are not fetched twice.
        known = {id_: self._arrays[id_] for id_ in objects.object_ids(tree) if id_ in self._arrays}
        self._arrays = known
        wanted = objects.object_ids(tree, known)
        if len(wanted) > _MOST_OBJECTS:
            raise ValueError(f"{len(wanted)} objects")

        def fetch(object_id: str) -> bytes:
            if self._stop.is_set():
                raise _Unreachable("stopping")
            request = flower.PullObjectRequest(node=node, run_id=run_id, object_id=object_id)
            patience = self._pace.silence_s
            found = self._to.call(
                "pull-object", request, flower.PullObjectResponse, silence_s=patience, most=_OBJECT_BYTES
            )
            if not found.object_found:
                raise _Dropped("an object is gone")
            if not found.object_available:
                raise flower.ObjectUnavailableError(object_id)
            with lock:
                left[0] -= len(found.object_content)
                if left[0] < 0:
                    raise ValueError("larger than this site takes")
            return bytes(found.object_content)

        try:
            contents = flower.pull_objects(
                wanted,
                fetch,
                max_time=self._pace.objects_s,
                max_tries_per_object=None,
                initial_backoff=self._pace.quick_s / 4,
                backoff_cap=1.0,
            )
        except flower.ObjectPullError:
            raise _Dropped("its objects never came") from None
        request, self._arrays = flower.inflate(tree.object_id, contents, most, known)
        return request

    def _replied(self, request: Message) -> Message:
        try:
            reply = self._answer(request)
        except Exception:
            logger.exception("answering failed")
            reply = flower.failed(request)
        return flower.settle(reply, request)

    def _rechecked(self, request: Message, reply: Message) -> Message:
        try:
            now = self._recheck(request, reply)
        except Exception:
            logger.exception("asking again whether a reply may leave failed")
            now = flower.failed(request)
        return reply if now is reply else flower.settle(now, request)

    def _bring(self, reply: Message) -> None:
        node, run_id = flower.Node(node_id=self._to.node_id), reply.metadata.run_id
        with flower.no_object_id_recompute():
            bare = flower.message_to_proto(flower.remove_content_from_message(reply))
            announced = self._to.call(
                "push-messages",
                flower.PushMessagesRequest(
                    node=node,
                    messages_list=[bare],
                    message_object_trees=[flower.get_object_tree(reply)],
                ),
                flower.PushMessagesResponse,
            )

            def push(object_id: str, content: bytes) -> None:
                request = flower.PushObjectRequest(
                    node=node,
                    run_id=run_id,
                    object_id=object_id,
                    object_content=content,
                    session_id=announced.session_id,
                )
                patience = self._pace.silence_s
                if not self._to.call("push-object", request, flower.PushObjectResponse, silence_s=patience).stored:
                    raise _Unreachable("the upload was cut; announce it anew")

            objects_of, wanted = flower.get_all_nested_objects(reply), set(announced.objects_to_push)
            missing = [id_ for id_ in objects_of if id_ in wanted]
            for start in range(0, len(missing), _AT_ONCE):  # Flower copies all that it is handed before it sends any
                batch = missing[start : start + _AT_ONCE]
                flower.push_objects({id_: objects_of.pop(id_) for id_ in batch}, push)
        self._brought = True

    # --- staying connected ------------------------------------------------------------------------------------

    def _activate(self) -> None:
        request = flower.ActivateNodeRequest(
            public_key=flower.public_bytes(self._to._key), heartbeat_interval=self._pace.heartbeat_s
        )
        self._beat.clear()
        try:
            self._to.node_id = self._to.call("activate-node", request, flower.ActivateNodeResponse).node_id
        except _Dropped as reason:
            raise _Unreachable(str(reason)) from None
        self._become("online")

    def _tried(self, step: Callable[[], T], *, at_least_once: bool = False) -> T | None:
        """``step``'s result, however often we must connect anew for it; ``None`` once we are to stop."""
        first, longest = self._pace.retry_s
        pause, lost = first, self._beat.is_set()
        while at_least_once or not self._stop.is_set():
            try:
                if lost and step != self._activate:
                    self._activate()
                return step()
            except _Unreachable as reason:
                if self._stop.is_set():
                    return None
                lost = True
                self._become("refused" if isinstance(reason, _Refused) else "unreachable", str(reason))
                self._stop.wait(pause * random.uniform(0.5, 1.5))  # noqa: S311 sites must not come back in step
                pause = min(pause * 2, longest)
        return None

    def _become(self, state: str, why: str = "") -> None:
        if state != self._to.state:
            logger.log(logging.INFO if state == "online" else logging.WARNING, "%s%s", state, why and f": {why}")
            self._to.state, self._to.why = state, why

    def _heartbeats(self) -> None:
        """Beats go on while ``answer`` works, for hours if need be. A missed one is tried again soon."""
        interval = self._pace.heartbeat_s
        pause = interval * 0.7
        while not self._stop.wait(pause * random.uniform(0.9, 1.1)):  # noqa: S311
            request = flower.SendNodeHeartbeatRequest(
                node=flower.Node(node_id=self._to.node_id), heartbeat_interval=interval
            )
            try:
                known = self._to.call("send-node-heartbeat", request, flower.SendNodeHeartbeatResponse).success
                pause = interval * 0.7
            except (_Unreachable, _Dropped):
                known, pause = False, min(interval * 0.7, 5.0)
            if not known:
                self._beat.set()


def _words(error: Exception) -> str:
    """What failed on the way, for status pages and the log; no address, no text of the other side's."""
    for kind, words in _FAILURES:
        if isinstance(error, kind):
            return words
    return type(error).__name__


def _private(path: Path) -> ec.EllipticCurvePrivateKey:
    remedy = "make one with: fedward site join-request"
    try:
        text = path.read_bytes()
        load = load_ssh_private_key if b"OPENSSH" in text else load_pem_private_key
        key = load(text, None)
    except OSError as error:
        raise IdentityError(f"the site's key {path.name} cannot be read ({error.strerror}); {remedy}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise IdentityError(f"the site's key {path.name} is damaged or locked; {remedy}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise IdentityError(f"the site's key {path.name} is no P-384 key; {remedy}")
    return key
