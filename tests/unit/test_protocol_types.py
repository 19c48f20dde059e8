"""No kind of number passes for another, nothing that serves once serves twice, no secret is printed."""

from __future__ import annotations

import copy
import importlib
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import privinfer.backends.mpc
import privinfer.protocols
from privinfer.backends.mpc import roles
from privinfer.backends.mpc.evaluator import Evaluator, Prepared, Standing
from privinfer.errors import IntegrityError
from privinfer.graph import fixedpoint as fp
from privinfer.graph import ir
from privinfer.graph.ranges import declare
from privinfer.protocols.commitment import Opening
from privinfer.protocols.mpc import comparison, dealing, inputs, linear, opening, table, wires
from privinfer.protocols.mpc.gate import Gate
from privinfer.protocols.mpc.wires import (
    Blinded,
    FreshMask,
    Masked,
    MaskPair,
    MaskShare,
    Narrow,
    Share,
    Wide,
    masked,
    need,
)
from privinfer.protocols.randomness import Scope, Secret, Seed, Stream
from privinfer.protocols.sealing import ReceiverKey
from privinfer.runtime.transcript import TagKey
from tests.support import gates
from tests.support.gates import Bench, ring
from tests.support.simulate import Simulation, seat
from tests.support.strategies import random_model, rows

SCOPE = Scope(b"s" * 32, 0)
DIGITS = 8675309123456789
ZEROS = np.zeros((1, 2), dtype=np.uint64)


def stream(purpose: str = "test", scope: Scope = SCOPE, seed: bytes = b"k" * 32) -> Stream:
    """A stream of a known seed."""
    return Stream(Seed(seed), scope, purpose)


RUNS: dict[str, Callable[[], gates.Run]] = {
    "linear": lambda: gates.run_linear(ir.Scale(1, 2), ZEROS, np.ones(2), np.zeros(2), shift=8, bits=20),
    "relu": lambda: gates.run_relu(ZEROS, 20),
    "extend": lambda: gates.run_extend(ZEROS, 20),
    "truncate": lambda: gates.run_truncate(ZEROS, 8, 20),
    "change of ring": lambda: gates.run_truncate(ZEROS, 0, 20),
    "exact truncate": lambda: gates.run_truncate(ZEROS, 8, 20, exact=True),
    "pieces": lambda: gates.run_pieces(fp.Pieces((0,), (0,), (1,), 0, 0, 0), ZEROS, 20, 20)[0],
    "table": lambda: gates.run_table(fp.Table(0, 4, 3, 1, (0,) * 16, 8), ZEROS, 20, 20)[0],
}
TAKES_WIDE = dict.fromkeys(RUNS, True) | dict.fromkeys(("relu", "extend", "pieces", "table"), False)


def fresh_gate(name: str) -> Gate:
    """A gate of E1 that was prepared and not evaluated."""
    gate = RUNS[name]().gates[0]
    gate._used = False
    return gate


# -- kinds -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("kind", ["other ring", "Share", "MaskShare", "Blinded", "Masked", "array"])
def test_a_gate_takes_one_kind_of_wire(name: str, kind: str) -> None:
    """Also where nobody runs a type checker."""
    bits = 64 if TAKES_WIDE[name] else 20
    wrong: Any = {
        "other ring": masked(ZEROS, 20 if TAKES_WIDE[name] else 64),
        "Share": Share(ZEROS, bits),
        "MaskShare": MaskShare(ZEROS, bits),
        "Blinded": Blinded(ZEROS, bits),
        "Masked": Masked(ZEROS, bits),
        "array": ZEROS,
    }[kind]
    with pytest.raises(TypeError, match="was given"):
        next(fresh_gate(name).evaluate(wrong))


def test_rings_of_wires() -> None:
    for bits in range(1, 64):
        assert type(masked(ZEROS, bits)) is Narrow
        with pytest.raises(TypeError):
            Wide(ZEROS, bits)
    assert type(masked(ZEROS, 64)) is Wide
    with pytest.raises(TypeError):
        Narrow(ZEROS, 64)
    for kind in (Masked, Narrow, Wide, Share, MaskShare, Blinded):
        for bits in (-1, 0, 65):
            with pytest.raises(TypeError):
                kind(ZEROS, bits)


def test_need_takes_no_subclass() -> None:
    wide = Wide(ZEROS, 64)
    assert need(Wide, wide) is wide
    for kind, value in ((Masked, wide), (Narrow, wide), (Share, Blinded(ZEROS, 64))):
        with pytest.raises(TypeError):
            need(kind, value)


