"""How a run begins: owners commit to inputs, receivers say their keys, and all hear the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from privinfer.backends.base import Private
from privinfer.errors import ProtocolViolation
from privinfer.protocols import sealing
from privinfer.protocols.commitment import COMMITMENT_BYTES, Opening, digest_of
from privinfer.runtime.alike import Alike
from privinfer.runtime.consents import Brought, take
from privinfer.session import canonical
from privinfer.session.manifest import Manifest

MAX_STATEMENT = 1 << 18


@dataclass(frozen=True, slots=True)
class Engagement:
    """What the parties said at the beginning of a run.

    Attributes
    ----------
    inputs : dict
        Input name to its owner's commitment.
    keys : dict
        Receiver to the public key that its results of this run are sealed to.
    brought : Brought
        Consent and revocations, not checked yet.
    """

    inputs: dict[str, bytes] = field(default_factory=dict)
    keys: dict[str, bytes] = field(default_factory=dict)
    brought: Brought = field(default_factory=Brought)


def commit(private: Private, session: bytes, run: int) -> dict[str, bytes]:
    """Commit to what this party brings; the openings go into `private`, for masks to derive from them.

    Parameters
    ----------
    private : Private
        With the inputs and fragments of this run.
    session : bytes
        Digest of the agreement.
    run : int
        Number of its first inference.
    """
    digests = {name: digest_of(values) for name, values in private.inputs.items()}
    digests |= {name: fragment.digest for name, fragment in private.fragments.items()}
    private.openings.clear()
    private.openings.update({name: Opening.fresh(digest) for name, digest in digests.items()})
    return {
        name: opening.commit("input", digests[name], session, run, name)
        for name, opening in private.openings.items()
    }


def make_key(private: Private, manifest: Manifest, party: str) -> bytes | None:
    """A receiver's key of this run, into `private`; its public half."""
    if party not in manifest.receivers.values():
        return None
    private.keys.own = sealing.ReceiverKey.fresh()
    return private.keys.own.public


def statement(
    inputs: Mapping[str, bytes],
    key: bytes | None = None,
    brought: Brought = Brought(),  # noqa: B008 - frozen
) -> bytes:
    """What a party says: its commitments, a receiver its key, the consent party what it brings."""
    said: dict[str, canonical.Value] = {"inputs": dict(inputs), **brought.plain()}
    return canonical.dumps(said if key is None else said | {"key": key})


def read(manifest: Manifest, said: Mapping[str, bytes]) -> Engagement:
    """Put all parties' statements together.

    Raises
    ------
    ProtocolViolation
        A statement has another form, commits to other inputs than its party owns, or a receiver said no key.
    """
    found = Engagement()
    for party, data in said.items():
        fields = canonical.Fields(
            canonical.loads(data, "statement", party, MAX_STATEMENT), "statement", party
        )
        inputs: Any = fields.take("inputs", dict)
        if party in manifest.receivers.values():
            found.keys[party] = sealing.check(fields.take("key", bytes), party)
        if party == manifest.terms.consent:
            found = replace(found, brought=take(fields, party))
        fields.finish()
        if set(inputs) != {k for k, owner in manifest.inputs.items() if owner == party}:
            raise ProtocolViolation("commits to other inputs than it owns", culprit=party)
        for name, commitment in inputs.items():
            if not isinstance(commitment, bytes) or len(commitment) != COMMITMENT_BYTES:
                raise ProtocolViolation(f"sent no commitment to input {name!r}", culprit=party)
            found.inputs[name] = commitment
    return found


class Engaged:
    """A run that all have entered; :meth:`settle` before anything that depends on an input leaves."""

    def __init__(self, engagement: Engagement, alike: Alike) -> None:
        self.engagement, self._alike = engagement, alike
        self._settled = False

    def settle(self) -> None:
        """Wait, once, until all others have shown that they heard the same."""
        if not self._settled:
            for peer, more in self._alike.settle().items():
                if more:
                    raise ProtocolViolation("said more than was due", culprit=peer)
            self._settled = True
