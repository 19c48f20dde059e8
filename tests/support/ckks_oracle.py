"""A joint CKKS key whose secret is formed in the test, as the oracle: no party of a session could."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import numpy as np

from privinfer.backends.ckks.cipher import Arithmetic, Ciphertext
from privinfer.protocols.ckks import encryption, sampling
from privinfer.protocols.ckks.keys import PublicKey, SecretShare
from privinfer.protocols.ckks.parameters import SCALE, Parameters

#: Standard deviations that no slot's error exceeds: a slot of e s is a product of two complex Gaussians,
#: whose real part is Laplace distributed, beyond 24 deviations with probability exp(-24 sqrt 2) = 2e-15.
TAIL = 24.0


class Oracle:
    """The sum of `holders` ternary secrets with all keys that evaluation needs.

    Key noise is that of one party, or of the sum where `holders` says so: errors of a joint key are sums.
    """

    def __init__(self, parameters: Parameters, holders: int = 1, secret: np.ndarray | None = None) -> None:
        self.parameters = parameters
        self.holders = holders
        ring, full = parameters.ring, parameters.full
        if secret is None:
            secret = SecretShare.fresh(parameters).values
            for _ in range(holders - 1):
                secret = ring.add(secret, SecretShare.fresh(parameters).values, full)
        self.secret = secret
        self.public = PublicKey(parameters, self._pair(None, None))
        self.relinearisation = self._switching(ring.mul(self.secret, self.secret, full))

    def at(self, levels: int) -> Oracle:
        """The same secret under parameters of fewer levels."""
        few = dataclasses.replace(self.parameters, levels=levels)
        return Oracle(few, self.holders, np.concatenate([self.secret[:levels], self.secret[-1:]]))

    def _errors(self):
        ring, full = self.parameters.ring, self.parameters.full
        e = sampling.errors(self.parameters, full)
        for _ in range(self.holders - 1):
            e = ring.add(e, sampling.errors(self.parameters, full), full)
        return e

    def _pair(self, target, digit):
        """(-a s + e + P target in one limb, a)."""
        p = self.parameters
        ring, full = p.ring, p.full
        a = sampling.uniform(p, 1, full)[0]
        b = ring.sub(self._errors(), ring.mul(a, self.secret, full), full)
        if target is not None:
            limb = (digit,)
            by = np.array([p.special % p.primes[digit]], np.uint64)
            part = ring.scale(target[digit : digit + 1], by, limb)
            b[digit] = ring.add(b[digit : digit + 1], part, limb)[0]
        return np.stack([b, a])

    def _switching(self, target):
        return np.stack([self._pair(target, j) for j in range(self.parameters.digits)])

    def galois(self, steps: Iterable[int]) -> dict[int, np.ndarray]:
        """Keys of rotations, by element."""
        p = self.parameters
        elements = {pow(3, s % p.slots, 2 * p.n) for s in steps} - {1}
        return {g: self._switching(p.ring.automorph(self.secret, g)) for g in elements}

    def arithmetic(self, steps: Iterable[int] = ()) -> Arithmetic:
        """With the Galois keys of these steps."""
        return Arithmetic(self.parameters, self.relinearisation, self.galois(steps))

    def encrypt(self, values, limbs: int, scale: float = SCALE) -> Ciphertext:
        """Of S numbers."""
        p = self.parameters
        basis = p.data(limbs)
        plain = p.ring.encode(np.asarray(values, dtype=np.complex128), scale, basis)
        return Ciphertext(encryption.encrypt(p, self.public, plain), scale)

    def decrypt(self, a: Ciphertext) -> np.ndarray:
        """Complex slots."""
        return self.parameters.ring.decode(wide_floats(self.message(a)), a.scale)

    def refresh(self, a: Ciphertext, limbs: int) -> Ciphertext:
        """The same message and scale in a fresh encryption: what the key holders do without seeing it."""
        ring, basis = self.parameters.ring, self.parameters.data(limbs)
        plain = ring.ntt(ring.lift_wide(self.message(a), basis), basis)
        return Ciphertext(encryption.encrypt(self.parameters, self.public, plain), a.scale)

    def message(self, a: Ciphertext) -> np.ndarray:
        """Scale times message plus error: coefficients as signed 128-bit words."""
        p = self.parameters
        limbs = min(a.limbs, 3)
        basis = p.data(limbs)
        data = np.ascontiguousarray(a.data[:, :limbs])
        s = np.ascontiguousarray(self.secret[:limbs])
        m, power = data[0], s
        for part in data[1:]:
            m = p.ring.add(m, p.ring.mul(part, power, basis), basis)
            power = p.ring.mul(power, s, basis)
        return p.ring.compose(p.ring.intt(m, basis), basis)


def wide_floats(words: np.ndarray) -> np.ndarray:
    """Signed 128-bit words as float64, each rounded once or twice."""
    low, high = words[..., 0], words[..., 1]
    negative = high >> np.uint64(63) == 1
    low = np.where(negative, ~low + np.uint64(1), low)
    high = np.where(negative, ~high + (low == 0), high)
    size = high.astype(np.float64) * 2.0**64 + low.astype(np.float64)
    return np.where(negative, -size, size)


def vectors(seed: int, *shape: int) -> np.ndarray:
    """Uniform in [-1, 1]."""
    return np.random.default_rng(seed).uniform(-1, 1, shape)