def test_only_blinded_shares_are_opened() -> None:
    """A share that is not blinded cannot be sent or combined as one that is."""
    for kind in (Share, MaskShare, Wide):
        bare = kind(ZEROS, 64)
        with pytest.raises((TypeError, AttributeError)):
            opening.message([bare])
        with pytest.raises((TypeError, AttributeError)):
            opening.combine(bare, bare)
        with pytest.raises((TypeError, AttributeError)):
            opening.truncated(bare, 8, 20)
        with pytest.raises((TypeError, AttributeError)):
            opening.parse(bytes(16), [bare])


def test_what_was_parsed_is_blinded() -> None:
    (parsed,) = opening.parse(bytes(16), [Blinded(ZEROS, 64)])
    assert type(parsed) is Blinded
    assert type(opening.combine(parsed, parsed)) is Wide


def test_openings_of_different_rings_or_shapes() -> None:
    for other in (Blinded(ZEROS, 63), Blinded(ZEROS.reshape(2, 1), 64)):
        with pytest.raises(TypeError):
            opening.combine(Blinded(ZEROS, 64), other)
    with pytest.raises(TypeError):
        opening.truncated(Blinded(ZEROS, 64), 33, 32)
    with pytest.raises(TypeError):
        opening.truncated(Blinded(ZEROS, 32), 8, 20)


def test_a_truncation_cannot_cut_more_than_the_ring_has() -> None:
    """x >> s has 64 - s bits; a gate that kept n > 64 - s of them would lose borrows without a word."""
    for exact in (False, True):
        with pytest.raises(TypeError):
            gates.run_truncate(ZEROS, 33, 32, exact=exact)


# -- once ------------------------------------------------------------------------------------------


def test_a_fresh_mask_blinds_once() -> None:
    mask = FreshMask(stream(), "wire", (1, 2), 20)
    share = Share(ring([[3, -5]], 20), 20)
    blinded = mask.blind(share)
    assert type(blinded) is Blinded
    np.testing.assert_array_equal(blinded.values, fp.low_bits(share.values + mask.share.values, 20))
    with pytest.raises(IntegrityError, match="two values"):
        mask.blind(share)


@pytest.mark.parametrize("share", [Share(ZEROS, 21), Share(ZEROS.reshape(2, 1), 20)])
def test_a_fresh_mask_of_another_ring_or_shape(share: Share) -> None:
    mask = FreshMask(stream(), "wire", (1, 2), 20)
    with pytest.raises(TypeError):
        mask.blind(share)
    mask.blind(Share(ZEROS, 20))  # nothing was blinded, so it is still fresh


def test_a_label_is_drawn_once() -> None:
    s = stream()
    s.draw("a", (3,))
    s.draw_blocks("b", 2)
    for again in (lambda: s.draw("a", (1,), 8), lambda: s.draw_blocks("a", 1), lambda: s.draw("b", (1,))):
        with pytest.raises(IntegrityError, match="twice"):
            again()
    with pytest.raises(IntegrityError, match="'a'"):
        FreshMask(s, "a", (1,), 8)


def test_streams_differ_in_everything_they_are_bound_to() -> None:
    """Seed, session, inference, attempt, purpose and label: change one and nothing is the same."""
    count = 64
    drawn = [
        s.draw(label, (count,)).tobytes()
        for s, label in (
            (stream(), "a"),
            (stream(), "b"),
            (stream("other"), "a"),
            (stream(seed=b"j" * 32), "a"),
            (stream(scope=Scope(b"t" * 32, 0)), "a"),
            (stream(scope=Scope(b"s" * 32, 1)), "a"),
            (stream(scope=Scope(b"s" * 32, 0, 1)), "a"),
        )
    ]
    words = [int.from_bytes(d[k : k + 8], "little") for d in drawn for k in range(0, 8 * count, 8)]
    assert len(set(words)) == len(words)  # a collision of honest streams: 448^2 / 2^65
    assert stream().draw("a", (count,)).tobytes() == drawn[0]


def test_draws_are_of_their_ring_and_shape() -> None:
    for bits in (1, 7, 8, 31, 32, 63, 64):
        x = stream().draw("a", (3, 0, 2), bits)
        assert x.shape == (3, 0, 2)
        x = stream().draw("a", (257,), bits)
        assert x.dtype == np.uint64
        assert int(x.max()) < 1 << bits
    assert stream().draw_blocks("a", 5).shape == (5, 16)


