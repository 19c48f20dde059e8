from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from privinfer.errors import ConfigError
from privinfer.graph import reference
from privinfer.graph.advise import (
    NEVER,
    NOT_YET,
    REPLACEABLE,
    SUPPORTED,
    Finding,
    Findings,
    fix,
    validate,
    verdict,
)

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

FLOAT = onnx.TensorProto.FLOAT
rng = np.random.default_rng(11)


def w(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def n(op: str, inputs: str, output: str, **attrs: Any) -> Any:
    return onnx.helper.make_node(op, inputs.split(), [output], f"{op}_{output}", **attrs)


def build(
    nodes: Sequence[Any],
    weights: dict[str, np.ndarray] | None = None,
    shape: Sequence[Any] = ("batch", 4),
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
) -> Any:
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        list(nodes), "g", [info("x", FLOAT, list(shape))], [info(o, FLOAT, ["b", None]) for o in outputs],
        [onnx.numpy_helper.from_array(v, k) for k, v in (weights or {}).items()],
    )  # fmt: skip
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=8)


def run(proto: Any, x: np.ndarray) -> list[Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    found: list[Any] = ort.InferenceSession(proto.SerializeToString(), options).run(None, {"x": x})
    return found


def same(before: Any, after: Any, x: np.ndarray) -> None:
    onnx.checker.check_model(after)
    assert [o.name for o in before.graph.output] == [o.name for o in after.graph.output]
    for a, b in zip(run(before, x), run(after, x), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


# -- validate


def test_every_node_is_listed_with_its_verdict() -> None:
    proto = build(
        [
            n("Gemm", "x w", "a"),
            n("Relu", "a", "b"),
            n("Floor", "b", "c"),
            n("RandomNormalLike", "b", "d"),
            n("Add", "c d", "e"),
            n("OneHot", "e k v", "f"),
            n("Relu", "f", "y"),
        ],
        {"w": w(4, 3), "k": np.array(3), "v": w(2)},
    )
    found = validate(proto)
    assert [f.operator for f in found] == [node.op_type for node in proto.graph.node]
    by = {f.operator: f.verdict for f in found}
    assert by["Gemm"] == SUPPORTED
    assert by["RandomNormalLike"] == NEVER
    assert by["Floor"] in (NOT_YET, REPLACEABLE)
    assert by["OneHot"] == REPLACEABLE
    assert not found.supported
    assert all(f.node for f in found)
    assert all(bool(f.advice) == (f.verdict != SUPPORTED) for f in found)


def test_a_model_that_runs_is_supported_throughout() -> None:
    found = validate(build([n("Gemm", "x w", "a"), n("Relu", "a", "y")], {"w": w(4, 3)}).SerializeToString())
    assert found.supported
    assert str(found).splitlines() == ["2 nodes: 2 supported", "supported   Gemm, Relu"]


def test_more_refusals_than_an_error_message_holds_are_all_there() -> None:
    values = ["x", *(f"v{k}" for k in range(14)), "y"]
    nodes = [n("Floor", a, b) for a, b in itertools.pairwise(values)]
    assert [f.verdict == SUPPORTED for f in validate(build(nodes))] == [False] * 15


def test_what_is_no_matter_of_a_node_is_said_of_the_model() -> None:
    found = validate(build([n("Relu", "x", "y")], shape=("batch", "n")))
    assert [f.node for f in found if f.verdict != SUPPORTED] == [""]
    assert "fixed size" in str(found)


def test_files_that_cannot_be_read_raise() -> None:
    with pytest.raises(ConfigError):
        validate(b"no model")
    with pytest.raises(ConfigError):
        fix(b"no model")


def test_verdicts_follow_from_what_a_refusal_says() -> None:
    assert verdict("not yet") == NOT_YET
    assert verdict("not yet, replace by ReLU") == REPLACEABLE
    assert verdict("never: random") == NEVER
    assert verdict("output 'y': never: its axis 0 is not the batch") == NEVER


def test_the_text_puts_what_is_worst_first() -> None:
    found = Findings(
        [
            Finding("a", "Relu", SUPPORTED),
            Finding("b", "Foo", NOT_YET, "soon"),
            Finding("c", "If", NEVER, "no"),
        ]
    )
    lines = str(found).splitlines()
    assert lines[0] == "3 nodes: 1 supported, 1 not yet, 1 never"
    assert [line.split()[0] for line in lines[1:]] == ["never", "not", "supported"]
    assert "c (If): no" in lines[1]


def test_the_listener_goes_away_and_hears_nothing_afterwards() -> None:
    before = validate(build([n("Relu", "x", "y")]))
    validate(build([n("Relu", "x", "a"), n("Relu", "a", "y")]))
    assert len(before) == 1


# -- fix, onnx


def test_what_hands_on_is_taken_out() -> None:
    proto = build(
        [
            n("Identity", "x", "i"),
            n("Gemm", "i w", "a"),
            n("Dropout", "a", "b"),
            n("Identity", "b", "c"),
            n("Relu", "c", "d"),
            n("Identity", "d", "y"),
        ],
        {"w": w(4, 3)},
    )
    fixed, done = fix(proto)
    assert [node.op_type for node in fixed.graph.node] == ["Gemm", "Relu"]
    assert [r.operator for r in done] == ["Identity", "Dropout", "Identity", "Identity"]
    assert proto.graph.node[0].op_type == "Identity"  # the model that came in stays
    same(proto, fixed, w(5, 4))


@pytest.mark.parametrize(
    "nodes",
    [
        [n("Identity", "x", "y")],
        [n("Relu", "x", "z"), n("Identity", "z", "y")],
        [n("Relu", "x", "a"), n("Identity", "a", "y"), n("Identity", "a", "z")],
        [n("Relu", "x", "a"), n("Identity", "a", "b"), n("Add", "a b", "y"), n("Identity", "b", "z")],
    ],
)
def test_outputs_keep_their_names(nodes: list[Any]) -> None:
    outputs = ("y", "z") if any("z" in node.output for node in nodes) else ("y",)
    proto = build(nodes, outputs=outputs)
    fixed, _ = fix(proto)
    same(proto, fixed, w(3, 4))


def test_dropout_that_drops_stays() -> None:
    weights = {"r": np.float32(0.5), "t": np.array(True)}
    fixed, done = fix(build([n("Dropout", "x r t", "y")], weights))
    assert [node.op_type for node in fixed.graph.node] == ["Dropout"]
    assert not done


def test_constants_are_computed_beforehand_and_stay_as_secret_as_they_were() -> None:
    scale = onnx.numpy_helper.from_array(np.float32(2.0))
    proto = build(
        [
            n("Sqrt", "v", "s"),
            n("Div", "w s", "u"),
            n("MatMul", "x u", "a"),
            n("Constant", "", "c", value=scale),
            n("Exp", "c", "e"),
            n("Mul", "a e", "y"),
        ],
        {"w": w(4, 3), "v": np.abs(w(3))},
    )
    fixed, done = fix(proto)
    assert [node.op_type for node in fixed.graph.node] == ["MatMul", "Constant", "Mul"]
    assert [t.name for t in fixed.graph.initializer] == ["u"]
    assert [r.operator for r in done] == ["Sqrt", "Div", "Exp"]
    same(proto, fixed, w(5, 4))


def test_dequantised_weights_are_weights() -> None:
    weights = {"q": np.arange(12, dtype=np.int8).reshape(4, 3), "s": np.float32(0.25), "z": np.int8(2)}
    proto = build([n("DequantizeLinear", "q s z", "w"), n("MatMul", "x w", "y")], weights)
    fixed, _ = fix(proto)
    assert validate(fixed).supported
    x = w(5, 4)  # onnxruntime itself would round x too
    np.testing.assert_allclose(run(fixed, x)[0], x @ ((weights["q"] - 2.0) * 0.25), rtol=0, atol=1e-5)


def test_random_constants_are_not_computed() -> None:
    proto = build([n("RandomNormalLike", "w", "r"), n("MatMul", "x r", "y")], {"w": w(4, 3)})
    fixed, done = fix(proto)
    assert not done
    assert validate(fixed)[0].verdict == NEVER


def test_constants_that_are_listed_as_inputs_go_with_what_read_them() -> None:
    proto = build([n("Sqrt", "v", "s"), n("Mul", "x s", "y")], {"v": np.abs(w(4))})
    proto.graph.input.append(onnx.helper.make_tensor_value_info("v", FLOAT, [4]))
    fixed, _ = fix(proto)
    assert [i.name for i in fixed.graph.input] == ["x"]


def test_the_last_softmax_goes_only_if_asked() -> None:
    proto = build([n("Gemm", "x w", "a"), n("Softmax", "a", "y")], {"w": w(4, 3)})
    assert not fix(proto)[1]
    fixed, done = fix(proto, final=True)
    assert "raw scores" in str(done)
    x = w(6, 4)
    scores = run(fixed, x)[0]
    e = np.exp(scores)
    np.testing.assert_allclose(e / e.sum(1, keepdims=True), run(proto, x)[0], atol=1e-6)


def test_a_softmax_in_the_middle_stays() -> None:
    proto = build([n("Softmax", "x", "a"), n("Gemm", "a w", "y")], {"w": w(4, 3)})
    assert not fix(proto, final=True)[1]


def test_old_opsets_are_converted() -> None:
    proto = build([n("Relu", "x", "y")], opset=6, shape=(2, 4))
    fixed, done = fix(proto)
    assert "opset 6" in str(done)
    assert validate(fixed).supported


def test_local_functions_are_put_in_line() -> None:
    function = onnx.helper.make_function(
        "local", "twice", ["a"], ["b"], [n("Add", "a a", "b")], [onnx.helper.make_opsetid("", 17)]
    )
    proto = build([onnx.helper.make_node("twice", ["x"], ["y"], domain="local")])
    proto.functions.append(function)
    proto.opset_import.append(onnx.helper.make_opsetid("local", 1))
    fixed, done = fix(proto)
    assert "twice" in str(done)
    assert validate(fixed).supported
    same(proto, fixed, w(2, 4))


def test_shapes_can_be_fixed() -> None:
    proto = build([n("Relu", "x", "y")], shape=("batch", "n"))
    fixed, done = fix(proto, shapes={"x": (1, 7)})
    assert done
    assert validate(fixed).supported
    with pytest.raises(ConfigError, match="no input"):
        fix(proto, shapes={"z": (1, 7)})
    with pytest.raises(ConfigError, match="does not have shape"):
        fix(build([n("Relu", "x", "y")]), shapes={"x": (1, 7)})


def test_fixed_models_give_what_the_reference_gives() -> None:
    from privinfer.graph.from_onnx import from_onnx

    proto = build(
        [n("Sqrt", "v", "s"), n("Div", "w s", "u"), n("MatMul", "x u", "a"), n("Dropout", "a", "y")],
        {"w": w(4, 3), "v": np.abs(w(3)) + 1},
    )
    x = w(5, 4)
    got = reference.run(from_onnx(fix(proto)[0]), {"x": x})["y"]
    np.testing.assert_allclose(got, run(proto, x)[0], atol=1e-5)


# -- torch

torch = pytest.importorskip("torch")


def test_torch_nodes_are_listed() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Linear(4, 3)

        def forward(self, x: Any) -> Any:
            y = torch.relu(self.first(x))
            return torch.linalg.det(y[:, :, None] * y[:, None, :]) + torch.rand_like(y)[:, 0]

    found = validate(Net(), {"x": (2, 4)})
    verdicts = {f.operator.removeprefix("aten."): f.verdict for f in found}
    assert verdicts["linear"] == verdicts["relu"] == SUPPORTED
    assert NEVER in verdicts.values()
    assert not found.supported


def test_torch_models_that_cannot_be_exported_are_one_finding() -> None:
    class Net(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x if x.sum() > 0 else -x

    found = validate(Net(), {"x": (2, 4)})
    assert [f.operator for f in found] == ["model"]
    with pytest.raises(ConfigError, match="shapes"):
        validate(Net())


def test_torch_modules_are_replaced_by_what_they_are_in_evaluation() -> None:
    net = torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3),
        torch.nn.SyncBatchNorm(2),
        torch.nn.Dropout2d(),
        torch.nn.GELU(),
        torch.nn.Flatten(),
        torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(8, 3)),
        torch.nn.Dropout(),
        torch.nn.Softmax(-1),
    )
    net[1].running_mean += 0.5
    net.eval()
    fixed, done = fix(net)
    assert {r.operator for r in done} == {"SyncBatchNorm", "Dropout2d", "Dropout", "ParametrizedLinear"}
    x = torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(fixed(x), net(x))
    assert validate(fixed, {"input": (1, 1, 4, 4)}).supported
    assert isinstance(net[2], torch.nn.Dropout2d)
    assert isinstance(fixed[3], torch.nn.GELU)


def test_the_last_module_goes_only_if_asked() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Sigmoid()))
    assert not fix(net)[1]
    fixed, done = fix(net, final=True)
    assert [r.node for r in done] == ["1.1"]
    x = torch.randn(2, 4)
    torch.testing.assert_close(torch.sigmoid(fixed(x)), net(x))


def test_a_dropout_of_ones_own_stays() -> None:
    class Always(torch.nn.Dropout):
        def forward(self, x: Any) -> Any:
            return torch.nn.functional.dropout(x, self.p, training=True)

    assert not fix(torch.nn.Sequential(Always()))[1]
