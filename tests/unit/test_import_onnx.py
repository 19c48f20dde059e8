from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import privinfer
from privinfer.backends import plain
from privinfer.errors import ConfigError
from privinfer.graph import ir, reference
from privinfer.graph.from_onnx import from_onnx

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnx.reference")
ort = pytest.importorskip("onnxruntime")

FLOAT, INT = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64

# float32 loses at most one unit in the last place, 2**-23, for each of the terms of a sum; no sum here has
# more than 800, and the values of a layer are compared on the scale of its largest one
TOLERANCE = 800 * 2.0**-23

rng = np.random.default_rng(7)


def w(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def n(op: str, inputs: str, output: str = "y", **attrs: Any) -> Any:
    return onnx.helper.make_node(op, ["" if i == "-" else i for i in inputs.split()], [output], **attrs)


def constant(name: str, value: Any, dtype: Any = np.float32) -> Any:
    return n("Constant", "", name, value=onnx.numpy_helper.from_array(np.asarray(value, dtype=dtype)))


def build(
    nodes: Sequence[Any],
    inputs: Mapping[str, Sequence[int | str]],
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    outputs: Sequence[str] = ("y",),
    opset: int = 17,
    listed: bool = False,
) -> Any:
    infos = [onnx.helper.make_tensor_value_info(k, FLOAT, list(s)) for k, s in inputs.items()]
    tensors = [onnx.numpy_helper.from_array(v, k) for k, v in (weights or {}).items()]
    if listed:
        infos += [onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in tensors]
    shown = [onnx.helper.make_tensor_value_info(o, FLOAT, None) for o in outputs]
    graph = onnx.helper.make_graph(list(nodes), "g", infos, shown, tensors)
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", opset)], ir_version=3 if listed else 8
    )


def compare(proto: Any, batches: Sequence[int] = (1, 3)) -> ir.Model:
    """Import, and hold the reference's answers against onnxruntime's."""
    model = from_onnx(proto)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options)
    for batch in batches:
        feeds = {i.name: w(batch, *i.shape) for i in model.architecture.inputs}
        expected = dict(zip([o.name for o in proto.graph.output], session.run(None, feeds), strict=True))
        got = reference.run(model, feeds)
        assert list(got) == list(expected)
        for name, want in expected.items():
            assert got[name].shape == want.shape
            limit = TOLERANCE * max(1.0, float(np.abs(want).max()))
            np.testing.assert_allclose(got[name], want, rtol=0, atol=limit)
    assert ir.Architecture.from_bytes(model.architecture.to_bytes()) == model.architecture
    return model


def ops(model: ir.Model) -> list[str]:
    return [type(node.op).__name__ for node in model.architecture.nodes]


IMG: dict[str, Sequence[int | str]] = {"x": ("N", 4, 6, 8)}
VEC: dict[str, Sequence[int | str]] = {"x": ("N", 6)}
SEQ: dict[str, Sequence[int | str]] = {"x": ("N", 5, 6)}


