"""The common reference string: polynomials that all parties draw alike and nobody chose.

A polynomial A is the AES-128-CTR stream, rejection-sampled, under the key KMAC256(0, (session, attempt,
kind, label, digit)). Two objects under one A and one secret would differ by their contents: a
relinearisation key and a Galois key under one A give sigma(s_i) away exactly, two refreshed ciphertexts the
difference of their masks. So a label is handed out once by a CRS, and what it hands out masks once.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from privinfer.errors import IntegrityError
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.randomness import U64, derive

SESSION_BYTES: Final = 32


class Common:
    """Polynomials of one label.

    Attributes
    ----------
    kind : str
        Protocol.
    label : str or int
        Galois element, ciphertext.
    data : ndarray of uint64, shape (digits, limbs, N)
        The polynomials; public.
    """

    __slots__ = ("_used", "data", "kind", "label")

    def __init__(self, kind: str, label: str | int, data: U64) -> None:
        self.kind = kind
        self.label = label
        self.data = data
        self._used = False

    def __repr__(self) -> str:
        return f"Common({self.kind!r}, {self.label!r})"

    def start(self, kind: str) -> U64:
        """The polynomials, to mask one share with; IntegrityError the second time and elsewhere."""
        if self.kind != kind:
            raise IntegrityError(f"the common string of {self.kind!r} would be used for {kind!r}")
        if self._used:
            raise IntegrityError(
                f"the common string of {self.kind!r}, {self.label!r}, would mask a second share"
            )
        self._used = True
        return self.data


class CRS:
    """One party's end of the common reference string of one attempt of one session.

    Parameters
    ----------
    session : bytes
        Tag that no other session has.
    attempt : int
        Keys that are made again get other polynomials.
    """

    def __init__(self, session: bytes, attempt: int = 0) -> None:
        self.session = bytes(session)
        self.attempt = attempt
        self._drawn: set[tuple[str, str | int]] = set()

    def draw(
        self, parameters: Parameters, kind: str, label: str | int, digits: int, basis: tuple[int, ...]
    ) -> Common:
        """Hand out the polynomials of a label, once.

        Parameters
        ----------
        parameters : Parameters
            Of the session.
        kind : str
            Protocol.
        label : str or int
            Galois element or ciphertext.
        digits : int
            How many.
        basis : tuple of int
            Over which primes.

        Returns
        -------
        Common
            Uniform residues, shape (digits, len(basis), N).

        Raises
        ------
        IntegrityError
            This label was handed out before.
        """
        if (kind, label) in self._drawn:
            raise IntegrityError(f"common string {kind!r}, {label!r}, would be used twice")
        self._drawn.add((kind, label))
        keys = (
            derive(bytes(SESSION_BYTES), "ckks/crs", self.session, self.attempt, kind, label, digit)
            for digit in range(digits)
        )
        return Common(kind, label, np.concatenate([parameters.ring.uniform(key, 1, basis) for key in keys]))
