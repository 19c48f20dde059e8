from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import privinfer
from privinfer.backends import plain
from privinfer.backends.mpc import roles
from privinfer.errors import ConfigError, ModelUnsupported
from privinfer.graph import ir, ranges, reference, trees
from privinfer.graph.from_onnx import from_onnx
from privinfer.graph.lower import compile_program

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "trees"
COMPARE = {"<=": operator.le, "<": operator.lt, ">=": operator.ge, ">": operator.gt}
BRANCHES = {"<=": "BRANCH_LEQ", "<": "BRANCH_LT", ">=": "BRANCH_GTE", ">": "BRANCH_GT"}
ULP = 2.0**-16


def walk(tree: trees.Tree, x: Any) -> Any:
    """What a tree says, by walking it."""
    values = np.asarray(tree.values)
    node = 0 if len(tree.features) else -1
    while node >= 0:
        mode = tree.modes if isinstance(tree.modes, str) else tree.modes[node]
        yes = COMPARE[mode](float(x[tree.features[node]]), tree.thresholds[node])
        node = tree.yes[node] if yes else tree.no[node]
    return values[-1 - node]


def random_tree(
    rng: np.random.Generator, leaves: int, features: int, outputs: int, grid: float, balanced: bool = False
) -> trees.Tree:
    """A leaf is split until there are enough of them."""
    yes, no = [], []
    slots: list[tuple[list[int], int]] = []
    for node in range(leaves - 1):
        yes.append(0)
        no.append(0)
        if node:
            side, at = slots.pop(0 if balanced else int(rng.integers(len(slots))))
            side[at] = node
        slots += [(yes, node), (no, node)]
    for leaf, (side, at) in enumerate(slots):
        side[at] = -1 - leaf
    count = leaves - 1
    thresholds = np.round(rng.uniform(-4, 4, count) / grid) * grid
    return trees.Tree(
        rng.integers(0, features, count).tolist(),
        thresholds.tolist(),
        yes,
        no,
        rng.normal(size=(leaves, outputs)),
        rng.choice(trees.MODES, count).tolist(),
    )


def total(forest: Sequence[trees.Tree], rows: Any) -> Any:
    return np.array([sum(walk(t, x) for t in forest) for x in rows])


# -- against a walker


@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    features=st.integers(1, 5),
    outputs=st.integers(1, 3),
    grid=st.sampled_from((1.0, 0.5, 2.0**-10)),
    pad=st.booleans(),
)
@settings(deadline=None)
def test_any_forest_says_what_walking_it_says(
    seed: int, sizes: list[int], features: int, outputs: int, grid: float, pad: bool
) -> None:
    rng = np.random.default_rng(seed)
    forest = [random_tree(rng, n, features, outputs, grid) for n in sizes]
    model = ranges.declare(trees.ensemble(forest, features, ranges={"x": (-6, 6)}, pad=pad))
    rows = np.round(rng.uniform(-5, 5, (20, features)) / grid) * grid
    want = total(forest, rows)
    np.testing.assert_allclose(reference.run(model, {"x": rows})["y"], want, rtol=0, atol=1e-12)
    # leaves are exact: what is left are the roundings of their values and of the last layer
    np.testing.assert_allclose(plain.run(model, {"x": rows})["y"], want, rtol=0, atol=2 * ULP)


@given(st.floats(-8, 8, width=32), st.sampled_from(trees.MODES), st.integers(-3, 3), st.integers(0, 5))
@settings(deadline=None)
def test_a_node_answers_as_floating_point_does(threshold: float, mode: str, near: int, digits: int) -> None:
    grid = 2.0**-10
    likely = {
        np.float32((np.floor(threshold / grid) + near) * grid),
        np.float32(round(threshold, digits % 5)) + np.float32(near),
    }
    stump = trees.Tree([0], [threshold], [-1], [-2], [[1.0], [0.0]], mode)
    model = trees.ensemble([stump], 1)
    for x in likely:
        if abs(float(x)) <= 16:
            want = float(COMPARE[mode](float(x), threshold))
            assert reference.run(model, {"x": [[x]]})["y"].item() == want
            assert abs(plain.run(model, {"x": [[x]]})["y"].item() - want) <= ULP


