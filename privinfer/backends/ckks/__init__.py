"""Threshold CKKS: the model owner computes on ciphertexts under a joint key that nobody has.

Private unless all key holders collude (n of n), or as many as the threshold says. The result reaches its
receiver under the receiver's own key. In exact mode (`exact/`) that holds of linear layers, and everything
else is what the `mpc` backend does: its condition has to hold too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from privinfer.backends.base import Network, Player, Private, Role, Table
from privinfer.backends.ckks import exact, noised, roles
from privinfer.backends.ckks.affine import trace
from privinfer.backends.ckks.key_holder import KeyHolder
from privinfer.backends.ckks.model_owner import ModelOwner
from privinfer.backends.ckks.owner import Owner
from privinfer.backends.ckks.receiver import Receiver
from privinfer.backends.mpc import roles as mpc_roles
from privinfer.graph import ir
from privinfer.protocols.ckks import ring64
from privinfer.protocols.ckks.keys import PublicKey
from privinfer.protocols.ckks.parameters import PRIME_BITS
from privinfer.protocols.mpc import encrypted
from privinfer.session.manifest import Manifest

__all__ = [
    "EXACT",
    "NAME",
    "Ckks",
    "check_model",
    "is_exact",
    "noise",
    "precision",
    "product_units",
    "rounds",
    "sees",
    "trust",
]

NAME = "ckks"
EXACT = exact.NONLINEAR


class Ckks:
    """The `ckks` protocol family."""

    name = NAME
    ordered = True

    def cast(self, manifest: Manifest) -> dict[Role, str]:
        """Roles and their parties, in an order that every party has alike."""
        cast: dict[Role, str] = {}
        if manifest.nonlinear == EXACT:
            assert manifest.helper is not None  # noqa: S101 - the manifest refuses exact mode without one
            cast.update(zip(mpc_roles.EVALUATORS, manifest.evaluators, strict=True))
            cast[mpc_roles.HELPER] = manifest.helper
        cast.update({roles.holder(k): p for k, p in enumerate(manifest.key_holders)})
        cast[roles.MODEL_OWNER] = manifest.model_owner
        cast.update({roles.owner(p): p for p in sorted(set(manifest.inputs.values()))})
        cast.update({roles.receiver(p): p for p in sorted(set(manifest.receivers.values()))})
        return cast

    def keeps(self, role: Role) -> bool:
        """Everybody keeps its part of the joint keys; of a single inference nobody keeps anything."""
        return True

    def rows_at_once(self, table: Table, network: Network) -> int:
        """Rows of a run."""
        if is_exact(table):
            return mpc_roles.rows_at_once(mpc_roles.compile_for(table), network)
        return roles.MAX_BATCH

    def spare(self, manifest: Manifest) -> frozenset[str]:
        """Key holders that nothing but their share is needed of, where the threshold leaves room."""
        if manifest.threshold >= len(manifest.key_holders):
            return frozenset()
        needed = {manifest.model_owner, *manifest.inputs.values(), *manifest.receivers.values()}
        return frozenset(manifest.key_holders) - needed

    def player(self, role: Role, table: Table, private: Private) -> Player:
        """Who plays a role."""
        if is_exact(table):
            return exact.player(role, table, private)
        setting = roles.setting_of(table)
        if role == roles.MODEL_OWNER:
            return ModelOwner(setting, private)
        kind, _, rest = role.partition(":")
        if kind == "holder":
            return KeyHolder(int(rest), setting, private)
        if kind == "owner":
            return Owner(setting, private, rest)
        return Receiver(setting, private, rest)


def check_model(architecture: ir.Architecture) -> None:
    """Refuse what cannot be computed under encryption, before anybody is asked to connect.

    Raises
    ------
    ModelUnsupported
        Names the node, and what could take its place.
    """
    trace(architecture)


def is_exact(table: Table) -> bool:
    """Whether a session runs in exact mode: it has evaluators beside the key holders."""
    return mpc_roles.E1 in table.party


def trust(manifest: Manifest) -> str:
    """The trust statement of a session, in one sentence."""
    holders = ", ".join(manifest.key_holders)
    if manifest.nonlinear == EXACT:
        three = ", ".join([*manifest.evaluators, str(manifest.helper)])
        return (
            f"private unless two of {{{three}}} collude, or all of {{{holders}}} do,"
            " as long as everybody follows the protocol"
        )
    if manifest.threshold == len(manifest.key_holders):
        who = f"all of {{{holders}}} collude"
    else:
        who = f"{manifest.threshold} of {{{holders}}} collude"
    return f"private unless {who}, as long as everybody follows the protocol"


def sees(manifest: Manifest, name: str) -> list[str]:
    """What a party gets to see beyond names, shapes, sizes and times."""
    seen = [f"its own {k}" for k, owner in manifest.inputs.items() if owner == name]
    if name == manifest.model_owner:
        seen += ["its own weights", "ciphertexts under a key that nobody has"]
    if manifest.nonlinear == EXACT:
        if name in (manifest.model_owner, *manifest.key_holders):
            seen.append("its share of each linear layer's result, as good as random to it")
        if name in manifest.evaluators:
            seen.append("masked values, each as good as random to it")
        if name == manifest.helper:
            online = "" if manifest.comparison == "fss" else "; blinded comparisons, as good as random to it"
            seen.append("masks, never a masked value" + online)
    if name in manifest.key_holders:
        seen.append("its share of the joint key; halves of ciphertexts, as good as random to it")
    how = manifest.terms.release.words
    seen.extend(f"the result {k}{how}" for k, receiver in manifest.receivers.items() if receiver == name)
    return seen


def precision(manifest: Manifest, architecture: ir.Architecture) -> dict[str, Any]:
    """What a report says of numbers: the scale, the smudging, and the error that these declare."""
    holders = len(manifest.key_holders)
    plan = roles.planned(architecture, holders, manifest.threshold)
    return {
        "scale_bits": PRIME_BITS,
        "basis": architecture.precision.basis,
        "declared_error_bound": max(roles.declared_error(plan, one) for one in plan.outputs),
        "smudging": {one.name: f"uniform in +-2^{one.smudging.bits}, each party" for one in plan.outputs},
        "ring_degree": plan.parameters.n,
        "levels": plan.parameters.levels,
    }


def joint_key(players: Iterable[Player]) -> PublicKey | None:
    """The joint public key, where one of a party's players keeps it: an owner's and the model owner's do."""
    for player in players:
        if isinstance(player, Owner | ModelOwner) and player.public is not None:
            return player.public
    return None


def noise(table: Table) -> dict[str, float]:
    """Standard deviation of the noise on each output, where noise is agreed; ConfigError where none fits."""
    return {name: one.deviation for name, one in noised.noises(roles.setting_of(table)).items()}


def product_units(manifest: Manifest) -> int:
    """Exact mode: how far a product may stray before it is truncated, in units of its last place."""
    return ring64.error_units(len(manifest.key_holders), encrypted.OPENED)


def rounds(table: Table) -> dict[str, int]:
    """One-way messages on the critical path, in the report's words, where no key holder is lost."""
    refreshes = roles.COMPUTED * len(roles.setting_of(table).plan.refreshes)
    return {"input": 1, "refreshes": refreshes, "opening": roles.COMPUTED, "output": 1}
