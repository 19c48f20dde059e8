"""Whole models of the kinds people bring: imported, analysed, and run by the oracle against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from privinfer.backends import plain  # noqa: E402
from privinfer.backends.mpc import roles  # noqa: E402
from privinfer.graph import ir, reference  # noqa: E402
from privinfer.graph.load import from_torch  # noqa: E402
from privinfer.graph.lower import compile_program  # noqa: E402
from tests.support import zoo  # noqa: E402

torch.set_num_threads(1)

ROWS = 8
CALIBRATION = 48


def loaded(name: str) -> tuple[Any, ir.Model]:
    """The module in double precision, as exact as the reference, and what privinfer makes of it."""
    exhibit = zoo.ZOO[name]
    module = exhibit.build().double()
    calibration = exhibit.rows(CALIBRATION, 1) if exhibit.calibrated else None
    model = from_torch(module, exhibit.shapes, exhibit.ranges, calibration=calibration, **exhibit.options)
    return module, model


def expected(module: Any, rows: dict[str, Any]) -> dict[str, Any]:
    """Torch's own answers."""
    with torch.no_grad():
        y = module(**{k: torch.from_numpy(v) for k, v in rows.items()})
    y = y if isinstance(y, dict) else {"output": y}
    return {k: v.numpy() for k, v in y.items()}


@pytest.mark.parametrize("name", zoo.NAMES)
def test_model(name: str) -> None:
    exhibit = zoo.ZOO[name]
    module, model = loaded(name)
    rows = {k: v.astype(np.float64) for k, v in exhibit.rows(ROWS, 2).items()}
    want = expected(module, rows)
    got, fixed = reference.run(model, rows), plain.run(model, rows)
    precision = model.architecture.precision
    bound = precision.error_bound
    assert bound is not None
    limit = bound if exhibit.tolerance is None else exhibit.tolerance
    for key, y in want.items():
        np.testing.assert_allclose(got[key], y, rtol=0, atol=1e-5)
        np.testing.assert_allclose(fixed[key], y, rtol=0, atol=limit)
    program = compile_program(model.architecture)
    errors = [float(np.abs(fixed[k] - y).max()) for k, y in want.items()]
    print(
        f"\n{name}: {len(program.steps)} steps, {roles.rounds(program)} rounds, "
        f"{precision.comparison_bits} bits, bound {bound:.3g}, error {max(errors):.3g}"
    )
    assert ir.Architecture.from_bytes(model.architecture.to_bytes()) == model.architecture