@pytest.mark.parametrize("mode", trees.MODES)
def test_a_feature_that_equals_a_threshold_is_compared_exactly(mode: str) -> None:
    for threshold in np.random.default_rng(3).uniform(-8, 8, 300).astype(np.float32):
        model = trees.ensemble([trees.Tree([0], [float(threshold)], [-1], [-2], [[1.0], [0.0]], mode)], 1)
        near = abs(np.round(float(threshold) * 1e4) / 1e4 - float(threshold)) < ULP or (
            abs(np.round(float(threshold) * 1024) / 1024 - float(threshold)) < ULP
        )
        if not near:
            got = plain.run(model, {"x": [[threshold]]})["y"].item()
            assert round(got) == COMPARE[mode](0, 0)


def test_nodes_that_always_answer_alike_and_infinite_thresholds() -> None:
    for threshold, x, want in (
        (100.0, 5.0, 1.0),
        (-100.0, 5.0, 0.0),
        (np.inf, 5.0, 1.0),
        (-np.inf, 5.0, 0.0),
    ):
        stump = trees.Tree([0], [threshold], [-1], [-2], [[1.0], [0.0]])
        got = plain.run(trees.ensemble([stump], 1), {"x": [[x]]})["y"].item()
        assert round(got, 4) == want


def test_wide_ranges_keep_integers_apart() -> None:
    stump = trees.Tree([0], [70000.0], [-1], [-2], [[1.0], [0.0]])
    model = ranges.declare(trees.ensemble([stump], 1, ranges={"x": (0, 1e6)}))
    got = plain.run(model, {"x": [[69999], [70000], [70001], [1e6], [0]]})["y"].reshape(-1)
    assert np.round(got, 3).tolist() == [1, 1, 0, 0, 1]


# -- what it is made of, and what it costs


def test_a_hundred_trees_of_depth_six_are_seven_rounds_and_small() -> None:
    rng = np.random.default_rng(1)
    forest = [random_tree(rng, 64, 30, 1, 2.0**-6, balanced=True) for _ in range(100)]
    model = ranges.declare(trees.ensemble(forest, 30))
    program = compile_program(model.architecture)
    assert roles.rounds(program) == 7
    weights = sum(8 * p["weight"].size for p in model.parameters.values())
    assert weights == 8 * (30 * 6300 + 100 * 63 * 64 + 6400)
    rows = np.round(rng.uniform(-5, 5, (4, 30)) * 64) / 64
    np.testing.assert_allclose(plain.run(model, {"x": rows})["y"], total(forest, rows), rtol=0, atol=1e-4)


def test_small_trees_share_a_block_with_large_ones() -> None:
    rng = np.random.default_rng(2)
    forest = [random_tree(rng, n, 3, 1, 0.5) for n in (9, 4, 3, 3, 5, 2)]  # 8, 3, 2, 2, 4, 1 nodes
    conv = next(n.op for n in trees.ensemble(forest, 3).architecture.nodes if isinstance(n.op, ir.Conv2d))
    assert (conv.groups, conv.inputs) == (3, 24)
    padded = trees.ensemble(forest, 3, pad=True).architecture
    conv = next(n.op for n in padded.nodes if isinstance(n.op, ir.Conv2d))
    assert (conv.groups, conv.inputs, conv.outputs) == (4, 32, 64)


def test_the_architecture_tells_nothing_of_shape_features_thresholds_or_values() -> None:
    rng = np.random.default_rng(4)
    digests = {
        trees.ensemble([random_tree(rng, 9, 3, 2, 0.5) for _ in range(5)], 3).architecture.digest()
        for _ in range(4)
    }
    assert len(digests) == 1


def test_labels_transforms_averages_and_bases() -> None:
    rng = np.random.default_rng(5)
    forest = [random_tree(rng, 5, 2, 3, 0.5) for _ in range(4)]
    rows = np.round(rng.uniform(-4, 4, (30, 2)) * 2) / 2
    scores = total(forest, rows) / 4 + [0.5, 0.0, -0.25]
    model = ranges.declare(
        trees.ensemble(forest, 2, base=[0.5, 0, -0.25], average=True, transform="softmax", label=True)
    )
    got = plain.run(model, {"x": rows})
    e = np.exp(scores)
    np.testing.assert_allclose(got["y"], e / e.sum(1, keepdims=True), rtol=0, atol=1e-3)
    np.testing.assert_array_equal(got["label"], scores.argmax(1))


def test_private_runs_agree() -> None:
    rng = np.random.default_rng(6)
    forest = [random_tree(rng, 6, 3, 2, 2.0**-10) for _ in range(7)]
    model = ranges.declare(trees.ensemble(forest, 3, label=True))
    rows = np.round(rng.uniform(-5, 5, (25, 3)) * 1024) / 1024
    out = privinfer.run_local(model, {"a": {"x": rows}}, model_owner="m", receiver="a").outputs
    want = total(forest, rows)
    np.testing.assert_allclose(out["y"], want, rtol=0, atol=4 * ULP)
    np.testing.assert_array_equal(out["label"], want.argmax(1))


