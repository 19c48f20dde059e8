"""Small files read within a cap, and written where there is none yet."""

from __future__ import annotations

import os
from pathlib import Path

from privinfer.errors import ConfigError


def reason(exc: OSError) -> str:
    """What an operating system's error says."""
    return (exc.strerror or type(exc).__name__).lower()


def read(path: Path, most: int, what: str) -> bytes:
    """Bytes of a file of at most `most`; `what` is what errors call it.

    Raises
    ------
    ConfigError
        It cannot be read, or is longer.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except OSError as exc:
        raise ConfigError(f"cannot read {what} {path}: {reason(exc)}") from exc
    except ValueError as exc:  # a zero byte in the path
        raise ConfigError(f"cannot read {what}: not a path") from exc
    if len(data) > most:
        raise ConfigError(f"{what} {path} is longer than {most} bytes")
    return data


def write_new(path: str | os.PathLike[str], data: bytes, hint: str | None = None) -> None:
    """Write a file that does not exist yet.

    Raises
    ------
    ConfigError
        It exists, with the hint, or cannot be written.
    """
    try:
        with open(path, "xb") as file:
            file.write(data)
    except FileExistsError as exc:
        raise ConfigError(f"{os.fspath(path)} exists already", hint=hint) from exc
    except OSError as exc:
        raise ConfigError(f"cannot write {os.fspath(path)}: {reason(exc)}") from exc
