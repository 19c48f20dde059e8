"""The operators of a graph: what each computes, which shapes go with it, which secret parameters it has.

Attributes are public: they are part of the architecture, which every party of a session holds. Shapes are
per sample, without the batch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import get_args

Shape = tuple[int, ...]
MAX_DEGREE = 31  # of a Polynomial


class Misfit(Exception):
    """Shapes that do not go with an operator."""


def _need(condition: bool, why: str) -> None:
    if not condition:
        raise Misfit(why)


def _windows(
    x: Shape,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
) -> Shape:
    _need(min(*kernel, *stride, *dilation) >= 1 and min(padding) >= 0, "window sizes have to be positive")
    top, left, bottom, right = padding
    return (
        conv_output(x[1], kernel[0], stride[0], top, bottom, dilation[0]),
        conv_output(x[2], kernel[1], stride[1], left, right, dilation[1]),
    )


def conv_output(size: int, kernel: int, stride: int, before: int, after: int, dilation: int = 1) -> int:
    """Length of one spatial axis after a window of `kernel` taps slides over it."""
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


class Operator:
    """What each operator tells of itself.

    ``shape(*inputs)`` gives the per-sample shape of the result (or says why the inputs do not fit), and
    ``parameters()`` the shapes of its secret parameters by name.
    """

    __slots__ = ()

    def parameters(self) -> dict[str, Shape]:
        return {}


@dataclass(frozen=True, slots=True)
class Linear(Operator):
    """``y = x W + b`` on the last axis; parameters ``weight`` (in, out) and ``bias`` (out,)."""

    inputs: int
    outputs: int

    def shape(self, x: Shape) -> Shape:
        _need(bool(x) and x[-1] == self.inputs, f"the last axis has to hold {self.inputs} values, not {x}")
        return (*x[:-1], self.outputs)

    def parameters(self) -> dict[str, Shape]:
        return {"weight": (self.inputs, self.outputs), "bias": (self.outputs,)}


@dataclass(frozen=True, slots=True)
class Conv2d(Operator):
    """Cross-correlation of (C, H, W) with ``weight`` (out, in / groups, KH, KW), plus ``bias`` (out,).

    `padding` is (top, left, bottom, right).
    """

    inputs: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def shape(self, x: Shape) -> Shape:
        _need(len(x) == 3 and x[0] == self.inputs, f"needs ({self.inputs}, H, W), not {x}")
        _need(
            self.groups > 0 and self.inputs % self.groups == 0 and self.outputs % self.groups == 0,
            f"{self.groups} groups do not divide the channels",
        )
        return (self.outputs, *_windows(x, self.kernel, self.stride, self.padding, self.dilation))

    def parameters(self) -> dict[str, Shape]:
        return {
            "weight": (self.outputs, self.inputs // max(self.groups, 1), *self.kernel),
            "bias": (self.outputs,),
        }


@dataclass(frozen=True, slots=True)
class Scale(Operator):
    """``y = x * weight + bias``, one secret pair a position of `axis` (1: the first after the batch)."""

    axis: int
    size: int

    def shape(self, x: Shape) -> Shape:
        _need(1 <= self.axis <= len(x) and x[self.axis - 1] == self.size, f"axis {self.axis} of {x}")
        return x

    def parameters(self) -> dict[str, Shape]:
        return {"weight": (self.size,), "bias": (self.size,)}


@dataclass(frozen=True, slots=True)
class AvgPool2d(Operator):
    """Mean over windows; `count_padding` says whether padded zeros count in the divisor."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    count_padding: bool = True

    def shape(self, x: Shape) -> Shape:
        _need(len(x) == 3, f"needs (C, H, W), not {x}")
        top, left, bottom, right = self.padding
        _need(
            max(top, bottom) < self.kernel[0] and max(left, right) < self.kernel[1],
            "padding has to be smaller than the window",
        )
        return (x[0], *_windows(x, self.kernel, self.stride, self.padding, (1, 1)))


@dataclass(frozen=True, slots=True)
class Relu(Operator):
    """``max(x, 0)``, exact."""

    def shape(self, x: Shape) -> Shape:
        return x


