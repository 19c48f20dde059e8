"""Numbers mod 2**64 as messages: m lies at Q m / 2**64, so that the wrap of Z_2^64 is the wrap of Z_Q.

Encode: floor(Q m / 2**64), m in [0, 2**64). Adding up two that stand for x mod 2**64 gives Q x / 2**64 + k Q
+ e with 0 >= e > -2, and k Q is nothing mod Q. (A scale floor(Q / 2**64) would leave k (Q mod 2**64), up to
2**64, which the weights multiply.) Integer polynomials and sums keep the form: Q z / 2**64 + E.
Decode: round(2**64 share / Q), each share by itself, from shares mod Q that add up to Q z / 2**64 + E.
Correctness error: each share rounds by l / 2 units at most (half a unit a limb); with n holders, the
aggregator and l = 2 limbs the sum is z + d, d an integer with |d| <= n + 1, as long as E stays below
:data:`SPARE` of a unit, which the model owner holds its weights to (:func:`check_weights`). Which d it is
depends on the fractions of all shares, limb by limb, and on E; nobody knows all of them.
Source: the scale-invariant encoding of Brakerski and of Fan and Vercauteren (eprint 2012/144); Cheetah
(eprint 2022/207), section 3.3, on working mod 2**64 with it.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from privinfer.errors import PrecisionError
from privinfer.protocols.ckks import noise
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.randomness import U64

SPARE: Final = 2.0**-16
TAILS: Final = 16.0  # standard deviations that noise never reaches: less than 2**-180 a coefficient
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def _high_product(a: U64, b: int) -> U64:
    """``a b >> 64``."""
    a0, a1 = a & _LOW, a >> _HALF
    b0, b1 = np.uint64(b & 0xFFFFFFFF), np.uint64(b >> 32)
    middle = a1 * b0 + (a0 * b0 >> _HALF)
    return np.asarray(a1 * b1 + (middle >> _HALF) + ((middle & _LOW) + a0 * b1 >> _HALF))


def encode(parameters: Parameters, level: int, values: U64) -> U64:
    """Residues of floor(Q_level m / 2**64), in NTT form.

    Parameters
    ----------
    parameters : Parameters
        Of the session.
    level : int
        Limbs.
    values : ndarray of uint64, shape (..., N)
        The numbers m.

    Returns
    -------
    ndarray of uint64, shape (..., level, N)
        Plaintexts.
    """
    ring, basis = parameters.ring, parameters.data(level)
    whole, rest = divmod(parameters.modulus(level), 1 << 64)
    above = _high_product(values, rest)
    primes = [parameters.primes[k] for k in basis]
    lead = np.stack([values % np.uint64(q) for q in primes], axis=-2)
    small = np.stack([above % np.uint64(q) for q in primes], axis=-2)
    scaled = ring.scale(lead, np.array([whole % q for q in primes], dtype=np.uint64), basis)
    return ring.ntt(ring.add(scaled, small, basis), basis)


def decode(parameters: Parameters, share: U64) -> U64:
    """round(2**64 share / Q) mod 2**64 of shares mod Q_level in coefficient form, shape (..., level, N)."""
    return parameters.ring.to_ring64(share, parameters.data(share.shape[-2]))


def error_units(holders: int, level: int) -> int:
    """The bound on d: units of the last place of what is shared."""
    return (holders + 1) * level // 2


def check_weights(
    parameters: Parameters, holders: int, sent: int, opened: int, norm: float, layer: str
) -> None:
    """Hold the weights of a layer to what leaves the noise below SPARE of a unit.

    Parameters
    ----------
    parameters : Parameters
        Of the session.
    holders : int
        Number of key holders.
    sent, opened : int
        Limbs of the ciphertexts that come in, and of those that are shared.
    norm : float
        At least the sum of absolute values of the integer weights that one result uses.
    layer : str
        Named in the error.

    Raises
    ------
    PrecisionError
        They are too large.
    """
    # two fresh ciphertexts and two roundings of the encoding, times the weights
    came = norm * (2 * TAILS * noise.fresh(parameters, holders) + 2)
    added = TAILS * (
        noise.rescale(parameters, holders) + noise.fresh(parameters, holders) + noise.to_shares(holders)
    )
    unit_sent, unit_opened = (parameters.modulus(k) / 2**64 for k in (sent, opened))
    if came / unit_sent + added / unit_opened > SPARE:
        raise PrecisionError(
            f"layer {layer!r}: its weights are too large for products under encryption",
            hint="fewer fractional bits leave more room",
        )
