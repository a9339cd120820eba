"""Strangers, former members and hostile members at the coordinator's public socket. Real TLS, real sockets."""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.routing import iter_route_contexts
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from client import flower_private as flower
from common import objects
from server.fleet_guard import FLEET, PREFIX, Limits
from server.superlink import Fleet
from tests.integration.fleet_fixtures import Authority, new_key, peak_growth, wait_for
from tests.security.hostile_coordinator import Offer, object_of

LIMITS = Limits(handshake_s=1.5, head_s=1.5, body_pause_s=1.5, clock_s=60.0, reply_bytes=1 << 20, connections=64)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("pki"), "north", "south", "former", "stranger")


@pytest.fixture(scope="module")
def fleet(authority: Authority) -> Iterator[Fleet]:
    with authority.fleet("north", "south", "former", limits=LIMITS) as running:
        yield running


class Site:
    """A site that says what it likes, signed with the key it has."""

    def __init__(self, fleet: Fleet, authority: Authority, alias: str) -> None:
        self.key = authority.keys[alias]
        context = ssl.create_default_context(cafile=str(authority.ca))
        self.http = httpx.Client(
            base_url=f"https://127.0.0.1:{fleet.port}", verify=context, timeout=20.0, trust_env=False
        )
        self.node_id = fleet.nodes()[alias].node_id if alias in fleet.nodes() else 0

    def __enter__(self) -> Site:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def headers(self, at: float | None = None) -> dict[str, str]:
        return {"content-type": flower.MEDIA_TYPE, **flower.sign(self.key, time.time() if at is None else at)}

    def post(self, name: str, request: Any = b"", **headers: str) -> httpx.Response:
        body = request if isinstance(request, bytes) else request.SerializeToString()
        return self.http.post(PREFIX + name, content=body, headers=self.headers() | headers)

    def activate(self) -> None:
        request = flower.ActivateNodeRequest(public_key=flower.public_bytes(self.key), heartbeat_interval=30.0)
        answer = self.post("activate-node", request)
        assert answer.status_code == 200
        self.node_id = flower.ActivateNodeResponse.FromString(answer.content).node_id

    @property
    def node(self) -> Any:
        return flower.Node(node_id=self.node_id)

    def pull(self) -> tuple[Message, Any] | None:
        answer = self.post("pull-messages", flower.PullMessagesRequest(node=self.node))
        assert answer.status_code == 200
        found = flower.PullMessagesResponse.FromString(answer.content)
        if not found.messages_list:
            return None
        return flower.message_from_proto(found.messages_list[0]), found.message_object_trees[0]

    def announce(self, reply: Message, *, tree: Any = None, **facts: Any) -> httpx.Response:
        with flower.no_object_id_recompute():
            proto = flower.message_to_proto(flower.remove_content_from_message(reply))
            for name, value in facts.items():
                setattr(proto.metadata, name, value)
            request = flower.PushMessagesRequest(
                node=self.node, messages_list=[proto], message_object_trees=[tree or flower.get_object_tree(reply)]
            )
        return self.post("push-messages", request)

    def upload(self, reply: Message, announced: httpx.Response, only: int | None = None) -> list[int]:
        found = flower.PushMessagesResponse.FromString(announced.content)
        statuses = []
        with flower.no_object_id_recompute():
            objects = flower.get_all_nested_objects(reply)
            for object_id in list(found.objects_to_push)[:only]:
                request = flower.PushObjectRequest(
                    node=self.node,
                    run_id=reply.metadata.run_id,
                    object_id=object_id,
                    object_content=objects[object_id].deflate(),
                    session_id=found.session_id,
                )
                statuses.append(self.post("push-object", request).status_code)
        return statuses


@pytest.fixture
def north(fleet: Fleet, authority: Authority) -> Iterator[Site]:
    with Site(fleet, authority, "north") as site:
        site.activate()
        yield site


@pytest.fixture
def south(fleet: Fleet, authority: Authority) -> Iterator[Site]:
    with Site(fleet, authority, "south") as site:
        site.activate()
        yield site


def said(node: int, text: str = "hello") -> Message:
    return Message(RecordDict({"c": ConfigRecord({"text": text})}), node, "query.survey", ttl=60.0)


def answered(message: Message, size: int = 8) -> Message:
    content = RecordDict({"w": ArrayRecord({"w": Array(np.full(size, os.getpid(), np.float32))})})
    return flower.settle(Message(content, reply_to=message), message)


