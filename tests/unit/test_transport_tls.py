"""The TLS mesh on loopback: what must work, and every way a party or a stranger can spoil it."""

import contextlib
import gc
import os
import secrets
import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from privinfer.errors import ConfigError, PrivinferError, ProtocolViolation, ReplayError, TransportError
from privinfer.session import Identity
from privinfer.transport import HEADER_BYTES, Frame, Kind, connect, decode_abort
from privinfer.transport import link as link_module
from privinfer.transport.frames import encode

NAMES = ("alpha", "beta", "gamma", "delta")
IDENTITIES = {name: Identity.generate(name) for name in (*NAMES, "mallory")}
SESSION = secrets.token_bytes(16)
BYE = Frame(Kind.BYE, 0, 0, 0)


def data(payload=b"", step=0, phase=0):
    return Frame(Kind.DATA, phase, 0, step, payload)


def listening():
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen(64)
    return sock


class Net:
    """Addresses with listening sockets, so that no test races for a port."""

    def __init__(self, names=NAMES):
        self.names = names
        self.listeners = {name: listening() for name in names}
        self.parties = [
            (name, *self.listeners[name].getsockname(), IDENTITIES[name].certificate_pem) for name in names
        ]

    def connect(self, name, timeout=10.0, **options):
        options = {"parties": self.parties, "session": SESSION, "identity": IDENTITIES[name]} | options
        identity = options.pop("identity")
        return connect(
            name,
            identity.private_pem(),
            options.pop("parties"),
            options.pop("session"),
            timeout,
            self.listeners[name],
            **options,
        )

    def mesh(self, **options):
        with ThreadPoolExecutor(len(self.names)) as pool:
            jobs = {name: pool.submit(self.connect, name, **options) for name in self.names}
            return {name: job.result() for name, job in jobs.items()}

    def close(self):
        for listener in self.listeners.values():
            listener.close()


@pytest.fixture(autouse=True)
def nothing_left():
    """No thread and no file descriptor survives a test."""
    gc.collect()
    fds, threads = set(os.listdir("/proc/self/fd")), set(threading.enumerate())
    yield
    gc.collect()
    until = time.monotonic() + 10
    while set(threading.enumerate()) - threads and time.monotonic() < until:
        time.sleep(0.01)
    assert set(threading.enumerate()) - threads == set()
    assert len(os.listdir("/proc/self/fd")) == len(fds)


@pytest.fixture
def net():
    with contextlib.closing(Net()) as net:
        yield net


@pytest.fixture
def pair():
    with contextlib.closing(Net(NAMES[:2])) as net:
        ends = net.mesh()
        yield ends["alpha"], ends["beta"]
        for end in ends.values():
            end.close()


def close_all(ends):
    for end in ends.values():
        end.close()


def refused(pattern, culprit, call, error=TransportError):
    with pytest.raises(error, match=pattern) as caught:
        call()
    assert type(caught.value) is error
    assert caught.value.culprit == culprit
    return caught.value


# -- what must work --------------------------------------------------------------------------------


def test_full_mesh_and_order(net):
    ends = net.mesh()
    assert ends["gamma"].peers == ("alpha", "beta", "delta")

    def run(end):
        got = {peer: [] for peer in end.peers}
        for step in range(100):
            for peer in end.peers:
                end.send(peer, data(f"{end.name}>{peer}".encode() * (step % 7), step, phase=1))
        for peer in end.peers:
            end.send(peer, BYE)
        byes = set()
        for _ in range(303):
            peer, frame = end.receive(5)
            if frame.kind is Kind.BYE:
                byes.add(peer)
                continue
            assert bytes(frame.payload) == f"{peer}>{end.name}".encode() * (frame.step % 7)
            got[peer].append(frame.step)
        assert byes == set(end.peers)
        with pytest.raises(TimeoutError):
            end.receive(0.05)
        start = time.monotonic()
        end.close()
        end.close()
        assert time.monotonic() - start < 5
        return got

    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(run, ends.values()):
            assert all(steps == list(range(100)) for steps in got.values())
    sent, received = ends["alpha"].counters, ends["delta"].counters
    size = sum(HEADER_BYTES + len("alpha>delta") * (step % 7) for step in range(100))
    assert sent.bytes_sent["delta", 1] == received.bytes_received["alpha", 1] == size
    assert sent.frames_sent["delta", 1] == received.frames_received["alpha", 1] == 100
    assert sent.frames_sent["delta", 0] == 1  # the greeting of the transport is not counted, BYE is
    assert ends["alpha"].refused == ()


