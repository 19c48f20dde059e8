"""t of n between real processes over TLS: a key holder is killed, or stopped, in the middle of a run."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

import privinfer
from privinfer.backends.base import Phase
from privinfer.errors import TransportError
from privinfer.runtime import local
from tests.adversarial import ckks_stage as stage

pytestmark = pytest.mark.slow
pytest.importorskip("tenseal")
SPARE = ("alpha", "beta", "gamma")
DEADLINE = 4.0
ROWS = 24  # a body does not fit the buffers of a line: who is stopped blocks whoever sends to it
WORK = 20.0  # seconds that the rest of a run may take, on a machine with other things to do


@pytest.fixture
def workers(monkeypatch):
    """Processes by party."""
    found = {}

    class Worker(local._Worker):
        def __init__(self, name, *rest):
            super().__init__(name, *rest)
            found[name] = self.process

    monkeypatch.setattr(local, "_Worker", Worker)
    yield found
    for ledger in Path(tempfile.gettempdir()).glob("privinfer-ledger-*"):
        shutil.rmtree(ledger)  # of those that were killed


def run(workers, how, victims=("alpha",), threshold=3):
    """One run; the victims get a signal when the first of them has answered the first request."""
    hit = {}

    def watch(party, role, phase, event):
        if party in victims and not hit and phase is Phase.ONLINE and event.label == "request":
            hit.update(dict.fromkeys(victims, time.monotonic()))
            for victim in victims:
                os.kill(workers[victim].pid, how)

    started = time.monotonic()
    try:
        return privinfer.run_local(
            stage.model(),
            stage.rows(ROWS),
            backend="ckks",
            key_holders=(*SPARE, stage.OWNER, stage.RECEIVER),
            threshold=threshold,
            deadline=DEADLINE,
            progress=watch,
        ), time.monotonic() - min(hit.values())
    finally:
        assert set(hit) == set(victims), time.monotonic() - started
        assert all(process.poll() is not None for process in workers.values())


@pytest.mark.parametrize(
    ("how", "victims"), [(signal.SIGKILL, ("alpha", "gamma")), (signal.SIGSTOP, ("alpha",))]
)
def test_the_answer_comes(workers, how, victims):
    result, seconds = run(workers, how, victims)
    (output,) = result.outputs.values()
    bound = result.report["precision"]["declared_error_bound"]
    assert np.abs(output - stage.wanted(ROWS)).max() <= bound
    assert result.report["lost"] == [*victims]
    assert not {*victims} & result.report["parties"].keys()
    print(f"{seconds:.1f} s after the first loss")
    # a stopped party is given up after the deadline, a killed one at once; the rest is work
    assert seconds < (DEADLINE if how == signal.SIGSTOP else 0) + WORK


def test_too_many_lost(workers):
    with pytest.raises(TransportError) as caught:
        run(workers, signal.SIGKILL, SPARE)
    assert set(caught.value.culprit.split(" or ")) == set(SPARE)
