"""What both importers share: a builder that turns known operators into IR nodes, and says no by name.

Axis 0 of every value is the batch, and no operator may touch it: samples of different patients never
meet. Methods take axes and shapes as the source framework counts them, batch included.

What is secret
--------------
Weights, biases and every constant *tensor* become parameters, which only the model owner holds: a constant
stored in a model may have been trained. Only numbers written in the code itself (Python literals in torch,
one-element ``Constant`` nodes in ONNX) count as architecture and become :class:`ir.Multiply`,
:class:`ir.Shift` or limits of a :class:`ir.Piecewise`, which every party sees. A one-element initializer
becomes a Scale that repeats it. Names of nodes, inputs and outputs are public too, and so are the ranges of
functions, which follow from declared ranges and from the architecture, never from weights.

The class grows over four files: build_core (names, moving values), build_math (single numbers), build_parts
(sums, norms, recurrent layers), and windows and images here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from privinfer.graph import build_einsum, ir
from privinfer.graph.build_core import (
    NO_PAD,
    Const,
    Pads,
    Ranges,
    Refused,
    Value,
    add_pads,
    advice,
    check_ranges,
    load_error,
    printable,
    refuse,
)
from privinfer.graph.build_parts import Cell, Parts, softened

__all__ = [
    "NO_PAD",
    "Builder",
    "Cell",
    "Const",
    "Pads",
    "Ranges",
    "Refused",
    "Value",
    "advice",
    "check_ranges",
    "load_error",
    "printable",
    "refuse",
    "same_padding",
    "softened",
]


class Builder(Parts):
    """Collects nodes and parameters in topological order, and every reason why a model is refused.

    Parameters
    ----------
    batch : int
        Size of axis 0 in the source's shapes.
    ranges : mapping
        Checked ranges by name of an input, or of a node.
    """

    def einsum(self, equation: str, operands: Sequence[Value | Const]) -> Value:
        """``einsum(equation, *operands)`` of one or two operands, the batch first in private ones."""
        return build_einsum.einsum(self, equation, operands)

    # --- convolution

    def conv(
        self,
        x: Value,
        w: ir.Array,
        bias: ir.Array | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
    ) -> Value:
        """Convolution over one axis or two; zero padding waiting on `x` joins its own.

        `padding` names what comes before each axis, then what comes after each.
        """
        if x.rank == 3 and w.ndim == 3:
            x = self.plain(x)
            y = self.conv(
                self.sample(x, (x.shape[0], 1, x.shape[1])),
                w[:, :, None],
                bias,
                (1, stride[-1]),
                (0, padding[0], 0, padding[-1]),
                (1, dilation[-1]),
                groups,
            )
            return self.sample(y, (y.shape[0], y.shape[2]))
        if x.rank != 4 or w.ndim != 4:
            refuse(
                f"not yet: convolution over {max(w.ndim - 2, 0)} axes of a value with {x.rank}, only "
                "(batch, channels, length) and (batch, channels, height, width)"
            )
        op = ir.Conv2d(
            inputs=w.shape[1] * groups,
            outputs=w.shape[0],
            kernel=(w.shape[2], w.shape[3]),
            stride=_two(stride),
            padding=add_pads(_four(padding), x.pad),
            dilation=_two(dilation),
            groups=groups,
        )
        b = np.zeros(w.shape[0]) if bias is None else bias
        return self.emit(op, [replace(x, pad=NO_PAD)], {"weight": w, "bias": b})

    def conv_transpose(
        self,
        x: Value,
        w: ir.Array,
        bias: ir.Array | None,
        stride: Sequence[int],
        padding: Sequence[int],
        dilation: Sequence[int],
        groups: int,
        extra: Sequence[int] = (0, 0),
    ) -> Value:
        """Transposed convolution, `w` of (in, out / groups, ...): zeros between, then a convolution.

        `extra` rows and columns come at the end of each axis, as output_padding has them.
        """
        x = self.plain(x)
        axes = w.ndim - 2
        if x.rank != w.ndim or axes not in (1, 2):
            refuse(f"not yet: transposed convolution over {max(axes, 0)} axes of a value with {x.rank}")
        inputs, outputs = w.shape[0], w.shape[1] * groups
        if groups < 1 or inputs % groups or len(padding) != 2 * axes or len(stride) < axes:
            refuse("its groups, strides or padding do not fit")
        # (in, out/g, ...) to (out, in/g, ...), mirrored
        split = w.reshape(groups, inputs // groups, w.shape[1], *w.shape[2:])
        turned = split.swapaxes(1, 2).reshape(outputs, inputs // groups, *w.shape[2:])
        turned = np.flip(turned, axis=tuple(range(2, w.ndim)))
        for k in range(axes):
            reach = dilation[k] * (w.shape[k + 2] - 1)
            size = x.shape[k + 1]
            before, after = reach - padding[k], reach - padding[axes + k] + extra[k]
            self.room(abs(before) + abs(after) + size * stride[k])
            wide = [-1] * ((size - 1) * stride[k] + 1)
            wide[:: stride[k]] = list(range(size))
            wide = wide[-before:] if before < 0 else [-1] * before + wide
            wide = wide[:after] if after < 0 else wide + [-1] * after
            x = self.take(x, k + 2, wide)
        return self.conv(
            x, np.ascontiguousarray(turned), bias, (1,) * axes, (0,) * 2 * axes, dilation, groups
        )

    def batch_norm(
        self, x: Value, gamma: ir.Array, beta: ir.Array, mean: ir.Array, var: ir.Array, eps: float
    ) -> Value:
        """Inference form: one factor and one offset for each channel."""
        w = gamma / np.sqrt(var + eps)
        b = beta - mean * w
        return self.scale(x, self.axis(1, x.rank), w, b)

    # --- pooling

    def avg_pool(
        self,
        x: Value,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        count: bool,
        ceil: bool = False,
        dilation: Sequence[int] | None = None,
    ) -> Value:
        """Average pooling; `count` and `ceil` as the frameworks have them."""
        dilation = [1] * len(kernel) if dilation is None else dilation
        if x.rank != 4 or set(dilation) != {1} or len(kernel) != 2:
            return self._sum_pool(self.plain(x), kernel, stride, padding, count, ceil, dilation)
        padding = _four(padding)
        if NO_PAD not in (x.pad, padding) and not count:
            x = self.plain(x)
        count = count or padding == NO_PAD
        total = list(add_pads(padding, x.pad))
        rest = [x.shape[k + 1] + total[k] + total[k + 2] - kernel[k] for k in (0, 1)]
        if ceil and any(r % s for r, s in zip(rest, stride, strict=True)):
            return self._sum_pool(self.plain(x), kernel, stride, padding, count, ceil, dilation)
        op = ir.AvgPool2d(_two(kernel), _two(stride), add_pads(padding, x.pad), count)
        return self.emit(op, [replace(x, pad=NO_PAD)])

    def _sum_pool(
        self,
        x: Value,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int],
        count: bool,
        ceil: bool,
        dilation: Sequence[int],
    ) -> Value:
        """Average pooling over any number of axes: sums along one after the other, then a division."""
        axes = _axes(x, kernel, stride, padding, dilation)
        divisor = np.ones(())
        for k, a in enumerate(axes):
            rows = a.rows(ceil)
            inside = (rows >= 0) & (rows < a.size)
            counted = (rows >= -a.before) & (rows < a.size + a.after) if count else inside
            divisor = np.multiply.outer(divisor, counted.sum(axis=1))
            x = self._windows(
                x, k + 2, np.where(inside, rows, -1), lambda v, axis: self.emit(ir.Sum(axis), [v])
            )
        if (divisor == divisor.flat[0]).all():
            return self.multiply(x, 1.0 / float(divisor.flat[0]))
        return self.affine(x, 1.0 / divisor, 0.0)

    def _windows(self, x: Value, axis: int, rows: np.ndarray, join: Callable[[Value, int], Value]) -> Value:
        """Bring the windows of one axis, (windows, taps), to one number each."""
        windows, taps = rows.shape
        y = self.take(x, axis, rows.T.reshape(-1).tolist())
        y = self.sample(y, (*x.shape[: axis - 1], taps, windows, *x.shape[axis:]))
        return join(y, axis)

    def adaptive_pool(self, x: Value, size: Sequence[int | None], how: str = "mean") -> Value:
        """Pooling to a given size: windows from floor(i size / out) to ceil((i + 1) size / out)."""
        x = self.plain(x)
        if x.rank != len(size) + 2:
            refuse("not yet: pooling of anything but (batch, channels) and one axis for each size")
        out = [have if want is None else want for want, have in zip(size, x.shape[1:], strict=True)]
        even = all(o >= 1 and s % o == 0 for s, o in zip(x.shape[1:], out, strict=True))
        if even and (len(out) == 2 or how == "max"):
            kernel = [s // o for s, o in zip(x.shape[1:], out, strict=True)]
            if how == "max":
                return self.max_pool(x, kernel, kernel, [0] * 2 * len(kernel))
            return self.avg_pool(x, kernel, kernel, NO_PAD, True)
        if any(o < 1 for o in out):
            refuse(f"{tuple(out)} is no size")
        self.room(max(out), max(x.shape))
        divisor = np.ones(())
        for k, o in enumerate(out):
            s = x.shape[k + 1]
            starts = [i * s // o for i in range(o)]
            ends = [-(-(i + 1) * s // o) for i in range(o)]
            widest = max(b - a for a, b in zip(starts, ends, strict=True))
            fill = -1 if how == "mean" else None
            rows = np.array(
                [
                    [*range(a, b), *[a if fill is None else fill] * (widest - b + a)]
                    for a, b in zip(starts, ends, strict=True)
                ]
            )
            divisor = np.multiply.outer(divisor, [b - a for a, b in zip(starts, ends, strict=True)])
            x = self._windows(x, k + 2, rows, self._joined(how))
        return self.affine(x, 1.0 / divisor, 0.0) if how == "mean" else x

    def _joined(self, how: str) -> Callable[[Value, int], Value]:
        return lambda v, axis: self.emit(ir.Max(axis) if how == "max" else ir.Sum(axis), [v])

    def max_pool(
        self,
        x: Value,
        kernel: Sequence[int],
        strides: Sequence[int],
        pads: Sequence[int],
        dilations: Sequence[int] | None = None,
        ceil_mode: bool = False,
    ) -> Value:
        """Largest value of each window, along one axis after the other: this takes fewer comparisons."""
        x = self.plain(x)
        axes = _axes(x, kernel, strides, pads, [1] * len(kernel) if dilations is None else dilations)
        for k, a in enumerate(axes):
            rows = a.rows(ceil_mode)
            inside = (rows >= 0) & (rows < a.size)
            if not inside.any(axis=1).all():
                refuse("a window holds nothing but padding")
            # what lies outside is replaced by something of the same window
            rows = np.where(inside, rows, np.take_along_axis(rows, inside.argmax(axis=1)[:, None], axis=1))
            if rows.shape[1] == 1:
                x = self.take(x, k + 2, rows[:, 0].tolist())
            else:
                x = self._windows(x, k + 2, rows, self._joined("max"))
        return x

    def global_pool(self, x: Value, how: str) -> Value:
        """Mean or maximum over all axes behind the channels, which stay with size one."""
        return self.reduce(x, how, range(2, x.rank), True)

    # --- images

    def upsample(self, x: Value, factors: Sequence[int]) -> Value:
        """Repeat each position of each axis behind the channels a whole number of times."""
        x = self.plain(x)
        for k, factor in enumerate(factors, 2):
            self.room(x.shape[k - 1], factor)
            x = self.take(x, k, np.repeat(np.arange(x.shape[k - 1]), factor).tolist())
        return x

    def resample(self, x: Value, axis: int, w: ir.Array) -> Value:
        """Each new position of an axis as a weighted sum of the old ones: `w` of (old, new)."""
        x = self.plain(x)
        axis = self.axis(axis, x.rank)
        if axis == x.rank - 1:
            return self.linear(x, w)
        return self.swap(self.linear(self.swap(x, axis, x.rank - 1), w), axis, x.rank - 1)

    def depth_to_space(self, x: Value, block: int, *, depth_first: bool = True) -> Value:
        """(c b b, h, w) to (c, h b, w b); `depth_first` is ONNX's DCR, else CRD, which torch has."""
        x = self.plain(x)
        if x.rank != 4 or block < 1 or x.shape[0] % block**2:
            refuse(f"blocks of {block} do not divide the channels of {x.shape}")
        d, h, w = x.shape
        c = d // block**2
        if depth_first:
            y = self.transpose(self.sample(x, (block, block, c, h, w)), [0, 3, 4, 1, 5, 2])
        else:
            y = self.transpose(self.sample(x, (c, block, block, h, w)), [0, 1, 4, 2, 5, 3])
        return self.sample(y, (c, h * block, w * block))

    def space_to_depth(self, x: Value, block: int, *, depth_first: bool = True) -> Value:
        """Inverse of :meth:`depth_to_space`."""
        x = self.plain(x)
        if x.rank != 4 or block < 1 or x.shape[1] % block or x.shape[2] % block:
            refuse(f"blocks of {block} do not divide {x.shape}")
        c, h, w = x.shape
        parts = self.sample(x, (c, h // block, block, w // block, block))
        order = [0, 3, 5, 1, 2, 4] if depth_first else [0, 1, 3, 5, 2, 4]
        return self.sample(self.transpose(parts, order), (c * block**2, h // block, w // block))


class _Axis:
    """Windows along one axis."""

    def __init__(self, size: int, kernel: int, stride: int, before: int, after: int, dilation: int) -> None:
        if min(kernel, stride, dilation) < 1 or min(before, after) < 0:
            refuse("window sizes have to be positive")
        self.size, self.kernel, self.stride = size, kernel, stride
        self.before, self.after, self.dilation = before, after, dilation

    def rows(self, ceil: bool) -> np.ndarray:
        """Positions of each window, (windows, taps); some may lie outside."""
        rest = self.size + self.before + self.after - self.dilation * (self.kernel - 1) - 1
        count = rest // self.stride + 1
        if ceil and rest % self.stride and count * self.stride < self.size + self.before:
            count += 1  # the last window has to start inside
        if count < 1:
            refuse("its window is larger than what it slides over")
        Parts.room(count, self.kernel)
        starts = np.arange(count) * self.stride - self.before
        return starts[:, None] + self.dilation * np.arange(self.kernel)[None, :]


def _axes(
    x: Value, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> list[_Axis]:
    n = len(kernel)
    if x.rank != n + 2 or not (len(stride) == len(dilation) == n and len(padding) == 2 * n):
        refuse("not yet: windows over anything but the axes behind (batch, channels)")
    return [
        _Axis(x.shape[k + 1], kernel[k], stride[k], padding[k], padding[n + k], dilation[k]) for k in range(n)
    ]


def same_padding(size: int, kernel: int, stride: int, dilation: int, *, upper: bool) -> tuple[int, int]:
    """Zeros before and after one axis so that ``ceil(size / stride)`` windows fit (ONNX SAME_*)."""
    total = max((-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    return (total // 2, total - total // 2) if upper else (total - total // 2, total // 2)


def _two(v: Sequence[int]) -> tuple[int, int]:
    if len(v) not in (1, 2):
        refuse(f"{len(v)} window sizes instead of 2")
    return int(v[0]), int(v[-1])


def _four(v: Sequence[int]) -> Pads:
    if len(v) != 4:
        refuse("its padding needs four numbers")
    return int(v[0]), int(v[1]), int(v[2]), int(v[3])
