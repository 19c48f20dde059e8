"""Models whose activations become polynomials: the fit, the graph, the tuning, what is told, the file."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import privinfer
from privinfer.backends import plain
from privinfer.errors import ConfigError, InputError, ModelUnsupported, PrecisionError
from privinfer.graph import (
    activations,
    chebyshev,
    finetune,
    functions,
    ir,
    minimax,
    ranges,
    reference,
    torch_run,
)
from privinfer.graph.to_onnx import to_onnx
from tests.support.bounds import output_errors, output_float_errors
from tests.support.strategies import random_model
from tests.support.strategies import rows as rows_of


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads of tests that run beside each other wait for each other."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    if torch:
        torch.set_num_threads(1)
    yield
    if torch:
        torch.set_num_threads(before)


N, I, O = ir.Node, ir.Input, ir.Output  # noqa: E741


def chain(source: ir.Input, *ops: ir.Op) -> ir.Architecture:
    names = [source.name, *(f"n{k}" for k in range(len(ops)))]
    nodes = tuple(N(names[k + 1], op, (names[k],)) for k, op in enumerate(ops))
    return ir.Architecture((source,), nodes, (O("y", names[-1]),))


# -- the fit -----------------------------------------------------------------------------------------


def test_best_fits_that_are_known() -> None:
    """|x| on [-1, 1] by a parabola: x**2 + 1/8 (Bernstein); x**3 by a line: 3/4 x, off by 1/4.

    Coefficients are as exact as the grid is fine, the error as its square.
    """
    fine = np.pi / (minimax.GRID - 1)
    c, error = minimax.fit(lambda x: np.maximum(x, 0.0), -1.0, 1.0, 3)
    np.testing.assert_allclose(c, (1 / 16 + 1 / 4, 1 / 2, 1 / 4), atol=fine)  # the cubic term is zero
    assert error == pytest.approx(1 / 16, rel=1e-5)
    c, error = minimax.fit(lambda x: x**3, -1.0, 1.0, 1)
    np.testing.assert_allclose(c, (0.0, 0.75), atol=fine)
    assert error == pytest.approx(0.25, rel=1e-5)


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "gelu", "silu", "softplus", "erf"])
@pytest.mark.parametrize("degree", [1, 3, 7, 15, 31])
def test_fits_are_near_the_best(name: str, degree: int) -> None:
    """De la Vallee-Poussin: no polynomial does better than the least of degree + 2 alternating errors."""
    fn, low, high = functions.get(name), -8.0, 4.0
    c, error = minimax.fit(fn, low, high, degree)
    x = np.linspace(low, high, 20_001)
    left = fn(x) - chebyshev.evaluate(low, high, c, x)
    assert np.abs(left).max() <= error * 1.001 + 1e-13
    if error > 1e-9:
        runs = np.split(left, np.flatnonzero(np.diff(np.sign(left))) + 1)
        peaks = sorted(float(np.abs(r).max()) for r in runs)
        assert len(peaks) >= degree + 2
        assert peaks[-(degree + 2)] >= 0.98 * error


def test_a_polynomial_fits_itself() -> None:
    c, error = minimax.fit(lambda x: 1 + 2 * x - x**2, -2.0, 6.0, 5)
    assert error < 1e-12
    assert len(c) == 3


def test_the_least_degree() -> None:
    fn = functions.get("sigmoid")
    c, error = minimax.smallest(fn, -8.0, 8.0, 1e-3)
    assert error <= 1e-3
    assert all(minimax.fit(fn, -8.0, 8.0, d)[1] > 1e-3 for d in range(1, len(c) - 1))


# -- bounds of polynomials ---------------------------------------------------------------------------


def test_derivatives_are_bounded() -> None:
    """Bounds hold on intervals inside and around the range, and are tight where these are short."""
    rng = np.random.default_rng(3)
    for degree in (1, 2, 5, 31):
        c = rng.normal(size=degree + 1)
        low, high = -3.0, 5.0
        known = functions.get(chebyshev.name(low, high, tuple(c)))
        lo = rng.uniform(low - 0.5, high, 200)
        hi = lo + rng.choice([0.0, 1e-3, 0.5, 3.0], 200)
        for k in (1, 2, 3, 4):
            d = np.polynomial.Chebyshev(c, (low, high)).deriv(k)
            x = lo + (hi - lo) * np.linspace(0, 1, 101)[:, None]
            most = np.abs(d(x)).max(axis=0)
            bound = known.bound(k, lo, hi)
            assert (bound >= most * (1 - 1e-9)).all()
            short = hi == lo
            size = np.polynomial.Chebyshev(np.abs(c), (low, high)).deriv(k)(high + 0.5)
            assert (bound[short] <= most[short] + 2e-9 * size + 1e-12).all()


@pytest.mark.parametrize("text", ["", "1.0", "1 2", "2 1 1 1", "0 inf 1 1", "0 1 nan 1", "a b c d", "0 1  1"])
def test_names_of_polynomials_that_say_nothing(text: str) -> None:
    with pytest.raises(ModelUnsupported):
        functions.get(f"polynomial {text}")
    with pytest.raises(ModelUnsupported):
        functions.register(f"polynomial {text}", np.sin)


@pytest.mark.parametrize(
    "c",
    [(0.5, 1.0), (0.0, 0.0, 1.0), (0.3, -20.0, 5.0, 40.0), tuple(0.8**k for k in range(32)), (1e-9, 1e-9)],
)
@pytest.mark.parametrize("reach", [1.0, 8.0])
def test_fixed_point_keeps_its_bound(c: tuple[float, ...], reach: float) -> None:
    """On an input, which needs no clamp, and behind a layer, over the whole range."""
    x = np.linspace(-reach, reach, 4001)[:, None]
    weights = {"n0": {"weight": np.eye(1) * 0.999, "bias": np.zeros(1)}}
    for ops, own in (((), {}), ((ir.Linear(1, 1),), weights)):
        model = ranges.declare(
            ir.Model(chain(I("x", (1,), -reach, reach), *ops, ir.Polynomial(-reach, reach, c)), own)
        )
        exact, bound = reference.run(model, {"x": x})["y"], output_errors(model)["y"]
        error = np.abs(plain.run(model, {"x": x})["y"] - exact)
        assert (error <= bound + output_float_errors(model)["y"]).all()
        again = ir.Architecture.from_bytes(model.architecture.to_bytes())
        assert again == model.architecture


def test_values_have_to_stay_inside() -> None:
    p = ir.Polynomial(-2.0, 2.0, (0.0, 1.0))
    with pytest.raises(PrecisionError, match=r"'n0'.*\[-3, 3\] go beyond \[-2, 2\] of polynomial"):
        ranges.declare(ir.Model(chain(I("x", (1,), -3.0, 3.0), p), {}))
    deep = chain(I("x", (1,), -3.0, 3.0), ir.Linear(1, 1), p)
    model = ir.Model(deep, {"n0": {"weight": np.eye(1), "bias": np.zeros(1)}})
    with pytest.raises(PrecisionError, match=r"'n1': values may lie in \[-3, 3\].*declared on \[-2, 2\]"):
        ranges.declare(model)
    held = ranges.declare(model, calibration={"x": [[-1.9], [1.9]]})
    assert held.architecture.precision.basis == "calibrated"
    with pytest.raises(PrecisionError, match=r"'n1': values of your rows lie in \[-1, 2.01\]"):
        ranges.declare(model, calibration={"x": [[-1.0], [2.01]]})


# -- the graph ---------------------------------------------------------------------------------------


def test_curves_of_several_nodes_are_one() -> None:
    """x * clip(x + 3, 0, 6) / 6, beside a curve of another value, and a square."""
    clip = ir.Piecewise((0.0, 6.0), (0.0, 0.0), (1.0, -1.0))
    nodes = (
        N("d", ir.Linear(3, 3), ("x",)),
        N("s", ir.Shift(3.0), ("d",)),
        N("c", clip, ("s",)),
        N("m", ir.Mul(), ("d", "c")),
        N("h", ir.Multiply(1 / 6), ("m",)),
        N("e", ir.Linear(3, 3), ("h",)),
        N("r", ir.Relu(), ("e",)),
        N("a", ir.Add(), ("r", "h")),
        N("q", ir.Mul(), ("a", "a")),
        N("k", ir.Add(), ("d", "d")),
    )
    a = ir.Architecture((I("x", (3,)),), nodes, (O("y", "q"), O("z", "k")))
    found = activations.find(a)
    assert {n: (c.source, c.name) for n, c in found.items()} == {
        "h": ("d", "piecewise mul"), "r": ("e", "relu"), "q": ("a", "mul"),
    }  # fmt: skip
    x = np.linspace(-5, 5, 11)
    np.testing.assert_allclose(found["h"](x), x * np.clip(x + 3, 0, 6) / 6, atol=1e-12)
    np.testing.assert_allclose(found["q"](x), x * x)


def test_what_has_no_polynomial_is_named() -> None:
    row, x = I("x", (4,), -1.0, 1.0), {"x": np.zeros((9, 4))}
    for op, why in (
        (ir.Softmax(1), "'n0'.*Softmax"),
        (ir.Max(1), "'n0'.*Max"),
        (ir.ArgMax(1), "'n0'.*ArgMax"),
        (ir.Normalize(1e-5), "'n0'.*Normalize"),
        (ir.Piecewise((0.0,), (1.0,), (0.0,)), "'n0'.*jumps"),
    ):
        with pytest.raises(ModelUnsupported, match=why):
            privinfer.to_polynomial(ir.Model(chain(row, op), {}), x, epochs=0)
    rows = {"x": np.linspace(-1, 1, 40).reshape(10, 4)}
    with pytest.raises(ModelUnsupported, match=r"'n0' \(relu\).* 31 or less.*within 0.0001 on \[-2, 2\]"):
        privinfer.to_polynomial(ir.Model(chain(row, ir.Relu()), {}), rows, error=1e-4, epochs=0)


def test_maxima_become_means_where_asked() -> None:
    model = ir.Model(chain(I("x", (3, 4), -1.0, 1.0), ir.Max(2)), {})
    x = rows_of(model.architecture, 8, 1)
    made, report = privinfer.to_polynomial(model, x, epochs=0, average_pools=True)
    np.testing.assert_allclose(reference.run(made, x)["y"], x["x"].mean(axis=2))
    assert report.activations == ()


def test_ranges_have_powers_of_two_for_ends() -> None:
    for low, high, wanted in (
        (-3.0, 3.0, (-4, 4)),
        (-3.3, 0.1, (-8, 1)),
        (0.0, 1.0, (-0.25, 2)),
        (2, 9, (-2, 16)),
    ):
        assert activations.around(low, high, 1.25) == wanted


# -- torch -------------------------------------------------------------------------------------------


def everything() -> ir.Architecture:
    """All operators that torch has here."""
    nodes = (
        N("conv", ir.Conv2d(2, 4, (3, 2), (2, 1), (1, 0, 0, 1), (1, 2), 2), ("x",)),
        N("scale", ir.Scale(1, 4), ("conv",)),
        N("relu", ir.Relu(), ("scale",)),
        N("pool", ir.AvgPool2d((2, 2), (1, 2), (1, 0, 0, 1), False), ("relu",)),
        N("turn", ir.Transpose((2, 1, 3)), ("pool",)),
        N("flat", ir.Reshape((-1,)), ("turn",)),
    )
    a = ir.Architecture((I("x", (2, 6, 7), -1.0, 1.0),), nodes[:-1], (O("y", "turn"),))
    size = math.prod(a.shapes()["turn"])
    nodes = (
        *nodes[:-1],
        N("flat", ir.Reshape((size,)), ("turn",)),
        N("linear", ir.Linear(size, 6), ("flat",)),
        N("curve", ir.Polynomial(-4.0, 6.0, (0.3, 1.0, -0.2, 0.1, 0.05)), ("linear",)),
        N("tanh", ir.Function("tanh", -6.0, 6.0, 1e-4, 0.0, 0.0), ("curve",)),
        N("half", ir.Multiply(0.5), ("tanh",)),
        N("more", ir.Shift(0.25), ("half",)),
        N("pick", ir.Gather(1, (5, -1, 0, 0, 2, 1)), ("more",)),
        N("both", ir.Concat(1), ("pick", "linear")),
        N("sum", ir.Add(), ("pick", "more")),
        N("times", ir.Mul(), ("sum", "pick")),
        N("a", ir.Reshape((2, 3)), ("times",)),
        N("b", ir.Transpose((2, 1)), ("a",)),
        N("product", ir.MatMul(), ("a", "b")),
        N("total", ir.Sum(2), ("product",)),
    )
    return ir.Architecture((I("x", (2, 6, 7), -1.0, 1.0),), nodes, (O("y", "total"), O("z", "both")))


def test_torch_computes_what_the_reference_does() -> None:
    torch = pytest.importorskip("torch")
    model = random_model(everything(), 4, 0.3)
    x = rows_of(model.architecture, 5, 2)
    weights = {n: {k: torch.from_numpy(v) for k, v in own.items()} for n, own in model.parameters.items()}
    got = torch_run.run(torch, model.architecture, weights, {k: torch.from_numpy(v) for k, v in x.items()})
    for name, y in reference.run(model, x).items():
        np.testing.assert_allclose(got[name].numpy(), y, rtol=1e-9, atol=1e-12)
    with pytest.raises(ModelUnsupported, match="'n0' \\(Softmax\\)"):
        torch_run.run(torch, chain(I("x", (4,)), ir.Softmax(1)), {}, {"x": torch.zeros(1, 4)})


def test_orders_of_rows() -> None:
    first = finetune.shuffled(1000, 1, 0)
    assert sorted(first) == list(range(1000))
    np.testing.assert_array_equal(first, finetune.shuffled(1000, 1, 0))
    assert (first != finetune.shuffled(1000, 1, 1)).any()
    assert (first != finetune.shuffled(1000, 2, 0)).any()


# -- the whole ---------------------------------------------------------------------------------------


def circles(count: int, seed: int) -> tuple[dict[str, ir.Array], Any]:
    """Points inside and outside of a ring: no line separates them."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (count, 2))
    return {"x": x}, (np.hypot(*x.T) > 0.7).astype(int)


