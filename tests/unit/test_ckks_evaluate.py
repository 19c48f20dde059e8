"""Plans run end to end on ciphertexts, the test in the key holders' place, against the model in the clear."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from privinfer.backends.ckks.affine import Matrix
from privinfer.backends.ckks.cipher import Ciphertext
from privinfer.backends.ckks.evaluate import Evaluation, EvaluationKeys, RefreshRequest, spectral_norm
from privinfer.backends.ckks.plan import Opened, Plan, make_plan
from privinfer.errors import ConfigError, InputError, PrecisionError
from privinfer.graph import ir, reference
from privinfer.protocols.ckks import noise
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.ckks.smudging import Smudging
from tests.support.ckks_oracle import TAIL, Oracle

HOLDERS = 3
SMOOTH = (0.3, 0.45, 0.2, -0.05)  # degree 3
STEEP = (0.1, 0.5, 0.0, -0.2, 0.0, 0.1, 0.05, 0.02)  # degree 7


def random_model(architecture: ir.Architecture, seed: int = 0) -> ir.Model:
    """Weights of about unit norm a row."""
    rng = np.random.default_rng(seed)
    parameters = {}
    for node, shapes in architecture.parameter_shapes().items():
        parameters[node] = {}
        for name, shape in shapes.items():
            spread = 0.3 if name == "bias" else 1 / np.sqrt(max(1, np.prod(shape) / max(shape[0], shape[-1])))
            parameters[node][name] = rng.normal(size=shape) * spread
    return ir.Model(architecture, parameters)


def network(*nodes: ir.Node, inputs: tuple[ir.Input, ...], output: str) -> ir.Architecture:
    return ir.Architecture(inputs, nodes, (ir.Output("y", output),))


def picture(name: str = "picture", size: int = 8) -> ir.Input:
    return ir.Input(name, (1, size, size), -1, 1)


CNN = network(
    ir.Node("c1", ir.Conv2d(1, 2, (3, 3), (1, 1), (1, 1, 1, 1)), ("picture",)),
    ir.Node("p1", ir.Polynomial(-6, 6, SMOOTH), ("c1",)),
    ir.Node("pool", ir.AvgPool2d((2, 2), (2, 2)), ("p1",)),
    ir.Node("c2", ir.Conv2d(2, 4, (3, 3), (1, 1), (1, 1, 1, 1)), ("pool",)),
    ir.Node("p2", ir.Polynomial(-8, 8, STEEP), ("c2",)),
    ir.Node("flat", ir.Reshape((64,)), ("p2",)),
    ir.Node("d", ir.Linear(64, 5), ("flat",)),
    inputs=(picture(),),
    output="d",
)
FUSION = network(
    ir.Node("c", ir.Conv2d(1, 2, (3, 3), (2, 2), (1, 1, 1, 1)), ("picture",)),
    ir.Node("pc", ir.Polynomial(-6, 6, SMOOTH), ("c",)),
    ir.Node("flat", ir.Reshape((32,)), ("pc",)),
    ir.Node("g", ir.Linear(40, 8), ("genome",)),
    ir.Node("pg", ir.Polynomial(-8, 8, SMOOTH), ("g",)),
    ir.Node("all", ir.Concat(1), ("flat", "pg", "blood")),
    ir.Node("h", ir.Linear(46, 16), ("all",)),
    ir.Node("ph", ir.Polynomial(-10, 10, STEEP), ("h",)),
    ir.Node("r", ir.Linear(16, 16), ("ph",)),
    ir.Node("sum", ir.Add(), ("r", "ph")),
    ir.Node("ps", ir.Polynomial(-12, 12, SMOOTH), ("sum",)),
    ir.Node("d", ir.Linear(16, 3), ("ps",)),
    inputs=(picture(), ir.Input("genome", (40,), -1, 1), ir.Input("blood", (6,), -1, 1)),
    output="d",
)
WIDE = network(  # values of two ciphertexts each
    ir.Node("c", ir.Conv2d(1, 1, (3, 3), (1, 1), (1, 1, 1, 1)), ("picture",)),
    ir.Node("p", ir.Polynomial(-6, 6, SMOOTH), ("c",)),
    ir.Node("pool", ir.AvgPool2d((8, 8), (8, 8)), ("p",)),
    inputs=(picture(size=32),),
    output="pool",
)
GATE = network(
    ir.Node("a", ir.Linear(6, 4), ("x",)),
    ir.Node("b", ir.Linear(6, 4), ("x",)),
    ir.Node("m", ir.Mul(), ("a", "b")),
    ir.Node("q", ir.Mul(), ("m", "m")),
    inputs=(ir.Input("x", (6,), -1, 1),),
    output="q",
)


class Session:
    """Everything up to the evaluation."""

    def __init__(self, model: ir.Model, parameters: Parameters, smudging: int | None = None) -> None:
        self.model = model
        plan = make_plan(model.architecture, HOLDERS, HOLDERS, parameters=parameters)
        if smudging is not None:
            steps = tuple(
                dataclasses.replace(s, smudging=Smudging(smudging)) if isinstance(s, Opened) else s
                for s in plan.steps
            )
            plan = dataclasses.replace(plan, steps=steps)
        self.plan: Plan = plan
        self.oracle = Oracle(parameters, HOLDERS)
        galois = self.oracle.at(plan.linear_levels).galois(plan.rotations)
        self.keys = EvaluationKeys(self.oracle.public, self.oracle.relinearisation, galois)
        self.evaluation = Evaluation(plan, model, self.keys)
        self.requests: list[RefreshRequest] = []

    def encrypt(self, rows: dict[str, np.ndarray]) -> dict[str, list[list[Ciphertext]]]:
        return {
            s.name: [
                [self.oracle.encrypt(v, s.level) for v in s.layout.pack(row.reshape(-1))]
                for row in rows[s.name]
            ]
            for s in self.plan.inputs
        }

    def play(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs in the clear."""
        running = self.evaluation.run(self.encrypt(rows))
        try:
            request = next(running)
            while True:
                self.requests.append(request)
                answer = [
                    self.oracle.refresh(x, t.span.high)
                    for x, t in zip(request.ciphertexts, request.targets, strict=True)
                ]
                request = running.send(answer)
        except StopIteration as end:
            found = {}
            for o in self.plan.outputs:
                slots = np.array([[self.oracle.decrypt(x).real for x in row] for row in end.value[o.name]])
                found[o.name] = o.layout.unpack(slots).reshape(len(slots), *o.shape)
            return found


