"""How much there is to compute in one run of `mpc`, counted step by step from the public program."""

from __future__ import annotations

import math
from dataclasses import dataclass

from privinfer.backends.base import Phase, Role, Table
from privinfer.backends.mpc import roles
from privinfer.graph import fixedpoint as fp
from privinfer.graph import ir
from privinfer.plan.cost import Key, declared

BULK = 128 << 20
_LEAF = 7  # levels of a comparison tree that one block of its leaves holds
_FREE = (fp.Source, fp.Reveal, fp.Offset)


@dataclass(frozen=True, slots=True)
class Work:
    """Counts of one phase, all parties together.

    Attributes
    ----------
    pairs : float
        Parties squared: all of them agree with each other before anything else.
    steps : float
        Steps that have to be walked.
    messages : float
        One-way messages on the longest path.
    aes : float
        AES calls of comparison and table keys.
    multiply_adds : float
        Of one product of each linear step.
    weights : float
        Words of all weights.
    words : float
        Words of all wires.
    blinded : float
        Bits that are compared with the helper online.
    sent : float
        Bytes of all parties.
    bulk : float
        Bytes that single steps are dealt beyond BULK: memory is touched for the first time there.
    """

    pairs: float = 0
    steps: float = 0
    messages: float = 0
    aes: float = 0
    multiply_adds: float = 0
    weights: float = 0
    words: float = 0
    blinded: float = 0
    sent: float = 0
    bulk: float = 0


def count(program: fp.Program, table: Table, batch: int) -> tuple[dict[Phase, Work], dict[Key, int]]:
    """Work by phase, and bytes by phase, sender and receiver, of a session with one chunk.

    Parameters
    ----------
    program : Program
        With its comparisons chosen.
    table : Table
        Who sits where.
    batch : int
        Rows of the chunk.

    Returns
    -------
    dict
        From setup, offline and online to Work.
    dict
        As :func:`privinfer.plan.cost.declared` gives it.
    """
    size = declared(program, table, batch)
    sent = {phase: sum(v for k, v in size.items() if k[0] is phase) for phase in Phase}
    made = read = blinded = multiplied = weights = words = bulk = 0.0
    for step in program.steps:
        before = program.steps[step.inputs[0]].type if step.inputs else step.type
        elements = batch * step.type.size
        words += elements
        bulk += max(0, sum(roles.step_cost(program, step, batch).dealt) - BULK)
        match step.operation:
            case fp.Rectify(is_blinded):
                if is_blinded:
                    blinded += elements * before.bits
                else:
                    made, read = (
                        made + elements * _gen(before.bits - 1),
                        read + elements * _eval(before.bits - 1),
                    )
            case fp.Truncate(shift, exact):
                if exact:
                    made, read = made + elements * _gen(shift), read + elements * _eval(shift)
            case fp.Larger():
                pairs = elements // step.type.shape[1]
                bits = step.type.bits - 1
                made, read = made + pairs * _gen(bits), read + pairs * _eval(bits)
            case fp.Pieces() as op:
                bits = before.bits - 1
                made += elements * _gen(bits)
                read += elements * _eval(bits) * len(op.breaks)
            case fp.Table() as op:
                made += elements * 4 * op.cell_bits
                read += elements * 2.0**op.cell_bits
            case fp.Bilinear() as op:
                multiplied += batch * multiply_adds(op.op, step.type)
                weights += weight_words(op.op)
            case fp.Product(matmul):
                k = before.shape[-1] if matmul and before.shape else 1
                multiplied += elements * k
            case _:
                pass
    pairs = len(set(table.party.values())) ** 2
    steps = sum(not isinstance(s.operation, _FREE) for s in program.steps)
    found = {
        Phase.SETUP: Work(pairs=pairs, weights=weights, sent=sent[Phase.SETUP]),
        Phase.OFFLINE: Work(
            pairs=pairs,
            steps=steps,
            messages=2,
            aes=made,
            multiply_adds=multiplied,
            weights=weights,
            words=words,
            blinded=blinded,
            sent=sent[Phase.OFFLINE],
            bulk=bulk,
        ),
        Phase.ONLINE: Work(
            pairs=pairs,
            steps=steps,
            messages=roles.rounds(program) + 3,
            aes=2 * read,
            multiply_adds=multiplied,
            weights=weights,
            words=words,
            blinded=blinded,
            sent=sent[Phase.ONLINE],
        ),
    }
    return found, size


def _gen(bits: int) -> int:
    """AES calls of one comparison key pair."""
    return 4 * max(bits - _LEAF, 0) + 2


def _eval(bits: int) -> int:
    """AES calls of one comparison at one evaluator."""
    return max(bits - _LEAF, 0) + 1


def multiply_adds(op: ir.Linear | ir.Conv2d | ir.Scale, kind: fp.Type) -> int:
    """Multiply-adds a row of a linear step."""
    match op:
        case ir.Linear():
            return kind.size * op.inputs
        case ir.Conv2d():
            return kind.size * math.prod(op.kernel) * op.inputs // op.groups
        case _:
            return kind.size


def weight_words(op: ir.Linear | ir.Conv2d | ir.Scale) -> int:
    """Weights of a linear step."""
    return sum(math.prod(shape) for shape in op.parameters().values())


def line_seconds(size: dict[Key, int], phase: Phase, party: dict[Role, str], bandwidth: float) -> float:
    """Seconds the fullest line of a party is busy in a phase; what a party says to itself takes none."""
    out: dict[tuple[str, bool], int] = {}
    for (p, sender, receiver), count_ in size.items():
        a, b = party[sender], party[receiver]
        if p is phase and a != b:
            out[a, True] = out.get((a, True), 0) + count_
            out[b, False] = out.get((b, False), 0) + count_
    return max(out.values(), default=0) * 8 / bandwidth