@pytest.mark.parametrize(
    ("nodes", "inputs", "weights", "expected"),
    [
        ([n("Gemm", "x w b", transB=1)], VEC, {"w": w(3, 6), "b": w(3)}, ["Linear"]),
        ([n("Gemm", "x w b", alpha=0.5, beta=2.0)], VEC, {"w": w(6, 3), "b": w(1, 3)}, ["Linear"]),
        ([n("Gemm", "x w b")], VEC, {"w": w(6, 3), "b": w(1)}, ["Linear"]),
        ([n("Gemm", "x w")], VEC, {"w": w(6, 3)}, ["Linear"]),
        ([n("MatMul", "x w")], VEC, {"w": w(6, 2)}, ["Linear"]),
        ([n("MatMul", "x w")], SEQ, {"w": w(6, 2)}, ["Linear"]),
        ([n("MatMul", "x w")], SEQ, {"w": w(1, 6, 2)}, ["Linear"]),
        ([n("MatMul", "x w")], SEQ, {"w": w(6)}, ["Linear", "Reshape"]),
        ([n("MatMul", "x w", "h"), n("Add", "h b")], VEC, {"w": w(6, 2), "b": w(2)}, ["Linear"]),
        ([n("MatMul", "x w", "h"), n("Add", "b h")], SEQ, {"w": w(6, 2), "b": w(1, 1, 2)}, ["Linear"]),
        ([n("MatMul", "x w", "h"), n("Sub", "b h")], SEQ, {"w": w(6, 2), "b": w(1)}, ["Linear"]),
        ([n("MatMul", "x w", "h"), n("Mul", "h b")], SEQ, {"w": w(6, 2), "b": w(5, 1)}, ["Linear", "Scale"]),
        ([n("Add", "x b")], SEQ, {"b": w(5, 1)}, ["Scale"]),
        ([n("Add", "x b")], SEQ, {"b": np.tile(w(5, 1), (1, 6))}, ["Reshape", "Scale", "Reshape"]),
        ([n("Sub", "x b")], VEC, {"b": w()}, ["Scale"]),
        ([n("Mul", "b x")], IMG, {"b": w(4, 1, 1)}, ["Scale"]),
        ([n("Div", "x b")], IMG, {"b": w(1, 4, 1, 1) + 4}, ["Scale"]),
        ([n("Mul", "x b")], IMG, {"b": w()}, ["Scale"]),
        ([constant("b", 0.5), n("Mul", "x b")], IMG, {}, ["Multiply"]),
        ([constant("b", [4.0]), n("Div", "x b")], IMG, {}, ["Multiply"]),
        ([constant("b", w(4, 1, 1)), n("Mul", "x b")], IMG, {}, ["Scale"]),
        ([n("Constant", "", "b", value_float=3.0), n("Mul", "b x")], IMG, {}, ["Multiply"]),
        ([n("Neg", "x", "h"), n("Neg", "h")], IMG, {}, []),
        ([n("MatMul", "w x")], SEQ, {"w": w(2, 5)}, ["Transpose", "Linear", "Transpose"]),
        ([n("Add", "x b")], SEQ, {"b": w(5, 6)}, ["Reshape", "Scale", "Reshape"]),
        ([n("ReduceMean", "x", "h", axes=[1]), n("Add", "h x")], VEC, {},
         ["Reshape", "AvgPool2d", "Reshape", "Gather", "Add"]),
        ([constant("b", 0.5), n("Add", "x b")], IMG, {}, ["Shift"]),
        ([constant("b", 0.5), n("Sub", "b x")], IMG, {}, ["Multiply", "Shift"]),
        ([n("Mul", "x x")], SEQ, {}, ["Mul"]),
        ([n("Transpose", "x", "t", perm=[0, 2, 1]), n("MatMul", "x t")], SEQ, {}, ["Transpose", "MatMul"]),
        ([n("Gather", "x k", axis=1)], SEQ, {"k": np.array(-1)}, ["Gather", "Reshape"]),
        ([n("Gather", "x k", axis=2)], SEQ, {"k": np.array([[0, 1], [5, -6]])}, ["Gather", "Reshape"]),
        ([n("Concat", "x k x", axis=1)], {"x": (1, 6)}, {"k": w(1, 2)}, ["Gather", "Scale", "Concat"]),
        ([n("Conv", "x w b", pads=[1, 2], strides=[2])], SEQ, {"w": w(2, 5, 3), "b": w(2)},
         ["Reshape", "Conv2d", "Reshape"]),
        ([n("AveragePool", "x", kernel_shape=[4, 4], strides=[3, 3], ceil_mode=1)], IMG, {},
         ["Gather", "Reshape", "Sum"] * 2 + ["Reshape", "Scale", "Reshape"]),
        ([n("MaxPool", "x", kernel_shape=[2, 2], strides=[2, 2])], IMG, {}, ["Gather", "Reshape", "Max"] * 2),
        ([n("GlobalMaxPool", "x")], IMG, {}, ["Reshape", "Max", "Reshape"]),
        ([n("Sigmoid", "x")], VEC, {}, ["Function"]),
        ([n("Sigmoid", "x", "s"), n("Mul", "x s")], VEC, {}, ["Function"]),
        ([n("PRelu", "x s")], IMG, {"s": w(4, 1, 1)}, ["Relu", "Multiply", "Add", "Scale", "Add"]),
        ([n("Clip", "x l h")], VEC, {"l": np.float32(-1).reshape(()), "h": np.float32(1).reshape(())},
         ["Scale", "Relu", "Scale", "Relu", "Scale"]),
        ([constant("l", -1.0), constant("h", 1.0), n("Clip", "x l h")], VEC, {}, ["Piecewise"]),
        ([n("Softmax", "x")], SEQ, {}, ["Softmax"]),
        ([n("LayerNormalization", "x g b")], SEQ, {"g": w(6), "b": w(6)}, ["Normalize", "Scale"]),
        ([n("InstanceNormalization", "x g b")], IMG, {"g": w(4), "b": w(4)},
         ["Reshape", "Normalize", "Reshape", "Scale"]),
        ([n("ArgMax", "x", "i", axis=1), n("Cast", "i", to=FLOAT)], VEC, {}, ["ArgMax", "Reshape"]),
        ([n("ReduceMax", "x", axes=[1, 3], keepdims=0)], IMG, {}, ["Transpose", "Reshape", "Max"]),
        ([n("ReduceL1", "x", axes=[-1])], SEQ, {}, ["Piecewise", "Sum", "Reshape"]),
        ([n("ReduceLogSumExp", "x", axes=[-1])], SEQ, {}, ["Softmax", "Gather", "Gather", "Multiply", "Add"]),
        ([n("ConvTranspose", "x w b", strides=[2, 2], pads=[1, 0, 1, 1], output_padding=[1, 0], group=2)],
         IMG, {"w": w(4, 3, 3, 2), "b": w(6)}, ["Gather", "Gather", "Conv2d"]),
        ([n("Pad", "x p", mode="reflect")], IMG, {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}, ["Gather"] * 2),
        ([n("Pad", "x p c")], SEQ, {"p": np.array([0, 1, 0, 0, 0, -2]), "c": np.float32(1.5).reshape(())},
         ["Shift", "Gather", "Gather", "Shift"]),
        ([n("Resize", "x - s", mode="linear")], IMG, {"s": np.array([1, 1, 2, 0.5], np.float32)},
         ["Transpose", "Linear", "Transpose", "Linear"]),
        ([n("Einsum", "x w", equation="btd,kd->bkt")], SEQ, {"w": w(2, 6)}, ["Linear", "Transpose"]),
        ([n("Einsum", "x x", equation="...id,...jd->...ij")], SEQ, {}, ["Transpose", "MatMul"]),
        ([n("Where", "m x k")], SEQ, {"m": np.tril(np.ones((5, 6), bool)), "k": w(1)},
         ["Reshape", "Scale", "Reshape"]),
        ([n("Greater", "x k", "c"), n("Where", "c x k")], VEC, {"k": w(6)},
         ["Scale", "Piecewise", "Scale", "Mul", "Scale"]),
        ([n("Relu", "x")], IMG, {}, ["Relu"]),
        ([n("Relu", "x", "h"), n("Add", "h x")], IMG, {}, ["Relu", "Add"]),
        ([n("Relu", "x", "h"), n("Sub", "h x")], IMG, {}, ["Relu", "Multiply", "Add"]),
        ([constant("l", 0.0), n("Clip", "x l")], IMG, {}, ["Relu"]),
        ([n("Relu", "x", "h"), n("Concat", "h x", axis=1)], IMG, {}, ["Relu", "Concat"]),
        ([n("Relu", "x", "h"), n("Concat", "h x h", axis=-1)], IMG, {}, ["Relu", "Concat"]),
        ([n("Flatten", "x")], IMG, {}, ["Reshape"]),
        ([n("Flatten", "x", axis=-3)], IMG, {}, ["Reshape"]),
        ([n("Transpose", "x", perm=[0, 3, 1, 2])], IMG, {}, ["Transpose"]),
        ([n("Reshape", "x s")], IMG, {"s": np.array([0, -1, 8])}, ["Reshape"]),
        ([n("Reshape", "x s")], IMG, {"s": np.array([-1, 4, 48])}, ["Reshape"]),
        ([constant("s", [1], np.int64), n("Unsqueeze", "x s")], VEC, {}, ["Reshape"]),
        ([n("Reshape", "x s", "h"), n("Flatten", "h")], IMG, {"s": np.array([0, 24, 8])}, ["Reshape"]),
        ([n("Identity", "x", "h"), n("Relu", "h")], IMG, {}, ["Relu"]),
        ([n("Dropout", "x", "h"), n("Relu", "h")], IMG, {}, ["Relu"]),
        ([n("Cast", "x", "h", to=FLOAT), n("Relu", "h")], IMG, {}, ["Relu"]),
        ([n("GlobalAveragePool", "x")], IMG, {}, ["AvgPool2d"]),
        ([n("ReduceMean", "x", axes=[2, 3])], IMG, {}, ["AvgPool2d"]),
        ([n("ReduceMean", "x", axes=[-1, -2], keepdims=0)], IMG, {}, ["AvgPool2d", "Reshape"]),
        ([n("ReduceMean", "x", axes=[3])], IMG, {}, ["AvgPool2d"]),
        ([n("ReduceMean", "x", axes=[1], keepdims=0)], SEQ, {}, ["Reshape", "AvgPool2d", "Reshape"]),
        ([n("ReduceMean", "x", axes=[1], keepdims=0)], VEC, {}, ["Reshape", "AvgPool2d", "Reshape"]),
        ([n("AveragePool", "x", kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)], IMG, {}, ["AvgPool2d"]),
        ([n("AveragePool", "x", kernel_shape=[3, 3], auto_pad="SAME_UPPER")], IMG, {}, ["AvgPool2d"]),
    ],
)  # fmt: skip
def test_operator(
    nodes: list[Any], inputs: dict[str, Sequence[int | str]], weights: dict[str, Any], expected: list[str]
) -> None:
    fixed = [1] if all(s[0] == 1 for s in inputs.values()) else (1, 3)
    assert ops(compare(build(nodes, inputs, weights), fixed)) == expected


