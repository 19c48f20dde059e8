"""How the results of a program are noised, and what they cost: public, the same at every party."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from privinfer.backends.base import Table
from privinfer.backends.mpc import roles
from privinfer.errors import ConfigError
from privinfer.graph import fixedpoint as fp
from privinfer.graph import ir
from privinfer.protocols import gaussian, privacy
from privinfer.protocols.privacy import Charge
from privinfer.session.terms import Release

SIGMAS = 12  # of one evaluator, that the ring has to have room for: eight and a half of both together


@dataclass(frozen=True, slots=True)
class Noise:
    """What each evaluator adds to one output.

    Attributes
    ----------
    sigma : int
        Of one evaluator's discrete Gaussian, in units of 2**-frac; that of both is sqrt(2) larger.
    frac : int
        Fractional bits of the output.
    rho : float
        zCDP of one row, counting the noise of one evaluator alone: the other may tell its own.
    """

    sigma: int
    frac: int
    rho: float

    @property
    def deviation(self) -> float:
        """Standard deviation of both together, in the output's own units."""
        return math.ldexp(self.sigma * math.sqrt(2), -self.frac)


@functools.lru_cache(maxsize=64)
def noise_of(step: fp.Step, release: Release, precision: ir.Precision) -> Noise | None:
    """The noise of an output; None where none is agreed.

    What the sensitivity bounds is the model; what is released strays from it by the declared error bound, to
    either side, in every value.

    Raises
    ------
    ConfigError
        No error bound is declared, or noise would not fit the output's ring.
    """
    if not release.noisy:
        return None
    if precision.error_bound is None:
        raise ConfigError(
            "noise is scaled by a declared error bound, and this model declares none",
            hint="load the model with publish_error_bound=True",
        )
    stray = precision.error_bound + (0.0 if release.grid is None else 2.0 ** -(release.grid + 1))
    distance = math.ldexp(release.sensitivity + 2 * stray * math.sqrt(step.type.size), step.type.frac)
    sigma = privacy.sigma_for(release.epsilon, release.delta, distance)
    if sigma > gaussian.MAX_SIGMA or SIGMAS * sigma > 1 << (step.type.bits - 2):
        raise ConfigError(
            f"output {step.node!r}: noise does not fit {step.type.bits} bits",
            hint="a larger epsilon, a smaller sensitivity, or a model with more comparison bits",
        )
    return Noise(sigma, step.type.frac, privacy.rho_of(sigma, distance))


def noises(program: fp.Program, table: Table) -> dict[int, Noise]:
    """The noise of each step that reveals; none where none is agreed."""
    precision = table.architecture.precision
    found = {s.index: noise_of(s, table.release, precision) for s, _ in program.reveals()}
    return {index: noise for index, noise in found.items() if noise is not None}


def charges(program: fp.Program, table: Table, rows: int) -> list[Charge]:
    """What so many rows cost each receiver."""
    costs = noises(program, table)
    each = {op.output: costs[s.index].rho for s, op in program.reveals() if s.index in costs}
    return privacy.charges(table.receivers, rows, each)


def deviations(table: Table) -> dict[str, float]:
    """Standard deviation of the noise on each output, where noise is agreed; ConfigError where none fits."""
    program = roles.compile_for(table)
    costs = noises(program, table)
    return {op.output: costs[s.index].deviation for s, op in program.reveals() if s.index in costs}
