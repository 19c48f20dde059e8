"""Smudging: the noise that hides how a share's product with s_i, and a ciphertext's own noise, came about.

Distribution: every coefficient uniform in [-2**b, 2**b), drawn afresh by each party for each share, b
public. Each party's own noise has to flood alone, for the others may collude and subtract theirs; adding n
of them up makes nothing safer, and costs precision: slot error std = sigma sqrt(n N / 2) / Delta with sigma
= 2**b / sqrt(3).

Two measures, both reported. *Flooding bits*: log2 of sigma over the standard deviation of what is hidden.
*Distance bits*: -log2 of the statistical distance between the flooded noise and noise that does not depend on
what is hidden, over all N coefficients: E|e| = std sqrt(2 / pi) a coefficient, a shift by e moves a uniform
distribution on 2**(b + 1) values by |e| / 2**(b + 1), and N coefficients add up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from privinfer.errors import PrecisionError
from privinfer.protocols.ckks import sampling
from privinfer.protocols.ckks.parameters import SCALE, Parameters
from privinfer.protocols.randomness import U64

LARGEST_BITS: Final = 120


@dataclass(frozen=True, slots=True)
class Smudging:
    """Uniform in [-2**bits, 2**bits) a coefficient.

    Attributes
    ----------
    bits : int
        b, from 1 to 120.
    """

    bits: int

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= LARGEST_BITS:
            raise PrecisionError(f"smudging of {self.bits} bits is not between 1 and {LARGEST_BITS}")

    @property
    def bound(self) -> int:
        """No coefficient is larger in absolute value."""
        return 1 << self.bits

    @property
    def std(self) -> float:
        """Standard deviation sigma of a coefficient."""
        return float(self.bound / math.sqrt(3))

    def sample(self, parameters: Parameters, basis: tuple[int, ...]) -> U64:
        """Fresh noise in coefficient form, shape (len(basis), N)."""
        return parameters.ring.lift_wide(sampling.wide_integers(parameters, self.bits), basis)

    def describe(self, parameters: Parameters, parties: int, noise_std: float, scale: float = SCALE) -> str:
        """What is reported of a decryption."""
        left = -math.log2(slot_error(parameters, self.bits, parties, scale))
        return (
            f"smudging uniform in +-2^{self.bits}, sigma = 2^{math.log2(self.std):.1f},"
            f" {flooding_bits(noise_std, self.bits):.1f} bits of flooding, {left:.1f} bits of precision left"
        )


def flooding_bits(noise_std: float, bits: int) -> float:
    """log2(sigma / noise_std): how far one party's smudging stands above what it hides."""
    return math.log2(Smudging(bits).std / noise_std)


def distance_bits(parameters: Parameters, noise_std: float, bits: int) -> float:
    """-log2 of the statistical distance that is left over all coefficients."""
    return bits + 1 - math.log2(parameters.n * noise_std * math.sqrt(2 / math.pi))


def slot_error(parameters: Parameters, bits: int, parties: int, scale: float = SCALE) -> float:
    """Standard deviation of a slot after `parties` shares with this smudging."""
    return Smudging(bits).std * math.sqrt(parties * parameters.n / 2) / scale


def choose(parameters: Parameters, parties: int, wanted: float, scale: float = SCALE) -> Smudging:
    """The most smudging whose slot error has at most the wanted standard deviation.

    Raises
    ------
    PrecisionError
        Not one bit fits.
    """
    bits = math.floor(math.log2(wanted * scale * math.sqrt(3) / math.sqrt(parties * parameters.n / 2)))
    if bits < 1:
        raise PrecisionError(
            f"no smudging keeps the slots of {parties} parties within {wanted:.2g}", hint="a larger scale"
        )
    return Smudging(min(bits, LARGEST_BITS))