def secured(authority: Authority, fleet: Fleet) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(authority.ca))
    return context.wrap_socket(socket.create_connection(("127.0.0.1", fleet.port), 10), server_hostname="127.0.0.1")


def exchange(connection: socket.socket, data: bytes) -> bytes:
    """Send, and read until the other side has closed, or an answer without a body came."""
    got = b""
    try:
        connection.sendall(data)
        while b"\r\n\r\n" not in got:
            part = connection.recv(65536)
            if not part:
                break
            got += part
    except (ConnectionError, ssl.SSLError):
        pass
    return got


def head(method: str, target: str, **headers: str) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "host: coordinator", *(f"{k}: {v}" for k, v in headers.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


# --- routes -------------------------------------------------------------------------------------------------------


def routes(app: Any) -> Iterator[tuple[str, str]]:
    """Every (method, path) of Flower's app, its documentation included."""
    for context in iter_route_contexts(app.routes):
        for method in sorted(getattr(context.route, "methods", None) or {"GET"}):
            yield method, str(getattr(context.route, "path", ""))


def test_only_the_fleets_routes_answer(fleet: Fleet, north: Site) -> None:
    app = fleet._link.app
    known = set(routes(app))
    assert len(known) > 60 and ("POST", "/v1/control/start-run") in known and ("GET", "/openapi.json") in known
    assert set(app.openapi()["paths"]) <= {path for _, path in known}
    shut = {(method, path) for method, path in known if path not in FLEET}
    assert {("POST", PREFIX + "register-node"), ("POST", PREFIX + "unregister-node")} <= shut
    for method, path in sorted(shut | {("POST", path) for _, path in shut}):
        answer = north.http.request(method, path.replace("{", "x").replace("}", "x"), headers=north.headers())
        assert answer.status_code == 404, (method, path)
        assert not answer.content and "server" not in answer.headers
    for path in FLEET:
        for method in ("GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE"):
            assert north.http.request(method, path, headers=north.headers()).status_code == 404, (method, path)


@pytest.mark.parametrize(
    "target",
    [
        "/v1/fleet/../control/list-runs",
        "/v1/fleet/%2e%2e/control/list-runs",
        "/v1/fleet/..%2fcontrol/list-runs",
        "/v1/fleet//pull-messages",
        "//v1/fleet/pull-messages",
        "/v1/fleet/pull-messages/",
        "/v1/fleet/pull-messages/../../control/list-runs",
        "/v1/fleet/%70ull-messages",
        "/V1/FLEET/pull-messages",
        "/v1/fleet/pull-messages?x=1",
        "/v1/fleet/pull-messages;x",
        "/v1/fleet/pull-messages%00",
        "/v1/fleet/",
        "/v1/fleet",
        "/",
        "*",
        "https://coordinator/v1/control/list-runs",
        "https://coordinator/v1/fleet/pull-messages",
    ],
)
def test_no_spelling_leads_elsewhere(fleet: Fleet, authority: Authority, north: Site, target: str) -> None:
    with secured(authority, fleet) as connection:
        got = exchange(connection, head("POST", target, **north.headers(), **{"content-length": "0"}))
    assert got.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 400 ")), got


def test_no_websocket_and_no_upgrade(fleet: Fleet, authority: Authority, north: Site) -> None:
    upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    upgrade["sec-websocket-key"] = "dGhlIHNhbXBsZSBub25jZQ=="
    for target in ("/v1/control/stream-logs", "/v1/fleet/pull-messages"):
        with secured(authority, fleet) as connection:
            got = exchange(connection, head("GET", target, **upgrade, **north.headers()))
        assert got.startswith(b"HTTP/1.1 404 "), got
    with secured(authority, fleet) as connection:
        assert not exchange(connection, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").startswith(b"HTTP/1.1 2")


# --- who ------------------------------------------------------------------------------------------------------------


def refused(fleet: Fleet, reason: str, call: Callable[[], bytes]) -> None:
    before = fleet.refusals[reason]
    got = call()
    assert got.startswith(b"HTTP/1.1 401 ") and b"connection: close" in got.lower(), got
    assert fleet.refusals[reason] == before + 1, fleet.refusals


def test_signatures_are_judged_before_the_body(fleet: Fleet, authority: Authority, north: Site) -> None:
    length = {"content-length": "1000"}  # announced and never sent: an answer means nobody waited for it

    def ask(headers: dict[str, str], more: bytes = b"") -> Callable[[], bytes]:
        def call() -> bytes:
            with secured(authority, fleet) as connection:
                request = head("POST", PREFIX + "push-object", **headers, **length)
                return exchange(connection, request[:-2] + more + b"\r\n")

        return call

    stranger = Site(fleet, authority, "stranger")
    now = time.time()
    good = north.headers()
    names = sorted(set(good) - {"content-type"})
    refused(fleet, "no signature", ask({}))
    for name in names:
        refused(fleet, "no signature", ask({k: v for k, v in good.items() if k != name}))
    refused(fleet, "not on the roster", ask(stranger.headers()))
    mixed = stranger.headers(now) | {"flwr-public-key": north.headers(now)["flwr-public-key"]}
    refused(fleet, "foreign signature", ask(mixed))
    for off in (-3600.0, -61.0, 10.0, 3600.0):
        refused(fleet, "signed at another time", ask(north.headers(now + off)))
    stamp = next(name for name in names if "timestamp" in name)
    refused(fleet, "foreign signature", ask(good | {stamp: north.headers(now - 1)[stamp]}))
    for nonsense in ("yesterday", "2026-01-01", "9999-99-99T00:00:00+00:00", "0001-01-01T00:00:00+23:59"):
        got = ask(good | {stamp: nonsense})()
        assert got.startswith(b"HTTP/1.1 401 "), nonsense
    twice = ask(good, f"flwr-public-key: {stranger.headers()['flwr-public-key']}\r\n".encode())()
    assert twice.startswith(b"HTTP/1.1 400 "), twice
    # The same headers a second time: once good, then never again.
    fresh = north.headers()
    body = flower.PullMessagesRequest(node=north.node).SerializeToString()
    assert north.http.post(PREFIX + "pull-messages", content=body, headers=fresh).status_code == 200
    refused(fleet, "replayed", ask(fresh))
    stranger.http.close()


def test_a_revoked_site_is_out_at_once(fleet: Fleet, authority: Authority) -> None:
    with Site(fleet, authority, "former") as former, fleet.grid() as grid:
        former.activate()
        ids = grid.push_messages([said(former.node_id)])
        assert former.pull() is not None and grid.pull_messages(ids) == []
        beat = flower.SendNodeHeartbeatRequest(node=former.node, heartbeat_interval=30.0)
        assert former.post("send-node-heartbeat", beat).status_code == 200
        with secured(authority, fleet) as uploading:  # a body that is arriving when it happens
            body = beat.SerializeToString()
            headers = former.headers() | {"content-length": str(len(body))}
            uploading.sendall(head("POST", PREFIX + "send-node-heartbeat", **headers) + body[:1])
            time.sleep(0.3)
            fleet.revoke("former")
            assert exchange(uploading, body[1:]).startswith(b"HTTP/1.1 401 ")
        (verdict,) = grid.pull_messages(ids)
        assert verdict.has_error(), "nobody waits for a site that was shut out"
        assert grid.push_messages([said(former.node_id)]) == [""]
        assert former.post("send-node-heartbeat", beat).status_code == 401
        assert "former" not in fleet.nodes()


# --- how much, how slowly -------------------------------------------------------------------------------------------


def test_an_anonymous_flood_costs_no_memory(fleet: Fleet, authority: Authority) -> None:
    block = bytes(1 << 20)
    sent = 0
    with peak_growth() as grown, secured(authority, fleet) as connection:
        connection.sendall(head("POST", PREFIX + "push-object", **{"content-length": str(400 << 20)}))
        try:
            for _ in range(400):
                connection.sendall(block)
                sent += len(block)
        except (ConnectionError, ssl.SSLError, TimeoutError):
            pass
    assert grown[0] < 50 << 20, (grown[0] >> 20, sent >> 20)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"content-length": str(400 << 20)}, 413),
        ({"content-length": "9" * 17}, 413),
        ({"transfer-encoding": "chunked"}, 411),
        ({}, 411),
    ],
)
def test_a_member_says_how_much_it_sends(
    fleet: Fleet, authority: Authority, north: Site, headers: dict[str, str], status: int
) -> None:
    with secured(authority, fleet) as connection:
        got = exchange(connection, head("POST", PREFIX + "push-object", **north.headers(), **headers))
    assert got.startswith(f"HTTP/1.1 {status} ".encode()), got


