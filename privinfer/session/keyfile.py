"""An owner's CKKS key at rest, and the mark that it was published for an offline session.

The secret part is under AES-256-GCM, with a key that HKDF derives from the identity's private key and a salt
of this file, so that the file alone tells nothing; the public part is beside it. Header and both parts are
signed.
"""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NoReturn

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from privinfer.errors import ConfigError, IntegrityError
from privinfer.session import sealed
from privinfer.session.at_rest import (
    DIGEST_BYTES,
    U64,
    Header,
    check_signer,
    check_size,
    little_endian,
    within,
)
from privinfer.session.identity import Identity, PublicIdentity
from privinfer.session.sealed import KEY, PUBLICATION, Value

MAX_SECRET: Final = 1 << 20
SALT_BYTES, NONCE_BYTES, TAG_BYTES = 32, 12, 16


@dataclass(frozen=True, slots=True)
class KeyHeader(Header):
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

    def holds(self, field: str) -> bool:
        """Whether a field has the type and lies in the bounds that its name has."""
        value: Any = getattr(self, field)
        match field:
            case "salt":
                return isinstance(value, bytes) and len(value) == SALT_BYTES
            case "nonce":
                return isinstance(value, bytes) and len(value) == NONCE_BYTES
            case "secret":
                return within(value, 1, MAX_SECRET)
        return Header.holds(self, field)

    def size(self) -> int:
        """Bytes of the secret part with its tag and of the public part, uint64 [2, levels + 1, n]."""
        return self.secret + TAG_BYTES + 2 * (self.levels + 1) * self.n * 8


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
    sealed.write(path, identity, prefix, memoryview(hidden + little_endian(public)), mode=0o600)
    return header


def read_key_header(path: str | os.PathLike[str]) -> KeyHeader:
    """What a key file says of itself; NOBODY'S signature is checked."""
    title = f"key {os.fspath(path)}"
    file = sealed.read(path, KEY, private=True, only_header=True)
    header = KeyHeader.decode(file.header, title)
    check_size(header, file, title)
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
    check_size(header, file, title)
    check_signer(header, identity.public, title)
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


# -- the mark of a publication ---------------------------------------------------------------------


def write_publication(path: str | os.PathLike[str], identity: Identity, *, key: bytes, joint: bytes) -> None:
    """Mark, beside a key file and before it happens, that an offline re-keying key is published.

    Parameters
    ----------
    path : path
        The key file.
    identity : Identity
        The owner's.
    key, joint : bytes
        Digests of the owner's public key and of the one joint key.

    Raises
    ------
    IntegrityError
        There is a mark.
    """
    header: dict[str, Value] = {"owner": identity.name, "key_id": key, "joint": joint}
    mark = _mark(path)
    if os.path.lexists(mark):
        raise _published(identity.name)
    try:
        sealed.write(
            mark, identity, sealed.encode_prefix(PUBLICATION, header, 0), memoryview(b""), mode=0o600
        )
    except ConfigError:
        if os.path.lexists(mark):
            raise _published(identity.name) from None
        raise


def read_publication(path: str | os.PathLike[str], owner: PublicIdentity, *, key: bytes) -> bytes | None:
    """Digest of the joint key for which a key file's owner published, or None.

    Raises
    ------
    ConfigError, IntegrityError
        The mark is unreadable, damaged, or of another key.
    """
    mark = _mark(path)
    if not os.path.lexists(mark):
        return None
    file = sealed.read(mark, PUBLICATION, private=True)
    file.verify(owner, f"publication {mark}")
    joint = file.header.get("joint")
    if (
        file.header != {"owner": owner.name, "key_id": key, "joint": joint}
        or not isinstance(joint, bytes)
        or len(joint) != DIGEST_BYTES
    ):
        raise IntegrityError(f"publication {mark} is of another key", culprit=owner.name)
    return joint


def _mark(path: str | os.PathLike[str]) -> str:
    return f"{os.fspath(path)}.published"


def _published(owner: str) -> IntegrityError:
    return IntegrityError(
        "this own key was published for a joint key before",
        culprit=owner,
        hint="switch online, or encrypt under a new key",
    )
