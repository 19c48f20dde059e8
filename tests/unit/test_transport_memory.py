"""The memory hub, its hook for tests, and the delaying wrapper."""

import threading
import time

import pytest

from privinfer.errors import ConfigError, ProtocolViolation, TransportError
from privinfer.transport import HEADER_BYTES, Delayed, Frame, Kind, MemoryHub
from privinfer.transport.endpoint import Counters, Inbox


def data(payload=b"", step=0, phase=0):
    return Frame(Kind.DATA, phase, 0, step, payload)


BYE = Frame(Kind.BYE, 0, 0, 0)


@pytest.fixture
def hub():
    hub = MemoryHub(["a", "b", "c"])
    yield hub
    hub.close()


def lost(endpoint, culprit):
    with pytest.raises(TransportError, match="connection lost") as caught:
        endpoint.receive(1)
    assert caught.value.culprit == culprit


def test_send_and_receive(hub):
    a, b = hub.endpoint("a"), hub.endpoint("b")
    assert (a.name, a.peers) == ("a", ("b", "c"))
    assert hub.endpoint("a") is a
    for step in range(5):
        a.send("b", data(b"x", step))
    hub.endpoint("c").send("b", data(b"y"))
    got = [b.receive(1) for _ in range(6)]
    assert [f.step for p, f in got if p == "a"] == list(range(5))
    with pytest.raises(TimeoutError):
        b.receive(0.01)
    with pytest.raises(TimeoutError):
        b.receive(0)
    with pytest.raises(ConfigError):
        a.send("a", data())
    with pytest.raises(ConfigError):
        hub.endpoint("z")
    with pytest.raises(ConfigError):
        MemoryHub(["a", "a"])


def test_payloads_are_copied(hub):
    buffer = bytearray(b"before")
    hub.endpoint("a").send("b", data(memoryview(buffer)))
    buffer[:] = b"after!"
    assert bytes(hub.endpoint("b").receive(1)[1].payload) == b"before"


def test_counters(hub):
    a, b = hub.endpoint("a"), hub.endpoint("b")
    a.send("b", data(b"12345", phase=2))
    a.send("b", data(b"", phase=1))
    a.send("c", data(b"1", phase=2))
    assert a.counters.bytes_sent == {
        ("b", 2): HEADER_BYTES + 5,
        ("b", 1): HEADER_BYTES,
        ("c", 2): HEADER_BYTES + 1,
    }
    assert b.counters.bytes_received == {("a", 2): HEADER_BYTES + 5, ("a", 1): HEADER_BYTES}
    assert a.counters.total("frames_sent") == 3
    assert a.counters.total("bytes_sent", phase=2) == 2 * HEADER_BYTES + 6
    assert a.counters.total("bytes_sent", peer="b") == 2 * HEADER_BYTES + 5
    assert b.counters.snapshot()["frames_received"] == {("a", 2): 1, ("a", 1): 1}


def test_hook_records_alters_and_drops(hub):
    seen = []

    def hook(source, destination, frame):
        seen.append((source, destination, frame.step))
        if frame.step == 1:
            return None
        return data(b"altered", frame.step) if frame.step == 2 else frame

    hub.on_frame = hook
    for step in range(4):
        hub.endpoint("a").send("b", data(b"x", step))
    got = [hub.endpoint("b").receive(1)[1] for _ in range(3)]
    assert [(f.step, f.payload) for f in got] == [(0, b"x"), (2, b"altered"), (3, b"x")]
    assert seen == [("a", "b", step) for step in range(4)]


def test_kill(hub):
    a, b, c = (hub.endpoint(name) for name in "abc")
    a.send("b", data(b"last"))
    hub.kill("a")
    hub.kill("a")
    assert b.receive(1)[1].payload == b"last"
    lost(b, "a")
    lost(c, "a")
    with pytest.raises(TimeoutError):  # reported once
        b.receive(0.01)
    with pytest.raises(TransportError) as caught:
        b.send("a", data())
    assert caught.value.culprit == "a"
    for call in (lambda: a.send("b", data()), lambda: a.receive(1)):
        with pytest.raises(TransportError, match="closed"):
            call()
    b.send("c", data(b"on"))
    assert c.receive(1)[1].payload == b"on"


def test_kill_in_the_hook(hub):
    def hook(source, destination, frame):
        if frame.step == 3:
            hub.kill("c")
        return frame

    hub.on_frame = hook
    hub.endpoint("a").send("b", data(step=3))
    lost(hub.endpoint("a"), "c")


def test_bye_makes_the_end_silent(hub):
    a, b = hub.endpoint("a"), hub.endpoint("b")
    a.send("b", BYE)
    a.close()
    assert b.receive(1) == ("a", BYE)
    with pytest.raises(TimeoutError):
        b.receive(0.01)
    b.send("a", BYE)  # leave-taking may cross
    with pytest.raises(TransportError):
        b.send("a", data())
    lost(hub.endpoint("c"), "a")


