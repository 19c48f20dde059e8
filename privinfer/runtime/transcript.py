"""The transcript of a join at one party: a tag of every message, and what peers sign (docs/receipts.md).

A tag is BLAKE3 of the message under a key that sender and receiver make together, each giving half of what it
derives from: the two can show later what a message was, and nobody else, the helper least of all, can search
for it. Heads of chains are SHA-256 over tags, sizes and steps. Cost: one pass over what is sent and received,
one one-way message of 32 bytes a peer at the join, and CLAIM_BYTES in each DONE.
"""

from __future__ import annotations

import importlib.util
import secrets
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Mapping

from privinfer.errors import ConfigError, ProtocolViolation
from privinfer.protocols.randomness import SEED_BYTES, Secret, derive
from privinfer.session.receipt import (
    CORE,
    MAX_ENTRIES,
    MAX_LEGS,
    Claim,
    Leg,
    Mark,
    begin,
    extend,
)
from privinfer.transport.frames import Frame, byte_view

Sign = Callable[[bytes], bytes]
Verify = Callable[[str, bytes, bytes], None]
# index in its chain, kind, phase, channel, step, size; the sender's name follows, then the contents
_TAGGED = struct.Struct("<QBBHIQ")


def check_installed() -> None:
    """Raise ConfigError where BLAKE3 is missing."""
    if importlib.util.find_spec("blake3") is None:
        raise ConfigError(
            "receipts need the package blake3",
            hint="pip install 'privinfer[receipts]', or seal without receipts",
        )


class TagKey(Secret):
    """Key of the tags between two parties.

    Parameters
    ----------
    data : bytes
        32 bytes.
    """

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        if len(data) != SEED_BYTES:
            raise ValueError("a key has 32 bytes")
        self._data = bytes(data)

    @classmethod
    def of(cls, halves: Mapping[str, bytes], session: bytes) -> TagKey:
        """From what both parties gave, by their names: neither chooses it alone."""
        (first, a), (second, b) = sorted(halves.items())
        return cls(derive(a, "tag key", b, first, second, session, size=SEED_BYTES))

    def expose(self) -> bytes:
        """The key, for its party's own disk."""
        return self._data

    def check(self) -> bytes:
        """32 bytes that stand for the key in what is signed, and tell nothing of it."""
        return derive(self._data, "tag key, shown", size=SEED_BYTES)

    def tag(self, index: int, sender: str, frame: Frame) -> bytes:
        """Tag of the message that is number `index` from its sender, 32 bytes."""
        from blake3 import blake3  # noqa: PLC0415 - an extra; only sessions with receipts need it

        view = byte_view(frame.payload)
        fields = _TAGGED.pack(index, frame.kind, frame.phase, frame.channel, frame.step, view.nbytes)
        digest = blake3(fields + sender.encode() + b":", key=self._data)
        digest.update(view)
        return digest.digest()


class _Side:
    """One chain, one leg after the other."""

    def __init__(self, mark: Mark) -> None:
        self.mark = mark
        self.legs = [bytearray()]
        self.ends: list[Mark] = []

    def end(self, number: int) -> Mark:
        """Where it stands at the end of an inference; says so once, and goes on with the next."""
        if len(self.ends) == number:
            self.ends.append(self.mark)
            self.legs.append(bytearray())
        return self.ends[number]


