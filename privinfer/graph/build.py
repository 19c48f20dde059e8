"""What both importers share: a builder that turns known operators into IR nodes, and says no by name.

Axis 0 of every value is the batch, and no operator may touch it: samples of different patients never
meet. Methods take axes and shapes as the source framework counts them, batch included.

What is secret
--------------
Weights, biases and every constant *tensor* become parameters, which only the model owner holds: a constant
stored in a model may have been trained. Only numbers written in the code itself (Python literals in torch,
one-element ``Constant`` nodes in ONNX) count as architecture and become :class:`ir.Multiply`, which every
party sees. A one-element initializer becomes a Scale that repeats it. Names of nodes, inputs and outputs
are public too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from privinfer.errors import ConfigError, ModelUnsupported
from privinfer.graph import ir, reference, rewrite

T = TypeVar("T")
Pads = tuple[int, int, int, int]
Ranges = Mapping[str, tuple[float, float]]

MAX_REPORTED = 10
NO_PAD: Pads = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Value:
    """A private value: its name in the graph, its per-sample shape, zero padding still to be applied."""

    name: str
    shape: ir.Shape
    pad: Pads = NO_PAD
    pad_node: str = ""

    @property
    def rank(self) -> int:
        """Number of axes, batch included."""
        return len(self.shape) + 1


@dataclass(frozen=True, slots=True)
class Const:
    """A constant the model owner knows; `public` where it stands in the code, as architecture does."""

    array: npt.NDArray[Any]
    public: bool = False

    def __repr__(self) -> str:
        return f"Const(shape={self.array.shape}, dtype={self.array.dtype})"


class Refused(Exception):
    """Why the node at hand cannot be imported; the builder adds its name."""


def refuse(why: str) -> NoReturn:
    """Say no to the node at hand: `why` starts with never, not yet or replace by where that fits."""
    raise Refused(why)


# patterns of an operator's name, lower case, without underscores or a trailing "2d"
_ADVICE = (
    (r"(global|adaptive|lp)?(max|lp)pool", "not yet, replace by average pooling or a strided convolution"),
    (
        r"if|loop|scan|cond|whileloop|nonzero|unique|compress|item|localscalardense|maskedselect|bincount",
        "never: which steps run, or how large a result is, would depend on private data",
    ),
    (
        r"tanh|gelu|silu|mish|swish|p?relu6?|(leaky|r|s|c|thresholded)?relu|[sc]?elu|softplus|softsign|erf"
        r"|hard(sigmoid|swish|tanh)|threshold|clip|clamp",
        "not yet, replace by ReLU",
    ),
    (
        r"(native|fused)?(layer|instance|group|rms|lp)norm(alization)?|lrn",
        "not yet: its statistics depend on private data, replace by BatchNorm",
    ),
    (r"lstm|gru|rnn(tanh|relu)?", "not yet, replace by convolutions over time or by linear layers"),
    (
        r"split(withsizes)?|chunk|slice|select|gather(nd|elements)?|indexselect|narrow|unbind|index",
        "not yet: parts of a private value cannot be taken out",
    ),
    (r"embedding|onehot", "not yet, replace by a one-hot input and a linear layer"),
    (r"scaleddotproductattention|attention|einsum|bmm", "not yet: the product of two private values"),
    (
        r".*quantize.*|qlinear.*|(conv|matmul)integer",
        "not yet: quantised weights, export the model with floating-point weights",
    ),
    (r"convtranspose|upsample.*|resize|interpolate", "not yet: enlarging an image"),
    (r"rand.*|bernoulli|multinomial|normal", "never: a random result cannot be agreed on"),
    (r"argmax|topk|sort", "not yet, replace by leaving it off: the receiver applies it"),
)
_FINAL = {"sigmoid", "softmax", "logsoftmax", "logsigmoid", "hardmax"}


def advice(op: str, *, last: bool) -> str:
    """Why operator `op` is refused and what could replace it; `last` where an output shows its result."""
    key = re.sub(r"(\dd)?(_with_indices)?$", "", op).replace("_", "").lower()
    if key in _FINAL:
        if last:
            return "replace by leaving it off: the receiver applies it to the output in the clear"
        return "not yet inside a model, replace by ReLU"
    return next((why for pattern, why in _ADVICE if re.fullmatch(pattern, key)), "not yet")


def printable(text: str) -> str:
    """Give a name of a foreign file in a form that is safe to show: printable and short."""
    return "".join(c if c.isprintable() else "_" for c in text[:160])


def load_error(what: str, error: Exception) -> str:
    """One short line about a failure of another library, without what else its message may hold."""
    line = (str(error).strip().splitlines() or [""])[0].strip().rstrip(".")
    line = printable(line)
    return f"{what}: {line}" if line else f"{what} ({type(error).__name__})"


def check_ranges(ranges: Ranges | None, names: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Give the declared ranges as floats.

    Raises
    ------
    ConfigError
        A range is not two finite numbers in order, or belongs to no input.
    """
    known, checked = set(names), {}
    for name, pair in (ranges or {}).items():
        if name not in known:
            raise ConfigError(
                f"a range is given for {name!r}, which is no input",
                hint=f"inputs: {', '.join(sorted(known))}",
            )
        try:
            low, high = (float(v) for v in pair)
        except (TypeError, ValueError, OverflowError):
            raise ConfigError(f"the range of input {name!r} is not a pair of numbers") from None
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ConfigError(f"the range of input {name!r} is not a finite interval (low, high)")
        checked[name] = (low, high)
    return checked


