"""The graph as a straight line of fixed-point steps: which ring and which scale each value lives in.

A value v with `frac` fractional bits is the integer round(v 2**frac) in Z_2^64 ("wide") or in Z_2^n
("narrow", n public). Bilinear steps need wide values and give narrow ones, because the opening behind
them truncates; comparison takes narrow values and gives wide ones. Everything else keeps its ring.
Where a value is needed in the other ring a step is put in: :class:`Extend` costs one round,
:class:`Truncate` nothing. The program depends on the public architecture alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privinfer.errors import PrecisionError
from privinfer.graph import ir, reference

WIDE = 64
MAX_WEIGHT_BITS = 32
MIN_WEIGHT_BITS = 12
CONSTANT_BITS = 16


@dataclass(frozen=True, slots=True)
class Type:
    """Ring, scale and per-sample shape of a value."""

    shape: ir.Shape
    bits: int
    frac: int

    @property
    def wide(self) -> bool:
        """Whether the value lives in Z_2^64."""
        return self.bits == WIDE

    @property
    def size(self) -> int:
        """Elements per sample."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Source:
    """A named input, wide."""

    input: str


@dataclass(frozen=True, slots=True)
class Bilinear:
    """``trunc(x W + b)``: weights carry `weight_frac` fractional bits, the product loses `shift` of them.

    With a shift of 0 the product stays wide, and an exact :class:`Truncate` follows.
    """

    op: ir.Linear | ir.Conv2d | ir.Scale
    weight_frac: int
    shift: int


@dataclass(frozen=True, slots=True)
class Rectify:
    """ReLU of a narrow value, as a wide one; `blinded` compares with the helper online."""

    blinded: bool = False


@dataclass(frozen=True, slots=True)
class Extend:
    """The same number, narrow to wide."""


@dataclass(frozen=True, slots=True)
class Truncate:
    """Drop `shift` fractional bits, wide to narrow; with 0 only the ring changes.

    Not `exact`: free, but the last place depends on the mask. `exact`: two rounds, rounds half up.
    """

    shift: int
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Pieces:
    """Exact piecewise affine function of a narrow value x.

    It is

        y = offset + slope x + sum_k [x >= b_k] (jump_k + bend_k (x - b_k))

    then `shift` fractional bits are dropped. With f the input's fractional bits: `breaks` count 2**-f,
    `slope` and `bends` 2**-g, `offset` and `jumps` 2**-(f + g). The result is narrow, or wide with a shift
    of 0. Needs ``|x|`` and every ``|x - b_k|`` below 2**(n - 2).
    """

    breaks: tuple[int, ...]
    jumps: tuple[int, ...]
    bends: tuple[int, ...]
    slope: int
    offset: int
    shift: int


@dataclass(frozen=True, slots=True)
class Table:
    """Piecewise polynomial of a narrow value X (an integer), by one lookup of its mask.

    With Y = X - low, u = Y >> step_bits or one more (which of them depends on the mask), and
    t = Y - (u << step_bits): y = sum_k c_k[u] t**k, with ``c_k[u] = coefficients[k * 2**cell_bits + u]``,
    then `shift` fractional bits are dropped; with a shift of 0 the result is wide. The caller sees to it
    that 0 <= Y < (2**cell_bits - 1) << step_bits.
    """

    low: int
    step_bits: int
    cell_bits: int
    degree: int
    coefficients: tuple[int, ...]
    shift: int


@dataclass(frozen=True, slots=True)
class Product:
    """Product of two secret wide values, then `shift` fractional bits are dropped (0: it stays wide).

    `matmul`: (..., m, k) by (..., k, n) with equal leading axes; otherwise elementwise, of one shape.
    """

    matmul: bool
    shift: int


@dataclass(frozen=True, slots=True)
class Larger:
    """Of each pair of neighbours along the first axis the one whose channel 0 is larger, narrow.

    (2 h, c, ...) becomes (h, c, ...): out[i] = in[2 i] if in[2 i, 0] >= in[2 i + 1, 0] else in[2 i + 1],
    elementwise behind the channels; what the other channels hold goes along.
    """


@dataclass(frozen=True, slots=True)
class Offset:
    """Sum with a public integer; the mask stays."""

    value: int


