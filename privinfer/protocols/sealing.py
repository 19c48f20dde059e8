"""A result sealed to its receiver's key of one run: whoever carries it cannot read it, move it or bend it.

Functionality: hybrid public-key encryption in base mode with DHKEM(X25519, HKDF-SHA256), HKDF-SHA256 and
ChaCha20-Poly1305; one message a context. The agreement's digest is its info; run, step and sender are its
associated data, so a message of another session, run, step or sender does not open.
Adversary: anybody who sees or changes messages; the receiver's key is fresh for each run, said in its signed
engagement, and forgotten with the run. Base mode does not say who sealed: the connection does.
Rounds: none of its own. Bytes: OVERHEAD a message. Correctness error: none.
Source: RFC 9180, sections 5.1.1 and 6.1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import cbor2
from Crypto.Protocol import HPKE
from Crypto.Protocol.DH import import_x25519_public_key
from Crypto.PublicKey import ECC

from privinfer.errors import IntegrityError, ProtocolViolation
from privinfer.protocols.randomness import Scope, Secret

KEY_BYTES: Final = 32
OVERHEAD: Final = 32 + 16  # the encapsulated key, the tag
_INFO = b"privinfer/result/1:"


@dataclass(frozen=True, slots=True)
class Context:
    """What a sealed message is bound to.

    Attributes
    ----------
    session : bytes
        Digest of the agreement.
    scope : Scope
        Of the inference.
    step : int
        Of the program, or another number that this message alone has.
    sender : str
        Role of who seals.
    """

    session: bytes
    scope: Scope
    step: int
    sender: str

    def info(self) -> bytes:
        """RFC 9180's info."""
        return _INFO + self.session

    def associated(self) -> bytes:
        """RFC 9180's aad."""
        s = self.scope
        return cbor2.dumps([s.session, s.inference, s.attempt, self.step, self.sender], canonical=True)


class ReceiverKey(Secret):
    """A receiver's private key of one run.

    Parameters
    ----------
    key : object
        X25519, private.
    """

    __slots__ = ("_key",)

    def __init__(self, key: Any) -> None:
        self._key = key

    @classmethod
    def fresh(cls) -> ReceiverKey:
        """A new one, from the operating system."""
        return cls(ECC.generate(curve="Curve25519"))

    @property
    def public(self) -> bytes:
        """The public half, KEY_BYTES long."""
        return bytes(self._key.public_key().export_key(format="raw"))

    def open(self, sealed: bytes, context: Context, culprit: str) -> bytes:
        """The message.

        Raises
        ------
        ProtocolViolation
            It was changed, or sealed for another key or context; names `culprit`, whose connection it came
            over.
        """
        try:
            opener = HPKE.new(
                receiver_key=self._key,
                aead_id=HPKE.AEAD.CHACHA20_POLY1305,
                enc=sealed[:KEY_BYTES],
                info=context.info(),
            )
            return bytes(opener.unseal(sealed[KEY_BYTES:], context.associated()))
        except ValueError:
            raise ProtocolViolation("sent a result that does not open", culprit=culprit) from None


def _import(public: bytes) -> Any:
    return import_x25519_public_key(public)


def check(public: object, culprit: str) -> bytes:
    """A public key that somebody said; ProtocolViolation where it is none, or one of low order."""
    if isinstance(public, bytes) and len(public) == KEY_BYTES:
        try:
            HPKE.new(receiver_key=_import(public), aead_id=HPKE.AEAD.CHACHA20_POLY1305)
            return public
        except ValueError:
            pass
    raise ProtocolViolation("sent no key for its results", culprit=culprit)


def seal(public: bytes, message: bytes, context: Context) -> bytes:
    """Encrypt for the receiver with this public key: encapsulated key, ciphertext, tag."""
    sealer = HPKE.new(receiver_key=_import(public), aead_id=HPKE.AEAD.CHACHA20_POLY1305, info=context.info())
    return bytes(sealer.enc) + bytes(sealer.seal(message, context.associated()))


@dataclass(slots=True)
class Keys:
    """The keys of one run as one party has them.

    Attributes
    ----------
    public : dict
        Every receiver's, by party.
    own : ReceiverKey or None
        This party's, where it is a receiver.
    """

    public: dict[str, bytes] = field(default_factory=dict)
    own: ReceiverKey | None = field(default=None, repr=False)

    def seal(self, receiver: str, message: bytes, context: Context) -> bytes:
        """Encrypt for a receiver; IntegrityError where it said no key in this run."""
        if receiver not in self.public:
            raise IntegrityError("a result would leave without its receiver's key", culprit=receiver)
        return seal(self.public[receiver], message, context)

    def open(self, sealed: bytes, context: Context, culprit: str) -> bytes:
        """Decrypt, see :meth:`ReceiverKey.open`."""
        if self.own is None:
            raise IntegrityError("a receiver has made no key for this run")
        return self.own.open(sealed, context, culprit)

    def forget(self) -> None:
        """Let go of them."""
        self.public.clear()
        self.own = None
