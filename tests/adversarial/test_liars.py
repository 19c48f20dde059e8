"""Parties that lie on purpose: to the evaluators, about others, about how far they are."""

import secrets
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from privinfer.backends.base import Phase
from privinfer.backends.mpc import roles
from privinfer.errors import (
    ConfigError,
    InputError,
    PrivinferError,
    ProtocolViolation,
    TransportError,
)
from privinfer.graph import reference
from privinfer.protocols.mpc import inputs, outputs
from privinfer.runtime.party import Party
from privinfer.runtime.post import _ALIVE, GREETINGS, NOBODY, STEP_BITS
from privinfer.transport import Frame, Kind, encode_abort
from privinfer.transport.delayed import Delayed
from tests.adversarial import stage

CLEAR = reference.run(stage.model(), stage.flat(stage.rows()))["risk"]
BOUND = stage.model().architecture.precision.error_bound
REPEAT = 30


def everybody(outcomes, kind, culprit, message=None, but=()):
    for name, outcome in outcomes.items():
        if name in but:
            continue
        assert type(outcome.error) is kind, (name, outcome.error)
        assert outcome.error.culprit == culprit, (name, outcome.error)
        if message:
            assert message in outcome.error.message, (name, outcome.error)


def right(outcomes):
    assert not {n: o.error for n, o in outcomes.items() if o.error}
    assert np.abs(outcomes["patient"].outputs["risk"] - CLEAR).max() <= BOUND


def control(kind, payload=b"", step=0):
    return Frame(kind, Phase.CONTROL, 0, step, payload)


def alive(waits_for=NOBODY, done=0, when=0):
    return control(Kind.ALIVE, _ALIVE.pack(waits_for, done, when))


# -- owners and evaluators -------------------------------------------------------------------------


class Equivocation:
    """dna_company sends `victim` another x^ than the other evaluator; properly signed, or not."""

    def __init__(self, victim, signed):
        self.victim, self.signed = victim, signed
        self.session = None

    def scope(self, party):
        self.session = party._table.session

    def __call__(self, source, destination, frame):
        if source == "dna_company" and frame.kind is Kind.ABORT:
            return None
        if (source, destination) != ("dna_company", self.victim) or stage.kind_of(frame)[-1] != "source":
            return frame
        step = next(s for s in stage._program().sources() if s.node == "dna")
        masked = bytearray(frame.payload[: -inputs.SIGNATURE_BYTES])
        masked[5] ^= 1
        signature = bytes(frame.payload[-inputs.SIGNATURE_BYTES :])
        if self.signed:
            from hashlib import sha256

            from privinfer.protocols.randomness import Scope

            said = inputs.statement(step, Scope(self.session, 0), sha256(masked).digest())
            signature = stage.identity("dna_company").sign(said)
        return stage.changed(frame, payload=bytes(masked) + signature)


@pytest.mark.parametrize("victim", [stage.E1, stage.E2])
def test_owner_that_tells_the_evaluators_different_values(victim):
    lie = Equivocation(victim, signed=True)
    openings = []

    def hook(source, destination, frame):
        if frame.kind is Kind.DATA and stage.kind_of(frame)[-1].startswith("round"):
            openings.append(frame)
        return lie(source, destination, frame)

    play = stage.Play(hook=hook, act=lambda name, party: lie.scope(party))
    everybody(play.run(), ProtocolViolation, "dna_company", "two different values", but=("dna_company",))
    assert not openings  # nothing depended on it yet


@pytest.mark.parametrize("victim", [stage.E1, stage.E2])
def test_owner_whose_signature_is_wrong(victim):
    play = stage.Play(hook=Equivocation(victim, signed=False))
    everybody(play.run(), ProtocolViolation, "dna_company", "signature does not verify", but=("dna_company",))


@pytest.mark.parametrize(("liar", "other"), [(stage.E2, stage.E1), (stage.E1, stage.E2)])
def test_evaluator_that_shows_what_the_owner_never_signed(liar, other):
    def hook(source, destination, frame):
        if source == liar and frame.kind is Kind.ABORT:
            return None
        if (source, destination) != (liar, other) or stage.kind_of(frame)[-1] != "compare":
            return frame
        return stage.changed(frame, payload=secrets.token_bytes(len(frame.payload)))

    everybody(stage.Play(hook=hook).run(), ProtocolViolation, liar, "never signed", but=(liar,))