@dataclass(frozen=True, slots=True)
class Pick:
    """Entries of one axis (1: the first after the batch) in any order and number; -1 stands for zero."""

    axis: int
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Total:
    """Sum over one axis, which goes."""

    axis: int


@dataclass(frozen=True, slots=True)
class SumPool:
    """Sum over windows; the divisor sits in the scale or in a :class:`Times` behind it."""

    op: ir.AvgPool2d


@dataclass(frozen=True, slots=True)
class Times:
    """Product with public integers, one for all (shape ()) or one a position of the last axes.

    `exact` says that no rounding went into the integers.
    """

    shape: ir.Shape
    values: tuple[int, ...]
    exact: bool

    def array(self) -> npt.NDArray[np.uint64]:
        """The integers mod 2**64, to be broadcast."""
        return np.array([v % 2**64 for v in self.values], dtype=np.uint64).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Plus:
    """Sum of two values of one ring and scale."""


@dataclass(frozen=True, slots=True)
class Join:
    """Concatenation of values of one ring and scale."""

    axis: int


@dataclass(frozen=True, slots=True)
class Shape:
    """The same values in another shape."""

    to: ir.Shape


@dataclass(frozen=True, slots=True)
class Permute:
    """The same values with axes in another order."""

    order: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reveal:
    """A named output, shown to its receiver."""

    output: str


Operation = (
    Source
    | Bilinear
    | Rectify
    | Extend
    | Truncate
    | Pieces
    | Table
    | Product
    | Larger
    | Offset
    | Pick
    | Total
    | SumPool
    | Times
    | Plus
    | Join
    | Shape
    | Permute
    | Reveal
)
LOCAL = (SumPool, Times, Plus, Join, Shape, Permute, Pick, Total)


@dataclass(frozen=True, slots=True)
class Step:
    """One step: its index in the program names its value; `node` is the graph's node it comes from."""

    index: int
    operation: Operation
    inputs: tuple[int, ...]
    type: Type
    node: str


@dataclass(frozen=True, slots=True)
class Program:
    """The steps in an order in which every input is ready."""

    steps: tuple[Step, ...]
    precision: ir.Precision

    def sources(self) -> list[Step]:
        """Steps that are inputs."""
        return [s for s in self.steps if isinstance(s.operation, Source)]

    def bilinear(self) -> list[tuple[Step, Bilinear]]:
        """Steps that have weights."""
        return [(s, s.operation) for s in self.steps if isinstance(s.operation, Bilinear)]

    def reveals(self) -> list[tuple[Step, Reveal]]:
        """Steps that are outputs."""
        return [(s, s.operation) for s in self.steps if isinstance(s.operation, Reveal)]


def apply_local(step: Step, xs: list[npt.NDArray[np.uint64]]) -> npt.NDArray[np.uint64]:
    """One of the LOCAL operations on integers mod 2**bits, batch first.

    All of them are linear over the integers, so the same code serves values, masked values and shares.
    """
    x = xs[0]
    match step.operation:
        case SumPool(op):
            y = reference.windows(x, op.kernel, op.stride, op.padding).sum(axis=(4, 5), dtype=np.uint64)
        case Times():
            y = x * step.operation.array()
        case Plus():
            y = x + xs[1]
        case Join(axis):
            y = np.concatenate(xs, axis=axis)
        case Shape(to):
            y = x.reshape(x.shape[0], *to)
        case Permute(order):
            y = x.transpose(0, *order)
        case Pick(axis, indices):
            y = np.take(x, np.maximum(indices, 0), axis=axis)
            if min(indices) < 0:
                y = y * reference.along(np.array(indices) >= 0, axis, y.ndim).astype(np.uint64)
        case Total(axis):
            y = x.sum(axis=axis, dtype=np.uint64)
        case _:
            raise TypeError(f"{type(step.operation).__name__} is not local")
    return np.ascontiguousarray(low_bits(y, step.type.bits))


def low_bits(x: npt.NDArray[np.uint64], bits: int) -> npt.NDArray[np.uint64]:
    """``x mod 2**bits``."""
    return x if bits == WIDE else x & np.uint64((1 << bits) - 1)


