"""From stored values to the picture that a vault keeps.

The order is DICOM's (PS3.4 N.2): stored values → modality LUT or rescale → VOI LUT or window → MONOCHROME1 inverted →
padding made black → pixels made square → shrunk to the import's resolution.

=====================  ==============================================================================================
CT with rescale        int16 Hounsfield units, not windowed (the window is the study's); padding is −1024
other grey, windowed   the first VOI LUT or window, over the whole range of uint8 (8 bits stored or fewer) or uint16
other grey, else       stored values as they are: uint8, or uint16 where more than 8 bits are stored; of a frame
                       with negative values the least becomes 0
colour                 RGB uint8; grey where all three channels are equal
=====================  ==============================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from client.ingest import dicom_luts as luts
from client.ingest import dicom_reasons as reasons
from client.ingest.dicom_tags import Tags
from client.ingest.kinds import Refused, Rules
from common.resize import resized

AIR = -1024
"""Hounsfield units of padding: darker than anything in a patient."""

_SQUARE = 0.01  # pixels whose sides differ by less are square
_LONGEST_PIXEL = 8.0
_GREYS = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
_HOUNSFIELD_UNITS = ("", "HU", "HU_MOD", "US")  # Rescale Type; US: unspecified, as in localisers


@dataclass(frozen=True)
class Spacing:
    """Millimetres between the centres of pixels, down and across; ``known`` is false where only the ratio is known."""

    down: float
    across: float
    known: bool


def check(dataset: Dataset) -> None:
    """Raises :class:`Refused` for depths and colours that :func:`picture` does not take, before anything is decoded."""
    if dataset.BitsAllocated not in (8, 16):
        raise Refused(reasons.UNSUPPORTED_DEPTH)
    known = _COLOURS if dataset.SamplesPerPixel == 3 else _GREYS if dataset.SamplesPerPixel == 1 else ()
    if luts.photometric(dataset) not in known:
        raise Refused(reasons.UNSUPPORTED_COLOURS)


def picture(stored: NDArray[Any], dataset: Dataset, tags: Tags, *, hounsfield: bool) -> NDArray[Any]:
    """One frame's stored values as ``(H, W)`` uint8, uint16 or int16, or ``(H, W, 3)`` uint8.

    Raises :class:`Refused` for depths, colours and lookup tables that it cannot follow.
    """
    if stored.dtype.kind not in "iu" or stored.dtype.itemsize > 2:
        raise Refused(reasons.UNSUPPORTED_DEPTH)
    interpretation = luts.photometric(dataset)
    if stored.ndim == 3:
        return _colour(stored, interpretation, int(dataset.BitsStored))
    if interpretation == "PALETTE COLOR":
        table = luts.palette(dataset, stored.dtype)
        return _grey_if_grey(table[_patterns(stored)])
    if tags.text("PixelPresentation") in ("COLOR", "MIXED"):  # some values are indices into a palette
        raise Refused(reasons.UNSUPPORTED_COLOURS)
    _check_range(stored, int(dataset.BitsStored))
    if hounsfield:
        return _hounsfield(stored, dataset, tags)
    return _grey(stored, dataset, tags, inverted=interpretation == "MONOCHROME1")


def is_hounsfield(modality: str, sop_class: str, tags: Tags) -> bool:
    """Whether the values are Hounsfield units: a CT image, not a capture of one, and not a map derived from it."""
    return (
        modality == "CT"
        and sop_class in _CT_CLASSES
        and tags.text("RescaleType").upper() in _HOUNSFIELD_UNITS
        and tags.text("PixelPresentation") not in ("COLOR", "MIXED")
    )


_CT_CLASSES = ("1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")


def _hounsfield(stored: NDArray[Any], dataset: Dataset, tags: Tags) -> NDArray[np.int16]:
    if luts.rescale(tags) is None and not tags.items("ModalityLUTSequence"):
        raise Refused(reasons.CT_WITHOUT_RESCALE)
    domain = luts.stored_values(stored.dtype)
    values = np.rint(luts.modality_values(tags, domain))
    table = np.clip(values, -32768, 32767).astype(np.int16)
    black = _black(domain, luts.padding(dataset, stored.dtype.kind == "i"))
    table[black] = AIR
    result = np.asarray(np.take(table, _patterns(stored)))
    if ((values < -32768) | (values > 32767))[~black].any():
        # Only then is it worth looking whether a pixel has such a value.
        least, most = (int(end) for end in (stored.min(), stored.max()))
        used = (domain >= least) & (domain <= most) & ~black
        if (np.abs(values[used]) > 32768).any():
            raise Refused(reasons.BEYOND_HOUNSFIELD)
    return result


def _grey(stored: NDArray[Any], dataset: Dataset, tags: Tags, *, inverted: bool) -> NDArray[Any]:
    domain = luts.stored_values(stored.dtype)
    black = _black(domain, luts.padding(dataset, stored.dtype.kind == "i"))
    bits = int(dataset.BitsStored)
    shades = luts.voi_values(tags, luts.modality_values(tags, domain))
    if shades is not None:
        dtype, white = (np.uint8, 255.0) if bits <= 8 else (np.uint16, 65535.0)
        if inverted:
            shades = 1.0 - shades
        table = np.rint(shades * white).astype(dtype)
        table[black] = 0
        return np.asarray(np.take(table, _patterns(stored)))
    return _unwindowed(stored, domain, black, bits, tags, inverted)


def _unwindowed(
    stored: NDArray[Any],
    domain: NDArray[np.int32],
    black: NDArray[np.bool_],
    bits: int,
    tags: Tags,
    inverted: bool,
) -> NDArray[Any]:
    """Stored values, or a Modality LUT's; as they are where nothing has to change."""
    values, white = domain, (1 << bits) - 1
    if tables := tags.items("ModalityLUTSequence"):
        values = luts.modality_values(tags, domain).astype(np.int32)
        descriptor = tables[0].LUTDescriptor
        white = (1 << int(descriptor[2])) - 1
    elif (linear := luts.rescale(tags)) is not None and linear[0] < 0.0:
        inverted = not inverted  # brighter is what has the higher rescaled value
    dtype = np.dtype(np.uint8 if white <= 255 else np.uint16)
    if values is domain and not inverted and not black.any() and stored.dtype.kind == "u":
        return stored.astype(dtype, copy=False)
    if values is domain and stored.dtype.kind == "i":
        least = _least(stored, domain, black)
        values = values - min(0, least)
    if inverted:
        values = white - values
    table = np.clip(values, 0, white).astype(dtype)
    table[black] = 0
    return np.asarray(np.take(table, _patterns(stored)))


