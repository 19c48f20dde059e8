"""Everybody says something to everybody, signed, and all end up with the same: or the liar is named.

Each party sends what it has to say, then shows what it heard: a digest and a signature for each party. Who
signed two different things, or shows what nobody said, is caught before anything depends on it. Two one-way
messages; the second need not be waited for at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from privinfer.backends.base import Phase
from privinfer.errors import ProtocolViolation
from privinfer.runtime.post import Office
from privinfer.session.agreement import spoken
from privinfer.transport.frames import Kind

_DIGEST, _SIGNATURE = 32, 64
_ENTRY = _DIGEST + _SIGNATURE


class Alike:
    """One such exchange.

    Parameters
    ----------
    office : Office
        Carries it.
    step : int
        Of the first message; the second takes the next one.
    names : tuple of str
        All parties, in the order of the session file.
    own : str
        This party.
    sign, verify : callable
        With this party's key, with another's.
    context : bytes
        What is signed along: no statement passes for another's, or for one of another exchange.
    """

    def __init__(
        self,
        office: Office,
        step: int,
        names: tuple[str, ...],
        own: str,
        sign: Callable[[bytes], bytes],
        verify: Callable[[str, bytes, bytes], None],
        context: bytes,
    ) -> None:
        self._office, self._step, self._names, self._own = office, step, names, own
        self._sign, self._verify, self._context = sign, verify, context
        self._entries: dict[str, bytes] = {}
        self._said: dict[str, bytes] = {}

    def _signed(self, name: str, digest: bytes) -> bytes:
        return spoken(name, self._context, digest)

    def tell(self, content: bytes) -> None:
        """Say this party's part."""
        digest = hashlib.sha256(content).digest()
        signature = self._sign(self._signed(self._own, digest))
        self._entries[self._own], self._said[self._own] = digest + signature, content
        self._office.expect(self._step, self._take)
        self._office.tell(Kind.HELLO, Phase.SETUP, self._step, signature + content)

    def _take(self, peer: str, data: bytes) -> None:
        signature, content = data[:_SIGNATURE], data[_SIGNATURE:]
        digest = hashlib.sha256(content).digest()
        self._verify(peer, self._signed(peer, digest), signature)
        self._entries[peer], self._said[peer] = digest + signature, content

    def hear(self, closing: Callable[[dict[str, bytes]], bytes] = lambda said: b"") -> dict[str, bytes]:
        """Wait for all others' parts, and show them; `closing` makes of them what is said along.

        Returns
        -------
        dict
            Party to what it said; this party too, and without those that were lost and can be spared.
        """
        self._office.hear(self._step, set(self._office.endpoint.peers))
        heard = {name: self._said[name] for name in self._names if name in self._said}
        shown = b"".join(self._entries.get(name, bytes(_ENTRY)) for name in self._names)
        tail = closing(heard)
        self._office.expect(self._step + 1, self._compare)
        self._office.tell(Kind.HELLO, Phase.CONTROL, self._step + 1, shown + tail)
        return heard

    def signed(self) -> dict[str, tuple[bytes, bytes]]:
        """What each party said so far, with its signature."""
        return {name: (said, self._entries[name][_DIGEST:]) for name, said in self._said.items()}

    def _compare(self, peer: str, data: bytes) -> None:
        if len(data) < _ENTRY * len(self._names):
            raise ProtocolViolation("sent a malformed statement", culprit=peer)
        for k, name in enumerate(self._names):
            entry = data[k * _ENTRY : (k + 1) * _ENTRY]
            own = self._entries.get(name)
            if own is None or not any(entry) or entry == own:
                continue
            try:
                self._verify(name, self._signed(name, entry[:_DIGEST]), entry[_DIGEST:])
            except ProtocolViolation:
                raise ProtocolViolation("shows a statement that nobody made", culprit=peer) from None
            if entry[:_DIGEST] != own[:_DIGEST]:
                raise ProtocolViolation("told two parties different things", culprit=name)

    def settle(self) -> dict[str, bytes]:
        """Wait until all others have shown the same; returns what each said along."""
        shown = self._office.hear(self._step + 1, set(self._office.endpoint.peers))
        return {peer: data[_ENTRY * len(self._names) :] for peer, data in shown.items()}
