from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from privinfer.errors import ConfigError, IntegrityError
from privinfer.runtime.store import Store

SESSION, OTHER, TAG = b"s" * 32, b"o" * 32, b"g" * 32


def opened(folder: Path, session: bytes = SESSION, party: str = "hospital", budget: int = 1 << 20) -> Store:
    return Store(folder / "store", session, party, budget)


def filled(folder: Path, pieces: int = 3) -> Store:
    store = opened(folder)
    store.begin(TAG, 2, b"setup")
    for k in range(pieces):
        store.add(TAG, k, b"piece %d" % k)
    return store


def test_each_piece_is_handed_out_once(tmp_path):
    with filled(tmp_path) as store:
        offer = store.offer()
        assert offer is not None
        assert (offer.generation, offer.number, offer.end, offer.batch) == (TAG, 0, 3, 2)
        assert store.setup(TAG) == b"setup"
        assert store.take(TAG, 0) == b"piece 0"
        with pytest.raises(IntegrityError, match="used before"):
            store.take(TAG, 0)
    with opened(tmp_path) as store:
        offer = store.offer()
        assert offer is not None
        assert (offer.number, offer.first) == (1, 0)  # where the generation began is not forgotten
        with pytest.raises(IntegrityError, match="used before"):
            store.take(TAG, 0)


def test_what_lies_before_a_piece_is_burned_with_it(tmp_path):
    with filled(tmp_path) as store:
        assert store.take(TAG, 2) == b"piece 2"
        for k in range(3):
            with pytest.raises(IntegrityError):
                store.take(TAG, k)
        assert store.offer() is None
        assert not list((tmp_path / "store").glob(f"{TAG.hex().upper()}-[0-9]*.bin"))


KILLED = """
import os, signal, sys
from pathlib import Path
from privinfer.runtime.store import Store
store = Store(Path(sys.argv[1]), b"s" * 32, "hospital")
if sys.argv[2] == "read":  # the bytes were read, and the process dies before it used them
    store.take(b"g" * 32, 0)
else:  # the mark is on disk, and the process dies before it read the bytes
    store._read = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
    store.take(b"g" * 32, 0)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("when", ["read", "marked"])
def test_after_kill_9_a_piece_is_lost_and_never_used_twice(tmp_path, when):
    filled(tmp_path).close()
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "store"), when], check=False, timeout=60
    )
    assert done.returncode == -signal.SIGKILL
    with opened(tmp_path) as store:
        with pytest.raises(IntegrityError, match="used before"):
            store.take(TAG, 0)
        offer = store.offer()
        assert offer is not None
        assert offer.number == 1
        assert not (tmp_path / "store" / f"{TAG.hex().upper()}-0.bin").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_piece_is_refused_and_stays_used(tmp_path, damage):
    with filled(tmp_path) as store:
        file = tmp_path / "store" / f"{TAG.hex().upper()}-1.bin"
        data = file.read_bytes()
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes(data[:-1] if damage == "cut" else data[:-1] + b"?")
        with pytest.raises(IntegrityError, match="damaged or cut off") as caught:
            store.take(TAG, 1)
        assert caught.value.culprit == "hospital"
        with pytest.raises(IntegrityError, match="used before"):
            store.take(TAG, 1)
        assert store.take(TAG, 2) == b"piece 2"


def test_a_damaged_setup_is_refused(tmp_path):
    with filled(tmp_path) as store:
        (tmp_path / "store" / f"{TAG.hex().upper()}-setup.bin").write_bytes(b"other")
        with pytest.raises(IntegrityError, match="damaged"):
            store.setup(TAG)
        with pytest.raises(IntegrityError, match="does not have"):
            store.setup(b"x" * 32)


def test_a_damaged_index_is_refused(tmp_path):
    filled(tmp_path).close()
    for file in (tmp_path / "store").glob("store.sqlite*"):
        file.write_bytes(b"no database at all" * 100)
    with pytest.raises(IntegrityError, match="is damaged"):
        opened(tmp_path)
    with pytest.raises(IntegrityError, match="is damaged"):  # and the first try left it unlocked
        opened(tmp_path)


def test_opened_twice(tmp_path):
    with filled(tmp_path), pytest.raises(ConfigError, match="open in another process"):
        opened(tmp_path)
    opened(tmp_path).close()


def test_another_session_or_party(tmp_path):
    filled(tmp_path).close()
    with opened(tmp_path, session=OTHER) as store:
        assert store.offer() is None
    with pytest.raises(ConfigError, match="belongs to hospital"):
        opened(tmp_path, party="laboratory")


def test_the_budget_holds(tmp_path):
    with opened(tmp_path, budget=20) as store:
        store.begin(TAG, 1, b"setup")
        store.add(TAG, 0, b"0123456789")
        assert store.held() == 15
        with pytest.raises(ConfigError, match="the store is full: 25 bytes"):
            store.add(TAG, 1, b"0123456789")
        store.take(TAG, 0)
        store.add(TAG, 1, b"0123456789")  # what was used makes room


def test_a_new_generation_takes_the_place_of_the_old(tmp_path):
    with filled(tmp_path) as store:
        store.begin(b"h" * 32, 1, b"new")
        store.add(b"h" * 32, 7, b"new piece")
        offer = store.offer()
        assert offer is not None
        assert (offer.generation, offer.number) == (b"h" * 32, 7)
        with pytest.raises(IntegrityError):
            store.take(TAG, 0)
        assert len(list((tmp_path / "store").glob("*.bin"))) == 2


def test_what_a_crash_left_half_written_is_swept(tmp_path):
    filled(tmp_path).close()
    stray = tmp_path / "store" / f"{TAG.hex().upper()}-9.bin"
    stray.write_bytes(b"half")
    with opened(tmp_path) as store:
        assert not stray.exists()
        assert store.take(TAG, 0) == b"piece 0"


def test_nobody_else_can_read_it(tmp_path):
    with filled(tmp_path):
        folder = tmp_path / "store"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for file in folder.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file.name


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk(tmp_path, monkeypatch):
    with filled(tmp_path) as store:
        real = os.open
        monkeypatch.setattr(
            os, "open", lambda f, *a, **k: real("/dev/full" if "-5.bin" in str(f) else f, *a, **k)
        )
        with pytest.raises(ConfigError, match="no space left"):
            store.add(TAG, 5, b"x")
