"""Sign extension of a narrow wire to Z_2^64: exact, one round.

Functionality: x^ mod 2**n is known, -2**(n-2) <= x < 2**(n-2); out comes x^ mod 2**64 under a new mask.
Adversary: semi-honest, one of E1, E2, H.
Preprocessing: shares mod 2**(64-n) of w in r = r_1 + r_2 - 2**n w and
of m = msb(r): (64-n) / 4 bytes a value to E2. Rounds: 1. Bytes online: 8 a value, each way.
Correctness error: none.
Source: docs/protocols.md, sign extension.

With o = 2**(n-2) and u = (x^ + o) mod 2**n:   x = u - r + 2**n (1 - msb(u)) m - o,
since x + o is in [0, 2**(n-1)), so adding r wraps exactly when m = 1 and msb(u) = 0. These are SHARES of
x, not a wire: hence the opening. Using x^ itself in Z_2^64 would be wrong with probability |x| / 2**n.
"""

from __future__ import annotations

import numpy as np

from privinfer.graph import fixedpoint as fp
from privinfer.protocols.cost import Cost
from privinfer.protocols.mpc.dealing import Dealer, Dealt, packed_size
from privinfer.protocols.mpc.gate import Gate, Rounds
from privinfer.protocols.mpc.wires import Masked, MaskPair, MaskShare, Narrow, Share, need

ONE = np.uint64(1)


def cost(step: fp.Step, bits: int, batch: int) -> Cost:
    """Rounds and bytes of the gate on a `bits`-bit wire."""
    count = batch * step.type.size
    return Cost(rounds=1, opened=8 * count, dealt=(0, 2 * packed_size(count, fp.WIDE - bits)))


def deal(dealer: Dealer, x: MaskPair) -> MaskPair:
    """Helper: shares of the wrap and of the top bit of r; returns the new mask."""
    r, high = x.total(), fp.WIDE - x.bits
    dealer.split("w", (x.first + x.second) >> np.uint64(x.bits), high)
    dealer.split("m", r >> np.uint64(x.bits - 1), high)
    return dealer.fresh("mask", r.shape, fp.WIDE)


class ExtendGate(Gate):
    """An evaluator's half of a sign extension."""

    __slots__ = ("_bits", "_fresh", "_m", "_r")

    def __init__(self, dealt: Dealt, x: MaskShare) -> None:
        shape, bits = x.values.shape, x.bits
        w = dealt.share("w", shape, fp.WIDE - bits).values
        self._r = x.values - (w << np.uint64(bits))
        self._m = dealt.share("m", shape, fp.WIDE - bits).values
        self._fresh = dealt.fresh("mask", shape, fp.WIDE)
        self._bits = bits
        super().__init__(dealt.evaluator, self._fresh.share)

    def evaluate(self, x: Masked) -> Rounds:
        """Shares of x, opened under the new mask."""
        self.start()
        n, o = self._bits, np.uint64(1 << (self._bits - 2))
        u = fp.low_bits(need(Narrow, x).values + o, n)
        public = np.uint64(self.evaluator == 0) * (u - o)
        share = public - self._r + (((ONE ^ (u >> np.uint64(n - 1))) * self._m) << np.uint64(n))
        opened: Masked = yield self._fresh.blind(Share(share, fp.WIDE))
        return opened