@dataclass(frozen=True, slots=True)
class Add(Operator):
    """Sum of two values of one shape (no broadcasting)."""

    def shape(self, x: Shape, y: Shape) -> Shape:
        _need(x == y, f"{x} and {y} differ")
        return x


@dataclass(frozen=True, slots=True)
class Multiply(Operator):
    """Product with a public constant, which is part of the architecture."""

    factor: float

    def shape(self, x: Shape) -> Shape:
        _need(math.isfinite(self.factor), "the factor is not finite")
        return x


@dataclass(frozen=True, slots=True)
class Concat(Operator):
    """Concatenation along `axis` (1 is the first after the batch)."""

    axis: int

    def shape(self, *xs: Shape) -> Shape:
        _need(bool(xs) and 1 <= self.axis <= len(xs[0]), f"no axis {self.axis}")
        k = self.axis - 1
        _need(
            all(len(x) == len(xs[0]) and x[:k] + x[k + 1 :] == xs[0][:k] + xs[0][k + 1 :] for x in xs),
            f"shapes {list(xs)} do not fit together",
        )
        return (*xs[0][:k], sum(x[k] for x in xs), *xs[0][k + 1 :])


@dataclass(frozen=True, slots=True)
class Reshape(Operator):
    """The same values in row-major order under another per-sample shape."""

    to: Shape

    def shape(self, x: Shape) -> Shape:
        _need(math.prod(x) == math.prod(self.to), f"{x} cannot become {self.to}")
        return self.to


@dataclass(frozen=True, slots=True)
class Transpose(Operator):
    """Axes in another order; `order` permutes 1..k, the batch stays first."""

    order: tuple[int, ...]

    def shape(self, x: Shape) -> Shape:
        _need(sorted(self.order) == list(range(1, len(x) + 1)), f"order {self.order} of {x}")
        return tuple(x[k - 1] for k in self.order)


@dataclass(frozen=True, slots=True)
class Function(Operator):
    """A smooth function of one variable, elementwise, within `error` on [low, high].

    The error is relative for exp, reciprocal and rsqrt, as far as the fractional bits go.

    `name` is one of :mod:`privinfer.graph.functions`, or a user's own. Beyond an end the function goes on
    with the slope given there; where that is None, no value may go beyond.
    """

    name: str
    low: float
    high: float
    error: float
    left: float | None = None
    right: float | None = None

    def shape(self, x: Shape) -> Shape:
        numbers = (self.low, self.high, self.error, self.left or 0.0, self.right or 0.0)
        _need(all(math.isfinite(v) for v in numbers), f"the range of {self.name} is not finite")
        _need(self.low < self.high and self.error > 0, f"the range or the error of {self.name} is empty")
        _need(0 < len(self.name) <= 100 and self.name.isprintable(), "the function's name is not printable")
        return x


@dataclass(frozen=True, slots=True)
class Piecewise(Operator):
    """Piecewise affine: ``offset + slope x + sum_k [x >= break_k] (jump_k + bend_k (x - break_k))``."""

    breaks: tuple[float, ...]
    jumps: tuple[float, ...]
    bends: tuple[float, ...]
    slope: float = 0.0
    offset: float = 0.0

    def shape(self, x: Shape) -> Shape:
        _need(
            1 <= len(self.breaks) == len(self.jumps) == len(self.bends) <= 64,
            "1 to 64 breaks, each with a jump and a bend",
        )
        numbers = (*self.breaks, *self.jumps, *self.bends, self.slope, self.offset)
        _need(all(math.isfinite(v) for v in numbers), "a break, a jump or a bend is not finite")
        return x


@dataclass(frozen=True, slots=True)
class Polynomial(Operator):
    """``sum_k coefficients[k] T_k(t)``, elementwise, with Chebyshev's T_k and t in [-1, 1].

    ``t = (2 x - low - high) / (high - low)``. No x may lie outside [low, high]: the sum grows fast there,
    and no backend promises what it gives.
    """

    low: float
    high: float
    coefficients: tuple[float, ...]

    @property
    def degree(self) -> int:
        """Of the polynomial, counting leading zeros."""
        return len(self.coefficients) - 1

    def shape(self, x: Shape) -> Shape:
        _need(1 <= self.degree <= MAX_DEGREE, f"a polynomial has degree 1 to {MAX_DEGREE}")
        numbers = (self.low, self.high, self.high - self.low, *self.coefficients)
        _need(all(math.isfinite(v) for v in numbers), "the range or a coefficient is not finite")
        _need(self.low < self.high, "the polynomial's range is empty")
        return x


