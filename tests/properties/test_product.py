"""Products of two masked values and of masked matrices, against Python's integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from privinfer.graph import fixedpoint as fp
from privinfer.graph.ranges import TRUNCATING_OPENING_ULP
from privinfer.protocols.mpc import product
from privinfer.protocols.mpc.wires import Narrow, Wide
from tests.support import gates, stats
from tests.support.gates import I64, ring, signed

SHAPES = [(1, 1), (0, 3), (1, 7), (2, 8), (3, 3, 11), (1, 129)]
seeds = st.integers(0, 2**32)


def exact(op: fp.Product, x: I64, y: I64, bits: int) -> gates.U64:
    """The product over the integers, mod 2**bits."""
    a, b = x.astype(object), y.astype(object)
    if not op.matmul:
        z = a * b
    else:
        z = np.empty((*x.shape[:-1], y.shape[-1]), dtype=object)
        for at in np.ndindex(z.shape):
            z[at] = sum((a[at[:-1]] * b[(*at[:-2], slice(None), at[-1])]).tolist())
    flat = [int(v) % 2**bits for v in z.reshape(-1)]
    return np.array(flat, dtype=np.uint64).reshape(z.shape)


@st.composite
def products(draw: st.DrawFn) -> tuple[fp.Product, tuple[int, ...], tuple[int, ...], int]:
    """An operation, both shapes, and the bits of the wire that comes out."""
    out, shift = 64, 0
    if draw(st.booleans()):
        out = draw(st.integers(8, 48))
        shift = draw(st.one_of(st.just(64 - out), st.integers(1, 64 - out)))
    elif draw(st.booleans()):
        out = draw(st.integers(8, 48))
    if not draw(st.booleans()):
        shape = draw(st.sampled_from(SHAPES))
        return fp.Product(False, shift), shape, shape, out
    lead = draw(st.sampled_from([(0,), (1,), (3,), (2, 3)]))
    m, k, n = draw(st.sampled_from([(1, 1, 1), (3, 4, 5), (2, 9, 1), (17, 16, 18), (1, 0, 2)]))
    return fp.Product(True, shift), (*lead, m, k), (*lead, k, n), out


def check(op: fp.Product, x: I64, y: I64, out: int, run: gates.Run) -> None:
    """Exact without a shift, within the declared error with one."""
    q = out + op.shift
    wanted = exact(op, x, y, q)
    if op.shift:
        scaled = run.result.view(np.uint64) << np.uint64(op.shift)
        error = np.abs(signed(fp.low_bits(scaled - wanted, q), q))
        assert (2 * error < 2 * TRUNCATING_OPENING_ULP * (1 << op.shift)).all()
    else:
        np.testing.assert_array_equal(run.wire.values, wanted)
    assert type(run.wire.masked) is (Wide if out == fp.WIDE else Narrow)
    assert [o.bits for o in run.opened] == [out]


def draw_pair(
    rng: np.random.Generator, op: fp.Product, shapes: tuple[tuple[int, ...], ...], out: int
) -> list[I64]:
    """Factors of any sign; with a shift such that the sum of products just fits."""
    if not op.shift:
        return [rng.integers(-(2**63), 2**63 - 1, s, endpoint=True) for s in shapes]
    terms = max(shapes[0][-1], 1) if op.matmul else 1
    top = (1 << (out + op.shift - 1)) - 1
    left = min(2 ** int(rng.integers(0, out + op.shift - 1)), top // terms)
    limits = left, top // terms // max(left, 1)
    found = []
    for shape, limit in zip(shapes, limits, strict=True):
        x = rng.integers(-limit, limit, shape, endpoint=True)
        found.append(np.where(rng.random(shape) < 0.5, x, rng.choice([-limit, limit], shape)))
    return found


@given(products(), seeds)
@example((fp.Product(False, 16), (1, 129), (1, 129), 32), 0)
@example((fp.Product(True, 16), (2, 3, 17, 16), (2, 3, 16, 18), 48), 0)
@example((fp.Product(True, 32), (3, 2, 2), (3, 2, 2), 32), 0)
@example((fp.Product(True, 0), (2, 17, 16), (2, 16, 18), 64), 0)
def test_a_product_is_exact_up_to_its_truncation(
    drawn: tuple[fp.Product, tuple[int, ...], tuple[int, ...], int], seed: int
) -> None:
    op, left, right, out = drawn
    x, y = draw_pair(np.random.default_rng(seed), op, (left, right), out)
    run, cost = gates.run_product(op, ring(x), ring(y), out)
    check(op, x, y, out, run)
    gates.check_cost(run, cost)


@given(st.sampled_from(SHAPES), st.booleans(), seeds)
def test_a_square_takes_one_wire_twice(shape: tuple[int, ...], cut: bool, seed: int) -> None:
    op, out = (fp.Product(False, 16), 40) if cut else (fp.Product(False, 0), 64)
    limit = 2**27 - 1 if cut else 2**63 - 1
    x = np.random.default_rng(seed).integers(-limit, limit, shape, endpoint=True)
    run, cost = gates.run_product(op, ring(x), None, out)
    check(op, x, x, out, run)
    gates.check_cost(run, cost)


@pytest.mark.parametrize(("out", "shift"), [(8, 12), (32, 16), (32, 32), (48, 16)])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 0.999])
def test_rounding_has_no_bias(out: int, shift: int, fraction: float) -> None:
    """As of the linear gate: the error has mean 2**-(s+1) units, which takes the secret low bits of rz."""
    count = 1 << 16
    x = np.full((1, count), int(fraction * (1 << shift)) + (5 << shift))
    op = fp.Product(False, shift)
    run, _ = gates.run_product(op, ring(x), ring(np.ones_like(x)), out)
    error = signed(fp.low_bits((run.result << shift).view(np.uint64) - ring(x), out + shift), out + shift)
    mean = error.mean() / (1 << shift)
    width = 2 * TRUNCATING_OPENING_ULP
    assert abs(mean - 2.0 ** -(shift + 1)) < stats.hoeffding(width, count, stats.ALARM / 16)


def test_a_matrix_times_itself() -> None:
    x = np.random.default_rng(0).integers(-1000, 1000, (2, 4, 4))
    run, _ = gates.run_product(fp.Product(True, 0), ring(x), None, 64)
    np.testing.assert_array_equal(run.result, x @ x)


@pytest.mark.parametrize("extreme", [0, 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_extreme_masks(extreme: int) -> None:
    x = np.array([[0, 1, -1, 2**15, -(2**15), 2**15 - 1]])
    full = np.full(x.shape, extreme, dtype=np.uint64)
    for other in (0, 1, 2**63, 2**64 - 1):
        masks = full, np.full(x.shape, other, dtype=np.uint64)
        run, _ = gates.run_product(fp.Product(False, 8), ring(x), ring(x[:, ::-1]), 32, (masks, masks))
        check(fp.Product(False, 8), x, x[:, ::-1], 32, run)


def test_small_and_large_matrices_take_different_ways_to_one_result() -> None:
    rng = np.random.default_rng(1)
    op = fp.Product(True, 0)
    for m, k, n in ((15, 16, 17), (16, 16, 16), (3, 1500, 1)):
        x, y = (rng.integers(0, 2**64, s, dtype=np.uint64) for s in ((2, 3, m, k), (2, 3, k, n)))
        np.testing.assert_array_equal(product.ring_product(op, x, y), x @ y)
        # views that are not contiguous, too
        turned = np.ascontiguousarray(y.swapaxes(-1, -2)).swapaxes(-1, -2)
        np.testing.assert_array_equal(product.ring_product(op, x, turned), x @ y)


@pytest.mark.parametrize(
    ("op", "left", "right", "out"),
    [
        (fp.Product(False, 0), (1, 2), (1, 3), 64),
        (fp.Product(False, 0), (2, 2), (1, 2), 64),
        (fp.Product(True, 0), (2, 3), (3, 2), 64),  # no batch axis
        (fp.Product(True, 0), (1, 2, 3), (1, 2, 3), 64),
        (fp.Product(True, 0), (2, 2, 3), (1, 3, 2), 64),
        (fp.Product(False, 1), (1, 2), (1, 2), 64),
        (fp.Product(False, 40), (1, 2), (1, 2), 32),
    ],
)
def test_products_that_do_not_fit_together(
    op: fp.Product, left: tuple[int, ...], right: tuple[int, ...], out: int
) -> None:
    with pytest.raises(TypeError):
        gates.run_product(op, np.zeros(left, dtype=np.uint64), np.zeros(right, dtype=np.uint64), out)


def test_a_gate_serves_once_and_takes_its_own_parcel_only() -> None:
    zeros = np.zeros((1, 7), dtype=np.uint64)
    run, _ = gates.run_product(fp.Product(False, 8), zeros, zeros, 20)
    gates.check_parcels(run)
    gates.check_used(run, Wide(zeros, 64), Wide(zeros, 64))
    wide, narrow = Wide(zeros, 64), Narrow(zeros, 20)
    for wrong in ([narrow, wide], [wide, narrow], [wide]):
        run, _ = gates.run_product(fp.Product(False, 8), zeros, zeros, 20)
        run.gates[0]._used = False
        with pytest.raises(TypeError, match="was given"):
            next(run.gates[0].evaluate(*wrong))


# -- what an evaluator sees ------------------------------------------------------------------------

COUNT = 1 << 16


def sample(x: int, y: int, out: int, shift: int) -> list[list[tuple[gates.U64, int]]]:
    """Views of many runs on one pair of values."""
    full = [ring(np.full((1, COUNT), v)) for v in (x, y)]
    rng = np.random.default_rng(0)
    pair = [tuple(rng.integers(0, 2**64, (1, COUNT), dtype=np.uint64) for _ in range(2)) for _ in range(2)]
    (x1, x2), (y1, y2) = pair
    run, _ = gates.run_product(fp.Product(False, shift), *full, out, ((x1, x2), (y1, y2)))
    xh, yh = full[0] + x1 + x2, full[1] + y1 + y2
    z = run.opened[0].values
    found: list[list[tuple[gates.U64, int]]] = []
    for k, gate in enumerate(run.gates):
        assert isinstance(gate, product.ProductGate)
        own, top = gate.mask.values, np.uint64(out - 3)
        found.append([(xh, 2), (yh, 2), (pair[0][k], 2), (own, 2), (z, 2)])
        found.append([(xh, 2), (own >> top, 3), (z >> top, 3), (gate._c, 2)])
        share = gates.sent(run, 0, 1 - k)
        found.append([(share, 3), (share >> top, 3), (gate._c, 2), (own, 2)])
    return found


@pytest.mark.parametrize(("x", "y"), [(0, 0), (7, -9)])
@pytest.mark.parametrize(("out", "shift"), [(64, 0), (20, 4), (20, 0)])
def test_what_is_opened_is_uniform(x: int, y: int, out: int, shift: int) -> None:
    for view in sample(x, y, out, shift):
        gates.check_uniform(view, stats.ALARM / 36)


def test_the_statistic_catches_a_missing_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    gates.silence(monkeypatch, "mask", 20)
    for view in sample(7, -9, 20, 4)[:1]:
        with pytest.raises(AssertionError):
            gates.check_uniform(view)
