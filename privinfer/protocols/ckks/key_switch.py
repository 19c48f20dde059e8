"""Collective key switch: a ciphertext under s becomes one under s', where the holders have shares of both.

Functionality: everybody has (c0', c1) with c0' + c1 s' = m + noise; nobody learns m, s or s' beyond its
shares.
Adversary: semi-honest, all holders but one, with the aggregator. Each party's own e_smudge floods alone.
NOT protected: s' = 0 would be a decryption in the open, so the new shares have the type of shares and
nothing else.
Rounds: 1. Bytes, a holder: 8 l N (`size`).
Correctness error: sigma_smudge sqrt(n) (`noise.key_switch`).
Source: eprint 2020/304, section 4.3 (Pi_KeySwitch).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from privinfer.protocols.ckks.keys import KeyShare
from privinfer.protocols.ckks.messages import Message, add_up, residues_size, unpack
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.ckks.release import Permit
from privinfer.protocols.ckks.smudging import Smudging
from privinfer.protocols.randomness import U64

KIND: Final = "key switch"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SwitchShare(Message):
    """Sendable: h, shape (l, N)."""


def size(parameters: Parameters, level: int) -> int:
    """Bytes of a holder's message."""
    return residues_size(parameters, level)


def generate_share(
    parameters: Parameters, old: KeyShare, new: KeyShare, c1: U64, smudging: Smudging, permit: Permit
) -> SwitchShare:
    """Holder: h = (s_i - s'_i) c1 + e_smudge."""
    permit.use(c1)
    ring, level = parameters.ring, len(c1)
    basis = parameters.data(level)
    e = ring.ntt(smudging.sample(parameters, basis), basis)
    return SwitchShare(ring.add(e, ring.mul(c1, ring.sub(old.at(level), new.at(level), basis), basis), basis))


def parse(parameters: Parameters, data: bytes | memoryview, level: int, culprit: str) -> SwitchShare:
    """Read a share; ProtocolViolation names its sender."""
    return SwitchShare(unpack(data, parameters, parameters.data(level), (), culprit=culprit, step=KIND))


def aggregate(
    parameters: Parameters, level: int, shares: Mapping[str, SwitchShare], holders: Sequence[str]
) -> U64:
    """Aggregator: sum h, shape (l, N)."""
    return add_up(parameters, parameters.data(level), (), shares, holders, KIND)


def finish(parameters: Parameters, ciphertext: U64, total: U64) -> U64:
    """(c0 + sum h, c1)."""
    basis = parameters.data(len(total))
    return np.stack([parameters.ring.add(ciphertext[0], total, basis), ciphertext[1]])
