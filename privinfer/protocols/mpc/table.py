"""Piecewise polynomial of a narrow wire, by one lookup of its mask in a public table: one round.

Functionality: x^ mod 2**n is known, x an integer with Y = x - low in [0, (2**m - 1) 2**s), m + s <= n. Out
comes y^ with y = sum_k c_k[u] t**k mod 2**64, where u = (Y >> s) + [Y mod 2**s + r mod 2**s >= 2**s] and
t = Y - u 2**s in (-2**s, 2**s), less `shift` bits: narrow, or wide with a shift of 0.
Adversary: semi-honest, one of E1, E2, H. A key hides alpha and payload, y^ lies under a fresh mask. Which
cell serves depends on r mod 2**s, of which E1, E2 and H know something: as in opening.py, none of them may be
the receiver, who would learn more of x from y than a rounded value of the function says.
Preprocessing: keys of a distributed point function over 2**m points with w = degree + 1 words of 64 bits,
16 (m - c) + 8 w 2**c bytes to EACH evaluator a value, c levels being packed into the leaves (:func:`cut`),
root seeds from the streams; with a shift, rz to E2 (rescale.py).
Rounds: 1. Bytes online: n / 8 (8 if wide) a value, each way. Work online: 2**m leaves of a tree a value.
Correctness error: which of the two neighbouring cells serves depends on r; given the cell none, and below
1.5 units in the last place with a shift, for |y| < 2**(n+s-1).
Source: Boyle, Gilboa and Ishai, "Function secret sharing: improvements and extensions", CCS 2016 (point
functions, figure 1, with early termination); the mask as the offset of a function: the same, "Secure
computation with preprocessing via function secret sharing", TCC 2019; splines: Boyle et al., Eurocrypt 2021,
whose interval containment is replaced by cells that begin where the mask says.

Y^ = (x^ - low) mod 2**(m+s) has the mask r mod 2**(m+s) = 2**s alpha + rho. With Y^ = 2**s U + T:
    Y = 2**s (U - alpha) + (T - rho)    mod 2**(m+s),    u = U - alpha mod 2**m,  t = T - rho
u is alpha's place in a table that is turned by U, which both know: a unit vector at alpha, shared, times
(1, rho, .., rho**degree) gives shares of c_k[u] rho**j for all k and j, and sum_k c_k[u] (T - rho)**k is a
combination of these with public coefficients. Since Y lies below the last cell, u does not come round.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from privinfer import _kernels
from privinfer.graph import fixedpoint as fp
from privinfer.protocols.cost import Cost
from privinfer.protocols.mpc import rescale
from privinfer.protocols.mpc.dealing import Dealer, Dealt, packed_size, tweak
from privinfer.protocols.mpc.gate import Gate, Rounds
from privinfer.protocols.mpc.wires import Masked, MaskPair, MaskShare, Narrow, need
from privinfer.protocols.randomness import U64, Secret

BLOCK = 16
MAX_CELL_BITS, MAX_STEP_BITS, MAX_DEGREE = 12, 40, 3  # what the kernel takes
Bytes = npt.NDArray[np.uint8]


def check(step: fp.Step, op: fp.Table, bits: int) -> None:
    """TypeError where the table does not fit together or does not fit the wire."""
    rescale.ring(step, op.shift)
    m, s = op.cell_bits, op.step_bits
    if not (1 <= m <= MAX_CELL_BITS and 0 <= s <= MAX_STEP_BITS and m + s <= bits):
        raise TypeError(f"{m} + {s} bits do not index a table by a wire of {bits}")
    if not 0 <= op.degree <= MAX_DEGREE or len(op.coefficients) != (op.degree + 1) << m:
        raise TypeError(f"{len(op.coefficients)} coefficients of degree {op.degree} for 2**{m} cells")


def coefficients(op: fp.Table) -> U64:
    """c_k[u] mod 2**64, a row a power."""
    values = np.array([c % 2**fp.WIDE for c in op.coefficients], dtype=np.uint64)
    return values.reshape(op.degree + 1, 1 << op.cell_bits)


def cut(op: fp.Table) -> int:
    """How many levels of the tree are packed into a leaf: fewer AES calls, for hardly more bytes."""
    return min(2 if op.degree == 0 else 1, op.cell_bits)


def leaf_words(op: fp.Table) -> int:
    """Words of 64 bits in a leaf."""
    return (op.degree + 1) << cut(op)


def key_size(op: fp.Table, count: int) -> int:
    """Bytes the helper sends EACH evaluator for `count` keys."""
    return count * (BLOCK * (op.cell_bits - cut(op)) + 8 * leaf_words(op))


def cost(step: fp.Step, op: fp.Table, bits: int, batch: int) -> Cost:
    """Rounds and bytes of the gate on a `bits`-bit wire."""
    check(step, op, bits)
    count = batch * step.type.size
    keys = key_size(op, count)
    return Cost(
        rounds=1,
        opened=packed_size(count, step.type.bits),
        common=keys,
        dealt=(keys, keys + rescale.size(step, op.shift, count)),
    )


def deal(step: fp.Step, op: fp.Table, dealer: Dealer, x: MaskPair) -> MaskPair:
    """Helper: a key pair a value at alpha with the powers of rho, and rz; returns the new mask."""
    check(step, op, x.bits)
    r = x.total()
    flat = fp.low_bits(r.reshape(-1), op.cell_bits + op.step_bits)
    alpha, rho = flat >> np.uint64(op.step_bits), flat & np.uint64((1 << op.step_bits) - 1)
    payload = np.ones((flat.size, op.degree + 1), dtype=np.uint64)
    for k in range(op.degree):
        payload[:, k + 1] = payload[:, k] * rho
    roots = np.stack([s.draw_blocks(dealer.label("root"), flat.size) for s in dealer.streams], axis=1)
    cw, final = _kernels.dpf_gen(
        alpha, payload, op.cell_bits, np.ascontiguousarray(roots), tweak(dealer.scope, dealer.step), cut(op)
    )
    dealer.common.extend((cw.data, final.data))
    return rescale.deal(step, op.shift, dealer, r.shape)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class TableKeys(Secret):
    """One evaluator's keys for a whole tensor."""

    evaluator: int
    roots: Bytes
    cw: Bytes
    final: U64
    tweak: bytes

    @classmethod
    def take(cls, dealt: Dealt, op: fp.Table, count: int) -> TableKeys:
        """Read this evaluator's keys from its parcel."""
        cw = dealt.receive((count, op.cell_bits - cut(op), BLOCK // 8), 64).view(np.uint8)
        final = dealt.receive((count, leaf_words(op)), 64)
        roots = dealt.stream.draw_blocks(dealt.label("root"), count)
        return cls(dealt.evaluator, roots, cw, final, tweak(dealt.scope, dealt.step))

    def look_up(self, op: fp.Table, yh: U64) -> U64:
        """Share of sum_k c_k[u] t**k mod 2**64, in the shape of Y^."""
        shares = _kernels.table_eval(
            self.evaluator,
            np.ascontiguousarray(yh).reshape(-1),
            op.cell_bits,
            op.step_bits,
            op.degree,
            coefficients(op),
            self.roots,
            self.cw,
            self.final,
            self.tweak,
        )
        return shares.reshape(yh.shape)


class TableGate(Gate):
    """An evaluator's half of a lookup."""

    __slots__ = ("_keys", "_op", "_rz", "_step")

    def __init__(self, step: fp.Step, op: fp.Table, dealt: Dealt, x: MaskShare) -> None:
        check(step, op, x.bits)
        self._keys = TableKeys.take(dealt, op, x.values.size)
        mask, self._rz = rescale.take(step, op.shift, dealt, x.values.shape)
        self._step, self._op = step, op
        super().__init__(dealt.evaluator, mask)

    def evaluate(self, x: Masked) -> Rounds:
        """Look Y^ up, open the sum under its mask."""
        self.start()
        op = self._op
        low = np.uint64(op.low % 2**fp.WIDE)
        yh = fp.low_bits(need(Narrow, x).values - low, op.cell_bits + op.step_bits)
        opened: Masked = yield rescale.cut(self._step, op.shift, self._keys.look_up(op, yh) + self._rz)
        return opened
