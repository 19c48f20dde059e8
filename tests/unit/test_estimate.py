"""The planner: its bytes are the formulas', its seconds those that were measured, its wishes are kept."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import predict, run, scaling
from privinfer import run_local
from privinfer.backends.base import Phase
from privinfer.cli.new import NAMES, OWNERS, RANGES, SHAPES, tiny
from privinfer.errors import ConfigError
from privinfer.plan import estimate
from privinfer.plan.calibrate import calibrate
from privinfer.plan.estimate import Choice
from privinfer.plan.prices import TEMPLATE, Prices
from privinfer.plan.wishes import Wishes, rank, verdict
from privinfer.session import Identity, Manifest
from privinfer.session.manifest import Party

RESULTS = Path(predict.__file__).parent / "results"


@pytest.fixture(scope="module")
def manifest():
    parties = tuple(
        Party(n, "127.0.0.1", 1 + k, Identity.generate(n, days=2).certificate_pem)
        for k, n in enumerate(NAMES)
    )
    return Manifest(
        session="0" * 32,
        backend="mpc",
        model=tiny().architecture.digest(),
        parties=parties,
        model_owner="startup",
        evaluators=("startup", "hospital"),
        helper="helper",
        inputs=OWNERS,
        receivers={"risk": "patient"},
    )


@pytest.fixture(scope="module")
def found(manifest):
    return estimate(tiny(), manifest, batch=2, speeds=predict.REFERENCE)


def pick(found, backend, network="own"):
    return next(c for c in found.choices if (c.backend, c.network) == (backend, network))


def test_every_backend_on_every_network(found):
    assert len(found.choices) == 5 * 4
    for one in found.choices:
        if one.backend == "ckks polynomial":
            assert "Relu" in one.reason  # this model has one
            continue
        assert one.reason is None
        assert set(one.seconds) == set(one.bytes) == {"setup", "offline", "online"}
        assert one.rounds > 3
        assert one.memory > 10_000_000
        assert one.price > 0
        assert one.trust.startswith("private unless")
        assert one.error_bound == tiny().architecture.precision.error_bound


def test_bytes_and_rounds_are_those_of_a_run(manifest, found):
    """Payload: what a run counts less its frames' heads, of offline and online, is predicted to the byte."""
    inputs = {o: {n: np.full((2, *SHAPES[n]), RANGES[n][0])} for n, o in OWNERS.items()}
    result = run_local(tiny(), inputs, processes=False)
    rounds = sum(result.report["online_rounds"].values())
    one = pick(found, "mpc auto")
    assert one.rounds == rounds
    sent = sum(n for p in result.report["parties"].values() for n in p["bytes"]["sent"]["online"].values())
    assert one.bytes["online"] < sent
    assert (sent - one.bytes["online"]) % 36 == 0  # a frame's head
    assert (sent - one.bytes["online"]) // 36 < 60


@pytest.mark.slow
def test_seconds_are_within_30_percent_of_what_was_measured():
    """In sample: the factors were fitted to these rows, so this holds them to the code that counts."""
    rows = json.loads((RESULTS / "planner-2026-11-25.json").read_text())["rows"]
    lines = []
    for one in rows:
        if one["system"].startswith("privinfer") and "summary" in one:
            row = run.Row(one["workload"], one["batch"], one["net"])
            lines += predict.compare(row, one, predict.predict(row, one["system"], predict.REFERENCE))
    assert len(lines) == 3 * 22
    for line in lines:
        assert abs(line["ratio"] - 1) <= predict.AIM, line


@pytest.mark.xfail(
    reason="that sweep was measured before results were sealed: measure it again", strict=False
)
@pytest.mark.parametrize("count", [1, 4, 16])
def test_seconds_with_more_owners(count):
    points = json.loads((RESULTS / "scaling-2026-11-25.json").read_text())["sweeps"]["owners"]["points"]
    measured = next(p["seconds"]["total"] for p in points if p["x"] == count)
    row = run.Row("owners", 1, "lo")
    told = predict.predict_work(scaling.owners(count), row, "privinfer", predict.REFERENCE)
    assert told.run_seconds == pytest.approx(measured, rel=predict.AIM)


def test_a_slower_machine_and_a_slower_line_take_longer(manifest):
    slow = dataclasses.replace(predict.REFERENCE, call=1e-5, words=1e8)
    fast, behind = (
        estimate(tiny(), manifest, networks=["lo", "lan", "wan"], speeds=s) for s in (predict.REFERENCE, slow)
    )
    for a, b in zip(fast.choices, behind.choices, strict=True):
        assert a.reason or a.run_seconds < b.run_seconds
        assert a.bytes == b.bytes
    seconds = [pick(fast, "mpc fss", n).run_seconds for n in ("lo", "lan", "wan")]
    assert seconds == sorted(seconds)
    wan = pick(fast, "mpc fss", "wan")
    assert wan.seconds["online"] > wan.rounds * 0.02  # half a round trip each


