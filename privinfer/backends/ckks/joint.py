"""The joint public key as a part of a player: everybody who uses it checks its making."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol

from privinfer.backends.base import Receive, Role, Send, Table
from privinfer.backends.ckks import roles
from privinfer.protocols.ckks import public_key
from privinfer.protocols.ckks.crs import CRS
from privinfer.protocols.ckks.keys import PublicKey, SecretShare
from privinfer.protocols.ckks.parameters import Parameters

Making = Generator[Send | Receive, Any, PublicKey]


class Joining(Protocol):
    """What has to be known to make a joint key."""

    @property
    def table(self) -> Table:
        """Who sits where."""

    @property
    def parameters(self) -> Parameters:
        """Of the key."""

    @property
    def holders(self) -> tuple[str, ...]:
        """Key holders in the session file's order."""

    @property
    def session(self) -> bytes:
        """Tag of this join."""

    def witnesses(self) -> list[Role]:
        """Who checks the key itself."""


def make(setting: Joining, crs: CRS, role: Role, secret: SecretShare | None) -> Making:
    """Take part in making the joint public key (as a holder of `secret`), or witness it.

    No opening is sent before every commitment is there, so nobody can choose the sum.
    """
    p, holders = setting.parameters, setting.holders
    common = public_key.sample(p, crs)
    others = [(k, party) for k, party in enumerate(holders) if roles.holder(k) != role]
    own = None
    if secret is not None:
        party = setting.table.party[role]
        own = public_key.generate_share(p, setting.session, party, secret, common)
        for witness in setting.witnesses():
            if witness != role:
                yield Send(witness, roles.COMMIT, own.commitment)
    commitments = {own.party: own.commitment} if own is not None else {}
    for k, party in others:
        commitments[party] = yield Receive(roles.holder(k), roles.COMMIT, public_key.COMMITMENT_BYTES)
    openings = {}
    if own is not None:
        opening = openings[own.party] = own.reveal(commitments, holders)
        for witness in setting.witnesses():
            if witness != role:
                yield Send(witness, roles.OPENING, opening.to_bytes())
    size = public_key.size(p)[1]
    for k, party in others:
        data = yield Receive(roles.holder(k), roles.OPENING, size)
        openings[party] = public_key.parse(p, data, party)
    total = public_key.aggregate(p, setting.session, commitments, openings, holders)
    return public_key.finish(p, common, total)
