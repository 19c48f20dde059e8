"""t of n: a key holder that is lost after the keys are made, and one too many."""

from __future__ import annotations

import threading
import time

import pytest

from privinfer.backends.ckks import roles
from privinfer.backends.ckks.evaluate import Evaluation
from privinfer.errors import TransportError
from privinfer.transport import Kind
from tests.adversarial import ckks_stage as stage
from tests.adversarial.ckks_stage import MODEL_OWNER, OWNER, RECEIVER, SPARE
from tests.support.simulate_ckks import small_ring

DEADLINE = 1.0


@pytest.fixture(autouse=True, scope="module")
def ring():
    with small_ring():
        yield


class Kill:
    """Kills parties, each at the first frame of a kind that it sends or is sent."""

    def __init__(self, victims, only_silence=False):
        self.victims, self.only_silence = dict(victims), only_silence
        self.hit, self.lock = [], threading.Lock()
        self.play = None

    def __call__(self, source, destination, frame):
        named = stage.kind_of(frame, self.play.base)[-2:]
        with self.lock:
            for victim, kind in list(self.victims.items()):
                if kind == named and victim in (source, destination) and frame.kind is Kind.DATA:
                    del self.victims[victim]
                    self.hit.append(victim)
                    if not self.only_silence:
                        self.play.hub.kill(victim)
        return None if self.only_silence and source in self.hit else frame


def killed(victims, base=None, only_silence=False, **given):
    hook = Kill(victims, only_silence)
    base = base or stage.manifest(deadline=DEADLINE)
    one = hook.play = stage.play(base, hook=hook, **given)
    outcomes = one.run()
    assert set(hook.hit) == set(victims)
    return {name: o for name, o in outcomes.items() if name not in victims}


def right(outcomes):
    errors = {name: o.error for name, o in outcomes.items() if o.error is not None}
    assert not errors
    stage.right(outcomes[RECEIVER])


MOMENTS = [("ready", 0), ("ask", 0), ("body", 0), ("share", 0), ("ask", 1), ("body", 1), ("share", 1)]


@pytest.mark.parametrize("moment", MOMENTS)
def test_one_lost_at_a_frame(moment):
    outcomes = killed({"beta": moment})
    right(outcomes)
    assert max(o.seconds for o in outcomes.values()) < 3 * DEADLINE


@pytest.mark.parametrize("moments", [[("share", 0), ("share", 0)], [("body", 0), ("share", 1)]])
def test_two_lost(moments):
    right(killed(dict(zip(("alpha", "gamma"), moments, strict=True))))


def test_two_lost_one_after_the_other_in_one_request():
    """The second is among those that are asked in the place of the first."""
    holders = ("alpha", OWNER, RECEIVER, "beta", "gamma")
    right(
        killed(
            {"alpha": ("share", 0), "beta": ("share", 1)}, stage.manifest(holders=holders, deadline=DEADLINE)
        )
    )


@pytest.mark.parametrize("moment", [("ask", 0), ("share", 0), ("share", 1)])
def test_one_that_falls_silent(moment):
    """As if stopped: no frame of it comes any more, and nothing tells that it will not."""
    outcomes = killed({"alpha": moment}, only_silence=True)
    right(outcomes)
    assert max(o.seconds for o in outcomes.values()) < 4 * DEADLINE


def test_lost_between_the_keys_and_the_run():
    def act(name, party):
        if name == "alpha":
            one.hub.kill("alpha")

    one = stage.play(stage.manifest(deadline=DEADLINE), act=act)
    outcomes = one.run()
    outcomes.pop("alpha")
    right(outcomes)


def test_a_spare_holder_that_leaves_by_itself():
    """It says goodbye, or that it was stopped: that is no reason to end the session."""
    for error in (None, KeyboardInterrupt("by its operator")):

        def progress(name, role, phase, event, error=error):
            if name == "alpha" and event.label == "request":
                if error is None:
                    raise TransportError("has enough", culprit="alpha")
                raise error

        outcomes = stage.play(stage.manifest(deadline=DEADLINE), progress=progress).run()
        assert outcomes.pop("alpha").error is not None
        right(outcomes)


def test_runs_after_one_was_lost():
    hook = Kill({"alpha": ("share", 1)})
    one = hook.play = stage.play(
        stage.manifest(deadline=DEADLINE),
        hook=hook,
        runs=3,
        inputs=[stage.rows(1, 1), stage.rows(2, 2), stage.rows(3, 3)],
    )
    outcomes = one.run()
    outcomes.pop("alpha")
    assert not [o.error for o in outcomes.values() if o.error]
    stage.right(outcomes[RECEIVER], 3, 3)
    assert outcomes[RECEIVER].report["inference"] == 2


# -- too many ----------------------------------------------------------------------------------------


def everybody(outcomes, *culprits):
    for name, outcome in outcomes.items():
        assert type(outcome.error) is TransportError, (name, outcome.error)
        assert set(outcome.error.culprit.split(" or ")) == set(culprits), (name, outcome.error)


@pytest.mark.parametrize("silence", [False, True])
def test_too_many_lost_names_them(silence):
    outcomes = killed(dict.fromkeys(SPARE, ("share", 0)), only_silence=silence)
    everybody(outcomes, *SPARE)
    assert max(o.seconds for o in outcomes.values()) < 6 * DEADLINE


def test_too_many_lost_one_after_the_other():
    outcomes = killed({"alpha": ("share", 0), "beta": ("share", 1), "gamma": ("share", 2)})
    everybody(outcomes, *SPARE)


@pytest.mark.parametrize("victim", ["alpha", RECEIVER])
@pytest.mark.parametrize("moment", [("ask", 0), ("share", 1)])
def test_all_are_needed_where_no_threshold_says_less(victim, moment):
    everybody(killed({victim: moment}, stage.manifest(threshold=5, deadline=DEADLINE)), victim)


@pytest.mark.parametrize("victim", [OWNER, RECEIVER, MODEL_OWNER])
def test_one_lost_that_does_more_than_hold_a_share(victim):
    everybody(
        killed({victim: ("share", 1)}, stage.manifest(holders=(OWNER, RECEIVER, *SPARE), deadline=DEADLINE))
        if victim != MODEL_OWNER
        else killed({victim: ("share", 1)}),
        victim,
    )


def test_lost_while_the_keys_are_made():
    everybody(killed({"alpha": ("sub-share", 0)}), "alpha")
    everybody(killed({"beta": ("galois", 1)}), "beta")


# -- a batch that takes longer than the deadline -------------------------------------------------------


@pytest.mark.parametrize("threshold", [3, 5])
def test_work_that_takes_longer_than_the_deadline(monkeypatch, threshold):
    """The model owner is slow, and says that it is at work: nobody takes that for a failure."""
    deadline = 0.8
    monkeypatch.setattr(roles, "AT_WORK", 0.1)
    monkeypatch.setattr(Evaluation, "_activate", slowly(Evaluation._activate, deadline / 4))
    outcomes = stage.play(stage.manifest(threshold, deadline=deadline), inputs=stage.rows(8)).run()
    assert not [o.error for o in outcomes.values() if o.error]
    stage.right(outcomes[RECEIVER], 8)
    assert outcomes[RECEIVER].seconds > 2 * deadline
    assert outcomes[RECEIVER].report["online_rounds"]["opening"] == roles.COMPUTED


def slowly(compute, seconds):
    def slow(*arguments):
        time.sleep(seconds)
        return compute(*arguments)

    return slow
