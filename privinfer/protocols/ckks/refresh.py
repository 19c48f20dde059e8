"""Refresh (collective bootstrapping): a ciphertext low on levels comes back with more, in one round.

Functionality: everybody has an encryption of the same coefficients at `high` limbs; nobody learns them.
Encryption to shares and shares to encryption with the same M_i, in one message:
    [ s_i c1 + e - M_i  at `low` limbs | -s_i A + M_i + e'  at `high` limbs ].
The aggregator adds the first parts to c0, centres modulo Q_low, lifts to `high` limbs and adds the second
parts: M_i cancels, exactly, and (.., A) is the new ciphertext.
Adversary: semi-honest, all holders but one, with the aggregator: one honest M_i hides m within a
statistical distance of 2**-41 (`masks.py`). Each ciphertext once (`release.py`), each with an A of its own
(`crs.py`). The evaluator adds a fresh encryption of zero before (`encryption.rerandomise`).
Rounds: 1. Bytes, a holder: 8 (low + high) N (`size`). Needs Q_low > 2 (n + 1) 2**B, B = message bits + 40 +
log2 N; PrecisionError otherwise.
Correctness error: sigma sqrt(2 n) (`noise.refresh`); coefficients are exact otherwise.
Source: eprint 2020/304, section 4.4 (Pi_ColBootstrap), with masks over the integers, which CKKS needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from privinfer.errors import ProtocolViolation
from privinfer.protocols.ckks import sampling
from privinfer.protocols.ckks.crs import CRS, Common
from privinfer.protocols.ckks.from_shares import hidden_share
from privinfer.protocols.ckks.keys import KeyShare
from privinfer.protocols.ckks.masks import IntegerShare, check_room
from privinfer.protocols.ckks.messages import Message, add_up, residues_size, unpack
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.ckks.release import Permit
from privinfer.protocols.ckks.to_shares import finish as centre
from privinfer.protocols.ckks.to_shares import masked_product
from privinfer.protocols.randomness import U64

KIND: Final = "refresh"


@dataclass(frozen=True, slots=True)
class Span:
    """From which level to which, for how many holders and how large a message: public, from the plan.

    Attributes
    ----------
    low : int
        Limbs at which the ciphertext is masked; it may have more, which are dropped.
    high : int
        Limbs of the result.
    holders : int
        n, or t of a threshold.
    message_bits : int
        Coefficients of the message, scale included, stay below 2**message_bits.
    """

    low: int
    high: int
    holders: int
    message_bits: int


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class RefreshShare:
    """Sendable: both parts.

    Attributes
    ----------
    low : Message
        s_i c1 + e - M_i, shape (low, N).
    high : Message
        -s_i A + M_i + e', shape (high, N).
    """

    low: Message
    high: Message

    def to_bytes(self) -> bytes:
        """Wire form: the low part, then the high one."""
        return self.low.to_bytes() + self.high.to_bytes()

    def __repr__(self) -> str:
        return f"RefreshShare({self.low!r}, {self.high!r})"


def size(parameters: Parameters, span: Span) -> int:
    """Bytes of a holder's message."""
    return residues_size(parameters, span.low + span.high)


def check_span(parameters: Parameters, span: Span) -> int:
    """B, where masks have room; PrecisionError otherwise."""
    return check_room(parameters, span.low, span.holders, span.message_bits, KIND)


def sample(parameters: Parameters, crs: CRS, ciphertext: str, span: Span) -> Common:
    """The polynomial A of this ciphertext, shape (1, high, N)."""
    return crs.draw(parameters, KIND, ciphertext, 1, parameters.data(span.high))


def generate_share(
    parameters: Parameters, span: Span, share: KeyShare, common: Common, c1: U64, permit: Permit
) -> RefreshShare:
    """Holder: M_i uniform in [-2**B, 2**B), and both parts.

    Parameters
    ----------
    parameters : Parameters
        Of the session.
    span : Span
        Of the plan.
    share : KeyShare
        s_i, or lambda_i S_i of a threshold.
    common : Common
        A of this ciphertext.
    c1 : ndarray of uint64, shape (low or more, N)
        Of the ciphertext.
    permit : Permit
        For this ciphertext.
    """
    bits = check_span(parameters, span)
    permit.use(c1)
    (a,) = common.start(KIND)
    mask = IntegerShare(sampling.wide_integers(parameters, bits))
    low = masked_product(parameters, share, np.ascontiguousarray(c1[: span.low]), mask)
    return RefreshShare(Message(low), Message(hidden_share(parameters, share, a, mask)))


def parse(parameters: Parameters, span: Span, data: bytes | memoryview, culprit: str) -> RefreshShare:
    """Read a share; ProtocolViolation names its sender."""
    wanted = size(parameters, span)
    if len(data) != wanted:
        raise ProtocolViolation(
            f"{KIND}: a message of {len(data)} bytes in place of {wanted}", culprit=culprit, step=KIND
        )
    cut = residues_size(parameters, span.low)
    parts = (
        unpack(part, parameters, parameters.data(level), (), culprit=culprit, step=KIND)
        for part, level in ((data[:cut], span.low), (data[cut:], span.high))
    )
    low, high = (Message(part) for part in parts)
    return RefreshShare(low, high)


def aggregate(
    parameters: Parameters, span: Span, shares: Mapping[str, RefreshShare], holders: Sequence[str]
) -> tuple[U64, U64]:
    """Aggregator: the sums of both parts, shapes (low, N) and (high, N)."""
    low, high = (
        add_up(parameters, parameters.data(level), (), parts, holders, KIND)
        for level, parts in (
            (span.low, {name: share.low for name, share in shares.items()}),
            (span.high, {name: share.high for name, share in shares.items()}),
        )
    )
    return low, high


def finish(parameters: Parameters, span: Span, common: Common, c0: U64, total: tuple[U64, U64]) -> U64:
    """Aggregator: lift(c0 + sum low, centred modulo Q_low) + sum high, and A; shape (2, high, N)."""
    ring, basis = parameters.ring, parameters.data(span.high)
    masked = centre(parameters, c0, total[0], KIND)
    lifted = ring.ntt(ring.lift_wide(masked.words, basis), basis)
    return np.stack([ring.add(lifted, total[1], basis), common.data[0]])
