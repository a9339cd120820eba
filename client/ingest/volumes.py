"""NIfTI-1 and NIfTI-2 volumes, plain or gzipped, to axial slices.

Geometry. A volume is brought to the closest canonical orientation (RAS+, nibabel) by flips and swaps of whole
axes, never by interpolation, and cut along its third axis. A slice is shown as radiologists do: the patient's
right is on the image's left, the front is up. Slices count from the feet. The coarser of two unlike pixel
spacings is interpolated (linearly; masks by the nearest) to the finer.

Values, after the header's slope and intercept, one rule for all slices of a volume:

1. unsigned 8-bit values without a slope stay uint8;
2. whole numbers from 0 to 65535 become uint16, whole numbers with negatives that int16 holds become int16:
   int16 means Hounsfield units to a study (``common.preprocess``), and what has no negatives need not be CT;
3. fractions that reach down to −500 or below, as resampled CT does, are rounded to int16;
4. all else is scaled so that 0 stays 0 and the volume's largest value becomes 65535; negatives are cut to 0
   (warning ``rescaled``).

Values that are not finite count as 0. No text of the header (``descrip``, ``intent_name``, ``aux_file``,
extensions) is looked at. Format: https://nifti.nimh.nih.gov/nifti-1 (and nifti-2).
"""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from client.ingest import reasons
from client.ingest.images import chosen, fitted
from client.ingest.kinds import Decoded, Picture, Refused, Rules

RESCALED = "rescaled"
"""Warning: stored values are not the file's, see rule 4 above."""


_nibabel: Any = nibabel  # its functions are not annotated
_HOUNSFIELD_AIR = -500.0
_PADDING = 1 << 16
_MILLIMETRES = {"unknown": 1.0, "mm": 1.0, "meter": 1000.0, "micron": 0.001}
_HEADERS: dict[int, Any] = {348: _nibabel.Nifti1Header, 540: _nibabel.Nifti2Header}


def read(content: bytes, rules: Rules) -> Decoded:
    """The slices that ``rules.slices`` asks for. Raises :class:`Refused`."""
    volume = _volume(content, rules)
    convert, warnings = _conversion(volume)
    pictures = []
    for number in chosen(volume.stored.shape[2], rules.slices):
        pixels, scale = fitted(np.ascontiguousarray(convert(volume.slice(number))), rules, volume.spacing[:2])
        down, across, through = volume.spacing
        attributes = {
            "slice": str(number),
            "slice_thickness_mm": f"{through:.6g}",
            "pixel_spacing_mm": f"{math.sqrt(down / scale[0] * across / scale[1]):.6g}",
            "bits": str(8 * pixels.dtype.itemsize),
        }
        pictures.append(Picture(pixels, number, attributes, scale=scale))
    return Decoded(pictures=tuple(pictures), warnings=warnings)


def read_mask(content: bytes, rules: Rules) -> Decoded:
    """As :func:`read`, but each picture is a mask ``(H, W)`` uint8, 1 where the volume is not 0."""
    volume = _volume(content, rules)
    pictures = []
    for number in chosen(volume.stored.shape[2], rules.slices):
        mask = np.ascontiguousarray(volume.slice(number) != 0, dtype=np.uint8)
        pixels, scale = fitted(mask, rules, volume.spacing[:2], mask=True)
        pictures.append(Picture(pixels, number, scale=scale))
    return Decoded(pictures=tuple(pictures))


@dataclass(frozen=True, eq=False)
class _Volume:
    stored: NDArray[Any]
    """Values as in the file, ``(R, A, S)``; a view of the file's bytes."""
    slope: float
    intercept: float
    spacing: tuple[float, float, float]
    """Millimetres down, across and through a slice."""

    @property
    def plain(self) -> bool:
        return (self.slope, self.intercept) == (1.0, 0.0)

    def slice(self, number: int) -> NDArray[Any]:
        """Values ``(H, W)`` of one axial slice as displayed; float64 where there is a slope or there are fractions."""
        shown = self.stored[::-1, ::-1, number].T
        if self.plain and shown.dtype.kind in "iu":
            return shown
        values = np.nan_to_num(shown.astype(np.float64), posinf=0.0, neginf=0.0)
        return values if self.plain else values * self.slope + self.intercept


