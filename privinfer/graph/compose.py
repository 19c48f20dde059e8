"""How operators that are more than one step are put together: functions, products, maxima, softmax, norms.

Each takes the builder of a program and the index of a value and returns the index of another. Everything
here follows from public numbers: ranges, scales and sizes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from privinfer.errors import PrecisionError
from privinfer.graph import approx, chebyshev, functions, ir
from privinfer.graph.emitter import Emitter as Builder
from privinfer.graph.emitter import Wanted
from privinfer.graph.fixedpoint import (
    WIDE,
    Claim,
    Extend,
    Join,
    Larger,
    Offset,
    Permute,
    Pick,
    Pieces,
    Plus,
    Product,
    Shape,
    Source,
    Table,
    Times,
    Truncate,
    Type,
)

Array = npt.NDArray[np.float64]

OPENING = 1.5  # units in the last place that a truncating opening may stray by
EXP_REACH = 20.0  # exp(-20) is 2.1e-9
EXP_RELATIVE, EXP_ABSOLUTE = 1e-4, 2e-8
RELATIVE = frozenset(("exp", "reciprocal", "rsqrt"))  # a Function's error is relative
BANDED = RELATIVE | {"log", "sqrt"}  # steep at one end
BAND = 16.0  # ratio of the ends of one table of a reciprocal or of a root
CONSTANT_BITS = 16
MAX_FRAC_OUT = 56
MIN_SUM_BITS = 12
STRETCHES = (3, 7, 15)
WASTED = 8  # rows by which less than half of a table may be more
WIDER = 2.0  # how much more of a table costs less than a clamp
LEAST_VARIANCE_BITS = 4
LEAST_ROOT_BITS = 20


# -- one variable ----------------------------------------------------------------------------------


def function(b: Builder, x: int, op: ir.Function, node: str) -> int:
    """Clamp, look up, and go on with straight lines beyond the ends that have a slope.

    Where the range of an input is declared, a table of just that range may do without the clamp. Functions
    whose error is relative get more fractional bits than others, as many as their largest value leaves.
    """
    x = b.narrow(x, b.f)
    declared = _declared(b, x)
    low, high = op.low, op.high
    clamped = True
    if declared is not None:
        left, right = declared
        if (left < low and op.left is None) or (right > high and op.right is None):
            raise PrecisionError(
                f"node {node!r}: values of [{left:g}, {right:g}] go beyond [{low:g}, {high:g}] of "
                f"{op.name.partition(' ')[0]}"
            )
        if left < right and right - left <= WIDER * (high - low):
            low, high, clamped = left, right, False
    frac, error, relative = b.f, op.error, 0.0
    if op.name in RELATIVE:
        peak = float(np.abs(functions.get(op.name)(np.array([low, high]))).max())
        frac = max(b.f, min(24, b.n - 3 - math.ceil(math.log2(peak))))
        error, relative = 2.0 ** -(frac + 1), op.error
    tails = _tails(op) if clamped else 0.0
    if op.name.startswith(chebyshev.PREFIX):
        tails = functions.get(op.name).rounding
    wanted = Wanted(op.name, low, high, error, relative, b.type(x).frac, frac_out(b, frac), tails=tails)
    if op.name in BANDED and 0 < low * BAND < high:
        return banded(b, x, replace(wanted, tails=0.0), frac, node).value
    factor, table = stretched(b, wanted, b.type(x), node)
    first, last = table.low // factor, table.high // factor
    clamped = clamped and not _within(b, x, first, last)
    near = stretch(b, _clamp(b, x, first, last, node) if clamped else x, factor)
    y = lookup(b, near, table, frac, node)
    slopes = op.left or 0.0, op.right or 0.0
    if not clamped or not any(slopes):
        return y
    beyond = ir.Piecewise(
        breaks=(low, high) if slopes[0] else (high,),
        jumps=(0.0, 0.0) if slopes[0] else (0.0,),
        bends=(-slopes[0], slopes[1]) if slopes[0] else (slopes[1],),
        slope=slopes[0],
        offset=-slopes[0] * low,
    )
    tail = b.narrow(pieces(b, x, beyond, node, wide=False), b.f)
    pair = b.same([y, tail], wide=False)
    return b.emit(Plus(), tuple(pair), b.type(pair[0]), node)


def polynomial(b: Builder, x: int, op: ir.Polynomial, node: str) -> int:
    """Look up, clamped to the range, within a unit in the last place of the largest value."""
    largest = sum(map(abs, op.coefficients))
    error = 2.0**-b.f * max(1.0, largest)
    name = chebyshev.name(op.low, op.high, op.coefficients)
    return function(b, x, ir.Function(name, op.low, op.high, error), node)


def _within(b: Builder, x: int, first: int, last: int) -> bool:
    """Whether a value was clamped to the range of a table before."""
    op = b.steps[x].operation
    return isinstance(op, Pieces) and op.clamps and first <= op.breaks[0] <= op.breaks[1] <= last


def stretched(b: Builder, wanted: Wanted, kind: Type, node: str) -> tuple[int, ir.Tabulated]:
    """The table of f(x), or one with half as many cells of f(x / c) and the integer c to multiply x with.

    A cell is a power of two wide. A range that is just too long for 2**m cells takes twice as many, of which
    half are never used; stretched by 7 it fits cells that are 8 times as wide.
    """
    low, high = (round(math.ldexp(v, wanted.frac_in)) for v in (wanted.low, wanted.high))
    room = min(kind.bits - 1, approx.MAX_INPUT_BITS - 1)

    def by(c: int) -> Wanted:
        ends = (math.ldexp(c * v, -wanted.frac_in) for v in (low, high))
        return replace(wanted, low=next(ends), high=next(ends), scale=wanted.scale / c)

    others = {c: by(c) for c in STRETCHES if c * max(abs(low), abs(high)) < 1 << room}
    for c, one in others.items():
        if one.band(0) in b.tables:
            return c, b.tables[one.band(0)]
    known = wanted.band(0) in b.tables
    (plain,) = b.bands(wanted, node)
    wasteful = 2 * ((high - low >> plain.step_bits) + 2) <= (1 << plain.cell_bits) + WASTED
    if known or b.make is None or wanted.name not in functions.FUNCTIONS or not wasteful:
        return 1, plain
    for c, one in others.items():
        try:
            (table,) = b.make(one)
        except PrecisionError:
            continue
        fits = table.step_bits + table.cell_bits <= kind.bits
        if fits and approx.cost(table.cell_bits, table.degree) < approx.cost(plain.cell_bits, plain.degree):
            del b.tables[wanted.band(0)]
            b.tables[table.key] = table
            return c, table
    return 1, plain


def stretch(b: Builder, x: int, factor: int) -> int:
    """`x` times a small integer, in its ring."""
    return x if factor == 1 else b.change(x, Times((), (factor,), exact=True), b.type(x))


def _tails(op: ir.Function) -> float:
    """How far the straight lines beyond the ends are from the function."""
    if op.left is None and op.right is None:
        return 0.0  # a user's own function has none, and is known to its owner alone
    known, found = functions.get(op.name), 0.0
    if op.left is not None and known.left_error is not None:
        found = known.left_error(-op.low)
    if op.right is not None and known.right_error is not None:
        found = max(found, known.right_error(op.high))
    return found


def frac_out(b: Builder, frac: int) -> int:
    """Fractional bits a table may compute with, for a result of `frac` of them in a narrow ring."""
    return min(MAX_FRAC_OUT, WIDE - b.n + frac)


def lookup(b: Builder, x: int, table: ir.Tabulated, frac: int, node: str, claim: Claim | None = None) -> int:
    """The table of a narrow value that lies in its range, with `frac` fractional bits."""
    t = b.type(x)
    if Wanted.parse(table.key).frac_in != t.frac:
        raise TypeError(f"node {node!r}: a table of another scale than {t.frac} fractional bits")
    if table.step_bits + table.cell_bits > t.bits:
        raise PrecisionError(f"node {node!r}: its table needs more than {t.bits} bits")
    numbers = (table.low, table.step_bits, table.cell_bits, table.degree, table.coefficients)
    shift = table.frac_out - frac
    if b.exact and shift:
        y = b.emit(
            Table(*numbers, 0, table.key, table.high), (x,), Type(t.shape, WIDE, table.frac_out), node, claim
        )
        return b.narrow(y, frac)
    return b.emit(Table(*numbers, shift, table.key, table.high), (x,), Type(t.shape, b.n, frac), node, claim)


def _declared(b: Builder, x: int) -> tuple[float, float] | None:
    """The declared range of a value that is an input, reshaped at most."""
    zero = False
    while not isinstance(op := b.steps[x].operation, Source):
        if not isinstance(op, Shape | Permute | Pick | Truncate | Extend):
            return None
        zero = zero or (isinstance(op, Pick) and -1 in op.indices)
        x = b.steps[x].inputs[0]
    source = b.inputs[b.steps[x].node]
    return (min(source.low, 0.0), max(source.high, 0.0)) if zero else (source.low, source.high)


def clamp(b: Builder, x: int, low: float, high: float, node: str) -> int:
    """The nearest value in [low, high] of a narrow value."""
    t = b.type(x)
    return _clamp(b, x, math.ceil(low * 2.0**t.frac), math.floor(high * 2.0**t.frac), node)


def _clamp_to(b: Builder, x: int, table: ir.Tabulated, node: str) -> int:
    return _clamp(b, x, table.low, table.high, node)


def _clamp(b: Builder, x: int, low: int, high: int, node: str) -> int:
    return b.emit(Pieces((low, high), (0, 0), (1, -1), 0, low, 0), (x,), b.type(x), node)


def pieces(b: Builder, x: int, op: ir.Piecewise, node: str, *, wide: bool) -> int:
    """Piecewise affine; slopes that are no integers get CONSTANT_BITS fractional bits."""
    x = b.narrow(x, b.f)
    t = b.type(x)
    g = 0 if all(float(v).is_integer() for v in (op.slope, *op.bends)) else CONSTANT_BITS
    if max(map(abs, (*op.breaks, *op.jumps, op.offset)), default=0.0) >= 2.0 ** (b.n - 2 - t.frac):
        raise PrecisionError(f"node {node!r}: a break or a jump is too large for {b.n} bits")
    wide = wide or (b.exact and g > 0)
    if wide and t.frac + g - b.f > WIDE - b.n:  # more bits than the next truncation could drop
        x = b.narrow(b.wide(x), b.f)
        t = b.type(x)

    def at(values: tuple[float, ...], frac: int) -> tuple[int, ...]:
        return tuple(round(v * 2.0**frac) for v in values)

    scales = (op.breaks, t.frac), (op.jumps, t.frac + g), (op.bends, g), ((op.slope,), g)
    breaks, jumps, bends, (slope,) = (at(v, frac) for v, frac in scales)
    (offset,) = at((op.offset,), t.frac + g)
    whole = all((v * 2.0**frac).is_integer() for values, frac in scales for v in map(float, values))
    exact = whole and (float(op.offset) * 2.0 ** (t.frac + g)).is_integer()
    step = Pieces(breaks, jumps, bends, slope, offset, 0 if wide else g, exact)
    kind = Type(t.shape, WIDE, t.frac + g) if wide else Type(t.shape, b.n, t.frac)
    return b.settle(b.emit(step, (x,), kind, node)) if wide else b.emit(step, (x,), kind, node)


# -- two values ------------------------------------------------------------------------------------


def product(
    b: Builder, x: int, y: int, node: str, frac: int, *, matmul: bool = False, claim: Claim | None = None
) -> int:
    """Product of two values as a narrow one with `frac` fractional bits."""
    x, y = b.wide(x), b.wide(y)
    room = WIDE - b.n + frac
    for _ in range(2):
        if b.type(x).frac + b.type(y).frac > room:
            wider = x if b.type(x).frac >= b.type(y).frac else y
            slim = b.wide(b.narrow(wider, b.f))  # no more: what is narrow has room for f
            x, y = (slim if x == wider else x), (slim if y == wider else y)
    s, t = b.type(x), b.type(y)
    shape = (*s.shape[:-1], t.shape[-1]) if matmul else s.shape
    shift = s.frac + t.frac - frac
    if b.exact or shift <= 0:
        z = b.emit(Product(matmul, 0), (x, y), Type(shape, WIDE, s.frac + t.frac), node, claim)
        return b.narrow(z, frac)
    return b.emit(Product(matmul, shift), (x, y), Type(shape, b.n, frac), node, claim)


def minus(b: Builder, x: int, y: int, node: str, claim: Claim | None = None) -> int:
    """Difference of two values of one ring and scale."""
    t = b.type(y)
    negative = b.emit(Times((), (-1,), exact=True), (y,), t, node)
    return b.emit(Plus(), (x, negative), t, node, claim)


# -- largest ---------------------------------------------------------------------------------------


def _front(b: Builder, x: int, axis: int, node: str) -> int:
    """The axis in front, a channel axis of one behind it."""
    t = b.type(x)
    order = (axis, *(k for k in range(1, len(t.shape) + 1) if k != axis))
    if axis != 1:
        x = b.emit(Permute(order), (x,), Type(tuple(t.shape[k - 1] for k in order), t.bits, t.frac), node)
    shape = b.type(x).shape
    return reshape(b, x, (shape[0], 1, *shape[1:]), node)


def reshape(b: Builder, x: int, shape: ir.Shape, node: str) -> int:
    """The same values in another shape."""
    t = b.type(x)
    return x if t.shape == shape else b.emit(Shape(shape), (x,), Type(shape, t.bits, t.frac), node)


def _tournament(b: Builder, x: int, node: str) -> int:
    """(k, channels, ...) to (1, channels, ...): halved in each of ceil(log2 k) rounds of comparisons."""
    while (count := b.type(x).shape[0]) > 1:
        t = b.type(x)
        even = count // 2 * 2
        pairs = x if even == count else _pick(b, x, 1, tuple(range(even)), node)
        y = b.emit(Larger(), (pairs,), Type((even // 2, *t.shape[1:]), t.bits, t.frac), node)
        if even < count:
            last = _pick(b, x, 1, (even,), node)
            y = b.emit(Join(1), (y, last), Type((even // 2 + 1, *t.shape[1:]), t.bits, t.frac), node)
        x = y
    return x


def _pick(b: Builder, x: int, axis: int, indices: tuple[int, ...], node: str) -> int:
    t = b.type(x)
    shape = (*t.shape[: axis - 1], len(indices), *t.shape[axis:])
    return b.emit(Pick(axis, indices), (x,), Type(shape, t.bits, t.frac), node)


def largest(b: Builder, x: int, axis: int, node: str) -> int:
    """Maximum of a narrow value along an axis."""
    shape = b.type(x).shape
    y = _tournament(b, _front(b, x, axis, node), node)
    return reshape(b, y, (*shape[: axis - 1], *shape[axis:]), node)


def position(b: Builder, x: int, axis: int, node: str) -> int:
    """Position of the maximum, the first of equal ones: it goes along as a second channel."""
    x = b.narrow(x, b.f)
    t = b.type(x)
    count = t.shape[axis - 1]
    if count > 1 << (b.n - 2 - t.frac):
        raise PrecisionError(f"node {node!r}: {count} positions need more than {b.n} bits")
    front = _front(b, x, axis, node)
    kind = b.type(front)
    nothing = _pick(b, front, 2, (-1,), node)
    ones = (1,) * (len(kind.shape) - 1)
    numbers = Offset((count, *ones), tuple(k << t.frac for k in range(count)))
    index = b.emit(numbers, (nothing,), kind, node)
    both = b.emit(Join(2), (front, index), Type((count, 2, *kind.shape[2:]), t.bits, t.frac), node)
    y = _pick(b, _tournament(b, both, node), 2, (1,), node)
    return reshape(b, y, (*t.shape[: axis - 1], *t.shape[axis:]), node)


# -- softmax ---------------------------------------------------------------------------------------


def softmax(b: Builder, x: int, axis: int, log: bool, node: str) -> int:
    """Softmax of a value along an axis, or its logarithm.

    With d = x - max x, e = exp(max(d, -16)) within 1e-4 e + 1e-7 and S = sum e in [1, k]: e / S, or
    d - log S. What x strays by moves a softmax by at most half as much, and its logarithm by twice as much.
    """
    declared = _declared(b, x)
    reach = EXP_REACH
    if declared is not None and b.type(x).frac == b.f and b.type(x).wide and not log:
        # an input: no difference is larger than its range, which takes fewer bits to compare and no clamp
        reach = declared[1] - declared[0] + 2.0**-b.f
        bits = 3 + b.f + max(0, math.ceil(math.log2(max(map(abs, (reach, *declared))) + 1)))
        x = b.slim(x, min(bits, b.n)) if reach <= WIDER * EXP_REACH else x
    x = b.narrow(x, b.f)
    t = b.type(x)
    k = t.shape[axis - 1]
    again = (0,) * k

    def spread(value: int) -> int:
        shape = (*t.shape[: axis - 1], 1, *t.shape[axis:])
        return _pick(b, reshape(b, value, shape, node), axis, again, node)

    top = largest(b, x, axis, node)
    d = minus(b, x, spread(top), node, Claim(-math.inf, 0.0))
    # e and 1/S share what a product can drop
    room = WIDE - b.n + b.f
    g = min(26, b.n - 3, room // 2 + 2)
    clamped = t.bits == b.n
    reach = EXP_REACH if clamped else reach
    floor = max(EXP_ABSOLUTE, 2.0 ** -(g + 1))
    wanted = Wanted("exp", -reach, 0.0, floor, EXP_RELATIVE, t.frac, frac_out(b, g))
    (table,) = b.bands(wanted, node)
    # |e - exp(d)| <= relative * e + absolute, the clamp and the opening included
    absolute = floor + OPENING * 2.0**-g + math.exp(-reach) * clamped
    own = EXP_RELATIVE + absolute
    near = _clamp_to(b, d, table, node) if clamped else d
    e = lookup(b, near, table, g, node, Claim(0.0, 1.0, x, 2.0, own))
    # S, of which the sum of many e needs more bits than one of them
    far = EXP_RELATIVE + k * absolute  # relative, S being at least 1
    kept = min(24, b.n - 3 - k.bit_length(), g)
    if kept < MIN_SUM_BITS:
        raise PrecisionError(f"node {node!r}: a softmax of {k} values needs more than {b.n} bits")
    total = b.total(b.wide(e), axis, node, Claim(1.0 - far, k * (1.0 + far), x, 2.0 * k, k * far))
    total = b.narrow(total, kept)
    # a table's ends are rounded to inputs, and S was cut: what lies below the first row has none
    ends = 1.0 - far - 2.0 ** (1 - kept), k * (1 + far) + 2.0 ** (1 - kept)
    if log:
        ln = banded(b, total, Wanted("log", *ends, 1e-4, 0.0, kept, 0), b.f, node)
        own = far + 2.0**-kept + ln.error
        pair = b.same([b.narrow(d, b.f), b.narrow(ln.value, b.f)], wide=False)
        return minus(b, pair[0], spread(pair[1]), node, Claim(-math.inf, own, x, 2.0, own))
    over = Wanted("reciprocal", *ends, max(3e-5, 2.0 ** (g + 1 - room)), 0.0, kept, 0)
    inverse = banded(b, total, over, room - g, node)
    # relative errors of all e move e / S by p (1 - p) times twice as much, at most half as much
    own = 1.1 * (EXP_RELATIVE / 2 + (k + 1) * absolute) + 2.0**-kept + inverse.error + OPENING * 2.0**-b.f
    return product(b, e, spread(inverse.value), node, b.f, claim=Claim(-own, 1.0 + own, x, 0.5, own))


@dataclass(frozen=True, slots=True)
class Banded:
    """A value and how far it strays from the function of what went in: by its tables, and by being opened."""

    value: int
    tables: float
    opened: float

    @property
    def error(self) -> float:
        """All of it."""
        return self.tables + self.opened


def banded(b: Builder, x: int, wanted: Wanted, frac: int, node: str) -> Banded:
    """A function on a long range as the sum of its bands' tables, each at x clamped to the band."""
    frac = min(frac, 24, b.n - 4)
    wanted = replace(wanted, frac_out=frac_out(b, frac), tight=wanted.low * BAND < wanted.high)
    tables = b.bands(wanted, node)
    parts = [lookup(b, _clamp_to(b, x, t, node) if wanted.tight else x, t, frac, node) for t in tables]
    y = parts[0]
    for part in parts[1:]:
        y = b.emit(Plus(), (y, part), b.type(y), node)
    return Banded(y, max(t.error for t in tables), len(tables) * OPENING * 2.0**-frac)


