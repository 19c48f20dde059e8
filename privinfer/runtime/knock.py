"""Asking serving parties for a session: `ask` seals one from a template, knocks at each, then joins it.

    server  {nonce}                              TLS 1.3, the server shows the certificate of the template
    asking  {session, signature}                 signature of the receiver over nonce, server and session file
    server  {answer, code, message, hint, retry} a place is kept for it now, or it says why not
    asking  {go}                                 once all have accepted; hanging up gives the place back

Every message is canonical CBOR behind a length of 4 bytes. The asking party proves itself by its signature,
not in TLS, where only certificates known beforehand can be shown; the nonce makes it fresh, and the server's
certificate in it keeps one server from knocking with it at another.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import socket
import ssl
import struct
import time
from collections.abc import Callable
from typing import Any, Self

from privinfer.errors import (
    BY_CODE,
    ConfigError,
    PrivinferError,
    ProtocolViolation,
    RefusedError,
    TransportError,
    printable,
)
from privinfer.runtime.party import Result, Session, Watcher
from privinfer.session import canonical
from privinfer.session.identity import Identity, PublicIdentity
from privinfer.session.manifest import Manifest, Party
from privinfer.session.template import Template
from privinfer.transport.link import tls_context, why
from privinfer.transport.router import KNOCK

MAX_PROPOSAL = 1 << 17
MAX_ANSWER = 4096
MAX_TEXT = 500
NONCE_BYTES = 32
SIGNATURE_BYTES = 64
HANDSHAKE_S = 10.0
ACCEPTED, REFUSED = "accepted", "refused"
_LENGTH = struct.Struct("<I")


class Line:
    """Messages over one TLS connection, each with a cap and a deadline for all of it."""

    def __init__(self, sock: ssl.SSLSocket, peer: str | None) -> None:
        self._sock, self.peer = sock, peer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()

    def say(self, message: canonical.Value, seconds: float = HANDSHAKE_S) -> None:
        """Send a message."""
        data = canonical.dumps(message)
        self._sock.settimeout(seconds)
        self._sock.sendall(_LENGTH.pack(len(data)) + data)

    def hear(self, what: str, most: int, seconds: float) -> canonical.Fields:
        """Receive a message; raises OSError where none comes, ProtocolViolation where it is malformed."""
        until = time.monotonic() + seconds
        (size,) = _LENGTH.unpack(self._read(_LENGTH.size, until))
        if size > most:
            raise ProtocolViolation(f"{what} is longer than {most} bytes", culprit=self.peer)
        return canonical.Fields(
            canonical.loads(self._read(size, until), what, self.peer, most), what, self.peer
        )

    def _read(self, count: int, until: float) -> bytes:
        data = bytearray()
        while len(data) < count:
            rest = until - time.monotonic()
            if rest <= 0:
                raise TimeoutError("timed out")
            self._sock.settimeout(rest)
            more = self._sock.recv(min(count - len(data), 1 << 14))
            if not more:
                raise ConnectionResetError("closed")
            data += more
        return bytes(data)


def server_context(identity: Identity) -> ssl.SSLContext:
    """TLS of a server for those who knock: it shows its certificate and asks for none."""
    context = tls_context(ssl.PROTOCOL_TLS_SERVER, identity.private_pem(), [identity.public.der])
    context.verify_mode = ssl.CERT_NONE
    return context


def proposal(nonce: bytes, server: str, raw: bytes) -> bytes:
    """What the asking party signs.

    Parameters
    ----------
    nonce : bytes
        The server's.
    server : str
        Fingerprint of its certificate.
    raw : bytes
        The sealed session file.
    """
    return b"privinfer/knock/1:" + nonce + bytes.fromhex(server) + hashlib.sha256(raw).digest()


def refusal(error: PrivinferError) -> dict[str, canonical.Value]:
    """An answer that says why not."""
    retry = error.retry if isinstance(error, RefusedError) else 0.0
    return {
        "answer": REFUSED,
        "code": error.code,
        "message": _printable(error.message),
        "hint": _printable(error.hint or ""),
        "retry": float(retry),
    }


def _printable(text: str) -> str:
    return printable(text[:MAX_TEXT])


def _answered(fields: canonical.Fields, peer: str) -> None:
    """Raise what a server answered, unless it accepted; every byte of it is the server's choice."""
    if fields.take("answer", str) == ACCEPTED:
        fields.finish()
        return
    code, message, hint = (fields.take(key, str) for key in ("code", "message", "hint"))
    retry = fields.take("retry", float)
    fields.finish()
    error = BY_CODE.get(code, RefusedError)(
        f"refused: {_printable(message)}", culprit=peer, hint=_printable(hint) or None
    )
    if isinstance(error, RefusedError):
        error.retry = retry if 0 <= retry <= 86400 else 0.0
    raise error


