"""Plans of random models, run on slots in the clear, agree with the model in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from privinfer.backends.ckks.affine import Matrix
from privinfer.backends.ckks.diagonals import COSTS, candidates, diagonal_values, diagonalise
from privinfer.backends.ckks.layout import Layout, input_layout
from privinfer.backends.ckks.plan import Weights, make_plan
from privinfer.errors import ModelUnsupported
from privinfer.graph import ir, reference
from privinfer.protocols.ckks.parameters import Parameters
from tests.support import ckks_slots
from tests.support.strategies import avg_pool2d, conv2d, splits

SMALL = Parameters(
    1024, 7, insecure=True
)  # 512 slots, so that values of some models need several ciphertexts
LINEAR = ("Linear", "Conv2d", "Scale", "AvgPool2d", "Add", "Multiply", "Shift", "Concat", "Reshape")
KINDS = (*LINEAR, "Transpose", "Gather", "Sum", *["Polynomial"] * 5, "Mul")

shapes = st.one_of(
    st.tuples(st.integers(1, 40)),
    st.tuples(st.integers(1, 4), st.integers(1, 9)),
    st.tuples(st.integers(1, 8), st.integers(1, 12), st.integers(1, 12)),
)


@st.composite
def operators(draw: st.DrawFn, name: str, known: dict[str, ir.Shape]) -> tuple[ir.Op, tuple[str, ...]] | None:
    shape = known[name]
    kind = draw(st.sampled_from(KINDS))
    axis = draw(st.integers(1, len(shape)))
    other = draw(st.sampled_from([k for k, s in known.items() if s == shape]))
    match kind:
        case "Linear":
            return ir.Linear(shape[-1], draw(st.integers(1, 12))), (name,)
        case "Conv2d" | "AvgPool2d" if len(shape) == 3:
            return draw((conv2d if kind == "Conv2d" else avg_pool2d)(shape)), (name,)
        case "Scale":
            return ir.Scale(axis, shape[axis - 1]), (name,)
        case "Add" | "Mul":
            return (ir.Add() if kind == "Add" else ir.Mul()), (name, other)
        case "Multiply":
            return ir.Multiply(draw(st.sampled_from([-0.5, 0.25, 1.0, 0.0]))), (name,)
        case "Shift":
            return ir.Shift(draw(st.sampled_from([-0.5, 0.25, 0.0]))), (name,)
        case "Concat":
            return ir.Concat(axis), (name, other)
        case "Reshape":
            return ir.Reshape(draw(st.sampled_from(splits(int(np.prod(shape)))))), (name,)
        case "Transpose":
            return ir.Transpose(tuple(draw(st.permutations(range(1, len(shape) + 1))))), (name,)
        case "Gather":
            size = shape[axis - 1]
            picked = draw(
                st.lists(st.integers(-1, size - 1), min_size=1, max_size=6).filter(lambda p: max(p) >= 0)
            )
            return ir.Gather(axis, tuple(picked)), (name,)
        case "Sum" if len(shape) > 1:
            return ir.Sum(axis), (name,)
        case "Polynomial":
            n = draw(st.integers(2, 6))
            coefficients = draw(st.lists(st.sampled_from([0.0, 0.25, -0.5, 1.0]), min_size=n, max_size=n))
            return ir.Polynomial(
                *draw(st.sampled_from([(-4.0, 4.0), (-1.0, 1.0), (-8.0, 16.0)])), tuple(coefficients)
            ), (name,)
    return None


@st.composite
def models(draw: st.DrawFn) -> ir.Model:
    inputs = [ir.Input(f"x{k}", draw(shapes), -1.0, 1.0) for k in range(draw(st.integers(1, 3)))]
    known = {i.name: i.shape for i in inputs}
    nodes: list[ir.Node] = []
    for k in range(draw(st.sampled_from([12, 9, 6, 3, 1]))):
        names = list(known)[::-1]
        made = draw(operators(draw(st.sampled_from([names[0], *names[:2]])), known))
        if made is None:
            continue
        nodes.append(ir.Node(f"n{k}", *made))
        known[f"n{k}"] = made[0].shape(*(known[i] for i in made[1]))
    last = list(known)[-1]
    outputs = [ir.Output("y", last)]
    if draw(st.booleans()):
        outputs.append(ir.Output("z", draw(st.sampled_from(list(known)))))
    architecture = ir.Architecture(tuple(inputs), tuple(nodes), tuple(outputs))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    parameters = {
        node: {p: rng.uniform(-1, 1, shape) / max(1, np.prod(shape) ** 0.5) for p, shape in wanted.items()}
        for node, wanted in architecture.parameter_shapes().items()
    }
    return ir.Model(architecture, parameters)


def agree(model: ir.Model, parameters: Parameters | None = None) -> None:
    try:
        plan = make_plan(model.architecture, 3, 2, parameters=parameters)
    except ModelUnsupported as e:
        assume("does not depend on any input" not in str(e))
        raise
    rng = np.random.default_rng(1)
    rows = {i.name: rng.uniform(max(i.low, -1), min(i.high, 1), i.shape) for i in model.architecture.inputs}
    largest = [1.0]
    wanted = reference.run(
        model, {k: v[None] for k, v in rows.items()}, lambda _, v: largest.append(float(np.abs(v).max()))
    )
    for name, value in ckks_slots.run(plan, model, rows).items():
        assert value.shape == wanted[name][0].shape
        assert np.abs(value - wanted[name][0]).max() <= 1e-9 * max(largest)


@settings(max_examples=120, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(models())
def test_plans_compute_the_model(model: ir.Model) -> None:
    agree(model, SMALL)


@pytest.mark.parametrize("sizes", [(700, 5), (5, 700), (700, 600), (512, 512), (1500, 1)])
def test_values_of_several_ciphertexts(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    a, b = sizes
    nodes = (
        ir.Node("a", ir.Linear(a, b), ("x",)),
        ir.Node("p", ir.Polynomial(-4.0, 4.0, (0.5, 0.25, 0.25, 0.5)), ("a",)),
        ir.Node("b", ir.Linear(b, 3), ("p",)),
    )
    architecture = ir.Architecture((ir.Input("x", (a,), -1.0, 1.0),), nodes, (ir.Output("y", "b"),))
    parameters = {
        "a": {"weight": rng.normal(0, a**-0.5, (a, b)), "bias": rng.normal(size=b)},
        "b": {"weight": rng.normal(0, b**-0.5, (b, 3)), "bias": rng.normal(size=3)},
    }
    agree(ir.Model(architecture, parameters), SMALL)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_layout_of_a_result_holds_the_product(data: st.DataObject) -> None:
    """Not only the cheapest: whatever places, periods and sources there are."""
    slots = data.draw(st.sampled_from([16, 64]))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))

    def layout(size: int) -> Layout:
        width = data.draw(st.sampled_from([w for w in (1, 2, 4, 8, 16, 64, 128) if w >= size]))
        places = rng.permutation(width)[:size]
        held = Layout.at(places, slots)
        period = data.draw(
            st.sampled_from([p for p in (1, 2, 4, 8, 16, 32, 64) if held.period <= p <= slots])
        )
        return Layout.at(places, slots, period)

    sizes = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    rows = data.draw(st.integers(1, 40))
    sources, result = [layout(s) for s in sizes], layout(rows)
    dense = [
        rng.normal(size=(rows, s)) * (rng.random((rows, s)) < data.draw(st.sampled_from([0.2, 1.0])))
        for s in sizes
    ]
    matrices = []
    for m in dense:
        i, j = np.nonzero(m)
        matrices.append(Matrix(i.astype(np.int32), j.astype(np.int32), m[i, j]))
    if not any(m.count for m in matrices):
        return
    plan = diagonalise(sources, result, matrices, COSTS)
    xs = [rng.normal(size=s) for s in sizes]
    packed = [c for x, s in zip(xs, sources, strict=True) for c in s.pack(x)]
    weights = Weights(diagonal_values(matrices, plan), None)
    y = ckks_slots.product(plan, weights, packed, set(plan.rotations))
    wanted = sum(m @ x for m, x in zip(dense, xs, strict=True))
    assert np.abs(y - result.pack(wanted)).max() < 1e-9  # at every repetition, and zero everywhere else


@pytest.mark.parametrize(
    "op",
    [ir.Conv2d(4, 4, (3, 3), (2, 2), (1, 1, 1, 1)), ir.Conv2d(4, 4, (3, 3), (1, 1), (1, 1, 1, 1), groups=4)],
)
def test_every_candidate_holds_the_convolution(op: ir.Conv2d) -> None:
    from privinfer.backends.ckks.affine import trace

    rng = np.random.default_rng(3)
    shape = (4, 7, 8)
    architecture = ir.Architecture(
        (ir.Input("x", shape),), (ir.Node("c", op, ("x",)),), (ir.Output("y", "c"),)
    )
    parameters = {"c": {k: rng.normal(size=s) for k, s in op.parameters().items()}}
    model = ir.Model(architecture, parameters)
    value = next(iter(trace(architecture, parameters).segments.values())).value
    source = input_layout(shape, 512)
    x = rng.normal(size=shape)
    wanted = reference.run(model, {"x": x[None]})["y"].reshape(-1)
    tried = candidates(op.shape(shape), [source], [shape], 20)
    assert len(tried) >= 4
    for layout in tried:
        plan = diagonalise([source], layout, [value.parts["x"]], COSTS)
        weights = Weights(diagonal_values([value.parts["x"]], plan), layout.pack(value.bias))
        y = ckks_slots.product(plan, weights, list(source.pack(x.reshape(-1))), set(plan.rotations))
        assert np.abs(y - layout.pack(wanted)).max() < 1e-9
