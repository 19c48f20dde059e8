"""One rank: it shares its own inputs and weights, computes with all others, and gets its own outputs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from privinfer.backends.base import Idle, Outputs, Play, Private, Role, Table
from privinfer.backends.crypten import blocking, bounds, library
from privinfer.backends.crypten.blocking import Channel
from privinfer.backends.crypten.communicator import Communicator, Seal, Unseal
from privinfer.errors import ConfigError, InputError, IntegrityError
from privinfer.graph import ir
from privinfer.protocols import privacy
from privinfer.protocols.randomness import Scope
from privinfer.protocols.sealing import Context

DEALER = 0  # also the model owner's rank
MAX_BATCH = 65_536
NO_INPUT = -1

Shared = Any  # a crypten.MPCTensor


class Rank(Idle):
    """What one party does; all ranks do the same in the same order.

    Attributes
    ----------
    rounds, batch : int or None
        Of the last inference: exchanges between all ranks, and rows.
    """

    def __init__(self, rank: int, table: Table, private: Private) -> None:
        self.rank, self.table, self.private = rank, table, private
        self.roles = [f"rank:{k}" for k in range(len(table.party))]
        self.ranks = {party: k for k, role in enumerate(self.roles) for party in (table.party[role],)}
        self.scope = Scope(table.session, 0)
        self.rounds: int | None = None
        self.batch: int | None = None
        self._seat = library.Seat()
        self._weights: dict[str, dict[str, Shared]] = {}

    def setup(self) -> Play:
        """Agree on generators; share the weights, which takes no message."""
        if self.private.model is not None and self.table.architecture.precision.basis == "interval":
            bounds.analyse(self.private.model, len(self.roles))
        yield from self._blocking(self._setup)

    def deal(self, scope: Scope, batch: int) -> Play:
        """Refuse: CrypTen's first party deals while all compute."""
        yield from ()
        raise ConfigError("crypten deals nothing ahead", hint="run without a store")

    def offline(self, scope: Scope) -> Play:
        """Note which inference comes."""
        self.scope = scope
        yield from ()

    def online(self) -> Play:
        """Share the inputs, run the graph, show each output to its receiver alone."""
        return (yield from self._blocking(self._online))

    def _blocking(self, work: Callable[[Any, Channel], Any]) -> Play:
        def seated(channel: Channel) -> Any:
            self._seat.communicator = Communicator(channel, self.rank, self.roles)
            with library.seated(self._seat) as crypten:
                return work(crypten, channel)

        return (yield from blocking.play(seated, f"crypten {self.roles[self.rank]}"))

    # -- in CrypTen's thread ---------------------------------------------------------------------

    def _setup(self, crypten: Any, channel: Channel) -> None:
        crypten._setup_prng()
        model = self.private.model
        for node, shapes in self.table.architecture.parameter_shapes().items():
            own = model.parameters[node] if model is not None else {}
            self._weights[node] = {
                name: share(crypten, own.get(name), shape, DEALER) for name, shape in shapes.items()
            }

    def _online(self, crypten: Any, channel: Channel) -> Outputs:
        architecture = self.table.architecture
        communicator = self._seat.communicator
        self.batch = batch = self._agree_on_batch(communicator)
        receivers = {o.name: self.ranks[self.table.receivers[o.name]] for o in architecture.outputs}
        if not batch:
            self.rounds = 0
            shapes = architecture.shapes()
            return {
                o.name: np.empty((0, *shapes[o.value]))
                for o in architecture.outputs
                if receivers[o.name] == self.rank
            }
        values: dict[str, Shared] = {}
        for source in architecture.inputs:
            owner = self.ranks[self.table.owners[source.name]]
            own = self.private.inputs.get(source.name) if owner == self.rank else None
            values[source.name] = share(crypten, own, (batch, *source.shape), owner)
        count = len(architecture.nodes)
        for k, node in enumerate(architecture.nodes):
            xs = [values[name] for name in node.inputs]
            values[node.name] = apply(crypten, node, self._weights.get(node.name, {}), xs)
            channel.progress(k + 1, count, node.name)
        self.rounds = communicator.step - 1  # the first agreed on the batch
        if self.rank == DEALER and self.table.release.limited:
            if self.private.budget is None:
                raise IntegrityError("answers are limited, and there is nothing to count them in")
            # on disk before this rank's share of a result leaves
            self.private.budget.spend(privacy.charges(self.table.receivers, batch, {}))
        found: Outputs = {}
        for output in architecture.outputs:
            party = self.table.receivers[output.name]
            words = reveal(values[output.value], receivers[output.name], communicator, *self._sealing(party))
            if words is not None:
                found[output.name] = np.ldexp(words.numpy().astype(np.float64), -bounds.BITS)
        return found

    def _sealing(self, receiver: str) -> tuple[Seal, Unseal]:
        """How shares of a result are sealed to its receiver, and opened there."""
        table, scope, keys = self.table, self.scope, self.private.keys

        def seal(step: int, message: bytes) -> bytes:
            context = Context(table.session, scope, step, self.roles[self.rank])
            return keys.seal(receiver, message, context)

        def unseal(step: int, sender: Role, message: bytes) -> bytes:
            context = Context(table.session, scope, step, sender)
            return keys.open(message, context, table.party[sender])

        return seal, unseal

    def _agree_on_batch(self, communicator: Communicator) -> int:
        """The one batch size of all inputs; InputError names the owner that differs from those before."""
        torch: Any = importlib.import_module("torch")
        owners = set(self.table.owners.values())
        own = [len(x) for x in self.private.inputs.values()]
        said = communicator.all_gather(torch.tensor(own[0] if own else NO_INPUT))
        agreed: int | None = None
        for party in (p for p in self.ranks if p in owners):
            batch = int(said[self.ranks[party]])
            if not 0 <= batch <= MAX_BATCH:
                raise InputError(f"a batch of {batch} is not in 0 to {MAX_BATCH}", culprit=party)
            if agreed is not None and batch != agreed:
                raise InputError(f"brings {batch} rows where others bring {agreed}", culprit=party)
            agreed = batch
        return agreed or 0


