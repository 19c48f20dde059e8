"""An owner's ledger of consents, and the folder it and its likes lie in: durable, one at a time, honest."""

from __future__ import annotations

import dataclasses
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from privinfer.errors import ConfigError, ConsentError, IntegrityError
from privinfer.runtime import folder, uses
from privinfer.runtime.uses import State, Uses
from privinfer.session import weights_opening
from privinfer.session.consent import Consent
from tests.adversarial import stage
from tests.support import consents as kit

TAG = b"s" * 32
ONE = kit.consent(uses=2)
SIGNED = kit.signed(ONE)


def test_uses_are_counted_over_sessions_and_restarts(tmp_path: Path) -> None:
    assert Uses(tmp_path / "uses", "hospital").spend(ONE, SIGNED, TAG, 0) == 1
    assert stat.S_IMODE(os.stat(tmp_path / "uses").st_mode) == 0o700
    assert stat.S_IMODE(os.stat(tmp_path / "uses" / "uses.sqlite").st_mode) == 0o600
    ledger = Uses(tmp_path / "uses", "hospital")
    with pytest.raises(IntegrityError, match="spent for this run before"):
        ledger.spend(ONE, SIGNED, TAG, 0)
    assert ledger.spend(ONE, SIGNED, b"t" * 32, 0) == 0
    with pytest.raises(ConsentError, match="used up: hospital has shared 2 times") as e:
        ledger.spend(ONE, SIGNED, b"u" * 32, 0)
    assert e.value.culprit == "patient"
    assert ledger.state(ONE) == State(2, None)
    other = kit.consent()
    assert ledger.state(other) == State(0, None)
    assert ledger.spend(other, kit.signed(other), TAG, 0) == 0


def test_a_revoked_consent_is_refused_whenever_the_ledger_hears_of_it(tmp_path: Path) -> None:
    ledger = Uses(tmp_path, "hospital")
    ledger.spend(ONE, SIGNED, TAG, 0)
    gone = kit.revocation(ONE)
    assert ledger.revoke(gone, kit.signed(gone))
    assert not ledger.revoke(dataclasses.replace(gone, time=5), b"")
    for again in (ledger, Uses(tmp_path, "hospital")):
        with pytest.raises(ConsentError, match="was revoked at 2027-01-15 08:00:00 UTC"):
            again.spend(ONE, SIGNED, TAG, 1)
    assert ledger.state(ONE) == State(1, 1_800_000_000)


def test_nobody_revokes_for_another(tmp_path: Path) -> None:
    ledger = Uses(tmp_path, "hospital")
    ledger.revoke(dataclasses.replace(kit.revocation(ONE), certificate=bytes(32)), b"")
    assert ledger.spend(ONE, SIGNED, TAG, 0) == 1


def test_a_number_stands_for_one_document(tmp_path: Path) -> None:
    ledger = Uses(tmp_path, "hospital")
    ledger.spend(ONE, SIGNED, TAG, 0)
    more = dataclasses.replace(ONE, uses=100)
    with pytest.raises(ConsentError, match="another consent has the same number"):
        ledger.spend(more, kit.signed(more), TAG, 1)


