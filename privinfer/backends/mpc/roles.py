"""The roles of the `mpc` backend by name, and what each step of a program costs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from privinfer.backends.base import Network, Table
from privinfer.graph import fixedpoint as fp
from privinfer.protocols.cost import Cost
from privinfer.protocols.mpc import blinded, extend, linear, relu, truncate

E1, E2, HELPER, MODEL_OWNER = "evaluator1", "evaluator2", "helper", "model_owner"
EVALUATORS = (E1, E2)
SEEDS = (1 << 20) - 1  # step number of messages that belong to no step
READY = SEEDS - 1
COMPARE = SEEDS - 2
ROUND = 1 << 19  # online round k is step ROUND + k


def owner(party: str) -> str:
    """Role of a party that owns inputs."""
    return f"owner:{party}"


def receiver(party: str) -> str:
    """Role of a party that receives outputs."""
    return f"receiver:{party}"


def needs_exact(evaluators: Iterable[str], helper: str | None, receivers: Iterable[str]) -> bool:
    """Whether truncation has to be exact: a receiver who computes knows what rounding should hide."""
    return bool({*evaluators, helper} & set(receivers))


def step_cost(program: fp.Program, step: fp.Step, batch: int) -> Cost:
    """Declared rounds and bytes of one step; 0 for what is local."""
    match step.operation:
        case fp.Bilinear():
            return linear.cost(step, batch)
        case fp.Rectify(is_blinded):
            formula = blinded.cost if is_blinded else relu.cost
            return formula(step, program.steps[step.inputs[0]].type.bits, batch)
        case fp.Extend():
            return extend.cost(step, program.steps[step.inputs[0]].type.bits, batch)
        case fp.Truncate() as op:
            return truncate.cost(step, op, batch)
        case _:
            return Cost()


def compile_for(table: Table) -> fp.Program:
    """The program of a session: exact where a receiver takes part in computing."""
    exact = needs_exact((table.party[e] for e in EVALUATORS), table.party[HELPER], table.receivers.values())
    return fp.compile_program(table.architecture, exact=exact)


def _ends(program: fp.Program) -> dict[int, int]:
    """The round after which each value is there."""
    ends: dict[int, int] = {}
    for step in program.steps:
        start = max((ends[i] for i in step.inputs), default=0)
        ends[step.index] = start + step_cost(program, step, 1).rounds
    return ends


def rounds(program: fp.Program) -> int:
    """Online one-way messages while evaluating: the deepest path, whatever its breadth."""
    return max(_ends(program).values(), default=0)


def asking(program: fp.Program) -> list[fp.Step]:
    """Steps that ask the helper, in the order in which both evaluators do."""
    ends = _ends(program)
    asked = [s for s in program.steps if isinstance(s.operation, fp.Rectify) and s.operation.blinded]
    return sorted(asked, key=lambda s: (max(ends[i] for i in s.inputs), s.index))


# What a machine gets through (sealing, copying), however fast its line: seen on two cores.
MACHINE_BYTES = 250e6
HOP_SECONDS = 0.0002


def choose(program: fp.Program, network: Network, batch: int) -> fp.Program:
    """Choose the comparison of each layer: blinded where the bytes it saves outweigh one message more."""

    def better(step: fp.Step) -> bool:
        if network.comparison != "auto":
            return network.comparison == "blinded"
        keys = step_cost(program, step, batch)
        asked = step_cost(program, dataclasses.replace(step, operation=fp.Rectify(True)), batch)
        rate = min(network.bandwidth / 8, MACHINE_BYTES)
        return (keys.total() - asked.total()) / rate > network.round_trip / 2 + HOP_SECONDS

    steps = tuple(
        dataclasses.replace(s, operation=fp.Rectify(better(s))) if isinstance(s.operation, fp.Rectify) else s
        for s in program.steps
    )
    return dataclasses.replace(program, steps=steps)
