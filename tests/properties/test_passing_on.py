"""On a slow line each evaluator passes on half of what both get alike: same results, other routes."""

from __future__ import annotations

import numpy as np
import pytest

from privinfer.backends.base import Network, Phase
from privinfer.backends.mpc import roles
from privinfer.errors import ProtocolViolation
from privinfer.graph import ir
from privinfer.graph.ranges import declare
from privinfer.plan.cost import declared
from privinfer.protocols.cost import Cost
from tests.support.simulate import FSS, Message, simulate

SLOW = Network("fss", round_trip=0.0, bandwidth=1e3)  # a byte is dearer than a hop


def model() -> ir.Model:
    """Every gate that has keys: comparison, pieces, a table, a maximum."""
    source = ir.Input("x", (3, 4), -3.0, 3.0)
    nodes = (
        ir.Node("r", ir.Relu(), ("x",)),
        ir.Node("c", ir.Piecewise((0.5,), (1.0,), (-1.0,), 1.0), ("r",)),
        ir.Node("s", ir.Function("sigmoid", -10.0, 10.0, 1e-4, 0.0, 0.0), ("c",)),
        ir.Node("m", ir.Max(2), ("s",)),
    )
    return declare(ir.Model(ir.Architecture((source,), nodes, (ir.Output("y", "m"),)), {}))


def test_same_result_at_its_declared_cost() -> None:
    made = model()
    x = {"x": np.random.default_rng(1).uniform(-3, 3, (130, 3, 4))}
    straight, passed = simulate(made, x, network=FSS), simulate(made, x, network=SLOW)
    bound = made.architecture.precision.error_bound
    assert bound is not None
    assert np.abs(straight.outputs["y"] - passed.outputs["y"]).max() <= 2 * bound
    for outcome in (straight, passed):
        assert outcome.sizes() == declared(outcome.program, outcome.table, 130)
    one, two = straight.sizes(), passed.sizes()
    offline = [(a, b) for p, a, b in two if p is Phase.OFFLINE and {a, b} == set(roles.EVALUATORS)]
    assert len(offline) == 2
    assert sum(one.values()) == sum(two.values())  # not a byte more in all
    for k, evaluator in enumerate(roles.EVALUATORS):
        key = (Phase.OFFLINE, roles.HELPER, evaluator)
        assert two[key] < 0.6 * one[key], k


def test_nothing_is_passed_on_where_the_line_is_fast() -> None:
    cost = Cost(common=1_000_000, dealt=(1_000_000, 1_000_001))
    assert roles.passed_on(cost, FSS) == (0, 0)
    assert roles.passed_on(cost, SLOW) == (500_000, 500_000)
    assert roles.passed_on(Cost(common=4001), Network("fss", 0.04, 100e6)) == (0, 0)
    assert roles.passed_on(Cost(common=1_000_001), Network("fss", 0.04, 100e6)) == (500_000, 500_001)


def test_whoever_passes_on_may_be_the_one_to_blame() -> None:
    """Padding that is not zero could come from the helper or from the evaluator that passed it on."""

    def tamper(message: Message) -> bytes:
        between = {message.sender, message.receiver} == set(roles.EVALUATORS)
        if (
            message.phase is Phase.OFFLINE
            and between
            and message.receiver == roles.E1
            and len(message.data) > 1
        ):
            return message.data[:-1] + b"\xff"
        return message.data

    source = ir.Input("x", (3,), -3.0, 3.0)
    one = ir.Model(ir.Architecture((source,), (ir.Node("r", ir.Relu(), ("x",)),), (ir.Output("y", "r"),)), {})
    with pytest.raises(ProtocolViolation) as caught:
        simulate(declare(one, comparison_bits=31), {"x": np.ones((1, 3))}, network=SLOW, tamper=tamper)
    assert caught.value.culprit == "helper or hospital"