def test_of_many_sessions_at_once_as_many_as_allowed_get_a_use(tmp_path: Path) -> None:
    one = kit.consent(uses=3)
    signed, got, refused = kit.signed(one), [], []

    def session(k: int) -> None:
        try:
            got.append(Uses(tmp_path, "hospital").spend(one, signed, bytes([k]) * 32, 0))
        except ConsentError as error:
            refused.append(error)

    threads = [threading.Thread(target=session, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(got) == [0, 1, 2]
    assert len(refused) == 5


KILLED = """
import os, signal, sys
from privinfer.runtime import folder
from privinfer.runtime.uses import Uses
from privinfer.session.consent import Consent
signed = open(sys.argv[2], "rb").read()
ledger = Uses(sys.argv[1], "hospital")
if sys.argv[3] == "within":  # the entry was written and not committed
    rows = folder.Folder.rows
    def die(self, query, *values):
        if query == "COMMIT":
            os.kill(os.getpid(), signal.SIGKILL)
        return rows(self, query, *values)
    folder.Folder.rows = die
ledger.spend(Consent.read(signed), signed, b"s" * 32, 0)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("moment", "spent"), [("after", 1), ("within", 0)])
def test_a_use_outlives_kill_9(tmp_path: Path, moment: str, spent: int) -> None:
    (tmp_path / "consent").write_bytes(SIGNED)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "uses"), str(tmp_path / "consent"), moment],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert Uses(tmp_path / "uses", "hospital").state(ONE).spent == spent


def test_one_owner_and_no_damage(tmp_path: Path, monkeypatch: Any) -> None:
    Uses(tmp_path, "hospital")
    with pytest.raises(ConfigError, match=r"uses .* belongs to hospital"):
        Uses(tmp_path, "laboratory")
    monkeypatch.setattr(uses, "WAIT", 0.05)
    held = folder.Folder(tmp_path, "uses", "", "hospital", damaged="x")
    with pytest.raises(ConfigError, match="open in another process"):
        Uses(tmp_path, "hospital")
    held.close()
    with pytest.raises(ConfigError, match="is closed"):
        held.rows("SELECT 1")
    for file in tmp_path.glob("uses.sqlite*"):
        file.write_bytes(b"no database" * 1000)
    with pytest.raises(IntegrityError, match="damaged") as e:
        Uses(tmp_path, "hospital")
    assert e.value.culprit == "hospital"
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used"):
        Uses(tmp_path / "file", "hospital")


def test_a_full_disk_spends_nothing_and_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    ledger = Uses(tmp_path, "hospital")
    opened = ledger._open

    def small() -> folder.Folder:
        at = opened()
        at.rows("PRAGMA max_page_count = 1")
        return at

    monkeypatch.setattr(ledger, "_open", small)
    with pytest.raises(ConfigError, match="cannot be used: database or disk is full"):
        ledger.spend(ONE, SIGNED + bytes(1 << 20), TAG, 0)
    monkeypatch.undo()
    assert ledger.state(ONE) == State(0, None)


# -- the opening of a commitment to weights ----------------------------------------------------------

STARTUP = stage.identity("startup")
SECRET = bytes(range(32))


def written(path: Path) -> Path:
    weights_opening.write(path, STARTUP, SECRET, architecture=b"a" * 32, commitment=b"c" * 32)
    return path


def test_an_opening_opens_with_its_identity_only(tmp_path: Path) -> None:
    file = written(tmp_path / "risk.opening")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert SECRET not in file.read_bytes()
    found = weights_opening.read(file, STARTUP)
    assert (found.owner, found.architecture, found.commitment) == ("startup", b"a" * 32, b"c" * 32)
    assert found.secret == SECRET
    assert weights_opening.read(file).secret == b""
    assert "hidden" in repr(found)
    assert str(SECRET) not in repr(found)
    with pytest.raises(TypeError):
        found.__reduce__()
    for who in (stage.identity("helper"), type(STARTUP).generate("startup", days=2)):
        with pytest.raises(ConfigError, match="of another identity"):
            weights_opening.read(file, who)
    with pytest.raises(ConfigError, match="exists already"):
        written(file)
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by others"):
        weights_opening.read(file, STARTUP)


def test_a_changed_byte_of_an_opening_is_noticed(tmp_path: Path) -> None:
    file = written(tmp_path / "risk.opening")
    good = file.read_bytes()
    for at in [*range(24), *range(24, len(good), 7), len(good) - 1]:
        data = bytearray(good)
        data[at] ^= 1
        file.write_bytes(data)
        with pytest.raises((ConfigError, IntegrityError)):
            weights_opening.read(file, STARTUP)


def test_consents_are_read_as_they_were_signed() -> None:
    assert Consent.read(SIGNED) == ONE