@dataclass(frozen=True, slots=True)
class Shift(Operator):
    """Sum with a public constant, which is part of the architecture."""

    offset: float

    def shape(self, x: Shape) -> Shape:
        _need(math.isfinite(self.offset), "the constant is not finite")
        return x


@dataclass(frozen=True, slots=True)
class Mul(Operator):
    """Elementwise product of two private values of one shape (no broadcasting)."""

    def shape(self, x: Shape, y: Shape) -> Shape:
        _need(x == y, f"{x} and {y} differ")
        return x


@dataclass(frozen=True, slots=True)
class MatMul(Operator):
    """``x @ y`` of two private values over their last two axes; leading axes are equal."""

    def shape(self, x: Shape, y: Shape) -> Shape:
        fits = len(x) == len(y) >= 2 and x[:-2] == y[:-2] and x[-1] == y[-2]
        _need(fits, f"{x} @ {y} do not fit")
        return (*x[:-1], y[-1])


@dataclass(frozen=True, slots=True)
class Max(Operator):
    """Largest value along an axis, which goes."""

    axis: int

    def shape(self, x: Shape) -> Shape:
        return _without(x, self.axis)


@dataclass(frozen=True, slots=True)
class ArgMax(Operator):
    """Position of the largest value along an axis, which goes; the first of equal ones."""

    axis: int

    def shape(self, x: Shape) -> Shape:
        return _without(x, self.axis)


@dataclass(frozen=True, slots=True)
class Sum(Operator):
    """Sum along an axis, which goes."""

    axis: int

    def shape(self, x: Shape) -> Shape:
        return _without(x, self.axis)


@dataclass(frozen=True, slots=True)
class Softmax(Operator):
    """``exp(x) / sum exp(x)`` along an axis, or its logarithm."""

    axis: int
    log: bool = False

    def shape(self, x: Shape) -> Shape:
        _without(x, self.axis)
        return x


@dataclass(frozen=True, slots=True)
class Normalize(Operator):
    """``(x - mean) / sqrt(variance + eps)`` over the last axis.

    A variance beyond [low, high] counts as that end. Without a declared `low` an error bound says little:
    it has to hold where the variance is next to nothing.
    """

    eps: float
    low: float = 0.0
    high: float = 2.0**8

    def shape(self, x: Shape) -> Shape:
        _need(bool(x) and x[-1] > 1, f"needs at least two values on the last axis of {x}")
        _need(
            0 <= self.eps < math.inf and 0 <= self.low < self.high < math.inf, "eps or range of the variance"
        )
        return x


@dataclass(frozen=True, slots=True)
class Gather(Operator):
    """Entries of one axis in the order, and as often, as `indices` say; -1 stands for zero."""

    axis: int
    indices: tuple[int, ...]

    def shape(self, x: Shape) -> Shape:
        size = x[self.axis - 1] if 1 <= self.axis <= len(x) else 0
        _need(size > 0, f"no axis {self.axis} in {x}")
        _need(bool(self.indices) and all(-1 <= i < size for i in self.indices), f"an index beyond {size}")
        k = self.axis - 1
        return (*x[:k], len(self.indices), *x[k + 1 :])


def _without(x: Shape, axis: int) -> Shape:
    _need(1 <= axis <= len(x), f"no axis {axis} in {x}")
    return (*x[: axis - 1], *x[axis:])


Op = (
    Linear
    | Conv2d
    | Scale
    | AvgPool2d
    | Relu
    | Add
    | Multiply
    | Concat
    | Reshape
    | Transpose
    | Function
    | Piecewise
    | Polynomial
    | Shift
    | Mul
    | MatMul
    | Max
    | ArgMax
    | Sum
    | Softmax
    | Normalize
    | Gather
)
OPS: dict[str, type[Op]] = {cls.__name__: cls for cls in get_args(Op)}
