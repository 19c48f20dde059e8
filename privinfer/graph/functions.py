"""Named functions of one variable: their values, proven bounds of their derivatives, and their tails.

:mod:`privinfer.graph.approx` turns them into tables. The bounds only enter its proofs through remainders
on intervals that are far smaller than a table's cells, so a bound that is a few times too large costs
nothing: closed forms were chosen for being evidently right, not for being tight.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from privinfer.errors import ModelUnsupported
from privinfer.graph import chebyshev

Array = npt.NDArray[np.float64]
Callback = Callable[[Array], Array]
Bound = Callable[[int, Array, Array], Array]
Tail = tuple[float, float]

MAX_ORDER = 4
FAR = 1e300


@dataclass(frozen=True, slots=True)
class Function:
    """A function of one variable and what is known of it.

    Attributes
    ----------
    name : str
        Name in :data:`FUNCTIONS`.
    fn : callable
        Values in float64, within a few units in the last place of ``max(1, |x|, |value|)``.
    bound : callable
        ``bound(k, lo, hi)``: no less than the k-th derivative's absolute value anywhere on [lo, hi], for k in
        1..4, elementwise on arrays; infinite where that derivative does not exist, or nothing is known of it.
    domain : tuple of float
        Closed interval outside of which the function is not defined, or is not ours to compute.
    poles : tuple of float
        Points no range may hold: the function or its first derivative is infinite there.
    left, right : tuple of float, or None
        Slope and offset of what the function tends to for x to minus and plus infinity.
    left_error, right_error : callable or None
        Bound of the distance from that tail at ``x = -a`` and ``x = a``, decreasing for a >= `settled`.
    settled : float
        See there.
    rounding : float
        How far `fn` may be from the function beyond what is said of it there.
    """

    name: str
    fn: Callback
    bound: Bound
    domain: tuple[float, float] = (-math.inf, math.inf)
    poles: tuple[float, ...] = ()
    left: Tail | None = None
    right: Tail | None = None
    left_error: Callable[[float], float] | None = None
    right_error: Callable[[float], float] | None = None
    settled: float = 0.0
    rounding: float = 0.0

    def __call__(self, x: Array) -> Array:
        """Values at `x`."""
        return self.fn(np.asarray(x, dtype=np.float64))

    def check(self, low: float, high: float) -> None:
        """Raise ModelUnsupported where the function is not finite and smooth on all of [low, high]."""
        if not self.domain[0] <= low <= high <= self.domain[1]:
            raise ModelUnsupported(
                f"{self.name} is not defined on all of [{low:g}, {high:g}]",
                hint=f"declare a range inside [{self.domain[0]:g}, {self.domain[1]:g}]",
            )
        for pole in self.poles:
            if low <= pole <= high:
                raise ModelUnsupported(
                    f"{self.name} has no table over [{low:g}, {high:g}]: it is singular at {pole:g}",
                    hint=f"declare a range that stays away from {pole:g}",
                )

    def reach(self, error: float) -> tuple[float, float]:
        """Interval outside of which the function differs from its tails by less than `error`.

        A side without a tail is infinite.
        """
        if not error > 0:
            raise ValueError("the error has to be positive")
        low = -math.inf if self.left_error is None else -_solve(self.left_error, error, self.settled)
        high = math.inf if self.right_error is None else _solve(self.right_error, error, self.settled)
        return max(low, self.domain[0]), min(high, self.domain[1])


def _solve(tail: Callable[[float], float], error: float, start: float) -> float:
    """Least a >= start (to 1e-9 relative, from above) with ``tail(a) < error``."""
    if tail(start) < error:
        return start
    low, high = start, max(2 * start, 1.0)
    while not tail(high) < error:
        low, high = high, 2 * high
        if high > FAR:
            return math.inf
    while high - low > 1e-9 * high:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if tail(middle) < error else (middle, high)
    return high


def _nearest(lo: Array, hi: Array) -> Array:
    """Least |x| on [lo, hi]."""
    return np.where((lo <= 0) & (hi >= 0), 0.0, np.minimum(np.abs(lo), np.abs(hi)))


def _farthest(lo: Array, hi: Array) -> Array:
    return np.maximum(np.abs(lo), np.abs(hi))


def _sigmoid(x: Array) -> Array:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1.0 + e)


def _softplus(x: Array) -> Array:
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def _sigmoid_bound(k: int, lo: Array, hi: Array) -> Array:
    """The k-th derivative is s' p(s) with s' = s (1 - s) and |p| <= 1 for k <= 4; s' falls with |x|."""
    if k == 0:
        return _sigmoid(hi)
    e = np.exp(-_nearest(lo, hi))
    return np.asarray(e / (1.0 + e) ** 2)


