"""Tables of piecewise polynomials: what they claim to prove holds, and they are no larger than need be."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privinfer.errors import ModelUnsupported, PrecisionError
from privinfer.graph import approx, functions
from privinfer.graph.approx import compile_bands, compile_table, evaluate_bands
from privinfer.graph.functions import FUNCTIONS


def exact(name: str):
    """The function in mpmath, which comes with torch."""
    mpmath = pytest.importorskip("mpmath")
    return {
        "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
        "tanh": mpmath.tanh,
        "gelu": lambda x: x * (1 + mpmath.erf(x / mpmath.sqrt(2))) / 2,
        "gelu_tanh": lambda x: (
            x * (1 + mpmath.tanh(mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3))) / 2
        ),
        "silu": lambda x: x / (1 + mpmath.exp(-x)),
        "softplus": lambda x: mpmath.log(1 + mpmath.exp(x)),
        "log_sigmoid": lambda x: -mpmath.log(1 + mpmath.exp(-x)),
        "mish": lambda x: x * mpmath.tanh(mpmath.log(1 + mpmath.exp(x))),
        "elu": mpmath.expm1,
        "selu": lambda x: functions.SELU_ALPHA * functions.SELU_SCALE * mpmath.expm1(x),
        "erf": mpmath.erf,
        "exp": mpmath.exp,
        "log": mpmath.log,
        "reciprocal": lambda x: 1 / x,
        "sqrt": mpmath.sqrt,
        "rsqrt": lambda x: 1 / mpmath.sqrt(x),
        "sin": mpmath.sin,
        "cos": mpmath.cos,
        "softsign": lambda x: x / (1 + abs(x)),
        "atan": mpmath.atan,
    }[name], mpmath


NEGATIVE = ("elu", "selu")
POSITIVE = ("log", "sqrt", "rsqrt", "reciprocal")


def usual(name: str) -> tuple[float, float]:
    return (-8.0, 0.0) if name in NEGATIVE else (0.25, 16.0) if name in POSITIVE else (-8.0, 8.0)


def differences(table: approx.Table, fn, count: int = 100_000) -> tuple[float, float]:
    """Largest absolute and relative difference, over both rows of every input tried, ends included."""
    X = np.unique(np.linspace(table.low, table.high, count).astype(np.int64))
    y = fn(np.ldexp(X.astype(np.float64), -table.frac_in))
    e = np.maximum(*(np.abs(table.evaluate(X, upper) - y) for upper in (False, True)))
    least = np.abs(y)
    return float(e.max()), float((e[least > 0] / least[least > 0]).max(initial=0.0))


def holds(table: approx.Table, fn, loose: float = 3.0) -> None:
    table.check()
    seen, ratio = differences(table, fn)
    assert seen <= table.error <= loose * seen
    assert ratio <= table.relative


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
class TestFunctions:
    def points(self, name: str) -> np.ndarray:
        return np.linspace(*usual(name), 41) + (0.01 if name not in NEGATIVE else -0.01)

    def test_values_agree_with_mpmath(self, name: str) -> None:
        x = self.points(name)
        fn, mpmath = exact(name)
        with mpmath.workdps(40):
            y = np.array([float(fn(mpmath.mpf(float(v)))) for v in x])
        assert np.abs(FUNCTIONS[name](x) - y).max() <= 1e-14 * max(1.0, np.abs(y).max())

    def test_derivatives_are_bounded(self, name: str) -> None:
        """On short and on long intervals, against derivatives in 40 digits."""
        x = self.points(name)
        fn, mpmath = exact(name)
        with mpmath.workdps(40):
            for k in range(1, 5):
                y = np.array([abs(float(mpmath.diff(fn, mpmath.mpf(float(v)), k))) for v in x])
                bound = FUNCTIONS[name].bound
                assert (y <= bound(k, x, x) * (1 + 1e-12) + 1e-15).all(), k
                assert (y[:-1] <= bound(k, x[:-1], x[1:]) * (1 + 1e-12) + 1e-15).all(), k
                assert (y[1:] <= bound(k, x[:-1], x[1:]) * (1 + 1e-12) + 1e-15).all(), k
                assert y.max() <= bound(k, x[:1], x[-1:])[0] * (1 + 1e-12) + 1e-15, k

    def test_tails(self, name: str) -> None:
        fn = FUNCTIONS[name]
        for error in (1e-2, 5e-5):
            low, high = fn.reach(error)
            assert low < high
            for end, sign, tail in ((low, -1, fn.left), (high, 1, fn.right)):
                if tail is None or not math.isfinite(end) or end in fn.domain:
                    continue
                x = end + sign * np.concatenate([[0.0], np.geomspace(1e-6, 1e3, 200)])
                with np.errstate(over="ignore"):
                    assert (np.abs(fn(x) - tail[0] * x - tail[1]) < error * (1 + 1e-9)).all()

    def test_the_proof_holds_and_is_not_loose(self, name: str) -> None:
        fn = FUNCTIONS[name]
        low, high = (-8.0, 1.0) if name == "exp" else usual(name)
        for wanted, limits in ((3e-3, {}), (5e-5, {}), (5e-4, {"max_degree": 1}), (1e-1, {"max_degree": 0})):
            table = compile_table(fn, low, high, wanted, **limits)
            assert table.error <= wanted
            assert table.basis == "proved"
            assert table.domain() == (low, high)
            holds(table, fn)

    def test_every_input_of_a_small_range(self, name: str) -> None:
        low = usual(name)[0] + 1.0
        table = compile_table(FUNCTIONS[name], low, low + 0.7, 1e-6)
        X = np.arange(table.low, table.high + 1)
        y = FUNCTIONS[name](np.ldexp(X.astype(np.float64), -16))
        for upper in (False, True):
            assert np.abs(table.evaluate(X, upper) - y).max() <= table.error <= 1e-6


class TestSizes:
    """What the wanted errors cost; a change that makes a table larger shows here."""

    @pytest.mark.parametrize(
        ("name", "low", "high", "error", "relative", "cells", "degree"),
        [
            ("sigmoid", -8, 8, 5e-5, 0, 256, 2),
            ("sigmoid", -7.9, 7.9, 1e-4, 0, 128, 2),
            ("sigmoid", 0, 9.9, 5e-5, 0, 128, 2),
            ("tanh", -8, 8, 5e-5, 0, 512, 2),
            ("tanh", -5.3, 5.3, 2e-4, 0, 128, 2),
            ("tanh", 0, 5.3, 5e-5, 0, 128, 2),
            ("gelu", -8, 8, 5e-5, 0, 512, 2),
            ("gelu", -4.25, 4.25, 7e-5, 0, 128, 2),
            ("silu", -8, 8, 5e-5, 0, 256, 2),
            ("erf", -8, 8, 5e-5, 0, 512, 2),
            ("erf", -2.9, 2.9, 5e-5, 0, 128, 2),
            ("exp", -16, 0, 3e-5, 0, 512, 2),
            ("reciprocal", 1, 17, 0, 5e-5, 512, 3),
            ("rsqrt", 1, 17, 0, 5e-5, 512, 2),
        ],
    )
    def test_cells(self, name, low, high, error, relative, cells, degree) -> None:
        table = compile_table(FUNCTIONS[name], low, high, error, relative=relative)
        assert (table.cells, table.degree) <= (cells, degree)
        assert table.error <= error or table.relative <= relative
        holds(table, FUNCTIONS[name])

    def test_rows_in_use(self) -> None:
        table = compile_table(FUNCTIONS["sigmoid"], -8, 8, 5e-5)
        assert table.rows <= table.cells
        X = np.array([table.low, table.high])
        u = ((X - table.low) >> table.step_bits) + 1
        assert u.max() == table.rows - 1
        ends = table.coefficients[table.rows : table.cells]
        assert all(abs(math.ldexp(c, -table.frac_out) - 1) < 1e-3 for c in ends)

    def test_a_single_input(self) -> None:
        table = compile_table(FUNCTIONS["exp"], 1.0, 1.0, 1e-9)
        assert abs(table.evaluate(np.array([1 << 16]), True)[0] - math.e) <= table.error <= 1e-9

    def test_other_scales(self) -> None:
        for frac, out in ((12, 44), (20, 44), (10, 30), (16, 44)):
            table = compile_table(FUNCTIONS["silu"], -6, 6, 1e-3, frac=frac, out_frac=out)
            assert (table.frac_in, table.frac_out) == (frac, out)
            holds(table, FUNCTIONS["silu"])

    def test_large_values_leave_fewer_fractional_bits(self) -> None:
        table = compile_table(FUNCTIONS["exp"], 0, 12, 1.0)
        assert table.frac_out < approx.OUT_FRAC
        holds(table, FUNCTIONS["exp"])

    def test_the_same_twice(self) -> None:
        tables = [compile_table(FUNCTIONS["mish"], -5, 5, 1e-4) for _ in range(2)]
        assert tables[0] == tables[1]

    def test_tight_ends(self) -> None:
        table = compile_table(FUNCTIONS["rsqrt"], 1.0, 3.7, 1e-4, tight=True)
        for X in (table.low, table.high):
            exact = round(math.ldexp(1 / math.sqrt(X / 2**16), table.frac_out))
            for upper in (False, True):
                assert abs(int(table.integers(np.array([X]), upper)[0]) - exact) <= 1
        holds(table, FUNCTIONS["rsqrt"])


class TestOwnFunctions:
    def test_every_input_is_tried(self) -> None:
        def bump(x):
            return np.exp(-x * x) * np.cos(3 * x)

        table = compile_table(bump, -3, 3, 1e-4)
        assert table.basis == "proved"
        assert table.error <= 1e-4
        holds(table, bump, 1.01)

    def test_a_kink_is_allowed(self) -> None:
        table = compile_table(np.abs, -1.03, 1, 1e-3)
        holds(table, np.abs, 1.01)

    def test_a_bound_makes_it_a_proof_for_all_reals(self) -> None:
        table = compile_table(lambda x: np.sin(2 * x), -4, 4, 1e-4, bound=lambda k, lo, hi: 2.0**k + 0 * lo)
        assert table.basis == "proved"
        holds(table, lambda x: np.sin(2 * x))

    def test_too_many_inputs_are_sampled_and_it_says_so(self) -> None:
        table = compile_table(lambda x: np.sin(x / 64), -300, 300, 1e-3)
        assert table.basis == "sampled"
        holds(table, lambda x: np.sin(x / 64))

    def test_registered(self) -> None:
        own = functions.register("test_cube", lambda x: x**3)
        assert functions.get("test_cube") is own
        for fn in (own, functions.affine(own, 0.5, 2.0)):
            table = compile_table(fn, -1, 1, 1e-4)
            assert table.error <= 1e-4
            holds(table, fn)
        with pytest.raises(ModelUnsupported, match="already"):
            functions.register("tanh", np.abs)
        with pytest.raises(ModelUnsupported, match="test_square"):
            functions.get("test_square")

    def test_affine(self) -> None:
        table = compile_table(functions.affine(FUNCTIONS["reciprocal"], 2.0, -0.5, 3.0), 0.0, 5.0, 1e-4)
        holds(table, lambda x: 2.0 / (3.0 - 0.5 * x))
        with pytest.raises(ModelUnsupported, match="singular at 6"):
            compile_table(functions.affine(FUNCTIONS["reciprocal"], 2.0, -0.5, 3.0), 0.0, 8.0, 1e-4)

    @settings(max_examples=15, deadline=None, derandomize=True)
    @given(
        waves=st.lists(
            st.tuples(st.floats(-2, 2), st.floats(0.1, 3), st.floats(0, 6)), min_size=1, max_size=4
        ),
        low=st.floats(-10, 10),
        width=st.floats(0, 6),
        wanted=st.sampled_from([1e-2, 1e-3, 1e-4]),
    )
    def test_random_smooth_functions_and_ranges(self, waves, low, width, wanted) -> None:
        def fn(x):
            return sum(a * np.sin(w * x + p) for a, w, p in waves)

        def bound(k, lo, hi):
            return sum(abs(a) * w**k for a, w, _ in waves) + 0 * lo

        tried = compile_table(fn, low, low + width, wanted)
        proved = compile_table(fn, low, low + width, wanted, bound=bound)
        for table in (tried, proved):
            table.check()
            assert differences(table, fn, 5000)[0] <= table.error <= wanted


class TestBands:
    @pytest.mark.parametrize("name", ["reciprocal", "rsqrt", "sqrt"])
    def test_relative_error_over_many_octaves(self, name: str) -> None:
        fn = FUNCTIONS[name]
        bands = compile_bands(fn, 2.0**-6, 2.0**10, 1e-4)
        self.adds_up(bands, fn, 1e-4)
        assert sum(b.table.cost for b in bands) < 6000
        assert max(b.table.relative for b in bands) <= 1e-4

    def test_negative_range(self) -> None:
        self.adds_up(
            compile_bands(FUNCTIONS["reciprocal"], -300.0, -0.1, 1e-4), FUNCTIONS["reciprocal"], 1e-4
        )

    def test_exp(self) -> None:
        self.adds_up(compile_bands(FUNCTIONS["exp"], -9.0, 6.0, 1e-4), FUNCTIONS["exp"], 1e-4)

    def test_with_a_floor(self) -> None:
        fn = FUNCTIONS["exp"]
        bands = compile_bands(fn, -16.0, 0.0, 1e-4, absolute=1e-6)
        X = np.arange(-(16 << 16), 1)
        y = fn(X / 2**16)
        for upper in (False, True):
            assert (np.abs(evaluate_bands(bands, X, upper) - y) <= np.maximum(1e-6, 1e-4 * y)).all()

    def test_own_function(self) -> None:
        self.adds_up(compile_bands(lambda x: x**-1.5, 0.5, 6.0, 1e-3), lambda x: x**-1.5, 1e-3)

    def adds_up(self, bands, fn, relative) -> None:
        assert all(a.high == b.low for a, b in pairwise(bands))
        assert len({b.table.frac_out for b in bands}) == 1
        low, high = bands[0].table.low, bands[-1].table.high
        near = [b.table.low + d for b in bands for d in range(-3, 4)]
        X = np.concatenate([np.linspace(low, high, 100_000), np.array(near), [high]]).astype(np.int64)
        X = X.clip(low, high)
        y = fn(np.ldexp(X.astype(np.float64), -16))
        rng = np.random.default_rng(1)
        for upper in (False, True, rng.random(X.shape) < 0.5):
            e = np.abs(evaluate_bands(bands, X, upper) - y)
            assert (e <= relative * np.abs(y)).all()
            for b in bands:
                inside = (b.table.low <= X) & (b.table.high >= X)
                assert e[inside].max() <= b.table.error

    def test_ends_are_exact_in_every_row(self) -> None:
        bands = compile_bands(FUNCTIONS["reciprocal"], 0.1, 50.0, 1e-4)
        assert len(bands) > 1
        scale = 2.0 ** bands[0].table.frac_out
        for i, b in enumerate(bands):
            ends = np.array([b.table.low, b.table.high])
            start = round(scale / b.low) if i else 0
            for upper in (False, True):
                Z = b.table.integers(ends, upper)
                assert Z[0] == (0 if i else round(scale / b.low))
                assert Z[1] == round(scale / b.high) - start


class TestRefused:
    @pytest.mark.parametrize("ends", [(-math.inf, 1.0), (0.0, math.inf), (math.nan, 1.0), (2.0, 1.0)])
    def test_no_finite_range(self, ends) -> None:
        with pytest.raises(ModelUnsupported, match="finite range"):
            compile_table(FUNCTIONS["tanh"], *ends, 1e-3)

    @pytest.mark.parametrize(
        ("name", "low"), [("log", 0.0), ("log", 1e-9), ("sqrt", 0.0), ("rsqrt", 0.0), ("reciprocal", -1.0)]
    )
    def test_singular(self, name, low) -> None:
        with pytest.raises(ModelUnsupported, match=f"{name}.*singular at 0"):
            compile_table(FUNCTIONS[name], low, 1.0, 1e-3)

    @pytest.mark.parametrize(("name", "low", "high"), [("log", -1, 1), ("elu", -1, 1), ("rsqrt", -2, -1)])
    def test_outside_of_the_domain(self, name, low, high) -> None:
        with pytest.raises(ModelUnsupported, match="not defined"):
            compile_table(FUNCTIONS[name], low, high, 1e-3)

    @pytest.mark.parametrize(
        ("fn", "why"),
        [
            (lambda x: 1 / (x - 0.3), "pole near 0.3"),
            (lambda x: 1 / (x - 0.3) ** 2, "pole near 0.3"),
            (lambda x: 1 / x, "not finite at 0"),
            (np.log, "not finite at -1"),
            (lambda x: np.where(x > 0.37, np.nan, x), "not finite"),
            (lambda x: np.where(x > 0.37, 1.0, 0.0), "jumps"),
            (np.tan, "pole near"),
            (lambda x: x[:1], "shape"),
            (lambda x: "no", "fails"),
            (lambda x: x.nothing, "AttributeError"),
        ],
    )
    def test_own_functions(self, fn, why) -> None:
        with pytest.raises(ModelUnsupported, match=why):
            compile_table(fn, -1, 2 if fn is np.tan else 1, 1e-3)

    def test_overflow(self) -> None:
        with pytest.raises(ModelUnsupported, match="exp is not finite"):
            compile_table(FUNCTIONS["exp"], 0, 1000, 1e-3)
        with pytest.raises(PrecisionError, match="do not fit"):
            compile_table(FUNCTIONS["exp"], 0, 40, 1e-3)
        with pytest.raises(PrecisionError, match="does not fit"):
            compile_table(FUNCTIONS["tanh"], 0, 2.0**30, 1e-3)

    def test_limits(self) -> None:
        with pytest.raises(PrecisionError, match=r"up to 16 cells and degree 3.*the best one comes within"):
            compile_table(FUNCTIONS["tanh"], -8, 8, 1e-4, max_cells=16)
        with pytest.raises(PrecisionError, match="degree 0"):
            compile_table(FUNCTIONS["tanh"], -8, 8, 1e-4, max_degree=0)
        with pytest.raises(PrecisionError, match="of its value"):
            compile_bands(FUNCTIONS["sin"], -1, 1, 1e-4)
        with pytest.raises(PrecisionError, match="too small"):
            compile_bands(FUNCTIONS["exp"], 0.0, 0.0, 1e-4)
        for wanted in (0.0, -1.0, math.nan, math.inf):
            with pytest.raises(PrecisionError, match="positive and finite"):
                compile_table(FUNCTIONS["tanh"], -1, 1, wanted)
        with pytest.raises(PrecisionError, match="no tables of"):
            compile_table(FUNCTIONS["tanh"], -1, 1, 1e-3, max_cells=1)

    def test_inputs_outside_of_the_range(self) -> None:
        table = compile_table(FUNCTIONS["tanh"], -1, 1, 1e-3)
        for X in (table.low - 1, table.high + 1):
            with pytest.raises(ValueError, match="outside"):
                table.evaluate(np.array([X]))

    def test_tables_that_do_not_fit_together(self) -> None:
        table = compile_table(FUNCTIONS["tanh"], -1, 1, 1e-3)
        changes = (
            {"coefficients": table.coefficients[1:]},
            {"coefficients": (1 << 62, *table.coefficients[1:])},
            {"coefficients": (*table.coefficients[:-1], 1 << 61)},
            {"step_bits": -1},
            {"degree": 9},
            {"high": table.high << 8},
        )
        for change in changes:
            with pytest.raises(ModelUnsupported, match="table"):
                dataclasses.replace(table, **change).check()