# -- layer norm ------------------------------------------------------------------------------------


def normalize(b: Builder, x: int, op: ir.Normalize, node: str) -> int:
    """(x - mean) / sqrt(variance + eps) over the last axis.

    With d values, 2^s <= d < 2^(s+1) and q = d / 2^s: c = (d x - sum x) / 2^s is q (x - mean), exactly, with
    s more fractional bits; V = sum c^2 / 2^s is q^3 variance; and c sqrt(q) / sqrt(V + q^3 eps) the result.
    """
    t = b.type(x)
    d, axis = t.shape[-1], len(t.shape)
    s = d.bit_length() - 1
    q = d / (1 << s)
    x = b.grow(b.wide(x), s)
    x = b.wide(b.narrow(x, b.f)) if b.type(x).frac > b.f else b.wide(x)
    t = b.type(x)
    many = b.emit(Times((), (d,), exact=True), (x,), t, node)
    total = reshape(b, b.total(x, axis, node), (*t.shape[:-1], 1), node)
    c = minus(b, many, _pick(b, total, axis, (0,) * d, node), node)
    c = b.emit(Shape(t.shape), (c,), Type(t.shape, WIDE, t.frac + s), node)
    # V: the sum of squares before it is cut to n bits
    row, column = (*t.shape[:-1], 1, d), (*t.shape[:-1], d, 1)
    left, right = reshape(b, c, row, node), reshape(b, c, column, node)
    high = q**3 * (op.high + op.eps)
    g = min(24, b.n - 3 - max(1, math.ceil(math.log2(high))))
    low = max(q**3 * (op.low + op.eps), 2.0 ** (LEAST_VARIANCE_BITS - g))
    squares = product(b, left, right, node, g - s, matmul=True, claim=Claim(0.0, math.inf))
    kind = b.type(squares)
    v = b.emit(Shape(t.shape[:-1]), (squares,), Type(t.shape[:-1], kind.bits, kind.frac + s), node)
    v = clamp(b, b.offset(v, q**3 * op.eps, node), low, high, node)
    under = Wanted("rsqrt", low, high, 0.0, 1e-4, b.type(v).frac, 0, factor=math.sqrt(q))
    largest_root = math.sqrt(q / low)
    # the product drops what c and the root have beyond n bits of f, 64 - n of them
    bits = min(24, b.n - 3 - math.ceil(math.log2(largest_root + 1)))
    spare, cut = WIDE - b.n, 0.0
    if spare - s < min(bits, LEAST_ROOT_BITS):
        c, cut = b.wide(b.narrow(c, b.f)), 2.0**-b.f
    else:
        spare -= s
    root = banded(b, v, under, min(bits, spare), node)
    shape = (*t.shape[:-1], 1)
    r = _pick(b, reshape(b, root.value, shape, node), axis, (0,) * d, node)
    # no result is larger than sqrt(d), so none strays further than twice that; where the variance is
    # known not to be small: what V and its root stray by, relative, and the derivative of the result. V
    # strays by its opening, the rounding of eps and that of the clamp's end; the root by its table,
    # relative, and by its opening, which weighs most where the root is least
    reach = math.sqrt(d)
    if op.low == 0:
        return product(b, c, r, node, b.f, claim=Claim(-reach, reach, x, 0.0, 2 * reach))
    relative = 1e-4 + (OPENING + 1.5) * 2.0**-g / (2 * low) + root.opened / math.sqrt(q / high)
    own = 1.1 * reach * relative + OPENING * 2.0**-b.f + 1.1 * cut * largest_root
    gain = (2 + reach) / math.sqrt(op.low)
    return product(b, c, r, node, b.f, claim=Claim(-reach, reach, x, gain, own))
