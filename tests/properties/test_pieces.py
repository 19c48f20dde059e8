"""Piecewise affine functions of a masked value, against Python's integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from privinfer.graph import fixedpoint as fp
from privinfer.graph.ranges import TRUNCATING_OPENING_ULP
from privinfer.protocols.mpc import comparison, pieces
from privinfer.protocols.mpc.dealing import packed_size
from privinfer.protocols.mpc.wires import Narrow, Wide
from tests.support import gates, stats
from tests.support.gates import I64, ring, signed

SHAPES = [(1, 1), (0, 3), (1, 7), (2, 8), (3, 3, 11), (1, 129)]
seeds = st.integers(0, 2**32)


def value(op: fp.Pieces, x: int) -> int:
    """The integer before `shift` bits are dropped."""
    bent = zip(op.breaks, op.jumps, op.bends, strict=True)
    return op.offset + op.slope * x + sum(jump + bend * (x - b) for b, jump, bend in bent if x >= b)


def values(op: fp.Pieces, x: I64, bits: int) -> gates.U64:
    """The same of an array, mod 2**bits."""
    flat = [value(op, int(v)) % 2**bits for v in x.reshape(-1)]
    return np.array(flat, dtype=np.uint64).reshape(x.shape)


def check(op: fp.Pieces, x: I64, bits: int, out: int, run: gates.Run) -> None:
    """Exact without a shift, within the declared error with one."""
    q = out + op.shift
    wanted = values(op, x, q)
    if op.shift:
        y = run.result.view(np.uint64) << np.uint64(op.shift)
        error = np.abs(signed(fp.low_bits(y - wanted, q), q))
        assert (2 * error < 2 * TRUNCATING_OPENING_ULP * (1 << op.shift)).all()
    else:
        np.testing.assert_array_equal(run.wire.values, wanted)
    assert type(run.wire.masked) is (Wide if out == fp.WIDE else Narrow)
    assert run.wire.masked.bits == out
    assert [o.bits for o in run.opened] == [1, out]


def random_pieces(
    rng: np.random.Generator, bits: int, out: int, shift: int, count: int, shape: tuple[int, ...]
) -> tuple[fp.Pieces, I64]:
    """Breaks and values up to both ends of what is allowed; coefficients that may be zero."""
    top = (1 << (bits - 2)) - 1
    spread = int(rng.choice([top, top // 2, min(top, 2)]))
    breaks = sorted(int(b) for b in rng.integers(-spread, spread, count, endpoint=True))
    low, high = max(-top, breaks[-1] - top), min(top, breaks[0] + top)
    special = [v for b in breaks for v in (b - 1, b, b + 1) if low <= v <= high] + [low, high]
    x = rng.integers(low, high, shape, endpoint=True)
    flat = x.reshape(-1)
    flat[: len(special)] = rng.permutation(special)[: flat.size]
    # with a shift the sum has to stay below 2**(q-1); without one everything is mod 2**q
    part = ((1 << (out + shift - 1)) - 1) // (2 * count + 2) if shift else (1 << 62)
    steep = part >> (bits - 1) if shift else part

    def some(limit: int) -> int:
        return int(rng.choice([0, -limit, limit, rng.integers(-limit, limit, endpoint=True)]))

    jumps, bends = tuple(some(part) for _ in breaks), tuple(some(steep) for _ in breaks)
    return fp.Pieces(tuple(breaks), jumps, bends, some(steep), some(part), shift), x


@st.composite
def rings(draw: st.DrawFn) -> tuple[int, int, int]:
    """Bits of the wire that goes in, of the one that comes out, and the shift."""
    bits = draw(st.integers(4, 48))
    match draw(st.sampled_from(["narrow", "wide", "cut", "full"])):
        case "narrow":
            return bits, bits, 0
        case "wide":
            return bits, fp.WIDE, 0
        case "cut":
            out = draw(st.integers(4, 48))
            return bits, out, draw(st.integers(1, 64 - out))
        case _:
            return bits, bits, 64 - bits


@given(rings(), st.integers(1, 5), st.sampled_from(SHAPES), seeds)
@example((32, 32, 16), 2, (1, 129), 0)
@example((48, 48, 16), 5, (1, 129), 1)
@example((8, 8, 56), 3, (1, 129), 2)
@example((32, 64, 0), 2, (1, 129), 3)
@example((32, 32, 0), 2, (1, 129), 4)
def test_pieces_are_what_they_say(
    cut: tuple[int, int, int], count: int, shape: tuple[int, ...], seed: int
) -> None:
    bits, out, shift = cut
    op, x = random_pieces(np.random.default_rng(seed), bits, out, shift, count, shape)
    run, cost = gates.run_pieces(op, ring(x, bits), bits, out)
    check(op, x, bits, out, run)
    gates.check_cost(run, cost)


OPS = {
    "clamp": fp.Pieces((-1, 2), (0, 0), (1, -1), 0, -1, 0),
    "relu": fp.Pieces((0,), (0,), (1,), 0, 0, 0),
    "absolute": fp.Pieces((0,), (0,), (2,), -1, 0, 0),
    "steps": fp.Pieces((-1, 0, 1), (1, 5, -3), (0, 0, 0), 0, 2, 0),
    "leap": fp.Pieces((0, 1), (7, 0), (0, -3), 2, 1, 0),
    "line and step": fp.Pieces((1,), (3,), (0,), 1, 0, 0),
}


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("bits", [4, 5, 6, 9])
@pytest.mark.parametrize("wide", [False, True])
def test_every_value_and_every_mask(name: str, bits: int, wide: bool) -> None:
    """9 bits: deep enough for a level of the comparison tree above its packed leaf."""
    op, size, half = OPS[name], 1 << bits, 1 << (bits - 1)
    top = half // 2 if op.slope else half
    low, high = max(-top, op.breaks[-1] - half), min(top, op.breaks[0] + half)
    x, r = (v.reshape(-1) for v in np.meshgrid(np.arange(low, high), np.arange(size)))
    first = np.random.default_rng(bits).integers(0, size, x.shape)
    out = fp.WIDE if wide else bits
    run, _ = gates.run_pieces(op, ring(x, bits), bits, out, (ring(first, bits), ring(r - first, bits)))
    check(op, x, bits, out, run)


@pytest.mark.parametrize("bits", [8, 32, 48])
@pytest.mark.parametrize("r", ["0", "1", "half-1", "half", "all"])
@pytest.mark.parametrize("shift", [0, 16])
def test_extreme_masks(bits: int, r: str, shift: int) -> None:
    half, top = 1 << (bits - 1), (1 << (bits - 2)) - 1
    mask = {"0": 0, "1": 1, "half-1": half - 1, "half": half, "all": 2 * half - 1}[r]
    x = np.array([-top, -top + 1, -2, -1, 0, 1, 2, top - 1, top])
    op = fp.Pieces((0, 0), (5 << shift, 0), (1 << shift, -(2 << shift)), 1 << shift, -(3 << shift), shift)
    for start in (0, 3, half, 2 * half - 1):
        first = ring(np.full(x.shape, start), bits)
        second = fp.low_bits(np.full(x.shape, mask, dtype=np.uint64) - first, bits)
        run, _ = gates.run_pieces(op, ring(x, bits), bits, bits, (first, second))
        check(op, x, bits, bits, run)


def test_what_is_dealt_for_a_clamp_and_for_a_slope() -> None:
    """The formulas of the docstring, by hand: products exist only where something needs them."""
    key = comparison.key_size(10, 31)

    def dealt(op: fp.Pieces, out: int) -> int:
        return pieces.cost(gates.step_of(op, (10,), out), op, 32, 1).dealt[1] - key

    bits = packed_size
    # mod 2**32: rho and rho r for each of two breaks, one bit of m
    assert dealt(OPS["clamp"], 32) == bits(20, 32) + bits(20, 32) + bits(10, 1)
    # steps alone: a share of each rho, and one bit of m
    assert dealt(OPS["steps"], 64) == bits(30, 64) + bits(10, 1)
    # a slope: w and m mod 2**32
    assert dealt(OPS["line and step"], 64) == bits(10, 64) + 2 * bits(10, 32)
    # ReLU, wide: what relu.py deals
    assert dealt(OPS["relu"], 64) == 2 * bits(10, 64) + 3 * bits(10, 32)
    # 16 bits dropped: q = 48, and rz
    cut = fp.Pieces((0, 1), (0, 0), (1, 1), 1, 0, 16)
    assert dealt(cut, 32) == 2 * bits(20, 48) + 2 * bits(10, 16) + bits(20, 16) + bits(10, 48)


@pytest.mark.parametrize(
    ("op", "out"),
    [
        (fp.Pieces((), (), (), 1, 0, 0), 20),
        (fp.Pieces((0,), (), (1,), 1, 0, 0), 20),
        (fp.Pieces((0,), (0,), (), 1, 0, 0), 20),
        (fp.Pieces((0,), (0,), (1,), 1, 0, 45), 20),
        (fp.Pieces((0,), (0,), (1,), 1, 0, 1), 64),
        (fp.Pieces((0,), (0,), (1,), 1, 0, -1), 20),
    ],
)
def test_pieces_that_do_not_fit_together(op: fp.Pieces, out: int) -> None:
    with pytest.raises(TypeError):
        gates.run_pieces(op, np.zeros((1, 2), dtype=np.uint64), 20, out)


def test_a_gate_serves_once_and_takes_its_own_parcel_only() -> None:
    op = fp.Pieces((0, 5), (1, 2), (3, 0), 4, 5, 7)
    run, _ = gates.run_pieces(op, ring(np.arange(-3, 4).reshape(1, 7), 20), 20, 20)
    gates.check_parcels(run)
    gates.check_used(run, Narrow(np.zeros((1, 7), dtype=np.uint64), 20))
    other, _ = gates.run_pieces(op, np.zeros((1, 7), dtype=np.uint64), 20, 20)
    other.gates[0]._used = False
    with pytest.raises(TypeError, match="was given Wide"):
        next(other.gates[0].evaluate(Wide(np.zeros((1, 7), dtype=np.uint64), 64)))


# -- what an evaluator sees ------------------------------------------------------------------------

COUNT = 1 << 17


def views(run: gates.Run, x: int, masks: tuple[gates.U64, gates.U64]) -> list[list[tuple[gates.U64, int]]]:
    """For E1 and for E2: own mask, x^, own shares of rho and d^; then x^, d^, own new mask and y^."""
    xh = fp.low_bits(np.uint64(x % 8) + masks[0] + masks[1], 3)
    d, y = (o.values for o in run.opened)
    found: list[list[tuple[gates.U64, int]]] = []
    for k, gate in enumerate(run.gates):
        assert isinstance(gate, pieces.PiecesGate)
        rho = gate._shares["rho"]
        found.append([(masks[k], 3), (xh, 3), (rho[0], 1), (rho[1], 1), (d[0], 1), (d[1], 1)])
        found.append([(xh, 3), (d[0], 1), (d[1], 1), (gate.mask.values, 2), (y, 3)])
        bits = gates.sent(run, 0, 1 - k)
        found.append([(masks[k], 2), (xh, 3), (bits[0], 1), (bits[1], 1), (gates.sent(run, 1, 1 - k), 3)])
    return found


def sample(x: int) -> list[list[tuple[gates.U64, int]]]:
    """Views of many runs on one value; 0 and 1 differ in what [x >= 1] is, and in y."""
    op = fp.Pieces((0, 1), (1, 1), (1, 0), 1, 0, 0)
    rng = np.random.default_rng(x)
    first, second = (rng.integers(0, 8, COUNT, dtype=np.uint64) for _ in range(2))
    run, _ = gates.run_pieces(op, np.full(COUNT, x, dtype=np.uint64), 3, 3, (first, second))
    return views(run, x, (first, second))


@pytest.mark.parametrize("x", [0, 1])
def test_what_is_opened_is_uniform(x: int) -> None:
    for view in sample(x):
        gates.check_uniform(view, stats.ALARM / 12)


@pytest.mark.parametrize("broken", ["rho", "mask"])
def test_the_statistic_catches_a_missing_mask(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gates.silence(monkeypatch, broken, 1 if broken == "rho" else 3)
    seen = sample(1)
    for view in (seen[0], seen[3]) if broken == "rho" else (seen[1], seen[4]):
        with pytest.raises(AssertionError):
            gates.check_uniform(view)


def test_two_breaks_do_not_share_a_bit() -> None:
    """With one rho for all breaks d_1^ xor d_2^ would say whether x lies between them."""
    seen = [sample(x)[0] for x in (0, 1)]
    for view in seen:
        between = (view[4][0] ^ view[5][0], 1)
        gates.check_uniform([between], stats.ALARM / 2)
