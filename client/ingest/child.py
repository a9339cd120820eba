"""The process in which a stranger's bytes are parsed. It is told nothing, can reach nothing, and dies with its parent.

What it gives up before it reads a first byte (:func:`confine`):

====================  ===============================================================================
``limits``            no file or socket can be opened, no file grows, no core is dumped, no process is
                      started (``RLIMIT_NPROC`` does not bind root); memory and CPU time are bounded
``no-new-privileges`` no set-uid program can give it rights
``namespaces``        a user and a network of its own: no network device, no rights outside
``no-files``          its root directory is an empty one: no path leads to a hospital's files
``no-capabilities``   nor can it take back any of these
====================  ===============================================================================

The first always holds. The others are the kernel's to grant, and some containers do not; the child reports which
did. System calls are not filtered further.

Protocol. Frames are JSON behind a 4-byte length. The first frame in is the ``Rules``, the first out is what holds.
Then for each job a frame in (``role``, ``size``; the file lies in one shared memory) and one out (the pixels lie,
one after the other, in another). End of file ends the process.
"""

from __future__ import annotations

import codecs
import ctypes
import importlib
import json
import logging
import math
import mmap
import os
import resource
import signal
import struct
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from client.ingest import reasons
from client.ingest.kinds import Decoded, Picture, Refused, Rules
from client.ingest.sniff import family

Role = Literal["image", "mask", "identity"]
"""What is asked of a file: its pictures, its masks, or only who and what it is."""

LENGTH = struct.Struct(">I")
"""What stands before each frame of the protocol."""

LONGEST_TEXT = 1024
"""Characters of an identity; DICOM allows 64, and scanners go beyond."""


_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_CLONE_NEWUSER, _CLONE_NEWNET, _CLONE_NEWIPC = 0x10000000, 0x40000000, 0x08000000
_CAPABILITY_VERSION_3 = 0x20080522

_LATE = (
    "client.ingest.deidentify",
    "client.ingest.pixels",
    "client.ingest.segmentation",
    "client.ingest.text_in_pixels",
    "numpy.ma",
)  # what the readers, and numpy, would import only when they need it
Reader = Callable[[bytes, Rules], Decoded]


def main() -> None:
    """``argv``: where the rooms are (read by the bootstrap), the parent's process id, both shared memories."""
    parent, inbox, outbox = (int(value) for value in sys.argv[2:5])
    _die_with(parent)
    requests, replies = _own_pipes()
    warnings.simplefilter("ignore")
    logging.disable()  # what libraries have to say of a file may quote it
    rules = Rules.model_validate_json(_received(requests))
    # Mapped now: once no file can be opened, none can be mapped.
    with mmap.mmap(outbox, rules.memory_mib << 20) as shared, memoryview(shared) as out:
        readers = _readers()
        held = confine(rules)
        _die_with(parent)  # the kernel forgets this when credentials change
        _send(replies, {"held": held})
        while True:
            request = json.loads(_received(requests))
            _grant_seconds(rules.seconds)
            _send(replies, _answer(readers, request["role"], _content(inbox, request["size"]), rules, out))


