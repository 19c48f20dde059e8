"""A decryption share leaves its party once for a ciphertext and once for a step of the plan.

Two shares of one c1 differ by their noise alone: averaged, or opened to two active sets, they give s_i away
(eprint 2024/194, 2025/409, 2026/031). So whoever computes s_i c1 needs a :class:`Permit`, a permit is bound
to one c1, and :class:`Releases` grants it only after the entry is durable: a crash loses a share and never
repeats one. A retry sends the stored identical share again; where that is lost, new keys are made.

What a step is, is the plan's business: steps are those of the agreed circuit and no others, so a ciphertext
that the plan does not open is not opened. NOT protected: an evaluator that deviates and puts a ciphertext
of its choice in the place of the plan's (c1 is not proved to come from the circuit).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from privinfer.errors import IntegrityError, ProtocolViolation
from privinfer.protocols.randomness import U64


@dataclass(frozen=True, slots=True)
class Entry:
    """What the ledger keeps of a release.

    Attributes
    ----------
    session : bytes
        Tag of the session and attempt.
    step : str
        Of the plan, ciphertext number included.
    digest : bytes
        Of c1.
    """

    session: bytes
    step: str
    digest: bytes


Record = Callable[[Sequence[Entry]], None]


def ciphertext_digest(c1: U64) -> bytes:
    """SHA-256 of the first limb: the same at every level, for dropped limbs make no other ciphertext."""
    first = np.ascontiguousarray(c1[0])
    return hashlib.sha256(b"privinfer/ckks/c1/1" + first.astype("<u8", copy=False).tobytes()).digest()


def volatile(entries: Sequence[Entry]) -> None:
    """Keep no ledger beyond this process: for simulations, where no party outlives it."""
    del entries


class Permit:
    """Leave to compute one share of one ciphertext.

    Attributes
    ----------
    step : str
        Of the plan.
    """

    __slots__ = ("_digest", "_used", "step")

    def __init__(self, step: str, digest: bytes) -> None:
        self.step = step
        self._digest = digest
        self._used = False

    def use(self, c1: U64) -> None:
        """Spend the permit; IntegrityError on the second time and for another ciphertext."""
        if self._used:
            raise IntegrityError(f"step {self.step!r}: a second share of one ciphertext")
        self._used = True
        if ciphertext_digest(c1) != self._digest:
            raise IntegrityError(f"step {self.step!r}: the share would be of another ciphertext")


class Releases:
    """One party's releases of one session.

    Parameters
    ----------
    session : bytes
        Tag of the session and attempt.
    record : callable
        Makes entries durable, or raises IntegrityError where one was there: `runtime/ledger.py`.
    steps : collection of str, optional
        The plan's steps that open or share a ciphertext; None where the caller holds requests to the plan
        itself.
    """

    def __init__(self, session: bytes, record: Record, steps: Collection[str] | None = None) -> None:
        self._session = bytes(session)
        self._record = record
        self._steps = None if steps is None else frozenset(steps)
        self._done: set[str | bytes] = set()

    def claim(self, step: str, c1: U64, asked_by: str | None = None) -> Permit:
        """Grant one share; see :meth:`claim_all`."""
        return self.claim_all({step: c1}, asked_by)[step]

    def claim_all(self, wanted: Mapping[str, U64], asked_by: str | None = None) -> dict[str, Permit]:
        """Grant one share each for several ciphertexts, with one write to the ledger.

        Parameters
        ----------
        wanted : mapping of str to ndarray
            c1 of each step.
        asked_by : str, optional
            The party that sent the ciphertexts.

        Returns
        -------
        dict of str to Permit
            One for each step. All entries are durable by then.

        Raises
        ------
        ProtocolViolation
            A step is not in the plan; names who asked.
        IntegrityError
            A share of the ciphertext, or for the step, was released before. Nothing is granted.
        """
        entries = [Entry(self._session, step, ciphertext_digest(c1)) for step, c1 in wanted.items()]
        claimed: set[str | bytes] = set()
        for entry in entries:
            if self._steps is not None and entry.step not in self._steps:
                raise ProtocolViolation(
                    f"a share was asked for at {entry.step!r}, which is no step of the plan",
                    culprit=asked_by,
                    step=entry.step,
                )
            if entry.step in self._done:
                raise IntegrityError(
                    f"step {entry.step!r}: a share was released before",
                    culprit=asked_by,
                    hint="make new keys",
                )
            if entry.digest in self._done or entry.digest in claimed:
                raise IntegrityError(
                    f"step {entry.step!r}: a share of this ciphertext was released before",
                    culprit=asked_by,
                    hint="make new keys",
                )
            claimed |= {entry.step, entry.digest}
        # Remembered first: should the ledger fail half-way, the entry may be on disk, and is burned.
        self._done |= claimed
        self._record(entries)
        return {entry.step: Permit(entry.step, entry.digest) for entry in entries}
