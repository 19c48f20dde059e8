"""Consent in sessions: without a good one nothing of an owner leaves, and every honest party says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from privinfer.errors import ConsentError
from privinfer.graph import reference
from privinfer.session.consent import Consent
from privinfer.transport import Kind
from tests.adversarial import stage
from tests.support import consents as kit

OWNERS, PATIENT = kit.OWNERS, kit.PATIENT


class Watch:
    """Notes every DATA message of an owner in its role as owner."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, source: str, destination: str, frame: Any) -> Any:
        kind = stage.kind_of(frame)
        if frame.kind is Kind.DATA and kind[1] in ("input", "owner"):
            self.seen.append((source, kind))
        return frame


def spent(play: stage.Play, one: Consent) -> dict[str, int]:
    return {name: ledger.state(one).spent for name, ledger in play.uses.items()}


def check_refused(outcomes: Any, message: str, culprit: str = PATIENT, kind: Any = ConsentError) -> None:
    for name, outcome in outcomes.items():
        assert type(outcome.error) is kind, (name, outcome.error)
        assert outcome.error.culprit == culprit, (name, outcome.error)
        assert message in outcome.error.message, (name, outcome.error)


def test_each_run_spends_one_use_at_each_owner(tmp_path: Path) -> None:
    one = kit.consent(uses=2)
    watch = Watch()
    play = kit.play(tmp_path, kit.signed(one), kit.signed(one), hook=watch)
    outcomes = play.run()
    assert all(o.error is None for o in outcomes.values()), {n: o.error for n, o in outcomes.items()}
    clear = reference.run(stage.model(), stage.flat(stage.rows()))["risk"]
    bound = stage.model().architecture.precision.error_bound
    assert np.abs(outcomes[PATIENT].outputs["risk"] - clear).max() <= bound
    assert spent(play, one) == dict.fromkeys(OWNERS, 2)
    assert {source for source, _ in watch.seen} == set(OWNERS)  # the watch sees what it is to see


def test_a_used_up_consent_is_refused_in_a_later_session(tmp_path: Path) -> None:
    one = kit.signed(kit.consent())
    assert all(o.error is None for o in kit.play(tmp_path, one).run().values())
    watch = Watch()
    outcomes = kit.play(tmp_path, one, hook=watch).run()
    for name, outcome in outcomes.items():
        assert type(outcome.error) is ConsentError, (name, outcome.error)
        assert outcome.error.culprit == PATIENT
        assert "the consent is used up: " in outcome.error.message
        assert "has shared 1 times under it" in outcome.error.message
    assert watch.seen == []
