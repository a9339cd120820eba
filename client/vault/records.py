"""What a vault holds of an image, what it accepts, and how that becomes bytes.

Pixels are stored as they are, little-endian, C order, or losslessly compressed (``codecs``); a vault
never rescales. Everything else about an image is one JSON text, padded to whole blocks of 512 bytes before it is
encrypted: ciphertext is as long as its plain text, and ``normal`` is shorter than ``pneumonia``.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from math import isfinite, prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.errors import DataError
from common.labels import Labels

DTYPES = ("uint8", "uint16", "int16")
SPLITS = ("", "train", "val", "test")
LARGEST_IMAGE_BYTES = 2**29  # SQLite holds values below 10^9 bytes
LARGEST_META_BYTES = 2**16
META_BLOCK_BYTES = 512
_SHAPE = struct.Struct(">BB3I")


class Box(NamedTuple):
    """A lesion's box: pixels of the stored image, from its upper left corner; the lower right edge is outside."""

    label: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, eq=False)
class Record:
    """One image on its way into a vault. ``repr`` shows nothing of the patient."""

    pixels: NDArray[Any] = field(repr=False)
    """``(H, W)`` or ``(H, W, 3)``; uint8, uint16 or int16."""
    patient: str = field(repr=False)
    labels: Labels = field(repr=False)
    split: str = ""
    """``train``, ``val``, ``test`` or empty."""
    attributes: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Sex, age, view, site, device …"""
    mask: NDArray[Any] | None = field(default=None, repr=False)
    """``(H, W)`` uint8, 0 or 1."""
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Keyed pseudonyms by which an import finds the image again: source, file, sop, study, series, accession."""
    boxes: tuple[Box, ...] = field(default=(), repr=False)
    measures: Mapping[str, float] = field(default_factory=dict, repr=False)
    """Technical quality of the pixels (``client.ingest.quality``)."""
    digest: str = field(default="", repr=False)
    """:func:`pixel_digest` where it is known already; else it is computed."""


@dataclass(frozen=True)
class Row:
    """What a vault knows of an image without decrypting its pixels. Fields with defaults came with format 2."""

    id: int
    digest: str = field(repr=False)
    """:func:`pixel_digest` of the image."""
    patient: str = field(repr=False)
    labels: Labels = field(repr=False)
    split: str
    attributes: Mapping[str, str] = field(repr=False)
    shape: tuple[int, ...]
    dtype: str
    has_mask: bool
    codec: str = "raw"
    """How the pixels are stored: ``client.vault.codecs``."""
    generation: int = 0
    """The vault's generation that brought the image; 0 where a vault of format 1 did."""
    keys: Mapping[str, str] = field(default_factory=dict, repr=False)
    boxes: tuple[Box, ...] = field(default=(), repr=False)
    measures: Mapping[str, float] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Form:
    """Type and shape of an array of pixels."""

    dtype: str
    shape: tuple[int, ...]

    @cached_property
    def stored(self) -> np.dtype[Any]:
        """The type as stored: little-endian."""
        return np.dtype(self.dtype).newbyteorder("<")

    @cached_property
    def size(self) -> int:
        """Bytes of such an array."""
        return prod(self.shape) * self.stored.itemsize

    @cached_property
    def encoded(self) -> bytes:
        """14 bytes: the form as associated data."""
        sides = (*self.shape, 0, 0, 0)[:3]
        return _SHAPE.pack(DTYPES.index(self.dtype), len(self.shape), *sides)

    @property
    def of_mask(self) -> Form:
        """The form of such an image's mask."""
        return form_of("uint8", self.shape[:2])


@lru_cache(maxsize=1024)
def form_of(dtype: str, shape: tuple[int, ...]) -> Form:
    """The form of that type and shape; one object for all images alike."""
    return Form(dtype, shape)


def pixel_digest(pixels: NDArray[Any]) -> str:
    """SHA-256 (hex) of an image's pixel type, shape and little-endian bytes: equal images, equal digests."""
    form = form_of(pixels.dtype.name, pixels.shape)
    digest = hashlib.sha256(f"{form.dtype} {form.shape}\n".encode())
    digest.update(pixel_bytes(pixels))
    return digest.hexdigest()


def pixel_bytes(pixels: NDArray[Any]) -> memoryview:
    """An array's bytes as stored; copied only where it is not contiguous or not little-endian."""
    stored = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<"))
    return stored.reshape(-1).view(np.uint8).data


