"""Intervals that values lie in, as far as the architecture alone says: ranges of functions follow from them.

Weights never enter, so whoever knows the architecture could compute the same; :mod:`privinfer.graph.ranges`
proves more, knowing the weights, and keeps it to itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from privinfer.graph import functions, ir, reference

Span = tuple[float, float]
UNKNOWN: Span = (-math.inf, math.inf)

_RISING = frozenset(
    ("sigmoid", "tanh", "softplus", "log_sigmoid", "erf", "exp", "log", "sqrt", "atan", "softsign")
).union(("elu", "selu"))
_FALLING = frozenset(("reciprocal", "rsqrt"))
_DIPS = {"gelu": 0.17, "gelu_tanh": 0.171, "silu": 0.279, "mish": 0.309}


def spread(op: ir.Op, xs: Sequence[Span], shapes: Sequence[ir.Shape], *, same: bool = False) -> Span:
    """Interval of what an operator gives; `same` where its two operands are one value."""
    if not xs:
        return UNKNOWN
    low, high = xs[0]
    match op:
        case ir.Relu():
            return max(low, 0.0), max(high, 0.0)
        case ir.Reshape() | ir.Transpose() | ir.Max():
            return low, high
        case ir.Gather(_, indices):
            return (min(low, 0.0), max(high, 0.0)) if -1 in indices else (low, high)
        case ir.AvgPool2d():
            return (min(low, 0.0), max(high, 0.0)) if any(op.padding) else (low, high)
        case ir.Concat():
            return min(a for a, _ in xs), max(b for _, b in xs)
        case ir.Multiply(factor):
            return _corners((low, high), (factor, factor))
        case ir.Shift(offset):
            return low + offset, high + offset
        case ir.Add():
            return low + xs[1][0], high + xs[1][1]
        case ir.Mul():
            a, b = _corners(xs[0], xs[1])
            return (max(a, 0.0), b) if same else (a, b)
        case ir.MatMul():
            a, b = _corners(xs[0], xs[1])
            return a * shapes[0][-1], b * shapes[0][-1]
        case ir.Sum(axis):
            return low * shapes[0][axis - 1], high * shapes[0][axis - 1]
        case ir.ArgMax(axis):
            return 0.0, shapes[0][axis - 1] - 1.0
        case ir.Softmax(_, log):
            return (-math.inf, 0.0) if log else (0.0, 1.0)
        case ir.Normalize():
            return -math.sqrt(shapes[0][-1]), math.sqrt(shapes[0][-1])
        case ir.Function():
            return _function(op, low, high)
        case ir.Piecewise():
            return _pieces(op, low, high)
        case ir.Polynomial():
            most = sum(map(abs, op.coefficients))
            return -most, most
        case _:
            return UNKNOWN


def _corners(x: Span, y: Span) -> Span:
    found = [0.0 if 0 in (a, b) else a * b for a in x for b in y]
    return min(found), max(found)


def _function(op: ir.Function, low: float, high: float) -> Span:
    low = max(low, op.low) if op.left is None else low
    high = min(high, op.high) if op.right is None else high
    if op.name in _DIPS:
        return -_DIPS[op.name], max(high, 0.0)
    if op.name in ("sin", "cos"):
        return -1.0, 1.0
    if op.name not in _RISING | _FALLING or low > high:
        return UNKNOWN
    with np.errstate(all="ignore"):
        ends = sorted(float(v) for v in functions.get(op.name)(np.array([low, high])))
    return (ends[0], ends[1]) if not any(map(math.isnan, ends)) else UNKNOWN


def _pieces(op: ir.Piecewise, low: float, high: float) -> Span:
    """Values at the ends and on both sides of every break; straight lines beyond."""
    inside = [b for b in op.breaks if low <= b <= high]
    around = [float(np.nextafter(b, -math.inf)) for b in inside]
    points = [p for p in (*around, *inside, low, high) if math.isfinite(p) and low <= p <= high]
    values = reference.pieces(op, np.array(points)).tolist() if points else []
    for end, steep in ((low, -op.slope), (high, op.slope + sum(op.bends))):
        if math.isinf(end) and steep:
            values.append(math.copysign(math.inf, steep))
        elif math.isinf(end):
            at = (min(op.breaks) - 1.0) if end < 0 else (max(op.breaks) + 1.0)
            values.append(float(reference.pieces(op, np.array(at))))
    return (min(values), max(values)) if values else UNKNOWN
