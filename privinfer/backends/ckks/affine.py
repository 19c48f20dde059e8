"""What lies between two activations, as one affine map: a sparse matrix for each source, and a constant.

A *source* is an input, or what an activation or a product of two values gives. Everything else a model does
is affine in the sources, and consecutive affine operators are composed here, so that they take one level and
one round of rotations together. A *segment* is an affine value that a ciphertext has to hold: the argument of
an activation (as ``t`` in [-1, 1], the scaling folded in), a factor of a product, an output.

:func:`trace` runs over an architecture alone, where it finds which entries are *structurally* nonzero (a tap
of a convolution inside the picture is, whatever its weight), or over a model, where it finds their values,
in the same order. A plan is made from the first, so weights decide nothing in it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from privinfer.errors import ModelUnsupported
from privinfer.graph import ir, reference

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int32]

MAX_NONZEROS = 30_000_000
POLYNOMIAL = "replace by privinfer.to_polynomial"


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """Structural nonzeros of a matrix, each position once.

    Attributes
    ----------
    rows, columns : ndarray of int32
        Position in the result and in the source, both flattened.
    values : ndarray of float64, or None
        None where only the structure is known. Zeros may be among them.
    identity : bool
        Nothing but the source itself.
    """

    rows: Indices
    columns: Indices
    values: Array | None
    identity: bool = False

    @property
    def count(self) -> int:
        """Structural nonzeros."""
        return int(self.rows.size)

    def times(self, factor: float) -> Matrix:
        """Each entry times a constant."""
        values = None if self.values is None else self.values * factor
        return Matrix(self.rows, self.columns, values, self.identity and factor == 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """``sum_k M_k source_k + bias``; `bias` is None where there structurally is none."""

    shape: ir.Shape
    parts: dict[str, Matrix]
    bias: Array | None = None

    @property
    def direct(self) -> str | None:
        """The source that this is, if it is nothing but a source."""
        whole = len(self.parts) == 1 and self.bias is None and all(m.identity for m in self.parts.values())
        return next(iter(self.parts)) if whole else None

    def scaled(self, factor: float, offset: float = 0.0) -> Affine:
        """``factor * self + offset``; the public constants 1 and 0 change nothing."""
        bias = None if self.bias is None else self.bias * factor
        if offset:
            bias = (np.zeros(math.prod(self.shape)) if bias is None else bias) + offset
        return Affine(self.shape, {k: m.times(factor) for k, m in self.parts.items()}, bias)


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """An affine value that a ciphertext has to hold.

    Attributes
    ----------
    name : str
        Of the value; unique among segments and sources.
    node : str
        Node or output it is for, for errors.
    value : Affine
        The map.
    bound : float
        No number of it is larger, by what is public.
    """

    name: str
    node: str
    value: Affine
    bound: float

    @property
    def direct(self) -> str | None:
        """The source that it is, if it is nothing but a source: then no linear step is needed."""
        return self.value.direct


@dataclass(frozen=True, slots=True)
class Activation:
    """Source `name`: Chebyshev polynomial of the segment's numbers, which lie in [-1, 1]."""

    name: str
    argument: str
    coefficients: tuple[float, ...]

    @property
    def depth(self) -> int:
        """Levels it takes: ceil(log2(degree + 1))."""
        return (len(self.coefficients) - 1).bit_length()


@dataclass(frozen=True, slots=True)
class Multiplication:
    """Source `name`: product of two segments, number by number."""

    name: str
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class Holding:
    """Source `name`: the segment of that name, where it and what follows it are too large as one."""

    name: str


@dataclass(frozen=True, slots=True)
class Showing:
    """Output `name` shows a segment."""

    name: str
    shown: str


@dataclass(slots=True, eq=False)
class Circuit:
    """What a model is to this backend.

    Attributes
    ----------
    sources : dict of str to tuple of int
        Shape of each source: inputs first, then in the order of the nodes.
    bounds : dict of str to float
        Largest magnitude of each source, by what is public.
    segments : dict of str to Segment
        In the order they are needed; so each segment's sources come before it.
    steps : list of Activation, Multiplication, Holding or Showing
        In the order of the nodes, outputs last.
    """

    sources: dict[str, ir.Shape] = field(default_factory=dict)
    bounds: dict[str, float] = field(default_factory=dict)
    segments: dict[str, Segment] = field(default_factory=dict)
    steps: list[Activation | Multiplication | Holding | Showing] = field(default_factory=list)


