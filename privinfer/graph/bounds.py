"""How steps that are not linear move intervals and errors; ranges.py tells of the others.

An interval says where a value of the model in float64 lies, an error how far the fixed-point value may be
from it. All bounds hold element by element for whatever lies in the intervals that came in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from privinfer.graph import fixedpoint as fp
from privinfer.graph import ir
from privinfer.graph.compose import OPENING
from privinfer.graph.emitter import Wanted

Array = npt.NDArray[np.float64]
CURVED = (fp.Pieces, fp.Table, fp.Product, fp.Larger, fp.Offset)
Curved = fp.Pieces | fp.Table | fp.Product | fp.Larger | fp.Offset
SAMPLES = 4097


class Known(Protocol):
    """What is known of a value that goes in."""

    @property
    def low(self) -> Array:
        """Least value."""

    @property
    def high(self) -> Array:
        """Largest value."""

    @property
    def error(self) -> Array:
        """How far it may stray."""


def spread(
    step: fp.Step, op: Curved, xs: Sequence[Known], scale: float, tables: Mapping[str, ir.Tabulated]
) -> tuple[Array, Array, Array]:
    """Interval and error of what comes out of a step; `scale` is that of its binary point."""
    x = xs[0]
    opened = OPENING * 2.0**-step.type.frac if getattr(op, "shift", 0) else 0.0
    match op:
        case fp.Offset():
            c = op.array().astype(np.int64).astype(np.float64) * 2.0**-step.type.frac
            return x.low + c, x.high + c, x.error + 2.0 ** -(step.type.frac + 1)
        case fp.Pieces():
            return _pieces(op, x, _scales(step, op, scale), opened)
        case fp.Table():
            return _table(op, x, tables[op.key], opened)
        case fp.Product(matmul):
            if matmul:
                return _matmul(xs, opened)
            corners = [a * b for a in (x.low, x.high) for b in (xs[1].low, xs[1].high)]
            low, high = np.minimum.reduce(corners), np.maximum.reduce(corners)
            if step.inputs[0] == step.inputs[1]:
                low = np.maximum(low, 0.0)
            return low, high, _product_error(x, xs[1], np.multiply) + opened
        case fp.Larger():
            return _larger(x)


def value(step: fp.Step, op: Curved, xs: Sequence[Array], scale: float) -> Array:
    """What a step computes, in float64."""
    x = xs[0]
    match op:
        case fp.Offset():
            return np.asarray(x + op.array().astype(np.int64) * 2.0**-step.type.frac)
        case fp.Pieces():
            return _affine(op, x, *_scales(step, op, scale))
        case fp.Table():
            wanted, low, high, base = _band(op)
            return wanted.values(np.clip(x, low, high)) - base
        case fp.Product(matmul):
            return np.asarray(x @ xs[1] if matmul else x * xs[1])
        case fp.Larger():
            first, second = x[:, 0::2], x[:, 1::2]
            return np.where(first[:, :, :1] >= second[:, :, :1], first, second)


# -- pieces ----------------------------------------------------------------------------------------


def _scales(step: fp.Step, op: fp.Pieces, scale: float) -> tuple[float, float]:
    """Units of the breaks, and of the slopes; `scale` is 2**(shift - g)."""
    return 2.0**-step.type.frac / scale, scale * 2.0**-op.shift


def _affine(op: fp.Pieces, x: Array, unit: float, slope_unit: float) -> Array:
    y = (op.offset * unit + op.slope * x) * slope_unit
    for at, jump, bend in zip(op.breaks, op.jumps, op.bends, strict=True):
        y = y + (x >= at * unit) * (jump * unit + bend * (x - at * unit)) * slope_unit
    return np.asarray(y)


def _pieces(op: fp.Pieces, x: Known, units: tuple[float, float], opened: float) -> tuple[Array, Array, Array]:
    """Extremes lie at the ends and at the breaks, on either side of a jump."""
    unit, slope_unit = units
    low, high = x.low - x.error, x.high + x.error
    moved = 0.0 if op.exact else unit / 2  # a break, by its rounding
    points = [x.low, x.high]
    jumps = np.zeros_like(x.low)
    steepest = abs(op.slope)
    slope = op.slope
    for at, jump, bend in sorted(zip(op.breaks, op.jumps, op.bends, strict=True)):
        slope += bend
        steepest = max(steepest, abs(slope))
        near = (low - moved <= at * unit) & (at * unit <= high + moved)
        jumps = jumps + near * abs(jump) * unit * slope_unit
        points += [np.clip(np.full_like(x.low, (at + d) * unit), x.low, x.high) for d in (-1e-9, 0.0)]
    values = [_affine(op, p, unit, slope_unit) for p in points]
    # values near a jump, computed or true, may fall on the other side of it
    error = x.error * steepest * slope_unit + jumps + opened
    if op.clamps:
        error = error + unit  # by which an end may have been rounded, and only one end counts
    elif not op.exact:
        error = error + unit / 2 * slope_unit * (sum(map(abs, op.bends)) + len(op.jumps) + 1)
        if slope_unit != 1.0:  # slopes were rounded too: each counts as far as its line has run
            error = error + np.maximum(np.abs(low), np.abs(high)) * slope_unit / 2
            for at in op.breaks:
                error = error + np.maximum(high - at * unit, 0.0) * slope_unit / 2
    return np.minimum.reduce(values), np.maximum.reduce(values), error


# -- tables ----------------------------------------------------------------------------------------

MONOTONE = frozenset(
    ("sigmoid", "tanh", "softplus", "log_sigmoid", "erf", "exp", "log", "sqrt", "atan", "softsign")
).union(("elu", "selu", "reciprocal", "rsqrt"))


def _band(op: fp.Table) -> tuple[Wanted, float, float, float]:
    """The function, the ends of the range, and what the table leaves out: its value at the lower end."""
    wanted = Wanted.parse(op.key)
    low, high = (v * 2.0**-wanted.frac_in for v in (op.low, op.high))
    base = 0.0 if op.key.endswith("#0") else float(wanted.values(np.array(low)))
    return wanted, low, high, base


def _steepest(op: fp.Table, frac: int) -> float:
    """Steepest of the table's own polynomials: for functions whose derivative nobody gave."""
    rows = np.abs(np.array(op.coefficients, dtype=np.float64)).reshape(op.degree + 1, -1)
    powers = [k * rows[k] * 2.0 ** (op.step_bits * (k - 1)) for k in range(1, op.degree + 1)]
    return float(np.sum(powers, axis=0).max(initial=0.0)) * 2.0**-frac if powers else 0.0


