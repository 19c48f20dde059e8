"""Which values of a graph are curves of one other value, and the graph with polynomials in their places.

An activation may be one node (a ReLU) or several: ``x * clip(x + 3, 0, 6) / 6``. All nodes that work element
by element on one and the same value are taken together as one curve.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from privinfer.errors import ModelUnsupported
from privinfer.graph import ir, reference, rewrite

CURVED = ir.Relu | ir.Function | ir.Piecewise
STRAIGHT = ir.Multiply | ir.Shift
KEPT = (
    *(ir.Linear, ir.Conv2d, ir.Scale, ir.AvgPool2d, ir.Add, ir.Multiply, ir.Shift, ir.Mul, ir.MatMul),
    *(ir.Concat, ir.Reshape, ir.Transpose, ir.Sum, ir.Gather, ir.Polynomial),
)
END_RATIO = 8.0  # no end of a range is nearer to 0 than this part of the other


@dataclass(frozen=True, slots=True)
class Curve:
    """A function of one variable that a graph applies element by element.

    Attributes
    ----------
    node : str
        The last of its nodes: its value is that of the curve.
    source : str
        The value it is a function of.
    nodes : tuple of Node
        Its nodes, in order.
    """

    node: str
    source: str
    nodes: tuple[ir.Node, ...]

    @property
    def name(self) -> str:
        """What it is made of, such as ``relu`` or ``sigmoid``."""
        curved = [n.op for n in self.nodes if not isinstance(n.op, STRAIGHT | ir.Add)]
        return " ".join(
            op.name if isinstance(op, ir.Function) else type(op).__name__.lower() for op in curved
        )

    def __call__(self, x: ir.Array) -> ir.Array:
        """Values at `x`, in float64."""
        values = {self.source: np.asarray(x, dtype=np.float64)}
        for node in self.nodes:
            values[node.name] = reference.apply(node.op, {}, [values[i] for i in node.inputs])
        return values[self.node]


def find(architecture: ir.Architecture) -> dict[str, Curve]:
    """All curves by the name of their last node, in the order of the graph.

    Raises
    ------
    ModelUnsupported
        A curve jumps; the message names the node.
    """
    origin: dict[str, tuple[str, bool]] = {}  # what a value is a function of, and whether it is bent
    made: dict[str, ir.Node] = {}
    for node in architecture.nodes:
        made[node.name] = node
        if isinstance(node.op, ir.Piecewise) and any(node.op.jumps):
            raise ModelUnsupported(
                f"node {node.name!r}: a comparison jumps, and no polynomial comes near",
                hint="leave the comparison off, or run under mpc",
            )
        known = [origin.get(i, (i, False)) for i in node.inputs]
        if isinstance(node.op, CURVED | STRAIGHT):
            origin[node.name] = (known[0][0], known[0][1] or isinstance(node.op, CURVED))
        elif isinstance(node.op, ir.Add | ir.Mul) and known[0][0] == known[1][0]:
            bent = known[0][1] or known[1][1] or isinstance(node.op, ir.Mul)
            origin[node.name] = (known[0][0], bent)
    read_outside = {o.value for o in architecture.outputs}
    read_outside.update(i for n in architecture.nodes if n.name not in origin for i in n.inputs)
    found = {}
    for node in architecture.nodes:
        source, bent = origin.get(node.name, ("", False))
        if bent and node.name in read_outside:
            wanted = {node.name}
            for other in reversed(list(made.values())):
                if other.name in wanted and other.name in origin:
                    wanted.update(i for i in other.inputs if i != source)
            nodes = tuple(n for n in architecture.nodes if n.name in wanted)
            found[node.name] = Curve(node.name, source, nodes)
    return found


def replaced(
    architecture: ir.Architecture,
    parameters: ir.Parameters,
    by: Mapping[str, ir.Polynomial],
    curves: Mapping[str, Curve],
) -> rewrite.Pair:
    """The graph with a polynomial of its source in the place of each curve."""
    nodes = tuple(
        ir.Node(n.name, by[n.name], (curves[n.name].source,)) if n.name in by else n
        for n in architecture.nodes
    )
    return rewrite.remove_dead(dataclasses.replace(architecture, nodes=nodes, tables=()), parameters)


def averaged(architecture: ir.Architecture) -> ir.Architecture:
    """Each maximum along an axis as a mean: another function, which has to be asked for."""
    shapes = architecture.shapes()
    nodes: list[ir.Node] = []
    for node in architecture.nodes:
        if not isinstance(node.op, ir.Max):
            nodes.append(node)
            continue
        total = f"{node.name}.sum"
        while total in shapes:
            total += "_"
        count = shapes[node.inputs[0]][node.op.axis - 1]
        nodes.append(ir.Node(total, ir.Sum(node.op.axis), node.inputs))
        nodes.append(ir.Node(node.name, ir.Multiply(1.0 / count), (total,)))
    return dataclasses.replace(architecture, nodes=tuple(nodes))


def check_kept(architecture: ir.Architecture, curves: Mapping[str, Curve]) -> None:
    """Raise ModelUnsupported for the first node that is neither part of a curve nor polynomial itself."""
    inside = {n.name for c in curves.values() for n in c.nodes}
    for node in architecture.nodes:
        if node.name in inside or isinstance(node.op, KEPT):
            continue
        hint = ""
        if isinstance(node.op, ir.Max):
            hint = "average_pools=True takes means instead, which is another function"
        elif isinstance(node.op, ir.Softmax):
            hint = "where it is the last node, privinfer.fix(model, final=True) leaves it to the receiver"
        raise ModelUnsupported(
            f"node {node.name!r} ({type(node.op).__name__}): no polynomial takes its place", hint=hint or None
        )


def around(low: float, high: float, margin: float) -> tuple[float, float]:
    """A range with powers of two for ends, that holds `margin` times what was seen on either side of 0.

    So coarse, it tells little of the weights.
    """
    reach = _power(margin * max(abs(low), abs(high), 2.0**-20))
    ends = (max(_power(margin * max(v, 2.0**-40)), reach / END_RATIO) for v in (-low, high))
    below, above = ends
    return -below, above


def _power(v: float) -> float:
    """Least power of two that is no less."""
    fraction, exponent = math.frexp(v)
    return math.ldexp(1.0, exponent - (fraction == 0.5))
