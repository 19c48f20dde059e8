"""ReLU of a narrow wire, extended to Z_2^64: exact, two rounds.

Functionality: x^ mod 2**n is known, -2**(n-1) <= x < 2**(n-1); out comes y^ mod 2**64 with y = max(x, 0).
Adversary: semi-honest, one of E1, E2, H. d^ is one bit under rho, y^ lies under a fresh mask.
Preprocessing: comparison keys for n - 1 bits to both; to E2 two shares mod 2**64 and three mod 2**(64-n) a
value.
Rounds: 2. Bytes online: 1 bit, then 8 bytes a value, each way. Correctness error: none.
Source: docs/protocols.md, DReLU and ReLU; the reduction of a sign to one comparison with the mask is
figure 2 of Boyle et al., Eurocrypt 2021.

With x' the low n-1 bits of x, m = msb(r):   d = [x >= 0] = 1 xor msb(x^) xor m xor [x^' < r'].
Given d^ = d xor rho, A = x^ as an integer, B = 1 - msb(x^), and shares of rho, r (the INTEGER in
[0, 2**n)), m, rho r, rho m over Z_2^64, everything below is local:
    D  = d^ + (1 - 2 d^) rho        Dr = d^ r + (1 - 2 d^) rho r        Dm = d^ m + (1 - 2 d^) rho m
    y  = A D - Dr + 2**n B Dm
since for x >= 0 the sum x + r wraps exactly when m = 1 and msb(x^) = 0. What is multiplied by 2**n needs
shares mod 2**(64-n) only: m, rho m, and w in r = r_1 + r_2 - 2**n w, which spares the integer r, since E_i
knows r_i.
"""

from __future__ import annotations

import numpy as np

from privinfer.graph import fixedpoint as fp
from privinfer.protocols.cost import Cost
from privinfer.protocols.mpc import comparison
from privinfer.protocols.mpc.dealing import Dealer, Dealt, packed_size
from privinfer.protocols.mpc.gate import Gate, Rounds
from privinfer.protocols.mpc.wires import Blinded, Masked, MaskPair, MaskShare, Narrow, Share, need
from privinfer.protocols.randomness import U64

ONE = np.uint64(1)


def products(bits: int) -> tuple[tuple[str, int], ...]:
    """What is shared, and mod which power of two."""
    high = fp.WIDE - bits
    return (("rho", fp.WIDE), ("rho*r", fp.WIDE), ("w", high), ("m", high), ("rho*m", high))


def cost(step: fp.Step, bits: int, batch: int) -> Cost:
    """Rounds and bytes of the gate on a `bits`-bit wire."""
    count = batch * step.type.size
    keys = comparison.key_size(count, bits - 1)
    return Cost(
        rounds=2,
        opened=packed_size(count, 1) + 8 * count,
        common=keys,
        dealt=(keys, keys + sum(packed_size(count, b) for _, b in products(bits))),
    )


def split_sign(x: U64, bits: int) -> tuple[U64, U64]:
    """Most significant bit, and the bits below it."""
    return x >> np.uint64(bits - 1), fp.low_bits(x, bits - 1)


def deal(dealer: Dealer, x: MaskPair) -> MaskPair:
    """Helper: keys for r' and the five products; returns the new mask."""
    r = x.total()
    m, below = split_sign(r, x.bits)
    comparison.deal(dealer, below, x.bits - 1)
    rho = dealer.private.draw(dealer.label("rho"), r.shape, 1)
    wrap = (x.first + x.second) >> np.uint64(x.bits)
    for (name, bits), value in zip(products(x.bits), (rho, rho * r, wrap, m, rho & m), strict=True):
        dealer.split(name, value, bits)
    return dealer.fresh("mask", r.shape, fp.WIDE)


class ReluGate(Gate):
    """An evaluator's half of a ReLU."""

    __slots__ = ("_bits", "_fresh", "_keys", "_products")

    def __init__(self, dealt: Dealt, x: MaskShare) -> None:
        shape, bits = x.values.shape, x.bits
        self._keys = comparison.ComparisonKeys.take(dealt, x.values.size, bits - 1)
        rho, rho_r, w, m, rho_m = (dealt.share(k, shape, b).values for k, b in products(bits))
        self._products = rho, x.values - (w << np.uint64(bits)), m, rho_r, rho_m
        self._fresh = dealt.fresh("mask", shape, fp.WIDE)
        self._bits = bits
        super().__init__(dealt.evaluator, self._fresh.share)

    def evaluate(self, x: Masked) -> Rounds:
        """Open d^, combine locally, open y^."""
        self.start()
        first = np.uint64(self.evaluator == 0)
        xh = need(Narrow, x).values
        msb, below = split_sign(xh, self._bits)
        rho, r, m, rho_r, rho_m = self._products
        # 1. d^ = 1 xor msb(x^) xor msb(r) xor [x^' < r'] xor rho; E1 adds what is public, and shares mod
        #    a power of two are shares mod 2 in their lowest bit
        bit = self._keys.less(below) ^ ((m + rho) & ONE) ^ (first * (ONE ^ msb))
        d = (yield Blinded(bit, 1)).values
        # 2. y = A D - Dr + 2^n B Dm on shares
        flip = ONE - (d << ONE)  # 1 - 2 d^ in Z_2^64
        big_d = first * d + flip * rho
        big_dr = d * r + flip * rho_r
        big_dm = d * m + flip * rho_m
        y = xh * big_d - big_dr + (((ONE ^ msb) * big_dm) << np.uint64(self._bits))
        # 3. open y + r'
        opened: Masked = yield self._fresh.blind(Share(y, fp.WIDE))
        return opened
