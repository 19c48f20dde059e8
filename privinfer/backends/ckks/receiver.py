"""A receiver: its keys are its own, and results reach it under them alone.

A ciphertext is under its CKKS key, and sealed to its key of the run, which binds it to this run.
"""

from __future__ import annotations

from privinfer.backends.base import Idle, Outputs, Play, Private, Receive, Send
from privinfer.backends.ckks import kept, roles
from privinfer.backends.ckks.kept import Kept
from privinfer.backends.ckks.packing import Unpacker
from privinfer.backends.ckks.roles import Setting
from privinfer.errors import IntegrityError, ProtocolViolation
from privinfer.protocols.ckks.keys import OwnKey
from privinfer.protocols.ckks.messages import residues_size, unpack
from privinfer.protocols.randomness import Scope
from privinfer.protocols.sealing import OVERHEAD, Context


class Receiver(Idle):
    """Takes the outputs of one party."""

    def __init__(self, setting: Setting, private: Private, party: str) -> None:
        self.setting, self.private, self.party = setting, private, party
        self.scope = Scope(setting.session, 0)
        self.session = setting.session
        self.key: OwnKey | None = None
        self.unpacker: Unpacker | None = None

    def setup(self) -> Play:
        """A key of its own, fresh; its public half goes to every key holder."""
        key = OwnKey.fresh(self.setting.parameters)
        for k in range(len(self.setting.holders)):
            yield Send(roles.holder(k), roles.RECEIVER_KEY, key.public.to_bytes())
        self._take(key, self.setting.session)

    def _take(self, key: OwnKey, session: bytes) -> None:
        self.key, self.session = key, session
        self.unpacker = Unpacker(key)

    def keep(self) -> bytes | None:
        """Its key."""
        if self.key is None:
            raise IntegrityError("a receiver keeps a key that was not made")
        parts = {"key": kept.ternary(self.key.secret), "key public": self.key.public.to_bytes()}
        return kept.pack(self.setting.plan, parts)

    def restore(self, session: bytes, data: bytes) -> None:
        """Take the key of an earlier join."""
        if session != self.session or self.key is None:
            self._take(Kept(self.setting.plan, data).own("key"), session)

    def offline(self, scope: Scope) -> Play:
        """Wait until the model owner has everything in place."""
        self.scope = scope
        yield Receive(roles.MODEL_OWNER, roles.READY, roles.READY_BYTES)

    def resume(self, scope: Scope, kept: bytes | None) -> Play:
        """As :meth:`offline`."""
        return self.offline(scope)

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
            sealed = yield Receive(roles.MODEL_OWNER, roles.RESULT + number, OVERHEAD + size)
            context = Context(setting.session, self.scope, roles.RESULT + number, roles.MODEL_OWNER)
            data = self.private.keys.open(sealed, context, sender)
            basis = setting.parameters.data(one.level)
            lead = (batch, one.ciphertexts, 2)
            rows = unpack(data, setting.parameters, basis, lead, culprit=sender, step="result")
            found[one.name] = self.unpacker.decrypt(one, rows, noised=setting.table.release.noisy)
        return found
