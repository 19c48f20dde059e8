"""Whole models of the kinds people bring: imported, analysed, and run by the oracle against torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from privinfer.backends import plain  # noqa: E402
from privinfer.backends.mpc import roles  # noqa: E402
from privinfer.errors import PrecisionError  # noqa: E402
from privinfer.graph import ir, reference  # noqa: E402
from privinfer.graph.load import from_torch  # noqa: E402
from privinfer.graph.lower import compile_program  # noqa: E402
from privinfer.graph.ranges import analyse  # noqa: E402
from tests.support import zoo  # noqa: E402

torch.set_num_threads(1)

ROWS = 8
CALIBRATION = 48

# Proven bounds add up the worst case of every rounding, 2**-16 each, and of every table, 5e-5 each, through
# |W|; for a deep model they say little. What is left of them in fact is an average: the largest error seen
# over the zoo is 5e-5, and a step that goes wrong shows in far more than five times that.
CLOSE = 2.0**-12


def loaded(name: str, **options: Any) -> tuple[Any, ir.Model]:
    """The module in double precision, as exact as the reference, and what privinfer makes of it."""
    exhibit = zoo.ZOO[name]
    module = exhibit.build().double()
    if exhibit.calibrated:
        options = {"calibration": exhibit.rows(CALIBRATION, 1)} | options
    return module, from_torch(module, exhibit.shapes, exhibit.ranges, **options)


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
    exact, fixed = reference.run(model, rows), plain.run(model, rows)
    precision = model.architecture.precision
    program = compile_program(model.architecture)
    # what is proved of these very rows: the errors of all steps, carried on with the slopes met there
    proved = analyse(model, rows, margin=1.0)
    errors = {op.output: proved[step.index].error for step, op in program.reveals()}
    assert precision.error_bound is not None
    assert precision.basis == ("calibrated" if exhibit.calibrated else "interval")
    for key, y in want.items():
        np.testing.assert_allclose(exact[key], y, rtol=0, atol=1e-5)
        stray = np.abs(fixed[key] - y)
        assert stray.max() <= min(precision.error_bound, CLOSE)
        assert (stray <= errors[key] + 1e-9).all()
    assert ir.Architecture.from_bytes(model.architecture.to_bytes()) == model.architecture


# Online messages from input to answer, one after the other: what a caller waits for. More is a regression;
# less is welcome.
ROUNDS = {
    "logistic regression": 4, "resnet18": 61, "densenet": 42, "vision transformer": 130,
    "multi-modal transformer": 71, "lstm": 100, "gru": 108, "rnn": 44, "mlp relu": 7, "mlp gelu": 11,
    "mlp sigmoid": 11,
}  # fmt: skip


@pytest.mark.parametrize("name", ROUNDS)
def test_rounds(name: str) -> None:
    _, model = loaded(name)
    assert roles.rounds(compile_program(model.architecture)) <= ROUNDS[name]


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("logistic regression", 22),
        ("densenet", 22),
        ("resnet18", 20),
        ("vision transformer", 28),
        ("multi-modal transformer", 24),
        ("gru", 22),
    ],
)
def test_fewer_bits_do(name: str, bits: int) -> None:
    """Comparisons cost by the bit: with calibrated ranges these run with few."""
    exhibit = zoo.ZOO[name]
    module, model = loaded(name, calibration=exhibit.rows(CALIBRATION, 1), comparison_bits=bits)
    rows = {k: v.astype(np.float64) for k, v in exhibit.rows(ROWS, 2).items()}
    fixed = plain.run(model, rows)
    for key, y in expected(module, rows).items():
        assert np.abs(fixed[key] - y).max() <= CLOSE


@pytest.mark.parametrize("name", ["vision transformer", "multi-modal transformer"])
def test_intervals_do_not_bound_a_transformer(name: str) -> None:
    """Attention by intervals forgets that its weights add up to one: the message says what to do."""
    with pytest.raises(PrecisionError, match=r"layer '.*norm2': values may reach") as caught:
        loaded(name, calibration=None)
    assert caught.value.hint is not None
    assert "calibration=" in caught.value.hint


def test_a_batch_is_its_rows() -> None:
    """No sample ever sees another: rows give alone what they give together."""
    for name in ("multi-modal transformer", "lstm"):
        _, model = loaded(name)
        rows = {k: v.astype(np.float64) for k, v in zoo.ZOO[name].rows(3, 3).items()}
        together = plain.run(model, rows)
        for k in range(3):
            alone = plain.run(model, {n: v[k : k + 1] for n, v in rows.items()})
            assert all((alone[o][0] == y[k]).all() for o, y in together.items())


class Damped(torch.nn.Module):
    """An activation that no library has."""

    def forward(self, x: Any) -> Any:
        return torch.sin(3 * x) * torch.exp(-x * x)


def damped(x: Any) -> Any:
    """The same in NumPy."""
    return np.sin(3 * x) * np.exp(-x * x)


def test_a_function_of_the_users_own() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        module = torch.nn.Sequential(torch.nn.Linear(10, 8), Damped(), torch.nn.Linear(8, 1)).double()
    functions = {"1": (damped, -6.0, 6.0)}
    model = from_torch(module, {"input": (1, 10)}, {"input": (-1, 1)}, functions=functions)
    rows = zoo.Exhibit(lambda: module, zoo.TABLE).rows(ROWS, 2)
    (y,) = expected(module, {k: v.astype(np.float64) for k, v in rows.items()}).values()
    np.testing.assert_allclose(reference.run(model, rows)["output"], y, rtol=0, atol=1e-12)
    stray = np.abs(plain.run(model, rows)["output"] - y)
    assert model.architecture.precision.error_bound is not None
    assert stray.max() <= model.architecture.precision.error_bound
    with pytest.raises(PrecisionError, match=r"values may lie in .*, but 1:\w+ is declared on \[-0.5, 0.5\]"):
        from_torch(module, {"input": (1, 10)}, {"input": (-1, 1)}, functions={"1": (damped, -0.5, 0.5)})
