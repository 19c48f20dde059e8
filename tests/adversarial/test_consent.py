"""Consent in sessions: without a good one nothing of an owner leaves, and every honest party says why."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from privinfer import run_local
from privinfer.errors import ConfigError, ConsentError, ProtocolViolation
from privinfer.graph import reference
from privinfer.protocols.commitment import Opening
from privinfer.protocols.sealing import ReceiverKey
from privinfer.runtime import consents, engage
from privinfer.runtime.post import GREETINGS
from privinfer.session import Identity, canonical
from privinfer.session.consent import Consent
from privinfer.transport import Kind
from tests.adversarial import stage
from tests.adversarial.test_agreement import resigned
from tests.support import consents as kit

OWNERS, PATIENT = kit.OWNERS, kit.PATIENT


class Watch:
    """Notes every DATA message of an owner in its role as owner."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, source: str, destination: str, frame: Any) -> Any:
        kind = stage.kind_of(frame)
        if frame.kind is Kind.DATA and kind[1] == "owner":
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


def test_a_use_is_on_disk_before_anything_of_the_owner_leaves(tmp_path: Path) -> None:
    one = kit.consent()
    counted: list[tuple[str, int]] = []

    def hook(source: str, destination: str, frame: Any) -> Any:
        if frame.kind is Kind.DATA and stage.kind_of(frame)[1] == "owner":
            counted.append((source, play.uses[source].state(one).spent))
        return frame

    play = kit.play(tmp_path, kit.signed(one), hook=hook)
    assert all(o.error is None for o in play.run().values())
    assert set(counted) == {(name, 1) for name in OWNERS}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"architecture": bytes(32)}, "is for another model"),
    "weights": ({"weights": bytes(32)}, "is for other weights"),
    "purpose": ({"purpose": "another"}, "is for another purpose"),
    "receiver": ({"receivers": {"helper": bytes(32)}}, "does not have patient as a receiver"),
    "key": ({"receivers": {PATIENT: bytes(32)}}, "names another key of receiver patient"),
    "input": ({"inputs": {"xray": "hospital", "dna": "dna_company"}}, "does not cover input 'blood'"),
    "early": ({"not_before": 4_000_000_000, "until": 4_000_000_001}, "is not valid before 2096"),
    "late": ({"not_before": 1, "until": 1_000_000_000}, "expired at 2001"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_consent_to_something_else_shares_nothing(case: str, tmp_path: Path) -> None:
    changes, message = BAD[case]
    watch, one = Watch(), kit.consent(**changes)
    play = kit.play(tmp_path, kit.signed(one), hook=watch)
    check_refused(play.run(), message)
    assert watch.seen == []
    assert spent(play, one) == dict.fromkeys(OWNERS, 0)


def test_rows_beyond_the_consent(tmp_path: Path) -> None:
    watch, one = Watch(), kit.consent(rows=2)
    play = kit.play(tmp_path, kit.signed(one), hook=watch, inputs=stage.rows(3))
    check_refused(play.run(), "the consent allows 2 rows a run, and this one has 3")
    assert watch.seen == []
    assert all(
        o.error is None for o in kit.play(tmp_path, kit.signed(one), inputs=stage.rows(2)).run().values()
    )


def test_without_a_consent_nothing_begins(tmp_path: Path) -> None:
    watch = Watch()
    check_refused(kit.play(tmp_path, {}, hook=watch).run(), "brought no consent")
    assert watch.seen == []


def test_a_revocation_brought_along_is_honoured_from_then_on(tmp_path: Path) -> None:
    old, new = kit.consent(uses=5), kit.consent()
    gone = kit.signed(kit.revocation(old))
    first = kit.play(tmp_path, kit.signed(old), {"consent": kit.signed(new), "revocations": [gone]})
    assert all(o.error is None for o in first.run().values())
    watch = Watch()
    outcomes = kit.play(tmp_path, kit.signed(old), hook=watch).run()
    check_refused(outcomes, "the consent was revoked at 2027-01-15")
    assert watch.seen == []


def test_a_consent_that_its_own_statement_revokes(tmp_path: Path) -> None:
    one = kit.consent()
    brings = {"consent": kit.signed(one), "revocations": [kit.signed(kit.revocation(one))]}
    check_refused(kit.play(tmp_path, brings).run(), "the consent was revoked")
    alone = {"revocations": [kit.signed(kit.revocation(kit.consent()))]}
    check_refused(kit.play(tmp_path, alone).run(), "brought no consent")


def test_one_owners_ledger_is_enough_to_refuse(tmp_path: Path) -> None:
    one = kit.consent()
    gone = kit.revocation(one)
    play = kit.play(tmp_path, kit.signed(one))
    play.uses["laboratory"].revoke(gone, kit.signed(gone))
    check_refused(play.run(), "the consent was revoked")


# -- whoever does not play by the rules ------------------------------------------------------------


def lying(monkeypatch: pytest.MonkeyPatch, change: Any, liar: str = PATIENT) -> None:
    """`liar` makes another statement, with a good signature, and checks nothing itself."""
    bring, statement = consents.bring, engage.statement
    admit = consents.admit

    def lax(manifest: Any, name: str, *rest: Any) -> Any:
        return consents.Brought() if name == liar else bring(manifest, name, *rest)

    def said(inputs: Any, key: bytes | None, brought: Any) -> bytes:
        if threading.current_thread().name == liar:  # each party of a play has one
            own = {} if key is None else {"key": key}
            return canonical.dumps({"inputs": dict(inputs), **own, **change})
        return statement(inputs, key, brought)

    def blind(brought: Any, manifest: Any, name: str, *rest: Any, **more: Any) -> None:
        if name != liar:
            admit(brought, manifest, name, *rest, **more)

    monkeypatch.setattr(consents, "bring", lax)
    monkeypatch.setattr(consents, "admit", blind)
    monkeypatch.setattr(engage, "statement", said)


def another(name: str = PATIENT) -> Any:
    """An identity of that name that is not in the session."""
    return Identity.generate(name, days=2)


def forged() -> bytes:
    """A consent of somebody who calls herself patient too."""
    me = another()
    return kit.consent(certificate=bytes.fromhex(me.fingerprint)).sign(me)


def flipped() -> bytes:
    envelope = canonical.loads(kit.signed(kit.consent()), "x")
    assert isinstance(envelope, dict)
    signature = bytearray(envelope["signature"])
    signature[5] ^= 1
    return canonical.dumps(envelope | {"signature": bytes(signature)})


def theirs() -> bytes:
    me = another()
    return dataclasses.replace(kit.revocation(kit.consent()), certificate=bytes.fromhex(me.fingerprint)).sign(
        me
    )


WRONG = ProtocolViolation
LIES: dict[str, tuple[Any, Any, str]] = {
    "nothing": (dict, ConsentError, "brought no consent"),
    "another key": (lambda: {"consent": forged()}, ConsentError, "was not given by patient"),
    "flipped": (lambda: {"consent": flipped()}, ConsentError, "the signature of the consent is wrong"),
    "garbled": (lambda: {"consent": b"x"}, WRONG, "consent cannot be read"),
    "cut": (lambda: {"consent": kit.signed(kit.consent())[:-1]}, WRONG, "consent cannot be read"),
    "long": (lambda: {"consent": bytes(1 << 17)}, WRONG, "consent cannot be read"),
    "longer": (lambda: {"consent": bytes(1 << 18)}, WRONG, "statement cannot be read"),
    "text": (lambda: {"consent": "yes"}, WRONG, "statement has no proper consent"),
    "revocation as consent": (
        lambda: {"consent": kit.signed(kit.revocation(kit.consent()))},
        ConsentError,
        "the signature of the consent is wrong",
    ),
    "revocations": (lambda: {"revocations": 1}, WRONG, "no proper revocations"),
    "many": (lambda: {"revocations": [b""] * 17}, WRONG, "no proper revocations"),
    "another's revocation": (lambda: {"revocations": [theirs()]}, WRONG, "a revocation that is not its own"),
    "unknown": (lambda: {"consents": b""}, WRONG, "unknown field 'consents'"),
}


@pytest.mark.parametrize("case", LIES)
def test_every_honest_party_names_the_liar(case: str, tmp_path: Path, monkeypatch: Any) -> None:
    make, kind, message = LIES[case]
    watch = Watch()
    lying(monkeypatch, make())
    outcomes = kit.play(tmp_path, {}, hook=watch).run()
    outcomes.pop(PATIENT)
    check_refused(outcomes, message, kind=kind)
    assert watch.seen == []


def test_nobody_else_brings_a_consent(tmp_path: Path, monkeypatch: Any) -> None:
    one = kit.signed(kit.consent())
    lying(monkeypatch, {"consent": one}, liar="laboratory")
    outcomes = kit.play(tmp_path, one).run()
    outcomes.pop("laboratory")
    check_refused(outcomes, "unknown field 'consent'", culprit="laboratory", kind=ProtocolViolation)


def test_two_consents_told_to_two_parties_convict(tmp_path: Path) -> None:
    """Both are good; before anything that depends on an input leaves, everybody knows."""
    online = []
    key = ReceiverKey.fresh().public
    second = engage.statement({}, key, consents.Brought(kit.signed(kit.consent())))
    session: list[bytes] = []

    def hook(source: str, destination: str, frame: Any) -> Any:
        if frame.kind is Kind.DATA and stage.kind_of(frame)[:2] == ("online", "owner"):
            online.append(frame)
        told = source == PATIENT and frame.kind is Kind.HELLO and frame.step == GREETINGS
        if told and destination == "laboratory":
            return stage.changed(frame, payload=resigned(second, b"run:" + session[0] + bytes(8), PATIENT))
        return None if source == PATIENT and frame.kind is Kind.ABORT else frame

    play = kit.play(tmp_path, kit.signed(kit.consent()), hook=hook)
    play.act = lambda name, party: session.append(party.agreement.digest)
    outcomes = play.run()
    outcomes.pop(PATIENT)
    check_refused(outcomes, "told two parties different things", kind=ProtocolViolation)
    assert online == []


# -- mistakes at home --------------------------------------------------------------------------------


def test_an_owner_without_a_ledger(tmp_path: Path) -> None:
    play = kit.play(tmp_path, kit.signed(kit.consent()), uses=kit.ledgers(tmp_path, OWNERS[:2]))
    check_refused(play.run(), "has no ledger", culprit="laboratory", kind=ConfigError)


def test_a_consent_that_nobody_asks_for(tmp_path: Path) -> None:
    def act(name: str, party: Any) -> None:
        if name == "laboratory":
            party.run(stage.rows()["laboratory"], consent=kit.signed(kit.consent()))

    for base in (stage.manifest(), kit.session()):
        play = kit.play(tmp_path, {"consent": kit.signed(kit.consent())}, base=base, act=act)
        play.openings = {} if base.terms.weights is None else play.openings
        check_refused(
            play.run(), "brings a consent that nobody asks for", culprit="laboratory", kind=ConfigError
        )


def test_a_wrong_opening_stops_its_owner(tmp_path: Path) -> None:
    said: list[str] = []

    def hook(source: str, destination: str, frame: Any) -> Any:
        if source == stage.E1 and frame.kind is Kind.HELLO:
            said.append(stage.kind_of(frame)[2])
        return frame

    wrong = Opening.fresh(bytes(32))
    for openings in ({stage.E1: wrong}, {}):
        said.clear()
        play = kit.play(tmp_path, kit.signed(kit.consent()), openings=openings, hook=hook)
        outcomes = play.run()
        for name, outcome in outcomes.items():
            assert type(outcome.error) is ConfigError, (name, outcome.error)
            assert outcome.error.culprit == stage.E1
        assert "statements" not in said


# -- run_local ---------------------------------------------------------------------------------------


def test_run_local_under_a_consent(tmp_path: Path) -> None:
    keys = {}
    for name in (PATIENT, stage.E1):
        keys[name] = tmp_path / f"{name}.key"
        stage.identity(name).save(keys[name])
    cast = {"helper": "helper", "evaluators": (stage.E1, stage.E2), "model_owner": stage.E1}
    given = {"identities": keys, "opening": kit.opening(), "processes": False, **cast}
    one = kit.consent(receivers={PATIENT: bytes.fromhex(stage.identity(PATIENT).fingerprint)})
    (tmp_path / "consent").write_bytes(kit.signed(one))
    result = run_local(stage.model(), stage.rows(), consent=tmp_path / "consent", **given)
    assert result.outputs["risk"].shape == (1, 2)
    with pytest.raises(ConsentError, match="is for other weights"):
        run_local(stage.model(), stage.rows(), consent=kit.signed(kit.consent(weights=bytes(32))), **given)
    with pytest.raises(ConsentError, match="was not given by patient"):
        run_local(stage.model(), stage.rows(), consent=kit.signed(one), **(given | {"identities": {}}))
    with pytest.raises(ConfigError, match="opening is missing"):
        run_local(stage.model(), stage.rows(), consent=kit.signed(one), **(given | {"opening": None}))
    with pytest.raises(ConfigError, match="backend plain has none"):
        run_local(
            stage.model(), stage.rows(), consent=kit.signed(one), backend="plain", insecure=("plaintext",)
        )
    with pytest.raises(ConfigError, match="consent cannot be read"):
        run_local(stage.model(), stage.rows(), consent=b"x", **given)
