"""Functions under `mpc`, end to end: how far they are from the truth, over their whole range."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privinfer.errors import PrecisionError
from privinfer.graph import fixedpoint as fp
from privinfer.graph import functions, ir, reference
from privinfer.graph.lower import compile_program
from privinfer.graph.ranges import declare
from tests.support.bounds import output_errors, output_float_errors
from tests.support.simulate import simulate

ROWS, WIDTH = 1000, 1000  # a million points
SLOPES = {
    "sigmoid": (0.0, 0.0),
    "tanh": (0.0, 0.0),
    "erf": (0.0, 0.0),
    "gelu": (0.0, 1.0),
    "silu": (0.0, 1.0),
    "softplus": (0.0, 1.0),
}


def curve(name: str, low: float, high: float, error: float, reach: float | None = None) -> ir.Model:
    """One function of an input on [low, high]; with `reach` its table ends there and it has to clamp."""
    ends = (-reach, reach) if reach else (low, high)
    left, right = SLOPES.get(name, (None, None))
    op = ir.Function(name, *ends, error, left, right)
    node = ir.Node("y", op, ("x",))
    return declare(
        ir.Model(ir.Architecture((ir.Input("x", (WIDTH,), low, high),), (node,), (ir.Output("y", "y"),)), {})
    )


def stray(model: ir.Model, rows: int) -> tuple[ir.Array, ir.Array]:
    """Values and errors at evenly spaced points of the range, ends included."""
    source = model.architecture.inputs[0]
    x = {"x": np.linspace(source.low, source.high, rows * WIDTH).reshape(rows, WIDTH)}
    wanted = reference.run(model, x)["y"]
    got = [simulate(model, {"x": x["x"][k : k + 100]}).outputs["y"] for k in range(0, rows, 100)]
    return wanted, np.abs(np.concatenate(got) - wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "gelu", "silu", "erf"])
def test_absolute_error_on_a_million_points(name: str) -> None:
    model = curve(name, -8.0, 8.0, 5e-5)
    _, error = stray(model, ROWS)
    bound = float(output_errors(model)["y"].max())
    assert error.max() <= bound <= 10 * error.max()
    assert error.max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "low", "high"), [("exp", -4.0, 4.0), ("reciprocal", 0.5, 256.0), ("rsqrt", 0.5, 256.0)]
)
def test_relative_error_on_a_million_points(name: str, low: float, high: float) -> None:
    model = curve(name, low, high, 5e-5)
    wanted, error = stray(model, ROWS)
    bound = float(output_errors(model)["y"].max())
    assert error.max() <= bound <= 10 * error.max()
    assert (error / np.abs(wanted)).max() <= 1e-4


@pytest.mark.parametrize(
    ("ends", "reach"), [((-8.0, 8.0), None), ((-40.0, 40.0), 8.0), ((-7.99, 8.00001), None)]
)
def test_a_range_just_too_long_for_its_cells(ends: tuple[float, float], reach: float | None) -> None:
    """16 units want 2**m cells and one more: read at 3 x they take no more than 2**m, ends included."""
    model = curve("sigmoid", *ends, 5e-5, reach)
    program = compile_program(model.architecture)
    (table,) = (s for s in program.steps if isinstance(s.operation, fp.Table))
    (times,) = (s for s in program.steps if isinstance(s.operation, fp.Times))
    assert isinstance(table.operation, fp.Table)
    assert (table.operation.cell_bits, table.inputs) == (7, (times.index,))
    _, error = stray(model, 10)
    assert error.max() <= output_errors(model)["y"].max() <= 1e-4 + (np.exp(-reach) if reach else 0.0)


@pytest.mark.parametrize("name", SLOPES)
def test_clamped_functions_far_out(name: str) -> None:
    """A table to +-reach, inputs ten times as far."""
    known = functions.get(name)
    reach = float(max(map(abs, known.reach(1e-5))))
    model = curve(name, -10 * reach, 10 * reach, 5e-5, reach)
    _, error = stray(model, 20)
    assert error.max() <= output_errors(model)["y"].max() <= 1.5e-4


@pytest.mark.parametrize("count", [2, 3, 10, 100, 1000])
@pytest.mark.parametrize("log", [False, True])
def test_softmax(count: int, log: bool) -> None:
    x = ir.Input("x", (count,), -10.0, 10.0)
    node = ir.Node("y", ir.Softmax(1, log), ("x",))
    model = declare(ir.Model(ir.Architecture((x,), (node,), (ir.Output("y", "y"),)), {}))
    rng = np.random.default_rng(count)
    rows = rng.uniform(-10, 10, (24, count)) * rng.choice([0.01, 0.3, 1.0], (24, 1))
    rows[0], rows[1], rows[2] = -10.0, 10.0, np.where(np.arange(count) == count // 2, 10.0, -10.0)
    got, wanted = simulate(model, {"x": rows}).outputs["y"], reference.run(model, {"x": rows})["y"]
    bound = float(output_errors(model)["y"].max())
    assert np.abs(got - wanted).max() <= min(bound, 5e-4)


@pytest.mark.parametrize("bits", [20, 24, 28, 36, 38, 40, 44, 48])
@pytest.mark.parametrize("log", [False, True])
def test_softmax_in_every_ring(log: bool, bits: int) -> None:
    """Wider rings leave a product fewer bits to drop, so the sum of exponentials gets another scale."""
    count = 10
    x = ir.Input("x", (count,), -1.0, 1.0)
    node = ir.Node("y", ir.Softmax(1, log), ("x",))
    model = ir.Model(ir.Architecture((x,), (node,), (ir.Output("y", "y"),)), {})
    if bits == 20:
        with pytest.raises(PrecisionError, match="'y'"):
            declare(model, comparison_bits=bits)
        return
    model = declare(model, comparison_bits=bits)
    rows = np.random.default_rng(bits).uniform(-1, 1, (30, count))
    rows[0] = 1.0
    got, wanted = simulate(model, {"x": rows}).outputs["y"], reference.run(model, {"x": rows})["y"]
    assert np.abs(got - wanted).max() <= output_errors(model)["y"].max() <= 1e-3


@pytest.mark.parametrize("bits", [24, 32, 40])
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("count", [2, 15, 100])
def test_no_sum_of_a_softmax_leaves_its_table(count: int, log: bool, bits: int) -> None:
    """The sum, cut, of exponentials that are all as far off as they may be."""
    x = ir.Input("x", (count,), -1.0, 1.0)
    node = ir.Node("y", ir.Softmax(1, log), ("x",))
    model = declare(
        ir.Model(ir.Architecture((x,), (node,), (ir.Output("y", "y"),)), {}), comparison_bits=bits
    )
    steps = compile_program(model.architecture).steps
    (total,) = (s for s in steps if isinstance(s.operation, fp.Total))
    tables = [s for s in steps if isinstance(s.operation, fp.Table)]
    e, others = tables[0], [s.operation for s in tables[1:]]
    # exp is within 1e-4 of itself, and opened
    off = 1e-4 + 1.5 * 2.0**-e.type.frac
    cut = next(s for s in steps if s.inputs == (total.index,) and isinstance(s.operation, fp.Truncate))
    last = 2.0**-cut.type.frac
    first, end = others[0], others[-1]
    assert isinstance(first, fp.Table)
    assert isinstance(end, fp.Table)
    assert first.low * last <= 1 - off - last
    assert end.high * last >= count * (1 + off) + last


@pytest.mark.parametrize("count", [2, 7, 64, 300])
def test_normalize(count: int) -> None:
    """Variances from a hundredth to a hundred; near nothing the bound is that no result exceeds sqrt(d)."""
    x = ir.Input("x", (count,), -40.0, 40.0)
    for op in (ir.Normalize(1e-5, 0.0, 1600.0), ir.Normalize(1e-5, 2.0**-7, 1600.0)):
        node = ir.Node("y", op, ("x",))
        model = ir.Model(ir.Architecture((x,), (node,), (ir.Output("y", "y"),)), {})
        rng = np.random.default_rng(count)
        rows = rng.normal(size=(30, count)) * np.geomspace(0.2, 10, 30)[:, None] + rng.normal(size=(30, 1))
        rows = np.clip(rows, -40, 40)
        rows[:, 0] = rows[:, 1] + 0.5  # never all alike
        model = declare(model, comparison_bits=40)
        got, wanted = simulate(model, {"x": rows}).outputs["y"], reference.run(model, {"x": rows})["y"]
        assert np.abs(got - wanted).max() <= output_errors(model)["y"].max()
        assert np.abs(got - wanted).max() <= 2e-3 * np.sqrt(count)


@settings(max_examples=30, deadline=None)
@given(
    st.floats(-20, 10),
    st.floats(0.5, 20),
    st.lists(st.floats(-1, 1), min_size=3, max_size=3),
    st.sampled_from([1e-3, 1e-4]),
)
def test_a_callable_of_the_user(low: float, width: float, c: list[float], error: float) -> None:
    """Any smooth callable with a range: within what its table promises."""

    def mine(x: ir.Array) -> ir.Array:
        return np.asarray(c[0] * np.sin(x) + c[1] * np.cos(2 * x) + c[2] * x / 4)

    functions.register("test.mine", mine)
    model = curve("test.mine", low, low + width, error)
    wanted, strayed = stray(model, 3)
    assert strayed.max() <= output_errors(model)["y"].max() + output_float_errors(model)["y"].max()
    assert np.abs(wanted - mine(np.linspace(low, low + width, 3 * WIDTH).reshape(3, WIDTH))).max() < 1e-9


def test_other_parties_do_not_need_a_users_callable() -> None:
    """Its table is enough, where values are clamped to its range too."""
    functions.register("test.other", np.arcsinh)
    x = ir.Input("x", (2,), -2.0, 2.0)
    nodes = (
        ir.Node("d", ir.Linear(2, 2), ("x",)),
        ir.Node("y", ir.Function("test.other", -8, 8, 1e-4), ("d",)),
    )
    weights = {"d": {"weight": np.eye(2), "bias": np.zeros(2)}}
    made = declare(ir.Model(ir.Architecture((x,), nodes, (ir.Output("y", "y"),)), weights)).architecture
    steps = compile_program(made).steps
    del functions._USERS["test.other"]
    assert compile_program(ir.Architecture.from_bytes(made.to_bytes())).steps == steps


def test_values_beyond_a_function_without_a_tail() -> None:
    """Refused by range analysis, naming the node; also where the range is only known through a layer."""
    x = ir.Input("x", (2,), -3.0, 3.0)
    log = ir.Function("log", 0.5, 16.0, 1e-4)
    with pytest.raises(PrecisionError, match=r"'y'.*beyond.*log"):
        declare(ir.Model(ir.Architecture((x,), (ir.Node("y", log, ("x",)),), (ir.Output("y", "y"),)), {}))
    nodes = (ir.Node("d", ir.Linear(2, 2), ("x",)), ir.Node("y", log, ("d",)))
    weights = {"d": {"weight": np.eye(2), "bias": np.full(2, 3.25)}}
    with pytest.raises(PrecisionError, match=r"'y'.*log is declared"):
        declare(ir.Model(ir.Architecture((x,), nodes, (ir.Output("y", "y"),)), weights))
    weights["d"]["bias"] += 0.5
    inner = ir.Model(ir.Architecture((x,), nodes, (ir.Output("y", "y"),)), weights)
    assert declare(inner).architecture.precision.error_bound is not None


def test_a_range_of_integers_is_the_range_of_floats() -> None:
    """Tables are found under the same key on either side of an architecture's bytes."""
    op = ir.Function("sigmoid", -10, 10, 1e-4, 0, 0)
    architecture = ir.Architecture(
        (ir.Input("x", (2,), -8, 8),), (ir.Node("y", op, ("x",)),), (ir.Output("y", "y"),)
    )
    made = declare(ir.Model(architecture, {})).architecture
    again = ir.Architecture.from_bytes(made.to_bytes())
    assert compile_program(again).steps == compile_program(made).steps