def test_evaluators_with_two_results_are_both_named_by_everybody(monkeypatch):
    original = outputs.message

    def lie(evaluator, wire, mask):
        said = original(evaluator, wire, mask)
        return bytes([said[0] ^ 1]) + said[1:] if evaluator == 0 else said

    monkeypatch.setattr(outputs, "message", lie)
    everybody(stage.Play().run(), ProtocolViolation, "startup or hospital", "two different results")


@pytest.mark.parametrize("count", [(1 << 16) + 1, (1 << 32) - 1])
def test_owner_with_an_absurd_batch(count):
    def hook(source, destination, frame):
        if source == "dna_company" and frame.kind is Kind.DATA and stage.kind_of(frame)[-1] == "mask seeds":
            return stage.changed(frame, payload=count.to_bytes(4, "little") + bytes(frame.payload[4:]))
        return None if source == "dna_company" and frame.kind is Kind.ABORT else frame

    everybody(stage.Play(hook=hook).run(), InputError, "dna_company", "batch", but=("dna_company",))


# -- greetings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("comment", [b"\n", b"# paid by the hospital\n"])
def test_one_byte_of_the_session_file_differs(comment):
    base = stage.manifest()
    other = type(base).loads(base.raw + comment)
    for _ in range(REPEAT):  # who speaks first must not matter
        outcomes = stage.Play(manifests={"laboratory": other}).run()
        everybody(outcomes, ConfigError, "laboratory", "another session file", but=("laboratory",))
        assert type(outcomes["laboratory"].error) is ConfigError


def test_nonces_told_differently_are_pinned_on_who_told_them():
    other = []

    def hook(source, destination, frame):
        if (source, destination, frame.kind, frame.step) == ("patient", stage.E1, Kind.HELLO, 0):
            nonce = secrets.token_bytes(16)
            digest = stage.manifest().digest()
            said = b"privinfer/greeting/1:patient:" + digest + nonce
            other.append(nonce)
            data = bytes(frame.payload[:34]) + nonce + stage.identity("patient").sign(said)
            return stage.changed(frame, payload=data)
        return None if source == "patient" and frame.kind is Kind.ABORT else frame

    play = stage.Play(hook=hook, base=stage.manifest())
    everybody(play.run(), ProtocolViolation, "patient", "greeted two parties differently", but=("patient",))
    assert other


def test_model_owner_with_another_architecture():
    other = stage.from_onnx(stage.onnx_bytes(wide=2)).architecture.to_bytes()

    def hook(source, destination, frame):
        if frame.kind is Kind.HELLO and frame.step == 2:
            return stage.changed(frame, payload=other)
        return None if source == stage.E1 and frame.kind is Kind.ABORT else frame

    everybody(stage.Play(hook=hook).run(), ConfigError, stage.E1, "another architecture", but=(stage.E1,))


@pytest.mark.parametrize(
    "steps", [[0], [GREETINGS + 2], [GREETINGS + 3, GREETINGS + 4], range(GREETINGS + 2, 200)]
)
def test_flood_of_greetings(steps):
    def hook(source, destination, frame):
        if source == "laboratory" and frame.kind is Kind.HELLO and frame.step == 0:
            for step in steps:
                play.hub.endpoint(destination)._deliver(source, stage.changed(frame, step=step))
        return None if source == "laboratory" and frame.kind is Kind.ABORT else frame

    play = stage.Play(hook=hook)
    everybody(play.run(), ProtocolViolation, "laboratory", "greet", but=("laboratory",))


# -- saying what is not so -------------------------------------------------------------------------


def inject(*frames, source="laboratory", at="ready"):
    """Frames of `source` to everybody, right before E1 tells it that it is ready."""
    done = threading.Event()

    def hook(play, sender, destination, frame):
        due = frame.kind is Kind.DATA and stage.kind_of(frame)[-1] == at and sender == stage.E1
        if due and destination == source and not done.is_set():
            done.set()
            for peer in stage.NAMES:
                for extra in frames:
                    if peer != source:
                        play.hub.endpoint(peer)._deliver(source, extra)
        return None if sender == source and frame.kind is Kind.ABORT else frame

    play = stage.Play(deadline=1.0)
    play.hub.on_frame = lambda s, d, f: hook(play, s, d, f)
    return play


