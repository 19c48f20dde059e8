"""A run in chunks: right within the declared bounds, at the declared cost, and no mask serves twice."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privinfer.backends.base import Network, Table
from privinfer.backends.mpc import roles
from privinfer.graph import ir, reference
from privinfer.graph.lower import compile_program
from privinfer.graph.ranges import declare
from privinfer.plan.cost import declared, declared_run
from privinfer.protocols import randomness
from privinfer.protocols.mpc import inputs
from privinfer.runtime import chunks
from tests.support.bounds import output_errors, output_float_errors
from tests.support.simulate import BLINDED, FSS, Outcome, Simulation, seat
from tests.support.strategies import models, random_model, rows

NETWORKS = [FSS, BLINDED, Network("auto"), Network("auto", round_trip=0.04, bandwidth=100e6)]
HOLDERS = {"input": 3, "deal": 2, "helper": 1}  # how many parties draw each value of a stream
DENSE = ir.Architecture(
    (ir.Input("x", (6,), -2.0, 2.0), ir.Input("z", (3,), -1.0, 1.0)),
    (
        ir.Node("a", ir.Linear(6, 5), ("x",)),
        ir.Node("b", ir.Relu(), ("a",)),
        ir.Node("c", ir.Linear(3, 5), ("z",)),
        ir.Node("d", ir.Relu(), ("c",)),
        ir.Node("e", ir.Add(), ("b", "d")),
        ir.Node("f", ir.Linear(5, 2), ("e",)),
    ),
    (ir.Output("y", "f"),),
)


def forced(patch: pytest.MonkeyPatch, table: Table, at_once: int) -> None:
    """Let chunks have `at_once` rows, by the budget that holds just that many."""
    chosen = roles.choose(roles.compile_for(table), table.network, at_once)
    patch.setattr(roles, "CHUNK_BYTES", roles.footprint(chosen, at_once))


def run(
    session: Simulation, x: dict[str, ir.Array], number: int = 0
) -> tuple[int, dict[str, ir.Array], Outcome]:
    """All chunks of a run: how many, the whole result, the last outcome."""
    parts = []
    while True:
        outcome = session.infer(x, number + len(parts))
        parts.append(outcome.outputs)
        left = {session.players[role].later for role in session.players if role != roles.MODEL_OWNER}
        assert len(left) == 1, left
        if not left.pop():
            return len(parts), {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}, outcome


def check_outputs(model: ir.Model, x: dict[str, ir.Array], got: dict[str, ir.Array]) -> None:
    exact, bound, rounding = reference.run(model, x), output_errors(model), output_float_errors(model)
    for name, y in got.items():
        assert y.shape == exact[name].shape
        assert (np.abs(y - exact[name]) <= bound[name] + rounding[name]).all(), name


@settings(max_examples=60)
@given(
    models(),
    st.integers(0, 9),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from(NETWORKS),
    st.integers(0, 2**32),
)
def test_any_batch_in_chunks_of_any_size(
    model: ir.Model, batch: int, at_once: int, exact: bool, network: Network, seed: int
) -> None:
    """Every row is right, all bytes are those of the planner, and every party cuts alike."""
    x = rows(model.architecture, batch, seed)
    table = seat(model.architecture, exact=exact, network=network)
    with pytest.MonkeyPatch.context() as patch:
        forced(patch, table, at_once)
        limit = roles.rows_at_once(roles.compile_for(table), network)
        count, got, outcome = run(Simulation(model, table), x)
        assert count == chunks.count(batch, limit)
        assert outcome.sizes() == declared_run(table, batch)
    check_outputs(model, x, got)


@pytest.mark.parametrize("at_once", [1, 2, 3, 7])
@pytest.mark.parametrize("batch", [0, 1, 2, 3, 6, 7, 8])
def test_the_budget_is_kept(batch: int, at_once: int) -> None:
    """Exactly as many rows as the budget holds, and where all fit, the same messages as without chunks."""
    model = declare(random_model(DENSE, 3))
    table, x = seat(DENSE), rows(DENSE, batch, 5)
    without = Simulation(model, table).infer(x).sizes()
    with pytest.MonkeyPatch.context() as patch:
        forced(patch, table, at_once)
        program = roles.compile_for(table)
        assert roles.rows_at_once(program, FSS) == at_once
        assert roles.footprint(program, at_once + 1) > roles.CHUNK_BYTES
        count, got, outcome = run(Simulation(model, table), x)
    assert count == max(1, -(-batch // at_once))
    if count == 1:
        assert outcome.sizes() == without == declared(program, table, batch)
    check_outputs(model, x, got)


def test_runs_follow_each_other() -> None:
    """What a run leaves is nothing: the next one may bring any other batch."""
    model = declare(random_model(DENSE, 3))
    table, number = seat(DENSE), 0
    with pytest.MonkeyPatch.context() as patch:
        forced(patch, table, 2)
        session = Simulation(model, table)
        for batch in (5, 1, 0, 4, 3):
            x = rows(DENSE, batch, batch)
            count, got, _ = run(session, x, number)
            number += count
            check_outputs(model, x, got)
    assert number == 3 + 1 + 1 + 2 + 2


def test_one_row_is_always_allowed() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roles, "CHUNK_BYTES", 1)
        for network in NETWORKS:
            assert roles.rows_at_once(compile_program(DENSE), network) == 1


def test_small_models_never_go_in_chunks() -> None:
    """What fits, fits in one: the largest batch there is."""
    tiny = ir.Architecture((ir.Input("x", (2,), -1.0, 1.0),), (), (ir.Output("y", "x"),))
    assert roles.rows_at_once(compile_program(tiny), FSS) == inputs.MAX_BATCH


@pytest.mark.parametrize("network", NETWORKS)
def test_no_mask_serves_two_chunks(network: Network) -> None:
    """Each value of each stream is drawn once by each of its holders, and each chunk has its own scope."""
    model = declare(random_model(DENSE, 3))
    table = seat(DENSE, network=network)
    drawn: Counter[tuple[object, ...]] = Counter()
    original = randomness.Stream.draw

    def draw(self: randomness.Stream, label: str, shape: tuple[int, ...], bits: int = 64) -> randomness.U64:
        drawn[self._purpose, self._seed.expose(), self._scope, label] += 1
        return original(self, label, shape, bits)

    with pytest.MonkeyPatch.context() as patch:
        forced(patch, table, 2)
        session = Simulation(model, table)
        patch.setattr(randomness.Stream, "draw", draw)
        first, _, _ = run(session, rows(DENSE, 5, 1))
        run(session, rows(DENSE, 5, 1), first)  # the same rows again
    for (purpose, *_), times in drawn.items():
        assert times == (2 if purpose == "blind" else HOLDERS[str(purpose)]), purpose
    assert {key[2] for key in drawn} == {
        randomness.Scope(table.session, number) for number in range(2 * first)
    }
    owners = {(key[1], key[2]) for key in drawn if key[0] == "input"}
    assert len({seed for seed, _ in owners}) == len(owners)  # fresh seeds for each chunk
