"""Dealing ahead between six parties: what is used once, what is refused, when masks are dealt live."""

import numpy as np
import pytest

from privinfer.errors import ConfigError, InputError, IntegrityError
from privinfer.graph import ir, reference
from privinfer.runtime.store import Store
from tests.adversarial import stage

KEEPERS = ("hospital", "dna_company", "laboratory", "startup")
BASE = stage.manifest(deadline=10.0)


def session(folder, *, keepers=KEEPERS, budget=1 << 30, digest=None, **changes):
    def store(name):
        if name not in keepers:
            return None
        return Store(folder / name, digest or BASE.digest(), name, budget)

    return stage.Play(base=BASE, stores=store, **changes)


def good(outcomes):
    assert [o.error for o in outcomes.values()] == [None] * len(outcomes)
    return outcomes


def dealt(folder, count=3, batch=1):
    good(session(folder, runs=0, act=lambda name, party: party.deal(count, batch)).run())


def right(outcome, inputs):
    model = stage.model()
    wanted = reference.run(model, stage.flat(inputs))["risk"]
    assert np.abs(outcome.outputs["risk"] - wanted).max() <= model.architecture.precision.error_bound


def numbers(folder):
    """The next unused number at each party."""
    found = {}
    for name in KEEPERS:
        with Store(folder / name, BASE.digest(), name) as store:
            offer = store.offer()
            found[name] = None if offer is None else offer.number
    return found


def test_dealt_ahead_used_once_then_live(tmp_path):
    dealt(tmp_path)
    for seed in range(3):
        inputs = stage.rows(seed=seed)
        outcomes = good(session(tmp_path, inputs=inputs).run())
        assert {o.report["dealt"] for o in outcomes.values()} == {"ahead"}
        assert outcomes["helper"].report["bytes"]["sent"]["offline"] == {}
        right(outcomes["patient"], inputs)
    inputs = stage.rows(seed=9)
    outcomes = good(session(tmp_path, inputs=inputs).run())
    assert {o.report["dealt"] for o in outcomes.values()} == {"live"}
    right(outcomes["patient"], inputs)


def test_several_runs_and_a_deal_in_one_join(tmp_path):
    inputs = [stage.rows(2, seed=k) for k in range(3)]
    outcomes = good(session(tmp_path, inputs=inputs, runs=3, act=lambda name, party: party.deal(2, 2)).run())
    reports = {o.report["dealt"] for o in outcomes.values()}
    assert reports == {"live"}  # the third: two were dealt
    right(outcomes["patient"], inputs[2])


def test_all_go_on_with_the_largest_number(tmp_path):
    """One party has burned pieces the others still have, as after a crash: nobody goes back."""
    dealt(tmp_path)
    with Store(tmp_path / "laboratory", BASE.digest(), "laboratory") as store:
        store.take(store.offer().generation, 1)
    inputs = stage.rows(seed=4)
    outcomes = good(session(tmp_path, inputs=inputs).run())
    assert {o.report["dealt"] for o in outcomes.values()} == {"ahead"}
    right(outcomes["patient"], inputs)
    assert set(numbers(tmp_path).values()) == {None}


def test_a_party_that_fails_burns_the_piece_for_all(tmp_path):
    dealt(tmp_path)

    def hook(source, destination, frame):
        if frame.kind is stage.Kind.DATA and frame.phase == stage.Phase.ONLINE and source == "startup":
            raise RuntimeError("a party dies in the middle")
        return frame

    outcomes = session(tmp_path, hook=hook).run()
    assert any(o.error is not None for o in outcomes.values())
    assert set(numbers(tmp_path).values()) <= {1}
    inputs = stage.rows(seed=5)
    outcomes = good(session(tmp_path, inputs=inputs).run())
    right(outcomes["patient"], inputs)
    assert set(numbers(tmp_path).values()) == {2}


@pytest.mark.parametrize("missing", KEEPERS)
def test_without_one_store_masks_are_dealt_live(tmp_path, missing):
    dealt(tmp_path)
    inputs = stage.rows(seed=6)
    outcomes = good(session(tmp_path, keepers=set(KEEPERS) - {missing}, inputs=inputs).run())
    assert {o.report["dealt"] for o in outcomes.values()} == {"live"}
    right(outcomes["patient"], inputs)


def test_another_generation_at_one_party_is_not_mixed_in(tmp_path):
    dealt(tmp_path / "a")
    dealt(tmp_path / "b")
    (tmp_path / "a" / "startup").rename(tmp_path / "a" / "old")
    (tmp_path / "b" / "startup").rename(tmp_path / "a" / "startup")
    inputs = stage.rows(seed=7)
    outcomes = good(session(tmp_path / "a", inputs=inputs).run())
    assert {o.report["dealt"] for o in outcomes.values()} == {"live"}
    right(outcomes["patient"], inputs)


def test_what_was_dealt_in_another_session_is_not_offered(tmp_path):
    dealt(tmp_path)
    outcomes = good(session(tmp_path, digest=b"x" * 32).run())
    assert {o.report["dealt"] for o in outcomes.values()} == {"live"}


def test_other_weights_are_refused(tmp_path):
    """The architecture is the same, so the session is; the masks were dealt for other weights."""
    dealt(tmp_path)
    first = stage.model()
    shifted = {node: {k: v + 0.25 for k, v in own.items()} for node, own in first.parameters.items()}
    other = ir.Model(first.architecture, shifted)
    assert other.architecture == first.architecture
    outcomes = session(tmp_path, models={"startup": other}).run()
    for outcome in outcomes.values():
        assert isinstance(outcome.error, IntegrityError)
        assert outcome.error.culprit == "startup"
        assert "other weights" in outcome.error.message


def test_other_batch_sizes_are_refused_at_their_owner(tmp_path):
    dealt(tmp_path, batch=2)
    outcomes = session(tmp_path, inputs=stage.rows(3)).run()
    assert {type(o.error) for o in outcomes.values()} == {InputError}
    assert numbers(tmp_path)["laboratory"] == 0  # nothing of it was sent


def test_a_truncated_piece_is_named_with_its_party(tmp_path):
    dealt(tmp_path)
    file = next((tmp_path / "hospital").glob("*-0.bin"))
    file.write_bytes(file.read_bytes()[:-1])
    outcomes = session(tmp_path).run()
    for outcome in outcomes.values():
        assert isinstance(outcome.error, IntegrityError)
        assert outcome.error.culprit == "hospital"
    inputs = stage.rows(seed=8)  # the next piece is taken
    right(good(session(tmp_path, inputs=inputs).run())["patient"], inputs)


def test_a_full_store_is_named_before_anything_is_dealt(tmp_path):
    outcomes = session(tmp_path, budget=4000, runs=0, act=lambda name, party: party.deal(50)).run()
    for outcome in outcomes.values():
        assert isinstance(outcome.error, ConfigError)
        assert outcome.error.culprit in ("hospital", "startup")
        assert "full" in outcome.error.message


def test_no_store_to_deal_into(tmp_path):
    outcomes = session(tmp_path, keepers=KEEPERS[1:], runs=0, act=lambda name, party: party.deal(1)).run()
    for outcome in outcomes.values():
        assert isinstance(outcome.error, ConfigError)
        assert outcome.error.culprit == "hospital"
