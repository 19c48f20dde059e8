"""A small session under encryption on one stage: parties as threads over memory."""

from __future__ import annotations

import functools

import numpy as np

from privinfer.backends.base import Phase
from privinfer.backends.ckks import Ckks, roles
from privinfer.graph import reference
from privinfer.transport import Kind
from tests.adversarial import stage
from tests.support import simulate_ckks as sim
from tests.support.ckks_models import SHALLOW

OWNER, MODEL_OWNER, RECEIVER = "hospital", "startup", "patient"
SPARE = ("alpha", "beta", "gamma")
NAMES = (OWNER, MODEL_OWNER, RECEIVER, *SPARE)
HOLDERS = (*SPARE, OWNER, RECEIVER)
STEPS = {
    roles.COMMIT: "commitment",
    roles.OPENING: "opening",
    roles.JOINT_KEY: "joint key",
    roles.FIRST: "relinearisation 1",
    roles.SUM: "relinearisation sum",
    roles.SECOND: "relinearisation 2",
    roles.SUBSHARE: "sub-share",
    roles.RECEIVER_KEY: "receiver's key",
    roles.READY: "ready",
    roles.BATCH: "batch",
}


@functools.cache
def model():
    return sim.random_model(SHALLOW)


def rows(batch=1, seed=1):
    return {OWNER: sim.random_rows(SHALLOW, batch, seed)}


def wanted(batch=1, seed=1):
    return reference.run(model(), rows(batch, seed)[OWNER])["y"]


def manifest(threshold=3, holders=HOLDERS, deadline=5.0, **changes):
    names = (OWNER, MODEL_OWNER, RECEIVER, *(h for h in holders if h not in (OWNER, MODEL_OWNER, RECEIVER)))
    parties = tuple(
        stage.Entry(n, "127.0.0.1", 1 + k, stage.identity(n).certificate_pem) for k, n in enumerate(names)
    )
    fields = {
        "backend": "ckks",
        "model": model().architecture.digest(),
        "parties": parties,
        "model_owner": MODEL_OWNER,
        "evaluators": (),
        "helper": None,
        "inputs": {"x": OWNER},
        "receivers": {"y": RECEIVER},
        "key_holders": tuple(holders),
        "threshold": threshold,
    }
    return stage.manifest(deadline, **(fields | changes))


def play(base=None, **given):
    """A :class:`stage.Play` of this session; run it within `small_ring`."""
    base = base or manifest()
    given = {"inputs": rows(), "models": {MODEL_OWNER: model()}} | given
    for name in base.names:
        given["models"].setdefault(name, model() if name == base.model_owner else None)
    return stage.Play(base=base, only=base.names, deadline=base.deadline, **given)


def _numbered(step, phase):
    if step >= roles.RESULT:
        return "result", step - roles.RESULT
    if step >= roles.ASK:
        count, kind = divmod(step - roles.ASK, roles.REQUEST)
        return ("ask", "body", "share")[kind], count
    return ("galois", step - roles.GALOIS) if phase == Phase.SETUP else ("input", step - roles.INPUT)


def kind_of(frame, base):
    """(phase, sender role, receiver role, step, count) of a frame; count of the request, element or input."""
    if frame.kind is not Kind.DATA:
        return ("control", frame.kind.name, "", "", frame.step)
    pairs = _pairs_of(base)
    sender, receiver = pairs[frame.channel]
    step = frame.step & stage.STEP
    if step in STEPS:
        named, count = STEPS[step], 0
    else:
        named, count = _numbered(step, frame.phase)
    return (Phase(frame.phase).name.lower(), sender, receiver, named, count)


_CACHE: dict[str, list] = {}


def _pairs_of(base):
    if base.raw not in _CACHE:
        cast = list(Ckks().cast(base))
        _CACHE[base.raw] = [(a, b) for a in cast for b in cast]
    return _CACHE[base.raw]


def right(outcome, batch=1, seed=1):
    """The receiver's answer is the model's, within the promised bound."""
    plan = roles.planned(SHALLOW, 5, 3)
    error = np.abs(outcome.outputs["y"] - wanted(batch, seed)).max()
    assert error <= roles.declared_error(plan, plan.outputs[0])
