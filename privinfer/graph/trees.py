"""Decision trees, all of a forest at once and in a fixed number of rounds.

Where a row goes in a tree is secret, and so are the trees: which feature a node looks at, its threshold,
which node follows, what a leaf says. No path is walked. Instead, for all trees together:

1. a linear layer gives ``(feature - threshold) * gain`` for every inner node,
2. a step at 0 gives the answer of every inner node, 0 or 1,
3. a linear layer counts for every leaf the answers on its path that lead there, less the path's length,
4. a step at -1/2 finds the leaf that is reached: all of its answers do,
5. a linear layer adds up what the reached leaves say.

Public are the number of blocks, of inner nodes in a block and of leaves in a block: trees are packed into
blocks as large as the largest tree and filled up with nodes that lead nowhere. Layer 3 is one matrix a
block, so that its size grows with the forest and not with its square.

Fixed point
-----------
A value x that enters has f = 16 fractional bits, so it is compared as the nearest multiple of 2**-16. A
threshold is put half a unit to the side that its comparison asks for, and differences are four times as
large as the opening's error: every node answers exactly for the x that entered, in the protocols as in the
clear. That is the answer of floating point too, unless x is within a unit of the threshold without being the
same multiple, and there as well for what features are made of: multiples of 2**-10, decimals of up to four
digits, and the threshold itself where neither is as near. A range wider than 1024 makes the unit coarser:
2**-26 of the range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privinfer.errors import ConfigError, ModelUnsupported
from privinfer.graph import ir
from privinfer.graph.build_core import Refused, Value, check_ranges, refuse
from privinfer.graph.build_math import Math

Floats = npt.NDArray[np.float64]

MODES = ("<=", "<", ">=", ">")
TRANSFORMS = ("none", "logistic", "softmax")
FRACTIONAL_BITS = 16
COARSE = 2.0**-10  # features on this grid always get the answer of floating point
DIGITS = 4  # and so do decimals that are no longer
GAIN = 4.0  # half a unit times this is more than the 1.5 last places by which an opening strays
REACH = 2.0**12  # of differences: four times this is what 32-bit comparisons take
MAX_WEIGHTS = 1 << 24  # 128 MiB at each evaluator
TOO_LARGE = "not yet: {} too many weights, replace by trees of fewer leaves (max_depth, max_leaf_nodes)"


@dataclass(frozen=True, eq=False)
class Tree:
    """One decision tree; node 0 is the root.

    Attributes
    ----------
    features : sequence of int
        For each inner node the feature it looks at.
    thresholds : sequence of float
        What the feature is compared with.
    yes, no : sequence of int
        Where the row goes: an inner node k > 0, or ``-1 - k`` for leaf k.
    values : ndarray
        (leaves, outputs): what a leaf adds to the outputs. A tree of one leaf has no inner node.
    modes : str or sequence of str
        ``"<="``, ``"<"``, ``">="`` or ``">"``: the row goes to `yes` where ``feature mode threshold``.
    """

    features: Sequence[int]
    thresholds: Sequence[float]
    yes: Sequence[int]
    no: Sequence[int]
    values: npt.ArrayLike
    modes: str | Sequence[str] = "<="

    def check(self, features: int) -> Floats:
        """Give the leaves' values, or raise ModelUnsupported where this is no tree over `features`."""
        values = np.asarray(self.values, dtype=np.float64)
        count = len(self.features)
        modes = self.mode_list()
        if not len(self.thresholds) == len(self.yes) == len(self.no) == len(modes) == count:
            raise ModelUnsupported("a tree's lists differ in length")
        if values.ndim != 2 or not values.size or not np.isfinite(values).all():
            raise ModelUnsupported("the leaves of a tree need finite values, one for each output")
        if not all(0 <= f < features for f in self.features):
            raise ModelUnsupported(f"a tree looks at a feature beyond {features}")
        if set(modes) - set(MODES):
            raise ModelUnsupported(f"a tree compares by something else than {', '.join(MODES)}")
        if any(map(math.isnan, self.thresholds)):
            raise ModelUnsupported("a threshold of a tree is NaN")
        children = [*self.yes, *self.no] if count else [-1]
        inner = sorted(c for c in children if c >= 0)
        leaves = {-1 - c for c in children if c < 0}
        fits = inner == list(range(1, count)) and leaves == set(range(len(values)))
        if not fits or {k for _, way in self.paths() for k, _ in way} != set(range(count)):
            raise ModelUnsupported("the nodes of a tree do not hang together")
        return values

    def mode_list(self) -> list[str]:
        """The comparison of each inner node."""
        return [self.modes] * len(self.features) if isinstance(self.modes, str) else list(self.modes)

    def paths(self) -> list[tuple[int, list[tuple[int, bool]]]]:
        """Each way to a leaf: the leaf, and for each node on the way whether `yes` is taken."""
        if not len(self.features):
            return [(0, [])]
        found: list[tuple[int, list[tuple[int, bool]]]] = []
        waiting: list[tuple[int, list[tuple[int, bool]]]] = [(0, [])]
        while waiting:
            node, way = waiting.pop()
            if len(way) > len(self.features):
                raise ModelUnsupported("the nodes of a tree run in a circle")
            if node < 0:
                found.append((-1 - node, way))
                continue
            waiting.append((int(self.no[node]), [*way, (node, False)]))
            waiting.append((int(self.yes[node]), [*way, (node, True)]))
        return found


