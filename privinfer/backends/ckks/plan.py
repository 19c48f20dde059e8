"""The plan: everything public about a run under encryption, the same at every party.

It depends on the architecture, the number of key holders and the threshold alone: ring and levels, packings,
steps and their levels, rotations, refreshes, sizes of messages. Weights decide nothing in it;
:func:`weights` puts a model's weights where the plan wants them.

Scales: every value is held at the scale 2**50 exactly; linear steps and polynomials aim their constants so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import cbor2

from privinfer.backends.ckks.affine import Activation, Circuit, Showing, trace
from privinfer.backends.ckks.diagonals import COSTS, NOMINAL_LIMBS, Costs, Diagonals, diagonal_values
from privinfer.backends.ckks.layout import Layout, Values
from privinfer.backends.ckks.placing import Placing, price
from privinfer.backends.ckks.schedule import (
    REFRESH_LIMBS,
    Operation,
    Schedule,
    holder_of,
    operations,
    schedule,
)
from privinfer.errors import ConfigError, PrecisionError
from privinfer.graph import ir
from privinfer.protocols.ckks import masks, smudging
from privinfer.protocols.ckks.parameters import PRIME_BITS, SCALE, Parameters, most_levels
from privinfer.protocols.ckks.refresh import Span
from privinfer.protocols.ckks.smudging import Smudging

RINGS: Final = (8192, 16384, 32768)
OUTPUT_ERROR: Final = 2.0**-11  # standard deviation of an opened slot that smudging may cause
RANGE_MARGIN: Final = 2.0  # an argument of a polynomial is promised to be within 1; masks hide up to this


# -- steps -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Source:
    """An input as its owner encrypts it."""

    name: str
    shape: ir.Shape
    layout: Layout
    level: int
    scale: float = SCALE

    @property
    def ciphertexts(self) -> int:
        """A row."""
        return self.layout.ciphertexts


@dataclass(frozen=True, slots=True)
class Linear:
    """``name = sum_k W_k input_k + b``; `level` is that of the inputs, the result has one limb less."""

    name: str
    inputs: tuple[str, ...]
    level: int
    node: str


@dataclass(frozen=True, slots=True)
class Activate:
    """Chebyshev polynomial of `argument` at `level` limbs; the result has `depth` less."""

    name: str
    argument: str
    coefficients: tuple[float, ...]
    level: int
    depth: int


@dataclass(frozen=True, slots=True)
class Product:
    """``name = first * second`` at `level` limbs; the result has one less."""

    name: str
    first: str
    second: str
    level: int


@dataclass(frozen=True, slots=True)
class Refreshed:
    """A value that comes back with more limbs: from ``span.low`` to ``span.high``."""

    name: str
    ciphertexts: int
    span: Span


@dataclass(frozen=True, slots=True)
class Refresh:
    """A round: all `values` go to the key holders together."""

    number: int
    values: tuple[Refreshed, ...]


@dataclass(frozen=True, slots=True)
class Opened:
    """An output as its receiver gets it: `value` at `level` limbs, switched to the receiver's key."""

    name: str
    value: str
    shape: ir.Shape
    layout: Layout
    level: int
    smudging: Smudging
    scale: float = SCALE

    @property
    def ciphertexts(self) -> int:
        """A row."""
        return self.layout.ciphertexts


Step = Source | Linear | Activate | Product | Refresh | Opened


class Traffic(NamedTuple):
    """Bytes that one party of a kind sends one of another, a row."""

    phase: str
    sender: str
    receiver: str
    size: int


