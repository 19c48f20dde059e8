"""The lowering to fixed point: every step's ring and scale, and what the gates need of them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privinfer.backends import plain
from privinfer.errors import PrecisionError
from privinfer.graph import fixedpoint as fp
from privinfer.graph import ir, reference
from privinfer.graph.emitter import Emitter
from privinfer.graph.lower import compile_program
from privinfer.graph.ranges import declare
from tests.support.bounds import output_errors, output_float_errors
from tests.support.simulate import simulate
from tests.support.strategies import architectures, random_model

F, N = st.integers(1, 24), st.integers(5, 48)


@st.composite
def precise(draw: st.DrawFn) -> ir.Architecture:
    """An architecture under any possible precision."""
    f = draw(F)
    n = draw(st.integers(f + 4, ir.Precision.MAX_COMPARISON_BITS))
    return dataclasses.replace(draw(architectures(max_nodes=12)), precision=ir.Precision(f, n))


def check_step(program: fp.Program, step: fp.Step, exact: bool) -> None:
    """What the step's protocol takes for granted."""
    f, n = program.precision.fractional_bits, program.precision.comparison_bits
    kinds = [program.steps[i].type for i in step.inputs]
    own = step.type
    assert all(i < step.index for i in step.inputs)
    assert own.bits in (n, fp.WIDE)
    assert own.frac >= f
    match step.operation:
        case fp.Source():
            assert not kinds
            assert (own.wide, own.frac) == (True, f)
        case fp.Bilinear(op, weight_frac, shift):
            (x,) = kinds
            assert x.wide, "bilinear gates need Z_2^64"
            assert fp.MIN_WEIGHT_BITS <= weight_frac <= fp.MAX_WEIGHT_BITS
            assert own.shape == op.shape(x.shape)
            if exact:
                assert (own.wide, own.frac, shift) == (True, x.frac + weight_frac, 0)
            else:
                assert (own.bits, own.frac, shift) == (n, f, x.frac + weight_frac - f)
                assert n + shift <= fp.WIDE, "a truncating opening cuts n + s of 64 bits"
        case fp.Rectify():
            (x,) = kinds
            assert not x.wide, "comparison takes narrow values"
            assert own == fp.Type(x.shape, fp.WIDE, x.frac)
        case fp.Extend():
            (x,) = kinds
            assert not x.wide
            assert own == fp.Type(x.shape, fp.WIDE, x.frac)
        case fp.Truncate(shift, precisely):
            (x,) = kinds
            assert x.wide
            assert own == fp.Type(x.shape, n, x.frac - shift)
            assert shift >= 0
            assert precisely == (exact and shift > 0)
            assert n + shift <= fp.WIDE, "x >> s has 64 - s bits and no more"
        case fp.SumPool(op):
            (x,) = kinds
            assert own.bits == x.bits
            assert own.shape == op.shape(x.shape)
            if own.frac != x.frac:
                assert (reference.pool_divisor(op, x.shape) == 2 ** (own.frac - x.frac)).all()
        case fp.Times(shape, values, _):
            (x,) = kinds
            assert (own.bits, own.shape) == (x.bits, x.shape)
            assert math.prod(shape) == len(values)
            assert np.broadcast_shapes(shape, x.shape) == x.shape
            moved = own.frac - x.frac
            assert moved == fp.CONSTANT_BITS or (shape, values) == ((), (1 << moved,))
        case fp.Plus():
            assert len(kinds) == 2
            assert all(k == own for k in kinds)
        case fp.Join(axis):
            assert all((k.bits, k.frac) == (own.bits, own.frac) for k in kinds)
            assert own.shape == ir.Concat(axis).shape(*(k.shape for k in kinds))
        case fp.Shape(to):
            assert own == fp.Type(to, kinds[0].bits, kinds[0].frac)
            assert kinds[0].size == own.size
        case fp.Permute(order):
            assert own == fp.Type(ir.Transpose(order).shape(kinds[0].shape), kinds[0].bits, kinds[0].frac)
        case fp.Reveal():
            assert kinds == [own]
            assert not own.wide, "a wide output would show bits that nobody bounded"


