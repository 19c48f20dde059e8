"""An evaluator: runs the program over mask shares before the inference, over masked values in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from privinfer.backends.base import Idle, Network, Play, Private, Progress, Receive, Send, Table, blame
from privinfer.backends.mpc import release, roles
from privinfer.backends.mpc.helper import agree, pair_seed
from privinfer.errors import IntegrityError
from privinfer.graph import fixedpoint as fp
from privinfer.protocols import gaussian
from privinfer.protocols.cost import Cost
from privinfer.protocols.mpc import dealing, inputs, linear, opening, outputs
from privinfer.protocols.mpc.blinded import BlindedReluGate
from privinfer.protocols.mpc.dealing import Dealt
from privinfer.protocols.mpc.extend import ExtendGate
from privinfer.protocols.mpc.gate import (
    Action,
    FromHelper,
    FromProducts,
    Gate,
    Rounds,
    ToHelper,
    ToModelOwner,
)
from privinfer.protocols.mpc.larger import LargerGate
from privinfer.protocols.mpc.pieces import PiecesGate
from privinfer.protocols.mpc.product import ProductGate
from privinfer.protocols.mpc.relu import ReluGate
from privinfer.protocols.mpc.table import TableGate
from privinfer.protocols.mpc.truncate import ExactTruncateGate, LocalTruncateGate
from privinfer.protocols.mpc.wires import Blinded, Masked, MaskShare, masked
from privinfer.protocols.randomness import SEED_BYTES, U64, Scope, Secret, Seed, Stream
from privinfer.protocols.sealing import Context


@dataclass
class Prepared:
    """What an evaluator holds for one inference; used up by it."""

    scope: Scope
    batch: int
    program: fp.Program
    masks: dict[int, MaskShare] = field(default_factory=dict, repr=False)
    gates: dict[int, Gate] = field(default_factory=dict, repr=False)
    parcels: dict[int, bytes] = field(default_factory=dict, repr=False)  # came, but not unpacked
    noise: dict[int, U64] = field(default_factory=dict, repr=False)
    veil: Stream | None = field(default=None, repr=False)


@dataclass(eq=False, repr=False)
class Standing(Secret):
    """What an evaluator holds for as long as a setup lasts: seeds, masked weights.

    `between` is shared with the other evaluator and unknown to the helper.
    """

    session: bytes
    pair: Seed
    weights: Seed | None
    between: Seed
    operands: dict[int, linear.Operand] = field(default_factory=dict)


Get: TypeAlias = Callable[[Receive], Generator[Receive, bytes, bytes]]


def _live(wanted: Receive) -> Generator[Receive, bytes, bytes]:
    """Take a message from the network."""
    data = yield wanted
    return data


class _Kept:
    """Takes messages from what was kept, in the order in which they were."""

    def __init__(self, data: bytes) -> None:
        self.rest = memoryview(data)

    def get(self, wanted: Receive) -> Generator[Receive, bytes, bytes]:
        """Take a message from the store."""
        yield from ()
        if len(self.rest) < wanted.size:
            raise IntegrityError("what was dealt ahead is incomplete")
        head, self.rest = self.rest[: wanted.size], self.rest[wanted.size :]
        return bytes(head)


class Evaluator(Idle):
    """E1 (index 0) or E2 (index 1)."""

    def __init__(self, index: int, program: fp.Program, table: Table, private: Private) -> None:
        self.index = index
        self.other = roles.EVALUATORS[1 - index]
        self.program, self.table, self.private = program, table, private
        self.standing: Standing | None = None
        self.stored: Standing | None = None
        self.prepared: Prepared | None = None
        self.rounds: int | None = None
        self.later: int | None = None
        self.at_once = roles.limits(program, table)

    # -- once a session --------------------------------------------------------------------------

    def setup(self) -> Play:
        """Agree on a seed with the helper; receive the masked weights."""
        pair, between = yield from self._agree_on_seeds()
        weights = Seed((yield Receive(roles.MODEL_OWNER, roles.SEEDS, SEED_BYTES)))
        standing = Standing(self.table.session, pair, weights, between)
        yield from self._take_weights(standing, _live)
        self.standing = standing

    def _agree_on_seeds(self) -> Generator[Send | Receive, Any, tuple[Seed, Seed]]:
        """Agree on seeds with the helper and with the other evaluator."""
        own = Seed.fresh()
        yield Send(roles.HELPER, roles.SEEDS, own.expose())
        theirs = yield Receive(roles.HELPER, roles.SEEDS, SEED_BYTES)
        half = Seed.fresh()
        yield Send(self.other, roles.SEEDS, half.expose())
        halves = [half.expose(), (yield Receive(self.other, roles.SEEDS, SEED_BYTES))]
        between = pair_seed(*(halves if self.index == 0 else reversed(halves)))
        return pair_seed(theirs, own.expose()), between

    def _take_weights(self, standing: Standing, get: Get) -> Play:
        if standing.weights is None:
            raise IntegrityError("an evaluator would unmask weights without their seed")
        stream = Stream(standing.weights, Scope(standing.session, 0), "weights")
        gates = self.program.bilinear()
        for k, (step, op) in enumerate(gates):
            shape = op.op.parameters()["weight"]
            count = math.prod(shape)
            size = linear.weights_size(op, self.index)
            data = yield from get(Receive(roles.MODEL_OWNER, step.index, size))
            numbers = np.frombuffer(data, dtype="<u8").astype(np.uint64)
            weight, second = numbers[:count].reshape(shape), numbers[count:] if self.index else None
            standing.operands[step.index] = linear.operand(step, op, self.index, stream, weight, second)
            yield Progress(k + 1, len(gates), step.node)

    def keep(self) -> bytes | None:
        """Seeds and masked weights; with what is dealt under them they last beyond this session."""
        if self.standing is None or self.standing.weights is None:
            raise IntegrityError("an evaluator keeps a setup that was not made")
        parts = [s.expose() for s in (self.standing.pair, self.standing.weights, self.standing.between)]
        for step, _ in self.program.bilinear():
            one = self.standing.operands[step.index]
            parts += [one.masked.tobytes(), one.bias.tobytes() if self.index else b""]
        return b"".join(parts)

    def restore(self, session: bytes, kept: bytes) -> None:
        """Seeds and masked weights of an earlier setup."""
        if len(kept) < 3 * SEED_BYTES:
            raise IntegrityError("what was dealt ahead is incomplete")
        pair, weights, between = (Seed(kept[k * SEED_BYTES :][:SEED_BYTES]) for k in range(3))
        self.stored = Standing(session, pair, weights, between)
        for _ in self._take_weights(self.stored, _Kept(kept[3 * SEED_BYTES :]).get):
            pass  # only Progress comes: nothing is awaited

    # -- before an inference ---------------------------------------------------------------------

    def offline(self, scope: Scope) -> Play:
        """Take the masks' seeds and the helper's parcels; do all work that needs no value."""
        yield from self._offline(self.standing, scope, _live, self.table.network)

    def resume(self, scope: Scope, kept: bytes | None) -> Play:
        """The same from the store."""
        source = _Kept(kept or b"")
        yield from self._offline(self.stored, scope, source.get, roles.AHEAD)
        if source.rest:  # as when it was dealt where chunks had more rows
            raise IntegrityError("what was dealt ahead is longer than its chunk")

    def deal(self, scope: Scope, batch: int) -> Play:
        """Receive what :meth:`offline` would and keep it as it came."""
        kept = []
        for step in self.program.sources():
            owner = self.table.owners[step.node]
            data = yield Receive(roles.owner(owner), step.index, inputs.evaluator_size())
            agree(batch, [(owner, inputs.parse_seeds(data, owner)[0])])
            kept.append(data)
        rows, _ = roles.cut(batch, self.at_once[roles.AHEAD])
        for step in self.program.steps:
            size = roles.step_cost(self.program, step, rows).dealt[self.index]
            if size:
                kept.append((yield Receive(roles.HELPER, step.index, size)))
            yield Progress(step.index + 1, len(self.program.steps), step.node)
        return b"".join(kept)

    def _offline(self, standing: Standing | None, scope: Scope, get: Get, network: Network) -> Play:
        if standing is None:
            raise IntegrityError("an evaluator deals before its setup")
        stream = Stream(standing.pair, scope, dealing.DEAL)
        masks: dict[int, MaskShare] = {}
        left = self.later or None  # what the chunks before this one left to come
        seeds: dict[int, Seed] = {}
        said: list[tuple[str, int]] = []
        for step in self.program.sources():
            owner = self.table.owners[step.node]
            data = yield from get(Receive(roles.owner(owner), step.index, inputs.evaluator_size()))
            count, (seeds[step.index],) = inputs.parse_seeds(data, owner)
            said.append((owner, count))
        left = agree(left, said)
        rows, self.later = roles.cut(left, self.at_once[network])
        for step in self.program.sources():
            masks[step.index] = inputs.mask_share(step, (rows, *step.type.shape), seeds[step.index], scope)
        program = roles.choose(self.program, network, rows)
        ready = Prepared(scope, rows, program, masks)
        self._grant(left)
        self._draw_noise(ready, standing)
        between = Stream(standing.between, scope, "blind")
        if any(any(roles.passed_on(roles.step_cost(program, s, rows), network)) for s in program.steps):
            yield from self._pass_on(ready, network, get)
        for step in program.steps:
            if step.index in masks:
                continue
            cost = roles.step_cost(program, step, ready.batch)
            parcel, dealers = yield from self._parcel(cost, ready, network, step, get)
            dealt = Dealt(self.index, stream, scope, step.index, parcel)
            with blame(dealers, step.node):
                gate = self._prepare(step, dealt, [masks[i] for i in step.inputs], standing, between)
                dealt.finish()
            if isinstance(gate, Gate):
                ready.gates[step.index] = gate
            masks[step.index] = gate.mask if isinstance(gate, Gate) else gate
            yield Progress(step.index + 1, len(self.program.steps), step.node)
        self.prepared = ready
        for role in self.table.party:
            if role.startswith("owner:") or (role.startswith("receiver:") and self.index == 0):
                yield Send(role, roles.READY, (left).to_bytes(inputs.BATCH_BYTES, "little"))

    def _grant(self, rows: int) -> None:
        """Refuse rows that no budget is left for before anybody sends an input."""
        if not self.table.release.limited:
            return
        if self.private.budget is None:
            raise IntegrityError("answers are limited, and there is nothing to count them in")
        self.private.budget.check(release.charges(self.program, self.table, rows))

    def _draw_noise(self, ready: Prepared, standing: Standing) -> None:
        """Before the inputs come: the time a draw takes tells of it."""
        for index, noise in release.noises(self.program, self.table).items():
            shape = (ready.batch, *self.program.steps[index].type.shape)
            ready.noise[index] = gaussian.draw(noise.sigma, shape)
        ready.veil = Stream(standing.between, ready.scope, "release")

    def _noised(
        self, step: fp.Step, prepared: Prepared, wire: Masked, mask: MaskShare
    ) -> tuple[Masked, MaskShare]:
        if prepared.veil is None or step.index not in prepared.noise:
            raise IntegrityError("a result would leave without its noise")
        shape, bits = wire.values.shape, wire.bits
        first, second = (prepared.veil.draw(f"{step.index}/{k}", shape, bits) for k in (0, 1))
        return outputs.noised(wire, mask, self.index, prepared.noise.pop(step.index), (first, second))

    def _pass_on(self, ready: Prepared, network: Network, get: Get) -> Play:
        """Take what the helper sends for every step and pass on its half, before waiting for the other's."""
        for step in ready.program.steps:
            cost = roles.step_cost(ready.program, step, ready.batch)
            passed = roles.passed_on(cost, network)
            if size := cost.dealt[self.index] - passed[1 - self.index]:
                parcel = yield from get(Receive(roles.HELPER, step.index, size))
                ready.parcels[step.index] = parcel
                if mine := passed[self.index]:
                    yield Send(self.other, step.index, parcel[:mine])

    def _parcel(
        self, cost: Cost, ready: Prepared, network: Network, step: fp.Step, get: Get
    ) -> Generator[Send | Receive, Any, tuple[bytes, str]]:
        """What was dealt for a step, and whom to name where it is malformed."""
        passed = roles.passed_on(cost, network)
        mine, theirs = passed[self.index], passed[1 - self.index]
        size, dealers = cost.dealt[self.index], self.table.party[roles.HELPER]
        if ready.parcels:
            parcel = ready.parcels.pop(step.index, b"")
        else:
            parcel = (yield from get(Receive(roles.HELPER, step.index, size))) if size else b""
        if not mine:
            return parcel, dealers
        other = yield Receive(self.other, step.index, theirs)
        halves = (parcel[:mine], other) if self.index == 0 else (other, parcel[:mine])
        return b"".join((*halves, parcel[mine:])), f"{dealers} or {self.table.party[self.other]}"

    def _prepare(
        self,
        step: fp.Step,
        dealt: Dealt,
        xs: list[MaskShare],
        standing: Standing,
        between: Stream,
    ) -> Gate | MaskShare:
        match step.operation:
            case fp.Bilinear() as op:
                return linear.LinearGate(step, op, dealt, xs[0], standing.operands[step.index])
            case fp.Rectify(is_blinded):
                if not is_blinded:
                    return ReluGate(dealt, xs[0])
                return BlindedReluGate(dealt, between, xs[0])
            case fp.Extend():
                return ExtendGate(dealt, xs[0])
            case fp.Truncate() as op:
                kind = ExactTruncateGate if op.exact else LocalTruncateGate
                return kind(step, op, dealt, xs[0])
            case fp.Pieces() as op:
                return PiecesGate(step, op, dealt, xs[0])
            case fp.Table() as op:
                return TableGate(step, op, dealt, xs[0])
            case fp.Product() as op:
                return ProductGate(step, op, dealt, xs[0], xs[1])
            case fp.Larger():
                return LargerGate(dealt, xs[0])
            case fp.Reveal() | fp.Offset():
                return xs[0]
            case _:
                return MaskShare(fp.apply_local(step, [x.values for x in xs]), step.type.bits)

    # -- the inference ---------------------------------------------------------------------------

    def online(self) -> Play:
        """Inputs, comparison of their digests, rounds, outputs."""
        prepared, self.prepared = self.prepared, None  # never twice
        if prepared is None:
            raise IntegrityError("an evaluation was started without fresh correlated randomness")
        wires: dict[int, Masked] = {}
        received = []
        for step in self.program.sources():
            owner = self.table.owners[step.node]
            data = yield Receive(roles.owner(owner), step.index, inputs.online_size(step, prepared.batch))
            one = inputs.Received.parse(
                step, owner, (prepared.batch, *step.type.shape), data, prepared.scope, self.private.verify
            )
            received.append(one)
            wires[step.index] = one.wire
        yield Send(self.other, roles.COMPARE, inputs.comparison_message(received))
        data = yield Receive(self.other, roles.COMPARE, inputs.compared_size(len(received)))
        inputs.compare(received, data, self.table.party[self.other], prepared.scope, self.private.verify)
        yield from self._rounds(prepared, wires)
        if self.private.budget is not None:  # on disk before anything leaves
            self.private.budget.spend(release.charges(self.program, self.table, prepared.batch))
        for step, op in self.program.reveals():
            wire, mask = wires[step.inputs[0]], prepared.masks[step.index]
            if self.table.release.noisy:
                wire, mask = self._noised(step, prepared, wire, mask)
            party = self.table.receivers[op.output]
            context = Context(self.table.session, prepared.scope, step.index, roles.EVALUATORS[self.index])
            sealed = self.private.keys.seal(party, outputs.message(self.index, wire, mask), context)
            yield Send(roles.receiver(party), step.index, sealed)

    def _rounds(self, prepared: Prepared, wires: dict[int, Masked]) -> Play:
        """Advance all gates that are ready together: in each round everybody sends, then everybody reads."""
        total = roles.rounds(prepared.program)
        waiting = [s for s in prepared.program.steps if s.index not in wires]
        running: dict[int, tuple[Rounds, Action]] = {}
        count = 0
        while True:
            waiting = self._advance(waiting, prepared, wires, running)
            if not running:
                self.rounds = count
                return
            order = sorted(running)
            opened = {i: a for i in order if isinstance(a := running[i][1], Blinded)}
            own = list(opened.values())
            for i in order:
                if isinstance(asked := running[i][1], ToHelper):
                    yield Send(roles.HELPER, i, asked.data)
                elif isinstance(asked, ToModelOwner):
                    yield Send(roles.MODEL_OWNER, i, asked.data)
            if own:
                yield Send(self.other, roles.ROUND + count, opening.message(own))
            heard: dict[int, Masked | bytes | list[bytes] | None] = {}
            for i in order:
                if isinstance(answer := running[i][1], FromHelper):
                    heard[i] = (yield Receive(roles.HELPER, i, answer.size)) if answer.size else b""
                elif isinstance(answer, FromProducts):
                    parts = []
                    for source in answer.sources:
                        parts.append((yield Receive(source, i, answer.size)))
                    heard[i] = parts
            if own:
                data = yield Receive(self.other, roles.ROUND + count, opening.message_size(own))
                with blame(self.table.party[self.other], f"round {count}"):
                    theirs = opening.parse(data, own)
                heard |= {i: opening.combine(a, b) for i, a, b in zip(opened, own, theirs, strict=True)}
            for i in order:
                rounds = running[i][0]
                try:
                    with blame(self.table.party[roles.HELPER], f"round {count}"):
                        running[i] = (rounds, rounds.send(heard.get(i)))
                except StopIteration as done:
                    wires[i] = done.value
                    del running[i]
            count += 1
            yield Progress(count, total, "round")

    def _advance(
        self,
        waiting: list[fp.Step],
        prepared: Prepared,
        wires: dict[int, Masked],
        running: dict[int, tuple[Rounds, Action]],
    ) -> list[fp.Step]:
        """Start every step whose inputs are there; what needs no round is done at once."""
        later = []
        for step in waiting:
            if any(i not in wires for i in step.inputs):
                later.append(step)
                continue
            xs = [wires[i] for i in step.inputs]
            gate = prepared.gates.pop(step.index, None)
            if isinstance(step.operation, fp.Reveal):
                wires[step.index] = xs[0]
            elif isinstance(step.operation, fp.Offset):
                moved = fp.low_bits(xs[0].values + step.operation.array(), step.type.bits)
                wires[step.index] = masked(moved, step.type.bits)
            elif gate is None:
                values: list[U64] = [x.values for x in xs]
                wires[step.index] = masked(fp.apply_local(step, values), step.type.bits)
            else:
                rounds = gate.evaluate(*xs)
                try:
                    running[step.index] = (rounds, next(rounds))
                except StopIteration as done:
                    wires[step.index] = done.value
        return later
