"""Laws of weights: what goes out comes back; order does not count; every byte does."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from common.errors import ProtocolError
from common.packing import pack, unpack
from common.weights import DTYPES, all_finite, delta_norm, digest, load, save

Arrays = dict[str, NDArray[Any]]
few = settings(max_examples=60, deadline=None)

shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
arrays = st.one_of(
    hnp.arrays(np.float32, shapes, elements=st.floats(width=32)),
    hnp.arrays(np.int64, shapes),
    hnp.arrays(np.uint8, shapes),
)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
weights = st.dictionaries(names, arrays, max_size=6)
finite = st.floats(-1e6, 1e6, width=32)


def same(a: Arrays, b: Arrays) -> bool:
    return a.keys() == b.keys() and all(
        a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and a[n].tobytes() == b[n].tobytes() for n in a
    )


@few
@given(weights)
def test_the_wire_changes_nothing(sent: Arrays) -> None:
    received = unpack(pack(sent, DTYPES), DTYPES)
    assert list(received) == list(sent)
    assert same(received, sent)


@few
@given(weights)
def test_a_file_changes_nothing_and_order_does_not_count(kept: Arrays) -> None:
    kept.pop("__metadata__", None)
    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder, "1.safetensors"), Path(folder, "2.safetensors")
        save(kept, one)
        save(dict(reversed(kept.items())), two)
        assert one.read_bytes() == two.read_bytes()
        assert same(load(one), kept)


@few
@given(weights, st.randoms(use_true_random=False))
def test_digest_does_not_know_order(some: Arrays, random: Any) -> None:
    shuffled = list(some.items())
    random.shuffle(shuffled)
    assert digest(dict(shuffled)) == digest(some)


@few
@given(weights, weights)
def test_equal_digests_are_equal_weights(a: Arrays, b: Arrays) -> None:
    assert (digest(a) == digest(b)) == same(a, b)


@few
@given(hnp.arrays(np.float32, (3, 4), elements=st.floats(width=32)), st.data())
def test_digest_sees_every_bit(array: NDArray[np.float32], data: st.DataObject) -> None:
    flipped = array.copy()
    position = data.draw(st.integers(0, 8 * array.nbytes - 1))
    flipped.reshape(-1).view(np.uint8)[position // 8] ^= 1 << (position % 8)
    assert digest({"w": flipped}) != digest({"w": array})


@few
@given(weights)
def test_finiteness_is_numpy_s(some: Arrays) -> None:
    assert all_finite(some) == all(np.isfinite(array).all() for array in some.values())


@few
@given(hnp.arrays(np.float32, (2, 3, 4), elements=finite), hnp.arrays(np.float32, (2, 3, 4), elements=finite))
def test_norm_is_a_distance(a: NDArray[np.float32], b: NDArray[np.float32]) -> None:
    x = {"u": a[0], "v": a[1]}
    y = {"u": b[0], "v": b[1]}
    distance = delta_norm(x, y, ["u", "v"])
    assert distance == delta_norm(y, x, ["v", "u"])
    assert (distance == 0.0) == np.array_equal(a, b)
    exact = math.sqrt(math.fsum((float(p) - float(q)) ** 2 for p, q in zip(a.flat, b.flat, strict=True)))
    assert distance == pytest.approx(exact, rel=1e-12)


@settings(max_examples=300, deadline=None)
@given(weights, st.data())
def test_no_byte_can_be_changed_into_other_arrays(sent: Arrays, data: st.DataObject) -> None:
    """One changed byte: refused, or another table or number that is packed in just this way."""
    content = bytearray(pack(sent, DTYPES)["packed"].data)
    position = data.draw(st.integers(0, len(content) - 1))
    content[position] = data.draw(st.integers(0, 255))
    record = ArrayRecord({"packed": Array("uint8", (len(content),), "fedward.packed.1", bytes(content))})
    try:
        received = unpack(record, DTYPES)
    except ProtocolError:
        return
    assert pack(received, DTYPES)["packed"].data == content


@few
@given(st.binary(max_size=300), st.integers(0, 40))
def test_any_bytes_are_refused_or_what_packing_writes(data: bytes, length: int) -> None:
    for content in (data, length.to_bytes(8, "little") + data):
        record = ArrayRecord({"packed": Array("uint8", (len(content),), "fedward.packed.1", content)})
        try:
            received = unpack(record, DTYPES)
        except ProtocolError:
            continue
        assert pack(received, DTYPES)["packed"].data == content
