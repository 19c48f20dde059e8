"""All roles of the `ckks` backend in one thread on a small ring, with every message on record."""

from __future__ import annotations

import contextlib
import functools
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np

from privinfer.backends.base import Outputs, Phase, Player, Private, Role, Table
from privinfer.backends.ckks import Ckks, receiver, roles
from privinfer.backends.ckks.evaluate import Evaluation, Outlook
from privinfer.backends.ckks.model_owner import ModelOwner
from privinfer.backends.ckks.plan import Opened, Plan, make_plan
from privinfer.backends.ckks.roles import Setting
from privinfer.graph import ir
from privinfer.graph.ranges import check_inputs
from privinfer.protocols.ckks import encryption
from privinfer.protocols.ckks.keys import OwnKey
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.randomness import Scope
from privinfer.runtime.drive import drive
from tests.support.ckks_oracle import wide_floats
from tests.support.simulate import (
    Deadlock,
    Message,
    RecordingPost,
    Tamper,
    exchange_keys,
    identity,
    verify,
)

__all__ = ["Deadlock", "Message", "Outcome", "Simulation", "seat", "simulate", "small_ring"]

MODEL_OWNER, PATIENT = "startup", "patient"
SESSION = bytes(range(32))
SMALL = Parameters(2048, 5, insecure=True)


@functools.lru_cache(maxsize=64)
def plan_of(architecture: ir.Architecture, holders: int, threshold: int, parameters: Parameters) -> Plan:
    """A plan on a ring that no session would take."""
    return make_plan(architecture, holders, threshold, parameters=parameters)


class OwnUnpacker:
    """In SEAL's place, which knows no rings so small for so many primes."""

    def __init__(self, key: OwnKey) -> None:
        self.key = key

    def decrypt(self, output: Opened, rows: Any, *, noised: bool = False) -> Any:
        slots = np.array([[self._slots(c, output.scale) for c in row] for row in rows])
        packed = slots.reshape(*rows.shape[:2], output.layout.slots)
        numbers = output.layout.mean(packed) if noised else output.layout.unpack(packed)
        return numbers.reshape(len(rows), *output.shape)

    def _slots(self, c: Any, scale: float) -> Any:
        p = self.key.secret.parameters
        basis = p.data(c.shape[1])
        words = p.ring.compose(p.ring.intt(encryption.decrypt(p, self.key.secret, c), basis), basis)
        return p.ring.decode(wide_floats(words), scale).real


@contextlib.contextmanager
def small_ring(parameters: Parameters | None = SMALL) -> Iterator[None]:
    """Let every party plan on a small ring meanwhile; the product has no option for that.

    None changes nothing.
    """
    if parameters is None:
        yield
        return

    def planned(architecture: ir.Architecture, holders: int, threshold: int) -> Plan:
        return plan_of(architecture, holders, threshold, parameters)

    with (
        mock.patch.object(roles, "planned", planned),
        mock.patch.object(roles, "AT_WORK", math.inf),  # whatever the machine is busy with
        mock.patch.object(receiver, "Unpacker", OwnUnpacker),
    ):
        yield


class CkksPost(RecordingPost):
    """Records, and may lose parties: what they would send is not sent, and those that wait are told."""

    def __init__(self, table: Table, tamper: Tamper | None = None) -> None:
        super().__init__(table, tamper)
        self.gone: set[str] = set()

    def lost(self, role: Role) -> bool:
        return self._table.party[role] in self.gone


@dataclass(frozen=True)
class Outcome:
    """What one inference gave; the transcript starts with the setup."""

    outputs: Outputs
    transcript: list[Message]
    rounds: int | None  # as counted by the model owner
    setting: Setting
    evaluation: Evaluation = field(repr=False)

    @property
    def plan(self) -> Plan:
        return self.setting.plan

    def outlook(self) -> dict[str, Outlook]:
        """What is declared of every output's error."""
        return {o.name: o for o in self.evaluation.outlook()}

    def sizes(self) -> dict[tuple[Phase, Role, Role], int]:
        """Bytes by phase, sender and receiver; pairs that say nothing are left out."""
        total: defaultdict[tuple[Phase, Role, Role], int] = defaultdict(int)
        for message in self.transcript:
            total[message.key] += len(message.data)
        return {key: size for key, size in total.items() if size}