@pytest.mark.parametrize(
    ("tree", "why"),
    [
        (trees.Tree([0], [1.0], [0], [-1], [[1.0]]), "hang together"),
        (trees.Tree([0, 0], [1.0, 1.0], [-1, 1], [-2, -3], [[1.0]] * 3), "hang together"),
        (trees.Tree([5], [1.0], [-1], [-2], [[1.0], [2.0]]), "beyond 2"),
        (trees.Tree([0], [np.nan], [-1], [-2], [[1.0], [2.0]]), "NaN"),
        (trees.Tree([0], [1.0], [-1], [-2], [[1.0], [np.inf]]), "finite"),
        (trees.Tree([0], [1.0], [-1], [-2], [[1.0], [2.0]], "=="), "something else"),
        (trees.Tree([0], [1.0, 2.0], [-1], [-2], [[1.0], [2.0]]), "differ in length"),
    ],
)
def test_broken_trees_are_refused(tree: trees.Tree, why: str) -> None:
    with pytest.raises(ModelUnsupported, match=why):
        trees.ensemble([tree], 2)


def test_a_forest_that_is_too_large_or_unknown_is_refused() -> None:
    with pytest.raises(ModelUnsupported, match="no tree"):
        trees.ensemble([], 2)
    with pytest.raises(ConfigError, match="transform"):
        trees.ensemble([trees.Tree([], [], [], [], [[1.0]])], 2, transform="probit")
    huge = random_tree(np.random.default_rng(0), 5000, 2, 1, 0.5, balanced=True)
    with pytest.raises(ModelUnsupported, match="max_leaf_nodes"):
        trees.ensemble([huge], 2)


# -- files of other people's exporters


@pytest.mark.parametrize("name", sorted(p.stem for p in VECTORS.glob("*.onnx")))
@pytest.mark.filterwarnings("ignore:output:UserWarning")
def test_exported_models_answer_as_onnxruntime_does(name: str) -> None:
    pytest.importorskip("onnx")
    with np.load(VECTORS / f"{name}.npz", allow_pickle=False) as stored:
        arrays = dict(stored)
    rows = arrays.pop("inputs")
    source = from_onnx(VECTORS / f"{name}.onnx").architecture.inputs[0].name
    span = (-10, 400) if name.endswith("_reg") else (0, 8)
    model = privinfer.from_onnx(VECTORS / f"{name}.onnx", {source: span})
    exact, fixed = reference.run(model, {source: rows}), plain.run(model, {source: rows})
    assert {f"output_{k}" for k in exact} == set(arrays)
    for key, want in arrays.items():
        output = key.removeprefix("output_")
        if want.dtype.kind == "i":
            np.testing.assert_array_equal(exact[output], want)
            np.testing.assert_array_equal(fixed[output], want)
        else:
            scale = max(1.0, float(np.abs(want).max()))
            np.testing.assert_allclose(exact[output], want, rtol=0, atol=100 * 2.0**-23 * scale)
            np.testing.assert_allclose(fixed[output], want, rtol=0, atol=1e-4)  # sigmoid and softmax


def _model(node: Any, outputs: Sequence[tuple[str, int]], features: int, opset: int = 3) -> Any:
    onnx = pytest.importorskip("onnx")
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "g", [info("x", 1, [None, features])], [info(name, kind, None) for name, kind in outputs]
    )
    return onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("ai.onnx.ml", opset)], ir_version=8
    )


def _session(proto: Any, rows: Any) -> dict[str, Any]:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(proto.SerializeToString())
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"x": rows}), strict=True))


def _nodes(forest: Sequence[trees.Tree]) -> dict[str, list[Any]]:
    """Attributes of the first TreeEnsemble operators: leaves are numbered behind the inner nodes."""
    found: dict[str, list[Any]] = {
        f"nodes_{k}": []
        for k in ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
    }
    for t, tree in enumerate(forest):
        count = len(tree.features)
        rows: list[tuple[Any, ...]] = []
        for k, mode in enumerate(tree.modes):
            sides = [c if c >= 0 else count - 1 - c for c in (tree.yes[k], tree.no[k])]
            rows.append((t, k, tree.features[k], float(tree.thresholds[k]), BRANCHES[mode], *sides))
        rows += [(t, count + leaf, 0, 0.0, "LEAF", 0, 0) for leaf in range(len(np.asarray(tree.values)))]
        for row in rows:
            for key, value in zip(found, row, strict=True):
                found[key].append(value)
    return found