def _tanh_bound(k: int, lo: Array, hi: Array) -> Array:
    """``tanh x = 2 sigmoid(2 x) - 1``."""
    if k == 0:
        return np.minimum(1.0, _farthest(lo, hi))
    return np.asarray(2.0 ** (k + 1) * _sigmoid_bound(k, 2 * lo, 2 * hi))


def _normal_bound(k: int, lo: Array, hi: Array) -> Array:
    """The normal distribution function: its derivatives are Hermite polynomials times the density."""
    if k == 0:
        return np.where(hi < 0, 0.5 * np.exp(-0.5 * hi * hi), 1.0)
    b = _farthest(lo, hi)
    hermite = (1.0, b, b * b + 1.0, b * (b * b + 3.0))[k - 1]
    return np.asarray(hermite * np.exp(-0.5 * _nearest(lo, hi) ** 2) / math.sqrt(2 * math.pi))


def _erf(x: Array) -> Array:
    return np.array([math.erf(v) for v in x.ravel().tolist()], dtype=np.float64).reshape(x.shape)


def _erfc(x: Array) -> Array:
    return np.array([math.erfc(v) for v in x.ravel().tolist()], dtype=np.float64).reshape(x.shape)


def _erf_bound(k: int, lo: Array, hi: Array) -> Array:
    """``erf x = 2 Phi(sqrt(2) x) - 1``."""
    root = math.sqrt(2.0)
    return np.asarray(2.0 * root**k * _normal_bound(k, root * lo, root * hi))


def _times_x(factor: Bound) -> Bound:
    """Bound for ``x g(x)``, whose k-th derivative is ``x g^(k) + k g^(k-1)``."""

    def bound(k: int, lo: Array, hi: Array) -> Array:
        return np.asarray(_farthest(lo, hi) * factor(k, lo, hi) + k * factor(k - 1, lo, hi))

    return bound


def _composed(k: int, o: list[Array], i: list[Array]) -> Array:
    """Faa di Bruno's formula with bounds of the outer and inner derivatives in the places of 1..4."""
    terms = {
        1: lambda: o[1] * i[1],
        2: lambda: o[2] * i[1] ** 2 + o[1] * i[2],
        3: lambda: o[3] * i[1] ** 3 + 3 * o[2] * i[1] * i[2] + o[1] * i[3],
        4: lambda: (
            o[4] * i[1] ** 4
            + 6 * o[3] * i[1] ** 2 * i[2]
            + o[2] * (4 * i[1] * i[3] + 3 * i[2] ** 2)
            + o[1] * i[4]
        ),
    }
    return np.asarray(terms[k]())


def _tanh_softplus_bound(k: int, lo: Array, hi: Array) -> Array:
    below, above = _softplus(lo), _softplus(hi)
    if k == 0:
        return _tanh_bound(0, below, above)
    outer = [_tanh_bound(j, below, above) for j in range(5)]
    inner = [above, *(_sigmoid_bound(j, lo, hi) for j in range(4))]
    return _composed(k, outer, inner)


GELU_A = math.sqrt(2.0 / math.pi)
GELU_B = 0.044715


def _gelu_inner(x: Array) -> Array:
    return np.asarray(2.0 * GELU_A * (x + GELU_B * x**3))


def _gelu_tanh_bound(k: int, lo: Array, hi: Array) -> Array:
    """``(1 + tanh v) / 2 = sigmoid(2 v)`` with an inner cubic, which grows with x."""
    below, above = _gelu_inner(lo), _gelu_inner(hi)
    outer = [_sigmoid_bound(j, below, above) for j in range(5)]
    if k == 0:
        return outer[0]
    b = _farthest(lo, hi)
    a = 2.0 * GELU_A
    cubic = [b, a * (1 + 3 * GELU_B * b * b), a * 6 * GELU_B * b, a * 6 * GELU_B + 0 * b, 0 * b]
    return _composed(k, outer, cubic)


def _softplus_bound(k: int, lo: Array, hi: Array) -> Array:
    return _sigmoid_bound(k - 1, lo, hi)


def _log_sigmoid_bound(k: int, lo: Array, hi: Array) -> Array:
    return _sigmoid_bound(k - 1, -hi, -lo)


def _power_bound(power: float) -> Bound:
    """Bound for ``|x|**power``, any power below 1: all derivatives fall with |x|."""

    def bound(k: int, lo: Array, hi: Array) -> Array:
        factor = math.prod(abs(power - j) for j in range(k))
        with np.errstate(divide="ignore"):
            return np.asarray(factor * _nearest(lo, hi) ** (power - k))

    return bound


def _log_bound(k: int, lo: Array, hi: Array) -> Array:
    with np.errstate(divide="ignore"):
        return np.asarray(math.factorial(k - 1) * _nearest(lo, hi) ** float(-k))