def seat(
    architecture: ir.Architecture,
    *,
    owners: Mapping[str, str] | None = None,
    receivers: Mapping[str, str] | None = None,
    holders: Collection[str] | None = None,
    threshold: int | None = None,
    session: bytes = SESSION,
) -> Table:
    """A table: by default each input has an owner of its own, and owners and receivers hold the key."""
    if owners is None:
        owners = {source.name: f"owner{k}" for k, source in enumerate(architecture.inputs)}
    if receivers is None:
        receivers = {o.name: PATIENT for o in architecture.outputs}
    if holders is None:
        holders = dict.fromkeys([*owners.values(), *receivers.values()])
    party = {
        **{roles.holder(k): p for k, p in enumerate(holders)},
        roles.MODEL_OWNER: MODEL_OWNER,
        **{roles.owner(p): p for p in sorted(set(owners.values()))},
        **{roles.receiver(p): p for p in sorted(set(receivers.values()))},
    }
    return Table(party, owners, receivers, architecture, session, threshold=threshold or len(holders))


class Simulation:
    """A session whose players all live here; several inferences may follow one setup."""

    def __init__(
        self,
        model: ir.Model,
        table: Table,
        tamper: Tamper | None = None,
        parameters: Parameters | None = SMALL,
        *,
        setup: bool = True,
    ) -> None:
        self.model, self.table = model, table
        self.post = CkksPost(table, tamper)
        self.privates = {
            role: Private(identity(p).sign, verify, model if role == roles.MODEL_OWNER else None)
            for role, p in table.party.items()
        }
        backend = Ckks()
        self.parameters = parameters
        with small_ring(parameters):
            self.setting = roles.setting_of(table)
            self.players: dict[Role, Player] = {
                role: backend.player(role, table, private) for role, private in self.privates.items()
            }
        if setup:
            self.setup()

    @property
    def model_owner(self) -> ModelOwner:
        player = self.players[roles.MODEL_OWNER]
        assert isinstance(player, ModelOwner)
        return player

    def setup(self) -> None:
        """Once a session."""
        self._run(Phase.SETUP, lambda player: player.setup())

    def lose(self, party: str) -> None:
        """A party is there no more."""
        self.post.gone.add(party)

    def infer(self, inputs: Mapping[str, Any], number: int = 0) -> Outcome:
        """One inference."""
        rows = check_inputs(self.model.architecture, inputs)
        for role, private in self.privates.items():
            mine = {k: v for k, v in rows.items() if roles.owner(self.table.owners[k]) == role}
            private.inputs.clear()
            private.inputs.update(mine)
        exchange_keys(self.table, self.privates)
        scope = Scope(self.table.session, number)
        self._run(Phase.OFFLINE, lambda player: player.offline(scope))
        found = self._run(Phase.ONLINE, lambda player: player.online())
        left = [m for m in self.post.left_over() if self.table.party[m.receiver] not in self.post.gone]
        assert not left, "a message was sent that nobody wanted"
        outputs = {k: v for role in found for k, v in (found[role] or {}).items()}
        evaluation = self.model_owner.evaluation
        assert evaluation is not None
        return Outcome(outputs, self.post.transcript, self.model_owner.rounds, self.setting, evaluation)

    def _run(self, phase: Phase, start: Any) -> dict[Role, Any]:
        gone = self.post.gone
        plays = {r: start(player) for r, player in self.players.items() if self.table.party[r] not in gone}
        try:
            with small_ring(self.parameters):
                return drive(plays, self.post, phase)
        finally:
            for play in plays.values():
                play.close()


def simulate(
    model: ir.Model,
    inputs: Mapping[str, Any],
    *,
    tamper: Tamper | None = None,
    parameters: Parameters = SMALL,
    **seated: Any,
) -> Outcome:
    """One session with one inference; `seated` as :func:`seat` takes it."""
    return Simulation(model, seat(model.architecture, **seated), tamper, parameters).infer(inputs)


# -- models ------------------------------------------------------------------------------------------


def random_model(architecture: ir.Architecture, seed: int = 0) -> ir.Model:
    """Weights of about unit norm a row."""
    rng = np.random.default_rng(seed)
    parameters: dict[str, dict[str, Any]] = {}
    for node, shapes in architecture.parameter_shapes().items():
        parameters[node] = {}
        for name, shape in shapes.items():
            spread = 0.3 if name == "bias" else 1 / np.sqrt(max(1, np.prod(shape) / max(shape[0], shape[-1])))
            parameters[node][name] = rng.normal(size=shape) * spread
    return ir.Model(architecture, parameters)


def random_rows(architecture: ir.Architecture, batch: int, seed: int = 1) -> dict[str, Any]:
    """Inputs all over their ranges."""
    rng = np.random.default_rng(seed)
    return {i.name: rng.uniform(i.low, i.high, (batch, *i.shape)) for i in architecture.inputs}
