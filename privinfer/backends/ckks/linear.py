"""Products of plain matrices and ciphertexts by diagonals, hoisted twice.

``y = sum_d diag_d * rot(x, d)``; with d = giant + baby and diagonals rotated back beforehand,

    y = sum_g rot( sum_b rot(diag_{g+b}, -g) * rot(x, b), g ).

*First hoisting* (Halevi and Shoup, eprint 2018/244): c1 of each input is taken into digits once, for all
babies. *Second hoisting* (Bossuat, Mouchet, Troncoso-Pastoriza and Hubaux, eprint 2020/1203, algorithm 6):
babies stay in the extended basis QP, as P times what they hold, so that the division by P comes once a giant
step and not once a rotation; giants are added up in QP too, before the one last division. The diagonals are
encoded over QP for that.

The numbers of digits taken, divided and switched per product, for B babies (0 not counted), G giants (same)
and one source: 1 + G digit decompositions, B + G key products, G + 2 divisions of one component by P.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from privinfer.backends.ckks.cipher import Arithmetic, Ciphertext
from privinfer.backends.ckks.diagonals import Diagonals
from privinfer.backends.ckks.layout import Values
from privinfer.errors import PrecisionError
from privinfer.protocols.randomness import U64

__all__ = ["Prepared", "baby_table", "giant_sum", "prepare", "product"]


@dataclass(frozen=True, slots=True, eq=False)
class Giant:
    """What one giant step adds up: rows of the table of babies, each with its encoded diagonal."""

    step: int
    rows: slice | npt.NDArray[np.intp]
    diagonals: U64  # (count, limbs + 1, N)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A matrix of encoded diagonals for one level, made once and used for every row of every batch.

    Attributes
    ----------
    limbs, scales
        Of the inputs.
    scale
        Of the results, one limb below.
    babies : tuple of (int, int)
        (source, step) of each row of the table of babies.
    outputs : tuple of tuple of Giant
        By output ciphertext.
    biases : tuple of ndarray
        Encoded at `scale`, one limb below; None where there is none.
    folds : tuple of int
        Rotate-and-add steps on every result.
    """

    limbs: int
    scales: tuple[float, ...]
    scale: float
    babies: tuple[tuple[int, int], ...]
    outputs: tuple[tuple[Giant, ...], ...]
    biases: tuple[U64 | None, ...]
    folds: tuple[int, ...] = field(default=())

    @property
    def nbytes(self) -> int:
        """Memory of the diagonals."""
        return sum(g.diagonals.nbytes for o in self.outputs for g in o)


