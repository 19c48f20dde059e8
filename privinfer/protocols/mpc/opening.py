"""Opening: two blinded shares become one masked wire. The one place where shares of evaluators meet.

Functionality: E_i holds share_i with share_1 + share_2 = y + r mod 2**bits; both learn y^ = y + r.
Adversary: semi-honest, one of E1, E2; the other's share is y^ minus its own, and y^ is uniform for uniform r.
Rounds: 1. Bytes: bits / 8 a value each way. Correctness error: none.

Truncating opening: shares of z + rz mod 2**64 with rz = low + 2**s ry + 2**(n+s) high; E1 has added
2**(s-1). Each drops s bits of its own share and keeps n: the sum is y^ = y + ry mod 2**n with
|y - z / 2**s| < 1.5 for every |z| < 2**(n+s-1), n + s <= 64:

    (share_1 >> s) + (share_2 >> s) = (z + 2**(s-1) + rz)/2**s - {share_1/2**s} - {share_2/2**s}
                                    = z/2**s + ry + 1/2 + low/2**s - {..} - {..}    mod 2**n

and low/2**s is in [0, 1), each fraction {..} in [0, 1). The ideal functionality therefore rounds y up or
down by a value that depends on the low bits of E1's share: who knows those (E1, E2 or H) must not also
be a receiver, or the exact truncation is used instead (truncate.py).
Source: docs/protocols.md, opening; dropping bits of each share alone is SecureML's idea (Mohassel and
Zhang, S&P 2017, section 4.1), which errs grossly with some probability; opening under rz cannot.
"""

from __future__ import annotations

import numpy as np

from privinfer.graph.fixedpoint import WIDE, low_bits
from privinfer.protocols.mpc.dealing import packed, packed_size, unpack
from privinfer.protocols.mpc.wires import Blinded, Masked, masked, need


def truncated(share: Blinded, shift: int, bits: int) -> Blinded:
    """Drop the low `shift` bits of a 64-bit blinded share and keep the next `bits`."""
    need(Blinded, share)
    if share.bits != WIDE or shift < 0 or shift + bits > WIDE:
        raise TypeError(f"{shift} + {bits} bits cannot be cut from a {share.bits}-bit share")
    values = share.values >> np.uint64(shift)
    return Blinded(values if shift + bits == WIDE else low_bits(values, bits), bits)


def combine(own: Blinded, other: Blinded) -> Masked:
    """Add both evaluators' blinded shares."""
    need(Blinded, own)
    need(Blinded, other)
    if own.bits != other.bits or own.values.shape != other.values.shape:
        raise TypeError("shares of different rings or shapes")
    return masked(low_bits(own.values + other.values, own.bits), own.bits)


def message(shares: list[Blinded]) -> bytes:
    """One message that opens every value that is ready, in the order of their steps."""
    return b"".join(packed(need(Blinded, s).values, s.bits) for s in shares)


def message_size(shares: list[Blinded]) -> int:
    """Bytes of :func:`message`, which both evaluators know beforehand."""
    return sum(packed_size(s.values.size, s.bits) for s in shares)


def parse(data: bytes | memoryview, like: list[Blinded]) -> list[Blinded]:
    """Read the other evaluator's message; its layout is that of our own.

    Raises
    ------
    ValueError
        The padding of a value is not zero.
    """
    view, parsed = memoryview(data), []
    for own in like:
        need(Blinded, own)
        size = packed_size(own.values.size, own.bits)
        parsed.append(Blinded(unpack(view[:size], own.bits, own.values.shape), own.bits))
        view = view[size:]
    return parsed
