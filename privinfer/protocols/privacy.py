"""What noise costs: zero-concentrated differential privacy (zCDP), and epsilon and delta of it.

    noise of sigma on integers that one person's record moves by at most D in the L2 norm:
        rho = D**2 / (2 sigma**2)                                      (discrete Gaussian, any dimension)
    rho adds up over answers;
    rho-zCDP is (epsilon, delta)-DP for every alpha > 1 with
        delta = exp((alpha - 1) (alpha rho - epsilon)) / (alpha - 1) * (1 - 1 / alpha)**alpha

Whatever alpha the search ends with, the bound holds; numbers are rounded to the safe side. The analytic
Gaussian mechanism (Balle and Wang, ICML 2018) asks for a sigma a tenth smaller at a delta of 1e-5, but is
proved for the continuous law; this is proved for the law that is drawn.
Source: Canonne, Kamath and Steinke (arXiv:2004.00010), theorem 14 and corollary 13; Bun and Steinke
(arXiv:1605.02065) for zCDP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

SAFE: Final = 1 + 1e-9  # more than float64 strays here
_STEPS = 80


@dataclass(frozen=True, slots=True)
class Charge:
    """What one receiver is about to be given.

    Attributes
    ----------
    receiver : str
        Party.
    answers : int
        How many: each row of each output is one.
    rho : float
        Of all of them together; 0 without noise.
    """

    receiver: str
    answers: int
    rho: float = 0.0


def charges(receivers: Mapping[str, str], rows: int, costs: Mapping[str, float]) -> list[Charge]:
    """What so many rows cost each receiver: each row of each of its outputs is an answer.

    Parameters
    ----------
    receivers : mapping
        Output to receiver.
    rows : int
        How many; each may be another person's, and all are charged to one.
    costs : mapping
        Output to the rho of one row; 0 where it is not in it.
    """
    found = []
    for receiver in sorted(set(receivers.values())):
        own = [output for output, party in receivers.items() if party == receiver]
        rho = rows * math.fsum(costs.get(output, 0.0) for output in own)
        found.append(Charge(receiver, rows * len(own), rho))
    return found


class Budget(Protocol):
    """What keeps account of answers; the runtime's is durable."""

    def check(self, charges: list[Charge]) -> None:
        """Raise ConsentError where these would not be granted now."""
        ...

    def spend(self, charges: list[Charge]) -> None:
        """Take note of them, all or none, durably; ConsentError where they are not granted."""
        ...


def _largest(f: Callable[[float], bool], low: float, high: float) -> float:
    """The largest x in [low, high] with f(x), by bisection, for f true below some point; low if none."""
    for _ in range(_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if f(middle) else (low, middle)
    return low


def delta_of(rho: float, epsilon: float) -> float:
    """A delta with which rho-zCDP is (epsilon, delta)-DP."""
    if rho <= 0:
        return 0.0

    def exponent(alpha: float) -> float:
        return (alpha - 1) * (alpha * rho - epsilon) - math.log(alpha - 1) + alpha * math.log1p(-1 / alpha)

    def falling(alpha: float) -> bool:
        # the derivative: (2 alpha - 1) rho - epsilon + log(1 - 1 / alpha)
        return (2 * alpha - 1) * rho - epsilon + math.log1p(-1 / alpha) < 0

    high = 2.0 + (epsilon + 1) / rho
    alpha = _largest(falling, 1 + 1e-9, high)
    return min(1.0, math.exp(min(0.0, exponent(alpha))) * SAFE)


def epsilon_of(rho: float, delta: float) -> float:
    """An epsilon with which rho-zCDP is (epsilon, delta)-DP."""
    if rho <= 0:
        return 0.0
    high = rho + 2 * math.sqrt(rho * math.log(1 / delta))  # Bun and Steinke, proposition 1.3
    return min(high, _largest(lambda e: delta_of(rho, e) > delta, 0.0, high) + 1e-12) * SAFE


def rho_for(epsilon: float, delta: float) -> float:
    """The largest rho, but for rounding, that is (epsilon, delta)-DP."""
    return _largest(lambda rho: delta_of(rho, epsilon) <= delta, 0.0, epsilon) / SAFE


def sigma_for(epsilon: float, delta: float, distance: float) -> int:
    """The least integer sigma whose noise makes integers that move by `distance` (epsilon, delta)-private."""
    return max(1, math.ceil(distance / math.sqrt(2 * rho_for(epsilon, delta)) * SAFE))


def rho_of(sigma: int, distance: float) -> float:
    """What one answer costs."""
    return distance * distance / (2 * sigma * sigma) * SAFE