def encode(values: npt.NDArray[np.float64], frac: int) -> npt.NDArray[np.uint64]:
    """``round(v 2**frac) mod 2**64``; the caller has checked that ``|v| 2**frac < 2**63``."""
    return np.rint(np.ldexp(values, frac)).astype(np.int64).view(np.uint64)


def decode(values: npt.NDArray[np.uint64], kind: Type) -> npt.NDArray[np.float64]:
    """The real numbers that integers mod 2**bits stand for, centred."""
    up = np.uint64(WIDE - kind.bits)
    centred = (values << up).view(np.int64) >> np.int64(WIDE - kind.bits)
    return np.asarray(np.ldexp(centred.astype(np.float64), -kind.frac))


class _Builder:
    """Walks the graph once and puts in a change of ring where one is needed."""

    def __init__(self, architecture: ir.Architecture, exact: bool) -> None:
        self.exact = exact
        self.n = architecture.precision.comparison_bits
        self.f = architecture.precision.fractional_bits
        self.shapes = architecture.shapes()
        self.steps: list[Step] = []
        self.values: dict[str, int] = {}
        self.changed: dict[tuple[int, Operation], int] = {}
        self.feeds_linear = _feeds_linear(architecture)

    def emit(self, op: Operation, inputs: tuple[int, ...], kind: Type, node: str) -> int:
        self.steps.append(Step(len(self.steps), op, inputs, kind, node))
        return len(self.steps) - 1

    def type(self, value: int) -> Type:
        return self.steps[value].type

    def change(self, value: int, op: Operation, kind: Type) -> int:
        """Emit a change of ring or scale once, however many steps want it."""
        key = (value, op)
        if key not in self.changed:
            self.changed[key] = self.emit(op, (value,), kind, self.steps[value].node)
        return self.changed[key]

    def wide(self, value: int) -> int:
        t = self.type(value)
        return value if t.wide else self.change(value, Extend(), Type(t.shape, WIDE, t.frac))

    def narrow(self, value: int, frac: int | None = None) -> int:
        """`value` in Z_2^n, with at most the wanted fractional bits where it was wide."""
        t = self.type(value)
        if not t.wide:
            return value
        keep = t.frac if frac is None else min(t.frac, frac)
        shift = t.frac - keep
        return self.change(value, Truncate(shift, self.exact and shift > 0), Type(t.shape, self.n, keep))

    def times(self, value: int, constants: npt.NDArray[np.float64], node: str) -> int:
        """Multiply a wide value by public reals; their CONSTANT_BITS fractional bits join its scale."""
        value = self.wide(self.grow(value, CONSTANT_BITS))
        t = self.type(value)
        if np.abs(constants).max() >= 2.0**24:
            raise PrecisionError(f"node {node!r}: the constant is too large for fixed point")
        scaled = np.ldexp(constants, CONSTANT_BITS)
        ints = tuple(int(c) for c in np.rint(scaled).ravel())
        exact = bool((np.rint(scaled) == scaled).all())
        kind = Type(t.shape, WIDE, t.frac + CONSTANT_BITS)
        return self.settle(self.emit(Times(constants.shape, ints, exact), (value,), kind, node))

    def settle(self, value: int) -> int:
        """Bring a wide value's scale back where it has grown so far that weights would lose precision."""
        return self.wide(self.grow(value, MIN_WEIGHT_BITS)) if self.type(value).wide else value

    def grow(self, value: int, bits: int) -> int:
        """Bring the scale back to f where `bits` more would leave less than n bits behind a truncation."""
        if WIDE - self.n - (self.type(value).frac - self.f) >= bits:
            return value
        return self.narrow(self.wide(value), self.f)

    def same(self, values: list[int], wide: bool) -> list[int]:
        """Bring values to one ring and one scale."""
        kinds = [self.type(v) for v in values]
        if not all(k.wide for k in kinds):
            values = [self.wide(v) if wide else self.narrow(v, self.f) for v in values]
        frac = max(self.type(v).frac for v in values)
        return [self.upscale(v, frac) for v in values]

    def upscale(self, value: int, frac: int) -> int:
        t = self.type(value)
        if t.frac == frac:
            return value
        return self.change(value, Times((), (1 << (frac - t.frac),), exact=True), Type(t.shape, t.bits, frac))

    def node(self, node: ir.Node) -> int:
        xs = [self.values[i] for i in node.inputs]
        shape = self.shapes[node.name]
        op = node.op
        match op:
            case ir.Linear() | ir.Conv2d() | ir.Scale():
                x = self.settle(self.wide(xs[0]))
                grown = self.type(x).frac - self.f
                bits = min(MAX_WEIGHT_BITS, WIDE - self.n - grown)
                if self.exact:
                    kind = Type(shape, WIDE, self.f + bits + grown)
                    return self.narrow(self.emit(Bilinear(op, bits, 0), (x,), kind, node.name), self.f)
                kind = Type(shape, self.n, self.f)
                return self.emit(Bilinear(op, bits, bits + grown), (x,), kind, node.name)
            case ir.Relu():
                t = self.type(x := self.narrow(xs[0], self.f))
                return self.emit(Rectify(), (x,), Type(shape, WIDE, t.frac), node.name)
            case ir.AvgPool2d():
                return self.average(xs[0], op, node.name)
            case ir.Multiply(factor):
                return self.times(xs[0], np.array(factor), node.name)
            case ir.Add():
                pair = self.same(xs, wide=False)
                t = self.type(pair[0])
                return self.emit(Plus(), tuple(pair), Type(shape, t.bits, t.frac), node.name)
            case ir.Concat(axis):
                parts = self.same(xs, wide=node.name in self.feeds_linear)
                t = self.type(parts[0])
                return self.emit(Join(axis), tuple(parts), Type(shape, t.bits, t.frac), node.name)
            case ir.Reshape(to):
                t = self.type(xs[0])
                return self.emit(Shape(to), (xs[0],), Type(shape, t.bits, t.frac), node.name)
            case ir.Transpose(order):
                t = self.type(xs[0])
                return self.emit(Permute(order), (xs[0],), Type(shape, t.bits, t.frac), node.name)

    def average(self, x: int, op: ir.AvgPool2d, node: str) -> int:
        """Sum, then divide: exactly, by moving the binary point, where the divisor is a power of two."""
        divisor = reference.pool_divisor(op, self.type(x).shape)
        count = int(divisor.flat[0])
        shift = count.bit_length() - 1
        moved = bool((divisor == divisor.flat[0]).all()) and count == 1 << shift and shift <= CONSTANT_BITS
        x = self.grow(x, shift) if moved else self.wide(x)
        t = self.type(x)
        shape = op.shape(t.shape)
        if moved:
            kind = Type(shape, t.bits, t.frac + shift)
            return self.settle(self.emit(SumPool(op), (x,), kind, node))
        total = self.emit(SumPool(op), (x,), Type(shape, t.bits, t.frac), node)
        if (divisor == divisor.flat[0]).all():
            divisor = np.array(divisor.flat[0])
        return self.times(total, 1.0 / divisor, node)


