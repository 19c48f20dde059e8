"""What a session will send, message by message, from the formulas that each protocol declares.

Payload bytes; each message's frame header, and TLS, come on top.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from privinfer.backends.base import Phase, Role, Table
from privinfer.backends.ckks.exact.setting import Setting
from privinfer.backends.mpc import roles
from privinfer.graph import fixedpoint as fp
from privinfer.protocols.ckks import public_key
from privinfer.protocols.mpc import inputs, linear, outputs
from privinfer.protocols.randomness import SEED_BYTES

Key = tuple[Phase, Role, Role]


def declared(program: fp.Program, table: Table, batch: int) -> dict[Key, int]:
    """Bytes by phase, sender and receiver for one session with one inference, which is one chunk.

    Parameters
    ----------
    program : Program
        Compiled for the session, comparisons chosen.
    table : Table
        Who sits where.
    batch : int
        Rows of the inference.

    Returns
    -------
    dict
        From (phase, sender role, receiver role) to payload bytes; pairs that say nothing are left out.
    """
    total: defaultdict[Key, int] = defaultdict(int)

    def add(phase: Phase, sender: Role, receiver: Role, size: int) -> None:
        total[phase, sender, receiver] += size

    e1, e2 = roles.EVALUATORS
    plain = [(step, op) for step, op in program.bilinear() if not op.hops]
    setting = Setting(table, program, tuple(p for r, p in table.party.items() if r.startswith("holder:")))
    exact = bool(setting.holders)
    for k, evaluator in enumerate(roles.EVALUATORS):
        if not exact:
            add(Phase.SETUP, roles.MODEL_OWNER, evaluator, SEED_BYTES)
        add(Phase.SETUP, roles.HELPER, evaluator, SEED_BYTES)
        add(Phase.SETUP, evaluator, roles.HELPER, SEED_BYTES)
        add(Phase.SETUP, evaluator, roles.EVALUATORS[1 - k], SEED_BYTES)
        for _, op in plain:
            add(Phase.SETUP, roles.MODEL_OWNER, evaluator, linear.weights_size(op, k))
        for step in program.steps:
            cost = roles.step_cost(program, step, batch)
            passed = roles.passed_on(cost, table.network)
            add(Phase.OFFLINE, roles.HELPER, evaluator, cost.dealt[k] - passed[1 - k])
            add(Phase.OFFLINE, evaluator, roles.EVALUATORS[1 - k], passed[k])
            add(Phase.ONLINE, evaluator, roles.HELPER, cost.asked)
            add(Phase.ONLINE, roles.HELPER, evaluator, cost.answered[k])
        for step, reveal in program.reveals():
            to = roles.receiver(table.receivers[reveal.output])
            add(Phase.ONLINE, evaluator, to, outputs.message_size(step, k, batch))
        for step in program.sources():
            owner = roles.owner(table.owners[step.node])
            add(Phase.OFFLINE, owner, evaluator, inputs.evaluator_size())
            add(Phase.ONLINE, owner, evaluator, inputs.online_size(step, batch))
    if exact:
        total.update(_exact(setting, batch))
    else:
        add(Phase.SETUP, roles.MODEL_OWNER, roles.HELPER, 2 * SEED_BYTES)
    for step in program.sources():
        add(Phase.OFFLINE, roles.owner(table.owners[step.node]), roles.HELPER, inputs.helper_size())
    for role in table.party:
        if role.startswith(("owner:", "receiver:")):
            add(Phase.OFFLINE, e1, role, inputs.BATCH_BYTES)
        if role.startswith("owner:"):
            add(Phase.OFFLINE, e2, role, inputs.BATCH_BYTES)
    opened = sum(roles.step_cost(program, step, batch).opened for step in program.steps)
    for sender, receiver in ((e1, e2), (e2, e1)):
        add(Phase.ONLINE, sender, receiver, opened + inputs.compared_size(len(program.sources())))
    return {key: size for key, size in total.items() if size}


def _exact(setting: Setting, batch: int) -> dict[Key, int]:
    """What exact mode sends beside what `mpc` does."""
    total: Counter[Key] = Counter()
    holders, owner = setting.holder_roles(), roles.MODEL_OWNER
    for role in holders:
        for witness in setting.witnesses():
            if witness != role:
                total[Phase.SETUP, role, witness] += sum(public_key.size(setting.parameters))
    for role in setting.seeded():
        total[Phase.SETUP, role, roles.E1] += SEED_BYTES
    for role in (*holders, owner):
        total[Phase.OFFLINE, roles.E1, role] += inputs.BATCH_BYTES
    for step, _ in setting.program.bilinear():
        cost = roles.step_cost(setting.program, step, batch)
        for evaluator in roles.EVALUATORS:
            total[Phase.ONLINE, evaluator, owner] += cost.encrypted
        for role in holders:
            total[Phase.ONLINE, owner, role] += cost.halves
            total[Phase.ONLINE, role, owner] += cost.halves
        for role in (*holders, owner):
            total[Phase.ONLINE, role, setting.target(role)] += cost.products
    return dict(total)


def declared_run(table: Table, batch: int) -> dict[Key, int]:
    """Bytes by phase, sender and receiver for one session with one run, in as many chunks as it takes.

    Parameters
    ----------
    table : Table
        Who sits where, and over which lines.
    batch : int
        Rows of the run.

    Returns
    -------
    dict
        As :func:`declared` gives it; the setup counts once.
    """
    program = roles.compile_for(table)
    at_once = roles.rows_at_once(program, table.network)
    total: Counter[Key] = Counter()
    left, first = batch, True
    while left or first:
        rows, left = roles.cut(left, at_once)
        chunk = declared(roles.choose(program, table.network, rows), table, rows)
        total.update({key: size for key, size in chunk.items() if first or key[0] is not Phase.SETUP})
        first = False
    return dict(total)
