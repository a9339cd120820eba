"""Packed arrays: many as one, views back, and nothing that packing would not have written."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from numpy.typing import NDArray

from common.errors import ModelError, ProtocolError
from common.packing import pack, unpack
from common.weights import DTYPES, STATISTICS, digest

PACKED = "fedward.packed.1"


def received(data: bytes, **fields: Any) -> dict[str, NDArray[Any]]:
    """What ``data`` is taken for."""
    facts = {"dtype": "uint8", "shape": (len(data),), "stype": PACKED} | fields
    return unpack(ArrayRecord({"packed": Array(data=data, **facts)}), DTYPES)


def packed(table: Any, body: bytes = b"") -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table, separators=(",", ":")).encode()
    head = len(text).to_bytes(8, "little") + text
    return head + bytes(-len(head) % 64) * bool(body) + body


FOUR = np.arange(4, dtype=np.float32)


def test_vector() -> None:
    """Fixed with the protocol's version: sites of other builds must read it."""
    record = pack({"b": np.array([1.5, -2.0], np.float32), "a": np.array(7, np.int64)}, DTYPES)
    table = b'[["b","<f4",[2]],["a","<i8",[]]]'
    head = bytes([len(table), 0, 0, 0, 0, 0, 0, 0]) + table
    floats = bytes.fromhex("0000c03f000000c0")
    assert list(record) == ["packed"]
    array = record["packed"]
    assert (array.dtype, array.shape, array.stype) == ("uint8", (136,), PACKED)
    assert array.data == head + bytes(64 - len(head)) + floats + bytes(56) + bytes([7]) + bytes(7)


def test_what_comes_out_are_views_of_the_record_that_cannot_be_written_to() -> None:
    record = pack({"w": FOUR, "n": np.array(3)}, DTYPES)
    found = unpack(record, DTYPES)
    assert list(found) == ["w", "n"]
    whole = np.frombuffer(record["packed"].data, np.uint8)
    for array in found.values():
        assert np.shares_memory(array, whole)
        assert not array.flags.writeable
        assert array.flags.c_contiguous
        assert array.flags.aligned


@pytest.mark.parametrize("array", [np.zeros(0, np.float32), np.zeros((2, 0, 3), np.float32), np.array(5, np.int64)])
def test_empty_and_single_arrays_travel(array: NDArray[Any]) -> None:
    found = unpack(pack({"w": array, "v": FOUR}, DTYPES), DTYPES)
    assert (found["w"].shape, found["w"].dtype) == (array.shape, array.dtype)
    assert digest(found) == digest({"w": array, "v": FOUR})


def test_rotated_arrays_travel_in_c_order() -> None:
    array = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert np.array_equal(unpack(pack({"w": array}, DTYPES), DTYPES)["w"], array)


def test_no_array_at_all_travels() -> None:
    assert unpack(pack({}, DTYPES), DTYPES) == {}


@pytest.mark.parametrize(
    "array",
    [np.zeros(2, np.float64), np.zeros(2, np.float16), np.array(["a"]), np.zeros(2, object), np.zeros(2, ">f4")],
)
def test_other_types_do_not_travel(array: NDArray[Any]) -> None:
    with pytest.raises(ModelError, match="w: arrays of type"):
        pack({"w": array}, DTYPES)


def test_statistics_travel_in_float64_and_only_where_asked_for() -> None:
    sums = {"loss": np.array(0.1), "counts": np.arange(3)}
    record = pack(sums, STATISTICS)
    assert digest(unpack(record, STATISTICS)) == digest(sums)
    with pytest.raises(ProtocolError, match="'loss' is of type '<f8', not one of float32"):
        unpack(record, DTYPES)
    with pytest.raises(ModelError, match="w: arrays of type float32"):
        pack({"w": np.zeros(1, np.float32)}, STATISTICS)


def test_more_arrays_than_are_taken_are_not_sent() -> None:
    none = np.zeros(0, np.float32)
    assert len(unpack(pack({str(n): none for n in range(20_000)}, DTYPES), DTYPES)) == 20_000
    with pytest.raises(ModelError, match="20001 arrays are too many"):
        pack({str(n): none for n in range(20_001)}, DTYPES)
    with pytest.raises(ModelError, match="names too long"):
        pack({"x" * (5 << 20): none}, DTYPES)


# --- hostile bytes ------------------------------------------------------------------------------------------------

FINE = [["w", "<f4", [4]]]
HUGE = 1 << 70