def _says(forest: Sequence[trees.Tree], prefix: str, single: int | None = None) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {f"{prefix}_{k}": [] for k in ("treeids", "nodeids", "ids", "weights")}
    for t, tree in enumerate(forest):
        for leaf, says in enumerate(np.asarray(tree.values)):
            for k, value in enumerate(says):
                if single is None or k == single:
                    row = (t, len(tree.features) + leaf, k, float(value))
                    for key, v in zip(found, row, strict=True):
                        found[key].append(v)
    return found


def _rows(seed: int, features: int) -> Any:
    rng = np.random.default_rng(seed)
    return (np.round(rng.uniform(-5, 5, (40, features)) * 8) / 8).astype(np.float32)


@pytest.mark.parametrize("aggregate", ["SUM", "AVERAGE"])
@pytest.mark.parametrize("post", ["NONE", "SOFTMAX", "LOGISTIC"])
def test_tree_regressor(aggregate: str, post: str) -> None:
    onnx = pytest.importorskip("onnx")
    forest = [random_tree(np.random.default_rng(k), 7, 3, 2, 0.125) for k in range(4)]
    node = onnx.helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=2, base_values=[0.5, -0.5],
        aggregate_function=aggregate, post_transform=post, **_nodes(forest), **_says(forest, "target"),
    )  # fmt: skip
    proto, rows = _model(node, [("y", 1)], 3), _rows(9, 3)
    got = reference.run(from_onnx(proto), {"x": rows})["y"]
    np.testing.assert_allclose(got, _session(proto, rows)["y"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("post", ["NONE", "SOFTMAX", "LOGISTIC"])
@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("base", [False, True])
def test_tree_classifier(classes: int, post: str, positive: bool, base: bool) -> None:
    """Of one class: two labels with one score."""
    onnx = pytest.importorskip("onnx")
    forest = [random_tree(np.random.default_rng(k), 5, 3, max(classes, 2), 0.125) for k in range(3)]
    if positive:
        forest = [
            trees.Tree(t.features, t.thresholds, t.yes, t.no, np.abs(t.values) / 3, t.modes) for t in forest
        ]
    start = {"base_values": [0.1] * classes} if base and classes != 2 else {}
    node = onnx.helper.make_node(
        "TreeEnsembleClassifier", ["x"], ["l", "s"], domain="ai.onnx.ml", post_transform=post,
        classlabels_int64s=[7, 3, 4][: max(classes, 2)], **_nodes(forest),
        **_says(forest, "class", 0 if classes == 1 else None), **start,
    )  # fmt: skip
    outputs = [("l", 7), ("s", 1)] if classes != 2 else [("s", 1)]
    proto, rows = _model(node, outputs, 3), _rows(10, 3)
    got, want = reference.run(from_onnx(proto), {"x": rows}), _session(proto, rows)
    np.testing.assert_allclose(got["s"], want["s"], rtol=0, atol=1e-5)
    if "l" in want:
        np.testing.assert_array_equal(got["l"], want["l"])


def test_tree_ensemble_of_version_five() -> None:
    onnx = pytest.importorskip("onnx")
    forest = [random_tree(np.random.default_rng(k), 6, 3, 1, 0.125) for k in range(3)]
    attributes: dict[str, list[int]] = {
        f"nodes_{k}": [] for k in ("featureids", "truenodeids", "trueleafs", "falsenodeids", "falseleafs")
    }
    splits: list[float] = []
    modes: list[int] = []
    weights: list[float] = []
    targets: list[int] = []
    roots: list[int] = []
    for t, tree in enumerate(forest):
        first, leaf = len(splits), len(weights)
        roots.append(first)
        for k, mode in enumerate(tree.modes):
            splits.append(tree.thresholds[k])
            modes.append(trees.MODES.index(mode))
            attributes["nodes_featureids"].append(tree.features[k])
            for side, child in (("true", tree.yes[k]), ("false", tree.no[k])):
                attributes[f"nodes_{side}leafs"].append(int(child < 0))
                attributes[f"nodes_{side}nodeids"].append(first + child if child >= 0 else leaf - 1 - child)
        weights += np.asarray(tree.values).reshape(-1).tolist()
        targets += [t % 2] * len(np.asarray(tree.values))
    tensor = onnx.numpy_helper.from_array
    node = onnx.helper.make_node(
        "TreeEnsemble", ["x"], ["y"], domain="ai.onnx.ml", n_targets=2, tree_roots=roots,
        nodes_splits=tensor(np.array(splits, np.float32)), nodes_modes=tensor(np.array(modes, np.uint8)),
        leaf_weights=tensor(np.array(weights, np.float32)), leaf_targetids=targets, aggregate_function=1,
        **attributes,
    )  # fmt: skip
    proto, rows = _model(node, [("y", 1)], 3, opset=5), _rows(11, 3)
    got = reference.run(from_onnx(proto), {"x": rows})["y"]
    np.testing.assert_allclose(got, _session(proto, rows)["y"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("op", "attributes"),
    [
        ("Scaler", {"offset": [1.0, 2.0, 3.0], "scale": [0.5, 2.0, -1.0]}),
        ("Scaler", {"offset": [1.0], "scale": [0.5]}),
        ("LinearRegressor", {"coefficients": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "targets": 2}),
        (
            "SVMRegressor",
            {
                "kernel_type": "LINEAR", "n_supports": 2, "rho": [0.25], "coefficients": [0.5, -1.0],
                "kernel_params": [1.0, 0.0, 3.0],
                "support_vectors": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            },
        ),
        ("FeatureVectorizer", {"inputdimensions": [3]}),
    ],
)  # fmt: skip
def test_linear_operators(op: str, attributes: dict[str, Any]) -> None:
    onnx = pytest.importorskip("onnx")
    node = onnx.helper.make_node(op, ["x"], ["y"], domain="ai.onnx.ml", **attributes)
    proto, rows = _model(node, [("y", 1)], 3, opset=1), _rows(12, 3)
    got = reference.run(from_onnx(proto), {"x": rows})["y"]
    np.testing.assert_allclose(got, _session(proto, rows)["y"], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"nodes_modes": ["BRANCH_EQ", "LEAF", "LEAF"]}, "BRANCH_EQ"),
        ({"aggregate_function": "MIN"}, "MIN"),
        ({"post_transform": "PROBIT"}, "PROBIT"),
        ({"nodes_truenodeids": [0, 0, 0]}, "hang on no root"),
        ({"nodes_truenodeids": [9, 0, 0]}, "nowhere|root"),
        ({"nodes_featureids": [3, 0, 0]}, "beyond"),
        ({"target_ids": [0, 7]}, "no leaf or to no output"),
        ({"base_values": [1.0, 2.0, 3.0]}, "base values"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], why: str) -> None:
    onnx = pytest.importorskip("onnx")
    attributes = {
        "nodes_treeids": [0, 0, 0], "nodes_nodeids": [0, 1, 2], "nodes_featureids": [0, 0, 0],
        "nodes_values": [0.5, 0.0, 0.0], "nodes_modes": ["BRANCH_LEQ", "LEAF", "LEAF"],
        "nodes_truenodeids": [1, 0, 0], "nodes_falsenodeids": [2, 0, 0], "target_treeids": [0, 0],
        "target_nodeids": [1, 2], "target_ids": [0, 0], "target_weights": [1.0, 2.0], "n_targets": 1,
    }  # fmt: skip
    node = onnx.helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", **{**attributes, **change}
    )
    with pytest.raises(ModelUnsupported, match=why):
        from_onnx(_model(node, [("y", 1)], 3))


