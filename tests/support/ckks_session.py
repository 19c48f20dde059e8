"""A small session with backend ckks on one stage: three owners, a model of a dense layer and a polynomial each."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from privinfer.graph import ir, reference
from privinfer.graph.load import from_onnx
from privinfer.graph.to_onnx import to_onnx

SHAPES = {"xray": (1, 4, 4), "dna": (5,), "blood": (3,)}
OWNERS = {"xray": "hospital", "dna": "dna_company", "blood": "laboratory"}
NAMES = ("hospital", "dna_company", "laboratory", "startup", "patient")
HOLDERS = ("hospital", "dna_company", "laboratory", "patient")
#: Smudging gives each output 2^-11 a slot, declared; Gaussian to this many deviations, once in a million runs.
TOLERANCE = 6 * 2.0**-11


def architecture() -> ir.Architecture:
    """x -> risk (2 values); every value stays within its declared range for inputs in [-1, 1]."""
    return ir.Architecture(
        tuple(ir.Input(name, shape, -1.0, 1.0) for name, shape in SHAPES.items()),
        (
            ir.Node("flat", ir.Reshape((16,)), ("xray",)),
            ir.Node("all", ir.Concat(1), ("flat", "dna", "blood")),
            ir.Node("hidden", ir.Linear(24, 4), ("all",)),
            ir.Node("bend", ir.Polynomial(-2.0, 2.0, (0.3, 0.5, 0.2)), ("hidden",)),
            ir.Node("last", ir.Linear(4, 2), ("bend",)),
        ),
        (ir.Output("risk", "last"),),
    )


@functools.cache
def model(seed: int = 0) -> ir.Model:
    """With weights of which a row adds up to less than 2."""
    rng = np.random.default_rng(seed)
    parameters = {
        node: {k: rng.uniform(-1, 1, shape) / max(shape) for k, shape in own.items()}
        for node, own in architecture().parameter_shapes().items()
    }
    return from_onnx(to_onnx(ir.Model(architecture(), parameters)).SerializeToString())


def write_model(path: Path) -> Path:
    """The same as an ONNX file."""
    path.write_bytes(to_onnx(model()).SerializeToString())
    return path


def rows(count: int = 1, seed: int = 1) -> dict[str, dict[str, np.ndarray]]:
    """Inputs by owner."""
    rng = np.random.default_rng(seed)
    return {OWNERS[n]: {n: rng.uniform(-1, 1, (count, *s))} for n, s in SHAPES.items()}


def wanted(inputs: dict[str, dict[str, np.ndarray]]) -> np.ndarray:
    """The answer in the clear."""
    flat = {k: v for own in inputs.values() for k, v in own.items()}
    return reference.run(model(), flat)["risk"]
