"""Image files of a data set to arrays, with the item's key and a one-line reason where one cannot be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.ingest import images, reasons
from client.ingest.kinds import Refused
from simulations.datasets.source import UnreadableImage, one_line

MAX_PIXELS = 64_000_000
"""Largest image read: eight times an 8-megapixel mammogram, and below Pillow's own warning."""


def read_image(path: Path, key: str) -> NDArray[Any]:
    """Pixels ``(H, W)`` uint8 or uint16, or ``(H, W, 3)`` uint8 where the image has true colours.

    Colour files whose channels are all equal are grey; alpha is dropped; EXIF
    orientation is applied. Raises :class:`UnreadableImage` with a one-line reason
    for whatever is wrong with the file.
    """
    if path.exists() and not path.is_file():  # a pipe would wait for ever
        raise UnreadableImage(key, "is a folder or a device, not an image file")
    frames = 1
    try:
        with images.opened(str(path), MAX_PIXELS) as image:
            frames = images.count(image)
            if frames == 1:
                return images.pixels_of(image)
        reason = f"holds {frames} frames; export each as its own file"
    except FileNotFoundError:
        reason = "no such file; correct the label sheet or add the file"
    except PermissionError:
        reason = "may not be read; change its permissions"
    except MemoryError:
        reason = "needs more memory than there is; scale it down"
    except Refused as refused:
        reason = _reason(refused, path)
    raise UnreadableImage(key, reason)


def read_array(path: Path, key: str) -> NDArray[Any]:
    """Pixels ``(H, W)`` or ``(H, W, 3)`` uint8, uint16 or int16 of an ``.npy`` file; Hounsfield units are int16.

    Never unpickled. Raises :class:`UnreadableImage`.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UnreadableImage(key, "no such file; add it") from None
    except (ValueError, OSError, EOFError):
        raise UnreadableImage(key, "is no .npy file of numbers; save it again") from None
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if not fits or array.dtype not in (np.uint8, np.uint16, np.int16) or not 0 < array.size <= MAX_PIXELS:
        raise UnreadableImage(key, f"is {array.dtype} {array.shape}; save (H, W) of uint8, uint16 or int16")
    return np.array(array)


def read_mask(path: Path, key: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Mask ``(H, W)`` uint8 in {0, 1}, 1 where any channel of the file is not 0; the image's ``shape`` is required."""
    try:
        mask = images.drawn(read_image(path, key))
    except UnreadableImage as error:
        raise UnreadableImage(key, f"mask: {error.reason}") from None
    if mask.shape[:2] != shape[:2]:
        height, width = mask.shape[:2]
        raise UnreadableImage(key, f"mask is {width}×{height}, image {shape[1]}×{shape[0]}; draw it on the same pixels")
    return mask


def _reason(refused: Refused, path: Path) -> str:
    if refused.reason is reasons.UNKNOWN:
        return _not_an_image(path)
    if refused.reason is reasons.PIXELS:
        return f"has more than {MAX_PIXELS // 1_000_000} million pixels; scale it down"
    if refused.reason is reasons.DAMAGED:
        cause = refused.__cause__
        return f"damaged: {one_line(str(cause).replace(str(path), 'file')) or type(cause).__name__}"
    return f"{refused.reason.reason}; {refused.reason.remedy}"


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
