"""NumPy's files on their way into a vault: shapes, types, labels, and never a pickle."""

from __future__ import annotations

import io
import struct
import zipfile
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from client.ingest import arrays, reasons
from client.ingest.kinds import Picture, Reason, Refused, Rules
from client.ingest.sniff import family
from common.preprocess import prepare
from common.study import Study

RULES = Rules()
STACK = np.random.default_rng(0).integers(0, 256, (5, 20, 16), dtype=np.uint8)


def npz(**named: Any) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **named)
    return stream.getvalue()


def npy(array: NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def read(content: bytes, rules: Rules = RULES) -> tuple[Picture, ...]:
    assert family(content) == "arrays"
    return arrays.read(content, rules).pictures


def refused(content: bytes, reason: Reason, rules: Rules = RULES) -> None:
    with pytest.raises(Refused) as caught:
        assert family(content) == "arrays"
        arrays.read(content, rules)
    assert caught.value.reason is reason


@pytest.mark.parametrize("name", ["images", "image", "x", "X", "data", "arr_0"])
def test_images_and_labels_come_back_in_order(name: str) -> None:
    pictures = read(npz(**{name: STACK, "labels": np.array([3, 1, 2, 0, 1])}))
    assert [picture.labels for picture in pictures] == [("3",), ("1",), ("2",), ("0",), ("1",)]
    for number, picture in enumerate(pictures):
        assert picture.number == number and np.array_equal(picture.pixels, STACK[number])


def test_three_sequences_stacked_as_the_guide_says_reach_the_model_in_order() -> None:
    made = Study.model_validate(
        {
            "name": "mri",
            "task": "binary",
            "classes": ["normal", "tumor"],
            "image": {"size": 32, "channels": 3, "sequences": ["T1", "T2", "diffusion"]},
        }
    )
    sequences = [np.random.default_rng(seed).integers(0, 256, (32, 32), np.uint8) for seed in range(3)]
    (picture,) = read(npz(images=np.stack(sequences, axis=-1)))
    assert picture.pixels.shape == (32, 32, 3)
    assert np.array_equal(prepare(picture.pixels, made), np.stack(sequences))


def test_labels_may_be_words_columns_truths_or_missing() -> None:
    words = ["normal", "pneumonia", " ", "a b", "ü"]
    assert [p.labels for p in read(npz(images=STACK, y=words))] == [
        ("normal",),
        ("pneumonia",),
        ("",),
        ("a b",),
        ("ü",),
    ]
    assert [p.labels for p in read(npz(images=STACK, label=np.ones((5, 1), np.uint8)))] == [("1",)] * 5
    assert [p.labels for p in read(npz(images=STACK, y=np.zeros(5, bool)))] == [("0",)] * 5
    assert [p.labels for p in read(npz(images=STACK))] == [()] * 5
    for wrong in (np.zeros(4), np.zeros(5), np.zeros((5, 2), int), ["x" * 65] * 5, ["a\nb"] * 5):
        refused(npz(images=STACK, labels=wrong), reasons.LABELS)


def test_shapes() -> None:
    colour = np.random.default_rng(1).integers(0, 256, (5, 20, 16, 3), dtype=np.uint8)
    assert np.array_equal(read(npy(STACK[0]))[0].pixels, STACK[0])
    assert [p.pixels.shape for p in read(npy(STACK))] == [(20, 16)] * 5
    assert [p.pixels.shape for p in read(npy(STACK[..., None]))] == [(20, 16)] * 5
    assert [p.pixels.shape for p in read(npy(colour))] == [(20, 16, 3)] * 5
    assert np.array_equal(read(npy(colour[0]))[0].pixels, colour[0])
    assert np.array_equal(read(npy(np.stack([STACK] * 3, axis=-1)))[2].pixels, STACK[2])
    assert np.array_equal(read(npy(np.asfortranarray(STACK)))[3].pixels, STACK[3])
    for shape in ((), (7,), (2, 3, 4, 5), (2, 2, 2, 2, 3), (0, 4, 4), (3, 0, 4)):
        refused(npy(np.zeros(shape, np.uint8)), reasons.SHAPE)


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (STACK.astype(">u2") * 200, np.uint16),
        (STACK.astype(np.int64), np.uint16),
        (STACK.astype(np.int32) - 1000, np.int16),
        (STACK.astype(np.int8), np.int16),
    ],
)
def test_whole_numbers_keep_their_values(array: NDArray[Any], dtype: type) -> None:
    for picture, given in zip(read(npy(array)), array, strict=True):
        assert picture.pixels.dtype == dtype and np.array_equal(picture.pixels, given)


