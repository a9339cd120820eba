"""From a DICOM object's pixel data to arrays of stored values, one frame at a time.

One decoder for each transfer syntax, named here, so that what comes out does not depend on what else is installed:

==========================  ==========================================================
uncompressed, deflated      pydicom
RLE                         pydicom
JPEG baseline, extended     Pillow (libjpeg-turbo); extended only with 8 bits
JPEG lossless               GDCM (BSD)
JPEG-LS                     pyjpegls (MIT; CharLS, BSD)
JPEG 2000, HTJ2K            pylibjpeg-openjpeg (MIT; OpenJPEG, BSD)
==========================  ==========================================================

Nothing here is under the GPL, which is why 12-bit JPEG Extended is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames, get_frame
from pydicom.pixels.decoders.base import Decoder, get_decoder

from client.ingest import dicom_reasons as reasons
from client.ingest.dicom_tags import raw_value, whole
from client.ingest.kinds import Refused, Rules

Image.preinit()  # Pillow would load its readers on first use, when a child can open no file any more

_JPEG = ("pillow", (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit))
_LOSSLESS = ("gdcm", (uid.JPEGLossless, uid.JPEGLosslessSV1))
_JPEG_LS = ("pyjpegls", (uid.JPEGLSLossless, uid.JPEGLSNearLossless))
_JPEG_2000 = ("pylibjpeg", (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K))
_RLE = ("pydicom", (uid.RLELossless,))  # pylibjpeg-rle is ten times as fast and panics on damaged segments
_NATIVE = (
    "",
    (
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
    ),
)
DECODERS = {
    str(syntax): plugin
    for plugin, syntaxes in (_NATIVE, _RLE, _JPEG, _LOSSLESS, _JPEG_LS, _JPEG_2000)
    for syntax in syntaxes
}
"""Transfer Syntax UID to the name of pydicom's decoding plugin; empty for uncompressed pixels."""

LOSSY = frozenset({uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless})
"""Transfer syntaxes that always lose something; JPEG 2000 (.91, .203) may or may not."""

_VIDEO = ("1.2.840.10008.1.2.4.10", "1.2.840.10008.1.2.7.")  # MPEG-2, MPEG-4, HEVC; SMPTE ST 2110
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def has_pixels(dataset: Dataset) -> bool:
    """Whether there are pixels of any kind in ``dataset``."""
    return any(keyword in dataset and dataset[keyword].value for keyword in _PIXELS)


def transfer_syntax(dataset: Dataset) -> uid.UID:
    """How the pixels are encoded: as the file meta information says or, where they are uncompressed, as was found.

    Raises :class:`Refused` for videos, for what none of the decoders reads and where it cannot be told.
    """
    stated = str(raw_value(getattr(dataset, "file_meta", Dataset()), "TransferSyntaxUID") or "")
    if not stated:
        stated = _told(dataset)
    if stated.startswith(_VIDEO):
        raise Refused(reasons.VIDEO)
    if stated not in DECODERS:
        raise Refused(reasons.UNSUPPORTED_SYNTAX)
    return uid.UID(stated)


