"""Ciphertexts as arrays, and the arithmetic the evaluator does with them.

A ciphertext is ``(c0, c1)`` with ``c0 + c1 s = scale * message``, modulo the first `limbs` primes of the
family, in NTT form. Scales are real numbers carried along exactly (to the last bits of a float64), never
"about Delta": a sum of two ciphertexts of different scales is an error here, not a loss of precision.

Nothing here holds a secret: all keys are public, and what ciphertexts hide they hide from whoever runs this.
Randomness is drawn in :meth:`Arithmetic.hide` only, from the operating system.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from privinfer.errors import ConfigError, PrecisionError
from privinfer.protocols.ckks import encryption
from privinfer.protocols.ckks.keys import PublicKey
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.ckks.smudging import Smudging
from privinfer.protocols.randomness import U64

#: Relative difference of two scales that still count as one: the rounding of a few products of floats.
SAME_SCALE: Final = 2.0**-44


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ciphertext:
    """An encryption of S = N/2 numbers.

    Attributes
    ----------
    data : ndarray of uint64, shape (2, limbs, N)
        NTT form, residues below their primes. Three components between :meth:`Arithmetic.product` and
        :meth:`Arithmetic.relinearise`: ``c0 + c1 s + c2 s^2``.
    scale : float
        What the numbers were multiplied by.
    """

    data: U64
    scale: float

    @property
    def limbs(self) -> int:
        """How many primes are left."""
        return int(self.data.shape[1])

    def __repr__(self) -> str:
        return f"Ciphertext({self.data.shape}, scale=2^{math.log2(self.scale):g})"


class Arithmetic:
    """Additions, products and rotations of ciphertexts under one public key.

    Parameters
    ----------
    parameters : Parameters
        Ring and primes; the last prime is the special one, P.
    relinearisation : ndarray of uint64, shape (D, 2, K, N), optional
        Switches s^2 to s. None where nothing is multiplied by a ciphertext.
    galois : mapping of int to ndarray
        By Galois element (odd, below 2N), switches sigma(s) to s.
    """

    __slots__ = ("galois", "n", "parameters", "primes", "relinearisation", "ring", "slots")

    def __init__(
        self, parameters: Parameters, relinearisation: U64 | None, galois: Mapping[int, U64]
    ) -> None:
        self.parameters = parameters
        self.ring = parameters.ring
        self.n = parameters.n
        self.slots = parameters.n // 2
        self.primes = parameters.primes
        self.relinearisation = relinearisation
        self.galois = dict(galois)

    def data(self, limbs: int) -> tuple[int, ...]:
        """Indices of the first `limbs` primes."""
        return self.parameters.data(limbs)

    def extended(self, limbs: int) -> tuple[int, ...]:
        """Indices of the first `limbs` primes and of P."""
        return self.parameters.extended(limbs)

    def element(self, step: int) -> int:
        """Galois element that brings slot i + step to slot i."""
        return pow(3, step % self.slots, 2 * self.n)

    def key(self, step: int) -> U64:
        """Switching key of a rotation; ConfigError where nobody made it."""
        try:
            return self.galois[self.element(step)]
        except KeyError:
            raise ConfigError(f"there is no Galois key for a rotation by {step}") from None

    # Encodings

    def encode(self, values: npt.NDArray[np.float64], scale: float, basis: Sequence[int]) -> U64:
        """Plaintexts of vectors (..., S), in NTT form over the primes of `basis`."""
        return self.ring.encode(np.ascontiguousarray(values, dtype=np.complex128), scale, basis)

    def constant(self, value: float, scale: float, limbs: int) -> list[int]:
        """``round(value * scale)`` modulo each prime: the plaintext that holds `value` in every slot."""
        k = round(value * scale)
        return [k % q for q in self.primes[:limbs]]

    # Sums

    def add(self, a: Ciphertext, b: Ciphertext) -> Ciphertext:
        """``a + b``; PrecisionError unless levels and scales are the same."""
        self._meet(a, b)
        if len(a.data) < len(b.data):
            a, b = b, a
        basis = self.data(a.limbs)
        if len(a.data) == len(b.data):
            return Ciphertext(self.ring.add(a.data, b.data, basis), a.scale)
        data = np.empty_like(a.data)
        data[:2] = self.ring.add(a.data[:2], b.data, basis)
        data[2] = a.data[2]
        return Ciphertext(data, a.scale)

    def sub(self, a: Ciphertext, b: Ciphertext) -> Ciphertext:
        """``a - b``, of two components each."""
        self._meet(a, b)
        return Ciphertext(self.ring.sub(a.data, b.data, self.data(a.limbs)), a.scale)

    def add_plain(self, a: Ciphertext, plain: U64) -> Ciphertext:
        """Add a plaintext of the scale and the level of `a`."""
        data = a.data.copy()
        data[0] = self.ring.add(a.data[0], plain, self.data(a.limbs))
        return Ciphertext(data, a.scale)

    def add_constant(self, a: Ciphertext, value: float) -> Ciphertext:
        """Add a number to every slot."""
        plain = np.empty(a.data.shape[1:], dtype=np.uint64)
        plain[:] = np.array(self.constant(value, a.scale, a.limbs), dtype=np.uint64)[:, None]
        return self.add_plain(a, plain)

    # Products

    def multiply_plain(self, a: Ciphertext, plain: U64, scale: float) -> Ciphertext:
        """Multiply by a plaintext of the given scale; the scales multiply, to be followed by a rescale."""
        return Ciphertext(self.ring.mul(a.data, plain, self.data(a.limbs)), a.scale * scale)

    def scaled(self, a: Ciphertext, value: float, scale: float) -> Ciphertext:
        """``value * a`` at exactly `scale` and the same level: one integer factor, ``value scale / a.scale``.

        The integer is rounded, so `scale` has to be far above that of `a`.
        """
        factor = np.array(self.constant(value, scale / a.scale, a.limbs), dtype=np.uint64)
        return Ciphertext(self.ring.scale(a.data, factor, self.data(a.limbs)), scale)

    def multiply_scalar(self, a: Ciphertext, value: float, scale: float) -> Ciphertext:
        """``value * a`` one level down, at exactly `scale`."""
        return self.rescale(self.scaled(a, value, scale * self.primes[a.limbs - 1]), scale)

    def product(self, a: Ciphertext, b: Ciphertext) -> Ciphertext:
        """``a * b`` of three components, not yet relinearised; levels have to be the same."""
        if a.limbs != b.limbs:
            raise PrecisionError(f"a product of ciphertexts at {a.limbs} and {b.limbs} limbs")
        basis = self.data(a.limbs)
        ring = self.ring
        data = np.empty((3, *a.data.shape[1:]), dtype=np.uint64)
        low = ring.mul(a.data, b.data[0], basis)
        high = ring.mul(a.data, b.data[1], basis)
        data[0] = low[0]
        data[1] = ring.add(low[1], high[0], basis)
        data[2] = high[1]
        return Ciphertext(data, a.scale * b.scale)

    def relinearise(self, a: Ciphertext) -> Ciphertext:
        """Bring three components back to two: the digits of c2 times the relinearisation key."""
        if len(a.data) == 2:
            return a
        if self.relinearisation is None:
            raise ConfigError("there is no relinearisation key")
        ring = self.ring
        switched = ring.mod_down(ring.key_product(ring.decompose(a.data[2]), self.relinearisation, 1))
        return Ciphertext(ring.add(a.data[:2], switched, self.data(a.limbs)), a.scale)

    def multiply(self, a: Ciphertext, b: Ciphertext) -> Ciphertext:
        """``a * b``, relinearised; the scales multiply, to be followed by a rescale."""
        return self.relinearise(self.product(a, b))

    # Levels

    def rescale(self, a: Ciphertext, scale: float | None = None) -> Ciphertext:
        """Divide by the last prime, which goes.

        Parameters
        ----------
        a : Ciphertext
            Of two limbs or more.
        scale : float, optional
            What the result's scale is known to be, so that it is that to the last bit.
        """
        if a.limbs < 2:
            raise PrecisionError("no level is left to rescale")
        exact = a.scale / self.primes[a.limbs - 1]
        if scale is not None and not _same(scale, exact):
            raise PrecisionError(f"a rescale gives scale {exact!r}, not {scale!r}")
        return Ciphertext(self.ring.rescale(a.data), exact if scale is None else scale)

    def drop(self, a: Ciphertext, limbs: int) -> Ciphertext:
        """The same message and scale modulo the first `limbs` primes only."""
        if limbs == a.limbs:
            return a
        if not 1 <= limbs < a.limbs:
            raise PrecisionError(f"{a.limbs} limbs do not go down to {limbs}")
        return Ciphertext(np.ascontiguousarray(a.data[:, :limbs]), a.scale)

    def bounded(self, a: Ciphertext, size: float) -> Ciphertext:
        """Nothing: bookkeeping learns from it that no slot is larger than `size`."""
        del size
        return a

    # Rotations

    def rotate(self, a: Ciphertext, step: int) -> Ciphertext:
        """Bring slot i + step to slot i."""
        return self.rotations(a, (step,))[0]

    def rotations(self, a: Ciphertext, steps: Iterable[int]) -> list[Ciphertext]:
        """Several rotations of one ciphertext, whose digits are taken once ("hoisting")."""
        ring = self.ring
        basis = self.data(a.limbs)
        digits: U64 | None = None
        found = []
        for step in steps:
            if step % self.slots == 0:
                found.append(a)
                continue
            key = self.key(step)
            if digits is None:
                digits = ring.decompose(np.ascontiguousarray(a.data[1]))
            element = self.element(step)
            data = ring.mod_down(ring.key_product(digits, key, element))
            data[0] = ring.add(data[0], ring.automorph(a.data[0], element), basis)
            found.append(Ciphertext(data, a.scale))
        return found

    def fold(self, a: Ciphertext, steps: Iterable[int]) -> Ciphertext:
        """``a + rot(a, step)`` for one step after the other."""
        for step in steps:
            a = self.add(a, self.rotate(a, step))
        return a

    def hide(self, a: Ciphertext, public: PublicKey, smudging: Smudging | None = None) -> Ciphertext:
        """The same message plus a fresh encryption of zero: for every ciphertext that leaves the evaluator.

        Without it c1 after a product with a plaintext, divided by c1 before, is that plaintext: weights.
        """
        return Ciphertext(encryption.rerandomise(self.parameters, public, a.data, smudging), a.scale)

    def _meet(self, a: Ciphertext, b: Ciphertext) -> None:
        if a.limbs != b.limbs or not _same(a.scale, b.scale):
            raise PrecisionError(
                f"a sum of scales 2^{math.log2(a.scale):.6f} and 2^{math.log2(b.scale):.6f} "
                f"at {a.limbs} and {b.limbs} limbs"
            )


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= SAME_SCALE * abs(b)
