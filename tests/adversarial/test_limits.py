"""Limits on what leaves: refused by everybody before an input moves, spent before a result does."""

from __future__ import annotations

import numpy as np
import pytest

import privinfer
from privinfer.errors import ConfigError, ConsentError, ProtocolViolation
from privinfer.graph import reference
from privinfer.protocols.sealing import Keys
from privinfer.runtime import limits
from privinfer.runtime.store import Store
from privinfer.session.terms import Release, Terms
from privinfer.transport import Kind
from tests.adversarial import stage
from tests.adversarial.test_liars import everybody

NOISY = Release(epsilon=1.0, delta=1e-6, sensitivity=1.0, epsilon_budget=1.2, delta_budget=1e-6)
TWO = Release(answers=2, hours=1.0)


def play(folder, release, **changes):
    base = stage.manifest(terms=Terms(release=release))
    return stage.Play(base=base, ledgers=lambda name: folder / name, **changes)


def left(folder, release, name=stage.E1):
    """What one party's ledger has left for the patient."""
    keeper = limits.Keeper(stage.manifest(terms=Terms(release=release)), name, folder / name)
    try:
        return keeper.left()["patient"]
    finally:
        keeper.close()


def test_answers_are_counted_across_sessions_and_then_refused(tmp_path):
    outcomes = play(tmp_path, TWO, runs=2).run()
    assert {o.error for o in outcomes.values()} == {None}
    assert outcomes[stage.E1].report["release"]["left"] == {"patient": {"answers": 0}}
    assert "left" not in outcomes["patient"].report["release"]
    moved = []

    def watch(source, destination, frame):
        if frame.kind is Kind.DATA and stage.kind_of(frame)[-1] in ("source", "reveal"):
            moved.append(stage.kind_of(frame))
        return frame

    everybody(play(tmp_path, TWO, hook=watch).run(), ConsentError, "patient", "no answer is left")
    assert not moved  # no input, masked or not, and no result
    for name in (stage.E1, stage.E2):
        assert left(tmp_path, TWO, name) == {"answers": 0}


def test_a_batch_over_the_limit_is_refused_whole(tmp_path):
    outcomes = play(tmp_path, TWO, inputs=stage.rows(3)).run()
    everybody(outcomes, ConsentError, "patient", "3 wanted, 2 left")
    assert left(tmp_path, TWO) == {"answers": 2}


def test_a_privacy_budget_that_is_spent(tmp_path):
    outcomes = play(tmp_path, NOISY).run()
    assert {o.error for o in outcomes.values()} == {None}
    report = outcomes["patient"].report
    assert report["release"]["sigma"]["risk"] > 1
    noise = (
        outcomes["patient"].outputs["risk"] - reference.run(stage.model(), stage.flat(stage.rows()))["risk"]
    )
    assert 0 < np.abs(noise).max() < 9 * report["release"]["sigma"]["risk"]
    everybody(play(tmp_path, NOISY).run(), ConsentError, "patient", "privacy budget is spent")


@pytest.mark.parametrize("who", [stage.E1, stage.E2])
def test_one_evaluator_that_counts_is_enough(tmp_path, who):
    """The other has lost its ledger, or never kept one."""
    assert play(tmp_path, NOISY).run()["patient"].error is None
    other = stage.E2 if who == stage.E1 else stage.E1
    (tmp_path / other).rename(tmp_path / "lost")
    everybody(play(tmp_path, NOISY).run(), ConsentError, "patient", "privacy budget is spent")


def test_what_is_spent_stays_spent_where_the_answer_never_left(tmp_path, monkeypatch):
    def crash(self, receiver, message, context):
        raise RuntimeError("power failure")

    with monkeypatch.context() as patched:
        patched.setattr(Keys, "seal", crash)
        outcomes = play(tmp_path, TWO).run()
    assert all(o.error is not None for o in outcomes.values())
    assert outcomes["patient"].outputs is None
    assert left(tmp_path, TWO) == {"answers": 1}


def test_a_ledger_that_cannot_be_written_lets_nothing_out(tmp_path):
    (tmp_path / stage.E2).touch()
    outcomes = play(tmp_path, TWO).run()
    assert type(outcomes[stage.E2].error) is ConfigError
    assert all(o.error is not None and o.outputs is None for o in outcomes.values())


def test_who_counts_needs_a_ledger():
    for terms in (NOISY, TWO):
        manifest = stage.manifest(terms=Terms(release=terms))
        assert limits.keepers(manifest) == (stage.E1, stage.E2)
        for name in stage.NAMES:
            if name in (stage.E1, stage.E2):
                with pytest.raises(ConfigError, match="has no ledger"):
                    limits.check(manifest, name, None)
            else:
                limits.check(manifest, name, None)
    limits.check(stage.manifest(terms=Terms(release=Release(decimals=2))), stage.E1, None)


