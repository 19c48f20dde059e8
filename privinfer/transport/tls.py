"""The real transport: one mutually authenticated TLS 1.3 connection for each pair of parties."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from privinfer.errors import ConfigError, PrivinferError, TransportError
from privinfer.transport.endpoint import Counters, Endpoint, Inbox
from privinfer.transport.frames import MAX_FRAME, SESSION_BYTES, Decoder, Frame, Kind, byte_view, header
from privinfer.transport.link import Link, why
from privinfer.transport.mesh import Address, Listener, Mesh, listen

_LINGER_S = 1.0  # how long close() waits for peers to read what was sent last


class TLSEndpoint(Endpoint):
    """One party's connections; made by :func:`connect`.

    Attributes
    ----------
    refused : tuple of str
        Why the first strangers that dialled in were dropped.
    refused_count : int
        How many were.
    """

    def __init__(
        self,
        name: str,
        links: dict[str, Link],
        session: bytes,
        *,
        stall: float,
        max_frame: int,
        refused: Sequence[str] = (),
        refused_count: int = 0,
    ) -> None:
        self.name = name
        self.peers = tuple(links)
        self.counters = Counters()
        self.refused = tuple(refused)
        self.refused_count = refused_count
        self._links = links
        self._session = session
        self._stall = stall
        self._max = max_frame
        self._inbox = Inbox(self.counters, 2 * max_frame)
        self._closing = threading.Lock()
        self._readers = {
            peer: threading.Thread(target=self._read, args=(peer,), name=f"tls {name}<{peer}", daemon=True)
            for peer in links
        }
        for link in links.values():
            link.ready(stall)
        for reader in self._readers.values():
            reader.start()

    def send(self, peer: str, frame: Frame) -> None:
        """Send a frame; see :meth:`Endpoint.send`."""
        self._send(peer, frame, wait=True)

    def send_if_idle(self, peer: str, frame: Frame) -> bool:
        """Send a frame unless a send is under way; see :meth:`Endpoint.send_if_idle`."""
        return self._send(peer, frame, wait=False)

    def _send(self, peer: str, frame: Frame, *, wait: bool) -> bool:
        if peer not in self._links:
            raise ConfigError(f"{peer} is no peer of {self.name}")
        if self._inbox.closed:
            raise TransportError("this endpoint is closed")
        link = self._links[peer]
        head = header(frame, self._session, self._max)
        try:
            if not link.write(head, byte_view(frame.payload), wait=wait):
                return False
        except BlockingIOError as exc:
            link.shutdown()  # half a frame is out: nothing can follow it
            raise TransportError(f"took nothing for {self._stall:g} s", culprit=peer) from exc
        except OSError as exc:  # ssl.SSLError is one
            link.shutdown()
            # Two parties that take leave cross on the way: no fault of either.
            if frame.kind in (Kind.BYE, Kind.ABORT, Kind.ALIVE) and self._inbox.said_bye(peer):
                return True
            raise TransportError("connection lost", culprit=peer) from exc
        self.counters.sent(peer, frame)
        return True

    def receive(self, timeout: float) -> tuple[str, Frame]:
        """Take the next frame; see :meth:`Endpoint.receive`."""
        return self._inbox.get(timeout)

    def close(self) -> None:
        """End all connections, wait shortly for peers to read what was sent last, join the threads."""
        self._inbox.close()
        with self._closing:
            for link in self._links.values():
                link.finish()
            # Closing with unread bytes resets the connection, and an ABORT just sent could be lost with
            # it: so the readers go on reading (and discarding) until the peer has ended its side.
            until = time.monotonic() + _LINGER_S
            for peer, reader in self._readers.items():
                if not self._inbox.said_bye(peer):
                    reader.join(max(0.0, until - time.monotonic()))
            for link in self._links.values():
                link.shutdown()
            for reader in self._readers.values():
                reader.join()
            for link in self._links.values():
                link.close()

    def _read(self, peer: str) -> None:
        link = self._links[peer]
        decoder = Decoder(self._session, peer, self._max)
        try:
            while True:
                with decoder.want() as view:
                    count = link.fill(view)
                if not count:
                    self._inbox.end(peer, midway=decoder.midway)
                    break
                frame = decoder.advance(count)
                if frame is not None:
                    self._inbox.frame(peer, frame)
        except ConnectionError:
            self._inbox.end(peer, midway=decoder.midway)
        except OSError as exc:  # ssl.SSLError too: a record that does not authenticate
            self._inbox.error(TransportError(f"connection broken: {why(exc)}", culprit=peer))
        except PrivinferError as error:
            self._inbox.error(error)
            return  # our side stays open, so that the party can still send its ABORT
        except MemoryError:
            self._inbox.error(TransportError("no memory for a frame", culprit=peer))
        link.shutdown()


def connect(
    name: str,
    private_and_cert_pem: bytes,
    parties: Sequence[Address],
    session: bytes,
    connect_timeout: float,
    listener: Listener | None = None,
    *,
    shared: bool = False,
    stall_timeout: float = 60.0,
    max_frame: int = MAX_FRAME,
) -> TLSEndpoint:
    """Connect this party with all others; returns when every connection stands.

    Parameters
    ----------
    name : str
        This party.
    private_and_cert_pem : bytes
        SECRET: its private key and certificate.
    parties : sequence of (name, host, port, certificate PEM)
        All parties, this one too, in the same order everywhere.
    session : bytes
        Session identifier, 16 bytes.
    connect_timeout : float
        Seconds within which all must have come.
    listener : Listener, optional
        Listening socket to use in place of this party's own address (behind NAT, or inherited). It is
        closed in any case.
    shared : bool
        The ports dialled serve many sessions (:mod:`privinfer.transport.router`).
    stall_timeout : float
        Seconds after which a send fails if the peer takes nothing.
    max_frame : int
        Longest payload admitted; twice as much of one peer may wait unread.

    Raises
    ------
    ConfigError
        If the arguments contradict each other or the own address cannot be used.
    TransportError
        If a party did not come (the first missing one is the culprit, the message has all), or shows
        another certificate than the session's.
    ReplayError
        If a party is in another session.
    """
    try:
        names = [party[0] for party in parties]
        if len(set(names)) != len(names) or name not in names:
            raise ConfigError("parties must have different names and include this one")
        if len(session) != SESSION_BYTES:
            raise ConfigError("session identifier must have 16 bytes")
        if connect_timeout <= 0 or stall_timeout <= 0:
            raise ConfigError("timeouts must be positive")
        mesh = Mesh(name, private_and_cert_pem, parties, session, connect_timeout, max_frame, shared=shared)
        try:
            if listener is None and mesh.later:
                _, host, port, _ = parties[names.index(name)]
                listener = listen(host, port)
            elif listener is not None:
                listener.setblocking(False)
        except BaseException:
            mesh.end()
            raise
        links = mesh.run(listener if mesh.later else None)
    finally:
        if listener is not None:
            listener.close()
    return TLSEndpoint(
        name,
        links,
        session,
        stall=stall_timeout,
        max_frame=max_frame,
        refused=mesh.notes,
        refused_count=mesh.refused,
    )
