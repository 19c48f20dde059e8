"""An owner: encrypts its inputs under the joint key, or moves fragments from its own key to it."""

from __future__ import annotations

from privinfer.backends.base import Idle, Play, Private, Receive, Send
from privinfer.backends.ckks import joint, kept, moving, roles
from privinfer.backends.ckks.kept import Kept
from privinfer.backends.ckks.moving import Step
from privinfer.backends.ckks.packing import Packer, no_seed, seeds
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
        self.session = setting.session
        self.scope = Scope(setting.session, 0)
        self.public: PublicKey | None = None
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
        self._take(public, setting.session)

    def _take(self, public: PublicKey, session: bytes) -> None:
        self.public, self.session = public, session
        self.packer = Packer(public)

    def keep(self) -> bytes | None:
        """The joint public key."""
        if self.public is None:
            raise IntegrityError("an owner keeps a joint key that was not made")
        return kept.pack(self.setting.plan, {"joint": self.public.to_bytes()})

    def restore(self, session: bytes, data: bytes) -> None:
        """Take the joint public key of an earlier join."""
        if session != self.session or self.public is None:
            self._take(Kept(self.setting.plan, data).public("joint"), session)

    def offline(self, scope: Scope) -> Play:
        """Wait until the model owner has everything in place."""
        self.scope = scope  # names a fragment's entry in its ledger
        yield Receive(roles.MODEL_OWNER, roles.READY, roles.READY_BYTES)

    def resume(self, scope: Scope, kept: bytes | None) -> Play:
        """As :meth:`offline`."""
        return self.offline(scope)

    def online(self) -> Play:
        """How many rows, then the ciphertexts of each input."""
        if self.packer is None or self.public is None:
            raise IntegrityError("an owner encrypts before the joint key is made")
        mine = [i for i in self.setting.plan.inputs if self.setting.table.owners[i.name] == self.party]
        arrays = [self.private.inputs[i.name] for i in mine if i.name in self.private.inputs]
        self.batch = len(arrays[0]) if arrays else 1
        yield Send(roles.MODEL_OWNER, roles.BATCH, self.batch.to_bytes(roles.BATCH_BYTES, "little"))
        for one in mine:
            number = self.setting.plan.inputs.index(one)
            yield Send(roles.MODEL_OWNER, roles.INPUT + number, Message(self._encrypted(one)).to_bytes())

    def _encrypted(self, one: Source) -> U64:
        """Under the joint key, row by row."""
        if self.packer is None or self.public is None:
            raise IntegrityError("an owner encrypts before the joint key is made")
        at_rest = self.private.fragments.get(one.name)
        if at_rest is None:
            opening = self.private.openings.get(one.name)
            given = no_seed if opening is None else seeds(opening, self.setting.session, one.name)
            return self.packer.encrypt(one, self.private.inputs[one.name], given)
        step = Step(self.scope.session, self.scope.inference, one.name)
        return moving.move(self.setting.parameters, at_rest, self.public, step)
