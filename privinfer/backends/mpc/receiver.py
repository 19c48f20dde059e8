"""A receiver: the only one to put both halves of a result's mask together."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from privinfer.backends.base import Idle, Network, Outputs, Play, Private, Receive, Table
from privinfer.backends.mpc import roles
from privinfer.errors import IntegrityError, PrecisionError, ProtocolViolation
from privinfer.graph import fixedpoint as fp
from privinfer.protocols.mpc import inputs, outputs
from privinfer.protocols.randomness import U64, Scope
from privinfer.protocols.sealing import Context


class Receiver(Idle):
    """Takes the outputs of one party."""

    def __init__(self, program: fp.Program, table: Table, private: Private, party: str) -> None:
        self.table, self.private = table, private
        self.scope: Scope | None = None
        self.steps = [(s, r) for s, r in program.reveals() if table.receivers[r.output] == party]
        self.evaluators = " or ".join(table.party[e] for e in roles.EVALUATORS)
        self.later: int | None = None
        self.at_once = roles.limits(program, table)
        self.network, self.first = table.network, table.party[roles.E1]

    def offline(self, scope: Scope) -> Play:
        """Wait until everything is dealt."""
        self.scope = scope
        yield from self._ready(self.network)

    def _ready(self, network: Network) -> Play:
        said = int.from_bytes((yield Receive(roles.E1, roles.READY, inputs.BATCH_BYTES)), "little")
        if self.later and said != self.later:
            raise ProtocolViolation("is ready for other rows than it said would come", culprit=self.first)
        self.batch, self.later = roles.cut(said, self.at_once[network])

    def resume(self, scope: Scope, kept: bytes | None) -> Play:
        """Wait until everything is taken from the stores."""
        self.scope = scope
        yield from self._ready(roles.AHEAD)

    def _rounded(self, step: fp.Step, values: U64) -> npt.NDArray[np.float64]:
        """Decimals of numbers that come on a grid already.

        Raises
        ------
        PrecisionError
            A number was rounded up to the end of its ring, where it has no sign any more.
        """
        release, found = self.table.release, fp.decode(values, step.type)
        if release.decimals is None:
            return found
        if not release.noisy and (values == np.uint64(1 << (step.type.bits - 1))).any():
            raise PrecisionError(f"output {step.node!r} lies at the end of its range")
        return np.asarray(np.round(found, release.decimals))

    def online(self) -> Play:
        """Take both evaluators' halves of each output."""
        batch, (scope, self.scope) = self.batch or 0, (self.scope, None)
        if scope is None:
            raise IntegrityError("a receiver waits for a result of no inference")
        found: Outputs = {}
        for step, op in self.steps:
            halves = []
            for k, evaluator in enumerate(roles.EVALUATORS):
                sealed = yield Receive(evaluator, step.index, outputs.message_size(step, k, batch))
                context = Context(self.table.session, scope, step.index, evaluator)
                halves.append(self.private.keys.open(sealed, context, self.table.party[evaluator]))
            values = outputs.reveal(step, batch, halves[0], halves[1], self.evaluators)
            found[op.output] = self._rounded(step, values)
        return found
