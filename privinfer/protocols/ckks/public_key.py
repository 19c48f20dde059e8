"""Joint public key: pk = (sum b_i, a), with commitments so that nobody chooses it.

Functionality: everybody learns pk, an encryption key for s = sum s_i; nobody learns anything of another's
s_i.
Adversary: semi-honest, all holders but one. Rushing is answered by the commitment: without it the last to
speak could choose the sum (and know its secret). NOT protected: no proof of knowledge of s_i is given, so a
malicious holder may make the joint key useless (the session then aborts), not known to itself.
Rounds: 2 (commit, reveal), each holder to each other. Bytes: 32, then 8 K N + 32, to each of n - 1 (`size`).
Correctness error: b + a s has standard deviation sigma sqrt(n) (`noise.public_key`).
Source: eprint 2020/304, section 4.2 (Pi_EncKeyGen), with a commitment before it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import cbor2
import numpy as np

from privinfer.errors import ProtocolViolation
from privinfer.protocols.ckks import sampling
from privinfer.protocols.ckks.crs import CRS, Common
from privinfer.protocols.ckks.keys import PublicKey, SecretShare
from privinfer.protocols.ckks.messages import Message, check_holders, check_residues, residues_size, unpack
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.randomness import U64, Secret, Seed

KIND: Final = "public key"
COMMITMENT_BYTES: Final = 32
NONCE_BYTES: Final = 32


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Opening(Message):
    """Sendable after all commitments came: b_i, shape (K, N), and the nonce."""

    nonce: bytes

    def to_bytes(self) -> bytes:
        """Wire form: nonce, b_i."""
        return self.nonce + self.data.astype("<u8", copy=False).tobytes()


class Committed(Secret):
    """What a holder keeps between the rounds; NOT to be sent before every commitment is there.

    Attributes
    ----------
    party : str
        Whose.
    commitment : bytes
        Sendable: the first round's message.
    """

    __slots__ = ("_opening", "commitment", "party")

    def __init__(self, party: str, opening: Opening, commitment: bytes) -> None:
        self.party = party
        self._opening = opening
        self.commitment = commitment

    def reveal(self, commitments: Mapping[str, bytes], holders: Sequence[str]) -> Opening:
        """The second round's message, once a commitment of every holder is there.

        Raises
        ------
        ProtocolViolation
            A commitment is missing, not of 32 bytes, or from nobody known.
        """
        check_commitments(commitments, holders)
        return self._opening


def size(parameters: Parameters) -> tuple[int, int]:
    """Bytes of a holder's two messages to each other holder."""
    return COMMITMENT_BYTES, NONCE_BYTES + residues_size(parameters, parameters.limbs)


def sample(parameters: Parameters, crs: CRS) -> Common:
    """The polynomial a, shape (1, K, N)."""
    return crs.draw(parameters, KIND, KIND, 1, parameters.full)


def commit(parameters: Parameters, session: bytes, party: str, opening: Opening) -> bytes:
    """SHA-256 over (session, party, parameters, b_i, nonce), unambiguously."""
    head = cbor2.dumps(["privinfer/ckks/commitment/1", session, party, parameters.digest()], canonical=True)
    return hashlib.sha256(head + opening.to_bytes()).digest()


def generate_share(
    parameters: Parameters, session: bytes, party: str, secret: SecretShare, common: Common
) -> Committed:
    """Holder, round 1: b_i = -s_i a + e_i, and a commitment to it."""
    ring, full = parameters.ring, parameters.full
    (a,) = common.start(KIND)
    b = ring.sub(sampling.errors(parameters, full), ring.mul(a, secret.values, full), full)
    opening = Opening(b, Seed.fresh().expose())
    return Committed(party, opening, commit(parameters, session, party, opening))


def check_commitments(commitments: Mapping[str, bytes], holders: Sequence[str]) -> None:
    """One of 32 bytes from each holder, or ProtocolViolation."""
    check_holders(commitments, holders, KIND)
    for name in holders:
        if len(commitments[name]) != COMMITMENT_BYTES:
            raise ProtocolViolation(f"{KIND}: a commitment has 32 bytes", culprit=name, step=KIND)


def parse(parameters: Parameters, data: bytes | memoryview, culprit: str) -> Opening:
    """Read an opening; ProtocolViolation names its sender."""
    found = unpack(data[NONCE_BYTES:], parameters, parameters.full, (), culprit=culprit, step=KIND)
    return Opening(found, bytes(data[:NONCE_BYTES]))


def aggregate(
    parameters: Parameters,
    session: bytes,
    commitments: Mapping[str, bytes],
    openings: Mapping[str, Opening],
    holders: Sequence[str],
) -> U64:
    """Everybody: check each opening against its commitment, then b = sum b_i.

    Raises
    ------
    ProtocolViolation
        Names who opened something else than it had committed to.
    """
    check_commitments(commitments, holders)
    check_holders(openings, holders, KIND)
    ring, full = parameters.ring, parameters.full
    total = np.zeros((parameters.limbs, parameters.n), dtype=np.uint64)
    for name in holders:
        data = check_residues(openings[name].data, parameters, full, (), culprit=name, step=KIND)
        if not hmac.compare_digest(commit(parameters, session, name, openings[name]), commitments[name]):
            raise ProtocolViolation(
                f"{KIND}: the share is not the one committed to", culprit=name, step=KIND, round=2
            )
        total = ring.add(total, data, full)
    return total


def finish(parameters: Parameters, common: Common, total: U64) -> PublicKey:
    """Pk = (sum b_i, a)."""
    return PublicKey(parameters, np.stack([total, common.data[0]]))
