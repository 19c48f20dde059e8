"""What CrypTen asks of a communicator, over the session's own connections.

CrypTen's own speaks torch.distributed: gloo over TCP without TLS, pickled objects for sizes and commands.
This one moves little-endian 64-bit integers whose number both ends know; the methods that would pickle are
missing on purpose. A result for one party goes to that party alone: gloo's reduce runs in a ring in which
others come to hold finished parts of the sum.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from privinfer.backends.base import Role
from privinfer.backends.crypten.blocking import Channel
from privinfer.protocols.sealing import OVERHEAD

SLICED = 1 << 13  # elements from which three and more parties each add up one slice
WORD = 8

Seal = Callable[[int, bytes], bytes]  # step, message
Unseal = Callable[[int, Role, bytes], bytes]  # step, sender, message


class Communicator:
    """One rank's view; all ranks call the same methods in the same order.

    Parameters
    ----------
    channel : Channel
        Where its messages go.
    rank : int
        This rank.
    roles : sequence of str
        The role of every rank.
    """

    def __init__(self, channel: Channel, rank: int, roles: Sequence[Role]) -> None:
        self._channel, self._rank, self._roles = channel, rank, tuple(roles)
        self._torch: Any = importlib.import_module("torch")
        self.step = 0

    def get_rank(self) -> int:
        """Return this rank."""
        return self._rank

    def get_world_size(self) -> int:
        """Return how many ranks there are."""
        return len(self._roles)

    # -- to and from one rank --------------------------------------------------------------------

    def isend(self, tensor: Any, dst: int) -> _Finished:
        """Send to one rank; a step of its own together with the :meth:`irecv` behind it."""
        self._send(dst, self.step, tensor)
        return _Finished()

    def irecv(self, tensor: Any, src: int) -> _Finished:
        """Receive from one rank, into `tensor`."""
        tensor.copy_(self._receive(src, self._next(), tensor.shape))
        return _Finished()

    def broadcast(self, tensor: Any, src: int) -> Any:
        """Send one rank's tensor to all others, in place."""
        self.scatter([tensor] * len(self._roles), src, into=tensor)
        return tensor

    def scatter(self, tensors: Sequence[Any], src: int, into: Any = None) -> Any:
        """Send a tensor to each rank; gives this rank's."""
        step, own = self._next(), tensors[self._rank]
        if src == self._rank:
            for k in self._others():
                self._send(k, step, tensors[k])
            return own
        found = self._receive(src, step, own.shape)
        return found if into is None else into.copy_(found)

    def gather(self, tensor: Any, dst: int) -> list[Any]:
        """Send to one rank, which gives the tensors of all ranks in order."""
        step = self._next()
        if dst != self._rank:
            self._send(dst, step, tensor)
            return [None]
        return [tensor if k == dst else self._receive(k, step, tensor.shape) for k in range(len(self._roles))]

    def reduce(self, tensor: Any, dst: int, op: Any = None, batched: bool = False) -> Any:
        """Add up at one rank what it is sent by each of the others, and by no detour."""
        if batched:
            return [self.reduce(one, dst, op) for one in tensor] if dst == self._rank else None
        parts = self.gather(tensor, dst)
        return self._fold(parts, op) if dst == self._rank else None

    def reduce_sealed(self, tensor: Any, dst: int, seal: Seal, unseal: Unseal) -> Any:
        """As :meth:`reduce`, of messages that only the one rank can open; None elsewhere."""
        step = self._next()
        if dst != self._rank:
            self._channel.send(self._roles[dst], step, seal(step, self._bytes(tensor)))
            return None
        total, size = tensor.clone(), OVERHEAD + WORD * tensor.numel()
        for k in self._others():
            sealed = self._channel.receive(self._roles[k], step, size)
            total += self._words(unseal(step, self._roles[k], sealed), tensor.shape)
        return total

    # -- to and from all -------------------------------------------------------------------------

    def all_gather(self, tensor: Any) -> list[Any]:
        """Tensors of all ranks, in order, at all of them."""
        count = len(self._roles)
        return self._exchange([tensor] * count, [tensor.shape] * count)

    def all_reduce(self, tensor: Any, op: Any = None, batched: bool = False) -> Any:
        """Sum (or exclusive or) of all ranks' tensors, at all of them; a batch goes in one message."""
        if not batched:
            return self._total(tensor.flatten(), op).reshape(tensor.shape)
        flat = self._torch.cat([one.flatten() for one in tensor])
        parts = self._total(flat, op).split([one.numel() for one in tensor])
        return [part.reshape(one.shape) for part, one in zip(parts, tensor, strict=True)]

    def _total(self, flat: Any, op: Any) -> Any:
        count = len(self._roles)
        if count == 2 or flat.numel() < SLICED:
            return self._fold(self.all_gather(flat), op)
        slices = flat.tensor_split(count)
        own = self._fold(self._exchange(slices, [slices[self._rank].shape] * count), op)
        return self._torch.cat(self._exchange([own] * count, [one.shape for one in slices]))

    def _exchange(self, tensors: Sequence[Any], shapes: Sequence[Any]) -> list[Any]:
        """Tensor k goes to rank k; a tensor of shape k comes from rank k."""
        step = self._next()
        for k in self._others():
            self._send(k, step, tensors[k])
        return [
            tensors[k] if k == self._rank else self._receive(k, step, shapes[k])
            for k in range(len(self._roles))
        ]

    def _fold(self, tensors: Sequence[Any], op: Any) -> Any:
        total = tensors[0].clone()
        xor = op is not None and op == self._torch.distributed.ReduceOp.BXOR
        for one in tensors[1:]:
            total = total.bitwise_xor_(one) if xor else total.add_(one)
        return total

    # -- words on the wire -----------------------------------------------------------------------

    def _others(self) -> list[int]:
        return [k for k in range(len(self._roles)) if k != self._rank]

    def _next(self) -> int:
        self.step += 1
        return self.step - 1

    def _send(self, to: int, step: int, tensor: Any) -> None:
        self._channel.send(self._roles[to], step, self._bytes(tensor))

    def _bytes(self, tensor: Any) -> bytes:
        if tensor.dtype != self._torch.int64:
            raise TypeError(f"a share is a 64-bit integer, not {tensor.dtype}")
        return bytes(tensor.contiguous().numpy().astype("<i8", copy=False).tobytes())

    def _receive(self, source: int, step: int, shape: Any) -> Any:
        size = WORD * int(np.prod(tuple(shape), dtype=np.int64))
        return self._words(self._channel.receive(self._roles[source], step, size), shape)

    def _words(self, data: bytes, shape: Any) -> Any:
        words = np.frombuffer(data, dtype="<i8").astype(np.int64)
        return self._torch.from_numpy(words).reshape(shape)


class _Finished:
    """A request that needs no waiting."""

    def wait(self) -> None:
        """Nothing is under way."""
