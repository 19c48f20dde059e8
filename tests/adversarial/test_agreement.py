"""The agreement and the engagement: everybody signs the same, or the one who did not is named by all."""

from __future__ import annotations

import datetime as dt
import hashlib

import numpy as np
import pytest

from privinfer.errors import ConfigError, IntegrityError, ProtocolViolation
from privinfer.protocols.commitment import Opening, digest_of, digest_of_weights
from privinfer.protocols.sealing import ReceiverKey
from privinfer.runtime import engage, party
from privinfer.runtime.greeting import SIGNATURES, STATEMENTS
from privinfer.runtime.post import GREETINGS
from privinfer.session import agreement, canonical
from privinfer.session.terms import Terms
from privinfer.transport import Kind
from tests.adversarial import stage
from tests.adversarial.test_liars import everybody

LIAR = "laboratory"


def lying(change, step, to=None, liar=LIAR):
    """A hook that changes what `liar` says in this step, and keeps its own abort back."""

    def hook(source, destination, frame):
        if source == liar and frame.kind is Kind.HELLO and frame.step == step and to in (None, destination):
            return stage.changed(frame, payload=change(bytes(frame.payload)))
        return None if source == liar and frame.kind is Kind.ABORT else frame

    return hook


def resigned(content, context, liar=LIAR):
    """A statement with a good signature, as only its author can make one."""
    signed = b"privinfer/alike/1:" + liar.encode() + b":" + context + hashlib.sha256(content).digest()
    return stage.identity(liar).sign(signed) + content


def seen(play):
    """The agreement of every party of a play."""
    found = {}
    play.act = lambda name, joined: found.update({name: joined.agreement})
    for outcome in play.run().values():
        assert outcome.error is None
    return found


def test_all_hold_the_same_document_with_all_signatures():
    terms = Terms(purpose="care", expires=dt.datetime(2100, 1, 1, tzinfo=dt.UTC))
    found = seen(stage.Play(base=stage.manifest(terms=terms)))
    assert {a.digest for a in found.values()} == {found["patient"].digest}
    for name, one in found.items():
        assert set(one.signatures) == set(stage.NAMES), name
        for signer, signature in one.signatures.items():
            stage.identity(signer).public.verify(one.signed, signature)
    document = canonical.loads(found["patient"].document, "agreement")
    assert document["terms"]["purpose"] == "care"
    assert document["model"]["owner"] == stage.E1
    assert document["inputs"]["xray"] == {"owner": "hospital", "shape": [4], "low": -4.0, "high": 4.0}
    assert document["receivers"] == stage.RECEIVERS
    assert set(document["parties"]) == set(stage.NAMES)


def test_no_two_joins_have_the_same_agreement():
    first, second = seen(stage.Play()), seen(stage.Play())
    assert first["patient"].digest != second["patient"].digest


@pytest.mark.parametrize("at", [0, 63, 64, -1])
@pytest.mark.parametrize("step", [STATEMENTS, SIGNATURES, GREETINGS, GREETINGS + 1])
def test_a_flipped_bit(step, at):
    def flip(data):
        data = bytearray(data)
        data[at] ^= 1
        return bytes(data)

    outcomes = stage.Play(hook=lying(flip, step)).run()
    everybody(outcomes, ProtocolViolation, LIAR, "", but=(LIAR,))


@pytest.mark.parametrize("step", [STATEMENTS, SIGNATURES, GREETINGS, GREETINGS + 1])
@pytest.mark.parametrize("size", [0, 1, 63, 64])
def test_cut_short(step, size):
    outcomes = stage.Play(hook=lying(lambda data: data[:size], step)).run()
    everybody(outcomes, ProtocolViolation, LIAR, "", but=(LIAR,))


def test_two_parties_are_told_different_commitments():
    """Signed by the owner itself: both are good statements, and together they convict it."""
    context = []
    play = stage.Play()

    def note(name, party):
        context.append(b"run:" + party.agreement.digest + bytes(8))

    other = engage.statement({"blood": bytes(32)})
    play.act = note
    play.hook = lying(lambda data: resigned(other, context[0]), GREETINGS, to="patient")
    play.hub.on_frame = play.hook
    everybody(play.run(), ProtocolViolation, LIAR, "different things", but=(LIAR,))


def with_key(monkeypatch, party, key):
    """Let one party say this key in its engagement."""
    original = engage.make_key

    def make_key(private, manifest, name):
        return key if name == party else original(private, manifest, name)

    monkeypatch.setattr(engage, "make_key", make_key)


