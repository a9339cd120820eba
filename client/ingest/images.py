"""Image files to arrays: the only place that gives a stranger's bytes to Pillow.

What is kept of a file is its pixels: EXIF, GPS, comments, profiles and previews are left behind, all but the
orientation (Exif 2.32, tag 274), which is applied.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from client.ingest import reasons
from client.ingest.kinds import Decoded, Picture, Refused, Rules
from common.resize import resized

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "PPM", "WEBP", "GIF", "JPEG2000")
"""Decoders we allow. Pillow has more, and one of them (EPS) starts another program."""
REDUCED = "depth-reduced"
"""Warning: colours of 16 bits a channel, read with 8: an image has one depth in the vault for colours."""
_ORIENTATION = 0x0112
_PHOTOMETRIC = 0x0106
_SQUARE = 1.01  # pixels whose sides differ by less are square


def read(content: bytes, rules: Rules) -> Decoded:
    """The image, or the frames that ``rules.frames`` asks for, of an image file.

    Pixels are ``(H, W)`` uint8 or uint16, or ``(H, W, 3)`` uint8 where the image has true colours.
    Raises :class:`Refused`.
    """
    warned: set[str] = set()
    pictures = []
    for number, frames, pixels, reduced in _frames(content, rules):
        stored, scale = fitted(pixels, rules)
        attributes = {"bits": str(8 * pixels.dtype.itemsize)} | ({"frame": str(number)} if frames > 1 else {})
        pictures.append(Picture(stored, number, attributes, scale=scale))
        warned |= {REDUCED} if reduced else set()
    return Decoded(pictures=tuple(pictures), warnings=tuple(sorted(warned)))


def read_mask(content: bytes, rules: Rules) -> Decoded:
    """As :func:`read`, but each picture is a mask ``(H, W)`` uint8, 1 where any channel of the file is not 0."""
    pictures = []
    for number, _, pixels, _ in _frames(content, rules):
        stored, scale = fitted(drawn(pixels), rules, mask=True)
        pictures.append(Picture(stored, number, scale=scale))
    return Decoded(pictures=tuple(pictures))


def drawn(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Mask ``(H, W)`` uint8 in {0, 1} of an image: 1 where any channel is not 0."""
    return np.asarray(pixels.any(axis=2) if pixels.ndim == 3 else pixels != 0, dtype=np.uint8)


@contextmanager
def opened(source: IO[bytes] | str, largest_pixels: int) -> Iterator[Image.Image]:
    """An image of a known format and size, not yet decoded; whatever is raised inside leaves as :class:`Refused`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # corrupt EXIF and the like: the pixels decide
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as image:
                if image.width * image.height > largest_pixels:
                    raise Refused(reasons.PIXELS)
                yield image
    except (Refused, MemoryError, FileNotFoundError, PermissionError):
        raise
    except UnidentifiedImageError:
        raise Refused(reasons.UNKNOWN) from None
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise Refused(reasons.PIXELS) from None
    # Damaged files make Pillow's decoders raise nearly anything (struct.error, KeyError, zlib.error …).
    except Exception as error:
        raise Refused(reasons.DAMAGED) from error


def pixels_of(image: Image.Image) -> NDArray[Any]:
    """The current frame, upright: grey where its channels are all equal, without alpha. See :func:`read`."""
    image.load()  # before the orientation is looked up: Pillow turns some formats itself, and then takes the tag away
    return np.ascontiguousarray(_upright(_grey_or_colour(image), _orientation(image)))


def count(image: Image.Image) -> int:
    """Frames or pages; phones add previews to a JPEG as further frames, which are none."""
    return 1 if image.format in ("JPEG", "MPO") else int(getattr(image, "n_frames", 1))


def fitted(
    pixels: NDArray[Any], rules: Rules, spacing: tuple[float, float] = (1.0, 1.0), *, mask: bool = False
) -> tuple[NDArray[Any], tuple[float, float]]:
    """``pixels`` made square and shrunk to ``rules.longest_side``; and stored pixels per source pixel, down and across.

    ``spacing`` is a pixel's height and width. Where they differ by more than 1%, the coarser axis is interpolated
    to the finer one, so nothing is lost. A side that shrinks is averaged over its area, one that grows is
    interpolated linearly; a mask takes the nearest. Raises :class:`Refused` where squares are too many.
    """
    sides = [float(side) for side in pixels.shape[:2]]
    if max(spacing) > _SQUARE * min(spacing):
        sides = [side * length / min(spacing) for side, length in zip(sides, spacing, strict=True)]
    if sides[0] * sides[1] > rules.largest_pixels:
        raise Refused(reasons.PIXELS)
    if rules.longest_side is not None and max(sides) > rules.longest_side:
        sides = [side * rules.longest_side / max(sides) for side in sides]
    height, width = (max(1, round(side)) for side in sides)
    scale = (height / pixels.shape[0], width / pixels.shape[1])
    return resized(pixels, height, width, nearest=mask), scale


def chosen(frames: int, rule: str) -> range:
    """Which of ``frames`` frames or slices a rule takes: ``all``, ``first``, ``middle`` or ``every:N``."""
    if rule == "first":
        return range(min(frames, 1))
    if rule == "middle":
        return range(frames // 2, min(frames, frames // 2 + 1))
    step = int(rule.partition(":")[2] or 1)
    return range(min(step, frames) // 2, frames, step)  # from half a step: the first slices are often empty


def _frames(content: bytes, rules: Rules) -> Iterator[tuple[int, int, NDArray[Any], bool]]:
    """Number, how many there are, pixels, and whether depth was lost, of each frame asked for."""
    with opened(io.BytesIO(content), rules.largest_pixels) as image:
        frames = count(image)
        if frames > rules.largest_frames:
            raise Refused(reasons.FRAMES)
        for number in chosen(frames, rules.frames):
            if frames > 1:
                image.seek(number)
                if image.width * image.height > rules.largest_pixels:  # pages of a TIFF differ
                    raise Refused(reasons.PIXELS)
            coded = str(getattr(image, "tile", ""))  # Pillow's names of what it will unpack, e.g. RGB;16B
            reduced = ";16" in coded and not image.mode.startswith("I")
            yield number, frames, pixels_of(image), reduced


def _grey_or_colour(image: Image.Image) -> NDArray[Any]:
    if image.mode.startswith("I;16"):
        deep = np.array(image, dtype=np.uint16)
        return ~deep if _white_is_zero(image) else deep
    if image.mode == "I":
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 0xFFFF:
            raise Refused(reasons.DEEP)
        return wide.astype(np.uint16)
    if image.mode == "F":
        raise Refused(reasons.FLOATING)
    if image.mode in ("1", "L", "LA", "La"):
        return np.array(image.convert("L"))
    colour = np.array(image.convert("RGB"))
    grey = colour[..., 0]
    return grey if np.array_equal(grey, colour[..., 1]) and np.array_equal(grey, colour[..., 2]) else colour


def _white_is_zero(image: Image.Image) -> bool:
    """Whether a 16-bit TIFF is a negative, as film scanners write; Pillow inverts those of fewer bits itself."""
    tags = getattr(image, "tag_v2", None)
    return tags is not None and tags.get(_PHOTOMETRIC) == 0


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1
    return value if isinstance(value, int) else 1


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn and mirror as EXIF 2.32 tag 274 says; values out of range change nothing."""
    if orientation in (2, 3, 7, 8):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 6, 7):
        pixels = pixels[::-1]
    return pixels.swapaxes(0, 1) if orientation in (5, 6, 7, 8) else pixels
