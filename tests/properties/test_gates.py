"""Each gate of the `mpc` protocols against its functionality: all inputs of small rings, extremes of large.

Every tolerance is the correctness error that the protocol's docstring declares.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from privinfer.graph import fixedpoint as fp
from privinfer.graph import ir, reference
from privinfer.graph.ranges import LOCAL_TRUNCATION_ULP, TRUNCATING_OPENING_ULP
from privinfer.protocols.mpc import comparison, extend, linear, opening, relu, truncate
from privinfer.protocols.mpc.dealing import pack, packed_size, unpack
from privinfer.protocols.mpc.wires import Blinded, Narrow, Wide
from tests.support import gates, stats
from tests.support.gates import I64, Bench, ring, signed
from tests.support.strategies import conv2d

SHAPES = [(1, 1), (0, 3), (1, 7), (2, 8), (3, 3, 11), (1, 129)]  # size 1, vector tails, batch 0
seeds = st.integers(0, 2**32)


def integers(rng: np.random.Generator, low: int, high: int, shape: tuple[int, ...]) -> I64:
    """Integers in [low, high], both ends, zero and their neighbours among them."""
    x = rng.integers(low, high, shape, endpoint=True)
    special = [v for v in (low, high, low + 1, high - 1, 0, 1, -1) if low <= v <= high]
    flat = x.reshape(-1)
    count = min(flat.size, len(special))
    flat[rng.permutation(flat.size)[:count]] = rng.permutation(special)[:count]
    return x


def all_pairs(bits: int, masks: int) -> tuple[I64, tuple[gates.U64, gates.U64]]:
    """Every x of an n-bit ring with every mask, or with `masks` random ones; r1 random, r = r1 + r2."""
    rng = np.random.default_rng(bits)
    size = 1 << bits
    r = np.arange(size) if masks >= size else rng.integers(0, size, masks)
    x, r = (v.reshape(-1) for v in np.meshgrid(np.arange(-size // 2, size // 2), r))
    first = rng.integers(0, size, x.shape)
    return x, (ring(first, bits), ring(r - first, bits))


# -- opening ---------------------------------------------------------------------------------------


@given(st.integers(1, 64), st.sampled_from(SHAPES), seeds)
def test_opening_is_exact(bits: int, shape: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, first = (fp.low_bits(rng.integers(0, 2**64, shape, dtype=np.uint64), bits) for _ in range(2))
    own, other = Blinded(first, bits), Blinded(fp.low_bits(y - first, bits), bits)
    data = opening.message([other, own])
    assert len(data) == opening.message_size([own, other]) == 2 * packed_size(y.size, bits)
    theirs, mine = opening.parse(data, [own, own])
    out = opening.combine(own, theirs)
    assert type(out) is (Wide if bits == 64 else Narrow)
    np.testing.assert_array_equal(out.values, y)
    np.testing.assert_array_equal(mine.values, first)


@given(st.integers(1, 63), st.integers(1, 9))
def test_an_opening_has_one_encoding(bits: int, count: int) -> None:
    """What is left over of the last byte has to be zero."""
    like = [Blinded(np.zeros(count, dtype=np.uint64), bits)]
    size = packed_size(count, bits)
    for bit in range(count * bits, 8 * size):
        data = bytearray(size)
        data[bit // 8] |= 1 << bit % 8
        with pytest.raises(ValueError, match=r"."):
            opening.parse(bytes(data), like)


@given(st.integers(1, 64), st.integers(0, 40), seeds)
def test_packing_is_the_inverse_of_unpacking(bits: int, count: int, seed: int) -> None:
    x = fp.low_bits(np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64), bits)
    data = pack(x, bits)
    assert len(data) == packed_size(count, bits)
    np.testing.assert_array_equal(unpack(data, bits, (count,)), x)


def distance(y: I64, z: gates.U64, shift: int, bits: int) -> I64:
    """``y 2**s - z``, centred mod 2**(n + s): the error in units of 2**-s of the last place."""
    return signed(fp.low_bits((y.view(np.uint64) << np.uint64(shift)) - z, bits + shift), bits + shift)


@st.composite
def cuts(draw: st.DrawFn) -> tuple[int, int]:
    """(n, s) with n in 8..48 and n + s at most 64."""
    bits = draw(st.integers(8, 48))
    return bits, draw(st.one_of(st.just(64 - bits), st.integers(1, 64 - bits)))


@given(cuts(), st.sampled_from(SHAPES), seeds)
@example((48, 16), (1, 129), 0)
@example((8, 56), (1, 129), 0)
@example((32, 16), (1, 129), 0)
def test_truncating_opening_errs_less_than_it_says(
    cut: tuple[int, int], shape: tuple[int, ...], seed: int
) -> None:
    bits, shift = cut
    top = (1 << (bits + shift - 1)) - 1
    z = ring(integers(np.random.default_rng(seed), -top, top, shape))
    scale = ir.Scale(len(shape) - 1, shape[-1])
    one, zero = np.ones(shape[-1]), np.zeros(shape[-1])
    run = gates.run_linear(scale, z, one, zero, shift=shift, bits=bits)
    error = np.abs(distance(run.result, z, shift, bits))
    assert (2 * error < 2 * TRUNCATING_OPENING_ULP * (1 << shift)).all()
    # the mask of a wire of n bits is shared mod 2**n, and both evaluators opened n bits a value
    assert [len(m) for m in run.messages[0]] == [packed_size(z.size, bits)] * 2


@pytest.mark.parametrize(("bits", "shift"), [(8, 12), (24, 32), (32, 16), (32, 32), (48, 16)])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 0.999])
def test_truncating_opening_rounds_without_bias(bits: int, shift: int, fraction: float) -> None:
    """E = 1/2 + low/2^s - {share_1/2^s} - {share_2/2^s}, three uniform multiples of 2^-s in [0, 1).

    Each of the three has mean 1/2 - 2^-(s+1), so E has mean 2^-(s+1). E lies in (-1.5, 1.5): Hoeffding.
    """
    count = 1 << 16
    z = np.full((1, count), int(fraction * (1 << shift)) + (5 << shift))
    run = gates.run_linear(
        ir.Scale(1, count), ring(z), np.ones(count), np.zeros(count), shift=shift, bits=bits
    )
    mean = distance(run.result, ring(z), shift, bits).mean() / (1 << shift)
    width = 2 * TRUNCATING_OPENING_ULP
    assert abs(mean - 2.0 ** -(shift + 1)) < stats.hoeffding(width, count, stats.ALARM / 20)


# -- bilinear gates --------------------------------------------------------------------------------


@st.composite
def bilinear(draw: st.DrawFn) -> tuple[ir.Linear | ir.Conv2d | ir.Scale, tuple[int, ...]]:
    """An operator and the shape of its input, batch first; inner axes long enough for vector tails."""
    batch = draw(st.integers(0, 3))
    match draw(st.sampled_from(["linear", "deep linear", "scale", "conv"])):
        case "linear":
            k = draw(st.integers(1, 19))
            return ir.Linear(k, draw(st.integers(1, 19))), (batch, k)
        case "deep linear":
            k = draw(st.integers(1, 5))
            return ir.Linear(k, draw(st.integers(1, 5))), (batch, 2, 3, k)
        case "scale":
            shape = (draw(st.integers(1, 3)), draw(st.integers(1, 9)))
            axis = draw(st.integers(1, 2))
            return ir.Scale(axis, shape[axis - 1]), (batch, *shape)
        case _:
            shape = (draw(st.integers(1, 4)), draw(st.integers(1, 7)), draw(st.integers(1, 7)))
            return draw(conv2d(shape)), (batch, *shape)


def exact_map(op: ir.Linear | ir.Conv2d | ir.Scale, x: I64, weight: I64, bias: I64) -> gates.U64:
    """x W + b mod 2**64 in Python integers."""
    if len(x) == 0:
        return np.zeros((0, *op.shape(x.shape[1:])), dtype=np.uint64)
    z = reference.linear_map(op, x.astype(object), weight.astype(object))
    z = z + reference.along(bias.astype(object), reference.bias_axis(op, z.ndim), z.ndim)
    return np.array([int(v) % 2**64 for v in z.reshape(-1)], dtype=np.uint64).reshape(z.shape)


@given(bilinear(), st.booleans(), seeds)
def test_bilinear_gate(
    drawn: tuple[ir.Linear | ir.Conv2d | ir.Scale, tuple[int, ...]], wide: bool, seed: int
) -> None:
    """Without a shift x W + b exactly, for any x of the ring; with one within the declared error."""
    op, shape = drawn
    rng = np.random.default_rng(seed)
    wanted = op.parameters()
    weight, bias = (rng.integers(-(2**20), 2**20, wanted[k]) for k in ("weight", "bias"))
    bits, shift = (64, 0) if wide else (40, 12)
    x = integers(rng, *((-(2**63), 2**63 - 1) if wide else (-(2**20), 2**20)), shape)
    z = exact_map(op, x, weight, bias)
    run = gates.run_linear(
        op, ring(x), weight.astype(np.float64), bias.astype(np.float64), shift=shift, bits=bits
    )
    assert len(run.opened) == 1
    assert type(run.wire.masked) is (Wide if wide else Narrow)
    if wide:
        np.testing.assert_array_equal(run.wire.values, z)
    else:
        error = np.abs(distance(run.result, z, shift, bits))
        assert (2 * error < 2 * TRUNCATING_OPENING_ULP * (1 << shift)).all()


# -- ReLU ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(2, 9))
def test_relu_is_exact_for_every_value_and_every_mask(bits: int) -> None:
    x, masks = all_pairs(bits, 1 << bits)
    np.testing.assert_array_equal(gates.run_relu(ring(x, bits), bits, masks).result, np.maximum(x, 0))


@pytest.mark.parametrize("bits", [9, 10, 12])
def test_relu_is_exact_for_every_value(bits: int) -> None:
    """Deep enough for levels of the comparison tree above its packed leaf."""
    x, masks = all_pairs(bits, 24)
    np.testing.assert_array_equal(gates.run_relu(ring(x, bits), bits, masks).result, np.maximum(x, 0))


@given(st.integers(4, 48), st.sampled_from(SHAPES), seeds)
@example(48, (1, 129), 0)
def test_relu_is_exact_at_random(bits: int, shape: tuple[int, ...], seed: int) -> None:
    half = 1 << (bits - 1)
    x = integers(np.random.default_rng(seed), -half, half - 1, shape)
    run = gates.run_relu(ring(x, bits), bits)
    np.testing.assert_array_equal(run.result, np.maximum(x, 0))
    assert type(run.wire.masked) is Wide
    assert [o.bits for o in run.opened] == [1, 64]


@pytest.mark.parametrize("bits", [8, 32, 48])
@pytest.mark.parametrize("r", ["0", "1", "half-1", "half", "all"])
def test_relu_at_extreme_masks(bits: int, r: str) -> None:
    half = 1 << (bits - 1)
    mask = {"0": 0, "1": 1, "half-1": half - 1, "half": half, "all": 2 * half - 1}[r]
    x = np.array([-half, -half + 1, -2, -1, 0, 1, 2, half - 2, half - 1])
    first = ring(np.full(x.shape, 3), bits)
    second = fp.low_bits(np.full(x.shape, mask, dtype=np.uint64) - first, bits)
    run = gates.run_relu(ring(x, bits), bits, (first, second))
    np.testing.assert_array_equal(run.result, np.maximum(x, 0))


# -- sign extension --------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(3, 10))
def test_extension_is_exact_in_its_range_and_there_only(bits: int) -> None:
    x, masks = all_pairs(bits, 1 << bits)
    y = gates.run_extend(ring(x, bits), bits, masks).result
    quarter = 1 << (bits - 2)
    inside = (x >= -quarter) & (x < quarter)
    np.testing.assert_array_equal(y[inside], x[inside])
    # outside some mask shows it, so the range check has to keep that bit free; only x = 2^(n-2), one more
    # than is declared, would pass: x + o = 2^(n-1) still wraps exactly when m = 1
    for beyond in (quarter + 1, -quarter - 1):
        assert (y[x == beyond] != beyond).any()


@given(st.integers(4, 48), st.sampled_from(SHAPES), seeds)
@example(48, (1, 129), 0)
def test_extension_is_exact_at_random(bits: int, shape: tuple[int, ...], seed: int) -> None:
    quarter = 1 << (bits - 2)
    x = integers(np.random.default_rng(seed), -quarter, quarter - 1, shape)
    run = gates.run_extend(ring(x, bits), bits)
    np.testing.assert_array_equal(run.result, x)
    assert type(run.wire.masked) is Wide
    assert [o.bits for o in run.opened] == [64]


# -- truncation ------------------------------------------------------------------------------------


def wide_values(rng: np.random.Generator, bits: int, shift: int, shape: tuple[int, ...]) -> I64:
    """Wide values whose quotient, rounded either way, fits n bits."""
    top = ((1 << (bits - 1)) - 2) << shift
    return integers(rng, -top, top, shape)


@given(cuts(), st.sampled_from(SHAPES), seeds)
@example((48, 16), (1, 129), 0)
@example((8, 56), (1, 129), 0)
def test_local_truncation_errs_less_than_it_says(
    cut: tuple[int, int], shape: tuple[int, ...], seed: int
) -> None:
    bits, shift = cut
    x = wide_values(np.random.default_rng(seed), bits, shift, shape)
    run = gates.run_truncate(ring(x), shift, bits)
    error = distance(run.result, ring(x), shift, bits)
    assert (np.abs(error) < LOCAL_TRUNCATION_ULP * (1 << shift)).all()
    assert not run.opened
    assert type(run.wire.masked) is Narrow


@given(st.integers(4, 48), st.sampled_from(SHAPES), seeds)
def test_a_change_of_ring_alone_is_exact_and_free(bits: int, shape: tuple[int, ...], seed: int) -> None:
    x = integers(np.random.default_rng(seed), -(1 << (bits - 1)), (1 << (bits - 1)) - 1, shape)
    run = gates.run_truncate(ring(x), 0, bits)
    np.testing.assert_array_equal(run.result, x)
    assert not run.opened
    assert run.parcels == (b"", b"")


@given(cuts(), st.sampled_from(SHAPES), seeds)
@example((48, 16), (1, 129), 0)
@example((8, 56), (1, 129), 0)
@example((10, 1), (1, 129), 0)
def test_exact_truncation_rounds_half_up_always(
    cut: tuple[int, int], shape: tuple[int, ...], seed: int
) -> None:
    bits, shift = cut
    x = wide_values(np.random.default_rng(seed), bits, shift, shape)
    run = gates.run_truncate(ring(x), shift, bits, exact=True)
    wanted = (x + (1 << (shift - 1))) >> shift
    np.testing.assert_array_equal(run.result, wanted)
    assert [o.bits for o in run.opened] == [1, bits]


@pytest.mark.parametrize("shift", range(1, 6))
def test_exact_truncation_for_every_residue_and_every_low_mask(shift: int) -> None:
    bits, size = 8, 1 << shift
    x, r = (v.reshape(-1) for v in np.meshgrid(np.arange(-3 * size, 3 * size), np.arange(size)))
    high = np.random.default_rng(shift).integers(0, 2**64, x.shape, dtype=np.uint64) << np.uint64(shift)
    first = np.random.default_rng(1).integers(0, 2**64, x.shape, dtype=np.uint64)
    masks = first, r.view(np.uint64) + high - first
    run = gates.run_truncate(ring(x), shift, bits, exact=True, masks=masks)
    np.testing.assert_array_equal(run.result, (x + size // 2) >> shift)


# -- comparison ------------------------------------------------------------------------------------


def compare(u: gates.U64, t: gates.U64, bits: int) -> gates.U64:
    """Both evaluators' bits of [u < t], put together."""
    bench = Bench()
    comparison.deal(bench.dealer, t, bits)
    ends, parcels = bench.dealt()
    assert [len(p) for p in parcels] == [comparison.key_size(u.size, bits)] * 2
    shares = []
    for end in ends:
        shares.append(comparison.ComparisonKeys.take(end, u.size, bits).less(u))
        end.finish()
        assert set(np.unique(shares[-1])) <= {0, 1}
        assert shares[-1].shape == u.shape
    return shares[0] ^ shares[1]


