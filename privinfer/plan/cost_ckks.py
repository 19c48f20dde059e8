"""What a session under encryption will send, from the formulas that each protocol declares.

Payload bytes, where no key holder is lost and no work takes so long that the model owner says that it is at
it (`roles.AT_WORK`: 20 bytes to each key holder); each message's frame header, and TLS, come on top.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

from privinfer.backends.base import Phase, Role
from privinfer.backends.ckks import roles
from privinfer.backends.ckks.roles import Setting
from privinfer.plan.cost import Key
from privinfer.protocols import sealing
from privinfer.protocols.ckks import (
    encryption,
    galois,
    public_key,
    public_switch,
    refresh,
    relinearise,
    threshold,
)
from privinfer.protocols.ckks.keys import PublicKey
from privinfer.protocols.ckks.messages import residues_size

__all__ = ["declared"]

_Add = Callable[[Phase, Role, Role, int], None]


def declared(setting: Setting, batch: int) -> dict[Key, int]:
    """Bytes by phase, sender and receiver for one session with one inference.

    Parameters
    ----------
    setting : Setting
        The plan and who sits where.
    batch : int
        Rows of the inference.

    Returns
    -------
    dict
        From (phase, sender role, receiver role) to payload bytes; pairs that say nothing are left out.
    """
    total: defaultdict[Key, int] = defaultdict(int)

    def add(phase: Phase, sender: Role, receiver: Role, size: int) -> None:
        total[phase, sender, receiver] += size

    _setup(setting, add)
    for role in setting.table.party:
        if role != roles.MODEL_OWNER:
            add(Phase.OFFLINE, roles.MODEL_OWNER, role, roles.READY_BYTES)
    _online(setting, batch, add)
    return {key: size for key, size in total.items() if size}


def _setup(setting: Setting, add: _Add) -> None:
    """Joint public key, relinearisation key, Galois keys, sub-shares, the receivers' keys."""
    plan, p = setting.plan, setting.parameters
    first, back, second = relinearise.size(p)
    for place, party in enumerate(setting.holders):
        own = roles.holder(place)
        for witness in setting.witnesses():
            if witness != own:
                add(Phase.SETUP, own, witness, sum(public_key.size(p)))
        if party in setting.owners():
            add(Phase.SETUP, own, roles.owner(party), PublicKey.size(p))
        if plan.relinearises:
            add(Phase.SETUP, own, roles.MODEL_OWNER, first + second)
            add(Phase.SETUP, roles.MODEL_OWNER, own, back)
        add(Phase.SETUP, own, roles.MODEL_OWNER, len(plan.galois_elements) * galois.size(setting.linear))
        for other in range(len(setting.holders)):
            if other != place and not setting.whole:
                add(Phase.SETUP, own, roles.holder(other), threshold.size(p))
        for receiver in setting.receivers():
            add(Phase.SETUP, roles.receiver(receiver), own, PublicKey.size(p))


def _online(setting: Setting, batch: int, add: _Add) -> None:
    """Inputs, requests and their answers, results."""
    plan, p, table = setting.plan, setting.parameters, setting.table
    for party in setting.owners():
        add(Phase.ONLINE, roles.owner(party), roles.MODEL_OWNER, roles.BATCH_BYTES)
    for one in plan.inputs:
        size = batch * one.ciphertexts * encryption.size(p, one.level)
        add(Phase.ONLINE, roles.owner(table.owners[one.name]), roles.MODEL_OWNER, size)
    asked = answered = 0
    for values in plan.refreshes:
        for v in values:
            asked += batch * v.ciphertexts * residues_size(p, v.span.low)
            answered += batch * v.ciphertexts * refresh.size(p, v.span)
    for o in plan.outputs:
        asked += batch * o.ciphertexts * residues_size(p, o.level)
        answered += batch * o.ciphertexts * public_switch.size(p, o.level)
        size = sealing.OVERHEAD + batch * o.ciphertexts * encryption.size(p, o.level)
        add(Phase.ONLINE, roles.MODEL_OWNER, roles.receiver(table.receivers[o.name]), size)
    requests = len(plan.refreshes) + 2  # and the outputs, and the end
    for place in range(len(setting.holders)):
        own = roles.holder(place)
        add(Phase.ONLINE, roles.MODEL_OWNER, own, requests * roles.REQUEST_BYTES)
        if place < setting.threshold:  # the first ones answer as long as they are there
            add(Phase.ONLINE, roles.MODEL_OWNER, own, asked)
            add(Phase.ONLINE, own, roles.MODEL_OWNER, answered)
    for party in setting.receivers():
        add(Phase.ONLINE, roles.MODEL_OWNER, roles.receiver(party), roles.BATCH_BYTES)
