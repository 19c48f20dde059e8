"""`crypten` as a user calls it: every party a process over TLS, and what happens when one dies or blocks."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import privinfer
from privinfer.backends import crypten
from privinfer.backends.base import Phase, Progress, Role
from privinfer.backends.crypten import bounds, library, rank
from privinfer.errors import ConfigError, TransportError
from privinfer.graph import ir, reference
from privinfer.runtime.party import BACKENDS
from tests.support.strategies import random_model, rows

I, N, O = ir.Input, ir.Node, ir.Output  # noqa: E741
OWNERS = {"xray": "hospital", "dna": "dna_company", "blood": "laboratory"}
NAMED = ("crypten",)


def missing() -> str | None:
    """None, or why nothing runs here."""
    if "crypten" not in BACKENDS:
        return "the runtime does not know the backend yet"
    try:
        crypten.check_installed()
    except ConfigError as error:
        return f"{error.message}: {error.hint}"
    return None


WHY = missing()
pytestmark = [pytest.mark.slow, pytest.mark.skipif(WHY is not None, reason=str(WHY))]


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """Torch keeps threads and files of its own; they are no leak of a test's."""
    library.load()


def model() -> ir.Model:
    """Three sources: an image, genotypes, blood tests; one fusion layer."""
    a = ir.Architecture(
        (I("xray", (1, 12, 12), 0, 1), I("dna", (64,), 0, 2), I("blood", (6,), -1, 1)),
        (
            N("conv", ir.Conv2d(1, 4, (3, 3), (2, 2), (1, 1, 0, 0)), ("xray",)),
            N("conv relu", ir.Relu(), ("conv",)),
            N("pool", ir.AvgPool2d((2, 2), (2, 2)), ("conv relu",)),
            N("flat", ir.Reshape((36,)), ("pool",)),
            N("dense", ir.Linear(64, 8), ("dna",)),
            N("dense relu", ir.Relu(), ("dense",)),
            N("all", ir.Concat(1), ("flat", "dense relu", "blood")),
            N("out", ir.Linear(50, 2), ("all",)),
        ),
        (O("risk", "out"),),
    )
    return random_model(a, 3, 0.3)


def inputs(of: ir.Model, batch: int = 2) -> dict[str, dict[str, Any]]:
    return {OWNERS[k]: {k: v} for k, v in rows(of.architecture, batch, 4).items()}


def run(of: ir.Model, **options: Any) -> privinfer.Result:
    given = inputs(of)
    return privinfer.run_local(of, given, **{"backend": "crypten", "insecure": NAMED, **options})


@pytest.mark.parametrize("processes", [True, False])
def test_five_parties(processes: bool) -> None:
    one = model()
    result = run(one, processes=processes, with_reference=True)
    exact = reference.run(one, {k: v for own in inputs(one).values() for k, v in own.items()})
    bound = bounds.analyse(one, 5)["out"].error
    assert (np.abs(result.outputs["risk"] - exact["risk"]) <= bound + 1e-9).all()
    report = result.report
    assert report["backend"] == "crypten"
    assert report["insecure"] == ["crypten"]
    assert report["trust"].startswith("not private: startup")
    assert report["precision"]["fractional_bits"] == bounds.BITS
    assert report["precision"]["declared_error_bound"] is None
    assert report["largest_absolute_error"] <= float(bound.max()) + 1e-9
    assert report["parties"].keys() == {*OWNERS.values(), "startup", "patient"}
    assert "everything" in report["parties"]["startup"]["sees"][0]
    for party in report["parties"].values():
        assert sum(party["bytes"]["sent"]["online"].values()) > 0


def test_two_parties() -> None:
    """Model owner and patient: the fewest there can be."""
    one = model()
    rows_ = {k: v for own in inputs(one).values() for k, v in own.items()}
    found = privinfer.run_local(one, {"patient": rows_}, backend="crypten", insecure=NAMED).outputs["risk"]
    error = np.abs(found - reference.run(one, rows_)["risk"])
    assert (error <= bounds.analyse(one, 2)["out"].error + 1e-9).all()


