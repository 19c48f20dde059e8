"""A receipt: what one party sent and received in a join, as chains of tags, signed by it.

For each peer and direction there is a chain over all messages from the join on: what kind, of which step, how
long, and a tag of its contents under a key that the two parties share and nobody else has. Parties sign for
each other where their chains stand at the end of every inference, so a receipt that is changed afterwards
contradicts its own party's signature, which its peer holds. Contents are nowhere in it.

The file is canonical CBOR: format, body, and the party's signature over the body; docs/receipts.md.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from privinfer.errors import BY_CODE, ConfigError, IntegrityError, PrivinferError, ProtocolViolation
from privinfer.session import canonical
from privinfer.session.agreement import FORMAT as AGREEMENT
from privinfer.session.agreement import Agreement, run_context, spoken
from privinfer.session.identity import Identity, PublicIdentity

FORMAT: Final = "privinfer/receipt/1"
MAX_BYTES: Final = 96 << 20
MAX_ENTRIES: Final = 1 << 20
MAX_LEGS: Final = 4096
TAG_BYTES: Final = 32
_SIGNED = b"privinfer/receipt/1:"
_CLAIMED = b"privinfer/receipt-claim/1:"
# kind, phase, channel, step, size, tag: what is chained; then microseconds since the join
CORE = struct.Struct("<BBHIQ32s")
ENTRY_BYTES: Final = CORE.size + 8
_MARK = struct.Struct("<32sQQ")
_SIGNATURE = 64
_YEAR_9999 = 253_370_764_800_000_000
CLAIM_BYTES: Final = 2 * _MARK.size + _SIGNATURE
MAX_WORD: Final = 16


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a chain stands: its head, how many messages, how many bytes of contents."""

    head: bytes
    count: int = 0
    size: int = 0

    def pack(self) -> bytes:
        """48 bytes."""
        return _MARK.pack(self.head, self.count, self.size)

    @classmethod
    def parse(cls, data: bytes) -> Mark:
        """Read :meth:`pack`."""
        return cls(*_MARK.unpack(data))


def begin(session: bytes, sender: str, receiver: str) -> Mark:
    """An empty chain of this join, sender and receiver."""
    names = f"{sender}:{receiver}:".encode()
    return Mark(hashlib.sha256(b"privinfer/chain/1:" + names + session).digest())


def extend(mark: Mark, core: bytes, size: int) -> Mark:
    """The chain with one message more."""
    return Mark(hashlib.sha256(mark.head + core).digest(), mark.count + 1, mark.size + size)


@dataclass(frozen=True, slots=True)
class Entry:
    """One message of a chain: `core` is what both parties hold alike, `time` this party's own word."""

    core: bytes
    time: int

    @classmethod
    def split(cls, data: bytes) -> Iterator[Entry]:
        """The entries of one leg."""
        for at in range(0, len(data), ENTRY_BYTES):
            end = at + CORE.size
            yield cls(data[at:end], int.from_bytes(data[end : end + 8], "little"))

    @property
    def fields(self) -> tuple[int, int, int, int, int, bytes]:
        """Kind, phase, channel, step, size, tag."""
        return CORE.unpack(self.core)


@dataclass(frozen=True, slots=True)
class Claim:
    """What a party signs for a peer at the end of an inference: where both chains between them stand.

    Attributes
    ----------
    word : bytes
        What it said along, as rows that are left.
    sent, received : Mark
        As the claiming party sees them.
    signature : bytes
    """

    word: bytes
    sent: Mark
    received: Mark
    signature: bytes = b""

    def signed(self, session: bytes, number: int, speaker: str, peer: str, check: bytes) -> bytes:
        """What is signed; `check` stands for the key of the pair's tags."""
        marks = self.sent.pack() + self.received.pack()
        return _CLAIMED + canonical.dumps([session, number, speaker, peer, check, self.word, marks])

    def pack(self) -> bytes:
        """The word and CLAIM_BYTES."""
        return self.word + self.sent.pack() + self.received.pack() + self.signature

    @classmethod
    def parse(cls, data: bytes, culprit: str | None = None) -> Claim:
        """Read :meth:`pack`.

        Raises
        ------
        ProtocolViolation
            It has another length.
        """
        word = len(data) - CLAIM_BYTES
        if not 0 <= word <= MAX_WORD:
            raise ProtocolViolation("sent a malformed account of what was sent", culprit=culprit)
        first, second = word + _MARK.size, word + 2 * _MARK.size
        sent, received = Mark.parse(data[word:first]), Mark.parse(data[first:second])
        return cls(data[:word], sent, received, data[second:])


