"""Arithmetic and functions of one variable, for :class:`privinfer.graph.build.Builder`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from privinfer.graph import functions, ir, reference
from privinfer.graph.build_core import Const, Core, Value, refuse

ERROR = 5e-5  # of a table
REACH = 1e-5  # of the straight lines beyond its ends
WIDEST = 256.0  # a table with tails further out than that wants a declared range
SECOND_POWERS = {0.5: "sqrt", -0.5: "rsqrt", -1.0: "reciprocal"}
MAX_POWER = 64
SNAP = 2.0**-12
ROOT = math.sqrt(0.5)
GELU_B = functions.GELU_B


class Math(Core):
    """Operators that compute with single numbers."""

    # --- with constants

    def scale(self, x: Value, axis: int | None, w: ir.Array | float, b: ir.Array | float) -> Value:
        """Secret factor and offset along one axis; None stands for one pair for all positions."""
        x = self.plain(x)
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

    def affine(self, x: Value, w: ir.Array | float, b: ir.Array | float) -> Value:
        """``x * w + b`` with secret arrays that broadcast against x as NumPy does it, without the batch."""
        x = self.plain(x)
        w, b = np.asarray(w, dtype=np.float64), np.asarray(b, dtype=np.float64)
        rank = max(w.ndim, b.ndim, len(x.shape))
        if rank > len(x.shape):
            refuse("never: the constant has more axes than the value, so the batch axis (axis 0) moves")
        w, b = (v.reshape((1,) * (rank - v.ndim) + v.shape) for v in (w, b))
        try:
            varied = np.broadcast_shapes(w.shape, b.shape)
            x = self._broadcast(x, np.broadcast_shapes(varied, x.shape))
        except ValueError:
            refuse(f"constants of shapes {w.shape} and {b.shape} do not go with a value of {x.shape}")
        axes = [k for k, d in enumerate(varied) if d > 1]
        if not axes:
            return self.scale(x, None, w.reshape(()), b.reshape(()))
        first, last = axes[0], axes[-1] + 1
        inner = (*(1,) * first, *x.shape[first:last], *(1,) * (rank - last))
        w, b = (np.broadcast_to(v, inner).reshape(-1) for v in (w, b))
        merged = self.sample(x, (*x.shape[:first], math.prod(x.shape[first:last]), *x.shape[last:]))
        return self.sample(self.scale(merged, first + 1, w, b), x.shape)

    def constant_for(self, x: Value, c: Const) -> ir.Array:
        """A constant as an array against x without the batch axis, which it may not vary along."""
        array = self.numbers(c)
        while array.ndim > x.rank and array.shape[0] == 1:
            array = array[0]
        if array.ndim > x.rank:
            refuse("never: the constant has more axes than the value, so the batch axis (axis 0) moves")
        if array.ndim < x.rank:
            return array
        if array.shape[0] > 1 and (array.shape[0] != self.batch or not (array == array[:1]).all()):
            refuse("never: the constant differs along the batch axis (axis 0)")
        return np.asarray(array[0])

    def secret(self, c: ir.Array, like: Value) -> Value:
        """A constant as a value of its shape, the same for each sample; `like` is any value."""
        c = np.asarray(c, dtype=np.float64)
        flat = self.sample(like, (math.prod(like.shape),))
        nothing = self.emit(ir.Gather(1, (-1,) * c.size), [flat])
        return self.sample(self.scale(nothing, 1, 0.0, c.reshape(-1)), c.shape)

    def as_value(self, c: Value | Const, like: Value) -> Value:
        """`c`, as a secret value if it is a constant; of the rank of `like`."""
        if isinstance(c, Value):
            return c
        array = self.constant_for(like, c)
        return self.secret(array.reshape((1,) * (len(like.shape) - array.ndim) + array.shape), like)

    @staticmethod
    def number(c: Value | Const) -> float | None:
        """A public number, or None."""
        if isinstance(c, Value) or not c.public or c.array.size != 1 or c.array.dtype.kind not in "fiub":
            return None
        return float(c.array.reshape(()))

    def _single(self, x: Value, c: Const) -> float | None:
        number = self.number(c)
        return number if number is not None and c.array.ndim <= x.rank else None

    # --- arithmetic

    def add(self, x: Value | Const, y: Value | Const, sign: float = 1.0) -> Value:
        """``x + sign y``, `sign` being 1 or -1."""
        if isinstance(x, Value) and isinstance(y, Value):
            x, y = self.alike(x, y)
            return self.emit(ir.Add(), [x, self.multiply(y, sign) if sign != 1 else y])
        if isinstance(x, Value) and isinstance(y, Const):
            number = self._single(x, y)
            if number is not None:
                return self.shift(x, sign * number)
            return self.affine(x, 1.0, sign * self.constant_for(x, y))
        if isinstance(x, Const) and isinstance(y, Value):
            number = self._single(y, x)
            if number is not None:
                return self.shift(self.multiply(y, sign) if sign != 1 else y, number)
            return self.affine(y, sign, self.constant_for(y, x))
        refuse("not yet: arithmetic of constants, fold them before the export")

    def mul(self, x: Value | Const, y: Value | Const) -> Value:
        """Product; a constant is public if written in the code, else a secret weight."""
        if isinstance(x, Const):
            x, y = y, x
        if isinstance(x, Const):
            refuse("not yet: arithmetic of constants, fold them before the export")
        if isinstance(y, Value):
            return self.multiply_values(x, y)
        number = self._single(x, y)
        if number is not None:
            return self.multiply(x, number)
        return self.affine(x, self.constant_for(x, y), 0.0)

    def div(self, x: Value | Const, y: Value | Const) -> Value:
        """Quotient; the range of a private divisor has to be known."""
        if isinstance(y, Value):
            return self.divide(x, y)
        array = self.numbers(y)
        if not array.all():
            refuse("never: division by zero")
        return self.mul(x, Const(np.asarray(1.0 / array), y.public))

    def divide(self, x: Value | Const, y: Value) -> Value:
        """Quotient by a private value, whose range has to be known and to keep away from zero."""
        inverse = self.reciprocal(y)
        return inverse if self.number(x) == 1.0 else self.mul(x, inverse)

    def reciprocal(self, x: Value) -> Value:
        """``1 / x``; of a square root at once."""
        root = self.made_by(x, ir.Function)
        if root is not None and isinstance(root.op, ir.Function) and root.op.name == "sqrt":
            return self.function(self.source(root), "rsqrt", root.op.low, root.op.high)
        return self.function(x, "reciprocal")

    def multiply(self, x: Value, factor: float) -> Value:
        """Product with a public number."""
        if not math.isfinite(factor):
            refuse("the factor is not finite")
        before = self.made_by(x, ir.Multiply)
        if before is not None and isinstance(before.op, ir.Multiply) and before.op.factor * factor == 1:
            return self.source(before)
        return x if factor == 1 else self.emit(ir.Multiply(float(factor)), [x])

    def shift(self, x: Value, c: float) -> Value:
        """Sum with a public number."""
        if not math.isfinite(c):
            refuse("the constant is not finite")
        return x if c == 0 else self.emit(ir.Shift(float(c)), [x])

    def multiply_values(self, x: Value, y: Value) -> Value:
        """Product of two private values; ``x sigmoid(x)`` and its like become one function."""
        for a, b in ((x, y), (y, x)):
            fused = self._fused(a, b)
            if fused is not None:
                return fused
        x, y = self.alike(x, y)
        return self.emit(ir.Mul(), [x, y])

    def _fused(self, x: Value, gate: Value) -> Value | None:
        """``x g(x)`` where that is a function with a table of its own, up to a public factor."""
        factor, x = self._unscaled(x)
        more, gate = self._unscaled(gate)
        outer = self.made_by(gate, ir.Function)
        if outer is not None and isinstance(outer.op, ir.Function):
            inner = self.source(outer)
            if outer.op.name == "sigmoid" and inner.name == x.name:
                return self.multiply(self.function(x, "silu"), factor * more)
            if outer.op.name == "tanh" and (within := self.made_by(inner, ir.Function)) is not None:
                soft = isinstance(within.op, ir.Function) and within.op.name == "softplus"
                if soft and within.inputs == (x.name,):
                    return self.multiply(self.function(x, "mish"), factor * more)
        shifted = self.made_by(gate, ir.Shift)
        if shifted is None or not isinstance(shifted.op, ir.Shift):
            return None
        inner_factor, inside = self._unscaled(self.source(shifted))
        gate_of = self.made_by(inside, ir.Function)
        if gate_of is None or not isinstance(gate_of.op, ir.Function) or inner_factor != shifted.op.offset:
            return None
        around, base = self._unscaled(self.source(gate_of))
        if gate_of.op.name == "erf" and base.name == x.name and math.isclose(around, ROOT, rel_tol=1e-6):
            return self.multiply(self.function(x, "gelu"), 2 * factor * more * inner_factor)
        usual = gate_of.op.name == "tanh" and math.isclose(around, functions.GELU_A, rel_tol=1e-6)
        if usual and self._with_cube(base, x):
            return self.multiply(self.function(x, "gelu_tanh"), 2 * factor * more * inner_factor)
        return None

    def _with_cube(self, y: Value, x: Value) -> bool:
        """Whether y is ``x + 0.044715 x^3``."""
        total = self.made_by(y, ir.Add)
        if total is None or x.name not in total.inputs:
            return False
        other = self.source(total, 1 if total.inputs[0] == x.name else 0)
        factor, cube = self._unscaled(other)
        product = self.made_by(cube, ir.Mul)
        if product is None or x.name not in product.inputs or not math.isclose(factor, GELU_B, rel_tol=1e-6):
            return False
        square = self.made_by(self.source(product, 1 if product.inputs[0] == x.name else 0), ir.Mul)
        return square is not None and square.inputs == (x.name, x.name)

    def _unscaled(self, x: Value) -> tuple[float, Value]:
        """Public factor and what it multiplies."""
        factor = 1.0
        while (node := self.made_by(x, ir.Multiply)) is not None and isinstance(node.op, ir.Multiply):
            factor, x = factor * node.op.factor, self.source(node)
        return factor, x

    def power(self, x: Value, exponent: float) -> Value:
        """``x**exponent`` for whole exponents, by squaring, and for 1/2, -1/2 and -1."""
        if exponent in SECOND_POWERS:
            return self.function(x, SECOND_POWERS[exponent])
        if exponent < 0 and float(exponent).is_integer():
            return self.reciprocal(self.power(x, -exponent))
        if not float(exponent).is_integer() or not 1 <= exponent <= MAX_POWER:
            refuse(f"not yet: the power {exponent:g}, only whole ones to {MAX_POWER}, 1/2, -1/2 and -1")
        result: Value | None = None
        square, rest = x, int(exponent)
        while rest:
            if rest & 1:
                result = square if result is None else self.multiply_values(result, square)
            rest >>= 1
            if rest:
                square = self.emit(ir.Mul(), [square, square])
        return result if result is not None else x

    # --- functions

    def function(
        self,
        x: Value,
        name: str,
        low: float | None = None,
        high: float | None = None,
        error: float = ERROR,
        *,
        promised: bool = False,
    ) -> Value:
        """A function of :data:`privinfer.graph.functions.FUNCTIONS`, or one that was registered.

        Parameters
        ----------
        x : Value
            Its argument.
        name : str
            Its name.
        low, high : float, optional
            Ends of its table. Without them: where the function comes within 1e-5 of a straight line, on
            which it then goes on; else the range that was declared for this node; else what the
            architecture alone says of x. Where none of these is known, the node is refused.
        error : float
            Of the table.
        promised : bool
            Whether the caller of the importer vouches for `low` and `high`, as for a range that was declared
            for the node: values beyond an end are then taken as that end.
        """
        x = self.plain(x)
        before = self.made_by(x, ir.Function) or self.made_by(x, ir.Softmax)
        if name == "log" and before is not None:  # of what has a logarithm of its own, which is never 0
            if isinstance(before.op, ir.Softmax) and not before.op.log:
                return self.emit(ir.Softmax(before.op.axis, True), [self.source(before)])
            if isinstance(before.op, ir.Function) and before.op.name == "sigmoid":
                return self.function(self.source(before), "log_sigmoid")
        known = functions.get(name)
        promised = promised or self._at[0] in self._ranges
        declared = self._ranges.get(self._at[0], (None, None))
        low, high = (d if v is None else v for v, d in zip((low, high), declared, strict=True))
        reach, span = known.reach(REACH), self.span(x)
        ends: list[float] = []
        slopes: list[float | None] = []
        for k, (given, tail, sign) in enumerate(((low, known.left, -1), (high, known.right, 1))):
            far = bool(known.poles) or abs(reach[k]) > WIDEST
            if given is not None:
                ends.append(float(given))
                settled = tail is not None and not far and sign * given >= sign * reach[k]
            elif not far:
                ends.append(sign * math.ceil(4 * sign * reach[k]) / 4)
                settled = tail is not None
            else:
                settled = False
                ends.append(span[k])
                if math.isinf(span[k]) and tail is not None and not known.poles:
                    ends[k] = sign * WIDEST
            slopes.append(tail[0] if settled and tail is not None else None)
        low, high = max(ends[0], known.domain[0]), min(ends[1], known.domain[1])
        pole = any(low <= p <= high for p in known.poles) or ends[0] < known.domain[0]
        if not (math.isfinite(low) and math.isfinite(high)) or pole:
            refuse(
                f"not yet: the range of {name} is not known"
                + (f" to stay away from {known.poles[0]:g}" if pole and known.poles else "")
                + f", declare what goes in: ranges={{{self._at[0]!r}: (low, high)}}"
            )
        if promised:  # what lies beyond a promised end counts as the end, rounded outward to a fraction
            low, high = self._outward(low, high, known)
            below = low if slopes[0] is None and span[0] < low else None
            above = high if slopes[1] is None and span[1] > high else None
            x = self.clip(x, below, above)
        if low >= high:
            low, high = max(low - 0.25, known.domain[0]), min(low + 0.25, known.domain[1])
        return self.emit(ir.Function(name, low, high, error, slopes[0], slopes[1]), [x])

    @staticmethod
    def _outward(low: float, high: float, known: functions.Function) -> tuple[float, float]:
        """Ends that fixed point can hold, unless the function is not defined there."""
        a, b = math.floor(low / SNAP) * SNAP, math.ceil(high / SNAP) * SNAP
        inside = known.domain[0] <= a and b <= known.domain[1]
        return (a, b) if inside and not any(a <= p <= b for p in known.poles) else (low, high)

    def piecewise(
        self,
        x: Value,
        breaks: Sequence[float],
        jumps: Sequence[float],
        bends: Sequence[float],
        slope: float = 0.0,
        offset: float = 0.0,
    ) -> Value:
        """``offset + slope x + sum_k [x >= break_k] (jump_k + bend_k (x - break_k))``, all public."""
        at, jump, bend = (tuple(map(float, v)) for v in (breaks, jumps, bends))
        return self.emit(ir.Piecewise(at, jump, bend, float(slope), float(offset)), [x])

    def polynomial(self, x: Value, low: float, high: float, coefficients: Sequence[float]) -> Value:
        """A polynomial in Chebyshev's basis, all public; :class:`privinfer.graph.ir.Polynomial` has it."""
        return self.emit(ir.Polynomial(float(low), float(high), tuple(map(float, coefficients))), [x])

    def relu(self, x: Value) -> Value:
        """``max(x, 0)``."""
        return self.emit(ir.Relu(), [x])

    def leaky_relu(self, x: Value, a: float) -> Value:
        """``x`` above 0, ``a x`` below."""
        return self.relu(x) if a == 0 else self.piecewise(x, [0], [0], [1 - a], slope=a)

    def prelu(self, x: Value, a: Callable[[Value], Value]) -> Value:
        """As :meth:`leaky_relu` with a secret slope: `a` multiplies a value by it."""
        up = self.relu(x)
        return self.add(up, a(self.add(x, up, -1.0)))

    def clip(self, x: Value, low: float | None = None, high: float | None = None) -> Value:
        """``min(max(x, low), high)`` with public limits; None or what no number exceeds is no limit."""
        low = None if low is None or low <= -3e38 else low
        high = None if high is None or high >= 3e38 else high
        if low is not None and high is not None:
            if low >= high:
                return self.shift(self.multiply(x, 0.0), high)
            return self.piecewise(x, [low, high], [0, 0], [1, -1], offset=low)
        if low is not None:
            return self.relu(x) if low == 0 else self.piecewise(x, [low], [0], [1], offset=low)
        return x if high is None else self.piecewise(x, [high], [0], [-1], slope=1)

    def hard_sigmoid(self, x: Value, alpha: float, beta: float) -> Value:
        """``min(max(alpha x + beta, 0), 1)``."""
        if alpha <= 0:
            return self.clip(self.shift(self.multiply(x, alpha), beta), 0.0, 1.0)
        return self.piecewise(x, [-beta / alpha, (1 - beta) / alpha], [0, 0], [alpha, -alpha])

    def absolute(self, x: Value) -> Value:
        """``|x|``."""
        return self.piecewise(x, [0], [0], [2], slope=-1)

    def sign(self, x: Value) -> Value:
        """-1, 0 or 1."""
        return self.add(self.step(x, 0.0, True), self.step(self.multiply(x, -1.0), 0.0, True), -1.0)

    def step(self, x: Value, at: float, inclusive: bool) -> Value:
        """``x >= at``, or ``x > at`` where not `inclusive`, as 0 or 1."""
        if inclusive:
            return self.truth(self.piecewise(x, [at], [1], [0]))
        return self.truth(self.piecewise(self.multiply(x, -1.0), [-at], [-1], [0], offset=1))

    def elu(self, x: Value, alpha: float = 1.0, scale: float = 1.0, name: str = "elu") -> Value:
        """``scale`` times x above 0, and below what the function `name` is there times `alpha`."""
        below = self.function(self.clip(x, None, 0.0), name)
        return self.add(self.multiply(self.relu(x), scale), self.multiply(below, alpha))

    def celu(self, x: Value, alpha: float = 1.0) -> Value:
        """``max(x, 0) + min(alpha (exp(x / alpha) - 1), 0)``."""
        below = self.function(self.multiply(self.clip(x, None, 0.0), 1 / alpha), "elu")
        return self.add(self.relu(x), self.multiply(below, alpha))

    def selu(
        self, x: Value, alpha: float = functions.SELU_ALPHA, gamma: float = functions.SELU_SCALE
    ) -> Value:
        """``gamma (max(x, 0) + min(alpha (exp(x) - 1), 0))``."""
        usual = math.isclose(alpha, functions.SELU_ALPHA, rel_tol=1e-6)
        if usual and math.isclose(gamma, functions.SELU_SCALE, rel_tol=1e-6):
            return self.elu(x, 1.0, gamma, "selu")
        return self.elu(x, alpha * gamma, gamma)

    def hard_swish(self, x: Value) -> Value:
        """``x min(max(x / 6 + 1/2, 0), 1)``."""
        return self.multiply_values(x, self.hard_sigmoid(x, 1 / 6, 0.5))

    def threshold(self, x: Value, at: float, value: float = 0.0) -> Value:
        """``x`` where ``x > at``, else `value`."""
        mirrored = self.multiply(x, -1.0)
        return self.multiply(self.piecewise(mirrored, [-at], [at - value], [-1], slope=1), -1.0)

    def shrink(self, x: Value, at: float, bias: float) -> Value:
        """``x - bias`` above `at`, ``x + bias`` below ``-at``, 0 between."""
        above = self.threshold(x, at)
        below = self.multiply(self.threshold(self.multiply(x, -1.0), at), -1.0)
        y = self.add(above, below)
        if not bias:
            return y
        up, down = self.step(x, at, False), self.step(self.multiply(x, -1.0), at, False)
        return self.add(y, self.multiply(self.add(down, up, -1.0), bias))

    # --- comparisons and choices

    def compare(self, x: Value | Const, y: Value | Const, op: str) -> Value:
        """``x op y`` as 0 or 1, with `op` one of >, >=, <, <=."""
        if op in ("<", "<="):
            return self.compare(y, x, ">" if op == "<" else ">=")
        if op not in (">", ">="):
            refuse("not yet: whether two private numbers are exactly equal")
        number = self.number(y)
        if isinstance(x, Value) and number is not None:
            return self.step(x, number, op == ">=")
        return self.step(self.add(x, y, -1.0), 0.0, op == ">=")

    def logical(self, op: str, x: Value, y: Value | None = None) -> Value:
        """Not, and, or, xor of values that are 0 or 1."""
        if not self.is_truth(x) or (y is not None and not self.is_truth(y)):
            refuse("not yet: logic of values that are no results of comparisons")
        if op == "not" or y is None:
            return self.truth(self.shift(self.multiply(x, -1.0), 1.0))
        both = self.multiply_values(x, y)
        if op == "and":
            return self.truth(both)
        total = self.add(x, y)
        return self.truth(self.add(total, self.multiply(both, 2.0) if op == "xor" else both, -1.0))

    def where(self, cond: Value | Const, x: Value | Const, y: Value | Const) -> Value:
        """``x`` where `cond` is 1, ``y`` where it is 0; nothing else is allowed there."""
        if not self.is_truth(cond):
            refuse("not yet: a condition that is no result of comparisons")
        if isinstance(cond, Const):
            return self._masked(cond, x, y)
        if isinstance(x, Const) and isinstance(y, Const):
            a, b = (self.constant_for(cond, c) for c in (x, y))
            one, other = self.number(x), self.number(y)
            if one is not None and other is not None:
                return self.shift(self.multiply(cond, one - other), other)
            return self.affine(cond, a - b, b)
        return self.add(y, self.mul(cond, self.add(x, y, -1.0)))

    def _masked(self, cond: Const, x: Value | Const, y: Value | Const) -> Value:
        """A choice that does not depend on private values: a product with zeros and ones."""
        private = x if isinstance(x, Value) else y
        if not isinstance(private, Value):
            refuse("not yet: arithmetic of constants, fold them before the export")
        mask = self.constant_for(private, cond)
        if isinstance(x, Value) and isinstance(y, Value):
            return self.add(self.affine(x, mask, 0.0), self.affine(y, 1 - mask, 0.0))
        if isinstance(x, Value) and isinstance(y, Const):
            return self.affine(x, mask, (1 - mask) * self.constant_for(x, y))
        if isinstance(x, Const) and isinstance(y, Value):
            return self.affine(y, 1 - mask, mask * self.constant_for(y, x))
        refuse("not yet")

    def max_of(self, x: Value | Const, y: Value | Const) -> Value:
        """The larger of two values, or of a value and a constant."""
        if isinstance(x, Const):
            x, y = y, x
        if isinstance(x, Const):
            refuse("not yet: arithmetic of constants, fold them before the export")
        if isinstance(y, Value):
            a, b = (self.sample(v, (1, *v.shape)) for v in self.alike(x, y))
            return self.emit(ir.Max(1), [self.emit(ir.Concat(1), [a, b])])
        number = self._single(x, y)
        if number is not None:
            return self.clip(x, number, None)
        c = self.constant_for(x, y)
        return self.affine(self.relu(self.affine(x, 1.0, -c)), 1.0, c)

    def min_of(self, x: Value | Const, y: Value | Const) -> Value:
        """The smaller of two values, or of a value and a constant."""
        if isinstance(y, Const) and isinstance(x, Value) and self._single(x, y) is not None:
            return self.clip(x, None, self._single(x, y))
        if isinstance(x, Const) and isinstance(y, Value) and self._single(y, x) is not None:
            return self.clip(y, None, self._single(y, x))
        return self.multiply(self.max_of(self._negative(x), self._negative(y)), -1.0)

    def _negative(self, x: Value | Const) -> Value | Const:
        return self.multiply(x, -1.0) if isinstance(x, Value) else Const(-x.array, x.public)
