"""Anchors of sites' privacy ledgers (``common.anchors``): they travel in the heads of requests and replies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.app import ConfigRecord, Message

from common.anchors import MOST_BYTES, WITNESSED, Anchored
from common.errors import ProtocolError
from common.protocol.records import content_of, get, record_of


def anchors_in(head: Mapping[str, Any], most: int) -> tuple[bytes, ...]:
    """Anchors in a message, held to their number and size; what they are is for :mod:`common.anchors` to see."""
    found = get(head, "anchors", list) if "anchors" in head else []
    if len(found) > most or not all(isinstance(one, bytes) and 0 < len(one) <= MOST_BYTES for one in found):
        raise ProtocolError(f"a message's anchors are more than {most}, or not of their size; upgrade the other side")
    return tuple(found)


def add_anchors(reply: Message, anchored: Anchored) -> None:
    """Add anchors to a reply that is about to leave: those of now, whenever the reply was made."""
    head = record_of(reply.content, "head", ConfigRecord)
    head["anchor"], head["anchors"] = anchored.own, list(anchored.others)


def anchors_of(message: Message) -> Anchored:
    """The anchors that came with a reply. Raises :class:`ProtocolError`."""
    head = record_of(content_of(message), "head", ConfigRecord)
    own = get(head, "anchor", bytes) if "anchor" in head else b""
    if len(own) > MOST_BYTES:
        raise ProtocolError(f"a reply's anchor has {len(own)} bytes; the most is {MOST_BYTES}")
    return Anchored(own, anchors_in(head, WITNESSED))
