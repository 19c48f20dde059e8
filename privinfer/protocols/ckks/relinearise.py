"""Joint relinearisation key: switches s**2 back to s after a product of ciphertexts.

Functionality: everybody learns rlk, b_j + a_j s = s**2 g_j + noise for each digit j; nobody learns anything
of s.
Adversary: semi-honest, all holders but one, with the aggregator. NOT protected: an aggregator that sends
sums H0, H1 of its own choice in place of the true ones learns s_i from the second round's share.
Rounds: 2, each through the aggregator. Bytes up, a holder: 16 D K N, then 8 D K N; down, to each: 16 D K N
(`size`).
Correctness error: s e0 + u e1 + e2, standard deviation sigma sqrt(n (4 n N / 3 + 1)) a coefficient of the key
(`noise.relinearisation_key`), `noise.relinearisation` in a ciphertext.
Source: eprint 2020/304, section 4.2 (Pi_RelinKeyGen).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from privinfer.errors import IntegrityError
from privinfer.protocols.ckks import sampling
from privinfer.protocols.ckks.crs import CRS, Common
from privinfer.protocols.ckks.gadget import add_gadget
from privinfer.protocols.ckks.keys import SecretShare
from privinfer.protocols.ckks.messages import Message, add_up, check_residues, residues_size, unpack
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.randomness import U64, Secret

KIND: Final = "relinearisation key"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FirstShare(Message):
    """Sendable: (h0, h1) for each digit, shape (2, D, K, N)."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FirstSum(Message):
    """From the aggregator to every holder: (H0, H1), shape (2, D, K, N)."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SecondShare(Message):
    """Sendable: h for each digit, shape (D, K, N)."""


class Ephemeral(Secret):
    """u_i, kept between the rounds and NOT sent; serves one second round."""

    __slots__ = ("_secret", "_u", "_used")

    def __init__(self, secret: SecretShare, u: U64) -> None:
        self._secret = secret
        self._u = u
        self._used = False

    def start(self) -> tuple[U64, U64]:
        """s_i and u_i, once."""
        if self._used:
            raise IntegrityError(f"{KIND}: a second share for one first round")
        self._used = True
        return self._secret.values, self._u


def size(parameters: Parameters) -> tuple[int, int, int]:
    """Bytes: a holder's first message, the aggregator's sum to each holder, a holder's second message."""
    digit = residues_size(parameters, parameters.digits * parameters.limbs)
    return 2 * digit, 2 * digit, digit


def sample(parameters: Parameters, crs: CRS) -> Common:
    """Polynomials A_j, shape (D, K, N)."""
    return crs.draw(parameters, KIND, KIND, parameters.digits, parameters.full)


def generate_first(
    parameters: Parameters, secret: SecretShare, common: Common
) -> tuple[Ephemeral, FirstShare]:
    """Holder, round 1."""
    ring, full, digits = parameters.ring, parameters.full, parameters.digits
    a = common.start(KIND)
    u = sampling.ternary(parameters, full)
    e = sampling.errors(parameters, full, 2, digits)
    share = np.empty_like(e)
    # h0_j = -u_i A_j + s_i g_j + e0
    share[0] = ring.sub(e[0], ring.mul(a, u, full), full)
    add_gadget(parameters, share[0], secret.values)
    # h1_j = s_i A_j + e1
    share[1] = ring.add(e[1], ring.mul(a, secret.values, full), full)
    return Ephemeral(secret, u), FirstShare(share)


def parse_first(parameters: Parameters, data: bytes | memoryview, culprit: str) -> FirstShare:
    """Read a holder's first message; ProtocolViolation names it."""
    lead = (2, parameters.digits)
    return FirstShare(unpack(data, parameters, parameters.full, lead, culprit=culprit, step=KIND))


def aggregate_first(
    parameters: Parameters, shares: Mapping[str, FirstShare], holders: Sequence[str]
) -> FirstSum:
    """Aggregator: H0 = sum h0, H1 = sum h1."""
    return FirstSum(add_up(parameters, parameters.full, (2, parameters.digits), shares, holders, KIND))


def parse_sum(parameters: Parameters, data: bytes | memoryview, culprit: str) -> FirstSum:
    """Read the aggregator's message; ProtocolViolation names it."""
    lead = (2, parameters.digits)
    return FirstSum(unpack(data, parameters, parameters.full, lead, culprit=culprit, step=KIND))


def generate_second(
    parameters: Parameters, ephemeral: Ephemeral, total: FirstSum, aggregator: str | None = None
) -> SecondShare:
    """Holder, round 2."""
    ring, full, digits = parameters.ring, parameters.full, parameters.digits
    h = check_residues(total.data, parameters, full, (2, digits), culprit=aggregator, step=KIND)
    s, u = ephemeral.start()
    # h_j = s_i H0_j + (u_i - s_i) H1_j + e2
    share = ring.add(sampling.errors(parameters, full, digits), ring.mul(h[0], s, full), full)
    share = ring.add(share, ring.mul(h[1], ring.sub(u, s, full), full), full)
    return SecondShare(share)


def parse_second(parameters: Parameters, data: bytes | memoryview, culprit: str) -> SecondShare:
    """Read a holder's second message; ProtocolViolation names it."""
    lead = (parameters.digits,)
    return SecondShare(unpack(data, parameters, parameters.full, lead, culprit=culprit, step=KIND))


def aggregate_second(
    parameters: Parameters, shares: Mapping[str, SecondShare], holders: Sequence[str]
) -> U64:
    """Aggregator: sum h, shape (D, K, N)."""
    return add_up(parameters, parameters.full, (parameters.digits,), shares, holders, KIND)


def finish(parameters: Parameters, first: FirstSum, second: U64) -> U64:
    """rlk_j = (sum h_j, H1_j), shape (D, 2, K, N), as `Ring.key_product` takes it."""
    del parameters
    return np.stack([second, first.data[1]], axis=1)
