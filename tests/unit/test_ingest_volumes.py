"""NIfTI volumes to slices: the same ones however a file is laid out, and values keep their meaning."""

from __future__ import annotations

import gzip
import itertools
import struct
import zlib
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from client.ingest import reasons, volumes
from client.ingest.kinds import Picture, Reason, Refused, Rules
from client.ingest.sniff import family

ALL = Rules(slices="all")
MARKER = b"DOE^JANE 1966"


def phantom(dtype: Any = np.int16) -> NDArray[Any]:
    """A patient in RAS+: no two of the six directions look alike."""
    body = np.zeros((12, 10, 7), dtype)
    body[8:, :, :] += 40  # the patient's right
    body[:, 7:, :] += 7  # the front
    body[:, :, :2] += 100  # the feet
    body[9, 8, 5] += 90
    return body


def nifti(
    values: NDArray[Any],
    codes: str = "RAS",
    zooms: tuple[float, float, float] = (1.0, 1.0, 2.5),
    *,
    kind: Any = nibabel.Nifti1Image,
) -> Any:
    """``values``, given in RAS+ with those voxel sizes, as an image whose axes run as ``codes`` says."""
    image = kind(values, np.diag([*zooms, 1.0]), dtype=values.dtype)
    wanted = nibabel.orientations.axcodes2ornt(codes)
    turned = image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), wanted))
    turned.header.set_xyzt_units("mm")
    return turned


def read(content: bytes, rules: Rules = ALL) -> tuple[Picture, ...]:
    assert family(content) == "volume"
    return volumes.read(content, rules).pictures


def refused(content: bytes, reason: Reason, rules: Rules = ALL) -> None:
    with pytest.raises(Refused) as caught:
        assert family(content) == "volume"
        volumes.read(content, rules)
    assert caught.value.reason is reason


ORIENTATIONS = [
    "".join(codes)
    for order in itertools.permutations(("RL", "AP", "SI"))
    for codes in itertools.product(*order)
]  # fmt: skip


@pytest.mark.parametrize("codes", ORIENTATIONS)
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_every_orientation_gives_the_same_slices(codes: str, kind: Any) -> None:
    body = phantom()
    pictures = read(nifti(body, codes, kind=kind).to_bytes())
    assert [picture.number for picture in pictures] == list(range(7))
    for number, picture in enumerate(pictures):
        right_is_left_front_is_up = body[::-1, ::-1, number].T
        assert np.array_equal(picture.pixels, right_is_left_front_is_up)
        assert dict(picture.attributes) == {
            "slice": str(number),
            "slice_thickness_mm": "2.5",
            "pixel_spacing_mm": "1",
            "bits": "16",
        }
    (mask,) = volumes.read_mask(nifti(body, codes, kind=kind).to_bytes(), Rules()).pictures
    assert np.array_equal(mask.pixels, body[::-1, ::-1, 3].T != 0) and mask.pixels.dtype == np.uint8


def test_an_oblique_volume_is_cut_along_its_own_axes() -> None:
    tilt = np.deg2rad(12)
    affine = np.array(
        [[1, 0, 0, 5], [0, np.cos(tilt), -np.sin(tilt), 6], [0, np.sin(tilt), np.cos(tilt), 7], [0] * 3 + [1]]
    )
    oblique = nibabel.Nifti1Image(phantom(), affine)
    for ours, theirs in zip(read(oblique.to_bytes()), read(nifti(phantom()).to_bytes()), strict=True):
        assert np.array_equal(ours.pixels, theirs.pixels)


def test_gzip_makes_no_difference() -> None:
    plain = nifti(phantom(), "LPI").to_bytes()
    for ours, theirs in zip(read(gzip.compress(plain)), read(plain), strict=True):
        assert np.array_equal(ours.pixels, theirs.pixels) and ours.attributes == theirs.attributes


@pytest.mark.parametrize(
    ("rule", "numbers"), [("middle", [3]), ("every:3", [1, 4]), ("every:100", [3]), ("all", [*range(7)])]
)
def test_slices_are_chosen_by_rule(rule: str, numbers: list[int]) -> None:
    content = nifti(phantom()).to_bytes()
    for found in (read(content, Rules(slices=rule)), volumes.read_mask(content, Rules(slices=rule)).pictures):
        assert [picture.number for picture in found] == numbers


