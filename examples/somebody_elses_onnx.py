"""An ONNX file that nobody here made, run privately and held against its own reference answers.

What happens: a startup brings a network from Microsoft's Windows ML tutorials (`iris/ATTRIBUTION.md`); a
botanist brings four lengths of each of 150 flowers and wants the species. The answers are compared
with those of onnxruntime in float32, which were stored with the file.

Who sees what: the botanist the flowers and the answers, the startup its weights; both evaluate and see
masked values, with a helper that deals the masks. Two of the three together could undo them.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

import privinfer

FOLDER = Path(__file__).parent / "iris"
FILE = FOLDER / "iris_mlp_opset11.onnx"


def float32_rounding(x: np.ndarray) -> np.ndarray:
    """Bound onnxruntime's own error: u = 2**-24 for each rounding on the way, over the absolute values."""
    size, roundings = np.abs(x), 0
    weights = {t.name: numpy_helper.to_array(t).astype(float) for t in onnx.load(FILE).graph.initializer}
    for layer in ("layer1", "layer2", "layer3"):
        weight, bias = np.abs(weights[f"{layer}.weight"]), np.abs(weights[f"{layer}.bias"])
        size = size @ weight.T + bias
        roundings += weight.shape[1] + 1  # a product, and as many sums as there are products
    u = 2.0**-24
    return size * roundings * u / (1 - roundings * u)


def main() -> None:
    with np.load(FOLDER / "iris_mlp_opset11_io.npz", allow_pickle=False) as stored:
        flowers, labels, reference = (stored[k] for k in ("inputs", "labels", "reference_output"))
    model = privinfer.from_onnx(FILE, {"input": (0, 8)})  # lengths in cm
    result = privinfer.run_local(
        model, {"botanist": {"input": flowers}}, model_owner="startup", receiver="botanist"
    )
    private = result.outputs["output"]
    bound = result.report["precision"]["declared_error_bound"]
    difference = np.abs(private - reference)
    inside = (difference <= bound + float32_rounding(flowers.astype(float))).all(axis=1)
    print(f"{len(private)} flowers, {(private.argmax(1) == labels).sum()} species right")
    print(f"{(private.argmax(1) == reference.argmax(1)).sum()} with the species of onnxruntime")
    print(f"{inside.sum()} within the declared bound {bound:.1e} plus float32 rounding")
    print(f"largest difference {difference.max():.2e}")
    print(result.report["trust"])


if __name__ == "__main__":
    main()
