"""A share of a ciphertext leaves once: in memory, on disk, after a crash."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from privinfer.errors import ConfigError, IntegrityError, ProtocolViolation
from privinfer.protocols.ckks import sampling
from privinfer.protocols.ckks.release import Entry, Releases, ciphertext_digest, volatile
from privinfer.runtime.ledger import ReleaseLedger
from tests.support.ckks import SESSION, SMALL


def c1(level=2):
    return sampling.uniform(SMALL, 1, SMALL.data(level))[0]


def test_a_step_and_a_ciphertext_are_released_once():
    releases, x, y = Releases(SESSION, volatile), c1(), c1()
    releases.claim("refresh 1", x)
    with pytest.raises(IntegrityError, match="step 'refresh 1': a share was released before") as e:
        releases.claim("refresh 1", y, "startup")
    assert e.value.culprit == "startup"
    with pytest.raises(
        IntegrityError, match="step 'refresh 2': a share of this ciphertext was released before"
    ):
        releases.claim("refresh 2", x)
    releases.claim("refresh 2", y)


def test_dropped_limbs_make_no_other_ciphertext():
    x = c1(4)
    assert ciphertext_digest(x) == ciphertext_digest(x[:2])
    releases = Releases(SESSION, volatile)
    releases.claim("a", x)
    with pytest.raises(IntegrityError, match="this ciphertext"):
        releases.claim("b", x[:1])


def test_several_are_granted_together_or_not_at_all():
    releases, x, y, z = Releases(SESSION, volatile), c1(), c1(), c1()
    releases.claim("a", x)
    with pytest.raises(IntegrityError):
        releases.claim_all({"b": y, "c": x})
    with pytest.raises(IntegrityError, match="this ciphertext"):
        releases.claim_all({"b": y, "c": y})
    permits = releases.claim_all({"b": y, "c": z})
    permits["b"].use(y)
    with pytest.raises(IntegrityError, match="another ciphertext"):
        permits["c"].use(y)
    with pytest.raises(IntegrityError, match="a second share"):
        permits["c"].use(z)


def test_only_steps_of_the_plan():
    releases = Releases(SESSION, volatile, steps=["refresh 1", "result"])
    releases.claim("result", c1())
    with pytest.raises(ProtocolViolation, match="no step of the plan") as e:
        releases.claim("logits", c1(), "startup")
    assert (e.value.culprit, e.value.step) == ("startup", "logits")


def test_the_entry_is_durable_before_the_permit():
    order = []

    def record(entries):
        order.append([e.step for e in entries])
        raise OSError("the disk is full")

    releases, x = Releases(SESSION, record), c1()
    with pytest.raises(OSError, match="full"):
        releases.claim("a", x)
    assert order == [["a"]]
    with pytest.raises(IntegrityError):  # it may be on disk: burned
        releases.claim("a", x)


# -- on disk ---------------------------------------------------------------------------------------


def entry(number: int, step: str | None = None, session: bytes = SESSION) -> Entry:
    return Entry(session, f"step {number}" if step is None else step, bytes([number]) * 32)


def test_entries_outlive_the_process(tmp_path):
    with ReleaseLedger(tmp_path / "ledger", "hospital") as ledger:
        ledger.record([entry(1), entry(2)])
    assert stat.S_IMODE(os.stat(tmp_path / "ledger").st_mode) == 0o700
    assert stat.S_IMODE(os.stat(tmp_path / "ledger" / "ledger.sqlite").st_mode) == 0o600
    with ReleaseLedger(tmp_path / "ledger", "hospital") as ledger:
        assert len(ledger) == 2
        for again in (entry(1, "other step"), entry(3, "step 2"), entry(1, "x", b"t" * 32)):
            with pytest.raises(IntegrityError, match="released before") as e:
                ledger.record([entry(9), again])
            assert e.value.culprit == "hospital"
        assert len(ledger) == 2  # all or none
        ledger.record([entry(4, "step 2", b"t" * 32)])  # another session has a step of that name


def test_a_ledger_refuses_what_releases_of_a_new_process_would_grant(tmp_path):
    x = c1()
    with ReleaseLedger(tmp_path, "hospital") as ledger:
        Releases(SESSION, ledger.record).claim("result", x)
    with ReleaseLedger(tmp_path, "hospital") as ledger:
        releases = Releases(SESSION, ledger.record)
        with pytest.raises(IntegrityError, match="released before"):
            releases.claim("result", c1())
        with pytest.raises(IntegrityError, match="released before"):
            releases.claim("another", np.ascontiguousarray(x))


def test_one_process_one_party_and_no_damage(tmp_path):
    with ReleaseLedger(tmp_path, "hospital") as ledger:
        with pytest.raises(ConfigError, match="open in another process"):
            ReleaseLedger(tmp_path, "hospital")
        ledger.record([entry(1)])
    with pytest.raises(ConfigError, match="closed"):
        ledger.record([entry(2)])
    with pytest.raises(ConfigError, match="belongs to hospital"):
        ReleaseLedger(tmp_path, "laboratory")
    (tmp_path / "ledger.sqlite").write_bytes(b"not a database" * 1000)
    with pytest.raises(IntegrityError, match="damaged"):
        ReleaseLedger(tmp_path, "hospital")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        ReleaseLedger(tmp_path / "file", "hospital")


KILLED = """
import os, signal, sys
from privinfer.protocols.ckks.release import Entry
from privinfer.runtime.ledger import ReleaseLedger
ledger = ReleaseLedger(sys.argv[1], "hospital")
for k in range(int(sys.argv[2])):
    ledger.record([Entry(b"s" * 32, f"step {k}", bytes([k]) * 32)])
    print(k, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed_after_recording(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), "3"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    with ReleaseLedger(tmp_path, "hospital") as ledger:
        assert len(ledger) == len(done.stdout.split()) == 3
        for k in range(3):
            with pytest.raises(IntegrityError):
                ledger.record([entry(k)])
