from __future__ import annotations

import math

import numpy as np
import pytest

from tests import twins_rns
from tests.support.rns import (
    ALL,
    CHAINS,
    P50,
    N,
    complex_slots,
    kernel,
    on_every_path,
    twin,
)

U = 2.0**-53
# One layer of the transform, a product by a root and a sum, has the relative error eta = mu + gamma_4
# (sqrt 2 + mu) in the 2-norm (Higham, Accuracy and Stability, 2nd ed., theorem 24.2); roots are off by mu,
# for an angle up to pi has two roundings, and its cosine and sine one each.
MU = 2 * math.pi * U + math.sqrt(2) * U
ETA = MU + 4 * U / (1 - 4 * U) * (math.sqrt(2) + MU)
LAYERS = N.bit_length() - 1
TRANSFORM = LAYERS * ETA / (1 - LAYERS * ETA) + 4 * U  # and the factor at the end


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("scale", [2.0**20, 2.0**50, 2.0**60])
def test_encode_is_the_canonical_embedding(chain: str, scale: float) -> None:
    """Within the transform's error of the exact coefficients and half a unit; the same on every path."""
    k, primes, z = kernel(N, CHAINS[chain]), CHAINS[chain], complex_slots(7, 2)
    exact = twin(primes).embed(z, scale)
    norm = np.sqrt((exact.astype(float) ** 2).sum(-1, keepdims=True))
    first, *others = on_every_path(lambda: k.encode(z, scale, ALL))
    for other in others:
        np.testing.assert_array_equal(other, first)
    basis = (0, 2, 3)  # wide enough without the prime of 14 bits
    found = k.intt(first, ALL)
    integers = twins_rns.centred(
        twin(primes).integers(found[:, basis, :], basis), math.prod(primes[i] for i in basis)
    )
    assert (np.abs(integers - exact) <= 0.5 + TRANSFORM * norm).all()
    np.testing.assert_array_equal(found, twin(primes).residues(integers, ALL))


@pytest.mark.parametrize("chain", CHAINS)
def test_encode_up_to_62_bits(chain: str) -> None:
    """A constant has one coefficient, exactly its scale; 2^62 is refused, and so is what is no number."""
    k, primes = kernel(N, CHAINS[chain]), CHAINS[chain]
    largest = 2.0**62 - 2.0**9
    for sign in (1, -1):
        z = np.full(N // 2, sign, np.complex128)
        expected = np.array([[sign * int(largest) % q] for q in primes], np.uint64).repeat(N, 1)
        for got in on_every_path(lambda z=z: k.encode(z, largest, ALL)):
            np.testing.assert_array_equal(got, expected)
        with pytest.raises(ValueError, match="does not fit 62 bits"):
            k.encode(z, 2.0**62, ALL)
    for bad in (np.nan, np.inf, complex(0, np.nan), 1e300):
        z = np.ones((2, N // 2), np.complex128)
        z[1, 5] = bad
        with pytest.raises(ValueError, match="does not fit 62 bits"):
            k.encode(z, 2.0**50, ALL)


def test_decode_is_the_inverse() -> None:
    """Slot i is the value at w^(3^i): against sums in long doubles, and encoding's way back."""
    k, z, scale = kernel(N, P50), complex_slots(8, 3), 2.0**40
    coefficients = np.random.default_rng(9).normal(size=(2, N)) * scale
    exact = twin(P50).slots(coefficients, scale)
    norm = np.sqrt((np.abs(exact.astype(complex)) ** 2).sum(-1, keepdims=True))
    for got in on_every_path(lambda: k.decode(coefficients, scale)):
        assert (np.abs(got - exact) <= TRANSFORM * norm).all()
    rounded = twins_rns.signed(k.compose(k.intt(k.encode(z, scale, ALL), ALL)[:, :2].copy(), (0, 1))).astype(
        float
    )
    # Half a unit for each of n coefficients, and the errors of two transforms of 2-norm sqrt(n / 2).
    assert np.abs(k.decode(rounded, scale) - z).max() <= N / 2 / scale + 2 * TRANSFORM * math.sqrt(N / 2)


def test_embedding_is_a_homomorphism() -> None:
    """Sums, products, rotations to the left by powers of 3, conjugation by -1."""
    k, scale, basis = kernel(N, P50), 2.0**40, (0, 1)
    x, y = complex_slots(10, 2)
    a, b = k.encode(np.stack([x, y]), scale, basis)
    e = N / 2 / scale + TRANSFORM * math.sqrt(N / 2)  # of an encoding, in any slot; |x|, |y| <= 1

    def decoded(c: np.ndarray, at: float) -> np.ndarray:
        return k.decode(twins_rns.signed(k.compose(k.intt(c, basis), basis)).astype(float), at)

    def check(c: np.ndarray, expected: np.ndarray, at: float, error: float) -> None:
        off = np.abs(decoded(c, at) - expected).max()
        assert off <= error + 2 * TRANSFORM * math.sqrt(N / 2) * np.abs(expected).max()

    check(k.add(a, b, basis), x + y, scale, 2 * e)
    check(k.mul(a, b, basis), x * y, scale * scale, 2 * e + e * e)
    for step in (1, 5, N // 2 - 1):
        check(k.automorph(a, pow(3, step, 2 * N)), np.roll(x, -step), scale, e)
    check(k.automorph(a, 2 * N - 1), x.conj(), scale, e)
    # The last prime is as good as 2^50 and takes the scale with it.
    found = k.intt(k.rescale(k.mul(a, b, basis)), (0,))[0].astype(object)
    slots = k.decode(twins_rns.centred(found, P50[0]).astype(float), scale * scale / P50[1])
    small = scale * scale / P50[1]
    assert np.abs(slots - x * y).max() <= 2 * e + e * e + N / 2 / small + 3 * TRANSFORM * math.sqrt(N / 2)