def prepare(
    arithmetic: Arithmetic,
    steps: Diagonals,
    values: Values,
    biases: Sequence[Values | None],
    *,
    limbs: int,
    scales: Sequence[float],
    scale: float,
) -> Prepared:
    """Encode the diagonals of a matrix whose results are to have exactly the scale asked for.

    Parameters
    ----------
    arithmetic : Arithmetic
        Of the session.
    steps : Diagonals
        Which there are; as in the plan.
    values : ndarray of float64, shape (count, S)
        The diagonals in that order, each rotated back by its giant step.
    biases : sequence of ndarray of float64, shape (S,), or None
        One an output ciphertext, added after the folds.
    limbs : int
        Of all inputs.
    scales : sequence of float
        Of each input ciphertext.
    scale : float
        Of all results, at ``limbs - 1``.

    Returns
    -------
    Prepared
        For :func:`product`.
    """
    if limbs < 2:
        raise PrecisionError("a linear step needs two limbs")
    slots = arithmetic.slots
    pairs, row = np.unique(steps.input * slots + steps.baby, return_inverse=True)
    wide = scale * arithmetic.primes[limbs - 1]
    basis = arithmetic.extended(limbs)
    diagonals = np.empty((steps.count, limbs + 1, arithmetic.n), dtype=np.uint64)
    for i in range(steps.count):
        diagonals[i] = arithmetic.encode(values[i], wide / scales[steps.input[i]], basis)
    outputs: list[list[Giant]] = [[] for _ in biases]
    group = steps.output * slots + steps.giant
    for first in np.flatnonzero(np.diff(group, prepend=-1)):
        last = int(np.searchsorted(group, group[first], side="right"))
        o, giant = divmod(int(group[first]), slots)
        outputs[o].append(Giant(giant, _rows(row[first:last]), diagonals[first:last]))
    below = arithmetic.data(limbs - 1)
    return Prepared(
        limbs,
        tuple(scales),
        scale,
        tuple((int(p) // slots, int(p) % slots) for p in pairs),
        tuple(tuple(o) for o in outputs),
        tuple(None if b is None else arithmetic.encode(b, scale, below) for b in biases),
        steps.folds,
    )


def product(arithmetic: Arithmetic, inputs: Sequence[Ciphertext], prepared: Prepared) -> list[Ciphertext]:
    """``sum_k W_k x_k + b``, one limb below the inputs.

    Parameters
    ----------
    arithmetic : Arithmetic
        With the Galois keys of all steps.
    inputs : sequence of Ciphertext
        One a source, of the level and the scales that were prepared for.
    prepared : Prepared
        The matrix.

    Returns
    -------
    list of Ciphertext
        One an output.
    """
    for x, scale in zip(inputs, prepared.scales, strict=True):
        if x.limbs != prepared.limbs or x.scale != scale:
            raise PrecisionError("an input has another level or scale than its diagonals were made for")
    table = baby_table(arithmetic, inputs, prepared)
    found = []
    for giants, bias in zip(prepared.outputs, prepared.biases, strict=True):
        y = giant_sum(arithmetic, table, giants, prepared)
        y = arithmetic.rescale(arithmetic.fold(y, prepared.folds), prepared.scale)
        found.append(y if bias is None else arithmetic.add_plain(y, bias))
    return found


def baby_table(arithmetic: Arithmetic, inputs: Sequence[Ciphertext], prepared: Prepared) -> U64:
    """All baby rotations of all inputs, times P, over QP: (babies, 2, limbs + 1, N)."""
    ring, limbs = arithmetic.ring, prepared.limbs
    basis = arithmetic.data(limbs)
    special = arithmetic.primes[-1]
    by_p = np.array([special % q for q in arithmetic.primes[:limbs]], dtype=np.uint64)
    table = np.empty((len(prepared.babies), 2, limbs + 1, arithmetic.n), dtype=np.uint64)
    digits: dict[int, U64] = {}
    lifted: dict[int, U64] = {}
    for i, (source, step) in enumerate(prepared.babies):
        x = inputs[source]
        if source not in lifted:
            lifted[source] = ring.scale(x.data, by_p, basis)
        if step == 0:
            table[i, :, :limbs] = lifted[source]
            table[i, :, limbs] = 0
            continue
        if source not in digits:
            digits[source] = ring.decompose(x.data[1])
        element = arithmetic.element(step)
        switched = ring.key_product(digits[source], arithmetic.key(step), element)
        c0 = ring.automorph(lifted[source][0], element)
        table[i] = switched
        table[i, 0, :limbs] = ring.add(switched[0, :limbs], c0, basis)
    return table


def giant_sum(arithmetic: Arithmetic, table: U64, giants: Sequence[Giant], prepared: Prepared) -> Ciphertext:
    """The sum over giant steps, divided by P at the end; before the rescale."""
    ring, limbs = arithmetic.ring, prepared.limbs
    extended = arithmetic.extended(limbs)
    total: U64 | None = None
    for giant in giants:
        part = ring.multiply_sum(table[giant.rows], giant.diagonals, extended)
        if giant.step:
            element = arithmetic.element(giant.step)
            digits = ring.decompose(ring.mod_down(part[1]))
            switched = ring.key_product(digits, arithmetic.key(giant.step), element)
            switched[0] = ring.add(switched[0], ring.automorph(part[0], element), extended)
            part = switched
        total = part if total is None else ring.add(total, part, extended)
    if total is None:  # a matrix without a structural weight
        total = np.zeros((2, limbs + 1, arithmetic.n), dtype=np.uint64)
    return Ciphertext(ring.mod_down(total), prepared.scale * arithmetic.primes[limbs - 1])


def _rows(rows: npt.NDArray[np.intp]) -> slice | npt.NDArray[np.intp]:
    if np.array_equal(rows, np.arange(rows[0], rows[0] + rows.size)):
        return slice(int(rows[0]), int(rows[0]) + rows.size)
    return rows
