"""Operators of ONNX-ML, as scikit-learn, XGBoost and LightGBM are exported: trees and linear models.

What the exporters put around a model is taken off: a ZipMap, whose result is no tensor (its output holds the
scores instead), and casts of labels. A label is a number here: the class label itself where these are
integers, its position in the list of labels where they are text. It costs a comparison of all scores, so
leave that output off where only the scores are wanted.

Where the specification leaves open what two classes mean, onnxruntime decides.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from privinfer.graph import ir, trees
from privinfer.graph.build_core import Value, refuse
from privinfer.graph.build_math import Math

if TYPE_CHECKING:
    from privinfer.graph.onnx_base import Reader

DOMAIN = "ai.onnx.ml"
DEFAULT_OPSET = 13  # where a file has operators of ONNX-ML alone
INTEGERS = (6, 7)  # TensorProto.INT32 and INT64
MAX_LABELS = 65
Result = Value | list[Value | None]
Convert = Callable[["Reader", Any], Result]

_ADVICE = {
    "Binarizer": "not yet",
    "CastMap": "never: only tensors of numbers",
    "CategoryMapper": "never: only tensors of numbers",
    "DictVectorizer": "never: only tensors of numbers",
    "Imputer": "never: a missing value cannot be told from others, fill it in before",
    "LabelEncoder": "never: a table of keys, encode labels before",
    "Normalizer": "not yet, but right behind a softmax: divide rows by their norm before",
    "OneHotEncoder": "not yet, replace by a one-hot input",
    "SVMClassifier": "not yet, replace by a linear model or by trees",
    "ZipMap": "not yet",
}
_TRANSFORMS = {"NONE": "none", "LOGISTIC": "logistic", "SOFTMAX": "softmax"}
_MODES = {"BRANCH_LEQ": "<=", "BRANCH_LT": "<", "BRANCH_GTE": ">=", "BRANCH_GT": ">"}
_MODES_5 = ("<=", "<", ">=", ">")
_TRANSFORMS_5 = ("NONE", "SOFTMAX", "LOGISTIC", "SOFTMAX_ZERO", "PROBIT")
_AGGREGATES_5 = ("AVERAGE", "SUM", "MIN", "MAX")


# -- before the import ------------------------------------------------------------------------------


def prepare(onnx: Any, proto: Any) -> Any:
    """Take off what exporters put around a model; a file without ONNX-ML stays as it is.

    Parameters
    ----------
    onnx : module
        The onnx package.
    proto : onnx.ModelProto
        The file; it is not changed.

    Returns
    -------
    onnx.ModelProto
        The same function with tensors of numbers as outputs.
    """
    if not any(n.domain == DOMAIN for n in proto.graph.node):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    if not any(o.domain in ("", "ai.onnx") for o in copy.opset_import):
        copy.opset_import.append(onnx.helper.make_opsetid("", DEFAULT_OPSET))
    labels: set[str] = set()  # whole numbers, if they are numbers
    shares: set[str] = set()  # rows that are positive and add up to one
    outputs = {o.name: o for o in copy.graph.output}
    for node in copy.graph.node:
        attrs = {a.name: a for a in node.attribute}
        source = node.input[0] if node.input else ""
        if node.domain == DOMAIN and node.op_type.endswith("Classifier") and len(node.output) > 1:
            labels.add(node.output[0])
            if "post_transform" in attrs and attrs["post_transform"].s == b"SOFTMAX":
                shares.add(node.output[1])
        elif node.domain == DOMAIN and node.op_type == "ZipMap":
            _pass(node)
            if node.output[0] in outputs:
                kind = outputs[node.output[0]].type
                kind.Clear()
                kind.tensor_type.elem_type = onnx.TensorProto.FLOAT
                kind.tensor_type.shape.SetInParent()
            warnings.warn(
                f"output {node.output[0]!r} is a row of scores here, not a ZipMap's dictionary", stacklevel=4
            )
        elif node.domain == DOMAIN and node.op_type == "Normalizer" and source in shares:
            if "norm" in attrs and attrs["norm"].s == b"L1":
                _pass(node)
        elif node.op_type == "Cast" and source in labels and attrs["to"].i in INTEGERS:
            _pass(node)
        if node.op_type == "Identity":
            for known in (labels, shares):
                if source in known:
                    known.add(node.output[0])
    return copy


def _pass(node: Any) -> None:
    """Make a node that hands on its first input."""
    node.op_type, node.domain = "Identity", ""
    del node.attribute[:]
    del node.input[1:]


# -- operators --------------------------------------------------------------------------------------


def known(node: Any) -> Convert:
    """How a node of ONNX-ML is converted, or a refusal."""
    convert = _TABLE.get(node.op_type)
    return convert or refuse(_ADVICE.get(node.op_type, "not yet"))


def _numbers(imp: Reader, node: Any, name: str) -> Any:
    """A list of floats as float64: from the attribute, or from its twin that holds a tensor."""
    tensor = imp.attr(node, f"{name}_as_tensor", None)
    given = imp.attr(node, name, None) if tensor is None else imp.tensor(tensor)
    return np.asarray([] if given is None else given, dtype=np.float64).reshape(-1)


def _list(imp: Reader, node: Any, name: str) -> list[Any]:
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in imp.attr(node, name, [])]


def _transform(name: str) -> str:
    if name not in _TRANSFORMS:
        refuse(f"not yet: the transform {name} of its scores")
    return _TRANSFORMS[name]


def _row(imp: Reader, node: Any) -> Value:
    x = imp.value(node)
    return x if len(x.shape) == 1 else refuse(f"not yet: over a value of shape {x.shape}, not of one row")


def _labels(imp: Reader, node: Any, integers: str, strings: str) -> list[float]:
    """Labels as numbers; positions where they are text."""
    text = _list(imp, node, strings)
    if text and node.output[0] in imp.read:
        warnings.warn(
            f"output {node.output[0]!r} is the position of a label here, not its text", stacklevel=8
        )
    return [float(v) for v in (range(len(text)) if text else _list(imp, node, integers))]


def _label(b: Math, scores: Value, labels: Sequence[float]) -> Value:
    """The label of the largest score, the first of equal ones."""
    position = b.emit(ir.ArgMax(1), [scores])
    if list(labels) == list(range(len(labels))):
        return position
    if len(labels) > MAX_LABELS:
        refuse(f"not yet: more than {MAX_LABELS} labels other than 0, 1, 2 and so on")
    jumps = tuple(float(v) for v in np.diff(labels))
    breaks = tuple(k + 0.5 for k in range(len(jumps)))
    return b.emit(ir.Piecewise(breaks, jumps, (0.0,) * len(jumps), 0.0, float(labels[0])), [position])


def _classes(
    imp: Reader,
    node: Any,
    labels: Sequence[float],
    raw: Callable[[bool], Value],
    transform: str,
    *,
    lone: bool,
    positive: bool,
    sure: bool = True,
) -> list[Value | None]:
    """Labels and scores.

    Parameters
    ----------
    imp, node, labels, transform
        See above.
    raw : callable
        Makes the scores before the transform. Where there is one score for two classes, they are -s and s, or
        1 - s and s if its argument is true.
    lone : bool
        Whether there is one score for two classes.
    positive : bool
        Whether that one counts from 1/2 instead of from 0.
    sure : bool
        Whether it is clear which label belongs to the scores.
    """
    b: Math = imp.b
    wanted = bool(node.output[0]) and node.output[0] in imp.read
    if wanted and not sure:
        refuse(
            "not yet: the label of two classes with a score each, of which onnxruntime and the "
            "specification think differently; leave the label off, or give one class the scores"
        )
    if not lone:
        scores = raw(False)
        label = _label(b, scores, labels) if wanted else None
        return [label, trees.transformed(b, scores, transform)]
    if transform != "logistic":
        scores = raw(positive)
        return [_label(b, scores, labels) if wanted else None, scores]
    scores = raw(False)
    judged = b.affine(scores, 1.0, np.array([1.0, 0.0])) if positive and wanted else scores
    label = _label(b, judged, labels) if wanted else None
    return [label, trees.transformed(b, scores, transform)]


# -- trees ------------------------------------------------------------------------------------------


def _grow(roots: Sequence[Any], look: Callable[[Any], Any], weigh: Callable[[Any], Any]) -> list[trees.Tree]:
    """Trees from their roots.

    `look` gives (feature, threshold, mode, yes, no) of an inner node and None of a leaf, `weigh` what a
    leaf says.
    """
    found = []
    for root in roots:
        inner: dict[Any, int] = {}
        leaves: dict[Any, int] = {}
        rows: list[Any] = []
        waiting = [root]
        while waiting:
            key = waiting.pop()
            row = look(key)
            if row is None:
                leaves.setdefault(key, len(leaves))
                continue
            if key in inner:
                refuse("the nodes of a tree run in a circle, or together")
            inner[key] = len(inner)
            rows.append(row)
            waiting += [row[4], row[3]]
        places = {**inner, **{k: -1 - v for k, v in leaves.items()}}
        columns = list(zip(*rows, strict=True)) if rows else [()] * 5
        found.append(
            trees.Tree(
                [int(v) for v in columns[0]],
                [float(v) for v in columns[1]],
                [places[k] for k in columns[3]],
                [places[k] for k in columns[4]],
                np.array([weigh(k) for k in leaves]),
                list(columns[2]),
            )
        )
    return found


def _check_size(leaves: int, outputs: int) -> None:
    if outputs < 1 or leaves * outputs > trees.MAX_WEIGHTS:
        refuse(f"not yet: {leaves} nodes or leaves for {outputs} outputs")


def _forest(imp: Reader, node: Any, prefix: str, outputs: int) -> list[trees.Tree]:
    """The trees of TreeEnsembleClassifier and TreeEnsembleRegressor."""
    keys = list(zip(_list(imp, node, "nodes_treeids"), _list(imp, node, "nodes_nodeids"), strict=True))
    _check_size(len(keys), outputs)
    at = {key: k for k, key in enumerate(keys)}
    if len(at) != len(keys):
        refuse("two nodes of a tree have one number")
    features, modes = _list(imp, node, "nodes_featureids"), _list(imp, node, "nodes_modes")
    values = _numbers(imp, node, "nodes_values")
    yes, no = (_list(imp, node, f"nodes_{w}nodeids") for w in ("true", "false"))
    if not len(features) == len(modes) == len(values) == len(yes) == len(no) == len(keys):
        refuse("its lists of nodes differ in length")
    other = sorted({m for m in modes if m not in _MODES and m != "LEAF"})
    if other:
        refuse(
            f"not yet: comparisons {', '.join(other)}, replace by BRANCH_LEQ, BRANCH_LT or their opposites"
        )
    says: dict[Any, Any] = {}
    lists = (_list(imp, node, f"{prefix}_{w}") for w in ("treeids", "nodeids", "ids"))
    for tree, leaf, output, weight in zip(*lists, _numbers(imp, node, f"{prefix}_weights"), strict=True):
        if not 0 <= output < outputs or (tree, leaf) not in at:
            refuse("a weight belongs to no leaf or to no output")
        says.setdefault((tree, leaf), np.zeros(outputs))[output] += weight

    def look(key: Any) -> Any:
        k = at[key] if key in at else refuse("a branch leads nowhere")
        if modes[k] == "LEAF":
            return None
        return features[k], values[k], _MODES[modes[k]], (key[0], yes[k]), (key[0], no[k])

    branches = [k for k in range(len(keys)) if modes[k] != "LEAF"]
    children = {(keys[k][0], side[k]) for k in branches for side in (yes, no)}
    roots = [key for key in keys if key not in children]
    if len(roots) != len({t for t, _ in keys}):
        refuse("a tree has no root, or two")
    found = _grow(roots, look, lambda key: says.get(key, np.zeros(outputs)))
    if sum(len(t.features) + len(np.asarray(t.values)) for t in found) != len(keys):
        refuse("some nodes hang on no root")
    return found


def _tree_classifier(imp: Reader, node: Any) -> Result:
    x, b = _row(imp, node), imp.b
    labels = _labels(imp, node, "classlabels_int64s", "classlabels_strings")
    ids, weights = set(_list(imp, node, "class_ids")), _numbers(imp, node, "class_weights")
    base = _numbers(imp, node, "base_values")
    transform = _transform(imp.attr(node, "post_transform", "NONE"))
    forest = _forest(imp, node, "class", len(labels))
    two = len(labels) == 2
    lone = two and ids == {0}
    if len(labels) < 2:
        refuse("not yet: a classifier of one class")
    if len(base) not in ((0, 1) if lone else (0,) if two else (0, len(labels))):
        refuse(f"not yet: {len(base)} base values for {len(labels)} classes")

    def raw(from_half: bool) -> Value:
        if not lone:
            return trees.plant(b, x, forest, base if len(base) else 0.0)
        start = float(base[0]) if len(base) else 0.0
        pairs = [
            trees.Tree(
                t.features, t.thresholds, t.yes, t.no, np.array(t.values)[:, :1] * [-1.0, 1.0], t.modes
            )
            for t in forest
        ]
        return trees.plant(b, x, pairs, [float(from_half) - start, start])

    return _classes(
        imp,
        node,
        labels,
        raw,
        transform,
        lone=lone,
        positive=bool((weights >= 0).all()),
        sure=not (two and 0 in ids and 1 in ids),
    )


def _regress(imp: Reader, node: Any, forest: list[trees.Tree], base: Any, aggregate: str, post: str) -> Value:
    x, transform = _row(imp, node), _transform(post)
    outputs = np.shape(forest[0].values)[1] if forest else refuse("it holds no tree")
    if aggregate not in ("SUM", "AVERAGE"):
        refuse(f"not yet: the {aggregate} over trees, replace by their sum or average")
    if len(base) not in (0, outputs):
        refuse(f"not yet: {len(base)} base values for {outputs} outputs")
    if transform != "none" and outputs == 1:
        refuse(f"not yet: the transform {post} of one output, which onnxruntime leaves out")
    y = trees.plant(imp.b, x, forest, base if len(base) else 0.0, average=aggregate == "AVERAGE")
    return trees.transformed(imp.b, y, transform)


def _tree_regressor(imp: Reader, node: Any) -> Result:
    forest = _forest(imp, node, "target", int(imp.attr(node, "n_targets", 1)))
    base = _numbers(imp, node, "base_values")
    aggregate = imp.attr(node, "aggregate_function", "SUM")
    return _regress(imp, node, forest, base, aggregate, imp.attr(node, "post_transform", "NONE"))


def _tree_ensemble(imp: Reader, node: Any) -> Result:
    """TreeEnsemble of ONNX-ML 5: nodes and leaves apart, numbered through over all trees."""

    def tensor(name: str) -> Any:
        found = imp.attr(node, name, None)
        return np.zeros(0) if found is None else imp.tensor(found).reshape(-1)

    splits, modes, weights = tensor("nodes_splits"), tensor("nodes_modes"), tensor("leaf_weights")
    features = _list(imp, node, "nodes_featureids")
    sides = [
        (_list(imp, node, f"nodes_{w}nodeids"), _list(imp, node, f"nodes_{w}leafs"))
        for w in ("true", "false")
    ]
    targets, outputs = _list(imp, node, "leaf_targetids"), int(imp.attr(node, "n_targets", 1))
    if tensor("membership_values").size or any(m not in range(len(_MODES_5)) for m in modes.tolist()):
        refuse("not yet: BRANCH_EQ, BRANCH_NEQ or BRANCH_MEMBER, replace by other comparisons")
    lengths = {len(v) for v in (features, modes, *sides[0], *sides[1])}
    _check_size(len(weights), outputs)
    if lengths != {len(splits)} or len(targets) != len(weights):
        refuse("its lists of nodes differ in length")
    if not all(0 <= t < outputs for t in targets):
        refuse("a leaf belongs to no output")

    def look(key: tuple[bool, int]) -> Any:
        leaf, k = key
        if not 0 <= k < (len(weights) if leaf else len(splits)):
            refuse("a branch leads nowhere")
        if leaf:
            return None
        yes, no = ((bool(leafs[k]), int(ids[k])) for ids, leafs in sides)
        return features[k], splits[k], _MODES_5[int(modes[k])], yes, no

    def weigh(key: tuple[bool, int]) -> Any:
        row = np.zeros(outputs)
        row[targets[key[1]]] = weights[key[1]]
        return row

    roots = [(False, int(k)) for k in _list(imp, node, "tree_roots")]
    post = _TRANSFORMS_5[int(imp.attr(node, "post_transform", 0))]
    aggregate = _AGGREGATES_5[int(imp.attr(node, "aggregate_function", 1))]
    return _regress(imp, node, _grow(roots, look, weigh), np.zeros(0), aggregate, post)


# -- linear models ----------------------------------------------------------------------------------


def _linear(imp: Reader, node: Any, outputs: int) -> tuple[Any, Any]:
    """Weights (in, out) and biases."""
    x = _row(imp, node)
    w, c = _numbers(imp, node, "coefficients"), _numbers(imp, node, "intercepts")
    if w.size != outputs * x.shape[0] or c.size not in (0, outputs):
        refuse(f"{w.size} coefficients and {c.size} intercepts do not fit {x.shape[0]} features")
    return w.reshape(outputs, -1).T, c if c.size else np.zeros(outputs)


def _linear_classifier(imp: Reader, node: Any) -> Result:
    x, b = _row(imp, node), imp.b
    labels = _labels(imp, node, "classlabels_ints", "classlabels_strings")
    transform = _transform(imp.attr(node, "post_transform", "NONE"))
    rows = _numbers(imp, node, "coefficients").size // max(x.shape[0], 1)
    if rows != len(labels) or rows < 2:
        refuse(f"not yet: {rows} rows of coefficients for {len(labels)} classes")
    w, c = _linear(imp, node, rows)

    def raw(_: bool) -> Value:
        return b.emit(ir.Linear(*w.shape), [x], {"weight": w, "bias": c})

    return _classes(imp, node, labels, raw, transform, lone=False, positive=False)


def _linear_regressor(imp: Reader, node: Any) -> Result:
    w, c = _linear(imp, node, int(imp.attr(node, "targets", 1)))
    y = imp.b.emit(ir.Linear(*w.shape), [_row(imp, node)], {"weight": w, "bias": c})
    if _transform(imp.attr(node, "post_transform", "NONE")) != "none":
        refuse("not yet: a transform of a regressor's outputs")
    return y


def _svm_regressor(imp: Reader, node: Any) -> Result:
    """A linear kernel: the support vectors add up to one row of weights."""
    x, count = _row(imp, node), int(imp.attr(node, "n_supports", 0))
    kernel, post = imp.attr(node, "kernel_type", "LINEAR"), imp.attr(node, "post_transform", "NONE")
    if kernel != "LINEAR" or post != "NONE" or imp.attr(node, "one_class", 0):
        refuse("not yet: anything but a linear kernel, replace by a linear model or by trees")
    w, rho = _numbers(imp, node, "coefficients"), _numbers(imp, node, "rho")
    if count:
        w = w @ _numbers(imp, node, "support_vectors").reshape(count, -1)
    if w.size != x.shape[0] or rho.size != 1:
        refuse("its coefficients do not fit its features")
    return imp.b.emit(ir.Linear(w.size, 1), [x], {"weight": w[:, None], "bias": rho})


def _scaler(imp: Reader, node: Any) -> Result:
    x = _row(imp, node)
    offset, scale = _numbers(imp, node, "offset"), _numbers(imp, node, "scale")
    offset, scale = (v if v.size else np.array([d]) for v, d in ((offset, 0.0), (scale, 1.0)))
    if not {offset.size, scale.size} <= {1, x.shape[0]}:
        refuse("its offsets and factors do not fit its features")
    w = np.broadcast_to(scale, x.shape)
    return imp.b.scale(x, 1, w, -np.broadcast_to(offset, x.shape) * w)


def _feature_vectorizer(imp: Reader, node: Any) -> Result:
    xs = [imp.value(node, k) for k in range(len(node.input))]
    return imp.b.emit(ir.Concat(1), xs)


def _feature_extractor(imp: Reader, node: Any) -> Result:
    x, indices = imp.value(node), imp.array(node, 1)
    if indices is None or not len(x.shape):
        refuse("it has no indices, or nothing to take them from")
    return imp.b.take(x, x.rank - 1, [int(k) for k in indices.reshape(-1)])


_TABLE: dict[str, Convert] = {
    "ArrayFeatureExtractor": _feature_extractor,
    "FeatureVectorizer": _feature_vectorizer,
    "LinearClassifier": _linear_classifier,
    "LinearRegressor": _linear_regressor,
    "Scaler": _scaler,
    "SVMRegressor": _svm_regressor,
    "TreeEnsemble": _tree_ensemble,
    "TreeEnsembleClassifier": _tree_classifier,
    "TreeEnsembleRegressor": _tree_regressor,
}
