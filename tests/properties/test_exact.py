"""Exact mode: products within n + 1 units, whole models within the declared bounds and cost."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privinfer.backends.base import Network, Phase
from privinfer.backends.ckks.exact.setting import setting_of
from privinfer.backends.mpc import roles
from privinfer.errors import ConfigError, InputError, IntegrityError, ProtocolViolation
from privinfer.graph import fixedpoint as fp
from privinfer.graph import ir, reference
from privinfer.graph.ranges import declare
from privinfer.plan.cost import declared
from privinfer.protocols.ckks import ring64
from privinfer.protocols.ckks.keys import OwnKey, PublicKey, SecretShare
from privinfer.protocols.ckks.messages import unpack
from privinfer.protocols.ckks.release import Permit, ciphertext_digest
from privinfer.protocols.mpc import encrypted
from privinfer.protocols.mpc.encrypted import OPENED, SENT, Product
from privinfer.protocols.randomness import Scope
from tests.properties.test_coefficients import EXTREMES, wide
from tests.properties.test_programs import check_outputs
from tests.support.simulate import BLINDED, FSS, Message, Simulation, seat
from tests.support.strategies import models, rows

U64 = npt.NDArray[np.uint64]
I, N, O = ir.Input, ir.Node, ir.Output  # noqa: E741
HOLDERS = ("hospital", "laboratory", "patient")
seeds = st.integers(0, 2**32)


# -- one product -----------------------------------------------------------------------------------


class Keys:
    """A joint key; their sum is formed here alone."""

    def __init__(self, holders: int) -> None:
        p = encrypted.parameters()
        self.shares = [SecretShare.fresh(p) for _ in range(holders)]
        total = self.shares[0].values
        for share in self.shares[1:]:
            total = p.ring.add(total, share.values, p.full)
        self.public: PublicKey = OwnKey.restore(SecretShare(p, total)).public


KEYS = {n: Keys(n) for n in (2, 5)}


def shares_of_product(keys: Keys, product: Product, x: U64, mask: U64, weight: U64) -> list[U64]:
    """What model owner and key holders hold in the end."""
    p = encrypted.parameters()
    packing = product.packing
    parts = [
        unpack(
            encrypted.encrypt(keys.public, product.spread(share)),
            p,
            p.data(SENT),
            (packing.sent, 2),
            culprit="",
            step="",
        )
        for share in (x - mask, mask)
    ]
    total = p.ring.add(parts[0], parts[1], p.data(SENT))
    found = encrypted.multiply(keys.public, packing, encrypted.prepare(product, weight), total)
    kept, said = [], {}
    for k, share in enumerate(keys.shares):
        c1 = np.ascontiguousarray(found[:, 1])
        own, said[str(k)] = encrypted.holder_share(
            share, c1, [Permit("one", ciphertext_digest(one)) for one in c1]
        )
        kept.append(own)
    kept.append(encrypted.owner_share(np.ascontiguousarray(found[:, 0]), said))
    return [product.gather(own) for own in kept]


OPERATORS = (
    ((5,), ir.Linear(5, 3)),
    ((1,), ir.Linear(1, 1)),
    ((2, 300), ir.Linear(300, 40)),
    ((3, 4), ir.Scale(1, 3)),
    ((2, 9, 9), ir.Conv2d(2, 4, (3, 3), (2, 1), (1, 0, 2, 1), (1, 2))),
    ((4, 6, 5), ir.Conv2d(4, 8, (2, 3), groups=4)),
    ((1, 95, 95), ir.Conv2d(1, 2, (3, 3), padding=(1, 1, 1, 1))),
)


@pytest.mark.parametrize("holders", KEYS)
@pytest.mark.parametrize(("shape", "op"), OPERATORS, ids=lambda v: type(v).__name__)
def test_product(holders: int, shape: ir.Shape, op: ir.Linear | ir.Conv2d | ir.Scale) -> None:
    """Anywhere in the ring, weights as large as they come: off by n + 1 units at most."""
    rng = np.random.default_rng(holders)
    x, mask = wide(rng, (2, *shape)), wide(rng, (2, *shape))
    weight = rng.integers(-(2**36), 2**36, op.parameters()["weight"]).view(np.uint64)
    product = Product(op, shape, 2)
    shares = shares_of_product(KEYS[holders], product, x, mask, weight)
    off = (sum(shares[1:], shares[0]) - reference.linear_map(op, x, weight)).view(np.int64)
    assert np.abs(off).max() <= ring64.error_units(holders, OPENED) == holders + 1


def test_shares_are_uniform() -> None:
    """Each party's share by itself, of values that are all alike: the top bits of 2 n words."""
    op, shape = ir.Linear(4, 64), (4,)
    product = Product(op, shape, 32)
    x = np.full((32, 4), EXTREMES[-1], dtype=np.uint64)
    shares = shares_of_product(KEYS[2], product, x, np.zeros_like(x), np.ones((4, 64), dtype=np.uint64))
    for share in shares:
        counts = np.bincount((share >> np.uint64(60)).astype(np.int64).ravel(), minlength=16)
        expected = share.size / 16
        assert ((counts - expected) ** 2 / expected).sum() < 60  # 15 degrees of freedom: p = 3e-7


