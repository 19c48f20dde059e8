"""ATen operators that only move values, and what all converters of ATen operators share.

A method ``_op_NAME`` converts the operator ``aten.NAME``; its argument holds that operator's arguments by the
names of its schema, and in `out` the shape torch gives to the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from privinfer.errors import ModelUnsupported
from privinfer.graph import build
from privinfer.graph.build import Const, Value, refuse

Args = SimpleNamespace

APART = "never: it touches the batch axis (axis 0), samples have to stay apart"


@dataclass(frozen=True, slots=True)
class Moved:
    """A private value whose batch torch has elsewhere than in front.

    Attributes
    ----------
    value : Value
        The same value, batch first.
    at : int
        The axis that holds the batch.
    fused : int
        How many positions of the value's first axis share that axis with it, which is then axis 0; else 0.
    node : str
        What brought it there, for messages.
    """

    value: Value
    at: int
    fused: int
    node: str

    @property
    def rank(self) -> int:
        """Number of axes as torch counts them."""
        return self.value.rank - (1 if self.fused else 0)


class Operands:
    """What all converters need: the builder, and what becomes of constants."""

    def __init__(self, torch: Any, builder: build.Builder) -> None:
        self.torch = torch
        self.b = builder
        self.node = ("", "")
        self.public: set[int] = set()  # ids of tensors that the code itself makes

    def const(self, v: Any) -> Const:
        """Give a tensor, which is secret, or a Python number, which is public."""
        if isinstance(v, self.torch.Tensor):
            if v.is_quantized or v.is_complex() or v.layout is not self.torch.strided:
                refuse("not yet: quantised, complex or sparse weights, export floating-point weights")
            if v.dtype in (self.torch.int8, self.torch.uint8):
                refuse(f"not yet: weights of type {v.dtype}, export the model with floating-point weights")
            kept = v if v.dtype == self.torch.bool else v.to(self.torch.float64)
            return Const(kept.detach().cpu().numpy(), public=id(v) in self.public)
        if isinstance(v, bool) or not isinstance(v, int | float):
            refuse(f"not yet: an operand of type {type(v).__name__}")
        return Const(np.asarray(float(v)), public=True)

    def operand(self, v: Any) -> Value | Const:
        """Give a private value or a constant."""
        return self.value(v) if isinstance(v, Value | Moved) else self.const(v)

    def value(self, v: Any) -> Value:
        """Give a private value with its batch in front."""
        if isinstance(v, Moved):
            raise ModelUnsupported(f"{v.node}: {APART}")
        return v if isinstance(v, Value) else refuse("not yet: a constant where a private value belongs")

    def private(self, *vs: Any) -> bool:
        """Whether all of them are private values."""
        return all(isinstance(v, Value | Moved) for v in vs)

    def weights(self, v: Any) -> Any:
        """Give a constant tensor as float64 weights."""
        if self.private(v):
            refuse("not yet: weights that are private values")
        if isinstance(v, self.torch.Tensor) and not v.is_quantized and not v.is_floating_point():
            refuse(f"not yet: weights of type {v.dtype}, export the model with floating-point weights")
        return None if v is None else self.b.weights(self.const(v))

    def number(self, v: Any, what: str) -> float:
        """Give a number that stands in the code."""
        if isinstance(v, self.torch.Tensor) and v.numel() == 1 and id(v) in self.public:
            v = v.item()
        if isinstance(v, bool) or not isinstance(v, int | float):
            refuse(f"not yet: {what} that is no number in the code")
        return float(v)

    def times(self, v: Any, factor: float) -> Value | Const:
        """Operand times a Python number."""
        if factor == 1:
            return self.operand(v)
        if isinstance(v, Value | Moved):
            return self.b.multiply(self.value(v), float(factor))
        c = self.const(v)
        return Const(c.array * float(factor), c.public)

    def seen(self, v: Any) -> tuple[Value, int]:
        """A value and the axis at which torch has its batch."""
        if isinstance(v, Moved) and not v.fused:
            return v.value, v.at
        return self.value(v), 0

    def shown(self, x: Value, at: int) -> Value | Moved:
        """Inverse of :meth:`seen`."""
        return Moved(x, at, 0, self.label()) if at else x

    def label(self) -> str:
        """The node at hand, for messages."""
        return f"node {build.printable(self.node[0])!r} ({build.printable(self.node[1])})"

    def axis(self, dim: int, rank: int, at: int) -> int:
        """Axis of the value in the builder's count; the batch is refused."""
        if not -rank <= dim < rank:
            refuse(f"there is no axis {dim} in a value of {rank} axes")
        dim %= rank
        return 0 if dim == at else dim + 1 if dim < at else dim

    def one_axis(self, v: Any, dim: int) -> tuple[Value, int, int]:
        """A value, the builder's count of one of its axes, which is not the batch, and the batch's place."""
        x, at = self.seen(v)
        axis = self.axis(dim, x.rank, at)
        return x, self.b.axis(axis, x.rank), at


