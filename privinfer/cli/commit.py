"""`privinfer commit`: a model owner commits to its weights, for session files and consents to name."""

from __future__ import annotations

from pathlib import Path

from privinfer.errors import ConfigError
from privinfer.graph import ir
from privinfer.protocols.commitment import Opening, digest_of_weights
from privinfer.session import weights_opening
from privinfer.session.identity import Identity


def commit(model: ir.Model, identity: Identity, out: Path) -> str:
    """Draw a salt, keep it in a new file that opens with this identity only; returns the commitment, hex."""
    digest, architecture = digest_of_weights(model), model.architecture.digest()
    opening = Opening.fresh(digest)
    commitment = opening.commit("weights", digest, architecture)
    weights_opening.write(
        out,
        identity,
        opening.expose(),
        architecture=bytes.fromhex(architecture),
        commitment=commitment,
    )
    return commitment.hex()


def commitment_for(opening: Path, model: ir.Model) -> str:
    """The commitment that an opening's file names, hex; ConfigError where it is of another architecture.

    Whether it opens to these weights is checked when the model owner joins: that takes its key.
    """
    found = weights_opening.read(opening)
    if found.architecture.hex() != model.architecture.digest():
        raise ConfigError(
            f"opening {opening} is of another model",
            hint="commit again, with the options of this model",
        )
    return found.commitment.hex()
