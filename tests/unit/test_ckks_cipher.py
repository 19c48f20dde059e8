"""Arithmetic of ciphertexts against vectors in the clear; errors against the variance each operation adds.

Bounds are eight standard deviations of the declared error (bookkeeping.py): over all slots of all tests of a
run, a Gaussian goes beyond one with probability below 1e-9.
"""

from __future__ import annotations

import numpy as np
import pytest

from privinfer.backends.ckks import linear
from privinfer.backends.ckks.cipher import Arithmetic, Ciphertext, encrypt_zero
from privinfer.errors import ConfigError, PrecisionError
from privinfer.protocols.ckks.parameters import SCALE, Parameters
from tests.support.ckks_oracle import Oracle, vectors

N = 1024
S = N // 2
STEPS = (1, 2, 3, 4, 8, 12, 16, 32, 64, 128, 256, 511)


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(Parameters(N, 4, insecure=True), holders=3)


@pytest.fixture(scope="module")
def ckks(oracle: Oracle) -> Arithmetic:
    return oracle.arithmetic(STEPS)


# Of one coefficient, in units of the ciphertext: three holders, s of variance 2, products of N terms.
FRESH = np.sqrt(10.5 * (N * 3 * 2 / 3 + 1 + N * 2))  # v e_pk + e0 + e1 s
ROUNDING = np.sqrt((1 + N * 2) / 12)  # of a rescale or a division by P
SWITCH = np.sqrt(
    4 * N / 12 * 10.5 * 3
)  # four digits, each uniform below q, times three parties' errors, over P


def slot(coefficient: float, scale: float = SCALE) -> float:
    """Eight standard deviations of a slot's real part."""
    return 8 * coefficient * np.sqrt(N / 2) / scale


def close(oracle: Oracle, found: Ciphertext, wanted: np.ndarray, bound: float) -> None:
    error = np.abs(oracle.decrypt(found).real - wanted).max()
    assert error < bound, f"error 2^{np.log2(error):.1f}, bound 2^{np.log2(bound):.1f}"


def test_sums(oracle: Oracle, ckks: Arithmetic) -> None:
    x, y = vectors(1, 2, S)
    a, b = oracle.encrypt(x, 3), oracle.encrypt(y, 3)
    bound = slot(FRESH * np.sqrt(2))
    close(oracle, ckks.add(a, b), x + y, bound)
    close(oracle, ckks.sub(a, b), x - y, bound)
    close(oracle, ckks.add_plain(a, ckks.encode(y, SCALE, ckks.data(3))), x + y, bound)
    close(oracle, ckks.add_constant(a, -1.25), x - 1.25, bound)


def test_product_relinearised_and_not(oracle: Oracle, ckks: Arithmetic) -> None:
    x, y = vectors(2, 2, S)
    a, b = oracle.encrypt(x, 4), oracle.encrypt(y, 4)
    # Each factor's error times the other factor, at most 1; switching is far below, at the square of the scale.
    bound = slot(2 * FRESH + ROUNDING)
    close(oracle, ckks.rescale(ckks.multiply(a, b)), x * y, bound)
    close(oracle, ckks.product(a, b), x * y, slot(2 * FRESH))
    three = ckks.add(ckks.product(a, b), ckks.multiply(a, a))
    close(oracle, ckks.rescale(ckks.relinearise(three)), x * y + x * x, 2 * bound)


def test_plain_products_and_exact_scales(oracle: Oracle, ckks: Arithmetic) -> None:
    x, y = vectors(3, 2, S)
    a = oracle.encrypt(x, 3)
    plain = ckks.encode(y, SCALE, ckks.data(3))
    close(oracle, ckks.rescale(ckks.multiply_plain(a, plain, SCALE)), x * y, slot(2 * FRESH + ROUNDING))
    wanted = SCALE * 1.0078125
    found = ckks.multiply_scalar(a, -0.7, wanted)
    assert found.scale == wanted
    assert found.limbs == 2
    close(oracle, found, -0.7 * x, slot(FRESH + ROUNDING))


def test_levels(oracle: Oracle, ckks: Arithmetic) -> None:
    x = vectors(4, S)
    a = oracle.encrypt(x, 4)
    low = ckks.drop(a, 2)
    assert low.limbs == 2
    assert low.scale == a.scale
    close(oracle, low, x, slot(FRESH))
    assert ckks.drop(a, 4) is a
    for limbs in (0, 5):
        with pytest.raises(PrecisionError):
            ckks.drop(a, limbs)
    with pytest.raises(PrecisionError):
        ckks.rescale(ckks.drop(a, 1))
    with pytest.raises(PrecisionError):
        ckks.rescale(a, SCALE * 1.01)


