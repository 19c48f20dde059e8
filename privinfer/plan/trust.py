"""Whom one has to trust and what each party sees, in plain words; nothing more is claimed anywhere."""

from __future__ import annotations

from privinfer.backends import ckks, crypten
from privinfer.session.manifest import Manifest


def trust(manifest: Manifest) -> str:
    """The trust statement of a session, in one sentence."""
    if manifest.backend == crypten.NAME:
        return crypten.trust(manifest)
    if manifest.backend == ckks.NAME:
        return ckks.trust(manifest)
    if manifest.backend != "mpc" or manifest.helper is None:
        return "not private: this backend protects nothing"
    first, second = manifest.evaluators
    return (
        f"private unless two of {{{first}, {second}, {manifest.helper}}} collude, "
        "as long as all three follow the protocol"
    )


def sees(manifest: Manifest, name: str) -> list[str]:
    """What a party of a session gets to see beyond names, shapes, sizes and times."""
    if manifest.backend == crypten.NAME:
        return crypten.sees(manifest, name)
    if manifest.backend == ckks.NAME:
        return ckks.sees(manifest, name)
    seen = [f"its own {k}" for k, owner in manifest.inputs.items() if owner == name]
    if name == manifest.model_owner:
        seen.append("its own weights")
    if name in manifest.evaluators:
        seen.append("masked values, each as good as random to it")
    if name == manifest.helper:
        online = "" if manifest.comparison == "fss" else "; blinded comparisons, as good as random to it"
        seen.append("masks, never a masked value" + online)
    how = manifest.terms.release.words
    seen.extend(f"the result {k}{how}" for k, receiver in manifest.receivers.items() if receiver == name)
    return seen