@pytest.mark.parametrize("name", RUNS)
def test_a_gate_is_evaluated_once(name: str) -> None:
    run = RUNS[name]()
    wire = masked(ZEROS, 64 if TAKES_WIDE[name] else 20)
    for gate in run.gates:
        with pytest.raises(IntegrityError, match="twice"):
            next(gate.evaluate(wire))


def session() -> Simulation:
    """A prepared inference of a small network."""
    a = ir.Architecture(
        (ir.Input("x", (2,), -1, 1),),
        (ir.Node("d", ir.Linear(2, 2), ("x",)), ir.Node("r", ir.Relu(), ("d",))),
        (ir.Output("y", "r"),),
    )
    model = declare(random_model(a, 0))
    simulation = Simulation(model, seat(a))
    simulation.prepare(rows(a, 2, 0))
    return simulation


def test_an_evaluator_runs_once_on_what_was_dealt() -> None:
    simulation = session()
    simulation.online()
    for role in roles.EVALUATORS:
        with pytest.raises(IntegrityError, match="fresh correlated randomness"):
            next(simulation.players[role].online())


def test_an_aborted_run_burns_what_was_dealt() -> None:
    """Started and dropped: the second start finds nothing, so no mask meets a second value."""
    simulation = session()
    evaluator = simulation.players[roles.E1]
    play = evaluator.online()
    next(play)
    play.close()
    with pytest.raises(IntegrityError):
        next(evaluator.online())


def test_an_evaluator_does_not_deal_before_its_setup() -> None:
    a = ir.Architecture((ir.Input("x", (2,)),), (), (ir.Output("y", "x"),))
    table = seat(a)
    evaluator = Evaluator(0, roles.compile_for(table), table, None)  # type: ignore[arg-type]
    with pytest.raises(IntegrityError, match="setup"):
        next(evaluator.offline(SCOPE))
    with pytest.raises(IntegrityError):
        next(evaluator.online())


def test_a_parcel_has_its_exact_length() -> None:
    bench = Bench()
    bench.dealer.give(1, ring(np.arange(4)), 64)
    ends, _ = bench.dealt()
    ends[1].receive((3,), 64)
    with pytest.raises(ValueError, match="longer"):
        ends[1].finish()
    with pytest.raises(ValueError, match=r"."):
        ends[1].receive((2,), 64)


# -- secrets ---------------------------------------------------------------------------------------


def secrets_of_all_kinds() -> dict[type, Any]:
    """One instance of every class of secret, full of the same recognisable number."""
    values = np.full((1, 2), DIGITS, dtype=np.uint64)
    seed = Seed(str(DIGITS).encode() * 2)
    step = gates.step_of(fp.Source("x"), (2,), 64)
    blocks = np.full((2, 16), 77, dtype=np.uint8)
    found: list[Any] = [
        *(kind(values, 64) for kind in (wires.Ring, Masked, Wide, MaskShare, Share, Blinded)),
        Narrow(values, 60),
        MaskPair(values, values, 64),
        FreshMask(stream(), "a", (1, 2), 64),
        seed,
        Opening(str(DIGITS).encode() * 2),
        TagKey(str(DIGITS).encode() * 2),
        stream(),
        linear.Weights(values, values),
        linear.Operand(values, values, values),
        comparison.ComparisonKeys(0, 31, blocks, blocks, values, blocks, b"77777777"),
        table.TableKeys(0, blocks, blocks, values, b"77777777"),
        inputs.InputSeeds((seed, seed), 77777777),
        inputs.MaskedInput(values.tobytes(), b"77777777"),
        Standing(b"77777777", seed, seed, seed),
        Bench().dealer,
        inputs.Received(step, "owner", Wide(values, 64), b"77777777", b"77777777"),
        ReceiverKey.fresh(),
        *(RUNS[name]().gates[0] for name in RUNS),
    ]
    return {type(s): s for s in found}


def subclasses(cls: type) -> Iterator[type]:
    """All classes below one, in the protocols and the backend that runs them."""
    for package in (privinfer.protocols, privinfer.backends.mpc):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    waiting = [cls]
    while waiting:
        for sub in waiting.pop().__subclasses__():
            if sub.__module__.startswith("privinfer."):
                yield sub
                waiting.append(sub)


