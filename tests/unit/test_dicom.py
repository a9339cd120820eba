"""The DICOM reader: what it takes, what it refuses and in which words, and that nothing hostile gets past it."""

from __future__ import annotations

import io
import pickle
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import uid
from pydicom.dataset import Dataset

from client.ingest import dicom_reasons
from client.ingest.dicom import identify, read
from client.ingest.kinds import ATTRIBUTES, Refused, Rules
from common.randomness import generator
from tests.unit.dicom_objects import CT, MR, SC, US, code_of, content, dataset, decoded, real

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, while a test writes what it should not
        yield


# --- what is taken --------------------------------------------------------------------------------------


def test_a_plain_image() -> None:
    result = decoded(dataset(GREY, PatientID="  ID 7\0", AccessionNumber="A9"))
    identity = result.identity
    assert (identity.patient, identity.sop, identity.study, identity.series, identity.accession) == (
        "ID 7",
        "1.2.3.4",
        "1.2.3",
        "1.2.3.1",
        "A9",
    )
    (picture,) = result.pictures
    np.testing.assert_array_equal(picture.pixels, GREY)
    assert (picture.number, picture.scale, result.masks, result.warnings) == (0, (1.0, 1.0), (), ())
    assert "frame" not in picture.attributes
    assert set(picture.attributes) <= set(ATTRIBUTES)


def test_a_patient_is_not_required_here() -> None:
    made = dataset(GREY)
    del made.PatientID
    assert decoded(made).identity.patient == ""


@pytest.mark.parametrize("name", ["MR_small_implicit.dcm", "MR_small_bigendian.dcm", "CT_small.dcm"])
def test_without_preamble_and_file_meta(name: str) -> None:
    whole = read(real(name).read_bytes(), Rules())
    made = pydicom.dcmread(real(name))
    implicit, little = made.original_encoding
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, Dataset(made), implicit_vr=bool(implicit), little_endian=bool(little))
    assert buffer.getvalue()[128:132] != b"DICM"
    bare = read(buffer.getvalue(), Rules())
    assert bare.identity == whole.identity == identify(buffer.getvalue())
    np.testing.assert_array_equal(bare.pictures[0].pixels, whole.pictures[0].pixels)
    assert bare.pictures[0].attributes == whole.pictures[0].attributes


def test_identify_is_what_read_says_and_stops_before_the_pixels(tmp_path: Path) -> None:
    for name in ("MR_small.dcm", "RG3_J2KI.dcm", "emri_small_RLE.dcm", "liver.dcm"):
        whole = real(name).read_bytes()
        expected = read(whole, Rules()).identity
        at = whole.rindex(b"\xe0\x7f\x10\x00")
        path = tmp_path / name
        path.write_bytes(whole)
        for source in (whole, whole[: at + 12], memoryview(whole), bytearray(whole), path):
            assert identify(source) == expected


def test_warnings() -> None:
    assert decoded(dataset(GREY, LossyImageCompression="01", RecognizableVisualFeatures="YES")).warnings == (
        "lossy",
        "recognisable-face",
    )


def test_what_is_decoded_can_be_pickled_and_shows_nothing() -> None:
    made = decoded(dataset(GREY, PatientID="secret-number"))
    assert "secret" not in repr(made)
    assert pickle.loads(pickle.dumps(made)).identity == made.identity


# --- what is refused ------------------------------------------------------------------------------------


def without(made: Any, *keywords: str) -> Any:
    for keyword in keywords:
        delattr(made, keyword)
    return made


def syntax(made: Any, value: str) -> bytes:
    """``made`` as a file that states another transfer syntax than it has."""
    whole = content(made)
    stated = uid.ExplicitVRLittleEndian.encode() + b"\0"
    padded = value.encode() + b"\0" * (len(value) % 2)
    at = whole.index(b"UI" + struct.pack("<H", len(stated)) + stated)
    group = struct.pack("<I", struct.unpack_from("<I", whole, 140)[0] + len(padded) - len(stated))
    return (
        whole[:140]
        + group
        + whole[144 : at + 2]
        + struct.pack("<H", len(padded))
        + padded
        + whole[at + 4 + len(stated) :]
    )


