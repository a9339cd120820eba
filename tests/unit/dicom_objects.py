"""DICOM objects made for tests, and the real ones that come with pydicom and pydicom-data."""

from __future__ import annotations

import functools
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pydicom
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset

from client.ingest.dicom import read
from client.ingest.kinds import Decoded, Refused, Rules

T = TypeVar("T")

CR = "1.2.840.10008.5.1.4.1.1.1"
CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
US = "1.2.840.10008.5.1.4.1.1.6.1"
SC = "1.2.840.10008.5.1.4.1.1.7"
SEG = "1.2.840.10008.5.1.4.1.1.66.4"


def _quiet(function: Callable[..., T]) -> Callable[..., T]:
    """Without pydicom's warnings about what tests write on purpose."""

    @functools.wraps(function)
    def quiet(*positional: Any, **named: Any) -> T:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return function(*positional, **named)

    return quiet


@_quiet
def dataset(pixels: NDArray[Any], modality: str = "CR", sop_class: str = CR, **tags: Any) -> FileDataset:
    """An uncompressed image of ``pixels`` ``(H, W)``, ``(frames, H, W)`` or ``(H, W, 3)``; ``tags`` by keyword."""
    made = FileDataset(None, {}, preamble=b"\0" * 128)
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = sop_class
    made.SOPClassUID = sop_class
    made.SOPInstanceUID, made.StudyInstanceUID, made.SeriesInstanceUID = "1.2.3.4", "1.2.3", "1.2.3.1"
    made.PatientID, made.Modality = "P-1", modality
    colour = pixels.ndim == 3 and pixels.shape[2] == 3
    made.SamplesPerPixel = 3 if colour else 1
    made.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        made.PlanarConfiguration = 0
    elif pixels.ndim == 3:
        made.NumberOfFrames = len(pixels)
    made.Rows, made.Columns = pixels.shape[:2] if colour or pixels.ndim == 2 else pixels.shape[1:]
    bits = 8 * pixels.dtype.itemsize
    made.BitsAllocated, made.BitsStored, made.HighBit = bits, bits, bits - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    data = pixels.tobytes()
    made.PixelData = data + b"\0" * (len(data) % 2)
    made["PixelData"].VR = "OW" if bits > 8 else "OB"
    for keyword, value in tags.items():
        setattr(made, keyword, value)
        if keyword == "BitsStored":
            made.HighBit = value - 1
    return made


@_quiet
def content(made: Dataset, **options: Any) -> bytes:
    """``made`` as the bytes of a file."""
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, made, enforce_file_format=False, **options)
    return buffer.getvalue()


@_quiet
def item(**tags: Any) -> Dataset:
    """A sequence item."""
    made = Dataset()
    for keyword, value in tags.items():
        setattr(made, keyword, value)
    return made


def decoded(made: Dataset, **rules: Any) -> Decoded:
    """``made`` written and read."""
    return read(content(made), Rules(**rules))


def pixels_of(made: Dataset, **rules: Any) -> NDArray[Any]:
    """The pixels of the first picture of ``made``, written and read."""
    return decoded(made, **rules).pictures[0].pixels


def code_of(source: bytes | Dataset, **rules: Any) -> str:
    """The code that ``source`` is refused with; empty where it is not."""
    try:
        read(source if isinstance(source, bytes) else content(source), Rules(**rules))
    except Refused as refused:
        return refused.reason.code
    return ""


def real_files() -> Iterator[Path]:
    """All data files that pydicom and pydicom-data bring, DICOM or not."""
    import data_store

    for root in (Path(pydicom.__file__).parent / "data", Path(data_store.__file__).parent / "data"):
        yield from (path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix not in (".py", ".pyc"))


def real(name: str) -> Path:
    """One of them by its name."""
    return next(path for path in real_files() if path.name == name)