def test_large_payloads_both_ways_at_once(pair):
    blobs = [secrets.token_bytes(50_000_000) for _ in pair]

    def run(me, other, out, expected):
        me.send(other, data(out))
        peer, frame = me.receive(30)
        return peer == other and frame.payload == expected

    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(run, pair[0], "beta", blobs[0], blobs[1]),
            pool.submit(run, pair[1], "alpha", blobs[1], blobs[0]),
        ]
        assert all(job.result() for job in jobs)


@pytest.mark.parametrize("size", [0, 1, 16347, 16348, 16349, 16384, 262143, 278491, 278492, 278493, 1 << 20])
def test_sizes_at_the_borders(pair, size):
    payload = secrets.token_bytes(size)
    pair[0].send("beta", data(payload, 1))
    pair[0].send("beta", data(b"next", 2))
    assert pair[1].receive(5)[1] == data(payload, 1)
    assert pair[1].receive(5)[1] == data(b"next", 2)


def test_many_senders_do_not_mix(pair):
    a, b = pair
    threads = [
        threading.Thread(target=lambda i=i: [a.send("beta", data(bytes([i]) * 40_000, i)) for _ in range(10)])
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for _ in range(80):
        _, frame = b.receive(5)
        assert frame.payload == bytes([frame.step]) * 40_000
    for thread in threads:
        thread.join()


def test_the_wire_shows_no_plaintext_and_no_name():
    """A relay between two parties sees TLS 1.3 only: neither payload, nor session, nor party names."""
    with contextlib.closing(Net(NAMES[:2])) as net:
        relay, seen = listening(), []

        def pump(source, sink):
            with contextlib.suppress(OSError):
                while chunk := source.recv(65536):
                    seen.append(chunk)
                    sink.sendall(chunk)
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)

        def run():
            inner, _ = relay.accept()
            outer = socket.create_connection(net.parties[0][1:3])
            back = threading.Thread(target=pump, args=(outer, inner))
            back.start()
            pump(inner, outer)
            back.join()
            inner.close()
            outer.close()

        thread = threading.Thread(target=run)
        thread.start()
        detour = [("alpha", *relay.getsockname(), net.parties[0][3]), net.parties[1]]
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(net.connect, "alpha"), pool.submit(net.connect, "beta", parties=detour)]
            a, b = (job.result() for job in jobs)
        b.send("alpha", data(b"my secret share"))
        assert a.receive(5)[1].payload == b"my secret share"
        close_all({"a": a, "b": b})
        thread.join()
        relay.close()
        wire = b"".join(seen)
        for word in (b"secret", b"PVI1", b"alpha", b"beta", SESSION):
            assert word not in wire


def test_own_address_is_bound_when_no_listener_is_given(net):
    free = listening()
    address = free.getsockname()
    free.close()
    parties = [("alpha", *address, net.parties[0][3]), net.parties[1]]
    with ThreadPoolExecutor(2) as pool:
        late = pool.submit(connect, "beta", IDENTITIES["beta"].private_pem(), parties, SESSION, 10)
        time.sleep(0.1)  # the dialler meets a closed port first and tries again
        a = connect("alpha", IDENTITIES["alpha"].private_pem(), parties, SESSION, 10)
        b = late.result()
    a.send("beta", data(b"hello"))
    assert b.receive(5)[1].payload == b"hello"
    a.close()
    b.close()


def test_key_log_is_ignored(tmp_path, monkeypatch):
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    with contextlib.closing(Net(NAMES[:2])) as net:
        close_all(net.mesh())
    assert not (tmp_path / "keys").exists()


