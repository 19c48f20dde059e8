"""Masks over the integers, as encryption-to-shares and refresh need them, and the room they take.

Each holder's M_i is uniform in [-2**B, 2**B) a coefficient, B = message bits + 40 + log2 N: a message below
2**(message bits) shifts a uniform coefficient by at most 2**-41 of its width, so N of them stay within a
statistical distance of 2**-41 of what does not depend on the message at all. One honest M_i suffices. Masks
uniform modulo Q would hide perfectly and be of no use here: their sum as integers would not be the sum
modulo Q. The sum must not wrap: Q_low > 2 (n + 1) 2**B covers n masks and the message.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from privinfer.errors import PrecisionError
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.randomness import U64, Secret

STATISTICAL_BITS: Final = 40
LARGEST_MASK_BITS: Final = 120  # of the kernel; composed integers have 127 bits and a sign
WORD_BITS: Final = 128
LARGEST_LEVEL: Final = 4  # limbs that the kernel composes


def mask_bits(parameters: Parameters, message_bits: int) -> int:
    """B for messages whose coefficients, scale included, stay below 2**message_bits."""
    return message_bits + STATISTICAL_BITS + parameters.log_n


def fits(parameters: Parameters, level: int, holders: int, message_bits: int) -> bool:
    """Whether Q_level > 2 (n + 1) 2**B, and integers have room."""
    bits = mask_bits(parameters, message_bits)
    room = (holders + 1) << (bits + 1)
    return (
        level <= LARGEST_LEVEL
        and bits <= LARGEST_MASK_BITS
        and room < min(parameters.modulus(level), 1 << WORD_BITS)
    )


def smallest_level(parameters: Parameters, holders: int, message_bits: int) -> int:
    """Limbs that a ciphertext needs for its masks.

    Raises
    ------
    PrecisionError
        No level of these parameters has room.
    """
    for level in range(1, parameters.levels + 1):
        if fits(parameters, level, holders, message_bits):
            return level
    raise PrecisionError(
        f"messages of {message_bits} bits and masks of {mask_bits(parameters, message_bits)} bits"
        f" for {holders} key holders do not fit {parameters.levels} levels",
        hint="more levels, smaller values, or fewer key holders",
    )


def check_room(parameters: Parameters, level: int, holders: int, message_bits: int, step: str) -> int:
    """B, where its masks have room.

    Raises
    ------
    PrecisionError
        They have not: sums would wrap, or the masks would have to hide less than 40 bits.
    """
    bits = mask_bits(parameters, message_bits)
    if not fits(parameters, level, holders, message_bits):
        raise PrecisionError(
            f"{step}: masks of {bits} bits for {holders} key holders and messages of {message_bits} bits"
            f" do not fit {level} levels",
            hint="more levels below the refresh, smaller values, or fewer key holders",
        )
    return bits


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class IntegerShare(Secret):
    """A share of integer coefficients: all shares add up over the integers, hence modulo 2**64 too.

    Attributes
    ----------
    words : ndarray of uint64, shape (N, 2)
        Signed 128-bit numbers, low word first.
    """

    words: U64

    def mod64(self) -> U64:
        """The share modulo 2**64, shape (N,)."""
        return np.ascontiguousarray(self.words[:, 0])

    def __add__(self, other: IntegerShare) -> IntegerShare:
        """Of a party that has two."""
        low = self.words[:, 0] + other.words[:, 0]
        carry = (low < self.words[:, 0]).astype(np.uint64)
        return IntegerShare(np.stack([low, self.words[:, 1] + other.words[:, 1] + carry], axis=1))

    def __repr__(self) -> str:
        return f"IntegerShare({len(self.words)} coefficients, hidden)"
