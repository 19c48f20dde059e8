"""A few sessions of chaos; `python -m tests.chaos --sessions 300` plays many."""

import asyncio

import pytest

from tests.chaos.__main__ import play
from tests.chaos.schedule import ATTEMPTS, Fault, plans


def test_a_schedule_can_be_had_again():
    assert plans(50, 3) == plans(50, 3)
    assert plans(50, 3) != plans(50, 4)
    faults = [f for plan in plans(300, 1) for f in plan.faults]
    assert {f.what for f in faults} == {"kill", "stop", "reset", "delay", "full"}
    assert {f.victim for f in faults} >= {"hospital", "helper", "patient"}
    assert all(isinstance(f, Fault) and f.at >= 0 for f in faults)
    assert ATTEMPTS > 1


@pytest.mark.slow
def test_a_few_sessions(tmp_path):
    found = asyncio.run(play(tmp_path, count=8, seed=5, seconds=60.0))
    assert not found["findings"]
    assert found["sessions"] >= 3
    assert found["audited"]["online"] > 0