@pytest.mark.parametrize("bits", range(9))
def test_comparison_of_all_pairs(bits: int) -> None:
    u, t = np.meshgrid(np.arange(1 << bits), np.arange(1 << bits))
    np.testing.assert_array_equal(compare(ring(u), ring(t), bits), u < t)


@given(st.integers(9, 63), st.sampled_from(SHAPES), seeds)
def test_comparison_at_random(bits: int, shape: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    u, t = (integers(rng, 0, (1 << bits) - 1, shape).view(np.uint64) for _ in range(2))
    close = rng.integers(0, 3, shape)  # equal, one off, far
    t = np.where(close == 0, u, np.where(close == 1, np.minimum(u + 1, np.uint64((1 << bits) - 1)), t))
    np.testing.assert_array_equal(compare(u, t.astype(np.uint64), bits), u < t)


# -- what a gate costs -----------------------------------------------------------------------------


@given(st.sampled_from(SHAPES), st.integers(4, 48), st.data())
def test_every_gate_costs_what_it_declares(shape: tuple[int, ...], bits: int, data: st.DataObject) -> None:
    shift = data.draw(st.integers(1, 64 - bits))
    x = np.zeros(shape, dtype=np.uint64)
    batch, sample = shape[0], shape[1:]
    wide, narrow = fp.Type(sample, 64, 0), fp.Type(sample, bits, 0)
    free, exact = fp.Truncate(shift), fp.Truncate(shift, exact=True)
    scale = ir.Scale(len(sample), sample[-1])
    times = fp.Bilinear(scale, 0, shift)

    def step(op: fp.Operation, kind: fp.Type) -> fp.Step:
        return fp.Step(0, op, (0,), kind, "x")

    for cost, run in (
        (relu.cost(step(fp.Rectify(), wide), bits, batch), gates.run_relu(x, bits)),
        (extend.cost(step(fp.Extend(), wide), bits, batch), gates.run_extend(x, bits)),
        (truncate.cost(step(free, narrow), free, batch), gates.run_truncate(x, shift, bits)),
        (truncate.cost(step(exact, narrow), exact, batch), gates.run_truncate(x, shift, bits, exact=True)),
        (
            linear.cost(step(times, narrow), batch),
            gates.run_linear(scale, x, np.ones(sample[-1]), np.zeros(sample[-1]), shift=shift, bits=bits),
        ),
    ):
        assert cost.rounds == len(run.messages)
        assert cost.opened == sum(len(first) for first, _ in run.messages)
        assert cost.opened == sum(len(second) for _, second in run.messages)
        assert cost.dealt == tuple(len(p) for p in run.parcels)


def test_the_statistics_themselves() -> None:
    """Tails against known values: tables, and P(X >= x) = exp(-x/2) for two degrees of freedom."""
    assert math.isclose(stats.chi_square_tail(2 * math.log(1e9), 2), 1e-9, rel_tol=1e-12)
    assert math.isclose(stats.critical(1, 0.05), 3.841458820694124, rel_tol=1e-9)
    assert math.isclose(stats.critical(15, 0.05), 24.995790139728616, rel_tol=1e-9)
    assert math.isclose(stats.critical(15, 0.001), 37.69729821835383, rel_tol=1e-9)
    assert math.isclose(stats.critical(10, 0.01), 23.209251158954356, rel_tol=1e-9)