# -- whole models ----------------------------------------------------------------------------------


def check(model: ir.Model, x: dict[str, ir.Array], **seating: object) -> None:
    """Outputs within mpc's bounds, every byte and round as declared."""
    table = seat(model.architecture, holders=HOLDERS, **seating)  # type: ignore[arg-type]
    outcome = Simulation(model, table).infer(x)
    check_outputs(model, x, outcome.outputs)
    batch = len(next(iter(x.values())))
    assert outcome.sizes() == declared(outcome.program, table, batch)
    assert outcome.rounds == (roles.rounds(outcome.program),) * 2


@given(models(), st.integers(0, 3), st.sampled_from([FSS, BLINDED]), st.booleans(), st.booleans(), seeds)
@settings(max_examples=15)
def test_random_models(
    model: ir.Model, batch: int, network: Network, exact: bool, far: bool, seed: int
) -> None:
    """With the model owner at an evaluator or elsewhere, with receivers that compute or do not."""
    x = rows(model.architecture, batch, np.random.default_rng(seed))
    check(model, x, network=network, exact=exact, model_owner="elsewhere" if far else "startup")


def small(parameters_of: int = 0) -> ir.Model:
    """Two sources, a convolution and a dense layer side by side, ReLU, a joint layer."""
    rng = np.random.default_rng(parameters_of)
    nodes = (
        N("conv", ir.Conv2d(1, 3, (3, 3), (2, 2), (1, 1, 1, 1)), ("image",)),
        N("bent", ir.Relu(), ("conv",)),
        N("flat", ir.Reshape((27,)), ("bent",)),
        N("dense", ir.Linear(7, 5), ("row",)),
        N("rectified", ir.Relu(), ("dense",)),
        N("both", ir.Concat(1), ("flat", "rectified")),
        N("joint", ir.Linear(32, 2), ("both",)),
    )
    inputs = (I("image", (1, 6, 6), -1.0, 1.0), I("row", (7,), -2.0, 2.0))
    architecture = ir.Architecture(inputs, nodes, (O("out", "joint"),), ir.Precision())
    parameters = {
        n.name: {k: rng.uniform(-1, 1, shape) for k, shape in n.op.parameters().items()}
        for n in nodes
        if n.op.parameters()
    }
    return declare(ir.Model(architecture, parameters))


def inputs(batch: int, seed: int = 1) -> dict[str, ir.Array]:
    rng = np.random.default_rng(seed)
    return {"image": rng.uniform(-1, 1, (batch, 1, 6, 6)), "row": rng.uniform(-2, 2, (batch, 7))}


def test_a_small_model_and_a_second_run() -> None:
    model = small()
    table = seat(model.architecture, holders=HOLDERS, owners={"image": "hospital", "row": "laboratory"})
    session = Simulation(model, table)
    for number, batch in enumerate((3, 1)):
        check_outputs(model, inputs(batch), session.infer(inputs(batch), number).outputs)


def test_what_is_not_linear_is_the_gates_of_mpc() -> None:
    """Pieces and products between layers that are encrypted: steps that take other rounds than ReLU."""
    nodes = (
        N("first", ir.Linear(4, 3), ("x",)),
        N("leaky", ir.Piecewise((0.0,), (0.0,), (0.9,), 0.1), ("first",)),
        N("other", ir.Linear(4, 3), ("x",)),
        N("gated", ir.Mul(), ("leaky", "other")),
        N("last", ir.Linear(3, 2), ("gated",)),
    )
    source = (I("x", (4,), -1.0, 1.0),)
    architecture = ir.Architecture(source, nodes, (O("out", "last"),), ir.Precision())
    rng = np.random.default_rng(0)
    parameters = {
        n.name: {k: rng.uniform(-0.5, 0.5, shape) for k, shape in n.op.parameters().items()}
        for n in nodes
        if n.op.parameters()
    }
    check(declare(ir.Model(architecture, parameters)), {"x": rng.uniform(-1, 1, (5, 4))})


