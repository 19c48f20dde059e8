"""All roles of the `mpc` backend in one thread, with every message on record."""

from __future__ import annotations

import functools
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from privinfer.backends.base import Network, Outputs, Phase, Player, Private, Receive, Role, Send, Table
from privinfer.backends.ckks import Ckks
from privinfer.backends.mpc import Mpc, roles
from privinfer.errors import ProtocolViolation
from privinfer.graph import fixedpoint as fp
from privinfer.graph import ir
from privinfer.graph.ranges import check_inputs
from privinfer.protocols.randomness import Scope
from privinfer.protocols.sealing import ReceiverKey
from privinfer.runtime.drive import drive
from privinfer.session.identity import Identity

MODEL_OWNER, SECOND, HELPER, PATIENT = "startup", "hospital", "helper", "patient"
SESSION = bytes(range(32))
FSS, BLINDED = Network("fss"), Network("blinded")


@dataclass(frozen=True)
class Message:
    """One message as it was sent, before anybody tampered with it."""

    phase: Phase
    sender: Role
    receiver: Role
    step: int
    data: bytes = field(repr=False)

    @property
    def key(self) -> tuple[Phase, Role, Role]:
        """What `plan.cost.declared` counts under."""
        return self.phase, self.sender, self.receiver


Tamper = Callable[[Message], bytes | None]  # what arrives in its place; None: nothing


class Deadlock(AssertionError):
    """Every player waits and nothing is under way."""


class RecordingPost:
    """A queue for each (sender, receiver); order, phase, step and size are checked as the runtime does."""

    def __init__(self, table: Table, tamper: Tamper | None = None) -> None:
        self.transcript: list[Message] = []
        self._table, self._tamper = table, tamper
        self._queues: defaultdict[tuple[Role, Role], deque[Message]] = defaultdict(deque)

    def send(self, sender: Role, message: Send, phase: Phase) -> None:
        said = Message(phase, sender, message.to, message.step, bytes(message.data))
        assert message.to in self._table.party, f"{sender} wrote to nobody"
        self.transcript.append(said)
        data = said.data if self._tamper is None else self._tamper(said)
        if data is not None:
            arrives = Message(phase, sender, message.to, message.step, data)
            self._queues[sender, message.to].append(arrives)

    def take(self, receiver: Role, wanted: Receive, phase: Phase) -> bytes | None:
        queue = self._queues[wanted.source, receiver]
        if not queue:
            return None
        message = queue.popleft()
        culprit = self._table.party[wanted.source]
        if (message.phase, message.step) != (phase, wanted.step):
            raise ProtocolViolation("sent a message out of its turn", culprit=culprit)
        if len(message.data) != wanted.size:
            raise ProtocolViolation("sent a message of the wrong size", culprit=culprit)
        return message.data

    def wait(self, wanted: Mapping[Role, Receive], phase: Phase) -> None:
        raise Deadlock(f"{phase.name}: all wait: {dict(wanted)}")

    def left_over(self) -> list[Message]:
        """Messages that nobody took."""
        return [m for queue in self._queues.values() for m in queue]


@dataclass(frozen=True)
class Outcome:
    """What one inference gave; the transcript starts with the setup."""

    outputs: Outputs
    transcript: list[Message]
    rounds: tuple[int, int]  # as counted by E1 and E2
    program: fp.Program
    table: Table

    def sizes(self) -> dict[tuple[Phase, Role, Role], int]:
        """Bytes by phase, sender and receiver; pairs that say nothing are left out."""
        total: defaultdict[tuple[Phase, Role, Role], int] = defaultdict(int)
        for message in self.transcript:
            total[message.key] += len(message.data)
        return {key: size for key, size in total.items() if size}

    def received(self, role: Role) -> list[Message]:
        """Everything a role was sent."""
        return [m for m in self.transcript if m.receiver == role]


@functools.cache
def identity(party: str) -> Identity:
    """One key a party and test run."""
    return Identity.generate(party, days=2)


def verify(party: str, message: bytes, signature: bytes) -> None:
    """Check a party's signature as a real session does."""
    identity(party).public.verify(message, signature)


