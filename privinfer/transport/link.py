"""TLS 1.3 over one TCP connection, usable in both directions at once.

A Python ``SSLSocket`` is not safe for that (OpenSSL objects are not safe for a read and a write at one
time), so TLS runs over memory buffers under a short lock while the blocking ``recv`` and ``send`` happen
outside it.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

from privinfer.errors import ConfigError, TransportError

CHUNK = 1 << 18  # bytes encrypted, sent or received at a time
_RECORD = 1 << 14  # longest TLS record: a frame that fits travels as one record in one segment
# AES-GCM keeps its margin for 2^24.5 full records under one key (RFC 8446, 5.5); Python cannot rekey.
MAX_SENT = 1 << 38


class Link:
    """TLS over one TCP connection; :meth:`fill` and :meth:`write` may run at the same time."""

    __slots__ = ("_buffer", "_in", "_out", "_send", "_sent", "_sock", "_tls", "_tls_lock")

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server: bool) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock = sock
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        # No server_hostname: it would travel in clear, and the certificate itself is compared.
        self._tls = context.wrap_bio(self._in, self._out, server_side=server)
        self._tls_lock = threading.Lock()
        self._send = threading.Lock()
        self._buffer = bytearray(CHUNK)
        self._sent = 0

    def handshake(self, deadline: float) -> bytes:
        """Run the handshake until a monotonic time; return the peer's certificate, DER."""
        while True:
            try:
                self._tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                done = False
            except ssl.SSLError:
                self._flush_alert()
                raise
            self._timeout(deadline)
            if self._out.pending:
                self._sock.sendall(self._out.read())
            if done:
                break
            if not self._receive():
                raise ConnectionResetError("closed during the handshake")
        der = self._tls.getpeercert(binary_form=True)
        if self._tls.version() != "TLSv1.3" or der is None:
            raise ConnectionResetError("not authenticated by TLS 1.3")
        return der

    def _flush_alert(self) -> None:
        # tells an honest party with a wrong session file what is wrong
        with contextlib.suppress(OSError):
            self._sock.settimeout(1.0)
            self._sock.sendall(self._out.read())

    def _timeout(self, deadline: float) -> None:
        rest = deadline - time.monotonic()
        if rest <= 0:
            raise TimeoutError("no time left")
        self._sock.settimeout(rest)

    def read_exactly(self, count: int, deadline: float) -> bytes:
        """Read ``count`` bytes before a monotonic time; for the greeting."""
        data = bytearray(count)
        view, at = memoryview(data), 0
        while at < count:
            self._timeout(deadline)
            got = self.fill(view[at:])
            if not got:
                raise ConnectionResetError("closed during the greeting")
            at += got
        return bytes(data)

    def ready(self, stall: float) -> None:
        """Go over to blocking calls; a send that makes no progress for ``stall`` seconds fails."""
        self._sock.settimeout(None)
        seconds, micros = divmod(round(stall * 1e6), 1_000_000)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", seconds, micros))

    def _receive(self) -> bool:
        count = self._sock.recv_into(self._buffer)
        if not count:
            return False
        with memoryview(self._buffer) as view, self._tls_lock:
            self._in.write(view[:count])
        return True

    def fill(self, view: memoryview) -> int:
        """Read some bytes into ``view``; 0 at the end of the stream."""
        while True:
            try:
                with self._tls_lock:
                    return self._tls.read(len(view), view)  # type: ignore[return-value]
            except ssl.SSLWantReadError:
                # A key update may have left an answer in the outgoing buffer: it must go before our
                # next record, and so it does, at the next write.
                if not self._receive():
                    return 0
            except ssl.SSLZeroReturnError:
                return 0

    def write(self, head: bytes, body: memoryview, *, wait: bool = True) -> bool:
        """Send a frame; several threads may call.

        Without ``wait``, a short frame goes only if it can go at once; says whether it went.
        """
        if not self._send.acquire(blocking=wait):
            return False
        try:
            if not (wait or self._writable):
                return False
            self._sent += len(head) + len(body)
            if self._sent > MAX_SENT:
                raise TransportError("one TLS key has carried its share", hint="start a new session")
            room = _RECORD - len(head)
            self._push(head + body[:room] if body else head)
            for at in range(room, len(body), CHUNK):
                self._push(body[at : at + CHUNK])
            return True
        finally:
            self._send.release()

    def _push(self, data: bytes | memoryview) -> None:
        with self._tls_lock:
            at = self._tls.write(data)
            while at < len(data):  # one record a call
                at += self._tls.write(memoryview(data)[at:])
            sealed = self._out.read()
        at = self._sock.send(sealed)
        if at < len(sealed):
            with memoryview(sealed) as rest:
                while at < len(sealed):
                    at += self._sock.send(rest[at:])

    def finish(self) -> None:
        """Send no more; what was sent still arrives. BYE is the authenticated end, not close_notify."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def shutdown(self) -> None:
        """End both directions and wake whoever blocks; the file descriptor stays."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the file descriptor back; no other thread may use the link any more."""
        self.shutdown()
        # A sender that was just woken must not find its descriptor given to somebody else.
        taken = self._send.acquire(timeout=1.0)
        self._sock.close()
        if taken:
            self._send.release()

    @property
    def _writable(self) -> bool:
        poll = select.poll()
        poll.register(self._sock, select.POLLOUT)
        return bool(poll.poll(0))

    @property
    def alive(self) -> bool:
        """Whether the peer has not ended the connection, unread data or not."""
        poll = select.poll()
        poll.register(self._sock, getattr(select, "POLLRDHUP", 0))
        return not poll.poll(0)


