"""The post office's spare parties: what a run goes on without, and what it does not."""

from __future__ import annotations

import threading
import time

import pytest

from privinfer.backends.base import Phase, Receive, Send
from privinfer.errors import PrivinferError, ProtocolViolation, TransportError
from privinfer.runtime.drive import drive
from privinfer.runtime.post import CHUNK, Office
from privinfer.transport import Frame, Kind, MemoryHub
from privinfer.transport.frames import encode_abort

NAMES = ("asker", "one", "two", "three")
CAST = {"model_owner": "asker", **{f"holder:{k}": n for k, n in enumerate(NAMES[1:])}}
ONLINE = Phase.ONLINE


@pytest.fixture
def table():
    """An office of the asker, and endpoints of the others; `one` and `two` are spare."""
    hub = MemoryHub(NAMES)
    office = Office(hub.endpoint("asker"), NAMES, 0.5, CAST, frozenset({"one", "two"}), ordered=True)
    yield hub, office
    office.close()
    hub.close()


def say(hub, source, kind, step=0, payload=b"", phase=Phase.CONTROL, channel=0):
    hub.endpoint(source).send("asker", Frame(kind, phase, channel, step, payload))


def answer(hub, source, step, payload):
    channel = [(a, b) for a in CAST for b in CAST].index((f"holder:{NAMES.index(source) - 1}", "model_owner"))
    say(hub, source, Kind.DATA, step, payload, ONLINE, channel)


def ask(office, *sources, size=3, optional=True):
    """What comes of each source, in this order."""

    def play():
        found = []
        for source in sources:
            role = f"holder:{NAMES.index(source) - 1}"
            found.append((yield Receive(role, 7, size, optional=optional)))
        return found

    return drive({"model_owner": play()}, office, ONLINE)["model_owner"]


def alive(hub, *names):
    """Signs of life of the others, in the background."""
    stop = threading.Event()

    def tick():
        while not stop.wait(0.05):
            for name in names:
                say(hub, name, Kind.ALIVE, payload=b"\xff\xff" + bytes(16))

    thread = threading.Thread(target=tick)
    thread.start()

    def end():
        stop.set()
        thread.join()

    return end


LEAVING = {
    "killed": lambda hub: hub.kill("one"),
    "goodbye": lambda hub: say(hub, "one", Kind.BYE),
    "gave up": lambda hub: say(hub, "one", Kind.ABORT, payload=encode_abort("PI201", "gone", "three")),
    "its own error": lambda hub: say(hub, "one", Kind.ABORT, payload=encode_abort("PI101", "x", "one")),
    "its own fault, of nobody": lambda hub: say(
        hub, "one", Kind.ABORT, payload=encode_abort("PI200", "x", None)
    ),
}


@pytest.mark.parametrize("how", LEAVING)
def test_a_spare_party_may_leave(table, how):
    hub, office = table
    office.begin(0)
    LEAVING[how](hub)
    answer(hub, "two", 7, b"two")
    answer(hub, "three", 7, b"3rd")
    assert ask(office, "one", "two", "three") == [None, b"two", b"3rd"]
    assert office.missing == {"one"}
    assert office.lost("holder:0")
    assert not office.lost("holder:1")
    assert "one" not in office.watch.signs
    office.send("model_owner", Send("holder:0", 9, b"for nobody"), ONLINE)  # not an error
    office.tell(Kind.DONE, Phase.CONTROL, 0)


def test_what_came_before_it_left_counts(table):
    hub, office = table
    office.begin(0)
    answer(hub, "one", 7, b"one")
    hub.kill("one")
    assert ask(office, "one") == [b"one"]


def test_half_a_message_is_none_and_does_not_stop_the_barrier(table):
    hub, office = table
    office.begin(0)
    answer(hub, "one", 7, bytes(CHUNK))
    hub.kill("one")
    assert ask(office, "one", size=2 * CHUNK) == [None]
    for name in ("two", "three"):
        say(hub, name, Kind.DONE)
    assert office.barrier(0).keys() == {"two", "three"}


def test_what_a_lost_party_says_later_is_not_heard(table):
    hub, office = table
    office.begin(0)
    say(hub, "one", Kind.BYE)
    answer(hub, "two", 7, b"two")
    assert ask(office, "one", "two") == [None, b"two"]
    say(hub, "one", Kind.ABORT, payload=encode_abort("PI202", "x", "three"))
    answer(hub, "one", 7, b"one")
    answer(hub, "three", 7, b"3rd")
    assert ask(office, "three") == [b"3rd"]
    for name in ("two", "three"):
        say(hub, name, Kind.DONE)
    assert office.barrier(0).keys() == {"two", "three"}


def test_a_silent_one_is_given_up_after_the_deadline(table):
    hub, office = table
    office.begin(0)
    end = alive(hub, "two", "three")
    started = time.monotonic()
    try:
        assert ask(office, "one") == [None]
    finally:
        end()
    assert 0.5 < time.monotonic() - started < 1.5
    assert office.missing == {"one"}


def test_one_that_lives_but_does_not_answer_is_given_up(table):
    hub, office = table
    office.begin(0)
    end = alive(hub, "one", "two", "three")
    try:
        assert ask(office, "one") == [None]
    finally:
        end()
    assert office.missing == {"one"}