def trace(
    architecture: ir.Architecture, parameters: Mapping[str, Mapping[str, Array]] | None = None
) -> Circuit:
    """Compose what is affine.

    Parameters
    ----------
    architecture : Architecture
        The public half of a model.
    parameters : mapping, optional
        The secret half (``model.parameters``); without it no entry has a value and biases are zero.

    Returns
    -------
    Circuit
        Equal in structure with and without parameters.

    Raises
    ------
    ModelUnsupported
        Names the node: its operator has no place under encryption, or its matrix is too large.
    """
    shapes = architecture.shapes()
    precision = architecture.precision
    declared = math.ldexp(1.0, precision.comparison_bits - 1 - precision.fractional_bits)
    valued = parameters is not None
    circuit = Circuit()
    values: dict[str, Affine] = {}
    taken = set(shapes)

    def source(name: str, bound: float, shape: ir.Shape) -> None:
        circuit.sources[name] = shape
        circuit.bounds[name] = bound
        values[name] = Affine(shape, {name: _identity(math.prod(shape), valued)})

    def request(name: str, node: str, value: Affine, bound: float) -> str:
        if not value.parts:
            raise ModelUnsupported(f"node {node!r}: its value does not depend on any input")
        while name in taken:
            name += "'"
        taken.add(name)
        circuit.segments[name] = Segment(name, node, value, bound)
        return name

    for given in architecture.inputs:
        source(given.name, max(abs(given.low), abs(given.high)), given.shape)
    for node in architecture.nodes:
        name, op, xs = node.name, node.op, [values[i] for i in node.inputs]
        match op:
            case ir.Polynomial():
                factor, offset = unit_range(op.low, op.high)
                if op.degree == 1:
                    low, slope = op.coefficients
                    values[name] = xs[0].scaled(slope * factor, low + slope * offset)
                    continue
                held = request(f"{name}:t", name, xs[0].scaled(factor, offset), 1.0)
                circuit.steps.append(Activation(name, held, op.coefficients))
                source(name, sum(map(abs, op.coefficients)), shapes[name])
            case ir.Mul():
                factors: list[str] = []
                bound = 1.0
                for k, x in enumerate(xs[: 1 if node.inputs[0] == node.inputs[1] else 2]):
                    reach = declared if x.direct is None else circuit.bounds[x.direct]
                    factors.append(request(f"{name}:{'ab'[k]}", name, x, reach))
                    bound *= reach
                square = len(factors) == 1
                circuit.steps.append(Multiplication(name, factors[0], factors[-1]))
                source(name, min(bound * bound if square else bound, declared), shapes[name])
            case _:
                secret = parameters.get(name, {}) if parameters is not None else None
                try:
                    values[name] = _apply(name, op, xs, shapes[name], secret)
                except _TooLarge:
                    held = request(f"{name}:x", name, xs[0], declared)
                    circuit.steps.append(Holding(held))
                    source(held, declared, xs[0].shape)
                    values[name] = _apply(name, op, [values[held]], shapes[name], secret)
    shown: dict[str, str] = {}
    for output in architecture.outputs:
        x = values[output.value]
        if output.value not in shown:
            reach = declared if x.direct is None else circuit.bounds[x.direct]
            shown[output.value] = request(f"{output.name}:y", output.value, x, reach)
        circuit.steps.append(Showing(output.name, shown[output.value]))
    return circuit


def unit_range(low: float, high: float) -> tuple[float, float]:
    """Factor and offset that take [low, high] to [-1, 1]."""
    return 2.0 / (high - low), -(low + high) / (high - low)


# -- operators -------------------------------------------------------------------------------------


def _apply(
    node: str, op: ir.Op, xs: list[Affine], shape: ir.Shape, secret: Mapping[str, Array] | None
) -> Affine:
    x, valued = xs[0], secret is not None
    match op:
        case ir.Linear() | ir.Conv2d() | ir.Scale():
            m = _matrix(node, op, x.shape, secret)
            bias = np.zeros(shape)
            if secret is not None:
                axis = reference.bias_axis(op, len(shape) + 1) - 1
                bias = bias + reference.along(secret["bias"], axis, len(shape))
            y = _compose(m, x, shape)
            return Affine(shape, y.parts, bias.reshape(-1) if y.bias is None else y.bias + bias.reshape(-1))
        case ir.AvgPool2d() | ir.Sum():
            return _compose(_matrix(node, op, x.shape, secret), x, shape)
        case ir.Gather() | ir.Transpose():
            numbers = np.arange(1.0, math.prod(x.shape) + 1).reshape(1, *x.shape)
            taken = reference.apply(op, {}, [numbers]).reshape(-1).astype(np.int64) - 1
            rows = np.nonzero(taken >= 0)[0].astype(np.int32)
            ones = np.ones(rows.size) if valued else None
            return _compose(Matrix(rows, taken[rows].astype(np.int32), ones), x, shape)
        case ir.Reshape():
            return Affine(shape, x.parts, x.bias)
        case ir.Multiply():
            return x.scaled(op.factor)
        case ir.Shift():
            return x.scaled(1.0, op.offset)
        case ir.Add():
            return _sum(node, xs, shape)
        case ir.Concat():
            return _concat(node, op.axis - 1, xs, shape, valued)
    raise ModelUnsupported(
        f"node {node!r}: {type(op).__name__} cannot be computed under encryption", hint=_instead(op)
    )