@pytest.mark.parametrize("key", [None, bytes(32), bytes(31), b"\1" + bytes(31)])
def test_a_receiver_without_a_proper_key(key, monkeypatch):
    """None, a point of low order, too short: its results could be sealed to nobody or to everybody."""
    with_key(monkeypatch, "patient", key)
    everybody(stage.Play().run(), ProtocolViolation, "patient", "key")


def test_a_key_of_a_party_that_receives_nothing(monkeypatch):
    with_key(monkeypatch, LIAR, ReceiverKey.fresh().public)
    everybody(stage.Play().run(), ProtocolViolation, LIAR, "unknown field 'key'")


def test_somebody_else_is_framed():
    """Who shows a statement that nobody made is named, not the party it blames."""

    def blame(data):
        entry = 96 * stage.NAMES.index("hospital")
        return data[:entry] + bytes([data[entry] ^ 1]) + data[entry + 1 :]

    outcomes = stage.Play(hook=lying(blame, GREETINGS + 1)).run()
    everybody(outcomes, ProtocolViolation, LIAR, "nobody made", but=(LIAR,))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        canonical.dumps({}),
        canonical.dumps({"inputs": {}}),
        canonical.dumps({"inputs": {"dna": bytes(32)}}),
        canonical.dumps({"inputs": {"blood": bytes(31)}}),
        canonical.dumps({"inputs": {"blood": 3}}),
        canonical.dumps({"inputs": {"blood": bytes(32)}, "more": 1}),
        canonical.dumps({"inputs": [1]}),
    ],
)
def test_statements_of_another_form(content):
    context = []
    play = stage.Play()
    play.act = lambda name, joined: context.append(b"run:" + joined.agreement.digest + bytes(8))
    play.hook = lying(lambda data: resigned(content, context[0]), GREETINGS)
    play.hub.on_frame = play.hook
    everybody(play.run(), ProtocolViolation, LIAR, "", but=(LIAR,))


def test_another_version_is_named():
    """Both statements are the liar's own, so it is convicted of telling different things."""

    def hook(source, destination, frame):
        if (source, destination, frame.kind, frame.step) == (LIAR, "patient", Kind.HELLO, STATEMENTS):
            data = bytes(frame.payload)
            return stage.changed(frame, payload=data[:64] + agreement.statement("9.9", None))
        return None if source == LIAR and frame.kind is Kind.ABORT else frame

    everybody(stage.Play(hook=hook).run(), ProtocolViolation, LIAR, "", but=(LIAR,))


def test_an_expired_session_starts_no_run():
    gone = Terms(expires=dt.datetime(2026, 1, 1, tzinfo=dt.UTC))
    outcomes = stage.Play(base=stage.manifest(terms=gone)).run()
    for outcome in outcomes.values():
        assert isinstance(outcome.error, ConfigError)
        assert "expired" in str(outcome.error)


def test_the_weights_are_those_of_the_session(monkeypatch):
    """A model owner that commits to others, past its own check."""
    opening = Opening.fresh(b"")
    model = stage.model()
    digest = digest_of_weights(model)
    right = opening.commit("weights", digest, model.architecture.digest()).hex()
    base = stage.manifest(terms=Terms(weights=right))
    for outcome in stage.Play(base=base, openings={stage.E1: opening}).run().values():
        assert outcome.error is None
    other = Opening.fresh(b"")  # another salt, another commitment, and an owner that does not look
    lie = other, other.commit("weights", digest, model.architecture.digest())
    monkeypatch.setattr(party, "commit_to_weights", lambda m, own, opening: None if own is None else lie)
    outcomes = stage.Play(base=base).run()
    everybody(outcomes, ProtocolViolation, stage.E1, "other weights", but=(stage.E1,))


def test_commitments_open_to_what_was_committed_and_to_nothing_else():
    values = np.arange(12.0).reshape(3, 4)
    opening = Opening.fresh(digest_of(values))
    shown = opening.commit("input", digest_of(values), b"session", 7, "xray")
    opening.check(shown, "input", digest_of(values), b"session", 7, "xray")
    for other in (digest_of(values + 1e-12), digest_of(values.reshape(4, 3)), digest_of(values[:2])):
        with pytest.raises(IntegrityError):
            opening.check(shown, "input", other, b"session", 7, "xray")
    for context in ((b"other", 7, "xray"), (b"session", 8, "xray"), (b"session", 7, "dna")):
        with pytest.raises(IntegrityError):
            opening.check(shown, "input", digest_of(values), *context)
    assert Opening.fresh(digest_of(values)).commit("input", digest_of(values), b"session", 7, "xray") != shown
    assert "hidden" in repr(opening)


def test_weights_differ_by_any_number_and_any_place():
    first, second = stage.model(0), stage.model(1)
    assert digest_of_weights(first) == digest_of_weights(first)
    assert digest_of_weights(first) != digest_of_weights(second)
