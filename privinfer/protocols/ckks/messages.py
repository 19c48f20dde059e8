"""What crosses the wire: arrays of canonical residues, and the checks of everything that was received.

A residue takes 8 bytes, little-endian. Whatever is wrong with a message names its sender.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from privinfer.errors import ProtocolViolation
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.randomness import U64

RESIDUE_BYTES: Final = 8


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Message:
    """A sendable array of residues; every protocol has its own types of it.

    Attributes
    ----------
    data : ndarray of uint64, shape (.., limbs, N)
        NTT form.
    """

    data: U64

    def to_bytes(self) -> bytes:
        """Wire form."""
        return self.data.astype("<u8", copy=False).tobytes()

    def __repr__(self) -> str:
        return f"{type(self).__name__}{self.data.shape}"


def residues_size(parameters: Parameters, count: int) -> int:
    """Bytes of `count` limbs of N residues."""
    return count * parameters.n * RESIDUE_BYTES


def check_residues(
    array: object,
    parameters: Parameters,
    basis: Sequence[int],
    lead: tuple[int, ...],
    *,
    culprit: str | None,
    step: str,
) -> U64:
    """Hold a received array to dtype, shape and canonical range.

    Parameters
    ----------
    array : object
        What was received.
    parameters : Parameters
        Of the session.
    basis : sequence of int
        Indices of the primes of the limbs.
    lead : tuple of int
        Axes before the limbs.
    culprit : str
        Who sent it.
    step : str
        Where in the protocol.

    Returns
    -------
    ndarray of uint64, shape (*lead, len(basis), N)
        The array, C-contiguous.

    Raises
    ------
    ProtocolViolation
        It is not what the protocol allows; names culprit and step.
    """
    if not isinstance(array, np.ndarray) or array.dtype != np.uint64:
        raise ProtocolViolation(f"{step}: residues are uint64", culprit=culprit, step=step)
    shape = (*lead, len(basis), parameters.n)
    if array.shape != shape:
        raise ProtocolViolation(
            f"{step}: shape {array.shape} in place of {shape}", culprit=culprit, step=step
        )
    primes = np.array([parameters.primes[i] for i in basis], dtype=np.uint64)
    if np.any(array.max(axis=-1) >= primes):
        raise ProtocolViolation(f"{step}: a coefficient is not below its prime", culprit=culprit, step=step)
    return np.ascontiguousarray(array)


def unpack(
    data: bytes | memoryview,
    parameters: Parameters,
    basis: Sequence[int],
    lead: tuple[int, ...],
    *,
    culprit: str | None,
    step: str,
) -> U64:
    """Read and check what :meth:`Message.to_bytes` wrote; ProtocolViolation names the culprit."""
    shape = (*lead, len(basis), parameters.n)
    size = residues_size(parameters, int(np.prod(shape[:-1], dtype=np.int64)))
    if len(data) != size:
        raise ProtocolViolation(
            f"{step}: a message of {len(data)} bytes in place of {size}", culprit=culprit, step=step
        )
    array = np.frombuffer(data, dtype="<u8").astype(np.uint64).reshape(shape)
    return check_residues(array, parameters, basis, lead, culprit=culprit, step=step)


def check_holders(names: Sequence[str] | Mapping[str, object], holders: Sequence[str], step: str) -> None:
    """Hold the senders of a round to the key holders that take part in it.

    Raises
    ------
    ProtocolViolation
        Names who is no key holder here, or whose message is missing.
    """
    for name in names:
        if name not in holders:
            raise ProtocolViolation(f"{step}: {name} is no key holder here", culprit=name, step=step)
    for name in holders:
        if name not in names:
            raise ProtocolViolation(f"{step}: nothing came from {name}", culprit=name, step=step)


def add_up(
    parameters: Parameters,
    basis: Sequence[int],
    lead: tuple[int, ...],
    shares: Mapping[str, Message],
    holders: Sequence[str],
    step: str,
) -> U64:
    """Check every holder's share, then their sum.

    Returns
    -------
    ndarray of uint64, shape (*lead, len(basis), N)
        A new array.
    """
    check_holders(shares, holders, step)
    total: U64 | None = None
    for name in holders:
        data = check_residues(shares[name].data, parameters, basis, lead, culprit=name, step=step)
        total = data if total is None else parameters.ring.add(total, data, basis)
    if total is None:
        raise ValueError("a protocol has at least one key holder")
    return total.copy() if len(holders) == 1 else total