def test_the_hostile_tests_start_from_something_that_is_read() -> None:
    assert np.array_equal(received(packed(FINE, FOUR.tobytes()))["w"], FOUR)
    assert pack({"w": FOUR}, DTYPES)["packed"].data == packed(FINE, FOUR.tobytes())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no possible length"),
        (b"\xff" * 8, "no possible length"),
        ((5 << 20).to_bytes(8, "little") + b" " * (5 << 20), "no possible length"),
        (packed(FINE, FOUR.tobytes())[:20], "no possible length"),
        (packed(b"\xff\xfe"), "is not JSON"),
        (packed(b"[" * 100_000), "is not JSON"),
        (packed(b'[["w","<f4",[' + b"9" * 5000 + b"]]]"), "is not JSON"),
        (packed({"w": ["<f4", [4]]}), "is no list of at most 20000"),
        (packed([0] * 20_001), "is no list of at most 20000"),
        (packed([["w", "<f4"]]), "not name, type and shape"),
        (packed([["w", "<f4", [4], 0]]), "not name, type and shape"),
        (packed([[7, "<f4", [4]]]), "not name, type and shape"),
        (packed([["w", "<f4", "4"]]), "not name, type and shape"),
        (packed([["w", "|O", [4]]], FOUR.tobytes()), "of type '|O', not one of float32"),
        (packed([["w", ">f4", [4]]], FOUR.tobytes()), "of type '>f4'"),
        (packed([["w", "float32", [4]]], FOUR.tobytes()), "of type 'float32'"),
        (packed([["w", "<f8", [2]]], FOUR.tobytes()), "of type '<f8'"),
        (packed([["w", "<f4", [-4]]], FOUR.tobytes()), "a shape that no array has"),
        (packed([["w", "<f4", [-2, -2]]], FOUR.tobytes()), "a shape that no array has"),
        (packed([["w", "<f4", [4.0]]], FOUR.tobytes()), "a shape that no array has"),
        (packed([["w", "<f4", [True, 4]]], FOUR.tobytes()), "a shape that no array has"),
        (packed([["w", "<f4", [HUGE]]], FOUR.tobytes()), "a shape that no array has"),
        (packed([["w", "<f4", [1 << 32, 1 << 32, 4]]], FOUR.tobytes()), "a shape that no array has"),
        (packed([["w", "<f4", [0, 1 << 39, 1 << 39]]]), "a shape that no array has"),
        (packed([["w", "<f4", [1] * 33]]), "a shape that no array has"),
        (packed([["w", "<f4", [1 << 38]]], FOUR.tobytes()), "end before 'w' does"),
        (packed(FINE, FOUR.tobytes()[:-1]), "end before 'w' does"),
        (packed(FINE), "end before 'w' does"),
        (packed([*FINE, ["v", "<f4", [4]]], FOUR.tobytes()), "end before 'v' does"),
        (packed(FINE, FOUR.tobytes() + b"\0"), "1 bytes follow"),
        (packed([["w", "<f4", [2]], ["w", "<f4", [2]]], bytes(72)), "not as it is packed"),
        (packed(b'[["w", "<f4", [4]]]', FOUR.tobytes()), "not as it is packed"),
        (packed(b'[["\\u0077","<f4",[4]]]', FOUR.tobytes()), "not as it is packed"),
        (packed(b'[["w","<f4",[4]]]\n', FOUR.tobytes()), "not as it is packed"),
        (packed(b'[["\xc3\xa9","<f4",[4]]]', FOUR.tobytes()), "not as it is packed"),
    ],
)
def test_hostile_bytes_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        received(data)


def test_what_lies_between_the_arrays_is_nothing() -> None:
    """No room for what nobody looks at."""
    data = bytearray(packed(FINE, FOUR.tobytes()))
    data[60] = 1
    with pytest.raises(ProtocolError, match="not as packed"):
        received(bytes(data))


@pytest.mark.parametrize(
    "fields", [{"stype": "numpy.ndarray"}, {"stype": "pickle"}, {"dtype": "float32"}, {"shape": (4,)}, {"shape": ()}]
)
def test_another_envelope_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match=r"not packed as fedward\.packed\.1"):
        received(packed(FINE, FOUR.tobytes()), **fields)


def test_arrays_one_by_one_are_refused() -> None:
    array = pack({"w": FOUR}, DTYPES)["packed"]
    for record in ({}, {"w": array}, {"packed": array, "w": array}):
        with pytest.raises(ProtocolError, match="are not packed; sender and receiver must run the same version"):
            unpack(ArrayRecord(record), DTYPES)


class Bomb:
    """Makes a directory when unpickled."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("stype", [PACKED, "numpy.ndarray", "pickle"])
def test_pickles_are_never_loaded(stype: str, tmp_path: Path) -> None:
    target, buffer = tmp_path / "ran", io.BytesIO()
    np.save(buffer, np.array([Bomb(str(target))], dtype=object), allow_pickle=True)
    for data in (buffer.getvalue(), packed([["w", "|O", [1]]], buffer.getvalue())):
        with pytest.raises(ProtocolError):
            received(data, stype=stype)
    assert not target.exists()


def test_refusals_are_one_short_line_whatever_the_names() -> None:
    with pytest.raises(ProtocolError) as caught:
        received(packed([["\x1b[2J\n" + "x" * 5000, "y" * 5000, []]]))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