@pytest.mark.slow
def test_slow_peers_are_hung_up_on(fleet: Fleet, authority: Authority, north: Site) -> None:
    def until_closed(connection: socket.socket, drip: bytes = b"") -> float:
        started = time.monotonic()
        connection.settimeout(0.2)
        while time.monotonic() - started < 20:
            try:
                if drip:
                    connection.sendall(drip)
                if not connection.recv(4096):
                    break
            except TimeoutError:
                continue
            except (ConnectionError, ssl.SSLError):
                break
        return time.monotonic() - started

    took: dict[str, float] = {}
    with secured(authority, fleet) as silent:
        took["silent"] = until_closed(silent)
    with secured(authority, fleet) as dripping:
        dripping.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\n")
        took["header by header"] = until_closed(dripping, b"x: y\r\n")
    with secured(authority, fleet) as second:  # also after a first, honest request
        good = flower.PullMessagesRequest(node=north.node).SerializeToString()
        request = head("POST", PREFIX + "pull-messages", **north.headers(), **{"content-length": str(len(good))})
        assert exchange(second, request + good).startswith(b"HTTP/1.1 200")
        took["second request"] = until_closed(second, b"P")
    with socket.create_connection(("127.0.0.1", fleet.port)) as unfinished:
        took["handshake"] = until_closed(unfinished)
    assert max(took.values()) < 10, took
    headers = north.headers() | {"content-length": "3000"}
    for drip in (b"", b"x"):
        with secured(authority, fleet) as connection:
            connection.settimeout(20)
            over = threading.Event()

            def drop(to: ssl.SSLSocket = connection, what: bytes = drip, end: threading.Event = over) -> None:
                while what and not end.wait(0.2):
                    try:
                        to.sendall(what)
                    except OSError:
                        return

            dropper = threading.Thread(target=drop)
            dropper.start()
            got = exchange(connection, head("POST", PREFIX + "push-messages", **headers))
            over.set()
            dropper.join()
        assert got.startswith(b"HTTP/1.1 408 "), got
        headers = north.headers() | {"content-length": "3000"}