def tls_context(protocol: ssl._SSLMethod, pem: bytes, trusted: list[bytes]) -> ssl.SSLContext:
    """Make a TLS 1.3 context that shows one identity and trusts a list of certificates, no authority.

    Parameters
    ----------
    protocol : ssl.PROTOCOL_TLS_SERVER or ssl.PROTOCOL_TLS_CLIENT
        Side.
    pem : bytes
        SECRET: private key and certificate.
    trusted : list of bytes
        Certificates, DER.
    """
    context = ssl.SSLContext(protocol)
    context.check_hostname = False  # the whole certificate is compared instead
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_TICKET
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # no resumption: every connection shows its certificate
    if (
        getattr(context, "keylog_filename", None) is not None
    ):  # whatever SSLKEYLOGFILE says, session keys stay here
        raise ConfigError("TLS session keys must not be logged")
    try:
        context.load_verify_locations(cadata=b"".join(trusted))
        with _anonymous_file(pem) as path:
            context.load_cert_chain(path, password=_no_password)
    except ssl.SSLError as exc:
        raise ConfigError("TLS cannot use this identity or a certificate of the session") from exc
    except OSError as exc:  # no memory, no descriptor, or a limit on files
        raise ConfigError(f"the key cannot be handed to TLS: {why(exc)}") from exc
    return context


def _no_password() -> NoReturn:
    raise ConfigError("identity must not be encrypted")


@contextlib.contextmanager
def _anonymous_file(secret: bytes) -> Iterator[str]:
    """Give ``secret`` a path for OpenSSL, which reads keys from files only; on Linux it stays in memory."""
    if sys.platform == "linux":
        fd, temporary = os.memfd_create("privinfer"), False
        path = f"/proc/self/fd/{fd}"
    else:
        fd, path = tempfile.mkstemp(prefix="privinfer-")  # mode 0600
        temporary = True
    try:
        rest = memoryview(secret)
        while rest:
            rest = rest[os.write(fd, rest) :]
        yield path
    finally:
        os.close(fd)
        if temporary:
            os.unlink(path)


def certificate_der(pem: str, name: str) -> bytes:
    """Decode a PEM certificate of the party ``name``."""
    try:
        return ssl.PEM_cert_to_DER_cert(pem)
    except ValueError as exc:
        raise ConfigError("certificate is not PEM", culprit=name) from exc


def why(exc: OSError) -> str:
    """Say what went wrong in a few words that hold nothing a peer chose."""
    if isinstance(exc, ssl.SSLError):
        return (exc.reason or "tls error").lower().replace("_", " ")
    if isinstance(exc, TimeoutError):
        return "timed out"
    return (exc.strerror or str(exc) or type(exc).__name__).lower()
