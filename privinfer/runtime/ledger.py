"""Which decryption shares have left this party, on disk: an entry is durable before its share exists.

A share of one ciphertext serves once (`protocols/ckks/release.py`). The entry is committed, and has reached
the disk, before :meth:`ReleaseLedger.record` returns; a process that is killed afterwards finds it when it
comes back, whether the share was sent or not. SQLite in WAL mode with full synchronisation; one process at
a time. The file holds digests and names of steps, nothing secret, and belongs to the party alone (0700,
0600).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from privinfer.errors import ConfigError, IntegrityError
from privinfer.protocols.ckks.release import Entry

_SCHEMA = """
CREATE TABLE IF NOT EXISTS owner (party TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS release (
    digest BLOB PRIMARY KEY, session BLOB NOT NULL, step TEXT NOT NULL,
    made REAL NOT NULL DEFAULT (julianday('now')), UNIQUE (session, step));
"""


class ReleaseLedger:
    """One party's ledger, open in one process; its :meth:`record` is what `Releases` calls.

    Parameters
    ----------
    folder : path
        Made where it is missing.
    party : str
        Whose ledger it is.

    Raises
    ------
    ConfigError
        The ledger is open elsewhere, belongs to another party, or cannot be used.
    IntegrityError
        It is damaged. No share may leave then: nobody knows which have.
    """

    def __init__(self, folder: str | os.PathLike[str], party: str) -> None:
        self.folder = Path(folder)
        self._party = party
        self._db: sqlite3.Connection | None = None
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.folder / "ledger.lock", os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as e:
            raise ConfigError(
                f"ledger {self.folder} cannot be used: {(e.strerror or 'error').lower()}"
            ) from e
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ConfigError(
                f"ledger {self.folder} is open in another process", hint="one party, one ledger, one process"
            ) from None
        try:
            self._open()
        except sqlite3.OperationalError as e:  # a full disk, mostly
            self.close()
            raise ConfigError(f"ledger {self.folder} cannot be used: {e}", culprit=party) from None
        except (sqlite3.DatabaseError, UnicodeDecodeError):  # the latter where a damaged file words the error
            self.close()
            raise IntegrityError(
                f"ledger {self.folder} is damaged",
                culprit=party,
                hint="make new keys, and a new ledger with them",
            ) from None
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        file = self.folder / "ledger.sqlite"
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
        db = self._db = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
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

    def record(self, entries: Sequence[Entry]) -> None:
        """Make entries durable, all or none.

        Raises
        ------
        IntegrityError
            A share of one of the ciphertexts, or for one of the steps, was released before.
        ConfigError
            The ledger is closed or the disk refuses.
        """
        if self._db is None:
            raise ConfigError(f"ledger {self.folder} is closed", culprit=self._party)
        rows = [(e.digest, e.session, e.step) for e in entries]
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT INTO release (digest, session, step) VALUES (?, ?, ?)", rows)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.IntegrityError:
            raise IntegrityError(
                "a decryption share for this ciphertext or step was released before",
                culprit=self._party,
                hint="make new keys: a share is never computed twice",
            ) from None
        except (sqlite3.Error, UnicodeDecodeError) as e:
            raise ConfigError(f"ledger {self.folder} cannot be written: {e}", culprit=self._party) from e

    def __len__(self) -> int:
        """Releases so far."""
        if self._db is None:
            raise ConfigError(f"ledger {self.folder} is closed", culprit=self._party)
        (count,) = self._db.execute("SELECT count(*) FROM release").fetchone()
        return int(count)

    def close(self) -> None:
        """Give the ledger back."""
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
