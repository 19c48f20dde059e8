"""Arithmetic of ciphertexts against vectors in the clear; errors against the variance each operation adds.

Bounds are the tail of the standard deviations that each operation is declared to add.
"""

from __future__ import annotations

import numpy as np
import pytest

from privinfer.backends.ckks import linear
from privinfer.backends.ckks.affine import Matrix
from privinfer.backends.ckks.cipher import Arithmetic, Ciphertext
from privinfer.backends.ckks.diagonals import COSTS, Diagonals, diagonal_values, diagonalise
from privinfer.backends.ckks.layout import Layout, input_layout
from privinfer.errors import ConfigError, PrecisionError
from privinfer.protocols.ckks import noise
from privinfer.protocols.ckks.parameters import SCALE, Parameters
from privinfer.protocols.ckks.smudging import Smudging
from tests.support.ckks_oracle import TAIL, Oracle, vectors

N = 1024
S = N // 2
PARAMETERS = Parameters(N, 4, insecure=True)
FRESH = noise.fresh(PARAMETERS, 3)
ROUNDING = noise.rounding(PARAMETERS, 3)
SWITCH = noise.rotation(PARAMETERS, 3, 4)
STEPS = (1, 2, 3, 4, 8, 12, 16, 32, 64, 128, 256, 511)


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(PARAMETERS, holders=3)


@pytest.fixture(scope="module")
def ckks(oracle: Oracle) -> Arithmetic:
    return oracle.arithmetic(STEPS)


def slot(coefficient: float, scale: float = SCALE) -> float:
    """Bound of a slot's real part."""
    return TAIL * coefficient * np.sqrt(N / 2) / scale


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
    # Each factor's error times the other factor, at most 1; switching is far below, at the scale squared.
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
    flooded = oracle.decrypt(ckks.hide(a, oracle.public, Smudging(30))).real - x
    wanted = noise.slot_std(PARAMETERS, Smudging(30).std)
    assert 0.85 * wanted < flooded.std() < 1.15 * wanted  # 512 slots: the estimate's own deviation is 3 %


def test_dense_layer_with_folds(oracle: Oracle, ckks: Arithmetic) -> None:
    rng = np.random.default_rng(9)
    matrix, bias = rng.normal(size=(13, 400)) / 20, rng.normal(size=13)
    x = vectors(10, 400)
    given, result = input_layout((400,), S), input_layout((13,), S)
    rows, columns = np.divmod(np.arange(matrix.size), 400)
    m = Matrix(rows.astype(np.int32), columns.astype(np.int32), matrix.reshape(-1))
    steps = diagonalise([given], result, [m], COSTS)
    keyed = oracle.arithmetic([*steps.rotations, *steps.folds])
    scale = SCALE * 0.99
    prepared = linear.prepare(
        keyed,
        steps,
        diagonal_values([m], steps),
        list(result.pack(bias)),
        limbs=4,
        scales=[SCALE],
        scale=scale,
    )
    (y,) = linear.product(keyed, [oracle.encrypt(given.pack(x)[0], 4)], prepared)
    assert y.scale == scale
    assert y.limbs == 3
    norm = np.linalg.norm(matrix, axis=1).max()
    bound = slot((FRESH + SWITCH) * norm + ROUNDING + 2)
    close(oracle, y, result.pack(matrix @ x + bias)[0], bound)
    with pytest.raises(ConfigError, match="Galois key"):
        linear.product(oracle.arithmetic(), [oracle.encrypt(given.pack(x)[0], 4)], prepared)


def test_two_sources_two_outputs_and_gaps(oracle: Oracle, ckks: Arithmetic) -> None:
    rng = np.random.default_rng(11)
    x, y = vectors(12, 2, S)
    table = np.array(  # output, input, giant, baby
        [(0, 0, 0, 0), (0, 0, 0, 3), (0, 1, 0, 1), (0, 0, 8, 1), (0, 1, 8, 0), (1, 1, 0, 3), (1, 1, 8, 1)]
    ).T
    whole = Layout.at(np.arange(S), S)
    steps = Diagonals((whole, whole), Layout.at(np.arange(2 * S), S), *table, ())
    values = rng.normal(size=(steps.count, S))
    scales = [SCALE, SCALE * 1.5]
    prepared = linear.prepare(ckks, steps, values, [None, None], limbs=3, scales=scales, scale=SCALE)
    inputs = [oracle.encrypt(v, 3, scale) for v, scale in zip((x, y), scales, strict=True)]
    found = linear.product(ckks, inputs, prepared)
    wanted = np.zeros((2, S))
    for (o, k, g, b), diagonal in zip(table.T, values, strict=True):
        wanted[o] += np.roll(diagonal, -g) * np.roll((x, y)[k], -(g + b))
    for o in range(2):
        close(oracle, found[o], wanted[o], slot((FRESH + SWITCH + ROUNDING) * 4 * np.sqrt(5) + ROUNDING))
    with pytest.raises(PrecisionError):
        linear.product(ckks, [oracle.encrypt(x, 3), oracle.encrypt(y, 3)], prepared)
    with pytest.raises(PrecisionError):
        linear.prepare(ckks, steps, values, [None, None], limbs=1, scales=scales, scale=SCALE)