def ring(
    *, activation: ir.Op, classes: int = 1, last: tuple[ir.Op, ...] = (), steep: float = 4.0
) -> ir.Model:
    """A net that knows the ring: hinges in sixteen directions, added up, against their sum on the ring."""
    angles = np.arange(16) * (2 * np.pi / 16)
    hinge = reference.apply(activation, {}, [steep * (0.7 * np.cos(np.linspace(0, 2 * np.pi, 999)) - 0.25)])
    level = 16 * 4 / steep * float(hinge.mean())
    a = chain(I("x", (2,), -1.0, 1.0), ir.Linear(2, 16), activation, ir.Linear(16, classes), *last)
    signs = np.linspace(-1, 1, classes)[None, :] if classes > 1 else np.ones((1, 1))
    return ir.Model(
        a,
        {
            "n0": {
                "weight": steep * np.stack([np.cos(angles), np.sin(angles)]),
                "bias": np.full(16, -steep / 4),
            },
            "n2": {"weight": np.full((16, 1), 4 / steep) * signs, "bias": -level * signs[0]},
        },
    )


@pytest.mark.parametrize(
    ("model", "degree"),
    [
        (ring(activation=ir.Relu()), 3),
        (ring(activation=ir.Function("softplus", -12, 12, 1e-4, 0.0, 1.0), steep=2.0), 2),
        (ring(activation=ir.Function("silu", -12, 12, 1e-4, 0.0, 1.0), classes=2), 5),
        (ring(activation=ir.Relu(), last=(ir.Function("sigmoid", -12, 12, 1e-4, 0.0, 0.0),)), 4),
    ],
)
def test_tuned_models_decide_as_before(model: ir.Model, degree: int) -> None:
    pytest.importorskip("torch")
    x, y = circles(600, 1)
    model = ranges.declare(model)
    made, report = privinfer.to_polynomial(model, x, labels=y, degree=degree, epochs=20, rate=2e-2)
    ops = [type(n.op) for n in made.architecture.nodes]
    assert not {ir.Relu, ir.Function, ir.Piecewise} & set(ops)
    assert [n.op.degree for n in made.architecture.nodes if isinstance(n.op, ir.Polynomial)] == [
        a.degree for a in report.activations
    ]
    assert all(a.degree <= degree for a in report.activations)
    assert report.held_out == 120
    assert report.trained == 480
    assert report.before is not None
    assert report.after is not None
    assert report.after >= report.before - 0.05
    assert report.agreement >= 0.9
    assert report.agreement >= report.agreement_untuned - 0.01
    # every row given lies in the declared ranges, and fixed point agrees with float64
    got, exact = plain.run(made, x), reference.run(made, x)
    for name in exact:
        assert np.abs(got[name] - exact[name]).max() <= made.architecture.precision.error_bound
    for activation in report.activations:
        assert activation.low <= activation.seen[0] <= activation.seen[1] <= activation.high
        assert activation.node in str(report)
        for end in (activation.low, activation.high):
            assert math.frexp(abs(end))[0] == 0.5
    assert report.basis == made.architecture.precision.basis
    assert (report.basis == "interval") == all(a.proven for a in report.activations)


