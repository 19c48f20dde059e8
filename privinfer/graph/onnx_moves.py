"""ONNX operators that move values, and recurrent layers, around which the batch axis is not in front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from privinfer.graph import build, ir
from privinfer.graph.build import Cell, Const, Value, refuse
from privinfer.graph.onnx_base import Reader
from privinfer.graph.onnx_ops import Result, op

# --- parts and shapes


@op("Concat")
def _concat(imp: Reader, node: Any) -> Value:
    xs = [x for k in range(len(node.input)) if (x := imp.at(node, k)) is not None]
    values = [x for x in xs if isinstance(x, Value)]
    axis = imp.attr(node, "axis", 1)
    if values and values[0].at and {v.at for v in values} == {values[0].at} and len(values) == len(xs):
        return imp.b.concat(xs, imp.axis(values[0], axis))
    return imp.b.concat([imp.whole(x) if isinstance(x, Value) else x for x in xs], axis)


@op("Flatten")
def _flatten(imp: Reader, node: Any) -> Value:
    x, axis = imp.value(node), imp.attr(node, "axis", 1)
    full = imp.full(x)
    axis = axis + x.rank if axis < 0 else axis
    if axis == 0:
        imp.b.axis(0, x.rank)
    return imp.b.reshape(x, (math.prod(full[:axis]), math.prod(full[axis:])))


@op("Reshape")
def _reshape(imp: Reader, node: Any) -> Value:
    x, to = imp.value(node, moved=True), imp.array(node, 1, "shape")
    if to is None or to.ndim != 1:
        refuse("its shape has to be a list of integers")
    full = imp.full(x)
    if not imp.attr(node, "allowzero", 0):
        to = [full[k] if d == 0 and k < len(full) else int(d) for k, d in enumerate(to)]
    rest = -math.prod(to)
    if list(to).count(-1) == 1 and rest > 0:
        to = [math.prod(full) // rest if d == -1 else d for d in to]
    to = [int(d) for d in to]
    if not x.at:
        return imp.b.reshape(x, to)
    before = math.prod(full[: x.at])
    places = [k for k, d in enumerate(to) if d == imp.b.batch and math.prod(to[:k]) == before]
    if not places or math.prod(to) != math.prod(full):
        refuse("never: it touches the batch axis (axis 0), samples have to stay apart")
    at = x.at if x.at in places else places[0]
    return _moved(imp.b.sample(x, (*to[:at], *to[at + 1 :])), at)


def _moved(x: Value, at: int) -> Value:
    return Value(x.name, x.shape, x.pad, x.pad_node, at)


@op("Squeeze")
def _squeeze(imp: Reader, node: Any) -> Value:
    x, axes = imp.b.plain(imp.value(node, moved=True)), imp.ints(node, 1, "axes")
    if axes is None:
        refuse("never: without axes it may touch the batch axis (axis 0), name the axes")
    drop = {imp.axis(x, a) for a in axes}
    if any(x.shape[k - 1] != 1 for k in drop):
        refuse("an axis to be dropped does not have size one")
    kept = tuple(d for k, d in enumerate(x.shape, 1) if k not in drop)
    return _moved(imp.b.sample(x, kept), x.at - sum(k <= x.at for k in drop))


@op("Unsqueeze")
def _unsqueeze(imp: Reader, node: Any) -> Value:
    x, axes = imp.b.plain(imp.value(node, moved=True)), imp.ints(node, 1, "axes")
    if not axes:
        refuse("its axes have to be a list of integers")
    if not x.at:
        return imp.b.unsqueeze(x, axes)
    rank = x.rank + len(axes)
    new = {a % rank for a in axes}
    old = iter(range(x.rank))
    order = [None if k in new else next(old) for k in range(rank)]
    at = order.index(x.at)
    full = imp.full(x)
    return _moved(imp.b.sample(x, tuple(1 if k is None else full[k] for k in order if k != x.at)), at)


@op("Transpose")
def _transpose(imp: Reader, node: Any) -> Value:
    x = imp.b.plain(imp.value(node, moved=True))
    order = [int(k) for k in imp.attr(node, "perm", range(x.rank)[::-1])]
    if sorted(order) != list(range(x.rank)):
        refuse(f"{tuple(order)} is no order of {x.rank} axes")
    inner = [imp.axis(x, k) for k in order if k != x.at]
    return _moved(imp.b.transpose(x, [0, *inner]), order.index(x.at))


@op("Gather")
def _gather(imp: Reader, node: Any) -> Value:
    at = imp.at(node, 1)
    if isinstance(at, Value) or isinstance(imp.at(node, 0), Const):
        refuse(build.advice("Gather", last=False))
    x, indices = imp.b.plain(imp.value(node, moved=True)), imp.array(node, 1)
    axis = imp.axis(x, imp.attr(node, "axis", 0))
    size = x.shape[axis - 1]
    if indices.dtype.kind != "i" or not indices.size or (indices < -size).any() or (indices >= size).any():
        refuse("its indices do not fit")
    y = imp.b.take(x, axis, (indices.reshape(-1) % size).tolist())
    place = axis - 1 if axis <= x.at else axis  # in the file's counting
    shift = indices.ndim - 1 if place < x.at else 0
    return _moved(imp.b.sample(y, (*x.shape[: axis - 1], *indices.shape, *x.shape[axis:])), x.at + shift)


@op("Slice")
def _slice(imp: Reader, node: Any) -> Value:
    x = imp.b.plain(imp.value(node, moved=True))
    starts, ends = imp.ints(node, 1, "starts"), imp.ints(node, 2, "ends")
    if starts is None or ends is None:
        refuse("its starts and ends have to be lists of integers")
    axes = imp.ints(node, 3, "axes") or list(range(len(starts)))
    steps = imp.ints(node, 4) or [1] * len(starts)
    full = imp.full(x)
    for a, i, j, step in zip(axes, starts, ends, steps, strict=True):
        if step == 0 or not -x.rank <= a < x.rank:
            refuse("its axes or steps do not fit")
        size = full[a % x.rank]
        low = i + size if i < 0 else i
        if a % x.rank == x.at and low == 0 and j >= size and step == 1:
            continue  # all of the batch
        chosen = list(range(size))[_cut(i, j, step, size)]
        x = imp.b.take(x, imp.axis(x, a), chosen)
    return x


def _cut(start: int, end: int, step: int, size: int) -> slice:
    """As ONNX has it: negative numbers count from the end, then both are limited."""
    start, end = (v + size if v < 0 else v for v in (start, end))
    if step > 0:
        return slice(min(max(start, 0), size), min(max(end, 0), size), step)
    last = min(max(end, -1), size - 1)
    return slice(min(max(start, 0), size - 1), None if last < 0 else last, step)


@op("Split")
def _split(imp: Reader, node: Any) -> Result:
    x = imp.b.plain(imp.value(node, moved=True))
    axis = imp.axis(x, imp.attr(node, "axis", 0))
    sizes, count = imp.ints(node, 1, "split"), len(node.output)
    size = x.shape[axis - 1]
    if sizes is None:
        chunk = -(-size // imp.attr(node, "num_outputs", count))
        sizes = [min(chunk, size - chunk * k) for k in range(count)]
    return [_moved(y, x.at) for y in imp.b.split(x, axis, sizes)]


@op("Expand")
def _expand(imp: Reader, node: Any) -> Value:
    to = imp.ints(node, 1)
    if to is None:
        refuse("its shape has to be a list of integers")
    return imp.b.expand(imp.value(node), to)


@op("Tile")
def _tile(imp: Reader, node: Any) -> Value:
    x, times = imp.b.plain(imp.value(node)), imp.ints(node, 1)
    if times is None or len(times) != x.rank:
        refuse("its repeats have to be one for each axis")
    if times[0] != 1:
        imp.b.axis(0, x.rank)
    for k, again in enumerate(times[1:], 1):
        imp.b.room(x.shape[k - 1], again)
        x = imp.b.take(x, k, list(range(x.shape[k - 1])) * again)
    return x


@op("Pad")
def _pad(imp: Reader, node: Any) -> Value:
    x, pads, fill = imp.value(node), imp.ints(node, 1, "pads"), imp.array(node, 2, "value")
    axes = imp.ints(node, 3)
    axes = list(range(x.rank)) if axes is None else [a % x.rank for a in axes]
    if pads is None or len(pads) != 2 * len(axes):
        refuse("its padding needs two numbers for each axis")
    before, after = [0] * x.rank, [0] * x.rank
    for a, p, q in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        before[a], after[a] = p, q
    mode = imp.attr(node, "mode", "constant")
    if mode == "constant":
        return imp.b.pad(x, before, after, 0.0 if fill is None else float(fill.reshape(())))
    if mode not in ("reflect", "edge", "wrap"):
        refuse("its mode is unknown")
    return imp.b.mirror(x, before, after, mode)


@op("Trilu")
def _trilu(imp: Reader, node: Any) -> Value:
    x, k = imp.b.plain(imp.value(node)), imp.ints(node, 1)
    if len(x.shape) < 2:
        imp.b.axis(0, x.rank)
    imp.b.room(*x.shape[-2:])
    cut = np.triu if imp.attr(node, "upper", 1) else np.tril
    return imp.b.affine(x, cut(np.ones(x.shape[-2:]), k[0] if k else 0), 0.0)


# --- recurrent layers

_ACTIVATIONS = {"sigmoid": "sigmoid", "tanh": "tanh", "relu": "", "softsign": "softsign"}


@op("LSTM", "GRU", "RNN")
def _recurrent(imp: Reader, node: Any) -> Result:
    kind = node.op_type
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind]
    x, w, r = imp.b.plain(imp.value(node, moved=True)), imp.weights(node, 1), imp.weights(node, 2)
    rows = imp.attr(node, "layout", 0)
    if x.rank != 3 or x.at != (0 if rows else 1):
        refuse("never: axis 0 of what goes in is not the batch but time, export with batch_first=True")
    bias, peep = imp.weights(node, 3), imp.weights(node, 7)
    steps, directions, hidden = x.shape[0], w.shape[0], r.shape[-1]
    lengths = imp.array(node, 4)
    if lengths is not None and (lengths != steps).any():
        refuse("not yet: sequences of different lengths")
    if imp.attr(node, "clip", None) is not None or imp.attr(node, "input_forget", 0):
        refuse("not yet: clipped or coupled gates")
    if w.ndim != 3 or r.ndim != 3 or directions not in (1, 2):
        refuse("its weights do not fit")
    bias = np.zeros((directions, 2 * gates * hidden)) if bias is None else bias
    own = [_activation(imp, v) for v in imp.attr(node, "activations", [])]
    each = len(own) // directions
    direction = imp.attr(node, "direction", "forward")
    states = [
        _states(imp, node, k, x, directions, hidden, rows) for k in ((5, 6) if kind == "LSTM" else (5,))
    ]
    parts = []
    for d in range(directions):
        cell = Cell(
            kind, w[d], r[d], bias[d, : gates * hidden], bias[d, gates * hidden :],
            reset_first=not imp.attr(node, "linear_before_reset", 0),
            reverse=direction == "reverse" or d == 1,
            activations=tuple(own[d * each : (d + 1) * each]),
            peephole=None if peep is None else peep[d],
        )  # fmt: skip
        first = [s[d] for s in states]
        parts.append(imp.b.recurrent(Value(x.name, x.shape), cell, *first))

    def stack(values: Sequence[Value | None], shape: ir.Shape, axis: int) -> Value:
        rows_ = [imp.b.sample(v, shape) for v in values if v is not None]
        return rows_[0] if len(rows_) == 1 else imp.b.concat(rows_, axis)

    every = stack([p[0] for p in parts], (steps, 1, hidden), 2)
    last = stack([p[1] for p in parts], (1, hidden), 1)
    results: list[Value | None] = [_moved(every, 0 if rows else 2), _moved(last, 0 if rows else 1)]
    if kind == "LSTM":
        results.append(_moved(stack([p[2] for p in parts], (1, hidden), 1), 0 if rows else 1))
    return results


def _activation(imp: Reader, name: object) -> Any:
    text = name.decode("ascii", "replace") if isinstance(name, bytes) else str(name)
    known = _ACTIVATIONS.get(text.lower())
    if known is None:
        refuse("not yet: activations other than sigmoid, tanh, ReLU and softsign")
    return (lambda v: imp.b.function(v, known)) if known else imp.b.relu


def _states(
    imp: Reader, node: Any, k: int, x: Value, directions: int, hidden: int, rows: int
) -> list[Value | None]:
    """Initial states of each direction; None where they are zero."""
    given = imp.at(node, k)
    if given is None:
        return [None] * directions
    if isinstance(given, Value):
        if given.at != (0 if rows else 1) or given.shape != (directions, hidden):
            refuse("never: its initial states are not one row for each sample")
        parts = [imp.b.take(Value(given.name, given.shape), 1, [d]) for d in range(directions)]
        return [imp.b.sample(p, (hidden,)) for p in parts]
    array = imp.b.weights(given)
    array = array if rows else array.swapaxes(0, 1)
    if array.shape[1:] != (directions, hidden) or not (array == array[:1]).all():
        refuse("never: its initial states differ along the batch axis (axis 0)")
    if not array.any() and given.public:
        return [None] * directions
    return [imp.b.secret(array[0, d], Value(x.name, x.shape)) for d in range(directions)]