def test_key_file_elsewhere_is_private_and_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(link_module.sys, "platform", "other")
    monkeypatch.setattr(link_module.tempfile, "tempdir", str(tmp_path))
    with link_module._anonymous_file(b"secret") as path:
        assert os.stat(path).st_mode & 0o777 == 0o600
        with open(path, "rb") as file:
            assert file.read() == b"secret"
    assert list(tmp_path.iterdir()) == []


# -- leaving ---------------------------------------------------------------------------------------


def test_end_after_bye_is_silent_and_byes_may_cross(pair):
    a, b = pair
    a.send("beta", BYE)
    a.close()
    assert b.receive(5) == ("alpha", BYE)
    with pytest.raises(TimeoutError):
        b.receive(0.1)
    for _ in range(3):
        b.send("alpha", BYE)
        time.sleep(0.01)
    refused("connection lost", "alpha", lambda: b.send("alpha", data()))


def test_end_without_bye_names_the_lost(net):
    ends = net.mesh()
    ends["beta"].send("alpha", data(b"last"))
    ends["beta"].close()
    assert ends["alpha"].receive(5)[1].payload == b"last"
    for name in ("alpha", "gamma", "delta"):
        refused("connection lost", "beta", lambda name=name: ends[name].receive(5))
        with pytest.raises(TimeoutError):
            ends[name].receive(0.02)
    ends["gamma"].send("delta", data(b"still here"))
    assert ends["delta"].receive(5)[1].payload == b"still here"
    close_all(ends)


def test_death_in_the_middle_of_a_frame(net):
    """One party dies while it sends; every other names it, as does a sender that was writing to it."""
    ends = net.mesh()
    link = ends["delta"]._links["alpha"]
    whole = encode(data(bytes(3_000_000)), SESSION)
    link._push(memoryview(whole)[:1_000_000])
    for dying in ends["delta"]._links.values():
        dying.shutdown()
    for name in ("alpha", "beta", "gamma"):
        refused("connection lost", "delta", lambda name=name: ends[name].receive(5))
        refused(
            "connection lost", "delta", lambda name=name: ends[name].send("delta", data(bytes(10_000_000)))
        )
    close_all(ends)


def test_an_abort_sent_last_arrives(net):
    """Also when the aborting party closes at once and had unread data waiting."""
    ends = net.mesh()
    for name in ("beta", "gamma", "delta"):
        for _ in range(20):
            ends[name].send("alpha", data(bytes(100_000)))
    abort = Frame(Kind.ABORT, 0, 0, 0, b"why")
    for peer in ends["alpha"].peers:
        ends["alpha"].send(peer, abort)
    ends["alpha"].close()
    for name in ("beta", "gamma", "delta"):
        assert ends[name].receive(5) == ("alpha", abort)
        refused("connection lost", "alpha", lambda name=name: ends[name].receive(5))
    close_all(ends)


def test_a_peer_that_reads_nothing_is_named():
    with contextlib.closing(Net(NAMES[:2])) as net:
        ends = net.mesh(stall_timeout=0.3, max_frame=1 << 20)
        a, b = ends["alpha"], ends["beta"]
        start = time.monotonic()

        def flood():
            for _ in range(1000):  # beta's inbox takes two frames, the kernel a few more
                a.send("beta", data(bytes(1 << 20)))

        refused("took nothing for 0.3 s", "beta", flood)
        assert time.monotonic() - start < 5
        assert b._inbox._waiting["alpha"] <= 2 << 20
        close_all(ends)


def test_signs_of_life_do_not_wait():
    """Neither behind a sender that is at it, nor for a peer that leaves no room."""
    with contextlib.closing(Net(NAMES[:2])) as net:
        ends = net.mesh(stall_timeout=1.0, max_frame=1 << 20)
        a, sign = ends["alpha"], Frame(Kind.ALIVE, 0, 0, 0, b"x")
        assert a.send_if_idle("beta", sign)
        assert ends["beta"].receive(5) == ("alpha", sign)

        def flood():
            with contextlib.suppress(TransportError):
                while True:
                    a.send("beta", data(bytes(1 << 20)))

        thread = threading.Thread(target=flood)
        thread.start()
        time.sleep(0.3)
        start = time.monotonic()
        assert not a.send_if_idle("beta", sign)
        assert time.monotonic() - start < 2
        thread.join()
        close_all(ends)


