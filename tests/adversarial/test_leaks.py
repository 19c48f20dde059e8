"""What a party says, writes, logs or raises holds no value of anybody: not as text, not as bytes."""

import gc
import io
import json
import logging
import pickle
import re
import traceback
from contextlib import redirect_stderr, redirect_stdout

import numpy as np
import pytest

from privinfer.backends.mpc import roles
from privinfer.graph import fixedpoint as fp
from privinfer.protocols import randomness
from privinfer.protocols.mpc import inputs
from privinfer.transport import Kind
from tests.adversarial import stage

VALUES = {
    "xray": np.array([[1.23457891, 2.34578912, 3.45789123, -1.5789123]]),
    "dna": np.array([[-2.71828183, 3.14159265, 1.41421356, 1.73205081, -2.2360679]]),
    "blood": np.array([[1.61803399, -0.57721566, 0.91596559]]),
}


def recognisable():
    return {owner: {name: VALUES[name]} for name, owner in stage.INPUTS.items()}


class Spy:
    """Everything secret that a run makes: seeds, masks, masked values, results, weights."""

    def __init__(self, monkeypatch):
        self.secrets = []
        fresh = randomness.Seed.fresh.__func__

        def spied(cls, *bound):
            seed = fresh(cls, *bound)
            self.secrets.append(seed.expose())
            return seed

        monkeypatch.setattr(randomness.Seed, "fresh", classmethod(spied))
        kept = inputs.mask_input

        def mask(*arguments):
            masked = kept(*arguments)
            self.secrets.append(masked.masked)
            return masked

        monkeypatch.setattr(inputs, "mask_input", mask)
        for values in VALUES.values():
            self.secrets += [values.tobytes(), fp.encode(values, 16).tobytes()]
        for parameters in stage.model().parameters.values():
            self.secrets += [array.tobytes() for array in parameters.values()]

    def texts(self):
        for values in VALUES.values():
            for value in values.ravel():
                yield str(abs(value))[:7]
                yield str(int(fp.encode(np.array([value]), 16)[0]))

    def found(self, said: bytes):
        found = [secret[:8] for secret in self.secrets if secret[:8] in said]
        found += [s[:8].hex() for s in self.secrets if s[:8].hex().encode() in said]
        text = said.decode("latin-1")
        return found + [t for t in self.texts() if re.search(rf"(?<![\d.]){re.escape(t)}", text)]


def said_by(play):
    """Reports, errors with their traces as a logger would print them, reprs of everything at hand."""
    outcomes = play.run()
    parts = [repr(outcomes["helper"])]
    for name, outcome in outcomes.items():
        parts.append(json.dumps(outcome.report, default=repr))
        error = outcome.error
        while error is not None:
            parts += [repr(error), str(error), str(getattr(error, "hint", "")), repr(vars(error))]
            parts += traceback.format_exception(error)
            error = error.__cause__ or error.__context__
        if name != "patient":
            assert outcome.outputs is None
    return outcomes, "\n".join(parts).encode()


def drop_round(source, destination, frame):
    return None if frame.kind is Kind.DATA and stage.kind_of(frame)[-1] == "round 1" else frame


def spoil_signature(source, destination, frame):
    if source == "dna_company" and frame.kind is Kind.DATA and stage.kind_of(frame)[-1] == "source":
        last = bytes([frame.payload[-1] ^ 1])  # setting it to 0 would change nothing now and then
        return stage.changed(frame, payload=bytes(frame.payload[:-1]) + last)
    return frame


def spoil_result(source, destination, frame):
    if source == stage.E1 and frame.kind is Kind.DATA and stage.kind_of(frame)[-1] == "reveal":
        return stage.changed(frame, payload=bytes([frame.payload[0] ^ 1]) + bytes(frame.payload[1:]))
    return frame


def refuse():
    return recognisable() | {"dna_company": {"dna": VALUES["dna"] * 1.5}}


