"""Every message of a session under encryption, tampered with: it ends in time, the right party is named.

Holding parties to the protocol ends where it is semi-honest: whatever keeps its size and its range is taken
for what it claims to be. A flipped bit in a share that stays below its prime, in a ciphertext or in a key
gives a wrong answer (noise as large as the modulus) that nobody can tell from a right one; only commitments,
and what is compared with them, are noticed bit by bit. See "what is not claimed" in docs/protocols.md.
"""

from __future__ import annotations

import secrets
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from privinfer.backends.ckks.roles import Request
from privinfer.errors import InputError, IntegrityError, PrivinferError, ProtocolViolation, TransportError
from privinfer.transport import Kind
from tests.adversarial import ckks_stage as stage
from tests.adversarial.ckks_stage import MODEL_OWNER, OWNER, RECEIVER
from tests.adversarial.stage import changed
from tests.support.simulate_ckks import small_ring

DEADLINE = 1.0
SLACK = 1.5
SPARE = "alpha"
BASE = stage.manifest(threshold=2, holders=(SPARE, OWNER, RECEIVER), deadline=DEADLINE)
RESIDUES = {
    "opening", "relinearisation 1", "relinearisation sum", "relinearisation 2", "galois", "sub-share",
    "receiver's key", "input", "body", "share", "result",
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def ring():
    with small_ring():
        yield


class Tamper:
    """Alters the first frame of one kind; its sender says nothing about it afterwards."""

    def __init__(self, kind, how):
        self.kind, self.how = kind, how
        self.sender = self.play = self.mute = None
        self.lock = threading.Lock()

    def __call__(self, source, destination, frame):
        with self.lock:
            hit = self.sender is None and stage.kind_of(frame, self.play.base) == self.kind
            if hit:
                self.sender = source
        if hit:
            return self.how(self, source, destination, frame)
        if source == self.mute and frame.kind is not Kind.ALIVE:
            return None
        return None if source == self.sender and frame.kind is Kind.ABORT else frame


def payload(change):
    return lambda tamper, source, destination, frame: changed(frame, payload=change(bytes(frame.payload)))


def field(**change):
    return lambda tamper, source, destination, frame: changed(
        frame, **{k: f(getattr(frame, k)) for k, f in change.items()}
    )


def flip(data):
    return bytes([data[0] ^ 1]) + data[1:]


def withhold(tamper, source, destination, frame):
    """From now on the sender lives and says so, and does nothing else."""
    tamper.mute = source


def drop(tamper, source, destination, frame):
    return None


def replay(tamper, source, destination, frame):
    tamper.play.hub.endpoint(destination)._deliver(source, frame)
    return frame


WAYS = {
    "first coefficient": payload(lambda d: b"\xff" * 8 + d[8:]),
    "last coefficient": payload(lambda d: d[:-8] + b"\xff" * 8),
    "truncated": payload(lambda d: d[:-1]),
    "a limb less": payload(lambda d: d[: len(d) // 2]),
    "longer": payload(lambda d: d + b"\0"),
    "empty": payload(lambda d: b""),
    "wrong step": field(step=lambda s: s ^ 1),
    "wrong phase": field(phase=lambda p: (p + 1) % 3),
    "no such channel": field(channel=lambda c: 60000),
    "replay": replay,
    "drop": drop,
    "withhold": withhold,
}
EXACT = {"drop": None, "replay": None, "withhold": TransportError}  # all others: ProtocolViolation


def transcript():
    """A message of every kind in an honest run: the first of several, or what belongs to the opening."""
    seen = {}

    def hook(source, destination, frame):
        if frame.kind is Kind.DATA:
            kind = stage.kind_of(frame, one.base)
            seen.setdefault((kind[1].partition(":")[0], kind[2].partition(":")[0], kind[3]), set()).add(kind)
        return frame

    with small_ring():
        one = stage.play(BASE, hook=hook)
        outcomes = one.run()
    assert not [o.error for o in outcomes.values() if o.error]
    by_number = [sorted(kinds, key=lambda k: (k[4], k)) for kinds in seen.values()]
    return sorted({kinds[-1 if kinds[0][3] in ("body", "share") else 0] for kinds in by_number})


KINDS = transcript()


def play(kind, how, base=BASE):
    tamper = Tamper(kind, how)
    one = tamper.play = stage.play(base, hook=tamper)
    outcomes = one.run(limit=DEADLINE + SLACK + 5)
    assert tamper.sender is not None, "never sent"
    return tamper.sender, outcomes


def judge(kind, way, sender, outcomes):
    """What is wrong with how a cell ended; nothing, if all is well."""
    wrong = []
    honest = {n: o for n, o in outcomes.items() if n != sender}
    failed = {n: o.error for n, o in honest.items() if o.error is not None}
    exact = EXACT.get(way, ProtocolViolation)
    for name, error in failed.items():
        if not isinstance(error, PrivinferError):
            wrong.append(f"{name}: {error!r}")
        elif error.culprit != sender:
            wrong.append(f"{name} names {error.culprit}: {error.message}")
        elif exact is not None and type(error) is not exact:
            wrong.append(f"{name} says {error!r}")
    for name, outcome in honest.items():
        if outcome.seconds > DEADLINE + SLACK:
            wrong.append(f"{name} took {outcome.seconds:.1f} s")
    spared = sender == SPARE and kind[0] == "online" and way in ("withhold", "drop")
    if spared:
        if failed:
            wrong.append(f"{sorted(failed)} did not go on: {failed}")
        else:
            stage.right(outcomes[RECEIVER])
    elif way == "replay" and len(failed) == 1:  # noticed when all was over, or told too late for the others
        stage.right(outcomes[RECEIVER]) if outcomes[RECEIVER].outputs else None
    elif failed.keys() != honest.keys():
        wrong.append(f"only {sorted(failed)} noticed")
    return wrong


def cells(way):
    for kind in KINDS:
        if "coefficient" in way and kind[3] not in RESIDUES:
            continue
        yield kind


QUICK = ("last coefficient", "truncated", "wrong step", "replay")


@pytest.mark.parametrize("way", [w if w in QUICK else pytest.param(w, marks=pytest.mark.slow) for w in WAYS])
def test_tampered(way):
    kinds = list(cells(way))
    with ThreadPoolExecutor(6 if way in ("drop", "withhold") else 3) as pool:
        ended = list(pool.map(lambda kind: play(kind, WAYS[way]), kinds))
    bad = {k: w for k, end in zip(kinds, ended, strict=True) if (w := judge(k, way, *end))}
    # The deadline is promised on a machine of one's own, not beside eleven other plays: late ones play alone.
    for kind in [k for k, w in bad.items() if all(" took " in line for line in w)]:
        if not (w := judge(kind, way, *play(kind, WAYS[way]))):
            del bad[kind]
    assert not bad, "\n".join(f"{k}: {w}" for k, w in bad.items())


# -- what only its content gives away ----------------------------------------------------------------


def everybody(outcomes, kind, sender, words, but=()):
    """The same class and culprit at all parties but the liar."""
    for name, outcome in outcomes.items():
        if name not in (sender, *but):
            error = outcome.error
            assert type(error) is kind, (name, error)
            assert error.culprit == sender, (name, error)
            assert words in error.message, (name, error)


def find(*named):
    return next(k for k in KINDS if k[3] == named[0] and (len(named) == 1 or k[1].startswith(named[1])))


@pytest.mark.parametrize(
    ("named", "change"),
    [
        (("commitment",), flip),
        (("opening",), flip),  # of the nonce
        (("opening",), lambda d: d[:32] + flip(d[32:])),  # of b_i, still in range
        (("opening",), lambda d: secrets.token_bytes(32) + d[32:]),
    ],
)
def test_a_commitment_that_was_not_kept(named, change):
    sender, outcomes = play(find(*named), payload(change))
    everybody(outcomes, ProtocolViolation, sender, "not the one committed to")


def test_an_opening_that_is_another_holders():
    """Who copies another's commitment cannot open it: the name is in it."""
    copied = {}

    def hook(source, destination, frame):
        kind = stage.kind_of(frame, BASE)
        if kind[1] == "holder:1" and kind[3] in ("commitment", "opening"):
            copied[kind[3]] = frame.payload
        if kind[1] == "holder:0" and kind[3] in copied:
            return changed(frame, payload=copied[kind[3]])
        return None if source == SPARE and frame.kind is Kind.ABORT else frame

    # the copy is only made where the other one spoke first; where not, the honest frame does no harm
    outcomes = stage.play(BASE, hook=hook).run()
    honest = {n: o for n, o in outcomes.items() if n != SPARE}
    assert all(o.error is None or o.error.culprit == SPARE for o in honest.values()), honest


def asks(due, /, **change):
    """The request that is due, with some of its fields changed."""

    def how(tamper, source, destination, frame):
        asked = Request.parse(bytes(frame.payload))
        fields = {k: getattr(asked, k) for k in ("number", "attempt", "active", "batch")} | change
        return changed(frame, payload=Request(**fields).to_bytes())

    return ("online", "model_owner", "holder:0", "ask", due), how


REQUESTS = {
    "ahead of its turn": (asks(0, number=1), "not due"),
    "beyond the plan": (asks(1, number=2), "not due"),
    "the one before": (asks(1, number=0, attempt=1), "the same key holders again"),
    "the end too early": (asks(1, number=Request.DONE), "before the end of the plan"),
    "a second attempt at first": (asks(0, attempt=1), "not due"),
    "more rows than there are": (asks(1, batch=2), "other rows"),
    "more rows than any run has": (asks(0, batch=257), "other rows"),
    "no rows": (asks(1, batch=0), "other rows"),
    "fewer than an answer takes": (asks(0, active=0b001), "other key holders"),
    "nobody": (asks(0, active=0), "other key holders"),
    "more than an answer takes": (asks(0, active=0b111), "other key holders"),
    "somebody who is none": (asks(0, active=0b1001), "other key holders"),
    "somebody far away": (asks(0, active=1 | 1 << 63), "other key holders"),
    "one opening more": (asks(2, number=1, attempt=1, active=0b011, batch=1), "the same key holders again"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_that_the_plan_does_not_have(name):
    (kind, how), words = REQUESTS[name]
    sender, outcomes = play(kind, how)
    assert sender == MODEL_OWNER
    everybody(outcomes, ProtocolViolation, sender, words)


def test_a_request_for_more_rows_than_the_first_body_has():
    """The first request says how many; the ciphertexts have to be as many."""
    kind, how = asks(0, batch=2)
    sender, outcomes = play(kind, how)
    everybody(outcomes, ProtocolViolation, sender, "wrong size")


def test_a_second_share_of_one_ciphertext():
    """The opening's c1 is the refresh's: its first limb says so, at whatever level."""
    kept = {}

    def hook(source, destination, frame):
        kind = stage.kind_of(frame, BASE)
        if kind[2:4] == ("holder:0", "body"):
            if kind[4] and "body" in kept:
                return changed(frame, payload=kept["body"][: len(frame.payload)])
            kept["body"] = bytes(frame.payload)
        return None if source == MODEL_OWNER and frame.kind is Kind.ABORT else frame

    outcomes = stage.play(BASE, hook=hook).run()
    everybody(outcomes, IntegrityError, MODEL_OWNER, "was released before")


def test_one_ciphertext_twice_in_one_request():
    base = BASE

    def hook(source, destination, frame):
        kind = stage.kind_of(frame, base)
        if kind[2:4] == ("holder:0", "body"):
            half = bytes(frame.payload[: len(frame.payload) // 2])
            return changed(frame, payload=half + half)
        return None if source == MODEL_OWNER and frame.kind is Kind.ABORT else frame

    outcomes = stage.play(base, hook=hook, inputs=stage.rows(2)).run()
    everybody(outcomes, IntegrityError, MODEL_OWNER, "was released before")


@pytest.mark.parametrize(
    ("rows", "kind", "words"),
    [
        (2, ProtocolViolation, "wrong size"),
        (0, ProtocolViolation, "wrong size"),
        (257, InputError, "of a run"),
    ],
)
def test_an_owner_that_tells_of_other_rows(rows, kind, words):
    sender, outcomes = play(find("batch", "owner"), payload(lambda d: rows.to_bytes(4, "little")))
    assert sender == OWNER
    everybody(outcomes, kind, sender, words)


@pytest.mark.parametrize(("rows", "words"), [(2, "wrong size"), (300, "more rows")])
def test_a_model_owner_that_tells_the_receiver_of_other_rows(rows, words):
    sender, outcomes = play(find("batch", "model_owner"), payload(lambda d: rows.to_bytes(4, "little")))
    assert sender == MODEL_OWNER
    everybody(outcomes, ProtocolViolation, sender, words)


def test_a_flipped_bit_of_a_result_is_noticed():
    sender, outcomes = play(find("result"), payload(flip))
    everybody(outcomes, ProtocolViolation, sender, "does not open")


def test_a_flipped_bit_that_stays_in_range_is_not_noticed():
    """What is not claimed: the answer is garbage, and nobody can know."""
    _, outcomes = play(("online", "holder:0", "model_owner", "share", 1), payload(flip))
    assert not [o.error for o in outcomes.values() if o.error]
    with pytest.raises(AssertionError):
        stage.right(outcomes[RECEIVER])


@pytest.mark.parametrize("named", [("online", "holder:0", "model_owner", "share", 0), find("input")])
def test_a_flipped_bit_before_a_refresh_is_noticed_but_not_whose_it_is(named):
    """What comes out is larger than any mask; the innocent model owner, who sees it, is not blamed."""
    sender, outcomes = play(named, payload(flip))
    for name, outcome in outcomes.items():
        if name != sender:
            assert type(outcome.error) is ProtocolViolation, (name, outcome.error)
            assert outcome.error.culprit == f"{SPARE} or {OWNER}", (name, outcome.error)
