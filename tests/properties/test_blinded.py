"""The blinded comparison against its functionality, what each party sees, and the attack that u prevents."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from privinfer import _kernels
from privinfer.errors import IntegrityError, ProtocolViolation
from privinfer.graph import fixedpoint as fp
from privinfer.protocols.mpc import blinded, opening
from privinfer.protocols.mpc import gate as gate_module
from privinfer.protocols.mpc.dealing import packed_size
from privinfer.protocols.mpc.wires import Blinded, Masked, Wide
from privinfer.protocols.randomness import Seed, Stream
from tests import twins
from tests.support import gates, stats
from tests.support.gates import Bench, ring, signed

SHAPES = [(1, 1), (0, 3), (1, 7), (2, 8), (3, 3, 11), (1, 129), (2, 64)]
NAMES = ("startup", "hospital")
I64 = npt.NDArray[np.int64]
seeds = st.integers(0, 2**32)


# -- the harness: two evaluators and a helper ------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """What came of one gate, and what went over which wire."""

    result: I64
    parcels: tuple[bytes, bytes]
    asked: tuple[bytes, bytes]
    answered: bytes
    shares: tuple[Blinded, Blinded]
    opened: Masked


@dataclass(frozen=True)
class Prepared:
    """A gate that has been dealt and waits for its input."""

    wire: gates.Wire
    mask: gates.U64
    keeps: blinded.Answerer
    gates: tuple[blinded.BlindedReluGate, blinded.BlindedReluGate]
    parcels: tuple[bytes, bytes]


def prepare(x: gates.U64, bits: int, masks: tuple[gates.U64, gates.U64] | None = None) -> Prepared:
    bench, pair = Bench(), Seed.fresh()
    wire = bench.hide(x, bits, masks)
    mask, keeps = blinded.deal(bench.dealer, wire.pair)
    ends, parcels = bench.dealt()
    made = []
    for end, share, half in zip(ends, wire.shares, (mask.first, mask.second), strict=True):
        gate = blinded.BlindedReluGate(end, Stream(pair, bench.scope, "blind"), share)
        end.finish()
        np.testing.assert_array_equal(gate.mask.values, half)
        made.append(gate)
    return Prepared(wire, mask.total(), keeps, (made[0], made[1]), parcels)


def play(ready: Prepared) -> Run:
    """The three messages in their order; E1 opens before H answers, since it needs nothing from H."""
    x = ready.wire.masked
    first, second = (gate.evaluate(x) for gate in ready.gates)
    questions = next(first), next(second)
    assert isinstance(questions[0], gate_module.ToHelper)
    assert isinstance(questions[1], gate_module.ToHelper)
    asked = questions[0].data, questions[1].data
    assert first.send(None) == gate_module.FromHelper(0)
    share1 = first.send(b"")
    answer = ready.keeps.answer(*asked, NAMES)
    assert second.send(None) == gate_module.FromHelper(len(answer))
    share2 = second.send(answer)
    assert isinstance(share1, Blinded)
    assert isinstance(share2, Blinded)
    out = opening.combine(share1, share2)
    for rounds in (first, second):
        with pytest.raises(StopIteration) as done:
            rounds.send(out)
        assert type(done.value.value) is Wide
        np.testing.assert_array_equal(done.value.value.values, out.values)
    result = signed(out.values - ready.mask, 64)
    return Run(result, ready.parcels, asked, answer, (share1, share2), out)


def run(x: gates.U64, bits: int, masks: tuple[gates.U64, gates.U64] | None = None) -> Run:
    return play(prepare(x, bits, masks))


# -- correctness -----------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", range(2, 8))
def test_relu_of_every_value_under_every_mask(bits: int) -> None:
    size = 1 << bits
    x, r = (v.reshape(1, -1) for v in np.meshgrid(np.arange(-size // 2, size // 2), np.arange(size)))
    for seed in range(3):
        first = np.random.default_rng(seed).integers(0, size, x.shape)
        found = run(ring(x, bits), bits, (ring(first, bits), ring(r - first, bits))).result
        np.testing.assert_array_equal(found, np.maximum(x, 0))


@given(st.integers(2, blinded.MAX_BITS), st.sampled_from(SHAPES), seeds)
@example(32, (1, 1000), 0)
@example(48, (1, 1000), 0)
@example(35, (1, 200), 0)
@example(36, (1, 200), 0)
def test_relu_is_exact(bits: int, shape: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    top = 1 << (bits - 1)
    x = rng.integers(-top, top, shape)
    special = [v for v in (-top, 1 - top, -1, 0, 1, top - 1, top - 2) if -top <= v < top]
    flat = x.reshape(-1)
    count = min(flat.size, len(special))
    flat[:count] = rng.permutation(special)[:count]
    np.testing.assert_array_equal(run(ring(x, bits), bits).result, np.maximum(x, 0))


@pytest.mark.parametrize("bits", [8, 32, 35, 36, 48, 51])
def test_relu_at_the_ends_of_value_and_mask(bits: int) -> None:
    """Both halves of the mask at their ends: every carry, every top bit."""
    top = 1 << (bits - 1)
    ends = [0, 1, top - 1, top, 2 * top - 1]
    x, r1, r2 = (
        v.reshape(1, -1) for v in np.meshgrid(np.array([-top, 1 - top, -1, 0, 1, top - 1]), ends, ends)
    )
    found = run(ring(x, bits), bits, (ring(r1, bits), ring(r2, bits))).result
    np.testing.assert_array_equal(found, np.maximum(x, 0))


def test_rings_that_have_no_prime() -> None:
    for bits in (1, 52, 64):
        with pytest.raises(TypeError, match="no blinded comparison"):
            blinded.prime(bits)
    assert [blinded.prime(n) for n in (2, 32, 35, 36, 48, 51)] == [37, 37, 37, 53, 53, 53]


# -- what it costs ---------------------------------------------------------------------------------


@given(st.integers(2, blinded.MAX_BITS), st.sampled_from(SHAPES))
def test_the_gate_costs_what_it_declares(bits: int, shape: tuple[int, ...]) -> None:
    done = run(np.zeros(shape, dtype=np.uint64), bits)
    cost = blinded.cost(fp.Step(7, fp.Rectify(), (0,), fp.Type(shape[1:], 64, 0), "x"), bits, shape[0])
    assert cost.rounds == 3
    assert cost.dealt == tuple(len(p) for p in done.parcels)
    assert [cost.asked] * 2 == [len(m) for m in done.asked]
    assert cost.answered == (0, len(done.answered))
    opened = [len(opening.message([s])) for s in done.shares]
    assert [cost.opened] * 2 == opened
    everything = sum(map(len, done.parcels)) + sum(map(len, done.asked)) + len(done.answered) + sum(opened)
    assert cost.total() == everything


@given(st.sampled_from([37, 53]), st.integers(0, 300), st.integers(1, 34))
def test_the_size_of_residues_is_that_of_the_kernel(p: int, count: int, bits: int) -> None:
    size = _kernels.blind_share_bits(np.zeros(count, np.uint64), bits, p, bytes(16)).size
    assert blinded.residues_size(count, bits, p) == size


def test_a_million_relu_move_less_than_the_best_peer() -> None:
    """SPU's best, 144 MB in all, on the issue's own task."""
    step = fp.Step(7, fp.Rectify(), (0,), fp.Type((1_000_000,), 64, 0), "x")
    total = blinded.cost(step, 32, 1).total()
    assert total == 107_375_000
    assert total < 144e6


# -- misuse ----------------------------------------------------------------------------------------


def test_nothing_serves_twice() -> None:
    ready = prepare(np.zeros((1, 3), np.uint64), 16)
    done = play(ready)
    with pytest.raises(IntegrityError, match="answered twice"):
        ready.keeps.answer(*done.asked, NAMES)
    for gate in ready.gates:
        with pytest.raises(IntegrityError, match="used twice"):
            next(gate.evaluate(ready.wire.masked))


@pytest.mark.parametrize("liar", [0, 1])
@pytest.mark.parametrize(
    "lie", [lambda m: m[:-1], lambda m: b"\xff" * len(m), lambda m: b"", lambda m: m + m]
)
def test_a_malformed_question_is_pinned_on_its_sender(liar: int, lie) -> None:  # type: ignore[no-untyped-def]
    ready = prepare(np.zeros((1, 70), np.uint64), 32)
    asked = [bytes(next(gate.evaluate(ready.wire.masked)).data) for gate in ready.gates]  # type: ignore[union-attr]
    asked[liar] = lie(asked[liar])
    with pytest.raises(ProtocolViolation, match="malformed comparison") as error:
        ready.keeps.answer(asked[0], asked[1], NAMES)
    assert error.value.culprit == NAMES[liar]


def test_malformed_shares_and_answers_are_refused() -> None:
    bench, pair = Bench(), Seed.fresh()
    wire = bench.hide(np.zeros((1, 70), np.uint64), 32)
    blinded.deal(bench.dealer, wire.pair)
    residues = bench.dealer.parcels[1][0]
    bench.dealer.parcels[1][0] = b"\xff" * len(residues)
    ends, _ = bench.dealt()
    with pytest.raises(ValueError, match="no residues"):
        blinded.BlindedReluGate(ends[1], Stream(pair, bench.scope, "blind"), wire.shares[1])

    for wrong in (b"", None, bytes(3)):
        ready = prepare(np.zeros((1, 70), np.uint64), 32)
        rounds = ready.gates[1].evaluate(ready.wire.masked)
        next(rounds)
        next(rounds)
        with pytest.raises(TypeError, match="not given its answer"):
            rounds.send(wrong)


def test_what_is_printed() -> None:
    ready = prepare(np.zeros((1, 3), np.uint64), 16)
    question = next(ready.gates[0].evaluate(ready.wire.masked))
    assert repr(question) == "ToHelper(32 bytes, hidden)"  # 48 residues mod 37
    assert repr(ready.gates[0]) == "BlindedReluGate(hidden)"
    assert repr(ready.keeps) == "Answerer(hidden)"


# -- H's view, exactly -----------------------------------------------------------------------------


def bits_of(value: int, bits: int) -> I64:
    return np.array([value >> i & 1 for i in range(bits)], np.int64)


def shifted_terms(x: int, rho: I64, first: int, bits: int, p: int) -> list[I64]:
    """c of one evaluator, for both beta and every shift."""
    found = []
    for beta in (0, 1):
        c = twins.blind_terms(first, bits_of(x, bits)[:, None], rho[:, None], np.array([beta]), p)
        found += [twins.blind_shift(c, np.array([k]))[:, 0] for k in range(bits + 1)]
    return found


def vectors(values: range, length: int) -> I64:
    return np.array(list(itertools.product(values, repeat=length)), np.int64)


def helper_view(x: int, r: int, rho1: I64, bits: int, p: int, *, add: bool) -> Counter[int]:
    """Both messages, for every beta, shift, s and u, as a multiset."""
    rho2 = (bits_of(r, bits) - rho1) % p
    s, u = vectors(range(1, p), bits + 1), vectors(range(p), bits + 1) * add
    seen: Counter[int] = Counter()
    for c1, c2 in zip(shifted_terms(x, rho1, 1, bits, p), shifted_terms(x, rho2, 0, bits, p), strict=True):
        first = (s[:, None] * c1 + u[None]) % p
        second = (s[:, None] * c2 - u[None]) % p
        weights = p ** np.arange(2 * bits + 2)
        codes = np.concatenate((first, second), axis=2) @ weights
        values, counts = np.unique(codes, return_counts=True)
        seen.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
    return seen


@pytest.mark.parametrize(("bits", "p"), [(1, 5), (1, 7), (2, 5)])
def test_the_helper_sees_the_same_whatever_x_is(bits: int, p: int) -> None:
    """The exact distribution of both messages, given r and the shares of its bits, which H knows."""
    rng = np.random.default_rng(bits)
    shares = vectors(range(p), bits) if bits == 1 else rng.integers(0, p, (2, bits))
    for r in range(2**bits):
        for rho1 in shares:
            seen = [helper_view(x, r, rho1, bits, p, add=True) for x in range(2**bits)]
            assert all(view == seen[0] for view in seen[1:])


@pytest.mark.parametrize(("bits", "p"), [(1, 5), (2, 5)])
def test_without_u_the_helper_sees_a_difference(bits: int, p: int) -> None:
    """The same enumeration finds the leak where u is missing, for most shares of most r."""
    rng = np.random.default_rng(bits)
    leaks = [
        len({frozenset(helper_view(x, r, rho1, bits, p, add=False).items()) for x in range(2**bits)}) > 1
        for r in range(2**bits)
        for rho1 in rng.integers(0, p, (4, bits))
    ]
    assert np.mean(leaks) > 0.5


def sums(x: int, r: int, bits: int, p: int, orders: list[tuple[int, ...]]) -> dict[bytes, float]:
    """Distribution of the vector H adds up, its entries in a uniform one of the given orders."""
    s = vectors(range(1, p), bits + 1)
    seen: Counter[bytes] = Counter()
    for beta in (0, 1):
        c = twins.blind_terms(1, bits_of(x, bits)[:, None], bits_of(r, bits)[:, None], np.array([beta]), p)[
            :, 0
        ]
        assert (c == 0).sum() == ((x < r) ^ beta)
        for order in orders:
            seen.update(Counter(row.tobytes() for row in s * c[list(order)] % p))
    total = sum(seen.values())
    return {k: v / total for k, v in seen.items()}


@pytest.mark.parametrize(("bits", "p"), [(1, 5), (2, 5), (3, 7)])
def test_a_cyclic_shift_hides_what_a_permutation_hides(bits: int, p: int) -> None:
    """At most one zero, all else uniform: one distribution of the sum for all x and r, in either order."""
    rows = bits + 1
    shifts = [tuple((i + k) % rows for i in range(rows)) for k in range(rows)]
    every = list(itertools.permutations(range(rows)))
    wanted = sums(0, 0, bits, p, shifts)
    for x, r in itertools.product(range(2**bits), repeat=2):
        assert sums(x, r, bits, p, shifts) == pytest.approx(wanted)
        if (x + r) % 3 == 0:
            assert sums(x, r, bits, p, every) == pytest.approx(wanted)
    # without any shift the place of the zero gives the first differing bit away
    identity = [tuple(range(rows))]
    assert sums(0, 0, bits, p, identity) != pytest.approx(sums(0, 2**bits - 1, bits, p, identity))


# -- the evaluators' views -------------------------------------------------------------------------


@pytest.mark.parametrize("x", [-(2**31), -1, 0, 1, 2**31 - 1])
def test_what_the_evaluators_receive_is_uniform(x: int) -> None:
    """E2: its residues, its shares, H's answer, E1's share. E1: E2's share. Both: y^."""
    count, bits = 64 * 256, 32
    done = run(ring(np.full((1, count), x), bits), bits)
    size = blinded.residues_size(count, bits - 1, 37)
    residues = np.frombuffer(done.parcels[1][:size], np.uint8)
    parts = [
        twins.blind_unpack(b, bits - 1, 64, 37) for b in twins.blind_split(residues, count, bits - 1, 37)
    ]
    tests = [
        np.bincount(np.stack(parts).reshape(-1), minlength=37),
        stats.nibbles(done.parcels[1][size:]),
        stats.nibbles(done.answered),
        stats.nibbles(done.opened.values.tobytes()),
        *(stats.nibbles(s.values.tobytes()) for s in done.shares),
    ]
    # d' itself, in the lowest bit of its share
    tests.append(
        np.bincount(np.frombuffer(done.answered[: 8 * count], "<u8").astype(np.int64) & 1, minlength=2)
    )
    assert done.parcels[0] == b""
    assert packed_size(count, 32) == 4 * count
    for counts in tests:
        statistic, freedom = stats.uniform_statistic(counts)
        assert statistic < stats.critical(freedom, stats.ALARM / len(tests))


