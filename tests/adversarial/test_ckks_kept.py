"""Joint keys kept between joins: right answers without a setup, and no inference number comes twice."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from privinfer.backends.ckks.kept import Kept, pack
from privinfer.backends.ckks.plan import make_plan
from privinfer.errors import IntegrityError
from privinfer.runtime.store import Store
from tests.adversarial import stage
from tests.support import ckks_session as small

pytest.importorskip("tenseal")
ROOT = Path(__file__).resolve().parents[2]
WHOLE = small.manifest()
FEW = small.manifest(threshold=3)


def run(folder: Path, base, seed: int, **changes):
    inputs = small.rows(seed=seed)
    outcomes = small.good(small.play(base, inputs=inputs, stores=small.stores(folder, base), **changes))
    assert np.abs(outcomes["patient"].outputs["risk"] - small.wanted(inputs)).max() < small.TOLERANCE
    return outcomes


def how(outcomes) -> set[str]:
    return {o.report["dealt"] for o in outcomes.values()}


def setup_bytes(outcomes) -> int:
    return max(sum(o.report["bytes"]["sent"]["setup"].values()) for o in outcomes.values())


def offers(folder: Path, base) -> dict[str, int | None]:
    """The next number at each party."""
    found = {}
    for name in base.names:
        with Store(folder / name, base.digest(), name) as store:
            offer = store.offer()
            found[name] = None if offer is None else offer.number
    return found


def steps(folder: Path, party: str) -> list[str]:
    with sqlite3.connect(folder / party / "ledger" / "ledger.sqlite") as db:
        return [step for (step,) in db.execute("SELECT step FROM release ORDER BY step")]


@pytest.mark.parametrize("base", [WHOLE, FEW], ids=["all", "three of four"])
def test_a_second_join_starts_online(tmp_path, base):
    """Keys are made once; then joins of a few hundred bytes, until the numbers are used up."""
    small.deal(tmp_path, base, 2)
    for number in range(2):
        assert set(offers(tmp_path, base).values()) == {number}
        outcomes = run(tmp_path, base, seed=number)
        assert how(outcomes) == {"ahead"}
        # greeting, nonces, architecture and offer to each other; keys would be megabytes
        assert setup_bytes(outcomes) < 20_000
        assert {o.report["inference"] for o in outcomes.values()} == {0}
    assert set(offers(tmp_path, base).values()) == {None}
    assert steps(tmp_path, "hospital") == [f"{k}/0/0/0" for k in range(2)]
    if base is WHOLE:
        outcomes = run(tmp_path, base, seed=9)
        assert how(outcomes) == {"live"}
        assert setup_bytes(outcomes) > 1_000_000
    for file in tmp_path.glob("*/*.bin"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


KILLED = """
import os, signal, sys
from pathlib import Path
from privinfer.session import Identity, Manifest
from tests.adversarial import stage
from tests.support import ckks_session as small

folder = Path(sys.argv[1])
base = Manifest.load(folder / "session.toml")

def hook(source, destination, frame):
    if (frame.kind, frame.phase, source, destination) == (
        stage.Kind.DATA, stage.Phase.ONLINE, "patient", "startup"
    ):
        os.kill(os.getpid(), signal.SIGKILL)
    return frame

small.play(
    base,
    hook=hook,
    inputs=small.rows(),
    stores=small.stores(folder, base),
    identities={name: Identity.load(folder / f"{name}.key") for name in base.names},
)
"""


def test_no_number_comes_again_after_kill_9(tmp_path):
    """All parties die with a share on its way: it is in the ledger, and its number is gone."""
    small.deal(tmp_path, WHOLE, 2)
    for name in small.NAMES:
        stage.identity(name).save(tmp_path / f"{name}.key")
    WHOLE.save(tmp_path / "session.toml")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert set(offers(tmp_path, WHOLE).values()) == {1}
    assert steps(tmp_path, "patient") == ["0/0/0/0"]
    run(tmp_path, WHOLE, seed=3)
    assert set(offers(tmp_path, WHOLE).values()) == {None}
    assert steps(tmp_path, "patient") == ["0/0/0/0", "1/0/0/0"]
