"""What each layer of a session costs, from the formulas of the steps it became."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from privinfer.backends.base import Network
from privinfer.backends.mpc import roles
from privinfer.graph import ir
from privinfer.graph.lower import compile_program


@dataclass(frozen=True, slots=True)
class Layer:
    """One node of the graph.

    Attributes
    ----------
    node : str
    kinds : tuple of str
        Interactive steps it became.
    rounds : int
        One-way messages if it stood alone.
    dealt, online : int
        Bytes of all parties together, offline and online; inputs, outputs and weights are not in it.
    """

    node: str
    kinds: tuple[str, ...]
    rounds: int
    dealt: int
    online: int


def layers(
    architecture: ir.Architecture, network: Network, batch: int, *, exact: bool = False
) -> list[Layer]:
    """Cost of each node where evaluators and a helper compute, in the order of the program.

    Parameters
    ----------
    architecture : Architecture
    network : Network
        Decides between the two comparisons.
    batch : int
        Rows, in one chunk.
    exact : bool
        Truncation is exact, as where a receiver computes.
    """
    program = roles.choose(compile_program(architecture, exact=exact), network, batch)
    found: dict[str, list[tuple[str, int, int, int]]] = {}
    for step in program.steps:
        cost = roles.step_cost(program, step, batch)
        online = 2 * cost.opened + 2 * cost.asked + sum(cost.answered)
        if cost.rounds or sum(cost.dealt):
            kind = type(step.operation).__name__.lower()
            found.setdefault(step.node, []).append((kind, cost.rounds, sum(cost.dealt), online))
    return [_layer(node, steps) for node, steps in found.items()]


def _layer(node: str, steps: Iterable[tuple[str, int, int, int]]) -> Layer:
    kinds, rounds, dealt, online = zip(*steps, strict=True)
    return Layer(node, tuple(dict.fromkeys(kinds)), sum(rounds), sum(dealt), sum(online))
