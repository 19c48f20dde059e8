"""Real arrays to ciphertexts at an owner, ciphertexts to real arrays at a receiver; TenSEAL does both.

Where each number lies is the plan's business: an input's packing depends on its shape alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from privinfer.backends.ckks import tenseal
from privinfer.backends.ckks.plan import Opened, Source
from privinfer.backends.ckks.roles import Setting
from privinfer.protocols.ckks.keys import OwnKey, PublicKey
from privinfer.protocols.randomness import U64

Array = npt.NDArray[np.float64]


def encrypt_rows(setting: Setting, public: PublicKey, source: Source, values: Array) -> U64:
    """Encrypt an input under the joint key.

    Parameters
    ----------
    setting : Setting
        Of the session.
    public : PublicKey
        The joint one.
    source : Source
        Packing and level, from the plan.
    values : ndarray of float64, shape (batch, ...)
        Rows.

    Returns
    -------
    ndarray of uint64, shape (batch * ciphertexts, 2, level, N)
        Ciphertexts, row by row.
    """
    p = setting.parameters
    form = tenseal.form_of(p.n, p.primes)
    context = tenseal.PublicContext(form, public_key=public.data, scale=source.scale)
    found = np.empty((len(values), source.ciphertexts, 2, source.level, p.n), dtype=np.uint64)
    for k, row in enumerate(values.reshape(len(values), -1)):
        for c, slots in enumerate(source.layout.pack(row)):
            data, _ = context.encrypt(slots)
            found[k, c] = data[:, : source.level]  # a level less is a limb less
    return found.reshape(-1, 2, source.level, p.n)


def decrypt_rows(setting: Setting, key: OwnKey, output: Opened, rows: U64) -> Array:
    """Decrypt an output with its receiver's own key.

    Parameters
    ----------
    setting : Setting
        Of the session.
    key : OwnKey
        The receiver's.
    output : Opened
        Packing and scale, from the plan.
    rows : ndarray of uint64, shape (batch, ciphertexts, 2, level, N)
        What the model owner sent.

    Returns
    -------
    ndarray of float64, shape (batch, *output.shape)
        Values.
    """
    p = setting.parameters
    form = tenseal.form_of(p.n, p.primes)
    found = [
        output.layout.unpack([tenseal.decrypt(form, key.secret.values, c, output.scale) for c in row])
        for row in rows
    ]
    return np.array(found).reshape(len(rows), *output.shape)
