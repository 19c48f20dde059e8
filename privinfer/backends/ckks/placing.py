"""Layouts and diagonals of all values of a circuit, and what a run is estimated to cost.

Segment by segment, in the order they are needed: each takes the layout that is cheapest for itself and, at a
glance, for the segments that its activation goes into. Factors of a product have to lie alike, so the second
takes the places of the first.
"""

from __future__ import annotations

from privinfer.backends.ckks.affine import Activation, Circuit, Holding, Matrix, Multiplication, Showing
from privinfer.backends.ckks.diagonals import Costs, Diagonals, choose, diagonalise, ranked, sample
from privinfer.backends.ckks.layout import Layout, input_layout
from privinfer.backends.ckks.schedule import Operation, Schedule, relaid
from privinfer.protocols.ckks.parameters import Parameters


class Placing:
    """Layouts and diagonals.

    Parameters
    ----------
    circuit : Circuit
        Structure of a model.
    made_by : dict of str to Operation
        Its values.
    slots : int
        S.
    costs : Costs
        At the ring and the limbs that a linear step usually has.

    Attributes
    ----------
    layouts : dict of str to Layout
        Of every value.
    diagonals : dict of str to Diagonals
        Of every linear step.
    steps : set of int
        Rotations that need a Galois key so far.
    """

    def __init__(self, circuit: Circuit, made_by: dict[str, Operation], slots: int, costs: Costs) -> None:
        self.circuit, self.costs, self.slots = circuit, costs, slots
        self.made_by = made_by
        self.layouts: dict[str, Layout] = {}
        self.diagonals: dict[str, Diagonals] = {}
        self.steps: set[int] = set()
        self._moved = relaid(circuit)
        self._samples: dict[tuple[str, str], Matrix] = {}
        for name, op in made_by.items():
            if op.kind == "input":
                self.layouts[name] = input_layout(circuit.sources[name], slots)
        for step in circuit.steps:
            match step:
                case Activation() if step.name in made_by:
                    self.layouts[step.name] = self._held(step.argument, step.name)
                case Multiplication() if step.name in made_by:
                    first, second = step.first, step.second
                    if self._is_direct(second) and not self._is_direct(first):
                        first, second = second, first
                    layout = self._held(first, step.name)
                    self._held(second, step.name, layout)
                    self.layouts[step.name] = layout
                case Holding() if step.name in made_by:
                    self._held(step.name, step.name)
                case Showing():
                    self._held(step.shown, None)

    def _is_direct(self, segment: str) -> bool:
        return self.circuit.segments[segment].direct is not None and segment not in self._moved

    def _parts(self, segment: str) -> tuple[list[str], list[Matrix]]:
        parts = self.circuit.segments[segment].value.parts
        return list(parts), list(parts.values())

    def _held(self, name: str, source: str | None, forced: Layout | None = None) -> Layout:
        """Layout of the value that holds a segment; `source` is what becomes of it."""
        if name in self.layouts:
            return self.layouts[name]
        segment = self.circuit.segments[name]
        if segment.direct and name not in self._moved:
            return self.layouts[segment.direct]
        names, matrices = self._parts(name)
        layouts = [self.layouts[k] for k in names]
        if forced is not None:
            plan = diagonalise(layouts, forced, matrices, self.costs, self.steps)
        else:
            shapes = [self.circuit.sources[k] for k in names]
            after = [] if source is None else self._after(source)

            def ahead(layout: Layout) -> float:
                return sum(self._glance(s, str(source), layout) for s in after)

            shape = segment.value.shape
            plan = choose(shape, layouts, shapes, matrices, self.costs, self.steps, ahead if after else None)
        self.steps |= plan.rotations
        self.layouts[name], self.diagonals[name] = plan.result, plan
        return plan.result

    def _after(self, source: str) -> list[str]:
        return [
            name
            for name, segment in self.circuit.segments.items()
            if source in segment.value.parts and name in self.made_by
        ]

    def _glance(self, name: str, source: str, layout: Layout) -> float:
        """About what a segment costs with this source at such places, as if it had no other."""
        value, shape = self.circuit.segments[name].value, self.circuit.sources[source]
        if (name, source) not in self._samples:
            self._samples[name, source] = sample(value.parts[source])
        m = self._samples[name, source]
        tried = ranked(value.shape, [layout], [shape], [m], self.costs, self.steps, glance=True)
        return min(cost for cost, _ in tried)


def price(
    circuit: Circuit,
    made_by: dict[str, Operation],
    placed: Placing,
    p: Parameters,
    s: Schedule,
    costs: Costs,
) -> float:
    """Milliseconds a row."""
    degrees = {x.name: len(x.coefficients) - 1 for x in circuit.steps if isinstance(x, Activation)}
    total = s.rounds * costs.round
    for name, op in made_by.items():
        at, count = costs.at(p.n, s.start[name]), placed.layouts[name].ciphertexts
        if op.kind == "linear":
            total += placed.diagonals[name].cost(at)
        elif op.kind == "activation":
            total += count * at.product * products(degrees[name])
        elif op.kind == "product":
            total += count * at.product
        if name in s.refreshed:
            total += count * costs.at(p.n, s.used[name]).refresh
    return total


def products(degree: int) -> int:
    """Products of ciphertexts in a polynomial: doublings, and those of ``p = q T_m + r``."""

    def joined(d: int) -> int:
        if d < 2:
            return 0
        m = 1 << (d.bit_length() - 1)
        return joined(m - 1) + (1 + joined(d - m) if d > m else 0)

    return max(0, degree.bit_length() - 1) + joined(degree)
