"""How large a message becomes when it is put together, known before it is.

Flower sends a message as objects that are named by their hashes, an array as a list of its chunks and a record as a
table of its arrays: one chunk of 5 MB and a list that names it a million times are a message of 10 MB and an array of
5 TB. An honest array names a chunk twice where its bytes repeat, so what is bounded is the sum.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from common.errors import ProtocolError

_ARRAY, _RECORD = "Array", "ArrayRecord"


def check_inflated(contents: Mapping[str, bytes], most_bytes: int, known: Mapping[str, int] | None = None) -> None:
    """``known``: bytes of arrays that records may name though they are not among ``contents``.

    Raises :class:`ProtocolError` where a message's objects (id -> content, as Flower deflates them) would become
    arrays, or records of them, of more than ``most_bytes``, or cannot be read. Allocates nothing of that size."""
    arrays = dict(known or {})
    records: list[bytes] = []
    try:
        for id_, content in contents.items():
            end = content.index(b"\0")
            kind, children, _ = content[:end].decode("utf-8").split(" ")
            if kind == _ARRAY:
                sizes = [len(contents[chunk]) for chunk in children.split(",")] if children else []
                arrays[id_] = sum(sizes[place] for place in json.loads(content[end + 1 :])["arraychunk_ids"])
            elif kind == _RECORD:
                records.append(content[end + 1 :])
        named = sum(arrays[id_] for record in records for id_ in json.loads(record).values())
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise ProtocolError("a message's objects cannot be read; both sides need the same version") from None
    if max(named, sum(arrays.values())) > most_bytes:
        raise ProtocolError(f"a message would become more than {most_bytes >> 20} MiB; it is not put together")