def _least(stored: NDArray[Any], domain: NDArray[np.int32], black: NDArray[np.bool_]) -> int:
    """The least stored value that is not padding."""
    if not black.any():
        return int(stored.min())
    image = stored[~black[_patterns(stored)]]
    return int(image.min()) if image.size else 0


def _black(domain: NDArray[np.int32], padded: tuple[int, int] | None) -> NDArray[np.bool_]:
    if padded is None:
        return np.zeros(domain.shape, dtype=np.bool_)
    return (domain >= padded[0]) & (domain <= padded[1])


def _patterns(stored: NDArray[Any]) -> NDArray[Any]:
    """The values' bit patterns as unsigned: indices into a table over :func:`luts.stored_values`."""
    return stored.view(f"u{stored.dtype.itemsize}")


def _check_range(stored: NDArray[Any], bits: int) -> None:
    """Bits above Bits Stored may hold an old-style overlay: they must be empty (or the sign)."""
    if bits < 8 * stored.dtype.itemsize:
        least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if stored.dtype.kind == "i" else (0, (1 << bits) - 1)
        if int(stored.min()) < least or int(stored.max()) > most:
            raise Refused(reasons.BITS_MISMATCH)


def _colour(stored: NDArray[Any], interpretation: str, bits: int) -> NDArray[np.uint8]:
    """RGB of 8 bits, or grey. YBR_FULL and YBR_FULL_422 were made RGB on decoding, RCT and ICT by their decoder."""
    if stored.shape[2] != 3 or stored.dtype.kind != "u":
        raise Refused(reasons.UNSUPPORTED_COLOURS)
    if bits > 8:
        if interpretation in ("YBR_FULL", "YBR_FULL_422"):  # pydicom converts 8 bits only
            raise Refused(reasons.UNSUPPORTED_COLOURS)
        stored = stored >> (bits - 8)
    return _grey_if_grey(np.clip(stored, 0, 255).astype(np.uint8, copy=False))


def _grey_if_grey(colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
    red = colours[..., 0]
    # A few rows first: most colour pictures show it there.
    for part in (slice(None, None, 64), slice(None)):
        if not (np.array_equal(red[part], colours[part, :, 1]) and np.array_equal(red[part], colours[part, :, 2])):
            return np.ascontiguousarray(colours)
    return np.ascontiguousarray(red)


def spacing(tags: Tags) -> Spacing | None:
    """How far apart pixels are: at the patient where known, else at the detector, else only their aspect ratio."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        pair = tags.numbers(keyword, 2)
        if pair is not None and min(pair) > 0.0:
            return Spacing(pair[0], pair[1], keyword != "PixelAspectRatio")
    return None


def fitted(pixels: NDArray[Any], rules: Rules, apart: Spacing | None) -> tuple[NDArray[Any], tuple[float, float]]:
    """``pixels`` made square (the longer side of a pixel is divided) and shrunk to ``rules.longest_side``.

    Also the stored pixels per source pixel, down and across. A side that shrinks is averaged over its area, one that
    grows is interpolated linearly. Raises :class:`Refused` for pixels more than eight times as long as wide.
    """
    sides = [float(side) for side in pixels.shape[:2]]
    if apart is not None:
        ratio = apart.down / apart.across
        if max(ratio, 1.0 / ratio) > 1.0 + _SQUARE:
            if max(ratio, 1.0 / ratio) > _LONGEST_PIXEL:
                raise Refused(reasons.ODD_SPACING)
            sides = [sides[0] * max(1.0, ratio), sides[1] * max(1.0, 1.0 / ratio)]
    if sides[0] * sides[1] > rules.largest_pixels * 1.02:
        raise Refused(reasons.ODD_SPACING)
    if rules.longest_side is not None and max(sides) > rules.longest_side:
        factor = rules.longest_side / max(sides)
        sides = [side * factor for side in sides]
    height, width = (max(1, round(side)) for side in sides)
    scale = (height / pixels.shape[0], width / pixels.shape[1])
    return resized(pixels, height, width), scale