def test_abort_that_blames_an_innocent_party_says_who_says_so():
    told = control(Kind.ABORT, encode_abort("PI201", "was silent for 1 s", "patient"))
    outcomes = inject(told).run()
    everybody(outcomes, TransportError, "patient", "silent", but=("laboratory",))
    assert any("laboratory says" in (o.error.hint or "") for o in outcomes.values())


@pytest.mark.parametrize("culprit", ["nobody", "nobody or startup"])
def test_abort_that_blames_nobody_here(culprit):
    outcomes = inject(control(Kind.ABORT, encode_abort("PI202", "x", culprit))).run()
    everybody(outcomes, ProtocolViolation, "laboratory", "no party", but=("laboratory",))


@pytest.mark.parametrize("payload", [b"", b"\xa3", b"\xff" * 40, encode_abort("PI202", "x", None)[:-1]])
def test_abort_that_cannot_be_read(payload):
    outcomes = inject(control(Kind.ABORT, payload)).run()
    everybody(outcomes, ProtocolViolation, "laboratory", "abort", but=("laboratory",))


def test_abort_with_an_unknown_code_is_an_error_all_the_same():
    outcomes = inject(control(Kind.ABORT, encode_abort("PI999", "x", None))).run()
    everybody(outcomes, TransportError, "laboratory", "x", but=("laboratory",))


@pytest.mark.parametrize("step", [0, 1, 5, (1 << 32) - 1])
def test_done_early(step):
    outcomes = inject(control(Kind.DONE, step=step)).run()
    if step == 0:  # it is believed, and its x^, which does come, is taken; or it is missed
        assert all(o.error is None or o.error.culprit == "laboratory" for o in outcomes.values())
    else:
        everybody(outcomes, ProtocolViolation, "laboratory", "another run", but=("laboratory",))


def test_bye_early():
    everybody(inject(control(Kind.BYE)).run(), TransportError, "laboratory", "left", but=("laboratory",))


@pytest.mark.parametrize("payload", [b"", b"\0" * 17, b"\0" * 19])
def test_malformed_sign_of_life(payload):
    outcomes = inject(control(Kind.ALIVE, payload)).run()
    everybody(outcomes, ProtocolViolation, "laboratory", "sign of life", but=("laboratory",))


@pytest.mark.parametrize("place", [0, 2, 5, 6, 77, 0xFFFE])
@pytest.mark.parametrize("when", [0, (1 << 64) - 1])
def test_absurd_sign_of_life_harms_nobody(place, when):
    right(inject(alive(place, (1 << 64) - 1, when)).run())


def test_data_before_the_greeting_is_kept():
    """A fast party's first message may overtake a slow one's greeting."""

    def hook(source, destination, frame):
        if source == "patient" and frame.kind is Kind.HELLO and frame.step == 0:
            time.sleep(0.1)
        return frame

    right(stage.Play(hook=hook).run())


def test_channel_of_another_role():
    """hospital speaks as helper: the channel says who may."""
    channel = stage._pairs().index((roles.HELPER, roles.E1))
    forged = Frame(Kind.DATA, Phase.OFFLINE, channel, 7, b"x" * 32)
    outcomes = inject(forged, source="hospital").run()
    everybody(outcomes, ProtocolViolation, "hospital", "not its own", but=("hospital",))


# -- not doing what is due -------------------------------------------------------------------------


class Withhold:
    """`who` stops at its first message of a kind and from then on only ticks, as `tick` says."""

    def __init__(self, who, kind, tick=None):
        self.who, self.kind, self.tick = who, kind, tick
        self.muted = False
        self.count = 0

    def __call__(self, source, destination, frame):
        if source != self.who:
            return frame
        if frame.kind is Kind.DATA and stage.kind_of(frame)[-1] == self.kind:
            self.muted = True
        if not self.muted:
            return frame
        if frame.kind is not Kind.ALIVE:
            return None
        self.count += 1
        return frame if self.tick is None else self.tick(self.count)


