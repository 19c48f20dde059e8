"""Sessions under encryption, all roles in one thread: answers within their bounds, every byte as declared.

The ring is a small one that no session would take; one test runs on what a session takes, with TenSEAL.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import privinfer
from privinfer.backends import ckks
from privinfer.backends.base import Phase
from privinfer.backends.ckks import affine, noised, roles
from privinfer.backends.ckks.evaluate import Outlook
from privinfer.errors import (
    InputError,
    IntegrityError,
    ModelUnsupported,
    PrecisionError,
    ProtocolViolation,
)
from privinfer.graph import ir, reference
from privinfer.plan.cost_ckks import declared
from privinfer.protocols import privacy
from privinfer.protocols.ckks import encryption
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.runtime.party import check_part
from privinfer.session.terms import Release
from tests.adversarial import ckks_stage
from tests.adversarial.stage import identity
from tests.support import simulate_ckks as sim
from tests.support.ckks_models import CASES, DENSE, FUSION, SHALLOW, TWO
from tests.support.ckks_oracle import wide_floats
from tests.support.simulate_ckks import MODEL_OWNER, Outcome, seat, simulate, small_ring
from tests.support.stats import ALARM, critical

FIVE = ("alpha", "beta", "gamma", "delta", "epsilon")


def check(model: ir.Model, rows, outcome: Outcome) -> None:
    """Answers within the promised bound; every message as declared; rounds as declared."""
    wanted = reference.run(model, rows)
    assert outcome.outputs.keys() == wanted.keys()
    for one in outcome.plan.outputs:
        found = outcome.outputs[one.name]
        assert found.shape == wanted[one.name].shape
        bound = roles.declared_error(outcome.plan, one)
        assert bound < 0.01  # what is promised is worth something
        assert np.abs(found - wanted[one.name]).max(initial=0) <= bound
    batch = len(next(iter(rows.values())))
    assert outcome.sizes() == declared(outcome.setting, batch)
    with small_ring(outcome.plan.parameters):
        counted = ckks.rounds(outcome.setting.table)
    assert outcome.rounds == counted["refreshes"] + counted["opening"]


@pytest.mark.parametrize("name", CASES)
def test_every_operator_within_the_declared_bound(name):
    model = sim.random_model(CASES[name])
    rows = sim.random_rows(CASES[name], 3 if name == "fusion" else 1)
    check(model, rows, simulate(model, rows))


@pytest.mark.parametrize("holders", [2, 3, 4, 5])
@pytest.mark.parametrize("fewer", [0, 1])
def test_two_to_five_holders(holders, fewer):
    """None of them an owner or a receiver; the owner witnesses how the joint key is made."""
    model, rows = sim.random_model(SHALLOW), sim.random_rows(SHALLOW, 2)
    outcome = simulate(model, rows, holders=FIVE[:holders], threshold=holders - fewer)
    assert len(outcome.plan.refreshes) == 1
    check(model, rows, outcome)


def test_one_of_two_answers():
    model, rows = sim.random_model(SHALLOW), sim.random_rows(SHALLOW, 1)
    check(model, rows, simulate(model, rows, holders=FIVE[:2], threshold=1))


def test_two_outputs_to_two_receivers_one_of_whom_owns_an_input():
    model, rows = sim.random_model(TWO), sim.random_rows(TWO, 2)
    receivers = {"risk": "patient", "scores": "owner0"}
    outcome = simulate(model, rows, receivers=receivers)
    check(model, rows, outcome)
    told = {m.receiver: m.step for m in outcome.transcript if m.step >= roles.RESULT}
    assert told == {"receiver:patient": roles.RESULT, "receiver:owner0": roles.RESULT + 1}


def test_two_outputs_to_one_receiver_and_two_inputs_of_one_owner():
    model, rows = sim.random_model(CASES["product"]), sim.random_rows(CASES["product"], 1)
    check(model, rows, simulate(model, rows, owners=dict.fromkeys(rows, "hospital")))
    model, rows = sim.random_model(TWO), sim.random_rows(TWO, 1)
    check(model, rows, simulate(model, rows))


def test_model_owner_that_holds_a_share_and_one_that_owns_and_receives():
    model, rows = sim.random_model(FUSION), sim.random_rows(FUSION, 1)
    check(model, rows, simulate(model, rows, holders=(MODEL_OWNER, "owner0", "patient")))
    everything = {
        "owners": {"xray": MODEL_OWNER, "dna": "owner1", "blood": MODEL_OWNER},
        "receivers": {"y": MODEL_OWNER},
    }
    check(model, rows, simulate(model, rows, **everything))


def test_an_owner_and_a_receiver_that_are_no_holders():
    model, rows = sim.random_model(FUSION), sim.random_rows(FUSION, 1)
    check(model, rows, simulate(model, rows, holders=("owner0", "notary")))


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_batches(batch):
    model, rows = sim.random_model(SHALLOW), sim.random_rows(SHALLOW, batch)
    check(model, rows, simulate(model, rows))


def test_several_inferences_after_one_setup():
    model = sim.random_model(SHALLOW)
    session = sim.Simulation(model, seat(SHALLOW, holders=FIVE[:3], threshold=2))
    for number, batch in enumerate((1, 3, 1)):
        rows = sim.random_rows(SHALLOW, batch, seed=number)
        found = session.infer(rows, number).outputs["y"]
        wanted = reference.run(model, rows)["y"]
        assert np.abs(found - wanted).max() <= roles.declared_error(
            session.setting.plan, session.setting.plan.outputs[0]
        )


def test_a_value_of_several_ciphertexts():
    wide = ir.Architecture(
        (ir.Input("x", (1500,), -1.0, 1.0),),
        (ir.Node("d", ir.Linear(1500, 2), ("x",)),),
        (ir.Output("y", "d"),),
    )
    model, rows = sim.random_model(wide), sim.random_rows(wide, 2)
    outcome = simulate(model, rows)
    assert outcome.plan.inputs[0].ciphertexts == 2
    check(model, rows, outcome)


def test_errors_are_those_of_the_smudging():
    """Measured deviation within a tenth of what is declared: 1000 numbers, 3 deviations of that estimate."""
    model, rows = sim.random_model(DENSE), sim.random_rows(DENSE, 250)
    outcome = simulate(model, rows)
    error = outcome.outputs["y"] - reference.run(model, rows)["y"]
    assert 0.9 < error.std() / outcome.outlook()["y"].slot_std < 1.1


def test_on_the_ring_of_a_session_with_tenseal():
    pytest.importorskip("tenseal")
    model, rows = sim.random_model(SHALLOW), sim.random_rows(SHALLOW, 2)
    session = sim.Simulation(model, seat(SHALLOW, holders=FIVE[:3], threshold=2), parameters=None)
    outcome = session.infer(rows)
    assert not outcome.plan.parameters.insecure
    outcome.plan.parameters.check_security()
    wanted = reference.run(model, rows)["y"]
    bound = roles.declared_error(outcome.plan, outcome.plan.outputs[0])
    assert np.abs(outcome.outputs["y"] - wanted).max() <= bound
    assert outcome.sizes() == declared(outcome.setting, 2)


# -- what is refused ---------------------------------------------------------------------------------


def test_rows_that_do_not_agree_and_too_many_rows():
    model, rows = sim.random_model(CASES["product"]), sim.random_rows(CASES["product"], 2)
    rows["z"] = rows["z"][:1]
    session = sim.Simulation(model, seat(model.architecture))
    for role, private in session.privates.items():
        private.inputs.update({k: v for k, v in rows.items() if role == f"owner:{session.table.owners[k]}"})
    with pytest.raises(InputError, match="brings 1 rows where others bring 2") as caught:
        session._run(Phase.ONLINE, lambda player: player.online())
    assert caught.value.culprit == "owner1"
    model = sim.random_model(DENSE)
    with pytest.raises(InputError, match="257 rows are more than the 256") as caught:
        simulate(model, sim.random_rows(DENSE, 257))
    assert caught.value.culprit == "owner0"


def test_a_model_deeper_than_the_parameters():
    with pytest.raises(PrecisionError, match="'p' needs"):
        simulate(sim.random_model(SHALLOW), {}, parameters=Parameters(2048, 3, insecure=True))


def test_weights_too_large_to_be_encoded():
    model = sim.random_model(DENSE)
    huge = {k: {n: v * 1e9 for n, v in own.items()} for k, own in model.parameters.items()}
    with pytest.raises(PrecisionError, match="node 'd': a weight or a bias is too large") as caught:
        simulate(ir.Model(DENSE, huge), sim.random_rows(DENSE, 1))
    assert caught.value.hint


def test_errors_of_the_circuit_that_drown_the_smudging():
    with small_ring():
        plan = roles.planned(DENSE, 2, 2)
    (output,) = plan.outputs
    limit = roles.declared_error(plan, output) / 9
    roles.check_outlook(plan, [Outlook("y", 1.0, output.smudging.bits, 0.99 * limit)])
    with pytest.raises(PrecisionError, match="output 'y'"):
        roles.check_outlook(plan, [Outlook("y", 1.0, output.smudging.bits, 1.01 * limit)])


@pytest.mark.parametrize("role", ["model_owner", "owner:owner0", "receiver:patient"])
def test_nothing_is_computed_before_the_keys(role):
    session = sim.Simulation(sim.random_model(DENSE), seat(DENSE), setup=False)
    with pytest.raises(IntegrityError, match="key"):
        next(session.players[role].online())


# Slow to import, and their operators are in the others.
LARGE = ("resnet18", "densenet", "vision transformer", "lstm", "gru", "rnn", "two-way lstm")
QUICK = ("logistic regression", "mlp relu", "mlp prelu", "mlp gelu", "mlp hardswish", "mlp softsign")


@pytest.mark.parametrize("names", [QUICK, pytest.param(None, marks=pytest.mark.slow)])
def test_the_zoo_is_refused_by_name_with_a_way_out(names):
    """People's models as they are: what has no place under encryption is named, with what helps."""
    pytest.importorskip("torch")
    from tests.support.zoo import ZOO

    for name in names or set(ZOO) - {*QUICK, *LARGE}:
        exhibit = ZOO[name]
        calibration = exhibit.rows(4, 1) if exhibit.calibrated else None
        ranges = None if exhibit.calibrated else exhibit.ranges
        model = privinfer.from_torch(
            exhibit.build(), exhibit.shapes, ranges, calibration=calibration, **exhibit.options
        )
        with pytest.raises(ModelUnsupported) as caught:
            affine.trace(model.architecture)
        nodes = {n.name: n.op for n in model.architecture.nodes}
        op = next(op for k, op in nodes.items() if repr(k) in caught.value.message)
        assert type(op).__name__ in caught.value.message
        assert caught.value.hint
        if isinstance(op, ir.Relu | ir.Function | ir.Piecewise):
            assert caught.value.hint == "replace by privinfer.to_polynomial"


