"""Real arrays to ciphertexts at an owner, ciphertexts to real arrays at a receiver; TenSEAL does both.

Where each number lies is the plan's business: an input's packing depends on its shape alone. Contexts take
some tenths of a second to make, so they are made with the keys, once a join.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from privinfer.backends.ckks import tenseal
from privinfer.backends.ckks.plan import Opened, Source
from privinfer.protocols.ckks.keys import OwnKey, PublicKey
from privinfer.protocols.randomness import U64, Secret

Array = npt.NDArray[np.float64]


class Packer:
    """Encrypts inputs under the joint key.

    Parameters
    ----------
    public : PublicKey
        The joint one.
    """

    __slots__ = ("_context",)

    def __init__(self, public: PublicKey) -> None:
        form = tenseal.form_of(public.parameters.n, public.parameters.primes)
        self._context = tenseal.PublicContext(form, public_key=public.data)

    def encrypt(self, source: Source, values: Array) -> U64:
        """Encrypt an input.

        Parameters
        ----------
        source : Source
            Packing and level, from the plan.
        values : ndarray of float64, shape (batch, ...)
            Rows.

        Returns
        -------
        ndarray of uint64, shape (batch * ciphertexts, 2, level, N)
            Ciphertexts, row by row.
        """
        n = self._context.form.n
        found = np.empty((len(values) * source.ciphertexts, 2, source.level, n), dtype=np.uint64)
        packed = source.layout.pack(values.reshape(len(values), math.prod(source.shape)))
        for k, slots in enumerate(packed.reshape(len(found), source.layout.slots)):
            data, _ = self._context.encrypt(slots)
            found[k] = data[:, : source.level]  # a level less is a limb less
        return found


class Unpacker(Secret):
    """Decrypts outputs with their receiver's own key.

    Parameters
    ----------
    key : OwnKey
        The receiver's.
    """

    __slots__ = ("_context",)

    def __init__(self, key: OwnKey) -> None:
        p = key.secret.parameters
        self._context = tenseal.SecretContext(tenseal.form_of(p.n, p.primes), key.secret.values)

    def decrypt(self, output: Opened, rows: U64, *, noised: bool = False) -> Array:
        """Decrypt an output.

        Parameters
        ----------
        output : Opened
            Packing and scale, from the plan.
        rows : ndarray of uint64, shape (batch, ciphertexts, 2, level, N)
            What the model owner sent.
        noised : bool
            Take the mean of all copies of a number.

        Returns
        -------
        ndarray of float64, shape (batch, *output.shape)
            Values.
        """
        slots = [[self._context.decrypt(c, output.scale) for c in row] for row in rows]
        packed = np.array(slots).reshape(*rows.shape[:2], output.layout.slots)
        numbers = output.layout.mean(packed) if noised else output.layout.unpack(packed)
        return numbers.reshape(len(rows), *output.shape)