class Shapes(Operands):
    """Operators that only move values about."""

    def _reshape(self, a: Args) -> Value | Moved:
        v, to = a.self, tuple(int(d) for d in a.out)
        batch = self.b.batch
        if isinstance(v, Moved) and v.fused:
            x = v.value
            if to and to[0] == batch * x.shape[0] and (to[0] != batch or x.shape[0] == 1):
                y = self.b.reshape(x, (batch, x.shape[0], *to[1:]))
                return Moved(y, 0, v.fused, v.node)
            return self.b.reshape(x, to)
        x, at = self.seen(v)
        if at:
            before = math.prod(x.shape[:at])
            for q, d in enumerate(to):
                if d == batch and math.prod(to[:q]) == before:
                    rest = to[:q] + to[q + 1 :]
                    return self.shown(self.b.reshape(x, (batch, *rest)), q)
            self.value(v)
        if to and to[0] != batch and to[0] % batch == 0 and math.prod(to) == batch * math.prod(x.shape):
            return Moved(self.b.reshape(x, (batch, to[0] // batch, *to[1:])), 0, to[0] // batch, self.label())
        return self.b.reshape(x, to)

    def _op_permute(self, a: Args) -> Value | Moved:
        v = a.self
        if isinstance(v, Moved) and v.fused:
            order = [d % v.rank for d in a.dims]
            if order[0] != 0:
                self.value(v)
            return replace(v, value=self.b.transpose(v.value, [0, 1, *(d + 1 for d in order[1:])]))
        x, at = self.seen(v)
        if sorted(d % x.rank for d in a.dims) != list(range(x.rank)):
            refuse(f"{tuple(a.dims)} is no order of {x.rank} axes")
        order = [self.axis(d, x.rank, at) for d in a.dims]
        to = order.index(0)
        return self.shown(self.b.transpose(x, [0, *(k for k in order if k)]), to)

    def _swap(self, v: Any, one: int, other: int) -> Value | Moved:
        rank = v.rank if isinstance(v, Value | Moved) else 0
        if not (-rank <= one < rank and -rank <= other < rank):
            refuse(f"there is no axis {one} or {other} in a value of {rank} axes")
        order = list(range(rank))
        order[one], order[other] = order[other], order[one]
        return self._op_permute(Args(self=v, dims=order))

    def _op_transpose(self, a: Args) -> Value | Moved:
        return self._swap(a.self, a.dim0, a.dim1)

    def _op_t(self, a: Args) -> Value | Moved:
        return self._swap(a.self, 0, -1)

    def _op_squeeze(self, a: Args) -> Value | Moved:
        dim = getattr(a, "dim", None)
        if dim is None:
            refuse("never: without axes it may touch the batch axis (axis 0), name the axes")
        x, at = self.seen(a.self)
        dims = sorted({d % x.rank for d in ([dim] if isinstance(dim, int) else dim)})
        axes = [self.b.axis(self.axis(d, x.rank, at), x.rank) for d in dims]
        gone = sum(1 for d, k in zip(dims, axes, strict=True) if d < at and x.shape[k - 1] == 1)
        return self.shown(self.b.squeeze(x, axes), at - gone)

    def _op_unsqueeze(self, a: Args) -> Value | Moved:
        x, at = self.seen(a.self)
        dim = a.dim % (x.rank + 1)
        if dim <= at:  # the batch moves on
            y = self.b.reshape(x, (self.b.batch, *x.shape[:dim], 1, *x.shape[dim:]))
            return self.shown(y, at + 1)
        return self.shown(self.b.unsqueeze(x, [dim]), at)

    def _op_expand(self, a: Args) -> Value | Moved:
        v, to = a.self, tuple(int(d) for d in a.out)
        if isinstance(v, Moved):
            full = (*v.value.shape[: v.at], self.b.batch, *v.value.shape[v.at :])
            if v.fused:
                full = (self.b.batch * v.fused, *v.value.shape[1:])
            return v if to == full else self.value(v)
        x = self.value(v)
        if to == (self.b.batch, *x.shape):
            return x
        if len(to) != x.rank or to[0] != self.b.batch:
            refuse(APART)
        return self.b.expand(x, to)

    def _op_repeat(self, a: Args) -> Value:
        x, counts = self.value(a.self), [int(r) for r in a.repeats]
        if len(counts) != x.rank or counts[0] != 1:
            refuse(APART)
        for k, count in enumerate(counts):
            if count > 1:
                x = self.b.take(x, k, tuple(range(x.shape[k - 1])) * count)
        return x

    def _cut(self, v: Any, dim: int, indices: Sequence[int]) -> Value | Moved:
        """Parts of one axis."""
        x, at = self.seen(v)
        axis = self.axis(dim, x.rank, at)
        size = self.b.batch if axis == 0 else x.shape[axis - 1]
        if list(indices) == list(range(size)):
            return self.shown(x, at)
        if not indices:
            refuse("not yet: an empty part of a value")
        return self.shown(self.b.take(x, self.b.axis(axis, x.rank), tuple(indices)), at)

    def _size(self, v: Any, dim: int) -> int:
        x, at = self.seen(v)
        axis = self.axis(dim, x.rank, at)
        return x.shape[axis - 1] if axis else self.b.batch

    def _op_slice(self, a: Args) -> Value | Moved:
        taken = range(self._size(a.self, a.dim))[slice(a.start, a.end, a.step)]
        return self._cut(a.self, a.dim, taken)

    def _op_narrow(self, a: Args) -> Value | Moved:
        size = self._size(a.self, a.dim)
        start = int(self.number(a.start, "a start")) % size
        return self._cut(a.self, a.dim, range(start, start + a.length))

    def _op_select(self, a: Args) -> Value | Moved:
        x, axis, at = self.one_axis(a.self, a.dim)
        y = self.b.take(x, axis, (a.index % x.shape[axis - 1],)) if x.shape[axis - 1] > 1 else x
        y = self.b.reshape(y, (self.b.batch, *x.shape[: axis - 1], *x.shape[axis:]))
        return self.shown(y, at - 1 if a.dim % x.rank < at else at)

    def _op_unbind(self, a: Args) -> list[Value | Moved]:
        x, axis, _ = self.one_axis(a.self, a.dim)
        return [self._op_select(Args(self=a.self, dim=a.dim, index=k)) for k in range(x.shape[axis - 1])]

    def _op_split(self, a: Args) -> list[Value | Moved]:
        given = a.split_sizes if hasattr(a, "split_sizes") else a.split_size
        total = self._size(a.self, a.dim)
        if isinstance(given, int):
            given = [min(given, total - k) for k in range(0, total, given)]
        ends = np.cumsum(given).tolist()
        return [self._cut(a.self, a.dim, range(e - n, e)) for n, e in zip(given, ends, strict=True)]

    _op_split_with_sizes = _op_split

    def _op_chunk(self, a: Args) -> list[Value | Moved]:
        size = -(-self._size(a.self, a.dim) // a.chunks)
        return self._op_split(Args(self=a.self, split_size=size, dim=a.dim))

    def _integers(self, v: Any) -> list[int]:
        if not isinstance(v, self.torch.Tensor) or v.is_floating_point() or v.ndim > 1:
            refuse("never: which values are taken would depend on private data")
        return [int(k) for k in v.reshape(-1).tolist()]

    def _op_index_select(self, a: Args) -> Value | Moved:
        size = self._size(a.self, a.dim)
        return self._cut(a.self, a.dim, [k % size for k in self._integers(a.index)])

    def _op_index(self, a: Args) -> Value | Moved:
        if not self.private(a.self):
            refuse("never: which values are taken would depend on private data")
        used = [k for k, index in enumerate(a.indices) if index is not None]
        if len(used) != 1 or (
            isinstance(a.indices[used[0]], self.torch.Tensor) and a.indices[used[0]].dtype == self.torch.bool
        ):
            refuse("not yet: indices along more than one axis, or a mask")
        return self._op_index_select(Args(self=a.self, dim=used[0], index=a.indices[used[0]]))

    def _op_flip(self, a: Args) -> Value | Moved:
        v = a.self
        for dim in a.dims:
            v = self._cut(v, dim, range(self._size(v, dim))[::-1])
        return v  # type: ignore[no-any-return]

    def _op_roll(self, a: Args) -> Value | Moved:
        v = a.self
        if not a.dims:
            refuse(APART)
        for shift, dim in zip(a.shifts, a.dims, strict=True):
            size = self._size(v, dim)
            v = self._cut(v, dim, [(k - shift) % size for k in range(size)])
        return v  # type: ignore[no-any-return]

    def _op_cat(self, a: Args) -> Value:
        return self.b.concat([self.operand(x) for x in a.tensors], a.dim)

    def _op_stack(self, a: Args) -> Value | Moved:
        parts = [self._op_unsqueeze(Args(self=x, dim=a.dim)) for x in a.tensors if self.private(x)]
        if len(parts) < len(a.tensors):
            refuse("not yet: a stack of values and constants")
        ats = {p.at if isinstance(p, Moved) else 0 for p in parts}
        if len(ats) > 1:
            refuse(APART)
        x, at = self.seen(parts[0])
        axis = self.axis(a.dim, x.rank, at)
        return self.shown(self.b.concat([self.seen(p)[0] for p in parts], axis), at)

    def _op_pad(self, a: Args) -> Value:
        x, mode = self.value(a.self), getattr(a, "mode", "constant")
        pairs = list(zip(a.pad[::2], a.pad[1::2], strict=True))[::-1]
        pairs = [(0, 0)] * (x.rank - len(pairs)) + pairs
        before, after = [p[0] for p in pairs], [p[1] for p in pairs]
        modes = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}
        if mode != "constant":
            return self.b.mirror(x, before, after, modes[mode])
        return self.b.pad(x, before, after, float(a.value or 0))

    _op_constant_pad_nd = _op_pad

    def _op_reflection_pad2d(self, a: Args, mode: str = "reflect") -> Value:
        return self._op_pad(Args(self=a.self, pad=a.padding, mode=mode))

    _op_reflection_pad1d = _op_reflection_pad2d

    def _op_replication_pad2d(self, a: Args) -> Value:
        return self._op_reflection_pad2d(a, "replicate")

    _op_replication_pad1d = _op_replication_pad2d

    def _op_upsample_nearest2d(self, a: Args) -> Value:
        x = self.value(a.self if hasattr(a, "self") else a.input)
        for axis in range(2, x.rank):
            size, want = x.shape[axis - 1], a.out[axis]
            line = self.torch.arange(size, dtype=self.torch.float64).reshape(1, 1, size)
            near = self.torch.nn.functional.interpolate(line, want, mode="nearest")
            if size != want:
                x = self.b.take(x, axis, tuple(int(k) for k in near.reshape(-1).tolist()))
        return x

    _op_upsample_nearest1d = _op_upsample_nearest2d

    def _op_pixel_shuffle(self, a: Args) -> Value:
        return self.b.depth_to_space(self.value(a.self), a.upscale_factor, depth_first=False)

    def _op_pixel_unshuffle(self, a: Args) -> Value:
        return self.b.space_to_depth(self.value(a.self), a.downscale_factor, depth_first=False)

    def _op_zeros_like(self, a: Args, value: float = 0.0) -> Any:
        made = self.torch.full(a.out, float(value))
        self.public.add(id(made))
        return made

    def _op_ones_like(self, a: Args) -> Any:
        return self._op_zeros_like(a, 1.0)

    def _op_full_like(self, a: Args) -> Any:
        return self._op_zeros_like(a, self.number(a.fill_value, "a value to fill with"))

    def _op_new_zeros(self, a: Args) -> Any:
        return self._op_zeros_like(a)


def sizes(v: Any, n: int) -> list[Any]:
    """One size for all of n axes, or one for each."""
    given = list(v) if isinstance(v, Sequence) else [v]
    if len(given) not in (1, n):
        refuse(f"{len(given)} window sizes instead of {n}")
    return given if len(given) == n else given * n