def _softsign_bound(k: int, lo: Array, hi: Array) -> Array:
    """``x / (1 + |x|)``: k! / (1 + |x|)**(k + 1), but the second derivative jumps at 0."""
    bound = math.factorial(k) / (1.0 + _nearest(lo, hi)) ** (k + 1)
    return np.where((lo < 0) & (hi > 0), np.inf, bound) if k > 2 else np.asarray(bound)


def _atan_bound(k: int, lo: Array, hi: Array) -> Array:
    """With x = tan a the k-th derivative is (k-1)! cos(a)**k sin(k (a + pi/2))."""
    return np.asarray(math.factorial(k - 1) * (1.0 + _nearest(lo, hi) ** 2) ** (-0.5 * k))


def _exp_bound(k: int, lo: Array, hi: Array) -> Array:
    return np.exp(hi)


def _one(k: int, lo: Array, hi: Array) -> Array:
    return np.ones(np.broadcast(lo, hi).shape)


def _logistic(a: float) -> float:
    """``sigmoid(-a)`` for a >= 0."""
    e = math.exp(-a)
    return e / (1.0 + e)


def _mish_right(a: float) -> float:
    """``a (1 - tanh softplus a) = 2 a / ((1 + e^a)^2 + 1)``, with e^(2a) left in the denominator."""
    return 2.0 * a * math.exp(-2.0 * a)


def elu(alpha: float = 1.0) -> Function:
    """``alpha (exp(x) - 1)`` for x <= 0; the caller adds ``max(x, 0)`` and clamps x at 0."""
    return Function(
        "elu",
        lambda x: np.asarray(alpha * np.expm1(x)),
        lambda k, lo, hi: np.asarray(abs(alpha) * np.exp(hi)),
        domain=(-math.inf, 0.0),
        left=(0.0, -alpha),
        left_error=lambda a: abs(alpha) * math.exp(-a),
    )


SELU_ALPHA = 1.6732632423543772
SELU_SCALE = 1.0507009873554805


def selu() -> Function:
    """The side x <= 0 of selu; for x > 0 it is ``SELU_SCALE x``, which the caller adds."""
    scale = SELU_ALPHA * SELU_SCALE
    return Function(
        "selu",
        lambda x: np.asarray(scale * np.expm1(x)),
        lambda k, lo, hi: np.asarray(scale * np.exp(hi)),
        domain=(-math.inf, 0.0),
        left=(0.0, -scale),
        left_error=lambda a: scale * math.exp(-a),
    )


def _two_sided(
    name: str,
    fn: Callback,
    bound: Bound,
    left: Tail,
    right: Tail,
    tail: Callable[[float], float],
    settled: float = 0.0,
    poles: tuple[float, ...] = (),
) -> Function:
    """A function that comes near its tails equally fast on both sides."""
    return Function(name, fn, bound, (-math.inf, math.inf), poles, left, right, tail, tail, settled)


_ZERO = (0.0, 0.0)
_ONE = (0.0, 1.0)
_IDENTITY = (1.0, 0.0)
_POSITIVE = (0.0, math.inf)