def test_a_full_line_is_not_waited_for():
    with contextlib.closing(Net(NAMES[:2])) as net:
        ends = net.mesh(stall_timeout=30.0, max_frame=1 << 20)
        a, sent = ends["alpha"], 0
        while sent < 100_000 and a.send_if_idle("beta", data(bytes(10_000))):
            sent += 1
        assert 0 < sent < 100_000
        assert ends["beta"].receive(5)[0] == "alpha"
        close_all(ends)


def test_the_certificate_may_stand_twice(net):
    both = [(n, IDENTITIES[n].private_pem() + IDENTITIES[n].certificate_pem.encode()) for n in NAMES[:2]]
    with ThreadPoolExecutor(2) as pool:
        jobs = [
            pool.submit(connect, n, pem, net.parties[:2], SESSION, 5, net.listeners[n]) for n, pem in both
        ]
        a, b = (job.result() for job in jobs)
    a.send("beta", data(b"hi"))
    assert b.receive(5)[1].payload == b"hi"
    close_all({"a": a, "b": b})


def test_close_wakes_a_receiver_and_ends_calls(pair):
    a, _ = pair
    timer = threading.Timer(0.05, a.close)
    timer.start()
    refused("closed", None, lambda: a.receive(10))
    timer.join()
    refused("closed", None, lambda: a.send("beta", data()))
    refused("closed", None, lambda: a.receive(1))
    refused("no peer", None, lambda: a.send("gamma", data()), ConfigError)


# -- lies over an authenticated connection ---------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "error", "message"),
    [
        (b"GET / HTTP/1.1\r\nHost: beta\r\n\r\nmore of it", ProtocolViolation, "no frame"),
        (encode(data(b"x"), bytes(16)), ReplayError, "another session"),
        (encode(BYE, SESSION) + encode(data(), SESSION), ProtocolViolation, "after bye"),
        (encode(data(), SESSION)[:-8] + b"\xff" * 8, ProtocolViolation, "above the cap"),
        (encode(data(), SESSION)[:4] + b"\x09" + encode(data(), SESSION)[5:], ProtocolViolation, "kind"),
    ],
    ids=[
        "http",
        "another session",
        "after bye",
        "above the cap",
        "unknown kind",
    ],  # the bytes are new each time
)
def test_garbage(pair, raw, error, message):
    a, b = pair
    a.send("beta", data(b"fine"))
    a._links["beta"]._push(raw)
    assert b.receive(5)[1].payload == b"fine"
    if raw[4] == Kind.BYE:
        assert b.receive(5) == ("alpha", BYE)
    refused(message, "alpha", lambda: b.receive(5), error)
    with contextlib.suppress(TransportError):
        a._links["beta"]._push(encode(data(b"ignored"), SESSION))
    with pytest.raises(TimeoutError):
        b.receive(0.05)
    b.send("alpha", Frame(Kind.ABORT, 0, 0, 0, b"you lie"))  # it can still be told
    assert a.receive(5)[1].payload == b"you lie"
    b.close()  # first, so that the liar's close has nobody to wait for


def test_truncation_after_bye_is_not_silent(pair):
    a, b = pair
    a._links["beta"]._push(encode(BYE, SESSION) + b"PVI1")
    a._links["beta"].finish()
    assert b.receive(5) == ("alpha", BYE)
    refused("connection lost", "alpha", lambda: b.receive(5))


def test_bytes_changed_on_the_way(pair):
    a, b = pair
    a._links["beta"]._sock.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))  # a record that does not decrypt
    refused("connection broken", "alpha", lambda: b.receive(5))


# -- connecting ------------------------------------------------------------------------------------


def test_missing_parties_are_named_within_the_deadline(net):
    """Beta and delta never come. Those that came agree on it, each on its own list."""
    with ThreadPoolExecutor(2) as pool:
        start = time.monotonic()
        jobs = [pool.submit(net.connect, name, timeout=0.6) for name in ("alpha", "gamma")]
        for job in jobs:
            error = refused("beta.*, delta.* did not connect within 0.6 s", "beta", job.result)
            assert "0 strangers were refused" in str(error)
        assert time.monotonic() - start < 6


