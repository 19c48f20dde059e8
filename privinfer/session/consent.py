"""A person's consent to the use of data about them, and its revocation: signed, not bound to one session.

Each is a canonical CBOR document in an envelope with the signer's certificate and Ed25519 signature. A
consent says which inputs of which owners, for which model (architecture and commitment to the weights),
which purpose, which receivers and keys, from when until when, how many runs of how many rows. Any party
checks it against the session file with :func:`check`; owners count uses (`runtime/uses.py`).
"""

from __future__ import annotations

import datetime as dt
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from privinfer.errors import ConfigError, ConsentError, IntegrityError, PrivinferError, ProtocolViolation
from privinfer.session import canonical, files
from privinfer.session.identity import MAX_PEM, NAME, Identity, PublicIdentity
from privinfer.session.manifest import MAX_INPUTS, MAX_PARTIES, Manifest
from privinfer.session.terms import MAX_PURPOSE

CONSENT: Final = "privinfer/consent/1"
REVOCATION: Final = "privinfer/revocation/1"
MAX_BYTES: Final = 1 << 16
ID_BYTES: Final = 16
MAX_USES: Final = 1_000_000
MAX_ROWS: Final = 1 << 31
_MAX_TIME = 253402300799  # the last second of the year 9999
_DIGEST, _SIGNATURE = 32, 64


@dataclass(frozen=True, slots=True)
class Consent:
    """What a person agrees to.

    Attributes
    ----------
    id : bytes
        16 bytes, drawn once: uses and revocations go by it.
    patient : str
        Party name of who consents.
    certificate : bytes
        SHA-256 of that party's certificate.
    inputs : dict
        Name of an input to its owner.
    architecture, weights : bytes
        Hash of the model's architecture, commitment to its weights.
    purpose : str
        As in the session's terms, to the letter.
    receivers : dict
        Who may learn outputs: party name to the SHA-256 of its certificate.
    not_before, until : int
        Seconds since 1970, UTC; valid from the first on and before the second.
    uses : int
        Runs in all, counted at each owner.
    rows : int
        Rows of one run at most.

    Raises
    ------
    ConfigError
        A field is not possible; the message names it.
    """

    id: bytes
    patient: str
    certificate: bytes
    inputs: dict[str, str]
    architecture: bytes
    weights: bytes
    purpose: str
    receivers: dict[str, bytes]
    not_before: int
    until: int
    uses: int = 1
    rows: int = 1

    def __post_init__(self) -> None:
        for name, good in (
            ("id", len(self.id) == ID_BYTES),
            ("patient", NAME.fullmatch(self.patient)),
            ("certificate", len(self.certificate) == _DIGEST),
            ("inputs", _within(len(self.inputs), 1, MAX_INPUTS) and all(map(_is_input, self.inputs.items()))),
            ("architecture", len(self.architecture) == _DIGEST),
            ("weights", len(self.weights) == _DIGEST),
            ("purpose", self.purpose.isprintable() and _within(len(self.purpose), 1, MAX_PURPOSE)),
            (
                "receivers",
                _within(len(self.receivers), 1, MAX_PARTIES) and all(map(_is_key, self.receivers.items())),
            ),
            ("not_before", _within(self.not_before, 0, _MAX_TIME)),
            ("until", _within(self.until, self.not_before + 1, _MAX_TIME)),
            ("uses", _within(self.uses, 1, MAX_USES)),
            ("rows", _within(self.rows, 1, MAX_ROWS)),
        ):
            if not good:
                raise ConfigError(f"{name} of the consent is not possible")

    def sign(self, identity: Identity) -> bytes:
        """The signed consent.

        Parameters
        ----------
        identity : Identity
            The patient's, with the certificate that the consent names.
        """
        _check_own(identity, self.patient, self.certificate)
        document: dict[str, canonical.Value] = {
            "format": CONSENT,
            **{name: getattr(self, name) for name in self.__slots__},
        }
        return _seal(CONSENT, document, identity)

    @classmethod
    def read(cls, data: bytes, culprit: str | None = None) -> Self:
        """Read a signed consent from anybody; the signature is checked.

        Parameters
        ----------
        data : bytes
            Hostile until read.
        culprit : str, optional
            Who brought it.

        Raises
        ------
        ProtocolViolation
            It has another form.
        ConsentError
            The signature is wrong, or of another key than the document names.
        """
        fields, signer = _open(data, CONSENT, "consent", culprit)
        try:
            found = cls(
                id=fields.take("id", bytes),
                patient=fields.take("patient", str),
                certificate=fields.take("certificate", bytes),
                inputs=fields.take("inputs", dict),
                architecture=fields.take("architecture", bytes),
                weights=fields.take("weights", bytes),
                purpose=fields.take("purpose", str),
                receivers=fields.take("receivers", dict),
                not_before=fields.take("not_before", int),
                until=fields.take("until", int),
                uses=fields.take("uses", int),
                rows=fields.take("rows", int),
            )
        except ConfigError as error:
            raise ProtocolViolation(error.message, culprit=culprit) from None
        fields.finish()
        _check_signer(signer, found.patient, found.certificate, "consent", culprit)
        return found


