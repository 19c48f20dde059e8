"""Encryption to shares modulo Q: for plaintexts that fill the modulus, such as D m with D = Q / 2**64.

Functionality: holder i has M_i, the aggregator m - sum M_i, modulo Q_l and in coefficient form. Nobody
learns m. Where `to_shares.py` hides integers statistically and shares add up over the integers, here M_i is
uniform modulo Q_l: it hides perfectly, needs no room, and shares add up modulo Q_l only. Who wants shares
modulo 2**64 of a message that was scaled by Q / 2**64 rounds each share by itself.
Adversary: semi-honest, all holders but one, with the aggregator. Each ciphertext once (`release.py`).
Rounds: 1. Bytes, a holder: 8 l N (`to_shares.size`). Messages are those of `to_shares.py`, which also
checks and adds them: `parse`, `aggregate`.
Correctness error: sigma sqrt(n) (`noise.to_shares`).
Source: eprint 2020/304, section 4.4 (Pi_Enc2Share).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from privinfer.protocols.ckks import sampling
from privinfer.protocols.ckks.keys import KeyShare
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.ckks.release import Permit
from privinfer.protocols.ckks.to_shares import MaskedShare
from privinfer.protocols.randomness import U64, Secret


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ModularShare(Secret):
    """A share modulo Q_l.

    Attributes
    ----------
    residues : ndarray of uint64, shape (l, N)
        Coefficient form.
    """

    residues: U64

    def __repr__(self) -> str:
        return f"ModularShare({self.residues.shape}, hidden)"


def generate_share(
    parameters: Parameters, share: KeyShare, c1: U64, permit: Permit
) -> tuple[ModularShare, MaskedShare]:
    """Holder: M_i uniform modulo Q_l, which it keeps, and s_i c1 + e - M_i, which it sends."""
    permit.use(c1)
    ring, level = parameters.ring, len(c1)
    basis = parameters.data(level)
    # uniform in either form; kept in coefficient form
    mask = sampling.uniform(parameters, 1, basis)[0]
    e = ring.lift(sampling.error_integers(parameters, 1)[0], basis)
    hidden = ring.ntt(ring.sub(e, mask, basis), basis)
    return ModularShare(mask), MaskedShare(ring.add(hidden, ring.mul(c1, share.at(level), basis), basis))


def finish(parameters: Parameters, c0: U64, total: U64) -> ModularShare:
    """Aggregator: its own share, c0 + the sum, in coefficient form."""
    ring, basis = parameters.ring, parameters.data(len(total))
    hidden = ring.add(np.ascontiguousarray(c0[: len(total)]), total, basis)
    return ModularShare(ring.intt(hidden, basis))
