"""How a join ends in an agreement that everybody has signed (`session/agreement.py`)."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

from privinfer.errors import ConfigError, ProtocolViolation
from privinfer.graph import ir
from privinfer.protocols.commitment import Opening, digest_of_weights
from privinfer.runtime.alike import Alike
from privinfer.runtime.greeting import STATEMENTS
from privinfer.runtime.post import Office
from privinfer.session import agreement
from privinfer.session.agreement import Agreement
from privinfer.session.identity import Identity
from privinfer.session.manifest import Manifest

Verify = Callable[[str, bytes, bytes], None]


def commit_to_weights(
    manifest: Manifest, model: ir.Model | None, opening: Opening | None
) -> tuple[Opening, bytes] | None:
    """The model owner's commitment: the one the session names, or a new one for this join.

    Raises
    ------
    ConfigError
        The opening is missing, or opens no commitment of the session to this model.
    """
    wanted = manifest.terms.weights
    if model is None:
        if opening is not None:
            raise ConfigError("an opening goes with the model", hint="that is the model owner's")
        return None
    digest = digest_of_weights(model)
    if opening is None:
        if wanted is not None:
            raise ConfigError(
                "the session names a commitment to the weights, and their opening is missing",
                culprit=manifest.model_owner,
                hint="bring what `privinfer commit` wrote: --opening FILE",
            )
        opening = Opening.fresh(digest)
    commitment = opening.commit("weights", digest, manifest.model)
    if wanted is not None and not hmac.compare_digest(commitment, bytes.fromhex(wanted)):
        raise ConfigError(
            "the session names a commitment to other weights, or with another opening",
            culprit=manifest.model_owner,
            hint="bring model and opening from which terms.weights was made",
        )
    return opening, commitment


class Joining:
    """The last part of joining: :meth:`tell` early, :meth:`sign` once the architecture is known."""

    def __init__(
        self, office: Office, manifest: Manifest, identity: Identity, verify: Verify, nonces: list[bytes]
    ) -> None:
        self._manifest, self._identity, self._verify = manifest, identity, verify
        self._nonces = dict(zip(manifest.names, nonces, strict=True))
        context = b"statement:" + manifest.digest() + b"".join(nonces)
        self._alike = Alike(office, STATEMENTS, manifest.names, identity.name, identity.sign, verify, context)

    def tell(self, weights: bytes | None) -> None:
        """Say this party's version; the model owner its commitment too."""
        self._alike.tell(agreement.statement(metadata.version("privinfer"), weights))

    def sign(self, architecture: ir.Architecture, precision: Mapping[str, Any]) -> Agreement:
        """Write the document, sign it, and wait for everybody's signature.

        Raises
        ------
        ProtocolViolation
            A party signed another document, or said different things to two parties; it is named.
        """
        written: list[Agreement] = []

        def closing(said: dict[str, bytes]) -> bytes:
            read = {p: agreement.read_statement(data, p, self._manifest) for p, data in said.items()}
            written.append(agreement.write(self._manifest, self._nonces, architecture, precision, read))
            return self._identity.sign(written[0].signed)

        self._alike.hear(closing)
        done = written[0]
        done.signatures[self._identity.name] = self._identity.sign(done.signed)
        for peer, signature in self._alike.settle().items():
            try:
                self._verify(peer, done.signed, signature)
            except ProtocolViolation:
                raise ProtocolViolation(
                    "signed another agreement than this party's",
                    culprit=peer,
                    hint="do all parties run the same version of privinfer?",
                ) from None
            done.signatures[peer] = signature
        return done