def _conversion(volume: _Volume) -> tuple[Callable[[NDArray[Any]], NDArray[Any]], tuple[str, ...]]:
    """What makes pixels of a slice's values, the same for all slices; and warnings."""
    if volume.plain and volume.stored.dtype == np.uint8:
        return np.asarray, ()
    least, most, whole = math.inf, -math.inf, True
    for number in range(volume.stored.shape[2]):
        values = volume.slice(number)
        least, most = min(least, float(values.min())), max(most, float(values.max()))
        whole = whole and (values.dtype.kind in "iu" or bool(np.array_equal(values, np.rint(values))))
    if whole and least >= 0 and most <= 0xFFFF:
        return lambda values: values.astype(np.uint16), ()
    if (whole or least <= _HOUNSFIELD_AIR) and round(least) >= -0x8000 and round(most) <= 0x7FFF:
        return lambda values: np.rint(values).astype(np.int16), ()
    if most <= 0:
        raise Refused(reasons.VALUES)
    return lambda values: np.rint(np.clip(values / most, 0, 1) * 0xFFFF).astype(np.uint16), (RESCALED,)


def _volume(content: bytes, rules: Rules) -> _Volume:
    """The volume in canonical orientation, nothing copied; every promise of the header is checked first."""
    packed = content.startswith(b"\x1f\x8b")
    try:
        with gzip.open(io.BytesIO(content)) if packed else io.BytesIO(content) as stream:
            return _parsed(stream, rules)
    except (Refused, MemoryError):
        raise
    except Exception as error:  # nibabel and zlib raise nearly anything for a header or a stream that lies
        raise Refused(reasons.DAMAGED) from error


def _parsed(stream: gzip.GzipFile | io.BytesIO, rules: Rules) -> _Volume:
    size = stream.read(4)
    kind = next(kind for length, kind in _HEADERS.items() if size in (length.to_bytes(4, o) for o in ("little", "big")))
    header = kind(size + stream.read(kind.template_dtype.itemsize - 4), check=False)
    if bytes(header["magic"])[:2] == b"ni":
        raise Refused(reasons.PAIR)
    shape, dtype = _checked_shape(header, rules), _checked_type(header)
    offset = int(header["vox_offset"])
    length = math.prod(shape) * dtype.itemsize
    if offset < kind.template_dtype.itemsize or length == 0:
        raise Refused(reasons.DAMAGED)
    if offset + length > rules.largest_bytes:
        raise Refused(reasons.LARGE)
    stream.seek(offset)  # a gzip bomb unpacks no further than a header within the rules says
    data = stream.read(length)
    # The end of a gzip stream holds its checksum; what lies before it, past the voxels, is padding at most.
    if len(data) < length or len(stream.read(_PADDING + 1)) > _PADDING:
        raise Refused(reasons.DAMAGED)
    affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    if not np.isfinite(affine).all():
        raise Refused(reasons.GEOMETRY)
    turn = _nibabel.orientations.io_orientation(affine)
    if not np.isfinite(turn).all():
        raise Refused(reasons.GEOMETRY)
    canonical = affine @ _nibabel.orientations.inv_ornt_aff(turn, shape)
    unit = _MILLIMETRES[header.get_xyzt_units()[0]]
    across, down, through = (float(size) * unit for size in _nibabel.affines.voxel_sizes(canonical))
    if not all(0.001 <= size <= 1000.0 for size in (across, down, through)):
        raise Refused(reasons.GEOMETRY)
    stored = _nibabel.orientations.apply_orientation(np.frombuffer(data, dtype).reshape(shape, order="F"), turn)
    wide, tall, deep = stored.shape
    if wide * tall > rules.largest_pixels:
        raise Refused(reasons.PIXELS)
    if deep > rules.largest_frames:
        raise Refused(reasons.FRAMES)
    slope, intercept = header.get_slope_inter()
    return _Volume(stored, float(slope or 1.0), float(intercept or 0.0), (down, across, through))


def _checked_shape(header: Any, rules: Rules) -> tuple[int, int, int]:
    """Voxels along the file's three axes; checked here as the axes are only known to be slices' later."""
    axes = int(header["dim"][0])
    shape = [int(length) for length in header["dim"][1 : axes + 1]] if 1 <= axes <= 7 else []
    if len(shape) < 2 or min(shape) < 1:
        raise Refused(reasons.DAMAGED)
    if math.prod(shape[3:]) != 1:
        raise Refused(reasons.SERIES)
    x, y, z = (*shape, 1)[:3]
    return x, y, z


def _checked_type(header: Any) -> np.dtype[Any]:
    dtype: np.dtype[Any] = header.get_data_dtype()
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise Refused(reasons.DATATYPE)
    return dtype
