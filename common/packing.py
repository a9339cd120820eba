"""Many named arrays as one array on the wire.

Flower stores, hashes and fetches each array of a record as objects of its own; a ResNet-50 has 320. Packed, a model
travels as one array of bytes, in pieces of a few megabytes whatever its tensors are. The layout::

    length of the table   8 bytes, little-endian
    table                 JSON: [[name, NumPy's type ("<f4"), [side, …]], …] in the mapping's order, without spaces
    each array in turn    from the next multiple of 64, in C order; the bytes between are zero

Nothing says where an array lies, so none can overlap another or lie outside; and a table is only taken when packing
what it names gives the same table again, so that equal arrays are equal bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from common.errors import ModelError, ProtocolError

if TYPE_CHECKING:
    from flwr.app import ArrayRecord

    Arrays = Mapping[str, NDArray[Any]]
    _Row = tuple[str, str, tuple[int, ...]]

_NAME, _STYPE = "packed", "fedward.packed.1"
_ALIGNED = 64
_LENGTH = 8
_MOST_ARRAYS = 20_000
_MOST_TABLE_BYTES = 4 << 20
_MOST_NUMBERS = 1 << 40
"""Sides of zero counted as one, for NumPy refuses (0, 2^39, 2^39) as too big."""
_REMEDY = "sender and receiver must run the same version"


def pack(arrays: Arrays, types: Sequence[str]) -> ArrayRecord:
    """One record of one array that holds all of ``arrays``; copied once.

    Raises :class:`ModelError` for an array of a type outside ``types`` or in the other byte order, and for more than
    20,000 arrays.
    """
    from flwr.app import Array, ArrayRecord

    for name, array in arrays.items():
        if array.dtype.name not in types or not array.dtype.isnative:
            raise ModelError(
                f"{name}: arrays of type {array.dtype} are not exchanged, only {', '.join(types)}; "
                "convert it to one of them"
            )
    table = _table([(name, array.dtype.str, array.shape) for name, array in arrays.items()])
    if len(arrays) > _MOST_ARRAYS or len(table) > _MOST_TABLE_BYTES:
        raise ModelError(f"{len(arrays)} arrays are too many, or their names too long, to be exchanged")
    parts: list[bytes | memoryview] = [table]
    end = len(table)
    for array in arrays.values():
        parts += [bytes(-end % _ALIGNED), np.ascontiguousarray(array).reshape(-1).view(np.uint8).data]
        end += -end % _ALIGNED + array.nbytes
    data = b"".join(parts)
    return ArrayRecord({_NAME: Array(dtype="uint8", shape=(len(data),), stype=_STYPE, data=data)})


def unpack(record: ArrayRecord, types: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays in a record, in their order: read-only views of its bytes, so that nothing is copied or allocated.

    Raises :class:`ProtocolError` for anything but what :func:`pack` makes of arrays of ``types``.
    """
    if list(record) != [_NAME]:
        raise ProtocolError(f"the arrays are not packed; {_REMEDY}")
    packed = record[_NAME]
    data = packed.data
    if (packed.stype, packed.dtype, tuple(packed.shape)) != (_STYPE, "uint8", (len(data),)):
        raise ProtocolError(f"the arrays are not packed as {_STYPE}; {_REMEDY}")
    rows, end = _rows(data, types)
    whole = memoryview(data)
    arrays: dict[str, NDArray[Any]] = {}
    for name, dtype, shape in rows:
        start = end + -end % _ALIGNED
        stop = start + math.prod(shape) * np.dtype(dtype).itemsize
        if stop > len(data) or any(whole[end:start]):
            raise ProtocolError(f"the packed arrays end before {_shown(name)} does, or are not as packed; {_REMEDY}")
        arrays[name] = np.frombuffer(whole[start:stop], np.dtype(dtype)).reshape(shape)
        end = stop
    if end != len(data):
        raise ProtocolError(f"{len(data) - end} bytes follow the packed arrays; {_REMEDY}")
    return arrays


def _table(rows: Sequence[_Row]) -> bytes:
    text = json.dumps(rows, separators=(",", ":")).encode()
    return len(text).to_bytes(_LENGTH, "little") + text


def _rows(data: bytes, types: Sequence[str]) -> tuple[list[_Row], int]:
    """The table's rows and where it ends. Raises :class:`ProtocolError`."""
    length = int.from_bytes(data[:_LENGTH], "little")
    end = _LENGTH + length
    if length > _MOST_TABLE_BYTES or end > len(data):
        raise ProtocolError(f"the table of the packed arrays has no possible length; {_REMEDY}")
    try:
        found = json.loads(data[_LENGTH:end])
    except (ValueError, RecursionError):  # neither UTF-8 nor JSON, or a nest of lists
        raise ProtocolError(f"the table of the packed arrays is not JSON; {_REMEDY}") from None
    if not isinstance(found, list) or len(found) > _MOST_ARRAYS:
        raise ProtocolError(f"the table of the packed arrays is no list of at most {_MOST_ARRAYS}; {_REMEDY}")
    known = {np.dtype(name).str: name for name in types}
    rows = [_row(row, known) for row in found]
    if len({name for name, _, _ in rows}) != len(rows) or _table(rows) != data[:end]:
        raise ProtocolError(f"the table of the packed arrays is not as it is packed; {_REMEDY}")
    return rows, end


def _row(row: object, known: Mapping[str, str]) -> _Row:
    match row:
        case [str(name), str(dtype), list(shape)]:
            pass
        case _:
            raise ProtocolError(f"a row of the packed arrays' table is not name, type and shape; {_REMEDY}")
    if dtype not in known:
        expected = ", ".join(known.values())
        raise ProtocolError(f"array {_shown(name)} is of type {_shown(dtype)}, not one of {expected}; {_REMEDY}")
    sides = all(type(side) is int and side >= 0 for side in shape)
    if len(shape) > 32 or not sides or math.prod(max(side, 1) for side in shape) > _MOST_NUMBERS:
        raise ProtocolError(f"array {_shown(name)} has a shape that no array has; {_REMEDY}")
    return name, dtype, tuple(shape)


def _shown(text: str) -> str:
    """A word from elsewhere, safe to print: escaped and cut."""
    shown = repr(text[:80])
    return shown if len(shown) <= 80 else shown[:77] + "..."
