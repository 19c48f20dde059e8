"""Fragments at rest: an input that its owner encrypted under a key of its own, for a session to come.

A *fragment* is bound to owner, input, shape, range, parameters and key by the owner's signature. A *key file*
holds the owner's whole CKKS key: the secret part under AES-256-GCM, with a key that HKDF derives from the
identity's private key and a salt of this file, so that the file alone tells nothing; the public part beside it.
What the arrays mean is the business of the CKKS backend; here they are bytes whose number is known.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import secrets
import time
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NoReturn, Self

import numpy as np
import numpy.typing as npt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from privinfer.errors import ConfigError, InputError, IntegrityError
from privinfer.session import sealed
from privinfer.session.identity import NAME, Identity, PublicIdentity
from privinfer.session.sealed import FRAGMENT, KEY, Sealed, Value

U64 = npt.NDArray[np.uint64]

MAX_NAME: Final = 128  # characters of an input's name
MAX_AXES: Final = 8
MAX_VALUES: Final = 1 << 24
MAX_CIPHERTEXTS: Final = 1024
MAX_N: Final = 65536
MAX_LEVELS: Final = 64
MAX_SECRET: Final = 1 << 20
MAX_TIME: Final = 253402300799  # the last second of the year 9999
SALT_BYTES, NONCE_BYTES, TAG_BYTES = 32, 12, 16
DIGEST_BYTES: Final = 32
_HEX64 = re.compile(r"[0-9a-f]{64}")
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")


@dataclass(frozen=True, slots=True)
class _Header:
    """What both kinds of file say of themselves.

    Attributes
    ----------
    owner : str
        Party name.
    signer : str
        SHA-256 of the certificate whose key signed, hex.
    n, levels : int
        Degree and data limbs.
    parameters : bytes
        Digest of the modulus chain.
    key_id : bytes
        Digest of the CKKS public key.
    created : int
        Seconds since 1970, by the owner's clock.
    """

    owner: str
    signer: str
    n: int
    levels: int
    parameters: bytes
    key_id: bytes
    created: int

    kind: ClassVar[int]

    def encode(self) -> dict[str, Value]:
        """Header of the file."""
        found: dict[str, Value] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            found[field.name] = list(value) if isinstance(value, tuple) else value
        return found

    @classmethod
    def decode(cls, found: dict[str, Value], name: str) -> Self:
        """Check every field; IntegrityError names the first that is wrong."""
        fields = [field.name for field in dataclasses.fields(cls)]
        if set(found) != set(fields):
            raise IntegrityError(f"the header of {name} does not have the fields of its version")
        header = cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in found.items()})  # type: ignore[arg-type]
        for field in fields:
            if not header._holds(field):
                raise IntegrityError(f"{field} in the header of {name} is not possible")
        return header

    def _holds(self, field: str) -> bool:
        """Whether a field has the type and lies in the bounds that its name has."""
        value: Any = getattr(self, field)
        match field:
            case "owner":
                return isinstance(value, str) and NAME.fullmatch(value) is not None
            case "signer":
                return isinstance(value, str) and _HEX64.fullmatch(value) is not None
            case "n":
                return _within(value, 1024, MAX_N) and value & (value - 1) == 0
            case "levels":
                return _within(value, 1, MAX_LEVELS)
            case "parameters" | "key_id":
                return isinstance(value, bytes) and len(value) == DIGEST_BYTES
            case "created":
                return _within(value, 0, MAX_TIME)
        return False

    def size(self) -> int:
        """Bytes of the body."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class FragmentHeader(_Header):
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

    def _holds(self, field: str) -> bool:
        value: Any = getattr(self, field)
        match field:
            case "input":
                return is_input_name(value)
            case "shape":
                return (
                    isinstance(value, tuple)
                    and len(value) <= MAX_AXES
                    and all(_within(d, 1, MAX_VALUES) for d in value)
                    and math.prod(value) <= MAX_VALUES
                )
            case "low" | "high":
                return _is_interval(self.low, self.high)
            case "count":
                return _within(value, 1, MAX_CIPHERTEXTS)
            case "scale":
                return isinstance(value, float) and math.isfinite(value) and value >= 1
        return _Header._holds(self, field)

    def size(self) -> int:
        """Bytes of uint64 [count, 2, levels, n]."""
        return self.count * 2 * self.levels * self.n * 8


