"""Serving parties as processes: several patients at once, a flood, and SIGTERM in the middle."""

import json
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import load
from privinfer.graph import reference
from privinfer.runtime.knock import ask
from tests.adversarial import stage
from tests.multiparty.troupe import CLI
from tests.support.town import lay_out

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]
PATIENTS = ("alice", "bob", "carol", "dave")


def test_four_patients_twelve_sessions(tmp_path):
    """All answered and right, more patients than places, all servers there to the end."""
    town, rows = lay_out(tmp_path, PATIENTS, sessions=2, deadline=20.0, queue_seconds=60.0)
    found = load.drive(town, stage.model(), rows, 12, wait=100)
    assert found["failures"] == {}
    assert found["answered"] == 12
    assert found["ended_early"] == {}
    for name in load.SERVERS:
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        assert [line["code"] for line in lines if line["event"] == "ended"] == ["answered"] * 12
        assert lines[-1]["event"] == "stopped"


def test_a_thousand_half_open_connections_and_the_command_line(tmp_path):
    """They are dropped, a patient is answered meanwhile, and few descriptors are held."""
    town, rows = lay_out(tmp_path, deadline=20.0)
    held = []
    with load.servers(town) as running:
        helper = running["helper"]
        try:
            for _ in range(1000):
                held.append(socket.create_connection(("127.0.0.1", town.ports["helper"]), timeout=30))
            more = ["--output", tmp_path / "answer", "--wait", "30"]
            done = subprocess.run(
                [*CLI, "ask", "--template", town.template, "--identity", tmp_path / "alice.key", *more],
                capture_output=True,
                text=True,
                timeout=100,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            assert len(list((Path(f"/proc/{helper.pid}/fd")).iterdir())) < 400
        finally:
            for sock in held:
                sock.close()
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        assert [process.wait(30) for process in running.values()] == [0] * len(running)
    clear = reference.run(stage.model(), {k: v[None] for k, v in rows["alice"].items()})["risk"]
    off = np.abs(np.load(tmp_path / "answer" / "risk.npy") - clear).max()
    assert off <= stage.model().architecture.precision.error_bound


def test_sessions_that_run_are_finished(tmp_path):
    """SIGTERM while one runs: it is answered, and every server ends with 0."""
    town, _ = lay_out(tmp_path, deadline=20.0, stop_seconds=30.0)
    answers = []
    with load.servers(town) as running:
        asking = threading.Thread(
            target=lambda: answers.append(ask(town.template, tmp_path / "alice.key").outputs)
        )
        asking.start()
        until = time.monotonic() + 60
        logs = {name: tmp_path / name / "log.jsonl" for name in running}
        while not all('"begun"' in log.read_text() for log in logs.values()):
            assert time.monotonic() < until
            time.sleep(0.002)
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        asking.join(60)
        assert [process.wait(30) for process in running.values()] == [0] * len(running)
    assert len(answers) == 1
