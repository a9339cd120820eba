"""What this process does with its memory: keep it from others."""

from __future__ import annotations

import ctypes
import resource
import sys

_PR_SET_DUMPABLE = 4  # prctl(2)


def protect() -> bool:
    """Keep decrypted images out of core dumps and from other processes of this user; whether the kernel agreed.

    The process is marked as one that may not be dumped or traced, which also holds where dumps are piped to a
    program and the size limit is not asked.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if not sys.platform.startswith("linux"):
        return False
    return bool(ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0)
