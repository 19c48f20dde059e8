"""An owner's ledger of consents: which were used how often, which were revoked.

A use is on disk before the first byte that depends on the owner's data leaves, and stays spent whatever
happens to the process or the run afterwards. The folder is open for as long as one entry takes, so that
several sessions of an owner, and `privinfer consent revoke`, share it.
"""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from privinfer.errors import ConsentError, IntegrityError
from privinfer.runtime.folder import Folder
from privinfer.session.consent import Consent, Revocation, moment

WAIT = 10.0  # seconds for another session's entry
_SCHEMA = """
CREATE TABLE IF NOT EXISTS consent (
    id BLOB NOT NULL, signer BLOB NOT NULL, document BLOB NOT NULL, PRIMARY KEY (id, signer));
CREATE TABLE IF NOT EXISTS use (
    id BLOB NOT NULL, signer BLOB NOT NULL, session BLOB NOT NULL, run INTEGER NOT NULL,
    made REAL NOT NULL DEFAULT (julianday('now')), PRIMARY KEY (id, signer, session, run));
CREATE TABLE IF NOT EXISTS revocation (
    id BLOB NOT NULL, signer BLOB NOT NULL, time INTEGER NOT NULL, document BLOB NOT NULL,
    heard REAL NOT NULL DEFAULT (julianday('now')), PRIMARY KEY (id, signer));
"""


@dataclass(frozen=True, slots=True)
class State:
    """What a ledger knows of a consent.

    Attributes
    ----------
    spent : int
        Uses.
    revoked : int or None
        When the patient revoked it, seconds since 1970.
    """

    spent: int
    revoked: int | None


class Uses:
    """One owner's ledger.

    Parameters
    ----------
    folder : path
        Made where it is missing.
    party : str
        Whose it is.

    Raises
    ------
    ConfigError
        The ledger belongs to another party or cannot be used.
    IntegrityError
        It is damaged. Nothing may be shared under a consent then: nobody knows how often it was used.
    """

    def __init__(self, folder: str | os.PathLike[str], party: str) -> None:
        self.folder, self._party = Path(folder), party
        self._open().close()  # better now than when all wait

    def _open(self) -> Folder:
        at = Folder(
            self.folder,
            "uses",
            _SCHEMA,
            self._party,
            damaged="ask patients for new consents, and begin a new ledger with them",
            wait=WAIT,
        )
        try:
            at.belongs()
        except BaseException:
            at.close()
            raise
        return at

    def spend(self, consent: Consent, signed: bytes, session: bytes, run: int) -> int:
        """Spend a use, durably.

        Parameters
        ----------
        consent : Consent
        signed : bytes
            The document it was read from; kept as evidence.
        session : bytes
            Digest of the agreement.
        run : int
            Number of its first inference.

        Returns
        -------
        int
            Uses that are left.

        Raises
        ------
        ConsentError
            It was revoked, all its uses are spent, or another consent of this signer has its number.
        IntegrityError
            A use was spent for this run before.
        """
        key = (consent.id, consent.certificate)
        at = self._open()
        try:
            with at.write():
                at.rows("INSERT OR IGNORE INTO consent VALUES (?, ?, ?)", *key, signed)
                ((kept,),) = at.rows("SELECT document FROM consent WHERE id = ? AND signer = ?", *key)
                if kept != signed:
                    raise ConsentError("another consent has the same number", culprit=consent.patient)
                state = _state(at, key)
                if state.revoked is not None:
                    raise revoked(consent.patient, state.revoked)
                if state.spent >= consent.uses:
                    raise ConsentError(
                        f"the consent is used up: {self._party} has shared {state.spent} times under it",
                        culprit=consent.patient,
                        hint="ask for a new one; a run that failed counts too",
                    )
                at.rows("INSERT INTO use (id, signer, session, run) VALUES (?, ?, ?, ?)", *key, session, run)
        except sqlite3.IntegrityError:
            raise IntegrityError("a use was spent for this run before", culprit=self._party) from None
        finally:
            at.close()
        return consent.uses - state.spent - 1

    def revoke(self, revocation: Revocation, signed: bytes) -> bool:
        """Note a revocation, durably; whether it is new. The consent need not be known."""
        key = (revocation.id, revocation.certificate)
        at = self._open()
        try:
            with at.write():
                new = at.rows(
                    "INSERT OR IGNORE INTO revocation (id, signer, time, document) VALUES (?, ?, ?, ?)"
                    " RETURNING id",
                    *key,
                    revocation.time,
                    signed,
                )
        finally:
            at.close()
        return bool(new)

    def state(self, consent: Consent) -> State:
        """What is known of a consent."""
        at = self._open()
        try:
            return _state(at, (consent.id, consent.certificate))
        finally:
            at.close()


def revoked(patient: str, time: int) -> ConsentError:
    """The error of a use after a revocation."""
    return ConsentError(f"the consent was revoked at {moment(time)}", culprit=patient)


def _state(at: Folder, key: tuple[bytes, bytes]) -> State:
    ((spent,),) = at.rows("SELECT count(*) FROM use WHERE id = ? AND signer = ?", *key)
    found = at.rows("SELECT time FROM revocation WHERE id = ? AND signer = ?", *key)
    return State(int(str(spent)), int(str(found[0][0])) if found else None)
