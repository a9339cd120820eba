"""Segmentation objects (DICOM SEG, PS3.3 C.8.20): one mask for each segment of each image.

A frame lies on the image that its Derivation Image Sequence names, or on the only image that the object refers to at
all. Guessing from the order of frames is not an option: a mask on the wrong slice would be learnt.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom import uid
from pydicom.dataset import Dataset

from client.ingest import dicom_decode as decode
from client.ingest import dicom_reasons as reasons
from client.ingest.dicom_tags import Tags, plain, raw_value, whole
from client.ingest.kinds import MaskOf, Refused

_KINDS = ("BINARY", "FRACTIONAL", "LABELMAP")


def masks(dataset: Dataset, syntax: uid.UID, count: int) -> tuple[MaskOf, ...]:
    """Masks by image, frame and segment, in the order in which they first occur; frames of one mask are united.

    BINARY: 1 is the segment. FRACTIONAL: at least half of Maximum Fractional Value. LABELMAP: each value but 0 is
    a segment. Raises :class:`Refused` where a frame names no image or no segment.
    """
    kind = plain(raw_value(dataset, "SegmentationType")).upper()
    if kind not in _KINDS or (kind == "BINARY") != (dataset.BitsAllocated == 1) or dataset.BitsAllocated > 16:
        raise Refused(reasons.SEGMENTATION_KIND)
    half = whole(raw_value(dataset, "MaximumFractionalValue")) if kind == "FRACTIONAL" else None
    if kind == "FRACTIONAL" and (half is None or half < 1):
        raise Refused(reasons.SEGMENTATION_KIND)
    places = [_place(dataset, frame, kind) for frame in range(count)]
    united: dict[tuple[str, int, int], NDArray[np.uint8]] = {}
    try:
        for (sop, frame, segment), stored in zip(
            places, decode.frames(dataset, syntax, count, range(count)), strict=True
        ):
            if stored.ndim != 2:
                raise Refused(reasons.SEGMENTATION_KIND)
            for number, mask in _segments(stored, segment, half):
                key = (sop, frame, number)
                united[key] = np.maximum(united[key], mask) if key in united else mask
    except (Refused, MemoryError):
        raise
    except Exception:
        raise Refused(reasons.UNDECODABLE) from None
    return tuple(MaskOf(sop, frame, segment, mask) for (sop, frame, segment), mask in united.items())


def _segments(stored: NDArray[Any], segment: int, maximum: int | None) -> list[tuple[int, NDArray[np.uint8]]]:
    if maximum is not None:
        return [(segment, (2 * stored.astype(np.int64) >= maximum).astype(np.uint8))]
    if segment:
        return [(segment, (stored > 0).astype(np.uint8))]
    return [(int(value), (stored == value).astype(np.uint8)) for value in np.unique(stored) if value > 0]


def _place(dataset: Dataset, frame: int, kind: str) -> tuple[str, int, int]:
    """SOP Instance UID and frame (from 0) of the image under a frame of the segmentation, and its segment (0: many)."""
    tags = Tags(dataset, frame)
    segment = whole(tags.first("ReferencedSegmentNumber")) if kind != "LABELMAP" else 0
    if segment is None or (segment < 1 and kind != "LABELMAP"):
        raise Refused(reasons.SEGMENTATION_REFERENCES)
    source = _source(dataset, frame)
    sop = plain(raw_value(source, "ReferencedSOPInstanceUID"))
    stated = raw_value(source, "ReferencedFrameNumber")
    if isinstance(stated, list | tuple) or not sop:
        raise Refused(reasons.SEGMENTATION_REFERENCES)
    number = 1 if stated is None else whole(stated)
    if number is None or number < 1:
        raise Refused(reasons.SEGMENTATION_REFERENCES)
    return sop, number - 1, segment


def _source(dataset: Dataset, frame: int) -> Dataset:
    """The reference to the image under a frame. One of several would be a guess."""
    tags = Tags(dataset, frame)
    images = tags.items("SourceImageSequence")
    if not images:
        images = tuple(
            instance
            for series in tags.items("ReferencedSeriesSequence")
            for instance in (raw_value(series, "ReferencedInstanceSequence") or ())
        )
    if len(images) != 1:
        raise Refused(reasons.SEGMENTATION_REFERENCES)
    return images[0]