def test_whoever_connected_is_told_who_is_missing():
    """Beta needs alpha only; alpha waits for gamma too: beta hears from alpha that gamma is missing."""
    with contextlib.closing(Net(NAMES[:3])) as net:
        short = net.parties[:2]
        pool = ThreadPoolExecutor(2)
        first = pool.submit(net.connect, "alpha", timeout=0.6)
        end = pool.submit(net.connect, "beta", parties=short).result()
        refused("gamma did not connect", "gamma", first.result)
        peer, frame = end.receive(5)
        abort = decode_abort(frame.payload, peer)
        assert (peer, frame.kind, abort.code, abort.culprit) == ("alpha", Kind.ABORT, "PI201", "gamma")
        refused("connection lost", "alpha", lambda: end.receive(5))
        end.close()
        pool.shutdown()


def test_strangers_do_not_hold_up_the_mesh(net, monkeypatch):
    monkeypatch.setattr("privinfer.transport.mesh._MAX_PENDING", 8)
    address = net.parties[0][1:3]
    pool = ThreadPoolExecutor(1)
    job = pool.submit(net.connect, "alpha")
    idle = [socket.create_connection(address) for _ in range(30)]  # more than may wait
    with socket.create_connection(address) as sock:
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        while sock.recv(4096):
            pass
    mallory = IDENTITIES["mallory"]
    parties = [net.parties[0], ("mallory", "127.0.0.1", 1, mallory.certificate_pem)]
    refused(
        "refused this party's certificate",
        "alpha",
        lambda: connect("mallory", mallory.private_pem(), parties, SESSION, 5),
    )
    with ThreadPoolExecutor(3) as others:
        ends = list(others.map(net.connect, NAMES[1:]))
    ends.append(job.result())
    alpha = ends[-1]
    assert alpha.refused_count >= 20
    assert any("certificate" in why for why in alpha.refused)
    for sock in idle:
        sock.close()
    for end in ends:
        end.close()
    pool.shutdown()


def test_strangers_are_counted_when_a_party_is_missing():
    with contextlib.closing(Net(NAMES[:2])) as net:
        pool = ThreadPoolExecutor(1)
        job = pool.submit(net.connect, "alpha", timeout=0.8)
        for _ in range(3):
            with socket.create_connection(net.parties[0][1:3]) as sock:
                sock.sendall(b"x" * 100)
        refused("beta did not connect within 0.8 s; 3 strangers were refused", "beta", job.result)
        pool.shutdown()


def test_a_dialler_without_certificate_is_refused():
    with contextlib.closing(Net(NAMES[:2])) as net:
        pool = ThreadPoolExecutor(1)
        job = pool.submit(net.connect, "alpha", timeout=0.6)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection(net.parties[0][1:3]) as sock, context.wrap_socket(sock) as tls:
            assert tls.version() == "TLSv1.3"
            with contextlib.suppress(OSError):
                tls.sendall(encode(Frame(Kind.HELLO, 0, 0, 0), SESSION))
                assert tls.recv(100) == b""
        refused("1 strangers were refused", "beta", job.result)
        pool.shutdown()


def test_old_tls_is_refused():
    with contextlib.closing(Net(NAMES[:2])) as net:
        pool = ThreadPoolExecutor(1)
        job = pool.submit(net.connect, "alpha", timeout=0.6)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with socket.create_connection(net.parties[0][1:3]) as sock, pytest.raises(ssl.SSLError):
            context.wrap_socket(sock)
        refused("1 strangers were refused", "beta", job.result)
        pool.shutdown()


@pytest.mark.parametrize("impostor", ["mallory", "beta"])
def test_a_dialler_meets_a_wrong_certificate(impostor):
    """At alpha's address sits somebody else: a stranger, or even another party of the session."""
    with contextlib.closing(Net(NAMES[:3])) as net:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with link_module._anonymous_file(IDENTITIES[impostor].private_pem()) as path:
            context.load_cert_chain(path)

        def serve():
            sock, _ = net.listeners["alpha"].accept()
            with contextlib.suppress(OSError), context.wrap_socket(sock, server_side=True) as tls:
                tls.recv(1)
            sock.close()

        thread = threading.Thread(target=serve)
        thread.start()
        start = time.monotonic()
        refused("certificate does not match the session", "alpha", lambda: net.connect("gamma"))
        assert time.monotonic() - start < 10
        thread.join()