def test_branches_share_rounds() -> None:
    """Two layers side by side take as many rounds as one: 4 + 4, and what ReLU takes between them."""
    model = small()
    table = seat(model.architecture, holders=HOLDERS)
    program = roles.compile_for(table)
    relu = next(s for s in program.steps if isinstance(s.operation, fp.Rectify))
    assert roles.rounds(program) == 4 + roles.step_cost(program, relu, 1).rounds + 4
    outcome = Simulation(model, table).infer(inputs(1))
    assert outcome.rounds == (roles.rounds(program),) * 2


# -- what must not happen --------------------------------------------------------------------------


def test_a_ciphertext_is_shared_once() -> None:
    """A model owner that asks for an old one again in a later run is refused by name."""
    model, old = small(), {}

    def again(m: Message) -> bytes | None:
        if m.phase is Phase.ONLINE and m.sender == roles.MODEL_OWNER and m.receiver == "holder:1":
            return old.setdefault(m.step, m.data)
        return m.data

    session = Simulation(model, seat(model.architecture, holders=HOLDERS), again)
    session.infer(inputs(1), 0)
    with pytest.raises(IntegrityError, match="released before") as caught:
        session.infer(inputs(1), 1)
    assert caught.value.culprit == "startup"


@pytest.mark.parametrize(
    ("sender", "receiver", "culprit"),
    [
        (roles.E2, roles.MODEL_OWNER, "hospital"),
        (roles.MODEL_OWNER, "holder:0", "startup"),
        ("holder:1", roles.MODEL_OWNER, "laboratory"),
    ],
)
def test_coefficients_out_of_range(sender: str, receiver: str, culprit: str) -> None:
    def spoiled(m: Message) -> bytes | None:
        if (m.phase, m.sender, m.receiver) == (Phase.ONLINE, sender, receiver):
            return m.data[:-8] + b"\xff" * 8
        return m.data

    session = Simulation(small(), seat(small().architecture, holders=HOLDERS), spoiled)
    with pytest.raises(ProtocolViolation) as caught:
        session.infer(inputs(1))
    assert caught.value.culprit == culprit


def test_weights_do_not_leave() -> None:
    """Nothing in the setup comes from the model owner; online, no half c0 of a result does."""
    model = small()
    outcome = Simulation(model, seat(model.architecture, holders=HOLDERS)).infer(inputs(1))
    said = [m for m in outcome.transcript if m.sender == roles.MODEL_OWNER]
    assert not [m for m in said if m.phase is not Phase.ONLINE]
    layers = {s.index: roles.step_cost(outcome.program, s, 1) for s, _ in outcome.program.bilinear()}
    for m in said:
        cost = layers[m.step]
        assert len(m.data) == (cost.halves if m.receiver.startswith("holder:") else cost.products)


def test_two_runs_of_one_input_have_nothing_in_common() -> None:
    """No ciphertext, half or share comes twice, though the values are the same."""
    model = small()
    session = Simulation(model, seat(model.architecture, holders=HOLDERS))
    session.infer(inputs(1), 0)
    first = len(session.post.transcript)
    session.infer(inputs(1), 1)
    parts = [
        {m.data for m in part if m.phase is Phase.ONLINE and len(m.data) > 8}
        for part in (session.post.transcript[:first], session.post.transcript[first:])
    ]
    assert not parts[0] & parts[1]


def test_dealing_ahead_is_refused() -> None:
    model = small()
    session = Simulation(model, seat(model.architecture, holders=HOLDERS))
    play = session.players[roles.E1].deal(Scope(session.table.session, 5), 1)
    with pytest.raises(ConfigError, match="ahead"):
        next(play)


def test_rows_that_differ() -> None:
    model = small()
    x = inputs(2)
    with pytest.raises(InputError):
        Simulation(model, seat(model.architecture, holders=HOLDERS)).infer({**x, "row": x["row"][:1]})


def test_who_holds_what() -> None:
    """Every holder's and the model owner's share of a product reaches exactly one evaluator."""
    for owner, holders in itertools.product(("startup", "hospital", "far"), (("startup", "x"), HOLDERS)):
        table = seat(small().architecture, holders=holders, model_owner=owner)
        setting = setting_of(table)
        every = [*setting.holder_roles(), roles.MODEL_OWNER]
        assert sorted([*setting.sources(0), *setting.sources(1)]) == sorted(every)
        assert set(setting.seeded()) <= set(setting.sources(1))
        for role in every:
            evaluator = roles.EVALUATORS.index(setting.target(role))
            assert role in setting.sources(evaluator)
