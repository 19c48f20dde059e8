"""Shares to encryption: additive integer shares become a ciphertext under the joint key.

Functionality: everybody has an encryption of the sum of the shares; nobody learns it.
Key holders (:func:`generate_share`): -s_i A + m_i + e with A from the common string, one A a ciphertext;
the sum is (sum of these, A). Anybody else with a share encrypts it (:func:`encrypt`) and the aggregator
adds that on. A holder without a share of the plaintext takes part with zero.
Adversary: semi-honest, all holders but one, with the aggregator. NOT covered: shares modulo 2**64 wrap, and
a wrap is not seen here: they have to be shares over the integers.
Rounds: 1. Bytes, a holder: 8 l N; by encryption 16 l N (`size`).
Correctness error: sigma sqrt(n) (`noise.from_shares`), and `noise.fresh` for each encryption.
Source: eprint 2020/304, section 4.4 (Pi_Share2Enc).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from privinfer.protocols.ckks import encryption, sampling
from privinfer.protocols.ckks.crs import CRS, Common
from privinfer.protocols.ckks.keys import KeyShare, PublicKey
from privinfer.protocols.ckks.masks import IntegerShare
from privinfer.protocols.ckks.messages import Message, add_up, residues_size, unpack
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.randomness import U64

KIND: Final = "shares to encryption"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class EncryptedShare(Message):
    """Sendable: -s_i A + m_i + e, shape (l, N)."""


def size(parameters: Parameters, level: int) -> tuple[int, int]:
    """Bytes of a holder's message, and of an encryption by anybody else."""
    return residues_size(parameters, level), encryption.size(parameters, level)


def sample(parameters: Parameters, crs: CRS, ciphertext: str, level: int) -> Common:
    """The polynomial A of this ciphertext, shape (1, l, N)."""
    return crs.draw(parameters, KIND, ciphertext, 1, parameters.data(level))


def hidden_share(parameters: Parameters, share: KeyShare, a: U64, plain: IntegerShare | None) -> U64:
    """-s_i A + m_i + e."""
    ring, level = parameters.ring, len(a)
    basis = parameters.data(level)
    e = ring.lift(sampling.error_integers(parameters, 1)[0], basis)
    if plain is not None:
        e = ring.add(e, ring.lift_wide(plain.words, basis), basis)
    return ring.sub(ring.ntt(e, basis), ring.mul(a, share.at(level), basis), basis)


def generate_share(
    parameters: Parameters, share: KeyShare, common: Common, plain: IntegerShare | None
) -> EncryptedShare:
    """Holder: -s_i A + m_i + e; None stands for a share of zero."""
    (a,) = common.start(KIND)
    return EncryptedShare(hidden_share(parameters, share, a, plain))


def encrypt(parameters: Parameters, public: PublicKey, plain: IntegerShare, level: int) -> U64:
    """Anybody: an encryption of its share, shape (2, l, N)."""
    ring, basis = parameters.ring, parameters.data(level)
    return encryption.encrypt(parameters, public, ring.ntt(ring.lift_wide(plain.words, basis), basis))


def parse(parameters: Parameters, data: bytes | memoryview, level: int, culprit: str) -> EncryptedShare:
    """Read a share; ProtocolViolation names its sender."""
    return EncryptedShare(unpack(data, parameters, parameters.data(level), (), culprit=culprit, step=KIND))


def aggregate(
    parameters: Parameters, level: int, shares: Mapping[str, EncryptedShare], holders: Sequence[str]
) -> U64:
    """Aggregator: the sum, shape (l, N)."""
    return add_up(parameters, parameters.data(level), (), shares, holders, KIND)


def finish(parameters: Parameters, common: Common, total: U64) -> U64:
    """(sum, A), shape (2, l, N)."""
    del parameters
    return np.stack([total, common.data[0]])
