"""ONNX files nobody here made, with somebody else's answers (tests/vectors/foreign/PROVENANCE.md)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import privinfer
from privinfer.backends import plain
from privinfer.graph import ir, reference
from tests.support.bounds import output_errors
from tests.support.simulate import simulate

FOLDER = Path(__file__).parents[1] / "vectors" / "foreign"
FLOAT32 = 2e-5  # of the largest answer: what onnxruntime's float32 may differ by


def load(name: str) -> tuple[ir.Model, dict[str, ir.Array], ir.Array]:
    """The model, its input as it wants it, and the stored answers."""
    with np.load(FOLDER / f"{name}_io.npz", allow_pickle=False) as stored:
        images, answers = stored["images"].astype(np.float64), stored["reference_output"]
    if name.startswith("mnist"):
        x, ends, key = images[:, None], (0.0, 255.0), "Input3"
    else:
        x, ends, key = ((images / 255 - 0.5) / 0.5).transpose(0, 3, 1, 2), (-1.0, 1.0), "modelInput"
    model = privinfer.from_onnx(FOLDER / f"{name}.onnx", {key: ends}, comparison_bits="auto")
    return model, {key: x}, answers.astype(np.float64)


@pytest.mark.parametrize("name", ["mnist_cntk_opset7", "cifar10_cnn_opset10"])
def test_agrees_with_onnxruntime(name: str) -> None:
    model, x, answers = load(name)
    (output,) = model.architecture.outputs
    clear = reference.run(model, x)[output.name].reshape(answers.shape)
    np.testing.assert_allclose(clear, answers, atol=FLOAT32 * np.abs(answers).max())
    bound = float(output_errors(model)[output.name].max())
    twin = plain.run(model, x)[output.name].reshape(answers.shape)
    few = {k: v[:3] for k, v in x.items()}
    private = simulate(model, few).outputs[output.name].reshape(3, -1)
    for got in (twin, private):
        assert np.abs(got - clear[: len(got)]).max() <= bound
        assert (got.argmax(1) == answers[: len(got)].argmax(1)).all()