def test_a_model_that_cannot_be_computed_is_refused_before_anybody_connects():
    """Nobody is blamed for it, at run_local and at the model owner that joins."""
    bent = ir.Architecture(
        DENSE.inputs, (*DENSE.nodes, ir.Node("r", ir.Relu(), ("d",))), (ir.Output("y", "r"),)
    )
    model = sim.random_model(bent)
    with pytest.raises(ModelUnsupported, match="node 'r': Relu") as caught:
        privinfer.run_local(model, {"hospital": sim.random_rows(bent, 1)}, backend="ckks")
    assert caught.value.culprit is None
    assert caught.value.hint == "replace by privinfer.to_polynomial"
    with pytest.raises(ModelUnsupported, match="node 'r': Relu") as caught:
        check_part(ckks_stage.manifest(model=bent.digest()), MODEL_OWNER, identity(MODEL_OWNER), model)
    assert caught.value.culprit is None


def test_run_local():
    """The public call, on the ring that it takes by itself."""
    pytest.importorskip("tenseal")
    model, rows = sim.random_model(FUSION), sim.random_rows(FUSION, 1)
    inputs = {"hospital": {"xray": rows["xray"]}, "lab": {"dna": rows["dna"], "blood": rows["blood"]}}
    result = privinfer.run_local(
        model, inputs, backend="ckks", processes=False, with_reference=True, key_holders=("lab", "notary")
    )
    report = result.report
    assert report["largest_absolute_error"] <= report["precision"]["declared_error_bound"]
    assert report["parties"]["notary"]["roles"] == ["key_holder"]
    assert "lost" not in report
    assert report["trust"].startswith("private unless all of {lab, notary} collude")