CASES = {
    "success": (None, recognisable),
    "lost message": (drop_round, recognisable),
    "wrong signature": (spoil_signature, recognisable),
    "spoilt result": (spoil_result, recognisable),
    "refused input": (None, refuse),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_secret_is_said(case, monkeypatch):
    hook, given = CASES[case]
    spy, handler = Spy(monkeypatch), io.StringIO()
    logger, stream = logging.getLogger(), logging.StreamHandler(handler)
    level = logger.level
    logger.addHandler(stream)
    logger.setLevel(1)
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err):
            outcomes, said = said_by(stage.Play(deadline=1.0, hook=hook, inputs=given()))
    finally:
        logger.removeHandler(stream)
        logger.setLevel(level)
    assert (case == "success") == (not [o.error for o in outcomes.values() if o.error])
    said += out.getvalue().encode() + err.getvalue().encode() + handler.getvalue().encode()
    assert len(spy.secrets) > 15
    assert not spy.found(said)


def test_the_spy_would_see_it(monkeypatch):
    spy = Spy(monkeypatch)
    assert spy.found(b"... 1.23457891 ...")
    assert spy.found(VALUES["blood"].tobytes())
    assert spy.found(f"{fp.encode(VALUES['dna'], 16).tobytes().hex()}".encode())


def test_only_masked_values_and_seeds_travel(monkeypatch):
    """No frame holds an input or a weight, as real number or in fixed point; no seed reaches who must not."""
    spy, frames = Spy(monkeypatch), []

    def hook(source, destination, frame):
        frames.append((source, destination, frame))
        return frame

    stage.Play(hook=hook, inputs=recognisable()).run()
    plain = [values.tobytes() for values in VALUES.values()]
    plain += [fp.encode(values, 16).tobytes() for values in VALUES.values()]
    for parameters in stage.model().parameters.values():
        for array in parameters.values():
            plain += [array.tobytes(), fp.encode(array, 16).tobytes()]
    for source, destination, frame in frames:
        payload = bytes(frame.payload)
        assert not [p for p in plain if p[:8] in payload], (source, destination, frame)
        if destination not in (stage.E1, stage.E2, stage.H):
            assert not [s for s in spy.secrets if s in payload], (source, destination, frame)


def test_helper_never_gets_a_digest_of_a_masked_value():
    """It knows the masks and could search for the value."""
    from hashlib import sha256

    frames, masked = [], []

    def hook(source, destination, frame):
        if destination == stage.H:
            frames.append(bytes(frame.payload))
        if frame.kind is Kind.DATA and stage.kind_of(frame)[-1] == "source":
            masked.append(bytes(frame.payload[: -inputs.SIGNATURE_BYTES]))
        return frame

    stage.Play(hook=hook, inputs=recognisable()).run()
    assert masked
    for values in masked:
        for payload in frames:
            assert sha256(values).digest() not in payload
            assert values[:16] not in payload


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_what_is_secret_is_not_pickled(protocol):
    from privinfer.protocols.mpc.wires import MaskShare, Wide

    secret = [
        randomness.Seed.fresh(),
        randomness.Stream(randomness.Seed.fresh(), randomness.Scope(b"s" * 32, 0), "test"),
        MaskShare(np.zeros(3, np.uint64), 64),
        Wide(np.zeros(3, np.uint64), 64),
        stage.identity("helper"),
        stage.model(),
    ]
    for one in secret:
        with pytest.raises(TypeError):
            pickle.dumps(one, protocol)
        assert "0, 0" not in repr(one)


def test_inputs_do_not_outlive_a_run():
    """A party that is done holds no input any more."""
    left = []

    def progress(name, role, phase, event):
        return None

    class Kept(stage.Play):
        def _one(self, name):
            super()._one(name)
            gc.collect()

    play = Kept(inputs=recognisable(), progress=progress)

    def act(name, party):
        run = party.run

        def watched(given):
            result = run(given)
            left.append((name, dict(party._private.inputs)))
            return result

        party.run = watched

    play.act = act
    play.run()
    assert len(left) == 6
    assert not [name for name, kept in left if kept]
    assert roles.E1
