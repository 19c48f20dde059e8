"""What each party sees: exactly, where a ring is small enough to enumerate; by statistics elsewhere.

Every statistic is compared with its exact critical value at a false alarm probability of 1e-9 a test, all
comparisons of the test together; the same statistic has to catch variants that are broken on purpose.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from privinfer.backends.base import Phase
from privinfer.backends.mpc import roles
from privinfer.graph import fixedpoint as fp
from privinfer.graph import ir
from privinfer.graph.lower import compile_program
from privinfer.graph.ranges import declare
from privinfer.protocols.mpc import inputs
from privinfer.protocols.mpc.dealing import pack, unpack
from privinfer.protocols.randomness import SEED_BYTES, U64, Stream
from tests.support import gates, stats
from tests.support.simulate import Message, Simulation, seat
from tests.support.strategies import random_model

REAL_DRAW = Stream.draw


# -- exact enumeration -----------------------------------------------------------------------------


def force(patch: pytest.MonkeyPatch, choose: Callable[[Stream, str, U64, int], U64]) -> None:
    """Let `choose` replace what a stream draws; it is given the real draw."""

    def draw(self: Stream, label: str, shape: tuple[int, ...], bits: int = 64) -> U64:
        values = choose(self, label, REAL_DRAW(self, label, shape, bits), bits)
        return np.ascontiguousarray(fp.low_bits(values, bits))

    patch.setattr(Stream, "draw", draw)


def grid(*sizes: int) -> list[U64]:
    """All points of a box, one array a coordinate."""
    axes = np.meshgrid(*(np.arange(s, dtype=np.uint64) for s in sizes), indexing="ij")
    return [np.ascontiguousarray(a.reshape(-1)) for a in axes]


def low_replaced(real: U64, low: U64, bits: int) -> U64:
    """`real` with its low bits enumerated."""
    return (real >> np.uint64(bits) << np.uint64(bits)) | low


LOW = 2  # enumerated bits of a 64-bit mask


def relu_views(
    patch: pytest.MonkeyPatch, bits: int, x: int, broken: str = ""
) -> tuple[Counter[tuple[int, ...]], Counter[tuple[int, ...]]]:
    """E1's and E2's views of a ReLU of x, once for every choice of the randomness.

    A view is (r_i, x^, low bit of rho_i, d^, low bits of r'_i, low bits of y^); the helper's keys and
    the other shares of its products are pseudorandom whatever x is (comparison.py) and stay as drawn. The
    other evaluator's bits follow: they are what was opened less what E_i sent.
    """
    size = 1 << bits
    r1, r2, rho, rho1, fresh1, fresh2 = grid(size, size, 2, 2, 1 << LOW, 1 << LOW)
    if broken == "rho":
        rho = np.zeros_like(rho)
    if broken == "mask":
        fresh1, fresh2 = np.zeros_like(fresh1), np.zeros_like(fresh2)
    turn = itertools.cycle((fresh1, fresh2))  # the helper draws both, then each evaluator its own

    def choose(stream: Stream, label: str, real: U64, drawn: int) -> U64:
        name = label.partition("/")[2]
        if name == "rho":
            return rho if drawn == 1 else low_replaced(real, rho1, 1)
        return low_replaced(real, next(turn), LOW) if name == "mask" else real

    force(patch, choose)
    run = gates.run_relu(gates.ring(np.full(r1.shape, x), bits), bits, (r1, r2))
    np.testing.assert_array_equal(run.result, max(x, 0))
    for gate, fresh in zip(run.gates, (fresh1, fresh2), strict=True):  # the turns went as was thought
        np.testing.assert_array_equal(gate.mask.values & np.uint64((1 << LOW) - 1), fresh)
    flip, out = (o.values for o in run.opened)
    rho_halves = rho1, (rho - rho1) & np.uint64(1)
    xh = fp.low_bits(np.uint64(x % size) + r1 + r2, bits)
    low = np.uint64((1 << LOW) - 1)
    first, second = (
        Counter(zip(*(v.tolist() for v in (r, xh, half, flip, fresh, out & low)), strict=True))
        for r, half, fresh in ((r1, rho_halves[0], fresh1), (r2, rho_halves[1], fresh2))
    )
    return first, second


@pytest.mark.parametrize("bits", [3, 4])
def test_relu_shows_an_evaluator_nothing(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For every x every view occurs exactly once: the view is a bijection of the randomness."""
    half = 1 << (bits - 1)
    cells = (1 << bits) ** 2 * 2 * 2 * (1 << LOW) ** 2
    for x in range(-half, half):
        for view in relu_views(monkeypatch, bits, x):
            assert len(view) == cells
            assert set(view.values()) == {1}


@pytest.mark.parametrize("broken", ["rho", "mask"])
def test_enumeration_catches_a_missing_mask(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (relu_views(monkeypatch, 3, x, broken) for x in (-1, 2))
    assert one[0] != other[0]
    assert one[1] != other[1]


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_extension_shows_an_evaluator_nothing(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The view (r_i, x^, low bits of r'_i, low bits of y^) occurs once for every x in range."""
    size, quarter = 1 << bits, 1 << (bits - 2)
    r1, r2, fresh1, fresh2 = grid(size, size, 1 << LOW, 1 << LOW)
    for x in range(-quarter, quarter):
        turn = itertools.cycle((fresh1, fresh2))  # the helper draws both, then each evaluator its own

        def choose(stream: Stream, label: str, real: U64, drawn: int, turn: Any = turn) -> U64:
            return low_replaced(real, next(turn), LOW) if label.endswith("/mask") else real

        force(monkeypatch, choose)
        run = gates.run_extend(gates.ring(np.full(r1.shape, x), bits), bits, (r1, r2))
        np.testing.assert_array_equal(run.result, x)
        xh = fp.low_bits(np.uint64(x % size) + r1 + r2, bits)
        out = run.opened[0].values & np.uint64((1 << LOW) - 1)
        for r, fresh in ((r1, fresh1), (r2, fresh2)):
            view = Counter(zip(*(v.tolist() for v in (r, xh, fresh, out)), strict=True))
            assert len(view) == r1.size


# -- statistics ------------------------------------------------------------------------------------

BATCH, RUNS = 64, 12
Histograms = dict[tuple[Any, ...], npt.NDArray[np.int64]]


def network() -> ir.Architecture:
    """Two sources, a convolution, ReLUs, a pool, an extension, a truncation: every gate there is."""
    return ir.Architecture(
        (ir.Input("image", (1, 6, 6), -1.0, 1.0), ir.Input("row", (16,), -1.0, 1.0)),
        (
            ir.Node("conv", ir.Conv2d(1, 4, (3, 3)), ("image",)),
            ir.Node("relu", ir.Relu(), ("conv",)),
            ir.Node("pool", ir.AvgPool2d((2, 2), (2, 2)), ("relu",)),
            ir.Node("flat", ir.Reshape((16,)), ("pool",)),
            ir.Node("both", ir.Concat(1), ("flat", "row")),
            ir.Node("dense", ir.Linear(32, 16), ("both",)),
            ir.Node("again", ir.Linear(16, 16), ("dense",)),
            ir.Node("half", ir.Multiply(0.5), ("again",)),
        ),
        (ir.Output("y", "half"),),
    )


SECRETS: dict[str, tuple[Mapping[str, float], Mapping[str, float]]] = {
    # what the two halves of an experiment differ in: both inputs, or all weights
    "inputs": ({"image": -1.0, "row": -1.0, "weight": 0.5}, {"image": 1.0, "row": 0.75, "weight": 0.5}),
    "weights": ({"image": 0.5, "row": 0.5, "weight": 0.0}, {"image": 0.5, "row": 0.5, "weight": -0.5}),
}


def transcripts(secret: Mapping[str, float], exact: bool) -> list[list[Message]]:
    """RUNS sessions of their own on constant inputs and weights."""
    a = network()
    model = declare(
        ir.Model(
            a,
            {
                node: {
                    k: np.full(shape, secret["weight"] if k == "weight" else 0.0) for k, shape in own.items()
                }
                for node, own in a.parameter_shapes().items()
            },
        ),
        comparison_bits=32,
    )
    rows = {i.name: np.full((BATCH, *i.shape), secret[i.name]) for i in a.inputs}
    found = []
    for number in range(RUNS):
        session = Simulation(model, seat(a, exact=exact, session=number.to_bytes(32, "little")))
        found.append(session.infer(rows).transcript)
    return found


def histograms(runs: Iterable[list[Message]], role: str) -> Histograms:
    """Half bytes of all a role receives, by message and, where a message is long, by place in a word."""
    data: defaultdict[tuple[Any, ...], list[bytes]] = defaultdict(list)
    for run in runs:
        for m in run:
            if m.receiver == role and m.data:
                data[m.phase, m.sender, m.step].append(m.data)
    found: Histograms = {}
    for key, messages in data.items():
        stride = 8 if len(messages[0]) >= 1024 else 1
        for at in range(stride):
            found[(*key, at)] = sum(
                (stats.nibbles(m[at::stride]) for m in messages), np.zeros(16, dtype=np.int64)
            )
    return found


def strangest(first: Histograms, second: Histograms) -> float:
    """Largest two-sample statistic, as a part of its critical value; above 1 the two differ."""
    assert first.keys() == second.keys(), "the messages alone tell the two apart"
    worst = 0.0
    for key in first:
        statistic, freedom = stats.two_sample_statistic(first[key], second[key])
        if freedom:
            worst = max(worst, statistic / stats.critical(freedom, stats.ALARM / len(first)))
    return worst


VIEWERS = (*roles.EVALUATORS, roles.HELPER)


@pytest.mark.slow
@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("secret", SECRETS)
def test_what_is_received_does_not_depend_on_secrets(secret: str, exact: bool) -> None:
    first, second = (transcripts(s, exact) for s in SECRETS[secret])
    for run, other in zip(first, second, strict=True):
        assert [(*m.key, m.step, len(m.data)) for m in run] == [(*m.key, m.step, len(m.data)) for m in other]
    for role in VIEWERS:
        assert strangest(histograms(first, role), histograms(second, role)) < 1, role


def opened(run: list[Message], exact: bool) -> list[tuple[U64, int]]:
    """Masked values of every round, as both evaluators see them, with their bits; gates run one by one."""
    bits: list[int] = []
    for step in compile_program(network(), exact=exact).steps:
        match step.operation:
            case fp.Bilinear():
                bits.append(step.type.bits)
            case fp.Rectify():
                bits += [1, fp.WIDE]
            case fp.Extend():
                bits.append(fp.WIDE)
            case fp.Truncate(_, True):
                bits += [1, step.type.bits]
    first, second = (
        [m.data for m in run if m.sender == e and roles.ROUND <= m.step < roles.COMPARE]
        for e in roles.EVALUATORS
    )
    found = []
    for one, other, n in zip(first, second, bits, strict=True):
        shape = (len(one) * 8 // n,)
        found.append((fp.low_bits(unpack(one, n, shape) + unpack(other, n, shape), n), n))
    return found


def opened_histograms(runs: Iterable[list[Message]], exact: bool) -> Histograms:
    """Half bytes of what both evaluators see in each round."""
    found: defaultdict[tuple[Any, ...], npt.NDArray[np.int64]] = defaultdict(
        lambda: np.zeros(16, dtype=np.int64)
    )
    for run in runs:
        for number, (values, bits) in enumerate(opened(run, exact)):
            found["opened", number] += stats.nibbles(pack(values, bits))
    return dict(found)


@pytest.mark.slow
@pytest.mark.parametrize("exact", [False, True])
def test_openings_look_uniform(exact: bool) -> None:
    """Masked inputs, shares received, and what comes out when both are added: all 16 half bytes alike."""
    runs = transcripts(SECRETS["inputs"][0], exact)
    for role in roles.EVALUATORS:
        seen = opened_histograms(runs, exact)
        for (phase, sender, step, at), counts in histograms(runs, role).items():
            masked_input = phase is Phase.ONLINE and sender.startswith("owner:")
            if masked_input or roles.ROUND <= step < roles.COMPARE:
                seen["received", sender, step, at] = counts
        assert len(seen) > 20
        for key, counts in seen.items():
            statistic, freedom = stats.uniform_statistic(counts)
            assert statistic < stats.critical(freedom, stats.ALARM / (2 * len(seen))), key


@pytest.mark.slow
def test_the_helper_receives_seeds_and_nothing_else() -> None:
    """No byte of a masked value: seeds and the batch size, all of it before the values exist."""
    (run, *_), (other, *_) = (transcripts(s, False) for s in SECRETS["inputs"])
    for messages in (run, other):
        for m in messages:
            if m.receiver != roles.HELPER:
                continue
            assert m.phase in (Phase.SETUP, Phase.OFFLINE)
            if m.phase is Phase.OFFLINE:
                assert m.sender.startswith("owner:")
                assert len(m.data) == inputs.helper_size() == inputs.BATCH_BYTES + 2 * SEED_BYTES
                assert int.from_bytes(m.data[: inputs.BATCH_BYTES], "little") == BATCH
            elif m.sender == roles.MODEL_OWNER:
                assert len(m.data) == 2 * SEED_BYTES
            else:
                assert m.sender in roles.EVALUATORS
                assert len(m.data) == SEED_BYTES


def test_the_helper_sees_inputs_in_the_seeds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a system source that repeats itself, only the seeds that are bound to data differ."""
    a = network()
    views = []
    for value in (-1.0, 1.0):
        count = itertools.count()
        monkeypatch.setattr("secrets.token_bytes", lambda size, c=count: next(c).to_bytes(size, "big"))
        session = Simulation(declare(random_model(a, 1)), seat(a))
        outcome = session.infer({i.name: np.full((2, *i.shape), value) for i in a.inputs})
        views.append([(*m.key, m.step, m.data) for m in outcome.received(roles.HELPER)])
    for one, other in zip(*views, strict=True):
        assert one[:4] == other[:4]
        if one[0] is Phase.OFFLINE:
            assert one[4][: inputs.BATCH_BYTES] == other[4][: inputs.BATCH_BYTES]
            assert one[4] != other[4]
        else:
            assert one == other


def test_an_owner_sees_the_batch_size_and_nothing_else() -> None:
    """Whatever the other owner brings."""
    a = network()
    seen = []
    for value in (-1.0, 1.0):
        session = Simulation(declare(random_model(a, 1)), seat(a))
        rows = {"image": np.full((3, 1, 6, 6), 0.25), "row": np.full((3, 16), value)}
        outcome = session.infer(rows)
        seen.append([(*m.key, m.step, m.data) for m in outcome.received(roles.owner("owner0"))])
        assert not outcome.received(roles.MODEL_OWNER)
    ready = (3).to_bytes(inputs.BATCH_BYTES, "little")
    owner = roles.owner("owner0")
    assert seen[0] == seen[1] == [(Phase.OFFLINE, e, owner, roles.READY, ready) for e in roles.EVALUATORS]


@pytest.mark.slow
def test_a_receiver_sees_the_output_and_nothing_else() -> None:
    """Two inputs with one output, max(x, 0) = 0 exactly: nothing else tells them apart."""
    a = ir.Architecture(
        (ir.Input("x", (64,), -1.0, 1.0),), (ir.Node("r", ir.Relu(), ("x",)),), (ir.Output("y", "r"),)
    )
    model = declare(ir.Model(a, {}))
    views = []
    for value in (-1.0, -(2.0**-16)):
        runs = []
        for number in range(RUNS):
            session = Simulation(model, seat(a, session=number.to_bytes(32, "little")))
            outcome = session.infer({"x": np.full((256, 64), value)})
            assert not outcome.outputs["y"].any()
            runs.append(outcome.transcript)
        views.append(histograms(runs, roles.receiver("patient")))
    assert strangest(*views) < 1


BROKEN: dict[str, tuple[str, Callable[[Stream, str], bool]]] = {
    # name: (which secret shows, whether a draw becomes zero)
    "input masks": ("inputs", lambda stream, label: stream._purpose == "input"),
    "wire masks": ("inputs", lambda stream, label: label.endswith("/mask")),
    "rho": ("inputs", lambda stream, label: label.endswith("/rho")),
    "weight masks": ("weights", lambda stream, label: label.endswith("/weight")),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", BROKEN)
def test_the_statistic_catches_masks_of_zeros(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, is_zero = BROKEN[what]
    force(
        monkeypatch,
        lambda stream, label, real, bits: np.zeros_like(real) if is_zero(stream, label) else real,
    )
    runs = [transcripts(s, False) for s in SECRETS[secret]]
    for role in roles.EVALUATORS:
        one, other = (histograms(r, role) | opened_histograms(r, False) for r in runs)
        assert strangest(one, other) > 1, role


@pytest.mark.slow
def test_what_is_opened_does_not_depend_on_secrets() -> None:
    """The statistic of the test above, with nothing broken."""
    for secret in SECRETS.values():
        one, other = (opened_histograms(transcripts(s, False), False) for s in secret)
        assert strangest(one, other) < 1