def norm(c: int) -> dict[str, np.ndarray]:
    return {"g": w(c), "bb": w(c), "m": w(c), "v": np.abs(w(c)) + np.float32(0.1)}


@pytest.mark.parametrize(
    ("nodes", "inputs", "weights", "expected"),
    [
        ([n("BatchNormalization", "x g bb m v", epsilon=1e-3)], IMG, norm(4), ["Scale"]),
        ([n("BatchNormalization", "x g bb m v")], VEC, norm(6), ["Scale"]),
        (
            [n("Conv", "x w", "h"), n("BatchNormalization", "h g bb m v", "k"), n("Relu", "k")],
            IMG, {"w": w(5, 4, 3, 3), **norm(5)}, ["Conv2d", "Relu"],
        ),
        (
            [n("Gemm", "x w", "h"), n("BatchNormalization", "h g bb m v")],
            VEC, {"w": w(6, 5), **norm(5)}, ["Linear"],
        ),
        (
            [n("MatMul", "x w", "h"), n("BatchNormalization", "h g bb m v")],
            SEQ, {"w": w(6, 3), **norm(5)}, ["Linear", "Scale"],
        ),
        (  # somebody else reads the convolution's result
            [n("Conv", "x w", "h"), n("BatchNormalization", "h g bb m v", "k"), n("Add", "h k")],
            IMG, {"w": w(5, 4, 3, 3), **norm(5)}, ["Conv2d", "Scale", "Add"],
        ),
        (
            [n("Conv", "x w", "h"), n("Mul", "h s", "k"), n("Add", "k b", "l"), n("Div", "l d")],
            IMG, {"w": w(5, 4, 3, 3), "s": w(5, 1, 1), "b": w(), "d": w(1, 5, 1, 1) + 4}, ["Conv2d"],
        ),
        (
            [n("Conv", "x w", "h"), constant("c", 0.25), n("Mul", "h c", "k"), n("Neg", "k")],
            IMG, {"w": w(5, 4, 3, 3)}, ["Conv2d"],
        ),
    ],
)  # fmt: skip
def test_folding(
    nodes: list[Any], inputs: dict[str, Sequence[int | str]], weights: dict[str, Any], expected: list[str]
) -> None:
    assert ops(compare(build(nodes, inputs, weights))) == expected


