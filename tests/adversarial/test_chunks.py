"""A run in several chunks between six parties: whole results, true reports, and who is named for lies."""

import dataclasses
import struct
import threading
from collections import Counter

import numpy as np
import pytest

import privinfer
from privinfer.backends.base import Phase
from privinfer.backends.mpc import Mpc, roles
from privinfer.errors import InputError, IntegrityError, PrivinferError, ProtocolViolation
from privinfer.graph import reference
from privinfer.graph.lower import compile_program
from privinfer.plan.cost import declared_run
from privinfer.protocols import randomness
from privinfer.runtime import ahead, chunks
from privinfer.runtime.greeting import OFFERS
from privinfer.runtime.post import STEP_BITS
from privinfer.runtime.store import Offer, Store
from privinfer.transport import Kind
from tests.adversarial import stage
from tests.support.simulate import seat

AT_ONCE = 2
KEEPERS = ("hospital", "dna_company", "laboratory", "startup")
# The model owner plays no other role, so nobody tells it of rows.
APART = stage.manifest(evaluators=("hospital", "laboratory"), deadline=10.0)
BASE = stage.manifest(deadline=10.0)


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """Two rows a chunk."""
    program = compile_program(stage.model().architecture)
    monkeypatch.setattr(roles, "CHUNK_BYTES", roles.footprint(program, AT_ONCE))


def good(outcomes):
    assert [o.error for o in outcomes.values()] == [None] * len(outcomes)
    return outcomes


def right(outcome, inputs):
    wanted = reference.run(stage.model(), stage.flat(inputs))["risk"]
    assert outcome.outputs["risk"].shape == wanted.shape
    bound = stage.model().architecture.precision.error_bound
    assert np.abs(outcome.outputs["risk"] - wanted).max(initial=0) <= bound


def number_of(frame):
    return frame.step >> STEP_BITS


def everybody(outcomes, kind, culprit, but=()):
    """All others end in the same typed error with the same culprit; nobody has a result."""
    for name, outcome in outcomes.items():
        assert outcome.outputs is None
        if name not in but:
            assert type(outcome.error) is kind, (name, outcome.error)
            assert outcome.error.culprit == culprit, (name, outcome.error)


# -- honest ----------------------------------------------------------------------------------------


class Bytes:
    """Payload bytes by phase, sender and receiver, as they pass between parties."""

    def __init__(self, base):
        cast = list(Mpc().cast(base))
        self.pairs = [(a, b) for a in cast for b in cast]
        self.moved, self.words, self.lock = Counter(), [], threading.Lock()

    def __call__(self, source, destination, frame):
        with self.lock:
            if frame.kind is Kind.DATA:
                self.moved[Phase(frame.phase), *self.pairs[frame.channel]] += len(frame.payload)
            elif frame.kind is Kind.DONE:
                self.words.append(len(frame.payload))
        return frame


