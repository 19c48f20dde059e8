"""Range and error analysis: its bounds hold, its refusals name the layer, its hints are true."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from privinfer.backends import plain
from privinfer.errors import ConfigError, InputError, PrecisionError
from privinfer.graph import fixedpoint as fp
from privinfer.graph import ir, reference
from privinfer.graph.lower import compile_program
from privinfer.graph.ranges import AUTO_BITS, analyse, check_inputs, check_ranges, declare
from tests.support.bounds import float_errors, output_errors, output_float_errors
from tests.support.simulate import simulate
from tests.support.strategies import architectures, models, random_model, rows

seeds = st.integers(0, 2**32)
weights = st.sampled_from([0.25, 1.0, 2.0])


def with_all_shown(architecture: ir.Architecture) -> ir.Architecture:
    """The same with every value as an output, so that every node's bound can be looked at."""
    names = [v.name for v in (*architecture.inputs, *architecture.nodes)]
    return dataclasses.replace(architecture, outputs=tuple(ir.Output(n, n) for n in names))


def rounds_constants(program: fp.Program) -> bool:
    """Whether some public constant does not fit the bits it gets."""
    return any(isinstance(s.operation, fp.Times) and not s.operation.exact for s in program.steps)


def chain(*ops: ir.Op, low: float = -1.0, high: float = 1.0, shape: ir.Shape = (4,)) -> ir.Architecture:
    """Operators in a row, called n0, n1, ..."""
    names = ["x", *(f"n{k}" for k in range(len(ops)))]
    nodes = tuple(ir.Node(names[k + 1], op, (names[k],)) for k, op in enumerate(ops))
    return ir.Architecture((ir.Input("x", shape, low, high),), nodes, (ir.Output("y", names[-1]),))


def constant(architecture: ir.Architecture, **weight: float) -> ir.Model:
    """A model whose layers have one weight each, and no bias."""
    return ir.Model(
        architecture,
        {
            node: {
                k: np.full(shape, weight.get(node, 1.0) if k == "weight" else 0.0) for k, shape in own.items()
            }
            for node, own in architecture.parameter_shapes().items()
        },
    )


def refusal(model: ir.Model, bits: int) -> PrecisionError | None:
    """Why a model cannot be declared with so many bits, if it cannot."""
    try:
        declare(model, comparison_bits=bits)
    except PrecisionError as error:
        return error
    return None


# -- the bounds hold -------------------------------------------------------------------------------


@settings(max_examples=150)
@given(architectures(), weights, seeds)
def test_intervals_hold_every_value(architecture: ir.Architecture, size: float, seed: int) -> None:
    """Float64 values of random inputs and corners, at every node.

    An interval is that of the model with its public constants rounded to 16 bits, as they are computed with;
    where some are, a value may stray by what of the error bound is theirs.
    """
    model = random_model(with_all_shown(architecture), seed, size)
    bounds = analyse(model)
    program = compile_program(model.architecture)
    slack = float_errors(model)
    values = reference.run(model, rows(architecture, 12, seed))
    for step, op in program.reveals():
        bound, value = bounds[step.index], values[op.output]
        assert bound.low.shape == bound.high.shape == bound.error.shape == (1, *step.type.shape)
        off = 2 * slack[op.output] + (bound.error if rounds_constants(program) else 0.0)
        assert (bound.low - off <= value).all(), op.output
        assert (value <= bound.high + off).all(), op.output
        assert (bound.error >= 0).all()


@settings(max_examples=150)
@given(models(max_nodes=9), seeds)
def test_error_bounds_hold_the_twins_error(model: ir.Model, seed: int) -> None:
    x = rows(model.architecture, 8, seed)
    exact, got = reference.run(model, x), plain.run(model, x)
    bound, slack = output_errors(model), output_float_errors(model)
    for name, value in got.items():
        assert (np.abs(value - exact[name]) <= bound[name] + slack[name]).all(), name


@settings(max_examples=100)
@given(models(max_nodes=9))
def test_what_was_declared_passes_its_own_check(model: ir.Model) -> None:
    check_ranges(model, analyse(model))
    precision = model.architecture.precision
    worst = max(float(e.max()) for e in output_errors(model).values())
    assert precision.error_bound is not None
    assert math.log2(precision.error_bound).is_integer()
    assert worst <= precision.error_bound < 2 * worst
    assert precision.basis == "interval"