FUNCTIONS: dict[str, Function] = {
    f.name: f
    for f in (
        _two_sided("sigmoid", _sigmoid, _sigmoid_bound, _ZERO, _ONE, _logistic),
        _two_sided(
            "tanh",
            np.tanh,
            _tanh_bound,
            (0.0, -1.0),
            _ONE,
            lambda a: 2 * _logistic(2 * a),
        ),
        _two_sided(
            "gelu",
            lambda x: np.asarray(0.5 * x * _erfc(-x / math.sqrt(2.0))),
            _times_x(_normal_bound),
            _ZERO,
            _IDENTITY,
            lambda a: 0.5 * a * math.erfc(a / math.sqrt(2.0)),
            2.0,
        ),
        _two_sided(
            "gelu_tanh",
            lambda x: np.asarray(x * _sigmoid(_gelu_inner(x))),
            _times_x(_gelu_tanh_bound),
            _ZERO,
            _IDENTITY,
            lambda a: a * math.exp(-2.0 * GELU_A * (a + GELU_B * a**3)),
            2.0,
        ),
        _two_sided(
            "silu",
            lambda x: np.asarray(x * _sigmoid(x)),
            _times_x(_sigmoid_bound),
            _ZERO,
            _IDENTITY,
            lambda a: a * _logistic(a),
            2.0,
        ),
        _two_sided(
            "softplus",
            _softplus,
            _softplus_bound,
            _ZERO,
            _IDENTITY,
            lambda a: math.exp(-a),
        ),
        _two_sided(
            "log_sigmoid",
            lambda x: -_softplus(-x),
            _log_sigmoid_bound,
            _IDENTITY,
            _ZERO,
            lambda a: math.exp(-a),
        ),
        Function(
            "mish",
            lambda x: np.asarray(x * np.tanh(_softplus(x))),
            _times_x(_tanh_softplus_bound),
            left=_ZERO,
            right=_IDENTITY,
            left_error=lambda a: a * math.exp(-a),
            right_error=_mish_right,
            settled=2.0,
        ),
        elu(),
        selu(),
        _two_sided("erf", _erf, _erf_bound, (0.0, -1.0), _ONE, math.erfc),
        Function("exp", np.exp, _exp_bound, left=_ZERO, left_error=lambda a: math.exp(-a)),
        Function("log", np.log, _log_bound, domain=_POSITIVE, poles=(0.0,)),
        _two_sided(
            "reciprocal",
            lambda x: np.asarray(1.0 / x),
            _power_bound(-1.0),
            _ZERO,
            _ZERO,
            lambda a: 1.0 / a,
            1.0,
            poles=(0.0,),
        ),
        Function("sqrt", np.sqrt, _power_bound(0.5), domain=_POSITIVE, poles=(0.0,)),
        Function(
            "rsqrt",
            lambda x: np.asarray(1.0 / np.sqrt(x)),
            _power_bound(-0.5),
            domain=_POSITIVE,
            poles=(0.0,),
            right=_ZERO,
            right_error=lambda a: 1.0 / math.sqrt(a),
            settled=1.0,
        ),
        Function("sin", np.sin, _one),
        Function("cos", np.cos, _one),
        _two_sided(
            "softsign",
            lambda x: np.asarray(x / (1.0 + np.abs(x))),
            _softsign_bound,
            (0.0, -1.0),
            _ONE,
            lambda a: 1.0 / (1.0 + a),
        ),
        _two_sided(
            "atan",
            np.arctan,
            _atan_bound,
            (0.0, -0.5 * math.pi),
            (0.0, 0.5 * math.pi),
            lambda a: math.pi / 2 if a == 0 else math.atan(1.0 / a),
        ),
    )
}

_USERS: dict[str, Function] = {}


@lru_cache(maxsize=256)
def _polynomial(name: str) -> Function:
    """A polynomial, which its name says all of."""
    found = chebyshev.parse(name)
    return Function("a polynomial", found.values, found.bound, rounding=found.rounding)


def get(name: str) -> Function:
    """Find a function by its name; ModelUnsupported where there is none."""
    if name.startswith(chebyshev.PREFIX):
        return _polynomial(name)
    found = FUNCTIONS.get(name) or _USERS.get(name)
    if found is None:
        raise ModelUnsupported(
            f"there is no function {name!r}",
            hint=f"one of {', '.join(sorted(FUNCTIONS))}, or one that was registered in this process",
        )
    return found


def _unknown(k: int, lo: Array, hi: Array) -> Array:
    return np.full(np.broadcast_shapes(np.shape(lo), np.shape(hi)), np.inf)


def register(
    name: str, fn: Callback, bound: Bound | None = None, domain: tuple[float, float] = (-math.inf, math.inf)
) -> Function:
    """Make a model owner's own function known in this process; other parties only ever see its table.

    Parameters
    ----------
    name : str
        Not the name of one of :data:`FUNCTIONS`.
    fn : callable
        From a float64 array to one of the same shape, elementwise.
    bound : callable, optional
        As in :class:`Function`. Proofs rest on it; without it, they try every input.
    domain : tuple of float
        As in :class:`Function`.
    """
    if name in FUNCTIONS or name.startswith(chebyshev.PREFIX):
        raise ModelUnsupported(f"{name!r} is a function that is there already")
    _USERS[name] = Function(name, fn, bound or _unknown, domain)
    return _USERS[name]


def affine(function: Function, factor: float = 1.0, scale: float = 1.0, shift: float = 0.0) -> Function:
    """``factor * function(scale * x + shift)`` with its bounds; its tails are left out."""
    if not (all(math.isfinite(v) for v in (factor, scale, shift)) and scale != 0):
        raise ModelUnsupported(f"{function.name} of an argument that is not finite or constant")

    def bound(k: int, lo: Array, hi: Array) -> Array:
        a, b = scale * lo + shift, scale * hi + shift
        # Rounding of the argument must not lose the ends.
        slack = 2.0**-50 * (np.maximum(np.abs(a), np.abs(b)) + abs(shift))
        known = function.bound(k, np.minimum(a, b) - slack, np.maximum(a, b) + slack)
        return np.asarray(abs(factor) * abs(scale) ** k * known)

    ends = sorted((v - shift) / scale for v in function.domain)
    return Function(
        function.name,
        lambda x: np.asarray(factor * function(np.clip(scale * x + shift, *function.domain))),
        bound if (scale, shift) != (1.0, 0.0) else lambda k, lo, hi: abs(factor) * function.bound(k, lo, hi),
        domain=(ends[0], ends[1]),
        poles=tuple((v - shift) / scale for v in function.poles),
    )
