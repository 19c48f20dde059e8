"""What a model declares about its errors, and what float64 itself may add to a comparison."""

from __future__ import annotations

import math

import numpy as np

from privinfer.graph import ir, reference
from privinfer.graph.lower import compile_program
from privinfer.graph.ranges import analyse


def output_errors(model: ir.Model) -> dict[str, ir.Array]:
    """The bound `ranges.analyse` puts on each output's error, element by element, shaped (1, ...)."""
    bounds = analyse(model)
    program = compile_program(model.architecture)
    return {op.output: bounds[step.index].error for step, op in program.reveals()}


def float_errors(model: ir.Model) -> dict[str, ir.Array]:
    """Bound on the rounding of one float64 evaluation (or interval evaluation) of every value.

    A value is a sum of products in which each term meets at most K roundings, so it strays by at most
    gamma_K = K u / (1 - K u) times the same network over absolute values (Higham, Accuracy and Stability
    of Numerical Algorithms, 2nd edition, section 3.1); ReLU is a contraction. K adds up, over all nodes,
    the terms of one sum and eight for a bias, a divisor and the halves, radii and scales of intervals.
    """
    architecture = model.architecture
    shapes = architecture.shapes()
    count = 8
    for node in architecture.nodes:
        count += 8 + {
            ir.Linear: lambda op: op.inputs,
            ir.Conv2d: lambda op: op.inputs * math.prod(op.kernel),
            ir.AvgPool2d: lambda op: math.prod(op.kernel),
        }.get(type(node.op), lambda op: 1)(node.op)
    unit = float(np.finfo(np.float64).eps) / 2
    gamma = count * unit / (1 - count * unit)
    nodes = tuple(
        ir.Node(n.name, ir.Multiply(abs(n.op.factor)), n.inputs) if isinstance(n.op, ir.Multiply) else n
        for n in architecture.nodes
    )
    positive = ir.Model(
        ir.Architecture(architecture.inputs, nodes, architecture.outputs, architecture.precision),
        {k: {p: np.abs(v) for p, v in own.items()} for k, own in model.parameters.items()},
    )
    largest = {
        i.name: np.full((1, *shapes[i.name]), max(abs(i.low), abs(i.high))) for i in architecture.inputs
    }
    found: dict[str, ir.Array] = {}
    reference.run(positive, largest, lambda name, value: found.update({name: gamma * value}))
    return found


def output_float_errors(model: ir.Model) -> dict[str, ir.Array]:
    """The same for the outputs, by name."""
    values = float_errors(model)
    return {o.name: values[o.value] for o in model.architecture.outputs}
