"""The larger of neighbours on masked values, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from privinfer.graph import fixedpoint as fp
from privinfer.protocols.mpc import comparison, larger
from privinfer.protocols.mpc.dealing import packed_size
from privinfer.protocols.mpc.wires import Narrow, Wide
from tests.support import gates, stats
from tests.support.gates import I64, ring

SHAPES = [(1, 2, 1), (0, 2, 1), (1, 2, 3), (2, 6, 1, 5), (3, 4, 2, 3, 3), (1, 2, 2, 129), (1, 8, 1, 0)]
seeds = st.integers(0, 2**32)


def chosen(x: I64) -> I64:
    """What comes out, over the integers."""
    a, b = x[:, 0::2], x[:, 1::2]
    return np.where((a[:, :, :1] >= b[:, :, :1]), a, b)


def random_pairs(rng: np.random.Generator, bits: int, shape: tuple[int, ...]) -> I64:
    """Pairs whose channel 0 differs by anything from -2**(n-1) to 2**(n-1) - 1, often by its ends."""
    half = 1 << (bits - 1)
    x = rng.integers(-half, half, shape)
    b = x[:, 1::2, 0]
    special = np.array([-half, half - 1, -half + 1, -1, 0, 0, 1])
    gap = rng.integers(-half, half, b.shape)
    gap = np.where(rng.random(b.shape) < 0.5, rng.choice(special, b.shape), gap)
    # keep both in the ring: where b + gap leaves it, move b by as much
    low, high = np.maximum(-half, -half - gap), np.minimum(half - 1, half - 1 - gap)
    b = np.clip(b, low, high)
    x[:, 1::2, 0], x[:, 0::2, 0] = b, b + gap
    return x


@given(st.integers(2, 48), st.sampled_from(SHAPES), seeds)
@example(48, (1, 2, 2, 129), 0)
@example(32, (1, 2, 2, 129), 0)
@example(2, (1, 2, 2, 129), 0)
def test_the_larger_comes_out_with_what_belongs_to_it(bits: int, shape: tuple[int, ...], seed: int) -> None:
    x = random_pairs(np.random.default_rng(seed), bits, shape)
    run, cost = gates.run_larger(ring(x, bits), bits)
    np.testing.assert_array_equal(run.result, chosen(x))
    assert type(run.wire.masked) is Narrow
    assert [o.bits for o in run.opened] == [1, bits]
    gates.check_cost(run, cost)


@pytest.mark.parametrize("bits", [3, 4])
def test_every_pair_and_every_mask_of_it(bits: int) -> None:
    """All a, b, ra and rb of a small ring whose difference is in range; ties give the first."""
    size = 1 << bits
    half = size // 2
    axes = np.meshgrid(np.arange(-half, half), np.arange(-half, half), np.arange(size), np.arange(size))
    a, b, ra, rb = (v.reshape(-1) for v in axes)
    fits = (a - b >= -half) & (a - b < half)
    rng = np.random.default_rng(bits)
    x = np.zeros((1, 2, 2, int(fits.sum())), dtype=np.int64)
    x[0, 0, 0], x[0, 1, 0] = a[fits], b[fits]
    x[0, :, 1] = rng.integers(-half, half, (2, x.shape[-1]))
    r = rng.integers(0, size, x.shape)
    r[0, 0, 0], r[0, 1, 0] = ra[fits], rb[fits]
    first = rng.integers(0, size, x.shape)
    run, _ = gates.run_larger(ring(x, bits), bits, (ring(first, bits), ring(r - first, bits)))
    np.testing.assert_array_equal(run.result, chosen(x))


def test_a_tie_gives_the_first_and_its_companions() -> None:
    x = np.array([[[5, 1], [5, 2], [-3, 7], [-3, 8]]])
    run, _ = gates.run_larger(ring(x, 16), 16)
    np.testing.assert_array_equal(run.result, [[[5, 1], [-3, 7]]])


def test_what_is_dealt() -> None:
    """By hand: a key, a bit and a share of rho a pair; a product a pair and channel."""
    op = fp.Larger()
    cost = larger.cost(gates.step_of(op, (3, 2, 5), 32), 2)
    pairs, count = 2 * 3 * 5, 2 * 3 * 2 * 5
    key = comparison.key_size(pairs, 31)
    assert cost.dealt == (key, key + packed_size(pairs, 1) + 4 * pairs + 4 * count)
    assert cost.opened == packed_size(pairs, 1) + 4 * count


@pytest.mark.parametrize("shape", [(1, 3, 2), (1, 2), (2,)])
def test_what_has_no_pairs(shape: tuple[int, ...]) -> None:
    with pytest.raises((TypeError, IndexError)):
        gates.run_larger(np.zeros(shape, dtype=np.uint64), 20)


def test_a_gate_serves_once_and_takes_its_own_parcel_only() -> None:
    x = ring(np.arange(12).reshape(1, 4, 1, 3), 20)
    run, _ = gates.run_larger(x, 20)
    gates.check_parcels(run)
    gates.check_used(run, Narrow(x, 20))
    other, _ = gates.run_larger(x, 20)
    other.gates[0]._used = False
    with pytest.raises(TypeError, match="was given Wide"):
        next(other.gates[0].evaluate(Wide(x, 64)))


# -- what an evaluator sees ------------------------------------------------------------------------

COUNT = 1 << 17
PAIRS = [(1, -2, 0, 3), (-2, 1, 3, 0), (1, 1, -4, 2)]  # a_0, b_0, a_1, b_1


def sample(values: tuple[int, ...]) -> list[list[tuple[gates.U64, int]]]:
    """Views of many runs on one pair: E1's three, then E2's."""
    rng = np.random.default_rng(0)
    a0, b0, a1, b1 = values
    x = np.broadcast_to(np.array([[[a0], [a1]], [[b0], [b1]]]), (1, 2, 2, COUNT))
    masks = rng.integers(0, 8, x.shape, dtype=np.uint64), rng.integers(0, 8, x.shape, dtype=np.uint64)
    run, _ = gates.run_larger(ring(np.ascontiguousarray(x), 3), 3, masks)
    xh = fp.low_bits(ring(x, 3) + masks[0] + masks[1], 3)
    d, y = (o.values for o in run.opened)
    found: list[list[tuple[gates.U64, int]]] = []
    for k, gate in enumerate(run.gates):
        assert isinstance(gate, larger.LargerGate)
        rho, own = gate._products[1], gate.mask.values
        a, b, r = xh[:, 0, 0], xh[:, 1, 0], masks[k]
        found.append([(a, 3), (b, 3), (r[:, 0, 0], 2), (d, 1), (rho, 1)])
        found.append([(a, 2), (r[:, 1, 0], 2), (d, 1), (own[:, 0, 0], 2), (y[:, 0, 0], 3)])
        found.append([(xh[:, 0, 1], 2), (d, 1), (own[:, 0, 1], 2), (y[:, 0, 0], 2), (y[:, 0, 1], 3)])
        bits, shares = gates.sent(run, 0, 1 - k), gates.sent(run, 1, 1 - k)
        found.append([(a, 3), (b, 1), (bits, 1), (shares[:, 0, 0], 2), (shares[:, 0, 1], 3)])
    return found


@pytest.mark.parametrize("values", PAIRS)
def test_what_is_opened_is_uniform(values: tuple[int, ...]) -> None:
    for view in sample(values):
        gates.check_uniform(view, stats.ALARM / 24)


@pytest.mark.parametrize("broken", ["rho", "mask"])
def test_the_statistic_catches_a_missing_mask(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gates.silence(monkeypatch, broken, 1 if broken == "rho" else 3)
    seen = sample(PAIRS[0])
    for view in (seen[0], seen[4]) if broken == "rho" else (seen[1], seen[6]):
        with pytest.raises(AssertionError):
            gates.check_uniform(view)
