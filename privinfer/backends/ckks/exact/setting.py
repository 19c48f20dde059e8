"""What every player of exact mode knows: who computes what, and in which order."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

from privinfer.backends.base import Receive, Role, Table
from privinfer.backends.mpc import roles
from privinfer.errors import ProtocolViolation
from privinfer.graph import fixedpoint as fp
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.mpc import encrypted, inputs
from privinfer.protocols.mpc.encrypted import Product

PRODUCTS = "products"  # purpose of the streams between E1 and whoever has a share of the products


@dataclass(frozen=True, slots=True)
class Setting:
    """The table, the program, who holds the key."""

    table: Table
    program: fp.Program
    holders: tuple[str, ...]

    @property
    def parameters(self) -> Parameters:
        """Of the joint key."""
        return encrypted.parameters()

    @property
    def session(self) -> bytes:
        """Tag of this join."""
        return self.table.session

    def holder_roles(self) -> list[Role]:
        """In the session file's order."""
        return [f"holder:{k}" for k in range(len(self.holders))]

    def witnesses(self) -> list[Role]:
        """Who checks the joint public key: whoever encrypts under it, and key holders."""
        return [*self.holder_roles(), roles.MODEL_OWNER, *roles.EVALUATORS]

    def keeper(self, role: Role) -> int | None:
        """The evaluator (0, 1) that a role's party is as well: what it has needs no hiding from itself."""
        party = self.table.party[role]
        return next((k for k, e in enumerate(roles.EVALUATORS) if self.table.party[e] == party), None)

    def seeded(self) -> list[Role]:
        """Roles whose shares go to E2, less what E1 draws for them."""
        return [role for role in (*self.holder_roles(), roles.MODEL_OWNER) if self.keeper(role) is None]

    def sources(self, evaluator: int) -> tuple[Role, ...]:
        """Roles that send an evaluator a share of each product."""
        every = (*self.holder_roles(), roles.MODEL_OWNER)
        wanted = (0,) if evaluator == 0 else (1, None)
        return tuple(role for role in every if self.keeper(role) in wanted)

    def target(self, role: Role) -> Role:
        """The evaluator that a role hands its share to."""
        return roles.EVALUATORS[0 if self.keeper(role) == 0 else 1]

    def starts(self, batch: int) -> dict[int, int]:
        """The round in which each bilinear step begins, as evaluators count them."""
        program = roles.choose(self.program, self.table.network, batch)
        ends = roles.ends(program)
        return {s.index: max((ends[i] for i in s.inputs), default=0) for s, _ in program.bilinear()}

    def product(self, step: fp.Step, op: fp.Bilinear, batch: int) -> Product:
        """How a bilinear step of `batch` rows is packed."""
        return Product(op.op, self.program.steps[step.inputs[0]].type.shape, batch)


def setting_of(table: Table) -> Setting:
    """The setting of a session; every party has the same."""
    holders = tuple(p for role, p in table.party.items() if role.startswith("holder:"))
    return Setting(table, roles.compile_for(table), holders)


def batch_that_comes(
    setting: Setting, later: int | None, at_once: int
) -> Generator[Receive, bytes, tuple[int, int]]:
    """Hear from E1 when all is dealt: rows of this chunk, and rows that are left."""
    said = int.from_bytes((yield Receive(roles.E1, roles.READY, inputs.BATCH_BYTES)), "little")
    if later and said != later:
        culprit = setting.table.party[roles.E1]
        raise ProtocolViolation("is ready for other rows than it said would come", culprit=culprit)
    return roles.cut(said, at_once)
