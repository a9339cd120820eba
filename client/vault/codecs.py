"""How pixels are laid down before they are sealed: as they are, or losslessly compressed.

``jpeg-ls`` is JPEG-LS (ISO/IEC 14495-1, ITU-T T.87) through CharLS. On real radiographs it takes 2.3 to 2.8
times less room than raw pixels, more than PNG and as much as JPEG 2000, and decodes some five times quicker
than the latter (docs/decisions/0008). Signed pixels travel with their sign bit flipped, which keeps their
order and hence their smoothness.

A compressed image tells who has the file, but not the key, how well it compresses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.vault.records import Form, pixel_bytes

RAW, JPEG_LS = "raw", "jpeg-ls"
CODECS = (RAW, JPEG_LS)
_SIGN = 0x8000


def pack(pixels: NDArray[Any], codec: str) -> tuple[str, bytes | memoryview]:
    """``pixels`` as bytes in ``codec``, with the codec used: raw where compression gains nothing.

    What was compressed is decompressed again and compared before it is believed.
    """
    if codec == RAW:
        return RAW, pixel_bytes(pixels)
    if codec != JPEG_LS:
        raise ValueError(f"codec must be one of {', '.join(CODECS)}, got {codec!r}")
    import jpeg_ls  # type: ignore[import-untyped]

    plain = np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<"))
    if plain.dtype == np.int16:
        plain = plain.view(np.uint16) ^ np.uint16(_SIGN)
    height, width, *colours = plain.shape
    # At least 9 bits for two bytes a pixel, or CharLS takes the buffer for one byte a pixel.
    bits = 8 if plain.itemsize == 1 else max(9, int(plain.max()).bit_length())
    try:
        packed = bytes(
            jpeg_ls.encode_buffer(plain.tobytes(), height, width, 3 if colours else 1, bits, 0, 2 if colours else None)
        )
    except RuntimeError:  # it would be longer than the pixels
        return RAW, pixel_bytes(pixels)
    if len(packed) >= pixels.nbytes or not np.array_equal(_decoded(packed, plain.dtype, plain.shape), plain):
        return RAW, pixel_bytes(pixels)
    return JPEG_LS, packed


def unpack(packed: NDArray[np.uint8], form: Form) -> NDArray[Any]:
    """The inverse of :func:`pack` for JPEG-LS bytes that were authenticated: a writable array of ``form``."""
    signed = form.dtype == "int16"
    pixels = _decoded(packed, np.dtype("uint16") if signed else form.stored, form.shape)
    return (pixels ^ np.uint16(_SIGN)).view(np.int16) if signed else pixels


def _decoded(packed: bytes | NDArray[np.uint8], dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    import jpeg_ls

    plain, _ = jpeg_ls.decode_buffer(bytes(packed))
    return np.frombuffer(plain, dtype).reshape(shape)
