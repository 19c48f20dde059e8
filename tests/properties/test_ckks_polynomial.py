"""Polynomials of ciphertexts against numpy.polynomial.chebyshev, and what is declared of their error."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import chebyshev

from privinfer.backends.ckks import polynomial
from privinfer.backends.ckks.bookkeeping import Bookkeeping
from privinfer.errors import PrecisionError
from privinfer.protocols.ckks import noise
from privinfer.protocols.ckks.parameters import SCALE, Parameters
from tests.support.ckks_oracle import TAIL, Oracle, vectors

N = 1024
S = N // 2
LIMBS = 7
HOLDERS = 3
numbers = st.one_of(st.just(0.0), st.floats(-1, 1, width=32))


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(Parameters(N, LIMBS, insecure=True), HOLDERS)


def check(oracle: Oracle, coefficients: list[float], scale: float, limbs: int) -> None:
    """Scale and level exactly, values within the tail of what is declared."""
    parameters = oracle.parameters
    t = vectors(len(coefficients), S)
    t[:2] = -1, 1
    found = polynomial.evaluate(oracle.arithmetic(), oracle.encrypt(t, limbs), coefficients, scale)
    assert found.scale == scale
    assert found.limbs == limbs - polynomial.depth(len(coefficients) - 1)
    books = Bookkeeping(parameters, HOLDERS)
    start = books.fresh(1.0, limbs, SCALE, noise.fresh(parameters, HOLDERS))
    declared = polynomial.evaluate(books, start, coefficients, scale)
    assert (declared.limbs, declared.scale) == (found.limbs, found.scale)
    wanted = chebyshev.chebval(t, coefficients)
    assert np.abs(wanted).max() <= declared.size * (1 + 1e-12) + 1e-12
    error = np.abs(oracle.decrypt(found).real - wanted)
    assert error.max() < TAIL * declared.std
    assert np.sqrt((error**2).mean()) < 1.5 * declared.std


@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5, 7, 8, 15, 16, 31])
def test_every_degree(oracle: Oracle, degree: int) -> None:
    rng = np.random.default_rng(degree)
    check(oracle, list(rng.normal(size=degree + 1) / (degree + 1)), SCALE * 0.98, LIMBS)


@settings(max_examples=12)
@given(st.lists(numbers, min_size=2, max_size=32), st.floats(0.9, 1.1), st.integers(0, 1))
def test_zeros_and_scales(oracle: Oracle, coefficients: list[float], by: float, spare: int) -> None:
    limbs = LIMBS - spare
    check(oracle, [a / len(coefficients) for a in coefficients], SCALE * by, limbs)


@given(st.lists(numbers, min_size=3, max_size=64))
def test_split_is_division_by_the_largest_power(coefficients: list[float]) -> None:
    m, q, r = polynomial.split(coefficients)
    assert m & (m - 1) == 0
    assert len(r) == m
    assert len(q) <= m
    t = np.linspace(-1, 1, 9)
    power = chebyshev.chebval(t, [0] * m + [1])
    whole = chebyshev.chebval(t, q) * power + chebyshev.chebval(t, r)
    assert np.allclose(whole, chebyshev.chebval(t, coefficients), atol=1e-12 * len(coefficients))


def test_depth_is_the_least() -> None:
    assert [polynomial.depth(d) for d in (1, 2, 3, 4, 7, 8, 15, 16, 31)] == [1, 2, 2, 3, 3, 4, 4, 5, 5]


def test_too_few_levels_are_refused(oracle: Oracle) -> None:
    with pytest.raises(PrecisionError, match="3 levels"):
        polynomial.evaluate(oracle.arithmetic(), oracle.encrypt(vectors(1, S), 3), [0.1] * 8, SCALE)