@pytest.mark.parametrize("op", ["Imputer", "Normalizer", "SVMClassifier", "Binarizer"])
def test_other_operators_are_refused_by_name(op: str) -> None:
    onnx = pytest.importorskip("onnx")
    outputs = ["y", "z"] if op == "SVMClassifier" else ["y"]
    node = onnx.helper.make_node(op, ["x"], outputs, domain="ai.onnx.ml")
    with pytest.raises(ModelUnsupported, match=op):
        from_onnx(_model(node, [("y", 1)], 3, opset=1))


def test_a_label_of_two_classes_with_a_score_each_is_refused() -> None:
    onnx = pytest.importorskip("onnx")
    forest = [random_tree(np.random.default_rng(0), 4, 3, 2, 0.125)]
    node = onnx.helper.make_node(
        "TreeEnsembleClassifier", ["x"], ["l", "s"], domain="ai.onnx.ml", classlabels_int64s=[0, 1],
        **_nodes(forest), **_says(forest, "class"),
    )  # fmt: skip
    with pytest.raises(ModelUnsupported, match="leave the label off"):
        from_onnx(_model(node, [("l", 7), ("s", 1)], 3))


def test_notes_are_said_once() -> None:
    pytest.importorskip("onnx")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        from_onnx(VECTORS / "rf_iris_zip.onnx")
    assert [("ZipMap" in str(w.message)) for w in said] == [True]
