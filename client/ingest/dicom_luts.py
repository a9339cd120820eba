"""DICOM's lookup tables, windows and palettes, evaluated on every value that a pixel can have.

A picture has millions of pixels but at most 65,536 different values: each transform is worked out once for every
value and then looked up. Everything raises :class:`Refused` where a tag is malformed; nothing is skipped silently.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut

from client.ingest import dicom_reasons as reasons
from client.ingest.dicom_tags import Tags, finite, plain, raw_value, whole
from client.ingest.kinds import Refused

Values = NDArray[np.float64]


def stored_values(dtype: np.dtype[Any]) -> NDArray[np.int32]:
    """Every stored value of an 8 or 16 bit ``dtype``, in the order of its bit patterns read as unsigned."""
    patterns = np.arange(1 << 8 * dtype.itemsize, dtype=f"u{dtype.itemsize}")
    return patterns.view(dtype).astype(np.int32)


def rescale(tags: Tags) -> tuple[float, float] | None:
    """Slope and intercept; ``None`` where there is neither. One without the other is malformed (PS3.3 C.11.1)."""
    if tags.get("RescaleSlope") is None and tags.get("RescaleIntercept") is None:
        return None
    slope, intercept = tags.number("RescaleSlope"), tags.number("RescaleIntercept")
    if slope is None or intercept is None or slope == 0.0:
        raise Refused(reasons.BAD_PIXEL_TAGS)
    return slope, intercept


def modality_values(tags: Tags, stored: NDArray[np.int32]) -> Values:
    """``stored`` after the Modality LUT or rescale (PS3.3 C.11.1), or as it is."""
    tables = tags.items("ModalityLUTSequence")
    if tables:
        entries, first, _ = _table(tables[0], tags, stored)
        return entries[np.clip(stored - first, 0, len(entries) - 1)].astype(np.float64)
    linear = rescale(tags)
    values = stored.astype(np.float64)
    return values if linear is None else values * linear[0] + linear[1]


def voi_values(tags: Tags, values: Values) -> Values | None:
    """``values`` after the first VOI LUT or, without one, the first window, as 0 to 1; ``None`` without either.

    PS3.3 C.11.2: LINEAR, LINEAR_EXACT and SIGMOID. A table wins over a window, as in pydicom's ``apply_voi_lut``.
    """
    tables = tags.items("VOILUTSequence")
    if tables:
        entries, first, bits = _table(tables[0], tags, values)
        indices = np.clip(np.floor(values) - first, 0, len(entries) - 1).astype(np.int64)
        return np.asarray(np.minimum(entries[indices] / float((1 << bits) - 1), 1.0))
    if tags.get("WindowCenter") is None and tags.get("WindowWidth") is None:
        return None
    centre, width = tags.number("WindowCenter"), tags.number("WindowWidth")
    function = (tags.text("VOILUTFunction") or "LINEAR").upper()
    if centre is None or width is None or width <= 0.0:
        raise Refused(reasons.BAD_PIXEL_TAGS)
    if function == "SIGMOID":
        return np.asarray(1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -700.0, 700.0))))
    if function == "LINEAR":
        if width < 1.0:
            raise Refused(reasons.BAD_PIXEL_TAGS)
        centre, width = centre - 0.5, width - 1.0
    elif function != "LINEAR_EXACT":
        raise Refused(reasons.BAD_PIXEL_TAGS)
    if width == 0.0:
        return np.where(values > centre, 1.0, 0.0)
    return np.clip((values - centre) / width + 0.5, 0.0, 1.0)


def _table(item: Dataset, tags: Tags, values: NDArray[Any]) -> tuple[NDArray[np.uint16], int, int]:
    """Entries, first of the ``values`` that is mapped, bits an entry."""
    descriptor = raw_value(item, "LUTDescriptor")
    if descriptor is None or isinstance(descriptor, bytes) or len(descriptor) != 3:
        raise Refused(reasons.BAD_PIXEL_TAGS)
    count, first, bits = (whole(value) for value in descriptor)
    if count is None or first is None or bits is None or not 8 <= bits <= 16 or not 0 <= count <= 65536:
        raise Refused(reasons.BAD_PIXEL_TAGS)
    # The first value mapped is signed where the values are, whatever VR it was written with.
    if first > 32767 and values.min() < 0 and values.max() <= 32767:
        first -= 65536
    count = count or 65536
    data = raw_value(item, "LUTData")
    if isinstance(data, bytes):
        order = "<" if tags.little_endian else ">"
        wide = len(data) >= 2 * count
        if not wide and len(data) not in (count, count + 1):
            raise Refused(reasons.BAD_PIXEL_TAGS)
        entries = np.frombuffer(data, dtype=f"{order}u2" if wide else "u1")
    elif data is None or isinstance(data, str | int):
        raise Refused(reasons.BAD_PIXEL_TAGS)
    else:
        found = [whole(value) for value in data]
        if any(value is None or not 0 <= value <= 65535 for value in found):
            raise Refused(reasons.BAD_PIXEL_TAGS)
        entries = np.array(found, dtype=np.uint16)
    if len(entries) < count:
        raise Refused(reasons.BAD_PIXEL_TAGS)
    return entries[:count].astype(np.uint16), first, bits


def palette(dataset: Dataset, dtype: np.dtype[Any]) -> NDArray[np.uint8]:
    """``(256 or 65536, 3)`` uint8: the colour of every stored value of a PALETTE COLOR image (PS3.3 C.7.6.3.1.5)."""
    descriptor = raw_value(dataset, "RedPaletteColorLookupTableDescriptor")
    if descriptor is None or isinstance(descriptor, bytes) or len(descriptor) != 3:
        raise Refused(reasons.UNSUPPORTED_COLOURS)
    count, first, bits = (whole(value) for value in descriptor)
    if count is None or first is None or bits not in (8, 16) or not 0 <= count <= 65536:
        raise Refused(reasons.UNSUPPORTED_COLOURS)
    if dtype.kind == "i" and first > 32767:
        first -= 65536
    count = count or 65536
    names = [f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")]
    if names[0] in dataset:
        little = dataset.original_encoding[1] is not False
        entries = np.stack([_entries(raw_value(dataset, name), count, little) for name in names], axis=1)
        # Some writers state 16 bits and store 8: such tables never exceed 255.
        colours = entries >> 8 if bits == 16 and int(entries.max()) > 255 else entries
    else:
        # pydicom expands segmented tables, but counts entries in the type of the entries.
        if count > 1 << bits:
            raise Refused(reasons.UNSUPPORTED_COLOURS)
        colours = apply_color_lut(np.arange(first, first + count, dtype=np.int32), dataset)[..., :3] >> (bits - 8)
    if colours.shape != (count, 3):
        raise Refused(reasons.UNSUPPORTED_COLOURS)
    return colours.clip(0, 255).astype(np.uint8)[np.clip(stored_values(dtype) - first, 0, count - 1)]


def _entries(data: Any, count: int, little: bool) -> NDArray[np.uint16]:
    """One colour's entries, stored in 8 or in 16 bits each; always written as 16-bit words."""
    if not isinstance(data, bytes) or len(data) < count:
        raise Refused(reasons.UNSUPPORTED_COLOURS)
    words = np.frombuffer(data[: len(data) // 2 * 2], dtype="<u2" if little else ">u2")
    return words[:count].copy() if len(data) >= 2 * count else words.astype("<u2").view(np.uint8)[:count].astype("u2")


def padding(dataset: Dataset, signed: bool) -> tuple[int, int] | None:
    """Lowest and highest stored value that stands for no image (PS3.3 C.7.5.1.1.2); ``None`` where none is stated."""

    def stated(keyword: str) -> int | None:
        value = raw_value(dataset, keyword)
        if isinstance(value, bytes):  # an unknown VR in an implicit dataset
            value = int.from_bytes(value[:2], "little")
        number = whole(value) if finite(value) is not None else None
        # Written as unsigned (or signed) although the pixels are not.
        if number is not None and signed and number > 32767:
            return number - 65536
        return number + 65536 if number is not None and not signed and number < 0 else number

    value = stated("PixelPaddingValue")
    if value is None:
        return None
    limit = stated("PixelPaddingRangeLimit")
    return (value, value) if limit is None else (min(value, limit), max(value, limit))


def photometric(dataset: Dataset) -> str:
    """Photometric interpretation in capitals."""
    return plain(raw_value(dataset, "PhotometricInterpretation")).upper()