def test_nothing_may_follow_bye(hub):
    a, b = hub.endpoint("a"), hub.endpoint("b")
    a.send("b", BYE)
    a.send("b", data())
    a.send("b", data())
    assert b.receive(1) == ("a", BYE)
    with pytest.raises(ProtocolViolation, match="after bye") as caught:
        b.receive(1)
    assert caught.value.culprit == "a"
    with pytest.raises(TimeoutError):
        b.receive(0.01)


def test_close_wakes_a_receiver(hub):
    a = hub.endpoint("a")
    timer = threading.Timer(0.05, a.close)
    timer.start()
    with pytest.raises(TransportError, match="closed"):
        a.receive(10)
    timer.join()


def test_a_flood_waits_at_the_senders_side():
    inbox = Inbox(Counters(), 10_000)
    thread = threading.Thread(target=lambda: [inbox.frame("a", data(bytes(900), i)) for i in range(50)])
    thread.start()
    time.sleep(0.1)
    assert thread.is_alive()
    assert inbox._waiting["a"] <= 10_000
    inbox.frame("b", data(bytes(50_000)))  # others are not held up, and one frame always fits
    steps = [f.step for p, f in (inbox.get(1) for _ in range(51)) if p == "a"]
    assert steps == list(range(50))
    thread.join(1)
    assert not thread.is_alive()


def test_a_big_frame_is_let_in_once_there_is_room():
    inbox = Inbox(Counters(), 10_000)
    inbox.frame("a", data(bytes(2_000)))
    thread = threading.Thread(target=inbox.frame, args=("a", data(bytes(9_000))))
    thread.start()
    time.sleep(0.05)
    assert thread.is_alive()
    inbox.get(1)
    assert len(inbox.get(1)[1].payload) == 9_000
    thread.join(1)


def test_close_frees_a_blocked_reader():
    inbox = Inbox(Counters(), 1_000)
    inbox.frame("a", data(bytes(900)))
    thread = threading.Thread(target=inbox.frame, args=("a", data(bytes(900))))
    thread.start()
    time.sleep(0.02)
    inbox.close()
    thread.join(1)
    assert not thread.is_alive()


# -- delayed ---------------------------------------------------------------------------------------


def test_latency_and_order(hub):
    a, b = Delayed(hub.endpoint("a"), 0.2), hub.endpoint("b")
    start = time.monotonic()
    for step in range(20):
        a.send("b", data(step=step))
    assert time.monotonic() - start < 0.2
    steps = [b.receive(1)[1].step for _ in range(20)]
    took = time.monotonic() - start
    assert steps == list(range(20))
    assert 0.2 <= took < 20 * 0.2  # all on their way at once
    assert a.counters is hub.endpoint("a").counters
    a.close()


def test_rate(hub):
    a, b = Delayed(hub.endpoint("a"), 0.01, 8e5), hub.endpoint("b")  # a hundred thousand bytes a second
    start = time.monotonic()
    for step in range(2):
        a.send("b", data(bytes(50_000 - HEADER_BYTES), step))
    a.send("c", data())  # another link, not held up
    hub.endpoint("c").receive(1)
    assert time.monotonic() - start < 0.5
    b.receive(5)
    assert time.monotonic() - start >= 0.51
    b.receive(5)
    assert time.monotonic() - start >= 1.01
    a.close()


def test_delayed_payloads_are_copied(hub):
    a, buffer = Delayed(hub.endpoint("a"), 0.02), bytearray(b"before")
    a.send("b", data(memoryview(buffer)))
    buffer[:] = b"after!"
    assert bytes(hub.endpoint("b").receive(1)[1].payload) == b"before"
    a.close()


def test_close_delivers_what_is_on_its_way(hub):
    a, b = Delayed(hub.endpoint("a"), 0.2), hub.endpoint("b")
    before = threading.active_count()
    a.send("b", data(b"last"))
    a.close()
    a.close()
    assert threading.active_count() == before - 2
    assert b.receive(0)[1].payload == b"last"
    lost(b, "a")
    with pytest.raises(TransportError, match="closed"):
        a.send("b", data())


def test_errors_come_with_the_next_send(hub):
    a = Delayed(hub.endpoint("a"), 0.01)
    hub.kill("b")
    a.send("b", data())
    time.sleep(0.05)
    with pytest.raises(TransportError) as caught:
        a.send("b", data())
    assert caught.value.culprit == "b"
    a.send("c", data())
    lost(a, "b")
    a.close()
    for bad in ((-1, None), (0, 0), (0, -5)):
        with pytest.raises(ConfigError):
            Delayed(hub.endpoint("c"), *bad)
