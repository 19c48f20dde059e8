"""What is declared of the error of every value, carried through the same operations as the ciphertexts.

A :class:`Declared` holds a bound on a value's numbers and the standard deviation of the error of its slots.
`std` is the largest over all directions: any weighted sum of slots with weights of norm 1 has an error of no
more. For one slot that is its own deviation; for sums it holds whatever the correlations that linear steps
leave behind. A matrix multiplies it by its spectral norm, a function by its steepest slope, and errors of
values that share a past are added (not in squares). What an operation adds of its own is fresh and
independent, and its formula stands in :mod:`privinfer.protocols.ckks.noise`, a coefficient.

These are heuristics in one point, as everywhere in the field: coefficients' errors count as independent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from privinfer.protocols.ckks import noise
from privinfer.protocols.ckks.parameters import Parameters

__all__ = ["Bookkeeping", "Declared"]


@dataclass(frozen=True, slots=True)
class Declared:
    """What is known beforehand of a ciphertext.

    Attributes
    ----------
    size : float
        Bound on the absolute value of every slot.
    std : float
        Standard deviation of a slot's error, in units of the value.
    limbs : int
        As of the ciphertext.
    scale : float
        As of the ciphertext.
    wide : bool
        Whether it has three components.
    """

    size: float
    std: float
    limbs: int
    scale: float
    wide: bool = False


class Bookkeeping:
    """The arithmetic of :class:`Declared` values, method for method that of ciphertexts.

    Parameters
    ----------
    parameters : Parameters
        Ring and primes.
    holders : int
        How many secrets the joint key is the sum of, and how many parties' errors its keys bear.
    """

    __slots__ = ("holders", "parameters", "primes")

    def __init__(self, parameters: Parameters, holders: int) -> None:
        self.parameters = parameters
        self.holders = holders
        self.primes = parameters.primes

    def slot(self, coefficient_std: float, scale: float) -> float:
        """Deviation of a slot where that of a coefficient is known."""
        return noise.slot_std(self.parameters, coefficient_std, scale)

    def fresh(self, size: float, limbs: int, scale: float, coefficient_std: float) -> Declared:
        """A ciphertext as it came, with its encoding rounded to integers besides."""
        rounded = math.hypot(coefficient_std, math.sqrt(1 / 12))
        return Declared(size, self.slot(rounded, scale), limbs, scale)

    def add(self, a: Declared, b: Declared) -> Declared:
        """Sum, of values that may share their errors."""
        return Declared(a.size + b.size, a.std + b.std, a.limbs, a.scale, a.wide or b.wide)

    def add_constant(self, a: Declared, value: float) -> Declared:
        """A number more in every slot; rounded to half a unit of a scale that is the square of the usual."""
        return replace(a, size=a.size + abs(value), std=a.std + 0.5 / a.scale)

    def scaled(self, a: Declared, value: float, scale: float) -> Declared:
        """Product with ``round(value scale / a.scale)``."""
        off = 0.5 * a.scale / scale  # of the factor
        return Declared(a.size * abs(value), a.std * abs(value) + a.size * off, a.limbs, scale)

    def product(self, a: Declared, b: Declared) -> Declared:
        """Slot by slot: each factor's error times the bound of the other, and the product of errors."""
        error = a.size * b.std + b.size * a.std + a.std * b.std
        return Declared(a.size * b.size, error, a.limbs, a.scale * b.scale, True)

    def relinearise(self, a: Declared) -> Declared:
        """The key's error over P."""
        if not a.wide:
            return a
        own = self.slot(noise.relinearisation(self.parameters, self.holders, a.limbs), a.scale)
        return replace(a, std=math.hypot(a.std, own), wide=False)

    def rescale(self, a: Declared, scale: float | None = None) -> Declared:
        """A rounding at the new scale."""
        exact = a.scale / self.primes[a.limbs - 1] if scale is None else scale
        own = self.slot(noise.rescale(self.parameters, self.holders), exact)
        return Declared(a.size, math.hypot(a.std, own), a.limbs - 1, exact)

    def drop(self, a: Declared, limbs: int) -> Declared:
        """Nothing is added."""
        return replace(a, limbs=limbs)

    def bounded(self, a: Declared, size: float) -> Declared:
        """What is known of a value from elsewhere."""
        return replace(a, size=min(a.size, size))

    def refresh(self, a: Declared, limbs: int, holders: int) -> Declared:
        """Errors of both halves, at the same scale."""
        own = self.slot(noise.refresh(holders), a.scale)
        return replace(a, limbs=limbs, std=math.hypot(a.std, own))

    def linear(
        self,
        inputs: Sequence[Declared],
        norms: Sequence[float],
        *,
        size: float,
        diagonals: int,
        giants: int,
        folds: int,
        scale: float,
    ) -> Declared:
        """A product by diagonals with its folds before the rescale, and a bias.

        Parameters
        ----------
        inputs : sequence of Declared
            One a source.
        norms : sequence of float
            Spectral norm of each source's matrix.
        size : float
            Bound on the result.
        diagonals : int
            How many an output adds up, before folds.
        giants : int
            Giant steps an output adds up.
        folds : int
            Rotate-and-add steps; errors of their terms count as independent only where they are fresh.
        scale : float
            Of the result.

        Returns
        -------
        Declared
            One limb below the inputs.
        """
        p, holders = self.parameters, self.holders
        limbs = inputs[0].limbs
        std = 0.0
        for x, norm in zip(inputs, norms, strict=True):
            # Babies are rotated before the weights, so that their switching counts like an input's error.
            own = self.slot(noise.rotation(p, holders, limbs), x.scale)
            std += norm * math.hypot(x.std, own)
        spread = 2.0**folds
        largest = max(x.size for x in inputs)
        wide = scale * self.primes[limbs - 1]
        # Coefficients of diagonals are rounded to integers, at the prime's scale.
        encoded = largest * self.slot(math.sqrt(diagonals * spread / 12), wide / inputs[0].scale)
        # Giants and folds switch at the squared scale.
        switched = self.slot(noise.rotation(p, holders, limbs) * math.sqrt((giants + folds) * spread), wide)
        rounded = self.slot(math.hypot(noise.rescale(p, holders), math.sqrt(1 / 12)), scale)
        return Declared(size, math.hypot(std, encoded, switched, rounded), limbs - 1, scale)
