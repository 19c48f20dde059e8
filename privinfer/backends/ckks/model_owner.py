"""The model owner: adds up shares of the joint keys, evaluates its model on ciphertexts, asks for refreshes.

Its weights never leave it. Whatever ciphertext does leaves with a fresh encryption of zero on top, smudged
where the result is opened, so that nothing tells how it was computed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

from privinfer.backends.base import Idle, Play, Private, Progress, Receive, Send
from privinfer.backends.ckks import joint, kept, noised, roles
from privinfer.backends.ckks.cipher import Ciphertext
from privinfer.backends.ckks.evaluate import Evaluation, EvaluationKeys, Rows
from privinfer.backends.ckks.kept import Kept
from privinfer.backends.ckks.key_holder import as_bytes
from privinfer.backends.ckks.plan import Opened, Refreshed
from privinfer.backends.ckks.roles import Request, Setting
from privinfer.errors import ConfigError, InputError, IntegrityError, ProtocolViolation, TransportError
from privinfer.protocols.ckks import encryption, galois, public_switch, refresh, relinearise
from privinfer.protocols.ckks.crs import CRS
from privinfer.protocols.ckks.keys import PublicKey
from privinfer.protocols.ckks.messages import residues_size, unpack
from privinfer.protocols.randomness import U64, Scope
from privinfer.protocols.sealing import Context

Asking = Generator[Send | Receive | Progress, Any, list[U64]]


class ModelOwner(Idle):
    """Evaluates; the only one that never learns anything but sizes."""

    def __init__(self, setting: Setting, private: Private) -> None:
        if private.model is None:
            raise ConfigError("the model owner has to bring the model", hint="pass model=")
        self.setting, self.model, self.private = setting, private.model, private
        self.scope = Scope(setting.session, 0)
        self.evaluation: Evaluation | None = None
        self.keys: EvaluationKeys | None = None
        self._begin(setting.session)
        self.rounds: int | None = None
        self.batch: int | None = None
        self._alive = list(range(len(setting.holders)))
        self._lost: list[str] = []
        self._count = self._asked = 0
        self._said = 0.0

    def _begin(self, session: bytes) -> None:
        """Labels go by the session in which keys were made."""
        self.session = session
        self.crs = CRS(session)
        self.public: PublicKey | None = None

    # -- once a session --------------------------------------------------------------------------

    def setup(self) -> Play:
        """Witness the joint public key, add up the others, encode the weights."""
        setting, plan = self.setting, self.setting.plan
        self._begin(setting.session)
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
        self._prepare(EvaluationKeys(self.public, key, keys))

    def _prepare(self, keys: EvaluationKeys) -> None:
        plan, self.keys = self.setting.plan, keys
        self.evaluation = Evaluation(plan, self.model, keys)
        self.evaluation.prepare()
        outlook = self.evaluation.outlook()
        roles.check_outlook(plan, outlook)
        self.notes = tuple(one.describe() for one in outlook)

    def keep(self) -> bytes | None:
        """The joint public key, and the keys it evaluates with; weights are encoded anew."""
        if self.keys is None or self.public is None:
            raise IntegrityError("a model owner keeps keys that were not made")
        parts = {"joint": self.public.to_bytes()}
        if self.keys.relinearisation is not None:
            parts["relinearisation"] = kept.array(self.keys.relinearisation)
        parts |= {f"galois {element}": kept.array(key) for element, key in self.keys.galois.items()}
        return kept.pack(self.setting.plan, parts)

    def restore(self, session: bytes, data: bytes) -> None:
        """Take the keys of an earlier join; the weights may have changed since."""
        if session == self.session and self.public is not None:
            return  # made in this join
        plan, few = self.setting.plan, self.setting.linear
        p, found = plan.parameters, Kept(plan, data)
        self._begin(session)
        self.public = found.public("joint")
        key = None
        if plan.relinearises:
            key = found.residues("relinearisation", (p.digits, 2), p.full)
        keys = {
            element: found.residues(f"galois {element}", (few.digits, 2), few.full, few)
            for element in plan.galois_elements
        }
        self._prepare(EvaluationKeys(self.public, key, keys))

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
        self.scope = scope
        self._grant(1)
        for role in self.setting.table.party:
            if role != roles.MODEL_OWNER:
                yield Send(role, roles.READY, bytes(roles.READY_BYTES))

    def resume(self, scope: Scope, kept: bytes | None) -> Play:
        """As :meth:`offline`."""
        return self.offline(scope)

    def online(self) -> Play:
        """Inputs, layers, refreshes, and the outputs under their receivers' keys."""
        setting, plan = self.setting, self.setting.plan
        if self.evaluation is None:
            raise IntegrityError("an evaluation was started without keys")
        batch = self.batch = yield from self._agree_on_batch()
        self._grant(batch)
        self._count = 0
        self._said = time.monotonic()
        noise = yield from self._draw_noise(batch)
        work = self.evaluation.run_with_pauses((yield from self._inputs(batch)))
        number = self._asked = 0
        try:
            request = next(work)
            while True:
                if request is None:
                    yield from self._at_work()
                    request = work.send(None)
                    continue
                data = yield from self._refresh(number, request.targets, request.ciphertexts)
                number += 1
                yield Progress(number, len(plan.refreshes) + 1, "refresh")
                request = work.send(
                    [Ciphertext(d, c.scale) for d, c in zip(data, request.ciphertexts, strict=True)]
                )
        except StopIteration as done:
            results: dict[str, Rows] = done.value
        opened = [(o, c) for o in plan.outputs for row in results[o.name] for c in row]
        if noise:
            opened = [(o, self._noised(o, c, e)) for (o, c), e in zip(opened, noise, strict=True)]
        data = yield from self._open(number, [o for o, _ in opened], [c for _, c in opened])
        if self.private.budget is not None:  # on disk before a result leaves
            self.private.budget.spend(noised.charges(setting, batch))
        last = Request(Request.DONE, 0, 0, batch).to_bytes()
        for k in self._alive:
            yield Send(roles.holder(k), roles.ASK + self._count, last)
        for party in setting.receivers():
            yield Send(roles.receiver(party), roles.BATCH, batch.to_bytes(roles.BATCH_BYTES, "little"))
        for k, one in enumerate(plan.outputs):
            mine = [d for d, (o, _) in zip(data, opened, strict=True) if o is one]
            party = setting.table.receivers[one.name]
            context = Context(setting.session, self.scope, roles.RESULT + k, roles.MODEL_OWNER)
            sealed = self.private.keys.seal(party, as_bytes(mine), context)
            yield Send(roles.receiver(party), roles.RESULT + k, sealed)
        self.rounds = roles.COMPUTED * self._asked
        yield Progress(len(plan.refreshes) + 1, len(plan.refreshes) + 1, "opened")

    def _grant(self, rows: int) -> None:
        """Refuse rows that no budget is left for."""
        if not self.setting.table.release.limited:
            return
        if self.private.budget is None:
            raise IntegrityError("answers are limited, and there is nothing to count them in")
        self.private.budget.check(noised.charges(self.setting, rows))

    def _draw_noise(self, batch: int) -> Generator[Send, Any, list[U64]]:
        """Noise for every ciphertext that will be opened, in order; none where none is agreed."""
        costs, found = noised.noises(self.setting), []
        for one in self.setting.plan.outputs if costs else ():
            for _ in range(batch * one.ciphertexts):
                found.append(noised.draw(self.setting.parameters, one, costs[one.name]))
                yield from self._at_work()
        return found

    def _noised(self, one: Opened, ciphertext: Ciphertext, noise: U64) -> Ciphertext:
        p, data = self.setting.parameters, ciphertext.data.copy()
        data[0] = p.ring.add(data[0], noise, p.data(one.level))
        return Ciphertext(data, ciphertext.scale)

    def _at_work(self) -> Generator[Send, Any, None]:
        """Tell the key holders now and then that this goes on: all others see that these hear of it."""
        if time.monotonic() - self._said > roles.AT_WORK:
            wait = Request(Request.WAIT, 0, 0, self.batch or 0).to_bytes()
            for k in self._alive:
                yield Send(roles.holder(k), roles.ASK + self._count, wait)
            self._count += roles.REQUEST
            self._said = time.monotonic()

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
            try:
                fresh.append(refresh.finish(p, span, common, c[0], total))
            except ProtocolViolation as error:  # of a share, or of an input: nobody can tell which
                error.culprit = " or ".join(dict.fromkeys([*shares[k], *self.setting.owners()]))
                raise
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
            self._count += roles.REQUEST
            self._asked += 1
            self._said = time.monotonic()
            if not lost:
                return hidden, f"{self.scope.inference}/{number}/{attempt}", shares
            self._alive = [k for k in self._alive if k not in lost]
            self._lost += [setting.holders[k] for k in lost]
            if len(self._alive) < setting.threshold:
                names = " or ".join(self._lost)
                raise TransportError("left, and too few key holders are there now", culprit=names)
            attempt += 1
