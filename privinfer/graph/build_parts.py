"""Sums, maxima, norms, attention and recurrent layers, for :class:`privinfer.graph.build.Builder`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from privinfer.graph import ir
from privinfer.graph.build_core import Const, Value, refuse
from privinfer.graph.build_math import Math

MAX_STEPS = 4096
MASKED = -4096.0  # what stands for minus infinity in front of a softmax


@dataclass(frozen=True, slots=True)
class Cell:
    """Weights and ways of one direction of a recurrent layer, gates in ONNX's order.

    Attributes
    ----------
    kind : str
        RNN (one gate), GRU (z, r, h) or LSTM (i, o, f, c).
    w, r : ndarray
        (gates * hidden, inputs) and (gates * hidden, hidden).
    wb, rb : ndarray
        Biases that go with them, (gates * hidden,) each.
    reset_first : bool
        GRU: the reset gate multiplies the state before the matrix does; torch has it the other way.
    reverse : bool
        From the last step to the first.
    activations : tuple of callable
        Of the gates and of the candidate, and for LSTM of the state; sigmoid and tanh where empty.
    peephole : ndarray or None
        LSTM: (3 * hidden,) for i, o, f.
    """

    kind: str
    w: ir.Array
    r: ir.Array
    wb: ir.Array
    rb: ir.Array
    reset_first: bool = False
    reverse: bool = False
    activations: tuple[Callable[[Value], Value], ...] = ()
    peephole: ir.Array | None = None


class Parts(Math):
    """Operators that bring several numbers together."""

    # --- one number out of many

    def together(self, x: Value, axes: Sequence[int]) -> tuple[Value, int, ir.Shape, ir.Shape]:
        """Merge axes into one.

        Returns
        -------
        value, axis, with, without
            The value, its axis that now stands for all of them, and the per-sample shapes of a result that
            keeps them as 1, or leaves them out.
        """
        x = self.plain(x)
        over = sorted({self.axis(a, x.rank) for a in axes})
        if not over:
            refuse("never: over all axes it touches the batch axis (axis 0)")
        kept = tuple(1 if k in over else d for k, d in enumerate(x.shape, 1))
        rest = tuple(d for k, d in enumerate(x.shape, 1) if k not in over)
        if over != list(range(over[0], over[-1] + 1)):
            others = [k for k in range(1, x.rank) if k not in over]
            x = self.transpose(x, [0, *others, *over])
            over = list(range(len(others) + 1, x.rank))
        size = math.prod(x.shape[over[0] - 1 : over[-1]])
        merged = self.sample(x, (*x.shape[: over[0] - 1], size, *x.shape[over[-1] :]))
        return merged, over[0], kept, rest

    def reduce(self, x: Value, how: str, axes: Sequence[int], keepdims: bool) -> Value:
        """One number for all along axes; `how` is sum, mean, max, min or prod."""
        if how == "mean":
            return self.mean(x, axes, keepdims)
        y, axis, kept, rest = self.together(x, axes)
        count = y.shape[axis - 1]
        match how:
            case "sum":
                y = self.emit(ir.Sum(axis), [y])
            case "max":
                y = self.emit(ir.Max(axis), [y])
            case "min":
                y = self.multiply(self.emit(ir.Max(axis), [self.multiply(y, -1.0)]), -1.0)
            case "prod":
                while (count := y.shape[axis - 1]) > 1:
                    half = count // 2
                    parts = self.split(y, axis, [half, half] + [1] * (count % 2))
                    both = self.multiply_values(parts[0], parts[1])
                    y = self.concat([both, *parts[2:]], axis) if count % 2 else both
            case _:
                refuse(f"not yet: reduction by {how}")
        return self.sample(y, kept if keepdims else rest)

    def mean(self, x: Value, axes: Sequence[int], keep: bool) -> Value:
        """Mean over axes, as one average pooling between reshapes where it has to be."""
        x = self.plain(x)
        over = sorted({self.axis(a, x.rank) for a in axes})
        if not over:
            refuse("never: a mean over all axes touches the batch axis (axis 0)")
        kept = tuple(1 if k in over else d for k, d in enumerate(x.shape, 1))
        if x.rank == 4 and over[0] >= 2:
            window = (x.shape[1] if 2 in over else 1, x.shape[2] if 3 in over else 1)
            y = self.emit(ir.AvgPool2d(window, window), [x])
        else:
            y, axis, _, _ = self.together(x, axes)
            parts = y.shape[: axis - 1], y.shape[axis:]
            size = y.shape[axis - 1]
            y = self.sample(y, (math.prod(parts[0]), size, math.prod(parts[1])))
            y = self.emit(ir.AvgPool2d((size, 1), (size, 1)), [y])
        return self.sample(y, kept if keep else tuple(d for k, d in enumerate(x.shape, 1) if k not in over))

    def argmax(self, x: Value, axis: int, keepdims: bool, *, last: bool = False) -> Value:
        """Position of the largest value along an axis, the first of equal ones, or the last."""
        x = self.plain(x)
        axis = self.axis(axis, x.rank)
        size = x.shape[axis - 1]
        if last:
            x = self.take(x, axis, range(size)[::-1])
        y = self.emit(ir.ArgMax(axis), [x])
        y = self.shift(self.multiply(y, -1.0), size - 1.0) if last else y
        return self.unsqueeze(y, [axis]) if keepdims else y

    def top(self, x: Value, axis: int, *, largest: bool = True, keepdims: bool = True) -> tuple[Value, Value]:
        """The largest or least value along an axis, and its position, the first of equal ones."""
        y = self.reduce(x, "max" if largest else "min", [axis], keepdims)
        return y, self.argmax(x if largest else self.multiply(x, -1.0), axis, keepdims)

    def hardmax(self, x: Value, axis: int) -> Value:
        """1 at the first largest value along an axis, else 0."""
        x = self.plain(x)
        axis = self.axis(axis, x.rank)
        size = x.shape[axis - 1]
        self.room(size)
        spread = self.take(self.argmax(x, axis, True), axis, (0,) * size)
        away = self.scale(spread, axis, 1.0, -np.arange(size, dtype=np.float64))
        return self.truth(self.piecewise(away, [-0.5, 0.5], [1, -1], [0, 0]))

    def cumsum(self, x: Value, axis: int, exclusive: bool = False, reverse: bool = False) -> Value:
        """Sums of all that came before, in log steps."""
        x = self.plain(x)
        axis = self.axis(axis, x.rank)
        size = x.shape[axis - 1]
        self.room(size)

        def shifted(value: Value, by: int) -> Value:
            keep, by = max(size - by, 0), min(by, size)
            before = list(range(by, size)) + [-1] * by
            return self.take(value, axis, before if reverse else [-1] * by + list(range(keep)))

        if exclusive:
            x = shifted(x, 1)
        by = 1
        while by < size:
            x = self.emit(ir.Add(), [x, shifted(x, by)])
            by *= 2
        return x

    # --- softmax, norms

    def softmax(self, x: Value, axis: int, log: bool = False) -> Value:
        """``exp(x) / sum exp(x)`` along an axis, or its logarithm."""
        x = self.plain(x)
        axis = self.axis(axis, x.rank)
        if x.shape[axis - 1] == 1:
            return self.shift(self.multiply(x, 0.0), 0.0 if log else 1.0)
        return self.emit(ir.Softmax(axis, log), [x])

    def logsumexp(self, x: Value, axes: Sequence[int], keepdims: bool) -> Value:
        """``log sum exp(x)``: an entry minus its own logarithm of a softmax."""
        y, axis, kept, rest = self.together(x, axes)
        logs = self.softmax(y, axis, True)
        first = self.add(self.take(y, axis, [0]), self.take(logs, axis, [0]), -1.0)
        return self.sample(first, kept if keepdims else rest)

    def _normalize(self, x: Value, eps: float) -> Value:
        """Over the last axis; the variance's range from what is declared or known of the values."""
        low, high = self.span(x)
        spread = ((high - low) / 2) ** 2
        most = 2.0 ** math.ceil(math.log2(spread)) if 0 < spread < 2.0**40 else 2.0**8
        least, most = self._ranges.get(self._at[0], (0.0, most))
        return self.emit(ir.Normalize(float(eps), least, most), [x])

    def layer_norm(
        self,
        x: Value,
        axes: Sequence[int],
        weight: ir.Array | None = None,
        bias: ir.Array | None = None,
        eps: float = 1e-5,
    ) -> Value:
        """Normalise over axes, the last ones where weights are given, which have their shape."""
        x = self.plain(x)
        over = sorted({self.axis(a, x.rank) for a in axes})
        others = [k for k in range(1, x.rank) if k not in over]
        order = [0, *others, *over]
        y = self.transpose(x, order)
        moved = y.shape
        size = math.prod(moved[len(others) :])
        if size < 2:
            refuse("never: it normalises one number, of which nothing is left")
        y = self._normalize(self.sample(y, (*moved[: len(others)], size)), eps)
        y = self._weighted(y, y.rank - 1, weight, bias)
        return self.transpose(self.sample(y, moved), np.argsort(order).tolist())

    def _weighted(self, x: Value, axis: int, weight: ir.Array | None, bias: ir.Array | None) -> Value:
        if weight is None and bias is None:
            return x
        size = x.shape[axis - 1]
        w, b = (
            np.broadcast_to(v.reshape(-1), (size,)) if v is not None and v.size in (1, size) else v
            for v in (np.ones(1) if weight is None else weight, np.zeros(1) if bias is None else bias)
        )
        if w.size != size or b.size != size:
            refuse(f"its weights of {w.shape} and {b.shape} do not go with {size} values")
        return self.scale(x, axis, w, b)

    def group_norm(
        self, x: Value, groups: int, weight: ir.Array | None, bias: ir.Array | None, eps: float
    ) -> Value:
        """Normalise groups of channels with all their positions; a weight and a bias for each channel."""
        x = self.plain(x)
        if x.rank < 2 or groups < 1 or x.shape[0] % groups:
            refuse(f"{groups} groups do not divide the channels")
        size = math.prod(x.shape) // groups
        if size < 2:
            refuse("never: it normalises one number, of which nothing is left")
        y = self._normalize(self.sample(x, (groups, size)), eps)
        return self._weighted(self.sample(y, x.shape), 1, weight, bias)

    def rms_norm(
        self, x: Value, axes: Sequence[int], weight: ir.Array | None = None, eps: float = 1e-5
    ) -> Value:
        """``x / sqrt(mean(x^2) + eps)``: x next to -x has no mean, and this for its variance."""
        x = self.plain(x)
        over = sorted({self.axis(a, x.rank) for a in axes})
        others = [k for k in range(1, x.rank) if k not in over]
        order = [0, *others, *over]
        y = self.transpose(x, order)
        moved, flat = y.shape, (*y.shape[: len(others)], math.prod(y.shape[len(others) :]))
        y = self.sample(y, flat)
        both = self.concat([y, self.multiply(y, -1.0)], y.rank - 1)
        y = self.take(self._normalize(both, eps), y.rank - 1, range(flat[-1]))
        y = self._weighted(y, y.rank - 1, weight, None)
        return self.transpose(self.sample(y, moved), np.argsort(order).tolist())

    # --- products of matrices

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
        x = self.plain(x)
        if w.ndim > 2 and w.ndim <= x.rank and set(w.shape[:-2]) == {1}:
            w = w.reshape(w.shape[-2:])
        if w.ndim == 1:
            y = self.linear(x, w[:, None])
            return self.sample(y, y.shape[:-1])
        if w.ndim > 2 and w.ndim <= x.rank and not (w.ndim == x.rank and w.shape[0] > 1):
            sample = w[0] if w.ndim == x.rank else w
            return self.matmul_values(x, self.secret(sample, x))
        return self.linear(x, w)

    def matmul_left(self, w: ir.Array, x: Value) -> Value:
        """``w @ x``."""
        if x.rank < 3:
            refuse("never: it sums over the batch axis (axis 0)")
        if w.ndim > 2 and w.ndim <= x.rank and set(w.shape[:-2]) == {1}:
            w = w.reshape(w.shape[-2:])
        if w.ndim == 1:
            return self.matmul(self.swap(x), w)
        if w.ndim == 2:
            return self.swap(self.linear(self.swap(x), w.T))
        if w.ndim > x.rank or (w.ndim == x.rank and w.shape[0] > 1):
            refuse("never: the constant moves the batch axis (axis 0)")
        return self.matmul_values(self.secret(w[0] if w.ndim == x.rank else w, x), x)

    def matmul_values(self, x: Value, y: Value) -> Value:
        """``x @ y`` of two private values; leading axes broadcast."""
        x, y = self.plain(x), self.plain(y)
        if x.rank < 3 or y.rank < 3:
            refuse("never: it sums over the batch axis (axis 0)")
        rank = max(x.rank, y.rank)
        if x.rank != y.rank:
            refuse("never: operands with different numbers of axes move the batch axis (axis 0)")
        try:
            lead = np.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        except ValueError:
            refuse(f"{x.shape} @ {y.shape} do not fit")
        x, y = (self._broadcast(v, (*lead, *v.shape[rank - 3 :])) for v in (x, y))
        return self.emit(ir.MatMul(), [x, y])

    def concat(self, xs: Sequence[Value | Const], axis: int) -> Value:
        """Concatenation along an axis other than the batch; constants go along as secret values."""
        like = next((x for x in xs if isinstance(x, Value)), None)
        if like is None:
            refuse("not yet: concatenation of constants")
        axis = self.axis(axis, like.rank)
        return self.emit(ir.Concat(axis), [self.as_value(x, like) for x in xs])

    def attention(
        self,
        q: Value,
        k: Value,
        v: Value,
        scale: float | None = None,
        mask: Value | Const | None = None,
        causal: bool = False,
        softcap: float = 0.0,
        window: tuple[int, int] = (-1, -1),
        offset: int = 0,
    ) -> Value:
        """``softmax(q k^T scale + mask) v`` over the last two axes: (..., tokens, features).

        Parameters
        ----------
        q, k, v : Value
            Queries, keys, values.
        scale : float, optional
            One over the root of the features otherwise.
        mask : Value or Const, optional
            Added, or where it holds booleans it says which places count. A query for which none does gets 0.
        causal : bool
            Whether a query sees no keys behind its own place.
        softcap : float
            Scores s become ``softcap tanh(s / softcap)``; 0 leaves them.
        window : pair of int
            How many keys before and behind its place a query sees; -1 stands for all.
        offset : int
            Place of the first query among the keys.
        """
        factor = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        scores = self.matmul_values(self.multiply(q, factor), self.swap(k))
        if softcap:
            capped = self.function(self.multiply(scores, 1 / softcap), "tanh")
            scores = self.multiply(capped, softcap)
        rows, columns = scores.shape[-2:]
        back = np.arange(rows)[:, None] + offset - np.arange(columns)[None, :]
        seen = np.ones((rows, columns), dtype=np.bool_)
        if causal:
            seen &= back >= 0
        for size, away in ((window[0], back), (window[1], -back)):
            seen &= (away <= size) | (size < 0)
        if isinstance(mask, Const):
            array = mask.array if mask.array.dtype == np.bool_ else mask.array >= MASKED
            seen = np.logical_and(seen, self.constant_for(scores, Const(array)) != 0)
            if mask.array.dtype != np.bool_:
                scores = self.masked(scores, mask)
        elif mask is not None:
            scores = self.masked(scores, mask)
        if not seen.all():
            scores = self.masked(scores, Const(np.broadcast_to(seen, (1, *seen.shape))))
        y = self.matmul_values(self.softmax(scores, scores.rank - 1), v)
        alive = seen.any(axis=-1, keepdims=True)
        return y if alive.all() else self.affine(y, alive.astype(np.float64), 0.0)

    def masked(self, scores: Value, mask: Value | Const) -> Value:
        """Scores in front of a softmax: booleans say which count, other numbers are added."""
        if isinstance(mask, Value):
            if self.is_truth(mask):
                return self.add(scores, self.shift(self.multiply(mask, -MASKED), MASKED))
            return self.add(scores, mask)
        if mask.array.dtype == np.bool_:
            return self.where(mask, scores, Const(np.asarray(MASKED, dtype=np.float32)))
        return self.add(scores, softened(mask))

    # --- recurrent layers, unrolled

    def recurrent(
        self, x: Value, cell: Cell, h: Value | None = None, c: Value | None = None
    ) -> tuple[Value, Value, Value | None]:
        """Run (steps, inputs) through a recurrent cell, step by step.

        Parameters
        ----------
        x : Value
            Per-sample shape (steps, inputs).
        cell : Cell
            Weights.
        h, c : Value, optional
            Initial state and, for LSTM, memory: per-sample shape (hidden,); zeros without them.

        Returns
        -------
        all, last, memory
            (steps, hidden), (hidden,) and for LSTM (hidden,).
        """
        if len(x.shape) != 2:
            refuse("not yet: a recurrent layer over anything but (steps, features)")
        steps, hidden = x.shape[0], cell.r.shape[1]
        if steps > MAX_STEPS:
            refuse(f"not yet: more than {MAX_STEPS} steps of a recurrent layer")
        gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[cell.kind]
        if cell.w.shape != (gates * hidden, x.shape[1]) or cell.r.shape != (gates * hidden, hidden):
            refuse(f"weights of {cell.w.shape} and {cell.r.shape} do not go with {x.shape}")
        late = np.zeros_like(cell.rb)  # bias that the reset gate multiplies
        if cell.kind == "GRU" and not cell.reset_first:
            late[2 * hidden :] = cell.rb[2 * hidden :]
        ahead = self.linear(x, cell.w.T, cell.wb + cell.rb - late)
        cell = replace(cell, rb=late)
        states: list[Value] = []
        for t in reversed(range(steps)) if cell.reverse else range(steps):
            given = self.sample(self.take(ahead, 1, [t]), (gates * hidden,))
            h, c = self._cell(cell, given, h, c)
            states.append(h)
        if cell.reverse:
            last, states = states[-1], states[::-1]
        else:
            last = states[-1]
        rows = [self.sample(s, (1, hidden)) for s in states]
        return (rows[0] if steps == 1 else self.concat(rows, 1)), last, c

    def _cell(self, cell: Cell, x: Value, h: Value | None, c: Value | None) -> tuple[Value, Value | None]:
        """One step; x is what the inputs add to the gates. A state that is None is zero."""
        size = cell.r.shape[1]
        sigmoid, tanh, tanh_out = (*cell.activations, *(None,) * 3)[:3]
        gate = sigmoid or (lambda v: self.function(v, "sigmoid"))
        bend = tanh or (lambda v: self.function(v, "tanh"))
        out = tanh_out or (lambda v: self.function(v, "tanh"))

        def part(v: Value, first: int, count: int = 1) -> Value:
            return self.take(v, 1, range(first * size, (first + count) * size))

        def recur(v: Value, rows: slice) -> Value:
            return v if h is None else self.add(v, self.linear(h, cell.r[rows].T))

        if cell.kind == "RNN":
            activation = sigmoid or (lambda v: self.function(v, "tanh"))
            return activation(recur(x, slice(None))), None
        if cell.kind == "GRU":
            zr = gate(recur(part(x, 0, 2), slice(0, 2 * size)))
            z, r = part(zr, 0), part(zr, 1)
            own = part(x, 2)
            last = slice(2 * size, 3 * size)
            if cell.reset_first and h is None:
                inner = own
            elif cell.reset_first and h is not None:
                inner = self.add(own, self.linear(self.multiply_values(r, h), cell.r[last].T))
            elif h is None:
                inner = self.add(own, self.scale(r, 1, cell.rb[last], 0.0))
            else:
                inner = self.add(own, self.multiply_values(r, self.linear(h, cell.r[last].T, cell.rb[last])))
            new = bend(inner)
            if h is None:  # (1 - z) new
                return self.add(new, self.multiply_values(z, new), -1.0), None
            return self.add(new, self.multiply_values(z, self.add(h, new, -1.0))), None
        z = recur(x, slice(None))
        peep = cell.peephole
        ifo, candidate = part(z, 0, 3), part(z, 3)
        if peep is not None:
            i_, o_, f_ = (part(ifo, k) for k in range(3))
            if c is not None:
                i_ = self.add(i_, self.scale(c, 1, peep[:size], 0.0))
                f_ = self.add(f_, self.scale(c, 1, peep[2 * size :], 0.0))
            i, f = gate(i_), gate(f_)
        else:
            gated = gate(ifo)
            i, o, f = (part(gated, k) for k in range(3))
        memory = self.multiply_values(i, bend(candidate))
        if c is not None:
            memory = self.add(self.multiply_values(f, c), memory)
        if peep is not None:
            o = gate(self.add(o_, self.scale(memory, 1, peep[size : 2 * size], 0.0)))
        return self.multiply_values(o, out(memory)), memory


def softened(mask: Const) -> Const:
    """A mask to be added in front of a softmax, with a number that fixed point can hold for -infinity."""
    array = mask.array.astype(np.float64)
    return replace(mask, array=np.where(array < MASKED, MASKED, array).astype(np.float32))