class Weights(NamedTuple):
    """A linear step's constants: diagonals (count, S) rotated back by their giants, bias (ciphertexts, S)."""

    diagonals: Values
    bias: Values | None


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What every party computes from the architecture.

    Attributes
    ----------
    architecture : str
        Its digest.
    holders, threshold : int
        n and t.
    parameters : Parameters
        Ring and levels.
    linear_levels : int
        Most limbs of a linear step: all that Galois keys need.
    steps : tuple of Step
        In order: sources, then what is computed, refreshes between, outputs last.
    layouts : dict of str to Layout
        Of every value.
    levels : dict of str to int
        Limbs of every value once it is made, and refreshed if it is.
    diagonals : dict of str to Diagonals
        Of every linear step.
    seconds : float
        Estimated, for a row, on the machine the cost model was made on.
    """

    architecture: str
    holders: int
    threshold: int
    parameters: Parameters
    linear_levels: int
    steps: tuple[Step, ...]
    layouts: dict[str, Layout]
    levels: dict[str, int]
    diagonals: dict[str, Diagonals]
    seconds: float

    @property
    def linear_parameters(self) -> Parameters:
        """Of the Galois keys."""
        return dataclasses.replace(self.parameters, levels=self.linear_levels)

    @property
    def inputs(self) -> tuple[Source, ...]:
        """All inputs."""
        return tuple(s for s in self.steps if isinstance(s, Source))

    @property
    def outputs(self) -> tuple[Opened, ...]:
        """All outputs."""
        return tuple(s for s in self.steps if isinstance(s, Opened))

    @property
    def refreshes(self) -> tuple[tuple[Refreshed, ...], ...]:
        """Rounds of refreshes."""
        return tuple(s.values for s in self.steps if isinstance(s, Refresh))

    @property
    def relinearises(self) -> bool:
        """Whether a relinearisation key is needed."""
        return any(isinstance(s, Activate | Product) for s in self.steps)

    @property
    def rotations(self) -> tuple[int, ...]:
        """Steps that need a Galois key, ascending."""
        return tuple(sorted(frozenset[int]().union(*(d.rotations for d in self.diagonals.values()))))

    @property
    def galois_elements(self) -> tuple[int, ...]:
        """3**step mod 2N of every rotation."""
        return tuple(pow(3, r, 2 * self.parameters.n) for r in self.rotations)

    @property
    def encoded_bytes(self) -> int:
        """Memory of all encoded diagonals at the model owner: N numbers for each limb and for P."""
        steps = (s for s in self.steps if isinstance(s, Linear))
        return sum(self.diagonals[s.name].count * (s.level + 1) * 8 * self.parameters.n for s in steps)

    def traffic(self) -> list[Traffic]:
        """Bytes by phase; the bulk of the protocols' messages, headers and commitments not counted."""
        p, few, word = self.parameters, self.linear_parameters, 8 * self.parameters.n
        found = [Traffic("keys", "holder", "each other witness", p.limbs * word)]
        if self.relinearises:
            digits = p.digits * p.limbs * word
            found.append(Traffic("keys", "holder", "model owner", 3 * digits))
            found.append(Traffic("keys", "model owner", "each holder", 2 * digits))
        galois = len(self.rotations) * few.digits * few.limbs * word
        found.append(Traffic("keys", "holder", "model owner", galois))
        if self.threshold < self.holders:
            found.append(Traffic("keys", "holder", "each other holder", p.limbs * word))
        for s in self.inputs:
            size = 2 * s.level * s.ciphertexts * word
            found.append(Traffic("inputs", f"owner of {s.name}", "model owner", size))
        for k, values in enumerate(self.refreshes):
            asked = sum(v.ciphertexts * v.span.low for v in values) * word
            answered = sum(v.ciphertexts * (v.span.low + v.span.high) for v in values) * word
            found.append(Traffic(f"refresh {k + 1}", "model owner", "each holder", asked))
            found.append(Traffic(f"refresh {k + 1}", "holder", "model owner", answered))
        for o in self.outputs:
            size = o.level * o.ciphertexts * word
            found.append(Traffic("outputs", "model owner", "each holder", size))
            found.append(Traffic("outputs", "holder", "model owner", 2 * size))
            found.append(Traffic("outputs", "model owner", f"receiver of {o.name}", 2 * size))
        return found

    def digest(self) -> str:
        """SHA-256 of all that is public, in hex: parties with one digest compute one thing."""
        content = [
            "privinfer.ckks.plan/1",
            [self.architecture, self.holders, self.threshold, self.linear_levels],
            self.parameters.digest(),
            [[type(s).__name__, *map(_plain, _fields(s))] for s in self.steps],
            sorted((name, layout.public()) for name, layout in self.layouts.items()),
            sorted(self.levels.items()),
            sorted((name, d.public()) for name, d in self.diagonals.items()),
        ]
        return hashlib.sha256(cbor2.dumps(content, canonical=True)).hexdigest()

    def describe(self) -> list[str]:
        """A line a linear step, and what they come to."""
        lines = []
        for s in self.steps:
            if isinstance(s, Linear):
                d = self.diagonals[s.name]
                ms = d.cost(COSTS.at(self.parameters.n, s.level))
                lines.append(
                    f"{s.node}: {d.count} diagonals, {d.babies} + {d.giants} rotations, "
                    f"{len(d.folds) * d.result.ciphertexts} folds at {s.level} limbs, {ms:.0f} ms"
                )
        lines.append(
            f"N = {self.parameters.n}, {self.parameters.levels} levels, {len(self.rotations)} rotation keys, "
            f"{len(self.refreshes)} refresh rounds, {self.encoded_bytes >> 20} MiB of diagonals, "
            f"about {self.seconds:.2f} s a row"
        )
        return lines


