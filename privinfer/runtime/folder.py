"""A party's private folder with a SQLite file in it: what must be on disk before anything happens.

WAL mode with full synchronisation: what was written is durable when the call returns. One process at a time
holds the folder (flock), unless it is shared, where each transaction waits for another process's; folder and
files are the party's alone (0700, 0600). Store and ledgers are built on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from privinfer.errors import ConfigError, IntegrityError

_ERRORS = (sqlite3.Error, UnicodeDecodeError)  # the latter where a damaged file words the error
_PAUSE = 0.01  # seconds between two looks at a lock


class Folder:
    """Such a folder, open in one process.

    Parameters
    ----------
    path : path
        Made where it is missing.
    what : str
        What errors call it.
    schema : str
        SQL that makes the tables where they are missing.
    party : str
        Whose it is.
    file : str, optional
        Name of its file without ``.sqlite``; `what` by default.
    lock : str, optional
        Name of the file that is locked; ``what.lock`` by default.
    shared : bool
        Several processes may have it open.
    damaged : str
        Hint where it is damaged.
    wait : float
        Seconds to wait for another process, or thread, that has it open or, where it is shared, writes.

    Raises
    ------
    ConfigError
        It is open elsewhere or cannot be used.
    IntegrityError
        It is damaged.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        what: str,
        schema: str,
        party: str,
        *,
        file: str | None = None,
        lock: str | None = None,
        shared: bool = False,
        damaged: str,
        wait: float = 0.0,
    ) -> None:
        self.path = Path(path)
        self._what, self._party, self._hint = what, party, damaged
        self._db: sqlite3.Connection | None = None
        self._lock = -1
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not shared:
                self._lock = os.open(
                    self.path / (lock or f"{what}.lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600
                )
        except OSError as e:
            raise ConfigError(f"{what} {self.path} cannot be used: {(e.strerror or 'error').lower()}") from e
        try:
            if not shared:
                self._take(wait)
            self._open(self.path / f"{file or what}.sqlite", schema, wait)
        except _ERRORS as e:
            self.close()
            raise self._refused(e) from None
        except OSError as e:
            self.close()
            raise ConfigError(
                f"{what} {self.path} cannot be used: {(e.strerror or 'error').lower()}", culprit=party
            ) from e
        except BaseException:
            self.close()
            raise

    def _take(self, wait: float) -> None:
        until = time.monotonic() + wait
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if time.monotonic() < until:
                    time.sleep(_PAUSE)
                    continue
                raise ConfigError(
                    f"{self._what} {self.path} is open in another process",
                    hint=f"one party, one {self._what}, one process",
                ) from None
            return

    def _open(self, file: Path, schema: str, wait: float) -> None:
        os.close(os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        db = self._db = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=wait)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.executescript(schema)
        (healthy,) = db.execute("PRAGMA quick_check").fetchone()
        if healthy != "ok":
            raise sqlite3.DatabaseError(healthy)
        folder = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)  # a new file's name has to be durable too
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def belongs(self) -> None:
        """Note whose folder this is, the first time; ConfigError where it is another party's."""
        with self.write():
            self.rows("CREATE TABLE IF NOT EXISTS owner (party TEXT PRIMARY KEY)")
            self.rows(
                "INSERT OR IGNORE INTO owner SELECT ? WHERE NOT EXISTS (SELECT * FROM owner)", self._party
            )
            ((owner,),) = self.rows("SELECT party FROM owner")
        self.refuse_other(owner)

    def refuse_other(self, owner: object) -> None:
        """Raise ConfigError where `owner` is not this party."""
        if owner != self._party:
            raise ConfigError(f"{self._what} {self.path} belongs to {owner}", culprit=self._party)

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        """Run one statement.

        Raises
        ------
        sqlite3.IntegrityError
            A row of that key is there.
        ConfigError
            The folder is closed, or the disk refuses.
        IntegrityError
            The file is damaged.
        """
        if self._db is None:
            raise ConfigError(f"{self._what} {self.path} is closed", culprit=self._party)
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.IntegrityError:
            raise
        except _ERRORS as e:
            raise self._refused(e) from None

    def damaged(self) -> IntegrityError:
        """What to raise where a row cannot be what this party wrote."""
        return IntegrityError(f"{self._what} {self.path} is damaged", culprit=self._party, hint=self._hint)

    def _refused(self, error: Exception) -> ConfigError | IntegrityError:
        if isinstance(error, sqlite3.OperationalError) and not _damaged(error):  # a full disk, mostly
            return ConfigError(f"{self._what} {self.path} cannot be used: {error}", culprit=self._party)
        return self.damaged()

    @contextlib.contextmanager
    def write(self, *, dry: bool = False) -> Iterator[None]:
        """Several statements, all or none; durable at the end, or with `dry` undone."""
        self.rows("BEGIN IMMEDIATE")
        try:
            yield
            self.rows("ROLLBACK" if dry else "COMMIT")
        except BaseException:
            if self._db is not None and self._db.in_transaction:
                with contextlib.suppress(sqlite3.Error):  # what went wrong before is what counts
                    self._db.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Give the folder back; may be called again."""
        if self._db is not None:
            self._db.close()
            self._db = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _damaged(error: sqlite3.OperationalError) -> bool:
    """Whether an operational error is about the file's contents: a schema that cannot be read."""
    return "malformed" in str(error) or "no such" in str(error)
