"""Ways to tamper with one message of a session, in memory or on a TLS line."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import Any

from privinfer.errors import PrivinferError, TransportError
from privinfer.protocols.mpc import inputs
from privinfer.protocols.randomness import Scope
from privinfer.runtime import engage
from privinfer.session import agreement
from privinfer.transport import Frame, Kind
from privinfer.transport.frames import Decoder, encode
from tests.adversarial import stage

SESSION = bytes.fromhex("5e" * 16)
LENGTH_AT = 28  # where a header has it

How = Callable[["Tamper", str, str, Frame], Frame | None]


class MemoryLines:
    """The hub of a play, as ways of tampering see it."""

    def __init__(self, play: stage.Play) -> None:
        self._hub, self.manifest = play.hub, play.base

    def frame(self, source: str, destination: str, frame: Frame) -> None:
        """Put a frame on the line past everybody's back."""
        self._hub.endpoint(destination)._deliver(source, frame)

    def raw(self, source: str, destination: str, data: bytes, *, end: bool) -> None:
        """Put bytes on the line, through the decoder that TLS uses; then its end, or nothing more."""
        there, decoder = self._hub.endpoint(destination), Decoder(SESSION, source)
        try:
            for frame in decoder.feed(data):
                there._deliver(source, frame)
        except PrivinferError as error:
            there._spoilt.add(source)
            there._inbox.error(error)
            return
        assert end, "the decoder let it pass"
        there._inbox.end(source, midway=decoder.midway)
        there._spoilt.add(source)


class Tamper:
    """Alters the first frame of one kind; its sender says nothing about it afterwards.

    Attributes
    ----------
    sender, victim : str or None
        Whose message to whom was altered.
    """

    def __init__(self, kind: tuple[str, ...], how: How, lines: Any = None) -> None:
        self.kind, self.how, self.lines = kind, how, lines
        self.sender: str | None = None
        self.victim: str | None = None
        self.mute: str | None = None
        self.held: Frame | None = None
        self.agreed: bytes | None = None  # digest of the agreement
        self.nonces: dict[str, bytes] = {}
        self.signatures: dict[tuple[str, ...], dict[str, bytes]] = {}
        self.lock = threading.RLock()
        self.wants = getattr(how, "wants", lambda tamper, source: True)

    def joined(self, name: str, party: Any) -> None:
        """What tampering needs to know of a join."""
        self.agreed = party.agreement.digest

    def __call__(self, source: str, destination: str, frame: Frame) -> Frame | None:
        with self.lock:
            kind = stage.kind_of(frame)
            self._note(source, kind, frame)
            hit = self.sender is None and kind == self.kind and self.wants(self, source)
            if hit:
                self.sender, self.victim = source, destination
        if hit:
            return self.how(self, source, destination, frame)
        if source == self.mute and frame.kind is not Kind.ALIVE:
            return None
        held = self.held
        on_its_line = (source, destination) == (self.sender, self.victim)
        if held is not None and on_its_line and frame.kind is not Kind.ALIVE:
            self.held = None
            self.lines.frame(source, destination, frame)
            return held
        # it would blame the others
        return None if source == self.sender and frame.kind is Kind.ABORT else frame

    def _note(self, source: str, kind: tuple[str, ...], frame: Frame) -> None:
        at = signature_at(kind)
        if at is None:
            return
        data = bytes(frame.payload)
        self.signatures.setdefault(kind, {})[source] = data[at]
        if kind[-1] == "greeting":
            self.nonces[source] = data[34:50]


def signature_at(kind: tuple[str, ...]) -> slice | None:
    """Where a message of this kind has its sender's own signature."""
    if kind[:2] == ("control", "HELLO"):
        if kind[2] in ("statements", "commitments"):
            return slice(0, 64)
        if kind[2] in ("greeting", "signatures"):
            return slice(-64, None)
    if kind[:2] == ("online", "owner"):
        return slice(-64, None)
    return None


# -- ways ------------------------------------------------------------------------------------------


def flip(at: float) -> How:
    """One bit of the payload, at this part of it."""

    def how(tamper, source, destination, frame):
        data = bytearray(frame.payload)
        data[int(at * (len(data) - 1))] ^= 1 << (3 if at else 0)
        return stage.changed(frame, payload=bytes(data))

    return how


def drop(tamper, source, destination, frame):
    """It never comes."""


