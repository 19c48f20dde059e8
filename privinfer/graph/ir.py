"""The graph every backend computes: a public architecture and private parameters, kept apart.

An :class:`Architecture` holds names, shapes, operators and declared ranges; every party of a session
knows it and agrees on its digest. A :class:`Model` adds the parameters, which only the model owner has.
Shapes are per sample: the batch is axis 0 of every value and never stands in a shape.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, TypeVar

import cbor2
import numpy as np
import numpy.typing as npt

from privinfer.errors import ConfigError, ModelUnsupported
from privinfer.graph.operators import (
    OPS,
    Add,
    ArgMax,
    AvgPool2d,
    Concat,
    Conv2d,
    Function,
    Gather,
    Linear,
    MatMul,
    Max,
    Misfit,
    Mul,
    Multiply,
    Normalize,
    Op,
    Operator,
    Piecewise,
    Polynomial,
    Relu,
    Reshape,
    Scale,
    Shape,
    Shift,
    Softmax,
    Sum,
    Transpose,
    conv_output,
)

__all__ = [
    "ArgMax",
    "Function",
    "Gather",
    "MatMul",
    "Max",
    "Mul",
    "Normalize",
    "Piecewise",
    "Polynomial",
    "Shift",
    "Softmax",
    "Sum",
    "Tabulated",
    "Add",
    "Architecture",
    "Array",
    "AvgPool2d",
    "Concat",
    "Conv2d",
    "Input",
    "Linear",
    "Model",
    "Multiply",
    "Node",
    "Op",
    "Operator",
    "Output",
    "Parameters",
    "Precision",
    "Relu",
    "Reshape",
    "Scale",
    "Shape",
    "Transpose",
    "conv_output",
]
Array = npt.NDArray[np.float64]
Parameters = dict[str, dict[str, Array]]

DEFAULT_RANGE = (-16.0, 16.0)
MAX_ARCHITECTURE_BYTES = 4 << 20
MAX_ELEMENTS = 1 << 28


@dataclass(frozen=True, slots=True)
class Input:
    """A named input with its per-sample shape and the closed range its values are promised to lie in."""

    name: str
    shape: Shape
    low: float = DEFAULT_RANGE[0]
    high: float = DEFAULT_RANGE[1]


@dataclass(frozen=True, slots=True)
class Node:
    """One operator; its name names its value, `inputs` name inputs or earlier nodes."""

    name: str
    op: Op
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Output:
    """A named output and the value it shows."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Precision:
    """What the model owner declares in public about numbers.

    Attributes
    ----------
    fractional_bits : int
        f: a real value v travels as round(v 2**f).
    comparison_bits : int
        n: ring of every value that is compared or shown; ``|v| < 2**(n - 1 - f)``. A default or a choice:
        bounds computed from secret weights would leak their norms.
    basis : str
        ``"interval"`` where interval analysis proved that every value fits n bits, ``"calibrated"`` where
        only rows of the model owner's data were tried.
    error_bound : float or None
        Largest absolute difference between any output and the same model in float64, over all inputs in
        range; a power of two, so that it tells little of the weights. None where it was not declared.
    """

    fractional_bits: int = 16
    comparison_bits: int = 32
    basis: str = "interval"
    error_bound: float | None = None

    MAX_COMPARISON_BITS: ClassVar[int] = 48

    def check(self) -> None:
        """Raise ConfigError where the bits do not go together."""
        f, n = self.fractional_bits, self.comparison_bits
        if not (1 <= f <= 24 and f + 4 <= n <= self.MAX_COMPARISON_BITS):
            raise ConfigError(
                f"precision of {f} fractional bits in {n}-bit comparisons is not possible",
                hint="1 <= fractional_bits <= 24 and fractional_bits + 4 <= comparison_bits <= 48",
            )
        if self.basis not in ("interval", "calibrated"):
            raise ConfigError(f"unknown basis of ranges {self.basis!r}")


@dataclass(frozen=True, slots=True)
class Tabulated:
    """A function as integers: piecewise polynomials, the same at every party (graph/approx.py makes them).

    Attributes
    ----------
    key : str
        What it stands for: name, range, scales.
    low, high, step_bits, cell_bits, degree, frac_out, coefficients
        As in :class:`privinfer.graph.approx.Table`.
    error : float
        Largest absolute difference from the function on its range, before the result is rounded.
    """

    key: str
    low: int
    high: int
    step_bits: int
    cell_bits: int
    degree: int
    frac_out: int
    error: float
    coefficients: tuple[int, ...]

    def check(self) -> None:
        """Raise ConfigError where the numbers do not go together."""
        if not (
            0 < self.cell_bits <= 12
            and self.step_bits >= 0
            and self.step_bits + self.cell_bits < 63
            and 0 <= self.degree <= 3
            and 0 < self.frac_out < 63
            and 0 <= self.high - self.low < ((1 << self.cell_bits) - 1) << self.step_bits
            and math.isfinite(self.error)
            and len(self.coefficients) == (self.degree + 1) << self.cell_bits
            and all(abs(c) < 1 << 63 for c in (self.low, *self.coefficients))
        ):
            raise ConfigError(f"the table of {self.key!r} does not fit together")


