"""Product of two secret wires, elementwise or of matrices, then truncation: one opening.

Functionality: x^ and y^ mod 2**64 are known; out comes the wire of x y / 2**shift: narrow, or wide with a
shift of 0. Both may be the same wire.
Adversary: semi-honest, one of E1, E2, H. What is opened lies under rz (rescale.py).
Preprocessing: H deals c1 (from the stream with E1) and c2 = rx ry + rz - c1 to E2: mod 2**q, q = n + shift,
q / 8 bytes a value of z.
Rounds: 1. Bytes online: n / 8 a value of z, each way. Work online: two integer products an evaluator.
Correctness error: |z - x y / 2**shift| < 1.5 for |x y| < 2**(q-1) (opening.py); with shift 0 none.
Source: docs/protocols.md, linear gate; Beaver's multiplication (CRYPTO 1991) with the opened wire masks of
Ben-Efraim, Nielsen and Omri, "Turbospeedz", ACNS 2019: x^ and y^ are there already and nothing is opened
before the product.

    (x^ - rx)(y^ - ry) = x^ y^ - x^ ry - rx y^ + rx ry
"""

from __future__ import annotations

import numpy as np

from privinfer import _kernels
from privinfer.graph import fixedpoint as fp
from privinfer.protocols.cost import Cost
from privinfer.protocols.mpc import rescale
from privinfer.protocols.mpc.dealing import Dealer, Dealt, packed_size
from privinfer.protocols.mpc.gate import Gate, Rounds
from privinfer.protocols.mpc.wires import Masked, MaskPair, MaskShare, Wide, need
from privinfer.protocols.randomness import U64

SMALL = 1 << 12  # multiplications of one matrix product below which a call of the kernel is not worth it


def ring_product(op: fp.Product, x: U64, y: U64) -> U64:
    """The bilinear map of the operation in Z_2^64."""
    if not op.matmul:
        if x.shape != y.shape:
            raise TypeError(f"no elementwise product of {x.shape} and {y.shape}")
        return x * y
    if min(x.ndim, y.ndim) < 3 or x.shape[:-2] != y.shape[:-2] or x.shape[-1] != y.shape[-2]:
        raise TypeError(f"no product of matrices {x.shape} and {y.shape}")
    m, k, n = *x.shape[-2:], y.shape[-1]
    if m * k * n < SMALL:
        return np.asarray(np.matmul(x, y))  # of integers: exact mod 2**64
    z = np.empty((*x.shape[:-1], n), dtype=np.uint64)
    for at in np.ndindex(x.shape[:-2]):
        z[at] = _kernels.matmul(np.ascontiguousarray(x[at]), np.ascontiguousarray(y[at]))
    return z


def cost(step: fp.Step, op: fp.Product, batch: int) -> Cost:
    """Rounds and bytes of the gate."""
    count = batch * step.type.size
    return Cost(
        rounds=1,
        opened=packed_size(count, step.type.bits),
        dealt=(0, packed_size(count, rescale.ring(step, op.shift))),
    )


def deal(step: fp.Step, op: fp.Product, dealer: Dealer, x: MaskPair, y: MaskPair) -> MaskPair:
    """Helper: shares of rx ry + rz; returns the mask of the wire that comes out."""
    product = ring_product(op, x.total(), y.total())
    mask, rz = rescale.hide(step, op.shift, dealer, product.shape)
    dealer.split("c", product + rz, rescale.ring(step, op.shift))
    return mask


class ProductGate(Gate):
    """An evaluator's half of a product."""

    __slots__ = ("_c", "_masks", "_op", "_step")

    def __init__(self, step: fp.Step, op: fp.Product, dealt: Dealt, x: MaskShare, y: MaskShare) -> None:
        shape = (*x.values.shape[:-1], y.values.shape[-1])
        self._c = dealt.share("c", shape, rescale.ring(step, op.shift)).values
        self._c = self._c + rescale.half(op.shift, dealt.evaluator)
        self._masks = x.values, y.values
        self._step, self._op = step, op
        super().__init__(dealt.evaluator, dealt.fresh("mask", shape, step.type.bits).share)

    def evaluate(self, x: Masked, y: Masked | None = None) -> Rounds:
        """E1: x^ (y^ - ry1) - rx1 y^ + c1; E2: -x^ ry2 - rx2 y^ + c2; their sum is z + rz."""
        self.start()
        xh, yh = need(Wide, x).values, need(Wide, y).values
        rx, ry = self._masks
        right = (yh if self.evaluator == 0 else np.uint64(0)) - ry
        z = ring_product(self._op, xh, right) - ring_product(self._op, rx, yh) + self._c
        opened: Masked = yield rescale.cut(self._step, self._op.shift, z)
        return opened
