"""Levels: at how many limbs each step runs, and where the key holders have to refresh a value.

A linear step and a product take one level, a polynomial of degree d takes ceil(log2(d + 1)). Since costs grow
with limbs, every step runs as low as what comes after it allows: levels are counted from the outputs
backwards, and ciphertexts drop limbs before a step rather than after. A value is refreshed where the steps
before it would otherwise need more limbs than there are: right after a linear step, before its activation,
at :data:`REFRESH_LIMBS` limbs. Refreshes that do not wait for each other share a round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from privinfer.backends.ckks.affine import Activation, Circuit, Holding, Multiplication, Showing
from privinfer.errors import PrecisionError

REFRESH_LIMBS: Final = (
    3  # masks have to hide 40 bits more than the message; PROTOCOLS: q_low > 2 (n + 1) max |M|
)
REVEAL_LIMBS: Final = 2  # values and smudging beyond one prime

Kind = Literal["input", "linear", "activation", "product"]


@dataclass(frozen=True, slots=True)
class Operation:
    """What makes a value out of others."""

    kind: Kind
    depth: int
    inputs: tuple[str, ...]
    node: str


@dataclass(frozen=True, slots=True)
class Schedule:
    """Levels of all steps.

    Attributes
    ----------
    start : dict of str to int
        Limbs of the arguments of the step that makes a value; of an input, its own.
    made : dict of str to int
        Limbs of a value as its step leaves it.
    used : dict of str to int
        Limbs that what comes after wants; more than `made` where the value is refreshed.
    refreshed : dict of str to int
        Round of each value that is refreshed, from 0 on.
    before : dict of str to int
        How many rounds have to be over before a value can be made.
    """

    start: dict[str, int] = field(default_factory=dict)
    made: dict[str, int] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    refreshed: dict[str, int] = field(default_factory=dict)
    before: dict[str, int] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """Of refreshes."""
        return max(self.refreshed.values(), default=-1) + 1


def holder_of(circuit: Circuit, segment: str) -> str:
    """Name of the value that holds a segment: a source, where it is nothing but that."""
    if segment in relaid(circuit):
        return segment
    return circuit.segments[segment].direct or segment


def relaid(circuit: Circuit) -> frozenset[str]:
    """Factors that are sources, but may lie elsewhere than the factor they meet: they take a linear step."""
    moved = set()
    activated = {s.name for s in circuit.steps if not isinstance(s, Showing)}
    for step in circuit.steps:
        if isinstance(step, Multiplication):
            first, second = (circuit.segments[s].direct for s in (step.first, step.second))
            if first and second and first != second and {first, second} & activated:
                moved.add(step.second)
    return frozenset(moved)


def operations(circuit: Circuit) -> dict[str, Operation]:
    """Every value of a circuit that an output depends on, in an order in which they can be made."""
    moved = relaid(circuit)
    found: dict[str, Operation] = {
        name: Operation("input", 0, (), name)
        for name in circuit.sources
        if not any(s.name == name for s in circuit.steps)
    }

    def hold(name: str) -> str:
        segment = circuit.segments[name]
        if segment.direct and name not in moved:
            return segment.direct
        found[name] = Operation("linear", 1, tuple(segment.value.parts), segment.node)
        return name

    wanted = []
    for step in circuit.steps:
        match step:
            case Activation():
                held = hold(step.argument)
                found[step.name] = Operation("activation", step.depth, (held,), step.name)
            case Multiplication():
                pair = dict.fromkeys((hold(step.first), hold(step.second)))
                found[step.name] = Operation("product", 1, tuple(pair), step.name)
            case Holding():
                hold(step.name)
            case Showing():
                wanted.append(hold(step.shown))
    needed: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in needed:
            needed.add(name)
            wanted.extend(found[name].inputs)
    return {k: v for k, v in found.items() if k in needed or v.kind == "input"}


def schedule(made_by: Mapping[str, Operation], shown: Iterable[str], levels: int) -> Schedule:
    """Lowest levels, with as few refreshes as `levels` data limbs allow.

    Parameters
    ----------
    made_by : mapping of str to Operation
        From :func:`operations`.
    shown : iterable of str
        Values that outputs show.
    levels : int
        Data limbs of the parameters.

    Raises
    ------
    PrecisionError
        Some node is deeper than the parameters allow.
    """
    s = Schedule()
    for name in shown:
        s.used[name] = REVEAL_LIMBS
    refreshed = []
    for name, op in reversed(list(made_by.items())):
        used = s.used.get(name, REVEAL_LIMBS)
        fits = used <= levels
        if op.kind == "linear":
            short = any(used + 1 + made_by[k].depth > levels for k in op.inputs)
        else:
            short = op.kind != "input" and used + op.depth > levels
        made = min(used, REFRESH_LIMBS) if short else used
        start = made + op.depth
        if not fits or start > levels:
            raise PrecisionError(
                f"node {op.node!r} needs {max(used, start)} limbs; the parameters have {levels}",
                hint="a polynomial of lower degree, or a larger ring",
            )
        if made != used:
            refreshed.append(name)
        s.start[name], s.made[name], s.used[name] = start, made, used
        for k in op.inputs:
            s.used[k] = max(s.used.get(k, 0), start)
    held = set(refreshed)
    for name, op in made_by.items():
        s.before[name] = max((s.before[k] + (k in held) for k in op.inputs), default=0)
        if name in held:
            s.refreshed[name] = s.before[name]
    return s
