"""Polynomials over a chain of primes: the kernels of ``csrc/rns``, with types.

Arrays are uint64, limb after limb: ``[.., k, i]`` is coefficient (or NTT value) i modulo the prime of limb k,
and a *basis* says which prime that is, by its place in the chain. The last prime of a chain is the special
one, P. The *extended* basis of l limbs is the first l primes and P. Results are new arrays. Residues have to
be below their primes: what came from elsewhere is checked (`messages.py`) before it gets here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from privinfer import _kernels
from privinfer.protocols.randomness import U64

I64 = npt.NDArray[np.int64]
Basis = Sequence[int]


class Ring:
    """Z_Q[X] / (X^n + 1) for the primes of a chain, and its tables.

    Parameters
    ----------
    n : int
        Degree, a power of two from 1024 to 65536.
    primes : sequence of int
        Distinct, = 1 mod 2n, below 2^61; the fast path takes them where all are below 2^50.

    Raises
    ------
    ValueError
        They are not.
    """

    __slots__ = ("_rns", "n", "primes")

    def __init__(self, n: int, primes: Sequence[int]) -> None:
        self.n = n
        self.primes = tuple(primes)
        self._rns = _kernels.Rns(n, self.primes)

    def __repr__(self) -> str:
        return f"Ring(n={self.n}, {len(self.primes)} primes)"

    # -- arithmetic ------------------------------------------------------------------------------

    def ntt(self, a: U64, basis: Basis) -> U64:
        """Values at the odd powers of the smallest primitive 2n-th root, bit-reversed: SEAL's order."""
        return self._rns.ntt(a, basis)

    def intt(self, a: U64, basis: Basis) -> U64:
        """Coefficients again."""
        return self._rns.intt(a, basis)

    def add(self, a: U64, b: U64, basis: Basis) -> U64:
        """``a + b``; b of one polynomial serves every row of a."""
        return self._rns.add(a, b, basis)

    def sub(self, a: U64, b: U64, basis: Basis) -> U64:
        """``a - b``."""
        return self._rns.sub(a, b, basis)

    def neg(self, a: U64, basis: Basis) -> U64:
        """``-a``."""
        return self._rns.neg(a, basis)

    def mul(self, a: U64, b: U64, basis: Basis) -> U64:
        """``a b`` position by position: the product of polynomials in NTT form."""
        return self._rns.mul(a, b, basis)

    def scale(self, a: U64, scalars: U64, basis: Basis) -> U64:
        """Each limb times a number of its own."""
        return self._rns.scale(a, scalars, basis)

    def automorph(self, a: U64, element: int) -> U64:
        """``a(X^element)`` of polynomials in NTT form."""
        return self._rns.automorph(a, element)

    def multiply_sum(self, x: U64, y: U64, basis: Basis) -> U64:
        """``sum_i x_i y_i`` for x [count, 2, l, n] and y [count, l, n], in NTT form."""
        return self._rns.multiply_sum(x, y, basis)

    # -- integers and residues -------------------------------------------------------------------

    def lift(self, v: I64, basis: Basis) -> U64:
        """Residues of signed coefficients."""
        return self._rns.lift(v, basis)

    def lift_wide(self, words: U64, basis: Basis) -> U64:
        """Residues of signed 128-bit coefficients, low word first."""
        return self._rns.lift_wide(words, basis)

    def compose(self, a: U64, basis: Basis) -> U64:
        """Centred integers modulo the product of at most four primes, as signed 128-bit numbers.

        Raises
        ------
        ValueError
            One does not fit.
        """
        return self._rns.compose(a, basis)

    def to_ring64(self, a: U64, basis: Basis) -> U64:
        """``round(2^64 a / Q)`` modulo 2^64, off by a unit a limb at most: from shares mod Q."""
        return self._rns.to_ring64(a, basis)

    # -- sampling --------------------------------------------------------------------------------

    def uniform(self, key: bytes, count: int, basis: Basis) -> U64:
        """`count` uniform polynomials from AES-128-CTR under a key of 16 bytes, by rejection."""
        return self._rns.uniform(key, count, basis)

    def ternary(self, key: bytes, count: int) -> I64:
        """Coefficients -1, 0 and 1, a third each."""
        return self._rns.ternary(key, count)

    def binomial(self, key: bytes, count: int) -> I64:
        """Centred binomial coefficients, 21 bits less 21 bits: standard deviation 3.24."""
        return self._rns.binomial(key, count)

    def wide_uniform(self, key: bytes, count: int, bits: int) -> U64:
        """Signed 128-bit coefficients uniform in [-2^bits, 2^bits)."""
        return self._rns.wide_uniform(key, count, bits)

    # -- key switching ---------------------------------------------------------------------------

    def decompose(self, c: U64) -> U64:
        """Digits [l, l + 1, n] of a polynomial [l, n], over the extended basis."""
        return self._rns.decompose(c)

    def key_product(self, digits: U64, key: U64, element: int = 1) -> U64:
        """``sum_j sigma(digit_j) key_j`` over the extended basis, [2, l + 1, n]."""
        return self._rns.key_product(digits, key, element)

    def mod_down(self, a: U64) -> U64:
        """Divide by P and round: from the extended basis to l limbs."""
        return self._rns.mod_down(a)

    def rescale(self, a: U64) -> U64:
        """Divide by the last of l primes and round: l - 1 limbs."""
        return self._rns.rescale(a)

    # -- embedding -------------------------------------------------------------------------------

    def encode(self, slots: npt.NDArray[np.complex128], scale: float, basis: Basis) -> U64:
        """Polynomials whose slots are ``scale`` times the given ones, in NTT form.

        Raises
        ------
        ValueError
            A coefficient would reach 2^62.
        """
        return self._rns.encode(slots, scale, basis)

    def decode(self, coefficients: npt.NDArray[np.float64], scale: float) -> npt.NDArray[np.complex128]:
        """Slots of polynomials given by their coefficients."""
        return self._rns.decode(coefficients, scale)
