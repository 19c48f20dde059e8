"""A random forest from scikit-learn, run privately: rows go through all trees at once, and nobody sees where.

What happens: a startup trained thirty trees on 100 iris flowers and exported them with skl2onnx
(`trees/ATTRIBUTION.md`); a botanist brings the other 50. Which feature a tree looks at, its thresholds and
its leaves stay secret, as do the flowers. The answers are held against those of onnxruntime.

Who sees what: the botanist the flowers and the answers, the startup its trees; both evaluate and see masked
values, with a helper that deals the masks. Two of the three together could undo them. Everybody knows how
many nodes and leaves there are in a block of trees, and how many blocks.
"""

from pathlib import Path

import numpy as np

import privinfer

FOLDER = Path(__file__).parent / "trees"


def main() -> None:
    with np.load(FOLDER / "iris_forest_io.npz", allow_pickle=False) as stored:
        flowers, species = stored["inputs"], stored["labels"]
        labels, reference = stored["reference_label"], stored["reference_probabilities"]
    model = privinfer.from_onnx(FOLDER / "iris_forest.onnx", {"X": (0, 8)})  # lengths in cm
    result = privinfer.run_local(
        model, {"botanist": {"X": flowers}}, model_owner="startup", receiver="botanist"
    )
    private = result.outputs["probabilities"]
    print(f"{len(private)} flowers, {(result.outputs['label'] == species).sum()} species right")
    print(f"{(result.outputs['label'] == labels).sum()} with the species of onnxruntime")
    # one leaf of one tree weighs at least 1/30 of what its flowers say: a wrong turn would show
    print(f"largest difference of a probability {np.abs(private - reference).max():.1e}")
    print(result.report["trust"])


if __name__ == "__main__":
    main()