@settings(max_examples=400)
@given(precise(), st.booleans())
def test_every_step_is_what_its_protocol_needs(architecture: ir.Architecture, exact: bool) -> None:
    program = compile_program(architecture, exact=exact)
    shapes = architecture.shapes()
    for k, step in enumerate(program.steps):
        assert step.index == k
        assert step.node in shapes or isinstance(step.operation, fp.Reveal)
        check_step(program, step, exact)
    assert [s.node for s in program.sources()] == [i.name for i in architecture.inputs]
    assert [(r.output, s.type.shape) for s, r in program.reveals()] == [
        (o.name, shapes[o.value]) for o in architecture.outputs
    ]
    linear = [n for n in architecture.nodes if isinstance(n.op, ir.Linear | ir.Conv2d | ir.Scale)]
    assert [(s.node, b.op) for s, b in program.bilinear()] == [(n.name, n.op) for n in linear]


HALVE = ir.AvgPool2d((2, 2), (2, 2))
GROWING = {
    # comparison bits, shape, operators; each grows the scale as far as the lowering lets it
    "two pools and a constant": (48, (4, 8, 12), (HALVE, HALVE, ir.Multiply(0.5))),
    "a constant, pools and a constant": (
        32,
        (4, 8, 12),
        (ir.Multiply(0.5), HALVE, HALVE, ir.Multiply(0.5)),
    ),
    "pools and a pool of three": (
        44,
        (4, 16, 24),
        (ir.AvgPool2d((4, 4), (4, 4)), HALVE, ir.AvgPool2d((1, 3), (1, 1))),
    ),
    "large pools of a narrow value": (
        48,
        (1, 512, 512),
        (
            ir.Conv2d(1, 1, (1, 1)),
            ir.AvgPool2d((16, 16), (16, 16)),
            ir.AvgPool2d((32, 32), (32, 32)),
            ir.Conv2d(1, 1, (1, 1)),
        ),
    ),
}


def growing(name: str) -> ir.Architecture:
    """A chain of these operators."""
    n, shape, ops = GROWING[name]
    names = ["x", *(f"n{k}" for k in range(len(ops)))]
    return ir.Architecture(
        (ir.Input("x", shape, -1.0, 1.0),),
        tuple(ir.Node(names[k + 1], op, (names[k],)) for k, op in enumerate(ops)),
        (ir.Output("y", names[-1]),),
        ir.Precision(16, n),
    )


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", GROWING)
def test_a_scale_never_outgrows_the_truncation_behind_it(name: str, exact: bool) -> None:
    """n + s <= 64: otherwise x >> s has fewer than n bits and a borrow is lost."""
    program = compile_program(growing(name), exact=exact)
    for step in program.steps:
        check_step(program, step, exact)


@pytest.mark.parametrize("exact", [False, True])
def test_large_values_of_a_grown_scale_come_out_right(exact: bool) -> None:
    """The same, end to end: where a borrow is lost, one value in four is off by 2^20."""
    a = dataclasses.replace(
        growing("two pools and a constant"), inputs=(ir.Input("x", (4, 8, 12), -(2.0**19), 2.0**19),)
    )
    model = declare(random_model(a, 0), comparison_bits=48, fractional_bits=24)
    x = {"x": np.full((2, 4, 8, 12), -(2.0**19))}
    wanted = reference.run(model, x)["y"]
    got = simulate(model, x, exact=exact).outputs["y"]
    assert (np.abs(got - wanted) <= output_errors(model)["y"] + output_float_errors(model)["y"]).all()


@given(precise(), st.booleans())
def test_equal_architectures_give_equal_programs(architecture: ir.Architecture, exact: bool) -> None:
    again = ir.Architecture.from_bytes(architecture.to_bytes())
    assert compile_program(again, exact=exact) == compile_program(architecture, exact=exact)


