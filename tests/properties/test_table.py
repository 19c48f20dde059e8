"""Lookups of a masked value in a public table of polynomials, against the formula on Python's integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from privinfer.backends.mpc import roles
from privinfer.graph import fixedpoint as fp
from privinfer.graph import ir
from privinfer.graph.ranges import TRUNCATING_OPENING_ULP
from privinfer.plan.cost import declared
from privinfer.protocols.mpc import table
from privinfer.protocols.mpc.dealing import packed_size
from privinfer.protocols.mpc.wires import Narrow, Wide
from tests.support import gates, stats
from tests.support.gates import I64, ring, signed
from tests.support.simulate import Simulation, seat

SHAPES = [(1, 1), (0, 3), (1, 7), (2, 8), (3, 3, 11), (1, 129)]
seeds = st.integers(0, 2**32)


def formula(op: fp.Table, x: I64, r: gates.U64, bits: int) -> gates.U64:
    """sum_k c_k[u] t**k mod 2**bits, u and t as the mask decides."""
    size, step = 1 << op.cell_bits, 1 << op.step_bits
    found = []
    for v, mask in zip(x.reshape(-1).tolist(), r.reshape(-1).tolist(), strict=True):
        y = v - op.low
        u = y // step + (y % step + mask % step >= step)
        t = y - u * step
        assert -step < t < step
        assert 0 <= u < size
        found.append(sum(op.coefficients[k * size + u] * t**k for k in range(op.degree + 1)) % 2**bits)
    return np.array(found, dtype=np.uint64).reshape(x.shape)


def check(op: fp.Table, x: I64, r: gates.U64, out: int, run: gates.Run) -> None:
    """Exact without a shift, within the declared error with one."""
    q = out + op.shift
    wanted = formula(op, x, r, q)
    if op.shift:
        y = run.result.view(np.uint64) << np.uint64(op.shift)
        error = np.abs(signed(fp.low_bits(y - wanted, q), q))
        assert (2 * error < 2 * TRUNCATING_OPENING_ULP * (1 << op.shift)).all()
    else:
        np.testing.assert_array_equal(run.wire.values, wanted)
    assert type(run.wire.masked) is (Wide if out == fp.WIDE else Narrow)
    assert [o.bits for o in run.opened] == [out]


def random_table(rng: np.random.Generator, m: int, s: int, degree: int, out: int, shift: int) -> fp.Table:
    """Coefficients of any size mod 2**64; with a shift such that no sum leaves the ring."""
    coefficients: list[int] = []
    for k in range(degree + 1):
        part = ((1 << (out + shift - 1)) - 1) // (degree + 1) >> (k * s) if shift else 2**63 - 1
        row = rng.integers(-part, part, 1 << m, endpoint=True)
        coefficients += np.where(rng.random(1 << m) < 0.3, rng.choice([-part, part]), row).tolist()
    low = int(rng.integers(-(2**30), 2**30))
    return fp.Table(low, s, m, degree, tuple(coefficients), shift)


def inside(rng: np.random.Generator, op: fp.Table, shape: tuple[int, ...]) -> I64:
    """Values from the first to the last that is allowed, cell borders among them."""
    step = 1 << op.step_bits
    last = ((1 << op.cell_bits) - 1) * step - 1
    y = rng.integers(0, last, shape, endpoint=True)
    border = np.clip(y // step * step + rng.integers(-1, 2, shape), 0, last)
    y = np.where(rng.random(shape) < 0.5, border, y)
    flat = y.reshape(-1)
    flat[:2] = [0, last][: flat.size]
    return y + op.low


@st.composite
def tables(draw: st.DrawFn) -> tuple[int, int, int, int, int, int]:
    """n, m, s, degree, bits that come out, shift."""
    m, s = draw(st.integers(1, 8)), draw(st.integers(0, 12))
    bits = draw(st.integers(max(m + s, 2), 48))
    degree = draw(st.integers(0, 3))
    match draw(st.sampled_from(["narrow", "wide", "cut", "full"])):
        case "narrow":
            return bits, m, s, degree, bits, 0
        case "wide":
            return bits, m, s, degree, fp.WIDE, 0
        case "cut":
            out = draw(st.integers(4, 48))
            return bits, m, s, degree, out, draw(st.integers(1, 64 - out))
        case _:
            return bits, m, s, degree, bits, 64 - bits


@given(tables(), st.sampled_from(SHAPES), seeds)
@example((32, 7, 12, 2, 32, 16), (1, 129), 0)
@example((32, 8, 12, 3, 32, 32), (1, 129), 1)
@example((20, 8, 12, 3, 64, 0), (1, 129), 2)
@example((2, 1, 0, 0, 64, 0), (1, 7), 3)
@example((48, 12, 36, 1, 48, 16), (1, 7), 4)
def test_a_lookup_is_what_it_says(
    drawn: tuple[int, int, int, int, int, int], shape: tuple[int, ...], seed: int
) -> None:
    bits, m, s, degree, out, shift = drawn
    rng = np.random.default_rng(seed)
    op = random_table(rng, m, s, degree, out, shift)
    x = inside(rng, op, shape)
    masks = tuple(fp.low_bits(rng.integers(0, 2**64, shape, dtype=np.uint64), bits) for _ in range(2))
    run, cost = gates.run_table(op, ring(x, bits), bits, out, (masks[0], masks[1]))
    check(op, x, masks[0] + masks[1], out, run)
    gates.check_cost(run, cost)


@pytest.mark.parametrize(("m", "s", "bits"), [(3, 3, 6), (3, 3, 8), (4, 0, 4), (1, 4, 5), (2, 2, 7)])
@pytest.mark.parametrize("degree", range(4))
def test_every_value_and_every_mask(m: int, s: int, bits: int, degree: int) -> None:
    rng = np.random.default_rng(degree)
    op = random_table(rng, m, s, degree, 64, 0)
    last = ((1 << m) - 1) << s
    x, r = (v.reshape(-1) for v in np.meshgrid(np.arange(last) + op.low, np.arange(1 << bits)))
    first = ring(rng.integers(0, 1 << bits, x.shape), bits)
    run, _ = gates.run_table(op, ring(x, bits), bits, 64, (first, ring(r.view(np.uint64) - first, bits)))
    check(op, x, r.view(np.uint64), 64, run)


def test_an_affine_function_does_not_depend_on_its_cell() -> None:
    """Both neighbours of a cell say the same where the table is one polynomial: exact whatever the mask."""
    m, s, step = 6, 5, 32
    cells = range(1 << m)
    coefficients = tuple(3 * step * u - 7 for u in cells) + tuple(3 for _ in cells)
    op = fp.Table(-900, s, m, 1, coefficients, 0)
    x = np.arange(((1 << m) - 1) * step).reshape(1, -1) - 900
    run, _ = gates.run_table(op, ring(x, 32), 32, 64)
    np.testing.assert_array_equal(run.result, 3 * (x + 900) - 7)


@pytest.mark.parametrize("r", [0, 1, 2**11 - 1, 2**11, 2**18, 2**19 - 1, 2**19, 2**31, 2**32 - 1])
def test_extreme_masks(r: int) -> None:
    rng = np.random.default_rng(0)
    op = random_table(rng, 7, 12, 2, 32, 16)
    x = inside(rng, op, (1, 33))
    for start in (0, 1, 2**31, 2**32 - 1):
        first = np.full(x.shape, start, dtype=np.uint64)
        second = ring(np.full(x.shape, r, dtype=np.uint64) - first, 32)
        run, _ = gates.run_table(op, ring(x, 32), 32, 32, (first, second))
        check(op, x, np.full(x.shape, r, dtype=np.uint64), 32, run)


@pytest.mark.parametrize(("degree", "m"), [(0, 1), (0, 7), (1, 7), (2, 7), (3, 12), (3, 1)])
@pytest.mark.parametrize(("out", "shift"), [(32, 16), (64, 0), (32, 0)])
def test_what_is_dealt(degree: int, m: int, out: int, shift: int) -> None:
    """16 m + 8 w bytes of keys a value to each, a little more where a level goes into the leaf."""
    op = fp.Table(0, 4, m, degree, (0,) * (degree + 1 << m), shift)
    cost = table.cost(gates.step_of(op, (10,), out), op, 32, 3)
    levels = min(m, 2 if degree == 0 else 1)
    key = 30 * (16 * (m - levels) + 8 * (degree + 1) * 2**levels)
    assert key <= 30 * (16 * m + 8 * (degree + 1) + 16)
    assert cost.dealt == (key, key + (packed_size(30, out + shift) if shift else 0))
    assert (cost.rounds, cost.opened) == (1, 30 * out // 8)


@pytest.mark.parametrize(
    ("changed", "out"),
    [
        ({"cell_bits": 0}, 20),
        ({"cell_bits": 13, "coefficients": (0,) * 2**14}, 20),
        ({"step_bits": -1}, 20),
        ({"step_bits": 18}, 20),
        ({"degree": 2}, 20),
        ({"degree": -1, "coefficients": ()}, 20),
        ({"degree": 4, "coefficients": (0,) * 40}, 20),
        ({"shift": 45}, 20),
        ({"shift": 1}, 64),
        ({"shift": -1}, 20),
    ],
)
def test_tables_that_do_not_fit_together(changed: dict[str, Any], out: int) -> None:
    fields = {"low": 0, "step_bits": 4, "cell_bits": 3, "degree": 1, "coefficients": (0,) * 16, "shift": 0}
    zeros = np.zeros((1, 2), dtype=np.uint64)
    gates.run_table(fp.Table(**fields), zeros, 20, out)
    with pytest.raises(TypeError):
        gates.run_table(fp.Table(**(fields | changed)), zeros, 20, out)


def test_a_gate_serves_once_and_takes_its_own_parcel_only() -> None:
    op = random_table(np.random.default_rng(0), 4, 5, 2, 20, 8)
    zeros = np.zeros((1, 7), dtype=np.uint64)
    run, _ = gates.run_table(op, zeros, 20, 20)
    gates.check_parcels(run)
    gates.check_used(run, Narrow(zeros, 20))
    run.gates[0]._used = False
    with pytest.raises(TypeError, match="was given Wide"):
        next(run.gates[0].evaluate(Wide(zeros, 64)))


# -- what an evaluator sees ------------------------------------------------------------------------

COUNT = 1 << 16


def sample(x: int, out: int, shift: int) -> list[list[tuple[gates.U64, int]]]:
    """Views of many runs on one value: E1's, then E2's."""
    op = fp.Table(-4, 1, 3, 1, tuple(range(-3, 13)), shift)
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 16, (1, COUNT), dtype=np.uint64), rng.integers(0, 16, (1, COUNT), dtype=np.uint64)
    run, _ = gates.run_table(op, ring(np.full((1, COUNT), x), 4), 4, out, masks)
    xh = fp.low_bits(np.uint64(x % 16) + masks[0] + masks[1], 4)
    y, top = run.opened[0].values, np.uint64(out - 3)
    found: list[list[tuple[gates.U64, int]]] = []
    for k, gate in enumerate(run.gates):
        assert isinstance(gate, table.TableGate)
        own = gate.mask.values
        found.append([(masks[k], 4), (xh, 4), (y, 2)])
        found.append([(xh, 4), (own >> top, 3), (y >> top, 3)])
        found.append([(xh, 4), (own, 2), (y, 2), (gate._keys.final[:, 0], 2)])
        share = gates.sent(run, 0, 1 - k)
        found.append([(xh, 4), (share, 3), (share >> top, 3)])
    return found


@pytest.mark.parametrize("x", [-4, 3, 9])
@pytest.mark.parametrize(("out", "shift"), [(64, 0), (10, 3), (10, 0)])
def test_what_is_opened_is_uniform(x: int, out: int, shift: int) -> None:
    for view in sample(x, out, shift):
        gates.check_uniform(view, stats.ALARM / 72)


def test_the_statistic_catches_a_missing_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    gates.silence(monkeypatch, "mask", 10)
    for view in (sample(3, 10, 3)[at] for at in (0, 1, 4, 5)):
        with pytest.raises(AssertionError):
            gates.check_uniform(view)


# -- in a session ----------------------------------------------------------------------------------


def program_of_all(n: int = 32) -> fp.Program:
    """Clamp to [-1, 1], add 1/2, square, the larger of neighbours, and a table of z/2 + 1 on [0, 4)."""
    cells = range(1 << 6)
    coefficients = tuple((u << 4) * 128 + (1 << 16) for u in cells) + (128,) * 64
    operations: list[tuple[fp.Operation, tuple[int, ...], tuple[int, ...], int, int]] = [
        (fp.Source("x"), (), (4,), 64, 16),
        (fp.Truncate(8), (0,), (4,), n, 8),
        (fp.Pieces((-256, 256), (0, 0), (1, -1), 0, -256, 0), (1,), (4,), n, 8),
        (fp.Offset((4,), (128, 128, 128, 128)), (2,), (4,), n, 8),
        (fp.Extend(), (3,), (4,), 64, 8),
        (fp.Offset((), (2**64 - 1,)), (4,), (4,), 64, 8),
        (fp.Offset((1,), (1,)), (5,), (4,), 64, 8),
        (fp.Product(False, 8), (6, 6), (4,), n, 8),
        (fp.Shape((4, 1)), (7,), (4, 1), n, 8),
        (fp.Larger(), (8,), (2, 1), n, 8),
        (fp.Table(-16, 4, 6, 1, coefficients, 8), (9,), (2, 1), n, 8),
        (fp.Reveal("y"), (10,), (2, 1), n, 8),
    ]
    steps = [
        fp.Step(at, op, inputs, fp.Type(shape, bits, frac), "x" if at == 0 else f"step {at}")
        for at, (op, inputs, shape, bits, frac) in enumerate(operations)
    ]
    return fp.Program(tuple(steps), ir.Precision(comparison_bits=n))


def test_every_gate_in_one_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through helper and evaluators, with the rounds and bytes that the plan declares."""
    program = program_of_all()
    monkeypatch.setattr(roles, "compile_for", lambda table: program)
    a = ir.Architecture((ir.Input("x", (4,), -4.0, 4.0),), (), (ir.Output("y", "x"),))
    session = Simulation(ir.Model(a, {}), seat(a))
    x = np.random.default_rng(0).uniform(-4, 4, (50, 4))
    done = session.infer({"x": x})
    square = (np.clip(x, -1, 1) + 0.5) ** 2
    wanted = np.maximum(square[:, 0::2], square[:, 1::2])[:, :, None] / 2 + 1 + 0.5 / 16
    # 1 unit of the truncation, steep as 3, and 1.5 of two more
    assert np.abs(done.outputs["y"] - wanted).max() < (3 / 2 + 1.5 / 2 + 1.5) / 256
    assert done.rounds == (7, 7)
    assert done.sizes() == declared(program, done.table, 50)
