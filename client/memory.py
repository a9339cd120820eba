"""What this process does with its memory: keep it for the next batch, and keep it from others."""

from __future__ import annotations

import ctypes
import resource
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h of the GNU C library


def keep_freed_memory() -> bool:
    """Tell the GNU allocator to reuse large blocks; whether it listened (elsewhere there is nothing to tell).

    A training step allocates and frees the same tens of megabytes over and over. By default each
    block above 32 MB at most is mapped and unmapped anew, and the kernel clears every page again:
    a fifth of the quick start's CPU time, and more of its wall time.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, (1 << 31) - 1), (_TOP_PAD, 1 << 26))
    accepted = [mallopt(option, value) == 1 for option, value in settings]
    return all(accepted)


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
