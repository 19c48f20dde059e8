"""ATen operators of one or two values, elementwise or between matrices, comparisons and choices.

How the methods are named and called stands in :mod:`privinfer.graph.torch_ops`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from privinfer.graph import ir
from privinfer.graph.build import Const, Value, refuse
from privinfer.graph.build_parts import softened
from privinfer.graph.torch_ops import APART, Args, Moved, Operands

ABSOLUTE = ir.Piecewise((0.0,), (0.0,), (2.0,), -1.0)


class Arithmetic(Operands):
    """Operators on one or two values, elementwise or between matrices."""

    def _op_add(self, a: Args) -> Value:
        return self.b.add(self.filling(a.self), self.filling(self.times(a.other, getattr(a, "alpha", 1))))

    def _op_sub(self, a: Args) -> Value:
        return self.b.add(self.operand(a.self), self.times(a.other, getattr(a, "alpha", 1)), sign=-1.0)

    def _op_rsub(self, a: Args) -> Value:
        return self.b.add(self.operand(a.other), self.times(a.self, a.alpha), sign=-1.0)

    def _op_mul(self, a: Args) -> Value:
        return self.b.mul(self.operand(a.self), self.operand(a.other))

    def _op_square(self, a: Args) -> Value:
        x = self.value(a.self)
        return self.b.multiply_values(x, x)

    def _op_div(self, a: Args) -> Value:
        if getattr(a, "rounding_mode", None) is not None:
            refuse("not yet: division with rounding")
        x, y = self.operand(a.self), self.operand(a.other)
        if isinstance(x, Value) and isinstance(y, Value):
            shifted = self.b.made_by(y, ir.Shift)
            if shifted is not None and shifted.op == ir.Shift(1.0):
                size = self.b.made_by(self.b.source(shifted), ir.Piecewise)
                if size is not None and size.inputs == (x.name,) and size.op == ABSOLUTE:
                    return self.b.function(x, "softsign")
        return self.b.div(x, y)

    def _op_neg(self, a: Args) -> Value:
        return self.b.multiply(self.value(a.self), -1.0)

    def _op_pow(self, a: Args) -> Value:
        if not self.private(a.self):
            refuse("not yet: a constant to the power of a private value")
        return self.b.power(self.value(a.self), self.number(a.exponent, "an exponent"))

    def _op_addmm(self, a: Args) -> Value:
        y = self._product(a.mat1, a.mat2)
        y = self.b.multiply(y, float(a.alpha)) if a.alpha != 1 else y
        return self.b.add(y, self.times(a.self, a.beta))

    def _product(self, x: Any, y: Any) -> Value:
        if self.private(x, y):
            return self.b.matmul_values(self.value(x), self.value(y))
        if self.private(x):
            return self.b.matmul(self.value(x), self.weights(y))
        return self.b.matmul_left(self.weights(x), self.value(y))

    def _op_matmul(self, a: Args) -> Value:
        return self._product(a.self, a.other)

    def _op_mm(self, a: Args) -> Value:
        return self._product(a.self, a.mat2)

    def _op_bmm(self, a: Args) -> Value | Moved:
        x, y = a.self, a.mat2
        if isinstance(x, Moved) and isinstance(y, Moved) and x.fused == y.fused > 0:
            return replace(x, value=self.b.matmul_values(x.value, y.value))
        return self._product(x, y)

    def _op_dot(self, a: Args) -> Value:
        refuse("never: it sums over the batch axis (axis 0)")

    def _op_einsum(self, a: Args) -> Value:
        spec = a.equation.replace(" ", "")
        if "." in spec or spec.count("->") != 1 or len(a.tensors) != 2:
            refuse("not yet: einsum of anything but two operands with written axes and result")
        terms, result = spec.split("->")
        left, right = terms.split(",")
        x, y = a.tensors
        if not self.private(x):
            x, y, left, right = y, x, right, left
        if any(len(set(t)) < len(t) for t in (left, right, result)) or left[0] != result[0]:
            refuse(f"not yet: einsum {spec!r}: the batch has to stay in front, no letter may come twice")
        if self.private(x, y):
            return self._einsum_values(self.value(x), self.value(y), left, right, result)
        value, w = self.value(x), self.weights(y)
        summed = [c for c in left if c in right]
        kept = [c for c in left if c not in right]
        new = [c for c in right if c not in left]
        if set(summed) & set(result) or set(result) != {*kept, *new}:
            refuse(f"not yet: einsum {spec!r}, replace by matmul")
        sizes = dict(zip(left, (self.b.batch, *value.shape), strict=True)) | dict(
            zip(right, w.shape, strict=True)
        )
        rows, columns = (math.prod(sizes[c] for c in part) for part in (summed, new))
        value = self.b.transpose(value, [left.index(c) for c in (*kept, *summed)])
        value = self.b.reshape(value, (*(sizes[c] for c in kept), rows))
        w = w.transpose([right.index(c) for c in (*summed, *new)]).reshape(rows, columns)
        value = self.b.reshape(self.b.linear(value, w), tuple(sizes[c] for c in (*kept, *new)))
        return self.b.transpose(value, [[*kept, *new].index(c) for c in result])

    def _einsum_values(self, x: Value, y: Value, left: str, right: str, result: str) -> Value:
        if right[0] != result[0]:
            refuse(APART)
        both = [c for c in left if c in right and c in result]
        summed = [c for c in left if c in right and c not in result]
        rows = [c for c in left if c not in right]
        columns = [c for c in right if c not in left]
        if not summed or set(result) != {*both, *rows, *columns}:
            refuse(f"not yet: einsum '{left},{right}->{result}', replace by matmul")
        sizes = dict(zip(left, (self.b.batch, *x.shape), strict=True))
        sizes |= dict(zip(right, (self.b.batch, *y.shape), strict=True))
        front = tuple(sizes[c] for c in both)
        m, k, n = (math.prod(sizes[c] for c in part) for part in (rows, summed, columns))
        x = self.b.transpose(x, [left.index(c) for c in (*both, *rows, *summed)])
        y = self.b.transpose(y, [right.index(c) for c in (*both, *summed, *columns)])
        z = self.b.matmul_values(self.b.reshape(x, (*front, m, k)), self.b.reshape(y, (*front, k, n)))
        z = self.b.reshape(z, (*front, *(sizes[c] for c in (*rows, *columns))))
        return self.b.transpose(z, [[*both, *rows, *columns].index(c) for c in result])

    # --- comparisons and choices

    def _compare(self, a: Args, how: str) -> Any:
        x = a.self
        if isinstance(a.other, int | float) and math.isinf(a.other):
            always = how == "!=" or (how[0] in "<>" and (how[0] == ">") == (a.other < 0))
            made = self.torch.full(a.out, always, dtype=self.torch.bool)
            self.public.add(id(made))
            return made
        return self.b.compare(self.operand(x), self.operand(a.other), how)

    def _op_gt(self, a: Args) -> Any:
        return self._compare(a, ">")

    def _op_ge(self, a: Args) -> Any:
        return self._compare(a, ">=")

    def _op_lt(self, a: Args) -> Any:
        return self._compare(a, "<")

    def _op_le(self, a: Args) -> Any:
        return self._compare(a, "<=")

    def _op_eq(self, a: Args) -> Any:
        return self._compare(a, "==")

    def _op_ne(self, a: Args) -> Any:
        return self._compare(a, "!=")

    def _op_logical_not(self, a: Args) -> Value:
        return self.b.logical("not", self.value(a.self))

    _op_bitwise_not = _op_logical_not

    def _op_logical_and(self, a: Args) -> Value:
        return self.b.logical("and", self.value(a.self), self.value(a.other))

    _op_bitwise_and = _op_logical_and
    _op___and__ = _op_logical_and

    def _op_logical_or(self, a: Args) -> Value:
        return self.b.logical("or", self.value(a.self), self.value(a.other))

    _op_bitwise_or = _op_logical_or
    _op___or__ = _op_logical_or

    def _op_logical_xor(self, a: Args) -> Value:
        return self.b.logical("xor", self.value(a.self), self.value(a.other))

    _op_bitwise_xor = _op_logical_xor
    _op___xor__ = _op_logical_xor

    def _op_maximum(self, a: Args) -> Value:
        return self.b.max_of(self.operand(a.self), self.operand(a.other))

    def _op_minimum(self, a: Args) -> Value:
        return self.b.min_of(self.operand(a.self), self.operand(a.other))

    def _op_where(self, a: Args) -> Any:
        mask = a.condition
        if id(mask) in self.public and (mask.all() or not mask.any()):
            return a.self if mask.all() else a.other
        return self.b.where(self.operand(mask), self.filling(a.self), self.filling(a.other))

    def _op_masked_fill(self, a: Args) -> Value:
        return self.b.where(self.operand(a.mask), self.filling(a.value), self.operand(a.self))

    def filling(self, v: Any) -> Value | Const:
        """An operand; minus infinity is taken to stand in front of a softmax."""
        x = v if isinstance(v, Const) else self.operand(v)
        return softened(x) if isinstance(x, Const) and np.isneginf(x.array).any() else x
