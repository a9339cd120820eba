"""Every DICOM file of pydicom and pydicom-data: imported or refused by a named rule, and decoded as pydicom does."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from client.ingest import dicom_decode, dicom_reasons
from client.ingest.dicom import read
from client.ingest.dicom_decode import codestream_shape
from client.ingest.kinds import Refused, Rules
from tests.unit.dicom_objects import real, real_files

ROOT = Path(__file__).parents[2]
_NOT_DECODED_HERE = {
    "badVR.dcm",  # NumberOfFrames is 1A
    "JPEG-lossy.dcm",  # JPEG Extended, 12 bits
    "JPGExtended.dcm",  # JPEG Extended, 12 bits
    "JPEG2000-embedded-sequence-delimiter.dcm",  # damaged
    "MR_truncated.dcm",  # damaged
}
"""What has pixels of which no decoder, pydicom's own included, makes anything."""


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, about its own files
        yield


def ours(dataset: pydicom.Dataset) -> list[NDArray[Any]]:
    rules = Rules()
    syntax = dicom_decode.transfer_syntax(dataset)
    count = dicom_decode.check_shape(dataset, rules)
    return list(dicom_decode.frames(dataset, syntax, count, range(count)))


def theirs(dataset: pydicom.Dataset) -> NDArray[Any] | None:
    try:
        array: NDArray[Any] = dataset.pixel_array
    except Exception:
        return None
    return array


def test_every_file_is_imported_or_refused_by_a_named_rule(capsys: pytest.CaptureFixture[str]) -> None:
    known = {reason.code for reason in dicom_reasons.ALL}
    counted: Counter[str] = Counter()
    for path in real_files():
        try:
            decoded = read(path.read_bytes(), Rules())
            assert decoded.pictures or decoded.masks, path.name
            counted["decoded"] += 1
        except Refused as refused:
            assert refused.reason.code in known
            assert refused.__context__ is None  # nothing of the file hangs on to it
            counted[refused.reason.code] += 1
    with capsys.disabled():
        print("\n" + "\n".join(f"{number:5d} {code}" for code, number in counted.most_common()))
    assert counted["decoded"] >= 70
    assert counted["dicom-unreadable"] == 0


@pytest.mark.slow
def test_the_decode_stage_is_equal_to_pydicom_pixel_by_pixel() -> None:
    compared, missed = 0, set()
    for path in real_files():
        dataset = pydicom.dcmread(path, force=True)
        if not dicom_decode.has_pixels(dataset) or "Rows" not in dataset:
            continue
        expected = theirs(dataset)
        try:
            found = ours(dataset)
        except Exception:
            found = []
        if expected is None or not found:
            # OT-PAL-8-face.dcm has no Transfer Syntax UID: read here, not by pydicom
            missed |= {path.name} if not found else set()
            continue
        frames = expected if len(found) > 1 else expected[None]
        assert len(frames) == len(found), path.name
        for one, other in zip(frames, found, strict=True):
            np.testing.assert_array_equal(one, other, err_msg=path.name)
            assert one.dtype.newbyteorder("=") == other.dtype, path.name
        compared += 1
    assert compared >= 150
    assert missed == _NOT_DECODED_HERE


@pytest.mark.parametrize("name", ["emri_small_jpeg_2k_lossless.dcm", "emri_small_RLE.dcm", "emri_small.dcm"])
def test_one_frame_of_many_is_that_frame(name: str) -> None:
    dataset = pydicom.dcmread(real(name))
    everything = dataset.pixel_array
    syntax = dicom_decode.transfer_syntax(dataset)
    for wanted in (range(1), range(5, 6), range(9, 10)):
        (found,) = dicom_decode.frames(dataset, syntax, 10, wanted)
        np.testing.assert_array_equal(found, everything[wanted[0]])


def test_the_decoders_named_are_there_and_nothing_is_under_the_gpl() -> None:
    from importlib.metadata import distributions

    from pydicom.pixels import get_decoder

    for syntax, plugin in dicom_decode.DECODERS.items():
        assert not plugin or plugin in get_decoder(syntax).available_plugins
    assert "pylibjpeg-libjpeg" not in {found.name for found in distributions()}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("SC_rgb_jpeg_dcmtk.dcm", (100, 100, 8)),
        ("JPEG-lossy.dcm", (1024, 256, 12)),
        ("JPEG-LL.dcm", (1024, 256, 16)),
        ("MR_small_jpeg_ls_lossless.dcm", (64, 64, 16)),
        ("JPEG2000.dcm", (1024, 256, 16)),
        ("693_J2KI.dcm", (512, 512, 16)),
    ],
)
def test_a_codestream_states_its_own_size(name: str, shape: tuple[int, int, int]) -> None:
    dataset = pydicom.dcmread(real(name))
    frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
    assert codestream_shape(frame) == shape
    for length in (0, 1, 3, 9, 20, 40):
        assert isinstance(codestream_shape(frame[:length]), tuple)


def test_a_small_file_with_a_huge_compressed_image_is_refused_before_it_is_decoded() -> None:
    dataset = pydicom.dcmread(real("JPEG2000.dcm"))
    dataset.Modality, dataset.SOPClassUID = "CR", "1.2.840.10008.5.1.4.1.1.1"
    data = bytearray(dataset.PixelData)
    start = data.index(b"\xff\x4f\xff\x51")
    data[start + 8 : start + 16] = (60_000).to_bytes(4, "big") * 2
    dataset.PixelData = bytes(data)
    with pytest.raises(Refused) as caught:
        ours(dataset)
    assert caught.value.reason.code == "size-mismatch"


def test_every_codec_works_in_a_process_that_can_open_no_file() -> None:
    """As the child does it: all that decoding needs is loaded before."""
    names = ("SC_rgb_jpeg_dcmtk", "JPEG-LL", "MR_small_jpeg_ls_lossless", "JPEG2000", "MR_small_RLE", "image_dfl")
    script = """
import resource, sys, warnings
from pathlib import Path
import io, pydicom
from client.ingest import dicom_decode
from client.ingest.kinds import Rules
warnings.simplefilter("ignore")
contents = [Path(name).read_bytes() for name in sys.argv[1:]]
resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
for content in contents:
    dataset = pydicom.dcmread(io.BytesIO(content))
    print(len(list(dicom_decode.frames(dataset, dicom_decode.transfer_syntax(dataset), 1, range(1)))))
"""
    command = [sys.executable, "-c", script, *(str(real(f"{name}.dcm")) for name in names)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert finished.stdout.split() == ["1"] * len(names), finished.stderr
