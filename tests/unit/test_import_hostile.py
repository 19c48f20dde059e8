"""ONNX files that privinfer refuses, and files that are broken or made to break their reader."""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privinfer.errors import ConfigError, ModelUnsupported, PrivinferError
from privinfer.graph import from_onnx as importer
from privinfer.graph import ir
from privinfer.graph.from_onnx import from_onnx
from tests.unit.test_import_onnx import FLOAT, IMG, SEQ, VEC, build, constant, mlp, n, norm, onnx, w

INT = onnx.TensorProto.INT64


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def subgraph(name: str) -> Any:
    info = onnx.helper.make_tensor_value_info(name, FLOAT, [1])
    return onnx.helper.make_graph([constant(name, [1.0])], "branch", [], [info])


BATCH = r"never: it touches the batch axis \(axis 0\)"
FINAL = "replace by leaving it off: the receiver applies it to the output"
DONE = {"kernel_shape": [2, 2], "strides": [2, 2]}

REFUSED: dict[str, tuple[Any, str]] = {
    "indices of a max pool": (
        build([onnx.helper.make_node("MaxPool", ["x"], ["h", "y"], **DONE)], IMG),
        r"node 'h' \(MaxPool\): not yet: more than one result",
    ),
    "max unpool": (build([n("MaxUnpool", "x i", **DONE)], IMG, {"i": ints(0)}), "not yet, replace by max or"),
    "top k": (
        build([onnx.helper.make_node("TopK", ["x", "k"], ["y", "i"])], VEC, {"k": ints(2)}),
        "not yet, replace by leaving it off",
    ),
    "rounding": (build([n("Floor", "x")], VEC), "not yet: whether two private numbers are exactly equal"),
    "equality": (build([n("Equal", "x k")], VEC, {"k": w(6)}), "not yet: whether two private numbers"),
    "logarithm of anything": (
        build([n("Log", "x")], VEC),
        r"node 'y' \(Log\): not yet: the range of log is not known to stay away from 0, declare what goes in:"
        r" ranges=\{'y': \(low, high\)\}",
    ),
    "exponential of anything": (
        build([n("MatMul", "x w", "h"), n("Exp", "h")], VEC, {"w": w(6, 2)}),
        r"\(Exp\): not yet: the range of exp is not known, declare what goes in",
    ),
    "power": (build([n("Pow", "x k")], VEC, {"k": np.float32(2.5).reshape(())}), "not yet: the power 2.5"),
    "logic of numbers": (
        build([n("Greater", "x k", "h"), n("Cast", "x", "b", to=9), n("And", "h b")], VEC, {"k": w(6)}),
        r"\(Cast\): not yet: a private value in another type",
    ),
    "one number normalised": (
        build([n("LayerNormalization", "x g")], {"x": ("N", 3, 1)}, {"g": w(1)}),
        "never: it normalises one number",
    ),
    "coefficients of a gate": (
        build(
            [n("RNN", "x w r", hidden_size=2, layout=1, activations=["Affine"])],
            SEQ,
            {"w": w(1, 2, 6), "r": w(1, 2, 2)},
        ),
        "not yet: activations other than",
    ),
    "norm in training mode": (
        build([n("BatchNormalization", "x g bb m v", training_mode=1)], IMG, norm(4)),
        r"never in training mode: call \.eval\(\) before the export",
    ),
    "dropout in training mode": (
        build([n("Dropout", "x r t")], VEC, {"r": np.float32(0.5).reshape(()), "t": np.array(True)}),
        r"never: dropout in training mode is random, call \.eval\(\)",
    ),
    "branch": (
        build(
            [n("If", "c", then_branch=subgraph("a"), else_branch=subgraph("b"))], VEC, {"c": np.array(True)}
        ),
        r"node 'y' \(If\): never: which steps run, or how large a result is, would depend on private data",
    ),
    "loop": (build([n("Loop", "k", body=subgraph("b"))], VEC, {"k": ints(3)}), r"\(Loop\): never"),
    "scan": (
        build([n("Scan", "x", body=subgraph("b"), num_scan_inputs=1)], VEC),
        r"\(Scan\): never: which steps run",
    ),
    "nonzero": (build([n("NonZero", "x")], VEC), r"\(NonZero\): never"),
    "unique": (build([n("Unique", "x")], VEC), r"\(Unique\): never"),
    "random": (build([n("RandomUniformLike", "x")], VEC), "never: a random result"),
    "lstm": (
        build([n("LSTM", "x w r", hidden_size=2)], SEQ, {"w": w(1, 8, 6), "r": w(1, 8, 2)}),
        "never: axis 0 of what goes in is not the batch but time, export with batch_first=True",
    ),
    "split of the batch": (build([n("Split", "x", axis=0)], VEC), BATCH),
    "gather of samples": (build([n("Gather", "x k", axis=0)], VEC, {"k": ints(0)}), BATCH),
    "slice of samples": (
        build([n("Slice", "x i j a")], VEC, {"i": ints(1), "j": ints(2), "a": ints(0)}),
        BATCH,
    ),
    "tile of samples": (build([n("Tile", "x k")], VEC, {"k": ints(2, 1)}), BATCH),
    "maximum of samples": (build([n("ReduceMax", "x", axes=[0])], VEC), BATCH),
    "softmax of samples": (build([n("Softmax", "x", axis=0)], VEC), BATCH),
    "index beyond": (build([n("Gather", "x k", axis=1)], VEC, {"k": ints(6)}), "its indices do not fit"),
    "enlarged batch": (
        build([n("Upsample", "x s")], IMG, {"s": np.array([2, 1, 1, 1], np.float32)}, opset=9),
        BATCH,
    ),
    "conv 3d": (
        build([n("Conv", "x w")], {"x": ("N", 1, 4, 4, 4)}, {"w": w(2, 1, 3, 3, 3)}),
        r"\(Conv\): not yet: convolution over three axes",
    ),
    "own domain": (
        build([onnx.helper.make_node("Magic", ["x"], ["y"], domain="com.example")], VEC),
        r"node 'y' \(Magic\): not yet",
    ),
    "product of samples": (build([n("MatMul", "x x")], {"x": (6, 6)}), "never: it sums over the batch axis"),
    "private matrices": (build([n("MatMul", "x x")], SEQ), r"\(5, 6\) @ \(5, 6\) do not fit"),
    "private weights": (build([n("Gemm", "x x")], VEC), "not yet: private values where weights belong"),
    "private divisor": (
        build([n("Div", "k x")], VEC, {"k": w(6)}),
        "not yet: the range of reciprocal is not known to stay away from 0",
    ),
    "zero divisor": (build([n("Div", "x k")], VEC, {"k": 0 * w(6)}), "never: division by zero"),
    "left operand": (build([n("MatMul", "w x")], VEC, {"w": w(2, 5)}), "never: it sums over the batch axis"),
    "values of other rank": (
        build([n("ReduceMean", "x", "h", axes=[1], keepdims=0), n("Add", "h x")], SEQ),
        r"node 'y' \(Add\): never: values with different numbers of axes move the batch axis",
    ),
    "batch axis of a constant": (build([n("Add", "x b")], VEC, {"b": w(3, 1, 6)}), "never: .* batch axis"),
    "integer weights": (
        build([n("Cast", "w", "f", to=onnx.TensorProto.INT8), n("Mul", "x f")], VEC, {"w": w(6)}),
        "not yet: weights of type int8",
    ),
    "quantised": (
        build(
            [n("QuantizeLinear", "x s z", "q"), n("DequantizeLinear", "q s z")],
            VEC,
            {"s": np.float32(1).reshape(()), "z": np.array(0, np.int8)},
        ),
        "not yet: quantised weights",
    ),
    "NaN": (build([n("MatMul", "x w")], VEC, {"w": w(6, 2) * np.float32(np.nan)}), "hold NaN or infinity"),
    "infinity": (build([n("Add", "x w")], VEC, {"w": w(6) * np.float32(np.inf)}), "hold NaN or infinity"),
    "negative variance": (
        build([n("BatchNormalization", "x g bb m v")], IMG, norm(4) | {"v": -np.ones(4, np.float32)}),
        "its factor or offset is NaN or infinite",
    ),
    "flatten of the batch": (build([n("Flatten", "x", axis=0)], IMG), BATCH),
    "flatten from axis 2": (build([n("Flatten", "x", axis=2)], IMG), BATCH),
    "reshape of the batch": (build([n("Reshape", "x s")], VEC, {"s": ints(-1, 3)}), BATCH),
    "reshape to one axis": (build([n("Reshape", "x s")], VEC, {"s": ints(-1)}), BATCH),
    "reshape to nothing": (build([n("Reshape", "x s")], VEC, {"s": ints(0, 0, 7)}), BATCH),
    "transpose of the batch": (build([n("Transpose", "x", perm=[1, 0, 2])], SEQ), BATCH),
    "reversed axes": (build([n("Transpose", "x")], SEQ), BATCH),
    "concatenation of samples": (build([n("Concat", "x x", axis=0)], VEC), BATCH),
    "mean of samples": (build([n("ReduceMean", "x", axes=[0])], VEC), BATCH),
    "mean of all": (build([n("ReduceMean", "x")], VEC), "never: over all axes it touches the batch axis"),
    "squeeze without axes": (
        build([n("Squeeze", "x")], VEC),
        "never: without axes it may touch the batch axis",
    ),
    "unsqueezed batch": (build([n("Unsqueeze", "x a")], VEC, {"a": ints(0)}), BATCH),
    "sum over the batch": (
        build([n("MatMul", "x w")], {"x": (3,)}, {"w": w(3)}),
        "never: it sums over the batch",
    ),
    "transposed left": (
        build([n("Gemm", "x w", transA=1)], {"x": (2, 6)}, {"w": w(2, 3)}),
        "never: it sums over the batch axis",
    ),
    "bias of each sample": (
        build([n("Gemm", "x w b")], {"x": (2, 6)}, {"w": w(6, 3), "b": w(2, 3)}),
        "never: its bias differs along the batch axis",
    ),
    "shapes that do not fit": (
        build([n("MatMul", "x w")], VEC, {"w": w(5, 2)}),
        r"node 'y' \(Linear\): the last axis has to hold 5 values",
    ),
    "window larger than the image": (
        build([n("Conv", "x w")], IMG, {"w": w(2, 4, 9, 9)}),
        "empty or too large",
    ),
    "huge padding": (
        build([n("Conv", "x w", pads=[1 << 40] * 4)], IMG, {"w": w(2, 4, 3, 3)}),
        "empty or too large",
    ),
    "bias of another size": (
        build([n("Conv", "x w b")], IMG, {"w": w(2, 4, 3, 3), "b": w(3)}),
        r"node 'y' \(Conv\): bias has shape \(3,\), not \(2,\)",
    ),
    "huge pooling": (
        build([n("MaxPool", "x", kernel_shape=[2, 2], pads=[1 << 40] * 4)], IMG),
        "empty or too large",
    ),
    "huge repeats": (build([n("Tile", "x k")], VEC, {"k": ints(1, 1 << 50)}), "empty or too large"),
    "huge expansion": (
        build([n("Expand", "x k")], {"x": ("N", 1)}, {"k": ints(1, 1 << 50)}),
        "empty or too large",
    ),
    "huge border": (
        build([n("Pad", "x p")], SEQ, {"p": ints(0, 1 << 50, 0, 0, 0, 0)}),
        "empty or too large",
    ),
    "huge stride of a transposed convolution": (
        build([n("ConvTranspose", "x w", strides=[1 << 50, 1])], IMG, {"w": w(4, 2, 3, 3)}),
        "empty or too large",
    ),
    "huge image": (
        build([n("Resize", "x - - s")], IMG, {"s": ints(1, 4, 1 << 50, 8)}),
        "an axis of 1125899906842624 positions",
    ),
    "window of padding": (
        build([n("MaxPool", "x", kernel_shape=[2, 2], pads=[3, 3, 3, 3])], IMG),
        "a window holds nothing but padding",
    ),
    "mask of a dropout": (
        build([onnx.helper.make_node("Dropout", ["x"], ["h", "y"])], VEC),
        "not yet: more than one result",
    ),
    "unused input": (build([n("Relu", "x")], {**VEC, "age": ("N", 1)}), "input 'age' is unused"),
    "constant output": (
        build([n("Relu", "x"), constant("z", [1.0])], VEC, outputs=["y", "z"]),
        "output 'z' does not depend on any input",
    ),
    "free image size": (
        build([n("Relu", "x")], {"x": ("N", 1, "H", "W")}),
        "input 'x': not yet: a shape without a batch axis, or with an axis beside it that has no fixed size",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal(name: str) -> None:
    proto, message = REFUSED[name]
    with pytest.raises(ModelUnsupported, match=message) as caught:
        from_onnx(proto)
    assert "\n" not in caught.value.message
    assert not caught.value.message.endswith(".")


def test_all_refusals_come_in_one_message() -> None:
    nodes = [n("Round", "x", "h0")]
    nodes += [n("Floor", f"h{k}", f"h{k + 1}") for k in range(11)]
    nodes += [n("Flatten", "h11", "f"), n("Ceil", "f")]
    with pytest.raises(ModelUnsupported) as caught:
        from_onnx(build(nodes, IMG))
    message = caught.value.message
    assert message.startswith("13 nodes are not supported: node 'h0' (Round): not yet: whether")
    assert message.count("node '") == 10
    assert message.endswith("; and 3 more")


def changed(change: Callable[[Any], None]) -> bytes:
    proto = mlp()
    change(proto)
    return bytes(proto.SerializeToString())


def external(proto: Any) -> None:
    t = proto.graph.initializer[0]
    t.data_location = onnx.TensorProto.EXTERNAL
    t.external_data.add(key="location", value="/etc/passwd")


def external_constant(proto: Any) -> None:
    node = constant("k", [1.0])
    node.attribute[0].t.data_location = onnx.TensorProto.EXTERNAL
    node.attribute[0].t.external_data.add(key="location", value="../weights")
    proto.graph.node.insert(0, node)


def dims(*sizes: int) -> Callable[[Any], None]:
    def change(proto: Any) -> None:
        del proto.graph.initializer[0].dims[:]
        proto.graph.initializer[0].dims.extend(sizes)

    return change


def sparse(proto: Any) -> None:
    t = proto.graph.sparse_initializer.add()
    t.values.CopyFrom(onnx.numpy_helper.from_array(w(1), "sparse"))
    t.indices.CopyFrom(onnx.numpy_helper.from_array(ints(0), "indices"))
    t.dims.append(4)


BROKEN: dict[str, tuple[Any, str]] = {
    "nothing": (b"", "not an ONNX model: it holds no graph"),
    "text": (b"not a model, just text", "not an ONNX model"),
    "zeros": (bytes(100), "not an ONNX model"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(50), "not an ONNX model"),
    "no graph": (changed(lambda p: p.ClearField("graph")), "it holds no graph"),
    "no nodes": (changed(lambda p: p.graph.ClearField("node")), "it holds no graph"),
    "no inputs": (changed(lambda p: p.graph.ClearField("input")), "it holds no graph"),
    "no outputs": (changed(lambda p: p.graph.ClearField("output")), "it holds no graph"),
    "truncated": (mlp().SerializeToString()[:-700], "not an ONNX model, or it is truncated"),
    "external data": (changed(external), "keeps weights in other files"),
    "external constant": (changed(external_constant), "keeps weights in other files"),
    "raw size": (
        changed(lambda p: setattr(p.graph.initializer[0], "raw_data", b"12345")),
        r"tensor '.*': its data do not match|the ONNX model is broken",
    ),
    "more dims than data": (changed(dims(1000)), "data do not match|the ONNX model is broken"),
    "huge dims": (changed(dims(1 << 40, 1 << 40)), "data do not match|the ONNX model is broken"),
    "negative dims": (changed(dims(-1)), "data do not match|the ONNX model is broken"),
    "old opset": (
        changed(lambda p: setattr(p.opset_import[0], "version", 6)),
        "opset 6 is too old, 7 is the first that is supported|the ONNX model is broken",
    ),
    "unknown opset": (
        changed(lambda p: setattr(p.opset_import[0], "version", 9999)),
        "opset 9999 is newer than the installed onnx",
    ),
    "no opset": (changed(lambda p: p.ClearField("opset_import")), "the ONNX model is broken"),
    "unknown value": (
        changed(lambda p: p.graph.node[1].input.__setitem__(0, "nowhere")),
        "the ONNX model is broken",
    ),
    "cycle": (changed(lambda p: p.graph.node[0].input.__setitem__(0, "9")), "the ONNX model is broken"),
    "two nodes make one value": (
        changed(lambda p: p.graph.node[2].output.__setitem__(0, "7")),
        "the ONNX model is broken",
    ),
    "attribute of another kind": (
        changed(lambda p: p.graph.node[0].attribute.append(onnx.helper.make_attribute("transB", [1.0]))),
        "the ONNX model is broken|is malformed",
    ),
    "sparse weights": (changed(sparse), "sparse weights|the ONNX model is broken"),
    "unprintable input": (
        changed(
            lambda p: (
                setattr(p.graph.input[0], "name", "a\nb"),
                p.graph.node[0].input.__setitem__(0, "a\nb"),
            )
        ),
        "an input has an empty, long or unprintable name",
    ),
    "two batches": (
        build([n("Add", "x z")], {"x": (1, 3), "z": (2, 3)}).SerializeToString(),
        "the inputs have different sizes of axis 0",
    ),
    "no model at all": (42, "an ONNX model is a path, bytes or an onnx.ModelProto, not int"),
    "path with a zero": ("a\0b", "cannot be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file(name: str) -> None:
    source, message = BROKEN[name]
    with pytest.raises(ConfigError, match=message) as caught:
        from_onnx(source)
    assert "\n" not in caught.value.message


def test_external_data_says_how_to_embed() -> None:
    with pytest.raises(ConfigError) as caught:
        from_onnx(changed(external))
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("embed them: onnx.save_model(")


def test_integer_inputs_are_not_yet_supported() -> None:
    proto = mlp()
    proto.graph.input[0].type.tensor_type.elem_type = INT
    with pytest.raises(ModelUnsupported, match="input 'input': not yet: only floating-point tensors"):
        from_onnx(proto)


def test_missing_directory_and_oversized_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.onnx' cannot be read: no such file"):
        from_onnx(tmp_path / "nowhere.onnx")
    with pytest.raises(ConfigError, match="cannot be read"):
        from_onnx(tmp_path)
    big = tmp_path / "big.onnx"
    big.touch()
    os.truncate(big, (512 << 20) + 1)  # a hole: nothing is written, and nothing may be read
    with pytest.raises(ConfigError, match="larger than 512 MiB"):
        from_onnx(big)
    monkeypatch.setattr(importer, "MAX_BYTES", 1000)
    for source in (mlp(), mlp().SerializeToString()):
        with pytest.raises(ConfigError, match="larger than 512 MiB"):
            from_onnx(source)


def test_constants_may_not_grow() -> None:
    nodes = [n("ConstantOfShape", "s", "k"), n("Relu", "x")]
    with pytest.raises(ModelUnsupported, match=r"node 'k' \(ConstantOfShape\): its shape is not possible"):
        from_onnx(build(nodes, VEC, {"s": ints(1 << 20, 1 << 20)}))
    nodes = [n("Add", "a b", "k"), n("Relu", "x")]
    with pytest.raises(ConfigError, match=r"node 'k' \(Add\) is malformed"):
        from_onnx(build(nodes, VEC, {"a": w(4, 1), "b": w(1, 4)}))


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31mb", "x" * 500, "x"])
def test_names_of_nodes_become_printable_and_unique(name: str) -> None:
    nodes = [n("Relu", "x", "h"), n("Neg", "h")]
    for node in nodes:
        node.name = name
    model = from_onnx(build(nodes, VEC))
    names = [node.name for node in model.architecture.nodes]
    assert all(k.isprintable() and 0 < len(k) <= 200 for k in names)
    assert len({*names, "x"}) == 3


def test_the_given_proto_is_left_as_it_was() -> None:
    proto = build([n("Relu", "x")], VEC)
    before = proto.SerializeToString()
    from_onnx(proto)
    assert proto.SerializeToString() == before


def test_missing_onnx_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def hidden(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "onnx":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", hidden)
    with pytest.raises(ConfigError, match="onnx is not installed") as caught:
        from_onnx(b"")
    assert caught.value.hint == "pip install 'privinfer[onnx]'"
    assert "onnx" in sys.modules


# --- fuzzing: a typed error or a valid model, never anything else


def small() -> bytes:
    """Build a model with most kinds of fields, yet of few bytes."""
    nodes = [
        n("Conv", "x w b", "c", pads=[1, 1, 1, 1], strides=[2, 2]),
        n("BatchNormalization", "c g bb m v", "d"),
        n("Relu", "d", "r"),
        n("AveragePool", "r", "p", kernel_shape=[2, 2], auto_pad="SAME_UPPER"),
        n("Shape", "p", "s"),
        constant("zero", 0, np.int64),
        n("Gather", "s zero", "n", axis=0),
        n("Unsqueeze", "n", "nu", axes=[0]),
        n("Concat", "nu rest", "to", axis=0),
        n("Reshape", "p to", "f"),
        n("Gemm", "f u", "z", transB=1),
        constant("half", 0.5),
        n("Mul", "z half"),
    ]
    weights = {"w": w(2, 1, 3, 3), "b": w(2), **norm(2), "rest": ints(-1), "u": w(2, 8)}
    return bytes(build(nodes, {"x": ("N", 1, 4, 4)}, weights, opset=11).SerializeToString())


SMALL = small()


def attempt(data: bytes) -> None:
    try:
        model = from_onnx(data)
    except PrivinferError as e:
        assert isinstance(e, ConfigError | ModelUnsupported)  # noqa: PT017
        assert e.message.isprintable()  # noqa: PT017
    else:
        model.architecture.shapes()
        assert all(np.isfinite(v).all() for p in model.parameters.values() for v in p.values())
        assert isinstance(model, ir.Model)


def test_the_model_that_is_fuzzed_is_valid() -> None:
    assert len(from_onnx(SMALL).architecture.nodes) == 5


def test_every_truncation() -> None:
    for k in range(len(SMALL)):
        attempt(SMALL[:k])


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_bytes_that_are_changed(changes: list[tuple[int, int]]) -> None:
    data = bytearray(SMALL)
    for k, value in changes:
        data[k] = value
    attempt(bytes(data))


def test_every_byte_flipped_once() -> None:
    rng = np.random.default_rng(11)
    for k in range(len(SMALL)):
        data = bytearray(SMALL)
        data[k] ^= int(rng.integers(1, 256))
        attempt(bytes(data))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(SMALL)), st.integers(0, len(SMALL)), st.binary(max_size=8))
def test_bytes_that_are_cut_out_or_put_in(start: int, stop: int, extra: bytes) -> None:
    attempt(SMALL[:start] + extra + SMALL[stop:])
