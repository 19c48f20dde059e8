"""What all doors share: a door turns a file into a tensor and says, in plain values, how it does.

The description (:meth:`Door.declaration`) is public and holds nothing of a file; the SHA-256 of its canonical
bytes can stand in ``[terms.doors]`` of a session file, so that all parties sign how an input was prepared.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from privinfer.errors import ConfigError, InputError
from privinfer.session import canonical

Array = npt.NDArray[np.float64]
MAX_TEXT: Final = 256 << 20  # bytes of a text file, unpacked
_PREFIX = b"privinfer/door/1:"


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """What a door makes of a file.

    Attributes
    ----------
    values : ndarray of float64
        (rows, ...): one row a person. Secret: not shown.
    names : tuple of str
        Of the entries of the last axis, or of the one picture.
    units : tuple of str
        UCUM codes, as many as names; ``1`` for plain numbers.
    low, high : float
        Closed range of all values, as declared and not as measured.
    notes : dict
        How often something was done (a strand turned over, a gap filled): for the owner alone, not shown.
    """

    values: Array = field(repr=False)
    names: tuple[str, ...]
    units: tuple[str, ...]
    low: float
    high: float
    notes: Mapping[str, int] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        # the last look: whatever a door did, nothing unheard of goes into a protocol
        if not np.isfinite(self.values).all():
            raise InputError("a door made NaN or infinity", hint="report this, without the file")
        if self.values.size and not (self.low <= self.values.min() and self.values.max() <= self.high):
            raise InputError("a value lies outside of the door's declared range")

    def __repr__(self) -> str:
        return f"Record(shape={self.values.shape}, low={self.low:g}, high={self.high:g})"

    def __reduce__(self) -> Any:
        raise TypeError("a record holds secret data and is not pickled")


class Door(Protocol):
    """A loader with its settings."""

    def declaration(self) -> dict[str, canonical.Value]:
        """What the door does, in plain values; the same for every file."""
        ...

    def read(self, path: str | os.PathLike[str], row: str | None = None) -> Record:
        """Read a file or folder; `row` picks one person of several by identifier.

        Raises
        ------
        InputError
            The file does not fit the door.
        ConfigError
            A package is missing.
        """
        ...


def digest(door: Door) -> str:
    """SHA-256 of a door's declaration, hex: what ``[terms.doors]`` holds."""
    return hashlib.sha256(_PREFIX + canonical.dumps(door.declaration())).hexdigest()


def need(module: str, package: str, extra: str) -> Any:
    """Import an optional package.

    Raises
    ------
    ConfigError
        It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ConfigError(
            f"this door needs {package}, which is not installed", hint=f"pip install 'privinfer[{extra}]'"
        ) from None


def gone(file: Path) -> InputError:
    """The error of a file that is not there."""
    return InputError(f"there is no file {file}", hint="names are relative to where the command runs")


def read_bytes(path: str | os.PathLike[str], most: int = MAX_TEXT) -> bytes:
    """Content of a file, unpacked where it is gzip.

    Raises
    ------
    InputError
        Missing, a folder, damaged, or longer than `most` bytes.
    """
    file = Path(path)
    try:
        with file.open("rb") as opened:
            packed = opened.read(2) == b"\x1f\x8b"
            opened.seek(0)
            if packed:
                with gzip.open(opened) as unpacked:
                    data = unpacked.read(most + 1)
            else:
                data = opened.read(most + 1)
    except FileNotFoundError:
        raise gone(file) from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise InputError(f"{file.name} is truncated or damaged", hint="copy it again") from None
    except OSError as e:
        raise InputError(f"{file} cannot be read: {(e.strerror or 'unknown reason').lower()}") from None
    if len(data) > most:
        raise InputError(f"{file.name} is longer than {most >> 20} MiB unpacked")
    return data


def read_text(path: str | os.PathLike[str], most: int = MAX_TEXT) -> str:
    """As :func:`read_bytes`, decoded; InputError where it is no UTF-8 text."""
    data = read_bytes(path, most)
    if b"\0" not in data:
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            pass
    raise InputError(f"{Path(path).name} is no text file", hint="was it swapped with another input's file?")