@dataclass(frozen=True, slots=True)
class Architecture:
    """The public half of a model: what every party of a session agrees to compute."""

    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Output, ...]
    precision: Precision = Precision()
    tables: tuple[Tabulated, ...] = ()

    def shapes(self) -> dict[str, Shape]:
        """Per-sample shape of every value; ModelUnsupported names the first node that does not fit."""
        self.precision.check()
        for table in self.tables:
            table.check()
        shapes: dict[str, Shape] = {}
        for source in self.inputs:
            _name(source.name, shapes)
            if any(d < 1 for d in source.shape) or math.prod(source.shape) > MAX_ELEMENTS:
                raise ModelUnsupported(f"input {source.name!r}: shape {source.shape} is not possible")
            if not (math.isfinite(source.low) and math.isfinite(source.high) and source.low <= source.high):
                raise ModelUnsupported(f"input {source.name!r}: range is not a finite interval")
            shapes[source.name] = source.shape
        for node in self.nodes:
            _name(node.name, shapes)
            missing = [i for i in node.inputs if i not in shapes]
            if missing:
                raise ModelUnsupported(f"node {node.name!r}: no earlier value is called {missing[0]!r}")
            try:
                out = node.op.shape(*(shapes[i] for i in node.inputs))
            except (Misfit, TypeError) as e:
                why = str(e) if isinstance(e, Misfit) else f"{len(node.inputs)} inputs is the wrong number"
                raise ModelUnsupported(f"node {node.name!r} ({type(node.op).__name__}): {why}") from None
            if any(d < 1 for d in out) or math.prod(out) > MAX_ELEMENTS:
                raise ModelUnsupported(f"node {node.name!r}: its output {out} is empty or too large")
            shapes[node.name] = out
        if not self.inputs or not self.outputs:
            raise ModelUnsupported("a model needs at least one input and one output")
        shown: dict[str, Shape] = {}
        for output in self.outputs:
            _name(output.name, shown)
            shown[output.name] = ()
            if output.value not in shapes:
                raise ModelUnsupported(f"output {output.name!r}: no value is called {output.value!r}")
        return shapes

    def parameter_shapes(self) -> dict[str, dict[str, Shape]]:
        """Shapes of the parameters of every node that has some."""
        return {n.name: p for n in self.nodes if (p := n.op.parameters())}

    def to_bytes(self) -> bytes:
        """Canonical CBOR: equal architectures have equal bytes."""
        return cbor2.dumps(
            {
                "format": "privinfer.architecture/1",
                "inputs": [[i.name, list(i.shape), float(i.low), float(i.high)] for i in self.inputs],
                "nodes": [[n.name, type(n.op).__name__, _plain(n.op), list(n.inputs)] for n in self.nodes],
                "outputs": [[o.name, o.value] for o in self.outputs],
                "precision": _plain(self.precision),
                "tables": [_plain(t) for t in self.tables],
            },
            canonical=True,
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Architecture:
        """Read what :meth:`to_bytes` wrote.

        Raises
        ------
        ConfigError
            The bytes are no architecture.
        ModelUnsupported
            They are, but the graph does not fit together.
        """
        if len(data) > MAX_ARCHITECTURE_BYTES:
            raise ConfigError("the architecture is larger than 4 MiB")
        try:
            d = cbor2.loads(data)
            if d["format"] != "privinfer.architecture/1":
                raise ConfigError("the architecture is of another version")
            built = cls(
                tuple(Input(_str(n), _shape(s), float(lo), float(hi)) for n, s, lo, hi in d["inputs"]),
                tuple(
                    Node(_str(n), _read(OPS[op], a), tuple(map(_str, _list(i)))) for n, op, a, i in d["nodes"]
                ),
                tuple(Output(_str(n), _str(v)) for n, v in d["outputs"]),
                _read(Precision, d["precision"]),
                tuple(_read(Tabulated, t) for t in _list(d["tables"])),
            )
            same = built.to_bytes() == data
        except ConfigError:
            raise
        except Exception as e:  # a peer's bytes: whatever is wrong with them, they are no architecture
            raise ConfigError("these bytes are no architecture") from e
        if not same:
            raise ConfigError("the architecture is not in its canonical form")
        try:
            built.shapes()
        except (TypeError, ValueError, ArithmeticError) as e:
            raise ConfigError("the architecture holds an attribute of the wrong kind") from e
        return built

    def digest(self) -> str:
        """SHA-256 of the canonical bytes, in hex: what a session's manifest names."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


class Model:
    """An architecture with its parameters; only the model owner holds one.

    Parameters
    ----------
    architecture : Architecture
        The public half.
    parameters : dict of dict of ndarray
        For each node with parameters, float64 arrays by name; shapes as the operator's class says.

    Raises
    ------
    ModelUnsupported
        A parameter is missing, has another shape, or is not finite.
    """

    __slots__ = ("architecture", "parameters")

    def __init__(self, architecture: Architecture, parameters: Mapping[str, Mapping[str, Any]]) -> None:
        architecture.shapes()
        kept: Parameters = {}
        for node, wanted in architecture.parameter_shapes().items():
            kept[node] = {}
            for name, shape in wanted.items():
                try:
                    array = np.ascontiguousarray(parameters[node][name], dtype=np.float64)
                except KeyError:
                    raise ModelUnsupported(f"node {node!r}: parameter {name!r} is missing") from None
                if array.shape != shape:
                    raise ModelUnsupported(f"node {node!r}: {name} has shape {array.shape}, not {shape}")
                if not np.isfinite(array).all():
                    raise ModelUnsupported(f"node {node!r}: {name} holds NaN or infinity")
                kept[node][name] = array
        self.architecture = architecture
        self.parameters = kept

    def with_precision(self, precision: Precision) -> Model:
        """Return the same model under another declared precision."""
        return Model(dataclasses.replace(self.architecture, precision=precision), self.parameters)

    def __repr__(self) -> str:
        a = self.architecture
        count = sum(v.size for p in self.parameters.values() for v in p.values())
        return (
            f"Model(inputs={[i.name for i in a.inputs]}, outputs={[o.name for o in a.outputs]}, "
            f"nodes={len(a.nodes)}, parameters={count} (hidden), digest={a.digest()[:12]})"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("a model holds secret weights and is not pickled")

    def walk(self) -> Iterator[tuple[Node, dict[str, Array]]]:
        """Nodes in order, each with its parameters."""
        for node in self.architecture.nodes:
            yield node, self.parameters.get(node.name, {})


def _name(name: str, taken: Mapping[str, Shape]) -> None:
    if not name or len(name) > 200 or not name.isprintable():
        raise ModelUnsupported("a value has an empty, long or unprintable name")
    if name in taken:
        raise ModelUnsupported(f"two values or two outputs are called {name!r}")


# What an attribute's annotation admits, in bytes and out of them: equal values have equal bytes.
_FLOATS = ("float", "float | None")


def _plain(thing: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(thing):
        value = getattr(thing, field.name)
        if field.type in _FLOATS:
            value = None if value is None else float(value)
        elif field.type == "bool":
            value = bool(value)
        elif field.type == "tuple[float, ...]":
            value = [float(v) for v in value]
        elif isinstance(value, tuple):
            value = [int(v) for v in value]
        elif field.type == "int":
            value = int(value)
        found[field.name] = value
    return found


T = TypeVar("T")


def _read(cls: type[T], attributes: Any) -> T:
    """An operator or precision from a peer's attributes, each of the kind its annotation says."""
    kinds = {f.name: f.type for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if not isinstance(attributes, dict) or attributes.keys() != kinds.keys():
        raise TypeError("other attributes")
    return cls(**{k: _attribute(str(kinds[k]), v) for k, v in attributes.items()})


def _attribute(kind: str, value: Any) -> Any:
    if kind == "tuple[float, ...]":
        if not all(type(v) is float for v in _list(value)):
            raise TypeError("not a tuple of numbers")
        return tuple(value)
    if kind == "Shape" or kind.startswith("tuple"):
        found = _shape(_list(value))
        wanted = kind.count("int")
        if kind.startswith("tuple") and "..." not in kind and len(found) != wanted:
            raise TypeError("another number of values")
        return found
    exact = {"int": int, "bool": bool, "str": str}.get(kind, float)
    if value is None and kind == "float | None":
        return None
    if type(value) is not exact:
        raise TypeError(f"not {kind}")
    return value


def _list(v: Any) -> list[Any]:
    if not isinstance(v, list):
        raise TypeError("not a list")
    return v


def _str(v: Any) -> str:
    if not isinstance(v, str):
        raise TypeError("not a string")
    return v


def _shape(v: Any) -> Shape:
    if not all(isinstance(d, int) and not isinstance(d, bool) for d in v):
        raise TypeError("not a shape")
    return tuple(v)
