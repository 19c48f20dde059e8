"""What was dealt ahead, on disk: each piece is handed out once, also after a crash.

A *generation* is one setup (seeds, masked weights) with the pieces dealt under it, piece k for the
inference with number k. A piece is marked as used, and the mark has reached the disk, BEFORE its bytes are
read; a process that dies in between loses the piece, never uses it twice. Parties that join agree on the
largest number that is next at any of them, and everything below is burned at all.

Files are the owner's alone and as secret as the party's key. `folder.py` holds the marks; blobs lie beside
it and are deleted when they were read.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from privinfer.errors import ConfigError, IntegrityError
from privinfer.runtime.folder import Folder

DEFAULT_BUDGET = 4 << 30
_SCHEMA = """
CREATE TABLE IF NOT EXISTS generation (
    id BLOB PRIMARY KEY, session BLOB NOT NULL, party TEXT NOT NULL, batch INTEGER NOT NULL,
    setup_size INTEGER NOT NULL, setup_hash BLOB NOT NULL, made REAL NOT NULL DEFAULT (julianday('now')));
CREATE TABLE IF NOT EXISTS piece (
    generation BLOB NOT NULL, number INTEGER NOT NULL, size INTEGER NOT NULL, hash BLOB NOT NULL,
    used INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (generation, number));