# -- the ratio attack ------------------------------------------------------------------------------


def ratio_attack(z1: I64, z2: I64, rho1: I64, rho2: I64, p: int, rng: np.random.Generator) -> int:
    """What H guesses x' to be from two messages s c_1 and s c_2, in places shifted alike.

    s cancels in z1 c_2 = z2 c_1, and c_1, c_2 depend on known shares, beta and the bits of x' from the top
    down to their position: a wrong bit, beta or shift passes each position with probability about 1/p.
    """
    bits = len(rho1)
    whole: list[int] = []

    def fits(i: int, shift: int, c1: int, c2: int) -> bool:
        at = (i + shift) % (bits + 1)
        return bool((z1[at] * c2 - z2[at] * c1) % p == 0)

    for beta, shift in itertools.product((0, 1), range(bits + 1)):
        sign = 1 - 2 * beta
        alive = [(0, 0, 0)]  # bits of x' so far, both shares of the sum above
        for i in range(bits, 0, -1):
            a, b = int(rho1[i - 1]), int(rho2[i - 1])
            survivors = []
            for (guess, above1, above2), x in itertools.product(alive, (0, 1)):
                if fits(i, shift, 1 + sign * x - sign * a + above1, above2 - sign * b):
                    xor1, xor2 = (1 - a, -b) if x else (a, b)
                    survivors.append((2 * guess + x, above1 + xor1, above2 + xor2))
            alive = survivors[:4096]
        whole += [g for g, above1, above2 in alive if fits(0, shift, 1 + sign + above1, above2)]
    if whole:
        return Counter(whole).most_common(1)[0][0]
    return int(rng.integers(0, 2**bits))


