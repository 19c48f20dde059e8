"""From a function of one variable, a range and a wanted error to a table of integer polynomials.

An input x is the integer X = round(x 2^f). With Y = X - low, the row is u = floor(Y / 2^s) or one more,
as a random mask has it, and the result Z = sum_k C_k[u] (Y - u 2^s)^k stands for Z / 2^F. So row u has to be
good on the two cells around its centre. Where the range ends, a row is only fitted to what can occur.

Proofs. On a small piece of half width w let E be the function minus the row's polynomial, of degree d,
*after* rounding of its coefficients. Its interpolant at the piece's d + 1 Chebyshev nodes is at most the sum
of its own Chebyshev coefficients; what is left is at most ``max|fn^(d+1)| w^(d+1) / ((d+1)! 2^d)``, as the
polynomial has no (d+1)-th derivative. (Where only a lower derivative k is bounded, the interpolant of degree
k - 1 has the same form of remainder, and one plus the Lebesgue constant bounds what that costs.) A row is cut
into 16 pieces or more, so the remainder is far below the error it certifies, and crude bounds of derivatives
serve. Values are computed in float64: :data:`ROUNDING` times the sizes of all terms is added, where each is
within a few 2^-52 of its own size, or of the input's size times the slope.

Functions without bounds of derivatives are tried at every single input where there are at most 2^24 of them,
which proves the error just as well; above that they are sampled, and the table says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from privinfer.errors import ModelUnsupported, PrecisionError
from privinfer.graph.functions import MAX_ORDER, Array, Bound, Callback, Function

Integers = npt.NDArray[np.int64]
Basis = Literal["proved", "sampled"]

OUT_FRAC = 48
MAX_CELLS = 4096
MAX_DEGREE = 3
MAX_VALUE_BITS = 62
MAX_INPUT_BITS = 40
MAX_TRIED = 1 << 24
CHUNK = 1 << 19
SAMPLES = 4096
ROUNDING = 2.0**-46
BAND_COST = 256
MAX_SEGMENTS = 24
# Chebyshev nodes 1..4: 1, sqrt(2), 5/3, 1.848, rounded up.
LEBESGUE = (1.0, 1.4143, 1.6667, 1.8479)
PIECES = (64, 32, 16, 16)


@dataclass(frozen=True, slots=True)
class Table:
    """Piecewise polynomials with integer coefficients.

    Attributes
    ----------
    low, high : int
        First and last input, in units of ``2**-frac_in``, for which the errors hold. Rows behind the last are
        constant. Beyond `high` the result is meaningless, though no Z of a row overflows.
    step_bits : int
        s: a cell is ``2**s`` units wide.
    cell_bits : int
        m: there are ``2**m`` rows; ``high - low < (2**m - 1) 2**s``.
    degree : int
        Degree of the polynomials.
    frac_in, frac_out : int
        f and F.
    coefficients : tuple of int
        ``coefficients[k * 2**m + u]`` belongs to the k-th power of row u.
    error : float
        Largest ``|Z / 2**F - fn(X / 2**f)|`` for low <= X <= high and either row; without the rounding of the
        input before and the truncation behind.
    relative : float
        Largest ratio of that difference to ``|fn|``; infinite where fn comes too close to 0.
    basis : str
        ``"proved"``, or ``"sampled"`` where a function without bounds of its derivatives has more inputs than
        can be tried: `error` is then what was seen on a grid plus the largest change between its points.
        For a caller's own function, fn is what it returns in float64.
    """

    low: int
    high: int
    step_bits: int
    cell_bits: int
    degree: int
    frac_in: int
    frac_out: int
    coefficients: tuple[int, ...]
    error: float
    relative: float
    basis: Basis

    @property
    def cells(self) -> int:
        """Number of rows."""
        return 1 << self.cell_bits

    @property
    def rows(self) -> int:
        """Rows that inputs in range can reach: 0 up to this number."""
        return ((self.high - self.low) >> self.step_bits) + 2

    @property
    def cost(self) -> int:
        """AES blocks to open one table."""
        return cost(self.cell_bits, self.degree)

    def domain(self) -> tuple[float, float]:
        """First and last input as real numbers."""
        return math.ldexp(self.low, -self.frac_in), math.ldexp(self.high, -self.frac_in)

    def check(self) -> None:
        """Raise ModelUnsupported where the numbers do not go together or a result may overflow."""
        s, m, d = self.step_bits, self.cell_bits, self.degree
        if not (0 <= d <= MAX_DEGREE and s >= 0 and 1 <= m <= 16 and s + m <= MAX_INPUT_BITS + 2):
            raise ModelUnsupported("a table's sizes are not possible")
        if not (
            0 <= self.high - self.low < ((1 << m) - 1) << s
            and abs(self.low) < 1 << MAX_VALUE_BITS
            and 1 <= self.frac_in <= 32
            and 0 <= self.frac_out <= MAX_VALUE_BITS
            and len(self.coefficients) == (d + 1) << m
        ):
            raise ModelUnsupported("a table's range does not fit its cells")
        for u in range(1 << m):
            # The triangle inequality covers every t of the row and every partial sum.
            size = sum(abs(self.coefficients[(k << m) + u]) << (s * k) for k in range(d + 1))
            if size >= 1 << MAX_VALUE_BITS:
                raise ModelUnsupported(f"row {u} of a table may overflow")

    def integers(self, X: Integers, upper: npt.NDArray[np.bool_] | bool = False) -> Integers:
        """Z for inputs as integers; `upper` says where the row above the input's cell is taken."""
        X = np.asarray(X, dtype=np.int64)
        if X.size and (X.min() < self.low or X.max() > self.high):
            raise ValueError("an input is outside of the table's range")
        rows = np.array(self.coefficients, dtype=np.int64).reshape(self.degree + 1, self.cells)
        Y = X - np.int64(self.low)
        u = (Y >> np.int64(self.step_bits)) + np.asarray(upper).astype(np.int64)
        t = Y - (u << np.int64(self.step_bits))
        # Products wrap mod 2^64 as they do in the ring; the sum is small again.
        Z = rows[self.degree][u]
        for k in range(self.degree - 1, -1, -1):
            Z = Z * t + rows[k][u]
        return np.asarray(Z)

    def evaluate(self, X: Integers, upper: npt.NDArray[np.bool_] | bool = False) -> Array:
        """``Z / 2**F``: what the protocol computes before it truncates."""
        return np.asarray(np.ldexp(self.integers(X, upper).astype(np.float64), -self.frac_out))


