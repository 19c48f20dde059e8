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


@pytest.fixture
def workers(monkeypatch):
    """Processes by party."""
    found = {}

    class Worker(local._Worker):
        def __init__(self, name, heard):
            super().__init__(name, heard)
            found[name] = self.process

    monkeypatch.setattr(local, "_Worker", Worker)
    yield found
    for ledger in Path(tempfile.gettempdir()).glob("privinfer-ledger-*"):
        shutil.rmtree(ledger)  # of those that were killed


def run(workers, how, victims=("alpha",), rows=1, threshold=3):
    """One run; the victims get a signal when they have answered the first request."""
    hit = {}

    def watch(party, role, phase, event):
        if party in victims and party not in hit and phase is Phase.ONLINE and event.label == "request":
            hit[party] = time.monotonic()
            os.kill(workers[party].pid, how)

    started = time.monotonic()
    try:
        return privinfer.run_local(
            stage.model(),
            stage.rows(rows),
            backend="ckks",
            key_holders=(*SPARE, stage.OWNER, stage.RECEIVER),
            threshold=threshold,
            deadline=DEADLINE,
            progress=watch,
        ), time.monotonic() - min(hit.values())
    finally:
        assert set(hit) == set(victims), time.monotonic() - started
        assert all(process.poll() is not None for process in workers.values())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("rows", [1, 48])
def test_one_lost_and_the_answer_comes(workers, how, rows):
    """A body of 48 rows does not fit the buffers of a line: who is stopped blocks whoever sends to it."""
    result, seconds = run(workers, how, rows=rows)
    (output,) = result.outputs.values()
    bound = result.report["precision"]["declared_error_bound"]
    assert np.abs(output - stage.wanted(rows)).max() <= bound
    assert result.report["lost"] == ["alpha"]
    assert "alpha" not in result.report["parties"]
    assert seconds < (2 if how == signal.SIGSTOP else 1) * DEADLINE + 3


def test_two_lost(workers):
    result, _ = run(workers, signal.SIGKILL, ("alpha", "gamma"))
    assert (
        np.abs(result.outputs["y"] - stage.wanted()).max()
        <= result.report["precision"]["declared_error_bound"]
    )
    assert result.report["lost"] == ["alpha", "gamma"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_too_many_lost(workers, how):
    with pytest.raises(TransportError) as caught:
        run(workers, how, SPARE)
    assert set(caught.value.culprit.split(" or ")) <= set(SPARE)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_all_are_needed_where_no_threshold_says_less(workers, how):
    with pytest.raises(TransportError) as caught:
        run(workers, how, threshold=5)
    assert caught.value.culprit == "alpha"
