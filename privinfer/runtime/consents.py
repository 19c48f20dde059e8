"""How a run comes under a consent: its party brings it, all check it, owners spend a use before they share.

It travels in the statement that every party makes when a run begins (`engage.py`), so all hear the same one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from privinfer.errors import ConfigError, ConsentError, ProtocolViolation
from privinfer.runtime.uses import Uses, revoked
from privinfer.session import canonical
from privinfer.session.consent import Consent, Revocation, check, load
from privinfer.session.manifest import Manifest

MAX_REVOCATIONS: Final = 16
MAX_BROUGHT: Final = 1 << 17
Source = str | os.PathLike[str] | bytes
T = TypeVar("T", Consent, Revocation)


@dataclass(frozen=True, slots=True)
class Brought:
    """What the consent party says along.

    Attributes
    ----------
    consent : bytes or None
        Signed; None where it brings none.
    revocations : tuple of bytes
        Signed, of earlier consents.
    """

    consent: bytes | None = None
    revocations: tuple[bytes, ...] = ()

    def plain(self) -> dict[str, canonical.Value]:
        """What of it stands in a statement."""
        said: dict[str, canonical.Value] = {}
        if self.consent is not None:
            said["consent"] = self.consent
        if self.revocations:
            said["revocations"] = list(self.revocations)
        return said


def take(fields: canonical.Fields, party: str) -> Brought:
    """Read what :meth:`Brought.plain` put into a statement; ProtocolViolation where it has another form."""
    consent = fields.take("consent", bytes) if fields.has("consent") else None
    found: list[Any] = fields.take("revocations", list) if fields.has("revocations") else []
    if len(found) > MAX_REVOCATIONS or not all(isinstance(one, bytes) for one in found):
        raise ProtocolViolation("statement has no proper revocations", culprit=party)
    return Brought(consent, tuple(found))


def bring(
    manifest: Manifest, name: str, consent: Source | None, revocations: Sequence[Source], uses: Uses | None
) -> Brought:
    """Look at a party's own side before anything is sent.

    Raises
    ------
    ConsentError
        This party has to bring a consent, and brings none.
    ConfigError
        Nobody asked for what it brings, it cannot be read, or an owner has no ledger.
    """
    who = manifest.terms.consent
    if who != name and (consent is not None or revocations):
        raise ConfigError(
            "brings a consent that nobody asks for",
            culprit=name,
            hint="terms.consent names who brings one" if who is None else f"{who} has to bring it",
        )
    if who is None:
        return Brought()
    if uses is None and name in manifest.inputs.values():
        raise ConfigError(
            "has no ledger, and this session asks for consent", culprit=name, hint="join with uses=FOLDER"
        )
    if len(revocations) > MAX_REVOCATIONS:
        raise ConfigError(f"brings more than {MAX_REVOCATIONS} revocations", culprit=name)
    if who == name and consent is None and not revocations:
        raise _missing(name)
    found = Brought(None if consent is None else read_source(consent), tuple(map(read_source, revocations)))
    if sum(map(len, (found.consent or b"", *found.revocations))) > MAX_BROUGHT:
        raise ConfigError(f"consent and revocations are longer than {MAX_BROUGHT} bytes", culprit=name)
    if found.consent is not None:
        own(found.consent, name, Consent)
    for signed in found.revocations:
        own(signed, name, Revocation)
    return found


def own(signed: bytes, name: str | None, kind: type[T]) -> T:
    """Read a document of this party's own; ConfigError where it has another form."""
    try:
        return kind.read(signed, name)
    except ProtocolViolation as error:
        raise ConfigError(error.message, culprit=name, hint="privinfer consent show FILE") from None


def admit(
    brought: Brought,
    manifest: Manifest,
    name: str,
    uses: Uses | None,
    *,
    session: bytes,
    run: int,
    rows: int | None,
) -> None:
    """Check what the consent party brought; an owner notes revocations and spends a use.

    Parameters
    ----------
    brought : Brought
        As all heard it.
    manifest : Manifest
        Of the session.
    name : str
        This party.
    uses : Uses or None
        Its ledger; required of owners.
    session : bytes
        Digest of the agreement.
    run : int
        Number of the run's first inference.
    rows : int or None
        Of this run, where known.

    Raises
    ------
    ConsentError
        There is no consent to this run; the culprit is who had to bring it.
    ProtocolViolation
        What was brought has another form.
    """
    who = manifest.terms.consent
    if who is None:
        return
    gone = {}
    for signed in brought.revocations:
        one = Revocation.read(signed, who)
        if one.certificate.hex() != manifest.party(who).identity.fingerprint:
            raise ProtocolViolation("brings a revocation that is not its own", culprit=who)
        gone[one.id] = one.time
        if uses is not None:
            uses.revoke(one, signed)
    if brought.consent is None:
        raise _missing(who)
    consent = Consent.read(brought.consent, who)
    check(consent, manifest, rows=rows)
    if consent.id in gone:
        raise revoked(who, gone[consent.id])
    if name in manifest.inputs.values():
        if uses is None:
            raise ConfigError("has no ledger, and this session asks for consent", culprit=name)
        uses.spend(consent, brought.consent, session, run)


def _missing(who: str) -> ConsentError:
    return ConsentError("brought no consent", culprit=who, hint="privinfer consent grant makes one")


def read_source(source: Source) -> bytes:
    """Bytes as they are, or a file's."""
    return source if isinstance(source, bytes) else load(source)