class Builder:
    """Collects nodes and parameters in topological order, and every reason why a model is refused.

    Parameters
    ----------
    batch : int
        Size of axis 0 in the source's shapes.
    ranges : mapping
        Checked ranges by input name.
    """

    def __init__(self, batch: int, ranges: Ranges) -> None:
        self.batch = batch
        self.problems: list[str] = []
        self._ranges = ranges
        self._inputs: list[ir.Input] = []
        self._nodes: dict[str, ir.Node] = {}
        self._shapes: dict[str, ir.Shape] = {}
        self._parameters: ir.Parameters = {}
        self._at = ("", "")

    # --- nodes and names

    def input(self, name: str, shape: Sequence[int]) -> Value:
        """Add an input of `shape`, batch included."""
        if not name or len(name) > 200 or not name.isprintable():
            raise ConfigError("an input has an empty, long or unprintable name")
        if not shape or shape[0] != self.batch:
            raise ConfigError(f"input {name!r}: axis 0 has to be the batch, of one size for all inputs")
        if any(d < 1 for d in shape):
            raise ConfigError(f"input {name!r}: shape {tuple(shape)} is not possible")
        sample = tuple(int(d) for d in shape[1:])
        self._inputs.append(ir.Input(name, sample, *self._ranges.get(name, ir.DEFAULT_RANGE)))
        self._shapes[name] = sample
        return Value(name, sample)

    def attempt(self, name: str, op: str, convert: Callable[[], T]) -> T | None:
        """Run the conversion of one source node; a refusal is kept for the final message."""
        op = printable(op)
        self._at = (printable(name) or op, op)
        try:
            with np.errstate(all="ignore"):  # weights that overflow are refused, here or by ir.Model
                return convert()
        except Refused as e:
            self.problems.append(f"node {self._at[0]!r} ({op}): {e}")
        except ModelUnsupported as e:
            self.problems.append(e.message)
        return None

    def emit(self, op: ir.Op, inputs: Sequence[Value], params: Mapping[str, ir.Array] | None = None) -> Value:
        """Add one IR node under the name of the source node, made unique."""
        sources = [self.plain(v) for v in inputs]
        name, k = self._at[0], 1
        while name in self._shapes:
            k += 1
            name = f"{self._at[0]}_{k}"
        node = ir.Node(name, op, tuple(v.name for v in sources))
        given = tuple(ir.Input(v.name, v.shape) for v in {v.name: v for v in sources}.values())
        shape = ir.Architecture(given, (node,), (ir.Output(name, name),)).shapes()[name]
        for key, wanted in op.parameters().items():
            if params is None or params[key].shape != wanted:
                got = None if params is None else params[key].shape
                refuse(f"{key} has shape {got}, not {wanted}")
        self._nodes[name], self._shapes[name] = node, shape
        if params:
            self._parameters[name] = dict(params)
        return Value(name, shape)

    def plain(self, x: Value) -> Value:
        """Give the value without pending padding, or refuse."""
        if x.pad != NO_PAD:
            refuse(
                f"not yet: the padding of node {x.pad_node!r} only works right before a convolution or an "
                "average pooling, replace by the padding of such a layer"
            )
        return x

    def weights(self, c: Const) -> ir.Array:
        """Give a constant as float64 weights."""
        if c.array.dtype.kind != "f":
            refuse(f"not yet: weights of type {c.array.dtype}, export the model with floating-point weights")
        array = c.array.astype(np.float64)
        if not np.isfinite(array).all():
            refuse("its weights hold NaN or infinity")
        return array

    def axis(self, axis: int, rank: int) -> int:
        """Count an axis from the front; the batch axis is refused."""
        if not -rank <= axis < rank:
            refuse(f"there is no axis {axis} in a value of {rank} axes")
        if axis % rank == 0:
            refuse("never: it touches the batch axis (axis 0), samples have to stay apart")
        return axis % rank

    # --- linear operators

    def linear(self, x: Value, w: ir.Array, bias: ir.Array | None = None) -> Value:
        """``x @ w + bias`` with `w` of (in, out)."""
        if w.ndim != 2:
            refuse(f"not yet: weights with {w.ndim} axes instead of 2")
        if not x.shape:
            refuse("never: it sums over the batch axis (axis 0)")
        b = np.zeros(w.shape[1]) if bias is None else bias
        if b.size == w.shape[1] or b.size == 1:
            b = np.broadcast_to(b.reshape(-1), (w.shape[1],))
        return self.emit(ir.Linear(*w.shape), [x], {"weight": w, "bias": b.astype(np.float64)})

    def matmul(self, x: Value, w: ir.Array) -> Value:
        """``x @ w``; a vector `w` drops the last axis, leading axes of size 1 in `w` are ignored."""
        if w.ndim > 2 and w.ndim <= x.rank and set(w.shape[:-2]) == {1}:
            w = w.reshape(w.shape[-2:])
        if w.ndim != 1:
            return self.linear(x, w)
        y = self.linear(x, w[:, None])
        return self.emit(ir.Reshape(y.shape[:-1]), [y])

    def conv(
        self,
        x: Value,
        w: ir.Array,
        bias: ir.Array | None,
        stride: Sequence[int],
        padding: Pads,
        dilation: Sequence[int],
        groups: int,
    ) -> Value:
        """2-d convolution; zero padding waiting on `x` joins its own."""
        if x.rank != 4 or w.ndim != 4:
            refuse(
                f"not yet: convolution over {max(w.ndim - 2, 0)} axes of a value with {x.rank}, only "
                "(batch, channels, height, width)"
            )
        op = ir.Conv2d(
            inputs=w.shape[1] * groups,
            outputs=w.shape[0],
            kernel=(w.shape[2], w.shape[3]),
            stride=_two(stride),
            padding=_sum(padding, x.pad),
            dilation=_two(dilation),
            groups=groups,
        )
        b = np.zeros(w.shape[0]) if bias is None else bias
        return self.emit(op, [replace(x, pad=NO_PAD)], {"weight": w, "bias": b})

    def batch_norm(
        self, x: Value, gamma: ir.Array, beta: ir.Array, mean: ir.Array, var: ir.Array, eps: float
    ) -> Value:
        """Inference form: one factor and one offset for each channel."""
        w = gamma / np.sqrt(var + eps)
        b = beta - mean * w
        return self.scale(x, self.axis(1, x.rank), w, b)

    def scale(self, x: Value, axis: int | None, w: ir.Array | float, b: ir.Array | float) -> Value:
        """Secret factor and offset along one axis; None stands for one pair for all positions."""
        if not x.shape:
            y = self.scale(self.emit(ir.Reshape((1,)), [x]), None, w, b)
            return self.emit(ir.Reshape(()), [y])
        if axis is None:
            before = self._nodes.get(x.name)
            linear = before is not None and isinstance(before.op, ir.Linear | ir.Conv2d | ir.Scale)
            # the axis of the preceding bias, so that both can become one
            axis = reference.bias_axis(before.op, x.rank) if linear else 1  # type: ignore[union-attr, arg-type]
        size = x.shape[axis - 1]
        w, b = (np.broadcast_to(np.asarray(v, dtype=np.float64), (size,)) for v in (w, b))
        if not (np.isfinite(w).all() and np.isfinite(b).all()):
            refuse("its factor or offset is NaN or infinite")
        return self.emit(ir.Scale(axis, size), [x], {"weight": w, "bias": b})

    # --- arithmetic

    def add(self, x: Value | Const, y: Value | Const, sign: float = 1.0) -> Value:
        """``x + sign y``, `sign` being 1 or -1."""
        if isinstance(x, Value) and isinstance(y, Value):
            if x.shape != y.shape:
                refuse(f"not yet: shapes {x.shape} and {y.shape} of two private values differ")
            return self.emit(ir.Add(), [x, self.multiply(y, sign) if sign != 1 else y])
        if isinstance(x, Value) and isinstance(y, Const):
            axis, c = self._along(x, y)
            return self.scale(x, axis, 1.0, sign * c)
        if isinstance(x, Const) and isinstance(y, Value):
            axis, c = self._along(y, x)
            return self.scale(y, axis, sign, c)
        refuse("not yet: arithmetic of constants, fold them before the export")

    def mul(self, x: Value | Const, y: Value | Const) -> Value:
        """Product with a constant: public if written in the code, else a secret weight."""
        if isinstance(x, Const):
            x, y = y, x
        if isinstance(x, Const) or isinstance(y, Value):
            refuse("not yet: the product of two private values" if isinstance(y, Value) else "not yet")
        if y.public and y.array.size == 1:
            self._along(x, y)
            return self.multiply(x, float(y.array.reshape(())))
        axis, c = self._along(x, y)
        return self.scale(x, axis, c, 0.0)

    def div(self, x: Value | Const, y: Value | Const) -> Value:
        """Quotient by a constant."""
        if isinstance(y, Value):
            refuse("not yet: division by a private value")
        array = self.weights(y)
        if not array.all():
            refuse("never: division by zero")
        return self.mul(x, Const(np.asarray(1.0 / array), y.public))

    def multiply(self, x: Value, factor: float) -> Value:
        """Product with a public number."""
        if not math.isfinite(factor):
            refuse("the factor is not finite")
        return self.emit(ir.Multiply(factor), [x])

    def _along(self, x: Value, c: Const) -> tuple[int | None, ir.Array]:
        """The one axis a constant varies along (None: one number), judged by shape where that suffices."""
        array = self.weights(c)
        if array.ndim > x.rank:
            refuse("never: the constant has more axes than the value, so the batch axis (axis 0) moves")
        array = array.reshape((1,) * (x.rank - array.ndim) + array.shape)
        full = (self.batch, *x.shape)
        if any(a not in (1, d) for a, d in zip(array.shape, full, strict=True)):
            refuse(f"not yet: the constant of shape {c.array.shape} changes the value's shape {x.shape}")
        # only where the shape alone would mean no: else the values of weights would choose the architecture
        if sum(d > 1 for d in array.shape) > 1 or array.shape[0] > 1:
            for k, d in enumerate(array.shape):
                first = array.take([0], axis=k)
                if d > 1 and (array == first).all():
                    array = first
        varying = [k for k, d in enumerate(array.shape) if d > 1]
        if not varying:
            return None, array.reshape(())
        if varying[0] == 0:
            refuse("never: the constant differs along the batch axis (axis 0)")
        if len(varying) > 1:
            refuse("not yet: the constant varies along more than one axis")
        return varying[0], array.reshape(-1)

    # --- the rest

    def avg_pool(
        self,
        x: Value,
        kernel: Sequence[int],
        stride: Sequence[int],
        padding: Pads,
        count: bool,
        ceil: bool = False,
    ) -> Value:
        """Average pooling over (height, width); `count` and `ceil` as the frameworks have them."""
        if x.rank != 4:
            refuse("not yet: average pooling of anything but (batch, channels, height, width)")
        if NO_PAD not in (x.pad, padding) and not count:
            refuse("not yet: explicit padding before a pooling that does not count its own")
        count = count or padding == NO_PAD
        op = ir.AvgPool2d(_two(kernel), _two(stride), _sum(padding, x.pad), count)
        rest = [x.shape[k + 1] + op.padding[k] + op.padding[k + 2] - op.kernel[k] for k in (0, 1)]
        if ceil and any(r % s for r, s in zip(rest, op.stride, strict=True)):
            refuse("not yet: ceil_mode where the last window sticks out")
        return self.emit(op, [replace(x, pad=NO_PAD)])

    def adaptive_pool(self, x: Value, size: Sequence[int | None]) -> Value:
        """Average pooling to a given size that divides the input evenly."""
        x = self.plain(x)
        if x.rank != 4:
            refuse("not yet: average pooling of anything but (batch, channels, height, width)")
        out = [have if want is None else want for want, have in zip(size, x.shape[1:], strict=True)]
        if any(o < 1 or s % o for s, o in zip(x.shape[1:], out, strict=True)):
            refuse(f"not yet: {x.shape[1:]} does not divide evenly into {tuple(out)}")
        kernel = [s // o for s, o in zip(x.shape[1:], out, strict=True)]
        return self.avg_pool(x, kernel, kernel, NO_PAD, True)

    def mean(self, x: Value, axes: Sequence[int], keep: bool) -> Value:
        """Mean over neighbouring axes, as one average pooling between reshapes where it has to be."""
        x = self.plain(x)
        over = sorted({self.axis(a, x.rank) for a in axes})
        if not over:
            refuse("never: a mean over all axes touches the batch axis (axis 0)")
        if over != list(range(over[0], over[-1] + 1)):
            refuse("not yet: a mean over axes that are not neighbours")
        if x.rank == 4 and over[0] >= 2:
            window = tuple(x.shape[k - 1] if k in over else 1 for k in (2, 3))
            y = self.avg_pool(x, window, window, NO_PAD, True)
        else:
            parts = x.shape[: over[0] - 1], x.shape[over[0] - 1 : over[-1]], x.shape[over[-1] :]
            a, r, c = (math.prod(p) for p in parts)
            y = self.avg_pool(self.reshape(x, (self.batch, a, r, c)), (r, 1), (r, 1), NO_PAD, True)
        kept = [1 if k in over else d for k, d in enumerate(x.shape, 1) if keep or k not in over]
        return self.reshape(y, (self.batch, *kept))

    def relu(self, x: Value) -> Value:
        """``max(x, 0)``."""
        return self.emit(ir.Relu(), [x])

    def concat(self, xs: Sequence[Value | Const], axis: int) -> Value:
        """Concatenation along an axis other than the batch."""
        values = [x for x in xs if isinstance(x, Value)]
        if len(values) != len(xs) or not values:
            refuse("not yet: concatenation with a constant")
        return self.emit(ir.Concat(self.axis(axis, values[0].rank)), values)

    def reshape(self, x: Value, to: Sequence[int]) -> Value:
        """Reshape to a full shape, batch included, that keeps every sample whole."""
        x = self.plain(x)
        if not to or to[0] != self.batch or math.prod(to[1:]) != math.prod(x.shape):
            refuse(
                "never: it touches the batch axis (axis 0), samples have to stay apart: "
                f"{(self.batch, *x.shape)} to {tuple(to)}"
            )
        sample = tuple(int(d) for d in to[1:])
        return x if sample == x.shape else self.emit(ir.Reshape(sample), [x])

    def transpose(self, x: Value, order: Sequence[int]) -> Value:
        """Axes in another order, the batch first."""
        order = [k % x.rank if -x.rank <= k < x.rank else k for k in order]
        if sorted(order) != list(range(x.rank)):
            refuse(f"{tuple(order)} is no order of {x.rank} axes")
        if order[0] != 0:
            self.axis(0, x.rank)
        if order == sorted(order):
            return x
        return self.emit(ir.Transpose(tuple(order[1:])), [x])

    def squeeze(self, x: Value, axes: Sequence[int]) -> Value:
        """Drop axes of size one; others stay, as torch has it."""
        drop = {self.axis(a, x.rank) for a in axes}
        return self.reshape(
            x, (self.batch, *(d for k, d in enumerate(x.shape, 1) if k not in drop or d != 1))
        )

    def unsqueeze(self, x: Value, axes: Sequence[int]) -> Value:
        """Add axes of size one, counted in the result."""
        rank = x.rank + len(axes)
        new = {self.axis(a, rank) for a in axes}
        old = iter(x.shape)
        return self.reshape(x, (self.batch, *(1 if k in new else next(old) for k in range(1, rank))))

    def pad(self, x: Value, before: Sequence[int], after: Sequence[int], value: float) -> Value:
        """Zero padding of height and width, which waits for the convolution or pooling that follows."""
        if len(before) != x.rank or len(after) != x.rank:
            refuse(f"padding for {len(before)} axes of a value with {x.rank}")
        if not (any(before) or any(after)):
            return x
        if before[0] or after[0]:
            self.axis(0, x.rank)
        if value != 0 or x.rank != 4 or before[1] or after[1] or min(*before, *after) < 0:
            refuse("not yet: padding other than zeros around height and width")
        return replace(x, pad=_sum((*before[2:], *after[2:]), x.pad), pad_node=self._at[0])  # type: ignore[arg-type]

    # --- the end

    def finish(self, outputs: Sequence[tuple[str, object]], precision: ir.Precision) -> ir.Model:
        """Give the simplified model, or one message with everything that stands against it."""
        if self.problems:
            shown = "; ".join(self.problems[:MAX_REPORTED])
            more = len(self.problems) - MAX_REPORTED
            count = f"{len(self.problems)} nodes are not supported: " if len(self.problems) > 1 else ""
            raise ModelUnsupported(count + shown + (f"; and {more} more" if more > 0 else ""))
        shown_values = []
        for name, value in outputs:
            if not name or len(name) > 200 or not name.isprintable():
                raise ConfigError("an output has an empty, long or unprintable name")
            if not isinstance(value, Value):
                raise ModelUnsupported(f"output {name!r} does not depend on any input")
            if value.pad != NO_PAD:
                raise ModelUnsupported(
                    f"node {value.pad_node!r} (Pad): not yet: padding right before an output"
                )
            shown_values.append(ir.Output(name, value.name))
        graph = ir.Architecture(
            tuple(self._inputs), tuple(self._nodes.values()), tuple(shown_values), precision
        )
        graph.shapes()
        graph, parameters = rewrite.simplify(graph, self._parameters)
        read = {i for n in graph.nodes for i in n.inputs} | {o.value for o in graph.outputs}
        for source in graph.inputs:
            if source.name not in read:
                raise ModelUnsupported(
                    f"input {source.name!r} is unused: no output depends on it",
                    hint="remove it from the model, so that its owner is not asked for data without need",
                )
        return ir.Model(graph, parameters)


def same_padding(size: int, kernel: int, stride: int, dilation: int, *, upper: bool) -> tuple[int, int]:
    """Zeros before and after one axis so that ``ceil(size / stride)`` windows fit (ONNX SAME_*)."""
    total = max((-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    return (total // 2, total - total // 2) if upper else (total - total // 2, total // 2)


def _two(v: Sequence[int]) -> tuple[int, int]:
    if len(v) not in (1, 2):
        refuse(f"{len(v)} window sizes instead of 2")
    return int(v[0]), int(v[-1])


def _sum(a: Pads, b: Pads) -> Pads:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3])