@dataclass(frozen=True, slots=True)
class Leg:
    """What went to and fro until the end of one inference; its number is its place, counted from 0.

    Attributes
    ----------
    sent, received : dict
        Peer to entries, ENTRY_BYTES each.
    own, peers : dict
        Peer to the packed claim that this party made for it, and that it made for this party. Both are
        empty where the inference did not end.
    """

    sent: dict[str, bytes] = field(default_factory=dict)
    received: dict[str, bytes] = field(default_factory=dict)
    own: dict[str, bytes] = field(default_factory=dict)
    peers: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entered:
    """A run that was entered: what every party said, signed."""

    run: int
    dealt: str
    said: dict[str, bytes]
    signatures: dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Receipt:
    """A receipt whose form is right; :func:`check` says whether it agrees with itself.

    Attributes
    ----------
    party : str
        Who wrote it.
    agreement : Agreement
        Document and signatures.
    certificates : dict
        Party to its certificate, PEM.
    keys : dict
        Peer to what stands for the key of the tags that the two share.
    started : int
        Microseconds since 1970, by this party's clock.
    entered : list of Entered
    legs : list of Leg
    missing : list of str
        Parties that were lost and could be done without.
    joint : bytes or None
        With backend `ckks`: SHA-256 of the joint public key, where this party used it.
    code, culprit : str or None
        Error that ended the session, if one did.
    """

    party: str
    agreement: Agreement
    certificates: dict[str, str]
    keys: dict[str, bytes]
    started: int
    entered: list[Entered] = field(default_factory=list)
    legs: list[Leg] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    joint: bytes | None = None
    code: str | None = None
    culprit: str | None = None

    def body(self) -> bytes:
        """What is signed, canonical CBOR."""
        return canonical.dumps(
            {
                "party": self.party,
                "agreement": self.agreement.document,
                "signatures": self.agreement.signatures,
                "certificates": self.certificates,
                "keys": self.keys,
                "started": self.started,
                "runs": [
                    {"run": e.run, "dealt": e.dealt, "said": e.said, "signatures": e.signatures}
                    for e in self.entered
                ],
                "legs": [
                    {"sent": k.sent, "received": k.received, "own": k.own, "peers": k.peers}
                    for k in self.legs
                ],
                "missing": self.missing,
                "joint": self.joint,
                "outcome": {"code": self.code, "culprit": self.culprit},
            }
        )

    def to_bytes(self, identity: Identity) -> bytes:
        """The file, signed."""
        body = self.body()
        signature = identity.sign(_SIGNED + hashlib.sha256(body).digest())
        return canonical.dumps({"format": FORMAT, "body": body, "signature": signature})

    @property
    def document(self) -> dict[str, Any]:
        """The agreement, read."""
        found: Any = canonical.loads(self.agreement.document, "agreement")
        return found  # type: ignore[no-any-return]

    @property
    def names(self) -> list[str]:
        """All parties."""
        return list(self.certificates)

    def peers(self) -> list[str]:
        """All parties but this one."""
        return [name for name in self.certificates if name != self.party]

    def marks(self, peer: str, *, sent: bool) -> Iterator[Mark]:
        """Where the chain with a peer stands at the end of each leg."""
        pair = (self.party, peer) if sent else (peer, self.party)
        mark = begin(self.agreement.digest, *pair)
        for leg in self.legs:
            for entry in Entry.split((leg.sent if sent else leg.received).get(peer, b"")):
                mark = extend(mark, entry.core, entry.fields[4])
            yield mark


