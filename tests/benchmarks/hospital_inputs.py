"""What a hospital brings: radiographs as DICOM objects, and arrays with labels inside. Noise over clouds, of nobody."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    generate_uid,
)

HEIGHT, WIDTH, BITS = 2500, 2048, 12
"""Of a radiograph; stored in 16 bits, shown through a window."""


def write_radiographs(folder: Path, count: int, *, jpeg2000: bool) -> Path:
    """``count`` digital X-rays, each of another patient: uncompressed, or JPEG 2000 lossless."""
    folder.mkdir()
    for number in range(count):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["bench", str(number)])
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
        dataset.SOPClassUID = meta.MediaStorageSOPClassUID
        dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = generate_uid(), generate_uid()
        dataset.PatientID, dataset.PatientSex, dataset.PatientAge = f"BENCH-{number}", "F", "045Y"
        dataset.Modality = "DX"
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = HEIGHT, WIDTH, 1
        dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, BITS, BITS - 1
        dataset.WindowCenter, dataset.WindowWidth = 2000, 3500
        dataset.PixelData = _radiograph(number).tobytes()
        if jpeg2000:
            dataset.compress(JPEG2000Lossless)
        pydicom.dcmwrite(folder / f"{number:03}.dcm", dataset, enforce_file_format=True)
    return folder


def _radiograph(number: int) -> NDArray[np.uint16]:
    """Smooth structure of 3,500 levels with noise of 24: it compresses to about half, as radiographs do."""
    numbers = np.random.default_rng(number)
    clouds: NDArray[Any] = cv2.resize(
        numbers.integers(0, 3500, (24, 20)).astype(np.uint16), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC
    )
    noise = numbers.integers(0, 24, (HEIGHT, WIDTH), dtype=np.int32)
    return np.clip(clouds + noise, 0, 2**BITS - 1).astype(np.uint16)


def first_of(folder: Path, count: int) -> Path:
    """A folder of links to the first ``count`` files of ``folder``."""
    few = folder.with_name(f"{folder.name}-{count}")
    few.mkdir()
    for path in sorted(folder.iterdir())[:count]:
        os.link(path, few / path.name)
    return few


def write_arrays(folder: Path, *, files: int, each: int, first: int = 0, size: int = 64) -> Path:
    """``files`` archives of NumPy, from number ``first`` on, of ``each`` :func:`pictures` with labels."""
    folder.mkdir()
    for number in range(first, first + files):
        labels = (np.arange(each) % 2).astype(np.uint8)
        np.savez(folder / f"{number:03}.npz", images=pictures(number, each, size), labels=labels)
    return folder


def pictures(seed: int, count: int, size: int) -> NDArray[np.uint8]:
    """``(count, size, size)``: no two look alike, 81 random patches a picture under a little noise."""
    numbers = np.random.default_rng(seed)
    patches = numbers.integers(30, 220, (count, 9, 9)).astype(np.float32)
    found = np.empty((count, size, size), np.uint8)
    for number, patch in enumerate(patches):
        smooth = cv2.resize(patch, (size, size), interpolation=cv2.INTER_CUBIC)
        found[number] = np.clip(smooth + numbers.integers(0, 8, (size, size)), 0, 255)
    return found
