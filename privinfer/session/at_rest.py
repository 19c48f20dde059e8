"""What the files of `sealed.py` say of themselves, whichever kind they are: owner, parameters, key, time."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import numpy as np
import numpy.typing as npt

from privinfer.errors import ConfigError, IntegrityError
from privinfer.session.identity import NAME, PublicIdentity
from privinfer.session.sealed import Sealed, Value

U64 = npt.NDArray[np.uint64]

MAX_N: Final = 65536
MAX_LEVELS: Final = 64
MAX_TIME: Final = 253402300799  # the last second of the year 9999
DIGEST_BYTES: Final = 32
_HEX64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Header:
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
            if not header.holds(field):
                raise IntegrityError(f"{field} in the header of {name} is not possible")
        return header

    def holds(self, field: str) -> bool:
        """Whether a field has the type and lies in the bounds that its name has."""
        value: Any = getattr(self, field)
        match field:
            case "owner":
                return isinstance(value, str) and NAME.fullmatch(value) is not None
            case "signer":
                return isinstance(value, str) and _HEX64.fullmatch(value) is not None
            case "n":
                return within(value, 1024, MAX_N) and value & (value - 1) == 0
            case "levels":
                return within(value, 1, MAX_LEVELS)
            case "parameters" | "key_id":
                return isinstance(value, bytes) and len(value) == DIGEST_BYTES
            case "created":
                return within(value, 0, MAX_TIME)
        return False

    def size(self) -> int:
        """Bytes of the body."""
        raise NotImplementedError


def check_signer(header: Header, owner: PublicIdentity, title: str) -> None:
    """Raise ConfigError where a file is not `owner`'s, or of another certificate of theirs."""
    if header.owner != owner.name:
        raise ConfigError(
            f"{title} belongs to {header.owner}, not {owner.name}",
            culprit=owner.name,
            hint="every owner brings its own",
        )
    if header.signer != owner.fingerprint:
        raise ConfigError(
            f"{title} was signed under another certificate of {owner.name}",
            culprit=owner.name,
            hint="use the identity with which it was written",
        )


def check_size(header: Header, file: Sealed, title: str) -> None:
    """Raise IntegrityError where a body has not the size that its header implies."""
    if header.size() != file.size:
        raise IntegrityError(f"{title} holds {file.size} bytes, its header says {header.size()}")


def within(value: object, low: int, high: int) -> bool:
    """Whether `value` is an integer from `low` to `high`."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def little_endian(data: U64) -> memoryview:
    """Bytes of an array, as they are stored."""
    return memoryview(np.ascontiguousarray(data).astype("<u8", copy=False).tobytes())