def ensemble(
    trees: Sequence[Tree],
    features: int,
    *,
    base: npt.ArrayLike = 0.0,
    average: bool = False,
    transform: str = "none",
    label: bool = False,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    pad: bool = False,
    input: str = "x",  # noqa: A002 - that is what it names
    output: str = "y",
) -> ir.Model:
    """Make a model of a forest or of boosted trees.

    Parameters
    ----------
    trees : sequence of Tree
        With equally many outputs.
    features : int
        Values of a row.
    base : float or sequence of float
        Added to the outputs.
    average : bool
        Whether outputs are the mean over the trees instead of their sum.
    transform : str
        ``"none"``, ``"logistic"`` or ``"softmax"`` of the outputs.
    label : bool
        Whether there is an output ``"label"`` too: the position of the largest one.
    ranges : mapping, optional
        The range (low, high) of the input by its name.
    pad : bool
        Fill blocks, nodes and leaves up to powers of two, so that their numbers tell less.
    input, output : str
        Names of the input and of the output.

    Returns
    -------
    Model
        To be declared by :func:`privinfer.graph.ranges.declare`.

    Raises
    ------
    ModelUnsupported
        The trees do not fit together or are too large.
    """
    if transform not in TRANSFORMS:
        raise ConfigError(f"unknown transform {transform!r}", hint=f"one of {', '.join(TRANSFORMS)}")
    builder = Math(1, check_ranges(ranges, [input]))
    x = builder.input(input, (1, features))

    def grow() -> list[tuple[str, Value]]:
        y = plant(builder, x, trees, base, average=average, pad=pad)
        label_value = [("label", builder.emit(ir.ArgMax(1), [y]))] if label else []
        return [(output, transformed(builder, y, transform)), *label_value]

    outputs = builder.attempt("trees", "trees", grow)
    return builder.finish(outputs or [], ir.Precision())


def transformed(b: Math, y: Value, transform: str) -> Value:
    """What is done to the scores."""
    if transform == "logistic":
        return b.function(y, "sigmoid")
    return b.emit(ir.Softmax(len(y.shape)), [y]) if transform == "softmax" else y