def test_truths_are_black_and_white() -> None:
    assert np.array_equal(read(npy(STACK > 127))[1].pixels, (STACK[1] > 127) * np.uint8(255))


def test_masks_are_zero_and_one() -> None:
    content = npz(images=STACK, masks=(STACK > 200) * 7)
    for number, mask in enumerate(arrays.read_mask(content, RULES).pictures):
        assert mask.pixels.dtype == np.uint8 and np.array_equal(mask.pixels, STACK[number] > 200)
    (mask,) = arrays.read_mask(npy(np.kron(STACK[0], np.ones((10, 10), np.uint8))), Rules(longest_side=32)).pictures
    assert mask.pixels.shape == (32, 26) and set(np.unique(mask.pixels)) <= {0, 1}


def test_a_pickle_is_never_opened() -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (pytest.fail, ("it was opened",))

    trap = np.array([Trap(), Trap()], dtype=object)
    refused(npy(trap), reasons.PICKLED)
    refused(npz(images=trap), reasons.PICKLED)
    refused(npz(images=STACK, labels=np.array([Trap()] * 5, dtype=object)), reasons.PICKLED)


def test_what_a_vault_does_not_hold_is_refused() -> None:
    refused(npy(STACK / 255), reasons.FLOATING)
    refused(npy(STACK.astype(np.int32) * 1000), reasons.DEEP)
    refused(npy(STACK.astype(np.int32) * 255 - 1), reasons.DEEP)
    refused(npy(np.full((4, 4), np.iinfo(np.uint64).max)), reasons.DEEP)
    refused(npy(np.zeros((4, 4, 3), np.uint16)), reasons.DEEP)
    refused(npy(np.array([["a", "b"], ["c", "d"]])), reasons.SHAPE)
    refused(npz(ages=np.arange(4)), reasons.NAMELESS)
    refused(npz(train_images=STACK, val_images=STACK, test_images=STACK, train_labels=[1]), reasons.SPLITS)


def test_what_is_too_much_is_refused() -> None:
    refused(npy(STACK), reasons.FRAMES, Rules(largest_frames=4))
    refused(npy(np.zeros((64, 64), np.uint8)), reasons.PIXELS, Rules(largest_pixels=1024))
    refused(npz(images=np.zeros((4, 1024, 1024), np.uint8)), reasons.LARGE, Rules(largest_bytes=2**20))


def header(shape: str, dtype: str = "|u1") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (header("(100000, 100000)"), reasons.LARGE),
        (header("(1000, 1000)") + b"short", reasons.DAMAGED),
        (header("(-1, 1000)"), reasons.SHAPE),
        (header("(2, 2)", "|O"), reasons.PICKLED),
        (header("(2, 2)", "|V0"), reasons.SHAPE),
        (header("'text'"), reasons.DAMAGED),
        (header("(" * 200), reasons.DAMAGED),
        (header("(2, 2)", "nonsense"), reasons.DAMAGED),
        (b"\x93NUMPY\x09\x00" + bytes(200), reasons.DAMAGED),
        (b"\x93NUMPY", reasons.DAMAGED),
    ],
)
def test_headers_that_lie_are_refused(content: bytes, reason: Reason) -> None:
    refused(content, reason)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("images.npy", content)
    refused(stream.getvalue(), reason)


def test_a_damaged_archive_is_refused() -> None:
    whole = bytearray(npz(images=STACK))
    whole[80] ^= 255
    refused(bytes(whole), reasons.DAMAGED)
    with pytest.raises(Refused) as caught:
        family(bytes(whole[:100]))
    assert caught.value.reason is reasons.ARCHIVE
