"""What of a result may leave, in `mpc`: rounded in the protocol, noised by both evaluators."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privinfer.backends.base import Network
from privinfer.graph import ir, reference
from privinfer.graph.ranges import declare
from privinfer.session.terms import Release
from tests.properties.test_programs import EVERY, check_cost
from tests.support.bounds import output_errors, output_float_errors
from tests.support.simulate import BLINDED, FSS, Outcome, Simulation, seat
from tests.support.strategies import models, random_model, rows


def released(
    model: ir.Model, x: dict[str, ir.Array], release: Release, network: Network = FSS, exact: bool = False
) -> Outcome:
    table = dataclasses.replace(seat(model.architecture, network=network, exact=exact), release=release)
    return Simulation(model, table).infer(x)


seeds = st.integers(0, 2**32 - 1)


# -- rounding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("decimals", range(13))
def test_the_grid_is_the_finest_that_is_no_finer_than_the_decimals(decimals: int) -> None:
    release = Release(decimals=decimals)
    assert release.grid is not None
    assert 2.0**-release.grid >= 10.0**-decimals > 2.0 ** -(release.grid + 1)
    assert release.rounding <= 1.5 * 10.0**-decimals


def check_rounded(model: ir.Model, outcome: Outcome, x: dict[str, ir.Array], release: Release) -> None:
    clear, bound, floats = reference.run(model, x), output_errors(model), output_float_errors(model)
    revealed = {op.output: s.type for s, op in outcome.program.reveals()}
    for name, y in outcome.outputs.items():
        assert revealed[name].frac <= (release.grid or 0)
        assert (np.abs(y - clear[name]) <= bound[name] + floats[name] + release.rounding).all(), name
        on_grid = np.rint(y * 2.0 ** revealed[name].frac) / 2.0 ** revealed[name].frac
        assert (np.round(on_grid, release.decimals or 0) == y).all()


@settings(max_examples=60)
@given(
    models(),
    st.integers(0, 4),
    st.sampled_from([1, 3]),
    st.sampled_from([FSS, BLINDED]),
    st.booleans(),
    seeds,
)
def test_results_are_rounded(
    model: ir.Model, decimals: int, batch: int, network: Network, exact: bool, seed: int
) -> None:
    x, release = rows(model.architecture, batch, seed), Release(decimals=decimals)
    outcome = released(model, x, release, network, exact)
    check_rounded(model, outcome, x, release)
    check_cost(outcome, batch)


@pytest.mark.parametrize("name", EVERY)
def test_every_operator_can_be_rounded(name: str) -> None:
    model = declare(random_model(EVERY[name], 5))
    x, release = rows(model.architecture, 2, 3), Release(decimals=2)
    outcome = released(model, x, release)
    check_rounded(model, outcome, x, release)
    check_cost(outcome, 2)
