"""Fragments at rest: an input that its owner encrypted under a key of its own, for a session to come.

A fragment is bound to owner, input, shape, range, parameters and key by the owner's signature. What its array
means is the business of the CKKS backend; here it is bytes whose number is known.
"""

from __future__ import annotations

import math
import os
import re
import time
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from privinfer.errors import ConfigError, InputError, IntegrityError
from privinfer.session import sealed
from privinfer.session.at_rest import U64, Header, check_signer, check_size, little_endian, within
from privinfer.session.identity import Identity, PublicIdentity
from privinfer.session.sealed import FRAGMENT, Sealed

MAX_NAME: Final = 128  # characters of an input's name
MAX_AXES: Final = 8
MAX_VALUES: Final = 1 << 24
MAX_CIPHERTEXTS: Final = 1024
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


@dataclass(frozen=True, slots=True)
class FragmentHeader(Header):
    """Header of a fragment.

    Attributes
    ----------
    input : str
        Name of the input in the model.
    shape : tuple of int
        Of one sample.
    low, high : float
        Its values lie in this interval; the owner's word, checked when it was encrypted.
    count : int
        Ciphertexts.
    scale : float
        What a slot was multiplied by.
    """

    input: str
    shape: tuple[int, ...]
    low: float
    high: float
    count: int
    scale: float

    kind: ClassVar[int] = FRAGMENT

    def holds(self, field: str) -> bool:
        """Whether a field has the type and lies in the bounds that its name has."""
        value: Any = getattr(self, field)
        match field:
            case "input":
                return is_input_name(value)
            case "shape":
                return (
                    isinstance(value, tuple)
                    and len(value) <= MAX_AXES
                    and all(within(d, 1, MAX_VALUES) for d in value)
                    and math.prod(value) <= MAX_VALUES
                )
            case "low" | "high":
                return _is_interval(self.low, self.high)
            case "count":
                return within(value, 1, MAX_CIPHERTEXTS)
            case "scale":
                return isinstance(value, float) and math.isfinite(value) and value >= 1
        return Header.holds(self, field)

    def size(self) -> int:
        """Bytes of uint64 [count, 2, levels, n]."""
        return self.count * 2 * self.levels * self.n * 8


@dataclass(frozen=True, slots=True)
class Fragment:
    """An input at rest, to be given to a run in the place of an array: one row.

    Attributes
    ----------
    path : path
        What ``privinfer fragment encrypt`` wrote.
    key : path
        The owner's CKKS key; the identity that the owner joins with opens it.
    """

    path: str | os.PathLike[str]
    key: str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class StoredFragment:
    """A fragment whose signature was checked.

    Attributes
    ----------
    header : FragmentHeader
    data : ndarray of uint64 [count, 2, levels, n]
        Ciphertexts; residues are compared with their moduli by the CKKS backend.
    digest : bytes
        SHA-256 of the file.
    """

    header: FragmentHeader
    data: U64
    digest: bytes


def is_input_name(name: object) -> bool:
    """Whether a fragment may bear this name of an input: printable, in one line, not too long."""
    return isinstance(name, str) and len(name) <= MAX_NAME and _PRINTABLE.fullmatch(name) is not None


def write_fragment(
    path: str | os.PathLike[str],
    identity: Identity,
    data: U64,
    *,
    name: str,
    shape: tuple[int, ...],
    bounds: tuple[float, float],
    parameters: bytes,
    key: bytes,
    scale: float,
    created: int | None = None,
) -> FragmentHeader:
    """Sign and write a fragment to a new file.

    Parameters
    ----------
    path : path
        Must not exist.
    identity : Identity
        The owner's.
    data : ndarray of uint64 [count, 2, levels, n]
        Ciphertexts under the owner's key.
    name : str
        Of the input.
    shape : tuple of int
        Of one sample.
    bounds : (float, float)
        Range of its values.
    parameters, key : bytes
        Digest of the modulus chain; id of the owner's key.
    scale : float
        Of the ciphertexts.
    created : int, optional
        Seconds since 1970; now by default.

    Raises
    ------
    ConfigError
        The file exists or cannot be written.
    InputError
        Name, shape or range cannot stand in a header.
    """
    count, _, levels, n = data.shape
    header = FragmentHeader(
        owner=identity.name,
        signer=identity.fingerprint,
        n=n,
        levels=levels,
        parameters=parameters,
        key_id=key,
        created=int(time.time()) if created is None else created,
        input=name,
        shape=shape,
        low=float(bounds[0]),
        high=float(bounds[1]),
        count=count,
        scale=float(scale),
    )
    try:
        FragmentHeader.decode(header.encode(), f"fragment {os.fspath(path)}")
    except IntegrityError as error:
        raise InputError(error.message) from None
    body = little_endian(data)
    sealed.write(path, identity, sealed.encode_prefix(FRAGMENT, header.encode(), len(body)), body)
    return header


