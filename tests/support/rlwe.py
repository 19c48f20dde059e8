"""A slow twin of the ring: SEAL's transform in NumPy, and whole keys made from sums of ternary shares.

Written for tests: its generator is NumPy's, its joint secret lies open.
"""

from __future__ import annotations

import numpy as np

SIGMA = 3.24  # of the centred binomial, 21 bits against 21


def is_prime(q: int) -> bool:
    """Fermat's test with a few bases: enough for the few numbers tests look at."""
    return all(pow(b, q - 1, q) == 1 for b in (2, 3, 5, 7, 11))


def family(n: int, levels: int, bits: int = 50) -> tuple[int, ...]:
    """(q_0, .., q_{levels-1}, P): primes = 1 mod 2n below 2^bits, the largest is P, the next q_0."""
    found: list[int] = []
    q = (1 << bits) - ((1 << bits) - 1) % (2 * n)
    while len(found) <= levels:
        if is_prime(q):
            found.append(q)
        q -= 2 * n
    return (*found[1:], found[0])


def multiply(a: np.ndarray, b: np.ndarray, q: int) -> np.ndarray:
    """a b mod q for residues below 2^60: the quotient in 64 bits of mantissa is off by one at most."""
    estimate = np.floor(a.astype(np.longdouble) * b.astype(np.longdouble) / q).astype(np.uint64)
    rest = (a * b - estimate * np.uint64(q)).astype(np.int64)
    rest = np.where(rest < 0, rest + q, rest)
    return np.where(rest >= q, rest - q, rest).astype(np.uint64)


class Twin:
    """Polynomials mod X^n + 1 over several primes, in SEAL's order."""

    def __init__(self, n: int, primes: tuple[int, ...]) -> None:
        self.n, self.primes = n, primes
        bits = n.bit_length() - 1
        self.reversed = np.array([int(f"{i:0{bits}b}"[::-1], 2) for i in range(n)])
        self.roots = [self._table(q) for q in primes]

    def _table(self, q: int) -> np.ndarray:
        g = 2
        while pow(g, (q - 1) // 2, q) != q - 1:
            g += 1
        root = pow(g, (q - 1) // (2 * self.n), q)
        square, minimal, power = root * root % q, root, root
        for _ in range(self.n):
            minimal, power = min(minimal, power), power * square % q
        powers = [1]
        for _ in range(self.n - 1):
            powers.append(powers[-1] * minimal % q)
        return np.array(powers, dtype=np.uint64)[self.reversed]

    def ntt(self, coefficients: np.ndarray) -> np.ndarray:
        """Signed integers [n] to NTT form [K, n]."""
        out = np.empty((len(self.primes), self.n), np.uint64)
        for row, q, roots in zip(out, self.primes, self.roots, strict=True):
            a, m = np.mod(coefficients, q).astype(np.uint64), 1
            while m < self.n:
                halves = a.reshape(m, 2, -1)
                low, high = halves[:, 0], multiply(halves[:, 1], roots[m : 2 * m, None], q)
                a = np.stack([(low + high) % np.uint64(q), (low + np.uint64(q) - high) % np.uint64(q)], 1)
                a, m = a.reshape(-1), 2 * m
            row[:] = a
        return out

    def intt(self, data: np.ndarray) -> np.ndarray:
        """NTT form to centred integers [K, n], each limb by itself."""
        out = np.empty(data.shape, np.int64)
        for row, values, q, roots in zip(out, data, self.primes, self.roots, strict=True):
            a, m = values, self.n // 2
            inverse = np.array([pow(int(w), -1, q) for w in roots], np.uint64)
            while m:
                halves = a.reshape(m, 2, -1)
                low, high = halves[:, 0], halves[:, 1]
                apart = multiply((low + np.uint64(q) - high) % np.uint64(q), inverse[m : 2 * m, None], q)
                a, m = np.stack([(low + high) % np.uint64(q), apart], 1).reshape(-1), m // 2
            a = multiply(a, np.full(self.n, pow(self.n, -1, q), np.uint64), q)
            row[:] = np.where(a > q // 2, a.astype(np.int64) - q, a.astype(np.int64))
        return out

    def mul(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Product in NTT form."""
        return np.stack([multiply(x, y, q) for x, y, q in zip(a, b, self.primes, strict=True)])

    def add(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Sum."""
        return (a + b) % np.array(self.primes, np.uint64)[:, None]

    def neg(self, a: np.ndarray) -> np.ndarray:
        """Additive inverse."""
        q = np.array(self.primes, np.uint64)[:, None]
        return (q - a) % q

    def automorph(self, a: np.ndarray, element: int) -> np.ndarray:
        """X to X^element, in NTT form."""
        exponents = (2 * self.reversed + 1) * element % (2 * self.n)
        return a[:, self.reversed[(exponents - 1) // 2]]


class Keys:
    """Joint keys of `parties` shares, each ternary and each with noise of its own."""

    def __init__(self, n: int, primes: tuple[int, ...], parties: int = 3, seed: int = 1) -> None:
        self.ring, self.parties = Twin(n, primes), parties
        self.rng = np.random.default_rng(seed)
        ternary = self.rng.integers(-1, 2, (parties, n))
        self.secret = self.ring.ntt(ternary.sum(axis=0))

    def noise(self) -> np.ndarray:
        """Sum of all parties' errors, NTT."""
        draws = self.rng.integers(0, 2, (2, 21, self.parties, self.ring.n))
        return self.ring.ntt((draws[0] - draws[1]).sum(axis=(0, 1)))

    def uniform(self) -> np.ndarray:
        """A polynomial of the common string."""
        return np.stack([self.rng.integers(0, q, self.ring.n, dtype=np.uint64) for q in self.ring.primes])

    def public(self) -> np.ndarray:
        """(-a s + e, a)."""
        r, a = self.ring, self.uniform()
        return np.stack([r.add(r.neg(r.mul(a, self.secret)), self.noise()), a])

    def switch(self, target: np.ndarray) -> np.ndarray:
        """Digits (-A_j s + e + P target in limb j, A_j)."""
        r = self.ring
        *data, P = r.primes
        digits = []
        for j, q in enumerate(data):
            b, a = self.public()
            shifted = multiply(target[j], np.full(r.n, P % q, np.uint64), q)
            b[j] = (b[j] + shifted) % np.uint64(q)
            digits.append(np.stack([b, a]))
        return np.stack(digits)

    def relinearisation(self) -> np.ndarray:
        """Of s^2."""
        return self.switch(self.ring.mul(self.secret, self.secret))

    def galois(self, steps: list[int]) -> dict[int, np.ndarray]:
        """Of rotations to the left by `steps`."""
        elements = {pow(3, step, 2 * self.ring.n) for step in steps}
        return {e: self.switch(self.ring.automorph(self.secret, e)) for e in elements}
