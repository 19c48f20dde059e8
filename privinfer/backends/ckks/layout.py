"""Where the numbers of a value lie among the slots of its ciphertexts.

A ciphertext holds S = N / 2 slots. A value of `size` numbers (its shape flattened, row-major) lies in one or
more ciphertexts; number j at slot ``position[j]`` of ciphertext ``ciphertext[j]``, and where `period` is
below S again at every slot that is congruent modulo the period: rotations then need no wrapping. Slots that
hold no number hold zero before an activation, and whatever the activation makes of zero after it.

The layout of an *input* depends on its shape and on S only, so that a fragment encrypted at rest today fits
any model that takes such an input.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privinfer.graph.operators import Shape

Indices = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]


def power_of_two(size: int) -> int:
    """Smallest power of two that is not below `size`."""
    return 1 << max(0, size - 1).bit_length()


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """A value's places.

    Attributes
    ----------
    slots : int
        S, slots of a ciphertext.
    period : int
        Power of two up to S; every number is repeated at this distance.
    ciphertexts : int
        How many there are; more than one only with ``period == slots``.
    position, ciphertext : ndarray of int64, shape (size,)
        Slot below `period`, and which ciphertext, of each number.
    """

    slots: int
    period: int
    ciphertexts: int
    position: Indices
    ciphertext: Indices

    @classmethod
    def at(cls, places: npt.ArrayLike, slots: int, period: int | None = None) -> Layout:
        """Return the layout of numbers at given places: ciphertext times S plus slot.

        Parameters
        ----------
        places : array of int
            Distinct.
        slots : int
            S.
        period : int, optional
            A larger one than the smallest that holds all places.
        """
        flat = np.asarray(places, dtype=np.int64).reshape(-1)
        span = power_of_two(int(flat.max()) + 1)
        held = min(span, slots) if period is None else period
        return cls(slots, held, int(flat.max()) // slots + 1, flat % slots, flat // slots)

    @property
    def size(self) -> int:
        """Numbers of the value."""
        return int(self.position.size)

    @property
    def places(self) -> Indices:
        """Ciphertext times S plus slot, of each number."""
        return self.ciphertext * self.slots + self.position

    def pack(self, values: npt.ArrayLike) -> Values:
        """Numbers (..., size) in their slots: (..., ciphertexts, slots)."""
        flat = np.asarray(values, dtype=np.float64)
        packed = np.zeros((*flat.shape[:-1], self.ciphertexts, self.slots))
        for k in range(self.slots // self.period):
            packed[..., self.ciphertext, self.position + k * self.period] = flat
        return packed

    def unpack(self, packed: npt.ArrayLike) -> Values:
        """Numbers (..., size) out of slots (..., ciphertexts, slots)."""
        return np.asarray(np.asarray(packed)[..., self.ciphertext, self.position])

    def mean(self, packed: npt.ArrayLike) -> Values:
        """Numbers (..., size) as means of all their copies."""
        slots = np.asarray(packed)
        copies = slots.reshape(*slots.shape[:-1], self.slots // self.period, self.period)
        return self.unpack(copies.mean(axis=-2))

    def same(self, other: Layout) -> bool:
        """Whether numbers lie at the same places."""
        return (
            (self.slots, self.period, self.ciphertexts) == (other.slots, other.period, other.ciphertexts)
            and np.array_equal(self.position, other.position)
            and np.array_equal(self.ciphertext, other.ciphertext)
        )

    def public(self) -> list[int | bytes]:
        """What a plan's digest covers."""
        held = hashlib.sha256(np.ascontiguousarray(self.places, dtype="<i8").tobytes()).digest()
        return [self.slots, self.period, self.ciphertexts, self.size, held]


def input_layout(shape: Shape, slots: int) -> Layout:
    """Layout of an input, or of any value that nothing better is known of.

    (C, H, W) lies in blocks, one a channel, of rows padded to a power of two, padded in number to a power
    of two; every other shape is flattened.

    Parameters
    ----------
    shape : tuple of int
        Per sample.
    slots : int
        S.
    """
    if len(shape) != 3:
        return Layout.at(np.arange(math.prod(shape)), slots)
    _, high, wide = (power_of_two(d) for d in shape)
    c, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    return Layout.at((c * high + y) * wide + x, slots)


def grid(layout: Layout, shape: Shape) -> tuple[Indices, int, int] | None:
    """Places of the channels of a (C, H, W) value and the steps from row to row and column to column.

    None where rows and columns are not evenly spaced, the same in all channels.
    """
    if len(shape) != 3:
        return None
    places = layout.places.reshape(shape)
    row = int(places[0, 1, 0] - places[0, 0, 0]) if shape[1] > 1 else layout.slots
    column = int(places[0, 0, 1] - places[0, 0, 0]) if shape[2] > 1 else 1
    channels = places[:, 0, 0]
    y, x = np.ogrid[: shape[1], : shape[2]]
    if not np.array_equal(places, channels[:, None, None] + (y * row + x * column)):
        return None
    return channels, row, column