def test_two_are_given_up_in_one_wait(table):
    hub, office = table
    office.begin(0)
    end = alive(hub, "three")
    try:
        assert ask(office, "one", "two") == [None, None]
    finally:
        end()
    assert office.missing == {"one", "two"}


def test_the_next_run_goes_on_without(table):
    hub, office = table
    office.begin(0)
    hub.kill("one")
    assert ask(office, "one") == [None]
    office.begin(1)
    assert ask(office, "one") == [None]


def test_one_that_left_between_two_runs(table):
    hub, office = table
    office.begin(0)
    for name in NAMES[1:]:
        say(hub, name, Kind.DONE)
    say(hub, "one", Kind.BYE)
    say(hub, "two", Kind.ALIVE, payload=b"\xff\xff" + bytes(16))
    office.barrier(0)
    office._until(lambda: "one" in office._gone, lambda: None, 0)
    assert not office.missing  # it had done its part of this run
    office.begin(1)
    assert office.missing == {"one"}


# -- what ends a session all the same ----------------------------------------------------------------


def stops(office, kind, culprit, *sources, **given):
    with pytest.raises(PrivinferError) as caught:
        ask(office, *sources, **given)
    assert type(caught.value) is kind
    assert caught.value.culprit == culprit


def test_before_the_first_run(table):
    hub, office = table
    hub.kill("one")
    stops(office, TransportError, "one", "one")


def test_one_that_is_needed(table):
    hub, office = table
    office.begin(0)
    hub.kill("three")
    stops(office, TransportError, "three", "one")


def test_a_spare_one_that_breaks_the_protocol(table):
    hub, office = table
    office.begin(0)
    answer(hub, "one", 7, b"too long")
    stops(office, ProtocolViolation, "one", "one")


def test_a_spare_one_that_speaks_for_another(table):
    hub, office = table
    office.begin(0)
    say(hub, "one", Kind.DATA, 7, b"two", ONLINE, len(CAST) * 2)
    stops(office, ProtocolViolation, "one", "two")


@pytest.mark.parametrize("code", ["PI202", "PI204"])
def test_a_spare_one_that_saw_another_break_the_protocol(table, code):
    hub, office = table
    office.begin(0)
    say(hub, "one", Kind.ABORT, payload=encode_abort(code, "asked twice", "three"))
    with pytest.raises(PrivinferError, match="asked twice") as caught:
        ask(office, "two")
    assert caught.value.culprit == "three"
    assert caught.value.hint == "this is what one says"


def test_one_that_is_needed_and_gave_up_because_of_a_spare_one(table):
    """Nothing will come of it any more, whomever it blames."""
    hub, office = table
    office.begin(0)
    say(hub, "three", Kind.ABORT, payload=encode_abort("PI201", "was silent", "one"))
    stops(office, TransportError, "one", "two")
    assert not office.missing


def test_several_names_in_one_abort(table):
    hub, office = table
    office.begin(0)
    say(hub, "three", Kind.ABORT, payload=encode_abort("PI201", "too few", "one or two or three"))
    stops(office, TransportError, "one or two or three", "two")


def test_a_message_that_is_not_optional_has_to_come(table):
    hub, office = table
    office.begin(0)
    hub.kill("one")
    stops(office, TransportError, "one", "one", optional=False)


def test_why_a_spare_one_left_is_heard_though_it_takes_nothing_any_more(table):
    hub, office = table
    office.begin(0)
    say(hub, "one", Kind.ABORT, payload=encode_abort("PI202", "asked twice", "three"))
    hub.kill("one")
    office.send("model_owner", Send("holder:0", 9, b"x"), ONLINE)
    office.tell(Kind.DONE, Phase.CONTROL, 0)
    assert not office.missing
    with pytest.raises(ProtocolViolation, match="asked twice") as caught:
        ask(office, "one")
    assert caught.value.culprit == "three"


def test_last_words_of_a_spare_one_change_nothing(table):
    hub, office = table
    office.begin(0)
    error = TransportError("made no progress", culprit="three")
    hub.kill("one")
    say(hub, "two", Kind.BYE)
    assert office.last_words(error) is error
    assert office.missing == {"one", "two"}


# -- whose turn it is --------------------------------------------------------------------------------


def waits(office, wanted, phase=ONLINE):
    """What others are told of a wait."""
    told = {}

    def until(came, awaited, at):
        told["at"], told["whom"] = at, awaited()

    office._until = until
    office.wait(wanted, phase)
    return told["at"], told["whom"]


def test_later_steps_are_later_waits_where_steps_have_an_order(table):
    _, office = table
    office.begin(0)
    first = waits(office, {"model_owner": Receive("holder:0", 5, 1)})
    later = waits(office, {"model_owner": Receive("holder:1", 6, 1)})
    assert first[0] < later[0]
    assert (first[1], later[1]) == ("one", "two")


def test_a_blocked_send_to_a_spare_party_says_whom_it_waits_for(table, monkeypatch):
    _, office = table
    office.begin(0)
    seen = []
    monkeypatch.setattr(office.endpoint, "send", lambda to, frame: seen.append(office.watch.waits_for))
    office.send("model_owner", Send("holder:1", 1, b"x"), ONLINE)
    office.send("model_owner", Send("holder:2", 1, b"x"), ONLINE)
    assert seen == [NAMES.index("two"), 0xFFFF]
    assert office.watch.waits_for == 0xFFFF
