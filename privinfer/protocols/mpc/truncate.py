"""From a wide wire to a narrow one, dropping s fractional bits: freely, or exactly in two rounds.

Free (LocalTruncateGate). Functionality: y^ = (x^ >> s) mod 2**n under the mask (r >> s) mod 2**n, whose
shares H deals: n / 8 bytes a value to E2, and nothing where s = 0. Rounds: none.
Correctness error: |y - x / 2**s| < 1, n + s <= 64, since floor((x + r)/2**s) - floor(r/2**s) is
floor(x/2**s) or one more. The last place depends on the low bits of r.

Exact (ExactTruncateGate), for sessions in which a receiver is an evaluator or the helper. Functionality:
y = floor((x + 2**(s-1)) / 2**s), always. Adversary: semi-honest, one of E1, E2, H, receivers included.
With v = x^ + 2**(s-1) and w = [v mod 2**s < r mod 2**s]:
    floor = (v >> s) - (r >> s) - w    mod 2**(64-s)
Preprocessing: comparison keys for s bits to both; to E2 one bit and shares of r >> s and rho mod 2**n.
Rounds: 2 (w under rho, then y under its mask). Bytes online: 1 bit, then n / 8 bytes a value, each way.
A narrow x, in Z_2^m, becomes one in Z_2^(m-s), m - s = n: the same equation holds mod 2**(m-s).
Correctness error: |y - x / 2**s| <= 1/2.
Source: docs/protocols.md, truncation; the borrow bit as one comparison is figure 6 of Boyle et al.,
Eurocrypt 2021 (logical right shift).
"""

from __future__ import annotations

import numpy as np

from privinfer.graph import fixedpoint as fp
from privinfer.protocols.cost import Cost
from privinfer.protocols.mpc import comparison
from privinfer.protocols.mpc.dealing import Dealer, Dealt, packed_size
from privinfer.protocols.mpc.gate import Gate, Rounds
from privinfer.protocols.mpc.wires import Blinded, Masked, MaskPair, MaskShare, Narrow, Share, Wide, need
from privinfer.protocols.randomness import U64

ONE = np.uint64(1)


def cost(step: fp.Step, op: fp.Truncate, batch: int) -> Cost:
    """Rounds and bytes of either gate."""
    count, n = batch * step.type.size, step.type.bits
    if not op.exact:
        return Cost(dealt=(0, packed_size(count, n) if op.shift else 0))
    keys = comparison.key_size(count, op.shift)
    return Cost(
        rounds=2,
        opened=packed_size(count, 1) + packed_size(count, n),
        common=keys,
        dealt=(keys, keys + 2 * packed_size(count, n)),
    )


def _check(step: fp.Step, op: fp.Truncate) -> None:
    if step.type.bits + op.shift > fp.WIDE:
        raise TypeError(f"x >> {op.shift} has {fp.WIDE - op.shift} bits and not {step.type.bits}")


def _cut(x: U64, shift: int, bits: int) -> U64:
    return fp.low_bits(x >> np.uint64(shift), bits)


def deal(step: fp.Step, op: fp.Truncate, dealer: Dealer, x: MaskPair) -> MaskPair:
    """Helper: the mask of the narrow wire, and for the exact gate what finds the borrow."""
    _check(step, op)
    n, r = step.type.bits, x.total()
    if not op.shift:
        return MaskPair(fp.low_bits(x.first, n), fp.low_bits(x.second, n), n)
    if not op.exact:
        return dealer.split("mask", _cut(r, op.shift, n), n)
    comparison.deal(dealer, fp.low_bits(r, op.shift), op.shift)
    rho = dealer.private.draw(dealer.label("rho"), r.shape, 1)
    # w is found xor-shared by the keys; E_i's half of rho blinds it and is also its share mod 2^n
    dealer.split("high", _cut(r, op.shift, n), n)
    dealer.split("rho", rho, n)
    return dealer.fresh("mask", r.shape, n)


class LocalTruncateGate(Gate):
    """An evaluator's half of the free truncation."""

    __slots__ = ("_bits", "_shift")

    def __init__(self, step: fp.Step, op: fp.Truncate, dealt: Dealt, x: MaskShare) -> None:
        _check(step, op)
        n = step.type.bits
        mask = (
            dealt.mask_share("mask", x.values.shape, n)
            if op.shift
            else MaskShare(fp.low_bits(x.values, n), n)
        )
        self._shift, self._bits = op.shift, n
        super().__init__(dealt.evaluator, mask)

    def evaluate(self, x: Masked) -> Rounds:
        """Nothing is opened."""
        self.start()
        yield from ()
        return Narrow(_cut(need(Wide, x).values, self._shift, self._bits), self._bits)


class ExactTruncateGate(Gate):
    """An evaluator's half of the exact truncation."""

    __slots__ = ("_bits", "_fresh", "_high", "_keys", "_rho", "_shift", "_takes")

    def __init__(self, step: fp.Step, op: fp.Truncate, dealt: Dealt, x: MaskShare) -> None:
        _check(step, op)
        shape, n = x.values.shape, step.type.bits
        self._keys = comparison.ComparisonKeys.take(dealt, x.values.size, op.shift)
        self._high = dealt.share("high", shape, n).values
        self._rho = dealt.share("rho", shape, n).values
        self._fresh = dealt.fresh("mask", shape, n)
        self._shift, self._bits = op.shift, n
        self._takes: type[Masked] = Wide if x.bits == fp.WIDE else Narrow
        if self._takes is Narrow and x.bits != n + op.shift:
            raise TypeError(f"{op.shift} bits of {x.bits} cannot be dropped to leave {n}")
        super().__init__(dealt.evaluator, self._fresh.share)

    def evaluate(self, x: Masked) -> Rounds:
        """Open the borrow under rho, then the quotient under its mask."""
        self.start()
        first = np.uint64(self.evaluator == 0)
        v = need(self._takes, x).values + np.uint64(1 << (self._shift - 1))
        # 1. w^ = w xor rho; shares of rho mod 2^n are shares mod 2 in their lowest bit
        bit = self._keys.less(fp.low_bits(v, self._shift)) ^ (self._rho & ONE)
        w = (yield Blinded(bit, 1)).values
        # 2. floor = (v >> s) - (r >> s) - w,  w = w^ + (1 - 2 w^) rho
        borrow = first * w + (ONE - (w << ONE)) * self._rho
        y = first * (v >> np.uint64(self._shift)) - self._high - borrow
        opened: Masked = yield self._fresh.blind(Share(fp.low_bits(y, self._bits), self._bits))
        return opened