def knock(manifest: Manifest, server: Party, identity: Identity, patience: float) -> Line:
    """Propose a session to one server; returns the line on which to say go once it has accepted.

    Parameters
    ----------
    manifest : Manifest
        The session.
    server : Party
        At whose port.
    identity : Identity
        Of the receiver.
    patience : float
        Seconds to wait for the answer; a server with a queue takes its time.

    Raises
    ------
    TransportError
        It cannot be reached, or shows another certificate.
    PrivinferError
        It refused, with its reason.
    """
    if len(manifest.raw) > MAX_PROPOSAL - 256:
        raise ConfigError(f"the session file is longer than {MAX_PROPOSAL - 256} bytes, too long to propose")
    until = time.monotonic() + patience
    expected = server.identity
    line: Line | None = None
    try:
        raw = socket.create_connection((server.host, server.port), timeout=HANDSHAKE_S)
        try:
            raw.sendall(KNOCK)
            context = tls_context(ssl.PROTOCOL_TLS_CLIENT, identity.private_pem(), [expected.der])
            secure = context.wrap_socket(raw)
        except BaseException:
            raw.close()
            raise
        line = Line(secure, server.name)
        if secure.getpeercert(binary_form=True) != expected.der:
            raise TransportError("shows another certificate than the template has", culprit=server.name)
        fields = line.hear("greeting of a server", MAX_ANSWER, HANDSHAKE_S)
        nonce = fields.take("nonce", bytes, NONCE_BYTES)
        fields.finish()
        signature = identity.sign(proposal(nonce, expected.fingerprint, manifest.raw))
        line.say({"session": manifest.raw, "signature": signature})
        _answered(line.hear("answer", MAX_ANSWER, max(1.0, until - time.monotonic())), server.name)
    except OSError as exc:  # ssl.SSLError is one
        if line is not None:
            line.__exit__()
        mismatch = isinstance(exc, ssl.SSLCertVerificationError)
        raise TransportError(
            "shows another certificate than the template has"
            if mismatch
            else f"cannot be asked for a session: {why(exc)}",
            culprit=server.name,
            hint="is `privinfer serve` running there, and do both hold the same template",
        ) from exc
    except BaseException:
        if line is not None:
            line.__exit__()
        raise
    return line


def ask(
    template: str | os.PathLike[str] | Template,
    identity: str | os.PathLike[str] | Identity,
    *,
    patience: float = 60.0,
    wait: float = 0.0,
    progress: Watcher | None = None,
    asked: Callable[[RefusedError], None] | None = None,
) -> Result:
    """Get one answer from serving parties.

    Parameters
    ----------
    template : path or Template
        What they serve.
    identity : path or Identity
        Of who asks and receives.
    patience : float
        Seconds to wait for each server's answer.
    wait : float
        Seconds for which to ask again where a server has no place.
    progress : callable, optional
        Told how far each phase is.
    asked : callable, optional
        Told of each refusal after which it asks again.

    Returns
    -------
    Result
        The outputs.

    Raises
    ------
    RefusedError
        A server declined, and waiting was over or would not help.
    PrivinferError
        Whatever else stopped it, with the culprit.
    """
    template = template if isinstance(template, Template) else Template.load(template)
    identity = identity if isinstance(identity, Identity) else Identity.load(identity)
    until = time.monotonic() + wait
    while True:
        try:
            manifest = _knock_everywhere(template, identity, patience)
            break
        except RefusedError as refused:
            rest = until - time.monotonic()
            if refused.retry <= 0 or rest <= 0:
                raise
            if asked is not None:
                asked(refused)
            # not all at the same moment again
            time.sleep(min(rest, refused.retry * (0.5 + secrets.randbelow(1000) / 1000)))
    with Session(manifest).join(identity.name, identity, progress=progress, shared=True) as party:
        result = party.run({})
    if result is None:
        raise ConfigError("the template gives no output to who asks")
    return result


def _knock_everywhere(template: Template, identity: Identity, patience: float) -> Manifest:
    """Get a place at every server, in an order that all who ask share, so that no two wait for each other."""
    manifest = template.seal(PublicIdentity.from_certificate(identity.certificate_pem))
    servers = [p for p in manifest.parties if p.name != identity.name]
    servers.sort(key=lambda p: p.identity.fingerprint)
    with contextlib.ExitStack() as held:
        lines = [held.enter_context(knock(manifest, server, identity, patience)) for server in servers]
        for line in lines:
            try:
                line.say({"go": True})
            except OSError as exc:
                raise TransportError("hung up after it had accepted", culprit=line.peer) from exc
    return manifest


def read_proposal(line: Line, nonce: bytes) -> tuple[bytes, bytes]:
    """The server's part: greet with a nonce, read session file and signature."""
    line.say({"nonce": nonce})
    fields = line.hear("proposal", MAX_PROPOSAL, HANDSHAKE_S)
    raw = fields.take("session", bytes)
    signature: Any = fields.take("signature", bytes, SIGNATURE_BYTES)
    fields.finish()
    return raw, signature


def read_go(line: Line, seconds: float) -> bool:
    """The server's part: whether the asking party wants the session still."""
    fields = line.hear("word", MAX_ANSWER, seconds)
    go = fields.take("go", bool)
    fields.finish()
    return go