class Band(NamedTuple):
    """One summand of :func:`compile_bands`: `table` is evaluated at x clamped to [low, high]."""

    low: float
    high: float
    table: Table


def cost(cell_bits: int, degree: int) -> int:
    """AES blocks of one evaluation: a tree over all cells, and an output block for two coefficients."""
    return (1 << cell_bits) * (2 + (degree + 2) // 2)


@dataclass(frozen=True, slots=True)
class _Target:
    """What a table shall approximate: fn - shift / 2**F on integers low..high; `pins` fixes both ends."""

    fn: Callback
    bound: Bound | None
    low: int
    high: int
    frac: int
    out_frac: int
    error: float
    relative: float
    shift: int = 0
    pins: tuple[int, int] | None = None

    @property
    def offset(self) -> float:
        return math.ldexp(self.shift, -self.out_frac)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows that can occur: centres, and the ends of what each is needed for, in units of the input."""

    step_bits: int
    cell_bits: int
    centre: Integers
    start: Integers
    stop: Integers


def _layout(span: int, cell_bits: int) -> _Rows | None:
    """The finest cells with which 2**cell_bits rows cover inputs 0..span."""
    step = 0
    while ((1 << cell_bits) - 1) << step <= span:
        step += 1
    if cell_bits > 1 and ((1 << (cell_bits - 1)) - 1) << step > span:
        return None  # half as many rows do as well: cells are one unit wide
    centre = np.arange((span >> step) + 2, dtype=np.int64) << step
    width = 1 << step
    return _Rows(step, cell_bits, centre, np.maximum(centre - width, 0), np.minimum(centre + width, span))


def _nodes(count: int) -> Array:
    """Chebyshev nodes of [-1, 1], ascending."""
    return np.asarray(-np.cos((2 * np.arange(count) + 1) * (math.pi / (2 * count))))


def _monic(k: int, o: Array, w: Array) -> list[Array]:
    """Coefficients below the leading one of the monic polynomial that is least on [o - w, o + w]."""
    half, three = 0.5 * w * w, 0.75 * w * w
    return [
        [],
        [-o],
        [o * o - half, -2 * o],
        [-(o**3) + three * o, 3 * o * o - three, -3 * o],
    ][k]


def _fit(target: _Target, rows: _Rows, degree: int) -> Integers | None:
    """Coefficients (degree + 1, rows in use), rounded; None where they would overflow.

    Interpolates at Chebyshev nodes. What rounding changes in C_k is taken back by the lower coefficients as
    far as they can: it only counts times the monic Chebyshev polynomial of degree k.
    """
    f, F = target.frac, target.out_frac
    width = min(1 << rows.step_bits, target.high - target.low)
    # A last row of which hardly anything can occur would be ill-conditioned.
    start = np.minimum(rows.start, rows.stop - width)
    w = np.ldexp((rows.stop - start).astype(np.float64), -f - 1)
    o = np.ldexp((rows.stop + start - 2 * rows.centre).astype(np.float64), -f - 1)
    z = _nodes(degree + 1)
    spread = np.broadcast_to(z, (len(w), degree + 1)).copy()
    pinned: dict[int, tuple[int, int]] = {}
    if target.pins is not None:
        # Stretch the nodes until the last one is the end that has to be met exactly.
        last = (target.high - target.low) >> rows.step_bits
        if last < 2:
            return None
        pinned = dict.fromkeys((0, 1), (0, target.pins[0]))
        pinned |= dict.fromkeys((last, last + 1), (target.high - target.low, target.pins[1]))
        spread[:2] = -1 + 2 * (z - z[0]) / (1 - z[0])
        spread[last:] = 1 - 2 * (z[-1] - z) / (1 + z[-1])
    base = np.ldexp((rows.centre + target.low).astype(np.float64), -f)
    y = target.fn(base[:, None] + (o[:, None] + w[:, None] * spread)) - target.offset
    b = np.linalg.solve(np.vander(spread[0], increasing=True), y.T)
    if pinned:
        powers = spread[:, :, None] ** np.arange(degree + 1)
        b = np.linalg.solve(powers, y[:, :, None])[:, :, 0].T
    c = [b[degree]]
    scale = np.where(w > 0, w, 1.0)
    for k in range(degree - 1, -1, -1):  # Horner with polynomials: times (t - o) / w, plus b_k
        up, down = [0 * o, *c], [*c, 0 * o]
        c = [(p - o * q) / scale for p, q in zip(up, down, strict=True)]
        c[0] = c[0] + b[k]
    C = np.zeros((degree + 1, len(w)), dtype=np.int64)
    size = np.zeros(len(w))
    for k in range(degree, -1, -1):
        rounded = np.rint(np.ldexp(c[k], F - k * f))
        size += np.abs(np.ldexp(rounded, rows.step_bits * k))
        if not (size < 2.0**MAX_VALUE_BITS * (1 - 1e-9)).all():
            return None
        C[k] = rounded.astype(np.int64)
        moved = np.ldexp(rounded, k * f - F) - c[k]
        for j, p in enumerate(_monic(k, o, w)):
            c[j] = c[j] + moved * p
    for u, (at, value) in pinned.items():
        t = at - int(rows.centre[u])
        C[0, u] = value - sum(int(C[k, u]) * t**k for k in range(1, degree + 1))
    return C


def _reals(C: Integers, f: int, F: int) -> list[Array]:
    """Coefficients as real numbers: the k-th belongs to the k-th power of t / 2**f."""
    return [np.ldexp(C[k].astype(np.float64), k * f - F) for k in range(len(C))]


def _certify(target: _Target, rows: _Rows, C: Integers, bound: Bound) -> tuple[float, float, bool]:
    """Proved error, relative error, and whether they are as wanted everywhere."""
    f = target.frac
    n = len(C)
    pieces = PIECES[n - 1]
    z = _nodes(n)
    chebyshev = np.cos(np.arange(n)[:, None] * np.arccos(z)) * (2.0 / n)
    chebyshev[0] *= 0.5
    start = np.ldexp((rows.start - rows.centre).astype(np.float64), -f)[:, None]
    length = np.ldexp((rows.stop - rows.start).astype(np.float64), -f)[:, None]
    base = np.ldexp((rows.centre + target.low).astype(np.float64), -f)[:, None]
    left = start + length * (np.arange(pieces) / pieces)
    w = np.broadcast_to(length / (2 * pieces), left.shape)
    t = (left + w)[:, :, None] + w[:, :, None] * z
    x = base[:, :, None] + t
    c = [a[:, None, None] for a in _reals(C, f, target.out_frac)]
    poly = c[n - 1] + 0 * t
    for a in reversed(c[:-1]):
        poly = poly * t + a
    y = target.fn(x)
    seen = np.abs((y - target.offset - poly) @ chebyshev.T).sum(axis=2)
    lo, hi = base + left, base + left + 2 * w
    far = np.maximum(np.abs(left), np.abs(left + 2 * w))
    slope = bound(1, lo, hi) + 0 * w
    rest = np.full(left.shape, np.inf)
    for k in range(1, n + 1):
        derivative = bound(k, lo, hi) + 0 * w
        factor = (1 + 1e-9) / (math.factorial(k) * 2.0 ** (k - 1))
        if k < n:
            derivative = derivative + sum(
                math.perm(j, k) * np.abs(c[j][:, :, 0]) * far ** (j - k) for j in range(k, n)
            )
            factor *= 1 + LEBESGUE[n - 1]
        with np.errstate(invalid="ignore"):
            rest = np.fmin(rest, np.where(w > 0, derivative * w**k * factor, 0.0))
    values = np.abs(y).max(axis=2)
    sizes = sum((np.abs(a[:, :, 0]) * far**k for k, a in enumerate(c)), values + abs(target.offset))
    error = seen + rest + ROUNDING * (sizes + slope * np.maximum(np.abs(lo), np.abs(hi)))
    least = np.maximum(np.abs(y).min(axis=2) - 2 * slope * w - ROUNDING * values, 0.0)
    return _judge(target, error, least)


def _judge(target: _Target, error: Array, least: Array) -> tuple[float, float, bool]:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(error > 0, error / least, 0.0)
    fine = error <= np.maximum(target.error, target.relative * least)
    return float(error.max()), float(ratio.max()), bool(fine.all())


def _sample(target: _Target, rows: _Rows, C: Integers, count: int = 48) -> tuple[float, float, bool]:
    """Error on a grid of inputs, plus the largest change of the difference between neighbours there."""
    f = target.frac
    share = np.arange(count + 1) / count
    length = (rows.stop - rows.start).astype(np.float64)[:, None]
    Y = rows.start[:, None] + np.rint(length * share).astype(np.int64)
    t = np.ldexp((Y - rows.centre[:, None]).astype(np.float64), -f)
    c = _reals(C, f, target.out_frac)
    poly = c[-1][:, None] + 0 * t
    for a in reversed(c[:-1]):
        poly = poly * t + a[:, None]
    y = target.fn(np.ldexp((Y + target.low).astype(np.float64), -f))
    difference = y - target.offset - poly
    error = np.abs(difference).max(axis=1) + np.abs(np.diff(difference, axis=1)).max(axis=1)
    error += ROUNDING * (np.abs(y).max(axis=1) + abs(target.offset))
    return _judge(target, error, np.abs(y).min(axis=1))


def _try_all(target: _Target, table: Table) -> tuple[float, float, bool]:
    """Error over every input, with either row."""
    error, relative, fine = 0.0, 0.0, True
    for at in range(target.low, target.high + 1, CHUNK):
        X = np.arange(at, min(at + CHUNK, target.high + 1), dtype=np.int64)
        y = target.fn(np.ldexp(X.astype(np.float64), -target.frac))
        for upper in (False, True):
            e = np.abs(table.evaluate(X, upper) - (y - target.offset))
            e += 2.0**-51 * (np.abs(y) + abs(target.offset))
            a, b, c = _judge(target, e, np.abs(y))
            error, relative, fine = max(error, a), max(relative, b), fine and c
    return error, relative, fine


def _table(target: _Target, rows: _Rows, C: Integers, error: float, relative: float, basis: Basis) -> Table:
    full = np.zeros((len(C), 1 << rows.cell_bits), dtype=np.int64)
    full[:, : C.shape[1]] = C
    end = target.fn(np.array([math.ldexp(target.high, -target.frac)]))[0] - target.offset
    full[0, C.shape[1] :] = round(math.ldexp(end, target.out_frac))
    return Table(
        low=target.low,
        high=target.high,
        step_bits=rows.step_bits,
        cell_bits=rows.cell_bits,
        degree=len(C) - 1,
        frac_in=target.frac,
        frac_out=target.out_frac,
        coefficients=tuple(full.ravel().tolist()),
        error=error,
        relative=relative,
        basis=basis,
    )


def _search(target: _Target, max_cells: int, max_degree: int) -> Table:
    """The cheapest table that is as good as wanted."""
    best = math.inf
    sizes = range(1, max(max_cells, 2).bit_length())
    for _, degree, m in sorted((cost(m, d), d, m) for m in sizes for d in range(max_degree + 1)):
        rows = _layout(target.high - target.low, m)
        C = None if rows is None else _fit(target, rows, degree)
        if rows is None or C is None:
            continue
        basis: Basis = "proved"
        if target.bound is not None:
            error, relative, fine = _certify(target, rows, C, target.bound)
        else:
            error, relative, fine = _sample(target, rows, C)
            # Half of it was seen at least, so there is no need to try the rest.
            hopeless = target.relative == 0 and error > 2 * target.error
            if target.high - target.low >= MAX_TRIED:
                basis = "sampled"
            elif not hopeless:
                error, relative, fine = _try_all(target, _table(target, rows, C, error, relative, basis))
        best = min(best, relative if target.relative > 0 else error)
        if fine:
            return _table(target, rows, C, error, relative, basis)
    low, high = (math.ldexp(v, -target.frac) for v in (target.low, target.high))
    wanted = f"{target.relative:g} of its value" if target.relative > 0 else f"{target.error:g}"
    raise PrecisionError(
        f"no table of up to {max_cells} cells and degree {max_degree} comes within {wanted} "
        f"on [{low:g}, {high:g}]; the best one comes within {best:.2g}",
        hint="allow a larger error, or declare a smaller range",
    )


def _checked(fn: Callback, name: str) -> Callback:
    """`fn` with its faults told as ours."""

    def call(x: Array) -> Array:
        try:
            with np.errstate(all="ignore"):
                y = np.asarray(fn(x), dtype=np.float64)
        except Exception as error:  # a caller's function may raise anything
            raise ModelUnsupported(f"{name} fails on an array of float64: {type(error).__name__}") from error
        if y.shape != x.shape:
            raise ModelUnsupported(f"{name} gives shape {y.shape} for inputs of shape {x.shape}")
        if not np.isfinite(y).all():
            where = x[~np.isfinite(y)].flat[0]
            raise ModelUnsupported(
                f"{name} is not finite at {where:g}", hint="declare a range in which it has no pole"
            )
        return y

    return call


def _ends(low: float, high: float, frac: int, name: str) -> tuple[int, int]:
    """First and last input as integers, rounded as inputs are."""
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ModelUnsupported(
            f"{name} needs a finite range, not [{low:g}, {high:g}]", hint="declare the range of its input"
        )
    if max(abs(low), abs(high)) >= 2.0 ** (MAX_INPUT_BITS - 1 - frac):
        raise PrecisionError(f"{name}: a range of [{low:g}, {high:g}] does not fit fixed point")
    return round(math.ldexp(low, frac)), round(math.ldexp(high, frac))


def _grid(low: int, high: int, count: int) -> Integers:
    return np.unique(low + np.rint(np.linspace(0.0, 1.0, count + 1) * (high - low)).astype(np.int64))


def _continuous(fn: Callback, low: int, high: int, frac: int, error: float, name: str) -> None:
    """Look for jumps and poles: follow the steepest intervals of a grid down to neighbouring inputs.

    Only there to tell the reader why: a table over a jump never comes within the wanted error anyway.
    """
    X = _grid(low, high, SAMPLES)
    y = fn(np.ldexp(X.astype(np.float64), -frac))
    jumps = np.abs(np.diff(y))
    for i in np.argsort(-jumps, kind="stable")[:8]:
        a, b, fa, fb = int(X[i]), int(X[i + 1]), float(y[i]), float(y[i + 1])
        while b - a > 1:
            c = (a + b) // 2
            fc = float(fn(np.array([math.ldexp(c, -frac)]))[0])
            a, b, fa, fb = (a, c, fa, fc) if abs(fc - fa) >= abs(fb - fc) else (c, b, fc, fb)
        if X[i + 1] - X[i] > 1 and abs(fb - fa) > max(10 * error, 0.25 * float(jumps[i])):
            raise ModelUnsupported(
                f"{name} jumps or has a pole near {math.ldexp(b, -frac):g}",
                hint="declare a range without it, or write the jump as a comparison",
            )


def _prepare(
    fn: Function | Callback,
    low: float,
    high: float,
    frac: int,
    out_frac: int,
    error: float,
    relative: float,
    bound: Bound | None,
    max_cells: int,
    max_degree: int,
) -> _Target:
    """Everything both compilers check before they start."""
    name = fn.name if isinstance(fn, Function) else getattr(fn, "__name__", "the function")
    if not (math.isfinite(error) and math.isfinite(relative) and max(error, relative) > 0):
        raise PrecisionError(f"{name}: a wanted error has to be positive and finite")
    if not (2 <= max_cells <= 1 << 16 and 0 <= max_degree <= MAX_DEGREE and 1 <= frac <= 32):
        raise PrecisionError(
            f"{name}: no tables of {max_cells} cells and degree {max_degree} at {frac} fractional bits"
        )
    first, last = _ends(low, high, frac, name)
    if isinstance(fn, Function):
        fn.check(math.ldexp(first, -frac), math.ldexp(last, -frac))
        bound = fn.bound if bound is None else bound
    call = _checked(fn, name)
    largest = float(np.abs(call(np.ldexp(_grid(first, last, SAMPLES).astype(np.float64), -frac))).max())
    # Three bits for what a polynomial does between and beside the points it is fitted to.
    bits = min(out_frac, MAX_VALUE_BITS - 3 - math.frexp(max(largest, 2.0**-60))[1])
    if bits < frac:
        raise PrecisionError(f"{name}: values up to {largest:.3g} do not fit fixed point")
    x = np.ldexp(_grid(first, last, 64).astype(np.float64), -frac)
    if bound is not None and np.isinf(bound(1, x, x) + 0 * x).all():
        bound = None  # a function that was registered without one
    if bound is None:
        _continuous(call, first, last, frac, error + relative * largest, name)
    return _Target(call, bound, first, last, frac, bits, error, relative)


def compile_table(
    fn: Function | Callback,
    low: float,
    high: float,
    error: float,
    *,
    frac: int = 16,
    out_frac: int = OUT_FRAC,
    max_cells: int = MAX_CELLS,
    max_degree: int = MAX_DEGREE,
    relative: float = 0.0,
    bound: Bound | None = None,
    tight: bool = False,
) -> Table:
    """Find the cheapest table that comes within `error` of a function on a range.

    The same arguments give the same table on the same machine; it is the table that travels, not `fn`.

    Parameters
    ----------
    fn : Function or callable
        One of :data:`privinfer.graph.functions.FUNCTIONS`, or a caller's function from a float64 array to one
        of the same shape, elementwise.
    low, high : float
        Ends of the range; both are rounded to inputs and belong to it.
    error : float
        Wanted absolute error, which may be 0 where `relative` is given.
    frac : int
        f, fractional bits of the input.
    out_frac : int
        Most fractional bits F of Z, 64 - (n - g) for a result of n bits of which g are fractional. Fewer
        are taken where the function's values need the room.
    max_cells, max_degree : int
        Limits of the search.
    relative : float
        Wanted error as a share of ``|fn|``: at each place the larger of both errors is allowed.
    bound : callable, optional
        For a caller's function: ``bound(k, lo, hi)`` as in :class:`~privinfer.graph.functions.Function`. The
        proof then rests on it. Without it, all inputs are tried; or, where there are more than 2**24,
        a sample, and `basis` says so.
    tight : bool
        Both ends are met to the last of F bits, in every row that can occur.

    Returns
    -------
    Table
        The table with its proved error.

    Raises
    ------
    ModelUnsupported
        The range is not finite, or the function is not finite or not continuous on it.
    PrecisionError
        No table within the limits is good enough, or values do not fit.
    """
    target = _prepare(fn, low, high, frac, out_frac, error, relative, bound, max_cells, max_degree)
    if tight:
        ends = np.ldexp(np.array([target.low, target.high], dtype=np.float64), -frac)
        first, last = (round(math.ldexp(float(v), target.out_frac)) for v in target.fn(ends))
        target = replace(target, pins=(first, last))
    return _search(target, max_cells, max_degree)


def _segments(low: int, high: int) -> list[int]:
    """Places where one band may end and the next begin: octaves where the range has one sign."""
    if high - low < 64:
        return [low, high]
    if low > 0 or high < 0:
        near, far = sorted((abs(low), abs(high)))
        points = [near]
        while points[-1] * 3 <= far:
            points.append(points[-1] * 2)
        points.append(far)
        if len(points) > 2:
            return points if low > 0 else [-p for p in reversed(points)]
    count = min(MAX_SEGMENTS, 16)
    return [int(v) for v in _grid(low, high, count)]


def _widest(target: _Target, a: int, b: int, max_degree: int) -> list[int]:
    """By degree, the largest step bits with which cells on a..b seem good enough; -1 for none."""
    f, F = target.frac, target.out_frac
    count = 16
    delta = math.ldexp(b - a, -f) / (count - 1)
    x = math.ldexp(a, -f) + delta * np.arange(count)
    y = target.fn(np.clip(x, None, math.ldexp(b, -f)))
    allowed = np.maximum(target.error, target.relative * np.abs(y))
    allowed = np.maximum(allowed, 1e-300)
    found = []
    for d in range(max_degree + 1):
        # The least allowance of the points a difference is taken from goes with it.
        near = np.min([allowed[k : count - d - 1 + k] for k in range(d + 2)], axis=0)
        slope = float((np.abs(np.diff(y, d + 1)) / near).max()) / delta ** (d + 1)
        widest = -1
        for s in range((b - a).bit_length() + 1):
            h = math.ldexp(1.0, s - f)
            e = 1.3 * slope * h ** (d + 1) / (math.factorial(d + 1) * 2.0**d)
            e += sum(math.ldexp(h**k, k * f - F - max(k, 1)) for k in range(d + 1)) / float(allowed.min())
            if e <= 1:
                widest = s
        found.append(widest)
    return found


def _split(target: _Target, max_cells: int, max_degree: int) -> Iterator[tuple[int, int]]:
    """Bands of least estimated cost, by dynamic programming over :func:`_segments`."""
    points = _segments(target.low, target.high)
    widest = [_widest(target, a, b, max_degree) for a, b in pairwise(points)]
    total: list[float] = [0.0]
    origin = [0]
    for j in range(1, len(points)):
        options: list[tuple[float, int]] = []
        for i in range(j):
            span = points[j] - points[i]
            least = math.inf
            for d in range(max_degree + 1):
                s = min(row[d] for row in widest[i:j])
                m = max(2, ((span >> s) + 1).bit_length()) if s >= 0 else 64
                least = min(least, cost(m, d) if 1 << m <= max_cells else 1e12 * (j - i))
            options.append((total[i] + least + BAND_COST, -i))
        price, back = min(options)
        total.append(price)
        origin.append(-back)
    ends = [len(points) - 1]
    while ends[-1]:
        ends.append(origin[ends[-1]])
    ends.reverse()
    for i, j in pairwise(ends):
        yield points[i], points[j]


def compile_bands(
    fn: Function | Callback,
    low: float,
    high: float,
    relative: float,
    *,
    absolute: float = 0.0,
    frac: int = 16,
    out_frac: int = OUT_FRAC,
    max_cells: int = MAX_CELLS,
    max_degree: int = MAX_DEGREE,
    bound: Bound | None = None,
) -> tuple[Band, ...]:
    """Tables with cells of different widths, whose *sum* is the function with a wanted relative error.

    ``fn(x) = sum over bands of table(clamp(x, band.low, band.high))``, added up before truncation; all tables
    have one F. At its two ends a table is exact: 0 at the lower (the function's own value in the first band),
    and the difference of the function at both ends, rounded once to F bits, at the upper, in every row that
    can occur. So bands that x is not in add no error at all, and where x is in a band, that
    band's `error` and `relative` are those of the whole sum.

    Parameters
    ----------
    fn : Function or callable
        As in :func:`compile_table`.
    low, high : float
        Ends of the range.
    relative : float
        Wanted error as a share of ``|fn|``.
    absolute : float
        Absolute error that is always good enough; what truncation behind the sum costs anyway.
    frac, out_frac, max_cells, max_degree, bound
        As in :func:`compile_table`; the limits are those of each band.

    Returns
    -------
    tuple of Band
        From low to high; each begins where the one before ends.

    Raises
    ------
    ModelUnsupported, PrecisionError
        As in :func:`compile_table`.
    """
    whole = _prepare(fn, low, high, frac, out_frac, absolute, relative, bound, max_cells, max_degree)
    if whole.high - whole.low < 4:
        raise PrecisionError(f"a range of [{low:g}, {high:g}] is too small for bands")
    F = whole.out_frac
    ends = list(_split(whole, max_cells, max_degree))
    at = np.ldexp(np.array([ends[0][0], *(b for _, b in ends)], dtype=np.float64), -frac)
    values = [round(math.ldexp(float(v), F)) for v in whole.fn(at)]
    bands = []
    for i, (a, b) in enumerate(ends):
        shift = values[i] if i else 0
        pins = (values[i] - shift, values[i + 1] - shift)
        target = replace(whole, low=a, high=b, shift=shift, pins=pins)
        table = _search(target, max_cells, max_degree)
        bands.append(Band(*table.domain(), table))
    return tuple(bands)


def evaluate_bands(
    bands: tuple[Band, ...], X: Integers, upper: npt.NDArray[np.bool_] | bool = False
) -> Array:
    """The sum of :func:`compile_bands` at inputs as integers, before truncation."""
    X = np.asarray(X, dtype=np.int64)
    parts = [b.table.integers(np.clip(X, b.table.low, b.table.high), upper) for b in bands]
    total = np.sum(parts, axis=0, dtype=np.int64)
    return np.asarray(np.ldexp(total.astype(np.float64), -bands[0].table.frac_out))


__all__ = [
    "MAX_ORDER",
    "Band",
    "Basis",
    "Table",
    "compile_bands",
    "compile_table",
    "cost",
    "evaluate_bands",
]
