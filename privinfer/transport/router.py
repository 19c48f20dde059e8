"""One listening port for many sessions: each connection says in 20 bytes which one it is for.

The preface travels before TLS, so that the session's own TLS context, which trusts that session's
certificates and no others, does the handshake. It holds a hash of the session identifier: who watches the
line learns which connections belong together, which times and addresses tell anyway. It proves nothing;
whoever has it must still show the session's certificate.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from privinfer.transport.mesh import PREFACE, PREFACE_BYTES, preface

#: What a connection says that wants to propose a session.
KNOCK = PREFACE + bytes(PREFACE_BYTES - len(PREFACE))
MAX_PENDING = 256  # connections that have not said yet where they belong
PREFACE_S = 5.0


class Route:
    """The connections of one session; a mesh accepts them as from a listening socket.

    They wait in a socket pair, so the kernel bounds how many and closes those that nobody took.
    """

    def __init__(self) -> None:
        self._out, self._in = socket.socketpair()
        self._out.setblocking(False)
        self._in.setblocking(False)

    def fileno(self) -> int:
        """Readable when a connection waits."""
        return self._out.fileno()

    def accept(self) -> tuple[socket.socket, object]:
        """Take a connection; OSError where there is none."""
        _, handles, _, _ = socket.recv_fds(self._out, 1, 1)
        if not handles:
            raise ConnectionAbortedError("no connection")
        os.set_inheritable(handles[0], False)
        sock = socket.socket(fileno=handles[0])
        sock.setblocking(True)
        return sock, None

    def setblocking(self, flag: bool, /) -> None:
        """Never blocks."""

    def pass_on(self, sock: socket.socket) -> None:
        """Give a connection to the session, or close it where too many wait or nobody listens."""
        with sock, contextlib.suppress(OSError):
            socket.send_fds(self._in, [b"+"], [sock.fileno()])

    def close(self) -> None:
        """Take no more."""
        self._out.close()

    def end(self) -> None:
        """Close both ends."""
        self._out.close()
        self._in.close()


class Router:
    """Accepts at one port and gives every connection to its session, or to `knock`.

    Parameters
    ----------
    listener : socket.socket
        Listening; closed by :meth:`stop`.
    knock : callable
        Takes connections that propose a session; must return at once.
    """

    def __init__(self, listener: socket.socket, knock: Callable[[socket.socket], None]) -> None:
        self._listener, self._knock = listener, knock
        listener.setblocking(False)
        self._lock = threading.Lock()
        self._routes: dict[bytes, Route] = {}
        self._pending: OrderedDict[socket.socket, tuple[float, bytearray]] = OrderedDict()
        self._wake_r, self._wake_w = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="router", daemon=True)

    def start(self) -> None:
        """Begin to accept."""
        self._thread.start()

    def open(self, session: bytes) -> Route:
        """Accept connections of a session from now on."""
        route = Route()
        with self._lock:
            self._routes[preface(session)] = route
        return route

    def shut(self, session: bytes) -> None:
        """Accept none of this session any more."""
        with self._lock:
            route = self._routes.pop(preface(session), None)
        if route is not None:
            route.end()

    def stop(self) -> None:
        """Stop listening; sessions that stand are not touched."""
        self._wake_w.send(b"x")
        self._thread.join()
        with self._lock:
            routes, self._routes = list(self._routes.values()), {}
        for route in routes:
            route.end()
        self._wake_r.close()
        self._wake_w.close()

    def _run(self) -> None:
        self._selector.register(self._wake_r, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        with self._selector, self._listener:
            while True:
                for key, _ in self._selector.select(1.0 if self._pending else None):
                    if key.fileobj is self._wake_r:
                        for sock in list(self._pending):
                            self._drop(sock)
                        return
                    if key.fileobj is self._listener:
                        self._accept()
                    elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._pending:
                        self._read(key.fileobj)
                now = time.monotonic()
                while self._pending and next(iter(self._pending.values()))[0] < now:
                    self._drop(next(iter(self._pending)))

    def _accept(self) -> None:
        # An honest preface comes with the connection, so the oldest is the least likely to be honest.
        if len(self._pending) >= MAX_PENDING:
            self._drop(next(iter(self._pending)))
        try:
            sock, _ = self._listener.accept()
        except OSError:  # gone again, or no descriptor left
            if self._pending:
                self._drop(next(iter(self._pending)))
            time.sleep(0.01)
            return
        sock.setblocking(False)
        self._pending[sock] = time.monotonic() + PREFACE_S, bytearray()
        self._selector.register(sock, selectors.EVENT_READ)

    def _drop(self, sock: socket.socket) -> None:
        self._pending.pop(sock)
        self._selector.unregister(sock)
        self.dropped += 1
        sock.close()

    def _read(self, sock: socket.socket) -> None:
        _, got = self._pending[sock]
        try:
            more = sock.recv(PREFACE_BYTES - len(got))
        except BlockingIOError:
            return
        except OSError:
            more = b""
        got += more
        if not more or not PREFACE.startswith(bytes(got[: len(PREFACE)])):
            self._drop(sock)
            return
        if len(got) < PREFACE_BYTES:
            return
        with self._lock:
            route = self._routes.get(bytes(got))
        if route is None and got != KNOCK:
            self._drop(sock)  # early, late, or a stranger: an honest party dials again
            return
        self._pending.pop(sock)
        self._selector.unregister(sock)
        sock.setblocking(True)
        if route is not None:
            route.pass_on(sock)
        else:
            self._knock(sock)
