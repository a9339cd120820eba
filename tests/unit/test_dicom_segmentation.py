"""DICOM SEG: masks on the images that they were drawn on, or a refusal."""

from __future__ import annotations

from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.pixels.utils import pack_bits

from client.ingest.dicom import read
from client.ingest.kinds import Rules
from tests.unit.dicom_objects import SEG, code_of, dataset, decoded, item, real


def segmentation(frames: NDArray[Any], kind: str, places: list[tuple[str, int | None, int]], **tags: Any) -> Any:
    """A segmentation of ``frames`` ``(n, H, W)``; ``places`` are SOP Instance UID, frame (from 1) and segment."""
    made = dataset(frames, "SEG", SEG, SegmentationType=kind, **tags)
    if kind == "BINARY":
        made.BitsAllocated, made.BitsStored, made.HighBit = 1, 1, 0
        made.PixelData = pack_bits(frames)
        made["PixelData"].VR = "OB"
    made.PerFrameFunctionalGroupsSequence = [
        item(
            SegmentIdentificationSequence=[item(ReferencedSegmentNumber=segment)],
            DerivationImageSequence=[
                item(
                    SourceImageSequence=[
                        item(ReferencedSOPInstanceUID=sop, **({"ReferencedFrameNumber": frame} if frame else {}))
                    ]
                )
            ],
        )
        for sop, frame, segment in places
    ]
    return made


def random_masks(count: int) -> NDArray[np.uint8]:
    return (np.arange(count * 13 * 9).reshape(count, 13, 9) * 7919 % 5 < 2).astype(np.uint8)


@pytest.mark.parametrize("name", ["liver.dcm", "liver_expb.dcm", "liver_1frame.dcm"])
def test_a_real_segmentation(name: str) -> None:
    made = pydicom.dcmread(real(name))
    result = read(real(name).read_bytes(), Rules())
    expected = made.pixel_array.reshape(-1, 512, 512)
    assert result.pictures == () and len(result.masks) == len(expected)
    assert result.identity.sop == made.SOPInstanceUID
    for number, (mask, pixels) in enumerate(zip(result.masks, expected, strict=True)):
        source = made.PerFrameFunctionalGroupsSequence[number].DerivationImageSequence[0].SourceImageSequence[0]
        assert (mask.sop, mask.frame, mask.segment) == (source.ReferencedSOPInstanceUID, 0, 1)
        assert mask.mask.dtype == np.uint8
        np.testing.assert_array_equal(mask.mask, pixels)


def test_binary_with_frames_and_segments_that_are_not_whole_bytes() -> None:
    frames = random_masks(3)
    result = decoded(segmentation(frames, "BINARY", [("1.9", 4, 1), ("1.9", 4, 2), ("1.8", None, 1)]))
    assert [(mask.sop, mask.frame, mask.segment) for mask in result.masks] == [
        ("1.9", 3, 1),
        ("1.9", 3, 2),
        ("1.8", 0, 1),
    ]
    for mask, expected in zip(result.masks, frames, strict=True):
        np.testing.assert_array_equal(mask.mask, expected)


def test_frames_of_one_mask_are_united() -> None:
    frames = random_masks(2)
    (mask,) = decoded(segmentation(frames, "BINARY", [("1.9", None, 1), ("1.9", None, 1)])).masks
    np.testing.assert_array_equal(mask.mask, frames.max(axis=0))


def test_fractional_counts_from_one_half() -> None:
    frames = np.arange(0, 256, dtype=np.uint8).reshape(1, 16, 16)
    made = segmentation(frames, "FRACTIONAL", [("1.9", None, 3)], MaximumFractionalValue=200)
    (mask,) = decoded(made).masks
    np.testing.assert_array_equal(mask.mask, (frames[0] >= 100).astype(np.uint8))
    assert mask.segment == 3


def test_a_label_map_is_taken_apart() -> None:
    frames = (np.arange(256) % 3).astype(np.uint8).reshape(1, 16, 16)
    result = decoded(segmentation(frames, "LABELMAP", [("1.9", None, 0)]))
    assert [mask.segment for mask in result.masks] == [1, 2]
    np.testing.assert_array_equal(result.masks[1].mask, (frames[0] == 2).astype(np.uint8))


def test_the_only_image_referred_to_needs_no_derivation() -> None:
    made = segmentation(random_masks(1), "BINARY", [("", None, 1)])
    made.PerFrameFunctionalGroupsSequence = [item(SegmentIdentificationSequence=[item(ReferencedSegmentNumber=1)])]
    assert code_of(made) == "segmentation-without-references"
    instances = [item(ReferencedSOPInstanceUID="1.7")]
    made.ReferencedSeriesSequence = [item(ReferencedInstanceSequence=instances)]
    assert decoded(made).masks[0].sop == "1.7"
    made.ReferencedSeriesSequence[0].ReferencedInstanceSequence = [*instances, item(ReferencedSOPInstanceUID="1.6")]
    assert code_of(made) == "segmentation-without-references"


@pytest.mark.parametrize(
    ("places", "code"),
    [
        ([("", None, 1)], "segmentation-without-references"),
        ([("1.9", None, 0)], "segmentation-without-references"),
        ([], "segmentation-without-references"),
    ],
)
def test_missing_references(places: list[tuple[str, int | None, int]], code: str) -> None:
    assert code_of(segmentation(random_masks(1), "BINARY", places)) == code


def test_a_segmentation_of_another_kind() -> None:
    places: list[tuple[str, int | None, int]] = [("1.9", None, 1)]
    grey = np.zeros((1, 16, 16), dtype=np.uint8)
    assert code_of(segmentation(grey, "SOMETHING", places)) == "unsupported-segmentation"
    assert code_of(segmentation(grey, "FRACTIONAL", places)) == "unsupported-segmentation"
    assert code_of(segmentation(grey, "FRACTIONAL", places, MaximumFractionalValue=0)) == "unsupported-segmentation"
    made = segmentation(grey, "LABELMAP", places)
    made.SegmentationType = "BINARY"
    assert code_of(made) == "unsupported-segmentation"
