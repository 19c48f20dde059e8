"""Which decryption shares have left this party, on disk: an entry is durable before its share exists.

A share of one ciphertext serves once (`protocols/ckks/release.py`). The entry is committed, and has reached
the disk, before :meth:`ReleaseLedger.record` returns; a process that is killed afterwards finds it when it
comes back, whether the share was sent or not (`folder.py`). The file holds digests and names of steps,
nothing secret.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from privinfer.errors import IntegrityError
from privinfer.protocols.ckks.release import Entry
from privinfer.runtime.folder import Folder

_SCHEMA = """
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
        self._party = party
        self._at = Folder(
            folder, "ledger", _SCHEMA, party, damaged="make new keys, and a new ledger with them"
        )
        try:
            self._at.belongs()
        except BaseException:
            self.close()
            raise

    def record(self, entries: Sequence[Entry]) -> None:
        """Make entries durable, all or none.

        Raises
        ------
        IntegrityError
            A share of one of the ciphertexts, or for one of the steps, was released before.
        ConfigError
            The ledger is closed or the disk refuses.
        """
        try:
            with self._at.write():
                for e in entries:
                    self._at.rows(
                        "INSERT INTO release (digest, session, step) VALUES (?, ?, ?)",
                        e.digest,
                        e.session,
                        e.step,
                    )
        except sqlite3.IntegrityError:
            raise IntegrityError(
                "a decryption share for this ciphertext or step was released before",
                culprit=self._party,
                hint="make new keys: a share is never computed twice",
            ) from None

    def __len__(self) -> int:
        """Releases so far."""
        ((count,),) = self._at.rows("SELECT count(*) FROM release")
        return int(str(count))

    def close(self) -> None:
        """Give the ledger back."""
        self._at.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
