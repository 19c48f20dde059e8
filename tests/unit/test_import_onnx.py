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

from privinfer.errors import ConfigError, ModelUnsupported
from privinfer.graph import ir, reference
from privinfer.graph.from_onnx import from_onnx

onnx = pytest.importorskip("onnx")
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
        ([n("Neg", "x", "h"), n("Neg", "h")], IMG, {}, ["Multiply"]),
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
    assert ops(compare(build(nodes, inputs, weights))) == expected


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
    with pytest.raises(ModelUnsupported, match=r"node 'y' \(Relu\): not yet: the padding of node 'h'"):
        from_onnx(build([pad, n("Relu", "h")], IMG, {"p": weights["p"]}))
    with pytest.raises(ModelUnsupported, match=r"node 'h' \(Pad\): not yet: padding right before an output"):
        from_onnx(build([pad], IMG, {"p": weights["p"]}, outputs=["h"]))


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
