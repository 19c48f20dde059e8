"""Where the values of an input lie in ciphertexts: a rule of shape and degree only.

No model stands in it, so a fragment that is encrypted today fits any model later. (C, H, W) becomes blocks of
one channel, rows padded to a power of two W', their number to H', channels to C': slot c H' W' + y W' + x.
(d,) is slot j; any other shape is flattened first. The period p is the power of two that holds it all: where
p <= S = N / 2, the vector is repeated S / p times over all slots; a longer one takes p / S ciphertexts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Layout:
    """Places of a flattened vector of d values.

    Attributes
    ----------
    positions : ndarray of int64 [d]
        Slot of each value's first copy.
    ciphertext : ndarray of int64 [d]
        In which ciphertext.
    period : int
        Copies of a value are this many slots apart, where it is below S.
    slots : int
        S = N / 2.
    """

    positions: npt.NDArray[np.int64]
    ciphertext: npt.NDArray[np.int64]
    period: int
    slots: int

    @property
    def count(self) -> int:
        """How many ciphertexts."""
        return max(1, self.period // self.slots)

    def pack(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Slots [count, S] of values [d], copies included; what is padding is zero."""
        out = np.zeros((self.count, self.slots))
        out[self.ciphertext, self.positions] = values.reshape(-1)
        if self.period < self.slots:
            out[0] = np.tile(out[0, : self.period], self.slots // self.period)
        return out


def input_positions(shape: tuple[int, ...], n: int) -> Layout:
    """Layout of an input of `shape` (one sample) under degree `n`."""
    slots = n // 2
    if len(shape) == 3:
        C, H, W = shape
        height, width = power_of_two(H), power_of_two(W)
        c, y, x = np.indices((C, H, W), dtype=np.int64)
        flat = ((c * height + y) * width + x).reshape(-1)
        period = power_of_two(C) * height * width
    else:
        flat = np.arange(math.prod(shape), dtype=np.int64)
        period = power_of_two(len(flat))
    return Layout(flat % slots, flat // slots, period, slots)


def power_of_two(size: int) -> int:
    """The least power of two that is not below `size`."""
    return 1 << max(0, size - 1).bit_length()
