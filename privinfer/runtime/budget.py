"""What answers one party has helped to give, on disk: counted before they leave, and for good.

A charge is committed, and has reached the disk, before :meth:`BudgetLedger.spend` returns; a process that is
killed afterwards finds it spent, whether the answer left or not. SQLite in WAL mode with full
synchronisation; several processes of one party may share a ledger, each charge is one transaction. The file
holds who asked which model when and how often, no values; it belongs to the party alone (0700, 0600).

Accounts: privacy is kept for each model and patient, over all receivers; the rate for each model and
receiver. A model is its architecture and the commitment to its weights that the session file names; where it
names none, all models of that architecture are one, for each join commits anew.
"""

from __future__ import annotations

import math
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from privinfer.errors import ConfigError, ConsentError, IntegrityError
from privinfer.protocols.privacy import Charge, delta_of, epsilon_of
from privinfer.session.terms import Release

BUSY_SECONDS = 10.0  # that one transaction waits for another process's
_SCHEMA = """
CREATE TABLE IF NOT EXISTS owner (party TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS answer (
    made REAL NOT NULL, architecture TEXT NOT NULL, weights TEXT NOT NULL, patient TEXT NOT NULL,
    receiver TEXT NOT NULL, answers INTEGER NOT NULL, rho REAL NOT NULL);
CREATE INDEX IF NOT EXISTS account ON answer (architecture, patient);
"""
# one model, or all of an architecture where one side names no weights
_MODEL = "architecture = ? AND (weights IN (?, '') OR ? = '')"


@dataclass(frozen=True, slots=True)
class Account:
    """Whose budget it is.

    Attributes
    ----------
    architecture : str
        Digest, hex.
    weights : str
        Commitment, hex; "" where the session names none.
    patient : str
        Digest of the public key of the party that consents, or "": the receiver's then.
    receivers : dict
        Receiver to the digest of its public key.
    """

    architecture: str
    weights: str
    patient: str
    receivers: dict[str, str]

    def patient_of(self, receiver: str) -> str:
        """Whose record an answer for this receiver is taken to be about."""
        return self.patient or self.receivers[receiver]


