"""Fresh secret randomness: every draw has an AES key of its own, from the operating system, and forgets it.

Nothing can be drawn twice because no key outlives its draw. An owner's encryption draws from a seed that it
has committed to instead, one seed for one ciphertext. Distributions: ternary (uniform in -1, 0, 1; secrets
and ephemeral keys), centred binomial 21 - 21 (errors; standard deviation sqrt(10.5) = 3.24), uniform in
[-2**b, 2**b) (masks and smudging).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.randomness import U64, Seed, derive

I64 = npt.NDArray[np.int64]


def fresh_key(purpose: str, seed: Seed | None = None) -> bytes:
    """16 bytes nobody has seen; or, of a seed, its own for each purpose."""
    return derive((seed or Seed.fresh()).expose(), "ckks/" + purpose)


def ternary_integers(parameters: Parameters, seed: Seed | None = None) -> I64:
    """Uniform in {-1, 0, 1}, shape (N,)."""
    values: I64 = parameters.ring.ternary(fresh_key("ternary", seed), 1)[0]
    return values


def error_integers(parameters: Parameters, count: int, seed: Seed | None = None) -> I64:
    """Centred binomial, shape (count, N)."""
    return parameters.ring.binomial(fresh_key("error", seed), count)


def wide_integers(parameters: Parameters, bits: int) -> U64:
    """Uniform in [-2**bits, 2**bits), as signed 128-bit words, shape (N, 2)."""
    values: U64 = parameters.ring.wide_uniform(fresh_key("wide"), 1, bits)[0]
    return values


def uniform(parameters: Parameters, count: int, basis: Sequence[int]) -> U64:
    """Uniform residues, shape (count, len(basis), N)."""
    return parameters.ring.uniform(fresh_key("uniform"), count, basis)


def ternary(parameters: Parameters, basis: Sequence[int], seed: Seed | None = None) -> U64:
    """A fresh ternary polynomial in NTT form, shape (len(basis), N)."""
    ring = parameters.ring
    return ring.ntt(ring.lift(ternary_integers(parameters, seed), basis), basis)


def errors(parameters: Parameters, basis: Sequence[int], *lead: int) -> U64:
    """Fresh errors in NTT form, shape (*lead, len(basis), N)."""
    ring = parameters.ring
    count = int(np.prod(lead, dtype=np.int64))
    e = error_integers(parameters, count).reshape(*lead, parameters.n)
    return ring.ntt(ring.lift(e, basis), basis)
