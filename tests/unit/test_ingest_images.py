"""Image files on their way into a vault: depth, colour, orientation, frames, size, and nothing but pixels."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from client.ingest import images, reasons
from client.ingest.kinds import Decoded, Reason, Refused, Rules
from client.ingest.sniff import family

RULES = Rules()
GREY = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)
MARKER = "DOE^JANE 1966-04-01"


def encoded(pixels: NDArray[Any] | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(stream, kind, **options)
    return stream.getvalue()


def only(content: bytes, rules: Rules = RULES) -> NDArray[Any]:
    assert family(content) == "image"
    (picture,) = images.read(content, rules).pictures
    return picture.pixels


def refused(content: bytes, reason: Reason, rules: Rules = RULES) -> None:
    with pytest.raises(Refused) as caught:
        assert family(content) == "image"
        images.read(content, rules)
    assert caught.value.reason is reason


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM", "GIF", "WEBP", "JPEG2000"])
def test_eight_bits_come_back_as_they_were(kind: str) -> None:
    lossless: dict[str, Any] = {"WEBP": {"lossless": True}, "JPEG2000": {"irreversible": False}}.get(kind, {})
    assert np.array_equal(only(encoded(GREY, kind, **lossless)), GREY)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000"])
def test_sixteen_bits_come_back_as_they_were(kind: str) -> None:
    deep = GREY.astype(np.uint16) * 257
    read = images.read(encoded(deep, kind), RULES)
    assert read.pictures[0].pixels.dtype == np.uint16 and np.array_equal(read.pictures[0].pixels, deep)
    assert dict(read.pictures[0].attributes) == {"bits": "16"} and read.warnings == ()


def test_a_sixteen_bit_negative_is_turned() -> None:
    deep = GREY.astype(np.uint16) * 257
    assert np.array_equal(only(encoded(Image.fromarray(deep), "TIFF", tiffinfo={262: 0})), ~deep)


def test_palettes_single_bits_and_colours() -> None:
    colour = np.random.default_rng(1).integers(0, 4, (20, 20, 3), dtype=np.uint8) * 80
    assert np.array_equal(only(encoded(colour)), colour)
    assert np.array_equal(only(encoded(Image.fromarray(colour).quantize(256))), colour)
    assert np.array_equal(only(encoded(np.dstack([GREY] * 3))), GREY)
    assert np.array_equal(only(encoded(np.dstack([GREY] * 4))), GREY)  # alpha is dropped
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(only(encoded(GREY > 127, kind)), (GREY > 127) * np.uint8(255))


def test_colours_of_sixteen_bits_are_read_with_eight_and_say_so() -> None:
    colour = np.random.default_rng(1).integers(0, 2**16, (20, 20, 3), dtype=np.uint16)
    for extension in (".png", ".tif"):
        read = images.read(cv2.imencode(extension, colour)[1].tobytes(), RULES)
        assert read.warnings == (images.REDUCED,) and read.pictures[0].pixels.dtype == np.uint8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once_and_to_masks_too(kind: str, orientation: int) -> None:
    stored = np.zeros((40, 24), np.uint8)
    stored[:16, :8] = 255  # top left, on JPEG's grid
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(stored, kind, exif=exif)
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: np.rot90(stored, -1),
        7: np.rot90(stored.T, 2),
        8: np.rot90(stored),
    }[orientation]
    read = only(content)
    assert np.array_equal((read if read.ndim == 2 else read[..., 0]) > 127, upright > 127)
    if kind in ("PNG", "TIFF"):
        (mask,) = images.read_mask(content, RULES).pictures
        assert np.array_equal(mask.pixels, upright > 0) and mask.pixels.dtype == np.uint8


def test_nothing_but_pixels_leaves() -> None:
    exif = Image.Exif()
    exif[0x010E] = MARKER
    exif.get_ifd(0x8825)[29] = MARKER  # GPS
    for content in (
        encoded(GREY, "JPEG", exif=exif, comment=MARKER.encode()),
        encoded(GREY, "TIFF", tiffinfo={270: MARKER, 305: MARKER}),
        encoded(GREY, "GIF", comment=MARKER.encode()),
    ):
        assert MARKER.encode() in content
        read = images.read(content, RULES)
        (picture,) = read.pictures
        assert MARKER not in f"{dict(picture.attributes)}{picture.labels}{read.warnings}{vars(read.identity)}"
        assert MARKER.encode() not in picture.pixels.tobytes()


def pages(count: int) -> bytes:
    return encoded(
        Image.fromarray(np.full((8, 8), 0, np.uint8)),
        "TIFF",
        save_all=True,
        append_images=[Image.fromarray(np.full((8, 8), page, np.uint8)) for page in range(1, count)],
    )


@pytest.mark.parametrize(("frames", "expected"), [("all", [0, 1, 2, 3, 4]), ("first", [0]), ("middle", [2])])
def test_pages_are_chosen_by_rule(frames: Any, expected: list[int]) -> None:
    read = images.read(pages(5), Rules(frames=frames))
    assert [picture.number for picture in read.pictures] == expected
    assert [int(picture.pixels.max()) for picture in read.pictures] == expected
    assert [picture.attributes["frame"] for picture in read.pictures] == [str(number) for number in expected]
    masks = images.read_mask(pages(5), Rules(frames=frames))
    assert [(mask.number, int(mask.pixels.max())) for mask in masks.pictures] == [(n, int(n > 0)) for n in expected]


def test_larger_images_are_shrunk_by_area_and_masks_stay_masks() -> None:
    large = np.zeros((400, 200), np.uint8)
    large[:200] = 200
    rules = Rules(longest_side=100)
    (picture,) = images.read(encoded(large), rules).pictures
    assert picture.pixels.shape == (100, 50) and picture.scale == (0.25, 0.25)
    assert np.array_equal(picture.pixels, large[::4, ::4])
    (mask,) = images.read_mask(encoded(large), rules).pictures
    assert np.array_equal(mask.pixels, picture.pixels > 0) and mask.scale == picture.scale
    (small,) = images.read(encoded(GREY), rules).pictures
    assert small.pixels.shape == GREY.shape and small.scale == (1.0, 1.0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_unlike_spacings_become_squares(dtype: type) -> None:
    ramp = np.repeat(np.arange(0, 100, 5, dtype=dtype)[:, None], 10, axis=1)  # 20 × 10, pixels twice as high as wide
    square, scale = images.fitted(ramp, RULES, (2.0, 1.0))
    assert square.shape == (40, 10) and scale == (2.0, 1.0) and square.dtype == dtype
    small, scale = images.fitted(ramp, Rules(longest_side=32), (2.0, 1.0))
    assert small.shape == (32, 8) and scale == (1.6, 0.8)
    same, scale = images.fitted(ramp, RULES, (1.0, 1.009))
    assert same is ramp and scale == (1.0, 1.0)
    with pytest.raises(Refused) as caught:
        images.fitted(ramp, Rules(largest_pixels=1024), (100.0, 1.0))
    assert caught.value.reason is reasons.PIXELS


def test_a_rule_chooses_frames_that_exist() -> None:
    for count in range(1, 12):
        assert list(images.chosen(count, "all")) == list(range(count))
        assert list(images.chosen(count, "first")) == [0]
        assert list(images.chosen(count, "middle")) == [count // 2]
        for step in range(1, 15):
            taken = list(images.chosen(count, f"every:{step}"))
            assert taken and set(taken) <= set(range(count)) and len(taken) in (count // step, count // step + 1)
    assert list(images.chosen(10, "every:3")) == [1, 4, 7]


def promising(width: int, height: int) -> bytes:
    """A PNG whose header promises more than its body holds."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def test_what_is_too_much_is_refused_before_it_is_decoded() -> None:
    refused(promising(100_000, 100_000), reasons.PIXELS)
    refused(promising(9_000, 9_000), reasons.PIXELS)
    refused(promising(33, 32), reasons.PIXELS, Rules(largest_pixels=1024))
    refused(pages(5), reasons.FRAMES, Rules(largest_frames=4))
    bomb = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(
        bomb, "TIFF", save_all=True, append_images=[Image.new("L", (2000, 2000))], compression="tiff_deflate"
    )
    refused(bomb.getvalue(), reasons.PIXELS, Rules(largest_pixels=1_000_000))