def compressed(frame: bytes, stated: str, **tags: Any) -> bytes:
    """An image whose pixel data is the one encapsulated ``frame``."""
    made = dataset(GREY, **tags)
    made.PixelData = pydicom.encaps.encapsulate([frame])
    made["PixelData"].is_undefined_length = True
    made["PixelData"].VR = "OB"
    made.file_meta.TransferSyntaxUID = uid.UID(stated)
    return content(made)


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (b"", "not-dicom"),
        (b"\x89PNG\r\n" + b"\0" * 200, "not-dicom"),
        (b"\0" * 500, "not-dicom"),
        (b"\x08\x00", "dicom-unreadable"),
        (b"\0" * 128 + b"DICM", "dicom-unreadable"),
        (b"\0" * 128 + b"DICM" + b"\xff" * 100, "dicom-unreadable"),
        (without(dataset(GREY), "PixelData"), "no-pixel-data"),
        (dataset(GREY, PixelData=b""), "no-pixel-data"),
        (without(dataset(GREY), "SOPInstanceUID"), "no-sop-instance-uid"),
        (dataset(GREY, SOPInstanceUID=""), "no-sop-instance-uid"),
        (without(dataset(GREY), "SOPClassUID"), "unknown-object"),
        (dataset(GREY, SOPClassUID="1.3.12.2.1107.5.9.1"), "unknown-object"),
        (dataset(GREY, SOPClassUID="1.2.840.10008.5.1.4.1.1.104.1"), "not-an-image"),
        (dataset(GREY, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11"), "not-an-image"),
        (dataset(GREY, SOPClassUID="1.2.840.10008.5.1.4.1.1.481.2"), "not-an-image"),
        (dataset(GREY, SOPClassUID="1.2.840.10008.5.1.4.1.1.11.1"), "not-an-image"),
        (dataset(GREY, SOPClassUID="1.2.840.10008.5.1.4.1.1.77.1.1.1"), "video"),
        (syntax(dataset(GREY), "1.2.840.10008.1.2.4.102"), "video"),
        (syntax(dataset(GREY), "1.2.840.10008.1.2.4.94"), "unsupported-compression"),
        (syntax(dataset(GREY), "1.2.3.4.5"), "unsupported-compression"),
        (dataset(GREY, NumberOfFrames=5000), "too-many-frames"),
        (dataset(GREY, Rows=65535, Columns=65535), "too-many-pixels"),
        (dataset(GREY, Rows=0), "bad-dimensions"),
        (without(dataset(GREY), "Columns"), "bad-dimensions"),
        (dataset(GREY, SamplesPerPixel=0), "bad-dimensions"),
        (dataset(GREY, BitsStored=9), "bad-dimensions"),
        (dataset(GREY, HighBit=5), "bad-dimensions"),
        (dataset(GREY, Rows=17), "undecodable-pixels"),
        (dataset(GREY, BitsAllocated=32, BitsStored=32), "unsupported-depth"),
        (dataset(GREY, BitsAllocated=1, BitsStored=1), "unsupported-depth"),
        (compressed(b"\xff\xd8\xff\xd9", uid.JPEGBaseline8Bit), "undecodable-pixels"),
        (compressed(b"nonsense", uid.JPEG2000), "undecodable-pixels"),
        (compressed(b"\0" * 64, uid.RLELossless), "undecodable-pixels"),
        (compressed(b"\0\0", uid.JPEGLSLossless), "undecodable-pixels"),
        (dataset(GREY, BurnedInAnnotation="YES"), "burned-in-text"),
        (dataset(GREY, "US", US, BurnedInAnnotation="yes "), "burned-in-text"),
        (dataset(GREY, "US", US), "burned-in-unknown"),
        (dataset(GREY, "OT"), "burned-in-unknown"),
        (dataset(GREY, ""), "burned-in-unknown"),
        (dataset(GREY, "CT", SC), "burned-in-unknown"),
        (dataset(GREY, "CT", SC, BurnedInAnnotation="MAYBE"), "burned-in-unknown"),
        (dataset(GREY, ConversionType="DF"), "burned-in-unknown"),
        (dataset(GREY, "MR", MR, ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]), "burned-in-unknown"),
        (dataset(GREY, "US", US, BurnedInAnnotation="NO"), ""),
    ],
)
def test_refusals(source: Any, code: str) -> None:
    assert code_of(source) == code


def test_number_of_frames() -> None:
    for written in (b"1A", b"-1", b"0 ", b"1.5 ", b"1e", b"99999999999999999999"):
        whole = content(dataset(GREY, NumberOfFrames=77))
        at = whole.index(b"IS\x02\x0077") + 4
        padded = written + b" " * (len(written) % 2)
        changed = whole[: at - 2] + struct.pack("<H", len(padded)) + padded + whole[at + 2 :]
        assert code_of(changed) == ("too-many-frames" if len(written) > 10 else "bad-number-of-frames"), written
    assert code_of(dataset(GREY, NumberOfFrames=None)) == ""


def test_a_transfer_syntax_that_is_missing_is_told_only_where_it_can_be() -> None:
    told = dataset(GREY)
    del told.file_meta
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, told, implicit_vr=False, little_endian=True)
    assert code_of(buffer.getvalue()) == ""
    told.Rows = 15  # as if it were compressed, or cut
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, told, implicit_vr=False, little_endian=True)
    assert code_of(buffer.getvalue()) == "no-transfer-syntax"


