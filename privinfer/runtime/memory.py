"""Memory that is given back and wanted again a moment later, as the buffers of messages and tensors are.

glibc hands large blocks back to the kernel at once, and every page of the next one is then faulted in anew:
where each layer moves tens of megabytes this costs as much as the work on them.
"""

from __future__ import annotations

import ctypes
import functools
import sys

KEPT_BYTES = 256 << 20
_LARGEST = 32 << 20  # glibc takes no more: larger blocks still come from the kernel
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h


@functools.cache
def keep_freed() -> bool:
    """Have malloc keep up to KEPT_BYTES of freed memory, in one arena, for the rest of this process.

    What is freed is not wiped, as it never was, and now stays in the process until it is used again: nobody
    reads it who could not read live memory.

    Returns
    -------
    bool
        Whether the allocator took it; another than glibc's is left as it is.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = ((_TRIM_THRESHOLD, KEPT_BYTES), (_MMAP_THRESHOLD, _LARGEST), (_ARENA_MAX, 1))
    return all(mallopt(option, value) == 1 for option, value in wanted)
