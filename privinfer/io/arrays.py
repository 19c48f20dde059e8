"""Arrays from files a person has at hand: .npy, .npz with one array, .csv of numbers. No pickles."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from privinfer.errors import InputError

MAX_BYTES = 4 << 30


def read_array(path: str | os.PathLike[str], name: str | None = None) -> npt.NDArray[Any]:
    """Read one array.

    Parameters
    ----------
    path : path
        ``.npy``, ``.npz`` that holds exactly one array, or ``.csv`` (comma-separated numbers, no header).
    name : str, optional
        Which array of an ``.npz`` that holds several.

    Returns
    -------
    ndarray
        As stored; a .csv gives float64 (rows, columns).

    Raises
    ------
    InputError
        Missing, too large, truncated, or not an array of numbers.
    """
    file = Path(path)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise InputError(f"{file.name} is larger than 4 GiB")
        if name is not None and file.suffix != ".npz":
            raise InputError(f"{file.name} has no named arrays", hint="only an .npz has")
        if file.suffix == ".npy":
            return np.asarray(np.load(file, allow_pickle=False))
        if file.suffix == ".npz":
            with np.load(file, allow_pickle=False) as stored:
                if name is None and len(stored.files) != 1:
                    raise InputError(f"{file.name} holds {len(stored.files)} arrays, not one")
                if name is not None and name not in stored.files:
                    raise InputError(f"{file.name} has no array {name!r}")
                return np.asarray(stored[stored.files[0] if name is None else name])
        if file.suffix == ".csv":
            return np.loadtxt(file, delimiter=",", dtype=np.float64, ndmin=2)
    except FileNotFoundError:
        raise InputError(f"there is no file {file}") from None
    except OSError as e:
        raise InputError(f"{file} cannot be read: {(e.strerror or 'not an array').lower()}") from None
    except Exception as e:  # zip, header and number parsers raise what they like
        if isinstance(e, InputError):
            raise
        raise InputError(f"{file.name} is truncated or holds no array of numbers") from None
    raise InputError(f"{file.name}: unknown kind of file", hint="use .npy, .npz or .csv")


def read_arrays(path: str | os.PathLike[str]) -> dict[str, npt.NDArray[Any]]:
    """Read all arrays of an .npz by name; InputError as :func:`read_array`."""
    file = Path(path)
    if file.suffix != ".npz":
        raise InputError(f"{file.name}: unknown kind of file", hint="use .npz with one array for each input")
    try:
        with np.load(file, allow_pickle=False) as stored:
            names = list(stored.files)
    except FileNotFoundError:
        raise InputError(f"there is no file {file}") from None
    except Exception:  # zip and number parsers raise what they like
        raise InputError(f"{file.name} is truncated or holds no arrays of numbers") from None
    return {name: read_array(file, name) for name in names}