def share(crypten: Any, own: Any, shape: tuple[int, ...], source: int) -> Shared:
    """Additive shares of what the source's rank alone holds: zeros from common seeds, no message."""
    torch: Any = importlib.import_module("torch")
    known = np.zeros(shape) if own is None else bounds.rounded(own)
    return crypten.cryptensor(torch.from_numpy(known), src=source)


def reveal(value: Shared, receiver: int, communicator: Communicator, seal: Seal, unseal: Unseal) -> Any:
    """The shared integers at the receiver, whose key the shares are sealed to; None elsewhere.

    Shares are refreshed before, so that they tell the receiver nothing but their sum.
    """
    fresh = value.share + type(value._tensor).PRZS(value.share.size()).share
    return communicator.reduce_sealed(fresh, receiver, seal, unseal)


def apply(crypten: Any, node: ir.Node, weights: Mapping[str, Shared], xs: list[Shared]) -> Shared:
    """One operator on shared values, batch first.

    Raises
    ------
    ModelUnsupported
        The operator is not on crypten.
    """
    x, op = xs[0], node.op
    torch: Any = importlib.import_module("torch")
    match op:
        case ir.Linear():
            return x.matmul(weights["weight"]) + weights["bias"]
        case ir.Conv2d():
            y = padded(x, op.padding).conv2d(
                weights["weight"], stride=op.stride, padding=0, dilation=op.dilation, groups=op.groups
            )
            return y + weights["bias"].reshape(1, -1, 1, 1)
        case ir.Scale():
            shape = [-1 if k == op.axis else 1 for k in range(x.dim())]
            return x * weights["weight"].reshape(shape) + weights["bias"].reshape(shape)
        case ir.AvgPool2d():
            total = padded(x, op.padding)
            total._tensor = total._tensor._sum_pool2d(op.kernel, stride=op.stride)
            divisor = bounds.divisor_of(op, tuple(x.size())[1:])
            if isinstance(divisor, int):
                return total if divisor == 1 else total.div(divisor)
            return total * torch.from_numpy(divisor)
        case ir.Relu():
            return x.relu()
        case ir.Add():
            return x + xs[1]
        case ir.Multiply(factor):
            if factor.is_integer():
                return x * int(factor)
            return x * torch.from_numpy(bounds.rounded(factor))
        case ir.Shift(offset):
            return x + torch.from_numpy(np.asarray(bounds.rounded(offset)))
        case ir.Mul():
            return x * xs[1]
        case ir.MatMul():
            return x.matmul(xs[1])
        case ir.Sum(axis):
            return x.sum(dim=axis)
        case ir.Gather(axis, indices):
            size = x.size(axis)
            if -1 in indices:  # one more place, which holds zero
                x = crypten.cat([x, x.index_select(axis, torch.tensor([0])) * 0], dim=axis)
            return x.index_select(axis, torch.tensor([size if i < 0 else i for i in indices]))
        case ir.Polynomial():
            return polynomial(torch, x, op)
        case ir.Concat():
            return crypten.cat(xs, dim=op.axis)
        case ir.Reshape():
            return x.reshape(x.size(0), *op.to)
        case ir.Transpose():
            return x.permute(0, *op.order)
        case _:
            raise bounds.unsupported(node)


def polynomial(torch: Any, x: Shared, op: ir.Polynomial) -> Shared:
    """``sum_k c_k T_k(t)`` with ``T_(i+j) = 2 T_i T_j - T_(j-i)``, i and j the halves of what is wanted."""

    def number(v: float) -> Any:
        return torch.from_numpy(np.asarray(bounds.rounded(v)))

    steep, shift = bounds.position_of(op)
    t = x * number(steep) + number(shift)
    powers = {1: t}
    for k in range(2, op.degree + 1):
        twice = (powers[k // 2] * powers[k - k // 2]) * 2
        powers[k] = twice - (powers[1] if k % 2 else number(1.0))
    y = powers[1] * number(op.coefficients[1])
    for k in range(2, op.degree + 1):
        y = y + powers[k] * number(op.coefficients[k])
    return y + number(op.coefficients[0])


def padded(x: Shared, padding: tuple[int, int, int, int]) -> Shared:
    """Zeros around the last two axes; always a copy."""
    top, left, bottom, right = padding
    return x.pad((left, right, top, bottom))
