"""Encryption to shares: a ciphertext's integer coefficients become additive shares of holders and aggregator.

Functionality: holder i has M_i, the aggregator m - sum M_i, as integers: shares add up over the integers,
exactly, hence modulo 2**64. Nobody learns m.
Adversary: semi-honest, all holders but one, with the aggregator: one honest M_i hides m within a
statistical distance of 2**-41 (`masks.py`). Each ciphertext once (`release.py`).
Rounds: 1. Bytes, a holder: 8 l N (`size`). Needs Q_l > 2 (n + 1) 2**B, B = message bits + 40 + log2 N;
PrecisionError otherwise.
Correctness error: sigma sqrt(n) (`noise.to_shares`).
Source: eprint 2020/304, section 4.4 (Pi_Enc2Share), with masks over the integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from privinfer.errors import ProtocolViolation
from privinfer.protocols.ckks import sampling
from privinfer.protocols.ckks.keys import KeyShare
from privinfer.protocols.ckks.masks import IntegerShare, check_room
from privinfer.protocols.ckks.messages import Message, add_up, residues_size, unpack
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.ckks.release import Permit
from privinfer.protocols.randomness import U64

KIND: Final = "encryption to shares"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MaskedShare(Message):
    """Sendable: s_i c1 + e - M_i, shape (l, N)."""


def size(parameters: Parameters, level: int) -> int:
    """Bytes of a holder's message."""
    return residues_size(parameters, level)


def masked_product(parameters: Parameters, share: KeyShare, c1: U64, mask: IntegerShare) -> U64:
    """s_i c1 + e - M_i."""
    ring, level = parameters.ring, len(c1)
    basis = parameters.data(level)
    e = ring.lift(sampling.error_integers(parameters, 1)[0], basis)
    hidden = ring.ntt(ring.sub(e, ring.lift_wide(mask.words, basis), basis), basis)
    return ring.add(hidden, ring.mul(c1, share.at(level), basis), basis)


def generate_share(
    parameters: Parameters, share: KeyShare, c1: U64, holders: int, message_bits: int, permit: Permit
) -> tuple[IntegerShare, MaskedShare]:
    """Holder: M_i uniform in [-2**B, 2**B), which it keeps, and s_i c1 + e - M_i, which it sends.

    Parameters
    ----------
    parameters : Parameters
        Of the session.
    share : KeyShare
        s_i, or lambda_i S_i of a threshold.
    c1 : ndarray of uint64, shape (l, N)
        Of the ciphertext.
    holders : int
        n, or t of a threshold.
    message_bits : int
        Coefficients of the message, scale included, stay below 2**message_bits.
    permit : Permit
        For this ciphertext.
    """
    bits = check_room(parameters, len(c1), holders, message_bits, KIND)
    permit.use(c1)
    mask = IntegerShare(sampling.wide_integers(parameters, bits))
    return mask, MaskedShare(masked_product(parameters, share, c1, mask))


def parse(parameters: Parameters, data: bytes | memoryview, level: int, culprit: str) -> MaskedShare:
    """Read a share; ProtocolViolation names its sender."""
    return MaskedShare(unpack(data, parameters, parameters.data(level), (), culprit=culprit, step=KIND))


def aggregate(
    parameters: Parameters, level: int, shares: Mapping[str, MaskedShare], holders: Sequence[str]
) -> U64:
    """Aggregator: the sum, shape (l, N)."""
    return add_up(parameters, parameters.data(level), (), shares, holders, KIND)


def finish(parameters: Parameters, c0: U64, total: U64, step: str = KIND) -> IntegerShare:
    """Aggregator: its own share, m - sum M_i: c0 + the sum, centred modulo Q_l.

    Raises
    ------
    ProtocolViolation
        The sum is no message with masks. Of canonical shares nobody can tell whose is wrong: no culprit.
    """
    ring, basis = parameters.ring, parameters.data(len(total))
    hidden = ring.add(np.ascontiguousarray(c0[: len(total)]), total, basis)
    try:
        return IntegerShare(ring.compose(ring.intt(hidden, basis), basis))
    except ValueError:
        raise ProtocolViolation(
            f"{step}: the shares do not add up to a message", step=step, hint="make new keys"
        ) from None
