"""Joint Galois keys: one for each automorphism X -> X**g that the plan's rotations need, and no others.

Functionality: everybody learns gk_g, b_j + a_j s = sigma_g(s) g_j + noise; nobody learns anything of s.
Adversary: semi-honest, all holders but one, with the aggregator. NOT protected: a malicious holder can make
the key useless.
Rounds: 1 an element, and all elements can follow each other in one stream; no party holds more than one
share of its own at a time. Bytes, a holder: 8 D K N an element (`size`).
Correctness error: sigma sqrt(n) a coefficient of the key (`noise.galois_key`), `noise.rotation` in a
ciphertext.
Source: eprint 2020/304, section 4.2 (Pi_RotKeyGen). Every element has its own A_j: under one A the
difference of two shares would be (sigma_g(s_i) - sigma_h(s_i)) g_j in the open.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from privinfer.errors import ConfigError
from privinfer.protocols.ckks import sampling
from privinfer.protocols.ckks.crs import CRS, Common
from privinfer.protocols.ckks.gadget import add_gadget
from privinfer.protocols.ckks.keys import SecretShare
from privinfer.protocols.ckks.messages import Message, add_up, residues_size, unpack
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.randomness import U64

KIND: Final = "galois key"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class GaloisShare(Message):
    """Sendable: k for each digit, shape (D, K, N)."""


def element_of(parameters: Parameters, step: int) -> int:
    """Galois element of a rotation to the left by `step` slots: 3**step mod 2N."""
    return pow(3, step % parameters.slots, 2 * parameters.n)


def conjugation(parameters: Parameters) -> int:
    """Galois element of complex conjugation."""
    return 2 * parameters.n - 1


def size(parameters: Parameters) -> int:
    """Bytes of a holder's message for one element."""
    return residues_size(parameters, parameters.digits * parameters.limbs)


def sample(parameters: Parameters, crs: CRS, element: int) -> Common:
    """Polynomials A_j of this element, shape (D, K, N)."""
    if not 1 < element < 2 * parameters.n or element % 2 == 0:
        raise ConfigError(f"Galois element {element} is not odd and between 3 and 2N - 1")
    return crs.draw(parameters, KIND, element, parameters.digits, parameters.full)


def generate_share(parameters: Parameters, secret: SecretShare, common: Common) -> GaloisShare:
    """Holder: k_j = -s_i A_j + sigma_g(s_i) g_j + e."""
    ring, full = parameters.ring, parameters.full
    a = common.start(KIND)
    share = ring.sub(
        sampling.errors(parameters, full, parameters.digits), ring.mul(a, secret.values, full), full
    )
    add_gadget(parameters, share, ring.automorph(secret.values, int(common.label)))
    return GaloisShare(share)


def generate_shares(
    parameters: Parameters, crs: CRS, secret: SecretShare, elements: Iterable[int]
) -> Iterator[tuple[Common, GaloisShare]]:
    """Holder: the shares of all elements, one at a time."""
    for element in elements:
        common = sample(parameters, crs, element)
        yield common, generate_share(parameters, secret, common)


def parse(parameters: Parameters, data: bytes | memoryview, culprit: str) -> GaloisShare:
    """Read a share; ProtocolViolation names its sender."""
    lead = (parameters.digits,)
    return GaloisShare(unpack(data, parameters, parameters.full, lead, culprit=culprit, step=KIND))


def aggregate(parameters: Parameters, shares: Mapping[str, GaloisShare], holders: Sequence[str]) -> U64:
    """Aggregator: sum k, shape (D, K, N)."""
    return add_up(parameters, parameters.full, (parameters.digits,), shares, holders, KIND)


def finish(parameters: Parameters, common: Common, total: U64) -> U64:
    """gk_j = (sum k_j, A_j), shape (D, 2, K, N), as `Ring.key_product` takes it."""
    del parameters
    return np.stack([total, common.data], axis=1)