@settings(max_examples=60, deadline=None)
@given(
    groups=st.integers(1, 3),
    per_group=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.tuples(st.integers(5, 9), st.integers(5, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.one_of(
        st.sampled_from(["VALID", "SAME_UPPER", "SAME_LOWER"]), st.tuples(*[st.integers(0, 2)] * 4)
    ),
    bias=st.booleans(),
)
def test_convolution(groups, per_group, size, kernel, strides, dilations, pads, bias) -> None:  # type: ignore[no-untyped-def]
    cin, cout = (groups * c for c in per_group)
    attrs: dict[str, Any] = {"auto_pad": pads} if isinstance(pads, str) else {"pads": pads}
    # onnxruntime 1.x computes SAME padding with dilation in a way of its own
    assume(not (isinstance(pads, str) and pads != "VALID" and dilations != (1, 1)))
    node = n("Conv", "x w b" if bias else "x w", strides=strides, dilations=dilations, group=groups, **attrs)
    weights = {"w": w(cout, per_group[0], *kernel)} | ({"b": w(cout)} if bias else {})
    assert ops(compare(build([node], {"x": ("N", cin, *size)}, weights))) == ["Conv2d"]


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    kernel=st.tuples(st.integers(2, 4), st.integers(2, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.one_of(
        st.sampled_from(["VALID", "SAME_UPPER", "SAME_LOWER"]), st.tuples(*[st.integers(0, 1)] * 4)
    ),
    count=st.booleans(),
)
def test_average_pooling(size, kernel, strides, pads, count) -> None:  # type: ignore[no-untyped-def]
    attrs: dict[str, Any] = {"auto_pad": pads} if isinstance(pads, str) else {"pads": pads}
    # onnxruntime fails where SAME padding would have to fill the gaps between windows with less than nothing
    assume(not str(pads).startswith("SAME") or all(map(operator.le, strides, kernel)))
    node = n("AveragePool", "x", kernel_shape=kernel, strides=strides, count_include_pad=int(count), **attrs)
    assert ops(compare(build([node], {"x": ("N", 2, *size)}))) == ["AvgPool2d"]


@settings(max_examples=30, deadline=None)
@given(
    lead=st.lists(st.integers(1, 3), max_size=2),
    fan=st.tuples(st.integers(1, 9), st.integers(1, 5)),
)
def test_matmul_with_any_leading_axes(lead: list[int], fan: tuple[int, int]) -> None:
    proto = build([n("MatMul", "x w")], {"x": ("N", *lead, fan[0])}, {"w": w(*fan)})
    assert ops(compare(proto)) == ["Linear"]


def test_padding_joins_the_convolution_and_the_pooling_after_it() -> None:
    weights = {"w": w(5, 4, 3, 3), "p": np.array([0, 0, 1, 2, 0, 0, 0, 1])}
    pad = n("Pad", "x p", "h")
    model = compare(build([pad, n("Conv", "h w", pads=[1, 0, 0, 0])], IMG, weights))
    assert model.architecture.nodes[0].op.padding == (2, 2, 0, 1)  # type: ignore[union-attr]
    pool = n("AveragePool", "h", kernel_shape=[3, 3])
    assert ops(compare(build([pad, pool], IMG, {"p": weights["p"]}))) == ["AvgPool2d"]
    assert ops(compare(build([pad, n("Relu", "h")], IMG, {"p": weights["p"]}))) == ["Gather"] * 2 + ["Relu"]
    assert ops(compare(build([pad], IMG, {"p": weights["p"]}, outputs=["h"]))) == ["Gather"] * 2


def test_shape_arithmetic_of_exporters_is_computed() -> None:
    """x.view(x.size(0), -1), as torch wrote it for opset 11."""
    nodes = [
        n("Shape", "x", "s"),
        constant("zero", 0, np.int64),
        n("Gather", "s zero", "b", axis=0),
        n("Unsqueeze", "b", "bu", axes=[0]),
        constant("rest", [-1], np.int64),
        n("Concat", "bu rest", "to", axis=0),
        n("Cast", "to", "to64", to=INT),
        n("Reshape", "x to64"),
    ]
    assert compare(build(nodes, IMG, opset=11)).architecture.nodes[0].op == ir.Reshape((192,))
    nodes[-4:] = [
        n("Slice", "s one four", "tail"),
        n("Concat", "bu tail", "to", axis=0),
        n("Reshape", "x to", "h"),
        n("Relu", "h"),
    ]
    weights = {"one": np.array([1]), "four": np.array([4])}
    assert ops(compare(build(nodes, IMG, weights, opset=11))) == ["Relu"]


def test_weights_listed_as_inputs_by_old_exporters() -> None:
    """As CNTK 2.5 wrote an MNIST network (opset 7), with the pooling that privinfer can run."""
    nodes = [
        n("Reshape", "w2 s2", "w2r"),
        n("Conv", "x w1", "c", kernel_shape=[5, 5], auto_pad="SAME_UPPER"),
        n("Add", "c b1", "p"),
        n("Relu", "p", "r"),
        n("AveragePool", "r", "a", kernel_shape=[2, 2], strides=[2, 2]),
        n("Reshape", "a s1", "f"),
        n("MatMul", "f w2r", "m"),
        n("Add", "m b2"),
    ]
    weights = {
        "w1": w(8, 1, 5, 5), "b1": w(8, 1, 1), "w2": w(8, 4, 4, 10), "b2": w(1, 10),
        "s1": np.array([1, 128]), "s2": np.array([128, 10]),
    }  # fmt: skip
    proto = build(nodes, {"x": (1, 1, 8, 8)}, weights, opset=7, listed=True)
    model = compare(proto, [1])
    assert [i.name for i in model.architecture.inputs] == ["x"]
    assert ops(model) == ["Conv2d", "Relu", "AvgPool2d", "Reshape", "Linear"]


def mlp() -> Any:
    """The form of a three-layer perceptron exported by PyTorch 1.7."""
    nodes, weights, sizes = [], {}, (4, 24, 24, 3)
    value = "input"
    for k, (a, b) in enumerate(itertools.pairwise(sizes), 1):
        weights |= {f"layer{k}.weight": w(b, a) / math.sqrt(a), f"layer{k}.bias": w(b)}
        gemm = n(
            "Gemm", f"{value} layer{k}.weight layer{k}.bias", f"{5 + 2 * k}", alpha=1.0, beta=1.0, transB=1
        )
        gemm.name = f"Gemm_{2 * k - 2}"
        nodes.append(gemm)
        if k < 3:
            nodes.append(n("Relu", f"{5 + 2 * k}", f"{6 + 2 * k}"))
            nodes[-1].name = f"Relu_{2 * k - 1}"
        value = f"{6 + 2 * k}"
    nodes[-1].output[0] = "output"
    weights = {k: v.astype(np.float32) for k, v in weights.items()}
    return build(nodes, {"input": ("batch_size", 4)}, weights, outputs=["output"], opset=11)


def test_perceptron_from_file_bytes_and_proto(tmp_path: Path) -> None:
    proto = mlp()
    model = compare(proto, [1, 3, 150])
    assert [node.name for node in model.architecture.nodes] == [
        "Gemm_0",
        "Relu_1",
        "Gemm_2",
        "Relu_3",
        "Gemm_4",
    ]
    assert [o.name for o in model.architecture.outputs] == ["output"]
    path = tmp_path / "mlp.onnx"
    path.write_bytes(proto.SerializeToString())
    digest = model.architecture.digest()
    for source in (path, str(path), path.read_bytes(), proto):
        assert from_onnx(source).architecture.digest() == digest


def test_ranges_and_precision_travel_with_the_model() -> None:
    precision = ir.Precision(fractional_bits=12)
    model = from_onnx(mlp(), {"input": (0, 8)}, precision=precision)
    (source,) = model.architecture.inputs
    assert (source.low, source.high) == (0.0, 8.0)
    assert model.architecture.precision == precision
    (source,) = from_onnx(mlp()).architecture.inputs
    assert (source.low, source.high) == ir.DEFAULT_RANGE


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"age": (0, 1)}, "range is given for 'age', which is no input"),
        ({"layer1.weight": (0, 1)}, "range is given for 'layer1.weight', which is no input"),
        ({"input": (1, 0)}, "range of input 'input' is not a finite interval"),
        ({"input": (0, math.inf)}, "range of input 'input' is not a finite interval"),
        ({"input": (math.nan, 1)}, "range of input 'input' is not a finite interval"),
        ({"input": (0,)}, "range of input 'input' is not a pair"),
        ({"input": 3}, "range of input 'input' is not a pair"),
    ],
)
def test_ranges_that_do_not_fit(ranges: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_onnx(mlp(), ranges)


def test_several_inputs_and_outputs() -> None:
    nodes = [n("MatMul", "a w", "h"), n("Add", "h b", "s"), n("Relu", "s", "r")]
    proto = build(nodes, {"a": ("N", 4), "b": ("N", 3)}, {"w": w(4, 3)}, outputs=["r", "s"])
    model = compare(proto)
    assert [i.name for i in model.architecture.inputs] == ["a", "b"]
    assert [o.name for o in model.architecture.outputs] == ["r", "s"]


def test_trained_scalars_stay_out_of_the_architecture() -> None:
    """Two models that differ in an initializer of one element have one digest."""
    digests = {
        from_onnx(build([n("Mul", "x k")], IMG, {"k": np.float32(value).reshape(())})).architecture.digest()
        for value in (0.5, 0.75)
    }
    assert len(digests) == 1


def test_folding_does_not_depend_on_weights() -> None:
    """A bias of equal values folds along the same axis as any other."""
    seen = set()
    for b in (w(5, 1), np.ones((5, 1), np.float32), np.zeros((5, 1), np.float32)):
        seen.add(from_onnx(build([n("Add", "x b")], SEQ, {"b": b})).architecture.digest())
    assert len(seen) == 1


def test_ranges_travel_in_the_file():
    proto = build([n("Relu", "x")], {"x": ["batch", 3]})
    onnx.helper.set_model_props(
        proto, {"privinfer.range.x": "-2:5", "privinfer.range.other": "0:1", "author": "us"}
    )
    (source,) = from_onnx(proto).architecture.inputs
    assert (source.low, source.high) == (-2.0, 5.0)
    (source,) = from_onnx(proto, {"x": (0, 1)}).architecture.inputs
    assert (source.low, source.high) == (0.0, 1.0)  # what is typed wins
    onnx.helper.set_model_props(proto, {"privinfer.range.x": "wide"})
    with pytest.raises(ConfigError, match=r"range of input 'x' is not LOW:HIGH"):
        from_onnx(proto)


def test_split_gives_several_values() -> None:
    nodes = [
        onnx.helper.make_node("Split", ["x"], ["a", "b", "c"], axis=2),
        n("Sub", "a c", "d"),
        n("Mul", "d b"),
    ]
    assert ops(compare(build(nodes, SEQ))) == ["Gather", "Gather", "Gather", "Multiply", "Add", "Mul"]


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.integers(1, 2),
    pads=st.one_of(
        st.sampled_from(["VALID", "SAME_UPPER", "SAME_LOWER"]), st.tuples(*[st.integers(0, 1)] * 4)
    ),
    ceil=st.booleans(),
)
def test_max_pooling(size, kernel, strides, dilation, pads, ceil) -> None:  # type: ignore[no-untyped-def]
    attrs: dict[str, Any] = {"auto_pad": pads} if isinstance(pads, str) else {"pads": pads}
    dilation = 1 if isinstance(pads, str) else dilation
    assume(all(s >= dilation * (k - 1) + 1 for s, k in zip(size, kernel, strict=True)))
    assume(isinstance(pads, str) or all(p < k for p, k in zip(pads, kernel * 2, strict=True)))
    assume(not str(pads).startswith("SAME") or all(map(operator.le, strides, kernel)))
    node = n("MaxPool", "x", kernel_shape=kernel, strides=strides, dilations=[dilation] * 2, **attrs)
    if ceil and not isinstance(pads, str):
        node.attribute.append(onnx.helper.make_attribute("ceil_mode", 1))
    compare(build([node], {"x": ("N", 2, *size)}))


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(["nearest", "linear", "cubic"]),
    where=st.sampled_from(["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"]),
    near=st.sampled_from(["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]),
    size=st.tuples(st.integers(1, 15), st.integers(1, 15)),
)
def test_resizing(kind, where, near, size) -> None:  # type: ignore[no-untyped-def]
    node = n("Resize", "x - - s", mode=kind, coordinate_transformation_mode=where, nearest_mode=near)
    compare(build([node], IMG, {"s": np.array([1, 4, *size])}), [1])


def series(kind: str, directions: int, layers: int) -> Any:
    """Recurrent layers over rows of a time series, as torch exports them with batch_first."""
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind]
    nodes, weights, wide, hidden = [n("Transpose", "x", "t0", perm=[1, 0, 2])], {}, 6, 3
    for k in range(layers):
        weights |= {
            f"w{k}": w(directions, gates * hidden, wide), f"r{k}": w(directions, gates * hidden, hidden),
            f"b{k}": w(directions, 2 * gates * hidden),
        }  # fmt: skip
        attrs: dict[str, Any] = {"linear_before_reset": 1} if kind == "GRU" else {}
        attrs["direction"] = "bidirectional" if directions == 2 else "forward"
        outputs = [f"y{k}", f"h{k}"]
        nodes += [
            onnx.helper.make_node(
                kind, [f"t{k}", f"w{k}", f"r{k}", f"b{k}"], outputs, hidden_size=3, **attrs
            ),
            n("Transpose", f"y{k}", f"p{k}", perm=[0, 2, 1, 3]),
            n("Reshape", f"p{k} to", f"t{k + 1}"),
        ]
        wide = hidden * directions
    weights["to"] = np.array([0, 0, -1])
    weights["end"] = np.array(-1)
    nodes += [n("Transpose", f"t{layers}", "all", perm=[1, 0, 2]), n("Gather", "all end", "last", axis=1)]
    nodes += [n("Transpose", f"h{layers - 1}", "state", perm=[1, 0, 2])]
    return build(nodes, SEQ, weights, outputs=["last", "all", "state"])


