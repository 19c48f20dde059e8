"""One port for many sessions: who gets where, and what strangers cannot do to it."""

import contextlib
import secrets
import socket
import threading
import time

import pytest

from privinfer.session import Identity
from privinfer.transport import Frame, Kind, connect, router
from privinfer.transport.mesh import listen, preface
from privinfer.transport.router import KNOCK, Router
from tests.adversarial.clean import nothing_left

__all__ = ["nothing_left"]


@pytest.fixture
def port():
    """A router that shows each knock in `knocks`."""
    knocks = []
    made = Router(listen("127.0.0.1", 0), knocks.append)
    made.knocks, made.at = knocks, made._listener.getsockname()
    made.start()
    yield made
    made.stop()
    for sock in knocks:
        sock.close()


def dial(port, data=b""):
    sock = socket.create_connection(port.at, timeout=30)
    sock.sendall(data)
    return sock


def ended(sock):
    """Whether the other side closes within the time limit."""
    with contextlib.suppress(ConnectionError):
        return sock.recv(1) == b""
    return True


def wait(condition):
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_two_sessions_at_one_port(port):
    """Meshes of two sessions at once; what follows the preface is untouched."""
    host, guest = Identity.generate("host"), Identity.generate("guest")
    parties = [("host", *port.at, host.certificate_pem), ("guest", "127.0.0.1", 1, guest.certificate_pem)]
    sessions = [secrets.token_bytes(16) for _ in range(2)]
    routes = [port.open(session) for session in sessions]
    got = {}

    def play(name, identity, session, route):
        end = connect(name, identity.private_pem(), parties, session, 10, route, shared=True)
        if name == "guest":
            end.send("host", Frame(Kind.DATA, 0, 0, 0, session))
            end.receive(5)
        else:
            got[session] = bytes(end.receive(5)[1].payload)
            end.send("guest", Frame(Kind.BYE, 0, 0, 0))
        end.close()

    threads = [
        threading.Thread(target=play, args=args)
        for session, route in zip(sessions, routes, strict=True)
        for args in (("host", host, session, route), ("guest", guest, session, None))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert got == {session: session for session in sessions}
    for session in sessions:
        port.shut(session)


def test_a_knock_is_passed_on_however_it_is_cut(port):
    with dial(port, KNOCK[:3]) as sock:
        time.sleep(0.05)
        sock.sendall(KNOCK[3:] + b"rest")
        wait(lambda: port.knocks)
        assert port.knocks[0].recv(4) == b"rest"


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        secrets.token_bytes(64),
        preface(bytes(16)),
        b"PIR2",
    ],
    ids=["http", "tls", "noise", "unknown session", "version"],
)
def test_garbage_is_dropped(port, data):
    with dial(port, data) as sock:
        assert ended(sock)
    assert not port.knocks


def test_a_session_that_is_over_takes_nobody(port):
    session = secrets.token_bytes(16)
    port.open(session)
    port.shut(session)
    with dial(port, preface(session)) as sock:
        assert ended(sock)


def test_connections_that_nobody_takes_are_bounded(port):
    """Of a session whose mesh never looks: the kernel holds some, the rest is closed."""
    session = secrets.token_bytes(16)
    route = port.open(session)
    socks = [dial(port, preface(session)) for _ in range(300)]
    wait(lambda: not port._pending)
    port.shut(session)
    assert route.fileno() == -1
    for sock in socks:
        sock.settimeout(30)
        assert ended(sock)
        sock.close()


def test_a_slow_one_is_let_go(port, monkeypatch):
    monkeypatch.setattr(router, "PREFACE_S", 0.2)
    with dial(port, KNOCK[:5]) as sock:
        sock.settimeout(30)
        assert ended(sock)


def test_half_open_connections_are_bounded(port, monkeypatch):
    """The oldest go, and one that knocks is heard; a thousand of them: tests/multiparty."""
    monkeypatch.setattr(router, "MAX_PENDING", 16)
    held = []
    try:
        for k in range(64):
            held.append(dial(port))
            wait(lambda k=k: port.dropped + len(port._pending) == k + 1)
        assert len(port._pending) == 16
        assert port.dropped == 48
        with dial(port, KNOCK):
            wait(lambda: port.knocks)
    finally:
        for sock in held:
            sock.close()