def _table(op: fp.Table, x: Known, table: ir.Tabulated, opened: float) -> tuple[Array, Array, Array]:
    wanted, first, last, base = _band(op)
    # the ends of a table are inputs, rounded; values themselves may lie beyond by as much
    unit = 2.0**-wanted.frac_in
    first = min(first, max(float(x.low.min(initial=first)), first - unit))
    last = max(last, min(float(x.high.max(initial=last)), last + unit))
    low, high = (np.clip(v, first, last) for v in (x.low, x.high))
    wide = (np.clip(v, first, last) for v in (x.low - x.error, x.high + x.error))
    # two values of the range are no further apart than the function's span there
    grid = np.linspace(first, last, SAMPLES)
    slopes = wanted.slope(grid[:-1], grid[1:])
    by_rows = _steepest(op, table.frac_out - wanted.frac_in)
    spare = np.minimum(slopes, by_rows) * np.diff(grid) / 2
    values = wanted.values(grid) - base
    least, most = float(values.min()), float(values.max())
    if wanted.name not in MONOTONE:
        least, most = least - float(spare.max()), most + float(spare.max())
    # what the function differs by at a value and at what was computed of it: by its own slope, or by that of
    # rows, of which each comes near it over two cells, at both ends of its part of the way, and beyond the
    # ends of the table not at all. Of a function whose slope nobody gave, what is seen has to do.
    seen = float((np.abs(np.diff(values)) / np.maximum(np.diff(grid), 1e-300)).max())
    steepest = float(slopes.max()) if np.isfinite(slopes).all() else max(seen, by_rows)
    parts = np.floor(x.error * 2.0 ** (wanted.frac_in - op.step_bits) / 2) + 1
    along_rows = x.error * max(seen, by_rows) + 2 * table.error * parts + unit / 2 * steepest
    slope = np.minimum(np.minimum(wanted.slope(*wide), float(slopes.max())), 1e300)
    apart = np.minimum(x.error * slope, along_rows)
    error = np.minimum(apart, most - least) + table.error + opened
    if wanted.name in MONOTONE:
        ends = wanted.values(low), wanted.values(high)
        return np.minimum(*ends) - base, np.maximum(*ends) - base, error
    return np.full_like(low, least), np.full_like(high, most), error


# -- products and maxima ---------------------------------------------------------------------------


def _reach(x: Known) -> Array:
    return np.maximum(np.abs(x.low), np.abs(x.high))


def _product_error(x: Known, y: Known, times: np.ufunc) -> Array:
    a, b = _reach(x), _reach(y)
    return np.asarray(times(a, y.error) + times(x.error, b) + times(x.error, y.error))


def _matmul(xs: Sequence[Known], opened: float) -> tuple[Array, Array, Array]:
    x, y = xs
    cx, rx = (x.low + x.high) / 2, (x.high - x.low) / 2
    cy, ry = (y.low + y.high) / 2, (y.high - y.low) / 2
    middle = cx @ cy
    radius = np.abs(cx) @ ry + rx @ np.abs(cy) + rx @ ry
    return middle - radius, middle + radius, _product_error(x, y, np.matmul) + opened


def _larger(x: Known) -> tuple[Array, Array, Array]:
    """A maximum strays no further than what went in; what goes along may be that of the other one."""
    pairs = [(v[:, 0::2], v[:, 1::2]) for v in (x.low, x.high, x.error)]
    (la, lb), (ha, hb), (ea, eb) = pairs
    low, high, error = np.minimum(la, lb), np.maximum(ha, hb), np.maximum(ea, eb)
    low[:, :, :1] = np.maximum(la, lb)[:, :, :1]
    swapped = np.maximum(ha, hb) - np.minimum(la, lb)
    sure = (la[:, :, :1] - ea[:, :, :1] > hb[:, :, :1] + eb[:, :, :1]) | (
        lb[:, :, :1] - eb[:, :, :1] > ha[:, :, :1] + ea[:, :, :1]
    )
    error[:, :, 1:] = np.where(sure, error[:, :, 1:], error[:, :, 1:] + swapped[:, :, 1:])
    return low, high, error
