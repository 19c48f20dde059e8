"""ONNX's own node tests under `mpc`: the smallest case of each operator that is imported."""

from __future__ import annotations

import numpy as np
import pytest

from privinfer.graph import reference
from tests.support.bounds import output_errors, output_float_errors
from tests.support.simulate import simulate
from tests.unit.test_onnx_conformance import mpc_cases, outcome


@pytest.mark.slow
@pytest.mark.parametrize("name", mpc_cases())
def test_node(name: str) -> None:
    """Against float64, whose agreement with the stored answer test_onnx_conformance.py holds."""
    found = outcome(name)
    model, x = found.model, found.inputs
    wanted, got = reference.run(model, x), simulate(model, x).outputs
    bound, rounding = output_errors(model), output_float_errors(model)
    for key, value in wanted.items():
        assert (np.abs(got[key] - value) <= bound[key] + rounding[key]).all(), key
