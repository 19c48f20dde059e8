"""Secret shares, a party's whole key, public keys.

Which key may do what is in the types. A :class:`SecretShare` is ternary and makes joint keys; a
:class:`KeyShare` of a threshold (`threshold.py`) is no short polynomial and only takes part in protocols
that multiply it with c1 or A once; an :class:`OwnKey` belongs to one party alone and is independent of
every share.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from privinfer.errors import ConfigError
from privinfer.protocols.ckks import sampling
from privinfer.protocols.ckks.messages import residues_size, unpack
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.ckks.sampling import I64
from privinfer.protocols.randomness import U64, Secret


class KeyShare(Secret):
    """An additive share of a secret key: what a key holder multiplies c1 with. It never leaves its party."""

    __slots__ = ("_values", "parameters")

    def __init__(self, parameters: Parameters, values: U64) -> None:
        self.parameters = parameters
        self._values = values

    @property
    def values(self) -> U64:
        """Over all primes, NTT form, shape (K, N)."""
        return self._values

    def at(self, level: int) -> U64:
        """Over the first `level` primes, shape (level, N)."""
        return self._values[: len(self.parameters.data(level))]


class SecretShare(KeyShare):
    """s_i: ternary, fresh, made by its party and known to it alone."""

    __slots__ = ()

    @classmethod
    def fresh(cls, parameters: Parameters) -> SecretShare:
        """Draw s_i."""
        return cls.restore(parameters, sampling.ternary_integers(parameters))

    @classmethod
    def restore(cls, parameters: Parameters, coefficients: I64) -> SecretShare:
        """Make a share of coefficients that were exposed before; ConfigError where these are not ternary."""
        if coefficients.shape != (parameters.n,) or np.any(np.abs(coefficients) > 1):
            raise ConfigError(f"a secret key has {parameters.n} coefficients in -1, 0, 1")
        ring = parameters.ring
        return cls(parameters, ring.ntt(ring.lift(coefficients, parameters.full), parameters.full))

    def expose(self) -> I64:
        """The coefficients -1, 0, 1, shape (N,): for the party's own encrypted file and nothing else."""
        ring = self.parameters.ring
        residues = ring.intt(np.ascontiguousarray(self._values[:1]), (0,))[0]
        found: I64 = residues.astype(np.int64)
        found[residues > 1] = -1
        return found


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PublicKey:
    """(p0, p1) = (-s a + e, a) over all primes.

    Attributes
    ----------
    parameters : Parameters
        Where it lives.
    data : ndarray of uint64, shape (2, K, N)
        p0 and p1.
    """

    parameters: Parameters
    data: U64

    def at(self, level: int) -> U64:
        """Over the first `level` primes, shape (2, level, N)."""
        return np.ascontiguousarray(self.data[:, : len(self.parameters.data(level))])

    def digest(self) -> bytes:
        """SHA-256 of parameters and key."""
        head = b"privinfer/ckks/public key/1" + self.parameters.digest()
        return hashlib.sha256(head + self.to_bytes()).digest()

    def to_bytes(self) -> bytes:
        """Wire form."""
        return self.data.astype("<u8", copy=False).tobytes()

    @staticmethod
    def size(parameters: Parameters) -> int:
        """Bytes of the wire form."""
        return residues_size(parameters, 2 * parameters.limbs)

    @classmethod
    def parse(cls, parameters: Parameters, data: bytes | memoryview, culprit: str | None = None) -> PublicKey:
        """Read the wire form; ProtocolViolation names the sender."""
        found = unpack(data, parameters, parameters.full, (2,), culprit=culprit, step="public key")
        return cls(parameters, found)

    def __repr__(self) -> str:
        return f"PublicKey({self.digest().hex()[:16]})"


@dataclass(slots=True, eq=False, repr=False)
class OwnKey(Secret):
    """A party's whole key: of a receiver, or of the owner of a fragment at rest. No share of any joint key.

    Attributes
    ----------
    secret : SecretShare
        Known to this party alone.
    public : PublicKey
        For everybody.
    offline_for : bytes or None
        Digest of the joint key for which a re-keying key was published (`rekey.py`): never for two.
    """

    secret: SecretShare
    public: PublicKey
    offline_for: bytes | None = field(default=None)

    @classmethod
    def fresh(cls, parameters: Parameters) -> OwnKey:
        """Draw a key pair."""
        return cls.restore(SecretShare.fresh(parameters))

    @classmethod
    def restore(cls, secret: SecretShare) -> OwnKey:
        """Make a new public key for a secret that exists."""
        parameters = secret.parameters
        ring, full = parameters.ring, parameters.full
        a = sampling.uniform(parameters, 1, full)[0]
        b = ring.sub(sampling.errors(parameters, full), ring.mul(a, secret.values, full), full)
        return cls(secret, PublicKey(parameters, np.stack([b, a])))

    def __repr__(self) -> str:
        return "OwnKey(hidden)"