def confine(rules: Rules) -> list[str]:
    """Give up whatever decoding does not need; names of what holds. There is no way back."""
    libc = ctypes.CDLL(None)
    held = ["limits"]
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123
        idle = int(file.read().split()[0]) * resource.getpagesize()
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        held.append("no-new-privileges")
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC) == 0:
        held.append("namespaces")
    # A directory of one's own that nobody can put a file into, as Chromium's sandbox does it.
    if libc.chroot(b"/proc/self/fdinfo") == 0 and libc.chdir(b"/") == 0:
        held.append("no-files")
    header, none = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(header, none) == 0:
        held.append("no-capabilities")
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)  # no debugger, no core
    for kind, most in (
        (resource.RLIMIT_AS, idle + (rules.memory_mib << 20)),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    return held


def _readers() -> Mapping[tuple[str, Role], Reader]:
    """Every reader by family and role, with all that they import: nothing can be loaded later."""
    import cv2
    from PIL import Image
    from pydicom.charset import python_encoding

    from client.ingest import arrays, dicom, images, volumes

    for late in _LATE:
        importlib.import_module(late)
    for encoding in {*python_encoding.values(), "cp437"}:  # DICOM's, and ZIP's
        codecs.lookup(encoding)
    Image.init()
    cv2.setNumThreads(1)  # a pool has one process a core

    def segmentation(content: bytes, rules: Rules) -> Decoded:
        decoded = dicom.read(content, rules)
        if decoded.pictures:
            raise Refused(reasons.MASKLESS)
        return decoded

    return {
        ("image", "image"): images.read,
        ("image", "mask"): images.read_mask,
        ("volume", "image"): volumes.read,
        ("volume", "mask"): volumes.read_mask,
        ("arrays", "image"): arrays.read,
        ("arrays", "mask"): arrays.read_mask,
        ("dicom", "image"): dicom.read,
        ("dicom", "mask"): segmentation,
        ("dicom", "identity"): lambda content, rules: Decoded(identity=dicom.identify(content)),
    }


def _answer(
    readers: Mapping[tuple[str, Role], Reader], role: Role, content: bytes, rules: Rules, out: memoryview
) -> dict[str, Any]:
    import cv2

    try:
        reader = readers.get((family(content), role))
        return _packed(reader(content, rules) if reader else Decoded(), out)
    except Refused as refused:
        return {"refused": refused.reason.code}
    except MemoryError:
        return {"refused": reasons.MEMORY.code}
    except cv2.error as error:
        return {"refused": reasons.MEMORY.code if error.code == cv2.Error.StsNoMem else reasons.FAILED.code}
    except Exception:  # whatever a library raises for a file that lies; its text may quote the file
        return {"refused": reasons.FAILED.code}


def _packed(decoded: Decoded, out: memoryview) -> dict[str, Any]:
    """``decoded`` as the parent checks it, its pixels copied into ``out``."""
    if any(len(text) > LONGEST_TEXT for text in vars(decoded.identity).values()):
        raise Refused(reasons.IDENTITY)
    end = 0

    def put(pixels: NDArray[Any]) -> list[int]:
        nonlocal end
        start, end = end, end + pixels.nbytes
        if end > len(out):
            raise Refused(reasons.MEMORY)
        out[start:end] = np.ascontiguousarray(pixels).data.cast("B")
        return list(pixels.shape)

    def picture(one: Picture) -> dict[str, Any]:
        return {
            "dtype": one.pixels.dtype.name,
            "shape": put(one.pixels),
            "number": one.number,
            "attributes": dict(one.attributes),
            "labels": one.labels,
            "scale": one.scale,
        }

    return {
        "decoded": {
            "identity": vars(decoded.identity),
            "pictures": [picture(one) for one in decoded.pictures],
            "masks": [
                {"sop": one.sop, "frame": one.frame, "segment": one.segment, "shape": put(one.mask)}
                for one in decoded.masks
            ],
            "warnings": decoded.warnings,
        }
    }


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before we asked
        os._exit(1)


def _own_pipes() -> tuple[int, int]:
    """The pipes to the parent, out of the way of a library that prints."""
    pipes = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nowhere, standard)
    os.close(nowhere)
    return pipes


def _grant_seconds(seconds: float) -> None:
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    most = math.ceil(used + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _content(inbox: int, size: int) -> bytes:
    whole = os.pread(inbox, size, 0)
    while len(whole) < size:  # one call reads 2 GiB at most
        whole += os.pread(inbox, size - len(whole), len(whole))
    return whole


def _received(pipe: int) -> bytes:
    return _exactly(pipe, LENGTH.unpack(_exactly(pipe, LENGTH.size))[0])


def _exactly(pipe: int, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = os.read(pipe, count - len(data))
        if not piece:
            os._exit(0)  # the parent is done, or gone
        data += piece
    return data


def _send(pipe: int, frame: Mapping[str, Any]) -> None:
    data = json.dumps(frame).encode()
    data = LENGTH.pack(len(data)) + data
    while data:
        data = data[os.write(pipe, data) :]
