"""One gate at a time: a helper that deals a single step, and two evaluators that run it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from privinfer.graph import fixedpoint as fp
from privinfer.graph import ir
from privinfer.protocols.mpc import dealing, extend, linear, opening, relu, truncate
from privinfer.protocols.mpc.gate import Gate
from privinfer.protocols.mpc.wires import Masked, MaskPair, MaskShare, masked
from privinfer.protocols.randomness import U64, Scope, Seed, Stream

I64 = npt.NDArray[np.int64]
STEP = 7


def ring(values: Any, bits: int = fp.WIDE) -> U64:
    """Integers of any sign mod 2**bits."""
    return fp.low_bits(np.asarray(values, dtype=np.int64).view(np.uint64), bits)


def signed(values: U64, bits: int) -> I64:
    """The centred representative of integers mod 2**bits."""
    up = np.uint64(fp.WIDE - bits)
    return (values << up).view(np.int64) >> np.int64(fp.WIDE - bits)


@dataclass(frozen=True)
class Wire:
    """A wire as all three see it together, which in a session nobody does."""

    pair: MaskPair
    shares: tuple[MaskShare, MaskShare]
    masked: Masked

    @property
    def values(self) -> U64:
        """The secret, mod 2**bits."""
        return fp.low_bits(self.masked.values - self.pair.total(), self.pair.bits)


@dataclass(frozen=True)
class Run:
    """What came of one gate."""

    wire: Wire  # what comes out
    opened: list[Masked]  # what both evaluators saw, round by round
    messages: list[tuple[bytes, bytes]]  # what E1 and E2 sent, round by round
    parcels: tuple[bytes, bytes]  # what the helper dealt
    gates: tuple[Gate, Gate]

    @property
    def result(self) -> I64:
        """The secret that comes out, centred."""
        return signed(self.wire.values, self.wire.pair.bits)


class Bench:
    """Fresh seeds, a dealer and two evaluators' ends."""

    def __init__(self, step: int = STEP, scope: Scope | None = None) -> None:
        self.scope = scope or Scope(Seed.fresh().expose(), 0)
        self.seeds = (Seed.fresh(), Seed.fresh())
        self.dealer = dealing.Dealer(self.streams(dealing.DEAL), self.scope)
        self.dealer.step = self.step = step

    def streams(self, purpose: str) -> tuple[Stream, Stream]:
        """A pair of streams, as the helper has them."""
        first, second = (Stream(seed, self.scope, purpose) for seed in self.seeds)
        return first, second

    def hide(self, values: U64, bits: int, masks: tuple[U64, U64] | None = None) -> Wire:
        """A wire of `values` under a fresh mask, or under the one given."""
        if masks is None:
            masks = tuple(s.draw("wire", values.shape, bits) for s in self.streams("wire"))  # type: ignore[assignment]
        assert masks is not None
        pair = MaskPair(*masks, bits)
        shares = MaskShare(masks[0], bits), MaskShare(masks[1], bits)
        return Wire(pair, shares, masked(fp.low_bits(values + masks[0] + masks[1], bits), bits))

    def dealt(self) -> tuple[tuple[dealing.Dealt, dealing.Dealt], tuple[bytes, bytes]]:
        """Both evaluators' ends of what was dealt since the last call."""
        parcels = self.dealer.collect()
        streams = self.streams(dealing.DEAL)
        first, second = (dealing.Dealt(k, streams[k], self.scope, self.step, parcels[k]) for k in range(2))
        return (first, second), parcels

    def run(self, wire: Wire, pair: MaskPair, make: Callable[[dealing.Dealt, MaskShare], Gate]) -> Run:
        """Take what was dealt, make both gates, and run them against each other."""
        ends, parcels = self.dealt()
        gates = make(ends[0], wire.shares[0]), make(ends[1], wire.shares[1])
        for end, gate, half in zip(ends, gates, (pair.first, pair.second), strict=True):
            end.finish()
            np.testing.assert_array_equal(gate.mask.values, half)
            assert gate.mask.bits == pair.bits
        out, opened, messages = play(gates, wire.masked)
        shares = gates[0].mask, gates[1].mask
        return Run(Wire(pair, shares, out), opened, messages, parcels, gates)