TICKS = {
    "honest": None,
    "busy": lambda k: alive(),
    "claims progress": lambda k: alive(NOBODY, k),
    "claims changes": lambda k: alive(k % 6, k, k),
    "waits for itself": lambda k: alive(stage.NAMES.index("laboratory"), 5),
    "waits for nobody there": lambda k: alive(999, 5),
}


def test_party_that_only_lives():
    cells = [(tick, kind) for tick in TICKS for kind in ("mask seeds", "source")]

    def play(cell):
        tick, kind = cell
        outcomes = stage.Play(deadline=1.0, hook=Withhold("laboratory", kind, TICKS[tick])).run()
        everybody(outcomes, TransportError, "laboratory", but=("laboratory",))
        assert max(o.seconds for o in outcomes.values()) < 6.0

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(play, cells))


def test_silence_is_noticed_among_signs_of_life_that_never_pause():
    """Many peers tick, so the inbox is never empty for long: judging must not wait for a pause."""

    def hook(source, destination, frame):
        return None if source == "helper" and state["mute"] else frame

    state = {"mute": False}
    stop = threading.Event()

    def chatter():
        while not stop.wait(0.02):
            for a in stage.NAMES:
                for b in stage.NAMES:
                    if a != b and a != "helper":
                        play.hub.endpoint(b)._deliver(a, alive())

    def progress(name, role, phase, event):
        if phase is Phase.OFFLINE:
            state["mute"] = True

    play = stage.Play(deadline=1.0, hook=hook, progress=progress)
    thread = threading.Thread(target=chatter)
    thread.start()
    try:
        outcomes = play.run()
    finally:
        stop.set()
        thread.join()
    everybody(outcomes, TransportError, "helper", "silent", but=("helper",))
    assert max(o.seconds for o in outcomes.values()) < 6.0


class Slow(Delayed):
    """A party on a slow line."""


@pytest.mark.slow
def test_slow_progress_is_no_failure():
    """Total time well above the deadline, but something moves all the time."""
    slow = {"helper": 0.05, "hospital": 0.02}

    def progress(name, role, phase, event):
        if name in ("helper", "hospital"):
            time.sleep(0.3)

    play = stage.Play(
        deadline=1.5,
        progress=progress,
        wrap=lambda name, end: Slow(end, slow.get(name, 0.0)),
        inputs=stage.rows(),
    )
    started = time.monotonic()
    outcomes = play.run(limit=30)
    right(outcomes)
    assert time.monotonic() - started > 3 * 1.5


def test_absence_of_one_self_is_not_counted_against_others():
    """laboratory sleeps through its own deadline: it may be blamed, it must not blame."""

    def progress(name, role, phase, event):
        if name == "helper" and phase is Phase.OFFLINE and event.done == event.total:
            time.sleep(2.0)  # longer than the deadline of nobody, close to it

    play = stage.Play(deadline=3.0, progress=progress)
    right(play.run())


def test_watch_shifts_what_it_did_not_look_at():
    from privinfer.runtime.post import Watch

    hub = stage.MemoryHub(stage.NAMES)
    watch = Watch(hub.endpoint("patient"), stage.NAMES, 1.0)
    try:
        watch._looked -= 10
        for sign in watch.signs.values():
            sign.heard -= 9.9
        assert watch.looked() > 9
        watch.judge("startup", time.monotonic(), set())
    finally:
        watch.stop()
        hub.close()


# -- losing a party at a chosen frame --------------------------------------------------------------


def moments():
    """Who sends or gets which kind of message in an honest run."""
    seen = {}

    def hook(source, destination, frame):
        if frame.kind in (Kind.DATA, Kind.HELLO):
            seen.update({(name, stage.kind_of(frame)[-1]): None for name in (source, destination)})
        return frame

    stage.Play(hook=hook).run()
    return sorted(seen)


