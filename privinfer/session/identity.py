"""A party's identity: an Ed25519 key and a self-signed certificate that bears the party's name.

The same key proves the party in TLS and signs what it says in a session. Certificates are compared
byte by byte with those of the session file; there is no authority above the parties.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
import re
import stat
from typing import NoReturn, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from privinfer.errors import ConfigError, ProtocolViolation
from privinfer.session.files import reason

NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
MAX_PEM = 64 * 1024
MAX_DAYS = 3650
# The key also signs TLS handshakes: our messages start differently, so neither can pass for the other.
_DOMAIN = b"privinfer signature v1\x00"
_AT_REST = b"privinfer key at rest v1\x00"
_KEY_BLOCK = re.compile(rb"-----BEGIN PRIVATE KEY-----.*?-----END PRIVATE KEY-----\n?", re.DOTALL)
_CERT_BLOCK = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", re.DOTALL)
_KEYGEN = "make a new one with `privinfer keygen`"


def check_name(name: object, key: str = "name") -> str:
    """Return ``name`` if it is a party name, ``[a-z][a-z0-9_-]{0,31}``.

    Parameters
    ----------
    name : object
        Candidate.
    key : str
        What the error calls it.

    Raises
    ------
    ConfigError
        If it is not.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(
            f"{key} is not a party name",
            hint="a lower-case letter, then up to 31 letters, digits, dashes or underscores",
        )
    return name


class PublicIdentity:
    """What everybody may know of a party: its name and certificate.

    Attributes
    ----------
    name : str
        Party name: common name and only DNS name of the certificate.
    der : bytes
        The certificate, DER.
    fingerprint : str
        SHA-256 of ``der``, hex.
    not_before, not_after : datetime.datetime
        Validity, UTC.
    """

    __slots__ = ("_key", "der", "fingerprint", "name", "not_after", "not_before", "pem")

    def __init__(self, certificate: x509.Certificate) -> None:
        try:
            key = certificate.public_key()
        except Exception as exc:  # of an unknown kind, or garbled: the parser has several ways to say so
            raise ConfigError("certificate does not hold an Ed25519 key", hint=_KEYGEN) from exc
        if not isinstance(key, Ed25519PublicKey):
            raise ConfigError("certificate does not hold an Ed25519 key", hint=_KEYGEN)
        self._key = key
        self.name = _name_of(certificate)
        try:
            certificate.verify_directly_issued_by(certificate)
        except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError) as exc:
            raise ConfigError("certificate is not signed by its own key", culprit=self.name) from exc
        self.der: bytes = certificate.public_bytes(serialization.Encoding.DER)
        #: The certificate in PEM, in the one form the library writes.
        self.pem: str = certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")
        self.fingerprint = hashlib.sha256(self.der).hexdigest()
        self.not_before: dt.datetime = certificate.not_valid_before_utc
        self.not_after: dt.datetime = certificate.not_valid_after_utc

    @classmethod
    def from_certificate(cls, pem: str) -> Self:
        """Read a certificate.

        Parameters
        ----------
        pem : str
            Exactly one PEM block, a certificate.

        Raises
        ------
        ConfigError
            If it is anything else; a private key is refused loudly, for it is about to be published.
        """
        text = pem.encode("utf-8", "replace")
        if len(text) > MAX_PEM:
            raise ConfigError("certificate is too long")
        if b"PRIVATE KEY" in text:
            raise ConfigError(
                "certificate text holds a private key",
                hint="give the certificate alone; a key that was sent to anybody must be replaced",
            )
        block = text.strip()
        if _CERT_BLOCK.findall(block) != [block]:
            raise ConfigError("certificate is not one PEM certificate", hint=_KEYGEN)
        return cls(_parse_certificate(block))

    @property
    def key_digest(self) -> str:
        """SHA-256 of the public key, hex: the same in every certificate of one key."""
        return hashlib.sha256(self._key.public_bytes_raw()).hexdigest()

    def verify(self, message: bytes, signature: bytes) -> None:
        """Check a signature made with :meth:`Identity.sign`.

        Raises
        ------
        ProtocolViolation
            If it is not this party's; the culprit is this party.
        """
        try:
            self._key.verify(signature, _DOMAIN + message)
        except InvalidSignature as exc:
            raise ProtocolViolation("signature does not verify", culprit=self.name) from exc

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicIdentity) and self.der == other.der

    def __hash__(self) -> int:
        return hash(self.der)

    def __repr__(self) -> str:
        return f"PublicIdentity(name={self.name!r}, fingerprint={self.fingerprint!r})"


