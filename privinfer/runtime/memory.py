"""How the C library's allocator keeps memory in the processes that are ours alone.

glibc hands large blocks back to the kernel at once, and every page of the next one is then faulted in anew:
where each layer moves tens of megabytes this costs as much as the work on them. In a process that stays it
keeps, in a heap for each thread, what threads have freed, unless it is asked for it.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

KEPT_BYTES = 256 << 20
_LARGEST = 32 << 20  # glibc takes no more: larger blocks still come from the kernel
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # malloc.h


def _libc(name: str) -> Any:
    """A function of the C library; None where there is none of that name."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


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
    mallopt = _libc("mallopt")
    wanted = ((_TRIM_THRESHOLD, KEPT_BYTES), (_MMAP_THRESHOLD, _LARGEST), (_ARENA_MAX, 1))
    return mallopt is not None and all(mallopt(option, value) == 1 for option, value in wanted)


def few_arenas() -> None:
    """Let all threads share two heaps in place of eight a core; before any thread is started."""
    if (mallopt := _libc("mallopt")) is not None:
        mallopt(_ARENA_MAX, 2)


def give_back() -> None:
    """Return free memory to the system; some milliseconds."""
    if (trim := _libc("malloc_trim")) is not None:
        trim(0)
