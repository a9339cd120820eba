"""Real files of every format, broken in every way: each is decoded within the rules or refused, and nothing hangs."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from client.ingest import reasons
from client.ingest.child import Role
from client.ingest.kinds import Decoded, Refused, Rules
from client.ingest.pool import Job, Pool

RULES = Rules(slices="all", seconds=5.0, memory_mib=1024, largest_pixels=1_000_000, largest_frames=64)
DICOM = Path(pydicom.__file__).parent / "data" / "test_files"
OBJECTS = (
    "CT_small.dcm",
    "MR_small_RLE.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_implicit.dcm",
    "MR_small_jp2klossless.dcm",
    "MR_small_jpeg_ls_lossless.dcm",
    "emri_small_RLE.dcm",
    "liver_1frame.dcm",
    "no_meta.dcm",
    "rtplan.dcm",
)
UNEXPECTED = (reasons.FAILED, reasons.NONSENSE, reasons.TIMEOUT)
"""What the sandbox says where a reader has let something through."""


def picture(kind: str, **options: Any) -> bytes:
    rng = np.random.default_rng(0)
    deep = kind in ("PNG", "TIFF", "JPEG2000")
    pixels = rng.integers(0, 2**16 if deep else 256, (24, 20), dtype=np.uint16 if deep else np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def pages() -> bytes:
    return picture("TIFF", save_all=True, append_images=[Image.new("I;16", (9, 9))], compression="tiff_lzw")


def volume(kind: Any) -> bytes:
    content: bytes = kind(np.arange(600, dtype=np.int16).reshape(10, 10, 6), np.diag([1, -2, 3, 1])).to_bytes()
    return content


def arrays() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, images=np.arange(300, dtype=np.uint16).reshape(3, 10, 10), labels=["a", "b", "c"])
    return stream.getvalue()


def array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros((3, 8, 8), np.uint8))
    return stream.getvalue()


FILES = {
    **{kind: picture(kind) for kind in ("PNG", "JPEG", "TIFF", "BMP", "PPM", "WEBP", "GIF", "JPEG2000")},
    "pages": pages(),
    "nifti1": volume(nibabel.Nifti1Image),
    "nifti2": volume(nibabel.Nifti2Image),
    "nifti.gz": gzip.compress(volume(nibabel.Nifti1Image)),
    "npz": arrays(),
    "npy": array(),
    **{name: (DICOM / name).read_bytes() for name in OBJECTS if (DICOM / name).is_file()},
}


@dataclass(frozen=True)
class Broken:
    """A file with a few bytes changed, mostly near its start, where formats make their promises; or cut, or grown."""

    name: str
    changes: tuple[tuple[int, bytes], ...]
    end: int | None
    more: bytes
    resumes: bool

    def content(self) -> bytes:
        whole = bytearray(FILES[self.name])
        for place, value in self.changes:
            whole[place % len(whole) : place % len(whole) + len(value)] = value
        if self.end is None:
            return bytes(whole)
        end = self.end % len(whole)
        return bytes(whole[:end] + self.more + (whole[end:] if self.resumes else b""))


places = st.integers(0, 600) | st.integers(0, 2**17)
values = st.builds(
    lambda value, width: value * width,
    st.sampled_from((b"\0", b"\xff", b"\x7f", b"\x80")) | st.binary(min_size=1, max_size=1),
    st.sampled_from((1, 2, 4)),
)
broken = st.builds(
    Broken,
    st.sampled_from(sorted(FILES)),
    st.lists(st.tuples(places, values), max_size=6).map(tuple),
    st.none() | places,
    st.binary(max_size=8),
    st.booleans(),
)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(RULES) as single:
        yield single


def test_unbroken_files_are_what_they_are(pool: Pool) -> None:
    results = {job.key: result for job, result in pool.results(Job(name, content) for name, content in FILES.items())}
    decoded = {name for name, result in results.items() if isinstance(result, Decoded)}
    assert decoded >= set(FILES) - set(OBJECTS) | set(OBJECTS[:6]) and len(FILES) >= 22


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=broken, role=st.sampled_from(("image", "image", "mask", "identity")))
def test_broken_files_are_decoded_within_the_rules_or_refused(pool: Pool, file: Broken, role: Role) -> None:
    ((_, result),) = pool.results([Job(0, file.content(), role)])
    if isinstance(result, Refused):
        assert result.reason not in UNEXPECTED
        return
    for one in result.pictures:
        height, width = one.pixels.shape[:2]
        assert 1 <= height * width <= 1.05 * RULES.largest_pixels
        assert one.pixels.dtype in (np.uint8, np.uint16, np.int16) and one.number < RULES.largest_frames
        assert role != "mask" or int(one.pixels.max()) <= 1


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.sampled_from(sorted(FILES)), length=st.integers(0, 140), rest=st.binary(max_size=400))
def test_the_start_of_a_file_and_then_anything(pool: Pool, start: str, length: int, rest: bytes) -> None:
    ((_, result),) = pool.results([Job(0, FILES[start][:length] + rest)])
    assert isinstance(result, Decoded) or result.reason not in UNEXPECTED