class Identity:
    """A party's secret key with its certificate. Never pickled, never printed.

    Attributes
    ----------
    name : str
        Party name.
    public : PublicIdentity
        The part that may be shown.
    """

    __slots__ = ("_key", "name", "public")

    def __init__(self, key: Ed25519PrivateKey, certificate: x509.Certificate) -> None:
        self.public = PublicIdentity(certificate)
        if key.public_key().public_bytes_raw() != self.public._key.public_bytes_raw():
            raise ConfigError("private key and certificate do not belong together", hint=_KEYGEN)
        self._key = key
        self.name = self.public.name

    @classmethod
    def generate(cls, name: str, days: int = 365) -> Self:
        """Make a key and a certificate valid from now on (less five minutes, for clocks that differ).

        Parameters
        ----------
        name : str
            Party name, ``[a-z][a-z0-9_-]{0,31}``.
        days : int
            Days of validity, 1 to 3650.
        """
        if not 1 <= days <= MAX_DAYS:
            raise ConfigError(f"days must lie in 1..{MAX_DAYS}")
        start = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=5)
        return cls._generate(name, start, start + dt.timedelta(days=days))

    @classmethod
    def _generate(cls, name: str, start: dt.datetime, end: dt.datetime) -> Self:
        check_name(name)
        key = Ed25519PrivateKey.generate()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=False,  # a party vouches for itself only
            crl_sign=False,
            encipher_only=False,
            decipher_only=False,
        )
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, None)
        )
        return cls(key, certificate)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read an identity written by :meth:`save`.

        Parameters
        ----------
        path : path-like
            PEM file with the private key and the certificate.

        Raises
        ------
        ConfigError
            If the file is missing, garbled, holds another kind of key, or others may read it.
        """
        try:
            # Non-blocking: a named pipe in the file's place must not hang us.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
        except OSError as exc:
            raise ConfigError(f"cannot read identity {os.fspath(path)}: {reason(exc)}", hint=_KEYGEN) from exc
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            os.close(fd)
            raise ConfigError(f"identity {os.fspath(path)} is not a regular file")
        with open(fd, "rb") as file:
            if os.name == "posix" and mode & 0o077:
                raise ConfigError(
                    f"identity {os.fspath(path)} can be read by others", hint=f"chmod 600 {os.fspath(path)}"
                )
            text = file.read(MAX_PEM + 1)
        keys, certificates = _KEY_BLOCK.findall(text), _CERT_BLOCK.findall(text)
        if len(text) > MAX_PEM or len(keys) != 1 or len(certificates) != 1:
            raise ConfigError(
                f"identity {os.fspath(path)} must hold one PKCS8 private key and one certificate",
                hint=_KEYGEN,
            )
        try:
            key = serialization.load_pem_private_key(keys[0], password=None)
        except Exception as exc:  # the parser has many ways to fail, none of which may show key material
            raise ConfigError(f"identity {os.fspath(path)} holds a garbled key", hint=_KEYGEN) from exc
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError(f"identity {os.fspath(path)} holds a key that is not Ed25519", hint=_KEYGEN)
        return cls(key, _parse_certificate(certificates[0]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write key and certificate to a new file with mode 0600.

        Raises
        ------
        ConfigError
            If the file exists or cannot be made; an identity is never overwritten.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            fd = os.open(path, flags, 0o600)
        except FileExistsError as exc:
            raise ConfigError(
                f"identity {os.fspath(path)} exists already", hint="choose another file name"
            ) from exc
        except OSError as exc:
            raise ConfigError(f"cannot write identity {os.fspath(path)}: {reason(exc)}") from exc
        with open(fd, "wb") as file:
            file.write(self.private_pem())
            file.flush()
            os.fsync(fd)

    @property
    def certificate_pem(self) -> str:
        """The certificate, PEM."""
        return self.public.pem

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the DER certificate, hex."""
        return self.public.fingerprint

    def sign(self, message: bytes) -> bytes:
        """Sign a message; :meth:`PublicIdentity.verify` checks it.

        Returns
        -------
        bytes
            64-byte Ed25519 signature over the library's prefix and ``message``.
        """
        return self._key.sign(_DOMAIN + message)

    def derive_key(self, purpose: str, salt: bytes) -> bytes:
        """Return SECRET bytes that only who holds this identity can compute: a key for files at rest.

        Parameters
        ----------
        purpose : str
            What the key is for; two purposes never share one.
        salt : bytes
            Drawn for one file, kept beside it.

        Returns
        -------
        bytes
            32 bytes, HKDF-SHA256 (RFC 5869) of the private key.
        """
        kdf = HKDF(hashes.SHA256(), length=32, salt=salt, info=_AT_REST + purpose.encode())
        return kdf.derive(self._key.private_bytes_raw())

    def private_pem(self) -> bytes:
        """Return SECRET text: the unencrypted private key, then the certificate; never send or log it."""
        key = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return key + self.public.pem.encode("ascii")

    def __repr__(self) -> str:
        return f"Identity(name={self.name!r}, fingerprint={self.fingerprint!r})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an Identity holds a secret key and cannot be pickled or copied")

    def __getstate__(self) -> NoReturn:
        raise TypeError("an Identity holds a secret key and cannot be pickled or copied")


def _parse_certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except Exception as exc:  # ValueError, UnsupportedAlgorithm and what the parser adds in later versions
        raise ConfigError("certificate is garbled", hint=_KEYGEN) from exc


def _name_of(certificate: x509.Certificate) -> str:
    try:
        common = [a.value for a in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        san = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = list(san)
    except Exception as exc:  # lazily parsed: garbled names and extensions show here
        raise ConfigError("certificate has no readable common name and DNS name", hint=_KEYGEN) from exc
    if len(common) != 1:
        raise ConfigError("certificate must have one common name", hint=_KEYGEN)
    name = check_name(common[0], "common name of the certificate")
    if names != [x509.DNSName(name)]:
        raise ConfigError("certificate must have its common name as only DNS name", hint=_KEYGEN)
    return name
