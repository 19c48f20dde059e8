"""Noise is drawn from the law that is declared, and costs what is declared."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privinfer.protocols import gaussian, privacy
from tests.support.stats import ALARM, critical

DRAWS = 6000


def check_law(draws: list[int], weights: dict[int, float]) -> None:
    """Pearson's test with the rare ends put together; a false alarm is as rare as ALARM says."""
    total = math.fsum(weights.values())
    expected = {x: DRAWS * w / total for x, w in weights.items()}
    common = [x for x, n in expected.items() if n >= 5]
    seen = Counter(draws)
    assert set(seen) <= set(weights)  # what is left out has less than 1e-12 in all
    pairs = [(seen[x], expected[x]) for x in common]
    rest = DRAWS - sum(n for n, _ in pairs), DRAWS - sum(e for _, e in pairs)
    pairs += [rest] if rest[1] > 1 else []
    statistic = sum((n - e) ** 2 / e for n, e in pairs)
    assert statistic <= critical(len(pairs) - 1, ALARM)


@pytest.mark.parametrize("sigma", [1, 2, 7])
def test_discrete_gaussian(sigma: int) -> None:
    wanted = {x: math.exp(-x * x / (2 * sigma * sigma)) for x in range(-8 * sigma, 8 * sigma + 1)}
    check_law([gaussian.gaussian(sigma) for _ in range(DRAWS)], wanted)


@pytest.mark.parametrize("scale", [1, 3])
def test_discrete_laplace(scale: int) -> None:
    wanted = {x: math.exp(-abs(x) / scale) for x in range(-40 * scale, 40 * scale + 1)}
    check_law([gaussian.laplace(scale) for _ in range(DRAWS)], wanted)


@pytest.mark.parametrize(("numerator", "denominator"), [(0, 1), (1, 3), (1, 1), (5, 2)])
def test_bernoulli_of_an_exponential(numerator: int, denominator: int) -> None:
    p = math.exp(-numerator / denominator)
    found = [int(gaussian.bernoulli_exp(numerator, denominator)) for _ in range(DRAWS)]
    check_law(found, {k: w for k, w in ((1, p), (0, 1 - p)) if w > 0})


def test_large_sigmas_have_their_variance_and_their_low_bits() -> None:
    sigma, count = 1 << 20, 2000
    values = [gaussian.gaussian(sigma) for _ in range(count)]
    # a sum of squares / sigma**2 is chi-square with as many degrees of freedom, but for what rounding does
    some = 400
    squares = math.fsum(v * v for v in values[:some]) / sigma**2
    assert critical(some, 1 - ALARM) <= squares <= critical(some, ALARM)
    low = Counter(v % 8 for v in values)
    statistic = sum((low[k] - count / 8) ** 2 / (count / 8) for k in range(8))
    assert statistic <= critical(7, ALARM)


@pytest.mark.parametrize("sigma", [0, -1, gaussian.MAX_SIGMA + 1])
def test_sigmas_that_make_no_sense(sigma: int) -> None:
    with pytest.raises(ValueError, match="sigma"):
        gaussian.gaussian(sigma)


def test_draws_are_words_mod_2_64() -> None:
    found = gaussian.draw(3, (40, 5))
    assert found.shape == (40, 5)
    assert found.dtype == np.uint64
    assert np.abs(found.view(np.int64)).max() < 60
    assert (found.view(np.int64) < 0).any()


# -- what it costs ---------------------------------------------------------------------------------


def exact_delta(sigma: int, distance: int, epsilon: float) -> float:
    """The delta of one integer that moves by `distance`, by its definition."""
    x = np.arange(-40 * sigma, 40 * sigma + 1)
    p, q = (np.exp(-((x - shift) ** 2) / (2.0 * sigma * sigma)) for shift in (0, distance))
    return float(np.maximum(p - math.exp(epsilon) * q, 0).sum() / p.sum())


def continuous_delta(sigma: float, distance: float, epsilon: float) -> float:
    """Balle and Wang, theorem 8, for the continuous Gaussian."""

    def phi(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    a, b = distance / (2 * sigma), epsilon * sigma / distance
    return phi(a - b) - math.exp(epsilon) * phi(-a - b)


CASES = [(1.0, 1e-6), (0.1, 1e-5), (8.0, 1e-5), (0.01, 1e-3), (50.0, 1e-9)]


@pytest.mark.parametrize(("epsilon", "delta"), CASES)
@pytest.mark.parametrize("distance", [1, 5, 64])
def test_sigma_keeps_the_promise_and_is_not_far_above(epsilon: float, delta: float, distance: int) -> None:
    sigma = privacy.sigma_for(epsilon, delta, distance)
    assert exact_delta(sigma, distance, epsilon) <= delta
    if sigma > 50 and delta <= 1e-5:  # rounding up counts below, and zCDP says less of a large delta
        assert continuous_delta(sigma / 1.15, distance, epsilon) > delta


@pytest.mark.parametrize(("epsilon", "delta"), CASES)
def test_one_answer_fits_the_budget_of_one_and_two_do_not(epsilon: float, delta: float) -> None:
    sigma = privacy.sigma_for(epsilon, delta, 1000.0)
    rho = privacy.rho_of(sigma, 1000.0)
    assert privacy.delta_of(rho, epsilon) <= delta
    assert privacy.delta_of(2 * rho, epsilon) > delta
    assert epsilon * 0.9 < privacy.epsilon_of(rho, delta) < epsilon * 1.001 + 0.01


@settings(max_examples=25)
@given(st.floats(1e-4, 20), st.floats(1e-10, 0.009), st.integers(1, 50))
def test_many_answers_cost_what_a_gaussian_that_much_nearer_would(
    rho: float, delta: float, count: int
) -> None:
    epsilon = privacy.epsilon_of(count * rho, delta)
    assert continuous_delta(1.0, math.sqrt(2 * count * rho), epsilon) <= delta
    assert privacy.delta_of(count * rho, epsilon) <= delta * (1 + 1e-6)
    assert privacy.epsilon_of(rho, delta) <= epsilon


def test_charges_count_rows_and_outputs() -> None:
    receivers = {"risk": "patient", "note": "patient", "age": "doctor"}
    doctor, patient = privacy.charges(receivers, 3, {"risk": 0.5, "age": 0.25})
    assert (doctor.receiver, doctor.answers, doctor.rho) == ("doctor", 3, 0.75)
    assert (patient.receiver, patient.answers, patient.rho) == ("patient", 6, 1.5)