def test_every_reason_is_one_line_of_fixed_words_with_a_remedy() -> None:
    codes = [reason.code for reason in dicom_reasons.ALL]
    assert len(set(codes)) == len(codes) >= 25
    for reason in dicom_reasons.ALL:
        assert reason.stage in ("parse", "decode", "pixels", "deidentify")
        assert reason.reason and reason.remedy and "\n" not in reason.reason + reason.remedy


# --- hostile --------------------------------------------------------------------------------------------


def explicit(group: int, element: int, vr: bytes, value: bytes, length: int | None = None) -> bytes:
    """One element in Explicit VR Little Endian, with a long length."""
    return struct.pack("<HH2s2xI", group, element, vr, len(value) if length is None else length) + value


def spliced(element: bytes) -> bytes:
    """A good file with ``element`` put just before its pixels."""
    whole = content(dataset(GREY))
    at = whole.rindex(b"\xe0\x7f\x10\x00")
    return whole[:at] + element + whole[at:]


@pytest.mark.parametrize("depth", [3, 200, 5000])
def test_nested_sequences(depth: int) -> None:
    nested = b""
    for _ in range(depth):
        inner = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + nested + b"\xfe\xff\x0d\xe0\0\0\0\0"
        nested = explicit(0x0009, 0x1001, b"SQ", inner + b"\xfe\xff\xdd\xe0\0\0\0\0", 0xFFFFFFFF)
    assert code_of(spliced(nested)) in ("", "dicom-unreadable")


@pytest.mark.parametrize("vr", [b"OB", b"UN", b"SQ", b"UT", b"OW"])
def test_lengths_that_lie(vr: bytes) -> None:
    for length in (0xFFFFFFF0, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 20):
        assert code_of(spliced(explicit(0x0009, 0x1001, vr, b"abcd", length))) != ""


def test_charsets_that_do_not_exist() -> None:
    for charset in ("ISO_IR 999", "\\\\", "../etc/passwd", "ISO 2022 IR 6\\ISO 2022 IR 999"):
        made = content(dataset(GREY, PatientID="P", PatientName="N")).replace(b"P ", b"\x1b$")
        at = made.index(b"\x08\x00\x16\x00")  # before SOP Class UID
        padded = charset.encode() + b" " * (len(charset) % 2)
        changed = made[:at] + struct.pack("<HH2sH", 8, 5, b"CS", len(padded)) + padded + made[at:]
        assert code_of(changed) in ("", "dicom-unreadable")


def test_more_frames_stated_than_there_are() -> None:
    assert code_of(dataset(GREY, NumberOfFrames=4000)) == "undecodable-pixels"
    made = pydicom.dcmread(real("emri_small_jpeg_2k_lossless.dcm"))
    made.NumberOfFrames = 4000
    assert code_of(made) == "undecodable-pixels"


def _accepted_or_refused(changed: bytes) -> None:
    for action in (lambda: read(changed, Rules(largest_pixels=1_000_000)), lambda: identify(changed)):
        try:
            action()
        except Refused as refused:
            assert refused.reason in dicom_reasons.ALL
            assert refused.__context__ is None and refused.__cause__ is None


FUZZED = [
    real(name).read_bytes()
    for name in ("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_implicit.dcm", "liver_1frame.dcm", "emri_small_RLE.dcm")
] + [content(dataset(GREY, "CT", CT, RescaleSlope=1, RescaleIntercept=0, WindowCenter=1, WindowWidth=9))]


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    which=st.integers(0, len(FUZZED) - 1),
    flips=st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 255)), max_size=6),
    cut=st.none() | st.integers(0, 1 << 30),
    head=st.booleans(),
)
def test_bytes_flipped_or_cut_off_are_decoded_or_refused(
    which: int, flips: list[tuple[int, int]], cut: int | None, head: bool
) -> None:
    changed = bytearray(FUZZED[which])
    reach = min(len(changed), 3000) if head else len(changed)
    for at, value in flips:
        changed[at % reach] = value
    _accepted_or_refused(bytes(changed[: cut % len(changed)] if cut is not None else changed))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["JPEG2000.dcm", "MR_small_jpeg_ls_lossless.dcm", "SC_rgb_jpeg_dcmtk.dcm", "JPEG-LL.dcm"]
)
def test_damaged_compressed_pixels_are_decoded_or_refused(name: str) -> None:
    made = pydicom.dcmread(real(name))
    made.BurnedInAnnotation = "NO"
    whole, random = content(made), generator("dicom fuzz", len(name))
    start = whole.rindex(b"\xe0\x7f\x10\x00")
    for _ in range(100):
        changed = bytearray(whole)
        for at in random.integers(start, len(changed), 4):
            changed[at] = int(random.integers(0, 256))
        _accepted_or_refused(bytes(changed))
