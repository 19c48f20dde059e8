"""An owner: encrypts its inputs under the joint key, or moves fragments from its own key to it."""

from __future__ import annotations

from privinfer.backends.base import Idle, Play, Private, Receive, Send
from privinfer.backends.ckks import joint, moving, roles
from privinfer.backends.ckks.moving import Step
from privinfer.backends.ckks.packing import encrypt_rows
from privinfer.backends.ckks.plan import Source
from privinfer.backends.ckks.roles import Setting
from privinfer.errors import IntegrityError
from privinfer.protocols.ckks.crs import CRS
from privinfer.protocols.ckks.keys import PublicKey
from privinfer.protocols.ckks.messages import Message
from privinfer.protocols.randomness import U64, Scope


class Owner(Idle):
    """Brings the inputs of one party."""

    def __init__(self, setting: Setting, private: Private, party: str) -> None:
        self.setting, self.private, self.party = setting, private, party
        self.public: PublicKey | None = None
        self.scope = Scope(setting.session, 0)

    def setup(self) -> Play:
        """Take the joint public key from this party's own key holder, or witness how it is made."""
        setting = self.setting
        if self.party in setting.holders:
            place = setting.holders.index(self.party)
            size = PublicKey.size(setting.parameters)
            data = yield Receive(roles.holder(place), roles.JOINT_KEY, size)
            self.public = PublicKey.parse(setting.parameters, data, self.party)
        else:
            crs = CRS(setting.session)
            self.public = yield from joint.make(setting, crs, roles.owner(self.party), None)

    def offline(self, scope: Scope) -> Play:
        """Note which inference comes: a fragment's ledger names it."""
        self.scope = scope
        yield from ()

    def online(self) -> Play:
        """How many rows, then the ciphertexts of each input."""
        if self.public is None:
            raise IntegrityError("an owner encrypts before the joint key is made")
        mine = [i for i in self.setting.plan.inputs if self.setting.table.owners[i.name] == self.party]
        arrays = [self.private.inputs[i.name] for i in mine if i.name in self.private.inputs]
        self.batch = len(arrays[0]) if arrays else 1
        yield Send(roles.MODEL_OWNER, roles.BATCH, self.batch.to_bytes(roles.BATCH_BYTES, "little"))
        for one in mine:
            number = self.setting.plan.inputs.index(one)
            data = self._encrypted(self.public, one)
            yield Send(roles.MODEL_OWNER, roles.INPUT + number, Message(data).to_bytes())

    def _encrypted(self, public: PublicKey, one: Source) -> U64:
        """Under the joint key, row by row."""
        at_rest = self.private.fragments.get(one.name)
        if at_rest is None:
            return encrypt_rows(self.setting, public, one, self.private.inputs[one.name])
        step = Step(self.scope.session, self.scope.inference, one.name)
        return moving.move(self.setting.parameters, at_rest, public, step)