def test_it_has_to_be_named() -> None:
    with pytest.raises(ConfigError, match="insecure option 'crypten'"):
        run(model(), insecure=())


# -- parties that die or block ---------------------------------------------------------------------


def process_of(name: str) -> int:
    """The worker that plays `name`."""
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            words = Path("/proc", child, "cmdline").read_bytes().split(b"\0")
            if b"privinfer.runtime.worker" in words and name.encode() in words:
                return int(child)
    raise AssertionError(f"{name} has no process")


def at_first_online(act: Callable[[], None]) -> Callable[[str, Role, Phase, Progress], None]:
    """A watcher that acts once, when the inference is under way."""
    done: list[bool] = []

    def watch(name: str, role: Role, phase: Phase, event: Progress) -> None:
        if phase is Phase.ONLINE and not done:
            done.append(True)
            act()

    return watch


def wide() -> ir.Model:
    """Work enough that a party is lost in the midst of it."""
    nodes, last = [], "dna"
    for k in range(12):
        nodes += [N(f"d{k}", ir.Linear(64, 64), (last,)), N(f"r{k}", ir.Relu(), (f"d{k}",))]
        last = f"r{k}"
    a = ir.Architecture(
        (I("xray", (64,), 0, 1), I("dna", (64,), 0, 2), I("blood", (64,), -1, 1)),
        (*nodes, N("s", ir.Add(), (last, "xray")), N("t", ir.Add(), ("s", "blood"))),
        (O("risk", "t"),),
    )
    return random_model(a, 3, 0.02)


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP])
def test_a_party_that_dies_or_stops_is_named(blow: signal.Signals) -> None:
    """Killed: its connections end. Stopped: it is silent for a deadline. Nobody is left waiting."""
    deadline = 20.0  # five processes import torch on two cores meanwhile
    struck: list[float] = []

    def strike() -> None:
        os.kill(process_of("laboratory"), blow)
        struck.append(time.monotonic())

    with pytest.raises(TransportError) as caught:
        run(wide(), deadline=deadline, progress=at_first_online(strike))
    assert caught.value.culprit == "laboratory"
    assert time.monotonic() - struck[0] < (5.0 if blow is signal.SIGKILL else deadline + 10.0)


def test_a_party_whose_crypten_blocks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """It still says that it lives, for its other threads do; but nothing comes of it."""
    original = rank.apply
    seconds: dict[str, float] = {}

    def slow(library_: Any, node: ir.Node, weights: Any, xs: list[Any]) -> Any:
        if library_.communicator.get().get_rank() == 2 and node.name == "conv relu":
            began = time.monotonic()
            while "ended" not in seconds and time.monotonic() - began < 20:
                time.sleep(0.05)
        return original(library_, node, weights, xs)

    monkeypatch.setattr(rank, "apply", slow)

    def watch_for_the_end() -> None:
        while any(t.name == "startup" for t in threading.enumerate()):
            time.sleep(0.05)
        seconds["ended"] = time.monotonic()

    began = time.monotonic()
    watcher = threading.Timer(0.5, watch_for_the_end)
    watcher.start()
    with pytest.raises(TransportError) as caught:
        run(model(), processes=False, deadline=2.0)
    watcher.join()
    assert caught.value.culprit == "hospital"  # rank 2: the startup, then the others by name
    assert seconds["ended"] - began < 12


def test_one_party_that_reveals_alone_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """CrypTen by itself waits for ever (its issue 374)."""
    original = rank.reveal

    def again(value: Any, receiver: int, communicator: Any, *sealing: Any) -> Any:
        found = original(value, receiver, communicator, *sealing)
        if communicator.get_rank() == 0:
            value.get_plain_text()
        return found

    monkeypatch.setattr(rank, "reveal", again)
    began = time.monotonic()
    with pytest.raises(privinfer.PrivinferError) as caught:
        run(model(), processes=False, deadline=3.0)
    assert caught.value.culprit in {*OWNERS.values(), "startup", "patient"}
    assert time.monotonic() - began < 15
