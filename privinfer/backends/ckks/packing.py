"""Real arrays to ciphertexts at an owner, ciphertexts to real arrays at a receiver, where TenSEAL does it.

Where each number lies is the plan's business: an input's packing depends on its shape alone. The receiver's
context takes some tenths of a second to make, so it is made with the keys, once a join.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from privinfer.backends.ckks import tenseal
from privinfer.backends.ckks.layout import Layout
from privinfer.backends.ckks.plan import Opened, Source
from privinfer.protocols.ckks import encryption
from privinfer.protocols.ckks.keys import OwnKey, PublicKey
from privinfer.protocols.commitment import Opening
from privinfer.protocols.randomness import U64, Secret, Seed

Array = npt.NDArray[np.float64]
Seeds = Callable[[int], Seed | None]


def no_seed(number: int) -> None:
    """Fresh randomness, where nothing was committed to."""


def seeds(opening: Opening, session: bytes, name: str) -> Seeds:
    """Seeds of an input's ciphertexts by their numbers, from the opening of the commitment to it.

    An opening is of one run and one input, so no seed serves two ciphertexts.
    """
    return lambda number: opening.seed("ckks input", session, name, number)


class Packer:
    """Encrypts inputs under the joint key.

    Parameters
    ----------
    public : PublicKey
        The joint one.
    """

    __slots__ = ("_public",)

    def __init__(self, public: PublicKey) -> None:
        self._public = public

    def encrypt(self, source: Source, values: Array, seeds: Seeds = no_seed) -> U64:
        """Encrypt an input.

        Parameters
        ----------
        source : Source
            Packing, level and scale, from the plan.
        values : ndarray of float64, shape (batch, ...)
            Rows.
        seeds : callable
            Gives the randomness of each ciphertext.

        Returns
        -------
        ndarray of uint64, shape (batch * ciphertexts, 2, level, N)
            Ciphertexts, row by row.
        """
        return self.encrypt_at(source.layout, source.level, source.scale, values, seeds)

    def encrypt_at(self, layout: Layout, level: int, scale: float, values: Array, seeds: Seeds) -> U64:
        """The same where packing, level and scale are known without a plan."""
        p = self._public.parameters
        packed = layout.pack(values.reshape(len(values), math.prod(values.shape[1:])))
        slots = packed.reshape(len(values) * layout.ciphertexts, layout.slots)
        found = np.empty((len(slots), 2, level, p.n), dtype=np.uint64)
        for k, row in enumerate(slots):
            plain = p.ring.encode(row.astype(np.complex128), scale, p.data(level))
            found[k] = encryption.encrypt(p, self._public, plain, seeds(k))
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
