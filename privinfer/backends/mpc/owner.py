"""An owner: sends the seeds of its masks before, its masked inputs when both evaluators are ready."""

from __future__ import annotations

import hashlib

from privinfer.backends.base import Idle, Network, Play, Private, Receive, Send, Table
from privinfer.backends.mpc import roles
from privinfer.errors import IntegrityError, ProtocolViolation
from privinfer.graph import fixedpoint as fp
from privinfer.protocols.mpc import inputs
from privinfer.protocols.randomness import Scope


class Owner(Idle):
    """Brings the inputs of one party."""

    def __init__(self, program: fp.Program, table: Table, private: Private, party: str) -> None:
        self.steps = [s for s in program.sources() if table.owners[s.node] == party]
        self.private = private
        self.prepared: list[inputs.MaskedInput] = []
        self.later: int | None = None
        self.at_once = roles.limits(program, table)
        self.network, self.party = table.network, table.party

    def offline(self, scope: Scope) -> Play:
        """Mask under fresh seeds, bound to the data; send only the seeds."""
        self.prepared = []
        left, chunk = self._chunk(self.network)
        for step in self.steps:
            values = fp.encode(self.private.inputs[step.node][chunk], step.type.frac)
            if (opening := self.private.openings.get(step.node)) is not None:
                seeds = inputs.InputSeeds.of(left, opening, scope, step)
            else:
                seeds = inputs.InputSeeds.fresh(left, hashlib.sha256(values.tobytes()).digest())
            yield from self._send(step, seeds)
            seeds = inputs.InputSeeds(seeds.seeds, len(values))
            self.prepared.append(inputs.mask_input(step, values, seeds, scope, self.private.sign))
        yield from self._ready(left)

    def _chunk(self, network: Network) -> tuple[int, slice]:
        """How many rows are left to bring, and which of them are this chunk's."""
        total = len(self.private.inputs[self.steps[0].node])
        left = self.later or total
        self.batch, self.later = roles.cut(left, self.at_once[network])
        return left, slice(total - left, total - left + self.batch)

    def deal(self, scope: Scope, batch: int) -> Play:
        """Send seeds for data that do not exist yet, and keep them."""
        kept = []
        for step in self.steps:
            seeds = inputs.InputSeeds.fresh(batch)
            yield from self._send(step, seeds)
            kept.append(seeds.to_helper())
        return b"".join(kept)

    def resume(self, scope: Scope, kept: bytes | None) -> Play:
        """Mask under the seeds that were kept."""
        self.prepared = []
        size = inputs.helper_size()
        left, chunk = self._chunk(roles.AHEAD)
        for k, step in enumerate(self.steps):
            seeds = inputs.InputSeeds.parse((kept or b"")[k * size : (k + 1) * size])
            if seeds.batch != left:
                raise IntegrityError(f"this piece was dealt for {seeds.batch} rows, and {left} are left")
            values = fp.encode(self.private.inputs[step.node][chunk], step.type.frac)
            seeds = inputs.InputSeeds(seeds.seeds, len(values))
            self.prepared.append(inputs.mask_input(step, values, seeds, scope, self.private.sign))
        yield from self._ready(left)

    def _ready(self, left: int) -> Play:
        """Wait until both evaluators hold everything that was dealt."""
        for evaluator in roles.EVALUATORS:
            ready = yield Receive(evaluator, roles.READY, inputs.BATCH_BYTES)
            if int.from_bytes(ready, "little") != left:
                culprit = self.party[evaluator]
                raise ProtocolViolation("is ready for other rows than are brought", culprit=culprit)

    def _send(self, step: fp.Step, seeds: inputs.InputSeeds) -> Play:
        for k, evaluator in enumerate(roles.EVALUATORS):
            yield Send(evaluator, step.index, seeds.to_evaluator(k))
        yield Send(roles.HELPER, step.index, seeds.to_helper())

    def online(self) -> Play:
        """The masked values, the same to both evaluators."""
        prepared, self.prepared = self.prepared, []
        for step, masked in zip(self.steps, prepared, strict=True):
            message = masked.online()
            for evaluator in roles.EVALUATORS:
                yield Send(evaluator, step.index, message)
