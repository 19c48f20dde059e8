"""The roles of the `ckks` backend by name, the numbers of their messages, and what everybody knows.

Order of a join: the joint public key (commit, then open), the relinearisation key, the Galois keys,
sub-shares where fewer than all key holders have to answer, the receivers' keys. Order of a run: inputs, then
as many requests to the key holders as the plan has refresh rounds, then one for the outputs.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass

from privinfer.backends.base import Role, Table
from privinfer.backends.ckks.evaluate import Outlook
from privinfer.backends.ckks.plan import Opened, Plan, make_plan
from privinfer.errors import PrecisionError
from privinfer.graph import ir
from privinfer.protocols.ckks import smudging
from privinfer.protocols.ckks.parameters import Parameters

MODEL_OWNER = "model_owner"

# Numbers of messages; each request of a run takes one of ASK, BODY and SHARE.
COMMIT, OPENING, JOINT_KEY, FIRST, SUM, SECOND, SUBSHARE, RECEIVER_KEY, READY, BATCH = range(1, 11)
GALOIS = 1 << 10
INPUT = 1 << 14
RESULT = 1 << 15
ASK, BODY, SHARE = 1 << 16, 2 << 16, 3 << 16

MAX_BATCH = 256
BATCH_BYTES = 4
READY_BYTES = 1
COMPUTED = 2  # messages of a request on the critical path: ciphertexts there, shares back


def holder(index: int) -> Role:
    """Role of a key holder by its place in the session file."""
    return f"holder:{index}"


def owner(party: str) -> Role:
    """Role of a party that owns inputs."""
    return f"owner:{party}"


def receiver(party: str) -> Role:
    """Role of a party that receives outputs."""
    return f"receiver:{party}"


@dataclass(frozen=True, slots=True)
class Request:
    """The head of what the model owner asks of the key holders.

    Attributes
    ----------
    number : int
        Of the plan's request: refresh rounds from 0 on, then the outputs; DONE when nothing more comes.
    attempt : int
        From 0 on; more than one where a key holder was lost meanwhile.
    active : int
        Bit k: the key holder of place k answers.
    batch : int
        Rows.
    """

    number: int
    attempt: int
    active: int
    batch: int

    DONE = 0xFFFFFFFF

    def to_bytes(self) -> bytes:
        """Wire form."""
        return _REQUEST.pack(self.number, self.attempt, self.active, self.batch)

    @classmethod
    def parse(cls, data: bytes) -> Request:
        """Read the wire form."""
        return cls(*_REQUEST.unpack(data))

    def places(self) -> list[int]:
        """Places of the key holders that answer."""
        return [k for k in range(64) if self.active >> k & 1]


_REQUEST = struct.Struct("<IIQI")
REQUEST_BYTES = _REQUEST.size


@dataclass(frozen=True, slots=True)
class Setting:
    """What every player knows: the table, the plan, who holds the key."""

    table: Table
    plan: Plan
    holders: tuple[str, ...]
    threshold: int

    @property
    def parameters(self) -> Parameters:
        """Of the joint key."""
        return self.plan.parameters

    @property
    def linear(self) -> Parameters:
        """Of the Galois keys: linear layers run at few limbs, so their keys have few."""
        return self.plan.linear_parameters

    @property
    def session(self) -> bytes:
        """Tag of this join."""
        return self.table.session

    @property
    def whole(self) -> bool:
        """Whether all key holders are needed."""
        return self.threshold == len(self.holders)

    def owners(self) -> list[str]:
        """Parties that bring inputs."""
        return sorted(set(self.table.owners.values()))

    def receivers(self) -> list[str]:
        """Parties that receive outputs."""
        return sorted(set(self.table.receivers.values()))

    def witnesses(self) -> list[Role]:
        """Who checks the joint public key itself: key holders, the model owner, owners that hold no share."""
        plain = [owner(p) for p in self.owners() if p not in self.holders]
        return [*map(holder, range(len(self.holders))), MODEL_OWNER, *plain]


def declared_error(plan: Plan, output: Opened) -> float:
    """Largest absolute error of an output that is promised, from public numbers alone.

    A slot's error is a sum of thousands of independent coefficients, normal to all purposes. What the
    circuit adds may raise its standard deviation by a tenth (the model owner checks that before anything is
    computed), so ten times that of smudging are nine of the whole: less than 1 in 10^18 is larger.
    """
    parties = plan.threshold + 1  # the model owner smudges too
    return 10 * smudging.slot_error(plan.parameters, output.smudging.bits, parties, output.scale)


def check_outlook(plan: Plan, found: list[Outlook]) -> None:
    """Raise PrecisionError where the circuit's own errors are too large beside the smudging."""
    for output, one in zip(plan.outputs, found, strict=True):
        if 9 * one.slot_std > declared_error(plan, output):
            raise PrecisionError(
                f"output {one.name!r}: errors of the circuit reach {one.slot_std:.2g}, too much beside the "
                f"smudging; {one.describe()}",
                hint="smaller weights, or narrower ranges of the activations",
            )


def setting_of(table: Table) -> Setting:
    """The setting of a session; every party has the same."""
    holders = tuple(p for role, p in table.party.items() if role.startswith("holder:"))
    threshold = table.threshold or len(holders)
    return Setting(table, planned(table.architecture, len(holders), threshold), holders, threshold)


@functools.lru_cache(maxsize=4)
def planned(architecture: ir.Architecture, holders: int, threshold: int) -> Plan:
    """The plan of an architecture, made once a process."""
    return make_plan(architecture, holders, threshold)
