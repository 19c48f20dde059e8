"""What of a result may leave, in `mpc`: rounded in the protocol, noised by both evaluators."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privinfer.backends.base import Network
from privinfer.backends.mpc import roles
from privinfer.backends.mpc.release import Noise, noises
from privinfer.errors import ConfigError, IntegrityError
from privinfer.graph import fixedpoint as fp
from privinfer.graph import ir, reference
from privinfer.graph.ranges import declare
from privinfer.protocols import privacy
from privinfer.protocols.mpc import outputs
from privinfer.protocols.mpc.wires import MaskShare, masked
from privinfer.protocols.privacy import Charge
from privinfer.protocols.randomness import Scope, Seed, Stream
from privinfer.session.terms import Release
from tests.properties.test_programs import EVERY, check_cost
from tests.support.bounds import output_errors, output_float_errors
from tests.support.simulate import BLINDED, FSS, PATIENT, SECOND, Outcome, Simulation, seat
from tests.support.stats import ALARM, critical, nibbles, uniform_statistic
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


@settings(max_examples=40)
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


# -- noise -----------------------------------------------------------------------------------------

_SMALL = ir.Architecture(
    (ir.Input("x", (3,), -1.0, 1.0),), (ir.Node("z", ir.Linear(3, 4), ("x",)),), (ir.Output("y", "z"),)
)
PLAIN = declare(random_model(_SMALL, 4))
NOISY = Release(epsilon=2.0, delta=1e-5, sensitivity=0.5, epsilon_budget=9.0, delta_budget=1e-4)


class Counting:
    """A budget that grants everything and remembers."""

    def __init__(self) -> None:
        self.checked: list[list[Charge]] = []
        self.spent: list[list[Charge]] = []

    def check(self, charges: list[Charge]) -> None:
        self.checked.append(charges)

    def spend(self, charges: list[Charge]) -> None:
        self.spent.append(charges)


def noisy(release: Release, batch: int = 2, exact: bool = False) -> tuple[Simulation, Outcome, ir.Array]:
    table = dataclasses.replace(seat(PLAIN.architecture, exact=exact), release=release)
    session = Simulation(PLAIN, table)
    for role, private in session.privates.items():
        if role in roles.EVALUATORS:
            session.privates[role] = dataclasses.replace(private, budget=Counting())
            session.players[role].private = session.privates[role]  # type: ignore[attr-defined]
    x = rows(PLAIN.architecture, batch, 1)
    outcome = session.infer(x)
    return session, outcome, outcome.outputs["y"] - reference.run(PLAIN, x)["y"]


def declared_noise(release: Release) -> Noise:
    table = dataclasses.replace(seat(PLAIN.architecture), release=release)
    (noise,) = noises(roles.compile_for(table), table).values()
    return noise


def check_variance(errors: ir.Array, sigma: float, stray: float) -> None:
    """Squares of Gaussian errors against chi-square, `stray` to either side for what is no noise."""
    size = float(np.sqrt((errors**2).sum()))
    slack = stray * np.sqrt(errors.size)
    assert size + slack >= sigma * np.sqrt(critical(errors.size, 1 - ALARM))
    assert size - slack <= sigma * np.sqrt(critical(errors.size, ALARM))


@pytest.mark.parametrize("decimals", [None, 2])
@pytest.mark.parametrize("exact", [False, True])
def test_results_are_noised_as_declared(decimals: int | None, exact: bool) -> None:
    release = dataclasses.replace(NOISY, decimals=decimals)
    session, outcome, errors = noisy(release, 60, exact)
    noise, stray = declared_noise(release), (PLAIN.architecture.precision.error_bound or 0) + release.rounding
    check_variance(errors, noise.deviation, stray)
    check_cost(outcome, 60)
    for role in roles.EVALUATORS:
        budget = session.privates[role].budget
        assert isinstance(budget, Counting)
        receiver = SECOND if exact else PATIENT
        assert budget.checked == budget.spent == [[Charge(receiver, 60, 60 * noise.rho)]]


@pytest.mark.parametrize("silent", [0, 1])
def test_each_evaluator_adds_noise_that_is_enough_alone(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one adds none, or tells its own, what is left is the whole noise that was declared for one."""
    original = outputs.noised

    def quiet(wire: Any, mask: Any, evaluator: int, noise: Any, veil: Any) -> Any:
        return original(wire, mask, evaluator, noise * (evaluator != silent), veil)

    monkeypatch.setattr(outputs, "noised", quiet)
    _, _, errors = noisy(NOISY, 60)
    noise = declared_noise(NOISY)
    check_variance(errors, noise.deviation / np.sqrt(2), PLAIN.architecture.precision.error_bound or 0)


def test_the_noise_of_one_is_what_epsilon_asks_for() -> None:
    noise, bound = declared_noise(NOISY), PLAIN.architecture.precision.error_bound
    assert bound is not None
    distance = (NOISY.sensitivity + 2 * bound * 2) * 2**noise.frac  # four values: sqrt(4)
    assert noise.sigma == privacy.sigma_for(NOISY.epsilon, NOISY.delta, distance)
    assert privacy.delta_of(noise.rho, NOISY.epsilon) <= NOISY.delta


def test_the_helper_with_the_receiver_finds_no_noise() -> None:
    """It knows r1 and r2; what it is shown beside the sum is uniform all the same."""
    n, count = 32, 4000
    stream = Stream(Seed.fresh(), Scope(bytes(32), 0), "veil")
    zeros = np.zeros(count, dtype=np.uint64)
    veil = stream.draw("0", (count,), n), stream.draw("1", (count,), n)
    shown = []
    for evaluator in (0, 1):
        noise = np.full(count, 5 + evaluator, dtype=np.uint64)
        wire, mask = outputs.noised(masked(zeros, n), MaskShare(zeros, n), evaluator, noise, veil)
        shown.append((wire.values, mask.values))
    (y, first), (same, second) = shown
    assert (y == same).all()
    assert (fp.low_bits(y - first - second, n) == 11).all()
    for seen in (first, second, y, fp.low_bits(y - first, n), fp.low_bits(y - second, n)):
        statistic, freedom = uniform_statistic(nibbles(seen.astype("<u4").tobytes()))
        assert statistic <= critical(freedom, ALARM / 5)


def test_noise_needs_a_declared_bound_and_room() -> None:
    bare = declare(PLAIN, publish_error_bound=False)
    table = dataclasses.replace(seat(bare.architecture), release=NOISY)
    with pytest.raises(ConfigError, match="declares none"):
        noises(roles.compile_for(table), table)
    wide = dataclasses.replace(NOISY, sensitivity=5000.0)
    table = dataclasses.replace(seat(PLAIN.architecture), release=wide)
    with pytest.raises(ConfigError, match="does not fit"):
        noises(roles.compile_for(table), table)


def test_nothing_leaves_without_a_budget_or_without_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    table = dataclasses.replace(seat(PLAIN.architecture), release=NOISY)
    with pytest.raises(IntegrityError, match="nothing to count"):
        Simulation(PLAIN, table).infer(rows(PLAIN.architecture, 1, 1))
    monkeypatch.setattr("privinfer.backends.mpc.release.noises", lambda *_: {})
    with pytest.raises(IntegrityError, match="without its noise"):
        noisy(NOISY, 1)