def test_who_asks_and_does_not_read_is_hung_up_on(fleet: Fleet, authority: Authority, north: Site) -> None:
    with fleet.grid() as grid:
        content = RecordDict({"w": ArrayRecord({"w": Array(np.random.default_rng(0).random(1 << 20))})})
        grid.push_messages([Message(content, north.node_id, "train.fit")])
        pulled = north.pull()
        assert pulled is not None
        run_id, left = pulled[0].metadata.run_id, fleet.refusals["left in the middle"]
        context = ssl.create_default_context(cafile=str(authority.ca))
        deaf = []
        for object_id in objects.object_ids(pulled[1])[:1]:
            request = flower.PullObjectRequest(node=north.node, run_id=run_id, object_id=object_id).SerializeToString()
            raw = socket.socket()
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect(("127.0.0.1", fleet.port))
            deaf.append(context.wrap_socket(raw, server_hostname="127.0.0.1"))
            headers = north.headers() | {"content-length": str(len(request))}
            deaf[-1].sendall(head("POST", PREFIX + "pull-object", **headers) + request)
        wait_for(lambda: fleet.refusals["left in the middle"] > left, 10)
        for connection in deaf:
            connection.close()


def test_a_crowd_of_connections_is_bounded(fleet: Fleet, authority: Authority, north: Site) -> None:
    crowd = []
    try:
        for _ in range(LIMITS.connections + 20):
            crowd.append(secured(authority, fleet))
        closed = 0
        for connection in crowd:
            connection.settimeout(0.05)
            try:
                closed += not connection.recv(1)
            except TimeoutError:
                pass
            except OSError:
                closed += 1
        assert closed >= 15
    finally:
        for connection in crowd:
            connection.close()
    request = flower.PullMessagesRequest(node=north.node)
    assert wait_for(lambda: _status(north, request) == 200, 20)


def _status(site: Site, request: Any) -> int:
    try:
        return site.post("pull-messages", request).status_code
    except httpx.TransportError:
        return 0


