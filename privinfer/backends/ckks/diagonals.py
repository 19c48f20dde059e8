"""A linear segment as diagonals: where its result lies, which rotations it takes, which weights meet there.

Generalised diagonals (Halevi and Shoup, eprint 2018/244): ``y = sum_d diag_d * rot(x, d)``, where slot s of
``rot(x, d)`` holds slot s + d of x. With d = giant + baby (baby step, giant step),

    y = sum_g rot( sum_b rot(diag_{g+b}, -g) * rot(x, b), g ),

so the rotations of x are shared by all giants, and the results of giants by all sources.

*Folding.* Where the result's period p is below the largest period F among its sources, output i is the sum
over all slots congruent to its own modulo p: ``y += rot(y, p); y += rot(y, 2p); ..`` up to F / 2. These sums
are over whole cosets, so every slot ends with a clean number, or with zero. A diagonal then counts modulo
``m = min(p, period of the source)`` only: which of S / m slots does the work is decided by d itself.

*Candidates.* A dense result, i at slot i mod p, for each p; (C, H, W) in blocks; a result of a source's
shape at the source's places; and a (C', H', W') result on a strided subgrid of a source's rows and columns,
its channels on some of the bits of the slot's number that the subgrid leaves free (multiplexed packing, Lee
et al., eprint 2021/1688). The cheapest by the cost model is taken, with a look at what comes after it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from privinfer.backends.ckks.affine import Matrix
from privinfer.backends.ckks.layout import Indices, Layout, Values, grid, input_layout
from privinfer.graph.operators import Shape


@dataclass(frozen=True, slots=True)
class Costs:
    """Milliseconds of the evaluator's operations, at N = 16384 and 5 limbs unless :meth:`at` says else.

    Attributes
    ----------
    baby, giant, diagonal, fold : float
        A hoisted rotation; a rotation of a sum, with its decomposition; a product with an encoded diagonal;
        a rotation and addition.
    digits : float
        Decomposition of an input, once for all its baby steps.
    product : float
        Product of two ciphertexts with relinearisation and rescaling.
    refresh, round : float
        Of a ciphertext, by a key holder and the evaluator; of a round of messages in a fast network.
    key : float
        What a further Galois key is worth avoiding: it is made once a session, by all key holders.
    """

    baby: float = 0.6
    giant: float = 6.0
    diagonal: float = 0.25
    fold: float = 6.0
    digits: float = 3.0
    product: float = 9.0
    refresh: float = 20.0
    round: float = 20.0
    key: float = 1.5

    def at(self, n: int, limbs: int) -> Costs:
        """For another ring degree and number of limbs: switching a key takes limbs (limbs + 1) transforms."""
        ring = n * math.log2(n) / (16384 * 14)
        switch, flat = ring * limbs * (limbs + 1) / 30, ring * (limbs + 1) / 6
        return Costs(
            self.baby * switch,
            self.giant * switch,
            self.diagonal * flat,
            self.fold * switch,
            self.digits * switch,
            self.product * switch,
            self.refresh * flat,
            self.round,
            self.key,
        )


COSTS: Final = Costs()
NOMINAL_LIMBS: Final = 4  # of a linear step between two refreshes: what layouts are chosen for
_MOST_CANDIDATES: Final = 40
_GLANCED: Final = 12
_CLOSER: Final = 6  # candidates whose baby and giant steps are looked for, with what comes after them
_SAMPLE: Final = 30_000  # entries by which candidates are compared; the one chosen is then worked out in full


@dataclass(frozen=True, slots=True, eq=False)
class Diagonals:
    """One linear segment.

    Attributes
    ----------
    sources : tuple of Layout
        Of each source.
    result : Layout
        Of the result, before and after its activation.
    output, input, giant, baby : ndarray of int64, shape (count,)
        Of each diagonal: ciphertext of the result; ciphertext of the inputs, all sources' ciphertexts
        counted on; steps in 0..S-1. Sorted by output, giant, input, baby.
    folds : tuple of int
        Steps of the rotations that are added to every result, in order.
    """

    sources: tuple[Layout, ...]
    result: Layout
    output: Indices
    input: Indices
    giant: Indices
    baby: Indices
    folds: tuple[int, ...]

    @property
    def count(self) -> int:
        """Diagonals."""
        return int(self.output.size)

    @property
    def inputs(self) -> tuple[tuple[int, int], ...]:
        """Source and its ciphertext, of each input."""
        return tuple((k, c) for k, s in enumerate(self.sources) for c in range(s.ciphertexts))

    @property
    def babies(self) -> int:
        """Rotations of inputs."""
        return _distinct(self.input, self.baby, self.result.slots)

    @property
    def giants(self) -> int:
        """Rotations of sums."""
        return _distinct(self.output, self.giant, self.result.slots)

    @property
    def rotations(self) -> frozenset[int]:
        """Steps that need a Galois key."""
        steps = np.unique(np.concatenate([self.giant, self.baby, np.array(self.folds, dtype=np.int64)]))
        return frozenset(int(s) for s in steps if s)

    def cost(self, costs: Costs) -> float:
        """Milliseconds of the segment, with costs at its ring and limbs."""
        return (
            self.babies * costs.baby
            + self.giants * costs.giant
            + self.count * costs.diagonal
            + len(self.folds) * self.result.ciphertexts * costs.fold
            + np.unique(self.input).size * costs.digits
        )

    def public(self) -> list[object]:
        """What a plan's digest covers."""
        steps = np.stack([self.output, self.input, self.giant, self.baby]).astype("<i8").tobytes()
        return [[s.public() for s in self.sources], self.result.public(), steps, list(self.folds)]


