"""Slow, plain twin of `privinfer._kernels.Rns`: Python integers in object arrays, formulas as defined.

Transforms go by recursion over even and odd coefficients, division and composition by whole integers, the
embedding by sums in long doubles: nothing here is how the kernels do it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from tests.twins import prg_u64

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]
Integers = NDArray[np.object_]
Basis = Sequence[int]


def smallest_root(n: int, q: int) -> int:
    """The smallest primitive 2n-th root of unity mod q."""
    roots = (pow(g, (q - 1) // (2 * n), q) for g in range(2, q))
    any_root = next(root for root in roots if pow(root, n, q) == q - 1)
    return min(pow(any_root, e, q) for e in range(1, 2 * n, 2))


def transform(a: Integers, root: int, q: int) -> Integers:
    """sum_k a_k root^(i k) for i = 0, 1, .., by halves; root of order len(a)."""
    if len(a) == 1:
        return a
    even, odd = (transform(a[start::2], root * root % q, q) for start in (0, 1))
    turned = odd * powers(root, len(odd), q) % q
    return np.concatenate([even + turned, even - turned]) % q


def powers(base: int, count: int, q: int) -> Integers:
    """base^k mod q."""
    out = [1]
    for _ in range(count - 1):
        out.append(out[-1] * base % q)
    return np.array(out, object)


def centred(a: Integers, q: int) -> Integers:
    """To [-(q - 1) / 2, (q - 1) / 2], q odd."""
    a = a % q
    return np.where(a > q // 2, a - q, a)


def signed(words: U64) -> Integers:
    """Two's complement of 128 bits, low word first."""
    return words[..., 0].astype(object) + (words[..., 1].astype(np.int64).astype(object) << 64)


def words(values: Integers) -> U64:
    """The other way."""
    low, high = (np.asarray((values >> s) & (2**64 - 1), object) for s in (0, 64))
    return np.stack([low.astype(np.uint64), high.astype(np.uint64)], -1)


