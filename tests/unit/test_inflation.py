"""A message's objects, looked at before they are put together."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from client import flower_private as flower
from common.errors import ProtocolError
from common.inflation import check_inflated
from tests.security.hostile_coordinator import object_of


def objects(*arrays: np.ndarray) -> dict[str, bytes]:
    """As Flower deflates a message that holds these."""
    record = ArrayRecord({str(number): Array(array) for number, array in enumerate(arrays)})
    made = Message(RecordDict({"w": record, "head": ConfigRecord({"a": 1})}), 1, "train")
    return {id_: part.deflate() for id_, part in flower.get_all_nested_objects(made).items()}


def test_an_honest_message_passes_at_its_own_size() -> None:
    noise = np.random.default_rng(1).integers(0, 255, 2 << 20, dtype=np.uint8)
    made = objects(noise, np.zeros(30 << 20, np.uint8), np.zeros((), np.float32), np.zeros(0, np.float32))
    assert sum(map(len, made.values())) < 20 << 20, "repeated chunks travel once"
    check_inflated(made, 33 << 20)
    with pytest.raises(ProtocolError, match="more than 31 MiB"):
        check_inflated(made, 31 << 20)
    twice = objects(noise, noise)
    with pytest.raises(ProtocolError, match="more than 3 MiB"):
        check_inflated(twice, 3 << 20)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"{}", b'{"arraychunk_ids": [9]}', b'{"arraychunk_ids": {"a": 1}}', b'{"a":' * 99_999]
)
def test_what_cannot_be_read_is_refused(body: bytes) -> None:
    chunk, content = object_of("ArrayChunk", b"abc")
    array, whole = object_of("Array", body, chunk)
    with pytest.raises(ProtocolError, match="cannot be read"):
        check_inflated({chunk: content, array: whole}, 1 << 20)


@pytest.mark.parametrize("content", [b"", b"no head", b"one\0", b"one two three four\0", b"\xff \xff 1\0"])
def test_no_object_at_all(content: bytes) -> None:
    with pytest.raises(ProtocolError, match="cannot be read"):
        check_inflated({"a": content}, 1 << 20)


def test_records_deeper_than_a_stack_are_no_message() -> None:
    id_, content = object_of("RecordDict", b"{}")
    made = {id_: content}
    for _ in range(3000):
        id_, content = object_of("RecordDict", json.dumps({"a": id_}).encode(), id_)
        made[id_] = content
    with pytest.raises(ValueError, match="RecursionError"):
        flower.inflate(id_, made, 1 << 20, {})
