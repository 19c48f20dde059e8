"""ATen operators of one or two values, elementwise or between matrices, comparisons and choices.

How the methods are named and called stands in :mod:`privinfer.graph.torch_ops`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from privinfer.graph.build import Const, Value, refuse
from privinfer.graph.torch_ops import APART, MASKED, Args, Moved, Operands


class Arithmetic(Operands):
    """Operators on one or two values, elementwise or between matrices."""

    def _op_add(self, a: Args) -> Value:
        return self.b.add(self.operand(a.self), self.times(a.other, getattr(a, "alpha", 1)))

    def _op_sub(self, a: Args) -> Value:
        return self.b.add(self.operand(a.self), self.times(a.other, getattr(a, "alpha", 1)), sign=-1.0)

    def _op_rsub(self, a: Args) -> Value:
        return self.b.add(self.operand(a.other), self.times(a.self, a.alpha), sign=-1.0)

    def _op_mul(self, a: Args) -> Value:
        if self.private(a.self, a.other):
            return self.b.multiply_values(self.value(a.self), self.value(a.other))
        return self.b.mul(self.operand(a.self), self.operand(a.other))

    def _op_square(self, a: Args) -> Value:
        x = self.value(a.self)
        return self.b.multiply_values(x, x)

    def _op_div(self, a: Args) -> Value:
        if getattr(a, "rounding_mode", None) is not None:
            refuse("not yet: division with rounding")
        if self.private(a.other):
            x, y = self.operand(a.self), self.value(a.other)
            inverse = self.b.function(y, "reciprocal")
            return self.b.multiply_values(x, inverse) if isinstance(x, Value) else self.b.mul(x, inverse)
        return self.b.div(self.operand(a.self), self.operand(a.other))

    def _op_neg(self, a: Args) -> Value:
        return self.b.multiply(self.value(a.self), -1.0)

    def _op_pow(self, a: Args) -> Value:
        if not self.private(a.self):
            refuse("not yet: a constant to the power of a private value")
        x, power = self.value(a.self), self.number(a.exponent, "an exponent")
        if power == 1:
            return x
        if power in (2, 3, 4):
            square = self.b.multiply_values(x, x)
            return square if power == 2 else self.b.multiply_values(square, x if power == 3 else square)
        name = {0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}.get(power)
        return self.b.function(x, name) if name else refuse(f"not yet: the power {power:g}")

    def _op_addmm(self, a: Args) -> Value:
        y = self._product(a.mat1, a.mat2)
        y = self.b.multiply(y, float(a.alpha)) if a.alpha != 1 else y
        return self.b.add(y, self.times(a.self, a.beta))

    def _product(self, x: Any, y: Any) -> Value:
        if self.private(x, y):
            left, right = self.value(x), self.value(y)
            if left.rank != right.rank or left.rank < 3:
                refuse(f"not yet: the product of private values with {left.rank} and {right.rank} axes")
            return self.b.matmul_values(left, right)
        if self.private(x):
            return self.b.matmul(self.value(x), self.weights(y))
        w, right = self.weights(x), self.value(y)
        if w.ndim != 2 or right.rank < 3:
            refuse("not yet: a constant left operand but a matrix, replace by x @ w")
        turned = self._turned(right)
        return self._turned(self.b.linear(turned, w.T))

    def _turned(self, x: Value) -> Value:
        return self.b.transpose(x, [*range(x.rank - 2), x.rank - 1, x.rank - 2])

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
            always = {"gt": a.other < 0, "ge": a.other < 0, "lt": a.other > 0, "le": a.other > 0}
            made = self.torch.full(a.out, always.get(how, how == "ne"), dtype=self.torch.bool)
            self.public.add(id(made))
            return made
        return self.b.compare(self.operand(x), self.operand(a.other), how)

    def _op_gt(self, a: Args) -> Any:
        return self._compare(a, "gt")

    def _op_ge(self, a: Args) -> Any:
        return self._compare(a, "ge")

    def _op_lt(self, a: Args) -> Any:
        return self._compare(a, "lt")

    def _op_le(self, a: Args) -> Any:
        return self._compare(a, "le")

    def _op_eq(self, a: Args) -> Any:
        if isinstance(a.other, int | float) and math.isinf(a.other):
            return self._compare(a, "eq")
        refuse("not yet: equality of private values, replace by >= and <=")

    def _op_logical_not(self, a: Args) -> Value:
        return self.b.add(Const(np.asarray(1.0), True), self.value(a.self), sign=-1.0)

    def _op_maximum(self, a: Args) -> Value:
        return self.b.max_of(self.operand(a.self), self.operand(a.other))

    def _op_minimum(self, a: Args) -> Value:
        return self.b.min_of(self.operand(a.self), self.operand(a.other))

    def _mask(self, v: Any) -> Any:
        """A constant mask as booleans."""
        if not isinstance(v, self.torch.Tensor) or v.dtype != self.torch.bool:
            refuse("not yet: a mask that is no tensor of booleans")
        return v.detach().cpu().numpy()

    def _op_where(self, a: Args) -> Any:
        if self.private(a.condition):
            return self.b.where(self.value(a.condition), self.operand(a.self), self.operand(a.other))
        mask = self._mask(a.condition)
        if id(a.condition) in self.public and (mask.all() or not mask.any()):
            return a.self if mask.all() else a.other
        first = self.masked(a.self, ~mask, 0.0) if self.private(a.self) else None
        second = self.masked(a.other, mask, 0.0) if self.private(a.other) else None
        if first is not None and second is not None:
            return self.b.add(first, second)
        constant = self.const(a.other if first is not None else a.self).array
        chosen = mask if first is None else ~mask
        x = a.self if first is not None else a.other
        return self.masked(x, chosen, constant)

    def _op_masked_fill(self, a: Args) -> Value:
        if self.private(a.mask):
            x = self.operand(a.self)
            fill = self.number(a.value, "a value to fill with")
            return self.b.where(self.value(a.mask), self.const(max(fill, -MASKED)), x)
        return self.masked(a.self, self._mask(a.mask), self.const(a.value).array)
