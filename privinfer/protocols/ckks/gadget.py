"""The gadget of switching keys: digit j carries P times its content in limb j and nothing elsewhere.

g_j = P modulo q_j and 0 modulo every other prime, P itself included, exactly as SEAL's keys have it. The
digits of a polynomial c are its residues [c]_{q_j}, so sum_j [c]_{q_j} g_j = P c modulo Q P.
"""

from __future__ import annotations

import numpy as np

from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.randomness import U64


def add_gadget(parameters: Parameters, digits: U64, target: U64) -> None:
    """In place, digit j += target g_j.

    Parameters
    ----------
    parameters : Parameters
        Of the session.
    digits : ndarray of uint64, shape (D, K, N)
        Changed.
    target : ndarray of uint64, shape (K, N)
        What the key switches from.
    """
    ring, count = parameters.ring, parameters.digits
    basis = parameters.data(count)
    special = np.array([parameters.special % parameters.primes[i] for i in basis], dtype=np.uint64)
    scaled = ring.scale(np.ascontiguousarray(target[:count]), special, basis)
    diagonal = np.arange(count)
    digits[diagonal, diagonal] = ring.add(digits[diagonal, diagonal], scaled, basis)
