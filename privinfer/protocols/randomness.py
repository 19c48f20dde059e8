"""Seeds and the streams drawn from them: the only randomness a mask may come from.

A :class:`Seed` is 32 bytes from the operating system. A :class:`Stream` is bound to one seed, session,
inference, attempt and purpose; each label in it gives one AES-128-CTR keystream, once. The key of a label
is KMAC256(seed, context) (NIST SP 800-185, used as the KDF of SP 800-108r1).
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from typing import Final, NoReturn

import cbor2
import numpy as np
import numpy.typing as npt
from Crypto.Hash import KMAC256

from privinfer import _kernels
from privinfer.errors import IntegrityError

U64 = npt.NDArray[np.uint64]
SEED_BYTES: Final = 32


class Secret:
    """Base of everything that must not be printed, compared in the open, or pickled."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(hidden)"

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} is secret and is not pickled")


class Seed(Secret):
    """32 secret bytes, shared by two parties or by three."""

    __slots__ = ("_bytes",)

    def __init__(self, data: bytes) -> None:
        if len(data) != SEED_BYTES:
            raise ValueError("a seed has 32 bytes")
        self._bytes = bytes(data)

    @classmethod
    def fresh(cls, *bound_to: bytes) -> Seed:
        """Draw a seed from the operating system.

        Parameters
        ----------
        *bound_to : bytes
            Mixed in, such as the digest of the data to be masked: should the operating system ever give
            the same bytes twice (a copied virtual machine), different data still get different masks.
        """
        return cls(derive(secrets.token_bytes(SEED_BYTES), "seed", *bound_to, size=SEED_BYTES))

    def expose(self) -> bytes:
        """The bytes, to be sent to the party that shares them and to nobody else."""
        return self._bytes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Seed) and hmac.compare_digest(self._bytes, other._bytes)

    def __hash__(self) -> int:
        raise TypeError("a seed is not hashed")


@dataclass(frozen=True, slots=True)
class Scope:
    """What a mask is for: no two runs share a scope, so no two values share a mask."""

    session: bytes
    inference: int
    attempt: int = 0


def derive(key: bytes, purpose: str, *context: bytes | str | int, size: int = 16) -> bytes:
    """KMAC256 of a 32-byte key over an unambiguous encoding of purpose and context."""
    mac = KMAC256.new(key=key, mac_len=size, custom=b"privinfer/1/" + purpose.encode())
    mac.update(cbor2.dumps(list(context), canonical=True))
    return bytes(mac.digest())


class Stream(Secret):
    """Pseudorandom values that everyone who has the seed draws alike; each label can be drawn once.

    Parameters
    ----------
    seed : Seed
        What the holders share.
    scope : Scope
        Session, inference and attempt.
    purpose : str
        What the stream is for; two purposes never meet.
    """

    __slots__ = ("_drawn", "_purpose", "_scope", "_seed")

    def __init__(self, seed: Seed, scope: Scope, purpose: str) -> None:
        self._seed = seed
        self._scope = scope
        self._purpose = purpose
        self._drawn: set[str] = set()

    def draw(self, label: str, shape: tuple[int, ...], bits: int = 64) -> U64:
        """Uniform integers mod 2**bits.

        Parameters
        ----------
        label : str
            Names the value; drawn once.
        shape : tuple of int
            Of the result.
        bits : int
            1 to 64.

        Returns
        -------
        ndarray of uint64
            Values below 2**bits.

        Raises
        ------
        IntegrityError
            The label was drawn before: a mask would serve two values.
        """
        if label in self._drawn:
            raise IntegrityError(f"randomness {label!r} would be used twice")
        self._drawn.add(label)
        s = self._scope
        key = derive(self._seed.expose(), self._purpose, s.session, s.inference, s.attempt, label)
        count = int(np.prod(shape, dtype=np.int64))
        values: U64 = _kernels.prg_u64(key, 0, count).reshape(shape)
        if bits < 64:
            values &= np.uint64((1 << bits) - 1)
        return values

    def draw_blocks(self, label: str, count: int) -> npt.NDArray[np.uint8]:
        """`count` blocks of 16 uniform bytes, shaped (count, 16)."""
        return self.draw(label, (count, 2)).view(np.uint8)