def test_the_same_seed_gives_the_same_weights() -> None:
    pytest.importorskip("torch")
    x, y = circles(300, 2)
    made = [
        privinfer.to_polynomial(ring(activation=ir.Relu()), x, labels=y, epochs=2, seed=s)[0]
        for s in (5, 5, 6)
    ]
    first, again, other = (m.parameters["n0"]["weight"] for m in made)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_high_degrees_need_no_tuning() -> None:
    """Without torch: the difference is that of the fits, carried through the layers."""
    model = ring(activation=ir.Function("softplus", -12, 12, 1e-4, 0.0, 1.0), steep=2.0)
    x, _ = circles(200, 3)
    made, report = privinfer.to_polynomial(model, x, error=1e-4, epochs=0)
    assert report.difference <= 16 * 2 * 1e-4
    assert report.before is report.after is None
    assert report.agreement == 1.0
    (activation,) = report.activations
    assert activation.error <= 1e-4
    assert (
        minimax.fit(functions.get("softplus"), activation.low, activation.high, activation.degree - 1)[1]
        > 1e-4
    )
    assert made.architecture.precision.basis == report.basis == "interval"  # 2 sqrt(2) + 1 / 2 < 4
    assert activation.proven


def test_ranges_that_intervals_do_not_prove_are_calibrated() -> None:
    x, _ = circles(200, 3)
    x = {"x": x["x"] / 8}
    made, report = privinfer.to_polynomial(ring(activation=ir.Relu()), x, epochs=0)
    assert made.architecture.precision.basis == report.basis == "calibrated"
    assert not report.activations[0].proven


