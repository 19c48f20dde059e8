"""What every test must leave behind: no thread, no child, no open file, no socket, no temporary file."""

import gc
import os
import tempfile
import threading
import time
from pathlib import Path

import pytest


def children():
    """Processes whose parent is this one, zombies too."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        try:
            found |= set((task / "children").read_text().split())
        except OSError:
            continue
    return found


def descriptors():
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue  # the one that listed them
    return found


@pytest.fixture(autouse=True)
def nothing_left(tmp_path_factory, monkeypatch):
    """No thread, child, descriptor or temporary file survives a test."""
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr(tempfile, "tempdir", None)
    threads, before, kids = set(threading.enumerate()), descriptors(), children()
    yield
    until = time.monotonic() + 15
    while time.monotonic() < until:
        extra = set(threading.enumerate()) - threads
        if not extra and len(descriptors()) <= len(before) and not children() - kids:
            break
        gc.collect()
        time.sleep(0.01)
    assert set(threading.enumerate()) - threads == set()
    assert children() - kids == set()
    after = descriptors()
    assert len(after) <= len(before), {k: v for k, v in after.items() if k not in before}
    # torch's own cache is not ours to remove
    assert not [name for name in os.listdir(temporary) if not name.startswith("torchinductor")]