@dataclass(frozen=True, slots=True)
class Revocation:
    """That a consent does not hold any more.

    Attributes
    ----------
    id : bytes
        Of the consent.
    patient : str
        Party name of who revokes.
    certificate : bytes
        SHA-256 of its certificate, the one the consent names.
    time : int
        When, by the patient's clock: seconds since 1970. Owners refuse from when they hear of it on.
    """

    id: bytes
    patient: str
    certificate: bytes
    time: int

    def sign(self, identity: Identity) -> bytes:
        """The signed revocation."""
        _check_own(identity, self.patient, self.certificate)
        document: dict[str, canonical.Value] = {
            "format": REVOCATION,
            **{name: getattr(self, name) for name in self.__slots__},
        }
        return _seal(REVOCATION, document, identity)

    @classmethod
    def read(cls, data: bytes, culprit: str | None = None) -> Self:
        """Read a signed revocation from anybody; raises like :meth:`Consent.read`."""
        fields, signer = _open(data, REVOCATION, "revocation", culprit)
        found = cls(
            id=fields.take("id", bytes, ID_BYTES),
            patient=fields.take("patient", str),
            certificate=fields.take("certificate", bytes, _DIGEST),
            time=fields.take("time", int),
        )
        fields.finish()
        if not _within(found.time, 0, _MAX_TIME):
            raise ProtocolViolation("time of the revocation is not possible", culprit=culprit)
        _check_signer(signer, found.patient, found.certificate, "revocation", culprit)
        return found


# -- making and checking -----------------------------------------------------------------------------


def for_session(
    manifest: Manifest,
    until: dt.datetime,
    *,
    inputs: tuple[str, ...] | None = None,
    not_before: dt.datetime | None = None,
    uses: int = 1,
    rows: int = 1,
) -> Consent:
    """The consent that a session asks for.

    Parameters
    ----------
    manifest : Manifest
        A session with ``terms.consent``.
    until : datetime
        With its time zone.
    inputs : tuple of str, optional
        Which of its inputs; all by default.
    not_before : datetime, optional
        Now by default.
    uses, rows : int
        Runs in all, rows of each.

    Raises
    ------
    ConfigError
        The session asks for none, has no such input, or a field is not possible.
    """
    terms = manifest.terms
    if terms.consent is None or terms.weights is None:
        raise ConfigError("the session asks for no consent", hint="its terms have to say so: terms.consent")
    chosen = manifest.inputs if inputs is None else dict.fromkeys(inputs)
    for name in chosen:
        if name not in manifest.inputs:
            known = ", ".join(sorted(manifest.inputs))
            raise ConfigError(f"the session has no input {name!r}", hint=f"known: {known}")
    return Consent(
        id=secrets.token_bytes(ID_BYTES),
        patient=terms.consent,
        certificate=_fingerprint(manifest, terms.consent),
        inputs={name: manifest.inputs[name] for name in chosen},
        architecture=bytes.fromhex(manifest.model),
        weights=bytes.fromhex(terms.weights),
        purpose=terms.purpose,
        receivers={name: _fingerprint(manifest, name) for name in manifest.receivers.values()},
        not_before=int((not_before or dt.datetime.now(dt.UTC)).timestamp()),
        until=int(until.timestamp()),
        uses=uses,
        rows=rows,
    )


def check(
    consent: Consent, manifest: Manifest, *, rows: int | None = None, now: dt.datetime | None = None
) -> None:
    """Check that a consent covers a run of a session; what the ledger counts is not looked at.

    Parameters
    ----------
    consent : Consent
        From :meth:`Consent.read`, which has checked the signature.
    manifest : Manifest
        Of a session with ``terms.consent``.
    rows : int, optional
        Of this run, where known.
    now : datetime, optional

    Raises
    ------
    ConsentError
        It does not; the culprit is who had to bring it.
    """
    terms = manifest.terms
    who = terms.consent
    if who is None or terms.weights is None:
        raise ConfigError("the session asks for no consent")

    def refuse(why: str, hint: str | None = None) -> ConsentError:
        return ConsentError(f"the consent {why}", culprit=who, hint=hint)

    if (consent.patient, consent.certificate) != (who, _fingerprint(manifest, who)):
        raise refuse(f"was not given by {who}", "the certificate counts, not the name alone")
    if consent.architecture != bytes.fromhex(manifest.model):
        raise refuse("is for another model")
    if consent.weights != bytes.fromhex(terms.weights):
        raise refuse("is for other weights of the model")
    if consent.purpose != terms.purpose:
        raise refuse("is for another purpose")
    for receiver in sorted(set(manifest.receivers.values())):
        if receiver not in consent.receivers:
            raise refuse(f"does not have {receiver} as a receiver")
        if consent.receivers[receiver] != _fingerprint(manifest, receiver):
            raise refuse(f"names another key of receiver {receiver}")
    for name, owner in sorted(manifest.inputs.items()):
        if consent.inputs.get(name) != owner:
            raise refuse(f"does not cover input {name!r} of {owner}")
    time = (now or dt.datetime.now(dt.UTC)).timestamp()
    if time < consent.not_before:
        raise refuse(f"is not valid before {moment(consent.not_before)}", "compare the clocks")
    if time >= consent.until:
        raise refuse(f"expired at {moment(consent.until)}", "ask for a new one, or compare the clocks")
    if rows is not None and rows > consent.rows:
        raise refuse(f"allows {consent.rows} rows a run, and this one has {rows}")


