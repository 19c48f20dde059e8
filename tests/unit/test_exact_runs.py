"""Exact mode by `run_local`: the same decisions as the fixed-point oracle, reports that say what holds."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import privinfer
from privinfer import insecure
from privinfer.errors import ConfigError
from privinfer.graph import ir
from tests.properties.test_exact import inputs, small
from tests.support.bounds import output_errors, output_float_errors

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "cohort"


def sources(x: dict[str, ir.Array]) -> dict[str, dict[str, ir.Array]]:
    return {"hospital": {"image": x["image"]}, "laboratory": {"row": x["row"]}}


def exact(model: ir.Model, x: Any, **options: Any) -> privinfer.Result:
    return privinfer.run_local(model, x, backend="ckks", nonlinear="exact", **options)


def oracle(model: ir.Model, x: Any) -> dict[str, ir.Array]:
    return privinfer.run_local(model, x, backend="plain", insecure=(insecure.PLAINTEXT,)).outputs


def check_small(result: privinfer.Result, model: ir.Model, x: dict[str, ir.Array]) -> None:
    want = oracle(model, sources(x))["out"]
    got = result.outputs["out"]
    bound = output_errors(model)["out"] + output_float_errors(model)["out"]
    assert (np.abs(got - want) <= 2 * bound).all()  # each is within it of the model in float64
    assert (got.argmax(1) == want.argmax(1)).all()
    report = result.report
    assert report["largest_absolute_error"] <= report["precision"]["declared_error_bound"]


def test_several_sources() -> None:
    model, x = small(), inputs(5)
    result = exact(model, sources(x), processes=False, with_reference=True)
    check_small(result, model, x)
    report = result.report
    assert report["backend"] == "ckks"
    assert report["trust"] == (
        "private unless two of {startup, hospital, helper} collude, or all of {hospital, laboratory, patient}"
        " do, as long as everybody follows the protocol"
    )
    assert report["precision"]["nonlinear"] == "exact"
    assert report["precision"]["product_units"] == 4
    parties = report["parties"]
    assert parties["startup"]["roles"] == ["model_owner", "evaluator"]
    assert parties["helper"]["sees"][0].startswith("masks, never a masked value")
    assert parties["hospital"]["roles"] == ["owner", "evaluator", "key_holder"]
    assert any("masked values" in what for what in parties["hospital"]["sees"])
    assert any("share of each linear layer" in what for what in parties["laboratory"]["sees"])
    assert set(report["online_rounds"]) == {"input", "compare", "evaluators", "output"}


def test_receivers_and_the_model_owner_may_be_anybody() -> None:
    """A receiver that computes makes truncation exact; a model owner that is no evaluator adds a message."""
    model, x = small(), inputs(2)
    result = exact(
        model,
        sources(x),
        processes=False,
        with_reference=True,
        receiver="hospital",
        evaluators=("hospital", "laboratory"),
        key_holders=("laboratory", "watchman"),
    )
    check_small(result, model, x)


def test_many_rows_go_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("privinfer.backends.mpc.roles.CHUNK_BYTES", 2 << 20)
    model, x = small(), inputs(150)
    result = exact(model, sources(x), processes=False, with_reference=True)
    assert result.report["chunks"] > 1
    check_small(result, model, x)


def test_no_rows() -> None:
    result = exact(small(), sources(inputs(0)), processes=False)
    assert result.outputs["out"].shape == (0, 2)


@pytest.mark.slow
def test_over_processes() -> None:
    model, x = small(), inputs(2)
    check_small(exact(model, sources(x), with_reference=True), model, x)


@pytest.fixture(scope="module")
def cohort() -> Any:
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("cohort")
    sys.path.remove(str(FOLDER))
    sys.modules.pop("cohort", None)


def test_the_demonstration(cohort: Any) -> None:
    """The example's own model with its ReLUs: every decision is the oracle's."""
    pytest.importorskip("onnx")
    model = privinfer.from_onnx(FOLDER / "risk.onnx", calibration=cohort.load("validation").inputs())
    rows = {k: v[:6] for k, v in cohort.load("test").inputs().items()}
    x = {"hospital": {"xray": rows["xray"]}, "dna_company": {"dna": rows["dna"]}}
    x["laboratory"] = {"blood": rows["blood"]}
    result = exact(model, x, processes=False, with_reference=True)
    assert ((result.outputs["risk"] > 0) == (oracle(model, x)["risk"] > 0)).all()
    assert result.report["largest_absolute_error"] <= result.report["precision"]["declared_error_bound"]


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("makes no sense with the backend 'mpc'", {"backend": "mpc", "nonlinear": "exact"}),
        ("makes no sense with the backend 'plain'", {"backend": "plain", "nonlinear": "exact"}),
        ("makes no sense with the backend 'ckks'", {"backend": "ckks", "nonlinear": "rough"}),
        ("all key holders in exact mode", {"backend": "ckks", "nonlinear": "exact", "threshold": 2}),
        ("helper is an evaluator too", {"backend": "ckks", "nonlinear": "exact", "helper": "startup"}),
    ],
)
def test_what_makes_no_sense(message: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=message):
        privinfer.run_local(small(), sources(inputs(1)), processes=False, **options)