def play(gates: tuple[Gate, Gate], x: Masked) -> tuple[Masked, list[Masked], list[tuple[bytes, bytes]]]:
    """Advance both halves together, through the bytes they would send."""
    rounds = [gate.evaluate(x) for gate in gates]
    opened: list[Masked] = []
    messages: list[tuple[bytes, bytes]] = []
    send: Any = [None, None]
    while True:
        shares, results = [], []
        for generator, value in zip(rounds, send, strict=True):
            try:
                shares.append(generator.send(value))
            except StopIteration as done:
                results.append(done.value)
        if results:
            assert not shares, "one half ends before the other"
            np.testing.assert_array_equal(results[0].values, results[1].values)
            return results[0], opened, messages
        sent = opening.message([shares[0]]), opening.message([shares[1]])
        assert len(sent[0]) == len(sent[1]) == opening.message_size([shares[0]])
        seen = [
            opening.combine(own, opening.parse(theirs, [own])[0])
            for own, theirs in zip(shares, reversed(sent), strict=True)
        ]
        np.testing.assert_array_equal(seen[0].values, seen[1].values)
        opened.append(seen[0])
        messages.append(sent)
        send = seen


def step_of(operation: fp.Operation, shape: ir.Shape, bits: int, frac: int = 0) -> fp.Step:
    """A step of a program that has no other."""
    return fp.Step(STEP, operation, (0,), fp.Type(shape, bits, frac), "gate")


def run_relu(x: U64, bits: int, masks: tuple[U64, U64] | None = None) -> Run:
    """ReLU of a narrow wire."""
    bench = Bench()
    wire = bench.hide(x, bits, masks)
    pair = relu.deal(bench.dealer, wire.pair)
    return bench.run(wire, pair, relu.ReluGate)


def run_extend(x: U64, bits: int, masks: tuple[U64, U64] | None = None) -> Run:
    """Sign extension of a narrow wire."""
    bench = Bench()
    wire = bench.hide(x, bits, masks)
    pair = extend.deal(bench.dealer, wire.pair)
    return bench.run(wire, pair, extend.ExtendGate)


def run_truncate(
    x: U64, shift: int, bits: int, *, exact: bool = False, masks: tuple[U64, U64] | None = None
) -> Run:
    """Either truncation of a wide wire."""
    bench = Bench()
    wire = bench.hide(x, fp.WIDE, masks)
    op = fp.Truncate(shift, exact)
    step = step_of(op, x.shape[1:], bits)
    pair = truncate.deal(step, op, bench.dealer, wire.pair)
    kind = truncate.ExactTruncateGate if exact else truncate.LocalTruncateGate
    return bench.run(wire, pair, lambda dealt, mask: kind(step, op, dealt, mask))


def run_linear(
    op: ir.Linear | ir.Conv2d | ir.Scale,
    x: U64,
    weight: ir.Array,
    bias: ir.Array,
    *,
    shift: int,
    bits: int,
    masks: tuple[U64, U64] | None = None,
) -> Run:
    """A bilinear gate on integer weights and bias (no fractional bits): trunc(x W + b)."""
    bench = Bench()
    wire = bench.hide(x, fp.WIDE, masks)
    bilinear = fp.Bilinear(op, 0, shift)
    step = step_of(bilinear, op.shape(x.shape[1:]), bits)
    weights = linear.share_weights(
        step, bilinear, 0, {"weight": weight, "bias": bias}, bench.streams("weights")
    )
    hidden = linear.weight_mask(step, bilinear, bench.streams("weights"))
    pair = linear.deal(step, bilinear, bench.dealer, wire.pair, hidden)

    def make(dealt: dealing.Dealt, mask: MaskShare) -> Gate:
        k = dealt.evaluator
        second = weights.second_bias if k else None
        stream = bench.streams("weights")[k]
        own = linear.operand(step, bilinear, k, stream, weights.masked, second)
        return linear.LinearGate(step, bilinear, dealt, mask, own)

    return bench.run(wire, pair, make)
