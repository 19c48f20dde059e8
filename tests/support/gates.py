"""One gate at a time: a helper that deals a single step, and two evaluators that run it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from privinfer.errors import IntegrityError
from privinfer.graph import fixedpoint as fp
from privinfer.graph import ir
from privinfer.protocols.cost import Cost
from privinfer.protocols.mpc import (
    dealing,
    extend,
    larger,
    linear,
    opening,
    pieces,
    product,
    relu,
    table,
    truncate,
)
from privinfer.protocols.mpc.gate import Gate
from privinfer.protocols.mpc.wires import Masked, MaskPair, MaskShare, masked
from privinfer.protocols.randomness import U64, Scope, Seed, Stream
from tests.support import stats

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
    remake: Callable[[int, bytes], None]  # makes evaluator k's gate again, from other bytes

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

    def masks(self, name: str, shape: tuple[int, ...], bits: int = fp.WIDE) -> tuple[U64, U64]:
        """Both halves of a mask for one more wire."""
        first, second = (s.draw(name, shape, bits) for s in self.streams("wire"))
        return first, second

    def hide(self, values: U64, bits: int, masks: tuple[U64, U64] | None = None) -> Wire:
        """A wire of `values` under a fresh mask, or under the one given."""
        if masks is None:
            masks = self.masks("wire", values.shape, bits)
        pair = MaskPair(*masks, bits)
        shares = MaskShare(masks[0], bits), MaskShare(masks[1], bits)
        return Wire(pair, shares, masked(fp.low_bits(values + masks[0] + masks[1], bits), bits))

    def dealt(self) -> tuple[tuple[dealing.Dealt, dealing.Dealt], tuple[bytes, bytes]]:
        """Both evaluators' ends of what was dealt since the last call."""
        first_parcel, second_parcel = map(bytes, self.dealer.collect())
        parcels = first_parcel, second_parcel
        streams = self.streams(dealing.DEAL)
        first, second = (dealing.Dealt(k, streams[k], self.scope, self.step, parcels[k]) for k in range(2))
        return (first, second), parcels

    def run(
        self, wire: Wire, pair: MaskPair, make: Callable[[dealing.Dealt, MaskShare], Gate], *others: Wire
    ) -> Run:
        """Take what was dealt, make both gates, and run them against each other."""
        ends, parcels = self.dealt()
        gates = make(ends[0], wire.shares[0]), make(ends[1], wire.shares[1])
        for end, gate, half in zip(ends, gates, (pair.first, pair.second), strict=True):
            end.finish()
            np.testing.assert_array_equal(gate.mask.values, half)
            assert gate.mask.bits == pair.bits
        out, opened, messages = play(gates, wire.masked, *(w.masked for w in others))
        shares = gates[0].mask, gates[1].mask

        def remake(k: int, parcel: bytes) -> None:
            end = dealing.Dealt(k, self.streams(dealing.DEAL)[k], self.scope, self.step, parcel)
            make(end, wire.shares[k])
            end.finish()

        return Run(Wire(pair, shares, out), opened, messages, parcels, gates, remake)


def play(gates: tuple[Gate, Gate], *xs: Masked) -> tuple[Masked, list[Masked], list[tuple[bytes, bytes]]]:
    """Advance both halves together, through the bytes they would send."""
    rounds = [gate.evaluate(*xs) for gate in gates]
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


def run_pieces(
    op: fp.Pieces, x: U64, bits: int, out: int, masks: tuple[U64, U64] | None = None
) -> tuple[Run, Cost]:
    """A piecewise affine function of a narrow wire, as one of `out` bits; and what it declares."""
    bench = Bench()
    wire = bench.hide(x, bits, masks)
    step = step_of(op, x.shape[1:], out)
    pair = pieces.deal(step, op, bench.dealer, wire.pair)
    run = bench.run(wire, pair, lambda dealt, mask: pieces.PiecesGate(step, op, dealt, mask))
    return run, pieces.cost(step, op, bits, x.shape[0])


def run_table(
    op: fp.Table, x: U64, bits: int, out: int, masks: tuple[U64, U64] | None = None
) -> tuple[Run, Cost]:
    """A lookup of a narrow wire, as one of `out` bits; and what it declares."""
    bench = Bench()
    wire = bench.hide(x, bits, masks)
    step = step_of(op, x.shape[1:], out)
    pair = table.deal(step, op, bench.dealer, wire.pair)
    run = bench.run(wire, pair, lambda dealt, mask: table.TableGate(step, op, dealt, mask))
    return run, table.cost(step, op, bits, x.shape[0])


