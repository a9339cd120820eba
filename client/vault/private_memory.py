"""Memory for decrypted images: left out of core dumps and, as far as the system allows, never swapped out."""

from __future__ import annotations

import ctypes
import mmap
import resource
from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch
from torch import Tensor


def private_tensor(shape: Sequence[int]) -> Tensor:
    """Zeros of ``shape``, uint8, on pages of their own that no core dump holds (``MADV_DONTDUMP``).

    They are locked (``mlock(2)``) where the process may still lock so many bytes under ``RLIMIT_MEMLOCK``, which also
    binds root here: a view must not take the memory that the rest of the machine needs. The pages go back to the
    system, and the lock with them, when the last tensor that shares them goes.
    """
    size = prod(shape)
    if size == 0:
        return torch.empty(tuple(shape), dtype=torch.uint8)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_DONTDUMP"):  # Linux; elsewhere ``client.memory.protect`` alone keeps dumps away
        pages.madvise(mmap.MADV_DONTDUMP)
    tensor = torch.frombuffer(pages, dtype=torch.uint8)  # keeps ``pages`` alive
    if _lockable(size):
        # A refusal (a container's filter) leaves memory that is not locked, which is allowed.
        ctypes.CDLL(None).mlock(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(size))
    return tensor.reshape(tuple(shape))


def _lockable(size: int) -> bool:
    """Whether ``size`` bytes more may be locked."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        return True
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return False
    locked = next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmLck:")), 0)
    return locked + mmap.PAGESIZE + size <= limit