def _feeds_linear(architecture: ir.Architecture) -> set[str]:
    """Values that reach a bilinear operator before any comparison: these are better kept wide."""
    found: set[str] = set()
    for node in reversed(architecture.nodes):
        linear = isinstance(node.op, ir.Linear | ir.Conv2d | ir.Scale)
        if linear or (node.name in found and not isinstance(node.op, ir.Relu)):
            found.update(node.inputs)
    return found


def compile_program(architecture: ir.Architecture, *, exact: bool = False) -> Program:
    """Lower an architecture to fixed-point steps.

    Parameters
    ----------
    architecture : Architecture
        The public half of a model.
    exact : bool
        Make every truncation exact, at two more rounds each: needed where a receiver is an evaluator or
        the helper, whose own share would tell it the bits that rounding should hide.

    Returns
    -------
    Program
        The steps; equal architectures give equal programs at every party.

    Raises
    ------
    ModelUnsupported
        The graph does not fit together.
    PrecisionError
        A public constant does not fit.
    """
    build = _Builder(architecture, exact)
    for source in architecture.inputs:
        kind = Type(source.shape, WIDE, build.f)
        build.values[source.name] = build.emit(Source(source.name), (), kind, source.name)
    for node in architecture.nodes:
        build.values[node.name] = build.node(node)
    for output in architecture.outputs:
        value = build.narrow(build.values[output.value], build.f)
        build.emit(Reveal(output.name), (value,), build.type(value), output.name)
    return Program(tuple(build.steps), architecture.precision)
