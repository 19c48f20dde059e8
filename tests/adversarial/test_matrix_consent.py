"""The matrix of consents: expired, revoked, of another purpose, model, receiver, owner, signer; and none."""

from __future__ import annotations

import dataclasses
import time

import pytest

from privinfer.errors import ConsentError, ProtocolViolation
from privinfer.runtime import engage
from privinfer.runtime.consents import Brought
from privinfer.runtime.post import GREETINGS
from privinfer.transport import Kind
from tests.adversarial import stage
from tests.adversarial.tamper import alike
from tests.support import consents as kit

NOW = int(time.time())


def changed(**fields):
    return lambda: kit.signed(kit.consent(**fields))


def cut():
    return kit.signed(kit.consent())[:-1]


def flipped():
    data = bytearray(kit.signed(kit.consent()))
    data[len(data) // 2] ^= 1
    return bytes(data)


def of_another():
    """Signed by a party whose data it is not, in its own name."""
    one = kit.consent()
    who = stage.identity("laboratory")
    mine = dataclasses.replace(one, patient="laboratory", certificate=bytes.fromhex(who.fingerprint))
    return mine.sign(who)


CONSENTS = {
    "expired": changed(not_before=NOW - 200, until=NOW - 100),
    "not yet": changed(not_before=NOW + 10_000, until=NOW + 20_000),
    "purpose": changed(purpose="research"),
    "architecture": changed(architecture=bytes(32)),
    "weights": changed(weights=bytes(32)),
    "receiver": changed(receivers={"patient": bytes(32)}),
    "owner": changed(inputs={"xray": "helper", "dna": "dna_company", "blood": "laboratory"}),
    "fewer inputs": changed(inputs={"xray": "hospital"}),
    "signer": of_another,
    "cut": cut,
    "flipped": flipped,
    "revocation": lambda: kit.signed(kit.revocation(kit.consent())),
    "nothing": lambda: b"",
}


def lying(play, consent, revocations=()):
    """The patient's software has been told to say whatever it likes, signed as it should be."""
    agreed = []
    key = {}

    def hook(source, destination, frame):
        if source != kit.PATIENT:
            if frame.kind is Kind.DATA and stage.kind_of(frame)[:2] == ("online", "owner"):
                leaked.append(source)
            return frame
        if frame.kind is Kind.ABORT:
            return None
        if frame.kind is Kind.HELLO and frame.step == GREETINGS:
            if "it" not in key:
                key["it"] = engage.read(play.base, {kit.PATIENT: bytes(frame.payload[64:])}).keys[kit.PATIENT]
            brought = Brought(consent, tuple(revocations))
            content = engage.statement({}, key["it"], brought)
            context = b"run:" + agreed[0] + bytes(8)
            said = alike(stage.identity(source).sign, source, context, content)
            return stage.changed(frame, payload=said)
        return frame

    leaked = []
    play.hub.on_frame = hook
    play.act = lambda name, party: agreed.append(party.agreement.digest)
    return leaked


def refused(outcomes, leaked, *kinds):
    for name, outcome in outcomes.items():
        assert outcome.outputs is None
        if name != kit.PATIENT:
            assert type(outcome.error) in kinds, (name, outcome.error)
            assert outcome.error.culprit == kit.PATIENT, (name, outcome.error)
    assert not leaked


@pytest.mark.parametrize("what", CONSENTS)
def test_a_consent_that_is_none(tmp_path, what, record_property):
    record_property("cells", [1, 0])
    play = kit.play(tmp_path, kit.signed(kit.consent()))
    leaked = lying(play, CONSENTS[what]())
    refused(play.run(), leaked, ConsentError, ProtocolViolation)


@pytest.mark.parametrize("owner", kit.OWNERS)
def test_revoked_at_one_owner(tmp_path, owner, record_property):
    record_property("cells", [1, 0])
    one = kit.consent()
    play = kit.play(tmp_path, kit.signed(one))
    leaked = lying(play, kit.signed(one))
    taken = kit.revocation(one)
    play.uses[owner].revoke(taken, kit.signed(taken))
    refused(play.run(), leaked, ConsentError)


def test_revoked_as_it_is_brought(tmp_path, record_property):
    record_property("cells", [1, 0])
    one = kit.consent()
    play = kit.play(tmp_path, kit.signed(one))
    leaked = lying(play, kit.signed(one), [kit.signed(kit.revocation(one))])
    refused(play.run(), leaked, ConsentError)


def test_a_good_one_is_taken(tmp_path):
    """The liar of these tests can tell the truth too."""
    one = kit.signed(kit.consent())
    play = kit.play(tmp_path, one)
    leaked = lying(play, one)
    outcomes = play.run()
    assert not [o.error for n, o in outcomes.items() if n != kit.PATIENT and o.error], outcomes
    assert set(leaked) == set(kit.OWNERS)
