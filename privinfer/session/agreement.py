"""The agreement: one canonical document that says everything a session is, hashed, and signed by every party.

It holds what the session file says and what the parties add when they join: a nonce and a version each, the
commitment to the weights. Its SHA-256 names this very join: masks, keys, statements and receipts are bound
to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from privinfer.errors import ProtocolViolation
from privinfer.graph import ir
from privinfer.session import canonical
from privinfer.session.manifest import Manifest

FORMAT: Final = "privinfer/agreement/1"
_SIGNED = b"privinfer/agreement/1:"


@dataclass(frozen=True, slots=True)
class Agreement:
    """What all parties of a join hold alike.

    Attributes
    ----------
    document : bytes
        Canonical CBOR.
    signatures : dict
        Party name to its Ed25519 signature; filled while the parties exchange them.
    """

    document: bytes
    signatures: dict[str, bytes]

    @property
    def digest(self) -> bytes:
        """SHA-256 of the document."""
        return hashlib.sha256(self.document).digest()

    @property
    def signed(self) -> bytes:
        """What a party signs."""
        return _SIGNED + self.digest


def write(
    manifest: Manifest,
    nonces: Mapping[str, bytes],
    architecture: ir.Architecture,
    precision: Mapping[str, Any],
    statements: Mapping[str, Mapping[str, Any]],
) -> Agreement:
    """Put the document together; every party does, and signs what it got.

    Parameters
    ----------
    manifest : Manifest
    nonces : mapping
        Party to its nonce of this join.
    architecture : Architecture
        Of the model.
    precision : mapping
        As the report declares it: backend parameters and error bound.
    statements : mapping
        Party to what it said when it joined, see :func:`read_statement`.
    """
    m = manifest
    document: canonical.Value = {
        "format": FORMAT,
        "session": m.session,
        "manifest": m.digest(),
        "backend": {
            "name": m.backend,
            "nonlinear": m.nonlinear,
            "comparison": m.comparison,
            "threshold": m.threshold,
            "insecure": list(m.insecure),
        },
        "roles": {p.name: list(m.roles_of(p.name)) for p in m.parties},
        "parties": {
            p.name: {
                "certificate": bytes.fromhex(p.identity.fingerprint),
                "nonce": nonces[p.name],
                "version": statements[p.name]["version"],
            }
            for p in m.parties
        },
        "evaluators": list(m.evaluators),
        "helper": m.helper,
        "key_holders": list(m.key_holders),
        "model": {
            "owner": m.model_owner,
            "architecture": bytes.fromhex(m.model),
            "weights": statements[m.model_owner]["weights"],
        },
        "inputs": {
            i.name: {
                "owner": m.inputs[i.name],
                "shape": list(i.shape),
                "low": float(i.low),
                "high": float(i.high),
            }
            for i in architecture.inputs
        },
        "receivers": dict(m.receivers),
        "precision": _plain(precision),
        "terms": m.terms.plain(),
    }
    return Agreement(canonical.dumps(document), {})


def spoken(name: str, context: bytes, digest: bytes) -> bytes:
    """What a party signs of a statement that all hear alike (`runtime/alike.py`), by its SHA-256."""
    return b"privinfer/alike/1:" + name.encode() + b":" + context + digest


def run_context(session: bytes, run: int) -> bytes:
    """Context of what parties say when a run begins: agreement and number of its first inference."""
    return b"run:" + session + run.to_bytes(8, "little")


def _plain(value: Any) -> canonical.Value:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return value
    return float(value)


def statement(version: str, weights: bytes | None) -> bytes:
    """What a party says of itself when it joins: its version, and the model owner its commitment."""
    said: dict[str, canonical.Value] = {"version": version}
    if weights is not None:
        said["weights"] = weights
    return canonical.dumps(said)


def read_statement(data: bytes, party: str, manifest: Manifest) -> dict[str, Any]:
    """Read another party's :func:`statement`.

    Raises
    ------
    ProtocolViolation
        It has another form, or commits to other weights than the session file names.
    """
    fields = canonical.Fields(canonical.loads(data, "statement", party, 4096), "statement", party)
    found: dict[str, Any] = {"version": fields.take("version", str)[:64]}
    if party == manifest.model_owner:
        found["weights"] = fields.take("weights", bytes, 32)
        if manifest.terms.weights not in (None, found["weights"].hex()):
            raise ProtocolViolation("committed to other weights than the session names", culprit=party)
    fields.finish()
    return found
