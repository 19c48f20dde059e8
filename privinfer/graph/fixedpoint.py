"""The graph as a straight line of fixed-point steps: which ring and which scale each value lives in.

A value v with `frac` fractional bits is the integer round(v 2**frac) in Z_2^64 ("wide") or in Z_2^n
("narrow", n public). Bilinear steps need wide values and give narrow ones, because the opening behind
them truncates; comparison takes narrow values and gives wide ones. Everything else keeps its ring.
Where a value is needed in the other ring a step is put in: :class:`Extend` costs one round,
:class:`Truncate` nothing. The program depends on the public architecture alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privinfer.graph import ir, reference

WIDE = 64
MAX_WEIGHT_BITS = 32
MIN_WEIGHT_BITS = 12
CONSTANT_BITS = 16


@dataclass(frozen=True, slots=True)
class Type:
    """Ring, scale and per-sample shape of a value."""

    shape: ir.Shape
    bits: int
    frac: int

    @property
    def wide(self) -> bool:
        """Whether the value lives in Z_2^64."""
        return self.bits == WIDE

    @property
    def size(self) -> int:
        """Elements per sample."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Source:
    """A named input, wide."""

    input: str


@dataclass(frozen=True, slots=True)
class Bilinear:
    """``trunc(x W + b)``: weights carry `weight_frac` fractional bits, the product loses `shift` of them.

    With a shift of 0 the product stays wide, and an exact :class:`Truncate` follows. `hops`: one-way messages
    that the product takes where the model owner computes it on ciphertexts; 0 where evaluators do.
    """

    op: ir.Linear | ir.Conv2d | ir.Scale
    weight_frac: int
    shift: int
    hops: int = 0


@dataclass(frozen=True, slots=True)
class Rectify:
    """ReLU of a narrow value, as a wide one; `blinded` compares with the helper online."""

    blinded: bool = False


@dataclass(frozen=True, slots=True)
class Extend:
    """The same number, narrow to wide."""


@dataclass(frozen=True, slots=True)
class Truncate:
    """Drop `shift` fractional bits, wide to narrow; with 0 only the ring changes.

    Not `exact`: free, but the last place depends on the mask. `exact`: two rounds, rounds half up; may also
    make a narrow value narrower by as many bits.
    """

    shift: int
    exact: bool = False


@dataclass(frozen=True, slots=True)
class Pieces:
    """Exact piecewise affine function of a narrow value x.

    It is

        y = offset + slope x + sum_k [x >= b_k] (jump_k + bend_k (x - b_k))

    then `shift` fractional bits are dropped. With f the input's fractional bits: `breaks` count 2**-f,
    `slope` and `bends` 2**-g, `offset` and `jumps` 2**-(f + g). The result is narrow, or wide with a shift
    of 0. Needs every ``|x - b_k|`` below 2**(n - 1); with a slope, where more than n bits are kept or
    dropped, ``|x|`` below 2**(n - 2) too. `exact` says that no rounding went into the integers.
    """

    breaks: tuple[int, ...]
    jumps: tuple[int, ...]
    bends: tuple[int, ...]
    slope: int
    offset: int
    shift: int
    exact: bool = False

    @property
    def clamps(self) -> bool:
        """Whether it is the nearest value between two breaks."""
        flat = self.slope == self.shift == 0 and not any(self.jumps)
        return flat and self.bends == (1, -1) and self.offset == self.breaks[0] <= self.breaks[1]


@dataclass(frozen=True, slots=True)
class Table:
    """Piecewise polynomial of a narrow value X (an integer), by one lookup of its mask.

    With Y = X - low, u = Y >> step_bits or one more (which of them depends on the mask), and
    t = Y - (u << step_bits): y = sum_k c_k[u] t**k, with ``c_k[u] = coefficients[k * 2**cell_bits + u]``,
    then `shift` fractional bits are dropped; with a shift of 0 the result is wide. The caller sees to it
    that 0 <= Y < (2**cell_bits - 1) << step_bits.
    """

    low: int
    step_bits: int
    cell_bits: int
    degree: int
    coefficients: tuple[int, ...]
    shift: int
    key: str = ""
    high: int = 0


@dataclass(frozen=True, slots=True)
class Product:
    """Product of two secret wide values, then `shift` fractional bits are dropped (0: it stays wide).

    `matmul`: (..., m, k) by (..., k, n) with equal leading axes; otherwise elementwise, of one shape.
    """

    matmul: bool
    shift: int


@dataclass(frozen=True, slots=True)
class Larger:
    """Of each pair of neighbours along the first axis the one whose channel 0 is larger, narrow.

    (2 h, c, ...) becomes (h, c, ...): out[i] = in[2 i] if in[2 i, 0] >= in[2 i + 1, 0] else in[2 i + 1],
    elementwise behind the channels; what the other channels hold goes along.
    """


