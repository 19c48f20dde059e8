"""A fragment at rest comes into a session: checked at home, then moved from its owner's key to the joint key.

The online way of `rekey.py`, by the owner itself. A share of one ciphertext leaves its party once. A fragment
serves many sessions all the same: before each switch the owner adds a fresh encryption of zero under its own
public key, and what is switched is a new ciphertext, whose digest goes into a ledger beside the key file.

What the smudging hides: the ciphertext under the joint key decrypts to the values plus the fragment's own
noise, which together with the fragment itself would tell of the owner's secret key. All key holders together
could read the values anyway; that must not open the owner's other fragments to them. After k sessions with
one fragment they can average k samples, and log2(k) / 2 bits of flooding are gone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

import numpy as np

from privinfer.backends.ckks import fragments
from privinfer.backends.ckks.plan import Source
from privinfer.errors import ConfigError, InputError
from privinfer.protocols.ckks import encryption, noise, public_switch, rekey, smudging
from privinfer.protocols.ckks.keys import OwnKey, PublicKey
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.ckks.release import Record, Releases
from privinfer.protocols.randomness import U64, Secret
from privinfer.session import fragment as files
from privinfer.session.fragment import Fragment
from privinfer.session.identity import Identity

# Standard deviation of an input's slot that smudging may cause: 2e-6, nothing beside what an output's may.
ERROR: Final = 2.0**-19


class Moving(Secret):
    """A fragment that fits the session, and the key that moves it.

    Attributes
    ----------
    own : OwnKey
        Secret over the session's primes, public key over the fragment's.
    data : ndarray of uint64, shape (ciphertexts, 2, level, N)
        Under the owner's key, at the level at which the plan wants the input.
    record : callable
        The ledger beside the key file.
    digest : bytes
        SHA-256 of the fragment's file.
    """

    __slots__ = ("data", "digest", "own", "record")

    def __init__(self, own: OwnKey, data: U64, record: Record, digest: bytes) -> None:
        self.own, self.data, self.record, self.digest = own, data, record, digest


def check_at_home(fragment: Fragment, identity: Identity, name: str) -> None:
    """Check what can be known before a session is joined: form, signature, owner, input, key.

    Raises
    ------
    ConfigError, InputError, IntegrityError
        As :func:`privinfer.session.fragment.read_fragment`.
    """
    header = files.read_header(fragment.path)
    own = fragments.open_key(fragment.key, identity)
    files.read_fragment(
        fragment.path,
        identity.public,
        name=name,
        shape=header.shape,
        bounds=(header.low, header.high),
        key=own.public.digest(),
    )


def open_fragment(
    fragment: Fragment,
    identity: Identity,
    parameters: Parameters,
    source: Source,
    bounds: tuple[float, float],
    record: Record,
) -> Moving:
    """Check that a fragment is what the session asks for.

    Parameters
    ----------
    fragment : Fragment
        Its files.
    identity : Identity
        The owner's.
    parameters : Parameters
        Of the session.
    source : Source
        The input in the plan.
    bounds : (float, float)
        Range that the model declares.
    record : callable
        The ledger beside the key file.

    Raises
    ------
    ConfigError, InputError, IntegrityError
        Another owner, input, shape, range, key or N; too few levels; damaged. Nothing has been sent.
    """
    own = fragments.open_key(fragment.key, identity)
    found = fragments.load(
        fragment.path,
        identity.public,
        parameters,
        name=source.name,
        shape=source.shape,
        bounds=bounds,
        key=own.public.digest(),
    )
    title = f"fragment {os.fspath(fragment.path)}"
    if found.parameters.levels < source.level:
        raise ConfigError(
            f"{title} has {found.parameters.levels} levels, and the session takes {source.level}",
            culprit=identity.name,
            hint=f"encrypt under a key of --levels {source.level} or more",
        )
    if not found.layout.same(source.layout):
        raise InputError(f"{title} is packed otherwise than the session wants it", culprit=identity.name)
    data = np.ascontiguousarray(found.data[:, :, : source.level])
    return Moving(fragments.for_session(own, parameters), data, record, found.digest)


@dataclass(frozen=True, slots=True)
class Step:
    """Where in which session a fragment is moved: names its ciphertexts in the ledger."""

    session: bytes
    inference: int
    input: str


def move(parameters: Parameters, moving: Moving, joint: PublicKey, step: Step) -> U64:
    """Switch a fragment to the joint key.

    Parameters
    ----------
    parameters : Parameters
        Of the session.
    moving : Moving
        From :func:`open_fragment`.
    joint : PublicKey
        Of the session's key holders.
    step : Step
        Of which nothing was moved before.

    Returns
    -------
    ndarray of uint64, shape (ciphertexts, 2, level, N)
        Under the joint key; tells nobody that it was a fragment.

    Raises
    ------
    IntegrityError
        The ledger has this step or this ciphertext.
    """
    level, smudge = moving.data.shape[2], flooding(parameters)
    fresh = [encryption.rerandomise(parameters, moving.own.public, c) for c in moving.data]
    steps = {f"fragment/{step.inference}/{step.input}/{k}": c[1] for k, c in enumerate(fresh)}
    permits = Releases(step.session, moving.record).claim_all(steps)
    found = np.empty_like(moving.data)
    for k, (c, (name, c1)) in enumerate(zip(fresh, steps.items(), strict=True)):
        share = rekey.switch(parameters, moving.own, joint, c1, smudge, permits[name])
        total = public_switch.aggregate(parameters, level, {"owner": share}, ["owner"])
        found[k] = public_switch.finish(parameters, c[0], total)
    return found


def flooding(parameters: Parameters) -> smudging.Smudging:
    """Smudging of a switch: what the error that inputs may have leaves room for."""
    return smudging.choose(parameters, 1, ERROR)


def describe(parameters: Parameters) -> str:
    """What is reported of a switch: smudging, bits of flooding, bits of precision left."""
    hidden = float(np.hypot(noise.fresh(parameters, 1), noise.fresh(parameters, 1)))
    return flooding(parameters).describe(parameters, 1, hidden)
