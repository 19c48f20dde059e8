"""The kinds of number an evaluator or the helper holds, one type each, so that none passes for another.

    Masked (Wide, Narrow)   x^ = x + r, known to both evaluators; what gates take
    MaskShare               r_i, one evaluator's half of a mask
    MaskPair                (r1, r2), the helper's view of a mask
    Share                   x_i with x = x_1 + x_2; NEVER sent as it is
    Blinded                 a share of something masked; the only thing an evaluator may send
    FreshMask               a mask that has not been used; it blinds one share and is then spent

A Share becomes Blinded by :meth:`FreshMask.blind` alone, and Blinded shares become a wire by
:func:`privinfer.protocols.mpc.opening.combine` alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from privinfer.errors import IntegrityError
from privinfer.graph.fixedpoint import WIDE, low_bits
from privinfer.protocols.randomness import Secret, Stream

U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Ring(Secret):
    """An array of integers mod 2**bits; the base of every kind below."""

    values: U64
    bits: int

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= WIDE:
            raise TypeError(f"{type(self).__name__} in a ring of {self.bits} bits")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.values.shape}, bits={self.bits}, hidden)"


class Masked(Ring):
    """A masked value x^; use Wide or Narrow."""

    __slots__ = ()


class Wide(Masked):
    """x^ in Z_2^64: what bilinear gates take."""

    __slots__ = ()

    def __post_init__(self) -> None:
        if self.bits != WIDE:
            raise TypeError(f"a {self.bits}-bit value is not a wide wire")


class Narrow(Masked):
    """x^ in Z_2^n, n < 64: what comparison takes. In Z_2^64 it would be wrong with probability |x| / 2^n."""

    __slots__ = ()

    def __post_init__(self) -> None:
        if not 1 <= self.bits < WIDE:
            raise TypeError(f"a {self.bits}-bit value is not a narrow wire")


def masked(values: U64, bits: int) -> Masked:
    """A wire of the kind that goes with its ring."""
    return Wide(values, bits) if bits == WIDE else Narrow(values, bits)


class MaskShare(Ring):
    """One evaluator's half r_i of the mask of a wire."""

    __slots__ = ()


class Share(Ring):
    """One evaluator's additive share of a secret; it becomes sendable only when a fresh mask blinds it."""

    __slots__ = ()


class Blinded(Ring):
    """One evaluator's share of a MASKED value: uniform to whoever lacks the mask, so it may be sent."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MaskPair(Secret):
    """Both halves of a mask, as only the helper has them."""

    first: U64
    second: U64
    bits: int

    def total(self) -> U64:
        """The mask r as an integer below 2**bits."""
        return low_bits(self.first + self.second, self.bits)


class FreshMask(Secret):
    """An unused mask share; it blinds one share of one value.

    Parameters
    ----------
    stream : Stream
        Shared with the helper.
    label : str
        Names the wire.
    shape : tuple of int
        Of the wire, batch first.
    bits : int
        Ring of the wire.
    """

    __slots__ = ("_spent", "share")

    def __init__(self, stream: Stream, label: str, shape: tuple[int, ...], bits: int) -> None:
        self.share = MaskShare(stream.draw(label, shape, bits), bits)
        self._spent = False

    def blind(self, share: Share) -> Blinded:
        """Add the mask to a share, once.

        Raises
        ------
        IntegrityError
            The mask was used before: opening two values under it would show their difference.
        """
        if self._spent:
            raise IntegrityError("a mask would be used for two values")
        if share.bits != self.share.bits or share.values.shape != self.share.values.shape:
            raise TypeError("a mask of another ring or shape")
        self._spent = True
        return Blinded(low_bits(share.values + self.share.values, share.bits), share.bits)


Kind = TypeVar("Kind", bound=Ring)


def need(kind: type[Kind], value: object) -> Kind:
    """`value`, if it is of the wanted kind; TypeError otherwise, also where nobody runs a type checker."""
    if type(value) is not kind:
        raise TypeError(f"a gate that takes {kind.__name__} was given {type(value).__name__}")
    return value
