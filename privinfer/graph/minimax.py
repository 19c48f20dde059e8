"""The polynomial of a degree that comes closest to a function on a range: Remez' exchange on a fine grid.

What is fitted depends on the function, the range and the degree alone, never on data or weights: the
coefficients are public.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from numpy.polynomial import chebyshev as series

from privinfer.graph.operators import MAX_DEGREE

Array = npt.NDArray[np.float64]
Curve = Callable[[Array], Array]
Fit = tuple[tuple[float, ...], float]

GRID = 4097
ROUNDS = 60
SETTLED = 1e-6  # of the error: how far the exchange may end from the best
NOTHING = 1e-13  # of the largest coefficient


def fit(curve: Curve, low: float, high: float, degree: int) -> Fit:
    """Chebyshev coefficients, and the largest error on the grid.

    Parameters
    ----------
    curve : callable
        Elementwise, finite on the range.
    low, high : float
        Ends of the range.
    degree : int
        Of the polynomial. Leading coefficients that are zero are left off.

    Returns
    -------
    coefficients, error
        In the basis of :class:`privinfer.graph.ir.Polynomial`.
    """
    # points of Chebyshev's kind: close to the ends, where a polynomial moves fast
    t = -np.cos(np.linspace(0.0, np.pi, GRID))
    y = np.asarray(curve((high - low) / 2 * t + (high + low) / 2), dtype=np.float64)
    basis = series.chebvander(t, degree)
    best = np.linalg.lstsq(basis, y, rcond=None)[0]
    left = y - basis @ best
    least = float(np.abs(left).max())
    alternating = (-1.0) ** np.arange(degree + 2)
    # what is left by least squares changes its sign degree + 1 times: it is at right angles to the basis
    chosen = _exchange(left, degree + 2)
    for _ in range(ROUNDS):
        if chosen is None:
            break
        system = np.column_stack([basis[chosen], alternating])
        try:
            *c, level = np.linalg.solve(system, y[chosen])
        except np.linalg.LinAlgError:
            break
        left = y - basis @ np.array(c)
        worst = float(np.abs(left).max())
        if worst < least:
            best, least = np.array(c), worst
        if worst <= abs(level) * (1 + SETTLED):
            break
        chosen = _exchange(left, degree + 2)
    kept = np.where(np.abs(best) > NOTHING * np.abs(best).max(initial=1e-300), best, 0.0)
    while len(kept) > 2 and kept[-1] == 0:
        kept = kept[:-1]
    return tuple(kept.tolist()), float(np.abs(y - basis[:, : len(kept)] @ kept).max())


def _exchange(left: Array, count: int) -> npt.NDArray[np.int_] | None:
    """Extremes of alternating sign, the largest among them; None where there are too few."""
    ends = np.flatnonzero(np.diff(np.sign(left))) + 1
    runs = np.split(np.arange(len(left)), ends)
    peaks = [int(run[np.abs(left[run]).argmax()]) for run in runs if left[run].any()]
    while len(peaks) > count:  # the ends go first: signs have to keep alternating
        del peaks[0 if abs(left[peaks[0]]) < abs(left[peaks[-1]]) else -1]
    return np.array(peaks) if len(peaks) == count else None


def smallest(curve: Curve, low: float, high: float, error: float) -> Fit:
    """Fit with the least degree that comes within `error`; the best fit there is where none does."""
    best: Fit = ((), np.inf)
    for degree in range(1, MAX_DEGREE + 1):
        found = fit(curve, low, high, degree)
        if found[1] <= error:
            return found
        best = min(best, found, key=lambda one: one[1])
    return best