@dataclass(frozen=True, slots=True)
class KeyHeader(_Header):
    """Header of a key file.

    Attributes
    ----------
    salt, nonce : bytes
        Of this file's encryption.
    secret : int
        Bytes of the secret part in the clear.
    """

    salt: bytes
    nonce: bytes
    secret: int

    kind: ClassVar[int] = KEY

    def _holds(self, field: str) -> bool:
        value: Any = getattr(self, field)
        match field:
            case "salt":
                return isinstance(value, bytes) and len(value) == SALT_BYTES
            case "nonce":
                return isinstance(value, bytes) and len(value) == NONCE_BYTES
            case "secret":
                return _within(value, 1, MAX_SECRET)
        return _Header._holds(self, field)

    def size(self) -> int:
        """Bytes of the secret part with its tag and of the public part, uint64 [2, levels + 1, n]."""
        return self.secret + TAG_BYTES + 2 * (self.levels + 1) * self.n * 8


@dataclass(frozen=True, slots=True)
class Fragment:
    """A fragment whose signature was checked.

    Attributes
    ----------
    header : FragmentHeader
    data : ndarray of uint64 [count, 2, levels, n]
        Ciphertexts; residues are compared with their moduli by the CKKS backend.
    """

    header: FragmentHeader
    data: U64


class StoredKey:
    """A key file that was opened.

    Attributes
    ----------
    header : KeyHeader
    secret : bytes
        SECRET.
    public : ndarray of uint64 [2, levels + 1, n]
        (b, a).
    """

    __slots__ = ("header", "public", "secret")

    def __init__(self, header: KeyHeader, secret: bytes, public: U64) -> None:
        self.header, self.secret, self.public = header, secret, public

    def __repr__(self) -> str:
        return f"StoredKey(owner={self.header.owner!r}, hidden)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a StoredKey is secret and is not pickled")


def is_input_name(name: object) -> bool:
    """Whether a fragment may bear this name of an input: printable, in one line, not too long."""
    return isinstance(name, str) and len(name) <= MAX_NAME and _PRINTABLE.fullmatch(name) is not None


# -- fragments -------------------------------------------------------------------------------------


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
    body = _bytes(data)
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
    """Read a fragment's header and check that `owner` signed the whole file; errors as :func:`read_fragment`."""
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
) -> Fragment:
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
        raise InputError(f"{title} is input {header.input!r}, not {name!r}", culprit=owner.name)
    if header.shape != tuple(shape):
        raise InputError(f"{title} has shape {header.shape}, not {tuple(shape)}", culprit=owner.name)
    if not bounds[0] <= header.low <= header.high <= bounds[1]:
        raise InputError(
            f"{title} has values in ({header.low:g}, {header.high:g}), and the session takes "
            f"({bounds[0]:g}, {bounds[1]:g})",
            culprit=owner.name,
        )
    if parameters is not None and header.parameters != parameters:
        raise ConfigError(f"{title} was encrypted under other parameters", culprit=owner.name)
    if key is not None and header.key_id != key:
        raise ConfigError(f"{title} was encrypted under another key of its owner", culprit=owner.name)
    data = np.frombuffer(file.body, dtype="<u8").astype(np.uint64)
    return Fragment(header, data.reshape(header.count, 2, header.levels, header.n))


def _verified(path: str | os.PathLike[str], owner: PublicIdentity) -> tuple[FragmentHeader, Sealed]:
    title = f"fragment {os.fspath(path)}"
    file = sealed.read(path, FRAGMENT)
    header = _fragment(file, title)
    _check_signer(header, owner, title)
    file.verify(owner, title)
    return header, file


def _fragment(file: Sealed, title: str) -> FragmentHeader:
    header = FragmentHeader.decode(file.header, title)
    _check_size(header, file, title)
    return header


# -- keys ------------------------------------------------------------------------------------------


