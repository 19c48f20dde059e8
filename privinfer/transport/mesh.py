"""Making the full mesh: dial the earlier parties, admit the later ones, drop strangers.

Of a pair, the party later in the list dials the earlier one. Both present the certificate of the session
file and both compare the other's byte by byte, so the trust store only saves strangers a step. Then each
sends a greeting, an empty HELLO that proves the session; it is not counted and no caller sees it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import selectors
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Protocol

from privinfer.errors import ConfigError, PrivinferError, ReplayError, TransportError
from privinfer.transport.frames import HEADER_BYTES, Decoder, Frame, Kind, encode, encode_abort, header
from privinfer.transport.link import Link, certificate_der, tls_context, why

#: Name, host, port and certificate (PEM) of a party.
Address = tuple[str, str, int, str]

#: How a connection to a port that serves many sessions begins; the session's hash follows.
PREFACE = b"PIR1"
PREFACE_BYTES = 20

_HANDSHAKE_S = 10.0  # a dialler that has not proved itself by then is dropped
_ATTEMPT_S = 5.0
_BACKOFF_S = (0.02, 0.25)
_MAX_PENDING = 64
_MAX_NOTES = 64
_CERT = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)
# How OpenSSL says that the other side did not like our certificate.
_REFUSED_US = re.compile(
    r"ALERT_(UNKNOWN_CA|BAD_CERTIFICATE|CERTIFICATE_\w+|ACCESS_DENIED|UNSUPPORTED_CERT\w*)"
)


class Listener(Protocol):
    """What connections are accepted from: a listening socket, or one session's part of a shared one."""

    def fileno(self) -> int:
        """Readable when a connection waits."""

    def accept(self) -> tuple[socket.socket, object]:
        """Take a connection."""

    def setblocking(self, flag: bool, /) -> None:
        """Whether accept may block."""

    def close(self) -> None:
        """Take no more."""


def preface(session: bytes) -> bytes:
    """What a connection of this session to a shared port begins with."""
    return PREFACE + hashlib.sha256(b"privinfer route 1:" + session).digest()[: PREFACE_BYTES - len(PREFACE)]


