"""All parties in one process: queues in place of a network, with a hook for tests."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from privinfer.errors import ConfigError, ProtocolViolation, TransportError
from privinfer.transport.endpoint import Counters, Endpoint, Inbox
from privinfer.transport.frames import Frame, Kind, byte_view

#: Sees each frame on its way and returns it, another one, or None to drop it.
Hook = Callable[[str, str, Frame], Frame | None]


class MemoryHub:
    """The network between endpoints of one process.

    Parameters
    ----------
    names : sequence of str
        All parties.

    Attributes
    ----------
    on_frame : callable, optional
        ``on_frame(source, destination, frame)``, called in the sender's thread: records, alters or
        drops. It may call :meth:`kill`.
    """

    def __init__(self, names: Sequence[str]) -> None:
        if len(set(names)) != len(names):
            raise ConfigError("two parties have one name")
        self.on_frame: Hook | None = None
        self._lock = threading.Lock()
        self._live = set(names)
        self._endpoints = {name: MemoryEndpoint(self, name, names) for name in names}

    def endpoint(self, name: str) -> MemoryEndpoint:
        """Return the endpoint of a party; the same one every time."""
        try:
            return self._endpoints[name]
        except KeyError:
            raise ConfigError(f"{name} is not a party of this hub") from None

    def kill(self, name: str) -> None:
        """End a party's connections: the others meet the end of its stream, its own calls fail."""
        with self._lock:
            if name not in self._live:
                return
            self._live.discard(name)
            rest = list(self._live)
        self._endpoints[name]._inbox.close()
        for other in rest:
            self._endpoints[other]._end(name)

    def close(self) -> None:
        """Close every endpoint."""
        for endpoint in self._endpoints.values():
            endpoint.close()

    def _deliver(self, source: str, destination: str, frame: Frame) -> None:
        if source not in self._live:
            raise TransportError("this endpoint is closed")
        if destination not in self._live:
            raise TransportError("connection lost", culprit=destination)
        # Copied as a network would: the receiver must not see what the sender writes later.
        copy: Frame | None = replace(frame, payload=bytes(byte_view(frame.payload)))
        if self.on_frame is not None:
            copy = self.on_frame(source, destination, copy)  # type: ignore[arg-type]
        if copy is not None:
            self._endpoints[destination]._deliver(source, copy)


class MemoryEndpoint(Endpoint):
    """One party of a :class:`MemoryHub`; its inbox is unbounded, so a single thread can drive all."""

    def __init__(self, hub: MemoryHub, name: str, names: Sequence[str]) -> None:
        self.name = name
        self.peers = tuple(other for other in names if other != name)
        self.counters = Counters()
        self._hub = hub
        self._inbox = Inbox(self.counters, sys.maxsize)
        self._spoilt: set[str] = set()

    def send(self, peer: str, frame: Frame) -> None:
        """Send a frame; see :meth:`Endpoint.send`."""
        if peer not in self.peers:
            raise ConfigError(f"{peer} is no peer of {self.name}")
        try:
            self._hub._deliver(self.name, peer, frame)
        except TransportError:
            # Two parties that take leave cross on the way: no fault of either.
            if frame.kind in (Kind.BYE, Kind.ABORT, Kind.ALIVE) and self._inbox.said_bye(peer):
                return
            raise
        self.counters.sent(peer, frame)

    def receive(self, timeout: float) -> tuple[str, Frame]:
        """Take the next frame; see :meth:`Endpoint.receive`."""
        return self._inbox.get(timeout)

    def close(self) -> None:
        """Leave the hub; the others meet the end of this party's stream."""
        self._hub.kill(self.name)

    def _deliver(self, source: str, frame: Frame) -> None:
        if source in self._spoilt:  # as over TLS: nothing is read after a violation
            return
        try:
            self._inbox.frame(source, frame)
        except ProtocolViolation as error:
            self._spoilt.add(source)
            self._inbox.error(error)

    def _end(self, source: str) -> None:
        if source not in self._spoilt:
            self._inbox.end(source)