@pytest.mark.parametrize("base", [BASE, APART], ids=["one party, two roles", "model owner apart"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 6])
def test_as_declared(base, count):
    inputs, hook = stage.rows(count), Bytes(base)
    outcomes = good(stage.Play(base=base, inputs=inputs, hook=hook).run())
    right(outcomes["patient"], inputs)
    number = max(1, -(-count // AT_ONCE))
    cast = Mpc().cast(base)
    table = seat(stage.model().architecture, owners=stage.INPUTS, receivers=stage.RECEIVERS)
    table = dataclasses.replace(table, party=cast)
    declared = {k: v for k, v in declared_run(table, count).items() if cast[k[1]] != cast[k[2]]}
    assert {k: v for k, v in hook.moved.items() if v} == declared
    # a word of evaluators and helper to five peers, after every chunk but the last
    assert Counter(hook.words) == Counter({4: 3 * 5 * (number - 1), 0: 6 * 5 * number - 3 * 5 * (number - 1)})
    rounds = roles.rounds(compile_program(stage.model().architecture))
    for name, outcome in outcomes.items():
        report = outcome.report
        assert (report["inference"], report["chunks"], report["dealt"]) == (0, number, "live")
        between = {"evaluators": number * rounds} if name != "startup" or base is BASE else {}
        if name == "helper":
            between = {"evaluators": number * rounds}
        assert report["online_rounds"] == dict.fromkeys(("input", "compare", "output"), number) | between
        for other, bytes_ in report["bytes"]["sent"]["online"].items():
            assert outcomes[other].report["bytes"]["received"]["online"][name] == bytes_


def test_runs_follow_each_other():
    inputs = [stage.rows(n, n) for n in (5, 1, 0, 4)]
    outcomes = good(stage.Play(base=APART, inputs=inputs, runs=4).run())
    right(outcomes["patient"], inputs[-1])
    assert {(o.report["inference"], o.report["chunks"]) for o in outcomes.values()} == {(5, 2)}


def test_run_local():
    inputs = stage.rows(5)
    result = privinfer.run_local(
        stage.model(), inputs, evaluators=(stage.E1, stage.E2), processes=False, with_reference=True
    )
    assert result.report["chunks"] == 3
    assert result.report["online_rounds"]["output"] == 3
    assert result.outputs["risk"].shape == (5, 2)
    assert result.report["largest_absolute_error"] <= stage.model().architecture.precision.error_bound


# -- stores ----------------------------------------------------------------------------------------


def session(folder, **changes):
    def store(name):
        return Store(folder / name, BASE.digest(), name) if name in KEEPERS else None

    return stage.Play(base=BASE, stores=store, **changes)


def deal(folder, count, batch):
    good(session(folder, runs=0, act=lambda name, party: party.deal(count, batch)).run())


def left(folder):
    found = set()
    for name in KEEPERS:
        with Store(folder / name, BASE.digest(), name) as store:
            offer = store.offer()
            found.add(None if offer is None else (offer.number, offer.end))
    assert len(found) == 1
    return found.pop()


def test_stores(tmp_path):
    deal(tmp_path, 2, 5)
    assert left(tmp_path) == (0, 6)
    for k, now in enumerate([(3, 6), None]):
        inputs = stage.rows(5, seed=k)
        outcomes = good(session(tmp_path, inputs=inputs).run())
        right(outcomes["patient"], inputs)
        assert {(o.report["dealt"], o.report["chunks"]) for o in outcomes.values()} == {("ahead", 3)}
        assert outcomes["helper"].report["bytes"]["sent"]["offline"] == {}
        assert left(tmp_path) == now
    outcomes = good(session(tmp_path, inputs=stage.rows(5)).run())
    assert {(o.report["dealt"], o.report["chunks"]) for o in outcomes.values()} == {("live", 3)}


def test_a_deal_and_runs_in_one_join(tmp_path):
    """Pieces are counted from the first that was dealt, which need not be number 0."""

    def act(name, party):
        party.run(stage.rows(1).get(name, {}))
        party.deal(2, 3)

    inputs = [stage.rows(3, seed=k) for k in range(3)]
    outcomes = good(session(tmp_path, inputs=inputs, runs=3, act=act).run())
    right(outcomes["patient"], inputs[2])
    assert {(o.report["dealt"], o.report["chunks"]) for o in outcomes.values()} == {("live", 2)}
    assert left(tmp_path) is None


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_run_of_which_a_piece_is_gone_is_skipped(tmp_path, number):
    deal(tmp_path, 2, 5)
    with Store(tmp_path / "laboratory", BASE.digest(), "laboratory") as store:
        store.take(store.offer().generation, number)
    inputs = stage.rows(5, seed=3)
    outcomes = good(session(tmp_path, inputs=inputs).run())
    right(outcomes["patient"], inputs)
    assert {o.report["dealt"] for o in outcomes.values()} == {"ahead"}
    assert left(tmp_path) is None


def test_a_deal_that_ended_early(tmp_path):
    """Five of six pieces: one run's."""

    def hook(source, destination, frame):
        if frame.kind is Kind.DATA and frame.phase == Phase.OFFLINE and number_of(frame) == 5:
            raise RuntimeError("a party dies in the middle")
        return frame

    session(tmp_path, runs=0, hook=hook, act=lambda name, party: party.deal(2, 5)).run()
    inputs = [stage.rows(5, seed=k) for k in range(2)]
    outcomes = good(session(tmp_path, inputs=inputs, runs=2).run())
    right(outcomes["patient"], inputs[1])
    assert {o.report["dealt"] for o in outcomes.values()} == {"live"}  # the second


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_a_store_of_chunks_of_another_size(tmp_path, monkeypatch, rows):
    """As after an update with another budget: an error and no answer."""
    deal(tmp_path, 5, 5)
    program = compile_program(stage.model().architecture)
    monkeypatch.setattr(roles, "CHUNK_BYTES", roles.footprint(program, rows))
    outcomes = session(tmp_path, inputs=stage.rows(5)).run()
    assert not [o for o in outcomes.values() if o.outputs]
    assert {type(o.error) for o in outcomes.values()} == {IntegrityError}


def test_a_store_that_ends_within_a_run_is_an_error(tmp_path):
    """Only a lie can lead there, and then nothing is dealt live into the middle of a run."""
    deal(tmp_path, 1, 5)

    def act(name, party):
        party._offer = dataclasses.replace(party._offer, end=2)

    outcomes = session(tmp_path, inputs=stage.rows(5), act=act).run()
    assert {type(o.error) for o in outcomes.values()} == {IntegrityError}
    assert not [o for o in outcomes.values() if o.outputs]


def test_no_mask_serves_twice_over_deal_and_run(tmp_path, monkeypatch):
    drawn, lock, original = Counter(), threading.Lock(), randomness.Stream.draw

    def draw(self, label, shape, bits=64):
        with lock:
            drawn[self._purpose, self._seed.expose(), self._scope, label] += 1
        return original(self, label, shape, bits)

    monkeypatch.setattr(randomness.Stream, "draw", draw)
    deal(tmp_path, 1, 5)
    for k in range(2):  # ahead, then live
        good(session(tmp_path, inputs=stage.rows(5, seed=k)).run())
    holders = {"input": 3, "deal": 2, "helper": 1}
    for (purpose, *_), times in drawn.items():
        assert purpose == "weights" or times <= holders[purpose], purpose
    assert len({key[2] for key in drawn if key[0] == "input"}) == 6


def test_a_peer_that_offers_part_of_a_run(tmp_path):
    deal(tmp_path, 2, 5)

    def hook(source, destination, frame):
        if source == "laboratory" and frame.kind is Kind.HELLO and frame.step == OFFERS:
            offer = dataclasses.replace(ahead.parse_offer(bytes(frame.payload), source), number=1)
            return stage.changed(frame, payload=ahead.pack_offer(offer))
        return None if source == "laboratory" and frame.kind is Kind.ABORT else frame

    outcomes = session(tmp_path, inputs=stage.rows(5), hook=hook).run()
    everybody(outcomes, ProtocolViolation, "laboratory", but=("laboratory",))
    for name in set(KEEPERS) - {"laboratory"}:
        assert len(list((tmp_path / name).glob("*-[0-9].bin"))) == 6  # nothing of it was used


@pytest.mark.parametrize("pieces", [1, 2, 3, 7])
def test_whole_runs(pieces):
    for first in (0, 4):
        for number in range(first, first + 15):
            for end in range(number + 1, first + 16):
                found = ahead.whole(Offer(b"g" * 32, number, end, 9, first), pieces)
                fits = [k for k in range(first, end, pieces) if k >= number and k + pieces <= end]
                assert (found is None) == (not fits)
                if found is not None:
                    assert (found.number, found.end) == (fits[0], fits[-1] + pieces)


# -- liars and crashes -----------------------------------------------------------------------------


def seeds(source, rows, number, to=stage.NAMES):
    """The owner announces so many rows at the start of a chunk, to some."""

    def hook(origin, destination, frame):
        hit = frame.kind is Kind.DATA and (origin, number_of(frame)) == (source, number)
        if hit and destination in to and stage.kind_of(frame)[-1] == "mask seeds":
            return stage.changed(frame, payload=struct.pack("<I", rows) + bytes(frame.payload[4:]))
        return None if origin == source and frame.kind is Kind.ABORT else frame

    return hook


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("rows", [1, 2, 4, 7])
def test_owner_that_announces_other_rows_than_the_others(number, rows):
    """At the first chunk and later ones, with more chunks to come and with fewer."""
    if rows == 6 - 2 * number:
        pytest.skip("that would be true")
    play = stage.Play(inputs=stage.rows(6), hook=seeds("dna_company", rows, number))
    everybody(play.run(), InputError, "dna_company", but=("dna_company",))


def test_owners_with_different_batches():
    inputs = stage.rows(6) | {"laboratory": stage.rows(5)["laboratory"]}
    outcomes = stage.Play(inputs=inputs).run()
    everybody(outcomes, InputError, "laboratory")
    assert {o.error.message for o in outcomes.values()} == {"brings 5 rows where others bring 6"}


def test_owner_that_brings_less_than_it_announced():
    """It announces six rows and then goes on as if they were four."""

    def act(name, party):
        if name == "dna_company":
            player = next(iter(party._players.values()))
            original = player.offline

            def offline(scope):
                player.later = 2 if player.later else None
                yield from original(scope)

            player.offline = offline

    play = stage.Play(inputs=stage.rows(6), act=act)
    everybody(play.run(), InputError, "dna_company")


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("victim", ["patient", "dna_company"])
def test_evaluator_that_is_ready_for_other_rows(number, victim):
    def hook(source, destination, frame):
        hit = (source, destination) == (stage.E1, victim) and frame.kind is Kind.DATA
        if hit and stage.kind_of(frame)[-1] == "ready" and number_of(frame) == number:
            return stage.changed(frame, payload=struct.pack("<I", 3))
        return None if source == stage.E1 and frame.kind is Kind.ABORT else frame

    play = stage.Play(inputs=stage.rows(6), hook=hook)
    everybody(play.run(), ProtocolViolation, stage.E1, but=(stage.E1,))


WORDS = {
    "none": b"",
    "more": struct.pack("<I", 9),
    "fewer": struct.pack("<I", 1),
    "nothing, spelt out": bytes(4),
    "short": b"\1",
    "long": bytes(range(16)),
    "very long": bytes(100),
}


@pytest.mark.parametrize("base", [BASE, APART], ids=["one party, two roles", "model owner apart"])
@pytest.mark.parametrize("which", [0, 1, "helper"])
@pytest.mark.parametrize("word", WORDS)
def test_who_tells_of_other_rows_to_come(base, which, word):
    """To all: then each sees that one differs from the rest."""
    liar = which if which == "helper" else base.evaluators[which]
    if (which, word) == ("helper", "none"):
        pytest.skip("it says nothing where it is not told: the others do")

    def hook(source, destination, frame):
        if source == liar and frame.kind is Kind.DONE and frame.step == 0:
            return stage.changed(frame, payload=WORDS[word])
        return None if source == liar and frame.kind is Kind.ABORT else frame

    outcomes = stage.Play(base=base, inputs=stage.rows(5), hook=hook).run()
    everybody(outcomes, ProtocolViolation, liar, but=(liar,))


@pytest.mark.parametrize("victim", ["startup", "patient", "dna_company", "helper", "laboratory"])
def test_who_tells_only_one_of_other_rows_to_come(victim):
    def hook(source, destination, frame):
        if (source, destination, frame.kind, frame.step) == ("hospital", victim, Kind.DONE, 0):
            return stage.changed(frame, payload=WORDS["more"])
        return None if source == "hospital" and frame.kind is Kind.ABORT else frame

    outcomes = stage.Play(base=APART, inputs=stage.rows(5), hook=hook).run()
    everybody(outcomes, ProtocolViolation, "hospital", but=("hospital",))


def test_word_from_a_party_that_has_no_say():
    def hook(source, destination, frame):
        if source == "patient" and frame.kind is Kind.DONE:
            return stage.changed(frame, payload=struct.pack("<I", 3))
        return None if source == "patient" and frame.kind is Kind.ABORT else frame

    play = stage.Play(inputs=stage.rows(5), hook=hook)
    everybody(play.run(), ProtocolViolation, "patient", but=("patient",))


@pytest.mark.parametrize("victim", [stage.E1, stage.E2, stage.H])
def test_the_only_owner_tells_one_party_of_other_rows(victim):
    """Nobody can prove who it was, so whoever differs is not named without the owner."""
    names = tuple(n for n in stage.NAMES if n != "laboratory")
    parties = tuple(p for p in BASE.parties if p.name in names)
    base = stage.manifest(parties=parties, inputs=dict.fromkeys(stage.INPUTS, "dna_company"))
    given = {"dna_company": stage.flat(stage.rows(6))}
    hook = seeds("dna_company", 5, 0, to=(victim,))
    outcomes = stage.Play(base=base, only=names, inputs=given, hook=hook).run()
    for name, outcome in outcomes.items():
        assert outcome.outputs is None
        if name != "dna_company":  # some only see it leave, for it is told other rows than it brings
            assert isinstance(outcome.error, PrivinferError)
            assert "dna_company" in outcome.error.culprit.split(" or "), (name, outcome.error)


def settled(name, later, said, base=APART):
    """What a party makes of words; those not given say what is so."""
    words = {n: chunks.word(n, base, said.get(n, 3)) for n in base.names if n != name}
    try:
        return chunks.settle(base, name, later, words)
    except ProtocolViolation as error:
        return error.culprit


def test_whom_to_believe():
    for name in APART.names:
        later = None if name == "startup" else 3
        assert settled(name, later, {}) == 3
        assert settled(name, later, {"helper": 0}) == 3  # dealt ahead, it is not told
        assert settled(name, later and 0, dict.fromkeys(APART.names, 0)) == 0
    # two against one, and one against one
    assert settled("startup", None, {"laboratory": 5}) == "laboratory"
    assert settled("startup", None, {"laboratory": 5, "helper": 0}) == "hospital or laboratory"
    assert settled("patient", 3, {"laboratory": 5, "helper": 0}) == "laboratory"
    assert settled("hospital", 3, {"laboratory": 5, "helper": 0}) == "laboratory"
    assert settled("hospital", 3, {"laboratory": 5, "helper": 5}) == "laboratory or helper"
    # this party against all others
    assert settled("patient", 4, {}) == "hospital"
    assert settled("dna_company", 4, {}) == "hospital or laboratory"


@pytest.mark.parametrize("phase", [Phase.OFFLINE, Phase.ONLINE])
@pytest.mark.parametrize("victim", ["startup", "helper", "laboratory"])
def test_crash_in_a_later_chunk(victim, phase):
    """The whole run ends, and nobody has half of an answer."""
    if (victim, phase) == ("helper", Phase.ONLINE):
        pytest.skip("it sends nothing then")

    def hook(source, destination, frame):
        late = frame.kind is Kind.DATA and frame.phase == phase and number_of(frame) == 1
        if late and source == victim:
            raise RuntimeError("a party dies in the middle")
        return frame

    outcomes = stage.Play(inputs=stage.rows(5), hook=hook).run()
    for name, outcome in outcomes.items():
        assert outcome.outputs is None
        if name != victim:
            assert isinstance(outcome.error, PrivinferError)
            assert outcome.error.culprit == victim