def test_dealt_ahead_is_noised_and_counted_too(tmp_path):
    base = stage.manifest(terms=Terms(release=NOISY))
    keepers = set(stage.NAMES) - {"helper", "patient"}

    def store(name):
        return Store(tmp_path / "store" / name, base.digest(), name) if name in keepers else None

    play(tmp_path, NOISY, stores=store, runs=0, act=lambda name, party: party.deal(2)).run()
    outcomes = play(tmp_path, NOISY, stores=store).run()
    assert {o.error for o in outcomes.values()} == {None}
    report = outcomes["patient"].report
    assert report["dealt"] == "ahead"
    noise = (
        outcomes["patient"].outputs["risk"] - reference.run(stage.model(), stage.flat(stage.rows()))["risk"]
    )
    bound = stage.model().architecture.precision.error_bound
    assert bound < np.abs(noise).max() < 9 * report["release"]["sigma"]["risk"]  # sigma is 10^4 bounds
    everybody(play(tmp_path, NOISY, stores=store).run(), ConsentError, "patient", "privacy budget is spent")


def test_noise_that_does_not_fit_ends_the_join_for_everybody(tmp_path):
    wide = Release(epsilon=1.0, delta=1e-6, sensitivity=1e5, epsilon_budget=1.2, delta_budget=1e-6)
    for outcome in play(tmp_path, wide).run().values():
        assert type(outcome.error) is ConfigError
        assert "does not fit 32 bits" in outcome.error.message


# -- sealed results --------------------------------------------------------------------------------


@pytest.mark.parametrize("liar", [stage.E1, stage.E2])
@pytest.mark.parametrize("at", [0, 31, 32, -17, -1])
def test_a_bit_of_a_sealed_result(liar, at):
    def flip(source, destination, frame):
        if source == liar and frame.kind is Kind.DATA and stage.kind_of(frame)[-1] == "reveal":
            data = bytearray(frame.payload)
            data[at] ^= 1
            return stage.changed(frame, payload=bytes(data))
        return None if source == liar and frame.kind is Kind.ABORT else frame

    everybody(stage.Play(hook=flip).run(), ProtocolViolation, liar, "does not open", but=(liar,))


@pytest.mark.parametrize("liar", [stage.E1, stage.E2])
def test_the_result_of_an_earlier_run(liar):
    seen = []

    def replay(source, destination, frame):
        if source == liar and frame.kind is Kind.DATA and stage.kind_of(frame)[-1] == "reveal":
            seen.append(bytes(frame.payload))
            return stage.changed(frame, payload=seen[0])
        return None if source == liar and frame.kind is Kind.ABORT else frame

    outcomes = stage.Play(hook=replay, runs=2).run()
    assert len(seen) == 2
    everybody(outcomes, ProtocolViolation, liar, "does not open", but=(liar,))


# -- run_local -------------------------------------------------------------------------------------


NOISE = {"epsilon": 1.0, "delta": 1e-6, "sensitivity": 1.0, "epsilon_budget": 1.0, "delta_budget": 1e-6}


def local(**changes):
    return privinfer.run_local(stage.model(), stage.rows(2), processes=False, **changes)


def test_run_local_rounds_and_says_so():
    result = local(release={"decimals": 1}, with_reference=True)
    assert result.report["release"] == {"decimals": 1, "grid_bits": 3}
    assert "the result risk, rounded to 1 decimals" in result.report["parties"]["patient"]["sees"]
    assert (np.round(result.outputs["risk"], 1) == result.outputs["risk"]).all()
    bound = result.report["precision"]["declared_error_bound"]
    assert stage.model().architecture.precision.error_bound < result.report["largest_absolute_error"] <= bound


def test_run_local_counts_for_one_call():
    for _ in range(2):
        result = local(release={"answers": 2})
        assert result.report["release"]["left"] == {"patient": {"answers": 0}}
        assert result.report["release"]["counted"] == "for this call"
    with pytest.raises(ConsentError, match="2 wanted, 1 left"):
        local(release={"answers": 1})


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ({"decimal": 2}, "no 'decimal'"),
        ({"decimals": "two"}, "no whole number"),
        ({"decimals": 2.5}, "no whole number"),
        ({"answers": True}, "no whole number"),
        ({"epsilon": "1"}, "release.epsilon is no number"),
        ({"decimals": 13}, "not in 0..12"),
        ({"delta": 1e-6}, "epsilon is missing"),
    ],
)
def test_run_local_refuses_what_makes_no_sense(given, what):
    with pytest.raises(ConfigError, match=what):
        local(release=given)


@pytest.mark.parametrize(
    ("backend", "insecure", "terms"),
    [
        ("ckks", (), {"decimals": 2}),
        ("crypten", ("crypten",), {"decimals": 2}),
        ("crypten", ("crypten",), NOISE),
        ("plain", ("plaintext",), {"decimals": 2}),
        ("plain", ("plaintext",), NOISE),
        ("plain", ("plaintext",), {"answers": 2}),
    ],
)
def test_backends_that_cannot_limit_a_result_say_so(backend, insecure, terms):
    with pytest.raises(ConfigError, match=f"backend {backend}"):
        local(backend=backend, insecure=insecure, release=terms)


@pytest.mark.slow
def test_run_local_over_processes():
    release = {"decimals": 2, "epsilon": 8.0, "delta": 1e-3, "sensitivity": 0.01}
    release |= {"epsilon_budget": 16.0, "delta_budget": 2e-3}
    result = privinfer.run_local(stage.model(), stage.rows(2), with_reference=True, release=release)
    said = result.report["release"]
    assert result.report["largest_absolute_error"] < 12 * said["sigma"]["risk"] + 0.02
    assert 0 < said["left"]["patient"]["epsilon"] < 16.0
