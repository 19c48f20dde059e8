"""Coming back after a crash: when a party joins again, and when it must not."""

from __future__ import annotations

import contextlib
import time

import pytest

from privinfer.backends.base import Phase, Send
from privinfer.errors import (
    ConfigError,
    ConsentError,
    InputError,
    IntegrityError,
    ProtocolViolation,
    ReplayError,
    TransportError,
)
from privinfer.runtime import attend as module
from privinfer.runtime.attend import attend
from privinfer.runtime.post import Office
from privinfer.transport import Frame, Kind, MemoryHub, encode_abort
from tests.adversarial import stage


class Member:
    """A party that ends as it is told."""

    def __init__(self, end, online=False):
        self.report = {"inference": 0}
        self.end, self.may_begin_again = end, lambda: not online

    def run(self, inputs, *, consent, revocations):
        if isinstance(self.end, Exception):
            raise self.end
        return self.end


class Joins:
    """A session whose joins end, one after another, as they are told: an error, or a member."""

    def __init__(self, *ends):
        self.ends, self.count = list(ends), 0

    def join(self, name, identity, **options):
        self.count += 1
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return contextlib.nullcontext(end)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)


def lost(culprit="helper"):
    return TransportError("connection lost", culprit=culprit)


def test_joins_again_until_it_goes_well():
    session = Joins(lost(), Member(lost("hospital")), Member("answer"))
    done = attend(session, "patient", "key", attempts=3)
    assert done.result == "answer"
    assert [e.culprit for e in done.lost] == ["helper", "hospital"]


def test_not_once_anything_went_online():
    session = Joins(Member(lost(), online=True), Member("answer"))
    with pytest.raises(TransportError) as caught:
        attend(session, "patient", "key", attempts=3)
    assert session.count == 1
    assert caught.value.culprit == "helper"


@pytest.mark.parametrize(
    "kind", [ProtocolViolation, IntegrityError, ReplayError, ConsentError, ConfigError, InputError]
)
@pytest.mark.parametrize("joined", [False, True])
def test_never_after_another_error(kind, joined):
    error = kind("x", culprit="helper")
    session = Joins(Member(error) if joined else error, Member("answer"))
    with pytest.raises(kind):
        attend(session, "patient", "key", attempts=3)
    assert session.count == 1


def test_who_was_lost_is_named_and_not_who_stayed_away_afterwards():
    session = Joins(Member(lost("hospital")), lost("startup"), lost("startup"))
    with pytest.raises(TransportError) as caught:
        attend(session, "patient", "key", attempts=3)
    assert session.count == 3
    assert caught.value.culprit == "hospital"
    assert "attempt 1 of 3" in caught.value.hint


@pytest.mark.parametrize("attempts", [0, -1, 101])
def test_a_number_of_attempts_that_cannot_be(attempts):
    with pytest.raises(ConfigError):
        attend(Joins(), "patient", "key", attempts=attempts)


# -- what counts as online -------------------------------------------------------------------------


@pytest.fixture
def office():
    hub = MemoryHub(stage.NAMES)
    one = Office(hub.endpoint("hospital"), stage.NAMES, 5.0, stage._cast())
    yield one
    one.close()
    hub.close()


@pytest.mark.parametrize(
    ("phase", "online"), [(Phase.SETUP, False), (Phase.OFFLINE, False), (Phase.ONLINE, True)]
)
@pytest.mark.parametrize("sends", [False, True])
def test_what_is_sent_or_comes(office, phase, online, sends):
    pair = ("evaluator2", "evaluator1") if sends else ("evaluator1", "evaluator2")
    if sends:
        office.send(pair[0], Send(pair[1], 3, b"x"), phase)
    else:
        office._sort("startup", Frame(Kind.DATA, phase, office._channels[pair], 3, b"x"))
    assert office.online is online


def test_a_message_to_a_role_of_its_own_stays_here(office):
    office.send("evaluator2", Send("owner:hospital", 3, b"x"), Phase.ONLINE)
    assert not office.online


@pytest.mark.parametrize("online", [False, True])
def test_who_gives_up_says_whether_it_had_gone_online(online):
    hub = MemoryHub(stage.NAMES)
    one, other = (Office(hub.endpoint(n), stage.NAMES, 5.0, stage._cast()) for n in ("hospital", "helper"))
    try:
        one.online = online
        one.abort(TransportError("connection lost", culprit="startup"))
        with pytest.raises(TransportError):
            other._sort(*other.endpoint.receive(1.0))
        assert other.online is online
    finally:
        one.close()
        other.close()
        hub.close()


@pytest.mark.parametrize("online", [False, True])
def test_the_last_words_of_all_are_heard(online):
    """The first that gives up had not gone online; another one had."""
    hub = MemoryHub(stage.NAMES)
    own = Office(hub.endpoint("helper"), stage.NAMES, 5.0, stage._cast())
    try:
        for name in ("hospital", "patient", "startup"):
            said = encode_abort("PI201", "connection lost", "laboratory")
            step = int(online and name == "startup")
            hub.endpoint(name).send("helper", Frame(Kind.ABORT, Phase.CONTROL, 0, step, said))
        hub.kill("laboratory")
        hub.kill("dna_company")
        began = time.monotonic()
        own.hear_out()
        assert own.online is online
        assert time.monotonic() - began < 0.5
    finally:
        own.close()
        hub.close()


def test_a_run_that_ended_well_was_online_everywhere_but_where_nothing_depends_on_inputs():
    seen = {}
    play = stage.Play(act=lambda name, party: seen.update({name: party}))
    assert not [o.error for o in play.run().values() if o.error]
    assert {n for n, p in seen.items() if not p._office.online} <= {stage.H}