def write_key(
    path: str | os.PathLike[str],
    identity: Identity,
    secret: bytes,
    public: U64,
    *,
    parameters: bytes,
    key: bytes,
    created: int | None = None,
) -> KeyHeader:
    """Write an owner's CKKS key to a new file with mode 0600.

    Parameters
    ----------
    path : path
        Must not exist.
    identity : Identity
        The owner's: it signs, and opens the file later.
    secret : bytes
        SECRET: at most 1 MiB; encrypted before it is written.
    public : ndarray of uint64 [2, levels + 1, n]
        (b, a).
    parameters, key : bytes
        Digests of the modulus chain and of the public key.
    created : int, optional
        Seconds since 1970; now by default.

    Raises
    ------
    ConfigError
        The file exists or cannot be written.
    """
    if not 1 <= len(secret) <= MAX_SECRET:
        raise ConfigError("a secret key of impossible size")
    header = KeyHeader(
        owner=identity.name,
        signer=identity.fingerprint,
        n=public.shape[2],
        levels=public.shape[1] - 1,
        parameters=parameters,
        key_id=key,
        created=int(time.time()) if created is None else created,
        salt=secrets.token_bytes(SALT_BYTES),
        nonce=secrets.token_bytes(NONCE_BYTES),
        secret=len(secret),
    )
    prefix = sealed.encode_prefix(KEY, header.encode(), header.size())
    hidden = _cipher(identity, header).encrypt(header.nonce, secret, prefix)
    sealed.write(path, identity, prefix, memoryview(hidden + _bytes(public)), mode=0o600)
    return header


def read_key_header(path: str | os.PathLike[str]) -> KeyHeader:
    """What a key file says of itself; NOBODY'S signature is checked."""
    title = f"key {os.fspath(path)}"
    file = sealed.read(path, KEY, private=True, only_header=True)
    header = KeyHeader.decode(file.header, title)
    _check_size(header, file, title)
    return header


def read_key(path: str | os.PathLike[str], identity: Identity) -> StoredKey:
    """Open a key file.

    Raises
    ------
    ConfigError
        Missing, unreadable, readable by others, another format version, or of another owner or identity.
    IntegrityError
        Damaged, cut off, or not signed by this identity.
    """
    title = f"key {os.fspath(path)}"
    file = sealed.read(path, KEY, private=True)
    header = KeyHeader.decode(file.header, title)
    _check_size(header, file, title)
    _check_signer(header, identity.public, title)
    file.verify(identity.public, title)
    cut = header.secret + TAG_BYTES
    try:
        secret = _cipher(identity, header).decrypt(header.nonce, bytes(file.body[:cut]), file.prefix)
    except InvalidTag:
        raise IntegrityError(f"{title} cannot be opened with this identity", culprit=identity.name) from None
    public = np.frombuffer(file.body[cut:], dtype="<u8").astype(np.uint64)
    return StoredKey(header, secret, public.reshape(2, header.levels + 1, header.n))


def _cipher(identity: Identity, header: KeyHeader) -> AESGCM:
    return AESGCM(identity.derive_key("ckks key", header.salt))


# -- both ------------------------------------------------------------------------------------------


def _check_signer(header: _Header, owner: PublicIdentity, title: str) -> None:
    if header.owner != owner.name:
        raise ConfigError(f"{title} belongs to {header.owner}, not {owner.name}", culprit=owner.name)
    if header.signer != owner.fingerprint:
        raise ConfigError(
            f"{title} was signed under another certificate of {owner.name}",
            culprit=owner.name,
            hint="use the identity with which it was written",
        )


def _check_size(header: _Header, file: Sealed, title: str) -> None:
    if header.size() != file.size:
        raise IntegrityError(f"{title} holds {file.size} bytes, its header says {header.size()}")


def _within(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _bytes(data: U64) -> memoryview:
    return memoryview(np.ascontiguousarray(data).astype("<u8", copy=False).tobytes())


def _is_interval(low: object, high: object) -> bool:
    both = isinstance(low, float) and isinstance(high, float)
    return both and math.isfinite(low) and math.isfinite(high) and low <= high  # type: ignore[operator, arg-type]