def _distinct(where: Indices, step: Indices, slots: int) -> int:
    """Pairs with a step other than 0."""
    keys = where * slots + step
    size = int(where.max(initial=0) + 1) * slots
    if size > 1 << 20:
        return int(np.unique(keys[step != 0]).size)
    flags = np.zeros(size, dtype=bool)
    flags[keys] = True
    flags[::slots] = False
    return int(np.count_nonzero(flags))


# -- diagonals of a given layout -------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """Diagonals before they are split: each is known modulo `modulus` only."""

    output: Indices
    input: Indices
    step: Indices
    modulus: Indices

    @property
    def count(self) -> int:
        """Diagonals."""
        return int(self.output.size)


def _keys(
    source: Layout, result: Layout, m: Matrix, first: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
    """For each entry: ciphertext of the result, input (counted from `first`), step modulo the modulus."""
    modulus = min(result.period, source.period)
    step = (source.position[m.columns] - result.position[m.rows]) & (modulus - 1)
    return result.ciphertext[m.rows], first + source.ciphertext[m.columns], step, modulus


def classes(sources: Sequence[Layout], result: Layout, matrices: Sequence[Matrix]) -> Classes:
    """Which diagonals hold a structural nonzero."""
    found: list[list[Indices]] = []
    first = 0
    for source, m in zip(sources, matrices, strict=True):
        output, given, step, modulus = _keys(source, result, m, first)
        keys = (output * source.ciphertexts + (given - first)) * modulus + step
        size = result.ciphertexts * source.ciphertexts * modulus
        if size <= 8 * keys.size + (1 << 20):
            flags = np.zeros(size, dtype=bool)
            flags[keys] = True
            held = np.nonzero(flags)[0]
        else:
            held = np.unique(keys)
        pair, step = np.divmod(held, modulus)
        output, given = np.divmod(pair, source.ciphertexts)
        found.append([output, first + given, step, np.full(held.size, modulus)])
        first += source.ciphertexts
    return Classes(*(np.concatenate(part) for part in zip(*found, strict=True)))


def folds(sources: Sequence[Layout], result: Layout) -> tuple[int, ...]:
    """Steps of the rotate-and-add after the product."""
    steps, p = [], result.period
    while p < max(s.period for s in sources):
        steps.append(p)
        p *= 2
    return tuple(steps)


def split(
    sources: Sequence[Layout], result: Layout, c: Classes, costs: Costs, known: Collection[int] = ()
) -> Diagonals:
    """Baby and giant steps that cost least.

    Parameters
    ----------
    sources, result
        Layouts.
    c : Classes
        The diagonals.
    costs : Costs
        At the segment's ring and limbs.
    known : collection of int
        Steps there are Galois keys for anyway.
    """
    slots = result.slots
    folded = folds(sources, result)
    free = np.zeros(slots, dtype=bool)
    free[[0, *(s % slots for s in known), *(s % slots for s in folded)]] = True
    had = int(np.count_nonzero(free))
    best: tuple[float, Indices, Indices] = math.inf, c.step, c.step
    for giant, baby in _splits(c, slots):
        b, g = baby % slots, giant % slots
        asked = free.copy()
        asked[b] = asked[g] = True
        price = (
            _distinct(c.input, b, slots) * costs.baby
            + _distinct(c.output, g, slots) * costs.giant
            + (int(np.count_nonzero(asked)) - had) * costs.key
        )
        if price < best[0] - 1e-9:
            best = price, g, b
    _, g, b = best
    order = np.lexsort((b, c.input, g, c.output))
    return Diagonals(tuple(sources), result, c.output[order], c.input[order], g[order], b[order], folded)


def _splits(c: Classes, slots: int) -> Iterator[tuple[Indices, Indices]]:
    """Ways to write each step, modulo its modulus, as giant + baby."""
    centred = np.where(c.step >= c.modulus // 2, c.step - c.modulus, c.step)
    lowest = -int(centred.min(initial=0))
    window = 1
    while window <= slots:
        for offset in dict.fromkeys((0, window // 2, lowest % window)):
            small = (c.step + offset) % window - offset
            large = (c.step - small) % c.modulus
            yield large, small
            yield small, large
        window *= 2


def diagonalise(
    sources: Sequence[Layout],
    result: Layout,
    matrices: Sequence[Matrix],
    costs: Costs,
    known: Collection[int] = (),
) -> Diagonals:
    """Diagonals of matrices whose result lies as given; arguments as of :func:`split`."""
    return split(sources, result, classes(sources, result, matrices), costs, known)


def diagonal_values(matrices: Sequence[Matrix], plan: Diagonals, *, rotated: bool = True) -> Values:
    """Weights on their diagonals.

    Parameters
    ----------
    matrices : sequence of Matrix
        Of each source, with values, of the structure that was planned for.
    plan : Diagonals
        The plan.
    rotated : bool
        Rotate each diagonal back by its giant step, as its product with a baby needs it; otherwise slot s
        holds the weight between input slot s + giant + baby and output slot s.

    Returns
    -------
    ndarray of float64, shape (count, S)
        In the order of the plan.
    """
    slots = plan.result.slots
    found = np.zeros((plan.count, slots))
    span = max(plan.result.period, *(s.period for s in plan.sources))
    modulus = np.array([min(plan.result.period, s.period) for s in plan.sources])
    owner = np.array([k for k, _ in plan.inputs])[plan.input]
    step = (plan.giant + plan.baby) % modulus[owner]
    inputs = len(plan.inputs)
    planned = (plan.output * inputs + plan.input) * slots + step
    order = np.argsort(planned)
    first = 0
    for source, m in zip(plan.sources, matrices, strict=True):
        if m.values is None:
            raise ValueError("a structure has no values")
        output, given, step, _ = _keys(source, plan.result, m, first)
        row = order[np.searchsorted(planned[order], (output * inputs + given) * slots + step)]
        if source.period >= plan.result.period:  # the diagonal's step decides which slot of the coset works
            at = (source.position[m.columns] - plan.giant[row] - plan.baby[row]) % source.period
        else:
            at = plan.result.position[m.rows]
        if rotated:
            at = at + plan.giant[row]
        for k in range(0, slots, span):
            found[row, (at + k) % slots] = m.values
        first += source.ciphertexts
    return found


# -- layouts of results ----------------------------------------------------------------------------


def candidates(shape: Shape, sources: Sequence[Layout], shapes: Sequence[Shape], limit: int) -> list[Layout]:
    """Layouts a segment's result may have, at most about `limit`."""
    slots, size = sources[0].slots, math.prod(shape)
    widest = max(s.period for s in sources)
    found: list[Layout] = []

    def offer(places: npt.ArrayLike, *, all_periods: bool = False) -> None:
        smallest = Layout.at(places, slots)
        found.append(smallest)
        p = smallest.period * 2
        while p <= widest:
            if all_periods or p == widest:
                found.append(Layout.at(places, slots, p))
            p *= 2

    offer(np.arange(size), all_periods=True)
    if len(shape) == 3:
        offer(input_layout(shape, slots).places)
    for source, given in zip(sources, shapes, strict=True):
        if source.size == size:
            found.append(source)
        for places in _strided(shape, source, given, limit):
            offer(places)
    kept: dict[tuple[int, bytes], Layout] = {}
    for layout in found:
        kept.setdefault((layout.period, layout.places.tobytes()), layout)
    return list(kept.values())[: 2 * limit]


def _strided(shape: Shape, source: Layout, given: Shape, limit: int) -> Iterator[Indices]:
    """Places on a subgrid of a source's rows and columns."""
    base = grid(source, given)
    if base is None or len(shape) != 3:
        return
    channels, row, column = base
    y, x = np.ogrid[: shape[1], : shape[2]]
    for down, across in itertools.product(_strides(given[1], shape[1]), _strides(given[2], shape[2])):
        plane = y * (down * row) + x * (across * column)
        if np.unique(plane).size < plane.size:
            continue
        used = int(np.bitwise_or.reduce(plane.reshape(-1)))
        moved = channels - channels[0]
        if shape[0] == given[0] and not (moved & used).any() and moved.min() >= 0:
            yield moved[:, None, None] + plane
        top = max(source.slots.bit_length() - 1, used.bit_length())
        free = [b for b in range(top) if not used >> b & 1]
        need = (shape[0] - 1).bit_length()
        number = np.arange(shape[0])
        for bits in _choices(free, need, top, limit):
            offset = sum(((number >> k & 1) << b for k, b in enumerate(bits)), np.zeros_like(number))
            yield offset[:, None, None] + plane


def _strides(before: int, after: int) -> list[int]:
    if after == 1:
        return [1]
    ratio = before / after
    return sorted({max(1, s) for s in (math.floor(ratio), round(ratio), math.ceil(ratio))})


def _choices(free: list[int], need: int, top: int, limit: int) -> Iterator[tuple[int, ...]]:
    """Bits for the channels: the lowest some and the highest others first, then whatever else."""
    if len(free) < need:
        yield (*free, *range(top, top + need - len(free)))
        return
    mixed = [(*free[:k], *free[len(free) - need + k :]) for k in range(need + 1)]
    others = itertools.islice(itertools.combinations(free, need), limit)
    yield from itertools.islice(dict.fromkeys([*mixed, *others]), limit)


def sample(m: Matrix) -> Matrix:
    """All entries of some rows, the same at everybody: enough to tell good layouts from bad ones."""
    every = -(-m.count // _SAMPLE)
    if every <= 1:
        return m
    kept = (m.rows.astype(np.uint32) * np.uint32(2654435761) >> np.uint32(8)) % np.uint32(every) == 0
    return Matrix(m.rows[kept], m.columns[kept], None)


def ranked(
    shape: Shape,
    sources: Sequence[Layout],
    shapes: Sequence[Shape],
    samples: Sequence[Matrix],
    costs: Costs,
    known: Collection[int] = (),
    *,
    glance: bool = False,
) -> list[tuple[float, Layout]]:
    """Best layouts of a segment's result by what the segment itself about costs, with that cost.

    Parameters
    ----------
    shape : tuple of int
        Of the result.
    sources, shapes, samples : sequence
        Layout, shape and sampled matrix of each source.
    costs : Costs
        At the segment's ring and limbs.
    known : collection of int
        Steps there are Galois keys for anyway.
    glance : bool
        Look at fewer: the cost is all that is wanted, of a step further on.
    """
    offered, closer = (_GLANCED, 2) if glance else (_MOST_CANDIDATES, _CLOSER)
    tried: list[tuple[float, int, Layout, Classes]] = []
    for layout in candidates(shape, sources, shapes, offered):
        c = classes(sources, layout, samples)
        bound = c.count * costs.diagonal + len(folds(sources, layout)) * layout.ciphertexts * costs.fold
        tried.append((bound + 2 * math.sqrt(c.count * costs.baby * costs.giant), len(tried), layout, c))
    tried.sort(key=lambda t: t[:2])
    found = []
    for _, _, layout, c in tried[:closer]:
        plan = split(sources, layout, c, costs, known)
        found.append((plan.cost(costs) + len(plan.rotations.difference(known)) * costs.key, layout))
    return found


def choose(
    shape: Shape,
    sources: Sequence[Layout],
    shapes: Sequence[Shape],
    matrices: Sequence[Matrix],
    costs: Costs,
    known: Collection[int] = (),
    ahead: Callable[[Layout], float] | None = None,
) -> Diagonals:
    """Layout and diagonals of a segment's result that cost least.

    Parameters
    ----------
    shape, sources, shapes, matrices, costs, known
        As of :func:`ranked`, with whole matrices.
    ahead : callable, optional
        What it costs the steps after this one if the result lies so.
    """
    best: tuple[float, Layout] = math.inf, sources[0]
    for own, layout in ranked(shape, sources, shapes, [sample(m) for m in matrices], costs, known):
        price = own + (ahead(layout) if ahead is not None else 0.0)
        if price < best[0] - 1e-9:
            best = price, layout
    return diagonalise(sources, best[1], matrices, costs, known)