def test_a_party_cannot_dial_in_as_another():
    """Beta's listener awaits gamma; alpha is in the session too, but has no business dialling there."""
    with contextlib.closing(Net(NAMES[:3])) as net:
        pool = ThreadPoolExecutor(1)
        job = pool.submit(net.connect, "beta", timeout=0.8)
        turned = [net.parties[1], net.parties[0]]
        with pytest.raises(TransportError) as caught:
            net.connect("alpha", timeout=0.5, parties=turned)
        assert caught.value.culprit == "beta"
        refused("alpha.*, gamma did not connect", "alpha", job.result)
        pool.shutdown()


def test_another_session_is_named():
    with contextlib.closing(Net(NAMES[:2])) as net:
        pool = ThreadPoolExecutor(1)
        job = pool.submit(net.connect, "alpha", timeout=0.6)
        refused("another session", "alpha", lambda: net.connect("beta", session=bytes(16)), ReplayError)
        refused("beta did not connect", "beta", job.result)
        pool.shutdown()


def test_a_second_copy_of_a_party_is_refused_and_a_restarted_one_admitted(net):
    """Alpha still waits for gamma and delta while beta is started twice, then crashes and comes back."""
    pem, two = IDENTITIES["beta"].private_pem(), net.parties[:2]
    with ThreadPoolExecutor(4) as pool:
        job = pool.submit(net.connect, "alpha")
        first = connect("beta", pem, two, SESSION, 5)
        refused("alpha.* did not connect", "alpha", lambda: connect("beta", pem, two, SESSION, 0.4))
        first.send("alpha", data(b"of the first"))
        first.close()
        rest = [pool.submit(net.connect, "beta")]
        time.sleep(0.5)  # until alpha has it; a mesh that is complete with the dead link would end there
        rest += [pool.submit(net.connect, name) for name in ("gamma", "delta")]
        ends = [job.result(), *(r.result() for r in rest)]
        ends[1].send("alpha", data(b"of the second"))
        assert ends[0].receive(5)[1].payload == b"of the second"
        assert "beta: connected already" in ends[0].refused
        for end in ends:
            end.close()


def test_port_in_use(net):
    with pytest.raises(
        ConfigError, match=r"cannot listen on 127.0.0.1 port \d+: address already in use"
    ) as caught:
        connect("alpha", IDENTITIES["alpha"].private_pem(), net.parties, SESSION, 5)
    assert "another port" in caught.value.hint


def test_arguments_are_checked(net):
    pem = IDENTITIES["alpha"].private_pem()
    bad = [
        ("mallory", pem, net.parties, SESSION, 5),
        ("alpha", pem, [*net.parties, net.parties[1]], SESSION, 5),
        ("alpha", pem, net.parties, SESSION[:-1], 5),
        ("alpha", pem, net.parties, SESSION, 0),
        ("alpha", IDENTITIES["beta"].private_pem(), net.parties, SESSION, 5),
        ("alpha", b"", net.parties, SESSION, 5),
        ("alpha", IDENTITIES["alpha"].certificate_pem.encode(), net.parties, SESSION, 5),
        ("alpha", pem, [net.parties[0], ("beta", "127.0.0.1", 1, "garbage")], SESSION, 5),
        (
            "alpha",
            pem,
            [net.parties[0], ("beta", "h", 1, ssl.DER_cert_to_PEM_cert(b"garbage"))],
            SESSION,
            5,
        ),
    ]
    for arguments in bad:
        with pytest.raises(ConfigError):
            connect(*arguments)
    with pytest.raises(PrivinferError):  # an address that is not this machine's
        connect("alpha", pem, [("alpha", "192.0.2.1", 7001, net.parties[0][3]), net.parties[1]], SESSION, 1)
