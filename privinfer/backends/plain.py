"""The fixed-point oracle: the program of the protocols, run on plaintext integers. It protects nothing.

It rounds where the protocols round (to nearest, ties up) and uses NumPy alone, so that it is a twin of
the kernels and not a second use of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from privinfer.backends.base import Outputs
from privinfer.graph import fixedpoint as fp
from privinfer.graph import ir, reference
from privinfer.graph.lower import compile_program
from privinfer.graph.ranges import check_inputs

I64 = npt.NDArray[np.int64]


def run(model: ir.Model, inputs: Mapping[str, object]) -> Outputs:
    """Evaluate a model in fixed point, in the clear.

    Parameters
    ----------
    model : Model
        With its declared precision.
    inputs : mapping of array_like
        All inputs, batch first.

    Returns
    -------
    dict of ndarray
        Outputs by name, float64.

    Raises
    ------
    InputError
        As for a real run.
    """
    rows = check_inputs(model.architecture, inputs)
    program = compile_program(model.architecture)
    values: list[I64] = []
    outputs: Outputs = {}
    for step in program.steps:
        xs = [values[i] for i in step.inputs]
        match step.operation:
            case fp.Source(name):
                y = fp.encode(rows[name], step.type.frac).view(np.int64)
            case fp.Bilinear() as op:
                frac = program.steps[step.inputs[0]].type.frac
                y = _bilinear(op, frac, xs[0], model.parameters[step.node])
            case fp.Rectify():
                y = np.maximum(xs[0], 0)
            case fp.Truncate(shift):
                y = _round(xs[0], shift)
            case fp.Extend():
                y = xs[0]
            case fp.Pieces() as op:
                y = _pieces(op, xs[0])
            case fp.Table() as op:
                y = _table(op, xs[0])
            case fp.Product(matmul, shift):
                y = _round(xs[0] @ xs[1] if matmul else xs[0] * xs[1], shift)
            case fp.Larger():
                first, second = xs[0][:, 0::2], xs[0][:, 1::2]
                y = np.where(first[:, :, :1] >= second[:, :, :1], first, second)
            case fp.Offset() as op:
                y = xs[0] + op.array().view(np.int64)
            case fp.Reveal(name):
                y = xs[0]
                outputs[name] = fp.decode(y.view(np.uint64), step.type)
            case _:
                y = fp.apply_local(step, [x.view(np.uint64) for x in xs]).view(np.int64)
        values.append(_centred(y, step.type.bits))
    return outputs


def _bilinear(op: fp.Bilinear, frac: int, x: I64, parameters: Mapping[str, ir.Array]) -> I64:
    weight = fp.encode(parameters["weight"], op.weight_frac).view(np.int64)
    bias = fp.encode(parameters["bias"], frac + op.weight_frac).view(np.int64)
    z = reference.linear_map(op.op, x, weight)
    return _round(z + reference.along(bias, reference.bias_axis(op.op, z.ndim), z.ndim), op.shift)


def _pieces(op: fp.Pieces, x: I64) -> I64:
    y = np.int64(op.offset) + np.int64(op.slope) * x
    for at, jump, bend in zip(op.breaks, op.jumps, op.bends, strict=True):
        y = y + (x >= at) * (np.int64(jump) + np.int64(bend) * (x - np.int64(at)))
    return _round(y, op.shift)


def _table(op: fp.Table, x: I64) -> I64:
    rows = np.array(op.coefficients, dtype=np.int64).reshape(op.degree + 1, -1)
    above = x - np.int64(op.low)
    u = np.clip(above >> np.int64(op.step_bits), 0, rows.shape[1] - 1)
    t = above - (u << np.int64(op.step_bits))
    y = rows[op.degree][u]
    for k in range(op.degree - 1, -1, -1):
        y = y * t + rows[k][u]
    return _round(y, op.shift)


def _round(x: I64, shift: int) -> I64:
    return x if not shift else (x + np.int64(1 << (shift - 1))) >> np.int64(shift)


def _centred(x: I64, bits: int) -> I64:
    spare = np.int64(fp.WIDE - bits)
    return (x << spare) >> spare
