"""Noise of differential privacy on results under encryption: on every coefficient, by the model owner.

What a receiver decrypts is a polynomial with N integer coefficients. The model owner adds a discrete
Gaussian to each before it asks for the opening. A person's record moves a value by `sensitivity` in the L2
norm, its S / p copies by sqrt(S / p) times as much, and coefficients are slots times scale / sqrt(S) in
that norm; slots hold nothing else that depends on an input (layout.py) but errors, real and imaginary,
each within the declared bound b. So the integers move by at most

    D = scale (sensitivity / sqrt(p) + 2 sqrt(2) b sqrt(ciphertexts))

and the promise is that of `privacy.py`, but for the one time in 10^18 a slot that b does not hold. A receiver
takes the mean of the copies: noise of standard deviation sigma sqrt(p) / scale is left on a value.
Adversary: the receiver, with key holders below the threshold; not with the model owner, who knows the noise.
Source: Canonne, Kamath and Steinke (arXiv:2004.00010), theorem 14.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from privinfer.backends.ckks import roles
from privinfer.backends.ckks.plan import Opened
from privinfer.backends.ckks.roles import Setting
from privinfer.errors import ConfigError
from privinfer.protocols import gaussian, privacy
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.privacy import Charge
from privinfer.protocols.randomness import U64

ROOM = 2  # limbs: coefficients with noise stay far below half of their product


@dataclass(frozen=True, slots=True)
class Noise:
    """Of one output.

    Attributes
    ----------
    sigma : int
        Of a coefficient.
    rho : float
        zCDP of one row.
    deviation : float
        Standard deviation left on a value, in its own units.
    """

    sigma: int
    rho: float
    deviation: float


def noises(setting: Setting) -> dict[str, Noise]:
    """The noise of each output by name; none where none is agreed.

    Raises
    ------
    ConfigError
        It does not fit the ciphertext.
    """
    release, found = setting.table.release, {}
    for one in setting.plan.outputs if release.noisy else ():
        stray = roles.declared_error(setting.plan, one) * math.sqrt(one.ciphertexts)
        period = math.sqrt(one.layout.period)
        distance = one.scale * (release.sensitivity / period + 2 * math.sqrt(2) * stray)
        sigma = privacy.sigma_for(release.epsilon, release.delta, distance)
        if sigma > gaussian.MAX_SIGMA or one.level < ROOM:
            raise ConfigError(
                f"output {one.name!r}: noise does not fit its ciphertext",
                hint="a larger epsilon or a smaller sensitivity",
            )
        found[one.name] = Noise(sigma, privacy.rho_of(sigma, distance), sigma * period / one.scale)
    return found


def charges(setting: Setting, rows: int) -> list[Charge]:
    """What so many rows cost each receiver."""
    costs = {name: noise.rho for name, noise in noises(setting).items()}
    return privacy.charges(setting.table.receivers, rows, costs)


def draw(parameters: Parameters, output: Opened, noise: Noise) -> U64:
    """Noise for one ciphertext's c0, shape (level, N) in NTT form."""
    basis = parameters.data(output.level)
    drawn = gaussian.draw(noise.sigma, (parameters.n,)).view(np.int64)
    return parameters.ring.ntt(parameters.ring.lift(drawn, basis), basis)