def test_a_bias_larger_than_the_ring_is_no_silent_wrong_result() -> None:
    """y = x - 2^20 of x in [2^20, 2^20 + 1]: y fits, the bias at its scale 2^48 does not fit 63 bits.

    Whether it is refused or wrapped, what is declared has to be true.
    """
    base = 2.0**20
    a = chain(ir.Scale(1, 4), low=base, high=base + 1)
    raw = ir.Model(a, {"n0": {"weight": np.ones(4), "bias": np.full(4, -base)}})
    refused = refusal(raw, 32)
    if refused is not None:
        assert "n0" in refused.message
        return
    model = declare(raw)
    x = {"x": np.full((1, 4), base + 0.5)}
    bound = output_errors(model)["y"] + output_float_errors(model)["y"]
    wanted = reference.run(model, x)["y"]
    assert (np.abs(plain.run(model, x)["y"] - wanted) <= bound).all()
    assert (np.abs(simulate(model, x).outputs["y"] - wanted) <= bound).all()


# -- refusals and hints ----------------------------------------------------------------------------


def hinted(error: PrecisionError) -> int | None:
    """The comparison_bits a hint says would fit."""
    found = re.search(r"comparison_bits=(\d+) would fit", error.hint or "")
    return int(found[1]) if found else None


def test_a_layer_that_does_not_fit_is_named() -> None:
    model = constant(chain(ir.Linear(4, 4), ir.Linear(4, 4), ir.Relu()), n1=1000.0)
    with pytest.raises(PrecisionError, match=r"layer 'n1'.*values may reach 1.6e\+04") as caught:
        declare(model, comparison_bits=24)
    wanted = hinted(caught.value)
    assert wanted is not None
    declare(model, comparison_bits=wanted)
    # 16,000 with 16 fractional bits and a sign needs 14 + 16 + 1; the hint may leave one or two to spare
    assert 31 <= wanted <= 33


@settings(max_examples=150)
@given(architectures(max_nodes=10), st.sampled_from([1.0, 4.0, 16.0]), seeds)
def test_a_hint_is_true(architecture: ir.Architecture, size: float, seed: int) -> None:
    """What a hint says would fit fits."""
    model = random_model(architecture, seed, size)
    refused = refusal(model, 20)
    wanted = None if refused is None else hinted(refused)
    assume(wanted is not None)
    assert refused is not None
    named = {n.name for n in architecture.nodes} | {v.name for v in architecture.inputs}
    assert refused.message.split("'")[1] in named | {o.name for o in architecture.outputs}
    declare(model, comparison_bits=wanted)


def test_a_hint_looks_at_all_layers() -> None:
    """The first layer needs few bits more, the last needs many more."""
    model = constant(chain(ir.Linear(4, 4), ir.Relu(), ir.Linear(4, 4)), n0=40.0, n2=900.0)
    with pytest.raises(PrecisionError, match="'n0'") as caught:
        declare(model, comparison_bits=22)
    wanted = hinted(caught.value)
    assert wanted is not None
    declare(model, comparison_bits=wanted)


def test_no_hint_where_nothing_fits() -> None:
    model = constant(chain(ir.Linear(4, 4)), n0=2.0**31)
    with pytest.raises(PrecisionError, match="'n0'") as caught:
        declare(model, comparison_bits=48)
    assert hinted(caught.value) is None
    with pytest.raises(PrecisionError, match="'n0'"):
        declare(model, comparison_bits="auto")


def test_a_weight_that_is_too_large_is_named() -> None:
    with pytest.raises(PrecisionError, match=r"'n0'.*weight"):
        declare(constant(chain(ir.Linear(4, 4)), n0=2.0**40))


@given(architectures(max_nodes=6), st.sampled_from([0.5, 2.0, 8.0]), seeds)
def test_auto_takes_the_smallest_that_holds(architecture: ir.Architecture, size: float, seed: int) -> None:
    model = random_model(architecture, seed, size)
    fits = []
    for n in AUTO_BITS:
        try:
            declare(model, comparison_bits=n)
            fits.append(n)
        except PrecisionError:
            continue
    if fits:
        auto = declare(model, comparison_bits="auto")
        assert auto.architecture == declare(model, comparison_bits=fits[0]).architecture
    else:
        with pytest.raises(PrecisionError):
            declare(model, comparison_bits="auto")


