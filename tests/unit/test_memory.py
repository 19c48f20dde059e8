"""Freed memory is kept: a block that comes again costs no page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROBE = """
import resource
from privinfer.runtime import memory

def faults(size):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytes(bytearray(size))
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

assert memory.keep_freed() and memory.keep_freed()
faults(16 << 20)
print(faults(16 << 20))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone has these options")
def test_a_block_that_comes_again_is_not_faulted_in_again() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2 * (16 << 20) // 4096 / 10
