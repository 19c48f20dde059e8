"""The example's cohort and model: shapes, separation of the splits, and what the model card states."""

from __future__ import annotations

import hashlib
import importlib
import itertools
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "cohort"
SPLITS = ("train", "validation", "test")
TESTS = 24


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Any:
    """Put the example's folder on the path, as running its scripts does, and take it off again."""
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
    for name in ("cohort", "bounds", "card"):  # names too common to leave behind
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def cohort() -> ModuleType:
    return importlib.import_module("cohort")


@pytest.fixture(scope="module")
def bounds() -> ModuleType:
    return importlib.import_module("bounds")


@pytest.fixture(scope="module")
def card_text() -> str:
    return (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def weights() -> dict[str, Any]:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(FOLDER / "risk.onnx")
    return {i.name: onnx.numpy_helper.to_array(i).astype(np.float64) for i in model.graph.initializer}


def disjoint(sets: list[set[Any]]) -> bool:
    return all(sets) and not any(a & b for a, b in itertools.combinations(sets, 2))


# --- the cohort


@pytest.mark.parametrize("split", SPLITS)
def test_shapes_and_ranges(cohort: ModuleType, split: str) -> None:
    patients = cohort.load(split, n=150)
    shapes = {"xray": (150, 1, 28, 28), "dna": (150, 944), "blood": (150, TESTS)}
    assert {name: x.shape for name, x in patients.inputs().items()} == shapes
    for name, x in patients.inputs().items():
        low, high = cohort.RANGES[name]
        assert x.dtype == np.float64
        assert np.isfinite(x).all()
        assert low <= x.min() < x.max() <= high
    assert np.isin(patients.dna, [0, 1, 2]).all()
    assert set(patients.y) == {0, 1}
    assert patients.raw.shape == (150, TESTS)
    assert len(patients.columns) == TESTS
    assert (patients.blood[np.isnan(patients.raw)] == 0).all()


def test_test_split_has_200_patients(cohort: ModuleType) -> None:
    assert len(cohort.load("test")) == 200


def test_drawing_follows_the_seed(cohort: ModuleType) -> None:
    first, again, other = (cohort.load("validation", seed=s, n=50) for s in (5, 5, 6))
    for name, x in first.inputs().items():
        np.testing.assert_array_equal(x, again.inputs()[name])
    np.testing.assert_array_equal(first.y, again.y)
    assert not np.array_equal(first.person, other.person)


def test_load_refuses_nonsense(cohort: ModuleType) -> None:
    with pytest.raises(ValueError, match="unknown split"):
        cohort.load("other")
    with pytest.raises(ValueError, match="positive"):
        cohort.load("test", n=0)


def test_every_part_has_the_outcome(cohort: ModuleType) -> None:
    patients, lab = cohort.load("test"), cohort.bloods()
    died = dict(zip(lab.row_id, lab.died, strict=True))
    np.testing.assert_array_equal(cohort.pictures("test").labels[patients.picture], patients.y)
    np.testing.assert_array_equal([died[row] for row in patients.blood_row], patients.y)


def test_outcome_follows_the_score(cohort: ModuleType) -> None:
    """The log odds of y rise by ln 1.8 per unit of z: the likelihood's slope there is zero within 4 sigma."""
    patients = cohort.load("train", n=4000)
    z = cohort.genotypes().z[patients.person]
    p = 1 / (1 + np.exp(-np.log(1.8) * z))
    assert abs((z * (patients.y - p)).sum()) < 4 * np.sqrt((z**2 * p * (1 - p)).sum())


def test_bloods_use_training_statistics_only(cohort: ModuleType) -> None:
    lab = cohort.bloods()
    train = lab.raw[lab.split == "train"]
    median, spread = lab.statistics()
    np.testing.assert_array_equal(median, np.nanmedian(train, axis=0))
    assert (spread > 0).all()


# --- the pools


def test_pictures_are_disjoint(cohort: ModuleType) -> None:
    hashes = {s: [hashlib.sha256(x.tobytes()).digest() for x in cohort.pictures(s).images] for s in SPLITS}
    assert disjoint([set(h) for h in hashes.values()])
    assert all(len(h) == len(set(h)) for h in hashes.values())
    assert {s: len(h) for s, h in hashes.items()} == {"train": 2400, "validation": 524, "test": 413}


def test_populations_are_disjoint(cohort: ModuleType) -> None:
    panel = cohort.genotypes()
    pools = [panel.pool(s) for s in SPLITS]
    assert disjoint([set(panel.population[p]) for p in pools])
    assert sum(map(len, pools)) == len(panel.population) == 3202
    assert all(set(panel.superpopulation[p]) == {"AFR", "AMR", "EAS", "EUR", "SAS"} for p in pools)
    for split in SPLITS:
        patients = cohort.load(split, n=300)
        assert set(patients.person) <= set(panel.pool(split))


def test_blood_rows_are_disjoint(cohort: ModuleType) -> None:
    lab = cohort.bloods()
    assert len(set(lab.row_id)) == len(lab.row_id) == 315
    assert set(lab.split) == set(SPLITS)
    assert disjoint([set(cohort.load(s, n=400).blood_row) for s in SPLITS])


def test_polygenic_sums_reproduce(cohort: ModuleType) -> None:
    panel = cohort.genotypes()
    assert panel.dosages.shape == (3202, 944)
    # The published sums carry six decimals.
    assert np.abs(panel.dosages @ panel.weight - panel.expected_sum).max() <= 0.5e-6
    alt = np.char.rpartition(panel.site, ":")[:, 2]
    assert (panel.effect_allele == alt).sum() == 563
    means = [
        panel.expected_sum[panel.superpopulation == g].mean() for g in ("AFR", "AMR", "EAS", "EUR", "SAS")
    ]
    np.testing.assert_allclose(means, [5.467, 4.708, 4.554, 4.464, 4.427], atol=0.5e-3)


# --- the model


def stated(card_text: str, pattern: str) -> float:
    found = re.search(pattern, card_text)
    assert found, pattern
    return float(found[1])


def test_model_card_states_the_measured_figures(cohort: ModuleType, card_text: str) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    card = importlib.import_module("card")
    session = onnxruntime.InferenceSession(FOLDER / "risk.onnx", providers=["CPUExecutionProvider"])
    assert {i.name: i.shape for i in session.get_inputs()} == {
        "xray": ["batch", 1, 28, 28],
        "dna": ["batch", 944],
        "blood": ["batch", TESTS],
    }
    patients = cohort.load("test")
    (risk,) = session.run(["risk"], {k: x.astype(np.float32) for k, x in patients.inputs().items()})
    assert risk.shape == (200, 1)
    result = card.evaluate("all", patients.y, risk[:, 0])
    # Float32 sums may differ between processors and swap two patients that lie a rounding apart.
    assert result.auc == pytest.approx(stated(card_text, r"\| all \| ([\d.]+) "), abs=1e-3)
    assert result.accuracy == pytest.approx(stated(card_text, r"\| all \|.*\| ([\d.]+) \|"), abs=0.0051)
    assert result.auc > 0.95


def test_model_card_names_this_model(card_text: str) -> None:
    assert hashlib.sha256((FOLDER / "risk.onnx").read_bytes()).hexdigest() in card_text


def test_model_suits_fixed_point(
    cohort: ModuleType, bounds: ModuleType, weights: dict[str, Any], card_text: str
) -> None:
    error = bounds.worst_case_error(weights)
    assert error < 4e-3
    assert error == pytest.approx(stated(card_text, r"over all inputs: ([\d.e-]+\d)"), rel=1e-2)
    assert bounds.preactivation_bound(weights, cohort.RANGES) < 2**13
    # Folded weights are multiples of 2^-16 up to float32 rounding, so encoding adds nothing.
    assert bounds.weight_rounding(weights) < bounds.STEP / 100


def fixed_point(weights: dict[str, Any], inputs: dict[str, Any], bounds: ModuleType, worst: int) -> Any:
    """Evaluate in 64-bit integers with 16 fractional bits; each truncation may err by `worst` units more."""
    w = {k: np.round(v / bounds.STEP).astype(np.int64) for k, v in bounds.fold(weights).items()}
    x = {k: np.round(v / bounds.STEP).astype(np.int64) for k, v in inputs.items()}

    def dense(name: str, value: Any, relu: bool = True) -> Any:
        out = ((value @ w[f"{name}.weight"].T) >> 16) + w[f"{name}.bias"] + worst
        return np.maximum(out, 0) if relu else out

    def conv(name: str, value: Any) -> Any:
        kernel = w[f"{name}.weight"]
        sums = np.stack([bounds.conv2d(picture, kernel, bounds.PADDING[name]) for picture in value])
        return np.maximum((sums >> 16) + w[f"{name}.bias"][:, None, None] + worst, 0)

    pixels = conv("conv2", conv("conv1", x["xray"])).reshape(len(x["xray"]), -1)
    joined = np.concatenate(
        [dense("xray", pixels), dense("dna", x["dna"]), dense("blood", x["blood"])], axis=1
    )
    return dense("risk", dense("joint", joined), relu=False)[:, 0] * bounds.STEP


def real(weights: dict[str, Any], inputs: dict[str, Any], bounds: ModuleType) -> Any:
    """Evaluate in float64, the batch norm folded."""
    w = bounds.fold(weights)

    def dense(name: str, value: Any) -> Any:
        return value @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = inputs["xray"]
    for name, padding in bounds.PADDING.items():
        sums = np.stack([bounds.conv2d(picture, w[f"{name}.weight"], padding) for picture in x])
        x = np.maximum(sums + w[f"{name}.bias"][:, None, None], 0)
    parts = [
        dense("xray", x.reshape(len(x), -1)),
        dense("dna", inputs["dna"]),
        dense("blood", inputs["blood"]),
    ]
    joined = np.maximum(np.concatenate(parts, axis=1), 0)
    return dense("risk", np.maximum(dense("joint", joined), 0))[:, 0]


@pytest.mark.parametrize("worst", [0, 1])
def test_fixed_point_stays_within_the_bound(
    cohort: ModuleType, bounds: ModuleType, weights: dict[str, Any], worst: int
) -> None:
    """A floor loses less than a unit, one unit more on top errs upwards by at most one: both below 1.5."""
    inputs = cohort.load("test", n=40).inputs()
    error = np.abs(fixed_point(weights, inputs, bounds, worst) - real(weights, inputs, bounds)).max()
    assert 0 < error <= bounds.worst_case_error(weights)


def test_bound_grows_with_every_weight(bounds: ModuleType, weights: dict[str, Any]) -> None:
    """Doubling any layer that carries error raises the bound; the dosages are exact, so theirs does not."""
    before = bounds.worst_case_error(weights)
    for name in ("conv1", "conv2", "xray", "blood", "joint", "risk"):
        after = bounds.worst_case_error(weights | {f"{name}.weight": 2 * weights[f"{name}.weight"]})
        assert after > before, name
    assert bounds.worst_case_error(weights | {"dna.weight": 2 * weights["dna.weight"]}) == before


def test_sampled_values_stay_within_the_interval_bound(
    cohort: ModuleType, bounds: ModuleType, weights: dict[str, Any]
) -> None:
    logits = real(weights, cohort.load("test", n=40).inputs(), bounds)
    assert np.abs(logits).max() <= bounds.preactivation_bound(weights, cohort.RANGES)


# --- the polynomial model


def test_the_polynomial_model_is_as_good(cohort: ModuleType) -> None:
    """As its card states; within one point of the first model's accuracy; all test patients in its ranges."""
    pytest.importorskip("onnx")
    privinfer = importlib.import_module("privinfer")
    reference = importlib.import_module("privinfer.graph.reference")
    ir = importlib.import_module("privinfer.graph.ir")
    card = importlib.import_module("card")
    text = (FOLDER / "POLYNOMIAL_CARD.md").read_text(encoding="utf-8")
    path = FOLDER / "risk-polynomial.onnx"
    assert hashlib.sha256(path.read_bytes()).hexdigest() in text
    model = privinfer.from_onnx(path, calibration=cohort.load("validation", n=100).inputs())
    assert model.architecture.precision.basis == "calibrated"
    assert {i.name: (i.low, i.high) for i in model.architecture.inputs} == cohort.RANGES
    polynomials = {n.name: n for n in model.architecture.nodes if isinstance(n.op, ir.Polynomial)}
    assert len(polynomials) == 6
    assert all(n.op.degree <= 3 for n in polynomials.values())
    assert not any(isinstance(n.op, ir.Relu | ir.Function) for n in model.architecture.nodes)
    patients = cohort.load("test")
    values: dict[str, Any] = {}
    risk = reference.run(model, patients.inputs(), values.__setitem__)["risk"][:, 0]
    for node in polynomials.values():
        x = values[node.inputs[0]]
        assert node.op.low <= x.min() <= x.max() <= node.op.high, node.name
        assert f"| {node.name} | {node.op.degree} | [{node.op.low:g}, {node.op.high:g}] |" in text
    result = card.evaluate("polynomial", patients.y, risk)
    assert result.auc == pytest.approx(stated(text, r"\| `risk-polynomial.onnx` \| ([\d.]+) "), abs=1e-4)
    assert result.accuracy == pytest.approx(
        stated(text, r"\| `risk-polynomial.onnx` \|.*\| ([\d.]+) \|"), abs=6e-4
    )
    assert result.accuracy >= 0.925 - 0.01


# --- what is shipped


def test_files_are_small() -> None:
    files = {path.name: path.stat().st_size for path in (FOLDER / "data").iterdir()}
    assert set(files) == {"xray.npz", "dna.npz", "blood.csv"}
    assert sum(files.values()) < 3_500_000
    for name in ("risk.onnx", "risk-polynomial.onnx"):
        assert (FOLDER / name).stat().st_size < 2_000_000


def test_attribution_covers_every_file() -> None:
    text = (FOLDER / "ATTRIBUTION.md").read_text(encoding="utf-8")
    files = ("data/xray.npz", "data/dna.npz", "data/blood.csv", "risk.onnx", "risk-polynomial.onnx")
    for name in (*files, "linkage is synthetic"):
        assert name in text
