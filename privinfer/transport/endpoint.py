"""What every transport gives a party: send to a peer, one inbox for all peers, counters."""

from __future__ import annotations

import abc
import queue
import threading
from collections import defaultdict
from types import TracebackType
from typing import Self

from privinfer.errors import PrivinferError, ProtocolViolation, TransportError
from privinfer.transport.frames import HEADER_BYTES, Frame, Kind, frame_bytes

Key = tuple[str, int]


class Counters:
    """Frames and bytes per (peer, phase), headers included; TLS and TCP overhead is not counted.

    Attributes
    ----------
    bytes_sent, bytes_received, frames_sent, frames_received : dict
        From ``(peer, phase)`` to a number. Sent frames count once handed over, received ones on arrival.
    """

    __slots__ = ("_lock", "bytes_received", "bytes_sent", "frames_received", "frames_sent")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.bytes_sent: defaultdict[Key, int] = defaultdict(int)
        self.bytes_received: defaultdict[Key, int] = defaultdict(int)
        self.frames_sent: defaultdict[Key, int] = defaultdict(int)
        self.frames_received: defaultdict[Key, int] = defaultdict(int)

    def sent(self, peer: str, frame: Frame) -> None:
        """Count a frame that was sent."""
        with self._lock:
            self.bytes_sent[peer, frame.phase] += frame_bytes(frame)
            self.frames_sent[peer, frame.phase] += 1

    def received(self, peer: str, frame: Frame) -> None:
        """Count a frame that arrived."""
        with self._lock:
            self.bytes_received[peer, frame.phase] += frame_bytes(frame)
            self.frames_received[peer, frame.phase] += 1

    def total(self, what: str, *, peer: str | None = None, phase: int | None = None) -> int:
        """Sum one of the four tables over the peers and phases that are not fixed.

        Parameters
        ----------
        what : {"bytes_sent", "bytes_received", "frames_sent", "frames_received"}
            Table.
        peer, phase : optional
            Restrict the sum.
        """
        with self._lock:
            table: dict[Key, int] = dict(getattr(self, what))
        return sum(n for (p, f), n in table.items() if peer in (None, p) and phase in (None, f))

    def snapshot(self) -> dict[str, dict[Key, int]]:
        """Copy all four tables at one moment."""
        with self._lock:
            return {
                what: dict(getattr(self, what))
                for what in ("bytes_sent", "bytes_received", "frames_sent", "frames_received")
            }


class Endpoint(abc.ABC):
    """One party's side of the network of a session.

    Attributes
    ----------
    name : str
        This party.
    peers : tuple of str
        The others.
    counters : Counters
        What went over the wire.
    """

    name: str
    peers: tuple[str, ...]
    counters: Counters

    @abc.abstractmethod
    def send(self, peer: str, frame: Frame) -> None:
        """Send a frame; frames to one peer arrive in order. The payload may be reused on return.

        BYE is the last frame a peer may get: it makes the end of the connection silent.

        Raises
        ------
        TransportError
            If the peer is gone or takes nothing any more; the culprit is the peer.
        """

    def send_if_idle(self, peer: str, frame: Frame) -> bool:
        """Send a frame unless another thread is sending to that peer just now; says whether it was sent.

        For signs of life and last words, which must not wait behind a peer that takes nothing: over TLS
        nothing is sent either while the peer leaves no room.
        """
        self.send(peer, frame)
        return True

    @abc.abstractmethod
    def receive(self, timeout: float) -> tuple[str, Frame]:
        """Take the next frame of any peer; ABORT and BYE too are simply returned.

        Parameters
        ----------
        timeout : float
            Seconds to wait.

        Raises
        ------
        TimeoutError
            If nothing came.
        TransportError
            If a peer was lost before its BYE; reported once, after its last frame.
        ProtocolViolation, ReplayError
            If a peer sent what is no frame of this session; nothing of it is read after that.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Close everything and wait for the threads; may be called again and from any thread."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Inbox:
    """The queue between a transport's readers and the party, with the rules all transports share.

    Parameters
    ----------
    counters : Counters
        Where arriving frames are counted.
    limit : int
        Bytes of one peer that may wait before :meth:`frame` blocks, so a peer that floods fills its own
        connection and not our memory. One frame is always admitted.
    """

    __slots__ = ("_blocked", "_bye", "_closed", "_counters", "_limit", "_queue", "_room", "_waiting")

    def __init__(self, counters: Counters, limit: int) -> None:
        self._counters = counters
        self._limit = limit
        self._queue: queue.SimpleQueue[tuple[str, Frame] | PrivinferError | None] = queue.SimpleQueue()
        self._waiting: defaultdict[str, int] = defaultdict(int)
        self._room = threading.Condition()
        self._blocked = 0
        self._bye: set[str] = set()
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._closed

    def said_bye(self, peer: str) -> bool:
        """Whether the peer's BYE has arrived."""
        return peer in self._bye

    def frame(self, peer: str, frame: Frame) -> None:
        """Queue a frame; blocks while the peer has too much waiting.

        Raises
        ------
        ProtocolViolation
            If it follows the peer's BYE.
        """
        if peer in self._bye:
            raise ProtocolViolation("frame after bye", culprit=peer)
        if frame.kind is Kind.BYE:
            self._bye.add(peer)
        self._counters.received(peer, frame)
        cost = _cost(frame)
        with self._room:
            self._blocked += 1
            while self._waiting[peer] and self._waiting[peer] + cost > self._limit and not self._closed:
                self._room.wait()
            self._blocked -= 1
            if self._closed:  # nobody will read it
                return
            self._waiting[peer] += cost
        self._queue.put((peer, frame))

    def error(self, error: PrivinferError) -> None:
        """Queue an error for the party to raise."""
        self._queue.put(error)

    def end(self, peer: str, *, midway: bool = False) -> None:
        """Note the end of a peer's stream: silent after its BYE, an error before or within a frame."""
        if peer not in self._bye or midway:
            self.error(TransportError("connection lost", culprit=peer))

    def get(self, timeout: float) -> tuple[str, Frame]:
        """Take the next frame, or raise the next error; see :meth:`Endpoint.receive`."""
        if self._closed:
            raise TransportError("this endpoint is closed")
        try:
            item = self._queue.get(timeout=max(0.0, timeout))
        except queue.Empty:
            raise TimeoutError(f"nothing arrived within {timeout:g} s") from None
        if item is None:
            self._queue.put(None)  # for other threads that wait
            raise TransportError("this endpoint is closed")
        if isinstance(item, PrivinferError):
            raise item
        peer, frame = item
        with self._room:
            self._waiting[peer] -= _cost(frame)
            if self._blocked:
                self._room.notify_all()
        return item

    def close(self) -> None:
        """Wake everyone that waits, on either side."""
        with self._room:
            self._closed = True
            self._room.notify_all()
        self._queue.put(None)


def _cost(frame: Frame) -> int:
    # what an empty frame costs in memory, roughly: floods of empty frames must count too
    return 8 * HEADER_BYTES + frame_bytes(frame)
