"""What the parts of an import hand to one another."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

ATTRIBUTES = (
    "modality",
    "body_part",
    "view",
    "laterality",
    "sex",
    "age",
    "device",
    "kvp",
    "exposure_mas",
    "sequence",
    "field_strength_t",
    "slice_thickness_mm",
    "slice_position_mm",
    "slice",
    "frame",
    "pixel_spacing_mm",
    "photometric",
    "bits",
    "lossy",
    "kernel",
    "contrast",
)
"""Every attribute that an import may give an image; anything else stops at the child's door."""

_VALUE = re.compile(r"-?[A-Za-z0-9][A-Za-z0-9 ._+/<>-]{0,62}")


_PERSONAL = re.compile(
    r"(?<!\d)(?:\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./](?:\d{4}|\d{2})(?!\d)"
    r"|(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\d))"
    r"|\^|\d+(?:\.\d+){3}"
)


def looks_personal(text: str) -> bool:
    """Whether ``text`` holds a date, a name as DICOM writes it, or a UID: what no label and no attribute may."""
    return _PERSONAL.search(text) is not None


def allowed_attributes(attributes: Mapping[str, str]) -> dict[str, str]:
    """``attributes`` without what is not on the list or not plain, short ASCII: checked on both sides of the pipe."""
    return {key: value for key, value in attributes.items() if key in ATTRIBUTES and _VALUE.fullmatch(value)}


class Rules(BaseModel):
    """How files become images: the ``import:`` section of ``site.yaml``; the same in every process of an import."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    frames: Literal["all", "first", "middle"] = "all"
    """Which frames of a multi-frame object or an animated or multi-page image."""
    slices: str = Field(default="middle", pattern=r"^(all|middle|every:[1-9][0-9]{0,3})$")
    """Which slices of a volume (NIfTI), along its axial axis."""
    longest_side: int | None = Field(default=None, ge=32, le=16384)
    """Shrink larger images to this many pixels; never enlarges. ``None`` keeps the source's resolution."""
    largest_pixels: int = Field(default=64_000_000, ge=1024, le=2**28)
    """An image (one frame) with more is refused before it is decoded."""
    largest_frames: int = Field(default=4096, ge=1)
    """An object with more frames or slices is refused."""
    largest_bytes: int = Field(default=2**31, ge=2**20)
    """A file, or a member of a ZIP, with more is refused."""
    seconds: float = Field(default=120.0, gt=0.0)
    """CPU seconds that one file may take to decode; wall-clock time may be three times as long."""
    memory_mib: int = Field(default=4096, ge=512)
    """Address space that decoding may take beyond what an idle child has."""


@dataclass(frozen=True)
class Reason:
    """Why something was refused: fixed words, never text out of a file."""

    code: str
    """e.g. ``burned-in-text``."""
    stage: str
    """``source``, ``parse``, ``decode``, ``pixels``, ``deidentify``, ``labels``, ``consent`` or ``duplicate``."""
    reason: str
    remedy: str


class Refused(Exception):
    """One file, or one image of it, is not taken; the import goes on."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.code)
        self.reason = reason


@dataclass(frozen=True)
class Identity:
    """Who and what an object is, as the hospital knows it. Lives in memory only; becomes keyed pseudonyms."""

    patient: str = field(default="", repr=False)
    """Patient ID as written, stripped; empty where there is none."""
    sop: str = field(default="", repr=False)
    study: str = field(default="", repr=False)
    series: str = field(default="", repr=False)
    accession: str = field(default="", repr=False)


@dataclass(frozen=True, eq=False)
class Picture:
    """One image to be stored: a frame, a slice, or all of a plain image."""

    pixels: NDArray[Any] = field(repr=False)
    """``(H, W)`` uint8, uint16 or int16 (Hounsfield), or ``(H, W, 3)`` uint8; black at 0 (int16: see CT)."""
    number: int = 0
    """Frame or slice, from 0, as numbered in the source."""
    attributes: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Keys of :data:`ATTRIBUTES`."""
    labels: tuple[str, ...] = field(default=(), repr=False)
    """Labels inside the file itself (``.npz``); else empty."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Stored pixels per source pixel (vertical, horizontal): lesion boxes are in source pixels."""


@dataclass(frozen=True, eq=False)
class MaskOf:
    """One segment of one image, out of a segmentation object."""

    sop: str = field(repr=False)
    """SOP Instance UID of the image that it lies on."""
    frame: int
    """Frame of that image, from 0."""
    segment: int
    mask: NDArray[np.uint8] = field(repr=False)
    """``(H, W)`` uint8 in {0, 1}."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """What one file holds."""

    identity: Identity = field(default_factory=Identity, repr=False)
    pictures: tuple[Picture, ...] = ()
    masks: tuple[MaskOf, ...] = ()
    """Only of a segmentation object, which has no pictures."""
    warnings: tuple[str, ...] = ()
    """Codes, e.g. ``text-in-pixels``, ``lossy``; never text out of a file."""
