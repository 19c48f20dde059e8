"""The greeting: all parties hold the same session file, and a nonce of each makes this join like no other."""

from __future__ import annotations

import secrets
import struct
from collections.abc import Callable

from privinfer.backends.base import Phase
from privinfer.errors import ConfigError, ProtocolViolation
from privinfer.runtime.post import Office
from privinfer.session.identity import Identity
from privinfer.session.manifest import Manifest
from privinfer.transport.frames import Kind

_NONCE_BYTES = 16
_SIGNED_BYTES = _NONCE_BYTES + 64  # a nonce and its signature
_HELLO = struct.Struct(f"<H32s{_SIGNED_BYTES}s")
_VERSION = 1
GREETING, NONCES, ARCHITECTURE, STATEMENTS, SIGNATURES, OFFERS = range(6)
PAIRS = OFFERS + 2  # offers are asked for twice where a join deals


def greet(
    office: Office,
    manifest: Manifest,
    own_name: str,
    identity: Identity,
    verify_from: Callable[[str, bytes, bytes], None],
) -> list[bytes]:
    """Exchange the digest of the session file and a nonce; nothing starts where they differ."""
    digest = manifest.digest()

    def statement(name: str, nonce: bytes) -> bytes:
        return b"privinfer/greeting/1:" + name.encode() + b":" + digest + nonce

    own = secrets.token_bytes(_NONCE_BYTES)
    signed = {own_name: own + identity.sign(statement(own_name, own))}

    def verify(name: str, said: bytes) -> None:
        verify_from(name, statement(name, said[:_NONCE_BYTES]), said[_NONCE_BYTES:])

    def check(peer: str, data: bytes) -> None:
        if len(data) != _HELLO.size:
            raise ConfigError("speaks another version of the protocol", culprit=peer)
        version, theirs, said = _HELLO.unpack(data)
        if version != _VERSION:
            raise ConfigError("speaks another version of the protocol", culprit=peer)
        if theirs != digest:
            raise ConfigError(
                "holds another session file than this party",
                culprit=peer,
                hint="compare them with sha256sum: they have to be equal to the byte",
            )
        verify(peer, said)
        signed[peer] = said

    def compare(peer: str, data: bytes) -> None:
        if len(data) != len(listed):
            raise ProtocolViolation("sent a malformed greeting", culprit=peer)
        for k, name in enumerate(manifest.names):
            said = data[k * _SIGNED_BYTES : (k + 1) * _SIGNED_BYTES]
            if said != signed[name]:
                try:
                    verify(name, said)
                except ProtocolViolation:
                    raise ProtocolViolation("shows a greeting that nobody gave", culprit=peer) from None
                raise ProtocolViolation("greeted two parties differently", culprit=name)

    peers = set(office.endpoint.peers)
    office.expect(GREETING, check)
    office.tell(Kind.HELLO, Phase.SETUP, GREETING, _HELLO.pack(_VERSION, digest, signed[own_name]))
    office.hear(GREETING, peers)
    # Whoever heard other nonces works in another session, where its checks would blame honest parties.
    listed = b"".join(signed[name] for name in manifest.names)
    office.expect(NONCES, compare)
    office.tell(Kind.HELLO, Phase.CONTROL, NONCES, listed)
    office.hear(NONCES, peers)
    return [signed[name][:_NONCE_BYTES] for name in manifest.names]
