"""Messages put together from Flower's objects: as Flower does it, with fewer copies, and never more than is allowed."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from common import objects
from common.errors import ProtocolError
from tests.unit import federation as fed

NUMBERS = np.random.default_rng(1).random(1 << 20, np.float32)  # 4 MB
MOST = 1 << 30
LARGE = np.concatenate([NUMBERS, NUMBERS, np.zeros(2 << 20, np.float32)])  # several chunks, two of them equal


def message(**arrays: Any) -> Message:
    record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
    return fed.request(RecordDict({"head": ConfigRecord({"round": 3}), "arrays": record}), "train.fit")


def taken_apart(sent: Message) -> dict[str, bytes]:
    return {id_: thing.deflate() for id_, thing in get_all_nested_objects(sent).items()}


@pytest.mark.parametrize("arrays", [{}, {"w": LARGE}, {"a": NUMBERS, "b": NUMBERS, "c": np.array(1)}])
def test_a_message_is_what_flower_makes_of_it(arrays: dict[str, Any]) -> None:
    sent = message(**arrays)
    theirs = inflate_object_from_contents(sent.object_id, taken_apart(sent))
    contents = taken_apart(sent)
    ours, found = objects.inflate(sent.object_id, contents, MOST)
    assert not contents
    assert ours.content == theirs.content == sent.content  # type: ignore[attr-defined]
    assert ours.object_id == sent.object_id
    assert {array.data for array in found.values()} == {a.data for a in sent.content["arrays"].values()}  # type: ignore[union-attr]


def test_arrays_that_are_known_are_not_fetched_again() -> None:
    first, second = message(w=LARGE), message(w=LARGE, v=NUMBERS)
    _, known = objects.inflate(first.object_id, taken_apart(first), MOST)
    wanted = objects.object_ids(get_object_tree(second), known)
    assert len(wanted) == len(objects.object_ids(get_object_tree(second))) - len(taken_apart(first)) + 4
    apart = taken_apart(second)
    found, arrays = objects.inflate(second.object_id, {id_: apart[id_] for id_ in wanted}, MOST, known)
    assert found.content == second.content
    assert found.content["arrays"]["w"].data is next(iter(known.values())).data
    assert len(arrays) == 2


def array_with(**facts: Any) -> tuple[str, dict[str, bytes]]:
    """A message whose array says something else of itself."""
    sent = message(w=LARGE)
    apart = taken_apart(sent)
    id_ = next(id_ for id_, content in apart.items() if content.startswith(b"Array "))
    head, body = apart[id_].split(b"\0", 1)
    apart[id_] = head + b"\0" + json.dumps(json.loads(body) | facts).encode()
    return sent.object_id, apart


def test_a_chunk_named_again_and_again_is_not_joined() -> None:
    """A few hundred kilobytes that would become many gigabytes; with arrays that are known as without."""
    root, apart = array_with(arraychunk_ids=[0] * 5_000)
    with pytest.raises(ProtocolError, match="would become more than"):
        objects.inflate(root, apart, MOST)
    root, apart = array_with()
    with pytest.raises(ProtocolError, match="would become more than"):
        objects.inflate(root, apart, 1_000_000)
    first, second = message(w=LARGE), message(w=LARGE, v=NUMBERS)
    _, known = objects.inflate(first.object_id, taken_apart(first), MOST)
    with pytest.raises(ProtocolError, match="would become more than"):
        objects.inflate(second.object_id, taken_apart(second), LARGE.nbytes + 1000, known)


@pytest.mark.parametrize(
    "facts", [{"arraychunk_ids": [99]}, {"arraychunk_ids": "ab"}, {"arraychunk_ids": None}, {"shape": 3}, {"dtype": 7}]
)
def test_an_array_that_is_none(facts: dict[str, Any]) -> None:
    root, apart = array_with(**facts)
    with pytest.raises((ProtocolError, TypeError)):
        objects.inflate(root, apart, MOST)


def test_a_chunk_that_is_another_object() -> None:
    root, apart = array_with()
    for id_ in [id_ for id_, content in apart.items() if content.startswith(b"ArrayChunk ")]:
        apart[id_] = b"ConfigRecord  2\0{}"
    with pytest.raises(ValueError, match="a chunk that is none"):
        objects.inflate(root, apart, MOST)
