"""The model in the clear, in float64: for the model owner's analysis, for tests, for the demo's comparison.

Plain NumPy on purpose: it is the twin the protocols are held against, so it must be easy to read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from privinfer.graph import chebyshev, functions, ir

AnyArray = npt.NDArray[Any]


def windows(
    x: AnyArray,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int] = (1, 1),
) -> AnyArray:
    """All windows of (B, C, H, W), zero padded: (B, C, OH, OW, KH, KW), of the same dtype."""
    top, left, bottom, right = padding
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    span = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    v = np.lib.stride_tricks.sliding_window_view(x, span, axis=(2, 3))
    return v[:, :, :: stride[0], :: stride[1], :: dilation[0], :: dilation[1]]


def conv2d(x: AnyArray, w: AnyArray, op: ir.Conv2d) -> AnyArray:
    """Convolution without bias, in the dtype of the arguments."""
    v = windows(x, op.kernel, op.stride, op.padding, op.dilation)
    b, _, oh, ow = v.shape[:4]
    g, cin, cout = op.groups, op.inputs // op.groups, op.outputs // op.groups
    parts = []
    for k in range(g):
        a = v[:, k * cin : (k + 1) * cin].transpose(0, 2, 3, 1, 4, 5)
        flat = a.reshape(b * oh * ow, cin * op.kernel[0] * op.kernel[1])
        parts.append(flat @ w[k * cout : (k + 1) * cout].reshape(cout, -1).T)
    return np.concatenate(parts, axis=1).reshape(b, oh, ow, op.outputs).transpose(0, 3, 1, 2)


def along(v: AnyArray, axis: int, rank: int) -> AnyArray:
    """Shape a vector so that it broadcasts along `axis` of a value with `rank` axes, batch included."""
    return v.reshape([-1 if k == axis else 1 for k in range(rank)])


def linear_map(op: ir.Linear | ir.Conv2d | ir.Scale, x: AnyArray, w: AnyArray) -> AnyArray:
    """Compute the bilinear part of a linear operator, in the dtype of its arguments."""
    if isinstance(op, ir.Linear):
        return np.asarray(x @ w)
    if isinstance(op, ir.Conv2d):
        return conv2d(x, w, op)
    return np.asarray(x * along(w, op.axis, x.ndim))


def bias_axis(op: ir.Linear | ir.Conv2d | ir.Scale, rank: int) -> int:
    """Axis of the output that the bias runs along."""
    if isinstance(op, ir.Linear):
        return rank - 1
    return 1 if isinstance(op, ir.Conv2d) else op.axis


def pool_divisor(op: ir.AvgPool2d, shape: ir.Shape) -> AnyArray:
    """How many values each window of a (C, H, W) value averages: (OH, OW)."""
    if op.count_padding:
        return np.full(op.shape(shape)[1:], op.kernel[0] * op.kernel[1], dtype=np.float64)
    ones = np.ones((1, 1, *shape[1:]))
    return np.asarray(windows(ones, op.kernel, op.stride, op.padding).sum(axis=(4, 5))[0, 0])


def function(op: ir.Function, x: AnyArray) -> AnyArray:
    """A named function, going on with a straight line beyond an end that has a slope."""
    inside = np.clip(x, op.low, op.high)
    known = functions.get(op.name)
    at = x if op.name in functions.FUNCTIONS else inside
    y = known(np.where((op.left is None) & (x < op.low) | (op.right is None) & (x > op.high), inside, at))
    return np.asarray(y)


def pieces(op: ir.Piecewise, x: AnyArray) -> AnyArray:
    """A piecewise affine function."""
    y = op.offset + op.slope * x
    for at, jump, bend in zip(op.breaks, op.jumps, op.bends, strict=True):
        y = y + (x >= at) * (jump + bend * (x - at))
    return np.asarray(y)


def polynomial(op: ir.Polynomial, x: AnyArray) -> AnyArray:
    """A polynomial; beyond its range it is what it is there, which nothing else has to agree with."""
    return chebyshev.evaluate(op.low, op.high, op.coefficients, x)


def pick(x: AnyArray, axis: int, indices: tuple[int, ...]) -> AnyArray:
    """Entries of one axis; -1 stands for zero. In the dtype of the argument."""
    y = np.take(x, np.maximum(indices, 0), axis=axis)
    if min(indices) < 0:
        y = y * along(np.array(indices) >= 0, axis, y.ndim).astype(y.dtype)
    return np.asarray(y)


def apply(op: ir.Op, params: Mapping[str, AnyArray], xs: list[AnyArray]) -> AnyArray:
    """One operator on float64 values, batch first."""
    x = xs[0]
    match op:
        case ir.Linear() | ir.Conv2d() | ir.Scale():
            y = linear_map(op, x, params["weight"])
            return np.asarray(y + along(params["bias"], bias_axis(op, y.ndim), y.ndim))
        case ir.AvgPool2d():
            total = windows(x, op.kernel, op.stride, op.padding).sum(axis=(4, 5))
            return np.asarray(total / pool_divisor(op, x.shape[1:]))
        case ir.Relu():
            return np.asarray(np.maximum(x, 0.0))
        case ir.Add():
            return np.asarray(x + xs[1])
        case ir.Multiply():
            return x * op.factor
        case ir.Concat():
            return np.concatenate(xs, axis=op.axis)
        case ir.Reshape():
            return x.reshape(x.shape[0], *op.to)
        case ir.Transpose():
            return x.transpose(0, *op.order)
        case ir.Function():
            return function(op, x)
        case ir.Piecewise():
            return pieces(op, x)
        case ir.Polynomial():
            return polynomial(op, x)
        case ir.Shift():
            return np.asarray(x + op.offset)
        case ir.Mul():
            return np.asarray(x * xs[1])
        case ir.MatMul():
            return np.asarray(x @ xs[1])
        case ir.Max():
            return np.asarray(x.max(axis=op.axis))
        case ir.ArgMax():
            return np.asarray(x.argmax(axis=op.axis), dtype=np.float64)
        case ir.Sum():
            return np.asarray(x.sum(axis=op.axis))
        case ir.Softmax():
            y = np.asarray(x - x.max(axis=op.axis, keepdims=True))
            total = np.exp(y).sum(axis=op.axis, keepdims=True)
            return np.asarray(y - np.log(total) if op.log else np.exp(y) / total)
        case ir.Normalize():
            y = x - x.mean(axis=-1, keepdims=True)
            variance = np.clip((y * y).mean(axis=-1, keepdims=True), op.low, op.high)
            return np.asarray(y / np.sqrt(variance + op.eps))
        case ir.Gather():
            return pick(x, op.axis, op.indices)


def run(
    model: ir.Model,
    inputs: Mapping[str, AnyArray],
    watch: Callable[[str, AnyArray], None] | None = None,
) -> dict[str, AnyArray]:
    """Evaluate `model` in float64.

    Parameters
    ----------
    model : Model
        The model.
    inputs : mapping of ndarray
        Each input, batch first.
    watch : callable, optional
        Called with the name and value of every input and node.

    Returns
    -------
    dict of ndarray
        Outputs by name, batch first.
    """
    values: dict[str, AnyArray] = {
        i.name: np.asarray(inputs[i.name], dtype=np.float64) for i in model.architecture.inputs
    }
    for node, params in model.walk():
        values[node.name] = apply(node.op, params, [values[i] for i in node.inputs])
    if watch is not None:
        for name, value in values.items():
            watch(name, value)
    return {o.name: values[o.value] for o in model.architecture.outputs}
