"""What a file is, by its first bytes; its name says nothing."""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from typing import Literal

from client.ingest import reasons
from client.ingest.kinds import Reason, Refused

Family = Literal["dicom", "image", "volume", "arrays"]


_IMAGES = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",  # JPEG
    b"II*\0",  # TIFF, and BigTIFF, in both byte orders
    b"MM\0*",
    b"II+\0",
    b"MM\0+",
    b"GIF87a",
    b"GIF89a",
    b"\0\0\0\x0cjP  \r\n\x87\n",  # JPEG 2000
    b"\xff\x4f\xff\x51",
)
_PNM = re.compile(rb"P[1-6][\s#]")
_VR = re.compile(rb"[A-Z]{2}")
_ARCHIVES = (b"Rar!\x1a\x07", b"7z\xbc\xaf\x27\x1c", b"\xfd7zXZ\0", b"BZh")
_NPY = b"\x93NUMPY"
_NIFTI_1, _NIFTI_2 = 348, 540  # sizeof_hdr, the first field of either header


def family(content: bytes) -> Family:
    """Which reader ``content`` is for. Raises :class:`Refused` for what none reads."""
    head = content[:512]
    if not head:
        raise Refused(reasons.EMPTY)
    if head[128:132] == b"DICM":
        return "dicom"
    if head.startswith(_IMAGES) or _PNM.match(head) or _is_bmp(head) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return "image"
    if _is_nifti(head):
        return "volume"
    if head.startswith(b"\x1f\x8b"):
        return _inside_gzip(content)
    if head.startswith(_NPY):
        return "arrays"
    if head.startswith(b"PK\x03\x04"):
        return _inside_zip(content)
    if _is_bare_dicom(head):
        return "dicom"
    raise Refused(_why_not(head))


def _is_bmp(head: bytes) -> bool:
    # two letters are little to go by: the header's size, of any of its versions, is in the next field but two
    return head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in (12, 16, 40, 52, 56, 64, 108, 124)


def _is_nifti(head: bytes) -> bool:
    sizes = {int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")}
    return (_NIFTI_1 in sizes and head[344:347] in (b"n+1", b"ni1")) or (
        _NIFTI_2 in sizes and head[4:7] in (b"n+2", b"ni2")
    )


def _inside_gzip(content: bytes) -> Family:
    try:
        head = zlib.decompressobj(wbits=31).decompress(content, 512)
    except zlib.error:
        raise Refused(reasons.COMPRESSED) from None
    if _is_nifti(head):
        return "volume"
    raise Refused(reasons.COMPRESSED)


def _inside_zip(content: bytes) -> Family:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
    except Exception:  # a damaged directory makes zipfile raise several kinds
        raise Refused(reasons.ARCHIVE) from None
    if names and all(name.endswith(".npy") for name in names):
        return "arrays"
    raise Refused(reasons.ARCHIVE)


def _is_bare_dicom(head: bytes) -> bool:
    """A data set without preamble: starts with group 0002 or 0008 and an element as PS3.5 section 7.1 writes it."""
    if head[:2] in (b"\x02\0", b"\x08\0"):
        order: Literal["little", "big"] = "little"
    elif head[:2] in (b"\0\x02", b"\0\x08"):
        order = "big"
    else:
        return False
    element = int.from_bytes(head[2:4], order)
    length = int.from_bytes(head[4:8], order)  # with an implicit VR
    return len(head) >= 16 and element < 0x3000 and (bool(_VR.match(head[4:6])) or length < 0x10000)


def _why_not(head: bytes) -> Reason:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"version https://git-lfs"):
        return reasons.POINTER
    if start.startswith((b"<!doctype html", b"<html")):
        return reasons.PAGE
    return reasons.ARCHIVE if head.startswith(_ARCHIVES) or head[257:262] == b"ustar" else reasons.UNKNOWN
