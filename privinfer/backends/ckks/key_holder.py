"""A key holder: takes part in making the joint keys, then answers requests, each ciphertext once."""

from __future__ import annotations

import numpy as np

from privinfer.backends.base import Idle, Play, Private, Progress, Receive, Send
from privinfer.backends.ckks import joint, kept, roles
from privinfer.backends.ckks.kept import Kept
from privinfer.backends.ckks.plan import Opened, Refreshed
from privinfer.backends.ckks.roles import Request, Setting
from privinfer.errors import IntegrityError, ProtocolViolation
from privinfer.protocols.ckks import galois, public_switch, refresh, relinearise, threshold
from privinfer.protocols.ckks.crs import CRS
from privinfer.protocols.ckks.keys import KeyShare, PublicKey, SecretShare
from privinfer.protocols.ckks.messages import residues_size, unpack
from privinfer.protocols.ckks.release import Releases, volatile
from privinfer.protocols.randomness import U64, Scope


class KeyHolder(Idle):
    """Holds one share of the joint secret key; `place` is its place in the session file."""

    def __init__(self, place: int, setting: Setting, private: Private) -> None:
        self.place, self.setting = place, setting
        self.role, self.name = roles.holder(place), setting.holders[place]
        self.asker = setting.table.party[roles.MODEL_OWNER]
        self.record = private.release or volatile
        self.batch: int | None = None
        self.access = threshold.Access(setting.holders, setting.threshold)
        self.inference = 0
        self._begin(setting.session)

    def _begin(self, session: bytes) -> None:
        """Forget all keys: labels and ledger go by the session in which keys were made."""
        self.session = session
        self.releases = Releases(session, self.record)
        self.crs = CRS(session)
        self.targets: dict[str, PublicKey] = {}
        self.spared = len(self.setting.holders) - self.setting.threshold  # how many may be lost from now on
        self._secret: SecretShare | None = None
        self._point: threshold.HolderShare | None = None
        self._shares: dict[tuple[str, ...], KeyShare] = {}

    # -- once a session --------------------------------------------------------------------------

    def setup(self) -> Play:
        """Joint public key, relinearisation key, Galois keys, sub-shares, the receivers' keys."""
        setting, p = self.setting, self.setting.parameters
        self._begin(setting.session)
        self._secret = secret = SecretShare.fresh(p)
        public = yield from joint.make(setting, self.crs, self.role, secret)
        if self.name in setting.owners():
            yield Send(roles.owner(self.name), roles.JOINT_KEY, public.to_bytes())
        if setting.plan.relinearises:
            yield from self._relinearise(secret)
        few = SecretShare.restore(setting.linear, secret.expose())  # linear layers have few limbs
        elements = setting.plan.galois_elements
        for k, element in enumerate(elements):
            common = galois.sample(setting.linear, self.crs, element)
            share = galois.generate_share(setting.linear, few, common)
            yield Send(roles.MODEL_OWNER, roles.GALOIS + k, share.to_bytes())
            yield Progress(k + 1, len(elements), "rotation keys")
        if not setting.whole:
            yield from self._share_among_all(secret)
        for party in setting.receivers():
            data = yield Receive(roles.receiver(party), roles.RECEIVER_KEY, PublicKey.size(p))
            self.targets[party] = PublicKey.parse(p, data, party)

    def _relinearise(self, secret: SecretShare) -> Play:
        p = self.setting.parameters
        common = relinearise.sample(p, self.crs)
        ephemeral, first = relinearise.generate_first(p, secret, common)
        yield Send(roles.MODEL_OWNER, roles.FIRST, first.to_bytes())
        data = yield Receive(roles.MODEL_OWNER, roles.SUM, relinearise.size(p)[1])
        total = relinearise.parse_sum(p, data, self.asker)
        second = relinearise.generate_second(p, ephemeral, total, self.asker)
        yield Send(roles.MODEL_OWNER, roles.SECOND, second.to_bytes())

    def _share_among_all(self, secret: SecretShare) -> Play:
        p, holders = self.setting.parameters, self.setting.holders
        dealt = threshold.generate_shares(p, self.access, self.name, secret)
        for k, other in enumerate(holders):
            if other != self.name:
                yield Send(roles.holder(k), roles.SUBSHARE, dealt[other].expose())
        received = {self.name: dealt[self.name]}
        for k, other in enumerate(holders):
            if other != self.name:
                data = yield Receive(roles.holder(k), roles.SUBSHARE, threshold.size(p))
                received[other] = threshold.parse(p, data, other, self.name)
        self._point = threshold.aggregate(p, self.access, self.name, received)

    def keep(self) -> bytes | None:
        """What it multiplies with, and the receivers' keys; of a threshold, its point and not its s_i."""
        if self._secret is None:
            raise IntegrityError("a key holder keeps keys that were not made")
        parts = {f"target {party}": key.to_bytes() for party, key in self.targets.items()}
        if self._point is None:
            parts["secret"] = kept.ternary(self._secret)
        else:
            parts["point"] = kept.array(self._point.values)
        return kept.pack(self.setting.plan, parts)

    def restore(self, session: bytes, data: bytes) -> None:
        """Take the keys of an earlier join."""
        if session == self.session and self._secret is not None:
            return  # made in this join
        setting, found = self.setting, Kept(self.setting.plan, data)
        self._begin(session)
        self.targets = {party: found.public(f"target {party}") for party in setting.receivers()}
        if setting.whole:
            self._secret = found.secret("secret")
        else:
            point = found.residues("point", (), setting.parameters.full)
            self._point = threshold.HolderShare(setting.parameters, self.name, point)

    # -- each inference --------------------------------------------------------------------------

    def resume(self, scope: Scope, kept: bytes | None) -> Play:
        """As :meth:`offline`: the keys are there, and the number was never used."""
        return self.offline(scope)

    def offline(self, scope: Scope) -> Play:
        """Note which inference comes: its number is part of every label."""
        self.inference = scope.inference
        yield Receive(roles.MODEL_OWNER, roles.READY, roles.READY_BYTES)

    def online(self) -> Play:
        """Answer the plan's requests in their order until the model owner says that it was the last."""
        plan = self.setting.plan
        due, count, batch = 0, 0, None
        attempts = -1
        active: tuple[str, ...] = ()
        while True:
            data = yield Receive(roles.MODEL_OWNER, roles.ASK + count, roles.REQUEST_BYTES)
            asked = Request.parse(data)
            if asked.number == Request.DONE:
                if due <= len(plan.refreshes):
                    raise self._violation("stopped before the end of the plan")
                self.batch = batch
                return
            if asked.number == Request.WAIT:
                count += roles.REQUEST
                continue
            if asked.number == due:
                due, attempts = due + 1, 0
            elif asked.number == due - 1 and self.spared:
                # each time a key holder is lost, which never comes back
                attempts, self.spared = attempts + 1, self.spared - 1
            else:
                raise self._violation("asked for what is not due")
            if asked.attempt != attempts or asked.number > len(plan.refreshes):
                raise self._violation("asked for what is not due")
            if not 0 <= asked.batch <= roles.MAX_BATCH or batch not in (None, asked.batch):
                raise self._violation("asked for other rows than before")
            batch = asked.batch
            before, active = active, self._active(asked)
            if attempts and active == before:
                raise self._violation("asked the same key holders again")
            if self.name in active:
                yield from self._answer(asked, count, active)
            count += roles.REQUEST
            yield Progress(due, len(plan.refreshes) + 1, "request")

    def _active(self, asked: Request) -> tuple[str, ...]:
        places = asked.places()
        if len(places) != self.setting.threshold or places[-1] >= len(self.setting.holders):
            raise self._violation("named other key holders than an answer takes")
        return tuple(self.setting.holders[k] for k in places)

    def _answer(self, asked: Request, count: int, active: tuple[str, ...]) -> Play:
        plan, p = self.setting.plan, self.setting.parameters
        opens = asked.number == len(plan.refreshes)
        wanted: list[tuple[Refreshed | Opened, int]] = [
            (one, one.level if isinstance(one, Opened) else one.span.low)
            for one in (plan.outputs if opens else plan.refreshes[asked.number])
            for _ in range(one.ciphertexts * asked.batch)
        ]
        size = residues_size(p, sum(level for _, level in wanted))
        data = memoryview((yield Receive(roles.MODEL_OWNER, roles.BODY + count, size)))
        parts: list[U64] = []
        for _, level in wanted:
            length = residues_size(p, level)
            part, data = data[:length], data[length:]
            parts.append(unpack(part, p, p.data(level), (), culprit=self.asker, step="request"))
        label = f"{self.inference}/{asked.number}/{asked.attempt}"
        steps = {f"{label}/{k}": c1 for k, c1 in enumerate(parts)}
        permits = self.releases.claim_all(steps, self.asker)  # on disk before anything is computed
        share = self._share(active)
        said: list[bytes] = []
        for (one, _), (step, c1) in zip(wanted, steps.items(), strict=True):
            if isinstance(one, Opened):
                target = self.targets[self.setting.table.receivers[one.name]]
                answer = public_switch.generate_share(p, share, target, c1, one.smudging, permits[step])
                said.append(answer.to_bytes())
            else:
                common = refresh.sample(p, self.crs, step, one.span)
                fresh = refresh.generate_share(p, one.span, share, common, c1, permits[step])
                said.append(fresh.to_bytes())
        yield Send(roles.MODEL_OWNER, roles.SHARE + count, b"".join(said))

    def _share(self, active: tuple[str, ...]) -> KeyShare:
        """What this holder multiplies with: s_i, or lambda_i S_i among the active."""
        if self.setting.whole:
            if self._secret is None:
                raise IntegrityError("a key holder answers before the joint key is made")
            return self._secret
        if self._point is None:
            raise IntegrityError("a key holder answers before sub-shares were dealt")
        if active not in self._shares:
            self._shares[active] = threshold.finish(self.access, self._point, active)
        return self._shares[active]

    def _violation(self, what: str) -> ProtocolViolation:
        return ProtocolViolation(what, culprit=self.asker, step="request")


def as_bytes(parts: list[U64]) -> bytes:
    """Wire form of several arrays of residues, one after the other."""
    return b"".join(np.ascontiguousarray(part).astype("<u8", copy=False).tobytes() for part in parts)
