"""The core of :mod:`privinfer.graph.build`: names, values, refusals, and operators that only move values.

Nothing here depends on weights' values: what a builder decides is part of the public architecture.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt

from privinfer.errors import ConfigError, ModelUnsupported
from privinfer.graph import build_spans, ir, rewrite
from privinfer.graph.build_spans import Span

T = TypeVar("T")
Pads = tuple[int, int, int, int]
Ranges = Mapping[str, tuple[float, float]]

# what advise.py hears of every node that is tried: its name, its operator, why it was refused if it was
LISTENER: ContextVar[list[tuple[str, str, str]] | None] = ContextVar("LISTENER", default=None)
MAX_REPORTED = 10
MAX_INDICES = 1 << 20
NO_PAD: Pads = (0, 0, 0, 0)
_MOVES = (ir.Reshape, ir.Transpose, ir.Gather, ir.Concat)


@dataclass(frozen=True, slots=True)
class Value:
    """A private value: its name in the graph, its per-sample shape, zero padding still to be applied.

    `at` is where the source framework has the batch axis: 0, but for values around a recurrent layer.
    """

    name: str
    shape: ir.Shape
    pad: Pads = NO_PAD
    pad_node: str = ""
    at: int = 0

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
    (r"(adaptivemax|lp|globallp|fractionalmax|max)(un)?pool", "not yet, replace by max or average pooling"),
    (
        r"if|loop|scan|cond|whileloop|nonzero|unique|compress|item|localscalardense|maskedselect|bincount",
        "never: which steps run, or how large a result is, would depend on private data",
    ),
    (
        r"(r|c)relu|hardtanh|threshold|softshrink|hardshrink|tanhshrink|glu",
        "not yet, replace by ReLU or another activation",
    ),
    (
        r"floor|ceil|round|trunc|mod|fmod|remainder|bitshift|bitwise.*|equal|eq|ne|isnan|isinf",
        "not yet: whether two private numbers are exactly equal, or what their last digits are",
    ),
    (r"gather|scatter.*|indexput|index", "not yet: where to look would depend on private data"),
    (r".*(loss|entropy).*|adam|adagrad|momentum", "never: it belongs to training"),
    (r"embedding(bag)?|onehot", "not yet, replace by a one-hot input and a linear layer"),
    (
        r".*quantize.*|qlinear.*|(conv|matmul)integer",
        "not yet: quantised weights, export the model with floating-point weights",
    ),
    (r"rand.*|bernoulli|multinomial|normal", "never: a random result cannot be agreed on"),
    (r"topk|sort|argsort|median|kthvalue", "not yet, replace by leaving it off: the receiver applies it"),
    (
        r"a?(cos|sin|tan)h?|atanh|asinh|acosh|det|inverse",
        "not yet, replace by a function of your own: functions=",
    ),
    (r"string.*|sequence.*|optional.*|regex.*|tfidf.*|labelencoder", "never: only tensors of numbers"),
)


def advice(op: str, *, last: bool) -> str:
    """Why operator `op` is refused and what could replace it; `last` where an output shows its result."""
    del last  # nothing is refused for that alone any more
    key = re.sub(r"(\dd)?(_with_indices)?$", "", op).replace("_", "").lower()
    return next((why for pattern, why in _ADVICE if re.fullmatch(pattern, key)), "not yet")


def printable(text: str) -> str:
    """Give a name of a foreign file in a form that is safe to show: printable and short."""
    return "".join(c if c.isprintable() else "_" for c in text[:160])


def load_error(what: str, error: Exception) -> str:
    """One short line about a failure of another library, without what else its message may hold."""
    line = (str(error).strip().splitlines() or [""])[0].strip().rstrip(".")
    line = printable(line)
    return f"{what}: {line}" if line else f"{what} ({type(error).__name__})"


def check_ranges(
    ranges: Ranges | None, names: Iterable[str], nodes: Iterable[str] = ()
) -> dict[str, tuple[float, float]]:
    """Give the declared ranges as floats.

    Parameters
    ----------
    ranges : mapping of pairs, or None
        By name.
    names : iterable of str
        The inputs.
    nodes : iterable of str
        The nodes, for which a range says where the value that goes in lies.

    Raises
    ------
    ConfigError
        A range is not two finite numbers in order, or belongs to no input and no node.
    """
    known, inner, checked = set(names), set(nodes), {}
    for name, pair in (ranges or {}).items():
        if name not in known and name not in inner:
            raise ConfigError(
                f"a range is given for {name!r}, which is no input{' and no node' if inner else ''}",
                hint=f"inputs: {', '.join(sorted(known))}",
            )
        what = f"{'input' if name in known else 'node'} {name!r}"
        try:
            low, high = (float(v) for v in pair)
        except (TypeError, ValueError, OverflowError):
            raise ConfigError(f"the range of {what} is not a pair of numbers") from None
        if not (math.isfinite(low) and math.isfinite(high) and low <= high):
            raise ConfigError(f"the range of {what} is not a finite interval (low, high)")
        checked[name] = (low, high)
    return checked


class Core:
    """Collects nodes and parameters in topological order, and every reason why a model is refused.

    Parameters
    ----------
    batch : int
        Size of axis 0 in the source's shapes.
    ranges : mapping
        Checked ranges by name of an input, or of a node.
    """

    def __init__(self, batch: int, ranges: Ranges) -> None:
        self.batch = batch
        self.problems: list[str] = []
        self._ranges = ranges
        self._inputs: list[ir.Input] = []
        self._nodes: dict[str, ir.Node] = {}
        self._shapes: dict[str, ir.Shape] = {}
        self._spans: dict[str, Span] = {}
        self._truths: set[str] = set()
        self._parameters: ir.Parameters = {}
        self._at = ("", "")
        self._counts: dict[str, int] = {}

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
        self._spans[name] = self._ranges.get(name, ir.DEFAULT_RANGE)
        return Value(name, sample)

    def attempt(self, name: str, op: str, convert: Callable[[], T]) -> T | None:
        """Run the conversion of one source node; a refusal is kept for the final message."""
        op = printable(op)
        self._at = (printable(name) or op, op)
        heard = LISTENER.get()
        why = ""
        try:
            with np.errstate(all="ignore"):  # weights that overflow are refused, here or by ir.Model
                return convert()
        except Refused as e:
            why = str(e)
            self.problems.append(f"node {self._at[0]!r} ({op}): {e}")
        except ModelUnsupported as e:
            why = e.message
            self.problems.append(e.message)
        finally:
            if heard is not None:
                heard.append((*self._at, why))
        return None

    def emit(self, op: ir.Op, inputs: Sequence[Value], params: Mapping[str, ir.Array] | None = None) -> Value:
        """Add one IR node under the name of the source node, made unique."""
        sources = [self.plain(v) for v in inputs]
        base = self._at[0]
        name, k = base, self._counts.get(base, 1)
        while name in self._shapes:
            k += 1
            name = f"{base}_{k}"
        self._counts[base] = k
        node = ir.Node(name, op, tuple(v.name for v in sources))
        given = tuple(ir.Input(v.name, v.shape) for v in {v.name: v for v in sources}.values())
        shape = ir.Architecture(given, (node,), (ir.Output(name, name),)).shapes()[name]
        for key, wanted in op.parameters().items():
            if params is None or params[key].shape != wanted:
                got = None if params is None else params[key].shape
                refuse(f"{key} has shape {got}, not {wanted}")
        self._nodes[name], self._shapes[name] = node, shape
        same = len(sources) > 1 and len({v.name for v in sources}) == 1
        known = [self._spans[v.name] for v in sources]
        self._spans[name] = build_spans.spread(op, known, [v.shape for v in sources], same=same)
        if isinstance(op, _MOVES) and all(v.name in self._truths for v in sources):
            self._truths.add(name)
        if params:
            self._parameters[name] = dict(params)
        return Value(name, shape, at=sources[0].at)

    def span(self, x: Value) -> Span:
        """Interval that the value is known to lie in from the architecture alone; infinite where unknown."""
        return self._spans[x.name]

    def made_by(self, x: Value | Const, op: type[ir.Op]) -> ir.Node | None:
        """The node that makes a value, if it is of this kind."""
        node = self._nodes.get(x.name) if isinstance(x, Value) else None
        return node if node is not None and isinstance(node.op, op) else None

    def source(self, node: ir.Node, k: int = 0) -> Value:
        """What goes into a node."""
        return Value(node.inputs[k], self._shapes[node.inputs[k]])

    def truth(self, x: Value) -> Value:
        """`x`, known to be 0 or 1 everywhere."""
        self._truths.add(x.name)
        return x

    def is_truth(self, x: Value | Const) -> bool:
        """Whether a value is known to be 0 or 1 everywhere."""
        return x.array.dtype == np.bool_ if isinstance(x, Const) else x.name in self._truths

    def plain(self, x: Value) -> Value:
        """Give the value with pending padding applied."""
        if x.pad == NO_PAD:
            return x
        here, self._at = self._at, (x.pad_node, "Pad")
        top, left, bottom, right = x.pad
        y = replace(x, pad=NO_PAD)
        self.room(max(y.shape) + max(x.pad))
        for axis, before, after in ((2, top, bottom), (3, left, right)):
            y = self.take(y, axis, [-1] * before + list(range(y.shape[axis - 1])) + [-1] * after)
        self._at = here
        return y

    def weights(self, c: Const) -> ir.Array:
        """Give a constant as float64 weights."""
        if c.array.dtype.kind != "f":
            refuse(f"not yet: weights of type {c.array.dtype}, export the model with floating-point weights")
        array = c.array.astype(np.float64)
        if not np.isfinite(array).all():
            refuse("its weights hold NaN or infinity")
        return array

    def numbers(self, c: Const) -> ir.Array:
        """Give a constant as float64 whatever numbers it holds: an operand of arithmetic."""
        if c.array.dtype.kind not in "iub":
            return self.weights(c)
        if c.array.dtype in (np.int8, np.uint8):
            refuse(f"not yet: weights of type {c.array.dtype}, export the model with floating-point weights")
        return c.array.astype(np.float64)

    def axis(self, axis: int, rank: int) -> int:
        """Count an axis from the front; the batch axis is refused."""
        if not -rank <= axis < rank:
            refuse(f"there is no axis {axis} in a value of {rank} axes")
        if axis % rank == 0:
            refuse("never: it touches the batch axis (axis 0), samples have to stay apart")
        return axis % rank

    # --- moving values

    def reshape(self, x: Value, to: Sequence[int]) -> Value:
        """Reshape to a full shape, batch included, that keeps every sample whole."""
        x = self.plain(x)
        if not to or to[0] != self.batch or math.prod(to[1:]) != math.prod(x.shape):
            refuse(
                "never: it touches the batch axis (axis 0), samples have to stay apart: "
                f"{(self.batch, *x.shape)} to {tuple(to)}"
            )
        return self.sample(x, tuple(int(d) for d in to[1:]))

    def sample(self, x: Value, to: ir.Shape) -> Value:
        """Reshape to a per-sample shape, without the batch."""
        x = self.plain(x)
        return x if to == x.shape else self.emit(ir.Reshape(to), [x])

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

    def swap(self, x: Value, a: int = -2, b: int = -1) -> Value:
        """Exchange two axes."""
        order = list(range(x.rank))
        order[a], order[b] = order[b], order[a]
        return self.transpose(x, order)

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

    def take(self, x: Value, axis: int, indices: Sequence[int]) -> Value:
        """Entries of one axis in any order and number; -1 stands for zero."""
        x = self.plain(x)
        axis = self.axis(axis, x.rank)
        size = x.shape[axis - 1]
        if indices == range(size):
            return x
        self.room(len(indices))
        if not indices or not all(-1 <= k < size for k in indices):
            refuse(f"an index beyond {size} on axis {axis}, or none at all")
        if list(indices) == list(range(size)):
            return x
        return self.emit(ir.Gather(axis, tuple(int(k) for k in indices)), [x])

    @staticmethod
    def room(*sizes: int) -> None:
        """Refuse so many positions that nobody means them, before a list of them is made."""
        if min(sizes) < 0 or math.prod(sizes) > MAX_INDICES:
            refuse(f"its result is empty or too large: {' times '.join(map(str, sizes))} positions")

    def split(self, x: Value, axis: int, sizes: Sequence[int]) -> list[Value]:
        """Parts of one axis, one after the other."""
        x = self.plain(x)
        axis = self.axis(axis, x.rank)
        if sum(sizes) != x.shape[axis - 1] or min(sizes, default=0) < 1:
            refuse(f"parts of {tuple(sizes)} do not add up to {x.shape[axis - 1]}")
        ends = np.cumsum([0, *sizes]).tolist()
        return [self.take(x, axis, range(a, b)) for a, b in itertools.pairwise(ends)]

    def expand(self, x: Value, shape: Sequence[int]) -> Value:
        """Broadcast to a full shape, batch included; 1 and -1 keep an axis."""
        shape = [int(d) for d in shape]
        if len(shape) < x.rank:
            shape = [1] * (x.rank - len(shape)) + shape
        if len(shape) > x.rank or shape[0] not in (1, -1, self.batch):
            refuse("never: a new axis before the batch axis (axis 0)")
        return self._broadcast(x, tuple(shape[1:]))

    def _broadcast(self, x: Value, sample: Sequence[int]) -> Value:
        """Repeat axes of size 1 so that they fit a per-sample shape of the same rank."""
        for k, (have, want) in enumerate(zip(x.shape, sample, strict=True), 1):
            if have == 1 and want > 1:
                self.room(want)
                x = self.take(x, k, (0,) * want)
            elif want not in (1, -1, have):
                refuse(f"shapes {x.shape} and {tuple(sample)} do not go together")
        return x

    def alike(self, *xs: Value) -> list[Value]:
        """Values broadcast to one shape, as NumPy does it."""
        xs = tuple(self.plain(x) for x in xs)
        rank = max(x.rank for x in xs)
        if any(x.rank != rank for x in xs):
            refuse(
                "never: values with different numbers of axes move the batch axis (axis 0), "
                "add axes of size one before"
            )
        try:
            shape = np.broadcast_shapes(*(x.shape for x in xs))
        except ValueError:
            refuse(f"shapes {', '.join(str(x.shape) for x in xs)} do not go together")
        return [self._broadcast(x, shape) for x in xs]

    def pad(self, x: Value, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Value:
        """Constant padding; zeros around height and width wait for a convolution or pooling to follow."""
        if len(before) != x.rank or len(after) != x.rank:
            refuse(f"padding for {len(before)} axes of a value with {x.rank}")
        if not (any(before) or any(after)):
            return x
        if before[0] or after[0]:
            self.axis(0, x.rank)
        if value == 0 and x.rank == 4 and not (before[1] or after[1]) and min(*before, *after) >= 0:
            pads = add_pads((before[2], before[3], after[2], after[3]), x.pad)
            return replace(x, pad=pads, pad_node=self._at[0])
        if not math.isfinite(value):
            refuse("not yet: padding with values that are not finite")
        if value:
            x = self.emit(ir.Shift(-value), [x])
        x = self.plain(x)
        self.room(max(*before, *after, 1), max(x.shape))
        for k in range(1, x.rank):
            kept = range(max(-before[k], 0), x.shape[k - 1] - max(-after[k], 0))
            if not kept:
                refuse(f"padding of {before[k]} and {after[k]} leaves nothing of axis {k}")
            x = self.take(x, k, [-1] * max(before[k], 0) + list(kept) + [-1] * max(after[k], 0))
        return self.emit(ir.Shift(value), [x]) if value else x

    def mirror(self, x: Value, before: Sequence[int], after: Sequence[int], mode: str) -> Value:
        """Padding with the value's own entries; modes as ``numpy.pad`` has them: reflect, edge, wrap."""
        if before[0] or after[0]:
            self.axis(0, x.rank)
        x = self.plain(x)
        self.room(max(*before, *after, 1), max(x.shape))
        for k in range(1, x.rank):
            own = np.arange(x.shape[k - 1])[max(-before[k], 0) : x.shape[k - 1] - max(-after[k], 0)]
            widths = (max(before[k], 0), max(after[k], 0))
            x = self.take(x, k, np.pad(own, widths, mode=mode).tolist())  # type: ignore[call-overload]
        return x

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
            if value.at:
                raise ModelUnsupported(
                    f"output {name!r}: never: it touches the batch axis (axis 0), which is not in front"
                )
            shown_values.append(ir.Output(name, self.plain(value).name))
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


def add_pads(a: Pads, b: Pads) -> Pads:
    """Sum of two paddings."""
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3])