class Counting:
    """A budget that grants everything and says so."""

    def __init__(self, events):
        self.events = events

    def check(self, charges):
        self.events.append(("check", charges))

    def spend(self, charges):
        self.events.append(("spend", charges))


def test_the_model_owner_counts_answers_and_its_result_is_sealed():
    """Under encryption nobody else could: a result leaves only once it is written down."""
    model, rows = sim.random_model(SHALLOW), sim.random_rows(SHALLOW, 2)
    events = []

    def watch(message):
        if message.step >= roles.RESULT:
            events.append(("result", []))
        return message.data

    table = dataclasses.replace(seat(model.architecture), release=Release(answers=9))
    session = sim.Simulation(model, table, watch, sim.SMALL)
    session.model_owner.private = dataclasses.replace(session.model_owner.private, budget=Counting(events))
    session.infer(rows)
    one, both = (privacy.charges(table.receivers, k, {}) for k in (1, 2))
    results = [("result", [])] * len(table.receivers)
    assert events == [("check", one), ("check", both), ("spend", both), *results]


def test_a_result_of_another_run_does_not_open():
    model, rows = sim.random_model(SHALLOW), sim.random_rows(SHALLOW, 1)
    first = []

    def replay(message):
        if message.step < roles.RESULT:
            return message.data
        first.append(message.data)
        return first[0]

    session = sim.Simulation(model, seat(model.architecture), replay, sim.SMALL)
    session.infer(rows, 0)
    with pytest.raises(ProtocolViolation, match="does not open") as caught:
        session.infer(rows, 1)
    assert caught.value.culprit == MODEL_OWNER


