"""Frames: a fixed little-endian header and raw payload bytes; no network in this file.

======  =====  =========  ====================================================
offset  bytes  field      meaning
======  =====  =========  ====================================================
0       4      magic      ``PVI1``
4       1      kind       1 HELLO, 2 DATA, 3 ABORT, 4 BYE, 5 ALIVE, 6 DONE
5       1      phase      set by the caller, counted by it (setup, offline, online)
6       2      channel    set by the caller
8       4      step       set by the caller
12      16     session    session identifier
28      8      length     payload bytes that follow
======  =====  =========  ====================================================
"""

from __future__ import annotations

import enum
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import cbor2
import numpy as np
import numpy.typing as npt

from privinfer.errors import ProtocolViolation, ReplayError, TransportError, printable

MAGIC = b"PVI1"
_HEADER = struct.Struct("<4sBBHI16sQ")
HEADER_BYTES = _HEADER.size
SESSION_BYTES = 16
MAX_FRAME = 1 << 30
#: Cap for frames that carry no tensors: all but DATA. A HELLO may carry an architecture.
MAX_CONTROL = 4 << 20
MAX_ABORT_MESSAGE = 500
# A payload buffer starts with this many bytes and doubles as bytes arrive: a lying length costs its
# sender at least half of what it costs us.
_FIRST_PIECE = 1 << 18
_EMPTY = memoryview(b"")


class Kind(enum.IntEnum):
    """What a frame is for."""

    HELLO = 1
    DATA = 2
    ABORT = 3
    BYE = 4
    ALIVE = 5
    DONE = 6


_KINDS: dict[int, Kind] = {int(kind): kind for kind in Kind}


@dataclass(frozen=True, slots=True, repr=False)
class Frame:
    """One message between two parties.

    Attributes
    ----------
    kind : Kind
        What it is for.
    phase : int
        0..255, the accounting phase.
    channel : int
        0..65535.
    step : int
        0..2**32-1.
    payload : bytes or memoryview
        Raw bytes; a memoryview of any item type must be C-contiguous. Received ones are read-only.
    """

    kind: Kind
    phase: int
    channel: int
    step: int
    payload: bytes | memoryview = b""

    def __repr__(self) -> str:  # payloads are shares and masked values: never shown
        size = byte_view(self.payload).nbytes
        return (
            f"Frame({Kind(self.kind).name}, phase={self.phase}, channel={self.channel}, "
            f"step={self.step}, {size} bytes)"
        )


def byte_view(payload: bytes | memoryview) -> memoryview:
    """View a payload as unsigned bytes without copying.

    Raises
    ------
    ValueError
        If it is not C-contiguous.
    """
    view = memoryview(payload)
    if view.format == "B" and view.ndim == 1 and view.c_contiguous:
        return view
    if not view.c_contiguous:
        raise ValueError("payload is not C-contiguous")
    # cast() refuses shapes with a zero in them
    return view.cast("B") if view.nbytes else _EMPTY


def frame_bytes(frame: Frame) -> int:
    """Bytes of a frame on the wire, header included."""
    return HEADER_BYTES + memoryview(frame.payload).nbytes


def header(frame: Frame, session: bytes, max_frame: int = MAX_FRAME) -> bytes:
    """Encode the header of a frame.

    Raises
    ------
    TransportError
        If the payload is longer than receivers admit.
    ValueError
        If a field does not fit.
    """
    length = memoryview(frame.payload).nbytes
    cap = max_frame if frame.kind == Kind.DATA else min(max_frame, MAX_CONTROL)
    if length > cap:
        raise TransportError(
            f"frame of {length} bytes is longer than the cap of {cap}", hint="run a smaller batch"
        )
    if len(session) != SESSION_BYTES or frame.kind not in _KINDS:
        raise ValueError("a frame has a session of 16 bytes and a known kind")
    try:
        return _HEADER.pack(MAGIC, frame.kind, frame.phase, frame.channel, frame.step, session, length)
    except struct.error as exc:
        raise ValueError(f"frame field out of range: {exc}") from None


def encode(frame: Frame, session: bytes, max_frame: int = MAX_FRAME) -> bytes:
    """Encode a whole frame; for short ones, and for tests."""
    return header(frame, session, max_frame) + byte_view(frame.payload)