def withhold(tamper, source, destination, frame):
    """From now on the sender lives and says so, and does nothing else."""
    tamper.mute = source


def late(tamper, source, destination, frame):
    """As :func:`withhold`, and what was held back comes when nobody waits any more."""
    tamper.mute = source
    timer = threading.Timer(2.2, lambda: _quietly(lambda: tamper.lines.frame(source, destination, frame)))
    timer.daemon = True
    timer.start()


def _quietly(do):
    try:
        do()
    except TransportError:
        return  # the other side is gone


def replay(tamper, source, destination, frame):
    """It comes twice."""
    tamper.lines.frame(source, destination, frame)
    return frame


def reorder(tamper, source, destination, frame):
    """It comes after the next one on its line."""
    tamper.held = frame


def field(**change) -> How:
    """Another value in the header, or another payload."""

    def how(tamper, source, destination, frame):
        return stage.changed(frame, **{k: f(getattr(frame, k)) for k, f in change.items()})

    return how


def raw(spoil: Callable[[bytearray], object], end: bool = False) -> How:
    """The frame as bytes, spoilt; then the end of the line, or nothing more."""

    def how(tamper, source, destination, frame):
        data = bytearray(encode(frame, SESSION))
        spoil(data)
        tamper.lines.raw(source, destination, bytes(data), end=end)

    return how


def put(at: int, data: bytes) -> Callable[[bytearray], None]:
    """Overwrite bytes."""

    def spoil(frame):
        frame[at : at + len(data)] = data

    return spoil


def recorded(payloads: dict[tuple[str, ...], bytes]) -> How:
    """The same message of another join of the same session."""

    def how(tamper, source, destination, frame):
        return stage.changed(frame, payload=payloads[tamper.kind])

    return how


def wrong_kind(tamper, source, destination, frame):
    """A message as one of another kind."""
    kinds = {Kind.DATA: Kind.HELLO, Kind.HELLO: Kind.DATA, Kind.DONE: Kind.HELLO, Kind.BYE: Kind.DATA}
    return stage.changed(frame, kind=kinds.get(frame.kind, Kind.DONE))


def wrong_signer(tamper, source, destination, frame):
    """Somebody else's signature, which is good for what that one said."""
    others = tamper.signatures[tamper.kind]
    other = next(v for k, v in others.items() if k != source)
    data, at = bytearray(frame.payload), signature_at(tamper.kind)
    data[at] = other
    return stage.changed(frame, payload=bytes(data))


wrong_signer.wants = lambda tamper, source: bool(tamper.signatures.get(tamper.kind, {}).keys() - {source})


def two_tales(tamper, source, destination, frame):
    """Something else to one party, signed as well as what the others hear."""
    sign = stage.identity(source).sign
    data = bytes(frame.payload)
    match tamper.kind[-1]:
        case "greeting":
            nonce = bytes(16)
            said = b"privinfer/greeting/1:" + source.encode() + b":" + data[2:34] + nonce
            data = data[:34] + nonce + sign(said)
        case "statements":
            nonces = b"".join(tamper.nonces[name] for name in stage.NAMES)
            content = agreement.statement("9.9", bytes(32) if source == stage.E1 else None)
            context = b"statement:" + tamper.lines.manifest.digest() + nonces
            data = alike(sign, source, context, content)
        case "signatures":
            data = data[:-64] + sign(b"privinfer/agreement/1:" + bytes(32))
        case "commitments":
            names = [k for k, owner in stage.INPUTS.items() if owner == source]
            content = engage.statement({name: bytes(32) for name in names})
            data = alike(sign, source, b"run:" + tamper.agreed + bytes(8), content)
        case _:  # masked inputs
            step = next(s for s in stage._program().sources() if stage.INPUTS[s.node] == source)
            masked = bytes([data[0] ^ 1]) + data[1 : -inputs.SIGNATURE_BYTES]
            said = inputs.statement(step, Scope(tamper.agreed, 0), hashlib.sha256(masked).digest())
            data = masked + sign(said)
    return stage.changed(frame, payload=data)


# an owner, where what is said is about inputs
two_tales.wants = lambda tamper, source: tamper.kind[-1] != "commitments" or source in stage.INPUTS.values()


def alike(sign, source: str, context: bytes, content: bytes) -> bytes:
    """A signed statement of `runtime/alike.py`."""
    signed = b"privinfer/alike/1:" + source.encode() + b":" + context + hashlib.sha256(content).digest()
    return sign(signed) + content