class Mesh:
    """Makes the connections of one party; every thread and socket it starts is gone when it ends."""

    def __init__(
        self,
        name: str,
        pem: bytes,
        parties: Sequence[Address],
        session: bytes,
        connect_timeout: float,
        max_frame: int,
        *,
        shared: bool = False,
    ) -> None:
        self.name = name
        self.preface = preface(session) if shared else b""
        self.timeout = connect_timeout
        self.deadline = time.monotonic() + connect_timeout
        self.max_frame = max_frame
        self.session = session
        self.greeting = encode(Frame(Kind.HELLO, 0, 0, 0), session)
        ders = {party[0]: certificate_der(party[3], party[0]) for party in parties}
        own = {certificate_der(block.decode("ascii", "replace"), name) for block in _CERT.findall(pem)}
        if own != {ders[name]}:
            raise ConfigError(
                "this identity is not the one in the session file",
                culprit=name,
                hint="use the key whose certificate was given to the session",
            )
        names = [party[0] for party in parties]
        place = names.index(name)
        self.peers = [other for other in names if other != name]
        self.earlier = list(parties[:place])
        self.later = {ders[other]: other for other in names[place + 1 :]}
        self.ders = ders
        self.server = tls_context(ssl.PROTOCOL_TLS_SERVER, pem, list(ders.values()))
        self.client = tls_context(ssl.PROTOCOL_TLS_CLIENT, pem, list(ders.values()))
        self.lock = threading.Lock()
        self.links: dict[str, Link] = {}
        self.failure: PrivinferError | None = None
        self.ended = False
        self.notes: list[str] = []
        self.refused = 0
        self.last: dict[str, str] = {}
        self.opened: OrderedDict[socket.socket, bool] = OrderedDict()  # value: a stranger so far
        self.threads: list[threading.Thread] = []
        self.wake_r, self.wake_w = socket.socketpair()
        self.wake_w.setblocking(False)

    # -- the party's own thread ------------------------------------------------------------------

    def run(self, listener: Listener | None) -> dict[str, Link]:
        """Dial the earlier parties, admit the later ones, return the links in the order of the list."""
        try:
            for address in self.earlier:
                self._start(self._dial, *address[:3])
            self._admit(listener)
            with self.lock:
                return {peer: self.links[peer] for peer in self.peers}
        except BaseException as error:
            self._tell(error)
            with self.lock:
                self.links.clear()  # so that end() closes them too
            raise
        finally:
            self.end()

    def _admit(self, listener: Listener | None) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self.wake_r, selectors.EVENT_READ)
            if listener is not None:
                selector.register(listener, selectors.EVENT_READ)
            self._wait(selector, listener)

    def _wait(self, selector: selectors.BaseSelector, listener: Listener | None) -> None:
        while True:
            with self.lock:
                if self.failure is not None:
                    raise self.failure
                if len(self.links) == len(self.peers):
                    return
            rest = self.deadline - time.monotonic()
            if rest <= 0:
                raise self._missing()
            for key, _ in selector.select(min(rest, 1.0)):
                if key.fileobj is self.wake_r:
                    self.wake_r.recv(4096)
                elif listener is not None:
                    self._accept(listener)

    def _accept(self, listener: Listener) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:  # gone again, or no descriptor left: the next round tries again
            time.sleep(0.01)
            return
        with self.lock:
            strangers = [s for s, unproved in self.opened.items() if unproved]
            if len(strangers) >= _MAX_PENDING:
                # An honest handshake takes milliseconds, so the oldest is the least likely to be one.
                self.opened[strangers[0]] = False  # its thread closes it; the next time it is another's turn
                with contextlib.suppress(OSError):
                    strangers[0].shutdown(socket.SHUT_RDWR)
            self.opened[sock] = True
            self.threads = [thread for thread in self.threads if thread.is_alive()]
        self._start(self._welcome, sock)

    def _missing(self) -> TransportError:
        with self.lock:
            missing = [peer for peer in self.peers if peer not in self.links]
            told = [f"{peer} ({self.last[peer]})" if peer in self.last else peer for peer in missing]
            return TransportError(
                f"{', '.join(told)} did not connect within {self.timeout:g} s; "
                f"{self.refused} strangers were refused",
                culprit=missing[0],
                hint="is every party running with the same session file, and can its address be reached",
            )

    def _tell(self, error: BaseException) -> None:
        """Let those that did connect know why it ends, so that they blame the right party."""
        if not isinstance(error, PrivinferError):
            return
        payload = encode_abort(error.code, error.message, error.culprit)
        frame = Frame(Kind.ABORT, 0, 0, 0, payload)
        with self.lock:
            links = list(self.links.values())
        for link in links:
            with contextlib.suppress(OSError, PrivinferError):
                link.ready(0.2)
                link.write(header(frame, self.session), memoryview(payload))
                link.finish()

    def end(self) -> None:
        """Close every socket that is not one of the links, then join the threads."""
        with self.lock:
            self.ended = True
            kept = {link._sock for link in self.links.values()}
            spare = [sock for sock in self.opened if sock not in kept]
        for sock in spare:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        until = time.monotonic() + 2.0
        for thread in self.threads:
            # A thread that waits for the name service cannot be woken; it ends by itself.
            thread.join(max(0.0, until - time.monotonic()))
        for sock in spare:
            sock.close()
        self.wake_r.close()
        self.wake_w.close()

    # -- helper threads --------------------------------------------------------------------------

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name=f"tls {self.name}", daemon=True)
        self.threads.append(thread)
        thread.start()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self.wake_w.send(b"x")

    def _fail(self, error: PrivinferError) -> None:
        with self.lock:
            if self.failure is None:
                self.failure = error
        self._wake()

    def _note(self, why: str) -> None:
        with self.lock:
            if self.ended:
                return
            self.refused += 1
            if len(self.notes) < _MAX_NOTES:
                self.notes.append(why)

    def _drop(self, sock: socket.socket) -> None:
        with self.lock:
            self.opened.pop(sock, None)
        sock.close()

    def _welcome(self, sock: socket.socket) -> None:
        """Let one dialler prove who it is; anybody may be at the other end."""
        kept = False
        try:
            link = Link(sock, self.server, server=True)
            until = min(self.deadline, time.monotonic() + _HANDSHAKE_S)
            peer = self.later.get(link.handshake(until))
            if peer is None:
                self._note("a certificate that is not awaited here")
                return
            try:
                self._check(link.read_exactly(HEADER_BYTES, until), peer)
            except PrivinferError as error:
                self._note(f"{peer}: {error.message}")
                if isinstance(error, ReplayError):
                    link.write(self.greeting, memoryview(b""))  # shows it that our sessions differ
                return
            with self.lock:
                old = self.links.get(peer)
                if self.ended or (old is not None and old.alive):
                    kept = False
                else:
                    link.write(self.greeting, memoryview(b""))
                    self.links[peer], self.opened[sock] = link, False
                    kept = True
            if not kept:
                self._note(f"{peer}: connected already")
            elif old is not None:  # it was restarted before the mesh was complete
                self._drop(old._sock)
            self._wake()
        except OSError as exc:
            self._note(why(exc))
        finally:
            if not kept:
                self._drop(sock)

    def _dial(self, peer: str, host: str, port: int) -> None:
        """Dial one party until it answers, a fatal error or the end."""
        pause, longest = _BACKOFF_S
        while not self.ended and time.monotonic() < self.deadline:
            try:
                found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                for family, kind, proto, _, address in found:
                    if self._attempt(peer, socket.socket(family, kind, proto), address):
                        return
            except OSError as exc:
                with self.lock:
                    self.last[peer] = why(exc)
            except PrivinferError as error:
                self._fail(error)
                return
            time.sleep(max(0.0, min(pause, self.deadline - time.monotonic())))
            pause = min(longest, 1.5 * pause)

    def _attempt(self, peer: str, sock: socket.socket, address: object) -> bool:
        kept = False
        try:
            with self.lock:
                if self.ended:
                    return False
                self.opened[sock] = False
            sock.settimeout(max(0.001, min(_ATTEMPT_S, self.deadline - time.monotonic())))
            sock.connect(address)  # type: ignore[arg-type]
            if sock.getsockname() == sock.getpeername():
                raise ConnectionRefusedError("met itself")  # TCP can, on a loopback port nobody listens on
            if self.preface:
                sock.sendall(self.preface)
            link = Link(sock, self.client, server=False)
            if self._handshake(link, peer) != self.ders[peer]:
                raise _mismatch(peer)
            link.write(self.greeting, memoryview(b""))
            self._check(self._greeting(link, peer), peer)
            with self.lock:
                if not self.ended:
                    self.links[peer] = link
                    kept = True
            self._wake()
            return kept
        except OSError as exc:
            with self.lock:
                self.last[peer] = why(exc)
            return False
        finally:
            if not kept:
                self._drop(sock)

    def _handshake(self, link: Link, peer: str) -> bytes:
        try:
            return link.handshake(self.deadline)
        except ssl.SSLCertVerificationError as exc:
            raise _mismatch(peer) from exc

    def _greeting(self, link: Link, peer: str) -> bytes:
        # In TLS 1.3 the dialler is done before its certificate was looked at: a refusal shows here.
        try:
            return link.read_exactly(HEADER_BYTES, self.deadline)
        except ssl.SSLError as exc:
            if _REFUSED_US.search(exc.reason or ""):
                raise TransportError(
                    "refused this party's certificate",
                    culprit=peer,
                    hint="both must hold the same session file",
                ) from exc
            raise

    def _check(self, greeting: bytes, peer: str) -> None:
        frames = list(Decoder(self.session, peer, self.max_frame).feed(greeting))
        if len(frames) != 1 or frames[0].kind is not Kind.HELLO:
            raise TransportError("greeting is not a hello", culprit=peer)


def listen(host: str, port: int) -> socket.socket:
    """Listen on an address.

    Raises
    ------
    ConfigError
        If it is taken or not ours.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, proto)
    except OSError as exc:
        raise ConfigError(f"cannot listen on {host} port {port}: {why(exc)}") from exc
    try:
        if os.name == "posix":  # a port that was just left may be taken again
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(128)
        sock.setblocking(False)
    except OSError as exc:
        sock.close()
        raise ConfigError(
            f"cannot listen on {host} port {port}: {why(exc)}",
            hint="stop the other program, choose another port in the session file, or pass a listener",
        ) from exc
    return sock


def _mismatch(peer: str) -> TransportError:
    return TransportError(
        "certificate does not match the session",
        culprit=peer,
        hint="the address may be another's, or the party made a new key after the session file was sealed",
    )