def run_larger(x: U64, bits: int, masks: tuple[U64, U64] | None = None) -> tuple[Run, Cost]:
    """The larger of neighbours on a narrow wire; and what it declares."""
    bench = Bench()
    wire = bench.hide(x, bits, masks)
    pair = larger.deal(bench.dealer, wire.pair)
    step = step_of(fp.Larger(), (x.shape[1] // 2, *x.shape[2:]), bits)
    return bench.run(wire, pair, larger.LargerGate), larger.cost(step, x.shape[0])


def run_product(
    op: fp.Product,
    x: U64,
    y: U64 | None,
    out: int,
    masks: tuple[tuple[U64, U64] | None, tuple[U64, U64] | None] = (None, None),
) -> tuple[Run, Cost]:
    """A product of two wide wires, or without `y` of one with itself; and what it declares."""
    bench = Bench()
    left = bench.hide(x, fp.WIDE, masks[0])
    right = left if y is None else bench.hide(y, fp.WIDE, masks[1] or bench.masks("other", y.shape))
    shape = (*x.shape[:-1], right.masked.values.shape[-1])
    step = dataclasses.replace(step_of(op, shape[1:], out), inputs=(0, 1))
    pair = product.deal(step, op, bench.dealer, left.pair, right.pair)

    def make(dealt: dealing.Dealt, mask: MaskShare) -> Gate:
        return product.ProductGate(step, op, dealt, mask, right.shares[dealt.evaluator])

    return bench.run(left, pair, make, right), product.cost(step, op, x.shape[0])


def check_cost(run: Run, cost: Cost) -> None:
    """Rounds and bytes are those that the gate declares."""
    assert cost.rounds == len(run.messages)
    for k in range(2):
        assert cost.opened == sum(len(sent[k]) for sent in run.messages)
    assert cost.dealt == tuple(len(p) for p in run.parcels)
    assert (cost.asked, cost.answered) == (0, (0, 0))


def check_parcels(run: Run) -> None:
    """A parcel that is too short or too long is refused, and the right one is not."""
    for k, parcel in enumerate(run.parcels):
        run.remake(k, parcel)
        for data in {parcel[:-1], parcel[: len(parcel) // 2], b"", parcel + b"\0", 2 * parcel} - {parcel}:
            with pytest.raises(ValueError, match=r"."):
                run.remake(k, data)


def check_used(run: Run, *xs: Masked) -> None:
    """A gate that has run does not run again."""
    for gate in run.gates:
        with pytest.raises(IntegrityError, match="twice"):
            next(gate.evaluate(*xs))


def silence(patch: pytest.MonkeyPatch, name: str, bits: int) -> None:
    """Let every draw of this name and ring be zeros: a gate that is broken on purpose."""
    real = Stream.draw

    def draw(self: Stream, label: str, shape: tuple[int, ...], drawn: int = fp.WIDE) -> U64:
        values = real(self, label, shape, drawn)
        return np.zeros_like(values) if label.endswith(f"/{name}") and drawn == bits else values

    patch.setattr(Stream, "draw", draw)


def sent(run: Run, at: int, sender: int) -> U64:
    """What an evaluator sent in a round, as integers."""
    like = run.opened[at]
    return dealing.unpack(run.messages[at][sender], like.bits, like.values.shape)


def check_uniform(view: list[tuple[U64, int]], alarm: float = stats.ALARM) -> None:
    """The tuple of low bits, so many of each, is uniform: Pearson's statistic and its exact tail."""
    assert uniformity(view) < stats.critical((1 << sum(b for _, b in view)) - 1, alarm)


def uniformity(view: list[tuple[U64, int]]) -> float:
    """Pearson's statistic of the tuple of low bits against the uniform distribution."""
    cell = np.zeros(view[0][0].size, dtype=np.uint64)
    for values, bits in view:
        cell = (cell << np.uint64(bits)) | fp.low_bits(values.reshape(-1), bits)
    total = sum(b for _, b in view)
    assert total <= 10, "the tail is computed for at most a thousand cells"
    return stats.uniform_statistic(np.bincount(cell.astype(np.int64), minlength=1 << total))[0]
