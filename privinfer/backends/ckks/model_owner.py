"""The model owner: adds up shares of the joint keys, evaluates its model on ciphertexts, asks for refreshes.

Its weights never leave it. Whatever ciphertext does leaves with a fresh encryption of zero on top, smudged
where the result is opened, so that nothing tells how it was computed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

from privinfer.backends.base import Idle, Play, Private, Progress, Receive, Send
from privinfer.backends.ckks import joint, roles
from privinfer.backends.ckks.cipher import Ciphertext
from privinfer.backends.ckks.evaluate import Evaluation, EvaluationKeys, Rows
from privinfer.backends.ckks.key_holder import as_bytes
from privinfer.backends.ckks.plan import Opened, Refreshed
from privinfer.backends.ckks.roles import Request, Setting
from privinfer.errors import ConfigError, InputError, IntegrityError, TransportError
from privinfer.protocols.ckks import encryption, galois, public_switch, refresh, relinearise
from privinfer.protocols.ckks.crs import CRS
from privinfer.protocols.ckks.keys import PublicKey
from privinfer.protocols.ckks.messages import residues_size, unpack
from privinfer.protocols.randomness import U64, Scope

Asking = Generator[Send | Receive | Progress, Any, list[U64]]


class ModelOwner(Idle):
    """Evaluates; the only one that never learns anything but sizes."""

    def __init__(self, setting: Setting, private: Private) -> None:
        if private.model is None:
            raise ConfigError("the model owner has to bring the model", hint="pass model=")
        self.setting, self.model = setting, private.model
        self.crs = CRS(setting.session)
        self.public: PublicKey | None = None
        self.evaluation: Evaluation | None = None
        self.rounds: int | None = None
        self.batch: int | None = None
        self.inference = 0
        self._alive = list(range(len(setting.holders)))
        self._count = 0

    # -- once a session --------------------------------------------------------------------------

    def setup(self) -> Play:
        """Witness the joint public key, add up the others, encode the weights."""
        setting, plan = self.setting, self.setting.plan
        self.public = yield from joint.make(setting, self.crs, roles.MODEL_OWNER, None)
        key = (yield from self._relinearise()) if plan.relinearises else None
        keys: dict[int, U64] = {}
        for k, element in enumerate(plan.galois_elements):
            common = galois.sample(setting.linear, self.crs, element)
            size = galois.size(setting.linear)
            shares = {}
            for place, party in enumerate(setting.holders):
                data = yield Receive(roles.holder(place), roles.GALOIS + k, size)
                shares[party] = galois.parse(setting.linear, data, party)
            total = galois.aggregate(setting.linear, shares, setting.holders)
            keys[element] = galois.finish(setting.linear, common, total)
            yield Progress(k + 1, len(plan.galois_elements), "rotation keys")
        self.evaluation = Evaluation(plan, self.model, EvaluationKeys(self.public, key, keys))
        self.evaluation.prepare()
        outlook = self.evaluation.outlook()
        roles.check_outlook(plan, outlook)
        self.notes = tuple(one.describe() for one in outlook)

    def _relinearise(self) -> Generator[Send | Receive, Any, U64]:
        p, holders = self.setting.parameters, self.setting.holders
        size_first, _, size_second = relinearise.size(p)
        first, second = {}, {}
        for k, party in enumerate(holders):
            data = yield Receive(roles.holder(k), roles.FIRST, size_first)
            first[party] = relinearise.parse_first(p, data, party)
        total = relinearise.aggregate_first(p, first, holders)
        for k in range(len(holders)):
            yield Send(roles.holder(k), roles.SUM, total.to_bytes())
        for k, party in enumerate(holders):
            data = yield Receive(roles.holder(k), roles.SECOND, size_second)
            second[party] = relinearise.parse_second(p, data, party)
        return relinearise.finish(p, total, relinearise.aggregate_second(p, second, holders))

    # -- each inference --------------------------------------------------------------------------

    def offline(self, scope: Scope) -> Play:
        """Note which inference comes, and tell everybody that the keys and the weights are in place."""
        self.inference = scope.inference
        for role in self.setting.table.party:
            if role != roles.MODEL_OWNER:
                yield Send(role, roles.READY, bytes(roles.READY_BYTES))

    def online(self) -> Play:
        """Inputs, layers, refreshes, and the outputs under their receivers' keys."""
        setting, plan = self.setting, self.setting.plan
        if self.evaluation is None:
            raise IntegrityError("an evaluation was started without keys")
        batch = self.batch = yield from self._agree_on_batch()
        self._count = 0
        work = self.evaluation.run((yield from self._inputs(batch)))
        number = 0
        try:
            request = next(work)
            while True:
                data = yield from self._refresh(number, request.targets, request.ciphertexts)
                number += 1
                yield Progress(number, len(plan.refreshes) + 1, "refresh")
                request = work.send(
                    [Ciphertext(d, c.scale) for d, c in zip(data, request.ciphertexts, strict=True)]
                )
        except StopIteration as done:
            results: dict[str, Rows] = done.value
        opened = [(o, c) for o in plan.outputs for row in results[o.name] for c in row]
        data = yield from self._open(number, [o for o, _ in opened], [c for _, c in opened])
        last = Request(Request.DONE, 0, 0, batch).to_bytes()
        for k in self._alive:
            yield Send(roles.holder(k), roles.ASK + self._count, last)
        for party in setting.receivers():
            yield Send(roles.receiver(party), roles.BATCH, batch.to_bytes(roles.BATCH_BYTES, "little"))
        for k, one in enumerate(plan.outputs):
            mine = [d for d, (o, _) in zip(data, opened, strict=True) if o is one]
            yield Send(roles.receiver(setting.table.receivers[one.name]), roles.RESULT + k, as_bytes(mine))
        self.rounds = roles.COMPUTED * self._count
        yield Progress(len(plan.refreshes) + 1, len(plan.refreshes) + 1, "opened")

    def _agree_on_batch(self) -> Generator[Receive, bytes, int]:
        agreed: int | None = None
        for party in self.setting.owners():
            data = yield Receive(roles.owner(party), roles.BATCH, roles.BATCH_BYTES)
            rows = int.from_bytes(data, "little")
            if rows > roles.MAX_BATCH:
                raise InputError(f"{rows} rows are more than the {roles.MAX_BATCH} of a run", culprit=party)
            if agreed not in (None, rows):
                raise InputError(f"brings {rows} rows where others bring {agreed}", culprit=party)
            agreed = rows
        return agreed or 0

    def _inputs(self, batch: int) -> Generator[Receive, bytes, dict[str, Rows]]:
        p = self.setting.parameters
        found: dict[str, Rows] = {}
        for k, one in enumerate(self.setting.plan.inputs):
            party = self.setting.table.owners[one.name]
            size = residues_size(p, 2 * one.level * one.ciphertexts * batch)
            data = yield Receive(roles.owner(party), roles.INPUT + k, size)
            lead = (batch, one.ciphertexts, 2)
            rows = unpack(data, p, p.data(one.level), lead, culprit=party, step="input")
            found[one.name] = [[Ciphertext(c, one.scale) for c in row] for row in rows]
        return found

    def _refresh(
        self, number: int, entries: Sequence[Refreshed], ciphertexts: Sequence[Ciphertext]
    ) -> Asking:
        p = self.setting.parameters
        asked, label, shares = yield from self._ask(
            number,
            ciphertexts,
            lambda k: refresh.size(p, entries[k].span),
            lambda k, data, party: refresh.parse(p, entries[k].span, data, party),
        )
        fresh = []
        for k, c in enumerate(asked):
            span = entries[k].span
            total = refresh.aggregate(p, span, shares[k], list(shares[k]))
            common = refresh.sample(p, self.crs, f"{label}/{k}", span)
            fresh.append(refresh.finish(p, span, common, c[0], total))
        return fresh

    def _open(self, number: int, entries: Sequence[Opened], ciphertexts: Sequence[Ciphertext]) -> Asking:
        p = self.setting.parameters
        asked, _, shares = yield from self._ask(
            number,
            ciphertexts,
            lambda k: public_switch.size(p, entries[k].level),
            lambda k, data, party: public_switch.parse(p, data, entries[k].level, party),
        )
        found = []
        for k, c in enumerate(asked):
            total = public_switch.aggregate(p, entries[k].level, shares[k], list(shares[k]))
            found.append(public_switch.finish(p, c[0], total))
        return found

    def _ask(
        self,
        number: int,
        ciphertexts: Sequence[Ciphertext],
        size: Callable[[int], int],
        parse: Callable[[int, memoryview, str], Any],
    ) -> Generator[Send | Receive, Any, tuple[list[U64], str, list[dict[str, Any]]]]:
        """One request: again, newly hidden and to others, where a key holder is lost that can be spared.

        The evaluation hides what it hands out; a second time it has to be another ciphertext.
        """
        setting, attempt = self.setting, 0
        if self.public is None:
            raise IntegrityError("a ciphertext would leave before there is a public key to hide it under")
        sizes = [size(k) for k in range(len(ciphertexts))]
        while True:
            active = self._alive[: setting.threshold]
            hidden = [c.data for c in ciphertexts]
            if attempt:
                hidden = [encryption.rerandomise(setting.parameters, self.public, data) for data in hidden]
            asked = Request(number, attempt, sum(1 << k for k in active), self.batch or 0).to_bytes()
            body = as_bytes([c[1] for c in hidden])
            for k in self._alive:
                yield Send(roles.holder(k), roles.ASK + self._count, asked)
                if k in active:
                    yield Send(roles.holder(k), roles.BODY + self._count, body)
            shares: list[dict[str, Any]] = [{} for _ in ciphertexts]
            lost = []
            for k in active:
                step = roles.SHARE + self._count
                data = yield Receive(roles.holder(k), step, sum(sizes), optional=not setting.whole)
                if data is None:
                    lost.append(k)
                    continue
                view = memoryview(data)
                for n, length in enumerate(sizes):
                    shares[n][setting.holders[k]] = parse(n, view[:length], setting.holders[k])
                    view = view[length:]
            self._count += 1
            if not lost:
                return hidden, f"{self.inference}/{number}/{attempt}", shares
            self._alive = [k for k in self._alive if k not in lost]
            if len(self._alive) < setting.threshold:
                names = " or ".join(setting.holders[k] for k in lost)
                raise TransportError("left, and too few key holders are there now", culprit=names)
            attempt += 1
