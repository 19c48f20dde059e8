"""What the messages of whole sessions show: nothing to a coalition that is a key share short.

Statistics have exact tails (tests/support/stats.py); each is shown to catch a variant that is broken on
purpose.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from privinfer.backends.base import Phase
from privinfer.backends.ckks import cipher, roles
from privinfer.backends.ckks.key_holder import KeyHolder
from privinfer.errors import IntegrityError
from privinfer.protocols.ckks import encryption, threshold
from privinfer.protocols.ckks.keys import KeyShare
from privinfer.protocols.sealing import Context
from tests.support import ckks, stats
from tests.support import simulate_ckks as sim
from tests.support.ckks_models import FUSION, SHALLOW
from tests.support.simulate_ckks import MODEL_OWNER, Deadlock, Message, Simulation, seat

WINDOW = 64  # bytes: eight residues of 50 bits do not come about by chance


def session(architecture=FUSION, **seated) -> tuple[Simulation, dict, sim.Outcome]:
    model, rows = sim.random_model(architecture), sim.random_rows(architecture, 1)
    played = Simulation(model, seat(architecture, **seated))
    return played, rows, played.infer(rows)


def is_body(m: Message) -> bool:
    """Whether it is what key holders are asked to answer."""
    asked = m.phase is Phase.ONLINE and roles.ASK <= m.step < roles.RESULT
    return asked and (m.step - roles.ASK) % roles.REQUEST == roles.BODY - roles.ASK


def holders(played: Simulation) -> list[KeyHolder]:
    return [p for p in played.players.values() if isinstance(p, KeyHolder)]


# -- nothing in the open -----------------------------------------------------------------------------


def forms(p, values) -> Iterator[bytes]:
    """How a polynomial over all or the first primes could stand in a message."""
    values = np.ascontiguousarray(values).reshape(-1, values.shape[-2], p.n)
    for one in values:
        basis = (*range(len(one) - 1), p.limbs - 1) if len(one) == p.limbs else tuple(range(len(one)))
        for form in (one, p.ring.intt(np.ascontiguousarray(one), basis)):
            for limb in form:
                yield limb.astype("<u8").tobytes()


def numbers(values) -> Iterator[bytes]:
    """How plain numbers could."""
    flat = np.asarray(values, dtype=np.float64).reshape(-1)
    yield flat.tobytes()
    yield flat.astype(np.float32).tobytes()
    yield np.round(flat * 2.0**50).astype(np.int64).tobytes()


def secrets_of(played: Simulation, rows) -> dict[str, list[bytes]]:
    """Everything that must not be seen, by what it is."""
    p, plan = played.setting.parameters, played.setting.plan
    found: dict[str, list[bytes]] = {"input": [], "weight": [], "key share": []}
    for one in plan.inputs:
        found["input"] += numbers(rows[one.name])
        for slots in one.layout.pack(rows[one.name].reshape(len(rows[one.name]), -1)).reshape(-1, p.slots):
            plain = p.ring.encode(slots.astype(np.complex128), one.scale, p.data(one.level))
            found["input"] += forms(p, plain)
    for own in played.model.parameters.values():
        for values in own.values():
            found["weight"] += numbers(values)
            found["weight"] += numbers(values.T)
    for holder in holders(played):
        assert holder._secret is not None
        ternary = holder._secret.expose()
        found["key share"] += [ternary.tobytes(), ternary.astype(np.int8).tobytes()]
        found["key share"] += forms(p, holder._secret.values)
        if holder._point is not None:
            found["key share"] += forms(p, holder._point.values)
        for share in holder._shares.values():
            found["key share"] += forms(p, share.values)
    return found


def seen(messages: list[Message], found: dict[str, list[bytes]]) -> set[str]:
    """Which secrets stand in a message: any whole window of one, at a multiple of its size.

    Windows of zeros are left out: small inputs have sparse polynomials, and so may a piece of a key share.
    """
    windows: dict[bytes, str] = {}
    for what, forms_of in found.items():
        for data in forms_of:
            size = min(WINDOW, len(data))
            if size >= 24:  # shorter ones would be found by chance
                cuts = (data[k : k + size] for k in range(0, len(data) - size + 1, size))
                windows.update((cut, what) for cut in cuts if any(cut))
    whole = {w for w in windows if len(w) == WINDOW}
    hits = set()
    for m in messages:
        for shift in range(0, WINDOW, 8):
            cut = {m.data[k : k + WINDOW] for k in range(shift, len(m.data) - WINDOW + 1, WINDOW)}
            hits |= {windows[w] for w in cut & whole}
        hits |= {windows[w] for w in windows.keys() - whole if w in m.data}
    return hits


@pytest.mark.parametrize("fewer", [0, 1])
def test_no_input_weight_or_key_share_is_sent(fewer):
    played, rows, outcome = session(threshold=4 - fewer)
    found = secrets_of(played, rows)
    assert seen(outcome.transcript, found) == set()
    for what, data in found.items():  # it would be seen
        leaked = Message(Phase.ONLINE, "a", "b", 0, bytes(40) + data[0] + bytes(40))
        assert seen([leaked], found) == {what}


def test_who_is_sent_what():
    """A key holder sees c1 alone, a receiver its result alone, an owner that holds no share the joint key."""
    _, _, outcome = session(holders=("owner0", "notary", "third"), threshold=2)
    kinds: dict[str, set[int]] = {}
    for m in outcome.transcript:
        step = m.step
        if step >= roles.ASK and step < roles.RESULT:
            step = roles.ASK + (step - roles.ASK) % roles.REQUEST
        kinds.setdefault(m.receiver, set()).add(min(step, roles.RESULT))
    keys = {roles.COMMIT, roles.OPENING}
    assert kinds["owner:owner0"] == {roles.JOINT_KEY, roles.READY}
    assert kinds["owner:owner1"] == keys | {roles.READY}
    assert kinds["receiver:patient"] == {roles.READY, roles.BATCH, roles.RESULT}
    for place in range(3):
        answers = {roles.BODY} if place < 2 else set()
        assert kinds[f"holder:{place}"] == keys | answers | {
            roles.SUM, roles.SUBSHARE, roles.RECEIVER_KEY, roles.READY, roles.ASK,
        }  # fmt: skip
    assert roles.SUBSHARE not in kinds["model_owner"]
    assert roles.RECEIVER_KEY not in kinds["model_owner"]
    p, plan = outcome.plan.parameters, outcome.plan
    levels = [sum(v.span.low * v.ciphertexts for v in round_) for round_ in plan.refreshes]
    levels.append(sum(o.level * o.ciphertexts for o in plan.outputs))
    bodies = [m for m in outcome.transcript if m.receiver == "holder:0" and is_body(m)]
    assert [len(m.data) for m in bodies] == [level * p.n * 8 for level in levels]  # c1 and no c0


# -- a share short -----------------------------------------------------------------------------------


def part_of_modulus(p, key: KeyShare, c) -> float:
    """Mean of |c0 + c1 s| over Q / 2, at two limbs: 1/2 for garbage, near 0 for a message."""
    opened = encryption.decrypt(p, key, np.ascontiguousarray(c[:, :2]))
    values = ckks.integers(p.ring.compose(p.ring.intt(opened, p.data(2)), p.data(2)))
    half = p.modulus(2) // 2
    return float(sum(Fraction(abs(v), half) for v in values) / len(values))


def ciphertexts(played: Simulation, outcome: sim.Outcome) -> Iterator[tuple[str, np.ndarray]]:
    """Whole ciphertexts that were sent: inputs under the joint key, results unsealed."""
    p, plan = outcome.plan.parameters, outcome.plan
    for m in outcome.transcript:
        if m.phase is Phase.ONLINE and (m.step >= roles.RESULT or roles.INPUT <= m.step < roles.ASK):
            what = "result" if m.step >= roles.RESULT else "input"
            one = (
                plan.outputs[m.step - roles.RESULT] if what == "result" else plan.inputs[m.step - roles.INPUT]
            )
            data = m.data if what == "input" else unsealed(played, m)
            yield what, np.frombuffer(data, "<u8").astype(np.uint64).reshape(-1, 2, one.level, p.n)[0]


def unsealed(played: Simulation, m: Message) -> bytes:
    """A result as its receiver sees it, under the seal of the run."""
    receiver: Any = played.players[m.receiver]
    context = Context(played.setting.session, receiver.scope, m.step, roles.MODEL_OWNER)
    return played.privates[m.receiver].keys.open(m.data, context, "nobody")


def garbage(p, key, c, tests) -> bool:
    return abs(part_of_modulus(p, key, c) - 0.5) < stats.hoeffding(1, p.n, stats.ALARM / tests)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_all_shares_but_one_open_nothing(count):
    names = ("alpha", "beta", "gamma", "delta", "epsilon")[:count]
    played, _, outcome = session(SHALLOW, holders=names)
    p, shares = played.setting.parameters, [h._secret for h in holders(played)]
    joint = ckks.total_key(p, shares)
    sent = list(ciphertexts(played, outcome))
    assert {what for what, _ in sent} == {"input", "result"}
    for what, c in sent:
        assert (part_of_modulus(p, joint, c) < 2.0**-40) == (what == "input")  # the oracle works
        for k in range(count):
            coalition = ckks.total_key(p, shares[:k] + shares[k + 1 :])
            assert garbage(p, coalition, c, count * len(sent))
        assert garbage(p, joint, c, 1) == (what == "result")  # under the receiver's key, not theirs


def test_fewer_than_the_threshold_open_nothing():
    names = ("alpha", "beta", "gamma", "delta", "epsilon")
    played, _, outcome = session(SHALLOW, holders=names, threshold=3)
    p, setting = played.setting.parameters, played.setting
    access = threshold.Access(names, 3)
    points = {h.name: h._point for h in holders(played)}
    c = next(c for what, c in ciphertexts(played, outcome) if what == "input")
    right = ckks.total_key(p, [threshold.finish(access, points[n], names[2:]) for n in names[2:]])
    assert part_of_modulus(p, right, c) < 2.0**-40
    smaller = threshold.Access(names, 2)
    guess = ckks.total_key(p, [threshold.finish(smaller, points[n], names[:2]) for n in names[:2]])
    assert garbage(p, guess, c, 1)
    assert setting.threshold == 3


# -- a fresh zero before anything leaves ---------------------------------------------------------------


def twice(played: Simulation, rows) -> tuple[list[Message], list[Message]]:
    """What left the model owner in two inferences over the very same input ciphertexts."""
    kept: dict[int, bytes] = {}

    def again(m: Message) -> bytes:
        if m.phase is Phase.ONLINE and m.receiver == "model_owner" and roles.INPUT <= m.step < roles.ASK:
            return kept.setdefault(m.step, m.data)
        return m.data

    played.post._tamper = again
    found = []
    for number in range(2):
        before = len(played.post.transcript)
        played.infer(rows, number)
        sent = played.post.transcript[before:]
        found.append(
            [m for m in sent if m.sender == "model_owner" and m.phase is Phase.ONLINE and len(m.data) > 1000]
        )
    return found[0], found[1]


def test_nothing_leaves_twice_alike():
    model, rows = sim.random_model(SHALLOW), sim.random_rows(SHALLOW, 1)
    played = Simulation(model, seat(SHALLOW))
    one, other = twice(played, rows)
    assert [m.key for m in one] == [m.key for m in other]
    p = played.setting.parameters
    for a, b in zip(one, other, strict=True):
        x, y = (np.frombuffer(m.data, "<u8") for m in (a, b))
        # equal residues by chance: one in 2^50 of them, so not one among some ten thousand
        assert not np.any(x == y)
    assert len(one) == 2 * len(played.setting.holders) + 1
    assert p.insecure


def test_without_a_fresh_zero_the_first_request_is_the_same_and_refused(monkeypatch):
    """What the test above rests on: all else that the model owner does is a function of what it was sent."""
    monkeypatch.setattr(cipher.encryption, "rerandomise", lambda p, public, c, smudging=None: c)
    model, rows = sim.random_model(SHALLOW), sim.random_rows(SHALLOW, 1)
    with pytest.raises(IntegrityError, match="was released before") as caught:
        twice(Simulation(model, seat(SHALLOW)), rows)
    assert caught.value.culprit == MODEL_OWNER


def test_a_retry_is_another_ciphertext():
    model, rows = sim.random_model(SHALLOW), sim.random_rows(SHALLOW, 1)
    played = Simulation(model, seat(SHALLOW, holders=("alpha", "beta", "gamma"), threshold=2))

    def lost(m: Message) -> bytes | None:
        if m.sender == "holder:0" and m.phase is Phase.ONLINE:
            played.lose("alpha")
            return None
        return m.data

    played.post._tamper = lost
    with pytest.raises(Deadlock, match="holder:0"):  # all others are done by then
        played.infer(rows)
    sent = [m for m in played.post.transcript if is_body(m) and m.receiver == "holder:1"]
    bodies = [np.frombuffer(m.data, "<u8") for m in sent]
    assert len(bodies) == 3  # the refresh, again, and the opening
    assert bodies[0].size == bodies[1].size
    assert not np.any(bodies[0] == bodies[1])


def test_a_share_is_in_the_ledger_before_it_leaves():
    """Where the ledger refuses, nothing is sent."""
    model, rows = sim.random_model(SHALLOW), sim.random_rows(SHALLOW, 1)
    played = Simulation(model, seat(SHALLOW))
    written = []

    def refuse(entries):
        written.extend(entries)
        raise IntegrityError("the disk is full")

    holders(played)[0].releases._record = refuse
    with pytest.raises(IntegrityError, match="the disk is full"):
        played.infer(rows)
    assert len(written) == 1
    said = [m for m in played.post.transcript if m.sender == "holder:0" and m.phase is Phase.ONLINE]
    assert said == []
