"""A run over many rows goes in chunks, each an inference of its own: how they are agreed and added up.

An owner announces the rows that it still brings, evaluators and helper take the first of them
(`Backend.rows_at_once`), and so on until none is left. Whoever is told nothing of rows, as the model owner,
hears from evaluators and helper at the end of each chunk how many are left: a word in their DONE, none after
the last.
"""

from __future__ import annotations

import struct
import time
from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from privinfer.backends.base import Outputs, Player
from privinfer.errors import ProtocolViolation
from privinfer.session.manifest import Manifest

_LATER = struct.Struct("<I")


def count(rows: int, at_once: int) -> int:
    """Chunks of a run; a run over no rows is one too."""
    return max(1, -(-rows // at_once))


def told(players: Iterable[Player]) -> int | None:
    """Rows that are left after this chunk, where one of these roles is told."""
    return next((p.later for p in players if p.later is not None), None)


def word(name: str, manifest: Manifest, later: int | None) -> bytes:
    """What a party says at the end of a chunk: evaluators and helper speak, and only where rows are left."""
    return _LATER.pack(later) if later and name in _speakers(manifest) else b""


def _speakers(manifest: Manifest) -> tuple[str | None, ...]:
    return (*manifest.evaluators, manifest.helper)


def settle(manifest: Manifest, name: str, later: int | None, words: Mapping[str, bytes]) -> int:
    """Rows that are left, as evaluators and helper say.

    Parameters
    ----------
    manifest : Manifest
        Of the session.
    name : str
        This party.
    later : int or None
        What it knows itself.
    words : mapping
        What the others said at the end of the chunk.

    Raises
    ------
    ProtocolViolation
        They say different things, or this party knows better; names one or two who may have lied.
    """
    said: dict[str, int] = {}
    for peer, data in words.items():
        allowed = (0, _LATER.size) if peer in _speakers(manifest) else (0,)
        if len(data) not in allowed or (data and not any(data)):
            raise ProtocolViolation("sent a malformed end of a chunk", culprit=peer)
        if data or peer in manifest.evaluators:  # a helper is not told where all was dealt ahead
            said[peer] = _LATER.unpack(data)[0] if data else 0
    votes = Counter([*said.values(), *([later] if later is not None else [])])
    if len(votes) > 1:
        suspects = _suspects(manifest, name, later, said, votes)
        raise ProtocolViolation("tells of other rows to come than others do", culprit=" or ".join(suspects))
    return next(iter(votes), 0)


def _suspects(
    manifest: Manifest, name: str, later: int | None, said: Mapping[str, int], votes: Counter[int]
) -> list[str]:
    """Who may have lied: whoever differs from most, or a single owner that told them different things.

    Of several owners each would have to tell the same lie, or its rows would differ from another's at once.
    """
    ((most, count),) = votes.most_common(1)
    evaluators = [e for e in manifest.evaluators if e != name]
    owners = set(manifest.inputs.values())
    owner = [*owners] if len(owners) == 1 and name not in owners else []
    if count == 1:
        return evaluators
    odd = [peer for peer, rows in said.items() if rows != most]
    if odd:
        return [*dict.fromkeys([*odd, *owner])][:2]
    if name not in (*_speakers(manifest), *owners):
        return evaluators[:1]  # a receiver knows what the first evaluator told it before
    return owner or [peer for peer in _speakers(manifest) if peer is not None and peer in said][:2]


class Tally:
    """Adds up the chunks of one run.

    Attributes
    ----------
    chunks : int
        How many are done.
    offline, online : float
        Seconds of each phase in all chunks; what lies between two chunks counts as offline.
    rounds : Counter
        One-way messages on the critical path; chunks come one after another, so they add up.
    """

    def __init__(self) -> None:
        self.chunks = 0
        self.offline = self.online = 0.0
        self.rounds: Counter[str] = Counter()
        self._parts: list[Outputs] = []
        self._mark = time.perf_counter()

    def dealt(self) -> None:
        """Note that everything of this chunk is dealt."""
        self.offline += self._lap()

    def done(self, returned: Iterable[Outputs | None]) -> None:
        """Note the end of a chunk and what its receivers returned."""
        self.online += self._lap()
        self.chunks += 1
        part: Outputs = {}
        for outputs in returned:
            part.update(outputs or {})
        self._parts.append(part)

    def _lap(self) -> float:
        before, self._mark = self._mark, time.perf_counter()
        return self._mark - before

    def outputs(self) -> Outputs:
        """All rows, in the order in which they came."""
        if len(self._parts) == 1:
            return self._parts[0]
        return {name: np.concatenate([part[name] for part in self._parts]) for name in self._parts[0]}