def seat(
    architecture: ir.Architecture,
    *,
    exact: bool = False,
    owners: Mapping[str, str] | None = None,
    receivers: Mapping[str, str] | None = None,
    session: bytes = SESSION,
    network: Network = FSS,
    holders: Sequence[str] = (),
    model_owner: str = MODEL_OWNER,
) -> Table:
    """A table: by default each input has an owner of its own. With key holders it is that of exact mode.

    The receiver is none of {E1, E2, H}, or E2's party where truncation is to be exact.
    """
    if owners is None:
        owners = {source.name: f"owner{k}" for k, source in enumerate(architecture.inputs)}
    if receivers is None:
        receivers = {o.name: SECOND if exact else PATIENT for o in architecture.outputs}
    party = {
        roles.E1: MODEL_OWNER,
        roles.E2: SECOND,
        roles.HELPER: HELPER,
        **{f"holder:{k}": p for k, p in enumerate(holders)},
        roles.MODEL_OWNER: model_owner,
        **{roles.owner(p): p for p in sorted(set(owners.values()))},
        **{roles.receiver(p): p for p in sorted(set(receivers.values()))},
    }
    return Table(party, owners, receivers, architecture, session, network, len(holders))


def exchange_keys(table: Table, privates: Mapping[Role, Private]) -> None:
    """What an engagement does: every receiver has a fresh key, and everybody its public half."""
    said = {}
    for role, private in privates.items():
        if table.party[role] in table.receivers.values():
            own = private.keys.own = ReceiverKey.fresh()
            said[table.party[role]] = own.public
    for private in privates.values():
        private.keys.public.update(said)


class Simulation:
    """A session whose players all live here; several inferences may follow one setup."""

    def __init__(self, model: ir.Model, table: Table, tamper: Tamper | None = None) -> None:
        self.model, self.table = model, table
        self.post = RecordingPost(table, tamper)
        self.program = roles.compile_for(table)
        self.privates = {
            role: Private(identity(p).sign, verify, model if role == roles.MODEL_OWNER else None)
            for role, p in table.party.items()
        }
        backend = Ckks() if "holder:0" in table.party else Mpc()
        self.players: dict[Role, Player] = {
            role: backend.player(role, table, private) for role, private in self.privates.items()
        }
        self._run(Phase.SETUP, lambda player: player.setup())

    def prepare(self, inputs: Mapping[str, Any], number: int = 0) -> None:
        """The offline phase: inputs are there, but only their seeds leave their owners."""
        rows = check_inputs(self.model.architecture, inputs)
        for role, private in self.privates.items():
            mine = {k: v for k, v in rows.items() if roles.owner(self.table.owners[k]) == role}
            private.inputs.clear()
            private.inputs.update(mine)
        exchange_keys(self.table, self.privates)
        scope = Scope(self.table.session, number)
        self._run(Phase.OFFLINE, lambda player: player.offline(scope))

    def online(self) -> Outcome:
        """The online phase."""
        found = self._run(Phase.ONLINE, lambda player: player.online())
        assert not self.post.left_over(), "a message was sent that nobody wanted"
        outputs = {k: v for role in found for k, v in (found[role] or {}).items()}
        rounds = tuple(self.players[e].rounds for e in roles.EVALUATORS)  # type: ignore[attr-defined]
        batch = self.players[roles.HELPER].batch or 0
        program = roles.choose(self.program, self.table.network, batch)
        return Outcome(outputs, self.post.transcript, rounds, program, self.table)

    def infer(self, inputs: Mapping[str, Any], number: int = 0) -> Outcome:
        """One inference."""
        self.prepare(inputs, number)
        return self.online()

    def _run(self, phase: Phase, start: Callable[[Player], Any]) -> dict[Role, Any]:
        plays = {role: start(player) for role, player in self.players.items()}
        try:
            return drive(plays, self.post, phase)
        finally:
            for play in plays.values():
                play.close()


def simulate(
    model: ir.Model,
    inputs: Mapping[str, Any],
    *,
    exact: bool = False,
    owners: Mapping[str, str] | None = None,
    tamper: Tamper | None = None,
    network: Network = FSS,
) -> Outcome:
    """One session with one inference.

    Parameters
    ----------
    model : Model
        With its declared precision.
    inputs : mapping of array_like
        All inputs, batch first.
    exact : bool
        Let E2's party receive the outputs, which makes every truncation exact.
    owners : mapping, optional
        Input name to party; by default each has its own.
    tamper : callable, optional
        Sees every message and returns what arrives in its place, or None for nothing.
    network : Network
        Which comparison is used.
    """
    table = seat(model.architecture, exact=exact, owners=owners, network=network)
    return Simulation(model, table, tamper).infer(inputs)