@pytest.mark.parametrize("bits", ["automatic", 32.0, None, "32"])
def test_comparison_bits_of_another_kind(bits: Any) -> None:
    with pytest.raises(PrecisionError, match="auto"):
        declare(constant(chain(ir.Relu())), comparison_bits=bits)


@pytest.mark.parametrize(("f", "n"), [(0, 32), (25, 40), (16, 19), (16, 49), (8, 11)])
def test_impossible_bits(f: int, n: int) -> None:
    with pytest.raises(ConfigError):
        declare(constant(chain(ir.Relu())), fractional_bits=f, comparison_bits=n)


def test_an_extension_needs_one_bit_more() -> None:
    """A ReLU takes the whole narrow ring, a second bilinear layer half of it."""
    fits = math.ldexp(0.9, 31 - 16) / 4
    relu, linear = (constant(chain(ir.Linear(4, 4), op), n0=fits) for op in (ir.Relu(), ir.Linear(4, 4)))
    declare(relu, comparison_bits=32)
    with pytest.raises(PrecisionError, match="'n0'"):
        declare(
            ir.Model(
                linear.architecture,
                {**linear.parameters, "n1": {"weight": np.zeros((4, 4)), "bias": np.zeros(4)}},
            ),
            comparison_bits=32,
        )


