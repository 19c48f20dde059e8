"""From a graph to a program: every node becomes fixed-point steps, rings and scales are put in between.

The program depends on the public architecture alone, so every party of a session makes the same one.
"""

from __future__ import annotations

import dataclasses
from typing import assert_never

import numpy as np

from privinfer.graph import compose, ir, reference
from privinfer.graph.emitter import Emitter, Make
from privinfer.graph.fixedpoint import (
    CONSTANT_BITS,
    MAX_WEIGHT_BITS,
    WIDE,
    Bilinear,
    Join,
    Permute,
    Pick,
    Plus,
    Program,
    Rectify,
    Reveal,
    Shape,
    Source,
    SumPool,
    Type,
)


class _Builder(Emitter):
    """Walks the graph once."""

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
            case ir.Polynomial():
                return compose.polynomial(self, xs[0], op, node.name)
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


def compile_program(
    architecture: ir.Architecture,
    *,
    exact: bool = False,
    make: Make | None = None,
    grid: int | None = None,
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
    grid : int, optional
        Fractional bits that outputs keep, exactly rounded; all by default.

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
    return _build(architecture, exact, make, grid)[0]


def tabulate(architecture: ir.Architecture, make: Make) -> ir.Architecture:
    """Put every table that a program of this architecture needs into it, and no other."""
    bare = dataclasses.replace(architecture, tables=())
    return dataclasses.replace(architecture, tables=tuple(_build(bare, False, make)[1].values()))


def _build(
    architecture: ir.Architecture, exact: bool, make: Make | None, grid: int | None = None
) -> tuple[Program, dict[str, ir.Tabulated]]:
    build = _Builder(architecture, exact, make)
    for source in architecture.inputs:
        kind = Type(source.shape, WIDE, build.f)
        build.values[source.name] = build.emit(Source(source.name), (), kind, source.name)
    for node in architecture.nodes:
        build.values[node.name] = build.node(node)
    for output in architecture.outputs:
        value = build.coarse(build.values[output.value], grid)
        build.emit(Reveal(output.name), (value,), build.type(value), output.name)
    return Program(tuple(build.steps), architecture.precision), build.tables
