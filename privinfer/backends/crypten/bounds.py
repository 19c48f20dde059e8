"""How far CrypTen's fixed point may stray from float64, and whether values fit its ring at all.

A real x travels as round(x 2**16) in Z_2^64. A product has 32 fractional bits, so it has to stay below
2**31, and dividing it by 2**16 truncates each share for itself. Behind that stands a probability, not a
certainty: the shares of an integer v wrap in another way than they are taken to with probability
|v| / 2**64, so for a product x with |x| / 2**32, and then the result is off by 2**32. All bounds
here are for the case that this did not happen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privinfer.errors import ModelUnsupported, PrecisionError
from privinfer.graph import ir, reference

Array = npt.NDArray[np.float64]

BITS = 16
ULP = 2.0**-BITS
LIMIT = 2.0**30  # of a product; one bit below the ring's half


@dataclass(frozen=True, slots=True)
class Bound:
    """Every value is at most `magnitude` and strays by at most `error`; shaped (1, ...)."""

    magnitude: Array
    error: Array


def rounded(values: npt.ArrayLike) -> Array:
    """To the nearest multiple of 2**-16: then CrypTen's encoding, which truncates, is exact."""
    return np.asarray(np.ldexp(np.rint(np.ldexp(np.asarray(values, np.float64), BITS)), -BITS))


