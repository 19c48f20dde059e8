"""A receiver: its key is its own, and results reach it under that key alone."""

from __future__ import annotations

from privinfer.backends.base import Idle, Outputs, Play, Receive, Send
from privinfer.backends.ckks import roles
from privinfer.backends.ckks.packing import Unpacker
from privinfer.backends.ckks.roles import Setting
from privinfer.errors import IntegrityError, ProtocolViolation
from privinfer.protocols.ckks.keys import OwnKey
from privinfer.protocols.ckks.messages import residues_size, unpack
from privinfer.protocols.randomness import Scope


class Receiver(Idle):
    """Takes the outputs of one party."""

    def __init__(self, setting: Setting, party: str) -> None:
        self.setting, self.party = setting, party
        self.unpacker: Unpacker | None = None

    def setup(self) -> Play:
        """A key of its own, fresh; its public half goes to every key holder."""
        key = OwnKey.fresh(self.setting.parameters)
        for k in range(len(self.setting.holders)):
            yield Send(roles.holder(k), roles.RECEIVER_KEY, key.public.to_bytes())
        self.unpacker = Unpacker(key)

    def offline(self, scope: Scope) -> Play:
        """Wait until the model owner has everything in place."""
        yield Receive(roles.MODEL_OWNER, roles.READY, roles.READY_BYTES)

    def online(self) -> Play:
        """Take each output's ciphertexts and decrypt them."""
        setting = self.setting
        if self.unpacker is None:
            raise IntegrityError("a receiver decrypts before it has a key")
        sender = setting.table.party[roles.MODEL_OWNER]
        data = yield Receive(roles.MODEL_OWNER, roles.BATCH, roles.BATCH_BYTES)
        batch = self.batch = int.from_bytes(data, "little")
        if batch > roles.MAX_BATCH:
            raise ProtocolViolation("announces more rows than a run may have", culprit=sender)
        found: Outputs = {}
        for number, one in enumerate(setting.plan.outputs):
            if setting.table.receivers[one.name] != self.party:
                continue
            count = 2 * batch * one.ciphertexts * one.level
            size = residues_size(setting.parameters, count)
            data = yield Receive(roles.MODEL_OWNER, roles.RESULT + number, size)
            basis = setting.parameters.data(one.level)
            lead = (batch, one.ciphertexts, 2)
            rows = unpack(data, setting.parameters, basis, lead, culprit=sender, step="result")
            found[one.name] = self.unpacker.decrypt(one, rows)
        return found
