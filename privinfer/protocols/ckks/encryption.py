"""Encryption under a public key, and the fresh encryption of zero that precedes every departure.

Functionality: whoever has pk = (p0, p1) makes (v p0 + e0 + m, v p1 + e1), which only the secret key opens.
Adversary: semi-honest, anybody without the key. A model owner multiplies ciphertexts by its weights; the
noise and the quotient of c1's would tell of them, so :func:`rerandomise` is called on every ciphertext
before it leaves, with smudging where the result will be opened. An owner's v, e0, e1 derive from a seed that
it has committed to: an auditor who is shown it computes the ciphertext again.
Rounds: 0. Bytes: 16 l N a ciphertext of l limbs (`size`).
Correctness error: v e_pk + e0 + e1 s, standard deviation sigma sqrt(4 n N / 3 + 1) (`noise.fresh`).
Source: eprint 2020/304, section 3 (the underlying scheme); Lyubashevsky, Peikert, Regev 2010.
"""

from __future__ import annotations

from privinfer.protocols.ckks import sampling
from privinfer.protocols.ckks.keys import KeyShare, PublicKey
from privinfer.protocols.ckks.messages import check_residues, residues_size, unpack
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.ckks.smudging import Smudging
from privinfer.protocols.randomness import U64, Seed

STEP = "ciphertext"


def size(parameters: Parameters, level: int) -> int:
    """Bytes of a ciphertext of `level` limbs."""
    return residues_size(parameters, 2 * level)


def encrypt_zero(
    parameters: Parameters,
    public: PublicKey,
    level: int,
    smudging: Smudging | None = None,
    seed: Seed | None = None,
) -> U64:
    """(v p0 + e0, v p1 + e1) with everything fresh, or from a seed that serves once; `smudging` floods e0.

    Returns
    -------
    ndarray of uint64, shape (2, level, N)
        NTT form.
    """
    return encrypt_zero_over(parameters, public.at(level), parameters.data(level), smudging, seed)


def encrypt_zero_over(
    parameters: Parameters,
    pair: U64,
    basis: tuple[int, ...],
    smudging: Smudging | None = None,
    seed: Seed | None = None,
) -> U64:
    """The same over any basis, for p0 and p1 of shape (2, len(basis), N) over it."""
    ring = parameters.ring
    e = ring.lift(sampling.error_integers(parameters, 2, seed), basis)
    if smudging is not None:
        e[0] = ring.add(e[0], smudging.sample(parameters, basis), basis)
    v = sampling.ternary(parameters, basis, seed)
    return ring.add(ring.ntt(e, basis), ring.mul(pair, v, basis), basis)


def encrypt(parameters: Parameters, public: PublicKey, plaintext: U64, seed: Seed | None = None) -> U64:
    """Encrypt a plaintext of shape (level, N) in NTT form, such as `Ring.encode` makes."""
    ciphertext = encrypt_zero(parameters, public, len(plaintext), seed=seed)
    ciphertext[0] = parameters.ring.add(ciphertext[0], plaintext, parameters.data(len(plaintext)))
    return ciphertext


def rerandomise(
    parameters: Parameters, public: PublicKey, ciphertext: U64, smudging: Smudging | None = None
) -> U64:
    """The same plaintext in a ciphertext that does not show how it was computed."""
    level = ciphertext.shape[1]
    zero = encrypt_zero(parameters, public, level, smudging)
    return parameters.ring.add(ciphertext, zero, parameters.data(level))


def decrypt(parameters: Parameters, secret: KeyShare, ciphertext: U64) -> U64:
    """c0 + c1 s with a whole key, shape (level, N) in NTT form: a receiver reads its result."""
    ring, level = parameters.ring, ciphertext.shape[1]
    basis = parameters.data(level)
    return ring.add(ciphertext[0], ring.mul(ciphertext[1], secret.at(level), basis), basis)


def check_ciphertext(
    parameters: Parameters, ciphertext: object, level: int, culprit: str | None = None
) -> U64:
    """Hold a received ciphertext to shape (2, level, N) and canonical range; ProtocolViolation otherwise."""
    basis = parameters.data(level)
    return check_residues(ciphertext, parameters, basis, (2,), culprit=culprit, step=STEP)


def parse(parameters: Parameters, data: bytes | memoryview, level: int, culprit: str | None = None) -> U64:
    """Read the wire form of a ciphertext; ProtocolViolation names its sender."""
    return unpack(data, parameters, parameters.data(level), (2,), culprit=culprit, step=STEP)