class Transcript:
    """What one party notes of a join.

    Parameters
    ----------
    name : str
        This party.
    peers : iterable of str
        The others.
    session : bytes
        Digest of the agreement.
    sign, verify : callable
        With this party's key, with another's.
    keep : bool
        Whether messages are listed; without, only where the chains stand is known.
    """

    def __init__(
        self,
        name: str,
        peers: tuple[str, ...],
        session: bytes,
        sign: Sign,
        verify: Verify,
        *,
        keep: bool = True,
    ) -> None:
        check_installed()
        self._keep = keep
        self.name, self._session = name, session
        self._sign, self._verify = sign, verify
        self.halves = {peer: secrets.token_bytes(SEED_BYTES) for peer in peers}
        self.keys: dict[str, TagKey] = {}
        self.started = time.time_ns() // 1000
        self._began = time.monotonic_ns()
        self._sent = {peer: _Side(begin(session, name, peer)) for peer in peers}
        self._received = {peer: _Side(begin(session, peer, name)) for peer in peers}
        self._own: defaultdict[int, dict[str, bytes]] = defaultdict(dict)
        self._theirs: defaultdict[int, dict[str, bytes]] = defaultdict(dict)
        self._entries = 0

    def __repr__(self) -> str:
        return f"Transcript({self.name!r}, {self._entries} messages)"

    def take_half(self, peer: str, theirs: bytes) -> None:
        """Make the key of a pair from this party's half and the peer's."""
        if len(theirs) != SEED_BYTES:
            raise ProtocolViolation("sent half of a key of another size", culprit=peer)
        halves = {self.name: self.halves[peer], peer: theirs}
        self.keys[peer] = TagKey.of(halves, self._session)

    # -- messages --------------------------------------------------------------------------------

    def sent(self, peer: str, frame: Frame) -> None:
        """Note a message that was handed to the transport."""
        self._note(self._sent[peer], self.name, peer, frame)

    def received(self, peer: str, frame: Frame) -> None:
        """Note a message that arrived."""
        if peer not in self.keys:
            raise ProtocolViolation("sent a message before all had joined", culprit=peer)
        if self._entries >= MAX_ENTRIES:  # a run begins below half of it
            raise ProtocolViolation("sent more messages than a receipt holds", culprit=peer)
        self._note(self._received[peer], peer, peer, frame)

    def _note(self, side: _Side, sender: str, peer: str, frame: Frame) -> None:
        size = byte_view(frame.payload).nbytes
        tag = self.keys[peer].tag(side.mark.count, sender, frame)
        core = CORE.pack(frame.kind, frame.phase, frame.channel, frame.step, size, tag)
        side.mark = extend(side.mark, core, size)
        if self._keep:
            time_ = (time.monotonic_ns() - self._began) // 1000
            side.legs[-1] += core + time_.to_bytes(8, "little")
            self._entries += 1

    def check_room(self) -> None:
        """Raise ConfigError where another run would not fit into the receipt."""
        if self._keep and (self._entries >= MAX_ENTRIES // 2 or len(self._own) >= MAX_LEGS):
            raise ConfigError("the receipt of this join is full", hint="join again")

    # -- ends of inferences ----------------------------------------------------------------------

    def claims(self, number: int, word: bytes) -> dict[str, bytes]:
        """What this party's DONE says to each peer: the word, and where both chains stand, signed."""
        found = {}
        for peer, side in self._sent.items():
            # What a peer sends after this counts for the next inference: an honest one sends nothing, and no
            # other can make this party's receipt contradict what it signs here.
            claim = Claim(word, side.end(number), self._received[peer].end(number))
            signature = self._sign(
                claim.signed(self._session, number, self.name, peer, self.keys[peer].check())
            )
            found[peer] = Claim(word, claim.sent, claim.received, signature).pack()
        self._own[number] = dict(found)
        return found

    def ended(self, peer: str, number: int, data: bytes) -> bytes:
        """Take a peer's DONE: what follows belongs to its next inference. Returns its word.

        Raises
        ------
        ProtocolViolation
            It is not signed by the peer.
        """
        if peer not in self.keys:
            raise ProtocolViolation("said that it was done before all had joined", culprit=peer)
        claim = Claim.parse(data, peer)
        message = claim.signed(self._session, number, peer, self.name, self.keys[peer].check())
        self._verify(peer, message, claim.signature)
        self._received[peer].end(number)
        self._theirs[number][peer] = data
        return claim.word

    def compare(self, peers: set[str]) -> None:
        """Hold what the peers signed for the inference that just ended against this party's chains.

        Raises
        ------
        ProtocolViolation
            A peer signed another account; it is kept for the receipt.
        """
        number = max(self._own)
        for peer in sorted(peers):
            claim = Claim.parse(self._theirs[number][peer], peer)
            own = self._sent[peer].ends[number], self._received[peer].ends[number]
            if (claim.received, claim.sent) != own:
                raise ProtocolViolation(
                    "signed another account of what was sent than this party's",
                    culprit=peer,
                    hint="compare the receipts of both: privinfer verify",
                )

    # -- afterwards ------------------------------------------------------------------------------

    def legs(self) -> list[Leg]:
        """Everything noted, also of an inference that has not ended."""
        sides = (*self._sent.values(), *self._received.values())
        found = []
        for k in range(max(len(side.legs) for side in sides)):
            sent, received = (
                {peer: bytes(side.legs[k]) for peer, side in chains.items() if side.legs[k:] and side.legs[k]}
                for chains in (self._sent, self._received)
            )
            leg = Leg(sent, received, self._own.get(k, {}), self._theirs.get(k, {}))
            if sent or received or leg.own or leg.peers:
                found.append(leg)
        return found