def test_options_and_labels() -> None:
    x, y = circles(50, 1)
    model = ring(activation=ir.Relu())
    for wrong in ({"degree": 0}, {"degree": 32}, {"degree": 2.0}, {"error": 0.0}, {"epochs": -1},
                  {"held_out": 1.0}, {"held_out": 0.0}, {"rate": 0.0}):  # fmt: skip
        with pytest.raises(ConfigError):
            privinfer.to_polynomial(model, x, **wrong)
    for labels in (y[:-1], y + 1, y + 0.5, {"z": y}, ["a"] * 50):
        with pytest.raises(InputError):
            privinfer.to_polynomial(model, x, labels=labels, epochs=0)
    with pytest.raises(InputError, match="too few"):
        privinfer.to_polynomial(model, {"x": x["x"][:3]}, epochs=0)


@pytest.mark.parametrize(
    "name", ["elu", "hardswish", "mish", "leaky_relu", "hardtanh", "selu", "log_sigmoid"]
)
def test_activations_people_use(name: str) -> None:
    """From torch, whatever number of nodes they come as: one curve each, which is the module's."""
    torch = pytest.importorskip("torch")
    zoo = importlib.import_module("tests.support.zoo")
    exhibit = zoo.ZOO[f"mlp {name}"]
    model = privinfer.from_torch(exhibit.build(), exhibit.shapes, exhibit.ranges)
    curves = activations.find(model.architecture)
    assert len(curves) == 2
    x = np.linspace(-6.0, 6.0, 101)
    wanted = zoo.ACTIVATIONS[name]()(torch.from_numpy(x)).numpy()
    for curve in curves.values():
        # beyond reach of their tables, functions go on with lines that are 1e-5 off
        np.testing.assert_allclose(curve(x), wanted, atol=2e-5)
    made, report = privinfer.to_polynomial(model, exhibit.rows(16, 1), degree=15, epochs=0)
    assert [type(n.op).__name__ for n in made.architecture.nodes] == ["Linear", "Polynomial"] * 2 + ["Linear"]
    assert len(report.activations) == 2


