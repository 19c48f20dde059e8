"""A receiver: the only one to put both halves of a result's mask together."""

from __future__ import annotations

from privinfer.backends.base import Idle, Outputs, Play, Receive, Table
from privinfer.backends.mpc import roles
from privinfer.graph import fixedpoint as fp
from privinfer.protocols.mpc import inputs, outputs
from privinfer.protocols.randomness import Scope


class Receiver(Idle):
    """Takes the outputs of one party."""

    def __init__(self, program: fp.Program, table: Table, party: str) -> None:
        self.steps = [(s, r) for s, r in program.reveals() if table.receivers[r.output] == party]
        self.evaluators = " or ".join(table.party[e] for e in roles.EVALUATORS)

    def offline(self, scope: Scope) -> Play:
        """Wait until everything is dealt."""
        ready = yield Receive(roles.E1, roles.READY, inputs.BATCH_BYTES)
        self.batch = int.from_bytes(ready, "little")

    def resume(self, scope: Scope, kept: bytes | None) -> Play:
        """Wait until everything is taken from the stores."""
        yield from self.offline(scope)

    def online(self) -> Play:
        """Take both evaluators' halves of each output."""
        batch = self.batch or 0
        found: Outputs = {}
        for step, op in self.steps:
            halves = []
            for k, evaluator in enumerate(roles.EVALUATORS):
                halves.append((yield Receive(evaluator, step.index, outputs.message_size(step, k, batch))))
            values = outputs.reveal(step, batch, halves[0], halves[1], self.evaluators)
            found[op.output] = fp.decode(values, step.type)
        return found