def division_ulp(ranks: int, divisor: int = 1 << BITS) -> int:
    """|error| of dividing a shared integer by a public one, in units in the last place.

    Each of n shares is truncated: below 1 each. From three ranks on the wraps w of the shares, |w| <= n/2,
    are corrected by 4 floor(2**62 / divisor) each where 2**64 / divisor is due: below 4 apart, and
    equal for powers of two. With two ranks CrypTen corrects nothing.
    """
    if divisor == 1:
        return 0
    exact = ranks == 2 or divisor & (divisor - 1) == 0
    return ranks + (0 if exact else 4 * (ranks // 2))


def analyse(model: ir.Model, ranks: int) -> dict[str, Bound]:
    """Bound every value of the graph, over all inputs in their declared ranges.

    Raises
    ------
    PrecisionError
        A product may leave the ring; the message names the node.
    ModelUnsupported
        An operator is not on crypten; the message names the node.
    """
    architecture = model.architecture
    bounds: dict[str, Bound] = {}
    for source in architecture.inputs:
        shape = (1, *source.shape)
        largest = max(abs(source.low), abs(source.high))
        bounds[source.name] = Bound(np.full(shape, largest), np.full(shape, ULP / 2))
    for node, parameters in model.walk():
        xs = [bounds[name] for name in node.inputs]
        bound = _bound(node, xs, parameters, ranks)
        if float((bound.magnitude + bound.error).max(initial=0.0)) >= LIMIT:
            raise PrecisionError(
                f"layer {node.name!r}: values may not fit crypten's 64-bit ring with 16 fractional bits",
                hint="declare narrower input ranges",
            )
        bounds[node.name] = bound
    return bounds


def _bound(node: ir.Node, xs: list[Bound], parameters: Mapping[str, Array], ranks: int) -> Bound:
    x, op, last = xs[0], node.op, division_ulp(ranks) * ULP
    match op:
        case ir.Linear() | ir.Conv2d() | ir.Scale():
            weight, bias = parameters["weight"], parameters["bias"]
            near = rounded(weight)
            grown = reference.linear_map(op, x.magnitude, np.abs(weight))
            # x~ W~ - x W = (x~ - x) W~ + x (W~ - W)
            error = reference.linear_map(op, x.error, np.abs(near))
            error = error + reference.linear_map(op, x.magnitude, np.abs(near - weight)) + last

            def along(v: Array) -> Array:
                return np.asarray(reference.along(v, reference.bias_axis(op, grown.ndim), grown.ndim))

            return Bound(grown + along(np.abs(bias)), error + along(np.abs(rounded(bias) - bias)))
        case ir.AvgPool2d():
            return _average(op, x, ranks)
        case ir.Multiply(factor):
            if factor.is_integer():
                return Bound(x.magnitude * abs(factor), x.error * abs(factor))
            near = rounded(factor)
            error = x.error * abs(near) + x.magnitude * abs(near - factor) + last
            return Bound(x.magnitude * abs(factor), error)
        case ir.Shift(offset):
            return Bound(x.magnitude + abs(offset), x.error + abs(rounded(offset) - offset))
        case ir.Mul() | ir.MatMul():
            y = xs[1]
            times = np.matmul if isinstance(op, ir.MatMul) else np.multiply
            error = times(x.magnitude, y.error) + times(x.error, y.magnitude) + times(x.error, y.error)
            return Bound(times(x.magnitude, y.magnitude), error + last)
        case ir.Add():
            return Bound(x.magnitude + xs[1].magnitude, x.error + xs[1].error)
        case ir.Relu():
            return x  # the sign is that of the shared value, and max(x, 0) is a contraction
        case ir.Polynomial():
            return _polynomial(node.name, op, x, last)
        case ir.Concat() | ir.Reshape() | ir.Transpose() | ir.Sum() | ir.Gather():
            magnitude = reference.apply(op, {}, [one.magnitude for one in xs])
            return Bound(magnitude, reference.apply(op, {}, [one.error for one in xs]))
        case _:
            raise unsupported(node)


def _polynomial(name: str, op: ir.Polynomial, x: Bound, last: float) -> Bound:
    """As :func:`privinfer.backends.crypten.rank.polynomial` computes it; ``|T_k(t)| <= 1`` inside the range.

    With e_k the error of T_k, a product of two of them strays by ``e_i + e_j + e_i e_j`` and its truncation.
    """
    reach = float(x.magnitude.max(initial=0.0))
    if -reach < op.low or reach > op.high:
        raise PrecisionError(
            f"layer {name!r}: values may lie in [{-reach:.3g}, {reach:.3g}], but its polynomial is declared "
            f"on [{op.low:g}, {op.high:g}]",
            hint="fit a polynomial for a wider range, or declare narrower input ranges",
        )
    steep, shift = position_of(op)
    near, offset = rounded(steep), rounded(shift)
    first = x.error * near + x.magnitude * abs(near - steep) + last + abs(offset - shift)
    errors = {1: first}
    for k in range(2, op.degree + 1):
        a, b = errors[k // 2], errors[k - k // 2]
        errors[k] = 2 * (a + b + a * b + last) + (first if k % 2 else 0.0)
    rest = [abs(rounded(c) - c) for c in op.coefficients]
    error = np.full_like(x.magnitude, rest[0])
    for k in range(1, op.degree + 1):
        error = error + errors[k] * abs(rounded(op.coefficients[k])) + rest[k] + last
    return Bound(np.full_like(x.magnitude, sum(map(abs, op.coefficients))), error)


def position_of(op: ir.Polynomial) -> tuple[float, float]:
    """Slope and offset of t, which is -1 and 1 at the ends of the range."""
    return 2.0 / (op.high - op.low), -(op.low + op.high) / (op.high - op.low)


def divisor_of(op: ir.AvgPool2d, shape: ir.Shape) -> int | Array:
    """One integer where all windows have it; else 1 / divisor of each window, rounded to 16 bits."""
    divisor = reference.pool_divisor(op, shape)
    if (divisor == divisor.flat[0]).all():
        return int(divisor.flat[0])
    return rounded(1.0 / divisor)


def _average(op: ir.AvgPool2d, x: Bound, ranks: int) -> Bound:
    shape = x.magnitude.shape[1:]
    total, error = (
        reference.windows(v, op.kernel, op.stride, op.padding).sum(axis=(4, 5))
        for v in (x.magnitude, x.error)
    )
    exact = 1.0 / reference.pool_divisor(op, shape)
    divisor = divisor_of(op, shape)
    if isinstance(divisor, int):
        return Bound(total * exact, error * exact + division_ulp(ranks, divisor) * ULP)
    error = error * divisor + total * np.abs(divisor - exact) + division_ulp(ranks) * ULP
    return Bound(total * exact, error)


def unsupported(node: ir.Node) -> ModelUnsupported:
    """The error for an operator that this backend does not have.

    CrypTen has functions, maxima and softmax, but states no error for them, and here every operator does.
    """
    return ModelUnsupported(f"node {node.name!r} ({type(node.op).__name__}): not on crypten")