def read_header(path: str | os.PathLike[str]) -> FragmentHeader:
    """What a fragment says of itself; NOBODY'S signature is checked.

    Raises
    ------
    ConfigError, IntegrityError
        As :func:`read_fragment`, of the header.
    """
    return _fragment(sealed.read(path, FRAGMENT, only_header=True), f"fragment {os.fspath(path)}")


def verify_fragment(path: str | os.PathLike[str], owner: PublicIdentity) -> FragmentHeader:
    """Header of a fragment that `owner` signed as a whole; errors as :func:`read_fragment`."""
    return _verified(path, owner)[0]


def read_fragment(
    path: str | os.PathLike[str],
    owner: PublicIdentity,
    *,
    name: str,
    shape: tuple[int, ...],
    bounds: tuple[float, float],
    parameters: bytes | None = None,
    key: bytes | None = None,
) -> StoredFragment:
    """Read a fragment and check that it is what a session asks for.

    Parameters
    ----------
    path : path
        The file.
    owner : PublicIdentity
        Whose it must be, and who must have signed.
    name : str
        The input.
    shape : tuple of int
        Of one sample.
    bounds : (float, float)
        The session's range, which must hold the fragment's.
    parameters : bytes, optional
        Digest of the modulus chain.
    key : bytes, optional
        Id of the owner's CKKS key.

    Raises
    ------
    ConfigError
        Missing or unreadable file; another format version, owner, certificate, parameters or key.
    InputError
        Another input, shape or range.
    IntegrityError
        Damaged, cut off, or the signature does not verify.
    """
    title = f"fragment {os.fspath(path)}"
    header, file = _verified(path, owner)
    if header.input != name:
        raise InputError(
            f"{title} is input {header.input!r}, not {name!r}",
            culprit=owner.name,
            hint="look with privinfer fragment show",
        )
    if header.shape != tuple(shape):
        raise InputError(
            f"{title} has shape {header.shape}, not {tuple(shape)}",
            culprit=owner.name,
            hint="encrypt it again in the shape that the model declares",
        )
    if not bounds[0] <= header.low <= header.high <= bounds[1]:
        raise InputError(
            f"{title} has values in ({header.low:g}, {header.high:g}), and the session takes "
            f"({bounds[0]:g}, {bounds[1]:g})",
            culprit=owner.name,
            hint="encrypt it again with --range as the model declares it",
        )
    if parameters is not None and header.parameters != parameters:
        raise ConfigError(f"{title} was encrypted under other parameters", culprit=owner.name)
    if key is not None and header.key_id != key:
        raise ConfigError(
            f"{title} was encrypted under another key of its owner",
            culprit=owner.name,
            hint="give the key that privinfer fragment encrypt was run with",
        )
    data = np.frombuffer(file.body, dtype="<u8").astype(np.uint64)
    return StoredFragment(header, data.reshape(header.count, 2, header.levels, header.n), file.digest())


def _verified(path: str | os.PathLike[str], owner: PublicIdentity) -> tuple[FragmentHeader, Sealed]:
    title = f"fragment {os.fspath(path)}"
    file = sealed.read(path, FRAGMENT)
    header = _fragment(file, title)
    check_signer(header, owner, title)
    file.verify(owner, title)
    return header, file


def _fragment(file: Sealed, title: str) -> FragmentHeader:
    header = FragmentHeader.decode(file.header, title)
    check_size(header, file, title)
    return header


def _is_interval(low: object, high: object) -> bool:
    both = isinstance(low, float) and isinstance(high, float)
    return both and math.isfinite(low) and math.isfinite(high) and low <= high  # type: ignore[operator, arg-type]