"""


@dataclass(frozen=True, slots=True)
class Offer:
    """The next unused piece of the newest generation.

    Attributes
    ----------
    generation : bytes
        Tag of the session it was dealt in.
    number : int
        Of the piece, which is the number of its inference.
    end : int
        One more than the number of the last piece.
    batch : int
        Rows it was dealt for, all chunks of a run together.
    first : int
        Number of the generation's first piece, where known: in chunks, a run takes several pieces.
    """

    generation: bytes
    number: int
    end: int
    batch: int
    first: int = 0


class Store:
    """One party's store, open in one process.

    Parameters
    ----------
    folder : path
        Made where it is missing.
    session : bytes
        Digest of the session file: what was dealt under another one is not offered.
    party : str
        Whose store it is.
    budget : int
        Bytes of disk that pieces and setups may take.

    Raises
    ------
    ConfigError
        The store is open elsewhere, belongs to another party, or cannot be used.
    """

    def __init__(
        self, folder: str | os.PathLike[str], session: bytes, party: str, budget: int = DEFAULT_BUDGET
    ) -> None:
        self.folder = Path(folder)
        self._session, self._party, self.budget = session, party, budget
        self._at = Folder(
            folder,
            "store",
            _SCHEMA,
            party,
            lock="lock",
            damaged="remove it and deal again: nothing in it is needed",
        )
        try:
            self._check()
        except BaseException:
            self.close()
            raise

    def _check(self) -> None:
        other = self._rows("SELECT party FROM generation WHERE party != ? LIMIT 1", self._party)
        if other:
            self._at.refuse_other(other[0][0])
        known = set(
            self._rows(
                "SELECT hex(generation) || '-' || number FROM piece WHERE used = 0"
                " UNION SELECT hex(id) || '-setup' FROM generation"
            )
        )
        for file in self.folder.glob("*.bin"):  # left by a crash between two writes
            if (file.stem,) not in known:
                file.unlink()

    def _rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        return self._at.rows(query, *values)

    def _file(self, generation: bytes, what: int | str) -> Path:
        return self.folder / f"{generation.hex().upper()}-{what}.bin"

    # -- dealing ---------------------------------------------------------------------------------

    def held(self) -> int:
        """Bytes of disk that setups and unused pieces take."""
        (row,) = self._rows(
            "SELECT (SELECT coalesce(sum(size), 0) FROM piece WHERE used = 0)"
            " + (SELECT coalesce(sum(setup_size), 0) FROM generation)"
        )
        if not isinstance(row[0], int):
            raise self._at.damaged()
        return row[0]

    def room_for(self, size: int) -> None:
        """Raise ConfigError where `size` more bytes do not fit the budget."""
        held = self.held()
        if held + size > self.budget:
            raise ConfigError(
                f"the store is full: {held + size} bytes would be held and {self.budget} are allowed",
                culprit=self._party,
                hint="raise the budget, deal fewer, or use what is there",
            )

    def begin(self, generation: bytes, batch: int, setup: bytes) -> None:
        """Keep a setup, under which pieces follow; older generations of this session are dropped."""
        for (old,) in self._rows("SELECT id FROM generation WHERE session = ?", self._session):
            if not isinstance(old, bytes):
                raise self._at.damaged()
            self._drop(old)
        self.room_for(len(setup))
        self._write(self._file(generation, "setup"), setup)
        self._rows(
            "INSERT INTO generation (id, session, party, batch, setup_size, setup_hash)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            generation,
            self._session,
            self._party,
            batch,
            len(setup),
            hashlib.sha256(setup).digest(),
        )

    def add(self, generation: bytes, number: int, piece: bytes) -> None:
        """Keep one piece."""
        self.room_for(len(piece))
        self._write(self._file(generation, number), piece)
        self._rows(
            "INSERT INTO piece (generation, number, size, hash) VALUES (?, ?, ?, ?)",
            generation,
            number,
            len(piece),
            hashlib.sha256(piece).digest(),
        )

    def _write(self, file: Path, data: bytes) -> None:
        try:
            fd = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
            try:
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as e:
            file.unlink(missing_ok=True)
            why = (e.strerror or "error").lower()
            raise ConfigError(f"the store cannot be written: {why}", culprit=self._party) from e

    def _drop(self, generation: bytes) -> None:
        self._rows("UPDATE piece SET used = 1 WHERE generation = ?", generation)
        self._rows("DELETE FROM generation WHERE id = ?", generation)
        for file in self.folder.glob(f"{generation.hex().upper()}-*.bin"):
            file.unlink(missing_ok=True)

    # -- using -----------------------------------------------------------------------------------

    def offer(self) -> Offer | None:
        """The next unused piece for this session, or None."""
        rows = self._rows(
            "SELECT g.id, min(p.number), max(p.number) + 1, g.batch,"
            " (SELECT min(number) FROM piece WHERE generation = g.id) FROM generation g"
            " JOIN piece p ON p.generation = g.id AND p.used = 0 WHERE g.session = ?"
            " GROUP BY g.id ORDER BY g.made DESC LIMIT 1",
            self._session,
        )
        if not rows:
            return None
        generation, *columns = rows[0]
        numbers = [n for n in columns if isinstance(n, int) and 0 <= n < 1 << 32]
        if not isinstance(generation, bytes) or len(generation) > 32 or len(numbers) != len(columns):
            raise self._at.damaged()
        return Offer(generation, *numbers)

    def setup(self, generation: bytes) -> bytes:
        """The setup of a generation; IntegrityError where its bytes are not those that were kept."""
        rows = self._rows("SELECT setup_hash FROM generation WHERE id = ?", generation)
        if not rows:
            raise IntegrityError("the store does not have this setup", culprit=self._party)
        return self._read(self._file(generation, "setup"), rows[0][0])

    def take(self, generation: bytes, number: int) -> bytes:
        """Hand out a piece, once; all pieces before it are burned with it.

        Raises
        ------
        IntegrityError
            The piece was used, is not there, or its bytes are not those that were kept. It stays used.
        """
        spent = self._rows(
            "UPDATE piece SET used = 1 WHERE generation = ? AND number <= ? AND used = 0"
            " RETURNING number, hash",
            generation,
            number,
        )
        found = next((row[1] for row in spent if row[0] == number), None)
        try:
            if found is None:
                raise IntegrityError(f"piece {number} was used before", culprit=self._party)
            return self._read(self._file(generation, number), found)
        finally:
            for row in spent:
                self._file(generation, str(row[0])).unlink(missing_ok=True)

    def _read(self, file: Path, wanted: object) -> bytes:
        try:
            data = file.read_bytes()
        except OSError:
            data = b""
        if hashlib.sha256(data).digest() != wanted:
            raise IntegrityError(
                "a piece of the store is damaged or cut off",
                culprit=self._party,
                hint="run again: the next piece will be taken, or deal again",
            )
        return data

    # -- ending ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the store back."""
        self._at.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
