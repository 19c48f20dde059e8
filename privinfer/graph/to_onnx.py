"""Export of models of layers and polynomials to ONNX, so that they can be kept and loaded again.

The file holds the weights: it belongs to the model owner. Polynomials become ``privinfer.Polynomial``
(:mod:`privinfer.graph.onnx_own`), which :func:`privinfer.from_onnx` reads and other runtimes do not have.
Numbers are float64, so a model comes back as it was; its precision is declared anew when it is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from privinfer.errors import ConfigError, ModelUnsupported
from privinfer.graph import ir, onnx_own

if TYPE_CHECKING:
    import onnx

OPSET = 17
IR_VERSION = 8
RANGE_KEY = "privinfer.range."


def to_onnx(model: ir.Model) -> onnx.ModelProto:
    """Write a model down as an ONNX graph.

    Parameters
    ----------
    model : Model
        Of layers, sums, products, moves, ReLUs and polynomials.

    Returns
    -------
    onnx.ModelProto
        With the ranges of its inputs in the metadata. Its ``SerializeToString()`` is the file.

    Raises
    ------
    ModelUnsupported
        An operator is not written here; the message names the node.
    ConfigError
        onnx is not installed.
    """
    try:
        import onnx  # noqa: PLC0415 - an optional dependency
    except ImportError:
        raise ConfigError("onnx is not installed", hint="pip install 'privinfer[onnx]'") from None
    writer = _Writer(onnx, model)
    for node, parameters in model.walk():
        writer.node(node, parameters)
    return writer.finish()


class _Writer:
    """Collects the parts of a graph. Values bear the names they have in the model."""

    def __init__(self, onnx: Any, model: ir.Model) -> None:
        self.onnx, self.architecture = onnx, model.architecture
        self.shapes = model.architecture.shapes()
        self.outputs = {o.value: o.name for o in reversed(model.architecture.outputs)}
        self.nodes: list[Any] = []
        self.weights: list[Any] = []

    def value(self, name: str) -> str:
        """What a value is called in the file: an output's name is that of its value."""
        inputs = {i.name for i in self.architecture.inputs}
        return self.outputs.get(name, name) if name not in inputs else name

    def emit(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node that bears its output's name."""
        domain = attributes.pop("domain", "")
        name = attributes.pop("named", output)
        self.nodes.append(
            self.onnx.helper.make_node(kind, list(inputs), [output], name=name, domain=domain, **attributes)
        )
        return output

    def weight(self, name: str, array: npt.NDArray[Any]) -> str:
        """Add a secret tensor."""
        self.weights.append(self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def constant(self, name: str, array: Any) -> str:
        """Add a public tensor, one that stands in the code."""
        tensor = self.onnx.numpy_helper.from_array(np.asarray(array), name)
        return self.emit("Constant", [], name, value=tensor)

    def double(self, values: float | Sequence[float]) -> Any:
        """An attribute that keeps all 53 bits."""
        return self.onnx.numpy_helper.from_array(np.asarray(values, dtype=np.float64))

    def node(self, node: ir.Node, own: dict[str, ir.Array]) -> None:
        """Write one node."""
        op, y = node.op, self.value(node.name)
        xs = [self.value(i) for i in node.inputs]
        rank = len(self.shapes[node.inputs[0]]) + 1
        at = {"named": node.name}
        match op:
            case ir.Linear():
                weight = self.weight(f"{node.name}.weight", own["weight"])
                bias = self.weight(f"{node.name}.bias", own["bias"])
                if rank == 2:
                    self.emit("Gemm", [*xs, weight, bias], y, **at)
                else:
                    product = self.emit("MatMul", [*xs, weight], f"{node.name}.product", **at)
                    self.emit("Add", [product, bias], y, named=f"{node.name}.add")
            case ir.Conv2d():
                weight = self.weight(f"{node.name}.weight", own["weight"])
                bias = self.weight(f"{node.name}.bias", own["bias"])
                self.emit(
                    "Conv", [*xs, weight, bias], y, kernel_shape=op.kernel, strides=op.stride,
                    pads=op.padding, dilations=op.dilation, group=op.groups, **at,
                )  # fmt: skip
            case ir.Scale():
                shape = [-1 if k == op.axis else 1 for k in range(rank)][1:]
                weight = self.weight(f"{node.name}.weight", own["weight"].reshape(shape))
                bias = self.weight(f"{node.name}.bias", own["bias"].reshape(shape))
                product = self.emit("Mul", [*xs, weight], f"{node.name}.product", **at)
                self.emit("Add", [product, bias], y, named=f"{node.name}.add")
            case ir.AvgPool2d():
                self.emit(
                    "AveragePool", xs, y, kernel_shape=op.kernel, strides=op.stride, pads=op.padding,
                    count_include_pad=int(op.count_padding), **at,
                )  # fmt: skip
            case ir.Relu() | ir.Add() | ir.Mul() | ir.MatMul():
                self.emit(type(op).__name__, xs, y, **at)
            case ir.Multiply(number) | ir.Shift(number):
                kind = "Mul" if isinstance(op, ir.Multiply) else "Add"
                self.emit(kind, [*xs, self.constant(f"{node.name}.constant", number)], y, **at)
            case ir.Concat(axis):
                self.emit("Concat", xs, y, axis=axis, **at)
            case ir.Reshape(to):
                shape_of = self.constant(f"{node.name}.shape", np.array([0, *to], dtype=np.int64))
                self.emit("Reshape", [*xs, shape_of], y, **at)
            case ir.Transpose(order):
                self.emit("Transpose", xs, y, perm=(0, *order), **at)
            case ir.Sum(axis):
                axes = self.constant(f"{node.name}.axes", np.array([axis], dtype=np.int64))
                self.emit("ReduceSum", [*xs, axes], y, keepdims=0, **at)
            case ir.Gather(axis, indices) if min(indices) >= 0:
                which = self.constant(f"{node.name}.indices", np.array(indices, dtype=np.int64))
                self.emit("Gather", [*xs, which], y, axis=axis, **at)
            case ir.Polynomial():
                self.emit(
                    onnx_own.POLYNOMIAL, xs, y, domain=onnx_own.DOMAIN, low=self.double(op.low),
                    high=self.double(op.high), coefficients=self.double(op.coefficients), **at,
                )  # fmt: skip
            case _:
                raise ModelUnsupported(f"node {node.name!r} ({type(op).__name__}): not yet written to ONNX")

    def finish(self) -> Any:
        """The whole file."""
        helper, double = self.onnx.helper, self.onnx.TensorProto.DOUBLE

        def info(name: str, shape: ir.Shape) -> Any:
            return helper.make_tensor_value_info(name, double, ["batch", *shape])

        for output in self.architecture.outputs:  # two that show one value, or one that shows an input
            if self.value(output.value) != output.name:
                self.emit("Identity", [self.value(output.value)], output.name)
        graph = helper.make_graph(
            self.nodes,
            "privinfer",
            [info(i.name, i.shape) for i in self.architecture.inputs],
            [info(o.name, self.shapes[o.value]) for o in self.architecture.outputs],
            self.weights,
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(onnx_own.DOMAIN, onnx_own.VERSION)]
        proto = helper.make_model(
            graph, producer_name="privinfer", opset_imports=opsets, ir_version=IR_VERSION
        )
        ranges = {f"{RANGE_KEY}{i.name}": f"{i.low!r}:{i.high!r}" for i in self.architecture.inputs}
        helper.set_model_props(proto, ranges)
        return proto