def _instead(op: ir.Op) -> str:
    match op:
        case ir.Relu() | ir.Function() | ir.Piecewise():
            return POLYNOMIAL
        case ir.Max():
            return "replace the maximum by an average, or use the mpc backend"
        case ir.Softmax() | ir.ArgMax():
            return "show the scores before it, and let the receiver do this in the clear"
        case ir.Normalize():
            return "replace it by batch normalisation, which is affine once trained"
    return "use the mpc backend"


def _matrix(node: str, op: ir.Op, shape: ir.Shape, secret: Mapping[str, Array] | None) -> Matrix:
    """The matrix of a linear operator on a flattened value."""
    weight = None if secret is None or "weight" not in secret else secret["weight"]
    values: Array | None
    match op:
        case ir.Linear():
            lead = math.prod(shape[:-1])
            _cap(node, lead * op.inputs * op.outputs)
            k, i, o = np.ogrid[:lead, : op.inputs, : op.outputs]
            values = None if weight is None else np.broadcast_to(weight, (lead, *weight.shape))
            return _entries(k * op.outputs + o, k * op.inputs + i, values)
        case ir.Scale():
            flat = np.arange(math.prod(shape))
            values = None
            if weight is not None:
                values = np.broadcast_to(reference.along(weight, op.axis - 1, len(shape)), shape).reshape(-1)
            return _entries(flat, flat, values)
        case ir.Sum():
            axis = op.axis - 1
            before, held, after = math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])
            b, h, a = np.ogrid[:before, :held, :after]
            values = None if secret is None else np.ones((before, held, after))
            return _entries(b * after + a, (b * held + h) * after + a, values)
        case ir.Conv2d():
            y, x, out = _taps(op, shape, op.dilation)
            groups, across = op.groups, op.outputs // op.groups
            within = op.inputs // groups
            _cap(node, op.outputs * within * y[0].size * x[0].size)
            g, o, c = np.ogrid[:groups, :across, :within]
            place = (slice(None),) * 3 + (None, None)
            rows = ((g * across + o)[place] * out[1] + y[0][:, None]) * out[2] + x[0]
            columns = ((g * within + c)[place] * shape[1] + y[2][:, None]) * shape[2] + x[2]
            values = None
            if weight is not None:
                picked = weight[:, :, y[1][:, None], x[1]]
                values = picked.reshape(groups, across, within, y[0].size, x[0].size)
            return _entries(rows, columns, values)
        case ir.AvgPool2d():
            y, x, out = _taps(op, shape, (1, 1))
            _cap(node, shape[0] * y[0].size * x[0].size)
            c = np.arange(shape[0])[:, None, None]
            rows = (c * out[1] + y[0][:, None]) * out[2] + x[0]
            columns = (c * shape[1] + y[2][:, None]) * shape[2] + x[2]
            values = None
            if secret is not None:
                share = 1.0 / reference.pool_divisor(op, shape)[y[0][:, None], x[0]]
                values = np.broadcast_to(share, rows.shape)
            return _entries(rows, columns, values)
    raise AssertionError(op)


def _taps(
    op: ir.Conv2d | ir.AvgPool2d, shape: ir.Shape, dilation: tuple[int, int]
) -> tuple[list[npt.NDArray[np.int64]], list[npt.NDArray[np.int64]], ir.Shape]:
    """For rows and for columns: place in the result, tap, place in the picture, of each pair inside it."""
    out = op.shape(shape)
    found = []
    for axis in range(2):
        o, k = np.mgrid[: out[axis + 1], : op.kernel[axis]].reshape(2, -1)
        i = o * op.stride[axis] - op.padding[axis] + k * dilation[axis]
        inside = (i >= 0) & (i < shape[axis + 1])
        found.append([o[inside], k[inside], i[inside]])
    return found[0], found[1], out


