"""Two evaluators and a helper over masked wires: exact comparison, constant rounds a layer.

Private unless two of {evaluator 1, evaluator 2, helper} collude; all three follow the protocol.
"""

from __future__ import annotations

from privinfer.backends.base import Network, Player, Private, Role, Table
from privinfer.backends.mpc import roles
from privinfer.backends.mpc.evaluator import Evaluator
from privinfer.backends.mpc.helper import Helper
from privinfer.backends.mpc.model_owner import ModelOwner
from privinfer.backends.mpc.owner import Owner
from privinfer.backends.mpc.receiver import Receiver
from privinfer.session.manifest import Manifest

NAME = "mpc"


class Mpc:
    """The `mpc` protocol family."""

    name = NAME
    ordered = False

    def cast(self, manifest: Manifest) -> dict[Role, str]:
        """Roles and their parties, in an order that every party has alike."""
        assert manifest.helper is not None  # noqa: S101 - the manifest refuses `mpc` without one
        cast = dict(zip(roles.EVALUATORS, manifest.evaluators, strict=True))
        cast[roles.HELPER] = manifest.helper
        cast[roles.MODEL_OWNER] = manifest.model_owner
        cast.update({roles.owner(p): p for p in sorted(set(manifest.inputs.values()))})
        cast.update({roles.receiver(p): p for p in sorted(set(manifest.receivers.values()))})
        return cast

    def keeps(self, role: Role) -> bool:
        """Whether a role keeps something of what is dealt ahead: evaluators, owners, model owner."""
        return role != roles.HELPER and not role.startswith("receiver:")

    def rows_at_once(self, table: Table, network: Network) -> int:
        """Rows of one chunk; docs/protocols.md, large batches."""
        return roles.rows_at_once(roles.compile_for(table), network)

    def spare(self, manifest: Manifest) -> frozenset[str]:
        """Nobody can be done without."""
        return frozenset()

    def player(self, role: Role, table: Table, private: Private) -> Player:
        """Who plays a role."""
        program = roles.compile_for(table)
        if role in roles.EVALUATORS:
            return Evaluator(roles.EVALUATORS.index(role), program, table, private)
        if role == roles.HELPER:
            return Helper(program, table)
        if role == roles.MODEL_OWNER:
            return ModelOwner(program, table, private)
        if role.startswith("owner:"):
            return Owner(program, table, private, role.removeprefix("owner:"))
        return Receiver(program, table, private, role.removeprefix("receiver:"))
