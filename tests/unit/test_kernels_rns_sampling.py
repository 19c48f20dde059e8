from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import twins_rns
from tests.support import stats
from tests.support.rns import (
    ALL,
    CHAINS,
    KEY,
    P50,
    P61,
    N,
    kernel,
    on_every_path,
)

FROZEN = Path(__file__).resolve().parents[1] / "vectors" / "rns" / "samples.json"


def statistic(counts: np.ndarray, probabilities: np.ndarray) -> tuple[float, int]:
    expected = counts.sum() * probabilities
    return float(((counts - expected) ** 2 / expected).sum()), len(counts) - 1


def test_distributions() -> None:
    k = kernel(N, P61[:3] + P50[:1])
    samples: list[tuple[np.ndarray, np.ndarray]] = []
    uniform = k.uniform(KEY, 64, ALL)
    for limb, q in enumerate(P61[:3] + P50[:1]):
        v = uniform[:, limb].reshape(-1)
        assert v.max() < q
        # Bins [q b / 16, q (b + 1) / 16) differ by less than one in 2^45.
        samples.append(
            (np.bincount((v.astype(float) / q * 16).astype(int), minlength=16), np.full(16, 1 / 16))
        )
        samples.append((np.bincount((v % np.uint64(16)).astype(int), minlength=16), np.full(16, 1 / 16)))
    ternary = k.ternary(KEY, 64)
    assert set(np.unique(ternary)) == {-1, 0, 1}
    samples.append((np.bincount(ternary.reshape(-1) + 1), np.full(3, 1 / 3)))
    binomial = k.binomial(KEY, 64).reshape(-1)
    assert np.abs(binomial).max() <= 21
    weights = np.array([math.comb(42, 21 + v) for v in range(-12, 13)]) / 2.0**42
    inside = np.abs(binomial) <= 12  # beyond, fewer than 10 of 65536 are expected
    samples.append((np.bincount(binomial[inside] + 12, minlength=25), weights / weights.sum()))
    for bits in (0, 3, 63, 64, 120):
        v = twins_rns.signed(k.wide_uniform(KEY, 16, bits)).reshape(-1)
        assert v.min() >= -(2**bits)
        assert v.max() < 2**bits
        bins = min(16, 2 ** (bits + 1))
        top = ((v + 2**bits) * bins >> (bits + 1)).astype(int)
        samples.append((np.bincount(top, minlength=bins), np.full(bins, 1 / bins)))
        samples.append((np.bincount((v % bins).astype(int), minlength=bins), np.full(bins, 1 / bins)))
    for counts, probabilities in samples:
        value, freedom = statistic(counts, probabilities)
        assert value < stats.critical(freedom, stats.ALARM / len(samples))


def test_small_primes_reject_and_stay_uniform() -> None:
    """12289 is three quarters of 2^14: a quarter of the candidates goes."""
    k = kernel(N, (12289,))
    counts = np.bincount(k.uniform(KEY, 200, (0,)).reshape(-1).astype(int), minlength=12289)
    value, freedom = stats.uniform_statistic(counts[:12288].reshape(-1, 512).sum(0))
    assert len(counts) == 12289
    assert value < stats.critical(freedom, stats.ALARM)


@pytest.mark.parametrize("chain", CHAINS)
def test_a_longer_sample_begins_with_the_shorter(chain: str) -> None:
    k = kernel(N, CHAINS[chain])
    for sample in (
        lambda count: k.uniform(KEY, count, (0, 1)),
        lambda count: k.ternary(KEY, count),
        lambda count: k.binomial(KEY, count),
        lambda count: k.wide_uniform(KEY, count, 99),
    ):
        np.testing.assert_array_equal(sample(3)[:2], sample(2))
        assert len(sample(0)) == 0


def frozen_samples(k: Any) -> dict[str, np.ndarray]:
    """What `samples.json` holds, for a kernel or a twin of P50."""
    a = k.uniform(KEY, 1, ALL)
    return {
        "uniform": a,
        "ternary": k.ternary(KEY, 2),
        "binomial": k.binomial(KEY, 2),
        "wide_uniform": k.wide_uniform(KEY, 1, 100),
        "ntt": k.ntt(a, ALL),
    }


def digest(a: np.ndarray) -> dict[str, Any]:
    raw = a.astype(a.dtype.newbyteorder("<")).tobytes()
    return {"first": [str(v) for v in a.reshape(-1)[:4]], "sha256": hashlib.sha256(raw).hexdigest()}


def test_frozen_samples() -> None:
    """Keys and ciphertexts made today are read next year: a stream may not change."""
    frozen = json.loads(FROZEN.read_text())
    assert frozen["primes"] == list(P50)
    for got in on_every_path(lambda: frozen_samples(kernel(N, P50))):
        assert {name: digest(a) for name, a in got.items()} == frozen["samples"]