def _cap(node: str, count: int) -> None:
    if count > MAX_NONZEROS:
        raise ModelUnsupported(
            f"node {node!r}: its matrix has {count} nonzero entries; {MAX_NONZEROS} is the most",
            hint="a smaller layer, or an activation between two layers that were composed",
        )


def _entries(rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64], values: Array | None) -> Matrix:
    shape = np.broadcast_shapes(rows.shape, columns.shape)
    if values is not None:
        values = np.ascontiguousarray(np.broadcast_to(values, shape)).reshape(-1)
    return Matrix(
        np.broadcast_to(rows, shape).astype(np.int32).reshape(-1),
        np.broadcast_to(columns, shape).astype(np.int32).reshape(-1),
        values,
    )


# -- sparse arithmetic -----------------------------------------------------------------------------


def _identity(size: int, valued: bool) -> Matrix:
    flat = np.arange(size, dtype=np.int32)
    return Matrix(flat, flat, np.ones(size) if valued else None, identity=True)


def _compose(m: Matrix, x: Affine, shape: ir.Shape) -> Affine:
    """``m`` after `x`."""
    parts = {k: m if part.identity else _product(m, part) for k, part in x.parts.items()}
    bias = None
    if x.bias is not None:
        rows = math.prod(shape)
        bias = np.zeros(rows)
        if m.values is not None:
            bias = _added(m.rows, m.values * x.bias[m.columns], rows)
    return Affine(shape, {k: part for k, part in parts.items() if part.count}, bias)


class _TooLarge(Exception):
    """A product would have too many entries; its factors have not."""


def _product(a: Matrix, b: Matrix) -> Matrix:
    """Sparse product: each entry (r, k) of `a` meets all entries of row k of `b`."""
    rows = int(max(b.rows.max(initial=-1), a.columns.max(initial=-1))) + 1
    lengths = np.bincount(b.rows, minlength=rows)
    starts = np.cumsum(lengths) - lengths
    counts = lengths[a.columns]
    total = int(counts.sum())
    if total > MAX_NONZEROS:
        raise _TooLarge
    order = np.argsort(b.rows, kind="stable")
    first = np.repeat(starts[a.columns] - (np.cumsum(counts) - counts), counts)
    met = order[first + np.arange(total)]
    values = None
    if a.values is not None and b.values is not None:
        values = np.repeat(a.values, counts) * b.values[met]
    return _merge(np.repeat(a.rows, counts), b.columns[met], values)


def _added(where: npt.NDArray[np.signedinteger], values: Array, size: int) -> Array:
    return np.bincount(where, weights=values, minlength=size).astype(np.float64, copy=False)


def _merge(rows: Indices, columns: Indices, values: Array | None) -> Matrix:
    """Add up entries of one position."""
    width = int(columns.max(initial=0)) + 1
    keys, where = np.unique(rows.astype(np.int64) * width + columns, return_inverse=True)
    if values is not None:
        values = _added(where.reshape(-1), values, keys.size)
    return Matrix((keys // width).astype(np.int32), (keys % width).astype(np.int32), values)


def _join(node: str, matrices: list[Matrix]) -> Matrix:
    if len(matrices) == 1:
        return matrices[0]
    _cap(node, sum(m.count for m in matrices))
    given = [m.values for m in matrices if m.values is not None]
    return _merge(
        np.concatenate([m.rows for m in matrices]),
        np.concatenate([m.columns for m in matrices]),
        np.concatenate(given) if given else None,
    )


def _sum(node: str, xs: list[Affine], shape: ir.Shape) -> Affine:
    names = list(dict.fromkeys(k for x in xs for k in x.parts))
    parts = {k: _join(node, [x.parts[k] for x in xs if k in x.parts]) for k in names}
    biases = [x.bias for x in xs if x.bias is not None]
    return Affine(shape, parts, np.sum(biases, axis=0) if biases else None)


def _concat(node: str, axis: int, xs: list[Affine], shape: ir.Shape, valued: bool) -> Affine:
    """Rows of each move to where the concatenation puts them."""
    places = np.arange(math.prod(shape)).reshape(shape)
    ends = np.cumsum([x.shape[axis] for x in xs])
    moved = []
    for x, rows in zip(xs, np.split(places, ends[:-1], axis=axis), strict=True):
        at = rows.reshape(-1).astype(np.int32)
        parts = {k: Matrix(at[m.rows], m.columns, m.values) for k, m in x.parts.items()}
        bias = None
        if x.bias is not None:
            bias = np.zeros(places.size)
            bias[at] = x.bias
        moved.append(Affine(shape, parts, bias))
    return _sum(node, moved, shape)