def attack(bits: int, p: int, count: int, *, add: bool, seed: int) -> float:
    """How often the attack finds x', on the twin's messages without u or on the kernel's own."""
    rng = np.random.default_rng(seed)
    x, r = (rng.integers(0, 2**bits, count, np.uint64) for _ in range(2))
    key, pair = rng.bytes(16), rng.bytes(16)
    packed = _kernels.blind_share_bits(r, bits, p, key)
    found = []
    rho1 = [twins.blind_sample(key, 0, b, p, bits)[:, :w] for b, _, w in twins.blind_blocks(count)]
    rho2 = [
        twins.blind_unpack(part, bits, w, p)
        for part, (_, _, w) in zip(
            twins.blind_split(packed, count, bits, p), twins.blind_blocks(count), strict=True
        )
    ]
    for party, shares in enumerate((key, packed)):
        if add:
            sent = _kernels.blind_mask(party, x, bits, p, shares, pair)
        else:
            sent = twins.blind_mask(party, x, bits, p, shares, pair, add=False)
        split = zip(twins.blind_split(sent, count, bits + 1, p), twins.blind_blocks(count), strict=True)
        found.append(
            np.concatenate([twins.blind_unpack(m, bits + 1, w, p) for m, (_, _, w) in split], axis=1)
        )
    known = np.concatenate(rho1, axis=1), np.concatenate(rho2, axis=1)
    hits = [
        ratio_attack(found[0][:, k], found[1][:, k], known[0][:, k], known[1][:, k], p, rng) == int(x[k])
        for k in range(count)
    ]
    return float(np.mean(hits))


@pytest.mark.parametrize(("bits", "p"), [(31, 37), (47, 53)])
def test_without_u_the_helper_reads_x_from_the_ratios(bits: int, p: int) -> None:
    """Nearly all of forty; with u, none (a guess hits with probability 2**-bits)."""
    assert attack(bits, p, 40, add=False, seed=bits) >= 0.9
    assert attack(bits, p, 40, add=True, seed=bits) == 0


def test_with_u_the_attack_is_no_better_than_a_guess() -> None:
    """Four bits, so that guesses do hit: Hoeffding's bound around 1/16 for ours, far above it without u."""
    bits, count = 4, 1500
    assert attack(bits, 37, 200, add=False, seed=1) > 0.7
    stray = stats.hoeffding(1.0, count)
    assert math.isclose(stray, 0.0845, abs_tol=1e-3)
    assert abs(attack(bits, 37, count, add=True, seed=2) - 2**-bits) < stray
