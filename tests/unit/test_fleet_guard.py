"""The gate by itself: what it asks of a request before and after its body, and the Flower it was written for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from client import flower_private as client_flower
from common.errors import ProtocolError
from server import flower_private as server_flower
from server.fleet_guard import FLEET, PREFIX, Guard, Limits, Member

KEY = ec.generate_private_key(ec.SECP384R1())
SIGNED = tuple(sorted(name.lower() for name in client_flower.sign(KEY, 0.0)))


class Flower:
    """Stands where the SuperLink is and remembers what came through."""

    def __init__(self) -> None:
        self.passed: list[tuple[str, bytes]] = []

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        event = await receive()
        self.passed.append((scope["path"], event["body"]))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def gate(limits: Limits | None = None, clock: Callable[[], float] = time.time) -> tuple[Guard, Flower, Member]:
    flower = Flower()
    guard = Guard(flower, limits or Limits(), clock)  # type: ignore[arg-type]
    member = Member("north", 42, client_flower.public_bytes(KEY), KEY.public_key())
    guard.admit(member)
    return guard, flower, member


def ask(
    guard: Guard,
    path: str = PREFIX + "get-run",
    body: bytes = b"",
    *,
    method: str = "POST",
    headers: list[tuple[bytes, bytes]] | None = None,
    raw: bytes | None = None,
    query: bytes = b"",
    parts: list[bytes] | None = None,
) -> tuple[int, int]:
    """Status of the answer, and how often the gate asked for a piece of the body."""
    signed = [(k.lower().encode(), v.encode()) for k, v in client_flower.sign(KEY, time.time()).items()]
    found = [*signed, (b"content-length", str(len(body)).encode())] if headers is None else headers
    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode() if raw is None else raw,
        "query_string": query, "headers": found,
    }  # fmt: skip
    pieces = [body] if parts is None else list(parts)
    statuses: list[int] = []
    reads = 0

    async def receive() -> Any:
        nonlocal reads
        reads += 1
        if not pieces:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(event: Any) -> None:
        if event["type"] == "http.response.start":
            statuses.append(event["status"])

    asyncio.run(guard(scope, receive, send))
    return (statuses or [0])[0], reads


def test_a_signed_request_passes_with_its_body() -> None:
    guard, flower, member = gate()
    assert ask(guard, body=b"abc", parts=[b"a", b"", b"bc"])[0] == 200
    assert flower.passed == [(PREFIX + "get-run", b"abc")]
    assert member.last_seen is not None and member.in_flight == 0
    assert guard.requests == {"get-run": 1} and not guard.refusals


@given(
    st.sampled_from(["POST", "GET", "HEAD", "OPTIONS", "post"]),
    st.one_of(st.sampled_from(sorted(FLEET)), st.text(max_size=40).map(lambda text: "/" + text)),
    st.lists(
        st.tuples(
            st.sampled_from([*(name.encode() for name in SIGNED), b"content-length", b"transfer-encoding", b"x"]),
            st.binary(max_size=60),
        ),
        max_size=8,
    ),
)
def test_nothing_unsigned_is_ever_read(method: str, path: str, headers: list[tuple[bytes, bytes]]) -> None:
    guard, flower, _ = gate()
    status, reads = ask(guard, path, b"body", method=method, headers=headers)
    assert status in (400, 401, 404) and reads == 0 and not flower.passed


def test_another_spelling_of_a_path_is_another_path() -> None:
    guard, flower, _ = gate()
    assert ask(guard, raw=b"/v1/fleet/%67et-run")[0] == 404
    assert ask(guard, query=b"a=1")[0] == 404
    assert not flower.passed


def test_other_kinds_of_connection_end() -> None:
    guard, flower, _ = gate()
    sent: list[Any] = []

    async def send(event: Any) -> None:
        sent.append(event)

    for kind in ("websocket", "lifespan"):
        asyncio.run(guard({"type": kind}, None, send))  # type: ignore[arg-type]
    assert [event["type"] for event in sent] == ["websocket.close"] and not flower.passed


def test_stamps_are_taken_once_and_forgotten_when_they_are_too_old_to_pass() -> None:
    _, _, member = gate()
    assert member.first_use("a", 0.0, 65.0) and not member.first_use("a", 60.0, 65.0)
    for second in range(1000):
        assert member.first_use(str(second), 100.0 + second, 65.0)
    assert len(member.stamps) <= 67


def test_a_site_has_so_many_requests_at_once() -> None:
    guard, _, member = gate(Limits(in_flight=2))
    member.in_flight = 2
    assert ask(guard) == (429, 0)
    member.in_flight = 1
    assert ask(guard)[0] == 200 and member.in_flight == 1


def test_who_hangs_up_is_not_answered() -> None:
    guard, flower, member = gate()
    assert ask(guard, body=b"abcd", parts=[])[0] == 0
    assert not flower.passed and member.in_flight == 0 and guard.refusals == {"left in the middle": 1}


def test_bodies_have_the_bound_of_their_route() -> None:
    limits = Limits(small_bytes=10, announcement_bytes=20, object_bytes=30)
    assert [limits.body(PREFIX + name) for name in ("pull-messages", "push-messages", "push-object")] == [10, 20, 30]
    guard, flower, _ = gate(limits)
    assert ask(guard, body=b"x" * 11) == (413, 0) and not flower.passed


# --- the Flower this is written for ---------------------------------------------------------------------------------


def test_flower_is_the_one_this_was_written_for() -> None:
    server_flower.check()
    client_flower.check()
    asked = {server_flower.PUBLIC_KEY_HEADER, server_flower.SIGNATURE_HEADER, server_flower.STAMP_HEADER}
    assert asked == set(SIGNED)


@pytest.mark.parametrize("module", [server_flower, client_flower])
def test_another_flower_is_named_in_one_line(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def moved(other: int) -> None: ...

    with monkeypatch.context() as patch:
        patch.setitem(module._EXPECTED, moved, ("mine",))
        with pytest.raises(ProtocolError, match=r"written for flwr 1\.41.*moved takes other.*install"):
            module.check()
    monkeypatch.setattr(module, "metadata", SimpleNamespace(version=lambda _: "1.42.0"))
    with pytest.raises(ProtocolError, match=r"here is flwr 1\.42\.0") as caught:
        module.check()
    assert "\n" not in str(caught.value)


def test_a_signature_is_what_flower_itself_makes() -> None:
    from flwr.supercore.primitives.asymmetric import bytes_to_public_key, public_key_to_bytes, verify_signature

    public = client_flower.public_bytes(KEY)
    assert public == public_key_to_bytes(KEY.public_key())
    assert bytes_to_public_key(public) == KEY.public_key()
    headers = {name.lower(): value for name, value in client_flower.sign(KEY, 1_800_000_000.25).items()}
    stamp = headers[server_flower.STAMP_HEADER]
    assert stamp == "2027-01-15T08:00:00.250000+00:00"
    from base64 import b64decode

    assert verify_signature(KEY.public_key(), stamp.encode(), b64decode(headers[server_flower.SIGNATURE_HEADER]))