@pytest.mark.parametrize(("victim", "kind"), moments())
def test_party_killed_at_a_frame(victim, kind):
    """The end of a stream races with what others say about it: the name must not depend on it."""
    hit = threading.Event()

    def hook(source, destination, frame):
        named = stage.kind_of(frame)
        if (kind in (named[-1],)) and victim in (source, destination) and not hit.is_set():
            hit.set()
            play.hub.kill(victim)
        return frame

    play = stage.Play(deadline=1.0, hook=hook)
    outcomes = play.run()
    assert hit.is_set()
    everybody(outcomes, TransportError, victim, but=(victim,))


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["hospital", "helper"])
def test_kill_is_stable(victim):

    def run(turn):
        count = [0]

        def hook(source, destination, frame):
            count[0] += frame.kind is Kind.DATA
            if count[0] == 2 * turn + 1:
                play.hub.kill(victim)
            return frame

        play = stage.Play(deadline=1.0, hook=hook)
        return play.run()

    with ThreadPoolExecutor(3) as pool:
        ended = list(pool.map(run, range(REPEAT)))
    for turn, outcomes in enumerate(ended):
        for name, outcome in outcomes.items():
            if name != victim and outcome.error is not None:
                assert outcome.error.culprit == victim, (turn, name, outcome.error)
                assert type(outcome.error) is TransportError


# -- several runs in one join ----------------------------------------------------------------------


def test_two_runs():
    first, second = stage.rows(1, 1), stage.rows(3, 2)
    outcomes = stage.Play(runs=2, inputs=[first, second]).run()
    assert not [o.error for o in outcomes.values() if o.error]
    clear = reference.run(stage.model(), stage.flat(second))["risk"]
    assert np.abs(outcomes["patient"].outputs["risk"] - clear).max() <= BOUND
    assert outcomes["helper"].report["inference"] == 1


@pytest.mark.parametrize("name", ["laboratory", "helper", "patient", "startup", "hospital"])
def test_leaving_after_the_first_run(name):
    for _ in range(REPEAT // 5):
        play = stage.Play(runs=2, deadline=10.0)
        one = play._one

        def leave(who, one=one, play=play):
            if who != name:
                return one(who)
            play.runs, runs = 1, play.runs
            own = stage.Play(runs=1, only=(who,), base=play.base)
            play.runs = runs
            own.hub.close()
            own.hub = play.hub
            own._one(who)
            play.outcomes[who] = own.outcomes[who]
            return None

        play._one = leave
        outcomes = play.run()
        assert outcomes[name].error is None
        everybody(outcomes, TransportError, name, but=(name,))
        assert max(o.seconds for o in outcomes.values()) < 5.0  # at once, not after the deadline


def test_frame_of_the_first_run_in_the_second():
    kept = []

    def hook(source, destination, frame):
        ours = (source, destination, frame.kind) == ("dna_company", stage.E1, Kind.DATA)
        if ours and stage.kind_of(frame)[-1] == "source":
            if frame.step >> STEP_BITS:
                return kept[0]
            kept.append(frame)
        return None if source == "dna_company" and frame.kind is Kind.ABORT else frame

    outcomes = stage.Play(runs=2, hook=hook).run()
    everybody(outcomes, ProtocolViolation, "dna_company", "out of its turn", but=("dna_company",))


def test_a_failed_party_stays_failed():
    caught = []

    def act(name, party):
        if name == "laboratory":
            with pytest.raises(InputError):
                party.run({"blood": [99.0, 0.0, 0.0]})
            with pytest.raises(InputError) as error:
                party.run(stage.rows()["laboratory"])
            caught.append(error.value)
            raise error.value

    everybody(stage.Play(act=act).run(), InputError, "laboratory")
    assert caught


def test_error_of_ones_own_program_is_ones_own():
    def act(name, party):
        if name == "patient":
            raise ZeroDivisionError("of the patient's own")

    outcomes = stage.Play(act=act).run()
    assert type(outcomes["patient"].error) is ZeroDivisionError
    everybody(outcomes, TransportError, "patient", "error of its own", but=("patient",))


def test_closing_twice_and_from_within():
    def act(name, party):
        if name == "patient":
            party.close()
            party.close()
            raise PrivinferError("gone")

    outcomes = stage.Play(act=act, deadline=1.0).run()
    everybody(outcomes, TransportError, "patient", but=("patient",))


def test_struct_of_alive_is_what_the_tests_think():
    assert _ALIVE.size == struct.calcsize("<HQQ") == 18
    assert Party.__repr__