def load(path: str | os.PathLike[str]) -> Receipt:
    """Read a receipt and check everything that it says of itself.

    Raises
    ------
    ConfigError
        There is no such file.
    IntegrityError
        It is damaged, or was changed after its party signed it.
    """
    name = os.path.basename(os.fspath(path))
    try:
        with open(path, "rb") as file:
            data = file.read(min(MAX_BYTES, os.fstat(file.fileno()).st_size) + 1)  # else room for all of it
    except OSError as error:
        raise ConfigError(
            f"cannot read receipt {os.fspath(path)}: {(error.strerror or 'error').lower()}"
        ) from None
    return loads(data, f"receipt {name}")


def loads(data: bytes, what: str = "receipt") -> Receipt:
    """Read the bytes of a receipt; see :func:`load`."""
    try:
        receipt, body, signature = _parse(data, what)
        identities = check_certificates(receipt)
        identities[receipt.party].verify(_SIGNED + hashlib.sha256(body).digest(), signature)
        _check_signatures(receipt, identities)
    except (ProtocolViolation, ConfigError) as error:
        why = error.message.removeprefix(f"{what} ")
        raise IntegrityError(f"{what} {why}", culprit=error.culprit, hint=_HINT) from None
    return receipt


_HINT = "get it again from the party that wrote it"


def _parse(data: bytes, what: str) -> tuple[Receipt, bytes, bytes]:
    outer = canonical.Fields(canonical.loads(data, what, None, MAX_BYTES), what)
    if outer.take("format", str) != FORMAT:
        raise ProtocolViolation(f"{what} is of another version")
    body, signature = outer.take("body", bytes), outer.take("signature", bytes, _SIGNATURE)
    outer.finish()
    fields = canonical.Fields(canonical.loads(body, what, None, MAX_BYTES), what)
    agreement = Agreement(fields.take("agreement", bytes), _bytes(fields, "signatures", what, _SIGNATURE))
    certificates = _map(fields, "certificates", what)
    if not all(isinstance(pem, str) for pem in certificates.values()):
        raise ProtocolViolation(f"{what} has no proper certificates")
    party = fields.take("party", str)
    keys = _bytes(fields, "keys", what, 32)
    started = fields.take("started", int)
    entered = [_entered(one, what) for one in fields.take("runs", list)]
    legs = [_leg(one, what) for one in fields.take("legs", list)]
    missing = [name for name in fields.take("missing", list) if isinstance(name, str)]
    joint = fields.take("joint", object)
    if joint is not None and not (isinstance(joint, bytes) and len(joint) == 32):
        raise ProtocolViolation(f"{what} has no proper joint")
    outcome = canonical.Fields(fields.take("outcome", dict), what)
    code, culprit = (_text_or_none(outcome, key, what) for key in ("code", "culprit"))
    outcome.finish()
    fields.finish()
    names = set(certificates)
    if (
        party not in names
        or set(keys) != names - {party}
        or not all(name in certificates for name in missing)
    ):
        raise ProtocolViolation(f"{what} names other parties than it has certificates of")
    if not 0 <= started < _YEAR_9999:
        raise ProtocolViolation(f"{what} has no proper started")
    if code is not None and code not in BY_CODE:
        raise ProtocolViolation(f"{what} ends with an unknown error")
    if culprit is not None and not {*culprit.split(" or ")} <= names:
        raise ProtocolViolation(f"{what} blames somebody who is no party")
    for leg in legs:
        for peers in (leg.sent, leg.received, leg.own, leg.peers):
            if not set(peers) <= names - {party}:
                raise ProtocolViolation(f"{what} tells of somebody who is no party")
    found = Receipt(
        party=party,
        agreement=agreement,
        certificates=certificates,
        keys=keys,
        started=started,
        entered=entered,
        legs=legs,
        missing=missing,
        joint=joint,
        code=code,
        culprit=culprit,
    )
    return found, body, signature


