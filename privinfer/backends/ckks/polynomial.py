"""A polynomial in Chebyshev's basis of a ciphertext, in ceil(log2(degree + 1)) levels.

Paterson and Stockmeyer's recursion in Chebyshev's basis: with m the largest power of two not above the
degree, ``p = q T_m + r``, where q and r have degrees below m. The leaves are ``a0 + a1 T_1``, the powers
``T_1, T_2, T_4, ...`` come by doubling, ``T_2m = 2 T_m^2 - 1``.

Every part is asked for at a level and a scale, and works out which scales its own parts need for that: a
sum always meets equal levels and scales, and the result has exactly the scale asked for. The recursion
returns values before their last rescale, so that all products of one sum are added as three components and
relinearised once, and rescaled once.

Everything here is written against an arithmetic: :class:`privinfer.backends.ckks.cipher.Arithmetic` for
ciphertexts, :class:`privinfer.backends.ckks.bookkeeping.Bookkeeping` for what is declared of their errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from privinfer.errors import PrecisionError

__all__ = ["depth", "evaluate", "split"]


class Value(Protocol):
    """A ciphertext, or what is declared of one."""

    @property
    def scale(self) -> float: ...
    @property
    def limbs(self) -> int: ...


V = TypeVar("V", bound=Value)


class Algebra(Protocol[V]):
    """What a polynomial is made of; as in :class:`privinfer.backends.ckks.cipher.Arithmetic`."""

    primes: tuple[int, ...]

    def add(self, a: V, b: V, /) -> V: ...
    def add_constant(self, a: V, value: float, /) -> V: ...
    def scaled(self, a: V, value: float, scale: float, /) -> V: ...
    def product(self, a: V, b: V, /) -> V: ...
    def relinearise(self, a: V, /) -> V: ...
    def rescale(self, a: V, scale: float | None = None, /) -> V: ...
    def drop(self, a: V, limbs: int, /) -> V: ...
    def bounded(self, a: V, size: float, /) -> V: ...


def depth(degree: int) -> int:
    """Levels that a polynomial of this degree takes."""
    return max(1, degree.bit_length())


def split(coefficients: Sequence[float]) -> tuple[int, list[float], list[float]]:
    """``p = q T_m + r``: m, the largest power of two up to the degree (2 or more), q and r.

    ``T_m T_j = (T_{m+j} + T_{m-j}) / 2``, so ``a T_{m+j} = 2 a T_m T_j - a T_{m-j}`` for j > 0.
    """
    degree = len(coefficients) - 1
    m = 1 << (degree.bit_length() - 1)
    q = [coefficients[m], *(2.0 * a for a in coefficients[m + 1 :])]
    r = list(coefficients[:m])
    for j, a in enumerate(coefficients[m + 1 :], start=1):
        r[m - j] -= a
    return m, q, r


def evaluate(algebra: Algebra[V], t: V, coefficients: Sequence[float], scale: float) -> V:
    """``sum_k coefficients[k] T_k(t)`` at exactly `scale`, ``depth(degree)`` levels below t.

    Parameters
    ----------
    algebra : Algebra
        Computes.
    t : Ciphertext
        Numbers in [-1, 1].
    coefficients : sequence of float
        In Chebyshev's basis, lowest first; trailing zeros count.
    scale : float
        Of the result.

    Returns
    -------
    Ciphertext
        At ``t.limbs - depth(degree)`` limbs.

    Raises
    ------
    PrecisionError
        `t` has not that many levels.
    """
    levels = depth(len(coefficients) - 1)
    if t.limbs <= levels:
        raise PrecisionError(f"a polynomial of {levels} levels does not fit {t.limbs} limbs")
    powers = {1: t}
    for j in range(1, levels):
        powers[1 << j] = _double(algebra, powers[1 << (j - 1)])
    limbs = t.limbs - levels + 1
    return _finish(algebra, powers, list(coefficients), limbs, scale)


def _double(algebra: Algebra[V], t: V) -> V:
    """``2 t^2 - 1`` one level down, at whatever scale that gives."""
    square = algebra.product(t, t)
    twice = algebra.relinearise(algebra.add(square, square))
    return algebra.bounded(algebra.rescale(algebra.add_constant(twice, -1.0)), 1.0)


def _finish(algebra: Algebra[V], powers: dict[int, V], p: list[float], limbs: int, scale: float) -> V:
    """P at ``limbs - 1`` limbs and `scale`."""
    wide = _raw(algebra, powers, p, limbs, scale * algebra.primes[limbs - 1])
    return algebra.bounded(algebra.rescale(algebra.relinearise(wide), scale), sum(map(abs, p)))


def _raw(algebra: Algebra[V], powers: dict[int, V], p: list[float], limbs: int, scale: float) -> V:
    """P at `limbs` limbs and `scale`, about the square of a ciphertext's: before its rescale."""
    if len(p) <= 2:
        line = algebra.scaled(algebra.drop(powers[1], limbs), p[1] if len(p) == 2 else 0.0, scale)
        return algebra.add_constant(line, p[0]) if p[0] else line
    m, q, r = split(p)
    power = algebra.drop(powers[m], limbs)
    if any(q[1:]):
        factor = _finish(algebra, powers, q, limbs + 1, scale / power.scale)
        high = algebra.product(factor, power)
    elif q[0]:
        high = algebra.scaled(power, q[0], scale)
    else:
        return _raw(algebra, powers, r, limbs, scale)
    if not any(r[1:]):
        return algebra.add_constant(high, r[0]) if r[0] else high
    return algebra.add(high, _raw(algebra, powers, r, limbs, scale))
