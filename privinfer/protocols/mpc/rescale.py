"""The end of a gate: shares of z become the wire y = z / 2**shift, in one opening under a fresh mask.

Functionality: E_i holds z_i with z_1 + z_2 = z mod 2**q, q = n + shift for a narrow y of n bits, 64 for a
wide one, which keeps all bits; both learn y^ = y + ry.
Adversary: semi-honest, one of E1, E2, H.
Preprocessing: with a shift, shares of rz to E2: q / 8 bytes a value, unless the gate puts rz into something
it deals anyway; without one the fresh mask itself, which costs nothing.
Rounds: 1. Bytes online: n / 8 a value, each way. Correctness error: below 1.5 units in the last place for
|z| < 2**(q-1) with a shift, none without.
Source: docs/protocols.md, truncating opening; opening.py derives the error.

rz = low + 2**shift ry mod 2**q, low known to H alone. What opening.py shares mod 2**64 is cut to the bits
shift to q, and those depend on the shares mod 2**q alone: the ring of q bits is enough, and cheaper to deal.
"""

from __future__ import annotations

import numpy as np

from privinfer.graph import fixedpoint as fp
from privinfer.protocols.mpc.dealing import Dealer, Dealt, packed_size
from privinfer.protocols.mpc.opening import truncated
from privinfer.protocols.mpc.wires import Blinded, MaskPair, MaskShare
from privinfer.protocols.randomness import U64


def ring(step: fp.Step, shift: int) -> int:
    """The q of a step that drops `shift` bits; TypeError where Z_2^64 cannot hold it."""
    if shift < 0 or step.type.bits + shift > fp.WIDE:
        raise TypeError(f"z >> {shift} has {fp.WIDE - shift} bits and not {step.type.bits}")
    return step.type.bits + shift


def size(step: fp.Step, shift: int, count: int) -> int:
    """Bytes that :func:`deal` sends E2."""
    return packed_size(count, ring(step, shift)) if shift else 0


def hide(step: fp.Step, shift: int, dealer: Dealer, shape: tuple[int, ...]) -> tuple[MaskPair, U64]:
    """Helper: the mask ry of the new wire, and rz."""
    q = ring(step, shift)
    ry = dealer.fresh("mask", shape, step.type.bits)
    rz = ry.total() << np.uint64(shift)
    if shift:
        rz += dealer.private.draw(dealer.label("low"), shape, shift)
    return ry, fp.low_bits(rz, q)


def deal(step: fp.Step, shift: int, dealer: Dealer, shape: tuple[int, ...]) -> MaskPair:
    """Helper: shares of rz where they are not those of ry; returns ry."""
    ry, rz = hide(step, shift, dealer, shape)
    if shift:
        dealer.split("rz", rz, ring(step, shift))
    return ry


def take(step: fp.Step, shift: int, dealt: Dealt, shape: tuple[int, ...]) -> tuple[MaskShare, U64]:
    """Evaluator: its halves of ry and rz; E1's has what rounds half up."""
    mask = dealt.fresh("mask", shape, step.type.bits).share
    if not shift:
        return mask, mask.values
    return mask, dealt.share("rz", shape, ring(step, shift)).values + half(shift, dealt.evaluator)


def half(shift: int, evaluator: int) -> np.uint64:
    """What E1 adds, so that the bits that are dropped round to nearest."""
    return np.uint64(1 << (shift - 1) if shift and evaluator == 0 else 0)


def cut(step: fp.Step, shift: int, share: U64) -> Blinded:
    """Evaluator: what it sends of its share of z + rz mod 2**q; what lies above those bits is dropped."""
    return truncated(Blinded(share, fp.WIDE), shift, step.type.bits)
