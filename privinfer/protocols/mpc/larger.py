"""The larger of neighbours, with what belongs to it: exact, two rounds.

Functionality: x^ mod 2**n is known, shaped (batch, 2 h, c, ...); with a = x[:, 2 i] and b = x[:, 2 i + 1] out
comes y^ mod 2**n with y[:, i] = a if a[channel 0] >= b[channel 0] else b, for all c channels alike.
Adversary: semi-honest, one of E1, E2, H. d^ is one bit under rho, y^ lies under a fresh mask.
Preprocessing, a PAIR: comparison keys for n - 1 bits to both; to E2 one bit, a share of rho mod 2**n and c
shares of rho (ra - rb).
Rounds: 2. Bytes online: 1 bit a pair, then n / 8 bytes a value of y, each way. Correctness error: none for
-2**(n-1) <= a - b < 2**(n-1) in channel 0, anything in the others.
Source: docs/protocols.md, DReLU; the choice by an opened bit d^ = d xor rho as in relu.py.

z = a - b in channel 0 has the mask r = ra - rb mod 2**n and is compared with 0 as in relu.py. Everything
else stays mod 2**n, so no sign is extended:
    D = d^ + (1 - 2 d^) rho         e = a_j - b_j, re = ra_j - rb_j
    y_j = b_j + D e = b_j^ - rb_j + D e^ - (d^ re + (1 - 2 d^) rho re)    mod 2**n
"""

from __future__ import annotations

import numpy as np

from privinfer.graph import fixedpoint as fp
from privinfer.protocols.cost import Cost
from privinfer.protocols.mpc import comparison
from privinfer.protocols.mpc.dealing import Dealer, Dealt, packed_size
from privinfer.protocols.mpc.gate import Gate, Rounds
from privinfer.protocols.mpc.relu import split_sign
from privinfer.protocols.mpc.wires import Blinded, Masked, MaskPair, MaskShare, Narrow, Share, need
from privinfer.protocols.randomness import U64

ONE = np.uint64(1)


def cost(step: fp.Step, batch: int) -> Cost:
    """Rounds and bytes of the gate; the step's type is that of what comes out."""
    count, n = batch * step.type.size, step.type.bits
    pairs = count // step.type.shape[1]
    keys = comparison.key_size(pairs, n - 1)
    return Cost(
        rounds=2,
        opened=packed_size(pairs, 1) + packed_size(count, n),
        common=keys,
        dealt=(keys, keys + packed_size(pairs, 1) + packed_size(pairs, n) + packed_size(count, n)),
    )


def split(x: U64, bits: int) -> tuple[U64, U64, U64]:
    """Get e = a - b mod 2**n, its channel 0, and b; of values, masks or shares alike."""
    if x.ndim < 3 or x.shape[1] % 2:
        raise TypeError(f"no pairs of channels in {x.shape}")
    b = x[:, 1::2]
    e = fp.low_bits(x[:, 0::2] - b, bits)
    return e, np.ascontiguousarray(e[:, :, 0]), b


def deal(dealer: Dealer, x: MaskPair) -> MaskPair:
    """Helper: keys for r', rho and its products; returns the new mask."""
    n = x.bits
    re, r, _ = split(x.total(), n)
    m, below = split_sign(r, n)
    comparison.deal(dealer, below, n - 1)
    rho = dealer.private.draw(dealer.label("rho"), r.shape, 1)
    dealer.split("m", m, 1)
    dealer.split("rho", rho, n)
    dealer.split("rho*re", rho[:, :, None] * re, n)
    return dealer.fresh("mask", re.shape, n)


class LargerGate(Gate):
    """An evaluator's half of the choice."""

    __slots__ = ("_bits", "_fresh", "_keys", "_masks", "_products")

    def __init__(self, dealt: Dealt, x: MaskShare) -> None:
        n = x.bits
        re, r, rb = split(x.values, n)
        self._keys = comparison.ComparisonKeys.take(dealt, r.size, n - 1)
        m, rho = dealt.share("m", r.shape, 1).values, dealt.share("rho", r.shape, n).values
        self._products = m, rho, dealt.share("rho*re", re.shape, n).values
        self._masks = re, rb
        self._fresh = dealt.fresh("mask", re.shape, n)
        self._bits = n
        super().__init__(dealt.evaluator, self._fresh.share)

    def evaluate(self, x: Masked) -> Rounds:
        """Open d^, choose on shares, open y^."""
        self.start()
        first, n = np.uint64(self.evaluator == 0), self._bits
        eh, zh, bh = split(need(Narrow, x).values, n)
        m, rho, rho_re = self._products
        re, rb = self._masks
        # 1. d^ = 1 xor msb(z^) xor msb(r) xor [z^' < r'] xor rho
        msb, below = split_sign(zh, n)
        bit = self._keys.less(below) ^ ((m + rho) & ONE) ^ (first * (ONE ^ msb))
        d = (yield Blinded(bit, 1)).values
        # 2. y_j = b_j + D e_j on shares
        flip = ONE - (d << ONE)  # 1 - 2 d^
        big_d = (first * d + flip * rho)[:, :, None]
        y = first * bh - rb + eh * big_d - d[:, :, None] * re - flip[:, :, None] * rho_re
        # 3. open y + r'
        opened: Masked = yield self._fresh.blind(Share(fp.low_bits(y, n), n))
        return opened
