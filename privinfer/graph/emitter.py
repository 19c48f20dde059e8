"""What lowering is made of: appends steps to a program, puts in changes of ring and scale, finds tables."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from privinfer.errors import ModelUnsupported, PrecisionError
from privinfer.graph import functions, ir
from privinfer.graph.fixedpoint import (
    CONSTANT_BITS,
    MIN_WEIGHT_BITS,
    WIDE,
    Claim,
    Extend,
    Join,
    Offset,
    Operation,
    Plus,
    Step,
    Times,
    Total,
    Truncate,
    Type,
)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A table that a program needs: ``factor * name(scale * x + shift)`` on [low, high].

    Attributes
    ----------
    error, relative : float
        Wanted: at most ``error + relative * |value|`` from the function.
    frac_in, frac_out : int
        Fractional bits of x and of the result.
    scale, shift, factor : float
        See above.
    tails : float
        How far the straight lines beyond the ends are from the function.
    tight : bool
        The two ends are met to the last bit, so that bands can be added up.
    """

    name: str
    low: float
    high: float
    error: float
    relative: float
    frac_in: int
    frac_out: int
    scale: float = 1.0
    shift: float = 0.0
    factor: float = 1.0
    tails: float = 0.0
    tight: bool = False

    def key(self) -> str:
        """What the architecture files the table under."""
        # floats as floats: 8 and 8.0 are one range, and only one of them comes out of an architecture's bytes
        values = ((f.type, getattr(self, f.name)) for f in fields(self))
        return " ".join(str(float(v) if kind == "float" else v) for kind, v in values)

    def band(self, k: int) -> str:
        """The key of one of the tables."""
        return f"{self.key()}#{k}"

    @classmethod
    def parse(cls, key: str) -> Wanted:
        """Inverse of :meth:`key`, also for one of its bands."""
        name, *rest = key.partition("#")[0].rsplit(" ", len(fields(cls)) - 1)
        pairs = zip(fields(cls)[1:-1], rest[:-1], strict=True)
        numbers: dict[str, Any] = {k.name: int(v) if "frac" in k.name else float(v) for k, v in pairs}
        return cls(name=name, tight=rest[-1] == "True", **numbers)

    def values(self, x: Array) -> Array:
        """The function itself, in float64."""
        return np.asarray(self.factor * functions.get(self.name)(self.scale * x + self.shift))

    def slope(self, low: Array, high: Array) -> Array:
        """No less than the absolute value of the derivative on each [low, high]."""
        ends = self.scale * low + self.shift, self.scale * high + self.shift
        known = functions.get(self.name).bound(1, np.minimum(*ends), np.maximum(*ends))
        return np.asarray(abs(self.factor * self.scale) * known)


Make = Callable[[Wanted], tuple[ir.Tabulated, ...]]


class Emitter:
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
        self.changed: dict[tuple[int, Operation, Type], int] = {}
        self.feeds_linear = _feeds_linear(architecture)

    def emit(
        self, op: Operation, inputs: tuple[int, ...], kind: Type, node: str, claim: Claim | None = None
    ) -> int:
        """Append a step; its index names its value."""
        if (
            isinstance(op, Plus | Join)
            and len({(t.bits, t.frac) for t in (kind, *map(self.type, inputs))}) > 1
        ):
            raise TypeError(f"node {node!r}: values of different rings or scales do not go together")
        if isinstance(op, Truncate) and op.shift + kind.bits > WIDE:
            raise PrecisionError(f"node {node!r}: {op.shift} bits cannot be dropped for one of {kind.bits}")
        self.steps.append(Step(len(self.steps), op, inputs, kind, node, claim))
        return len(self.steps) - 1

    def bands(self, wanted: Wanted, node: str) -> list[ir.Tabulated]:
        """The tables whose sum is a function: the architecture has them, or they are made now."""
        if wanted.band(0) not in self.tables:
            if self.make is None:
                raise ModelUnsupported(
                    f"node {node!r}: the architecture lacks the table of {wanted.key()[:200]}"
                )
            try:
                self.tables.update({t.key: t for t in self.make(wanted)})
            except (ModelUnsupported, PrecisionError) as e:
                raise type(e)(f"node {node!r}: {e.message}", hint=e.hint) from None
        keys = map(wanted.band, itertools.count())
        return [self.tables[k] for k in itertools.takewhile(self.tables.__contains__, keys)]

    def type(self, value: int) -> Type:
        """Ring, scale and shape of a value."""
        return self.steps[value].type

    def change(self, value: int, op: Operation, kind: Type) -> int:
        """Emit a change of ring or scale once, however many steps want it."""
        key = (value, op, kind)
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

    def coarse(self, value: int, grid: int | None) -> int:
        """`value` as it is shown: narrow, with at most f fractional bits, or exactly rounded to `grid`."""
        t = self.type(value)
        if grid is None or t.frac <= grid:
            return self.narrow(value, self.f)
        shift = t.frac - grid
        if not t.wide or self.n + shift > WIDE:
            t = self.type(value := self.narrow(value, self.f))
            shift = t.frac - grid
            if shift <= 0:
                return value
        bits = self.n if t.wide else t.bits - shift
        if bits < 2:
            raise PrecisionError(
                f"node {self.steps[value].node!r}: rounding would leave nothing of its values"
            )
        return self.change(value, Truncate(shift, exact=True), Type(t.shape, bits, grid))

    def slim(self, value: int, bits: int) -> int:
        """A wide value in a narrow ring of fewer bits than others have, for values known to be small."""
        t = self.type(value)
        return self.change(value, Truncate(0), Type(t.shape, bits, t.frac))

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


def _feeds_linear(architecture: ir.Architecture) -> set[str]:
    """Values that reach a bilinear operator before any comparison: these are better kept wide."""
    found: set[str] = set()
    for node in reversed(architecture.nodes):
        linear = isinstance(node.op, ir.Linear | ir.Conv2d | ir.Scale)
        if linear or (node.name in found and not isinstance(node.op, ir.Relu)):
            found.update(node.inputs)
    return found