def _fields(step: Step) -> list[object]:
    return [getattr(step, f.name) for f in dataclasses.fields(step)]


def _plain(value: object) -> object:
    match value:
        case Layout():
            return value.public()
        case Span() | Smudging() | Refreshed():
            return [_plain(getattr(value, f.name)) for f in dataclasses.fields(value)]
        case tuple():
            return [_plain(v) for v in value]
    return value


# -- making one ------------------------------------------------------------------------------------


def make_plan(
    architecture: ir.Architecture,
    holders: int,
    threshold: int,
    *,
    parameters: Parameters | None = None,
    costs: Costs = COSTS,
    output_error: float = OUTPUT_ERROR,
) -> Plan:
    """Plan a run.

    Parameters
    ----------
    architecture : Architecture
        The public half of a model.
    holders, threshold : int
        Key holders, and how many of them have to answer.
    parameters : Parameters, optional
        Ring and levels, in place of the cheapest that fit.
    costs : Costs
        Cost model; every party has to take the same.
    output_error : float
        Standard deviation in an output that smudging may cause.

    Raises
    ------
    ModelUnsupported
        Names a node that cannot be computed under encryption.
    PrecisionError
        Names a node that is deeper than the parameters allow, or whose values are too large for a refresh.
    """
    if not 1 <= threshold <= holders:
        raise ConfigError(f"a threshold of {threshold} is not between 1 and the {holders} key holders")
    circuit = trace(architecture)
    made_by = operations(circuit)
    shown = [holder_of(circuit, s.shown) for s in circuit.steps if isinstance(s, Showing)]
    offered = [parameters] if parameters is not None else [
        Parameters(n, levels) for n in RINGS for levels in range(2, most_levels(n) + 1)
    ]  # fmt: skip
    fitting: list[tuple[Parameters, Schedule]] = []
    failure = PrecisionError("no parameters were offered")
    for p in offered:
        try:
            fitting.append((p, schedule(made_by, shown, p.levels)))
        except PrecisionError as e:
            failure = e
    if not fitting:
        raise failure
    # the diagonals of the smallest ring tell which parameters are cheapest: a larger ring needs about as many
    base = fitting[0][0].n
    placed = Placing(circuit, made_by, base // 2, costs.at(base, NOMINAL_LIMBS))
    priced = [(price(circuit, made_by, placed, p, s, costs), k) for k, (p, s) in enumerate(fitting)]
    p, s = fitting[min(priced)[1]]
    if p.n != base:
        placed = Placing(circuit, made_by, p.slots, costs.at(p.n, NOMINAL_LIMBS))
    steps = _steps(architecture, circuit, made_by, placed, p, s, threshold, output_error)
    linear = [s.start[name] for name, op in made_by.items() if op.kind == "linear"]
    return Plan(
        architecture.digest(),
        holders,
        threshold,
        p,
        max(linear, default=1),
        tuple(steps),
        {name: placed.layouts[name] for name in made_by},
        {name: s.used[name] for name in made_by},
        {name: placed.diagonals[name] for name, op in made_by.items() if op.kind == "linear"},
        price(circuit, made_by, placed, p, s, costs) / 1000,
    )


def _steps(
    architecture: ir.Architecture,
    circuit: Circuit,
    made_by: dict[str, Operation],
    placed: Placing,
    p: Parameters,
    s: Schedule,
    threshold: int,
    output_error: float,
) -> Iterator[Step]:
    for given in architecture.inputs:
        yield Source(given.name, given.shape, placed.layouts[given.name], s.used[given.name])
    for number in range(s.rounds + 1):
        for name, op in made_by.items():
            if op.kind != "input" and s.before[name] == number:
                yield _step(circuit, name, op, s)
        round_ = [name for name, when in s.refreshed.items() if when == number]
        if round_:
            values = (_refreshed(circuit, made_by, placed, p, s, name, threshold) for name in round_)
            yield Refresh(number, tuple(values))
    smudge = smudging.choose(p, threshold + 1, output_error)  # the evaluator's own comes on top
    for step in circuit.steps:
        if isinstance(step, Showing):
            held, shape = holder_of(circuit, step.shown), circuit.segments[step.shown].value.shape
            yield Opened(step.name, held, shape, placed.layouts[held], s.used[held], smudge)


def _step(circuit: Circuit, name: str, op: Operation, s: Schedule) -> Step:
    level = s.start[name]
    if op.kind == "linear":
        return Linear(name, op.inputs, level, op.node)
    step = next(x for x in circuit.steps if x.name == name and not isinstance(x, Showing))
    if isinstance(step, Activation):
        return Activate(name, op.inputs[0], step.coefficients, level, step.depth)
    return Product(name, op.inputs[0], op.inputs[-1], level)


def _refreshed(
    circuit: Circuit,
    made_by: dict[str, Operation],
    placed: Placing,
    p: Parameters,
    s: Schedule,
    name: str,
    threshold: int,
) -> Refreshed:
    """A value in a round, its masks checked: log2 Q > 50 + R + 40 + log2 N + log2 (2 (n + 1))."""
    bound = circuit.segments[name].bound if name in circuit.segments else circuit.bounds[name]
    bits = PRIME_BITS + math.ceil(math.log2(max(bound * RANGE_MARGIN, 1.0)))
    if not masks.fits(p, REFRESH_LIMBS, threshold, bits):
        raise PrecisionError(
            f"node {made_by[name].node!r}: its values may reach {bound:.3g}, too large to be refreshed with "
            f"masks of {masks.mask_bits(p, bits)} bits at {REFRESH_LIMBS} limbs",
            hint="fewer comparison bits in the declared precision, or fewer key holders",
        )
    return Refreshed(
        name, placed.layouts[name].ciphertexts, Span(REFRESH_LIMBS, s.used[name], threshold, bits)
    )


# -- weights ---------------------------------------------------------------------------------------


def weights(plan: Plan, model: ir.Model) -> Iterator[tuple[str, Weights]]:
    """Constants of every linear step of a plan, in the plan's order; secret, at the model owner.

    The affine scaling that takes an argument of a polynomial from its range to [-1, 1] is in them.
    """
    if model.architecture.digest() != plan.architecture:
        raise ConfigError("the plan was made for another architecture")
    circuit = trace(model.architecture, model.parameters)
    for step in plan.steps:
        if isinstance(step, Linear):
            value, d = circuit.segments[step.name].value, plan.diagonals[step.name]
            bias = None if value.bias is None else d.result.pack(value.bias)
            yield step.name, Weights(diagonal_values([value.parts[k] for k in step.inputs], d), bias)
