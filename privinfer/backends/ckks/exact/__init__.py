"""Exact mode: linear layers on ciphertexts at the model owner, everything else on masked wires as in `mpc`.

The players are those of `mpc`, and key holders; docs/ckks.md, exact mode.
"""

from __future__ import annotations

from privinfer.backends.base import Player, Private, Role, Table
from privinfer.backends.ckks.exact.evaluator import Evaluator
from privinfer.backends.ckks.exact.helper import Helper
from privinfer.backends.ckks.exact.key_holder import KeyHolder
from privinfer.backends.ckks.exact.model_owner import ModelOwner
from privinfer.backends.ckks.exact.setting import setting_of
from privinfer.backends.mpc import roles
from privinfer.backends.mpc.owner import Owner
from privinfer.backends.mpc.receiver import Receiver

__all__ = ["NONLINEAR", "player"]

NONLINEAR = "exact"  # as the session file says it


def player(role: Role, table: Table, private: Private) -> Player:
    """Who plays a role."""
    setting = setting_of(table)
    kind, _, rest = role.partition(":")
    if role in roles.EVALUATORS:
        return Evaluator(roles.EVALUATORS.index(role), setting, private)
    if role == roles.HELPER:
        return Helper(setting.program, table)
    if role == roles.MODEL_OWNER:
        return ModelOwner(setting, private)
    if kind == "holder":
        return KeyHolder(int(rest), setting, private)
    if kind == "owner":
        return Owner(setting.program, table, private, rest)
    return Receiver(setting.program, table, private, rest)
