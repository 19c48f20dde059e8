"""What answers one party has helped to give, on disk: counted before they leave, and for good.

A charge is committed, and has reached the disk, before :meth:`BudgetLedger.spend` returns; a process that is
killed afterwards finds it spent, whether the answer left or not (`folder.py`). Several processes of one party
may share a ledger, each charge is one transaction. The file holds who asked which model when and how often,
no values.

Accounts: privacy is kept for each model and patient, over all receivers; the rate for each model and
receiver. A model is its architecture and the commitment to its weights that the session file names; where it
names none, all models of that architecture are one, for each join commits anew.
"""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from privinfer.errors import ConsentError
from privinfer.protocols.privacy import Charge, delta_of, epsilon_of
from privinfer.runtime.folder import Folder
from privinfer.session.terms import Release

BUSY_SECONDS = 10.0  # that one transaction waits for another process's
_SCHEMA = """
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
        self._at = Folder(
            folder,
            "ledger",
            _SCHEMA,
            party,
            file="answers",
            shared=True,
            damaged="bring a copy from before; with a new one nobody would know what is spent",
            wait=BUSY_SECONDS,
        )
        try:
            self._at.belongs()
        except BaseException:
            self.close()
            raise

    def spend(self, account: Account, terms: Release, charges: list[Charge], *, dry: bool = False) -> None:
        """Grant charges and write them down, all or none; with `dry`, only look.

        Raises
        ------
        ConsentError
            A budget or a rate has not as much left; names the receiver.
        ConfigError
            The ledger is closed or the disk refuses.
        """
        with self._at.write(dry=dry):
            for one in charges:
                self._check(account, terms, one)
                self._at.rows("INSERT INTO answer VALUES (?, ?, ?, ?, ?, ?, ?)", *self._row(account, one))

    @staticmethod
    def _row(account: Account, one: Charge) -> tuple[Any, ...]:
        receiver, patient = account.receivers[one.receiver], account.patient_of(one.receiver)
        who = (account.architecture, account.weights, patient, receiver)
        return time.time(), *who, one.answers, one.rho

    def _check(self, account: Account, terms: Release, one: Charge) -> None:
        left = self._answers_left(account, terms, one.receiver)
        if left is not None and one.answers > left:
            raise ConsentError(
                f"no answer is left: {one.answers} wanted, {left} left of {terms.answers} "
                f"within {terms.hours:g} hours",
                culprit=one.receiver,
                hint="wait, or agree on terms that allow more",
            )
        if not terms.noisy:
            return
        spent = self._spent(account, one.receiver)
        if delta_of(spent + one.rho, terms.epsilon_budget) > terms.delta_budget:
            left_over = self._epsilon_left(terms, spent)
            raise ConsentError(
                f"the privacy budget is spent: epsilon {left_over:.4g} left of {terms.epsilon_budget:g}, "
                f"and {one.answers} answers of {terms.epsilon:g} wanted",
                culprit=one.receiver,
                hint="this is for good; a larger budget has to be agreed on, and sealed into a session",
            )

    def _spent(self, account: Account, receiver: str) -> float:
        found = self._at.rows(
            f"SELECT rho FROM answer WHERE {_MODEL} AND patient = ?",  # noqa: S608 - a constant
            *(account.architecture, account.weights, account.weights, account.patient_of(receiver)),
        )
        return math.fsum(float(str(rho)) for (rho,) in found)

    def _answers_left(self, account: Account, terms: Release, receiver: str) -> int | None:
        if terms.answers is None:
            return None
        # a clock that is set back makes entries of the future, which count
        ((count,),) = self._at.rows(
            f"SELECT coalesce(sum(answers), 0) FROM answer WHERE {_MODEL} AND receiver = ? "  # noqa: S608
            "AND made > ?",
            account.architecture,
            account.weights,
            account.weights,
            account.receivers[receiver],
            time.time() - terms.hours * 3600,
        )
        return max(0, terms.answers - int(str(count)))

    @staticmethod
    def _epsilon_left(terms: Release, spent: float) -> float:
        return max(0.0, terms.epsilon_budget - epsilon_of(spent, terms.delta_budget))

    def left(self, account: Account, terms: Release, receiver: str) -> dict[str, float | int]:
        """What is left for a receiver: `epsilon`, at the budget's delta, and `answers`, where limited."""
        found: dict[str, float | int] = {}
        with self._at.write():
            if terms.noisy:
                found["epsilon"] = self._epsilon_left(terms, self._spent(account, receiver))
            answers = self._answers_left(account, terms, receiver)
            if answers is not None:
                found["answers"] = answers
        return found

    def close(self) -> None:
        """Give the ledger back."""
        self._at.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