# Secrets of protocols that have tests of their own; of these only what the class says is looked at here.
ELSEWHERE = {"Answerer", "BlindedReluGate", "LargerGate", "ProductGate", "ToHelper"}
# Secrets of ckks need keys to be made; that none can be pickled is held of them all below.
OTHER_ROOMS = (
    "privinfer.backends.ckks",
    "privinfer.protocols.ckks",
    "privinfer.protocols.mpc.encrypted",
    "privinfer.session",
)


def test_every_class_of_secret_is_tried() -> None:
    # slots=True makes a second class of the same name; the first one is never instantiated
    made_here = (c for c in subclasses(Secret) if not c.__module__.startswith(OTHER_ROOMS))
    wanted = {c.__qualname__ for c in made_here} - {"Gate"} - ELSEWHERE
    assert wanted == {c.__qualname__ for c in secrets_of_all_kinds()}, "add the new class above"


def test_no_class_of_secret_lets_itself_be_pickled() -> None:
    for kind in subclasses(Secret):
        assert kind.__reduce__ is Secret.__reduce__, kind
        assert kind.__reduce_ex__ is object.__reduce_ex__, kind


@pytest.mark.parametrize("kind", sorted(secrets_of_all_kinds(), key=lambda c: c.__qualname__))
def test_a_secret_is_neither_printed_nor_pickled_nor_copied(kind: type) -> None:
    secret = secrets_of_all_kinds()[kind]
    for shown in (repr(secret), str(secret), f"{secret}", f"{[secret]}"):
        assert "hidden" in shown
        for part in (str(DIGITS), "8675309", "77", hex(DIGITS)[2:10]):
            assert part not in shown
    for attempt in (
        copy.copy,
        copy.deepcopy,
        *(lambda s, p=p: pickle.dumps(s, p) for p in range(pickle.HIGHEST_PROTOCOL + 1)),
    ):
        with pytest.raises(TypeError, match="secret"):
            attempt(secret)


def test_holders_of_secrets_do_not_print_them() -> None:
    """A dealer holds parcels, a player's private things hold inputs and a model."""
    bench = Bench()
    bench.dealer.give(1, np.full(4, DIGITS, dtype=np.uint64), 64)
    bench.dealer.split("a", np.full(4, DIGITS, dtype=np.uint64), 64)
    parcel = bench.dealer.parcels[1][0]
    shown = repr(bench.dealer)
    assert repr(parcel)[2:-1] not in shown
    prepared = Prepared(SCOPE, 1, {0: MaskShare(np.full(2, DIGITS, dtype=np.uint64), 64)})
    private = session().privates[roles.MODEL_OWNER]
    private.inputs["x"] = np.full(2, 0.8675309)
    for holder in (prepared, private):
        assert "8675309" not in repr(holder)


def test_seeds() -> None:
    assert Seed(b"a" * 32) == Seed(b"a" * 32) != Seed(b"b" * 32)
    assert Seed(b"a" * 32) != b"a" * 32
    with pytest.raises(TypeError):
        hash(Seed(b"a" * 32))
    for size in (0, 16, 31, 33):
        with pytest.raises(ValueError, match="32 bytes"):
            Seed(bytes(size))
    assert Seed.fresh() != Seed.fresh()


def test_a_repeating_system_source_still_gives_different_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copied virtual machine: equal bytes from the system, different data, different seeds."""
    monkeypatch.setattr("secrets.token_bytes", bytes)
    assert Seed.fresh(b"one") == Seed.fresh(b"one")
    assert Seed.fresh(b"one") != Seed.fresh(b"two")
    assert Seed.fresh(b"a", b"bc") != Seed.fresh(b"ab", b"c")
    one, two = (inputs.InputSeeds.fresh(1, digest) for digest in (b"one", b"two"))
    assert len({s.expose() for both in (one, two) for s in both.seeds}) == 4


def test_the_dealer_and_an_evaluator_name_draws_by_step() -> None:
    """The same name in another step is another value; a draw out of place is an error."""
    bench = Bench()
    bench.dealer.step = 1
    one = bench.dealer.fresh("mask", (4,), 64)
    bench.dealer.step = 2
    two = bench.dealer.fresh("mask", (4,), 64)
    assert not (one.first == two.first).any()
    with pytest.raises(IntegrityError):
        bench.dealer.fresh("mask", (4,), 64)
    assert dealing.tweak(SCOPE, 1) != dealing.tweak(SCOPE, 2)