def test_only_tls_and_only_today(fleet: Fleet, authority: Authority) -> None:
    with socket.create_connection(("127.0.0.1", fleet.port), 10) as plain:
        assert not exchange(plain, head("POST", PREFIX + "pull-messages")).startswith(b"HTTP")
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(authority.ca)
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning):
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)), socket.create_connection(("127.0.0.1", fleet.port), 10) as raw:
        old.wrap_socket(raw, server_hostname="127.0.0.1")
    with secured(authority, fleet) as connection:
        assert connection.version() in ("TLSv1.2", "TLSv1.3")


def test_nonsense_is_an_answer_not_a_traceback(
    fleet: Fleet, authority: Authority, north: Site, caplog: pytest.LogCaptureFixture
) -> None:
    for name in sorted(path.removeprefix(PREFIX) for path in FLEET - {PREFIX + "confirm-message-received"}):
        for body in (b"\xff" * 50, b"\x0a\xff\xff\xff\xff\x0f", b""):
            assert north.post(name, body).status_code in (400, 401, 403), (name, body)
        assert north.post(name, b"", **{"content-type": "application/json"}).status_code >= 400
    for noise in (b"\x00" * 64, b"GET\r\n\r\n", b"POST / HTTP/1.1\r\n" + b"a: b\r\n" * 60_000):
        with secured(authority, fleet) as connection:
            assert not exchange(connection, noise).startswith(b"HTTP/1.1 2")
    assert "Traceback" not in caplog.text


# --- one site against another ---------------------------------------------------------------------------------------


def test_one_site_cannot_read_anothers_messages(fleet: Fleet, north: Site, south: Site) -> None:
    with fleet.grid() as grid:
        grid.push_messages([said(south.node_id, "for the south only")])
        stolen = north.post("pull-messages", flower.PullMessagesRequest(node=south.node))
        assert stolen.status_code == 401 and not stolen.content.startswith(b"\x0a")
        assert north.pull() is None
        mine = south.pull()
        assert mine is not None
        message, tree = mine
        run_id = message.metadata.run_id
        for object_id in objects.object_ids(tree):
            for name in (north.node, south.node):  # its own name, and the other's
                request = flower.PullObjectRequest(node=name, run_id=run_id, object_id=object_id)
                assert north.post("pull-object", request).status_code in (401, 403)
            request = flower.PullObjectRequest(node=south.node, run_id=run_id, object_id=object_id)
            good = flower.PullObjectResponse.FromString(south.post("pull-object", request).content)
            assert good.object_available


def test_one_site_cannot_answer_for_another(fleet: Fleet, north: Site, south: Site) -> None:
    with fleet.grid() as grid:
        ids = grid.push_messages([said(north.node_id), said(south.node_id)])
        own, others = north.pull(), south.pull()
        assert own is not None and others is not None
        false = answered(others[0])
        assert north.announce(false).status_code == 403
        assert north.announce(false, src_node_id=north.node_id).status_code == 403
        # An instruction of its own making, as if it were the coordinator's.
        order = answered(own[0])
        for facts in (
            {"reply_to_message_id": "", "src_node_id": 1, "dst_node_id": south.node_id},
            {"reply_to_message_id": "", "src_node_id": 1},
            {"dst_node_id": south.node_id},
            {"run_id": 7},
        ):
            assert north.announce(order, **facts).status_code == 403, facts
        assert south.pull() is None
        # On the outside its own reply, on the inside another's: what Flower itself would have believed.
        lying = answered(own[0])
        lying.metadata.__dict__["_reply_to_message_id"] = ids[1]
        lying.metadata.__dict__["_src_node_id"] = south.node_id
        flower.settle(lying, own[0])
        announced = north.announce(lying, reply_to_message_id=ids[0], src_node_id=north.node_id)
        assert announced.status_code == 200
        assert set(north.upload(lying, announced)) == {200}
        (verdict,) = grid.pull_messages(ids)
        assert verdict.has_error() and verdict.metadata.reply_to_message_id == ids[0]
        honest = answered(others[0])
        south.upload(honest, south.announce(honest))
        (good,) = grid.pull_messages(ids[1:])
        assert good.has_content() and good.metadata.src_node_id == south.node_id


