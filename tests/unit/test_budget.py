"""The ledger of answers: sums, accounts, rates, and that what is spent stays spent."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from privinfer.errors import ConfigError, ConsentError, IntegrityError
from privinfer.protocols import privacy
from privinfer.protocols.privacy import Charge
from privinfer.runtime.budget import Account, BudgetLedger
from privinfer.session.terms import Release

EPSILON, DELTA = 1.0, 1e-6
NOISY = Release(epsilon=EPSILON, delta=DELTA, sensitivity=1.0, epsilon_budget=3.0, delta_budget=DELTA)
RATED = Release(answers=3, hours=2.0)
RHO = privacy.rho_for(EPSILON, DELTA)
ONE = [Charge("patient", 1, RHO)]
ACCOUNT = Account("a" * 64, "b" * 64, "", {"patient": "p" * 64, "doctor": "d" * 64})


def opened(folder: Path, party: str = "hospital") -> BudgetLedger:
    return BudgetLedger(folder / "ledger", party)


def granted(ledger: BudgetLedger, account: Account = ACCOUNT, terms: Release = NOISY, limit: int = 50) -> int:
    """How many single answers go through."""
    for k in range(limit):
        try:
            ledger.spend(account, terms, ONE)
        except ConsentError:
            return k
    return limit


def affordable() -> int:
    """By the definition."""
    count = 0
    while privacy.delta_of((count + 1) * RHO, NOISY.epsilon_budget) <= NOISY.delta_budget:
        count += 1
    return count


def test_as_many_answers_as_the_budget_holds(tmp_path: Path) -> None:
    assert affordable() > 3  # better than adding up epsilons
    with opened(tmp_path) as ledger:
        assert granted(ledger) == affordable()
        with pytest.raises(ConsentError, match=r"epsilon 0.* left of 3") as caught:
            ledger.spend(ACCOUNT, NOISY, ONE)
        assert caught.value.culprit == "patient"
        assert 0 <= ledger.left(ACCOUNT, NOISY, "patient")["epsilon"] < EPSILON
    with opened(tmp_path) as ledger:  # and stays so
        assert granted(ledger) == 0


def test_rows_of_a_batch_are_answers(tmp_path: Path) -> None:
    many = affordable()
    with opened(tmp_path) as ledger:
        with pytest.raises(ConsentError):
            ledger.spend(ACCOUNT, NOISY, [Charge("patient", many + 1, (many + 1) * RHO)])
        ledger.spend(ACCOUNT, NOISY, [Charge("patient", many - 1, (many - 1) * RHO)])
        assert granted(ledger) == 1


def test_looking_spends_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        for _ in range(5):
            ledger.spend(ACCOUNT, NOISY, ONE, dry=True)
        assert ledger.left(ACCOUNT, NOISY, "patient") == {"epsilon": 3.0}
        assert granted(ledger) == affordable()
        with pytest.raises(ConsentError):
            ledger.spend(ACCOUNT, NOISY, ONE, dry=True)


def test_all_charges_or_none(tmp_path: Path) -> None:
    with opened(tmp_path) as ledger:
        with pytest.raises(ConsentError):
            ledger.spend(ACCOUNT, RATED, [Charge("doctor", 2), Charge("patient", 4)])
        assert ledger.left(ACCOUNT, RATED, "doctor") == {"answers": 3}


def test_accounts(tmp_path: Path) -> None:
    """Privacy goes by patient and model, whoever asks; models without a commitment are all of one kind."""

    def account(weights: str = "b" * 64, patient: str = "", architecture: str = "a" * 64) -> Account:
        return Account(architecture, weights, patient, ACCOUNT.receivers)

    with opened(tmp_path) as ledger:
        assert granted(ledger, account(patient="s" * 64)) == affordable()
        with pytest.raises(ConsentError):  # another receiver, the same patient
            ledger.spend(account(patient="s" * 64), NOISY, [Charge("doctor", 1, RHO)])
        with pytest.raises(ConsentError):  # no weights named: may be the same
            ledger.spend(account("", "s" * 64), NOISY, ONE)
        for other in (account("c" * 64, "s" * 64), account(), account(architecture="e" * 64)):
            ledger.spend(other, NOISY, ONE)
    with opened(tmp_path / "second") as ledger:
        assert granted(ledger, account("")) == affordable()
        with pytest.raises(ConsentError):
            ledger.spend(account("c" * 64), NOISY, ONE)


def test_rates_go_by_receiver_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1e9]
    monkeypatch.setattr(time, "time", lambda: now[0])
    with opened(tmp_path) as ledger:
        assert granted(ledger, terms=RATED) == 3
        ledger.spend(ACCOUNT, RATED, [Charge("doctor", 3)])
        now[0] += 2 * 3600 - 1
        with pytest.raises(ConsentError, match="0 left of 3 within 2 hours"):
            ledger.spend(ACCOUNT, RATED, ONE)
        now[0] -= 1e6  # a clock that is set back gives nothing
        with pytest.raises(ConsentError):
            ledger.spend(ACCOUNT, RATED, ONE)
        now[0] += 1e6 + 2
        assert granted(ledger, terms=RATED) == 3


def test_noise_is_never_forgotten_with_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as ledger:
        granted(ledger)
        monkeypatch.setattr(time, "time", lambda: 4e9)
        assert granted(ledger) == 0


KILLED = """
import os, signal, sys
from privinfer.runtime.budget import BudgetLedger
from tests.unit.test_budget import ACCOUNT, NOISY, ONE
ledger = BudgetLedger(sys.argv[1], "hospital")
ledger.spend(ACCOUNT, NOISY, ONE)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_spent_before_a_crash_is_spent(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", KILLED, str(tmp_path / "ledger")]
    done = subprocess.run(command, cwd=root, env={**os.environ, "PYTHONPATH": str(root)}, check=False)
    assert done.returncode == -signal.SIGKILL
    with opened(tmp_path) as ledger:
        assert granted(ledger) == affordable() - 1


def test_two_at_once_do_not_overspend(tmp_path: Path) -> None:
    """Two connections, as of two processes, and a budget that only one of their last charges fits."""
    ledgers = [opened(tmp_path) for _ in range(2)]
    counts = [0, 0]

    def work(k: int) -> None:
        counts[k] = granted(ledgers[k])

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == affordable()
    for ledger in ledgers:
        ledger.close()


def test_a_ledger_that_cannot_be_used(tmp_path: Path) -> None:
    with opened(tmp_path):
        pass
    file = tmp_path / "ledger" / "answers.sqlite"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    with pytest.raises(ConfigError, match="belongs to hospital"):
        opened(tmp_path, "startup")
    ledger = opened(tmp_path)
    ledger.close()
    with pytest.raises(ConfigError, match="closed"):
        ledger.spend(ACCOUNT, NOISY, ONE)
    for extra in file.parent.glob("answers.sqlite-*"):
        extra.unlink()
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(IntegrityError, match="damaged"):
        opened(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be used"):
        BudgetLedger(tmp_path / "file", "hospital")
    with pytest.raises(ConfigError, match="cannot be used"):
        BudgetLedger("/proc/nowhere", "hospital")
