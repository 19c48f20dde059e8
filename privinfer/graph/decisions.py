"""What a model decides by its outputs, and how often that is right: classes, labels, accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from privinfer.errors import InputError
from privinfer.graph import ir

Array = npt.NDArray[np.float64]
Classes = npt.NDArray[np.int64]


def classes(model: ir.Model, labels: Any, count: int) -> dict[str, Classes]:
    """Labels by output, checked: as many as decisions, and classes that exist."""
    if labels is None:
        return {}
    outputs = {o.name: o.value for o in model.architecture.outputs}
    if not isinstance(labels, Mapping):
        if len(outputs) > 1:
            raise InputError(f"labels need the name of one of the outputs {', '.join(outputs)}")
        labels = {next(iter(outputs)): labels}
    shapes, found = model.architecture.shapes(), {}
    for name, given in labels.items():
        if name not in outputs:
            raise InputError(f"labels are given for {name!r}, which is no output")
        shape = shapes[outputs[name]]
        one = math.prod(shape) == 1
        values = np.asarray(given)
        if values.dtype.kind not in "iubf" or values.size != count * (1 if one else math.prod(shape[:-1])):
            raise InputError(f"the labels of {name!r} do not fit {count} rows of shape {shape}")
        many = 2 if one else shape[-1]
        if not np.isin(values, np.arange(many)).all():
            raise InputError(f"the labels of {name!r} are not all integers from 0 to {many - 1}")
        found[name] = values.astype(np.int64).reshape(count, -1)
    return found


def probability(architecture: ir.Architecture, output: str) -> bool:
    """Whether an output ends in a sigmoid, so that one half decides and not zero."""
    value = next(o.value for o in architecture.outputs if o.name == output)
    made = {n.name: n for n in architecture.nodes}
    while value in made and isinstance(made[value].op, ir.Reshape | ir.Transpose):
        value = made[value].inputs[0]
    op = made[value].op if value in made else None
    return isinstance(op, ir.Function) and op.name == "sigmoid"


def decided(model: ir.Model, outputs: Mapping[str, Array]) -> dict[str, Classes]:
    """Classes: the side of zero (of one half for a probability), or the largest value of the last axis."""
    found = {}
    for name, y in outputs.items():
        if y[0].size == 1:
            found[name] = (y.reshape(len(y), 1) > (0.5 if probability(model.architecture, name) else 0.0)) * 1
        else:
            found[name] = y.argmax(axis=-1).reshape(len(y), -1)
    return found


def accuracy(model: ir.Model, outputs: Mapping[str, Array], labels: Mapping[str, Classes]) -> float | None:
    """Share of decisions that are as labelled, the mean over outputs with labels; None without any."""
    answers = decided(model, outputs)
    shares = [float((answers[k] == wanted).mean()) for k, wanted in labels.items()]
    return sum(shares) / len(shares) if shares else None


def agreement(model: ir.Model, outputs: Mapping[str, Array], others: Mapping[str, Array]) -> float:
    """Share of rows on which two sets of outputs lead to the same decisions throughout."""
    a, b = decided(model, outputs), decided(model, others)
    return float(np.concatenate([(a[k] == b[k]).all(axis=1, keepdims=True) for k in a], axis=1).all(1).mean())
