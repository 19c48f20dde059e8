"""The roles of the `mpc` backend by name, and what each step of a program costs them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from privinfer.backends.base import Network, Table
from privinfer.errors import ConfigError
from privinfer.graph import fixedpoint as fp
from privinfer.graph.lower import compile_program
from privinfer.protocols.cost import Cost
from privinfer.protocols.mpc import (
    blinded,
    encrypted,
    extend,
    inputs,
    larger,
    linear,
    pieces,
    product,
    relu,
    truncate,
)
from privinfer.protocols.mpc import table as lookup

E1, E2, HELPER, MODEL_OWNER = "evaluator1", "evaluator2", "helper", "model_owner"
EVALUATORS = (E1, E2)
SEEDS = (1 << 20) - 1  # step number of messages that belong to no step
READY = SEEDS - 1
COMPARE = SEEDS - 2
ROUND = 1 << 19  # online round k is step ROUND + k
AHEAD = Network("fss")  # what is dealt ahead asks nobody online
CHUNK_BYTES = 512 << 20  # what one chunk of a batch may take at an evaluator


# What a machine gets through (sealing, copying), however fast its line: seen on two cores.
MACHINE_BYTES = 250e6
HOP_SECONDS = 0.0002


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
        case fp.Bilinear() as op:
            if op.hops:
                return encrypted.cost(step, op, program.steps[step.inputs[0]].type.shape, batch)
            return linear.cost(step, batch)
        case fp.Rectify(is_blinded):
            formula = blinded.cost if is_blinded else relu.cost
            return formula(step, program.steps[step.inputs[0]].type.bits, batch)
        case fp.Extend():
            return extend.cost(step, program.steps[step.inputs[0]].type.bits, batch)
        case fp.Truncate() as op:
            return truncate.cost(step, op, batch)
        case fp.Pieces() as op:
            return pieces.cost(step, op, program.steps[step.inputs[0]].type.bits, batch)
        case fp.Table() as op:
            return lookup.cost(step, op, program.steps[step.inputs[0]].type.bits, batch)
        case fp.Product() as op:
            return product.cost(step, op, batch)
        case fp.Larger():
            return larger.cost(step, batch)
        case _:
            return Cost()


def passed_on(cost: Cost, network: Network) -> tuple[int, int]:
    """Bytes of a step's common part that E1 passes on to E2, and E2 to E1.

    Correction words of keys are the same for both evaluators. Where the line decides, the helper sends each
    of them one half only: its own line carries half as much, and theirs were idle.
    """
    half = cost.common // 2
    rate = network.bandwidth / 8
    if rate >= MACHINE_BYTES or half / rate <= network.round_trip / 2 + HOP_SECONDS:
        return 0, 0
    return half, cost.common - half


def compile_for(table: Table) -> fp.Program:
    """The program of a session: exact where a receiver takes part in computing."""
    exact = needs_exact((table.party[e] for e in EVALUATORS), table.party[HELPER], table.receivers.values())
    program = compile_program(table.architecture, exact=exact, grid=table.release.grid)
    looked_up = next((s.node for s in program.steps if isinstance(s.operation, fp.Table)), None)
    if exact and looked_up is not None:
        # which of two rows serves depends on the mask: who knows one could tell a little more than f(x)
        raise ConfigError(
            f"node {looked_up!r} looks up a table, and a receiver is an evaluator or the helper",
            hint="let another party be the evaluator or the helper",
        )
    if any(role.startswith("holder:") for role in table.party):
        program = with_products_encrypted(program, table)
    return program


def with_products_encrypted(program: fp.Program, table: Table) -> fp.Program:
    """The program of exact mode: the model owner computes bilinear steps on ciphertexts."""
    near = table.party[MODEL_OWNER] in (table.party[e] for e in EVALUATORS)
    hops = encrypted.HOPS if near else encrypted.HOPS + 1
    steps = tuple(
        dataclasses.replace(s, operation=dataclasses.replace(s.operation, hops=hops))
        if isinstance(s.operation, fp.Bilinear)
        else s
        for s in program.steps
    )
    return dataclasses.replace(program, steps=steps)


def ends(program: fp.Program) -> dict[int, int]:
    """The round after which each value is there."""
    found: dict[int, int] = {}
    for step in program.steps:
        start = max((found[i] for i in step.inputs), default=0)
        found[step.index] = start + step_cost(program, step, 1).rounds
    return found


def rounds(program: fp.Program) -> int:
    """Online one-way messages while evaluating: the deepest path, whatever its breadth."""
    return max(ends(program).values(), default=0)


def asking(program: fp.Program) -> list[fp.Step]:
    """Steps that ask the helper, in the order in which both evaluators do."""
    found = ends(program)
    asked = [s for s in program.steps if isinstance(s.operation, fp.Rectify) and s.operation.blinded]
    return sorted(asked, key=lambda s: (max(found[i] for i in s.inputs), s.index))


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


def footprint(program: fp.Program, rows: int) -> int:
    """Bytes of `rows` rows at an evaluator: what it is sent or sends, and a mask and a value a wire."""
    total = 0
    for step in program.steps:
        cost = step_cost(program, step, rows)
        total += max(cost.dealt) + cost.opened + cost.asked + max(cost.answered) + 16 * rows * step.type.size
        total += cost.encrypted + cost.halves
    return total


def rows_at_once(program: fp.Program, network: Network) -> int:
    """Rows of one chunk: as many as CHUNK_BYTES hold, and one at least.

    All of it is public and in integers, so every party of a session has the same answer.
    """
    rows = inputs.MAX_BATCH
    while rows > 1 and (need := footprint(choose(program, network, rows), rows)) > CHUNK_BYTES:
        rows = max(1, min(rows - 1, rows * CHUNK_BYTES // need))
    return rows


def limits(program: fp.Program, table: Table) -> dict[Network, int]:
    """Rows of one chunk, dealt live and dealt ahead."""
    return {network: rows_at_once(program, network) for network in (table.network, AHEAD)}


def cut(rows: int, at_once: int) -> tuple[int, int]:
    """Rows of the next chunk, and rows that are left for later."""
    return min(rows, at_once), max(rows - at_once, 0)
