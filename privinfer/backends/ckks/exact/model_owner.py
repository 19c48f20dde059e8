"""The model owner of exact mode: multiplies ciphertexts by its weights, which leave it in no form.

Of a result only the second half c1 leaves, under a fresh encryption of zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from privinfer.backends.base import Idle, Play, Private, Progress, Receive, Send
from privinfer.backends.ckks import joint
from privinfer.backends.ckks.exact.setting import PRODUCTS, Setting, batch_that_comes
from privinfer.backends.mpc import roles
from privinfer.errors import ConfigError, IntegrityError
from privinfer.graph import fixedpoint as fp
from privinfer.graph import reference
from privinfer.protocols.ckks import ring64
from privinfer.protocols.ckks.coefficients import Packing
from privinfer.protocols.ckks.crs import CRS
from privinfer.protocols.ckks.keys import PublicKey
from privinfer.protocols.ckks.messages import Message, unpack
from privinfer.protocols.mpc import encrypted
from privinfer.protocols.mpc.encrypted import OPENED, SENT
from privinfer.protocols.randomness import U64, Scope, Seed, Stream


@dataclass(frozen=True)
class _Layer:
    """Weights of one step, ready for one packing."""

    packing: Packing
    weights: U64


class ModelOwner(Idle):
    """Evaluates linear layers."""

    def __init__(self, setting: Setting, private: Private) -> None:
        if private.model is None:
            raise ConfigError("the model owner has to bring the model", hint="pass model=")
        self.setting, self.model = setting, private.model
        self.at_once = roles.limits(setting.program, setting.table)[setting.table.network]
        self.batch: int | None = None
        self.later: int | None = None
        self._public: PublicKey | None = None
        self._seed: Seed | None = None
        self._stream: Stream | None = None
        self._layers: dict[int, _Layer] = {}

    def setup(self) -> Play:
        """A seed for E1 where this party is no evaluator; witness the joint public key."""
        setting = self.setting
        for step, op in setting.program.bilinear():
            total = np.abs(np.ldexp(self.model.parameters[step.node]["weight"], op.weight_frac)).sum()
            ring64.check_weights(
                setting.parameters, len(setting.holders), SENT, OPENED, float(total), step.node
            )
        if setting.keeper(roles.MODEL_OWNER) is None:
            self._seed = Seed.fresh()
            yield Send(roles.E1, roles.SEEDS, self._seed.expose())
        crs = CRS(setting.session)
        self._public = yield from joint.make(setting, crs, roles.MODEL_OWNER, None)

    def offline(self, scope: Scope) -> Play:
        """Hear how many rows come, and pack the weights for as many."""
        self._stream = Stream(self._seed, scope, PRODUCTS) if self._seed is not None else None
        self.batch, self.later = yield from batch_that_comes(self.setting, self.later, self.at_once)
        for step, op in self.setting.program.bilinear() if self.batch else []:
            product = self.setting.product(step, op, self.batch)
            have = self._layers.get(step.index)
            if have is None or have.packing != product.packing:
                weight = fp.encode(self.model.parameters[step.node]["weight"], op.weight_frac)
                self._layers[step.index] = _Layer(product.packing, encrypted.prepare(product, weight))

    def online(self) -> Play:
        """Products in the order in which they are due; several wait for key holders at a time."""
        batch = self.batch or 0
        starts = self.setting.starts(batch)
        gates = {step.index: (step, op) for step, op in self.setting.program.bilinear()}
        # ciphertexts come a message after the step begins, shares two after that
        events = sorted([(s + 1, i) for i, s in starts.items()] + [(s + 3, i) for i, s in starts.items()])
        open_halves: dict[int, U64] = {}
        for count, (_, index) in enumerate(events):
            step, op = gates[index]
            if index not in open_halves:
                open_halves[index] = yield from self._multiply(step, batch)
            else:
                yield from self._share(step, op, batch, open_halves.pop(index))
            yield Progress(count + 1, len(events), step.node)

    def _multiply(self, step: fp.Step, batch: int) -> Play:
        """Take both evaluators' ciphertexts; hand c1 of the products out; returns c0."""
        setting, p = self.setting, self.setting.parameters
        cost = roles.step_cost(setting.program, step, batch)
        came = []
        for evaluator in roles.EVALUATORS:
            came.append((yield Receive(evaluator, step.index, cost.encrypted)))
        found = np.zeros((0, 2, OPENED, p.n), dtype=np.uint64)
        if cost.encrypted:
            layer, basis = self._layers[step.index], p.data(SENT)
            parts = [
                unpack(
                    data, p, basis, (layer.packing.sent, 2), culprit=setting.table.party[e], step=step.node
                )
                for e, data in zip(roles.EVALUATORS, came, strict=True)
            ]
            if self._public is None:
                raise IntegrityError("a ciphertext would leave before there is a key to hide it under")
            x = p.ring.add(parts[0], parts[1], basis)
            found = encrypted.multiply(self._public, layer.packing, layer.weights, x)
        halves = Message(np.ascontiguousarray(found[:, 1])).to_bytes()
        for role in setting.holder_roles():
            yield Send(role, step.index, halves)
        return np.ascontiguousarray(found[:, 0])

    def _share(self, step: fp.Step, op: fp.Bilinear, batch: int, c0: U64) -> Play:
        """Add up what the key holders send; hand this party's own share on."""
        setting = self.setting
        cost = roles.step_cost(setting.program, step, batch)
        came: dict[str, bytes] = {}
        for name, role in zip(setting.holders, setting.holder_roles(), strict=True):
            came[name] = yield Receive(role, step.index, cost.halves)
        share = np.zeros((batch, *step.type.shape), dtype=np.uint64)
        if len(c0):
            frac = setting.program.steps[step.inputs[0]].type.frac + op.weight_frac
            bias = fp.encode(self.model.parameters[step.node]["bias"], frac)
            rank = 1 + len(step.type.shape)
            share = setting.product(step, op, batch).gather(encrypted.owner_share(c0, came))
            share = share + reference.along(bias, reference.bias_axis(op.op, rank), rank)
        own = encrypted.hand_on(step, share, self._stream)
        yield Send(setting.target(roles.MODEL_OWNER), step.index, own)