def moment(seconds: int) -> str:
    """A time as text, UTC."""
    return f"{dt.datetime.fromtimestamp(seconds, dt.UTC):%Y-%m-%d %H:%M:%S} UTC"


# -- files -------------------------------------------------------------------------------------------


def save(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a signed document to a new file; ConfigError where it exists or cannot be written."""
    files.write_new(path, data, hint="choose another file name")


def load(path: str | os.PathLike[str]) -> bytes:
    """Read the bytes of a signed document; nothing of it is checked but its length."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))  # no pipe may hang us
        with open(fd, "rb") as file:
            data = file.read(MAX_BYTES + 1) or b""
    except OSError as e:
        raise ConfigError(f"cannot read {os.fspath(path)}: {(e.strerror or 'error').lower()}") from None
    if len(data) > MAX_BYTES:
        raise IntegrityError(f"{os.fspath(path)} is no consent: longer than {MAX_BYTES} bytes")
    return data


def from_file(path: str | os.PathLike[str]) -> Consent | Revocation:
    """Read a file of either kind, its signature checked.

    Raises
    ------
    ConfigError, IntegrityError, ConsentError
        It cannot be read, is damaged or something else, or its signature is wrong.
    """
    data = load(path)
    try:
        kind = _format(data)
        return Revocation.read(data) if kind == REVOCATION else Consent.read(data)
    except ProtocolViolation as error:
        raise IntegrityError(f"{os.fspath(path)}: {error.message}") from None


# -- the envelope ------------------------------------------------------------------------------------


def _seal(form: str, document: Mapping[str, canonical.Value], identity: Identity) -> bytes:
    inner = canonical.dumps(document)
    data = canonical.dumps(
        {
            "document": inner,
            "certificate": identity.certificate_pem,
            "signature": identity.sign(form.encode() + b":" + inner),
        }
    )
    if len(data) > MAX_BYTES:
        raise ConfigError(f"the document is longer than {MAX_BYTES} bytes")
    return data


def _open(data: bytes, form: str, what: str, culprit: str | None) -> tuple[canonical.Fields, PublicIdentity]:
    envelope = canonical.Fields(canonical.loads(data, what, culprit, MAX_BYTES), what, culprit)
    inner = envelope.take("document", bytes)
    pem = envelope.take("certificate", str)
    signature = envelope.take("signature", bytes, _SIGNATURE)
    envelope.finish()
    try:
        if len(pem) > MAX_PEM:
            raise ConfigError("too long")
        signer = PublicIdentity.from_certificate(pem)
    except PrivinferError:
        raise ProtocolViolation(f"{what} has no proper certificate", culprit=culprit) from None
    try:
        signer.verify(form.encode() + b":" + inner, signature)
    except ProtocolViolation:
        raise ConsentError(f"the signature of the {what} is wrong", culprit=culprit) from None
    fields = canonical.Fields(canonical.loads(inner, what, culprit, MAX_BYTES), what, culprit)
    if fields.take("format", str) != form:
        raise ProtocolViolation(f"{what} is of another version", culprit=culprit)
    return fields, signer


def _format(data: bytes) -> Any:
    """Which document an envelope holds, as far as can be told; reading it says what is wrong."""
    envelope = canonical.loads(data, "consent", None, MAX_BYTES)
    inner = envelope.get("document") if isinstance(envelope, Mapping) else None
    document = canonical.loads(inner, "consent", None, MAX_BYTES) if isinstance(inner, bytes) else None
    return document.get("format") if isinstance(document, Mapping) else None


def _check_own(identity: Identity, patient: str, certificate: bytes) -> None:
    if identity.name != patient or bytes.fromhex(identity.fingerprint) != certificate:
        raise ConfigError(
            f"this identity is not the one of {patient} that is named",
            hint="use the key whose certificate was sealed into the session",
        )


def _check_signer(
    signer: PublicIdentity, patient: str, certificate: bytes, what: str, culprit: str | None
) -> None:
    if (signer.name, bytes.fromhex(signer.fingerprint)) != (patient, certificate):
        raise ConsentError(f"the {what} is signed by another key than it names", culprit=culprit)


def _fingerprint(manifest: Manifest, party: str) -> bytes:
    return bytes.fromhex(manifest.party(party).identity.fingerprint)


def _within(value: int, low: int, high: int) -> bool:
    return low <= value <= high


def _is_input(item: tuple[Any, Any]) -> bool:
    name, owner = item
    return (
        1 <= len(name) <= 128
        and name.isprintable()
        and isinstance(owner, str)
        and bool(NAME.fullmatch(owner))
    )


def _is_key(item: tuple[Any, Any]) -> bool:
    name, digest = item
    return NAME.fullmatch(name) is not None and isinstance(digest, bytes) and len(digest) == _DIGEST
