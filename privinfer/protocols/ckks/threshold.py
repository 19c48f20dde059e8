"""t of n: each holder shares its s_i among all by Shamir, so that any t of them can act for all n.

Functionality: every holder j has S_j = sum_i f_i(alpha_j), a point of a polynomial of degree t - 1 with s
at 0; fewer than t learn nothing of s. An active set of t gives each of its members an additive share of s,
lambda_j S_j, which takes part in key switches, refresh and shares like s_i. Noise is added AFTER lambda,
for lambda is large.
Adversary: semi-honest, at most t - 1 holders, with the evaluator. Sub-shares go over TLS to their holder
alone. NOT protected: a holder that deals points of no polynomial is not caught here (results are garbage);
an active set that changes between two shares of ONE ciphertext would tell of s, which `release.py` refuses.
Rounds: 1 at key generation, before anybody may leave. Bytes, a holder: 8 K N to each of n - 1 (`size`).
Correctness error: none; protocols on an active set have the noise of t holders.
Source: Mouchet, Bertrand, Hubaux, "An Efficient Threshold Access-Structure for RLWE-Based Multiparty
Homomorphic Encryption", J. Cryptology 2023 (eprint 2022/780); alpha_j = 1..n in the order of the session
file, over each prime.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from privinfer.errors import ConfigError
from privinfer.protocols.ckks import sampling
from privinfer.protocols.ckks.keys import KeyShare, SecretShare
from privinfer.protocols.ckks.messages import check_holders, check_residues, residues_size, unpack
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.randomness import U64, Secret

KIND: Final = "threshold sharing"


@dataclass(frozen=True, slots=True)
class Access:
    """Who holds, and how many have to act.

    Attributes
    ----------
    holders : tuple of str
        In the order of the session file: alpha = 1, 2, ...
    t : int
        How many act, 1 to n.

    Raises
    ------
    ConfigError
        t is not in 1..n, or a holder is named twice.
    """

    holders: tuple[str, ...]
    t: int

    def __post_init__(self) -> None:
        if len(set(self.holders)) != len(self.holders):
            raise ConfigError("a key holder is named twice")
        if not 1 <= self.t <= len(self.holders):
            raise ConfigError(f"t = {self.t} is not between 1 and the {len(self.holders)} key holders")

    def point(self, holder: str) -> int:
        """Alpha of a holder; ConfigError where it is none."""
        if holder not in self.holders:
            raise ConfigError(f"{holder} is no key holder", culprit=holder)
        return self.holders.index(holder) + 1

    def coefficient(self, holder: str, active: Sequence[str], prime: int) -> int:
        """Lambda = product over the others of alpha_k / (alpha_k - alpha_j), modulo a prime."""
        own = self.point(holder)
        above, below = 1, 1
        for other in active:
            if other != holder:
                alpha = self.point(other)
                above, below = above * alpha % prime, below * (alpha - own) % prime
        return above * pow(below, -1, prime) % prime

    def check_active(self, active: Sequence[str]) -> None:
        """Refuse a set of another size than t, with a stranger or a holder twice: ConfigError."""
        for name in active:
            self.point(name)
        if len(active) != self.t or len(set(active)) != self.t:
            raise ConfigError(f"{self.t} different key holders have to act, not {', '.join(active)}")


class SubShare(Secret):
    """f_i(alpha_j): to be sent over TLS to holder j and to nobody else.

    Attributes
    ----------
    dealer, holder : str
        i and j.
    """

    __slots__ = ("_values", "dealer", "holder")

    def __init__(self, dealer: str, holder: str, values: U64) -> None:
        self.dealer = dealer
        self.holder = holder
        self._values = values

    def expose(self) -> bytes:
        """Wire form, for the holder alone."""
        return self._values.astype("<u8", copy=False).tobytes()

    @property
    def values(self) -> U64:
        """Shape (K, N), NTT form."""
        return self._values


class HolderShare(Secret):
    """S_j: what a holder keeps for the whole session. It is no share of s until an active set is known."""

    __slots__ = ("_values", "holder", "parameters")

    def __init__(self, parameters: Parameters, holder: str, values: U64) -> None:
        self.parameters = parameters
        self.holder = holder
        self._values = values

    @property
    def values(self) -> U64:
        """Shape (K, N), NTT form."""
        return self._values


def size(parameters: Parameters) -> int:
    """Bytes of a holder's message to each other holder."""
    return residues_size(parameters, parameters.limbs)


def _constants(parameters: Parameters, number: int) -> U64:
    return np.array([number % q for q in parameters.primes], dtype=np.uint64)


def generate_shares(
    parameters: Parameters, access: Access, party: str, secret: SecretShare
) -> dict[str, SubShare]:
    """Holder i: f_i(alpha_j) for every holder j, itself included.

    f_i = s_i + r_1 X + .. + r_{t-1} X**(t-1), r_k uniform and fresh, over each prime and coefficient.
    """
    access.point(party)
    ring, full = parameters.ring, parameters.full
    r = list(sampling.uniform(parameters, access.t - 1, full)) if access.t > 1 else []
    found = {}
    for holder in access.holders:
        alpha = _constants(parameters, access.point(holder))
        value = np.zeros_like(secret.values)
        for coefficient in reversed(r):  # Horner
            value = ring.scale(ring.add(value, coefficient, full), alpha, full)
        found[holder] = SubShare(party, holder, ring.add(value, secret.values, full))
    return found


def parse(parameters: Parameters, data: bytes | memoryview, dealer: str, holder: str) -> SubShare:
    """Holder j: read a sub-share; ProtocolViolation names its dealer."""
    values = unpack(data, parameters, parameters.full, (), culprit=dealer, step=KIND)
    return SubShare(dealer, holder, values)


def aggregate(
    parameters: Parameters, access: Access, holder: str, received: Mapping[str, SubShare]
) -> HolderShare:
    """Holder j: S_j = sum_i f_i(alpha_j), from the sub-shares of all n dealers."""
    check_holders(received, access.holders, KIND)
    ring, full = parameters.ring, parameters.full
    total = np.zeros((parameters.limbs, parameters.n), dtype=np.uint64)
    for dealer in access.holders:
        values = check_residues(received[dealer].values, parameters, full, (), culprit=dealer, step=KIND)
        total = ring.add(total, values, full)
    return HolderShare(parameters, holder, total)


def finish(access: Access, share: HolderShare, active: Sequence[str]) -> KeyShare:
    """Holder j: lambda_j S_j, its additive share of s among the active.

    Raises
    ------
    ConfigError
        The active set has not t members, a stranger (who is named), or not this holder.
    """
    access.check_active(active)
    if share.holder not in active:
        raise ConfigError(f"{share.holder} is not among the active key holders")
    parameters = share.parameters
    scalars = [access.coefficient(share.holder, active, q) for q in parameters.primes]
    values = parameters.ring.scale(share.values, np.array(scalars, dtype=np.uint64), parameters.full)
    return KeyShare(parameters, values)