def batch(architecture: ir.Architecture, rows: int, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {i.name: rng.uniform(i.low, i.high, (rows, *i.shape)) for i in architecture.inputs}


@pytest.mark.parametrize(
    ("architecture", "levels", "rounds"),
    [(CNN, 7, 1), (CNN, 10, 0), (FUSION, 6, 4), (GATE, 5, 0), (WIDE, 5, 1)],
)
def test_models_within_their_declared_error(architecture: ir.Architecture, levels: int, rounds: int) -> None:
    model = random_model(architecture)
    session = Session(model, Parameters(1024, levels, insecure=True), smudging=1)
    rows = batch(architecture, 2)
    error = session.play(rows)["y"] - reference.run(model, rows)["y"]
    assert len(session.requests) == rounds == len(session.plan.refreshes)
    for request in session.requests:
        assert all(x.limbs == t.span.low for x, t in zip(request.ciphertexts, request.targets, strict=True))
    (outlook,) = session.evaluation.outlook()
    assert np.abs(error).max() < TAIL * outlook.slot_std
    assert outlook.slot_std < 2.0**-20  # what is declared is worth something


def test_smudging_floods_what_is_opened() -> None:
    model = random_model(CNN)
    session = Session(model, Parameters(1024, 10, insecure=True))
    rows = batch(CNN, 6)
    error = session.play(rows)["y"] - reference.run(model, rows)["y"]
    (outlook,) = session.evaluation.outlook()
    own = noise.slot_std(session.plan.parameters, Smudging(outlook.smudging_bits).std)
    assert 0.6 * own < error.std() < 1.5 * own  # 30 numbers of the evaluator's smudging alone
    assert own < outlook.slot_std < 2.5 * own  # that of three holders and the evaluator
    assert outlook.flooding_bits > 10
    assert "bits of flooding" in outlook.describe()


def test_nothing_leaves_twice_alike_or_without_a_fresh_zero() -> None:
    model = random_model(CNN)
    session = Session(model, Parameters(1024, 7, insecure=True))
    rows = session.encrypt(batch(CNN, 1))
    first, second = (next(session.evaluation.run(rows)) for _ in range(2))
    for a, b in zip(first.ciphertexts, second.ciphertexts, strict=True):
        assert not np.any((a.data == b.data).all(axis=-1))


def test_what_does_not_fit_the_plan_is_refused() -> None:
    model = random_model(CNN)
    session = Session(model, Parameters(1024, 7, insecure=True))
    run, rows = session.evaluation.run, session.encrypt(batch(CNN, 1))
    with pytest.raises(InputError, match="missing"):
        next(run({}))
    with pytest.raises(InputError, match="ciphertexts a row"):
        next(run({"picture": [[]]}))
    wrong = Ciphertext(rows["picture"][0][0].data, 2.0**49)
    with pytest.raises(InputError, match="scale"):
        next(run({"picture": [[wrong]]}))
    running = run(rows)
    next(running)
    with pytest.raises(PrecisionError, match="0 refreshed"):
        running.send([])
    running = run(rows)
    request = next(running)
    with pytest.raises(PrecisionError, match="another level"):
        running.send(request.ciphertexts)
    keys = session.keys
    with pytest.raises(ConfigError, match="relinearisation"):
        Evaluation(session.plan, model, dataclasses.replace(keys, relinearisation=None))
    with pytest.raises(ConfigError, match="Galois"):
        Evaluation(session.plan, model, dataclasses.replace(keys, galois={}))
    with pytest.raises(ConfigError, match="architecture"):
        Evaluation(session.plan, random_model(FUSION), keys)


def test_spectral_norm_is_no_less_and_little_more() -> None:
    rng = np.random.default_rng(3)
    for m in (rng.normal(size=(30, 50)), np.ones((20, 40)), np.diag(rng.normal(size=25))):
        rows, columns = np.nonzero(np.ones_like(m))
        found = spectral_norm(Matrix(rows.astype(np.int32), columns.astype(np.int32), m.reshape(-1)))
        assert np.linalg.norm(m, 2) <= found <= 1.21 * np.linalg.norm(m, 2)


@pytest.mark.slow
def test_at_a_ring_of_128_bits() -> None:
    model = random_model(FUSION)
    session = Session(model, Parameters(16384, 7))
    rows = batch(FUSION, 1)
    error = session.play(rows)["y"] - reference.run(model, rows)["y"]
    (outlook,) = session.evaluation.outlook()
    assert np.abs(error).max() < TAIL * outlook.slot_std
