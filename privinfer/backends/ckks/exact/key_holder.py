"""A key holder of exact mode: turns each product's ciphertext into shares mod 2**64, once."""

from __future__ import annotations

import numpy as np

from privinfer.backends.base import Idle, Play, Private, Progress, Receive, Send
from privinfer.backends.ckks import joint
from privinfer.backends.ckks.exact.setting import PRODUCTS, Setting, batch_that_comes
from privinfer.backends.mpc import roles
from privinfer.errors import IntegrityError
from privinfer.protocols.ckks.crs import CRS
from privinfer.protocols.ckks.keys import SecretShare
from privinfer.protocols.ckks.messages import unpack
from privinfer.protocols.ckks.release import Releases, volatile
from privinfer.protocols.mpc import encrypted
from privinfer.protocols.randomness import Scope, Seed, Stream


class KeyHolder(Idle):
    """Holds one share of the joint secret key; `place` is its place in the session file."""

    def __init__(self, place: int, setting: Setting, private: Private) -> None:
        self.setting, self.role = setting, setting.holder_roles()[place]
        self.asker = setting.table.party[roles.MODEL_OWNER]
        self.releases = Releases(setting.session, private.release or volatile)
        self.at_once = roles.limits(setting.program, setting.table)[setting.table.network]
        self.batch: int | None = None
        self.later: int | None = None
        self._secret: SecretShare | None = None
        self._seed: Seed | None = None
        self._stream: Stream | None = None
        self._inference = 0

    def setup(self) -> Play:
        """A seed for E1 where this party is no evaluator; the joint public key."""
        setting = self.setting
        if setting.keeper(self.role) is None:
            self._seed = Seed.fresh()
            yield Send(roles.E1, roles.SEEDS, self._seed.expose())
        self._secret = SecretShare.fresh(setting.parameters)
        yield from joint.make(setting, CRS(setting.session), self.role, self._secret)

    def offline(self, scope: Scope) -> Play:
        """Hear how many rows come."""
        self._inference = scope.inference
        self._stream = Stream(self._seed, scope, PRODUCTS) if self._seed is not None else None
        self.batch, self.later = yield from batch_that_comes(self.setting, self.later, self.at_once)

    def online(self) -> Play:
        """Answer for each product, in the order in which they are due."""
        setting, p, batch = self.setting, self.setting.parameters, self.batch or 0
        secret = self._secret
        if secret is None:
            raise IntegrityError("a key holder answers before the joint key is made")
        starts = setting.starts(batch)
        due = sorted(setting.program.bilinear(), key=lambda s: (starts[s[0].index], s[0].index))
        for count, (step, op) in enumerate(due):
            cost = roles.step_cost(setting.program, step, batch)
            data = yield Receive(roles.MODEL_OWNER, step.index, cost.halves)
            share = np.zeros((batch, *step.type.shape), dtype=np.uint64)
            said = b""
            if data:
                product = setting.product(step, op, batch)
                lead = (product.packing.found,)
                basis = p.data(encrypted.OPENED)
                asked = unpack(data, p, basis, lead, culprit=self.asker, step=step.node)
                wanted = {f"{self._inference}/{step.index}/{k}": c1 for k, c1 in enumerate(asked)}
                permits = self.releases.claim_all(wanted, self.asker)  # on disk before anything is computed
                kept, said = encrypted.holder_share(secret, asked, list(permits.values()))
                share = product.gather(kept)
            yield Send(roles.MODEL_OWNER, step.index, said)
            yield Send(setting.target(self.role), step.index, encrypted.hand_on(step, share, self._stream))
            yield Progress(count + 1, len(due), step.node)
