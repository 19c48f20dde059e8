"""Joint keys kept between joins: right answers without a setup, and no inference number comes twice."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import cbor2
import numpy as np
import pytest

from privinfer.backends.ckks.kept import Kept, pack, ternary
from privinfer.backends.ckks.plan import make_plan
from privinfer.cli import main as cli
from privinfer.errors import ConfigError, IntegrityError
from privinfer.protocols.ckks.keys import OwnKey
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


def test_a_second_join_starts_online(tmp_path):
    """Keys are made once; then joins of some kilobytes, until the numbers are used up."""
    base = FEW
    small.deal(tmp_path, base, 2)
    for number in range(2):
        assert set(offers(tmp_path, base).values()) == {number}
        outcomes = run(tmp_path, base, seed=number)
        assert {o.report["dealt"] for o in outcomes.values()} == {"ahead"}
        # greeting, nonces, architecture and offer to each other; keys would be megabytes
        sent = [sum(o.report["bytes"]["sent"]["setup"].values()) for o in outcomes.values()]
        assert max(sent) < 20_000
    assert set(offers(tmp_path, base).values()) == {None}
    assert steps(tmp_path, "hospital") == ["0/0/0/0", "1/0/0/0"]
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
    assert set(offers(tmp_path, FEW).values()) == {None}  # another session finds nothing of this one
    with pytest.raises(ConfigError, match="belongs to hospital"):
        Store(tmp_path / "hospital", WHOLE.digest(), "laboratory")
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


def test_keys_of_other_plans_and_parties_are_refused():
    plan = make_plan(small.architecture(), 4, 4)
    key = OwnKey.fresh(plan.parameters)
    parts = {"key": ternary(key.secret), "key public": key.public.to_bytes()}
    found = Kept(plan, pack(plan, parts)).own("key")
    assert np.array_equal(found.secret.values, key.secret.values)
    assert found.public.digest() == key.public.digest()
    fewer = make_plan(small.architecture(), 4, 3)
    large = key.public.data.copy()
    large[0, 0, 0] = plan.parameters.primes[0]
    for data in (
        pack(fewer, parts),
        pack(plan, {}),
        pack(plan, {**parts, "key": b"\0" * 8}),
        pack(plan, {**parts, "key public": large.tobytes()}),
        pack(plan, {**parts, "key public": b""}),
        b"",
        b"\xff",
        cbor2.dumps([1]),
    ):
        with pytest.raises(IntegrityError, match="keys of another version"):
            Kept(plan, data).own("key")


def test_every_party_keeps_something(tmp_path, monkeypatch, capsys):
    FEW.save(tmp_path / "session.toml")
    monkeypatch.chdir(tmp_path)
    for name in ("patient", "dna_company"):
        monkeypatch.setattr(sys, "argv", ["privinfer", "deal", name, "--count", "1"])
        with pytest.raises(SystemExit):
            cli.main()
        said = capsys.readouterr().err
        assert said.startswith(f"privinfer: error: {name} keeps part of what is dealt\nprivinfer: hint: ")
