"""The model owner's salt at rest: it opens the commitment to weights that session files and consents name.

The salt is under AES-256-GCM, with a key that HKDF derives from the identity's private key and a salt of this
file; the header, which is not secret, says which commitment it opens. All is signed.
"""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass
from typing import Final, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from privinfer.errors import ConfigError, IntegrityError
from privinfer.session import sealed
from privinfer.session.at_rest import DIGEST_BYTES, MAX_TIME, within
from privinfer.session.identity import NAME, Identity
from privinfer.session.sealed import OPENING, Value

SECRET_BYTES: Final = 32
_SALT, _NONCE, _TAG = 32, 12, 16
_SIZES = {"architecture": DIGEST_BYTES, "commitment": DIGEST_BYTES, "salt": _SALT, "nonce": _NONCE}
_FIELDS = {"owner", "signer", "created", *_SIZES}


@dataclass(frozen=True, slots=True, repr=False)
class WeightsOpening:
    """Such a file, opened.

    Attributes
    ----------
    owner : str
        Party name.
    architecture : bytes
        Hash of the model's architecture.
    commitment : bytes
        To its weights.
    secret : bytes
        SECRET: the salt of the commitment; empty where only the header was read.
    """

    owner: str
    architecture: bytes
    commitment: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"WeightsOpening(owner={self.owner!r}, hidden)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an opening is secret and is not pickled")


def write(
    path: str | os.PathLike[str], identity: Identity, secret: bytes, *, architecture: bytes, commitment: bytes
) -> None:
    """Write the salt of a commitment to a new file with mode 0600.

    Parameters
    ----------
    path : path
        Must not exist.
    identity : Identity
        The model owner's: it signs, and opens the file later.
    secret : bytes
        SECRET: 32 bytes, encrypted before they are written.
    architecture, commitment : bytes
        32 bytes each.

    Raises
    ------
    ConfigError
        The file exists or cannot be written.
    """
    header: dict[str, Value] = {
        "owner": identity.name,
        "signer": identity.fingerprint,
        "created": int(time.time()),
        "architecture": architecture,
        "commitment": commitment,
        "salt": secrets.token_bytes(_SALT),
        "nonce": secrets.token_bytes(_NONCE),
    }
    prefix = sealed.encode_prefix(OPENING, header, SECRET_BYTES + _TAG)
    hidden = _cipher(identity, header).encrypt(_bytes(header, "nonce"), secret, prefix)
    sealed.write(path, identity, prefix, memoryview(hidden), mode=0o600)


def read(path: str | os.PathLike[str], identity: Identity | None = None) -> WeightsOpening:
    """Open such a file; without an identity its header is read, and NOBODY'S signature is checked.

    Raises
    ------
    ConfigError
        Missing, unreadable, readable by others, or of another owner or identity.
    IntegrityError
        Damaged, cut off, or not signed by this identity.
    """
    title = f"opening {os.fspath(path)}"
    file = sealed.read(path, OPENING, private=True, only_header=identity is None)
    header = file.header
    owner = header.get("owner")
    if (
        set(header) != _FIELDS
        or not isinstance(owner, str)
        or not NAME.fullmatch(owner)
        or not within(header["created"], 0, MAX_TIME)
        or any(len(_bytes(header, name)) != size for name, size in _SIZES.items())
        or file.size != SECRET_BYTES + _TAG
    ):
        raise IntegrityError(f"the header of {title} is damaged")
    secret = b""
    if identity is not None:
        if (owner, header["signer"]) != (identity.name, identity.fingerprint):
            raise ConfigError(
                f"{title} is of another identity than {identity.name}'s",
                culprit=identity.name,
                hint="use the identity with which it was written",
            )
        file.verify(identity.public, title)
        try:
            secret = _cipher(identity, header).decrypt(_bytes(header, "nonce"), bytes(file.body), file.prefix)
        except InvalidTag:
            raise IntegrityError(f"{title} cannot be opened with this identity") from None
    return WeightsOpening(owner, _bytes(header, "architecture"), _bytes(header, "commitment"), secret)


def _bytes(header: dict[str, Value], name: str) -> bytes:
    value = header[name]
    return value if isinstance(value, bytes) else b""


def _cipher(identity: Identity, header: dict[str, Value]) -> AESGCM:
    return AESGCM(identity.derive_key("opening of weights", _bytes(header, "salt")))
