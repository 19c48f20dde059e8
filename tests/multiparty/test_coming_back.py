"""kill -9 of a role, and the party started anew: before the online phase all begin again, after it none."""

import os
import time

import numpy as np
import pytest

from privinfer.errors import TransportError
from privinfer.graph import reference
from tests.adversarial import stage
from tests.multiparty.troupe import Troupe

pytestmark = pytest.mark.slow
MODEL = stage.model()


def play(folder, victim, moment, connect=20.0, again=3):
    """Kill `victim` at `moment` and start it again, with so many attempts; how all ended."""
    troupe = Troupe(folder, deadline=5.0, connect_timeout=connect, attempts=3)
    inputs, ended = [stage.rows()], {}
    try:
        for name in stage.NAMES:
            troupe.start(name, inputs, (moment, "SIGKILL") if name == victim else None)
        first = troupe.running[victim]
        first.communicate(timeout=40)
        assert first.returncode == -9
        killed = time.time()
        troupe.attempts = again
        troupe.start(victim, inputs)
        for name, process in troupe.running.items():
            out, err = process.communicate(timeout=60)
            ended[name] = troupe._parse(process, out, err)
            ended[name]["seconds"] = ended[name]["ended"] - killed
    finally:
        troupe.end()
    return ended


@pytest.mark.parametrize(("victim", "moment"), [("hospital", "setup"), ("helper", "offline")])
def test_before_the_online_phase(tmp_path, victim, moment):
    before = os.listdir("/dev/shm")
    ended = play(tmp_path, victim, moment)
    assert {n: (one["error"], one["code"]) for n, one in ended.items()} == dict.fromkeys(ended, (None, 0))
    wanted = reference.run(MODEL, stage.flat(stage.rows()))["risk"]
    got = np.array(ended["patient"]["outputs"][0]["risk"])
    assert np.abs(got - wanted).max() <= MODEL.architecture.precision.error_bound
    for name, one in ended.items():
        assert set(one["lost"]) <= {victim}, (name, one["lost"])
    assert ended["patient"]["lost"]
    assert set(os.listdir("/dev/shm")) <= set(before)


def test_after_it(tmp_path):
    """Nobody who had gone online comes again; the one that was killed waits in vain, and says for whom."""
    victim = "startup"
    ended = play(tmp_path, victim, "online", connect=8.0, again=1)
    for name, one in ended.items():
        assert one["error"][0] == "TransportError", (name, one)
        assert one["code"] == TransportError.exit_code
        assert one["stderr"] == ""
        if name != victim:
            assert one["error"][1] == victim, (name, one["error"])
        if name not in (victim, stage.H):
            assert one["seconds"] < 5.0, (name, one["seconds"])  # at once, not after another join
    assert ended["patient"]["outputs"] == []