@pytest.mark.parametrize(
    ("values", "dtype", "warnings"),
    [
        (phantom(np.uint8), np.uint8, ()),
        (phantom(np.int16), np.uint16, ()),
        (phantom(np.int32) * 100, np.uint16, ()),
        (phantom(np.float32), np.uint16, ()),
        (phantom(np.float64) - 1024, np.int16, ()),
        (phantom(np.int16) - 1024, np.int16, ()),
        (phantom(np.float32) - 1000.25, np.int16, ()),
        (phantom(np.float32) * 0.37 - 3, np.uint16, ("rescaled",)),
        (phantom(np.int32) * 1000, np.uint16, ("rescaled",)),
    ],
)
def test_values_keep_their_meaning(values: NDArray[Any], dtype: type, warnings: tuple[str, ...]) -> None:
    decoded = volumes.read(nifti(values).to_bytes(), ALL)
    assert decoded.warnings == warnings
    stored = np.stack([picture.pixels for picture in decoded.pictures])
    given = np.stack([values[::-1, ::-1, number].T for number in range(7)]).astype(np.float64)
    assert stored.dtype == dtype
    if warnings:
        given = np.clip(given, 0, None) * 65535 / given.max()
    assert np.abs(stored - given).max() <= 0.5


def test_slope_and_intercept_are_applied() -> None:
    image = nifti(phantom(np.int16))
    image.header.set_slope_inter(2.0, -1024.0)
    (picture,) = read(image.to_bytes(), Rules())
    assert picture.pixels.dtype == np.int16
    assert np.array_equal(picture.pixels, phantom()[::-1, ::-1, 3].T * 2 - 1024)


def test_what_is_not_finite_is_black() -> None:
    values = phantom(np.float32)
    values[0, 0, 3], values[1, 0, 3], values[2, 0, 3] = np.nan, np.inf, -np.inf
    (picture,) = read(nifti(values).to_bytes(), Rules())
    assert picture.pixels.dtype == np.uint16 and np.array_equal(picture.pixels, phantom()[::-1, ::-1, 3].T)


def test_pixels_become_squares_and_say_how() -> None:
    image = nifti(phantom(), zooms=(1.0, 2.0, 5.0))
    (picture,) = read(image.to_bytes(), Rules())
    (mask,) = volumes.read_mask(image.to_bytes(), Rules()).pictures
    assert picture.pixels.shape == mask.pixels.shape == (20, 12)
    assert picture.scale == mask.scale == (2.0, 1.0)
    assert picture.attributes["pixel_spacing_mm"] == "1" and picture.attributes["slice_thickness_mm"] == "5"
    image.header.set_xyzt_units("meter")
    refused(image.to_bytes(), reasons.GEOMETRY)  # pixels of two metres


def test_longest_side_holds_for_slices_and_masks() -> None:
    content = nifti(np.kron(phantom(), np.ones((10, 10, 1), np.int16))).to_bytes()
    rules = Rules(longest_side=60)
    (picture,), (mask,) = read(content, rules), volumes.read_mask(content, rules).pictures
    assert picture.pixels.shape == mask.pixels.shape == (50, 60) and picture.scale == mask.scale == (0.5, 0.5)
    assert picture.attributes["pixel_spacing_mm"] == "2" and int(mask.pixels.max()) == 1


def test_one_slice_and_one_moment_are_taken() -> None:
    flat = nibabel.Nifti1Image(phantom()[:, :, 3], np.eye(4))
    assert np.array_equal(read(flat.to_bytes())[0].pixels, phantom()[::-1, ::-1, 3].T)
    assert len(read(nibabel.Nifti1Image(phantom()[..., None], np.eye(4)).to_bytes())) == 7