class Rns:
    """The kernel's methods, bit for bit (`embed` and `slots` instead of `encode` and `decode`)."""

    def __init__(self, n: int, primes: Sequence[int]) -> None:
        self.n, self.primes = n, tuple(primes)
        bits = n.bit_length() - 1
        self.reversed = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(n)]

    @cached_property
    def roots(self) -> list[int]:
        return [smallest_root(self.n, q) for q in self.primes]

    def limbs(self, a: NDArray, basis: Basis, f: Callable[[Integers, int], Integers]) -> U64:
        """f(limb, place of its prime) for each limb."""
        rows = a.reshape(-1, len(basis), self.n)
        done = [[f(limb.astype(object), k) for limb, k in zip(row, basis, strict=True)] for row in rows]
        return np.array(done, object).reshape(a.shape).astype(np.uint64)

    def moduli(self, basis: Basis) -> Integers:
        return np.array([self.primes[k] for k in basis], object)[:, None]

    # -- transforms and arithmetic -------------------------------------------------------------------

    def _forward(self, a: Integers, k: int) -> Integers:
        q, root = self.primes[k], self.roots[k]
        natural = transform(a * powers(root, self.n, q) % q, root * root % q, q)  # at root^(2 i + 1)
        return natural[self.reversed]

    def _backward(self, a: Integers, k: int) -> Integers:
        q, root = self.primes[k], pow(self.roots[k], -1, self.primes[k])
        return (
            transform(a[self.reversed], root * root % q, q) * powers(root, self.n, q) * pow(self.n, -1, q) % q
        )

    def ntt(self, a: NDArray, basis: Basis) -> U64:
        return self.limbs(a, basis, self._forward)

    def intt(self, a: U64, basis: Basis) -> U64:
        return self.limbs(a, basis, self._backward)

    def add(self, a: U64, b: U64, basis: Basis) -> U64:
        return ((a.astype(object) + b) % self.moduli(basis)).astype(np.uint64)

    def sub(self, a: U64, b: U64, basis: Basis) -> U64:
        return ((a.astype(object) - b) % self.moduli(basis)).astype(np.uint64)

    def mul(self, a: U64, b: U64, basis: Basis) -> U64:
        return (a.astype(object) * b % self.moduli(basis)).astype(np.uint64)

    def neg(self, a: U64, basis: Basis) -> U64:
        return (-a.astype(object) % self.moduli(basis)).astype(np.uint64)

    def scale(self, a: U64, scalars: U64, basis: Basis) -> U64:
        return (a.astype(object) * scalars[:, None] % self.moduli(basis)).astype(np.uint64)

    def multiply_sum(self, x: U64, y: U64, basis: Basis) -> U64:
        zero = np.zeros((2, len(basis), self.n), object)
        total = sum((p.astype(object) * r for p, r in zip(x, y, strict=True)), zero)
        return (total % self.moduli(basis)).astype(np.uint64)

    def automorph(self, a: U64, element: int) -> U64:
        """Which value of a(X^element) is which of a: by exponents of the root."""
        place = {2 * rev + 1: i for i, rev in enumerate(self.reversed)}
        return a[..., [place[(2 * rev + 1) * element % (2 * self.n)] for rev in self.reversed]]

    # -- integers ------------------------------------------------------------------------------------

    def residues(self, v: Integers, basis: Basis) -> U64:
        return (v[..., None, :] % self.moduli(basis)).astype(np.uint64)

    def lift(self, v: I64, basis: Basis) -> U64:
        return self.residues(v.astype(object), basis)

    def lift_wide(self, w: U64, basis: Basis) -> U64:
        return self.residues(signed(w), basis)

    def integers(self, a: U64, basis: Basis) -> Integers:
        """In [0, Q), by the Chinese remainder theorem."""
        Q = math.prod(self.primes[k] for k in basis)
        total: Integers = np.zeros(a[..., 0, :].shape, object)
        for i, k in enumerate(basis):
            q = self.primes[k]
            total += a[..., i, :].astype(object) * (Q // q * pow(Q // q, -1, q))
        return total % Q

    def compose(self, a: U64, basis: Basis) -> U64:
        return words(centred(self.integers(a, basis), math.prod(self.primes[k] for k in basis)))

    def to_ring64(self, a: U64, basis: Basis) -> U64:
        """Sum of the quotients' 64 bits, each rounded, halves up."""
        Q = math.prod(self.primes[k] for k in basis)
        total: Integers = np.zeros(a[..., 0, :].shape, object)
        for i, k in enumerate(basis):
            q = self.primes[k]
            y = a[..., i, :].astype(object) * pow(Q // q, -1, q) % q
            total += ((y << 65) + q) // (2 * q)
        return (total % 2**64).astype(np.uint64)

    # -- sampling ------------------------------------------------------------------------------------

    @staticmethod
    def stream(key: bytes) -> Iterator[int]:
        counter = 0
        while True:
            yield from prg_u64(key, counter, 8192).tolist()
            counter += 4096

    def uniform(self, key: bytes, count: int, basis: Basis) -> U64:
        stream, out = self.stream(key), []
        for k in [*basis] * count:
            q = self.primes[k]
            kept = (w for w in (v % 2 ** q.bit_length() for v in stream) if w < q)
            out.append([next(kept) for _ in range(self.n)])
        return np.array(out, np.uint64).reshape(count, len(basis), self.n)

    def _small(self, key: bytes, count: int, f: Callable[[int], int]) -> I64:
        stream = self.stream(key)
        out = [f(next(stream)) for _ in range(count * self.n)]
        return np.array(out, np.int64).reshape(count, self.n)

    def ternary(self, key: bytes, count: int) -> I64:
        return self._small(key, count, lambda w: 3 * w // 2**64 - 1)

    def binomial(self, key: bytes, count: int) -> I64:
        return self._small(key, count, lambda w: (w % 2**21).bit_count() - (w >> 21 & 2**21 - 1).bit_count())

    def wide_uniform(self, key: bytes, count: int, bits: int) -> U64:
        stream = self.stream(key)
        values = [
            (next(stream) + (next(stream) << 64)) % 2 ** (bits + 1) - 2**bits for _ in range(count * self.n)
        ]
        return words(np.array(values, object)).reshape(count, self.n, 2)

    # -- key switching -------------------------------------------------------------------------------

    def extended(self, l: int) -> Basis:  # noqa: E741
        return (*range(l), len(self.primes) - 1)

    def decompose(self, c: U64) -> U64:
        l = len(c)  # noqa: E741
        out = []
        for j, row in enumerate(self.intt(c, range(l))):
            digit = self.residues(centred(row.astype(object), self.primes[j]), self.extended(l))
            out.append(self.ntt(digit, self.extended(l)))
        return np.stack(out)

    def key_product(self, digits: U64, key: U64, element: int) -> U64:
        basis = self.extended(len(digits))
        rows = key[: len(digits), :, list(basis)]
        return self.multiply_sum(rows, self.automorph(digits, element), basis)

    def _divide(self, a: U64, basis: Basis) -> U64:
        x = self.integers(self.intt(a, basis), basis)
        last = self.primes[basis[-1]]
        return self.ntt(self.residues((x - centred(x, last)) // last, basis[:-1]), basis[:-1])

    def mod_down(self, a: U64) -> U64:
        return self._divide(a, self.extended(a.shape[-2] - 1))

    def rescale(self, a: U64) -> U64:
        return self._divide(a, range(a.shape[-2]))

    # -- embedding -----------------------------------------------------------------------------------

    @cached_property
    def circle(self) -> NDArray[np.clongdouble]:
        """exp(i pi k / n), to long doubles."""
        angle = np.arange(2 * self.n).astype(np.longdouble) * (4 * np.arctan(np.longdouble(1))) / self.n
        return np.cos(angle) + 1j * np.sin(angle)

    @cached_property
    def exponents(self) -> NDArray[np.int64]:
        """3^i k mod 2n for slot i and coefficient k."""
        threes = [pow(3, i, 2 * self.n) for i in range(self.n // 2)]
        return np.outer(threes, np.arange(self.n)) % (2 * self.n)

    def embed(self, slots: NDArray, scale: float) -> NDArray[np.longdouble]:
        """Coefficients, not rounded: 2 / n times the real part of sum_i z_i conj(w^(3^i k))."""
        return (slots @ self.circle[self.exponents].conj()).real * (2 * np.longdouble(scale) / self.n)

    def slots(self, coefficients: NDArray, scale: float) -> NDArray[np.clongdouble]:
        return coefficients @ self.circle[self.exponents].T / np.longdouble(scale)