@pytest.mark.parametrize("limbs", [1, 2, 4])
def test_rotations(oracle: Oracle, ckks: Arithmetic, limbs: int) -> None:
    x = vectors(5, S) / 4  # one limb has no room for 1
    a = oracle.encrypt(x, limbs)
    steps = (0, 1, 3, -1, 256)
    for step, found in zip(steps, ckks.rotations(a, steps), strict=True):
        close(oracle, found, np.roll(x, -step), slot(FRESH + SWITCH + ROUNDING))
    with pytest.raises(ConfigError, match="rotation by 5"):
        ckks.rotate(a, 5)


def test_sums_of_different_scales_or_levels_are_refused(oracle: Oracle, ckks: Arithmetic) -> None:
    a, b = oracle.encrypt(vectors(6, S), 3), oracle.encrypt(vectors(7, S), 3)
    with pytest.raises(PrecisionError):
        ckks.add(a, Ciphertext(b.data, b.scale * (1 + 2.0**-40)))
    with pytest.raises(PrecisionError):
        ckks.sub(a, ckks.drop(b, 2))
    with pytest.raises(PrecisionError):
        ckks.product(a, ckks.drop(b, 2))
    with pytest.raises(ConfigError):
        Arithmetic(oracle.parameters, None, {}).multiply(a, b)


def test_zero_encryptions_hide_and_change_nothing(oracle: Oracle, ckks: Arithmetic) -> None:
    x = vectors(8, S)
    a = oracle.encrypt(x, 3)
    b, c = ckks.hide(a, oracle.public), ckks.hide(a, oracle.public)
    assert not np.any((b.data == a.data).all(axis=-1))
    assert not np.any((b.data == c.data).all(axis=-1))
    close(oracle, b, x, slot(FRESH * np.sqrt(2)))
    flood = 30
    zero = oracle.decrypt(Ciphertext(encrypt_zero(oracle.public, 2, flood), SCALE)).real
    wanted = 2.0**flood / np.sqrt(3) * np.sqrt(N / 2) / SCALE
    assert 0.85 * wanted < zero.std() < 1.15 * wanted  # 512 slots: the estimate's own deviation is 3 %


def dense(matrix: np.ndarray, period: int, split: int) -> dict[tuple[int, int], np.ndarray]:
    """Diagonals of (m, d) with output i at all slots = i mod `period` after folding."""
    m, d = matrix.shape
    s = np.arange(S)
    block = {}
    for step in range(period):
        values = np.zeros(S)
        rows, columns = s % period, (s + step) % S
        at = (rows < m) & (columns < d)
        values[at] = matrix[rows[at], columns[at]]
        block[step - step % split, step % split] = values
    return block


def test_dense_layer_with_folds(oracle: Oracle, ckks: Arithmetic) -> None:
    rng = np.random.default_rng(9)
    matrix, bias = rng.normal(size=(13, 400)) / 20, rng.normal(size=13)
    x = np.zeros(S)
    x[:400] = vectors(10, 400)
    spread = np.zeros(16)
    spread[:13] = bias
    scale = SCALE * 0.99
    prepared = linear.prepare(
        ckks,
        {(0, 0): dense(matrix, 16, 4)},
        [np.tile(spread, S // 16)],
        limbs=4,
        scales=[SCALE],
        scale=scale,
        folds=[16, 32, 64, 128, 256],
    )
    (y,) = linear.product(ckks, [oracle.encrypt(x, 4)], prepared)
    assert y.scale == scale
    assert y.limbs == 3
    rows = np.abs(matrix).max() * np.sqrt(400)
    wanted = np.zeros(S)
    wanted[:] = np.tile(np.concatenate([matrix @ x[:400] + bias, np.zeros(3)]), S // 16)
    close(oracle, y, wanted, slot((FRESH + SWITCH + ROUNDING) * rows + ROUNDING + 2))


def test_two_sources_two_outputs_and_gaps(oracle: Oracle, ckks: Arithmetic) -> None:
    rng = np.random.default_rng(11)
    x, y = vectors(12, 2, S)
    steps = {(0, 0): [(0, 0), (0, 3), (8, 1)], (0, 1): [(0, 1), (8, 0)], (1, 1): [(8, 3), (8, 1), (0, 3)]}
    blocks = {at: {gb: rng.normal(size=S) for gb in found} for at, found in steps.items()}
    scales = [SCALE, SCALE * 1.5]
    prepared = linear.prepare(ckks, blocks, [None, None], limbs=3, scales=scales, scale=SCALE)
    found = linear.product(ckks, [oracle.encrypt(x, 3, scales[0]), oracle.encrypt(y, 3, scales[1])], prepared)
    for o in range(2):
        wanted = np.zeros(S)
        for (to, k), block in blocks.items():
            for (g, b), values in block.items() if to == o else ():
                wanted += values * np.roll((x, y)[k], -(g + b))
        close(oracle, found[o], wanted, slot((FRESH + SWITCH + ROUNDING) * 4 * np.sqrt(5) + ROUNDING))
    with pytest.raises(PrecisionError):
        linear.product(ckks, [oracle.encrypt(x, 3), oracle.encrypt(y, 3)], prepared)
