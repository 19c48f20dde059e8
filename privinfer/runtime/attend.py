"""One inference in which a party may crash and come back: whoever had not gone online joins again.

A join that fails before anything that depends on an input has left this party, or reached it, is begun anew:
another nonce, another agreement, other commitments, other masks; a piece that a store handed out stays
used. Once online there is no second try. Whether the others had gone online is their word, and decides only
whether this party waits for them again.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from privinfer.errors import ConfigError, TransportError
from privinfer.session.identity import Identity

if TYPE_CHECKING:
    from privinfer.graph import ir
    from privinfer.protocols.commitment import Opening
    from privinfer.runtime import consents
    from privinfer.runtime.party import Result, Session, Watcher

_PAUSE_S = 0.2
MAX_ATTEMPTS = 100


@dataclass(frozen=True)
class Attended:
    """How it went.

    Attributes
    ----------
    result : Result or None
        As of :meth:`Party.run`.
    report : dict
        Of the attempt that went well.
    lost : tuple of TransportError
        Why the attempts before it ended.
    """

    result: Result | None
    report: dict[str, Any]
    lost: tuple[TransportError, ...]


def attend(
    session: Session,
    name: str,
    identity: str | os.PathLike[str] | Identity,
    inputs: Mapping[str, Any] | None = None,
    *,
    attempts: int = 3,
    model: ir.Model | None = None,
    progress: Watcher | None = None,
    listener: Callable[[], socket.socket] | None = None,
    store: str | os.PathLike[str] | None = None,
    opening: str | os.PathLike[str] | Opening | None = None,
    receipt: str | os.PathLike[str] | None = None,
    ledger: str | os.PathLike[str] | None = None,
    uses: str | os.PathLike[str] | None = None,
    consent: consents.Source | None = None,
    revocations: Sequence[consents.Source] = (),
) -> Attended:
    """Join and run once; after a TransportError before the online phase, join again.

    All parties should allow the same number of attempts: who does not come again is waited for as long as
    the session's ``connect_timeout``. A consent is spent, and a piece of a store used, by every attempt that
    gets so far.

    Parameters
    ----------
    session : Session
    name, identity, model, progress, store, opening, ledger, uses
        As for :meth:`Session.join`.
    inputs, consent, revocations : optional
        As for :meth:`Party.run`.
    attempts : int
        1 to 100.
    listener : callable, optional
        Gives a listening socket for each attempt, in place of the address in the session file.
    receipt : path, optional
        Of the first attempt; those of later ones end in ``.2``, ``.3``, ...

    Raises
    ------
    TransportError
        This party had gone online, or somebody else had, or it was the last attempt. Where nobody came to
        the last ones, the error is that of the attempt before.
    PrivinferError
        Anything else that :meth:`Session.join` and :meth:`Party.run` raise, at once.
    """
    if not 1 <= attempts <= MAX_ATTEMPTS:
        raise ConfigError(f"attempts is not in 1..{MAX_ATTEMPTS}")
    lost: list[TransportError] = []
    met: TransportError | None = None
    while True:
        joined, again = False, True
        try:
            with session.join(
                name,
                identity,
                model=model,
                progress=progress,
                listener=None if listener is None else listener(),
                store=store,
                opening=opening,
                receipt=_numbered(receipt, len(lost) + 1),
                ledger=ledger,
                uses=uses,
            ) as party:
                joined = True
                try:
                    result = party.run(inputs, consent=consent, revocations=revocations)
                except TransportError:
                    again = party.may_begin_again()
                    raise
                return Attended(result, party.report or {}, tuple(lost))
        except TransportError as error:
            lost.append(error)
            if joined or met is None:
                met = error
            if len(lost) == attempts or not again:
                break
        time.sleep(_PAUSE_S)
    if len(lost) > 1 and met.hint is None:
        met.hint = f"this was attempt {lost.index(met) + 1} of {len(lost)}"
    raise met


def _numbered(path: str | os.PathLike[str] | None, attempt: int) -> str | os.PathLike[str] | None:
    return path if path is None or attempt == 1 else f"{os.fspath(path)}.{attempt}"
