"""Replies as bytes, which a site keeps and sends again."""

from __future__ import annotations

import struct

from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto

from common.errors import ProtocolError


def freeze(message: Message) -> bytes:
    """The content of a reply as bytes, to be kept and sent again; arrays are copied once."""
    hollow, parts = RecordDict(), []
    for name, record in message.content.items():
        if isinstance(record, ArrayRecord):
            parts += [array.data for array in record.values()]
            record = ArrayRecord({key: Array(a.dtype, a.shape, a.stype, b"") for key, a in record.items()})
        hollow[name] = record
    head = recorddict_to_proto(hollow).SerializeToString()
    lengths = struct.pack(f">{len(parts) + 1}Q", len(head), *map(len, parts))
    return b"".join([struct.pack(">H", len(parts)), lengths, head, *parts])


def thaw(content: bytes, request: Message) -> Message:
    """The reply to ``request`` that :func:`freeze` was given. Raises :class:`ProtocolError`."""
    try:
        (count,) = struct.unpack_from(">H", content)
        first, *rest = struct.unpack_from(f">{count + 1}Q", content, 2)
        start = 2 + 8 * (count + 1)
        records = recorddict_from_proto(RecordDictProto.FromString(content[start : start + first]))
        start += first
        arrays = [array for record in records.array_records.values() for array in record.values()]
        for array, length in zip(arrays, rest, strict=True):
            array.data = content[start : start + length]
            start += length
        if start != len(content):
            raise ValueError("of another length")
        return Message(records, reply_to=request)
    except Exception as error:
        kind = type(error).__name__
        raise ProtocolError(f"a kept reply cannot be read ({kind}): it is of another version of fedward") from None
