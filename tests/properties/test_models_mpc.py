"""Whole models under `mpc`, against the answers of torch and onnxruntime on the same inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import privinfer
from privinfer.backends.mpc import roles
from privinfer.graph import ir
from privinfer.graph.lower import compile_program
from tests.support.simulate import simulate

TREES = Path(__file__).parents[1] / "vectors" / "trees"
MODELS = (
    "logistic regression", "resnet18", "densenet", "vision transformer", "multi-modal transformer", "lstm",
    "gru",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_model_answers_as_torch_does(name: str) -> None:
    pytest.importorskip("torch")
    from tests.unit import test_models as zoo_of

    exhibit = zoo_of.zoo.ZOO[name]
    module, model = zoo_of.loaded(name)
    rows = {k: v.astype(np.float64) for k, v in exhibit.rows(2, 2).items()}
    outcome = simulate(model, rows)
    assert outcome.rounds == (roles.rounds(compile_program(model.architecture)),) * 2
    bound = model.architecture.precision.error_bound
    assert bound is not None
    for key, wanted in zoo_of.expected(module, rows).items():
        assert np.abs(outcome.outputs[key] - wanted).max() <= min(bound, zoo_of.CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(p.stem for p in TREES.glob("*.onnx")))
@pytest.mark.filterwarnings("ignore:output:UserWarning")
def test_a_tree_model_answers_as_onnxruntime_does(name: str) -> None:
    """Labels alike; scores within the roundings of leaves and one sigmoid or softmax."""
    pytest.importorskip("onnx")
    with np.load(TREES / f"{name}.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    rows = arrays.pop("inputs")[:6]
    span = (-10.0, 400.0) if name.endswith("_reg") else (0.0, 8.0)
    source = privinfer.from_onnx(TREES / f"{name}.onnx").architecture.inputs[0].name
    model: ir.Model = privinfer.from_onnx(TREES / f"{name}.onnx", {source: span})
    got = simulate(model, {source: rows}).outputs
    assert {f"output_{k}" for k in got} == set(arrays)
    for key, wanted in arrays.items():
        stray = np.abs(got[key.removeprefix("output_")] - wanted[:6])
        assert stray.max() <= (0 if wanted.dtype.kind == "i" else 1e-4)