def test_texts_of_the_header_stay_behind() -> None:
    image = nifti(phantom())
    for name in ("descrip", "aux_file", "intent_name", "db_name"):
        image.header[name] = MARKER
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", MARKER * 9))
    content = image.to_bytes()
    assert content.count(MARKER) == 13
    decoded = volumes.read(content, ALL)
    for picture in decoded.pictures:
        assert MARKER not in picture.pixels.tobytes() and MARKER.decode() not in str(dict(picture.attributes))
    assert MARKER.decode() not in str(decoded.warnings) + str(vars(decoded.identity))


def altered(offset: int, form: str, *values: Any) -> bytes:
    content = bytearray(nifti(phantom()).to_bytes())
    struct.pack_into(form, content, offset, *values)
    return bytes(content)


def test_headers_that_lie_are_refused() -> None:
    for dim in ((3, 12, 10, 700), (3, 12, 0, 7), (3, -1, 10, 7), (0, 0, 0, 0), (9, 1, 1, 1), (1, 840, 1, 1)):
        refused(altered(40, "<4h", *dim), reasons.DAMAGED)
    refused(altered(40, "<5h", 4, 12, 10, 1, 7), reasons.SERIES)
    refused(altered(40, "<4h", 3, 32767, 32767, 32767), reasons.LARGE)
    refused(altered(70, "<2h", 99, 16), reasons.DAMAGED)  # no such datatype
    refused(altered(70, "<2h", 32, 64), reasons.DATATYPE)  # complex
    refused(altered(70, "<2h", 128, 24), reasons.DATATYPE)  # RGB
    for offset in (0.0, -5.0, float("nan"), float("inf"), 3e38):
        refused(altered(108, "<f", offset), reasons.LARGE if offset == 3e38 else reasons.DAMAGED)
    for row in ((0.0, 0.0, 0.0, 0.0), (float("nan"), 0.0, 0.0, 0.0), (1e30, 0.0, 0.0, 0.0)):
        refused(altered(280, "<4f", *row), reasons.GEOMETRY)
    refused(altered(344, "<4s", b"ni1\0"), reasons.PAIR)
    whole = nifti(phantom()).to_bytes()
    for length in (352, 400, len(whole) - 1):
        refused(whole[:length], reasons.DAMAGED)


def test_every_damaged_bit_of_a_gzip_is_noticed() -> None:
    noise = np.random.default_rng(0).integers(0, 1000, (8, 8, 8), dtype=np.int16)
    packed = gzip.compress(nifti(noise).to_bytes(), mtime=0)
    assert len(read(packed)) == 8
    for place in range(len(packed) // 2, len(packed)):
        damaged = bytearray(packed)
        damaged[place] ^= 4
        if place != len(packed) - 9:  # the last bits of the stream may be padding
            refused(bytes(damaged), reasons.DAMAGED)
    for length in (len(packed) // 2, len(packed) - 9, len(packed) - 1):
        refused(packed[:length], reasons.DAMAGED)


def test_an_empty_volume_of_fractions_is_refused() -> None:
    refused(nifti(np.full((4, 4, 4), -0.5, np.float32)).to_bytes(), reasons.VALUES)


def test_what_is_too_much_is_refused() -> None:
    content = nifti(phantom()).to_bytes()
    refused(content, reasons.FRAMES, Rules(largest_frames=6))
    wide = nifti(np.zeros((64, 64, 2), np.uint8)).to_bytes()
    refused(wide, reasons.PIXELS, Rules(largest_pixels=1024))


def test_a_gzip_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one whose header is honest nothing is, of one whose header lies no more than it says."""
    packer = zlib.compressobj(9, wbits=31)
    header = altered(40, "<4h", 3, 32000, 32000, 10)
    bomb = packer.compress(header) + b"".join(packer.compress(bytes(1 << 20)) for _ in range(64)) + packer.flush()
    unpacked = 0
    original = gzip.GzipFile.read

    def counted(self: gzip.GzipFile, size: int | None = -1) -> bytes:
        nonlocal unpacked
        data = original(self, size)
        unpacked += len(data)
        return data

    monkeypatch.setattr(gzip.GzipFile, "read", counted)
    refused(bomb, reasons.LARGE)
    assert unpacked < 1000
    lying = gzip.compress(nifti(phantom()).to_bytes() + bytes(1 << 26))
    refused(lying, reasons.DAMAGED)
    assert unpacked < 100_000