def _told(dataset: Dataset) -> str:
    """The uncompressed transfer syntax in which pydicom could read the dataset, if its pixels have the right length."""
    implicit, little = dataset.original_encoding
    native = {
        (True, True): uid.ImplicitVRLittleEndian,
        (False, True): uid.ExplicitVRLittleEndian,
        (False, False): uid.ExplicitVRBigEndian,
    }
    found = native.get((bool(implicit), bool(little))) if None not in (implicit, little) else None
    shape = [whole(raw_value(dataset, name)) for name in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated")]
    frames = whole(raw_value(dataset, "NumberOfFrames") or 1)
    if found is None or "PixelData" not in dataset or None in shape or frames is None:
        raise Refused(reasons.NO_SYNTAX)
    expected = frames * int(np.prod([size or 0 for size in shape], dtype=object)) // 8
    if dataset["PixelData"].is_undefined_length or len(dataset.PixelData) not in (expected, expected + 1):
        raise Refused(reasons.NO_SYNTAX)
    return str(found)


def check_shape(dataset: Dataset, rules: Rules) -> int:
    """The number of frames. Nothing is decoded yet.

    Raises :class:`Refused` where the number of frames, the dimensions or the bit depths are missing, impossible or
    beyond the rules.
    """
    frames = 1
    if "NumberOfFrames" in dataset:
        try:
            stated = dataset["NumberOfFrames"].value
        except Exception:
            stated = "?"
        counted = 1 if stated is None or stated == "" else whole(stated)
        if counted is None or counted < 1:
            raise Refused(reasons.BAD_FRAMES)
        frames = counted
    if frames > rules.largest_frames:
        raise Refused(reasons.TOO_MANY_FRAMES)
    rows, columns, samples, allocated, stored = (
        whole(raw_value(dataset, name)) or 0
        for name in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored")
    )
    if rows < 1 or columns < 1 or samples < 1 or allocated < 1:
        raise Refused(reasons.BAD_DIMENSIONS)
    if rows * columns * samples > rules.largest_pixels:
        raise Refused(reasons.TOO_LARGE)
    if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        raise Refused(reasons.UNSUPPORTED_DEPTH)
    highest = whole(raw_value(dataset, "HighBit"))
    if not 1 <= stored <= allocated or (highest is not None and highest != stored - 1):
        raise Refused(reasons.BAD_DIMENSIONS)
    return frames


def frames(dataset: Dataset, syntax: uid.UID, count: int, wanted: Sequence[int]) -> Iterator[NDArray[Any]]:
    """Stored values of the ``wanted`` frames (of ``count``), in ascending order, YBR_FULL as RGB; native byte order.

    Each ``(rows, columns)`` or ``(rows, columns, samples)``, equal to what pydicom's ``pixel_array`` gives. Raises
    :class:`Refused` where the pixels cannot be decoded; the sizes inside compressed frames are checked first.
    """
    decoder, plugin = get_decoder(syntax), DECODERS[str(syntax)]
    if plugin and plugin not in decoder.available_plugins:
        raise Refused(reasons.UNSUPPORTED_SYNTAX)
    everything = len(wanted) == count
    if syntax.is_encapsulated and syntax != uid.RLELossless:
        _check_codestreams(dataset, syntax, count, wanted)
    options: dict[str, Any] = {"decoding_plugin": plugin, "allow_excess_frames": False}
    if dataset.BitsAllocated == 1 and count > 1 and not syntax.is_encapsulated:
        # pydicom 3.0 gives up on single frames that do not begin on a whole byte.
        array = decoder.as_array(dataset, **options)[0]
        yield from (_native(array[index]) for index in wanted)
        return
    if count == 1 or not everything:
        for index in wanted:
            yield _native(decoder.as_array(dataset, index=index, **options)[0])
        return
    # All frames in one pass: asking for the n-th walks over all before it.
    produced = 0
    for array, _ in islice(_iterate(decoder, dataset, options), count):
        produced += 1
        yield _native(array)
    if produced != count:
        raise Refused(reasons.UNDECODABLE)


def _iterate(decoder: Decoder, dataset: Dataset, options: dict[str, Any]) -> Iterator[tuple[NDArray[Any], Any]]:
    return decoder.iter_array(dataset, **options)


def _native(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def _check_codestreams(dataset: Dataset, syntax: uid.UID, count: int, wanted: Sequence[int]) -> None:
    """A small file can hold a huge compressed image, whatever Rows and Columns say: look before decoding."""
    data = dataset.PixelData
    encoded: Iterator[bytes]
    if len(wanted) == count:
        encoded = islice(generate_frames(data, number_of_frames=count), count)
    else:
        encoded = (get_frame(data, index, number_of_frames=count) for index in wanted)
    for frame in encoded:
        rows, columns, bits = codestream_shape(frame)
        if (rows, columns) != (dataset.Rows, dataset.Columns):
            raise Refused(reasons.SIZE_MISMATCH if rows and columns else reasons.UNDECODABLE)
        if syntax == uid.JPEGExtended12Bit and bits != 8:
            raise Refused(reasons.JPEG_12_BIT)


def codestream_shape(frame: bytes) -> tuple[int, int, int]:
    """Rows, columns and bits that a JPEG, JPEG-LS or JPEG 2000 codestream states; zeros where it states none.

    ISO/IEC 10918-1 B.2.2 (SOF), 14495-1 C.2.2 (SOF55), 15444-1 A.5.1 (SIZ, also inside a JP2 file).
    """
    start = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if start >= 0 and not frame.startswith(b"\xff\xd8"):
        columns, rows, left, top = (int.from_bytes(frame[start + at : start + at + 4], "big") for at in (8, 12, 16, 20))
        return rows - top, columns - left, (frame[start + 42 : start + 43] or b"\0")[0] % 128 + 1
    at = 2 if frame.startswith(b"\xff\xd8") else len(frame)
    while at + 9 < len(frame):
        if frame[at] != 0xFF:
            break
        marker = frame[at + 1]
        if marker == 0xFF or 0xD0 <= marker <= 0xD8 or marker == 0x01:  # fill byte, or a marker without a segment
            at += 1 if marker == 0xFF else 2
            continue
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            high, wide = frame[at + 5 : at + 7], frame[at + 7 : at + 9]
            return int.from_bytes(high, "big"), int.from_bytes(wide, "big"), frame[at + 4]
        if marker in (0xD9, 0xDA):
            break
        at += 2 + max(2, int.from_bytes(frame[at + 2 : at + 4], "big"))
    return 0, 0, 0
