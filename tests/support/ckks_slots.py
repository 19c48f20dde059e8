"""Runs a plan on slots in the clear: rotations are `np.roll`, levels are counted and checked."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from privinfer.backends.ckks import plan as planning
from privinfer.backends.ckks.diagonals import Diagonals
from privinfer.backends.ckks.plan import Plan, Weights
from privinfer.graph import ir


def product(d: Diagonals, weights: Weights, inputs: list[np.ndarray], keys: set[int]) -> np.ndarray:
    """``sum_g rot(sum_b diag * rot(x, b), g)``, folds, bias: (ciphertexts, S)."""
    found = np.zeros((d.result.ciphertexts, d.result.slots))
    for o in range(d.result.ciphertexts):
        for g in np.unique(d.giant[d.output == o]):
            chosen = np.nonzero((d.output == o) & (d.giant == g))[0]
            part = sum(weights.diagonals[i] * np.roll(inputs[d.input[i]], -d.baby[i]) for i in chosen)
            found[o] += np.roll(part, -g)
    for f in d.folds:
        found = found + np.roll(found, -f, axis=1)
    assert {int(s) for s in {*d.giant, *d.baby, *d.folds}} - {0} <= keys
    return found if weights.bias is None else found + weights.bias


def run(plan: Plan, model: ir.Model, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of one row, without a batch; asserts that every step finds the levels it says."""
    constants = dict(planning.weights(plan, model))
    keys = set(plan.rotations)
    values: dict[str, np.ndarray] = {}
    levels: dict[str, int] = {}
    shown = {}

    def take(name: str, level: int) -> np.ndarray:
        assert levels[name] >= level, name
        return values[name]

    def put(name: str, value: np.ndarray, level: int) -> None:
        assert 1 <= level <= plan.parameters.levels, name
        assert value.shape == (plan.layouts[name].ciphertexts, plan.parameters.slots)
        values[name], levels[name] = value, level

    for step in plan.steps:
        match step:
            case planning.Source():
                put(step.name, step.layout.pack(inputs[step.name].reshape(-1)), step.level)
            case planning.Linear():
                flat = [c for k in step.inputs for c in take(k, step.level)]
                assert step.level <= plan.linear_levels
                d = plan.diagonals[step.name]
                put(step.name, product(d, constants[step.name], flat, keys), step.level - 1)
            case planning.Activate():
                t = take(step.argument, step.level)
                put(step.name, np.polynomial.chebyshev.chebval(t, step.coefficients), step.level - step.depth)
            case planning.Product():
                y = take(step.first, step.level) * take(step.second, step.level)
                put(step.name, y, step.level - 1)
            case planning.Refresh():
                for v in step.values:
                    put(v.name, take(v.name, v.span.low), v.span.high)
            case planning.Opened():
                shown[step.name] = step.layout.unpack(take(step.value, step.level)).reshape(step.shape)
    for (
        name,
        layout,
    ) in plan.layouts.items():  # every number stands where the layout says, at every repetition
        assert np.allclose(values[name], np.roll(values[name], layout.period, axis=1), rtol=0, atol=1e-9)
    assert {k: levels[k] for k in plan.levels} == plan.levels
    return shown
