"""Image files to arrays: the only place that gives a stranger's bytes to Pillow."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from simulations.datasets.source import UnreadableImage, one_line

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "PPM", "WEBP", "GIF", "JPEG2000")
"""Decoders we allow. Pillow has more, and one of them (EPS) starts another program."""
MAX_PIXELS = 64_000_000
"""Largest image read: eight times an 8-megapixel mammogram, and below Pillow's own warning."""
_ORIENTATION = 0x0112


def read_image(path: Path, key: str) -> NDArray[Any]:
    """Pixels ``(H, W)`` uint8 or uint16, or ``(H, W, 3)`` uint8 where the image has true colours.

    Colour files whose channels are all equal are grey; alpha is dropped; EXIF
    orientation is applied. Raises :class:`UnreadableImage` with a one-line reason
    for whatever is wrong with the file.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe would wait for ever
            raise _Refused("is a folder or a device, not an image file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # corrupt EXIF and the like: the pixels decide
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                return _pixels(image)
    except UnreadableImage:
        raise
    except FileNotFoundError:
        reason = "no such file; correct the label sheet or add the file"
    except PermissionError:
        reason = "may not be read; change its permissions"
    except UnidentifiedImageError:
        reason = _not_an_image(path)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        reason = f"has more than {MAX_PIXELS // 1_000_000} million pixels; scale it down"
    except _Refused as error:
        reason = str(error)
    except MemoryError:
        reason = "needs more memory than there is; scale it down"
    # Damaged files make Pillow's decoders raise nearly anything (struct.error, KeyError, zlib.error …).
    except Exception as error:
        reason = f"damaged: {one_line(str(error).replace(str(path), 'file')) or type(error).__name__}"
    raise UnreadableImage(key, reason)


def read_mask(path: Path, key: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Mask ``(H, W)`` uint8 in {0, 1}, 1 where any channel of the file is not 0; the image's ``shape`` is required."""
    try:
        mask = read_image(path, key)
    except UnreadableImage as error:
        raise UnreadableImage(key, f"mask: {error.reason}") from None
    if mask.shape[:2] != shape[:2]:
        height, width = mask.shape[:2]
        raise UnreadableImage(key, f"mask is {width}×{height}, image {shape[1]}×{shape[0]}; draw it on the same pixels")
    return np.asarray(mask.any(axis=2) if mask.ndim == 3 else mask != 0, dtype=np.uint8)


class _Refused(Exception):
    """A readable file that holds no image we take; the text is the reason."""


def _pixels(image: Image.Image) -> NDArray[Any]:
    if image.width * image.height > MAX_PIXELS:
        raise _Refused(f"has more than {MAX_PIXELS // 1_000_000} million pixels; scale it down")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format not in ("JPEG", "MPO"):  # phones add previews as further frames
        raise _Refused(f"holds {frames} frames; export each as its own file")
    turn = _orientation(image)
    pixels = _grey_or_colour(image)
    return np.ascontiguousarray(_upright(pixels, turn))


def _grey_or_colour(image: Image.Image) -> NDArray[Any]:
    if image.mode.startswith("I;16"):
        return np.array(image, dtype=np.uint16)
    if image.mode == "I":
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 0xFFFF:
            raise _Refused("has values outside 0 to 65535; save it with 16 bits")
        return wide.astype(np.uint16)
    if image.mode == "F":
        raise _Refused("has floating-point pixels; save it with 8 or 16 bits")
    if image.mode in ("1", "L", "LA", "La"):
        return np.array(image.convert("L"))
    colour = np.array(image.convert("RGB"))
    grey = colour[..., 0]
    return grey if np.array_equal(grey, colour[..., 1]) and np.array_equal(grey, colour[..., 2]) else colour


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


def _not_an_image(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(132)
    if not head:
        return "is empty; copy it again"
    if head[128:] == b"DICM":
        return "is a DICOM file; export it as PNG"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not an image; fetch the real file with `git lfs pull`"
    return "is no image in a known format (PNG, JPEG, TIFF, BMP, PPM, WebP, GIF, JPEG 2000)"