def test_half_a_reply_holds_nobody_up_and_a_second_is_refused(fleet: Fleet, north: Site, south: Site) -> None:
    with fleet.grid() as grid:
        ids = grid.push_messages([said(north.node_id), said(south.node_id)])
        slow, quick = north.pull(), south.pull()
        assert slow is not None and quick is not None
        half = answered(slow[0], 64)
        assert set(north.upload(half, north.announce(half), only=2)) == {200}
        whole = answered(quick[0])
        south.upload(whole, south.announce(whole))
        started = time.monotonic()
        (first,) = grid.pull_messages(ids)
        assert first.metadata.reply_to_message_id == ids[1] and time.monotonic() - started < 1
        # Killed in the middle of its upload, the site has made another reply since: that one counts.
        other = answered(slow[0], 65)
        assert set(north.upload(other, north.announce(other))) == {200}
        third = answered(slow[0], 66)
        assert north.announce(third).status_code == 403
        (second,) = grid.pull_messages(ids[:1])
        assert second.content["w"]["w"].numpy().shape == (65,)
        assert north.announce(other).status_code in (200, 403)
        assert grid.pull_messages(ids)[0].has_error()


def test_a_reply_has_bounds_and_a_hash(fleet: Fleet, north: Site) -> None:
    with fleet.grid() as grid:
        grid.push_messages([said(north.node_id)])
        pulled = north.pull()
        assert pulled is not None
        large = answered(pulled[0], LIMITS.reply_bytes // 2)
        assert 413 in north.upload(large, north.announce(large))
        small = answered(pulled[0])
        announced = flower.PushMessagesResponse.FromString(north.announce(small).content)
        request = flower.PushObjectRequest(
            node=north.node,
            run_id=small.metadata.run_id,
            object_id=announced.objects_to_push[0],
            object_content=b"something else",
            session_id=announced.session_id,
        )
        got = north.post("push-object", request)
        assert got.status_code == 200 and not flower.PushObjectResponse.FromString(got.content).stored
        request.object_id = "0" * 64
        assert north.post("push-object", request).status_code == 403


def test_a_reply_that_would_grow_is_not_put_together(fleet: Fleet, north: Site) -> None:
    """A chunk that an array names thirty thousand times: 1 MB uploaded, 15 GB in the coordinator's memory."""
    chunk, chunk_content = object_of("ArrayChunk", bytes(1 << 19))
    body = {"dtype": "uint8", "shape": [30_000 << 19], "stype": "numpy.ndarray", "arraychunk_ids": [0] * 30_000}
    array, array_content = object_of("Array", json.dumps(body).encode(), chunk)
    record, record_content = object_of("ArrayRecord", json.dumps({"w": array}).encode(), array)
    with fleet.grid() as grid:
        ids = grid.push_messages([said(north.node_id)])
        pulled = north.pull()
        assert pulled is not None
        reply = answered(pulled[0])
        with flower.no_object_id_recompute():
            made = Offer(
                flower.message_to_proto(flower.remove_content_from_message(reply)),
                flower.get_object_tree(reply),
                {id_: part.deflate() for id_, part in flower.get_all_nested_objects(reply).items()},
            ).graft("w", {chunk: chunk_content, array: array_content, record: record_content})
        request = flower.PushMessagesRequest(
            node=north.node, messages_list=[made.announced], message_object_trees=[made.tree]
        )
        announced = flower.PushMessagesResponse.FromString(north.post("push-messages", request).content)
        assert made.tree.object_id in announced.objects_to_push
        for object_id in announced.objects_to_push:
            push = flower.PushObjectRequest(
                node=north.node,
                run_id=reply.metadata.run_id,
                object_id=object_id,
                object_content=made.objects[object_id],
                session_id=announced.session_id,
            )
            assert north.post("push-object", push).status_code == 200
        with peak_growth() as grown:
            (found,) = grid.pull_messages(ids)
        assert found.has_error()
        assert grown[0] < 200 << 20


def test_keys_of_another_kind_are_not_admitted(authority: Authority, fleet: Fleet) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    from common.errors import IdentityError

    for key in (ec.generate_private_key(ec.SECP256R1()), ed25519.Ed25519PrivateKey.generate()):
        raw = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        with pytest.raises(IdentityError, match="P-384"):
            fleet.register("late", raw)
    with pytest.raises(IdentityError, match="P-384"):
        fleet.register("late", b"nonsense")
    with pytest.raises(IdentityError, match="in use"):
        fleet.register("late", authority.roster("north")["north"])
    key = new_key().public_key()
    node = fleet.register("late", key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    assert fleet.nodes()["late"].node_id == node
    fleet.revoke("late")
    with pytest.raises(IdentityError, match="late"):
        fleet.revoke("late")
