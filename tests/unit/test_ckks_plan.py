"""Plans: packings, levels, refreshes, sizes, what is refused."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from privinfer.backends.ckks import affine
from privinfer.backends.ckks.diagonals import COSTS, classes, diagonalise
from privinfer.backends.ckks.layout import Layout, input_layout
from privinfer.backends.ckks.placing import products
from privinfer.backends.ckks.plan import Linear, Plan, make_plan, weights
from privinfer.backends.ckks.polynomial import depth
from privinfer.errors import ConfigError, ModelUnsupported, PrecisionError
from privinfer.graph import ir, reference
from privinfer.protocols.ckks import galois, masks, public_switch, refresh, relinearise
from privinfer.protocols.ckks.parameters import SECURITY, Parameters
from tests.support import ckks_slots

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "cohort"
CUBE = (2.5, 4.0, 1.7, 0.1)  # of degree 3 on [-8, 8], near a ReLU


def cube(radius: float = 8.0) -> ir.Polynomial:
    return ir.Polynomial(-radius, radius, tuple(c * radius / 8 for c in CUBE))


def three_sources() -> ir.Architecture:
    """A picture of 64 x 64, 4096 genotypes and 24 blood tests, three convolutions."""
    nodes, last = [], "xray"
    for k, (i, o, size, padding) in enumerate([(1, 8, 5, 2), (8, 16, 3, 1), (16, 32, 3, 1)]):
        nodes.append(ir.Node(f"conv{k}", ir.Conv2d(i, o, (size, size), (2, 2), (padding,) * 4), (last,)))
        nodes.append(ir.Node(f"act{k}", cube(), (f"conv{k}",)))
        last = f"act{k}"
    nodes.append(ir.Node("flat", ir.Reshape((2048,)), (last,)))
    for name, given, i, o in (("x", "flat", 2048, 64), ("d", "dna", 4096, 64), ("b", "blood", 24, 32)):
        nodes.append(ir.Node(f"{name}_fc", ir.Linear(i, o), (given,)))
        nodes.append(ir.Node(name, cube(), (f"{name}_fc",)))
    nodes += [
        ir.Node("all", ir.Concat(1), ("x", "d", "b")),
        ir.Node("fuse", ir.Linear(160, 64), ("all",)),
        ir.Node("fused", cube(), ("fuse",)),
        ir.Node("scores", ir.Linear(64, 2), ("fused",)),
    ]
    inputs = (ir.Input("xray", (1, 64, 64), 0, 1), ir.Input("dna", (4096,), 0, 2), ir.Input("blood", (24,)))
    return ir.Architecture(inputs, tuple(nodes), (ir.Output("logits", "scores"),))


def drawn(architecture: ir.Architecture, seed: int = 0) -> ir.Model:
    rng = np.random.default_rng(seed)
    parameters = {
        node: {
            p: rng.normal(0, 1 / math.sqrt(np.prod(s[1:]) if p == "weight" else 1e4), s)
            for p, s in wanted.items()
        }
        for node, wanted in architecture.parameter_shapes().items()
    }
    return ir.Model(architecture, parameters)


def chain(*ops: ir.Op, shape: ir.Shape = (8,), precision: ir.Precision | None = None) -> ir.Architecture:
    nodes = tuple(
        ir.Node(f"n{k}", op, (("x" if k == 0 else f"n{k - 1}"),) * (2 if isinstance(op, ir.Mul) else 1))
        for k, op in enumerate(ops)
    )
    return ir.Architecture(
        (ir.Input("x", shape),), nodes, (ir.Output("y", f"n{len(ops) - 1}"),), precision or ir.Precision()
    )


@pytest.fixture(scope="module")
def large() -> Plan:
    return make_plan(three_sources(), 3, 3)


@pytest.fixture(scope="module")
def demonstration() -> ir.Model:
    pytest.importorskip("onnx")
    from privinfer import from_onnx

    model = from_onnx(FOLDER / "risk.onnx")
    nodes = tuple(
        ir.Node(n.name, cube(), n.inputs) if isinstance(n.op, ir.Relu) else n
        for n in model.architecture.nodes
    )
    return ir.Model(dataclasses.replace(model.architecture, nodes=nodes), model.parameters)


# -- layouts ---------------------------------------------------------------------------------------


def test_pictures_lie_in_channel_blocks_of_padded_rows() -> None:
    layout = input_layout((3, 28, 20), 8192)
    c, y, x = np.mgrid[:3, :28, :20]
    assert np.array_equal(layout.position.reshape(3, 28, 20), c * 1024 + y * 32 + x)
    assert (layout.period, layout.ciphertexts) == (4096, 1)


def test_other_shapes_are_flattened_and_long_values_take_several_ciphertexts() -> None:
    assert np.array_equal(input_layout((3, 5), 64).position, np.arange(15))
    assert input_layout((24,), 8192).period == 32
    layout = input_layout((150,), 64)
    assert (layout.period, layout.ciphertexts) == (64, 3)
    assert np.array_equal(layout.ciphertext, np.arange(150) // 64)


def test_packing_repeats_and_unpacking_undoes_it() -> None:
    layout = Layout.at([0, 5, 2], 32)
    packed = layout.pack([[1.0, 2.0, 3.0]])
    assert packed.shape == (1, 1, 32)
    assert np.array_equal(packed[0, 0], np.tile([1, 0, 3, 0, 0, 2, 0, 0], 4))
    assert np.array_equal(layout.unpack(packed), [[1.0, 2.0, 3.0]])


def test_an_input_lies_the_same_for_every_model() -> None:
    """A fragment at rest fits a model that came later."""
    one = make_plan(chain(ir.Linear(24, 3), cube(), ir.Linear(3, 1), shape=(24,)), 3, 3)
    other = make_plan(chain(ir.Linear(24, 50), cube(4.0), ir.Linear(50, 7), shape=(24,)), 2, 1)
    assert one.inputs[0].layout.same(other.inputs[0].layout)


# -- affine segments -------------------------------------------------------------------------------


def test_structure_is_that_of_the_values() -> None:
    model = drawn(three_sources())
    public, secret = affine.trace(model.architecture), affine.trace(model.architecture, model.parameters)
    assert public.segments.keys() == secret.segments.keys()
    for name, segment in public.segments.items():
        for k, m in segment.value.parts.items():
            twin = secret.segments[name].value.parts[k]
            assert m.values is None
            assert twin.values is not None
            assert np.array_equal(m.rows, twin.rows)
            assert np.array_equal(m.columns, twin.columns)


def test_taps_outside_the_picture_are_no_entries() -> None:
    op = ir.Conv2d(1, 1, (3, 3), (1, 1), (1, 1, 1, 1))
    value = affine.trace(chain(op, shape=(1, 4, 5))).segments["y:y"].value
    assert value.parts["x"].count == (3 * 4 - 2) * (3 * 5 - 2)


def test_what_is_affine_becomes_one_matrix() -> None:
    ops = (
        ir.Conv2d(2, 4, (3, 3)),
        ir.Scale(1, 4),
        ir.AvgPool2d((2, 2), (2, 2)),
        ir.Reshape((36,)),
        ir.Linear(36, 5),
    )
    plan = make_plan(chain(*ops, shape=(2, 8, 8)), 3, 3)
    assert [type(s).__name__ for s in plan.steps] == ["Source", "Linear", "Opened"]


@pytest.mark.parametrize(
    ("op", "hint"),
    [
        (ir.Relu(), "to_polynomial"),
        (ir.Function("sigmoid", -8.0, 8.0, 1e-4), "to_polynomial"),
        (ir.Piecewise((0.0,), (1.0,), (0.0,)), "to_polynomial"),
        (ir.Max(1), "average"),
        (ir.Softmax(1), "scores"),
        (ir.ArgMax(1), "scores"),
        (ir.Normalize(1e-5), "batch normalisation"),
    ],
)
def test_what_cannot_be_computed_is_named(op: ir.Op, hint: str) -> None:
    with pytest.raises(ModelUnsupported, match="'n1'") as caught:
        make_plan(chain(ir.Linear(8, 8), op), 3, 3)
    assert hint in str(caught.value.hint)


def test_a_matrix_too_large_is_named() -> None:
    with pytest.raises(ModelUnsupported, match=r"'n0'.*67108864"):
        make_plan(chain(ir.Linear(8192, 8192), shape=(8192,)), 3, 3)


def test_two_layers_whose_product_is_too_large_stay_two_steps() -> None:
    """8192 x 8 and 8 times 1 x 1024: their product would have 2**26 entries."""
    model = drawn(chain(ir.Linear(8192, 8), ir.Reshape((8, 1)), ir.Linear(1, 1024), shape=(8192,)))
    plan = make_plan(model.architecture, 3, 3)
    assert [s.name for s in plan.steps if isinstance(s, Linear)] == ["n2:x", "y:y"]
    row = np.random.default_rng(1).normal(size=8192)
    wanted = reference.run(model, {"x": row[None]})["y"][0]
    assert np.abs(ckks_slots.run(plan, model, {"x": row})["y"] - wanted).max() < 1e-9


# -- diagonals -------------------------------------------------------------------------------------


def test_diagonals_are_those_of_the_definition() -> None:
    """A dense 4 x 32 matrix: 4 diagonals, and folds by 4, 8, 16."""
    m = affine.trace(chain(ir.Linear(32, 4), shape=(32,))).segments["y:y"].value.parts["x"]
    source, result = input_layout((32,), 64), Layout.at(np.arange(4), 64)
    assert classes([source], result, [m]).count == 4
    assert diagonalise([source], result, [m], COSTS).folds == (4, 8, 16)
    wide = Layout.at(np.arange(4), 64, 32)
    assert classes([source], wide, [m]).count == 32
    assert diagonalise([source], wide, [m], COSTS).folds == ()


# -- the two target models -------------------------------------------------------------------------


def test_three_sources_cost_little(large: Plan) -> None:
    assert (large.parameters.n, large.parameters.levels, large.linear_levels) == (16384, 6, 4)
    count = {s.node: large.diagonals[s.name].count for s in large.steps if isinstance(s, Linear)}
    for node, most in {"act0": 36, "act1": 162, "act2": 361, "x": 64, "d": 64, "b": 32, "fused": 160}.items():
        assert count[node] <= most
    assert large.seconds < 1.5
    assert len(large.rotations) <= 64
    assert make_plan(three_sources(), 3, 3).digest() == large.digest()


def test_branches_share_rounds(large: Plan) -> None:
    rounds = [{v.name.removesuffix(":t") for v in values} for values in large.refreshes]
    assert rounds == [{"act0", "d", "b"}, {"act1"}, {"act2"}, {"x"}, {"fused"}]
    for values in large.refreshes:
        for v in values:
            assert v.span.low == 3
            assert masks.fits(large.parameters, 3, 3, v.span.message_bits)
            assert v.span.message_bits == 51  # |t| <= 1 at the scale 2**50, and a margin of 2


def test_three_sources_agree_with_the_model(large: Plan) -> None:
    model = drawn(three_sources())
    rng = np.random.default_rng(1)
    rows = {i.name: rng.uniform(0, 1, i.shape) for i in model.architecture.inputs}
    wanted = reference.run(model, {k: v[None] for k, v in rows.items()})["logits"][0]
    assert np.abs(ckks_slots.run(large, model, rows)["logits"] - wanted).max() < 1e-9


def test_the_demonstration_agrees_with_its_model(demonstration: ir.Model) -> None:
    plan = make_plan(demonstration.architecture, 3, 2)
    assert (plan.parameters.n, len(plan.refreshes)) == (16384, 4)
    assert plan.seconds < 1.0
    rng = np.random.default_rng(1)
    rows = {i.name: rng.uniform(i.low / 8, i.high / 8, i.shape) for i in demonstration.architecture.inputs}
    (output,) = demonstration.architecture.outputs
    seen = [1.0]
    wanted = reference.run(
        demonstration, {k: v[None] for k, v in rows.items()}, lambda _, v: seen.append(float(np.abs(v).max()))
    )
    found = ckks_slots.run(plan, demonstration, rows)[output.name]
    assert np.abs(found - wanted[output.name][0]).max() < 1e-9 * max(seen)


# -- levels and parameters -------------------------------------------------------------------------


def test_the_smallest_ring_that_fits() -> None:
    assert make_plan(chain(ir.Linear(8, 2)), 3, 3).parameters == Parameters(8192, 3)
    assert make_plan(chain(ir.Linear(8, 2)), 3, 3).inputs[0].level == 3
    square = make_plan(chain(ir.Linear(8, 4), ir.Mul(), ir.Linear(4, 2)), 3, 3)
    assert (square.parameters, square.refreshes) == (Parameters(16384, 5), ())
    deep = make_plan(
        chain(ir.Linear(8, 4), ir.Polynomial(-1.0, 1.0, (0.0,) * 31 + (1.0,)), ir.Linear(4, 2)), 3, 3
    )
    assert deep.parameters.n == 32768


def test_every_choice_has_128_bits() -> None:
    for ops in (
        (ir.Linear(8, 2),),
        (ir.Linear(8, 4), cube(), ir.Linear(4, 2)),
        (*[ir.Linear(8, 8), cube()] * 5,),
    ):
        p = make_plan(chain(*ops), 5, 3).parameters
        assert p.log2_qp <= SECURITY[p.n]
        assert not p.insecure
    with pytest.raises(ConfigError, match="128 bits"):
        make_plan(chain(ir.Linear(8, 2)), 3, 3, parameters=Parameters(16384, 8))


def test_a_polynomial_of_degree_one_is_no_step() -> None:
    plan = make_plan(chain(ir.Linear(8, 4), ir.Polynomial(-2.0, 6.0, (0.5, 3.0)), ir.Linear(4, 2)), 3, 3)
    assert [type(s).__name__ for s in plan.steps] == ["Source", "Linear", "Opened"]


@pytest.mark.parametrize("degree", range(2, 32))
def test_depth_is_that_of_the_evaluation(degree: int) -> None:
    assert (
        affine.Activation("a", "t", (0.0,) * (degree + 1)).depth
        == depth(degree)
        == math.ceil(math.log2(degree + 1))
    )
    assert products(degree) >= depth(degree) - 1


def test_deeper_than_the_parameters_allow() -> None:
    deep = chain(ir.Linear(8, 8), cube(), ir.Linear(8, 8), cube(), ir.Linear(8, 2))
    with pytest.raises(PrecisionError, match="node 'n3' needs 5 limbs; the parameters have 3"):
        make_plan(deep, 3, 3, parameters=Parameters(8192, 3))
    # 6 limbs take a polynomial and a linear step down to the 3 limbs of a refresh; 7 one more linear step
    assert len(make_plan(deep, 3, 3, parameters=Parameters(16384, 6)).refreshes) == 2
    assert len(make_plan(deep, 3, 3, parameters=Parameters(16384, 7)).refreshes) == 1
    # 5: the polynomial's result has to be refreshed too
    names = [v.name for r in make_plan(deep, 3, 3, parameters=Parameters(16384, 5)).refreshes for v in r]
    assert names == ["n1:t", "n1", "n3:t"]
    with pytest.raises(PrecisionError, match="node 'n3' needs 5 limbs; the parameters have 4"):
        make_plan(deep, 3, 3, parameters=Parameters(16384, 4))


def test_values_too_large_for_the_masks_of_a_refresh() -> None:
    ops = (ir.Linear(8, 8), ir.Mul(), *[ir.Linear(8, 8), cube()] * 2, ir.Linear(8, 1))
    for bits in (32, 48):
        wide = chain(*ops, ir.Linear(1, 1), precision=ir.Precision(16, bits))
        assert len(make_plan(wide, 3, 3).refreshes) >= 1
    squares = chain(*[ir.Linear(8, 8), ir.Mul()] * 4, ir.Linear(8, 1), precision=ir.Precision(4, 48))
    with pytest.raises(PrecisionError, match="too large to be refreshed"):
        make_plan(squares, 3, 3, parameters=Parameters(16384, 6))


def test_many_holders_need_more_room() -> None:
    ops = chain(*[ir.Linear(8, 8), cube()] * 3, ir.Linear(8, 1))
    few, many = make_plan(ops, 3, 3), make_plan(ops, 40, 40)
    assert few.digest() != many.digest() != make_plan(ops, 40, 39).digest()
    assert many.refreshes[0][0].span.holders == 40


@pytest.mark.parametrize(("holders", "threshold"), [(3, 0), (3, 4), (0, 0)])
def test_a_threshold_has_to_fit(holders: int, threshold: int) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        make_plan(chain(ir.Linear(8, 2)), holders, threshold)


# -- what is public --------------------------------------------------------------------------------


def test_weights_fit_their_own_plan_only(large: Plan) -> None:
    with pytest.raises(ConfigError, match="another architecture"):
        next(weights(large, drawn(chain(ir.Linear(8, 2)))))


def test_sizes_are_those_of_the_protocols(large: Plan) -> None:
    p, traffic = large.parameters, large.traffic()
    sizes = {(t.phase, t.sender): t.size for t in traffic if t.receiver == "model owner"}
    assert sum(t.size for t in traffic if t.phase == "keys" and t.receiver == "model owner") == (
        relinearise.size(p)[0]
        + relinearise.size(p)[2]
        + len(large.galois_elements) * galois.size(large.linear_parameters)
    )
    for k, values in enumerate(large.refreshes):
        assert sizes[f"refresh {k + 1}", "holder"] == sum(
            v.ciphertexts * refresh.size(p, v.span) for v in values
        )
    (output,) = large.outputs
    assert sizes["outputs", "holder"] == public_switch.size(p, output.level)


def test_galois_elements_are_those_of_the_steps(large: Plan) -> None:
    used = {int(s) for d in large.diagonals.values() for s in {*d.giant, *d.baby, *d.folds}} - {0}
    assert set(large.rotations) == used
    assert large.galois_elements == tuple(pow(3, r, 2 * large.parameters.n) for r in large.rotations)


def test_a_plan_says_what_it_is(large: Plan) -> None:
    lines = large.describe()
    assert len(lines) == len(large.diagonals) + 1
    assert "5 refresh rounds" in lines[-1]