def _map(fields: canonical.Fields, key: str, what: str) -> dict[str, Any]:
    value: dict[str, Any] = fields.take(key, dict)
    return value


def _bytes(fields: canonical.Fields, key: str, what: str, size: int | None = None) -> dict[str, bytes]:
    value = _map(fields, key, what)
    for item in value.values():
        if not isinstance(item, bytes) or (size is not None and len(item) != size):
            raise ProtocolViolation(f"{what} has no proper {key}")
    return value


def _text_or_none(fields: canonical.Fields, key: str, what: str) -> str | None:
    value = fields.take(key, object)
    if value is not None and not isinstance(value, str):
        raise ProtocolViolation(f"{what} has no proper {key}")
    return value


def _entered(value: Any, what: str) -> Entered:
    fields = canonical.Fields(value, what)
    run, dealt = fields.take("run", int), fields.take("dealt", str)
    found = Entered(run, dealt, _bytes(fields, "said", what), _bytes(fields, "signatures", what, _SIGNATURE))
    fields.finish()
    if not 0 <= run < 1 << 64 or dealt not in ("live", "ahead") or set(found.said) != set(found.signatures):
        raise ProtocolViolation(f"{what} has no proper runs")
    return found


def _leg(value: Any, what: str) -> Leg:
    fields = canonical.Fields(value, what)
    sent, received = _bytes(fields, "sent", what), _bytes(fields, "received", what)
    leg = Leg(sent, received, _bytes(fields, "own", what), _bytes(fields, "peers", what))
    fields.finish()
    if any(len(data) % ENTRY_BYTES for data in (*sent.values(), *received.values())):
        raise ProtocolViolation(f"{what} has a chain that was cut off")
    return leg


def check_certificates(receipt: Receipt) -> dict[str, PublicIdentity]:
    """Everybody's identity; ProtocolViolation where a certificate is not the agreement's."""
    document = receipt.document
    if not isinstance(document, dict) or document.get("format") != AGREEMENT:
        raise ProtocolViolation("has an agreement of another version")
    parties = document.get("parties")
    if not isinstance(parties, dict) or set(parties) != set(receipt.certificates):
        raise ProtocolViolation("has certificates of others than its agreement's parties")
    found = {}
    for name, pem in receipt.certificates.items():
        one = PublicIdentity.from_certificate(pem)
        entry = parties[name]
        wanted = entry.get("certificate") if isinstance(entry, dict) else None
        if one.name != name or bytes.fromhex(one.fingerprint) != wanted:
            raise ProtocolViolation("has another certificate than its agreement", culprit=name)
        found[name] = one
    return found


def _check_signatures(receipt: Receipt, identities: Mapping[str, PublicIdentity]) -> None:
    session = receipt.agreement.digest
    if set(receipt.agreement.signatures) != set(identities):
        raise ProtocolViolation("has an agreement that not everybody signed")
    for name, signature in receipt.agreement.signatures.items():
        identities[name].verify(receipt.agreement.signed, signature)
    for one in receipt.entered:
        context = run_context(session, one.run)
        for name, content in one.said.items():
            if name not in identities:
                raise ProtocolViolation("tells of somebody who is no party")
            message = spoken(name, context, hashlib.sha256(content).digest())
            identities[name].verify(message, one.signatures[name])
    own = receipt.party
    for number, leg in enumerate(receipt.legs):
        for claims, speaks in ((leg.own, True), (leg.peers, False)):
            for peer, data in claims.items():
                speaker, hearer = (own, peer) if speaks else (peer, own)
                claim = Claim.parse(data, speaker)
                message = claim.signed(session, number, speaker, hearer, receipt.keys[peer])
                identities[speaker].verify(message, claim.signature)


def outcome_of(receipt: Receipt) -> str:
    """How the session ended, in a few words."""
    if receipt.code is None:
        return "done"
    kind: type[PrivinferError] = BY_CODE[receipt.code]
    blamed = f", culprit {receipt.culprit}" if receipt.culprit else ""
    return f"ended by {kind.__name__} ({receipt.code}){blamed}"
