"""An owner: encrypts its inputs under the joint key, or moves fragments from its own key to it."""

from __future__ import annotations

from privinfer.backends.base import Idle, Play, Private, Receive, Send
from privinfer.backends.ckks import joint, roles
from privinfer.backends.ckks.packing import Packer
from privinfer.backends.ckks.roles import Setting
from privinfer.errors import IntegrityError
from privinfer.protocols.ckks.crs import CRS
from privinfer.protocols.ckks.keys import PublicKey
from privinfer.protocols.ckks.messages import Message
from privinfer.protocols.randomness import Scope


class Owner(Idle):
    """Brings the inputs of one party."""

    def __init__(self, setting: Setting, private: Private, party: str) -> None:
        self.setting, self.private, self.party = setting, private, party
        self.packer: Packer | None = None

    def setup(self) -> Play:
        """Take the joint public key from this party's own key holder, or witness how it is made."""
        setting = self.setting
        if self.party in setting.holders:
            place = setting.holders.index(self.party)
            size = PublicKey.size(setting.parameters)
            data = yield Receive(roles.holder(place), roles.JOINT_KEY, size)
            public = PublicKey.parse(setting.parameters, data, self.party)
        else:
            crs = CRS(setting.session)
            public = yield from joint.make(setting, crs, roles.owner(self.party), None)
        self.packer = Packer(public)

    def offline(self, scope: Scope) -> Play:
        """Wait until the model owner has everything in place."""
        yield Receive(roles.MODEL_OWNER, roles.READY, roles.READY_BYTES)

    def online(self) -> Play:
        """How many rows, then the ciphertexts of each input."""
        if self.packer is None:
            raise IntegrityError("an owner encrypts before the joint key is made")
        mine = [i for i in self.setting.plan.inputs if self.setting.table.owners[i.name] == self.party]
        self.batch = len(self.private.inputs[mine[0].name])
        yield Send(roles.MODEL_OWNER, roles.BATCH, self.batch.to_bytes(roles.BATCH_BYTES, "little"))
        for one in mine:
            number = self.setting.plan.inputs.index(one)
            data = self.packer.encrypt(one, self.private.inputs[one.name])
            yield Send(roles.MODEL_OWNER, roles.INPUT + number, Message(data).to_bytes())