def plant(
    b: Math,
    x: Value,
    trees: Sequence[Tree],
    base: npt.ArrayLike = 0.0,
    *,
    average: bool = False,
    pad: bool = False,
) -> Value:
    """Add the five layers to a graph.

    Parameters
    ----------
    b : Math
        The builder.
    x : Value
        Shaped (features,).
    trees, base, average, pad
        As in :func:`ensemble`.

    Returns
    -------
    Value
        Shaped (outputs,).
    """
    if len(x.shape) != 1:
        refuse(f"not yet: trees over a value of shape {x.shape}, its features have to lie on one axis")
    if not trees:
        refuse("it holds no tree")
    nodes = max(1, *(len(t.features) for t in trees))
    if nodes * (nodes + 1) > MAX_WEIGHTS:  # before paths as long as that are looked at
        refuse(TOO_LARGE.format(f"a tree of {nodes} nodes needs"))
    try:
        values = [t.check(x.shape[0]) for t in trees]
    except ModelUnsupported as e:
        raise Refused(e.message) from None
    outputs = values[0].shape[1]
    if any(v.shape[1] != outputs for v in values):
        refuse("its trees have different numbers of outputs")
    share = 1.0 / len(trees) if average else 1.0
    bias = np.broadcast_to(np.asarray(base, dtype=np.float64), (outputs,)).copy()
    blocks = _pack([len(t.features) for t in trees])
    leaves = max(sum(len(values[k]) for k in block) for block in blocks)
    count = len(blocks)
    if pad:
        count, nodes, leaves = (1 << (v - 1).bit_length() for v in (count, nodes, leaves))
    if count * nodes * leaves > MAX_WEIGHTS or x.shape[0] * count * nodes > MAX_WEIGHTS:
        refuse(TOO_LARGE.format(f"{count} blocks of {nodes} nodes and {leaves} leaves need"))
    pick, cuts = np.zeros((x.shape[0], count, nodes)), np.full((count, nodes), -1.0)
    path, lengths = np.zeros((count, leaves, nodes)), np.full((count, leaves), -1.0)
    says = np.zeros((count, leaves, outputs))
    gain, unit = scale_of(b.span(x))
    for k, block in enumerate(blocks):
        n = m = 0
        for t in block:
            tree = trees[t]
            modes = tree.mode_list()
            low, high = b.span(x)
            for i, (feature, threshold) in enumerate(zip(tree.features, tree.thresholds, strict=True)):
                at = cut(float(threshold), modes[i], unit)
                if low - unit < at < high + unit:
                    pick[int(feature), k, n + i], cuts[k, n + i] = gain, -gain * at
                else:  # an answer that no value in range changes
                    cuts[k, n + i] = 1.0 if at <= low - unit else -1.0
            for leaf, way in tree.paths():
                lengths[k, m + leaf] = 0.0
                for i, yes in way:
                    # the step answers "no less": that leads to yes for > and >=
                    up = yes == (modes[i] in (">", ">="))
                    path[k, m + leaf, n + i] = 1.0 if up else -1.0
                    lengths[k, m + leaf] -= float(up)
            middle = np.median(values[t], axis=0)  # the rest is smaller, and so are bounds on its sums
            bias += share * middle
            says[k, m : m + len(values[t])] = share * (values[t] - middle)
            n, m = n + len(tree.features), m + len(values[t])
    first = ir.Linear(x.shape[0], count * nodes)
    y = b.emit(first, [x], {"weight": pick.reshape(x.shape[0], -1), "bias": cuts.reshape(-1)})
    y = b.emit(ir.Reshape((count * nodes, 1, 1)), [b.emit(step(0.0), [y])])
    blocked = ir.Conv2d(count * nodes, count * leaves, (1, 1), groups=count)
    matrices = path.reshape(count * leaves, nodes, 1, 1)
    y = b.emit(blocked, [y], {"weight": matrices, "bias": lengths.reshape(-1)})
    y = b.emit(ir.Reshape((count * leaves,)), [b.emit(step(-0.5), [y])])
    last = ir.Linear(count * leaves, outputs)
    return b.emit(last, [y], {"weight": says.reshape(-1, outputs), "bias": bias})


def step(at: float) -> ir.Piecewise:
    """1 from `at` on, 0 below."""
    return ir.Piecewise((at,), (1.0,), (0.0,))


def scale_of(span: tuple[float, float]) -> tuple[float, float]:
    """What differences are multiplied with, and the multiples to which thresholds are exact."""
    width = span[1] - span[0]
    gain = GAIN
    if math.isfinite(width) and width * GAIN > REACH:
        gain = 2.0 ** math.floor(math.log2(REACH / width))
    return gain, 2.0**-FRACTIONAL_BITS * GAIN / gain


def cut(threshold: float, mode: str, unit: float) -> float:
    """Where a step has to be, halfway between multiples of `unit`: at it and above, x is no less.

    No less means ``x > threshold`` for the modes <= and >, and ``x >= threshold`` for < and >=.
    """
    if math.isinf(threshold):
        return threshold
    nearest = float(np.rint(threshold / unit))
    x = _likely(threshold, nearest, unit)
    less = x <= threshold if mode in ("<=", ">") else x < threshold
    return (nearest + (0.5 if less else -0.5)) * unit


def _likely(threshold: float, nearest: float, unit: float) -> float:
    """The feature, of all that become the multiple `nearest`, that has to get the right answer."""
    here = nearest * unit
    if unit >= COARSE or (here / COARSE).is_integer():
        return here
    single = float(np.float32(threshold)) == threshold
    for digits in range(1, DIGITS + 1):
        decimal = round(threshold, digits)
        if float(np.rint(decimal / unit)) == nearest:
            return float(np.float32(decimal)) if single else decimal
    return threshold


def _pack(sizes: Sequence[int]) -> list[list[int]]:
    """Trees in blocks of at most as many inner nodes as the largest has: first fit, largest first."""
    room = max(*sizes, 1)
    blocks: list[list[int]] = []
    free: list[int] = []
    start: dict[int, int] = {}
    for k in sorted(range(len(sizes)), key=lambda k: -sizes[k]):
        size = max(sizes[k], 1)
        at = start.get(size, 0)
        while at < len(blocks) and free[at] < size:
            at += 1
        start[size] = at
        if at == len(blocks):
            blocks.append([])
            free.append(room)
        blocks[at].append(k)
        free[at] -= size
    return blocks