NOISY = Release(epsilon=2.0, delta=1e-5, sensitivity=0.5, epsilon_budget=9.0, delta_budget=1e-4)


def noisy(architecture, rows):
    """A session with noise: what was declared of it, by output, and how far results are from the model."""
    model, table = sim.random_model(architecture), dataclasses.replace(seat(architecture), release=NOISY)
    session, events = sim.Simulation(model, table, None, sim.SMALL), []
    session.model_owner.private = dataclasses.replace(session.model_owner.private, budget=Counting(events))
    x = sim.random_rows(architecture, rows)
    outcome, clear = session.infer(x), reference.run(model, x)
    with small_ring(sim.SMALL):
        declared_, charged = noised.noises(session.setting), noised.charges(session.setting, rows)
    assert events[-1] == ("spend", charged)
    assert outcome.sizes() == declared(outcome.setting, rows)
    return session, declared_, {name: y - clear[name] for name, y in outcome.outputs.items()}


@pytest.mark.parametrize("architecture", [SHALLOW, TWO])
def test_results_under_encryption_are_noised_as_declared(architecture):
    session, noise, errors = noisy(architecture, 12)
    for one in session.setting.plan.outputs:
        found = errors[one.name]
        size, slack = float(np.sqrt((found**2).sum())), roles.declared_error(session.setting.plan, one)
        slack *= np.sqrt(found.size)
        sigma = noise[one.name].deviation
        assert size + slack >= sigma * np.sqrt(critical(found.size, 1 - ALARM))
        assert size - slack <= sigma * np.sqrt(critical(found.size, ALARM))
        # a person's record moves what has this noise by the sensitivity, and errors by a little
        assert privacy.sigma_for(NOISY.epsilon, NOISY.delta, 2.0**20) * NOISY.sensitivity / 2.0**20 <= sigma


def shown(model, rows, monkeypatch):
    """The plan's outputs, and all slots of what a receiver decrypts, by output and ciphertext."""
    session, seen = sim.Simulation(model, seat(model.architecture), None, sim.SMALL), {}

    def decrypt(self, output, given, *, noised=False):
        p = self.key.secret.parameters
        for k, c in enumerate(given[0]):
            basis = p.data(c.shape[1])
            words = p.ring.compose(p.ring.intt(encryption.decrypt(p, self.key.secret, c), basis), basis)
            seen[output.name, k] = p.ring.decode(wide_floats(words), output.scale)
        return np.zeros((len(given), *output.shape))

    monkeypatch.setattr(sim.OwnUnpacker, "decrypt", decrypt)
    session.infer(rows)
    return session.setting.plan, seen


@pytest.mark.parametrize("name", CASES)
def test_a_ciphertext_holds_nothing_but_copies_of_the_result_and_errors(name, monkeypatch):
    """Of all slots, real and imaginary, no more depends on the inputs than the sensitivity is counted for."""
    model = sim.random_model(CASES[name])
    inputs = [sim.random_rows(CASES[name], 1, seed) for seed in (1, 77)]
    (plan, first), (_, second) = (shown(model, x, monkeypatch) for x in inputs)
    clear = [reference.run(model, x) for x in inputs]
    for one in plan.outputs:
        moved = clear[0][one.name] - clear[1][one.name]
        packed = one.layout.pack(moved.reshape(-1))
        for k in range(one.ciphertexts):
            stray = np.abs(first[one.name, k] - second[one.name, k] - packed[k]).max()
            assert stray <= 2 * np.sqrt(2) * roles.declared_error(plan, one)
