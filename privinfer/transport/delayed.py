"""A slower network around any endpoint: one-way latency and a rate limit for each link."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import replace

from privinfer.errors import ConfigError, PrivinferError, TransportError
from privinfer.transport.endpoint import Endpoint
from privinfer.transport.frames import Frame, byte_view, frame_bytes


class Delayed(Endpoint):
    """Delay what is sent, keep the order; receiving is untouched, so wrap every party.

    A frame leaves its link when the one before has left and its own bits have passed at the given rate,
    and is handed to the inner endpoint one latency after. Sends therefore return at once, and the error
    of a delayed send is raised by the next send to that peer.

    Parameters
    ----------
    endpoint : Endpoint
        The real one; closed together with this one.
    latency_s : float
        Seconds one way.
    bits_per_s : float, optional
        Rate of each link and direction; unlimited if None.
    """

    def __init__(self, endpoint: Endpoint, latency_s: float, bits_per_s: float | None = None) -> None:
        if latency_s < 0 or (bits_per_s is not None and bits_per_s <= 0):
            raise ConfigError("latency must not be negative and the rate must be positive")
        self.name = endpoint.name
        self.peers = endpoint.peers
        self.counters = endpoint.counters
        self._inner = endpoint
        self._latency = latency_s
        self._per_byte = 0.0 if bits_per_s is None else 8.0 / bits_per_s
        self._lock = threading.Lock()
        self._closed = False
        self._free = dict.fromkeys(self.peers, 0.0)
        self._errors: dict[str, PrivinferError] = {}
        self._queues: dict[str, queue.SimpleQueue[tuple[float, Frame] | None]] = {
            peer: queue.SimpleQueue() for peer in self.peers
        }
        self._threads = [
            threading.Thread(target=self._run, args=(peer,), name=f"delay {self.name}>{peer}", daemon=True)
            for peer in self.peers
        ]
        for thread in self._threads:
            thread.start()

    def send(self, peer: str, frame: Frame) -> None:
        """Queue a copy of a frame for its time; see :meth:`Endpoint.send`."""
        if peer not in self._queues:
            raise ConfigError(f"{peer} is no peer of {self.name}")
        copy = replace(frame, payload=bytes(byte_view(frame.payload)))
        with self._lock:
            if self._closed:
                raise TransportError("this endpoint is closed")
            if peer in self._errors:
                raise self._errors[peer]
            left = max(time.monotonic(), self._free[peer]) + frame_bytes(copy) * self._per_byte
            self._free[peer] = left
            self._queues[peer].put((left + self._latency, copy))

    def receive(self, timeout: float) -> tuple[str, Frame]:
        """Take the next frame; see :meth:`Endpoint.receive`."""
        return self._inner.receive(timeout)

    def close(self) -> None:
        """Let what is on its way arrive, then close the inner endpoint."""
        with self._lock:
            first, self._closed = not self._closed, True
        if first:
            for pending in self._queues.values():
                pending.put(None)
        for thread in self._threads:
            thread.join()
        self._inner.close()

    def _run(self, peer: str) -> None:
        pending = self._queues[peer]
        while (item := pending.get()) is not None:
            due, frame = item
            if (wait := due - time.monotonic()) > 0:
                time.sleep(wait)
            if peer in self._errors:
                continue
            try:
                self._inner.send(peer, frame)
            except PrivinferError as error:
                self._errors[peer] = error
            except ValueError as error:  # a field out of range: the caller's mistake
                self._errors[peer] = TransportError(f"frame cannot be sent: {error}")
