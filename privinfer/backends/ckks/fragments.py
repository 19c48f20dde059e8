"""An owner's key and inputs at rest: made, encrypted and read back by the CKKS backend's rules.

`privinfer/session/fragment.py` has the files; here are the arrays in them. Ciphertexts are fresh encryptions
under the owner's own public key, at the top level of the fragment's parameters, packed as `layout.py` says. A
session of the same N takes them whatever its levels are: all chains of one N share their primes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from privinfer.backends.ckks.layout import Layout, input_layout
from privinfer.errors import ConfigError, InputError, IntegrityError, ProtocolViolation
from privinfer.protocols.ckks import encryption, rekey
from privinfer.protocols.ckks.keys import OwnKey, PublicKey, SecretShare
from privinfer.protocols.ckks.messages import check_residues
from privinfer.protocols.ckks.parameters import SCALE, Parameters
from privinfer.protocols.ckks.rekey import OfflineKey
from privinfer.protocols.randomness import U64
from privinfer.session import fragment, keyfile
from privinfer.session.fragment import FragmentHeader
from privinfer.session.identity import Identity, PublicIdentity
from privinfer.session.keyfile import KeyHeader

DEGREE: Final = 16384
LEVELS: Final = 7
MAX_MAGNITUDE: Final = (
    1024.0  # times the scale and the growth of a sum it stays below 2^62, the encoder's bound
)


def make_key(path: str | os.PathLike[str], identity: Identity, parameters: Parameters) -> KeyHeader:
    """Draw an owner's key and write it to a new file.

    Parameters
    ----------
    path : path
        Must not exist.
    identity : Identity
        The owner's.
    parameters : Parameters
        For all fragments under this key.
    """
    key = OwnKey.fresh(parameters)
    secret = key.secret.expose().astype(np.int8).tobytes()
    return keyfile.write_key(
        path,
        identity,
        secret,
        key.public.data,
        parameters=parameters.digest(),
        key=key.public.digest(),
    )


def open_key(path: str | os.PathLike[str], identity: Identity, *, insecure: bool = False) -> OwnKey:
    """Read a key file.

    Parameters
    ----------
    path : path
        What :func:`make_key` wrote.
    identity : Identity
        The owner's.
    insecure : bool
        For tests on small rings.

    Raises
    ------
    ConfigError
        Another owner, other parameters, or fewer than 128 bits of security.
    IntegrityError
        Damaged, or not what its owner signed.
    """
    stored = keyfile.read_key(path, identity)
    header = stored.header
    parameters = _parameters(header.n, header.levels, header.parameters, insecure, f"key {os.fspath(path)}")
    title = f"key {os.fspath(path)}"
    data = _canonical(stored.public, parameters, parameters.full, (2,), identity.name, title)
    public = PublicKey(parameters, data)
    secret = np.frombuffer(stored.secret, dtype=np.int8).astype(np.int64)
    if public.digest() != header.key_id or secret.shape != (parameters.n,):
        raise IntegrityError(f"{title} does not hold the key it names", culprit=identity.name)
    published = keyfile.read_publication(path, identity.public, key=header.key_id)
    return OwnKey(SecretShare.restore(parameters, secret), public, published)


def for_session(own: OwnKey, parameters: Parameters) -> OwnKey:
    """The same secret over a session's primes, with which its ciphertexts are moved (`rekey.switch`).

    Parameters
    ----------
    own : OwnKey
        Of :func:`open_key`.
    parameters : Parameters
        Of a session of the same N, with any number of levels.
    """
    return OwnKey(SecretShare.restore(parameters, own.secret.expose()), own.public, own.offline_for)


def publish(
    path: str | os.PathLike[str], identity: Identity, own: OwnKey, joint: PublicKey, consent: bytes
) -> OfflineKey:
    """Publish an offline re-keying key, once in the life of the key: the mark on disk comes first.

    Parameters
    ----------
    path : path
        The key file `own` came from.
    identity : Identity
        The owner's.
    own : OwnKey
        Of :func:`open_key`.
    joint : PublicKey
        Of the session's key holders.
    consent : bytes
        Digest of the agreement, 32 bytes.

    Raises
    ------
    IntegrityError
        It was published before, here or by another process.
    """
    if own.offline_for is not None:
        raise IntegrityError(
            "this own key was published for a joint key before",
            culprit=identity.name,
            hint="switch online, or encrypt under a new key",
        )
    keyfile.write_publication(path, identity, key=own.public.digest(), joint=joint.digest())
    return rekey.publish(joint.parameters, for_session(own, joint.parameters), joint, consent)


def encrypt(
    path: str | os.PathLike[str],
    identity: Identity,
    public: PublicKey,
    name: str,
    values: npt.NDArray[Any],
    bounds: tuple[float, float],
) -> FragmentHeader:
    """Encrypt one sample of an input under its owner's key and write it to a new file.

    Parameters
    ----------
    path : path
        Must not exist.
    identity : Identity
        The owner's.
    public : PublicKey
        The owner's.
    name : str
        Of the input in the models to come.
    values : ndarray of real numbers
        One sample, in the shape that the model declares.
    bounds : (float, float)
        The range that the model declares.

    Raises
    ------
    InputError
        Values are not finite numbers in range.
    ConfigError
        The file exists or cannot be written.
    """
    real = _check_values(name, values, bounds)
    layout = input_layout(real.shape, public.parameters.slots)
    if layout.ciphertexts > fragment.MAX_CIPHERTEXTS:
        raise InputError(
            f"input {name!r} of shape {real.shape} takes {layout.ciphertexts} ciphertexts, too many"
        )
    data = np.stack([encrypt_slots(public, slots, SCALE) for slots in layout.pack(real.reshape(-1))])
    return fragment.write_fragment(
        path,
        identity,
        data,
        name=name,
        shape=real.shape,
        bounds=bounds,
        parameters=public.parameters.digest(),
        key=public.digest(),
        scale=SCALE,
    )


def encrypt_slots(public: PublicKey, slots: npt.NDArray[np.float64], scale: float) -> U64:
    """Encrypt S real numbers at the top level, uint64 [2, levels, N]."""
    parameters = public.parameters
    basis = parameters.data(parameters.levels)
    return encryption.encrypt(
        parameters, public, parameters.ring.encode(slots.astype(np.complex128), scale, basis)
    )


@dataclass(frozen=True, slots=True)
class Loaded:
    """A fragment that fits a session.

    Attributes
    ----------
    header : FragmentHeader
    layout : Layout
    parameters : Parameters
        Of the fragment: same N as the session's, perhaps more or fewer levels.
    data : ndarray of uint64 [count, 2, levels, N]
        Ciphertexts under the owner's key, at the level of both at most.
    digest : bytes
        SHA-256 of the file.
    """

    header: FragmentHeader
    layout: Layout
    parameters: Parameters
    data: U64
    digest: bytes


def load(
    path: str | os.PathLike[str],
    owner: PublicIdentity,
    parameters: Parameters,
    *,
    name: str,
    shape: tuple[int, ...],
    bounds: tuple[float, float],
    key: bytes | None = None,
) -> Loaded:
    """Read a fragment for a session, everything checked.

    Parameters
    ----------
    path : path
        The file.
    owner : PublicIdentity
        Of the session file.
    parameters : Parameters
        Of the session.
    name, shape, bounds
        The input as the session's model declares it.
    key : bytes, optional
        Digest of the owner's public key, where it is known already.

    Raises
    ------
    ConfigError, InputError, IntegrityError
        As :func:`privinfer.session.fragment.read_fragment`; other N; residues that are not reduced.
    """
    title = f"fragment {os.fspath(path)}"
    found = fragment.read_fragment(path, owner, name=name, shape=shape, bounds=bounds, key=key)
    header = found.header
    if header.n != parameters.n:
        raise ConfigError(
            f"{title} was encrypted with N = {header.n}, and the session has N = {parameters.n}",
            culprit=owner.name,
        )
    own = _parameters(header.n, header.levels, header.parameters, parameters.insecure, title)
    layout = input_layout(header.shape, own.slots)
    if layout.ciphertexts != header.count or header.scale != SCALE:
        raise IntegrityError(f"{title} is packed or scaled by another rule", culprit=owner.name)
    basis = own.data(own.levels)
    data = _canonical(found.data, own, basis, (header.count, 2), owner.name, title)
    level = min(own.levels, parameters.levels)
    return Loaded(header, layout, own, np.ascontiguousarray(data[:, :, :level]), found.digest)


def _check_values(
    name: str, values: npt.NDArray[Any], bounds: tuple[float, float]
) -> npt.NDArray[np.float64]:
    low, high = bounds
    if not fragment.is_input_name(name):
        raise InputError("an input's name is printable, in one line, and of 128 characters at most")
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise InputError(f"the range of input {name!r} is not a finite interval")
    if max(abs(low), abs(high)) > MAX_MAGNITUDE:
        raise InputError(
            f"the range of input {name!r} reaches {max(-low, high):g}, and {MAX_MAGNITUDE:g} is the most",
            hint="divide by a constant, and multiply in the model",
        )
    if values.dtype.kind not in "fiu":
        raise InputError(f"input {name!r} is {values.dtype}, real numbers are needed")
    if not 1 <= values.size <= fragment.MAX_VALUES or values.ndim > fragment.MAX_AXES:
        raise InputError(f"input {name!r} has shape {values.shape}, which is empty or too large")
    real = values.astype(np.float64)
    if not np.isfinite(real).all():
        raise InputError(f"input {name!r} holds NaN or infinity")
    if real.min() < low or real.max() > high:
        raise InputError(
            f"input {name!r} leaves its range ({low:g}, {high:g})",
            hint="clip or rescale as the model's card says",
        )
    return real


def _parameters(n: int, levels: int, digest: bytes, insecure: bool, title: str) -> Parameters:
    parameters = Parameters(n, levels, insecure)
    if parameters.digest() != digest:
        raise ConfigError(f"{title} was made with other primes")
    return parameters


def _canonical(
    data: U64, parameters: Parameters, basis: tuple[int, ...], lead: tuple[int, ...], owner: str, title: str
) -> U64:
    try:
        return check_residues(data, parameters, basis, lead, culprit=owner, step=title)
    except ProtocolViolation as error:
        raise IntegrityError(error.message, culprit=owner) from None
