"""Import of ONNX models, opset 7 and later, as the model owner's own process reads them.

A file is treated as hostile: it is parsed once from bytes, never follows a path to external data, and ends
in a model or in an error of this library. What becomes secret is written in :mod:`privinfer.graph.build`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from privinfer.errors import ConfigError, ModelUnsupported, PrivinferError
from privinfer.graph import build, ir, rewrite
from privinfer.graph.build import Const, Value, refuse

if TYPE_CHECKING:
    import onnx

MAX_BYTES = 512 << 20
MIN_OPSET = 7

_MALFORMED = (ValueError, TypeError, IndexError, KeyError, ArithmeticError, AttributeError)

RANGE_KEY = "privinfer.range."


def from_onnx(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto,
    ranges: build.Ranges | None = None,
    *,
    precision: ir.Precision = ir.Precision(),  # noqa: B008 - frozen
) -> ir.Model:
    """Read an ONNX model.

    Axis 0 of every input is the batch, symbolic or fixed; the model then runs with any batch. Initializers
    are secret weights, also those of one element; one-element ``Constant`` nodes that multiply or divide
    are public architecture (:class:`privinfer.graph.ir.Multiply`).

    Parameters
    ----------
    source : path, bytes or onnx.ModelProto
        The model, at most 512 MiB, weights embedded.
    ranges : mapping of (low, high), optional
        What the inputs' values are promised to lie in; otherwise what the file's metadata says
        (``privinfer.range.NAME`` = ``LOW:HIGH``), or :data:`privinfer.graph.ir.DEFAULT_RANGE`.
    precision : Precision, optional
        Declared with the model.

    Returns
    -------
    Model
        Architecture and parameters.

    Raises
    ------
    ConfigError
        The file cannot be read, is broken, or a range does not fit.
    ModelUnsupported
        The model holds what privinfer cannot run; the message names every such node.
    """
    try:
        import onnx  # noqa: PLC0415 - an optional dependency
    except ImportError:
        raise ConfigError("onnx is not installed", hint="pip install 'privinfer[onnx]'") from None
    proto = _load(onnx, source)
    return _Importer(onnx, proto, ranges).model(precision)


def _load(onnx: Any, source: object) -> Any:
    """Parse and check the file; external data and missing parts are refused."""
    if isinstance(source, onnx.ModelProto):
        size, data = source.ByteSize(), None
    elif isinstance(source, bytes | bytearray | memoryview):
        size, data = len(source), bytes(source)
    elif isinstance(source, str | os.PathLike):
        try:
            size = os.stat(source).st_size
            data = b""
            if size <= MAX_BYTES:
                with open(source, "rb") as f:
                    data = f.read(MAX_BYTES + 1)
                size = len(data)
        except (OSError, ValueError) as e:
            why = (e.strerror or "") if isinstance(e, OSError) else "not a path"
            raise ConfigError(f"the ONNX file {os.fspath(source)!r} cannot be read: {why.lower()}") from None
    else:
        raise ConfigError(
            f"an ONNX model is a path, bytes or an onnx.ModelProto, not {type(source).__name__}"
        )
    if size > MAX_BYTES:
        raise ConfigError("the ONNX model is larger than 512 MiB")
    try:
        proto: Any = source if data is None else onnx.load_model_from_string(data)
        _need_text(proto)
    except Exception as e:  # whatever protobuf says, the bytes are no model
        raise ConfigError("the file is not an ONNX model, or it is truncated") from e
    graph = proto.graph
    if not (proto.HasField("graph") and graph.node and graph.input and graph.output):
        raise ConfigError("the file is not an ONNX model: it holds no graph with nodes, inputs and outputs")
    tensors = [*graph.initializer, *(a.t for n in graph.node for a in n.attribute if a.HasField("t"))]
    if any(t.data_location == onnx.TensorProto.EXTERNAL or t.external_data for t in tensors):
        raise ConfigError(
            "the ONNX model keeps weights in other files",
            hint="embed them: onnx.save_model(onnx.load(path), new_path, save_as_external_data=False)",
        )
    return proto


def _need_text(message: Any) -> None:
    """Raise where a name is no UTF-8: protobuf gives such a field as bytes instead of str."""
    if message.DESCRIPTOR.name == "TensorProto":
        fields = [(message.DESCRIPTOR.fields_by_name["name"], message.name)]  # without a copy of the data
    else:
        fields = message.ListFields()
    for field, value in fields:
        values = [value] if isinstance(value, str | bytes) or hasattr(value, "DESCRIPTOR") else value
        if field.type == field.TYPE_STRING and not all(isinstance(v, str) for v in values):
            raise ValueError(field.name)
        if field.type == field.TYPE_MESSAGE:
            for v in values:
                _need_text(v)


def _stored_ranges(proto: Any, names: list[str]) -> dict[str, tuple[float, float]]:
    """Ranges the file itself carries: metadata ``privinfer.range.NAME`` = ``LOW:HIGH``."""
    found: dict[str, tuple[float, float]] = {}
    for entry in proto.metadata_props:
        name = entry.key.removeprefix(RANGE_KEY)
        if name == entry.key or name not in names:
            continue
        low, _, high = entry.value.partition(":")
        try:
            found[name] = (float(low), float(high))
        except ValueError:
            raise ConfigError(f"the ONNX file's range of input {name!r} is not LOW:HIGH") from None
    return found


class _Importer:
    """One pass over the nodes of a graph."""

    def __init__(self, onnx: Any, proto: Any, ranges: build.Ranges | None) -> None:
        self.onnx = onnx
        self.graph = proto.graph
        versions = [o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")]
        self.opset = int(versions[0]) if versions else 0
        constants = {t.name for t in self.graph.initializer}
        constants |= {t.values.name for t in self.graph.sparse_initializer}
        sources = [i for i in self.graph.input if i.name not in constants]
        names = [i.name for i in sources]
        checked = build.check_ranges({**_stored_ranges(proto, names), **(ranges or {})}, names)
        self.table: dict[str, Callable[[Any], Any]] = {
            name[4:]: getattr(self, name) for name in dir(self) if name.startswith("_op_")
        }
        shapes = {i.name: self._shape(i) for i in sources}
        fixed = {s[0] for s in shapes.values() if isinstance(s[0], int)}
        if len(fixed) > 1:
            raise ConfigError("the inputs have different sizes of axis 0, which has to be the batch")
        self.b = build.Builder(fixed.pop() if fixed else 1, checked)
        self.env: dict[str, Value | Const | None] = {}
        self.shown = {o.name for o in self.graph.output}
        self.read = self.shown.union(*(n.input for n in self.graph.node)) - {""}
        self._check(proto)
        for t in self.graph.initializer:
            self.env[t.name] = Const(self._array(t))
        for i in sources:
            size = shapes[i.name]
            self.env[i.name] = self.b.input(i.name, [self.b.batch, *size[1:]])  # type: ignore[list-item]

    def model(self, precision: ir.Precision) -> ir.Model:
        """Convert all nodes."""
        for k, node in enumerate(self.graph.node):
            name = _name(node, k)
            try:
                result = self.b.attempt(name, node.op_type, lambda n=node: self._convert(n))  # type: ignore[misc]
            except PrivinferError:
                raise
            except _MALFORMED as e:
                raise ConfigError(f"node {name!r} ({build.printable(node.op_type)}) is malformed") from e
            self.env.update(dict.fromkeys(node.output))
            self.env[node.output[0] if node.output else ""] = result
        return self.b.finish([(o.name, self.env.get(o.name)) for o in self.graph.output], precision)

    # --- reading the file

    def _check(self, proto: Any) -> None:
        """Refuse what the ONNX checker refuses, unless an unknown operator says more."""
        if not all(o.type.tensor_type.HasField("shape") for o in self.graph.output):
            copy = self.onnx.ModelProto()
            copy.CopyFrom(proto)
            for o in copy.graph.output:  # the checker wants shapes of outputs, which nothing here reads
                o.type.tensor_type.shape.SetInParent()
            proto = copy
        try:
            self.onnx.checker.check_model(proto)
        except Exception as e:  # C++ and Python errors of many kinds
            for k, node in enumerate(self.graph.node):
                self.b.attempt(_name(node, k), node.op_type, lambda n=node: self._known(n))  # type: ignore[misc]
            if self.b.problems:
                self.b.finish([], ir.Precision())
            raise ConfigError(build.load_error("the ONNX model is broken", e)) from e
        if self.opset < MIN_OPSET:
            raise ConfigError(
                f"opset {self.opset} is too old, {MIN_OPSET} is the first that is supported",
                hint="convert it with onnx.version_converter.convert_version(model, 13)",
            )
        newest = self.onnx.defs.onnx_opset_version()
        if self.opset > newest:
            raise ConfigError(f"opset {self.opset} is newer than the installed onnx, which knows {newest}")
        if self.graph.sparse_initializer:
            raise ConfigError("the ONNX model holds sparse weights, which are not supported yet")

    def _shape(self, info: Any) -> list[int | str]:
        """Shape of an input: integers, a name for a symbolic batch."""
        t = info.type.tensor_type
        floats = (self.onnx.TensorProto.FLOAT, self.onnx.TensorProto.DOUBLE, self.onnx.TensorProto.FLOAT16)
        if t.elem_type not in floats:
            raise ModelUnsupported(f"input {info.name!r}: not yet: only floating-point tensors are inputs")
        dims: list[int | str] = [
            d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else d.dim_param or "?"
            for d in t.shape.dim
        ]
        if not dims or any(isinstance(d, str) for d in dims[1:]):
            raise ModelUnsupported(
                f"input {info.name!r}: not yet: a shape without a batch axis, or with an axis beside it that "
                "has no fixed size"
            )
        return dims

    def _array(self, tensor: Any) -> Any:
        """Contents of a tensor; half precision becomes single."""
        kinds = self.onnx.TensorProto
        try:
            if any(d < 0 for d in tensor.dims) or math.prod(tensor.dims) > ir.MAX_ELEMENTS:
                raise ValueError
            array = np.asarray(self.onnx.numpy_helper.to_array(tensor))
            if array.shape != tuple(tensor.dims):
                raise ValueError
            half = tensor.data_type in (kinds.FLOAT16, kinds.BFLOAT16)
            return array.astype(np.float32) if half else array
        except Exception as e:  # the helper raises what NumPy raises
            raise ConfigError(f"tensor {tensor.name!r}: its data do not match its shape and type") from e

    def _known(self, node: Any) -> Callable[[Any], Any]:
        convert = self.table.get(node.op_type.lower()) if node.domain in ("", "ai.onnx") else None
        if convert is None:
            refuse(build.advice(node.op_type, last=any(o in self.shown for o in node.output)))
        return convert

    def _convert(self, node: Any) -> Value | Const | None:
        convert = self._known(node)
        if any(i and self.env[i] is None for i in node.input):
            return None  # a refusal before this node has been noted
        inputs = [self.env[i] for i in node.input if i]
        if inputs and node.op_type in rewrite.CONSTANT_OPS and all(isinstance(c, Const) for c in inputs):
            arrays = [self.array(node, k) for k in range(len(node.input))]
            attrs = {a.name: self.attr(node, a.name, None) for a in node.attribute}
            public = all(c.public for c in inputs if isinstance(c, Const))
            return Const(rewrite.fold_constant(node.op_type, arrays, attrs), public)
        result: Value | Const | None = convert(node)
        if any(o in self.read for o in node.output[1:]):
            refuse("not yet: more than one result")
        return result

    def at(self, node: Any, k: int) -> Value | Const | None:
        return self.env[node.input[k]] if k < len(node.input) and node.input[k] else None

    def both(self, node: Any) -> tuple[Value | Const, Value | Const]:
        x, y = self.at(node, 0), self.at(node, 1)
        return (x, y) if x is not None and y is not None else refuse("it needs two operands")

    def value(self, node: Any, k: int = 0) -> Value:
        x = self.at(node, k)
        return x if isinstance(x, Value) else refuse("not yet: a constant where a private value belongs")

    def array(self, node: Any, k: int, attr: str = "") -> Any:
        """Constant input `k`, or the attribute that older opsets had; None where neither is given."""
        x = self.at(node, k)
        if isinstance(x, Value):
            refuse("not yet: a private value where a constant belongs")
        if x is None:
            given = self.attr(node, attr, None) if attr else None
            return None if given is None else np.asarray(given)
        return x.array

    def weights(self, node: Any, k: int) -> Any:
        x = self.at(node, k)
        if isinstance(x, Value):
            refuse("not yet: the product of two private values")
        return None if x is None else self.b.weights(x)

    def attr(self, node: Any, name: str, default: Any) -> Any:
        for a in node.attribute:
            if a.name == name:
                v = self.onnx.helper.get_attribute_value(a)
                return v.decode("ascii", "replace") if isinstance(v, bytes) else v
        return default

    def window(self, node: Any, x: Value, kernel: Sequence[int]) -> tuple[list[int], list[int], build.Pads]:
        """Stride, dilation and padding of a convolution or pooling."""
        stride = list(self.attr(node, "strides", [1, 1]))
        dilation = list(self.attr(node, "dilations", [1, 1]))
        auto = self.attr(node, "auto_pad", "NOTSET")
        if x.rank != 4 or len(kernel) != 2:
            refuse("not yet: windows over anything but (batch, channels, height, width)")
        if not (len(stride) == len(dilation) == 2 and min(*stride, *dilation, *kernel) >= 1):
            refuse("its window sizes have to be two positive numbers each")
        if auto == "NOTSET":
            pads = list(self.attr(node, "pads", [0, 0, 0, 0]))
            if len(pads) != 4:
                refuse("its padding needs four numbers")
            return stride, dilation, (pads[0], pads[1], pads[2], pads[3])
        if auto == "VALID":
            return stride, dilation, build.NO_PAD
        if auto not in ("SAME_UPPER", "SAME_LOWER"):
            refuse("its auto_pad is unknown")
        sizes = zip(self.b.plain(x).shape[1:], kernel, stride, dilation, strict=True)
        (t, d), (left, r) = (build.same_padding(*s, upper=auto == "SAME_UPPER") for s in sizes)
        return stride, dilation, (t, left, d, r)

    # --- operators

    def _op_constant(self, node: Any) -> Const:
        (a,) = node.attribute
        if a.name == "value":
            return Const(self._array(a.t), public=True)
        kinds: dict[str, Any] = {"value_float": np.float32, "value_floats": np.float32}
        kinds |= {"value_int": np.int64, "value_ints": np.int64}
        if a.name not in kinds:
            refuse("not yet: a constant that is no dense tensor of numbers")
        return Const(np.asarray(self.attr(node, a.name, None), dtype=kinds[a.name]), public=True)

    def _op_constantofshape(self, node: Any) -> Const:
        shape = self.array(node, 0)
        fill = self.attr(node, "value", None)
        one = np.zeros(1, np.float32) if fill is None else self._array(fill)
        if (
            one.size != 1
            or shape.ndim != 1
            or min(shape, default=0) < 0
            or math.prod(shape.tolist()) > 1 << 20
        ):
            refuse("its shape is not possible")
        return Const(np.full(shape, one.reshape(())), public=True)

    def _op_shape(self, node: Any) -> Const:
        x = self.at(node, 0)
        shape = (self.b.batch, *x.shape) if isinstance(x, Value) else self.array(node, 0).shape
        cut = slice(self.attr(node, "start", 0), self.attr(node, "end", None))
        return Const(np.asarray(shape[cut], dtype=np.int64), public=True)

    def _fold_only(self, node: Any) -> Value:
        refuse(build.advice(node.op_type, last=False))

    _op_gather = _op_slice = _fold_only

    def _op_identity(self, node: Any) -> Value | Const | None:
        return self.at(node, 0)

    def _op_cast(self, node: Any) -> Value | Const | None:
        if self.attr(node, "to", 0) not in (1, 11):
            refuse("not yet: a private value in another type than float or double")
        return self.at(node, 0)

    def _op_dropout(self, node: Any) -> Value | Const | None:
        training = self.array(node, 2)
        if training is not None and training.any():
            refuse("never: dropout in training mode is random, call .eval() before the export")
        return self.at(node, 0)

    def _op_gemm(self, node: Any) -> Value:
        x, w, c = self.value(node), self.weights(node, 1), self.weights(node, 2)
        if self.attr(node, "transA", 0):
            refuse("never: it sums over the batch axis (axis 0)")
        if x.rank != 2 or w.ndim != 2:
            refuse("its operands have to be matrices")
        w = (w.T if self.attr(node, "transB", 0) else w) * self.attr(node, "alpha", 1.0)
        if c is not None:
            c = c.reshape((1,) * (2 - c.ndim) + c.shape) * self.attr(node, "beta", 1.0)
            if c.shape[0] > 1 and (c == c[:1]).all():
                c = c[:1]
            if c.shape[0] > 1:
                refuse("never: its bias differs along the batch axis (axis 0)")
        return self.b.linear(x, w, c)

    def _op_matmul(self, node: Any) -> Value:
        if isinstance(self.at(node, 0), Const) and isinstance(self.at(node, 1), Value):
            refuse("not yet: a constant left operand, replace by x @ w")
        return self.b.matmul(self.value(node), self.weights(node, 1))

    def _op_conv(self, node: Any) -> Value:
        x, w, bias = self.value(node), self.weights(node, 1), self.weights(node, 2)
        if list(self.attr(node, "kernel_shape", w.shape[2:])) != list(w.shape[2:]):
            refuse("kernel_shape does not match its weights")
        stride, dilation, pads = self.window(node, x, w.shape[2:])
        return self.b.conv(x, w, bias, stride, pads, dilation, self.attr(node, "group", 1))

    def _op_batchnormalization(self, node: Any) -> Value:
        if self.attr(node, "training_mode", 0) or any(node.output[1:]):
            refuse("never in training mode: call .eval() before the export")
        if not self.attr(node, "spatial", 1):
            refuse("not yet: statistics for every position (spatial = 0)")
        gamma, beta, mean, var = (self.weights(node, k) for k in (1, 2, 3, 4))
        return self.b.batch_norm(self.value(node), gamma, beta, mean, var, self.attr(node, "epsilon", 1e-5))

    def _op_averagepool(self, node: Any) -> Value:
        x, kernel = self.value(node), list(self.attr(node, "kernel_shape", []))
        stride, dilation, pads = self.window(node, x, kernel)
        if dilation != [1, 1]:
            refuse("not yet: average pooling with dilation")
        count, ceil = (bool(self.attr(node, a, 0)) for a in ("count_include_pad", "ceil_mode"))
        return self.b.avg_pool(x, kernel, stride, pads, count, ceil)

    def _op_globalaveragepool(self, node: Any) -> Value:
        return self.b.adaptive_pool(self.value(node), (1, 1))

    def _op_reducemean(self, node: Any) -> Value:
        axes = self.array(node, 1, "axes")
        if axes is None or not axes.size:
            if self.attr(node, "noop_with_empty_axes", 0):
                return self.value(node)
            axes = np.zeros(0, np.int64)
        return self.b.mean(self.value(node), axes.tolist(), bool(self.attr(node, "keepdims", 1)))

    def _op_add(self, node: Any) -> Value:
        return self.b.add(*self.both(node))

    def _op_sub(self, node: Any) -> Value:
        return self.b.add(*self.both(node), sign=-1.0)

    def _op_mul(self, node: Any) -> Value:
        return self.b.mul(*self.both(node))

    def _op_div(self, node: Any) -> Value:
        return self.b.div(*self.both(node))

    def _op_neg(self, node: Any) -> Value:
        return self.b.multiply(self.value(node), -1.0)

    def _op_relu(self, node: Any) -> Value:
        return self.b.relu(self.value(node))

    def _op_clip(self, node: Any) -> Value:
        low, high = self.array(node, 1, "min"), self.array(node, 2, "max")
        top = high is None or float(high.reshape(())) >= 3.4e38
        if low is None or low.size != 1 or float(low.reshape(())) != 0 or not top:
            refuse("not yet: limits other than (0, none), replace by ReLU")
        return self.b.relu(self.value(node))

    def _op_concat(self, node: Any) -> Value:
        xs = [self.at(node, k) for k in range(len(node.input))]
        return self.b.concat([x for x in xs if x is not None], self.attr(node, "axis", 1))

    def _op_flatten(self, node: Any) -> Value:
        x, axis = self.value(node), self.attr(node, "axis", 1)
        full = (self.b.batch, *x.shape)
        axis = axis + x.rank if axis < 0 else axis
        if axis == 0:
            self.b.axis(0, x.rank)
        return self.b.reshape(x, (math.prod(full[:axis]), math.prod(full[axis:])))

    def _op_reshape(self, node: Any) -> Value:
        x, to = self.value(node), self.array(node, 1)
        if to is None or to.ndim != 1:
            refuse("its shape has to be a list of integers")
        full = (self.b.batch, *x.shape)
        if not self.attr(node, "allowzero", 0):
            to = [full[k] if d == 0 and k < len(full) else int(d) for k, d in enumerate(to)]
        rest = -math.prod(to)
        if list(to).count(-1) == 1 and rest > 0:
            to = [math.prod(full) // rest if d == -1 else d for d in to]
        return self.b.reshape(x, [int(d) for d in to])

    def _op_squeeze(self, node: Any) -> Value:
        axes = self.array(node, 1, "axes")
        if axes is None:
            refuse("never: without axes it may touch the batch axis (axis 0), name the axes")
        return self.b.squeeze(self.value(node), axes.reshape(-1).tolist())

    def _op_unsqueeze(self, node: Any) -> Value:
        return self.b.unsqueeze(self.value(node), self.array(node, 1, "axes").reshape(-1).tolist())

    def _op_transpose(self, node: Any) -> Value:
        x = self.value(node)
        return self.b.transpose(x, list(self.attr(node, "perm", range(x.rank)[::-1])))

    def _op_pad(self, node: Any) -> Value:
        x, pads, fill, axes = (
            self.value(node),
            self.array(node, 1, "pads"),
            self.array(node, 2, "value"),
            None,
        )
        if self.attr(node, "mode", "constant") != "constant":
            refuse("not yet: padding other than zeros around height and width")
        axes = self.array(node, 3)
        axes = list(range(x.rank)) if axes is None else [int(a) % x.rank for a in axes.reshape(-1)]
        sizes = [int(p) for p in pads.reshape(-1)]
        if len(sizes) != 2 * len(axes):
            refuse("its padding needs two numbers for each axis")
        before, after = [0] * x.rank, [0] * x.rank
        for a, p, q in zip(axes, sizes[: len(axes)], sizes[len(axes) :], strict=True):
            before[a], after[a] = p, q
        return self.b.pad(x, before, after, 0.0 if fill is None else float(fill.reshape(())))


def _name(node: Any, k: int) -> str:
    """Name of a node, else of its first result, else its kind and position."""
    return str(node.name or next((o for o in node.output if o), "") or f"{node.op_type}_{k}")