# -- the file ----------------------------------------------------------------------------------------


def test_onnx_and_back() -> None:
    pytest.importorskip("onnx")
    nodes = tuple(n for n in everything().nodes if n.name != "pick")
    nodes = tuple(
        N(n.name, ir.Polynomial(-8.0, 8.0, (0.1, 1 / 3)), n.inputs)
        if isinstance(n.op, ir.Function)
        else N(n.name, n.op, tuple("more" if i == "pick" else i for i in n.inputs))
        for n in nodes
    )
    a = ir.Architecture((I("x", (2, 6, 7), -1.0, 1 / 3),), nodes, (O("y", "total"), O("z", "both")))
    model = random_model(a, 9, 0.3)
    x = rows_of(a, 4, 5)
    for architecture in (a, chain(I("x", (3, 4)), ir.Linear(4, 2), ir.Gather(1, (2, 0)), ir.Sum(2))):
        model = random_model(architecture, 9, 0.3)
        x = rows_of(architecture, 4, 5)
        back = privinfer.from_onnx(to_onnx(model).SerializeToString(), calibration=x, comparison_bits="auto")
        assert back.architecture.inputs == architecture.inputs
        before, after = reference.run(model, x), reference.run(back, x)
        assert before.keys() == after.keys()
        for name in before:
            np.testing.assert_allclose(after[name], before[name], rtol=1e-12, atol=1e-12)
        polynomials = [
            [(n.name, n.op) for n in m.architecture.nodes if isinstance(n.op, ir.Polynomial)]
            for m in (model, back)
        ]
        assert polynomials[0] == polynomials[1]


