"""Public key switch: a ciphertext under the joint key becomes one under a receiver's public key.

Functionality: everybody has (c0', c1') under the receiver's key; the receiver, and nobody else, can open
it. There is no joint decryption: no holder and no evaluator sees a result.
Adversary: semi-honest, all holders but one, with the evaluator; or with the receiver, who sees m + noise,
where each honest e_smudge floods alone what the noise would tell of s_i and of the circuit. The receiver
rounds what it publishes (IND-CPA-D, eprint 2020/1533).
Rounds: 1, and 1 to the receiver. Bytes, a holder: 16 l N (`size`).
Correctness error: sum of u e_pk + e0 + e_smudge + e1 s', for a receiver with a key of its own of standard
deviation sqrt(n (sigma_smudge**2 + sigma**2 (4 N / 3 + 1))) (`noise.public_switch`).
Source: eprint 2020/304, section 4.3 (Pi_PubKeySwitch).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from privinfer.protocols.ckks import encryption
from privinfer.protocols.ckks.keys import KeyShare, PublicKey
from privinfer.protocols.ckks.messages import Message, add_up, residues_size, unpack
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.ckks.release import Permit
from privinfer.protocols.ckks.smudging import Smudging
from privinfer.protocols.randomness import U64

KIND: Final = "public key switch"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PublicSwitchShare(Message):
    """Sendable: (h0, h1), shape (2, l, N)."""


def size(parameters: Parameters, level: int) -> int:
    """Bytes of a holder's message."""
    return residues_size(parameters, 2 * level)


def generate_share(
    parameters: Parameters, share: KeyShare, target: PublicKey, c1: U64, smudging: Smudging, permit: Permit
) -> PublicSwitchShare:
    """Holder: h0 = s_i c1 + u p0 + e_smudge + e0, h1 = u p1 + e1."""
    permit.use(c1)
    ring, level = parameters.ring, len(c1)
    basis = parameters.data(level)
    # the smudged encryption of zero is (u p0 + e0 + e_smudge, u p1 + e1)
    h = encryption.encrypt_zero(parameters, target, level, smudging)
    h[0] = ring.add(h[0], ring.mul(c1, share.at(level), basis), basis)
    return PublicSwitchShare(h)


def parse(parameters: Parameters, data: bytes | memoryview, level: int, culprit: str) -> PublicSwitchShare:
    """Read a share; ProtocolViolation names its sender."""
    return PublicSwitchShare(
        unpack(data, parameters, parameters.data(level), (2,), culprit=culprit, step=KIND)
    )


def aggregate(
    parameters: Parameters, level: int, shares: Mapping[str, PublicSwitchShare], holders: Sequence[str]
) -> U64:
    """Aggregator: (sum h0, sum h1), shape (2, l, N)."""
    return add_up(parameters, parameters.data(level), (2,), shares, holders, KIND)


def finish(parameters: Parameters, c0: U64, total: U64) -> U64:
    """(c0 + sum h0, sum h1), under the target's key."""
    basis = parameters.data(total.shape[1])
    return np.stack([parameters.ring.add(c0, total[0], basis), total[1]])