class BudgetLedger:
    """One party's ledger of answers.

    Parameters
    ----------
    folder : path
        Made where it is missing.
    party : str
        Whose ledger it is.

    Raises
    ------
    ConfigError
        The ledger belongs to another party or cannot be used.
    IntegrityError
        It is damaged. No answer may leave then: nobody knows how many have.
    """

    def __init__(self, folder: str | os.PathLike[str], party: str) -> None:
        self.folder = Path(folder)
        self._party = party
        self._db: sqlite3.Connection | None = None
        file = self.folder / "answers.sqlite"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as e:
            raise ConfigError(
                f"ledger {self.folder} cannot be used: {(e.strerror or 'error').lower()}", culprit=party
            ) from None
        try:
            self._open(file)
        except sqlite3.DatabaseError:
            self.close()
            raise IntegrityError(
                f"ledger {self.folder} is damaged",
                culprit=party,
                hint="bring a copy from before; with a new one nobody would know what is spent",
            ) from None
        except BaseException:
            self.close()
            raise

    def _open(self, file: Path) -> None:
        db = self._db = sqlite3.connect(
            file, isolation_level=None, check_same_thread=False, timeout=BUSY_SECONDS
        )
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.executescript(_SCHEMA)
        (healthy,) = db.execute("PRAGMA quick_check").fetchone()
        if healthy != "ok":
            raise sqlite3.DatabaseError(healthy)
        db.execute(
            "INSERT OR IGNORE INTO owner SELECT ? WHERE NOT EXISTS (SELECT * FROM owner)", (self._party,)
        )
        (owner,) = db.execute("SELECT party FROM owner").fetchone()
        if owner != self._party:
            raise ConfigError(f"ledger {self.folder} belongs to {owner}", culprit=self._party)
        folder = os.open(self.folder, os.O_RDONLY)  # a new file's name has to be durable as well
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextmanager
    def _transaction(self, end: str = "COMMIT") -> Iterator[sqlite3.Connection]:
        db = self._db
        if db is None:
            raise ConfigError(f"ledger {self.folder} is closed", culprit=self._party)
        try:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute(end)
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
        except sqlite3.Error as e:
            raise ConfigError(f"ledger {self.folder} cannot be written: {e}", culprit=self._party) from None

    def spend(self, account: Account, terms: Release, charges: list[Charge], *, dry: bool = False) -> None:
        """Grant charges and write them down, all or none; with `dry`, only look.

        Raises
        ------
        ConsentError
            A budget or a rate has not as much left; names the receiver.
        ConfigError
            The ledger is closed or the disk refuses.
        """
        with self._transaction("ROLLBACK" if dry else "COMMIT") as db:
            for one in charges:
                self._check(db, account, terms, one)
                row = self._row(account, one)
                db.execute("INSERT INTO answer VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    @staticmethod
    def _row(account: Account, one: Charge) -> tuple[Any, ...]:
        receiver, patient = account.receivers[one.receiver], account.patient_of(one.receiver)
        who = (account.architecture, account.weights, patient, receiver)
        return time.time(), *who, one.answers, one.rho

    def _check(self, db: sqlite3.Connection, account: Account, terms: Release, one: Charge) -> None:
        left = self._answers_left(db, account, terms, one.receiver)
        if left is not None and one.answers > left:
            raise ConsentError(
                f"no answer is left: {one.answers} wanted, {left} left of {terms.answers} "
                f"within {terms.hours:g} hours",
                culprit=one.receiver,
                hint="wait, or agree on terms that allow more",
            )
        if not terms.noisy:
            return
        spent = self._spent(db, account, one.receiver)
        if delta_of(spent + one.rho, terms.epsilon_budget) > terms.delta_budget:
            left_over = self._epsilon_left(terms, spent)
            raise ConsentError(
                f"the privacy budget is spent: epsilon {left_over:.4g} left of {terms.epsilon_budget:g}, "
                f"and {one.answers} answers of {terms.epsilon:g} wanted",
                culprit=one.receiver,
                hint="this is for good; a larger budget has to be agreed on, and sealed into a session",
            )

    def _spent(self, db: sqlite3.Connection, account: Account, receiver: str) -> float:
        found = db.execute(
            f"SELECT rho FROM answer WHERE {_MODEL} AND patient = ?",  # noqa: S608 - a constant
            (account.architecture, account.weights, account.weights, account.patient_of(receiver)),
        )
        return math.fsum(rho for (rho,) in found)

    def _answers_left(
        self, db: sqlite3.Connection, account: Account, terms: Release, receiver: str
    ) -> int | None:
        if terms.answers is None:
            return None
        # a clock that is set back makes entries of the future, which count
        (count,) = db.execute(
            f"SELECT coalesce(sum(answers), 0) FROM answer WHERE {_MODEL} AND receiver = ? "  # noqa: S608
            "AND made > ?",
            (
                account.architecture,
                account.weights,
                account.weights,
                account.receivers[receiver],
                time.time() - terms.hours * 3600,
            ),
        ).fetchone()
        return max(0, terms.answers - int(count))

    @staticmethod
    def _epsilon_left(terms: Release, spent: float) -> float:
        return max(0.0, terms.epsilon_budget - epsilon_of(spent, terms.delta_budget))

    def left(self, account: Account, terms: Release, receiver: str) -> dict[str, float | int]:
        """What is left for a receiver: `epsilon`, at the budget's delta, and `answers`, where limited."""
        found: dict[str, float | int] = {}
        with self._transaction() as db:
            if terms.noisy:
                found["epsilon"] = self._epsilon_left(terms, self._spent(db, account, receiver))
            answers = self._answers_left(db, account, terms, receiver)
            if answers is not None:
                found["answers"] = answers
        return found

    def close(self) -> None:
        """Give the ledger back."""
        if self._db is not None:
            self._db.close()
            self._db = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
