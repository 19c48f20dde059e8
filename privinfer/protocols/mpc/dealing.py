"""What the helper sends ahead, and how both ends keep in step.

The helper shares one seed with each evaluator. A secret s known to the helper becomes shares s_1 from the
stream with E1, which costs nothing, and s_2 = s - s_1, which is sent to E2. Helper and evaluator name each
draw by the step and a label, so a draw out of place is an error and no value is drawn twice.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from privinfer import _kernels
from privinfer.graph.fixedpoint import WIDE, low_bits
from privinfer.protocols.mpc.wires import FreshMask, MaskPair, MaskShare, Share
from privinfer.protocols.randomness import U64, Scope, Secret, Seed, Stream, derive

Parcel: TypeAlias = bytes | memoryview
DEAL = "deal"
NATIVE = sys.byteorder == "little"  # words lie in memory as they travel


def packed_size(count: int, bits: int) -> int:
    """Bytes of `count` integers of `bits` bits each."""
    return (count * bits + 7) // 8


def packed(values: U64, bits: int) -> memoryview:
    """Little-endian, without gaps; whole words are not copied."""
    flat = np.ascontiguousarray(values).reshape(-1)
    return (flat.view(np.uint8) if bits == WIDE and NATIVE else _kernels.pack_bits(flat, bits)).data


def pack(values: U64, bits: int) -> bytes:
    """The same as bytes of their own."""
    return bytes(packed(values, bits))


def unpack(data: bytes | memoryview, bits: int, shape: tuple[int, ...]) -> U64:
    """Inverse of :func:`pack`; ValueError where the padding holds anything.

    Whole words that lie aligned are not copied: the array is then a view of `data`.
    """
    if bits == WIDE and NATIVE and len(data) == 8 * math.prod(shape):
        words = np.frombuffer(data, dtype=np.uint64).reshape(shape)
        if words.flags.aligned:
            return words
    raw = np.frombuffer(data, dtype=np.uint8)
    return _kernels.unpack_bits(raw, bits, int(np.prod(shape, dtype=np.int64))).reshape(shape)


def tweak(scope: Scope, step: int) -> bytes:
    """The public AES key of a step's comparison keys: never the same, so nothing can be precomputed."""
    return derive(bytes(32), "tweak", scope.session, scope.inference, scope.attempt, step)


@dataclass(repr=False)
class Dealer(Secret):
    """The helper's end for one inference.

    Attributes
    ----------
    streams : tuple of Stream
        With E1 and with E2.
    private : Stream
        Of a fresh seed that nobody else has.
    common : list of bytes or memoryviews
        What both evaluators get alike; it comes first in their parcels.
    """

    streams: tuple[Stream, Stream]
    scope: Scope
    private: Stream = field(init=False)
    step: int = 0
    parcels: tuple[list[Parcel], list[Parcel]] = field(default_factory=lambda: ([], []))
    common: list[Parcel] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.private = Stream(Seed.fresh(), self.scope, "helper")

    def label(self, name: str) -> str:
        """Name a draw of this step."""
        return f"{self.step}/{name}"

    def give(self, evaluator: int, values: U64, bits: int) -> None:
        """Send integers of `bits` bits to evaluator 0 or 1."""
        self.parcels[evaluator].append(packed(values, bits))

    def split(self, name: str, secret: U64, bits: int) -> MaskPair:
        """Give both evaluators an additive share of a secret mod 2**bits."""
        first = self.streams[0].draw(self.label(name), secret.shape, bits)
        second = low_bits(secret - first, bits)
        self.give(1, second, bits)
        return MaskPair(first, second, bits)

    def fresh(self, name: str, shape: tuple[int, ...], bits: int) -> MaskPair:
        """The mask that both evaluators draw as their FreshMask of this name."""
        first, second = (s.draw(self.label(name), shape, bits) for s in self.streams)
        return MaskPair(first, second, bits)

    def collect(self) -> tuple[Parcel, Parcel]:
        """What this step sends to E1 and to E2; the next step begins empty."""
        second = b"".join((*self.common, *self.parcels[1]))
        if self.common and not self.parcels[0]:  # the usual case: E1's part is the beginning of E2's
            first: Parcel = memoryview(second)[: sum(memoryview(p).nbytes for p in self.common)]
        else:
            first = b"".join((*self.common, *self.parcels[0]))
        for pieces in (self.common, *self.parcels):
            pieces.clear()
        return first, second


class Dealt:
    """One evaluator's end for one step.

    Parameters
    ----------
    evaluator : int
        0 for E1, 1 for E2.
    stream : Stream
        With the helper.
    parcel : bytes or memoryview
        What the helper sent for this step.
    """

    def __init__(self, evaluator: int, stream: Stream, scope: Scope, step: int, parcel: Parcel) -> None:
        self.evaluator = evaluator
        self.stream = stream
        self.scope = scope
        self.step = step
        self._parcel = memoryview(parcel)

    def label(self, name: str) -> str:
        """Name a draw of this step."""
        return f"{self.step}/{name}"

    def receive(self, shape: tuple[int, ...], bits: int) -> U64:
        """Take the next integers of the parcel."""
        size = packed_size(int(np.prod(shape, dtype=np.int64)), bits)
        head, self._parcel = self._parcel[:size], self._parcel[size:]
        return unpack(head, bits, shape)

    def share(self, name: str, shape: tuple[int, ...], bits: int) -> Share:
        """Take this evaluator's share of a secret that the helper split under this name."""
        if self.evaluator == 0:
            return Share(self.stream.draw(self.label(name), shape, bits), bits)
        return Share(self.receive(shape, bits), bits)

    def mask_share(self, name: str, shape: tuple[int, ...], bits: int) -> MaskShare:
        """Take this evaluator's half of a mask that the helper split under this name."""
        return MaskShare(self.share(name, shape, bits).values, bits)

    def fresh(self, name: str, shape: tuple[int, ...], bits: int) -> FreshMask:
        """An unused mask."""
        return FreshMask(self.stream, self.label(name), shape, bits)

    def finish(self) -> None:
        """Check that the parcel is used up."""
        if self._parcel:
            raise ValueError("the parcel is longer than its step")
