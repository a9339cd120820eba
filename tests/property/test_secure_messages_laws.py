"""Laws of a secure sum's messages: what goes in comes out, and what comes in malformed is refused, whatever it is."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord
from hypothesis import given
from hypothesis import strategies as st

from common import protocol
from common.errors import ProtocolError
from common.packing import pack
from common.protocol import secure
from common.secagg import Bundle
from tests.unit import federation as fed
from tests.unit.secure_fixtures import SENT, study

STUDY = study()
TASK = protocol.Task(STUDY, round=1, roster="5" * 64)
aliases = st.lists(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True), max_size=6, unique=True)
ID = "0f" * 16


def some(count: int) -> bytes:
    return os.urandom(count)


def requests(names: list[str]) -> list[protocol.Request]:
    bundles = tuple(Bundle(name, some(32), some(32), some(32), some(103)) for name in names)
    envelopes = {
        name: {other: some(secure.SEALED_BYTES) for other in names if other != name} for name in names if names[1:]
    }
    return [
        secure.KeysRequest(TASK, ID, "a" * 64),
        secure.KeysRequest(TASK, ID, "a" * 128),
        secure.SharesRequest(TASK, ID, bundles),
        protocol.TrainRequest(TASK, SENT, secure.Secured(ID, envelopes)),
        secure.SurvivorsRequest(TASK, ID, tuple(names)),
        secure.UnmaskRequest(TASK, ID, tuple(names), {name: some(100) for name in names}),
    ]


def replies(names: list[str]) -> list[protocol.Reply]:
    return [
        secure.KeysReply("north", Bundle("north", some(32), some(32), some(32), some(104))),
        secure.SharesReply("north", {name: some(secure.SEALED_BYTES) for name in names}),
        secure.MaskedReply("north", 1, np.frombuffer(some(80), np.uint64)),
        secure.SurvivorsReply("north", some(104)),
        secure.UnmaskReply("north", {name: some(33) for name in names[:2]}, {name: some(33) for name in names[2:]}),
    ]


@given(aliases)
def test_requests_come_out_as_they_went_in(names: list[str]) -> None:
    for wanted in requests(names):
        sealed = protocol.seal(wanted)
        found = protocol.open_request(fed.request(sealed.content, sealed.kind))
        if isinstance(wanted, protocol.TrainRequest):
            assert isinstance(found, protocol.TrainRequest)
            assert found.secured == wanted.secured
        else:
            assert found == wanted
            assert sealed.bytes == sum(map(len, blobs(sealed.content))), "keys and shares count as traffic"


def blobs(content: Any) -> list[bytes]:
    lists = [value for value in content["secure"].values() if isinstance(value, list)]
    return [part for values in lists for part in values if isinstance(part, bytes)]


@given(aliases)
def test_replies_come_out_as_they_went_in_and_may_be_frozen(names: list[str]) -> None:
    asked = fed.request(protocol.seal(requests(names)[0]).content, secure.KEYS)
    for wanted in replies(names):
        message = protocol.answer(wanted, asked)
        for found in (
            protocol.open_reply(message),
            protocol.open_reply(protocol.thaw(protocol.freeze(message), asked)),
        ):
            if isinstance(wanted, secure.MaskedReply):
                assert isinstance(found, secure.MaskedReply)
                np.testing.assert_array_equal(found.row, wanted.row)
            else:
                assert found == wanted


ODD: list[Any] = [
    "",
    "x" * 70,
    "../x",
    b"",
    b"x",
    0,
    -1,
    1.5,
    [],
    ["a", "a"],
    ["a b"],
    [b""],
    [b"x" * 200],
    [1],
    ["x"] * 1001,
]


@pytest.mark.parametrize("number", range(6))
def test_every_field_of_a_request_is_held_to_what_it_may_be(number: int) -> None:
    names = ["ada", "bob", "cat"]
    tried = 0
    whole = protocol.seal(requests(names)[number])
    for key in list(whole.content["secure"]):
        for odd in [*ODD, None]:
            sealed = protocol.seal(requests(names)[number])
            fields = dict(sealed.content["secure"])
            fields.pop(key)
            if odd is not None:
                fields[key] = odd
            if key in ("survivors", "signature-sites") and odd == []:
                continue  # nobody: whether that may be, the site decides
            sealed.content["secure"] = ConfigRecord(fields)
            with pytest.raises(ProtocolError):
                protocol.open_request(fed.request(sealed.content, sealed.kind))
                pytest.fail(f"{key} = {odd!r}")
            tried += 1
    assert tried


@pytest.mark.parametrize("number", [0, 1, 3, 4])
def test_every_field_of_a_reply_is_held_to_what_it_may_be(number: int) -> None:
    asked = fed.request(protocol.seal(requests(["ada"])[0]).content, secure.KEYS)
    names = ["ada", "bob", "cat"]
    for key in list(protocol.answer(replies(names)[number], asked).content["secure"]):
        for odd in [*ODD, None]:
            message = protocol.answer(replies(names)[number], asked)
            fields = dict(message.content["secure"])
            fields.pop(key)
            if odd is not None:
                fields[key] = odd
            if number == 3 and isinstance(odd, bytes) and odd:
                continue  # some bytes: no signature, which the coordinator finds out
            message.content["secure"] = ConfigRecord(fields)
            with pytest.raises(ProtocolError):
                protocol.open_reply(message)
                pytest.fail(f"{key} = {odd!r}")


def test_a_masked_row_is_one_row_of_whole_numbers() -> None:
    asked = fed.request(protocol.seal(requests(["ada"])[0]).content, secure.KEYS)
    good = secure.MaskedReply("north", 1, np.zeros(4, np.uint64))
    rows: list[Any] = [
        {"row": np.zeros(4, np.int64)},
        {"row": np.zeros((2, 2), np.uint64)},
        {"row": np.zeros(4, np.uint64), "more": np.zeros(1, np.uint64)},
        {"other": np.zeros(4, np.uint64)},
        {},
    ]
    for arrays in rows:
        message = protocol.answer(good, asked)
        message.content["row"] = pack(arrays, ("uint64", "int64"))
        with pytest.raises(ProtocolError):
            protocol.open_reply(message)
    message = protocol.answer(good, asked)
    message.content["row"] = ArrayRecord()
    with pytest.raises(ProtocolError):
        protocol.open_reply(message)


def test_keys_are_asked_for_in_a_study_that_sums_and_in_its_rounds_only() -> None:
    plain = fed.study(**{"model.norm": "group"})
    for task in (protocol.Task(plain, round=1), protocol.Task(STUDY, "pooled", round=1), protocol.Task(STUDY, round=0),
                 protocol.Task(STUDY, round=99)):  # fmt: skip
        sealed = protocol.seal(secure.KeysRequest(task, ID, "a" * 64))
        with pytest.raises(ProtocolError):
            protocol.open_request(fed.request(sealed.content, sealed.kind))
    # And a request to train in such a study must name its attempt.
    sealed = protocol.seal(protocol.TrainRequest(TASK, SENT))
    with pytest.raises(ProtocolError, match="'secure'"):
        protocol.open_request(fed.request(sealed.content, sealed.kind))


def test_a_site_sends_its_own_keys() -> None:
    asked = fed.request(protocol.seal(requests(["ada"])[0]).content, secure.KEYS)
    others = Bundle("south", some(32), some(32), some(32), some(104))
    with pytest.raises(ProtocolError, match="north sent keys of another site"):
        protocol.open_reply(protocol.answer(secure.KeysReply("north", others), asked))
