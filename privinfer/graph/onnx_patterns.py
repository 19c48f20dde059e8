"""Groups of ONNX nodes that older exporters write for one operator: layer normalisation and GELU."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from privinfer.graph.build import Const, Value
from privinfer.graph.onnx_base import Reader

# numbers that only occur in GELU: sqrt 2, its inverse, and those of the tanh approximation
_MARKS = (math.sqrt(2.0), math.sqrt(0.5), math.sqrt(2.0 / math.pi), 0.044715)
_AROUND = (*_MARKS, 0.5, 1.0, 3.0)
_REACH = 9
_PARTS = ("Mul", "Div", "Add", "Erf", "Tanh", "Pow")


@dataclass
class Patterns:
    """Nodes by position: those converted in another way, and those left out."""

    fused: dict[int, Callable[[Reader], Value | None]] = field(default_factory=dict)
    skip: set[int] = field(default_factory=set)


def find(imp: Reader) -> Patterns:
    """Find the groups of a graph whose initializers have been read."""
    found = Patterns()
    made = {o: k for k, n in enumerate(imp.graph.node) for o in n.output if o}
    readers: dict[str, list[int]] = {}
    for k, node in enumerate(imp.graph.node):
        for name in set(node.input):
            readers.setdefault(name, []).append(k)
    for k, node in enumerate(imp.graph.node):
        if node.op_type == "Div" and not node.domain:
            _layer_norm(imp, k, made, readers, found)
    _gelu(imp, made, readers)
    return found


def _number(imp: Reader, name: str, made: dict[str, int]) -> float | None:
    """A one-element constant of a file."""
    known = imp.env.get(name)
    if isinstance(known, Const):
        return float(known.array.reshape(())) if known.array.size == 1 else None
    if name not in made or (node := imp.graph.node[made[name]]).op_type != "Constant":
        return None
    (a,) = node.attribute
    if a.name == "value_float":
        return float(a.f)
    array = imp.tensor(a.t) if a.name == "value" else None
    return float(array.reshape(())) if array is not None and array.size == 1 else None


def _layer_norm(
    imp: Reader, k: int, made: dict[str, int], readers: dict[str, list[int]], found: Patterns
) -> None:
    """``(x - mean) / sqrt(mean((x - mean)^2) + eps)``."""

    def maker(name: str, kind: str) -> Any:
        node = imp.graph.node[made[name]] if name in made else None
        return node if node is not None and node.op_type == kind and not node.domain else None

    def averaged(name: str) -> tuple[str, tuple[int, ...]] | None:
        node = maker(name, "ReduceMean")
        if node is None or not imp.attr(node, "keepdims", 1):
            return None
        axes = imp.attr(node, "axes", None)
        if axes is None and len(node.input) > 1:
            known = imp.env.get(node.input[1])
            if isinstance(known, Const):
                axes = known.array.reshape(-1).tolist()
            elif (c := maker(node.input[1], "Constant")) is not None and c.attribute[0].name == "value":
                axes = imp.tensor(c.attribute[0].t).reshape(-1).tolist()
        return (node.input[0], tuple(axes)) if axes else None

    def centred(name: str) -> tuple[str, tuple[int, ...]] | None:
        node = maker(name, "Sub")
        mean = averaged(node.input[1]) if node is not None else None
        return mean if mean is not None and mean[0] == node.input[0] else None

    above, below = imp.graph.node[k].input
    root = maker(below, "Sqrt")
    total = maker(root.input[0], "Add") if root is not None else None
    if total is None or readers[below] != [k] or below in imp.shown:
        return
    for inner, other in (total.input, reversed(total.input)):
        eps, variance = _number(imp, other, made), averaged(inner)
        if eps is None or variance is None or eps < 0:
            continue
        square = maker(variance[0], "Pow")
        if square is not None and _number(imp, square.input[1], made) != 2:
            continue
        square = square or maker(variance[0], "Mul")
        if square is None or (square.op_type == "Mul" and square.input[0] != square.input[1]):
            continue
        x = centred(square.input[0])
        if x is not None and x == centred(above) and x[1] == variance[1]:
            found.skip.add(made[below])
            found.fused[k] = partial(_normalized, name=x[0], axes=x[1], eps=eps)
            return


def _normalized(imp: Reader, name: str, axes: tuple[int, ...], eps: float) -> Value | None:
    x = imp.env[name]
    return imp.b.layer_norm(imp.whole(x), axes, None, None, eps) if isinstance(x, Value) else None


def _gelu(imp: Reader, made: dict[str, int], readers: dict[str, list[int]]) -> None:
    """Make one-element initializers public that belong to a GELU: the builder does the rest."""
    singles = {
        name: float(c.array.reshape(()))
        for name, c in imp.env.items()
        if isinstance(c, Const) and c.array.size == 1 and c.array.dtype.kind == "f"
    }
    marks = [n for n, v in singles.items() if any(math.isclose(v, m, rel_tol=1e-6) for m in _MARKS)]
    nodes = imp.graph.node
    for mark in marks:
        frontier = {k for k in readers.get(mark, []) if nodes[k].op_type in ("Mul", "Div")}
        seen: set[int] = set()
        for _ in range(_REACH):
            seen |= frontier
            frontier = {r for k in frontier for o in nodes[k].output for r in readers.get(o, [])} - seen
            frontier = {k for k in frontier if nodes[k].op_type in _PARTS}
        if not any(nodes[k].op_type in ("Erf", "Tanh") for k in seen):
            continue
        seen |= {k for i in {i for k in seen for i in nodes[k].input} if (k := made.get(i)) is not None}
        for name in {i for k in seen if nodes[k].op_type in _PARTS for i in nodes[k].input} & singles.keys():
            const = imp.env[name]
            if isinstance(const, Const) and any(
                math.isclose(singles[name], v, rel_tol=1e-6) for v in _AROUND
            ):
                imp.env[name] = replace(const, public=True)