@given(architectures(max_nodes=10), st.integers(0, 2**32))
def test_local_steps_serve_shares_and_values_alike(architecture: ir.Architecture, seed: int) -> None:
    """f(x1) + f(x2) = f(x1 + x2) mod 2**bits, and the result is of the declared shape."""
    rng = np.random.default_rng(seed)
    program = compile_program(architecture)
    for step in program.steps:
        if not isinstance(step.operation, fp.LOCAL):
            continue
        kinds = [program.steps[i].type for i in step.inputs]
        one, two = (
            [fp.low_bits(rng.integers(0, 2**64, (2, *k.shape), dtype=np.uint64), k.bits) for k in kinds]
            for _ in range(2)
        )
        both = [fp.low_bits(a + b, k.bits) for a, b, k in zip(one, two, kinds, strict=True)]
        whole = fp.apply_local(step, both)
        assert whole.shape == (2, *step.type.shape)
        assert whole.flags.c_contiguous
        parts = fp.apply_local(step, one) + fp.apply_local(step, two)
        np.testing.assert_array_equal(fp.low_bits(parts, step.type.bits), whole)


@given(st.integers(1, 24), st.integers(4, 64), st.data())
def test_encoding_is_to_the_nearest(f: int, n: int, data: st.DataObject) -> None:
    """|decode(encode(v)) - v| <= 2^-(f+1) wherever round(v 2^f) fits n bits."""
    top = math.ldexp(1.0, n - 2 - f)
    v = np.array(data.draw(st.lists(st.floats(-top, top), min_size=1, max_size=9)))
    kind = fp.Type((v.size,), n, f)
    back = fp.decode(fp.low_bits(fp.encode(v, f), n), kind)
    half = 2.0 ** -(f + 1)
    rounding = np.abs(v) * np.finfo(np.float64).eps  # of the float that comes out, where n > 53
    assert (np.abs(back - v) <= half + rounding).all()


def test_a_constant_that_is_too_large_is_refused_by_name() -> None:
    for factor in (2.0**24, -(2.0**30)):
        a = ir.Architecture(
            (ir.Input("x", (1,)),), (ir.Node("big", ir.Multiply(factor), ("x",)),), (ir.Output("y", "big"),)
        )
        with pytest.raises(PrecisionError, match="'big'"):
            compile_program(a)


def test_an_input_keeps_its_ring_beside_a_softmax_of_it() -> None:
    """A softmax of a declared input compares in fewer bits; whatever else reads the input must not."""
    nodes = (ir.Node("p", ir.Softmax(1), ("x",)), ir.Node("y", ir.Add(), ("p", "x")))
    model = declare(
        ir.Model(ir.Architecture((ir.Input("x", (3,), -1.0, 1.0),), nodes, (ir.Output("y", "y"),)), {})
    )
    x = {"x": np.linspace(-1, 1, 30).reshape(10, 3)}
    wanted, bound = reference.run(model, x)["y"], model.architecture.precision.error_bound
    assert bound is not None
    assert np.abs(plain.run(model, x)["y"] - wanted).max() <= bound
    assert np.abs(simulate(model, x).outputs["y"] - wanted).max() <= bound


def test_rings_and_scales_do_not_mix() -> None:
    emitter = Emitter(ir.Architecture((ir.Input("x", (1,)),), (), (ir.Output("y", "x"),)), False, None)
    wide, narrow, fine = (
        emitter.emit(fp.Source("x"), (), fp.Type((1,), *kind), "x") for kind in ((64, 16), (32, 16), (32, 20))
    )
    for other in (wide, fine):
        for op in (fp.Plus(), fp.Join(1)):
            with pytest.raises(TypeError, match="rings or scales"):
                emitter.emit(op, (narrow, other), fp.Type((1,), 32, 16), "y")
