"""Statistics with exact tails, so that a threshold is a probability and not a taste."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import numpy.typing as npt

ALARM = 1e-9  # probability of a false alarm of one whole test, all its comparisons together


def chi_square_tail(x: float, freedom: int) -> float:
    """P(X >= x) for a chi-square variable, in closed form (Abramowitz and Stegun, 26.4.4 and 26.4.5)."""
    if x <= 0:
        return 1.0
    half = x / 2
    if freedom % 2 == 0:
        term = total = 1.0
        for k in range(1, freedom // 2):
            term *= half / k
            total += term
        return math.exp(-half) * total
    total, term = 0.0, math.sqrt(x)
    for k in range(1, (freedom + 1) // 2):
        total += term
        term *= x / (2 * k + 1)
    return math.erfc(math.sqrt(half)) + math.sqrt(2 / math.pi) * math.exp(-half) * total


@cache
def critical(freedom: int, probability: float) -> float:
    """The value a chi-square variable exceeds with this probability, by bisection."""
    low, high = 0.0, 10.0 * freedom + 1000.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if chi_square_tail(middle, freedom) > probability else (low, middle)
    return high


def nibbles(data: bytes | npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Histogram of half bytes."""
    raw = np.frombuffer(data, dtype=np.uint8) if isinstance(data, bytes) else data.reshape(-1)
    return np.bincount(raw & 15, minlength=16) + np.bincount(raw >> 4, minlength=16)


def uniform_statistic(counts: npt.NDArray[np.int64]) -> tuple[float, int]:
    """Pearson's statistic against the uniform distribution, and its degrees of freedom."""
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum()), counts.size - 1


def two_sample_statistic(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> tuple[float, int]:
    """Pearson's statistic for one distribution behind two histograms, and its degrees of freedom."""
    kept = first + second > 0
    a, b = first[kept].astype(float), second[kept].astype(float)
    ka, kb = math.sqrt(b.sum() / a.sum()), math.sqrt(a.sum() / b.sum())
    return float(((ka * a - kb * b) ** 2 / (a + b)).sum()), int(kept.sum()) - 1


def hoeffding(width: float, count: int, probability: float = ALARM) -> float:
    """How far the mean of `count` independent values in an interval may stray (Hoeffding, 1963)."""
    return width * math.sqrt(math.log(2 / probability) / (2 * count))