DIFFERENCES = {
    "pieces with a slope": chain(ir.Piecewise((0.0,), (0.0,), (0.9,), 0.1), low=-100.0, high=100.0),
    "step far from its values": chain(ir.Piecewise((-50.0,), (1.0,), (0.0,)), low=60.0, high=100.0),
    "max": chain(ir.Max(1), low=-100.0, high=100.0),
    "argmax": chain(ir.ArgMax(1), low=-100.0, high=100.0),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_differences_that_are_compared_have_to_fit_too(name: str) -> None:
    """100 fits 24 bits of which 16 are fractional, 100 - (-100) does not."""
    model = ir.Model(DIFFERENCES[name], {})
    ends = model.architecture.inputs[0]
    with pytest.raises(PrecisionError, match=r"layer 'n0': values may") as caught:
        declare(model, comparison_bits=24)
    assert hinted(caught.value) == 25
    x = {"x": np.array([[ends.low, ends.high, ends.low, ends.low], [ends.high, ends.low, 61.0, 62.0]])}
    fits = declare(model, comparison_bits=25)
    got, wanted = simulate(fits, x).outputs["y"], reference.run(fits, x)["y"]
    assert (np.abs(got - wanted) <= output_errors(fits)["y"]).all()


def test_what_never_differs_so_far_may_use_the_whole_ring() -> None:
    """Largest values of what comes from a ReLU differ by no more than their size; |x| keeps to its ring."""
    model = declare(ir.Model(chain(ir.Max(1), low=0.0, high=100.0), {}), comparison_bits=24)
    x = {"x": np.array([[0.0, 100.0, 0.0, 1.0], [100.0, 0.0, 99.0, 0.0]])}
    assert simulate(model, x).outputs["y"].tolist() == [100.0, 100.0]
    absolute = chain(ir.Piecewise((0.0,), (0.0,), (2.0,), -1.0), low=-100.0, high=100.0)
    model = declare(ir.Model(absolute, {}), comparison_bits=24)
    x = {"x": np.array([[-100.0, 100.0, 0.0, -65.0]])}
    assert simulate(model, x).outputs["y"].tolist() == [[100.0, 100.0, 0.0, 65.0]]


@pytest.mark.parametrize("bits", [24, 32])
@pytest.mark.parametrize(
    "op",
    [
        ir.Piecewise((-12.3,), (0.0,), (100.3,), 0.0),  # a line that has run far, from a break in between
        ir.Piecewise((-40.1, 40.1), (0.0, 0.0), (0.3, -0.3), 0.0),
        ir.Piecewise((0.3, 0.3, 0.3), (0.1, 0.1, 0.1), (0.0, 0.0, 0.0), 0.0, 0.1),  # three jumps, all rounded
        ir.Piecewise((0.1,), (0.0,), (7.0,), 0.0),
        ir.Piecewise((0.1, 0.9), (0.0, 0.0), (1.0, -1.0), 0.0, 0.1),
    ],
)
def test_rounded_breaks_jumps_and_slopes_are_in_the_bound(op: ir.Piecewise, bits: int) -> None:
    for low, high in ((-1.0, 1.0), (0.5, 1.0)):
        model = ir.Model(chain(op, low=low, high=high), {})
        declared = declare(model, comparison_bits=bits if op.bends[0] < 100 else bits + 6)
        x = {"x": np.linspace(low, high, 4000).reshape(-1, 4)}
        stray = np.abs(plain.run(declared, x)["y"] - reference.run(declared, x)["y"])
        assert (stray <= output_errors(declared)["y"]).all()


def test_a_range_smaller_than_a_unit_is_no_exact_function() -> None:
    """All of it is one input of the table; what inputs lose by their rounding counts all the same."""
    op = ir.Function("log_sigmoid", -12.0, 12.0, 1e-3, 1.0, 0.0)
    model = declare(ir.Model(chain(op, low=-0.001, high=0.0), {}), fractional_bits=8)
    x = {"x": np.full((1, 4), -0.001)}
    exact = reference.run(model, x)["y"]
    nearest = np.abs(1.5 * 2.0**-8 + np.abs(exact - reference.run(model, {"x": np.zeros((1, 4))})["y"]))
    assert (output_errors(model)["y"] >= nearest).all()


def test_the_error_bound_can_stay_private() -> None:
    model = declare(constant(chain(ir.Linear(4, 4))), publish_error_bound=False)
    assert model.architecture.precision.error_bound is None


# -- calibration -----------------------------------------------------------------------------------

DEEP = chain(*[op for _ in range(5) for op in (ir.Linear(8, 8), ir.Relu())], ir.Linear(8, 1), shape=(8,))


def test_calibration_trusts_what_was_seen() -> None:
    """Weights of mixed sign: intervals explode, values do not."""
    model = random_model(DEEP, 1)
    few = rows(DEEP, 64, 2)
    with pytest.raises(PrecisionError):
        declare(model, comparison_bits=23)
    trusted = declare(model, comparison_bits=23, calibration=few)
    precision = trusted.architecture.precision
    assert (precision.basis, precision.comparison_bits) == ("calibrated", 23)
    exact = reference.run(trusted, few)["y"]
    bounds = analyse(trusted, few)
    program = compile_program(trusted.architecture)
    last = program.reveals()[0][0].index
    assert (bounds[last].low <= exact).all()
    assert (exact <= bounds[last].high).all()
    assert (np.abs(plain.run(trusted, few)["y"] - exact) <= bounds[last].error).all()


@given(architectures(max_nodes=6), seeds, st.sampled_from([1.0, 2.0, 5.0]))
def test_calibrated_bounds_are_what_was_seen_and_a_margin(
    architecture: ir.Architecture, seed: int, margin: float
) -> None:
    model = random_model(with_all_shown(architecture), seed)
    x = rows(architecture, 5, seed)
    values, slack = reference.run(model, x), float_errors(model)
    bounds = analyse(model, x, margin)
    given_ = {i.name for i in architecture.inputs}
    program = compile_program(model.architecture)
    for step, op in program.reveals():
        if op.output in given_:
            continue
        low, high = values[op.output].min(0), values[op.output].max(0)
        spare = (margin - 1) * np.maximum(np.abs(low), np.abs(high))
        bound = bounds[step.index]
        # the ends and, margin - 1 times, what is added to them
        off = margin * (4 * slack[op.output] + (bound.error if rounds_constants(program) else 0.0))
        assert (np.abs(bound.low - (low - spare)) <= off).all()
        assert (np.abs(bound.high - (high + spare)) <= off).all()


def test_calibration_checks_its_rows() -> None:
    model = random_model(DEEP, 1)
    for wrong in ({}, {"x": np.full((3, 8), 7.0)}, {"x": np.zeros((3, 7))}):
        with pytest.raises(InputError):
            declare(model, calibration=wrong)


def test_calibration_on_no_rows_is_refused() -> None:
    with pytest.raises(InputError):
        declare(random_model(DEEP, 1), calibration={"x": np.zeros((0, 8))})


# -- inputs ----------------------------------------------------------------------------------------

TWO = ir.Architecture(
    (ir.Input("a", (2, 3), -1.0, 1.0), ir.Input("b", (3,), 0.0, 255.0)),
    (),
    (ir.Output("y", "a"), ir.Output("z", "b")),
)
GOOD = {"a": np.zeros((4, 2, 3)), "b": np.zeros((4, 3))}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"c": np.zeros(3)}, "there is no input 'c'"),
        ({"a": None}, "dtype object"),
        ({"a": np.zeros((4, 3, 2))}, "'a' has shape"),
        ({"a": np.zeros(6)}, "'a' has shape"),
        ({"a": np.zeros((1, 4, 2, 3))}, "'a' has shape"),
        ({"a": np.float64(0)}, "'a' has shape"),
        ({"a": np.zeros((4, 2, 3), dtype=complex)}, "dtype complex"),
        ({"a": np.full((4, 2, 3), "0")}, "dtype"),
        ({"a": np.zeros((4, 2, 3), dtype="datetime64[s]")}, "dtype"),
        ({"a": np.zeros((4, 2, 3), dtype=object)}, "dtype object"),
        ({"a": np.full((4, 2, 3), np.nan)}, "NaN"),
        ({"a": np.full((4, 2, 3), np.inf)}, "NaN or infinity"),
        ({"a": np.full((4, 2, 3), -np.inf)}, "NaN or infinity"),
        ({"a": np.full((4, 2, 3), np.nextafter(1.0, 2.0))}, "24 of 24 values lie outside"),
        ({"b": np.full((4, 3), -1, dtype=np.int8)}, "12 of 12 values lie outside"),
        ({"b": np.full((4, 3), 256, dtype=np.int64)}, "12 of 12 values lie outside"),
        ({"b": np.zeros((5, 3))}, "different batch sizes"),
        ({"b": np.zeros((0, 3))}, "different batch sizes"),
    ],
)
def test_an_input_is_refused(change: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        check_inputs(TWO, {**GOOD, **change})
    assert type(caught.value) is InputError


def test_a_missing_input_is_refused() -> None:
    for name in GOOD:
        with pytest.raises(InputError, match=f"{name!r} is missing"):
            check_inputs(TWO, {k: v for k, v in GOOD.items() if k != name})


def test_a_ragged_input_is_refused() -> None:
    with pytest.raises(InputError):
        check_inputs(TWO, {**GOOD, "b": [[1, 2, 3], [1, 2]]})


def test_an_owner_brings_its_own_only() -> None:
    assert list(check_inputs(TWO, {"b": GOOD["b"]}, {"b"})) == ["b"]
    with pytest.raises(InputError, match="no input 'a'"):
        check_inputs(TWO, GOOD, {"b"})
    with pytest.raises(InputError, match="'b' is missing"):
        check_inputs(TWO, {}, {"b"})
    assert check_inputs(TWO, {}, set()) == {}


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, np.int8, np.uint8, np.int64, bool])
def test_real_inputs_of_any_kind(dtype: type) -> None:
    for batch in (0, 1, 3):
        x = check_inputs(TWO, {"a": np.ones((batch, 2, 3), dtype), "b": np.ones((batch, 3), dtype)})
        for name, value in x.items():
            assert value.dtype == np.float64
            assert value.flags.c_contiguous
            assert value.shape == (batch, *{"a": (2, 3), "b": (3,)}[name])
    one = check_inputs(TWO, {"a": np.ones((2, 3), dtype), "b": np.ones(3, dtype)})
    assert {k: v.shape for k, v in one.items()} == {"a": (1, 2, 3), "b": (1, 3)}
    turned = check_inputs(TWO, {"a": np.ones((3, 2, 4), dtype).T, "b": [[1, 2, 3]] * 4})
    assert turned["a"].flags.c_contiguous


def test_the_ends_of_a_range_belong_to_it() -> None:
    x = check_inputs(TWO, {"a": np.full((1, 2, 3), -1.0), "b": np.full((1, 3), 255)})
    assert x["a"].min() == -1
    assert x["b"].max() == 255


def test_no_message_holds_a_value() -> None:
    """How far a value lies outside is its owner's secret."""
    with pytest.raises(InputError) as caught:
        check_inputs(TWO, {**GOOD, "b": np.full((4, 3), 8675309.0)})
    assert "8675309" not in f"{caught.value} {caught.value.hint}"
