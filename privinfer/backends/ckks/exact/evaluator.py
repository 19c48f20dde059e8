"""An evaluator of exact mode: as in `mpc`, but bilinear steps ask the model owner, under encryption."""

from __future__ import annotations

from privinfer.backends.base import Play, Private, Receive, Send
from privinfer.backends.ckks import joint
from privinfer.backends.ckks.exact.setting import PRODUCTS, Setting
from privinfer.backends.mpc import evaluator, roles
from privinfer.errors import ConfigError, IntegrityError
from privinfer.graph import fixedpoint as fp
from privinfer.protocols.ckks.crs import CRS
from privinfer.protocols.ckks.keys import PublicKey
from privinfer.protocols.mpc import inputs
from privinfer.protocols.mpc.dealing import Dealt
from privinfer.protocols.mpc.encrypted import EncryptedGate
from privinfer.protocols.mpc.gate import Gate
from privinfer.protocols.mpc.wires import MaskShare
from privinfer.protocols.randomness import SEED_BYTES, Scope, Seed, Stream


class Evaluator(evaluator.Evaluator):
    """E1 (index 0) or E2 (index 1)."""

    def __init__(self, index: int, setting: Setting, private: Private) -> None:
        super().__init__(index, setting.program, setting.table, private)
        self.setting = setting
        self.public: PublicKey | None = None
        self._seeds: list[Seed] = []
        self._streams: list[Stream] = []

    def setup(self) -> Play:
        """Seeds as in `mpc`; E1's with everybody whose shares go to E2; witness the joint public key."""
        pair, between = yield from self._agree_on_seeds()
        self._seeds = []
        for role in self.setting.seeded() if self.index == 0 else []:
            self._seeds.append(Seed((yield Receive(role, roles.SEEDS, SEED_BYTES))))
        own = roles.EVALUATORS[self.index]
        self.public = yield from joint.make(self.setting, CRS(self.table.session), own, None)
        self.standing = evaluator.Standing(self.table.session, pair, None, between)

    def offline(self, scope: Scope) -> Play:
        """As in `mpc`; E1 tells model owner and key holders when all is dealt."""
        self._streams = [Stream(seed, scope, PRODUCTS) for seed in self._seeds]
        yield from super().offline(scope)
        if self.prepared is None:
            raise IntegrityError("an evaluator has prepared nothing")
        if self.index == 0:
            left = self.prepared.batch + (self.later or 0)
            for role in (*self.setting.holder_roles(), roles.MODEL_OWNER):
                yield Send(role, roles.READY, left.to_bytes(inputs.BATCH_BYTES, "little"))

    def deal(self, scope: Scope, batch: int) -> Play:
        """Refuse: joint keys live for one join."""
        yield from ()
        raise ConfigError(
            "nothing can be dealt ahead in exact mode", hint="its joint keys are made anew by every join"
        )

    def _prepare(
        self,
        step: fp.Step,
        dealt: Dealt,
        xs: list[MaskShare],
        standing: evaluator.Standing,
        between: Stream,
    ) -> Gate | MaskShare:
        if not isinstance(step.operation, fp.Bilinear):
            return super()._prepare(step, dealt, xs, standing, between)
        if self.public is None:
            raise IntegrityError("an evaluator encrypts before the joint key is made")
        sources = self.setting.sources(self.index)
        return EncryptedGate(step, step.operation, dealt, xs[0], self.public, sources, self._streams)
