"""What this process does with its memory: keep it for the next batch, or the next model."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h of the GNU C library


def keep_freed_memory() -> bool:
    """Tell the GNU allocator to reuse large blocks; whether it listened (elsewhere there is nothing to tell).

    A training step allocates and frees the same tens of megabytes over and over, and so does a coordinator that takes
    one reply after another. By default each block above 32 MB at most is mapped and unmapped anew, and the kernel
    clears every page again: a fifth of the quick start's CPU time, and more of its wall time.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_MMAP_THRESHOLD, 1 << 30), (_TRIM_THRESHOLD, (1 << 31) - 1), (_TOP_PAD, 1 << 26))
    accepted = [mallopt(option, value) == 1 for option, value in settings]
    return all(accepted)
