"""Import of ONNX models, opset 7 and later, as the model owner's own process reads them.

A file is treated as hostile: it is parsed once from bytes, never follows a path to external data, and ends
in a model or in an error of this library. What becomes secret is written in :mod:`privinfer.graph.build`;
how each operator is converted in :mod:`privinfer.graph.onnx_ops` and :mod:`privinfer.graph.onnx_layers`.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from privinfer.errors import ConfigError, ModelUnsupported, PrivinferError
from privinfer.graph import build, ir, onnx_layers, onnx_ml, onnx_moves, onnx_ops, onnx_own, onnx_patterns  # noqa: F401
from privinfer.graph import functions as known_functions
from privinfer.graph.build import Const, refuse
from privinfer.graph.onnx_base import Reader

if TYPE_CHECKING:
    import onnx

MAX_BYTES = 512 << 20
MIN_OPSET = 7
SAMPLES = 1025  # of a caller's function, to tell it from others

_MALFORMED = (ValueError, TypeError, IndexError, KeyError, ArithmeticError, AttributeError)

RANGE_KEY = "privinfer.range."
TABLE = onnx_ops.TABLE  # which importing the other two has filled

# attributes that change nothing here, or no result that is read
_NO_MATTER = frozenset(
    ("consumed_inputs", "hidden_size", "is_test", "kernel_shape", "momentum", "noop_with_empty_axes")
).union(
    ("qk_matmul_output_mode", "ratio", "round_mode", "saturate", "seed", "softmax_precision", "stash_type"),
    ("extrapolation_value", "storage_order"),
)

UserFunctions = Mapping[str, tuple[Callable[[Any], Any], float, float]]


def from_onnx(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto,
    ranges: build.Ranges | None = None,
    *,
    functions: UserFunctions | None = None,
    precision: ir.Precision = ir.Precision(),  # noqa: B008 - frozen
) -> ir.Model:
    """Read an ONNX model.

    Axis 0 of every input is the batch, symbolic or fixed; the model then runs with any batch. Initializers
    are secret weights, also those of one element; one-element ``Constant`` nodes are public architecture
    (:class:`privinfer.graph.ir.Multiply`, :class:`privinfer.graph.ir.Shift`).

    Parameters
    ----------
    source : path, bytes or onnx.ModelProto
        The model, at most 512 MiB, weights embedded.
    ranges : mapping of (low, high), optional
        What the inputs' values are promised to lie in; otherwise what the file's metadata says
        (``privinfer.range.NAME`` = ``LOW:HIGH``), or :data:`privinfer.graph.ir.DEFAULT_RANGE`. Under the
        name of a node, what goes into its function: the argument of a logarithm or of a root, the divisor of
        a division, the variance of a normalisation.
    functions : mapping of (callable, low, high), optional
        Functions of one variable of your own, by the type of a custom operator or by the name of a node:
        from a float64 array to one of the same shape, and the range they are needed on.
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
    proto = onnx_ml.prepare(onnx, _load(onnx, source))
    return _Importer(onnx, proto, ranges, _registered(functions)).model(precision)


def _registered(given: UserFunctions | None) -> dict[str, tuple[str, float, float]]:
    """Make the caller's functions known in this process; gives the names they got, and their ranges.

    The names hold what tells two functions of one operator apart, so that models loaded one after another
    keep their own.
    """
    ends: dict[str, tuple[str, float, float]] = {}
    for name, entry in (given or {}).items():
        try:
            fn, low, high = entry
            low, high = float(low), float(high)
        except (TypeError, ValueError):
            raise ConfigError(f"the function {name!r} is not (callable, low, high)") from None
        if not (callable(fn) and math.isfinite(low) and math.isfinite(high) and low < high):
            raise ConfigError(f"the function {name!r} is not (callable, low, high) with low < high")
        if not 0 < len(name) <= 90 or not name.isprintable():
            raise ConfigError("a function has an empty, long or unprintable name")
        x = np.linspace(low, high, SAMPLES)
        try:
            with np.errstate(all="ignore"):
                seen = np.ascontiguousarray(fn(x), dtype=np.float64).tobytes()
        except Exception:  # what is wrong with it is told where its node is converted
            seen = b""
        digest = hashlib.sha256(x.tobytes() + seen).hexdigest()[:8]
        known_functions.register(f"own.{name}:{digest}", fn)
        ends[name] = (f"own.{name}:{digest}", low, high)
    return ends


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


def _stored_ranges(proto: Any, names: Iterable[str]) -> dict[str, tuple[float, float]]:
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