def test_another_model_is_refused(manifest):
    other = dataclasses.replace(manifest, model="1" * 64)
    with pytest.raises(ConfigError, match="not the one the session was sealed for"):
        estimate(tiny(), other, speeds=predict.REFERENCE)
    with pytest.raises(ConfigError, match="no network 'moon'"):
        estimate(tiny(), manifest, networks=["moon"], speeds=predict.REFERENCE)
    with pytest.raises(ConfigError, match="one row at least"):
        estimate(tiny(), manifest, batch=0, speeds=predict.REFERENCE)


def test_calibration_measures_and_restores_threads():
    from privinfer import _kernels

    before = _kernels.get_threads()
    speeds = calibrate(0.01)
    assert _kernels.get_threads() == before
    assert all(v > 0 for v in speeds.as_json().values())
    assert speeds.call < speeds.round_trip < 0.1


# -- wishes ----------------------------------------------------------------------------------------


def choice(backend, seconds, price, helper):
    return Choice(backend, "own", seconds={"offline": 0.0, "online": seconds}, price=price, helper=helper)


FAST, CHEAP, ALONE = (
    choice("fast", 1.0, 0.20, True),
    choice("cheap", 3.0, 0.05, True),
    choice("alone", 8.0, 0.40, False),
)
ALL = (CHEAP, ALONE, FAST, Choice("never", "own", "why"))


@pytest.mark.parametrize(
    ("wishes", "first", "said"),
    [
        (Wishes(), "fast", "take fast: 1 s and $0.2 a run"),
        (Wishes(within=2), "fast", "take fast: 1 s and $0.2 a run"),
        (Wishes(price=0.1), "cheap", "take cheap: 3 s and $0.05 a run"),
        (Wishes(no_helper=True), "alone", "take alone: 8 s and $0.4 a run"),
        (Wishes(within=0.5), "fast", "at least 1 s, 0.5 s more than wished"),
        (
            Wishes(within=2, price=0.1, no_helper=True),
            "fast",
            "at least 8 s, 6 s more than wished; at least $0.4, $0.3 more than wished",
        ),
        (
            Wishes(within=2, price=0.1),
            "cheap",
            "no choice meets all wishes at once; cheap misses within by a factor of 1.5",
        ),
    ],
)
def test_wishes(wishes, first, said):
    ranked = rank(ALL, wishes)
    assert len(ranked) == 3
    if "at least 8" not in said:
        assert ranked[0].choice.backend == first
    assert verdict(ranked, wishes) == said


def test_without_a_choice():
    assert verdict([], Wishes()) == "nothing can run this model with these parties"
    only = rank((FAST,), Wishes(no_helper=True))
    assert verdict(only, Wishes(no_helper=True)) == "without a helper nothing runs this model"


# -- prices ----------------------------------------------------------------------------------------


def test_price_of_an_hour_and_a_gigabyte():
    assert Prices("$", 2.0, 3.0).of(1800, 500_000_000) == pytest.approx(2.5)


def test_the_template_is_what_holds_without_a_file(tmp_path):
    (tmp_path / "prices.toml").write_text(TEMPLATE)
    assert Prices.load(tmp_path / "prices.toml") == Prices()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("core_hour = 'a lot'", "prices: core_hour is not a number"),
        ("gigabyte = -1", "prices: gigabyte is not a number"),
        ("gigabyte = nan", "prices: gigabyte is not a number"),
        ("core_hours = 1", "prices: core_hours is not a known key"),
        ("core_hour == 1", "are not TOML"),
        ("currency = 'far too long a text'", "prices: currency is not a short text"),
    ],
)
def test_bad_prices(tmp_path, text, said):
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        Prices.load(tmp_path / "p.toml")
    assert caught.value.hint


def test_setup_counts_once(manifest):
    """Rows more than a chunk holds come in chunks; setup does not."""
    one, many = (
        pick(estimate(tiny(), manifest, batch=b, speeds=predict.REFERENCE), "mpc fss") for b in (1, 64)
    )
    assert one.bytes["setup"] == many.bytes["setup"]
    assert one.bytes["online"] < many.bytes["online"]
    assert Phase.SETUP.name.lower() in one.seconds
