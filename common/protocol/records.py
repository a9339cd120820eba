"""Records and their fields: what a message of one kind is written as, and how a message that came is read."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from common.errors import ProtocolError

ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
DIGEST = re.compile(r"[0-9a-f]{64}")
MOST_SITES = 1000
"""As on a roster."""
_PROGRAM = re.compile(r"[0-9A-Za-z.+-]{0,32}")

Statistics = Mapping[str, NDArray[Any]]
Fields = dict[str, Any]
Record = ArrayRecord | ConfigRecord | MetricRecord
T = TypeVar("T")


@dataclass(frozen=True)
class Written:
    """What a message holds beside what all of its direction hold."""

    kind: str
    """Of a request: Flower's type of message; of a reply: the head's ``kind``."""
    fields: Fields = field(default_factory=dict)
    """Further fields of the head."""
    records: Mapping[str, Record] = field(default_factory=dict)


def content_of(message: Message) -> RecordDict:
    """The records that came. Raises :class:`ProtocolError` where there are none."""
    if not message.has_content():
        raise ProtocolError("the message is empty; the other side failed before it could answer")
    return message.content


def record_of(content: RecordDict, key: str, kind: type[T]) -> T:
    """Raises :class:`ProtocolError` where there is no such record."""
    record = content.get(key)
    if not isinstance(record, kind):
        raise ProtocolError(
            f"the message has no {kind.__name__} named {key!r}; both sides need the same fedward version"
        )
    return record


def get(record: Mapping[str, Any], key: str, kind: type[T]) -> T:
    """One field. Raises :class:`ProtocolError` where it is missing, or of another type; no boolean is a number."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, kind):
        raise ProtocolError(f"the message's field {key!r} is missing or not {kind.__name__}; upgrade the older side")
    return value


def program_in(head: Mapping[str, Any], whose: str) -> str:
    """The sender's version of fedward; ``""``: it tells none."""
    program = get(head, "program", str) if "program" in head else ""
    if not _PROGRAM.fullmatch(program):
        raise ProtocolError(f"{whose} names a version of its program that is none")
    return program


def seconds_in(facts: Mapping[str, Any], site: str) -> float:
    """How long ``site`` says that its work took."""
    seconds = get(facts, "seconds", float)
    if not 0.0 <= seconds < math.inf:
        raise ProtocolError(f"{site} says it took {seconds} seconds; upgrade that site")
    return seconds