class Decoder:
    """Bytes of one peer in, frames out; holds no socket.

    The caller writes into :meth:`want` and tells :meth:`advance` how much it wrote, so a payload is
    received where it stays. A payload buffer grows only as bytes arrive.

    Parameters
    ----------
    session : bytes
        Expected session, 16 bytes.
    peer : str
        Party the bytes come from: the culprit of every error.
    max_frame : int
        Longest payload admitted.

    Notes
    -----
    After an error the decoder is spent: there is no way to find the next frame.
    """

    __slots__ = ("_fields", "_filled", "_header", "_length", "_max", "_payload", "_peer", "_session")

    def __init__(self, session: bytes, peer: str, max_frame: int = MAX_FRAME) -> None:
        self._session = session
        self._peer = peer
        self._max = max_frame
        self._header = bytearray(HEADER_BYTES)
        self._payload: npt.NDArray[np.uint8] | None = None
        self._filled = 0
        self._length = 0
        self._fields: tuple[Kind, int, int, int] = (Kind.DATA, 0, 0, 0)

    @property
    def midway(self) -> bool:
        """Whether a frame has begun and not ended: an end of file here cuts it off."""
        return self._payload is not None or self._filled > 0

    def want(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        target = memoryview(self._header) if self._payload is None else self._payload.data
        return target[self._filled :]

    def advance(self, count: int) -> Frame | None:
        """Note that ``count`` bytes were written into :meth:`want`.

        Ask for a new view afterwards: the buffer may have moved.

        Returns
        -------
        Frame or None
            The frame these bytes completed.

        Raises
        ------
        ProtocolViolation
            If the header is not one of ours or the length exceeds the cap.
        ReplayError
            If the frame belongs to another session.
        """
        self._filled += count
        if self._payload is None:
            if self._filled < HEADER_BYTES:
                return None
            self._parse_header()
            self._filled = 0
            if self._length == 0:
                return Frame(*self._fields, b"")
            self._payload = np.empty(min(self._length, _FIRST_PIECE), dtype=np.uint8)
            return None
        if self._filled < len(self._payload):
            return None
        if self._filled < self._length:
            grown = np.empty(min(self._length, 2 * len(self._payload)), dtype=np.uint8)
            grown[: self._filled] = self._payload
            self._payload = grown
            return None
        payload = self._payload.data.toreadonly()
        self._payload, self._filled = None, 0
        return Frame(*self._fields, payload)

    def feed(self, data: bytes | memoryview) -> Iterator[Frame]:
        """Yield the frames that ``data`` completes; for callers that hold bytes already."""
        rest = memoryview(data)
        while rest:
            with self.want() as view:
                count = min(len(view), len(rest))
                view[:count] = rest[:count]
            rest = rest[count:]
            if (frame := self.advance(count)) is not None:
                yield frame

    def _parse_header(self) -> None:
        magic, number, phase, channel, step, session, length = _HEADER.unpack(self._header)
        if magic != MAGIC:
            raise self._violation("bytes that are no frame")
        kind = _KINDS.get(number)
        if kind is None:
            raise self._violation(f"frame of unknown kind {number}")
        if session != self._session:
            raise ReplayError("frame belongs to another session", culprit=self._peer)
        cap = self._max if kind is Kind.DATA else min(self._max, MAX_CONTROL)
        if length > cap:
            raise self._violation(f"frame declares {length} bytes, above the cap of {cap}")
        self._fields, self._length = (kind, phase, channel, step), length

    def _violation(self, message: str) -> ProtocolViolation:
        return ProtocolViolation(message, culprit=self._peer, session=self._session.hex())


@dataclass(frozen=True, slots=True)
class Abort:
    """Why a party ends the session.

    Attributes
    ----------
    code : str
        Code of the error, ``PI`` and three digits.
    message : str
        At most 500 printable characters; never values, seeds or keys.
    culprit : str or None
        Party at fault, in the sender's view.
    """

    code: str
    message: str
    culprit: str | None


_CODE = re.compile(r"PI[0-9]{3}")
# A name; or several, where it cannot be told which of them is wrong or where all of them left.
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}( or [a-z][a-z0-9_-]{0,31}){0,63}")
_MAX_ABORT = 4 * MAX_ABORT_MESSAGE + 64 * 36 + 256


def encode_abort(code: str, message: str, culprit: str | None) -> bytes:
    """Encode the payload of an ABORT frame: canonical CBOR ``{code, culprit, message}``.

    The message is cut to 500 characters and what cannot be printed becomes ``?``. A culprit that is no
    party name is left out.
    """
    if not _CODE.fullmatch(code):
        raise ValueError("an error code is PI and three digits")
    text = printable(message[:MAX_ABORT_MESSAGE])
    named = culprit if culprit is not None and _NAME.fullmatch(culprit) else None
    encoded: bytes = cbor2.dumps({"code": code, "culprit": named, "message": text}, canonical=True)
    return encoded


def decode_abort(payload: bytes | memoryview, peer: str) -> Abort:
    """Decode the payload of an ABORT frame that may be hostile.

    Only the exact form of :func:`encode_abort` is read. A general CBOR decoder would also build tagged
    objects (dates, regular expressions, big numbers) at a peer's wish.

    Raises
    ------
    ProtocolViolation
        If it has another form; the culprit is ``peer``.
    """
    data = bytes(byte_view(payload)[:_MAX_ABORT])
    try:
        if len(data) != memoryview(payload).nbytes or data[0] != 0xA3:
            raise ValueError
        at = 1
        values: list[str | None] = []
        for key in ("code", "culprit", "message"):
            found, at = _text(data, at)
            if found != key:
                raise ValueError
            if key == "culprit" and data[at] == 0xF6:  # null
                values.append(None)
                at += 1
                continue
            value, at = _text(data, at)
            values.append(value)
        code, culprit, message = values
        if code is None or message is None or at != len(data) or not _CODE.fullmatch(code):
            raise ValueError
        if len(message) > MAX_ABORT_MESSAGE or not message.isprintable():
            raise ValueError
        if culprit is not None and not _NAME.fullmatch(culprit):
            raise ValueError
    except (ValueError, IndexError):  # UnicodeDecodeError is a ValueError
        raise ProtocolViolation("abort that cannot be read", culprit=peer) from None
    return Abort(code, message, culprit)


def _text(data: bytes, at: int) -> tuple[str, int]:
    """Read one CBOR text string in its shortest form (RFC 8949, 3.1 and 4.2.1)."""
    lead = data[at]
    at += 1
    if 0x60 <= lead <= 0x77:
        size = lead - 0x60
    elif lead == 0x78 and data[at] >= 24:
        size, at = data[at], at + 1
    elif lead == 0x79 and data[at] >= 1:
        size, at = int.from_bytes(data[at : at + 2], "big"), at + 2
    else:
        raise ValueError
    if at + size > len(data):
        raise ValueError
    return data[at : at + size].decode("utf-8"), at + size