@dataclass(frozen=True, slots=True)
class Offset:
    """Sum with public integers, to be broadcast as in :class:`Times`; the mask stays."""

    shape: ir.Shape
    values: tuple[int, ...]

    def array(self) -> npt.NDArray[np.uint64]:
        """The integers mod 2**64."""
        return np.array([v % 2**64 for v in self.values], dtype=np.uint64).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Pick:
    """Entries of one axis (1: the first after the batch) in any order and number; -1 stands for zero."""

    axis: int
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Total:
    """Sum over one axis, which goes."""

    axis: int


@dataclass(frozen=True, slots=True)
class SumPool:
    """Sum over windows; the divisor sits in the scale or in a :class:`Times` behind it."""

    op: ir.AvgPool2d


@dataclass(frozen=True, slots=True)
class Times:
    """Product with public integers, one for all (shape ()) or one a position of the last axes.

    `exact` says that no rounding went into the integers.
    """

    shape: ir.Shape
    values: tuple[int, ...]
    exact: bool

    def array(self) -> npt.NDArray[np.uint64]:
        """The integers mod 2**64, to be broadcast."""
        return np.array([v % 2**64 for v in self.values], dtype=np.uint64).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class Plus:
    """Sum of two values of one ring and scale."""


@dataclass(frozen=True, slots=True)
class Join:
    """Concatenation of values of one ring and scale."""

    axis: int


@dataclass(frozen=True, slots=True)
class Shape:
    """The same values in another shape."""

    to: ir.Shape


@dataclass(frozen=True, slots=True)
class Permute:
    """The same values with axes in another order."""

    order: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reveal:
    """A named output, shown to its receiver."""

    output: str


Operation = (
    Source
    | Bilinear
    | Rectify
    | Extend
    | Truncate
    | Pieces
    | Table
    | Product
    | Larger
    | Offset
    | Pick
    | Total
    | SumPool
    | Times
    | Plus
    | Join
    | Shape
    | Permute
    | Reveal
)
LOCAL = (SumPool, Times, Plus, Join, Shape, Permute, Pick, Total)


@dataclass(frozen=True, slots=True)
class Claim:
    """What is known of a value from how it was made, where following each step would say less.

    Values lie in [low, high]. They stray by at most `own`, plus `gain` times what the values of step
    `source` stray; `source` is -1 where nothing is claimed of errors.
    """

    low: float
    high: float
    source: int = -1
    gain: float = 0.0
    own: float = 0.0


@dataclass(frozen=True, slots=True)
class Step:
    """One step: its index in the program names its value; `node` is the graph's node it comes from."""

    index: int
    operation: Operation
    inputs: tuple[int, ...]
    type: Type
    node: str
    claim: Claim | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """The steps in an order in which every input is ready."""

    steps: tuple[Step, ...]
    precision: ir.Precision

    def sources(self) -> list[Step]:
        """Steps that are inputs."""
        return [s for s in self.steps if isinstance(s.operation, Source)]

    def bilinear(self) -> list[tuple[Step, Bilinear]]:
        """Steps that have weights."""
        return [(s, s.operation) for s in self.steps if isinstance(s.operation, Bilinear)]

    def reveals(self) -> list[tuple[Step, Reveal]]:
        """Steps that are outputs."""
        return [(s, s.operation) for s in self.steps if isinstance(s.operation, Reveal)]


def apply_local(step: Step, xs: list[npt.NDArray[np.uint64]]) -> npt.NDArray[np.uint64]:
    """One of the LOCAL operations on integers mod 2**bits, batch first.

    All of them are linear over the integers, so the same code serves values, masked values and shares.
    """
    x = xs[0]
    match step.operation:
        case SumPool(op):
            y = reference.windows(x, op.kernel, op.stride, op.padding).sum(axis=(4, 5), dtype=np.uint64)
        case Times():
            y = x * step.operation.array()
        case Plus():
            y = x + xs[1]
        case Join(axis):
            y = np.concatenate(xs, axis=axis)
        case Shape(to):
            y = x.reshape(x.shape[0], *to)
        case Permute(order):
            y = x.transpose(0, *order)
        case Pick(axis, indices):
            y = reference.pick(x, axis, indices)
        case Total(axis):
            y = x.sum(axis=axis, dtype=np.uint64)
        case _:
            raise TypeError(f"{type(step.operation).__name__} is not local")
    return np.ascontiguousarray(low_bits(y, step.type.bits))


def low_bits(x: npt.NDArray[np.uint64], bits: int) -> npt.NDArray[np.uint64]:
    """``x mod 2**bits``."""
    return x if bits == WIDE else x & np.uint64((1 << bits) - 1)


def encode(values: npt.NDArray[np.float64], frac: int) -> npt.NDArray[np.uint64]:
    """``round(v 2**frac) mod 2**64``; the caller has checked that ``|v| 2**frac < 2**63``."""
    return np.rint(np.ldexp(values, frac)).astype(np.int64).view(np.uint64)


def decode(values: npt.NDArray[np.uint64], kind: Type) -> npt.NDArray[np.float64]:
    """The real numbers that integers mod 2**bits stand for, centred."""
    up = np.uint64(WIDE - kind.bits)
    centred = (values << up).view(np.int64) >> np.int64(WIDE - kind.bits)
    return np.asarray(np.ldexp(centred.astype(np.float64), -kind.frac))
