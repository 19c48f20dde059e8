"""Bilinear gate: z = x W + b for secret x and secret W, then truncation, in one opening.

Functionality: x^ and W^ = W + rW are known to E1 and E2; out comes y^ with y = trunc(xW + b).
Adversary: semi-honest, one of E1, E2, H; the model owner may be an evaluator (rz and c1 hide).
Preprocessing: H deals c1 (from the stream with E1) and c2 = rx rW + rz - c1 to E2: 8 bytes a value of z.
Rounds: 1. Bytes online: n / 8 a value of z, each way. Work online: ONE integer matmul an evaluator.
Correctness error: |y - z / 2**shift| < 1.5 (opening.py); with shift 0 none.
Source: docs/protocols.md, bilinear gate; Beaver's multiplication (CRYPTO 1991) with the opened wire masks
of Ben-Efraim, Nielsen and Omri, "Turbospeedz", ACNS 2019, in place of fresh openings.

    (x^ - rx)(W^ - rW) = x^ W^ - x^ rW - rx W^ + rx rW
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from privinfer import _kernels
from privinfer.graph import fixedpoint as fp
from privinfer.graph import ir, reference
from privinfer.protocols.cost import Cost
from privinfer.protocols.mpc.dealing import Dealer, Dealt, packed_size
from privinfer.protocols.mpc.gate import Gate, Rounds
from privinfer.protocols.mpc.opening import truncated
from privinfer.protocols.mpc.wires import Blinded, Masked, MaskPair, MaskShare, Wide, need
from privinfer.protocols.randomness import U64, Secret, Stream


def ring_map(op: ir.Linear | ir.Conv2d | ir.Scale, x: U64, w: U64) -> U64:
    """The bilinear map of an operator in Z_2^64, batch first."""
    if isinstance(op, ir.Linear):
        rows = _kernels.matmul(np.ascontiguousarray(x).reshape(-1, op.inputs), w)
        return rows.reshape(*x.shape[:-1], op.outputs)
    if isinstance(op, ir.Conv2d):
        x = np.ascontiguousarray(x)
        return _kernels.conv2d(x, w, op.stride, op.padding, op.dilation, op.groups)
    return x * reference.along(w, op.axis, x.ndim)


def cost(step: fp.Step, batch: int) -> Cost:
    """Rounds and bytes of the gate."""
    count = batch * step.type.size
    return Cost(rounds=1, opened=packed_size(count, step.type.bits), dealt=(0, 8 * count))


# Once a model and session: the owner masks the weights.


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Weights(Secret):
    """What the model owner sends for one gate: W^ to both evaluators, the second bias share to E2."""

    masked: U64
    second_bias: U64


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Operand(Secret):
    """What an evaluator keeps for one gate: W^, its online operand, its bias share."""

    masked: U64
    online: U64
    bias: U64


def weights_size(op: fp.Bilinear, evaluator: int) -> int:
    """Bytes of what the model owner sends E1 (0) or E2 (1) for one gate."""
    shapes = op.op.parameters()
    return 8 * (math.prod(shapes["weight"]) + evaluator * shapes["bias"][0])


def share_weights(
    step: fp.Step,
    op: fp.Bilinear,
    input_frac: int,
    parameters: dict[str, ir.Array],
    streams: tuple[Stream, Stream],
) -> Weights:
    """Model owner: W^ = W + rW1 + rW2 and b2 = b - b1, at the scales the program says."""
    weight = fp.encode(parameters["weight"], op.weight_frac)
    bias = fp.encode(parameters["bias"], input_frac + op.weight_frac)
    masks = [s.draw(f"{step.index}/weight", weight.shape) for s in streams]
    first_bias = streams[0].draw(f"{step.index}/bias", bias.shape)
    return Weights(weight + masks[0] + masks[1], bias - first_bias)


def weight_mask(step: fp.Step, op: fp.Bilinear, streams: tuple[Stream, Stream]) -> MaskPair:
    """Helper: rW1 and rW2."""
    shape = op.op.parameters()["weight"]
    first, second = (s.draw(f"{step.index}/weight", shape) for s in streams)
    return MaskPair(first, second, fp.WIDE)


def operand(
    step: fp.Step,
    op: fp.Bilinear,
    evaluator: int,
    stream: Stream,
    masked_weight: U64,
    second_bias: U64 | None,
) -> Operand:
    """Evaluator: E1 keeps W^ - rW1, E2 keeps -rW2; what each will multiply x^ with."""
    mask = stream.draw(f"{step.index}/weight", masked_weight.shape)
    if evaluator == 0:
        bias = stream.draw(f"{step.index}/bias", op.op.parameters()["bias"])
        return Operand(masked_weight, masked_weight - mask, bias)
    if second_bias is None:
        raise TypeError("E2 needs its bias share")
    return Operand(masked_weight, np.uint64(0) - mask, second_bias)


# Once an inference.


def deal(step: fp.Step, op: fp.Bilinear, dealer: Dealer, x: MaskPair, w: MaskPair) -> MaskPair:
    """Helper: c1 and c2; returns the mask of the wire that comes out."""
    n, s = step.type.bits, op.shift
    product = ring_map(op.op, x.total(), w.total())
    shape = product.shape
    c1 = dealer.streams[0].draw(dealer.label("c1"), shape)
    ry = dealer.fresh("mask", shape, n)
    # rz = low + 2^s ry + 2^(n+s) high; low and high stay with H, so y^'s mask has its shares and the
    # bits that truncation drops are hidden too
    rz = ry.total() << np.uint64(s)
    if s:
        rz += dealer.private.draw(dealer.label("low"), shape, s)
    if n + s < fp.WIDE:
        high = dealer.private.draw(dealer.label("high"), shape, fp.WIDE - n - s)
        rz += high << np.uint64(n + s)
    rz += product
    rz -= c1
    dealer.give(1, rz, fp.WIDE)
    return ry


class LinearGate(Gate):
    """An evaluator's half of a bilinear gate."""

    __slots__ = ("_offset", "_op", "_operand", "_step")

    def __init__(self, step: fp.Step, op: fp.Bilinear, dealt: Dealt, x: MaskShare, w: Operand) -> None:
        # E1: -rx1 W^ + c1 + b1 (+ half, to round); E2: -rx2 W^ + c2 + b2
        offset = ring_map(op.op, x.values, w.masked)
        np.negative(offset, out=offset)
        shape = offset.shape
        if dealt.evaluator == 0:
            offset += dealt.stream.draw(dealt.label("c1"), shape)
            if op.shift:
                offset += np.uint64(1 << (op.shift - 1))
        else:
            offset += dealt.receive(shape, fp.WIDE)
        offset += reference.along(w.bias, reference.bias_axis(op.op, offset.ndim), offset.ndim)
        super().__init__(dealt.evaluator, dealt.fresh("mask", shape, step.type.bits).share)
        self._step, self._op, self._operand, self._offset = step, op, w, offset

    def evaluate(self, x: Masked) -> Rounds:
        """E1: x^ (W^ - rW1) + offset; E2: -x^ rW2 + offset; their sum is z + rz."""
        self.start()
        z = ring_map(self._op.op, need(Wide, x).values, self._operand.online)
        z += self._offset
        share = Blinded(z, fp.WIDE)
        if self._op.shift:
            share = truncated(share, self._op.shift, self._step.type.bits)
        opened: Masked = yield share
        return opened
