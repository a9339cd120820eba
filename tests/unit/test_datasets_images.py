"""Image files on their way to arrays: depths, colours, orientation, and whatever hostile bytes can do."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from common.study import Study
from simulations.datasets import UnreadableImage, open_source
from simulations.datasets.decode import MAX_PIXELS

STUDY = Study.model_validate({"name": "s", "task": "binary", "classes": ["normal", "pneumonia"]})


@pytest.fixture
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (12, 10), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path: Path, pixels: NDArray[np.uint8]) -> Path:
    root = tmp_path / "hospital"
    (root / "images").mkdir(parents=True)
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels).save(root / "images" / name)
    return root


def sheet(root: Path, text: str) -> Path:
    (root / "labels.csv").write_text(text)
    return root


def read_one(root: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    source = open_source(STUDY, root)
    return source.read(source.items[0])


def one(root: Path, save: Callable[[Path], object], name: str = "one.png") -> Path:
    save(root / name)
    return sheet(root, f"file,label\n{name},normal\n")


def test_sixteen_bits_stay_sixteen_bits(folder: Path) -> None:
    deep = np.arange(120, dtype=np.uint16).reshape(12, 10) * 500
    for name in ("one.png", "one.tif"):
        read, _ = read_one(one(folder, lambda path: Image.fromarray(deep).save(path), name))
        assert read.dtype == np.uint16 and np.array_equal(read, deep)
    big = Image.frombytes("I;16B", (10, 12), deep.astype(">u2").tobytes())
    read, _ = read_one(one(folder, big.save, "one.tif"))
    assert read.dtype == np.uint16 and np.array_equal(read, deep)


def test_thirty_two_bits_are_read_only_where_sixteen_hold_them(folder: Path) -> None:
    wide = np.full((4, 4), 65535, np.int32)
    read, _ = read_one(one(folder, lambda path: Image.fromarray(wide).save(path), "one.tif"))
    assert read.dtype == np.uint16 and int(read.max()) == 65535
    for bad in (wide + 1, -wide):
        one(folder, lambda path, bad=bad: Image.fromarray(bad).save(path), "one.tif")  # type: ignore[misc]
        with pytest.raises(UnreadableImage, match="outside 0 to 65535"):
            read_one(folder)


def test_colour_is_kept_only_where_there_is_colour(folder: Path, pixels: NDArray[np.uint8]) -> None:
    grey = np.stack([pixels] * 3, axis=-1)
    assert np.array_equal(read_one(one(folder, lambda p: Image.fromarray(grey).save(p)))[0], pixels)
    alpha = np.dstack([grey, np.full(pixels.shape, 255, np.uint8)])
    assert np.array_equal(read_one(one(folder, lambda p: Image.fromarray(alpha).save(p)))[0], pixels)
    colour = grey.copy()
    colour[0, 0] = (200, 10, 10)
    read, _ = read_one(one(folder, lambda p: Image.fromarray(colour).save(p)))
    assert read.shape == (12, 10, 3) and np.array_equal(read, colour)
    palette = Image.fromarray(colour).quantize(16)
    assert read_one(one(folder, palette.save))[0].shape == (12, 10, 3)
    bits = read_one(one(folder, lambda p: Image.fromarray(pixels > 127).save(p)))[0]
    assert np.array_equal(bits, (pixels > 127) * np.uint8(255))


@pytest.mark.parametrize("orientation", range(10))
def test_exif_orientation_is_applied(folder: Path, pixels: NDArray[np.uint8], orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    one(folder, lambda path: Image.fromarray(pixels).save(path, exif=exif))
    with Image.open(folder / "one.png") as image:
        expected = np.array(ImageOps.exif_transpose(image))
    assert np.array_equal(read_one(folder)[0], expected)


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises more than its body holds."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def gif_of_two(path: Path) -> None:
    frames = [Image.new("L", (4, 4), shade) for shade in (0, 255)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"hello", "is no image in a known format"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (bytes(128) + b"DICM" + bytes(100), "is a DICOM file"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is no image in a known format"),
        (png_of(30_000, 30_000), "more than 64 million pixels"),
        (png_of(8_001, 8_000), "more than 64 million pixels"),
        (png_of(9_900, 9_900), "more than 64 million pixels"),
        (png_of(100, 100), "damaged"),
        (png_of(10, 10)[:40], "damaged|known format"),
    ],
)
def test_what_is_no_image_is_unreadable_with_a_reason(folder: Path, content: bytes, reason: str) -> None:
    one(folder, lambda path: path.write_bytes(content))
    with pytest.raises(UnreadableImage, match=reason) as caught:
        read_one(folder)
    assert caught.value.key == "one.png"
    assert str(folder) not in str(caught.value) and "\n" not in str(caught.value)


def test_the_pixel_limit_is_below_pillows_own() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None and MAX_PIXELS < Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    "name", ["one.png", "one.jpg", "one.tif", "one.bmp", "one.webp", "one.gif", "one.jp2", "one.pgm"]
)
def test_truncated_and_damaged_files_never_raise_anything_else(folder: Path, name: str) -> None:
    big = np.random.default_rng(1).integers(0, 256, (40, 40), dtype=np.uint8)
    one(folder, lambda path: Image.fromarray(big).save(path), name)
    whole = (folder / name).read_bytes()
    assert read_one(folder)[0].shape[:2] == (40, 40)
    rng = np.random.default_rng(2)
    refused = 0
    for attempt in range(60):
        broken = bytearray(whole[: int(rng.integers(1, len(whole)))] if attempt % 2 else whole)
        for place in rng.integers(0, len(broken), 3):
            broken[place] = int(rng.integers(256))
        (folder / name).write_bytes(bytes(broken))
        try:
            read_one(folder)
        except UnreadableImage:
            refused += 1
    assert refused >= 15


def test_other_things_in_place_of_a_file_are_unreadable(folder: Path) -> None:
    sheet(folder, "file,label\ngone.png,normal\nimages,normal\npipe,normal\n")
    os.mkfifo(folder / "pipe")
    source = open_source(STUDY, folder)
    for item, reason in zip(
        source.items, ["no such file", "is a folder or a device", "is a folder or a device"], strict=True
    ):
        with pytest.raises(UnreadableImage, match=reason):
            source.read(item)
    one(folder, gif_of_two, "two.gif")
    with pytest.raises(UnreadableImage, match="holds 2 frames"):
        read_one(folder)
    one(folder, lambda path: Image.fromarray(np.ones((3, 3), np.float32)).save(path), "one.tif")
    with pytest.raises(UnreadableImage, match="floating-point"):
        read_one(folder)


def test_masks_are_zero_and_one_and_fit_their_image(folder: Path, pixels: NDArray[np.uint8]) -> None:
    sheet(folder, "file,label,mask\nimages/a.png,normal,masks/a.png\nimages/b.png,normal,\n")
    (folder / "masks").mkdir()
    Image.fromarray(pixels // 128 * 200).save(folder / "masks" / "a.png")
    source = open_source(STUDY, folder)
    _, mask = source.read(source.items[0])
    assert mask is not None and mask.dtype == np.uint8 and np.array_equal(mask, pixels // 128)
    assert source.read(source.items[1])[1] is None
    Image.new("L", (12, 10)).save(folder / "masks" / "a.png")
    with pytest.raises(UnreadableImage, match=r"images/a\.png: mask is 12×10, image 10×12"):
        source.read(source.items[0])
    (folder / "masks" / "a.png").unlink()
    with pytest.raises(UnreadableImage, match=r"images/a\.png: mask: no such file"):
        source.read(source.items[0])
