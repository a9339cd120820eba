"""Laws of the vault: everything it accepts comes back, from whatever layout, in whatever order it was added."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from client.vault.keys import create_key_file, provider
from client.vault.manifest import Header
from client.vault.records import Form, decode_meta, encode_meta, pixel_digest, row_of
from client.vault.store import Record, Vault

words = st.text(max_size=12)
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9)) | st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))


@st.composite
def records(draw: st.DrawFn) -> Record:
    dtype = np.dtype(draw(st.sampled_from(["uint8", "<u2", ">u2", "<i2", ">i2"])))
    pixels = draw(hnp.arrays(dtype, draw(shapes)))
    layout = draw(st.sampled_from(["C", "F", "reversed"]))
    if layout == "F":
        pixels = np.asfortranarray(pixels)
    elif layout == "reversed":
        pixels = pixels[::-1]
    return Record(
        pixels,
        patient=draw(st.text(min_size=1, max_size=12)),
        labels=draw(st.dictionaries(words, st.lists(words, max_size=3).map(tuple), max_size=3)),
        split=draw(st.sampled_from(["", "train", "val", "test"])),
        attributes=draw(st.dictionaries(words, words, max_size=3)),
        mask=draw(st.none() | hnp.arrays(np.uint8, pixels.shape[:2], elements=st.integers(0, 1))),
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(records(), max_size=4), max_size=3))
def test_what_goes_in_comes_out(batches: list[list[Record]]) -> None:
    flat = [record for batch in batches for record in batch]
    with TemporaryDirectory() as folder:
        base = Path(folder)
        create_key_file(base / "key")
        keys = provider("file:key", base=base)
        with Vault.create(base / "vault", keys, synthetic=True, source="laws") as vault:
            assert [vault.add(iter(batch)) for batch in batches] == [len(batch) for batch in batches]
        with Vault.open(base / "vault", keys) as vault:
            vault.verify()
            assert vault.generation == 1 + sum(1 for batch in batches if batch)
            rows = vault.rows()
            assert [(row.digest, row.id) for row in rows] == sorted((row.digest, row.id) for row in rows)
            assert sorted(row.id for row in rows) == list(range(1, len(flat) + 1))
            arrays = vault.read_many([row.id for row in rows])
            for row, pixels in zip(rows, arrays, strict=True):
                record = flat[row.id - 1]
                assert (row.dtype, row.shape) == (record.pixels.dtype.name, record.pixels.shape)
                assert pixels.dtype.name == row.dtype
                np.testing.assert_array_equal(pixels, record.pixels)
                np.testing.assert_array_equal(vault.read(row.id), record.pixels)
                assert row.digest == pixel_digest(record.pixels) == pixel_digest(pixels)
                assert (row.patient, row.split) == (record.patient, record.split)
                assert (row.labels, row.attributes) == (record.labels, record.attributes)
                assert row.has_mask == (record.mask is not None)
                if record.mask is not None:
                    np.testing.assert_array_equal(vault.read_mask(row.id), record.mask)


@settings(max_examples=60, deadline=None)
@given(records())
def test_labels_hide_their_length(record: Record) -> None:
    form = Form(record.pixels.dtype.name, record.pixels.shape)
    plain = encode_meta(row_of(1, record, form, "raw", 1), 1)
    assert len(plain) % 512 == 0
    assert decode_meta(1, plain).labels == record.labels


@given(st.sampled_from(["uint8", "uint16", "int16"]), shapes, st.sampled_from(["uint8", "uint16", "int16"]), shapes)
def test_a_form_is_told_from_every_other(
    dtype: str, shape: tuple[int, ...], other_dtype: str, other_shape: tuple[int, ...]
) -> None:
    one, other = Form(dtype, shape), Form(other_dtype, other_shape)
    assert (one.encoded == other.encoded) == (one == other)


fields = st.tuples(st.binary(max_size=4), st.text("fe:", max_size=3), st.binary(max_size=4), st.binary(max_size=4))


@given(fields, fields)
def test_a_header_is_told_from_every_other(
    one: tuple[bytes, str, bytes, bytes], other: tuple[bytes, str, bytes, bytes]
) -> None:
    assert (Header(*one).encoded == Header(*other).encoded) == (one == other)