class _Importer(Reader):
    """One pass over the nodes of a graph."""

    def __init__(
        self,
        onnx: Any,
        proto: Any,
        ranges: build.Ranges | None,
        own: Mapping[str, tuple[str, float, float]],
    ) -> None:
        self.onnx = onnx
        self.graph = proto.graph
        self.own = own
        self.asked = set()
        versions = [o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")]
        self.opset = int(versions[0]) if versions else 0
        constants = {t.name for t in self.graph.initializer}
        constants |= {t.values.name for t in self.graph.sparse_initializer}
        sources = [i for i in self.graph.input if i.name not in constants]
        names = [i.name for i in sources]
        inner = {build.printable(_name(node, k)) for k, node in enumerate(self.graph.node)} - set(names)
        stored = _stored_ranges(proto, {*names, *inner})
        checked = build.check_ranges({**stored, **(ranges or {})}, names, inner)
        shapes = {i.name: self._shape(i) for i in sources}
        fixed = {s[0] for s in shapes.values() if isinstance(s[0], int)}
        if len(fixed) > 1:
            raise ConfigError("the inputs have different sizes of axis 0, which has to be the batch")
        self.b = build.Builder(fixed.pop() if fixed else 1, checked)
        self.env = {}
        self.shown = {o.name for o in self.graph.output}
        self.readers = {}
        for node in self.graph.node:
            for name in node.input:
                self.readers.setdefault(name, set()).add(node.op_type)
        self.read = self.shown.union(*(n.input for n in self.graph.node)) - {""}
        self._check(proto)
        for t in self.graph.initializer:
            self.env[t.name] = Const(self.tensor(t))
        try:
            self.patterns = onnx_patterns.find(self)
        except _MALFORMED:  # the node at fault will say so itself
            self.patterns = onnx_patterns.Patterns()
        for i in sources:
            size = shapes[i.name]
            self.env[i.name] = self.b.input(i.name, [self.b.batch, *size[1:]])  # type: ignore[list-item]

    def model(self, precision: ir.Precision) -> ir.Model:
        """Convert all nodes."""
        for k, node in enumerate(self.graph.node):
            name = _name(node, k)
            try:
                result = self.b.attempt(name, node.op_type, lambda n=node, k=k: self._convert(n, k))  # type: ignore[misc]
            except PrivinferError:
                raise
            except _MALFORMED as e:
                raise ConfigError(f"node {name!r} ({build.printable(node.op_type)}) is malformed") from e
            self.env.update(dict.fromkeys(node.output))
            results = result if isinstance(result, list) else [result]
            self.env.update(zip(node.output, results, strict=False))
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
                self.b.attempt(_name(node, k), node.op_type, lambda n=node, k=k: self._known(n, k))  # type: ignore[misc]
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

    def _known(self, node: Any, k: int) -> Callable[[Any, Any], Any]:
        """How a node is converted."""
        name = next((n for n in (_name(node, k), node.op_type) if n in self.own), None)
        if name is not None:
            own = self.own[name]
            return lambda imp, n: imp.b.function(imp.value(n), *own, promised=True)
        if node.domain == onnx_ml.DOMAIN:
            return onnx_ml.known(node)
        if node.domain == onnx_own.DOMAIN:
            return onnx_own.known(node)
        convert: onnx_ops.Convert | None = TABLE.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if convert is None:
            refuse(build.advice(node.op_type, last=any(o in self.shown for o in node.output)))
        return convert

    def _convert(self, node: Any, k: int) -> onnx_ops.Result:
        if k in self.patterns.skip:
            return None
        if k in self.patterns.fused:
            return self.patterns.fused[k](self)
        inputs = [self.env[i] for i in node.input if i]
        if inputs and all(isinstance(c, Const) for c in inputs):
            folded = onnx_ops.fold(self, node)
            if folded is not None:
                return folded
        convert = self._known(node, k)
        if any(c is None for c in inputs):
            return None  # a refusal before this node has been noted
        self.asked.clear()
        result: onnx_ops.Result = convert(self, node)
        unknown = {a.name for a in node.attribute} - self.asked - _NO_MATTER
        if unknown and node.input and convert is TABLE.get(node.op_type):
            refuse(f"not yet: its attribute {build.printable(min(unknown))!r}")
        given = len(result) if isinstance(result, list) else 1
        if any(o in self.read for o in node.output[given:]):
            refuse("not yet: more than one result")
        return result


def _name(node: Any, k: int) -> str:
    """Name of a node, else of its first result, else its kind and position."""
    return str(node.name or next((o for o in node.output if o), "") or f"{node.op_type}_{k}")