def checked(record: Record, number: int) -> Form:
    """The form of ``record``'s pixels; raises :class:`DataError` for what a vault does not hold.

    ``number`` counts from 1 and names the record in messages; a patient never does.
    """

    def refuse(problem: str) -> DataError:
        return DataError(f"image {number} of those to add {problem}")

    pixels, mask = record.pixels, record.mask
    if not isinstance(pixels, np.ndarray) or pixels.dtype.name not in DTYPES:
        kind = getattr(pixels, "dtype", type(pixels).__name__)
        raise refuse(f"is {kind}; a vault holds {', '.join(DTYPES)}: convert it")
    if not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)) or pixels.size == 0:
        raise refuse(f"has shape {pixels.shape}; a vault holds (H, W) and (H, W, 3): reshape it")
    if pixels.nbytes > LARGEST_IMAGE_BYTES:
        raise refuse(f"has {pixels.nbytes} bytes, more than {LARGEST_IMAGE_BYTES}: reduce it")
    if mask is not None:
        if not isinstance(mask, np.ndarray) or mask.dtype != np.uint8 or mask.shape != pixels.shape[:2]:
            raise refuse(f"has a mask that is not uint8 {pixels.shape[:2]}: give it the image's height and width")
        if mask.max() > 1:
            raise refuse("has a mask with values other than 0 and 1: binarise it")
    if not isinstance(record.patient, str) or not record.patient:
        raise refuse("has no patient; give the image's own name where the patient is unknown")
    if record.split not in SPLITS:
        raise refuse("has a split other than train, val, test or none; correct its split")
    if not isinstance(record.labels, Mapping) or not isinstance(record.attributes, Mapping):
        raise refuse("has labels or attributes that are not a mapping; correct them")
    for column, values in record.labels.items():
        if not isinstance(column, str) or not isinstance(values, tuple | list):
            raise refuse("has labels that are not columns with tuples of values; correct its labels")
        if not all(isinstance(value, str) for value in values):
            raise refuse("has a label value that is not text; write it as text")
    texts = (*record.attributes.items(), *record.keys.items())
    if not all(isinstance(text, str) for pair in texts for text in pair):
        raise refuse("has an attribute or key that is not text; write it as text")
    if not all(isfinite(side) for box in record.boxes for side in box[1:]) or not all(
        isfinite(value) for value in record.measures.values()
    ):
        raise refuse("has a box or measure that is not a finite number; correct it")
    return form_of(pixels.dtype.name, pixels.shape)


def row_of(row_id: int, record: Record, form: Form, codec: str, generation: int) -> Row:
    """What the vault will know of ``record``."""
    return Row(
        id=row_id,
        digest=record.digest or pixel_digest(record.pixels),
        patient=record.patient,
        labels=record.labels,
        split=record.split,
        attributes=record.attributes,
        shape=form.shape,
        dtype=form.dtype,
        has_mask=record.mask is not None,
        codec=codec,
        generation=generation,
        keys=record.keys,
        boxes=record.boxes,
        measures=record.measures,
    )


def encode_meta(row: Row, number: int) -> bytes:
    """All of a row but its id, padded; ``number`` as for :func:`checked`."""
    meta = {key: value for key, value in asdict(row).items() if key != "id" and (value or key not in _OPTIONAL)}
    text = json.dumps(meta, separators=(",", ":"), allow_nan=False)
    if len(text) > LARGEST_META_BYTES:
        raise DataError(f"image {number} of those to add has {len(text)} bytes of labels and attributes: shorten them")
    return padded(text)


_OPTIONAL = ("generation", "keys", "boxes", "measures")


def decode_meta(row_id: int, plain: bytes) -> Row:
    """The inverse of :func:`encode_meta`, for bytes that were authenticated; also of format 1."""
    meta = json.loads(plain)
    return Row(
        id=row_id,
        digest=meta["digest"],
        patient=meta["patient"],
        labels={column: tuple(values) for column, values in meta["labels"].items()},
        split=meta["split"],
        attributes=meta["attributes"],
        shape=tuple(meta["shape"]),
        dtype=meta["dtype"],
        has_mask=meta["has_mask"] if "has_mask" in meta else meta["mask"],
        codec=meta.get("codec", "raw"),
        generation=meta.get("generation", 0),
        keys=meta.get("keys", {}),
        boxes=tuple(Box(*box) for box in meta.get("boxes", ())),
        measures=meta.get("measures", {}),
    )


def padded(text: str) -> bytes:
    """``text`` (ASCII JSON) with spaces up to a whole number of blocks; JSON ignores them."""
    return text.encode("ascii").ljust(-(-len(text) // META_BLOCK_BYTES) * META_BLOCK_BYTES)
