"""NumPy's files, ``.npy`` and ``.npz``, to images: whole numbers only, and never a pickle.

An ``.npz`` holds its images as ``images`` (or ``image``, ``x``, ``data``, ``arr_0``; for masks ``masks`` or
``mask`` first), shaped ``(H, W)``, ``(N, H, W)``, ``(N, H, W, 1)``, ``(H, W, 3)`` or ``(N, H, W, 3)``, and may
hold one label each as ``labels`` (or ``label``, ``y``). Other arrays are left behind. uint8 stays; bool becomes
0 and 255; other whole numbers become uint16, or, with negatives, int16 (Hounsfield units).
Format: NumPy's ``numpy.lib.format``.
"""

from __future__ import annotations

import io
import math
import zipfile
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from client.ingest import reasons
from client.ingest.images import drawn, fitted
from client.ingest.kinds import Decoded, Picture, Refused, Rules, looks_personal

_IMAGES = ("images", "image", "x", "X", "data", "arr_0")
_MASKS = ("masks", "mask", *_IMAGES)
_LABELS = ("labels", "label", "y")
_SPLITS = {"train_images", "val_images", "test_images"}
_LONGEST_LABEL = 64


def read(content: bytes, rules: Rules) -> Decoded:
    """Every image of the file, numbered from 0, with its label where there are labels. Raises :class:`Refused`."""
    images, labels = _arrays(content, rules, _IMAGES)
    pictures = []
    for number, image in enumerate(images):
        pixels, scale = fitted(np.ascontiguousarray(image), rules)
        attributes = {"bits": str(8 * pixels.dtype.itemsize)}
        pictures.append(Picture(pixels, number, attributes, labels[number : number + 1], scale))
    return Decoded(pictures=tuple(pictures))


def read_mask(content: bytes, rules: Rules) -> Decoded:
    """As :func:`read`, but each picture is a mask ``(H, W)`` uint8, 1 where the array is not 0."""
    masks, _ = _arrays(content, rules, _MASKS)
    pictures = []
    for number, mask in enumerate(masks):
        pixels, scale = fitted(drawn(mask), rules, mask=True)
        pictures.append(Picture(pixels, number, scale=scale))
    return Decoded(pictures=tuple(pictures))


def _arrays(content: bytes, rules: Rules, names: tuple[str, ...]) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Images ``(N, H, W)`` or ``(N, H, W, 3)`` of a type that a vault takes, and N labels or none."""
    try:
        if not content.startswith(b"PK"):
            return _stacked(_array(io.BytesIO(content), rules), rules), ()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            found = {name.removesuffix(".npy") for name in archive.namelist()}
            if found >= _SPLITS:
                raise Refused(reasons.SPLITS)
            name = next((name for name in names if name in found), None)
            if name is None:
                raise Refused(reasons.NAMELESS)
            with archive.open(f"{name}.npy") as stream:
                images = _stacked(_array(stream, rules), rules)
            name = next((name for name in _LABELS if name in found), None)
            if name is None:
                return images, ()
            with archive.open(f"{name}.npy") as stream:
                return images, _labels(_array(stream, rules), len(images))
    except (Refused, MemoryError):
        raise
    except Exception as error:  # zipfile and numpy raise nearly anything for a file that lies
        raise Refused(reasons.DAMAGED) from error


def _array(stream: IO[bytes], rules: Rules) -> NDArray[Any]:
    """One array; its header's promises are checked before any of its data is unpacked."""
    version = npy.read_magic(stream)
    if version == (1, 0):
        shape, fortran, dtype = npy.read_array_header_1_0(stream)
    elif version == (2, 0):
        shape, fortran, dtype = npy.read_array_header_2_0(stream)
    else:
        raise Refused(reasons.DAMAGED)
    if dtype.hasobject:
        raise Refused(reasons.PICKLED)
    if min(shape, default=0) < 1 or dtype.itemsize == 0:
        raise Refused(reasons.SHAPE)
    length = math.prod(shape) * dtype.itemsize
    if length > rules.largest_bytes:
        raise Refused(reasons.LARGE)
    data = stream.read(length)
    if len(data) < length:
        raise Refused(reasons.DAMAGED)
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _stacked(array: NDArray[Any], rules: Rules) -> NDArray[Any]:
    colour = array.ndim >= 3 and array.shape[-1] in (1, 3) and array.ndim <= 4
    if array.ndim == (3 if colour else 2):
        array = array[np.newaxis]
    if array.ndim != (4 if colour else 3):
        raise Refused(reasons.SHAPE)
    if len(array) > rules.largest_frames:
        raise Refused(reasons.FRAMES)
    if array.shape[1] * array.shape[2] > rules.largest_pixels:
        raise Refused(reasons.PIXELS)
    if colour and array.shape[-1] == 1:
        array, colour = array[..., 0], False
    if array.dtype.kind in "fc":
        raise Refused(reasons.FLOATING)
    if array.dtype.kind not in "biu":
        raise Refused(reasons.SHAPE)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype != np.uint8:
        least, most = int(array.min()), int(array.max())
        if colour or most > 0xFFFF or (least < 0 and (least < -0x8000 or most > 0x7FFF)):
            raise Refused(reasons.DEEP)
        return array.astype(np.int16 if least < 0 else np.uint16)
    if colour and bool((array == array[..., :1]).all()):
        return array[..., 0]
    return array


def _labels(array: NDArray[Any], count: int) -> tuple[str, ...]:
    if array.size != count or array.shape not in ((count,), (count, 1)) or array.dtype.kind not in "biuU":
        raise Refused(reasons.LABELS)
    labels = tuple(str(int(label) if array.dtype.kind == "b" else label).strip() for label in array.ravel().tolist())
    if not all(len(label) <= _LONGEST_LABEL and label.isprintable() for label in labels):
        raise Refused(reasons.LABELS)
    if any(map(looks_personal, set(labels))):
        raise Refused(reasons.PERSONAL)
    return labels
