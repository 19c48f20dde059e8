"""A fragment under its owner's own key comes under the joint key: with the owner there, or without it.

Functionality: everybody has the fragment under the joint key; nobody learns it.
Online (:func:`switch`): the owner sends the share of a public key switch to the joint key by itself alone.
Its share of one ciphertext leaves it once (`release.py`).
Offline (:func:`publish`): the owner publishes encryptions of P s_owner under the joint public key, once;
whoever has them switches any of its fragments. NOT protected: with these the key holders TOGETHER can read
everything that was ever encrypted under s_owner. Therefore s_owner is independent of every share, serves
one joint key and one consent only, the key carries the digests of both and refuses others; an owner who
wants another session uses the online way.
Adversary: semi-honest, all holders but one, with the evaluator.
Rounds: 1 (online); 0 at the session (offline). Bytes: 16 l N a ciphertext (online); 16 D K N once
(offline); `size`.
Correctness error: sqrt(sigma_smudge**2 + sigma**2 (4 n N / 3 + 1)) online (`noise.rekey_online`);
`noise.rekey_offline`.
Source: eprint 2020/304, section 4.3 with one sender; offline: key switching of Brakerski, Gentry,
Vaikuntanathan (eprint 2011/277) with keys made under a public key.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import Final

import numpy as np

from privinfer.errors import ConsentError, IntegrityError
from privinfer.protocols.ckks import encryption, public_switch
from privinfer.protocols.ckks.gadget import add_gadget
from privinfer.protocols.ckks.keys import OwnKey, PublicKey
from privinfer.protocols.ckks.messages import residues_size, unpack
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.ckks.public_switch import PublicSwitchShare
from privinfer.protocols.ckks.release import Permit
from privinfer.protocols.ckks.smudging import Smudging
from privinfer.protocols.randomness import U64

KIND: Final = "offline re-keying"
DIGEST_BYTES: Final = 32


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class OfflineKey:
    """Published by an owner: (v_j p0 + e0 + P s_owner in limb j, v_j p1 + e1) for each digit j.

    Attributes
    ----------
    joint : bytes
        Digest of the one joint public key it is for.
    consent : bytes
        Digest of the one consent it was published under.
    data : ndarray of uint64, shape (D, 2, K, N)
        As `Ring.key_product` takes it.
    """

    joint: bytes
    consent: bytes
    data: U64

    def to_bytes(self) -> bytes:
        """Wire form: both digests, the array."""
        return self.joint + self.consent + self.data.astype("<u8", copy=False).tobytes()

    @classmethod
    def parse(cls, parameters: Parameters, data: bytes | memoryview, culprit: str) -> OfflineKey:
        """Read the wire form; ProtocolViolation names the owner."""
        head, body = bytes(data[: 2 * DIGEST_BYTES]), data[2 * DIGEST_BYTES :]
        lead = (parameters.digits, 2)
        found = unpack(body, parameters, parameters.full, lead, culprit=culprit, step=KIND)
        return cls(head[:DIGEST_BYTES], head[DIGEST_BYTES:], found)

    def __repr__(self) -> str:
        return f"OfflineKey(joint={self.joint.hex()[:16]}, consent={self.consent.hex()[:16]})"


def size(parameters: Parameters, level: int) -> tuple[int, int]:
    """Bytes: online, a ciphertext of `level` limbs; offline, once."""
    offline = 2 * DIGEST_BYTES + residues_size(parameters, 2 * parameters.digits * parameters.limbs)
    return public_switch.size(parameters, level), offline


# -- online ----------------------------------------------------------------------------------------


def switch(
    parameters: Parameters, own: OwnKey, joint: PublicKey, c1: U64, smudging: Smudging, permit: Permit
) -> PublicSwitchShare:
    """Owner: h0 = s_owner c1 + v p0 + e_smudge + e0, h1 = v p1 + e1; `public_switch.finish` adds c0."""
    return public_switch.generate_share(parameters, own.secret, joint, c1, smudging, permit)


# -- offline ---------------------------------------------------------------------------------------


def publish(parameters: Parameters, own: OwnKey, joint: PublicKey, consent: bytes) -> OfflineKey:
    """Owner: Enc_pk(P s_owner in limb j) for each digit j.

    Parameters
    ----------
    parameters : Parameters
        Of the session.
    own : OwnKey
        Remembers that it was published; whoever keeps it on disk keeps that too.
    joint : PublicKey
        Of the session's key holders.
    consent : bytes
        Digest of the agreement, 32 bytes.

    Raises
    ------
    IntegrityError
        The key was published before: one joint key and one consent only.
    """
    if len(consent) != DIGEST_BYTES:
        raise ConsentError("a consent is named by its digest of 32 bytes")
    if own.offline_for is not None:
        raise IntegrityError(
            "this own key was published for a joint key before",
            hint="switch online, or encrypt under a new key",
        )
    own.offline_for = joint.digest()
    zeros = [
        encryption.encrypt_zero_over(parameters, joint.data, parameters.full)
        for _ in range(parameters.digits)
    ]
    data = np.stack(zeros)
    first = np.ascontiguousarray(data[:, 0])
    add_gadget(parameters, first, own.secret.values)
    data[:, 0] = first
    return OfflineKey(own.offline_for, bytes(consent), data)


def apply(parameters: Parameters, key: OfflineKey, joint: PublicKey, consent: bytes, ciphertext: U64) -> U64:
    """Anybody: (c0, 0) + (key switch of c1), under the joint key.

    Raises
    ------
    IntegrityError
        The key is for another joint key.
    ConsentError
        The key was published under another consent.
    """
    if not hmac.compare_digest(key.joint, joint.digest()):
        raise IntegrityError("the offline re-keying key is for another joint key", hint="switch online")
    if not hmac.compare_digest(key.consent, consent):
        raise ConsentError("the offline re-keying key was published under another consent")
    ring, level = parameters.ring, ciphertext.shape[1]
    basis = parameters.data(level)
    digits = ring.decompose(np.ascontiguousarray(ciphertext[1]))
    switched = ring.mod_down(ring.key_product(digits, key.data, 1))
    switched[0] = ring.add(switched[0], ciphertext[0], basis)
    return switched
