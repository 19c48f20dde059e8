"""Declared noise: the standard deviation of every protocol's and operation's error, a coefficient.

Symbols: N ring degree, n key holders (t active ones of a threshold count as n in protocols on shares),
sigma**2 = 10.5 (centred binomial 21 - 21), ternary polynomials of variance 2/3, so s = sum s_i has variance
2n/3; e_smudge uniform in +-2**b. The product of two independent polynomials has variance N var var. All are
integers at the ciphertext's scale: divide by Delta for values, and :func:`slot_std` makes slots of them.
Each result is the error that the protocol ADDS; the ciphertext's own is not in it. Tests hold what was
measured within a factor of 2 of these.
"""

from __future__ import annotations

import math
from typing import Final

from privinfer.protocols.ckks.parameters import SCALE, Parameters
from privinfer.protocols.ckks.smudging import Smudging

ERROR_VARIANCE: Final = 10.5
ERROR_STD: Final = math.sqrt(ERROR_VARIANCE)
ERROR_BOUND: Final = 21
TERNARY_VARIANCE: Final = 2 / 3


def slot_std(parameters: Parameters, coefficient_std: float, scale: float = SCALE) -> float:
    """Standard deviation of the real part of a slot: sqrt(N / 2) std / Delta."""
    return coefficient_std * math.sqrt(parameters.n / 2) / scale


def _encryption_variance(parameters: Parameters, public_of: int, secret_of: int) -> float:
    # v e_pk + e0 + e1 s: the key's error has public_of summands, the secret secret_of
    return ERROR_VARIANCE * (1 + TERNARY_VARIANCE * parameters.n * (public_of + secret_of))


def fresh(parameters: Parameters, holders: int) -> float:
    """Encryption under a joint public key: sigma sqrt(4 n N / 3 + 1)."""
    return math.sqrt(_encryption_variance(parameters, holders, holders))


def rounding(parameters: Parameters, holders: int) -> float:
    """Rounding of (c0, c1) to integers: sqrt((1 + 2 n N / 3) / 12)."""
    return math.sqrt((1 + TERNARY_VARIANCE * holders * parameters.n) / 12)


def rescale(parameters: Parameters, holders: int) -> float:
    """Division by the last prime: the rounding alone."""
    return rounding(parameters, holders)


def _switching(parameters: Parameters, holders: int, level: int, key_variance: float) -> float:
    # Digits are uniform in +-q_j / 2 and the sum is divided by P, which equals q_j but for a millionth.
    switched = parameters.n * level / 12 * key_variance
    return math.sqrt(switched + rounding(parameters, holders) ** 2)


def relinearisation_key(parameters: Parameters, holders: int) -> float:
    """Error of b_j + a_j s - P s**2: s e0 + u e1 + e2, std sigma sqrt(n (4 n N / 3 + 1))."""
    each = 2 * TERNARY_VARIANCE * holders * parameters.n + 1
    return math.sqrt(ERROR_VARIANCE * holders * each)


def relinearisation(parameters: Parameters, holders: int, level: int) -> float:
    """Relinearising a product of `level` limbs."""
    return _switching(parameters, holders, level, relinearisation_key(parameters, holders) ** 2)


def galois_key(parameters: Parameters, holders: int) -> float:
    """Error of a Galois key: sigma sqrt(n)."""
    del parameters
    return math.sqrt(ERROR_VARIANCE * holders)


def rotation(parameters: Parameters, holders: int, level: int) -> float:
    """Rotating a ciphertext of `level` limbs: sqrt(N l sigma**2 n / 12 + rounding)."""
    return _switching(parameters, holders, level, galois_key(parameters, holders) ** 2)


def public_key(parameters: Parameters, holders: int) -> float:
    """Error of b + a s: sigma sqrt(n)."""
    return galois_key(parameters, holders)


def key_switch(senders: int, smudging: Smudging) -> float:
    """Collective key switch: sigma_smudge sqrt(n)."""
    return smudging.std * math.sqrt(senders)


def public_switch(parameters: Parameters, senders: int, smudging: Smudging, target_holders: int = 1) -> float:
    """Switch to a public key of `target_holders`: sum over senders of u e_pk + e0 + e_smudge + e1 s'."""
    each = _encryption_variance(parameters, target_holders, target_holders)
    return math.sqrt(senders * (smudging.std**2 + each))


def rekey_online(parameters: Parameters, holders: int, smudging: Smudging) -> float:
    """One owner's switch to the joint public key of n holders."""
    return public_switch(parameters, 1, smudging, holders)


def rekey_offline(parameters: Parameters, holders: int, level: int) -> float:
    """Switch through published encryptions of P s_owner under the joint public key."""
    return _switching(parameters, holders, level, _encryption_variance(parameters, holders, holders))


def to_shares(holders: int) -> float:
    """Encryption to shares: sigma sqrt(n)."""
    return ERROR_STD * math.sqrt(holders)


def from_shares(holders: int) -> float:
    """Shares to encryption: sigma sqrt(n)."""
    return ERROR_STD * math.sqrt(holders)


def refresh(holders: int) -> float:
    """Refresh is one after the other: sigma sqrt(2 n)."""
    return ERROR_STD * math.sqrt(2 * holders)


def product(
    parameters: Parameters, first: float, second: float, size_first: float, size_second: float
) -> float:
    """Error of a product of ciphertexts with errors `first`, `second`, before relinearisation.

    Parameters
    ----------
    parameters : Parameters
        Of the session.
    first, second : float
        Standard deviations of the factors' errors, a coefficient.
    size_first, size_second : float
        Root mean square coefficients of the factors' messages, scale included.
    """
    return math.sqrt(parameters.n) * math.hypot(first * size_second, second * size_first, first * second)
