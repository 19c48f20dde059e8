"""Whole programs under `mpc`: right within the declared bounds, and at the declared cost to the byte."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privinfer.backends import plain
from privinfer.backends.base import Network, Phase
from privinfer.backends.mpc import roles
from privinfer.errors import ConfigError, PrecisionError
from privinfer.graph import fixedpoint as fp
from privinfer.graph import ir, reference
from privinfer.graph.lower import compile_program
from privinfer.graph.ranges import declare
from privinfer.graph.tables import make
from privinfer.plan.cost import declared
from privinfer.protocols.mpc import inputs, linear, outputs
from tests.support.bounds import output_errors, output_float_errors
from tests.support.simulate import BLINDED, FSS, Outcome, Simulation, seat, simulate
from tests.support.strategies import models, random_model, rows

I, N, O = ir.Input, ir.Node, ir.Output  # noqa: E741 - tables below are easier to read so
seeds = st.integers(0, 2**32)


def check_outputs(model: ir.Model, x: dict[str, ir.Array], got: dict[str, ir.Array]) -> None:
    """Against float64 within the declared bound, against the integer twin within twice that."""
    exact, twin = reference.run(model, x), plain.run(model, x)
    bound, rounding = output_errors(model), output_float_errors(model)
    assert got.keys() == exact.keys() == twin.keys()
    for name, y in got.items():
        assert y.shape == exact[name].shape
        assert (np.abs(y - exact[name]) <= bound[name] + rounding[name]).all(), name
        assert (np.abs(y - twin[name]) <= 2 * bound[name] + rounding[name]).all(), name
    published = model.architecture.precision.error_bound
    assert published is not None
    assert max(float(b.max()) for b in bound.values()) <= published


def check_cost(outcome: Outcome, batch: int) -> None:
    """Every message against the formula of its step, and all of them against the planner."""
    program, table = outcome.program, outcome.table
    assert outcome.sizes() == declared(program, table, batch)
    assert outcome.rounds == (roles.rounds(program),) * 2
    of_round: defaultdict[str, list[int]] = defaultdict(list)
    bilinear = {s.index: op for s, op in program.bilinear()}
    for m in outcome.transcript:
        size = len(m.data)
        step = program.steps[m.step] if m.step < len(program.steps) else None
        if m.phase is Phase.ONLINE and roles.ROUND <= m.step < roles.COMPARE:
            asked = bool(roles.asking(program))  # then there are rounds in which nothing is opened
            assert asked or m.step - roles.ROUND == len(of_round[m.sender])
            of_round[m.sender].append(size)
        elif m.step == roles.COMPARE:
            assert size == inputs.compared_size(len(program.sources()))
        elif step is not None and m.phase is Phase.ONLINE and m.sender == roles.HELPER:
            assert size == roles.step_cost(program, step, batch).answered[roles.EVALUATORS.index(m.receiver)]
        elif step is not None and m.phase is Phase.ONLINE and m.receiver == roles.HELPER:
            assert size == roles.step_cost(program, step, batch).asked
        elif step is not None and m.sender == roles.HELPER:
            assert size == roles.step_cost(program, step, batch).dealt[roles.EVALUATORS.index(m.receiver)]
        elif step is not None and m.sender == roles.MODEL_OWNER:
            op = bilinear[step.index]
            assert size == linear.weights_size(op, roles.EVALUATORS.index(m.receiver))
        elif step is not None and m.sender.startswith("owner:"):
            if m.phase is Phase.ONLINE:
                assert size == inputs.online_size(step, batch)
            else:
                to_helper = m.receiver == roles.HELPER
                assert size == (inputs.helper_size() if to_helper else inputs.evaluator_size())
        elif step is not None and m.receiver.startswith("receiver:"):
            assert size == outputs.message_size(step, roles.EVALUATORS.index(m.sender), batch)
        else:
            assert m.step in (roles.SEEDS, roles.READY)
    opened = sum(roles.step_cost(program, s, batch).opened for s in program.steps)
    for sender, sizes in of_round.items():
        if not roles.asking(program):
            assert len(sizes) == roles.rounds(program), sender
        assert sum(sizes) == opened
    assert of_round.get(roles.E1) == of_round.get(roles.E2)


# -- random architectures --------------------------------------------------------------------------


@settings(max_examples=120)
@given(models(), st.sampled_from([1, 2, 3, 5]), st.booleans(), st.sampled_from([FSS, BLINDED]), seeds)
def test_random_architectures(model: ir.Model, batch: int, exact: bool, network: Network, seed: int) -> None:
    x = rows(model.architecture, batch, seed)
    outcome = simulate(model, x, exact=exact, network=network)
    check_outputs(model, x, outcome.outputs)
    check_cost(outcome, batch)


@settings(max_examples=120)
@given(models(max_nodes=5, max_inputs=2, bent=True), st.sampled_from([1, 3]), seeds)
def test_random_architectures_that_are_not_linear(model: ir.Model, batch: int, seed: int) -> None:
    """In every ring: what fits it, how its values are scaled, and how their errors grow."""
    x = rows(model.architecture, batch, seed)
    outcome = simulate(model, x)
    check_cost(outcome, batch)
    exact, bound = reference.run(model, x), output_errors(model)
    for name, y in outcome.outputs.items():
        # float64 itself is off by far less than the smallest error that is ever declared
        assert (np.abs(y - exact[name]) <= bound[name] + 1e-9 * (1 + np.abs(exact[name]))).all(), name


@pytest.mark.slow
@settings(max_examples=400)
@given(models(max_nodes=12), st.booleans(), st.sampled_from([FSS, BLINDED]), seeds)
def test_random_deep_architectures(model: ir.Model, exact: bool, network: Network, seed: int) -> None:
    x = rows(model.architecture, 2, seed)
    outcome = simulate(model, x, exact=exact, network=network)
    check_outputs(model, x, outcome.outputs)
    check_cost(outcome, 2)


# -- all operators ---------------------------------------------------------------------------------


def every_operator() -> dict[str, ir.Architecture]:
    """One architecture for each operator in each of the ways it can be lowered, and one with them all."""
    image, row = I("x", (4, 6, 5), -1.0, 1.0), I("x", (6,), -2.0, 2.0)

    def chain(source: ir.Input, *ops: ir.Op) -> ir.Architecture:
        names = [source.name, *(f"n{k}" for k in range(len(ops)))]
        nodes = tuple(N(names[k + 1], op, (names[k],)) for k, op in enumerate(ops))
        return ir.Architecture((source,), nodes, (O("y", names[-1]),))

    def pair(source: ir.Input, first: ir.Op, second: ir.Op, join: ir.Op) -> ir.Architecture:
        nodes = (N("a", first, ("x",)), N("b", second, ("x",)), N("c", join, ("a", "b")))
        return ir.Architecture((source,), nodes, (O("y", "c"),))

    pools = {
        "pool 2x2": ir.AvgPool2d((2, 2), (2, 2)),
        "pool 3x3": ir.AvgPool2d((3, 3), (2, 1)),
        "pool padded": ir.AvgPool2d((3, 2), (2, 2), (1, 0, 1, 1)),
        "pool padded, not counted": ir.AvgPool2d((2, 2), (1, 1), (1, 1, 0, 0), count_padding=False),
    }
    convs = {
        "conv": ir.Conv2d(4, 3, (3, 3)),
        "conv strided": ir.Conv2d(4, 5, (3, 2), (2, 3), (1, 0, 2, 1)),
        "conv grouped": ir.Conv2d(4, 6, (2, 2), groups=2),
        "conv depthwise": ir.Conv2d(4, 4, (3, 3), padding=(1, 1, 1, 1), groups=4),
        "conv dilated": ir.Conv2d(4, 2, (2, 2), dilation=(2, 3)),
    }
    found = {name: chain(image, op) for name, op in (pools | convs).items()}
    found |= {f"conv, {name}": chain(image, convs["conv"], op) for name, op in pools.items()}
    found |= {
        "nothing": chain(row),
        "linear": chain(row, ir.Linear(6, 3)),
        "linear on an inner axis": chain(I("x", (3, 2, 5), -1, 1), ir.Linear(5, 2)),
        "two linears": chain(row, ir.Linear(6, 3), ir.Linear(3, 7)),
        "scale channels": chain(image, ir.Scale(1, 4)),
        "scale last": chain(image, ir.Scale(3, 5)),
        "relu": chain(row, ir.Relu()),
        "relu twice": chain(row, ir.Relu(), ir.Relu()),
        "linear relu linear": chain(row, ir.Linear(6, 9), ir.Relu(), ir.Linear(9, 1)),
        "multiply": chain(row, ir.Multiply(-0.3)),
        "multiply a narrow value": chain(row, ir.Linear(6, 2), ir.Multiply(0.5)),
        "reshape and transpose": chain(image, ir.Reshape((20, 6)), ir.Transpose((2, 1))),
        "add wide": pair(row, ir.Relu(), ir.Multiply(0.5), ir.Add()),
        "add narrow": pair(row, ir.Linear(6, 3), ir.Linear(6, 3), ir.Add()),
        "add mixed": pair(row, ir.Linear(6, 6), ir.Relu(), ir.Add()),
        "concat wide": pair(row, ir.Relu(), ir.Reshape((6,)), ir.Concat(1)),
        "concat mixed": pair(row, ir.Linear(6, 2), ir.Relu(), ir.Concat(1)),
    }
    cube, far = I("x", (2, 3, 5), -2.0, 2.0), I("x", (6,), -30.0, 30.0)
    found |= {
        "function on an input": chain(row, ir.Function("sigmoid", -10, 10, 2e-4, 0, 0)),
        "function, clamped": chain(far, ir.Function("sigmoid", -10, 10, 2e-4, 0, 0)),
        "function with a tail": chain(far, ir.Function("gelu", -5, 5, 2e-4, 0, 1)),
        "function with two tails": chain(far, ir.Function("log_sigmoid", -12, 12, 2e-4, 1, 0)),
        "function before linear": chain(row, ir.Function("tanh", -6, 6, 2e-4, 0, 0), ir.Linear(6, 2)),
        "pieces": chain(row, ir.Piecewise((-1.0, 0.5), (0.25, 0.0), (0.3, -1.25), 0.5, 1.0)),
        "whole pieces": chain(row, ir.Piecewise((0.0,), (1.0,), (-2.0,), 1.0)),
        "step": chain(row, ir.Piecewise((0.25,), (1.0,), (0.0,))),
        "pieces before linear": chain(row, ir.Piecewise((0.0,), (0.0,), (0.9,), 0.1), ir.Linear(6, 2)),
        "polynomial": chain(row, ir.Polynomial(-2.5, 2.0, (0.4, 1.0, 0.3, -0.2))),
        "polynomial before linear": chain(
            row, ir.Polynomial(-8.0, 8.0, tuple(0.7**k for k in range(32))), ir.Linear(6, 2)
        ),
        "polynomial inside": chain(row, ir.Linear(6, 3), ir.Polynomial(-16.0, 16.0, (1.0, -3.0, 0.5))),
        "shift": chain(row, ir.Shift(-0.7)),
        "square": ir.Architecture((row,), (N("y", ir.Mul(), ("x", "x")),), (O("y", "y"),)),
        "mul": pair(row, ir.Linear(6, 4), ir.Linear(6, 4), ir.Mul()),
        "matmul": pair(cube, ir.Reshape((2, 3, 5)), ir.Transpose((1, 3, 2)), ir.MatMul()),
        "max": chain(cube, ir.Max(3)),
        "max of one": chain(I("x", (1, 3), -1, 1), ir.Max(1)),
        "argmax": chain(cube, ir.ArgMax(2)),
        "sum": chain(cube, ir.Sum(2)),
        "softmax": chain(cube, ir.Softmax(3)),
        "log softmax": chain(cube, ir.Softmax(1, log=True)),
        "softmax of 40": chain(I("x", (40,), -6, 6), ir.Softmax(1)),
        "normalize": chain(cube, ir.Normalize(1e-5)),
        "normalize, variance declared": chain(row, ir.Normalize(1e-3, 2.0**-4, 8.0)),
        "gather": chain(cube, ir.Gather(3, (4, -1, 0, 0))),
    }
    mixed = pair(row, ir.Linear(6, 2), ir.Relu(), ir.Concat(1))
    found["concat before linear"] = ir.Architecture(
        mixed.inputs, (*mixed.nodes, N("d", ir.Linear(8, 2), ("c",))), (O("y", "d"), O("z", "a"))
    )
    return found


EVERY = every_operator()


def test_the_table_has_every_operator() -> None:
    used = {type(node.op) for a in EVERY.values() for node in a.nodes}
    assert used == set(ir.OPS.values())
    lowered = {type(s.operation) for a in EVERY.values() for s in compile_program(a, make=make).steps} | {
        type(s.operation) for s in compile_program(EVERY["linear"], exact=True).steps
    }
    assert lowered == set(fp.Operation.__args__)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", EVERY)
def test_every_operator_at_its_declared_cost(name: str, exact: bool) -> None:
    """Shapes with vector tails, and batches of none, one and three."""
    for f, n in ((16, 32), (10, 24), (16, 48)):
        try:
            model = declare(random_model(EVERY[name], 5), fractional_bits=f, comparison_bits=n)
        except PrecisionError:
            assert (f, n) != (16, 32)
            continue
        if exact and model.architecture.tables:
            with pytest.raises(ConfigError, match="looks up a table, and a receiver"):
                simulate(model, rows(model.architecture, 1, 11), exact=True)
            continue
        for batch in (0, 1, 3):
            x = rows(model.architecture, batch, 11)
            outcome = simulate(model, x, exact=exact)
            check_cost(outcome, batch)
            if batch:
                check_outputs(model, x, outcome.outputs)


@pytest.mark.parametrize("name", EVERY)
def test_a_batch_of_none(name: str) -> None:
    """No rows in, no rows out: under `mpc`, in the plaintext twin and in float64 alike."""
    model = declare(random_model(EVERY[name], 5))
    x = rows(model.architecture, 0, 11)
    shapes = model.architecture.shapes()
    wanted = {o.name: (0, *shapes[o.value]) for o in model.architecture.outputs}
    for run in (lambda m, x: simulate(m, x).outputs, plain.run, reference.run):
        assert {k: v.shape for k, v in run(model, x).items()} == wanted


# -- rounds ----------------------------------------------------------------------------------------


def dense_chain(depth: int, width: int = 4) -> ir.Architecture:
    """`depth` times dense and ReLU, then a last dense layer."""
    nodes, last = [], "x"
    for k in range(depth):
        nodes += [N(f"d{k}", ir.Linear(width, width), (last,)), N(f"r{k}", ir.Relu(), (f"d{k}",))]
        last = f"r{k}"
    nodes.append(N("out", ir.Linear(width, 2), (last,)))
    return ir.Architecture((I("x", (width,), -1, 1),), tuple(nodes), (O("y", "out"),))


def conv_chain(depth: int) -> ir.Architecture:
    """`depth` times convolution and ReLU, then a last dense layer."""
    nodes, last = [], "x"
    for k in range(depth):
        conv = ir.Conv2d(2, 2, (3, 3), padding=(1, 1, 1, 1))
        nodes += [N(f"c{k}", conv, (last,)), N(f"r{k}", ir.Relu(), (f"c{k}",))]
        last = f"r{k}"
    nodes += [N("flat", ir.Reshape((32,)), (last,)), N("out", ir.Linear(32, 2), ("flat",))]
    return ir.Architecture((I("x", (2, 4, 4), -1, 1),), tuple(nodes), (O("y", "out"),))


@pytest.mark.parametrize("depth", [0, 1, 2, 5])
@pytest.mark.parametrize("build", [dense_chain, conv_chain])
def test_a_layer_with_relu_costs_three_rounds(build: object, depth: int) -> None:
    assert callable(build)
    model = declare(random_model(build(depth), 1, 0.5))
    outcome = simulate(model, rows(model.architecture, 2, 1))
    assert outcome.rounds == (3 * depth + 1,) * 2
    sent = [m for m in outcome.transcript if m.phase is Phase.ONLINE and m.sender == roles.E1]
    # one message compares the inputs, one shows the output; between them the rounds
    assert len(sent) == 1 + (3 * depth + 1) + 1


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("join", ["add", "concat"])
def test_parallel_branches_share_their_rounds(depth: int, join: str) -> None:
    """One, three or eight sources: the rounds are those of the deepest branch."""
    seen = set()
    for sources in (1, 3, 8):
        nodes, ends = [], []
        for s in range(sources):
            last = f"x{s}"
            for k in range(depth):
                nodes += [
                    N(f"d{s}.{k}", ir.Linear(3, 3), (last,)),
                    N(f"r{s}.{k}", ir.Relu(), (f"d{s}.{k}",)),
                ]
                last = f"r{s}.{k}"
            ends.append(last)
        if join == "concat":
            nodes.append(N("join0", ir.Concat(1), tuple(ends)))
            last, width = "join0", 3 * sources
        else:
            last, width = ends[0], 3
            for k, end in enumerate(ends[1:]):
                nodes.append(N(f"join{k}", ir.Add(), (last, end)))
                last = f"join{k}"
        nodes.append(N("out", ir.Linear(width, 1), (last,)))
        inputs_ = tuple(I(f"x{s}", (3,), -1, 1) for s in range(sources))
        model = declare(random_model(ir.Architecture(inputs_, tuple(nodes), (O("y", "out"),)), 1, 0.5))
        x = rows(model.architecture, 2, 1)
        outcome = simulate(model, x)
        check_outputs(model, x, outcome.outputs)
        check_cost(outcome, 2)
        seen.add(outcome.rounds)
    assert seen == {(3 * depth + 1,) * 2}


# -- sessions --------------------------------------------------------------------------------------


def test_one_setup_serves_many_inferences() -> None:
    """Masked weights are reused; batches may change from one inference to the next."""
    model = declare(random_model(conv_chain(1), 3))
    session = Simulation(model, seat(model.architecture))
    setup = [m for m in session.post.transcript if m.phase is Phase.SETUP]
    for number, batch in enumerate((1, 4, 0, 2)):
        x = rows(model.architecture, batch, number)
        outcome = session.infer(x, number)
        if batch:
            check_outputs(model, x, outcome.outputs)
        else:
            assert outcome.outputs["y"].shape == (0, 2)
    assert [m for m in outcome.transcript if m.phase is Phase.SETUP] == setup


def test_owners_and_receivers_may_be_anyone() -> None:
    """An evaluator that owns inputs, one party with two inputs, two receivers, the helper as a receiver."""
    a = ir.Architecture(
        (I("u", (3,), -1, 1), I("v", (3,), -1, 1), I("w", (3,), -1, 1)),
        (N("s", ir.Add(), ("u", "v")), N("r", ir.Relu(), ("s",)), N("c", ir.Concat(1), ("r", "w"))),
        (O("y", "c"), O("z", "s")),
    )
    model = declare(random_model(a, 0))
    x = rows(a, 3, 2)
    owners = {"u": "startup", "v": "hospital", "w": "hospital"}
    for receivers in (
        {"y": "patient", "z": "doctor"},
        {"y": "helper", "z": "patient"},
        {"y": "startup", "z": "startup"},
        {"y": "hospital", "z": "laboratory"},
    ):
        table = seat(a, owners=owners, receivers=receivers)
        outcome = Simulation(model, table).infer(x)
        check_outputs(model, x, outcome.outputs)
        check_cost(outcome, 3)
        truncations = [s.operation for s in outcome.program.steps if isinstance(s.operation, fp.Truncate)]
        computes = bool({"startup", "hospital", "helper"} & set(receivers.values()))
        assert all(op.exact == (computes and op.shift > 0) for op in truncations)


def test_the_choice_of_comparison() -> None:
    """Blinded where its bytes save more time than one message more costs; never anything but ReLU changes."""
    nodes = (N("wide", ir.Linear(4, 4096), ("x",)), N("a", ir.Relu(), ("wide",)))
    nodes += (N("narrow", ir.Linear(4096, 4), ("a",)), N("b", ir.Relu(), ("narrow",)))
    architecture = ir.Architecture((I("x", (4,), -1.0, 1.0),), nodes, (O("y", "b"),))
    program = compile_program(architecture)

    def chosen(network: Network, batch: int = 1) -> list[bool]:
        picked = roles.choose(program, network, batch).steps
        for before, after in zip(program.steps, picked, strict=True):
            assert before == after or isinstance(after.operation, fp.Rectify)
        return [s.operation.blinded for s in picked if isinstance(s.operation, fp.Rectify)]

    assert chosen(FSS) == [False, False]
    assert chosen(BLINDED) == [True, True]
    wan = Network("auto", round_trip=0.04, bandwidth=100e6)
    assert chosen(wan) == [True, False]
    assert chosen(wan, batch=1000) == [True, True]
    assert chosen(Network("auto", round_trip=10.0, bandwidth=100e6)) == [False, False]
    blinded = roles.choose(program, BLINDED, 1)
    assert roles.rounds(blinded) == roles.rounds(program) + 2
    fewer = sum(roles.step_cost(blinded, s, 1).total() for s in blinded.steps)
    assert fewer < sum(roles.step_cost(program, s, 1).total() for s in program.steps) / 4