@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize(("directions", "layers"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_recurrent_layers(kind: str, directions: int, layers: int) -> None:
    compare(series(kind, directions, layers))


@pytest.mark.parametrize("how", ["reverse", "reset first", "peephole", "states", "relu"])
def test_recurrent_layers_of_other_kinds(how: str) -> None:
    kind = {"reset first": "GRU", "relu": "RNN"}.get(how, "LSTM")
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind]
    weights = {
        "w": w(1, gates * 3, 6),
        "r": w(1, gates * 3, 3),
        "p": w(1, 9),
        "h": w(1, 1, 3),
        "c": w(1, 1, 3),
    }
    names = {"peephole": "t w r - - - - p", "states": "t w r - - h c"}.get(how, "t w r")
    attrs: dict[str, Any] = {"direction": "reverse"} if how == "reverse" else {}
    attrs |= {"activations": ["Relu"]} if how == "relu" else {}
    nodes = [
        n("Transpose", "x", "t", perm=[1, 0, 2]),
        n(kind, names, "s", hidden_size=3, **attrs),
        n("Squeeze", "s one", "q"),
        n("Transpose", "q", perm=[1, 0, 2]),
    ]
    compare(build(nodes, SEQ, {**weights, "one": np.array([1])}), [1])


def scalar(value: float) -> np.ndarray:
    return np.float32(value).reshape(())


@pytest.mark.parametrize("public", [True, False])
def test_gelu_written_out(public: bool) -> None:
    """x * 0.5 * (1 + erf(x / sqrt 2)), with its numbers in the code or among the weights."""
    numbers = {"a": math.sqrt(2), "b": 1.0, "c": 0.5}
    nodes = [
        n("Div", "x a", "d"), n("Erf", "d", "e"), n("Add", "e b", "f"), n("Mul", "x f", "g"), n("Mul", "g c"),
    ]  # fmt: skip
    if public:
        nodes = [constant(k, v) for k, v in numbers.items()] + nodes
    model = compare(build(nodes, VEC, {} if public else {k: scalar(v) for k, v in numbers.items()}))
    assert ops(model) == ["Function"]
    assert model.architecture.nodes[0].op.name == "gelu"  # type: ignore[union-attr]


@pytest.mark.parametrize("public", [True, False])
def test_gelu_with_tanh_written_out(public: bool) -> None:
    numbers = {"a": math.sqrt(2 / math.pi), "b": 1.0, "c": 0.5, "d": 0.044715, "three": 3.0}
    nodes = [
        n("Pow", "x three", "p"), n("Mul", "p d", "q"), n("Add", "x q", "s"), n("Mul", "s a", "u"),
        n("Tanh", "u", "t"), n("Add", "t b", "f"), n("Mul", "x c", "h"), n("Mul", "h f"),
    ]  # fmt: skip
    if public:
        nodes = [constant(k, v) for k, v in numbers.items()] + nodes
    model = compare(build(nodes, VEC, {} if public else {k: scalar(v) for k, v in numbers.items()}))
    assert ops(model) == ["Function"]
    assert model.architecture.nodes[0].op.name == "gelu_tanh"  # type: ignore[union-attr]


def test_numbers_of_gelu_elsewhere_stay_secret() -> None:
    numbers = {"a": scalar(math.sqrt(2)), "b": scalar(1.0)}
    assert ops(compare(build([n("Mul", "x a", "h"), n("Add", "h b")], VEC, numbers))) == ["Scale"]


@pytest.mark.parametrize("square", ["Pow", "Mul"])
def test_layer_normalisation_written_out(square: str) -> None:
    nodes = [
        n("ReduceMean", "x", "m", axes=[-1]), n("Sub", "x m", "d"),
        n("Pow", "d two", "p") if square == "Pow" else n("Mul", "d d", "p"),
        n("ReduceMean", "p", "v", axes=[-1]), n("Add", "v eps", "s"), n("Sqrt", "s", "r"),
        n("Div", "d r", "z"), n("Mul", "z g", "k"), n("Add", "k b"),
    ]  # fmt: skip
    weights = {"two": scalar(2.0), "eps": scalar(1e-5), "g": w(6), "b": w(6)}
    assert ops(compare(build(nodes, SEQ, weights))) == ["Normalize", "Scale"]


def test_ranges_of_nodes_are_promises() -> None:
    """A logarithm of anything runs once its range is declared; what lies beyond counts as the end."""
    proto = build([n("MatMul", "x w", "h"), n("Log", "h")], VEC, {"w": np.abs(w(6, 2))})
    model = from_onnx(proto, {"x": (0, 1), "y": (0.5, 8)})
    assert ops(model) == ["Linear", "Piecewise", "Function"]
    x = rng.uniform(0, 1, (50, 6))
    h = np.clip(x @ proto_weight(proto), 0.5, 8)
    np.testing.assert_allclose(reference.run(model, {"x": x})["y"], np.log(h), atol=1e-12)
    with pytest.raises(ConfigError, match="'z', which is no input and no node"):
        from_onnx(proto, {"z": (0.5, 8)})
    with pytest.raises(ConfigError, match="range of node 'y' is not a finite interval"):
        from_onnx(proto, {"y": (8, 0.5)})


def proto_weight(proto: Any) -> np.ndarray:
    return np.asarray(onnx.numpy_helper.to_array(proto.graph.initializer[0]), dtype=np.float64)


def test_functions_of_the_caller() -> None:
    node = onnx.helper.make_node("MyAct", ["x"], ["y"], domain="com.example")
    proto = build([node], VEC)
    proto.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    model = privinfer.from_onnx(proto, {"x": (-3, 3)}, functions={"MyAct": (np.arcsinh, -4, 4)})
    assert ops(model) == ["Function"]
    x = rng.uniform(-3, 3, (20, 6))
    bound = model.architecture.precision.error_bound
    assert bound is not None
    np.testing.assert_allclose(plain.run(model, {"x": x})["y"], np.arcsinh(x), atol=bound)
    for wrong in ((np.sin, 1, 0), (np.sin, 0), ("sin", 0, 1), (np.sin, 0, math.inf)):
        with pytest.raises(ConfigError, match="the function 'MyAct' is not"):
            from_onnx(proto, functions={"MyAct": wrong})  # type: ignore[dict-item]


def test_attention_masks_and_dead_rows() -> None:
    """A causal mask as exporters write it: minus infinity, added in front of a softmax."""
    mask = np.triu(np.full((5, 5), -np.inf, dtype=np.float32), 1)
    nodes = [
        n("Transpose", "x", "t", perm=[0, 2, 1]), n("MatMul", "x t", "s"), n("Add", "s m", "a"),
        n("Softmax", "a", "p"), n("MatMul", "p x"),
    ]  # fmt: skip
    compare(build(nodes, SEQ, {"m": mask}))


@pytest.mark.parametrize("interleaved", [0, 1])
def test_rotary_embedding(interleaved: int) -> None:
    """Held against onnx's own evaluator: onnxruntime does not know it in every version."""
    cache = {"c": np.cos(w(9, 3)), "s": np.sin(w(9, 3)), "p": np.array([[3, 0, 7, 1, 2]])}
    node = n("RotaryEmbedding", "x c s p", interleaved=interleaved)
    proto = build([node], {"x": (1, 2, 5, 6)}, cache, opset=23)
    x = w(1, 2, 5, 6)
    (want,) = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": x})
    np.testing.assert_allclose(reference.run(from_onnx(proto), {"x": x})["y"], want, atol=1e-6)
