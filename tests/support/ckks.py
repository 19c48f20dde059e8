"""Key holders around a table, and an oracle that knows the sum of their keys, which exists in tests alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from privinfer.protocols.ckks import encryption, galois, public_key, relinearise
from privinfer.protocols.ckks.crs import CRS
from privinfer.protocols.ckks.keys import KeyShare, PublicKey, SecretShare
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.ckks.release import Permit, Releases, volatile
from privinfer.protocols.randomness import U64

SESSION = b"s" * 32
SMALL = Parameters(1024, 4, insecure=True)
NAMES = ("hospital", "dna_company", "laboratory", "agent", "fifth", "sixth", "seventh", "eighth")


@dataclass
class Table:
    """Key holders of a session with all they make together."""

    parameters: Parameters
    secrets: dict[str, SecretShare]
    crs: CRS
    public: PublicKey

    @property
    def holders(self) -> tuple[str, ...]:
        return tuple(self.secrets)

    @property
    def joint(self) -> KeyShare:
        return total_key(self.parameters, list(self.secrets.values()))


def total_key(parameters: Parameters, shares: Sequence[KeyShare]) -> KeyShare:
    """The oracle: s = sum s_i."""
    total = shares[0].values
    for share in shares[1:]:
        total = parameters.ring.add(total, share.values, parameters.full)
    return KeyShare(parameters, total)


def seat(parameters: Parameters, n: int, attempt: int = 0) -> Table:
    """Draw n shares and make the joint public key."""
    crs = CRS(SESSION, attempt)
    secrets = {name: SecretShare.fresh(parameters) for name in NAMES[:n]}
    a = public_key.sample(parameters, crs)
    committed = {
        name: public_key.generate_share(parameters, SESSION, name, s, fresh(a)) for name, s in secrets.items()
    }
    commitments = {name: c.commitment for name, c in committed.items()}
    holders = tuple(secrets)
    openings = {name: c.reveal(commitments, holders) for name, c in committed.items()}
    total = public_key.aggregate(parameters, SESSION, commitments, openings, holders)
    return Table(parameters, secrets, crs, public_key.finish(parameters, a, total))


@lru_cache(maxsize=8)
def seated(n: int) -> Table:
    """A table of n on the small ring, made once."""
    return seat(SMALL, n)


def fresh(common):
    """Another party's copy of the same common string, as its own CRS would hand it out."""
    return type(common)(common.kind, common.label, common.data)


def permit(step: str, c1: U64) -> Permit:
    """Of a party that has released nothing yet."""
    return Releases(SESSION, volatile).claim(step, c1)


def relinearisation_key(table: Table) -> U64:
    """Both rounds."""
    p, common = table.parameters, relinearise.sample(table.parameters, table.crs)
    rounds = {name: relinearise.generate_first(p, s, fresh(common)) for name, s in table.secrets.items()}
    first = relinearise.aggregate_first(p, {n: share for n, (_, share) in rounds.items()}, table.holders)
    second = {name: relinearise.generate_second(p, state, first) for name, (state, _) in rounds.items()}
    return relinearise.finish(p, first, relinearise.aggregate_second(p, second, table.holders))


def galois_key(table: Table, element: int) -> U64:
    """One element."""
    p, common = table.parameters, galois.sample(table.parameters, table.crs, element)
    shares = {name: galois.generate_share(p, s, fresh(common)) for name, s in table.secrets.items()}
    return galois.finish(p, common, galois.aggregate(p, shares, table.holders))


# -- numbers -----------------------------------------------------------------------------------------


def message(
    parameters: Parameters, bits: int, level: int, seed: int = 0
) -> tuple[npt.NDArray[np.int64], U64]:
    """Coefficients below 2**bits in absolute value, and their plaintext in NTT form."""
    values = np.random.default_rng(seed).integers(-(1 << bits) + 1, 1 << bits, parameters.n)
    ring, basis = parameters.ring, parameters.data(level)
    return values, ring.ntt(ring.lift(values, basis), basis)


def encrypted(table: Table, bits: int, level: int, seed: int = 0) -> tuple[npt.NDArray[np.int64], U64]:
    """A message and its encryption under the joint key."""
    values, plaintext = message(table.parameters, bits, level, seed)
    return values, encryption.encrypt(table.parameters, table.public, plaintext)


def small(parameters: Parameters, residues: U64, basis: Sequence[int]) -> npt.NDArray[np.int64]:
    """Centred integers of a polynomial that is small: all limbs have to agree."""
    ring = parameters.ring
    coefficients = ring.intt(np.ascontiguousarray(residues), basis)
    q = parameters.primes[basis[0]]
    first = coefficients[..., 0, :].astype(np.int64)
    values = np.ascontiguousarray(np.where(first > q // 2, first - q, first))
    assert np.array_equal(ring.lift(values, basis), coefficients), "not a small polynomial"
    return values


def error(
    table: Table, ciphertext: U64, plaintext: U64, key: KeyShare | None = None
) -> npt.NDArray[np.int64]:
    """c0 + c1 s - m, by the oracle."""
    p, level = table.parameters, ciphertext.shape[1]
    opened = encryption.decrypt(p, table.joint if key is None else key, ciphertext)
    return small(p, p.ring.sub(opened, plaintext, p.data(level)), p.data(level))


def integers(words: U64) -> list[int]:
    """Signed 128-bit words as Python integers."""
    low, high = words[:, 0].tolist(), words[:, 1].view(np.int64).tolist()
    return [h * (1 << 64) + w for w, h in zip(low, high, strict=True)]