def test_what_is_not_written() -> None:
    pytest.importorskip("onnx")
    with pytest.raises(ModelUnsupported, match=r"'n0'.*Softmax"):
        to_onnx(ir.Model(chain(I("x", (4,)), ir.Softmax(1)), {}))


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"low": -1.0, "high": 1.0},
        {"low": -1.0, "high": 1.0, "coefficients": [1.0]},
        {"low": -1.0, "high": 1.0, "coefficients": [1.0] * 33},
        {"low": 1.0, "high": -1.0, "coefficients": [1.0, 1.0]},
        {"low": -1.0, "high": 1.0, "coefficients": [1.0, math.nan]},
        {"low": -math.inf, "high": 1.0, "coefficients": [1.0, 1.0]},
        {"low": [-1.0, 0.0], "high": 1.0, "coefficients": [1.0, 1.0]},
        {"low": "x", "high": 1.0, "coefficients": [1.0, 1.0]},
        {"low": -1.0, "high": 1.0, "coefficients": ["a", "b"]},
        {"low": -1.0, "high": 1.0, "coefficients": [1.0, 1.0], "more": 1.0},
    ],
)
def test_hostile_attributes(attributes: dict[str, Any]) -> None:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    node = helper.make_node("Polynomial", ["x"], ["y"], name="curve", domain="privinfer", **attributes)
    info = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["b", 3]) for n in "xy"]
    graph = helper.make_graph([node], "g", info[:1], info[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("privinfer", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    with pytest.raises((ModelUnsupported, ConfigError), match="curve"):
        privinfer.from_onnx(proto)


def test_attributes_in_single_precision() -> None:
    """As another exporter may write them."""
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    node = helper.make_node(
        "Polynomial", ["x"], ["y"], domain="privinfer", low=-4.0, high=4.0, coefficients=[0.5, 1.0, 0.25]
    )
    info = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["b", 3]) for n in "xy"]
    graph = helper.make_graph([node], "g", info[:1], info[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("privinfer", 1)]
    model = privinfer.from_onnx(helper.make_model(graph, opset_imports=opsets, ir_version=8), {"x": (-4, 4)})
    assert model.architecture.nodes[0].op == ir.Polynomial(-4.0, 4.0, (0.5, 1.0, 0.25))
    unknown = helper.make_node("Spline", ["x"], ["y"], name="s", domain="privinfer")
    graph = helper.make_graph([unknown], "g", info[:1], info[1:])
    with pytest.raises(ModelUnsupported, match="'s' \\(Spline\\): not yet"):
        privinfer.from_onnx(helper.make_model(graph, opset_imports=opsets, ir_version=8))