def test_what_a_vault_does_not_hold_is_refused() -> None:
    refused(encoded(np.ones((3, 3), np.float32), "TIFF"), reasons.FLOATING)
    refused(encoded(np.full((3, 3), 65536, np.int32), "TIFF"), reasons.DEEP)
    refused(encoded(np.full((3, 3), -1, np.int32), "TIFF"), reasons.DEEP)
    refused(encoded(GREY)[:-60], reasons.DAMAGED)
    refused(promising(100, 100), reasons.DAMAGED)
    refused(b"\x89PNG\r\n\x1a\n", reasons.UNKNOWN)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", reasons.EMPTY),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", reasons.POINTER),
        (b"\xef\xbb\xbf\n <!DOCTYPE html><html><body>Please log in", reasons.PAGE),
        (b"<HTML>", reasons.PAGE),
        (b"PK\x03\x04 and more", reasons.ARCHIVE),
        (b"Rar!\x1a\x07\x01\0", reasons.ARCHIVE),
        (b"\x1f\x8bnot", reasons.COMPRESSED),
        (b"%PDF-1.7", reasons.UNKNOWN),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", reasons.UNKNOWN),
        (b"BMore text that starts like a bitmap", reasons.UNKNOWN),
        (b"\x08\0", reasons.UNKNOWN),
    ],
)
def test_what_is_no_image_says_what_it_is(content: bytes, reason: Reason) -> None:
    with pytest.raises(Refused) as caught:
        family(content)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    "start",
    [
        bytes(128) + b"DICM",
        bytes.fromhex("0800050043530a00") + b"ISO_IR 100",  # explicit VR
        bytes.fromhex("080005000a000000") + b"ISO_IR 100",  # implicit VR
        bytes.fromhex("0008000543530000") + b"ISO_IR 100",  # big endian
        bytes.fromhex("0200000055 4c0400") + bytes(12),  # file meta without preamble
    ],
)
def test_dicom_is_known_with_and_without_its_preamble(start: bytes) -> None:
    assert family(start + bytes(64)) == "dicom"


def test_every_reason_has_its_own_code_and_words() -> None:
    assert len({reason.code for reason in reasons.ALL}) == len(reasons.ALL)
    for reason in reasons.ALL:
        assert all((reason.code, reason.stage, reason.reason, reason.remedy)) and "\n" not in str(reason)


def test_frames_keep_their_scale() -> None:
    decoded: Decoded = images.read(pages(2), Rules(longest_side=32))
    assert [picture.scale for picture in decoded.pictures] == [(1.0, 1.0)] * 2
