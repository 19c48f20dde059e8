"""From a graph to a program: every node becomes fixed-point steps, rings and scales are put in between.

The program depends on the public architecture alone, so every party of a session makes the same one.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import assert_never

import numpy as np
import numpy.typing as npt

from privinfer.errors import ModelUnsupported, PrecisionError
from privinfer.graph import compose, ir, reference
from privinfer.graph.compose import Wanted
from privinfer.graph.fixedpoint import (
    CONSTANT_BITS,
    MAX_WEIGHT_BITS,
    MIN_WEIGHT_BITS,
    WIDE,
    Bilinear,
    Claim,
    Extend,
    Join,
    Offset,
    Operation,
    Permute,
    Pick,
    Plus,
    Program,
    Rectify,
    Reveal,
    Shape,
    Source,
    Step,
    SumPool,
    Times,
    Total,
    Truncate,
    Type,
)

Make = Callable[[Wanted], tuple[ir.Tabulated, ...]]


class Builder:
    """Walks the graph once and puts in a change of ring where one is needed."""

    def __init__(self, architecture: ir.Architecture, exact: bool, make: Make | None) -> None:
        self.exact = exact
        self.make = make
        self.inputs = {i.name: i for i in architecture.inputs}
        self.tables = {t.key: t for t in architecture.tables}
        self.n = architecture.precision.comparison_bits
        self.f = architecture.precision.fractional_bits
        self.shapes = architecture.shapes()
        self.steps: list[Step] = []
        self.values: dict[str, int] = {}
        self.changed: dict[tuple[int, Operation], int] = {}
        self.feeds_linear = _feeds_linear(architecture)

    def emit(
        self, op: Operation, inputs: tuple[int, ...], kind: Type, node: str, claim: Claim | None = None
    ) -> int:
        """Append a step; its index names its value."""
        self.steps.append(Step(len(self.steps), op, inputs, kind, node, claim))
        return len(self.steps) - 1

    def bands(self, wanted: Wanted) -> list[ir.Tabulated]:
        """The tables whose sum is a function: the architecture has them, or they are made now."""
        if wanted.band(0) not in self.tables:
            if self.make is None:
                raise ModelUnsupported(f"the architecture lacks the table of {wanted.key()}")
            self.tables.update({t.key: t for t in self.make(wanted)})
        keys = map(wanted.band, itertools.count())
        return [self.tables[k] for k in itertools.takewhile(self.tables.__contains__, keys)]

    def type(self, value: int) -> Type:
        """Ring, scale and shape of a value."""
        return self.steps[value].type

    def change(self, value: int, op: Operation, kind: Type) -> int:
        """Emit a change of ring or scale once, however many steps want it."""
        key = (value, op)
        if key not in self.changed:
            self.changed[key] = self.emit(op, (value,), kind, self.steps[value].node)
        return self.changed[key]

    def wide(self, value: int) -> int:
        """`value` in Z_2^64."""
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
        if len({self.type(v).frac for v in values}) > 1 and not self.type(values[0]).wide:
            # a narrow ring has no room for more fractional bits than f
            values = [v if self.type(v).frac <= self.f else self.narrow(self.wide(v), self.f) for v in values]
        frac = max(self.type(v).frac for v in values)
        return [self.upscale(v, frac) for v in values]

    def upscale(self, value: int, frac: int) -> int:
        """`value` with `frac` fractional bits, no fewer than it has."""
        t = self.type(value)
        if t.frac == frac:
            return value
        return self.change(value, Times((), (1 << (frac - t.frac),), exact=True), Type(t.shape, t.bits, frac))

    def node(self, node: ir.Node) -> int:
        """Emit the steps of one node of the graph."""
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
            case ir.Gather(axis, indices):
                t = self.type(xs[0])
                return self.emit(Pick(axis, indices), (xs[0],), Type(shape, t.bits, t.frac), node.name)
            case ir.Sum(axis):
                return self.total(xs[0], axis, node.name)
            case ir.Shift(offset):
                return self.offset(xs[0], offset, node.name)
            case ir.Function():
                return compose.function(self, xs[0], op, node.name)
            case ir.Piecewise():
                return compose.pieces(self, xs[0], op, node.name, wide=node.name in self.feeds_linear)
            case ir.Mul():
                return compose.product(self, xs[0], xs[1], node.name, self.f)
            case ir.MatMul():
                return compose.product(self, xs[0], xs[1], node.name, self.f, matmul=True)
            case ir.Max(axis):
                return compose.largest(self, self.narrow(xs[0], self.f), axis, node.name)
            case ir.ArgMax(axis):
                return compose.position(self, xs[0], axis, node.name)
            case ir.Softmax(axis, log):
                return compose.softmax(self, xs[0], axis, log, node.name)
            case ir.Normalize():
                return compose.normalize(self, xs[0], op, node.name)
            case _:
                assert_never(op)

    def total(self, x: int, axis: int, node: str, claim: Claim | None = None) -> int:
        """Sum over an axis, in the ring the value has."""
        t = self.type(x)
        shape = (*t.shape[: axis - 1], *t.shape[axis:])
        return self.emit(Total(axis), (x,), Type(shape, t.bits, t.frac), node, claim)

    def offset(self, x: int, value: float, node: str) -> int:
        """Add a public real number, rounded to the value's scale."""
        t = self.type(x)
        scaled = value * 2.0**t.frac
        if abs(scaled) >= 2.0 ** (t.bits - 2):
            raise PrecisionError(f"node {node!r}: the constant is too large for fixed point")
        return self.emit(Offset((), (round(scaled),)), (x,), t, node)

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


def compile_program(
    architecture: ir.Architecture, *, exact: bool = False, make: Make | None = None
) -> Program:
    """Lower an architecture to fixed-point steps.

    Parameters
    ----------
    architecture : Architecture
        The public half of a model.
    exact : bool
        Make every truncation exact, at two more rounds each: needed where a receiver is an evaluator or
        the helper, whose own share would tell it the bits that rounding should hide.
    make : callable, optional
        Makes tables that the architecture does not hold yet; see :func:`tabulate`.

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
    return _build(architecture, exact, make)[0]


def tabulate(architecture: ir.Architecture, make: Make) -> ir.Architecture:
    """Put every table that a program of this architecture needs into it, and no other."""
    bare = dataclasses.replace(architecture, tables=())
    return dataclasses.replace(architecture, tables=tuple(_build(bare, False, make)[1].values()))


def _build(
    architecture: ir.Architecture, exact: bool, make: Make | None
) -> tuple[Program, dict[str, ir.Tabulated]]:
    build = Builder(architecture, exact, make)
    for source in architecture.inputs:
        kind = Type(source.shape, WIDE, build.f)
        build.values[source.name] = build.emit(Source(source.name), (), kind, source.name)
    for node in architecture.nodes:
        build.values[node.name] = build.node(node)
    for output in architecture.outputs:
        value = build.narrow(build.values[output.value], build.f)
        build.emit(Reveal(output.name), (value,), build.type(value), output.name)
    return Program(tuple(build.steps), architecture.precision), build.tables
