"""Hiding commitments: 32 bytes that bind a party to a value and tell nothing of it until it is opened.

Functionality: the committer shows KMAC256(salt, value's digest and context); later it may show salt and
value, and anybody can check. Adversary: hiding, since the salt is 32 bytes from the operating system that
never leave the committer; binding, as far as KMAC256 resists collisions. Randomness of the same computation
is derived from the same salt, so an opening also shows which masks were used. Rounds: none of its own.
Bytes: 32.
Source: NIST SP 800-185 (KMAC); docs/agreement.md.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Final

import numpy as np
import numpy.typing as npt

from privinfer.errors import IntegrityError
from privinfer.graph import ir
from privinfer.protocols.randomness import SEED_BYTES, Secret, Seed, derive

COMMITMENT_BYTES: Final = 32


class Opening(Secret):
    """The secret side of a commitment: its salt.

    Parameters
    ----------
    salt : bytes
        32 bytes, from the operating system.
    """

    __slots__ = ("_salt",)

    def __init__(self, salt: bytes) -> None:
        if len(salt) != SEED_BYTES:
            raise ValueError("a salt has 32 bytes")
        self._salt = bytes(salt)

    @classmethod
    def fresh(cls, digest: bytes) -> Opening:
        """A new salt, bound to the digest of the value as :meth:`Seed.fresh` binds seeds."""
        return cls(Seed.fresh(digest, b"salt").expose())

    def expose(self) -> bytes:
        """The salt, for the committer's own disk or an auditor."""
        return self._salt

    def commit(self, what: str, digest: bytes, *context: bytes | str | int) -> bytes:
        """The commitment to a value with this digest, in a context that no other commitment has."""
        return derive(self._salt, f"commit to {what}", digest, *context, size=COMMITMENT_BYTES)

    def check(self, commitment: bytes, what: str, digest: bytes, *context: bytes | str | int) -> None:
        """Raise IntegrityError where this does not open the commitment to a value with this digest."""
        if not hmac.compare_digest(commitment, self.commit(what, digest, *context)):
            raise IntegrityError(f"this is not the {what} that was committed to")

    def seed(self, purpose: str, *context: bytes | str | int) -> Seed:
        """Randomness that an opening of this commitment shows; each purpose and context gives one seed."""
        return Seed(derive(self._salt, f"seed for {purpose}", *context, size=SEED_BYTES))


def digest_of(values: npt.NDArray[np.float64]) -> bytes:
    """SHA-256 of an array: its shape and its numbers as little-endian float64 in C order."""
    array = np.ascontiguousarray(values, dtype="<f8")
    head = f"privinfer/array/1:{','.join(map(str, array.shape))}:".encode()
    digest = hashlib.sha256(head)
    digest.update(array.data if array.size else b"")  # without a copy
    return digest.digest()


def digest_of_weights(model: ir.Model) -> bytes:
    """SHA-256 over the name, place and numbers of every parameter of a model."""
    digest = hashlib.sha256(b"privinfer/weights/1:")
    for node, parameters in model.walk():
        for name in sorted(parameters):
            digest.update(repr((node.name, name)).encode() + digest_of(parameters[name]))
    return digest.digest()
