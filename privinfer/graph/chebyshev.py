"""Polynomials in Chebyshev's basis: their values, their names, and bounds of their derivatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev as series

from privinfer.errors import ModelUnsupported

Array = npt.NDArray[np.float64]

PREFIX = "polynomial "
ULP = 2.0**-53
CLENSHAW = 8.0
SLACK = 1e-9  # of a bound, for what float64 loses in computing it


def evaluate(low: float, high: float, coefficients: Sequence[float], x: Array) -> Array:
    """``sum_k coefficients[k] T_k(t)`` with ``t = (2 x - low - high) / (high - low)``, by Clenshaw's rule."""
    t = (2.0 * np.asarray(x, dtype=np.float64) - (low + high)) / (high - low)
    return np.asarray(series.chebval(t, np.array(coefficients, dtype=np.float64)))


def name(low: float, high: float, coefficients: Sequence[float]) -> str:
    """Name of a polynomial: it says all of it, so that :func:`parse` finds it in any process."""
    return PREFIX + " ".join(repr(float(v)) for v in (low, high, *coefficients))


def parse(text: str) -> Series:
    """What :func:`name` named; ModelUnsupported where it is no polynomial's name."""
    try:
        low, high, *c = (float(v) for v in text.removeprefix(PREFIX).split(" "))
    except ValueError:
        raise ModelUnsupported("the name of a polynomial does not say its range and coefficients") from None
    if not c or not all(map(math.isfinite, (high - low, low, *c))) or low >= high:
        raise ModelUnsupported("a polynomial has an empty range, or a coefficient that is not finite")
    return Series(low, high, tuple(c))


@dataclass(frozen=True, slots=True)
class Series:
    """A polynomial on a range."""

    low: float
    high: float
    coefficients: tuple[float, ...]

    @property
    def rounding(self) -> float:
        """How far values in float64 may be off.

        Clenshaw's rule loses up to n**2 units in the last place of the sum of |c|, and so does a t that is
        off, which it is the more the further the range lies from 0.
        """
        size, far = sum(map(abs, self.coefficients)), abs(self.low) + abs(self.high)
        return CLENSHAW * ULP * len(self.coefficients) ** 2 * size * (1.0 + far / (self.high - self.low))

    def values(self, x: Array) -> Array:
        """Values at `x`."""
        return evaluate(self.low, self.high, self.coefficients, x)

    def bound(self, k: int, lo: Array, hi: Array) -> Array:
        """No less than the k-th derivative's absolute value on [lo, hi], elementwise.

        Derivatives of a T_j are sums of T_i with factors that are not negative, and T_i is largest, on
        [-r, r] with r >= 1, at r. So those of a series are at most those of the series of absolute values
        there; and at most the value in the middle, and half the width times the next derivative's bound.
        """
        a, b = ((2.0 * v - (self.low + self.high)) / (self.high - self.low) for v in (lo, hi))
        c, steep = np.array(self.coefficients), 2.0 / (self.high - self.low)
        reach = np.maximum(1.0, np.maximum(np.abs(a), np.abs(b))) * (1.0 + 1e-12)
        whole, next_one = (series.chebval(reach, series.chebder(np.abs(c), j)) * steep**j for j in (k, k + 1))
        middle = np.abs(series.chebval((a + b) / 2, series.chebder(c, k))) * steep**k + SLACK * whole
        return np.asarray(np.minimum(whole, middle + (hi - lo) / 2 * next_one))
