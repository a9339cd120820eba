"""Flower's messages put together from the objects in which they travel, with one copy of an array's bytes.

Flower cuts an array into chunks of 5 MB and joins them with three copies, each as large as the array.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

from flwr.app import Array
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_head_values_from_object_content
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from common.inflation import check_inflated

Arrays = dict[str, Array]
"""Arrays by their object's id."""

_DIVIDER = b"\x00"


def object_ids(tree: ObjectTree, known: Collection[str] = ()) -> list[str]:
    """Every object of a message, children before parents, each once, without ``known`` and what is below them."""
    found: dict[str, None] = {}

    def walk(node: ObjectTree) -> None:
        if node.object_id not in known:
            for child in node.children:
                walk(child)
            found[node.object_id] = None

    walk(tree)
    return list(found)


def inflate(
    root: str, contents: dict[str, bytes], most_bytes: int, known: Mapping[str, Array] | None = None
) -> tuple[Any, Arrays]:
    """The object ``root`` of ``contents`` (id -> bytes; emptied on the way), and the arrays in it.

    ``known`` arrays need not be in ``contents``. Raises :class:`ProtocolError` for arrays of more than ``most_bytes``
    together, and whatever Flower does for what is no object.
    """
    known = known or {}
    check_inflated(contents, most_bytes, {id_: len(array.data) for id_, array in known.items()})
    parts = {id_: _chunks(contents, content) for id_, content in contents.items() if content.startswith(b"Array ")}
    arrays = dict(known)
    for id_, (facts, views) in parts.items():
        shape = tuple(facts["shape"])
        arrays[id_] = Array(dtype=facts["dtype"], shape=shape, stype=facts["stype"], data=b"".join(views))
    parts.clear()
    for id_ in [id_ for id_, content in contents.items() if content.startswith((b"Array ", b"ArrayChunk "))]:
        del contents[id_]  # the largest part of all, before anything else is made
    found = inflate_object_from_contents(root, contents, objects=dict(arrays))
    return found, arrays


def _chunks(contents: Mapping[str, bytes], content: bytes) -> tuple[dict[str, Any], list[memoryview]]:
    """An array's facts and the views of its chunks, in order."""
    _, children, _ = get_object_head_values_from_object_content(content)
    facts: dict[str, Any] = json.loads(content[content.index(_DIVIDER) + 1 :])
    order: list[int] = facts["arraychunk_ids"]
    views = []
    for child in children:
        chunk = contents[child]
        if not chunk.startswith(b"ArrayChunk "):
            raise ValueError("a chunk that is none")
        views.append(memoryview(chunk)[chunk.index(_DIVIDER) + 1 :])
    return facts, [views[number] for number in order]
