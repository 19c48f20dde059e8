"""The discrete Gaussian over the integers, sampled exactly.

Functionality: X with Pr[X = x] proportional to exp(-x**2 / (2 sigma**2)), for an integer sigma. Every step is
rational arithmetic on uniform integers from the operating system: no floating point, so no gap between the
law that privacy is proved for and the one that is drawn from (Mironov, CCS 2012, is what happens else).
Adversary: as differential privacy has it, who sees X added to an integer. How long a draw takes depends on
X: it is drawn before the inputs come, and not when it is used.
Rounds and bytes: none. Correctness error: none.
Source: Canonne, Kamath and Steinke, "The discrete Gaussian for differential privacy", NeurIPS 2020
(arXiv:2004.00010), algorithms 1 to 3.
"""

from __future__ import annotations

import secrets

import numpy as np
import numpy.typing as npt

MAX_SIGMA = 1 << 58  # 32 times as much still fits a signed word


def bernoulli_exp(numerator: int, denominator: int) -> bool:
    """True with probability exp(-numerator / denominator), for a fraction of at least 0 (algorithm 1)."""
    whole, part = divmod(numerator, denominator)
    return all(_bernoulli_exp_below_1(1, 1) for _ in range(whole)) and _bernoulli_exp_below_1(
        part, denominator
    )


def _bernoulli_exp_below_1(numerator: int, denominator: int) -> bool:
    k = 1
    while secrets.randbelow(denominator * k) < numerator:  # true with probability gamma / k
        k += 1
    return k % 2 == 1


def laplace(scale: int) -> int:
    """X with Pr[X = x] proportional to exp(-abs(x) / scale), for an integer scale (algorithm 2, s = 1)."""
    while True:
        u = secrets.randbelow(scale)
        if not bernoulli_exp(u, scale):
            continue
        v = 0
        while bernoulli_exp(1, 1):
            v += 1
        x = u + scale * v
        negative = secrets.randbelow(2)
        if not (negative and x == 0):
            return -x if negative else x


def gaussian(sigma: int) -> int:
    """One draw (algorithm 3)."""
    if not 1 <= sigma <= MAX_SIGMA:
        raise ValueError(f"sigma is not in 1..{MAX_SIGMA}")
    variance, t = sigma * sigma, sigma + 1
    while True:
        y = laplace(t)
        # exp(-(abs(y) - sigma**2 / t)**2 / (2 sigma**2))
        if bernoulli_exp((abs(y) * t - variance) ** 2, 2 * variance * t * t):
            return y


def draw(sigma: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint64]:
    """Independent draws mod 2**64."""
    count = int(np.prod(shape, dtype=np.int64))
    return np.array([gaussian(sigma) % 2**64 for _ in range(count)], dtype=np.uint64).reshape(shape)
