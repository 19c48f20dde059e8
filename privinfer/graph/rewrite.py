"""Rewrites of a graph with its parameters that keep what it computes and lower what it costs.

Each pass takes and gives back (architecture, parameters); only the model owner can run them, before the
architecture is made public. Where a step folds depends on shapes and structure alone, never on the values
of weights, so the published architecture tells nothing of them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from privinfer.graph import ir, reference

Pair = tuple[ir.Architecture, ir.Parameters]


def simplify(architecture: ir.Architecture, parameters: ir.Parameters) -> Pair:
    """All passes of this module, in the order that leaves least to do: dead nodes first and last.

    Parameters
    ----------
    architecture : Architecture
        A graph whose shapes fit.
    parameters : dict of dict of ndarray
        Its parameters; not changed.

    Returns
    -------
    architecture, parameters
        An equivalent pair.
    """
    return remove_dead(*fold_affine(*merge_reshapes(*remove_dead(architecture, parameters))))


def remove_dead(architecture: ir.Architecture, parameters: ir.Parameters) -> Pair:
    """Drop nodes no output depends on; inputs stay, for their owners are part of the agreement."""
    live = {o.value for o in architecture.outputs}
    kept: list[ir.Node] = []
    for node in reversed(architecture.nodes):
        if node.name in live:
            live.update(node.inputs)
            kept.append(node)
    nodes = tuple(reversed(kept))
    return (
        dataclasses.replace(architecture, nodes=nodes),
        {n.name: parameters[n.name] for n in nodes if n.name in parameters},
    )


def merge_reshapes(architecture: ir.Architecture, parameters: ir.Parameters) -> Pair:
    """Let a reshape of a reshape start from the first value; the one between dies if nobody else reads it."""
    source: dict[str, str] = {}
    nodes = []
    for node in architecture.nodes:
        if isinstance(node.op, ir.Reshape):
            first = source.get(node.inputs[0], node.inputs[0])
            source[node.name] = first
            node = dataclasses.replace(node, inputs=(first,))  # noqa: PLW2901 - the rewritten node
        nodes.append(node)
    return remove_dead(dataclasses.replace(architecture, nodes=tuple(nodes)), parameters)


def fold_affine(architecture: ir.Architecture, parameters: ir.Parameters) -> Pair:
    """Fold Scale and Multiply into the Linear, Conv2d or Scale before them, if nobody else reads that value.

    Covers batch normalisation, a bias added later and factors::

        s (x W + b) + t = x (W s) + (b s + t)

    Two public factors in a row become one.
    """
    shapes = architecture.shapes()
    uses = Counter(i for n in architecture.nodes for i in n.inputs)
    uses.update(o.value for o in architecture.outputs)
    params = {name: dict(p) for name, p in parameters.items()}
    nodes: dict[str, ir.Node] = {}
    alias: dict[str, str] = {}
    for original in architecture.nodes:
        node = dataclasses.replace(original, inputs=tuple(alias.get(i, i) for i in original.inputs))
        before = nodes.get(node.inputs[0]) if node.inputs else None
        # uses counts original names: the value read here is original.inputs[0], whatever node now makes it
        if before is not None and uses[original.inputs[0]] == 1:
            rank = len(shapes[original.inputs[0]]) + 1
            if _absorb(before, node, rank, params):
                alias[original.name] = before.name
                params.pop(original.name, None)
                continue
            if isinstance(before.op, ir.Multiply) and isinstance(node.op, ir.Multiply):
                factor = before.op.factor * node.op.factor
                nodes[before.name] = dataclasses.replace(before, op=ir.Multiply(factor))
                alias[original.name] = before.name
                continue
        nodes[node.name] = node
    outputs = tuple(ir.Output(o.name, alias.get(o.value, o.value)) for o in architecture.outputs)
    return dataclasses.replace(architecture, nodes=tuple(nodes.values()), outputs=outputs), params


def _absorb(before: ir.Node, node: ir.Node, rank: int, params: ir.Parameters) -> bool:
    """Put `node`, an affine map, into the parameters of `before`; False where that is not possible."""
    if not isinstance(before.op, ir.Linear | ir.Conv2d | ir.Scale):
        return False
    axis = reference.bias_axis(before.op, rank)
    if isinstance(node.op, ir.Scale) and node.op.axis == axis:
        by, plus = params[node.name]["weight"], params[node.name]["bias"]
    elif isinstance(node.op, ir.Multiply):
        by, plus = np.asarray(node.op.factor), np.asarray(0.0)
    else:
        return False
    own: Mapping[str, ir.Array] = params[before.name]
    with np.errstate(all="ignore"):  # an overflow ends in ir.Model's check of finite parameters
        side = by[:, None, None, None] if by.ndim and isinstance(before.op, ir.Conv2d) else by
        params[before.name] = {"weight": own["weight"] * side, "bias": own["bias"] * by + plus}
    return True


# --- constants an exporter left to be computed, mostly shapes of reshapes

_CAST = {1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 9: np.bool_, 11: np.float64}
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}
CONSTANT_OPS = frozenset(
    ("Cast", "Concat", "Div", "Flatten", "Gather", "Neg", "Reshape", "Slice", "Squeeze", "Transpose")
).union(_ARITHMETIC, ("Unsqueeze",))


def fold_constant(op: str, xs: Sequence[Any], attrs: Mapping[str, Any]) -> Any:
    """Compute one ONNX operator of :data:`CONSTANT_OPS` on constants, in their own types.

    Parameters
    ----------
    op : str
        Operator type.
    xs : sequence of ndarray or None
        Its inputs.
    attrs : mapping
        Its attributes; axes may stand here (older opsets) or among the inputs.

    Returns
    -------
    ndarray
        The result. What does not fit raises ValueError, TypeError, IndexError, KeyError or ArithmeticError.
    """
    x = xs[0]

    def given(k: int, name: str, default: Any = None) -> Any:
        found = xs[k].reshape(-1).tolist() if k < len(xs) and xs[k] is not None else attrs.get(name)
        return default if found is None else found

    match op:
        case "Cast":
            return x.astype(_CAST[attrs["to"]])
        case "Concat":
            return np.concatenate(xs, axis=attrs["axis"])
        case "Gather":
            return np.take(x, xs[1], axis=attrs.get("axis", 0))
        case "Slice":
            starts, ends = given(1, "starts"), given(2, "ends")
            axes = given(3, "axes", range(len(starts)))
            cut = [slice(None)] * x.ndim
            for a, i, j, step in zip(axes, starts, ends, given(4, "", [1] * len(starts)), strict=True):
                cut[a] = slice(i, j, step)
            return x[tuple(cut)]
        case "Squeeze":
            axes = given(1, "axes")
            return np.squeeze(x, None if axes is None else tuple(axes))
        case "Unsqueeze":
            return np.expand_dims(x, tuple(given(1, "axes")))
        case "Flatten":
            axis = attrs.get("axis", 1)
            return x.reshape(int(np.prod(x.shape[:axis])), -1)
        case "Reshape":
            to = given(1, "shape")
            return x.reshape([x.shape[k] if d == 0 else d for k, d in enumerate(to)])
        case "Transpose":
            return x.transpose(attrs.get("perm"))
        case "Neg":
            return -x
    y = xs[1]
    if np.broadcast_shapes(x.shape, y.shape) not in (x.shape, y.shape):
        raise ValueError("constants that enlarge each other")
    if op == "Div":
        if not y.all():
            raise ZeroDivisionError
        q = np.true_divide(x, y)
        return (q if x.dtype.kind == "f" else np.trunc(q)).astype(x.dtype)
    with np.errstate(all="ignore"):
        return _ARITHMETIC[op](x, y)
