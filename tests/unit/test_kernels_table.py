from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privinfer import _kernels
from tests import twins

TWEAK = bytes(range(7, 23))


@pytest.fixture(params=_kernels.paths())
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _kernels.current_path()
    _kernels.use_path(request.param)
    yield request.param
    _kernels.use_path(before)


class Gate:
    """A table, masks, keys: what the helper deals and both parties know."""

    def __init__(self, seed: int, m: int, s: int, degree: int, cut: int, count: int) -> None:
        rng = np.random.default_rng(seed)
        self.m, self.s, self.degree, self.cut = m, s, degree, cut
        self.coefficients = rng.integers(0, 2**64, (degree + 1, 2**m), np.uint64)
        self.r, self.xhat = rng.integers(0, 2**64, (2, count), np.uint64)
        self.roots = rng.integers(0, 256, (count, 2, 16), np.uint8)
        # The ends of the table, and of a step of it.
        self.xhat[::5] = 0
        self.xhat[1::5] = 2**64 - 1
        self.xhat[2::5] = self.r[2::5]
        self.r[3::5] = 0
        self.alpha = (self.r >> np.uint64(s)) % np.uint64(2**m)
        rho = self.r % np.uint64(2**s)
        self.payload = np.stack([rho**k for k in range(degree + 1)], axis=1)

    def deal(self) -> None:
        self.keys = _kernels.dpf_gen(self.alpha, self.payload, self.m, self.roots, TWEAK, self.cut)

    def arguments(self, party: int, count: int | None = None) -> tuple:
        few = slice(count)
        return (
            party,
            self.xhat[few],
            self.m,
            self.s,
            self.degree,
            self.coefficients,
            np.ascontiguousarray(self.roots[few, party]),
            *(key[few] for key in self.keys),
            TWEAK,
        )

    def expected(self) -> twins.U64:
        """The polynomial itself, in Python's integers."""
        out = []
        for x, r in zip(self.xhat.tolist(), self.r.tolist(), strict=True):
            u = ((x >> self.s) - (r >> self.s)) % 2**self.m
            base = x % 2**self.s - r % 2**self.s
            row = self.coefficients[:, u].tolist()
            out.append(sum(c * base**k for k, c in enumerate(row)) & twins.MASK64)
        return np.array(out, np.uint64)


def fitting_cut(m: int, degree: int, cut: int) -> int:
    while cut > m or (degree + 1) << cut > 8:
        cut -= 1
    return cut


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    m=st.integers(1, 7),
    s=st.integers(0, 40),
    degree=st.integers(0, 3),
    cut=st.integers(0, 3),
    count=st.integers(0, 35),
)
def test_shares_are_their_twins_and_sum_to_the_polynomial(
    path: str, seed: int, m: int, s: int, degree: int, cut: int, count: int
) -> None:
    gate = Gate(seed, m, s, degree, fitting_cut(m, degree, cut), count)
    gate.deal()
    shares = [_kernels.table_eval(*gate.arguments(party)) for party in (0, 1)]
    np.testing.assert_array_equal(shares[0] + shares[1], gate.expected())
    for party, share in enumerate(shares):
        assert share.dtype == np.uint64
        assert share.shape == (count,)
        # The twin takes its time.
        np.testing.assert_array_equal(share[:2], twins.table_eval(*gate.arguments(party, 2)))


@pytest.mark.parametrize("degree", range(4))
@pytest.mark.parametrize("m", range(1, 13))
def test_every_size_and_cut(path: str, m: int, degree: int) -> None:
    count = 3 if path == "portable" and m > 8 else 17
    for cut in range(min(m, 3) + 1):
        if (degree + 1) << cut > 8:
            continue
        gate = Gate(m, m, 40 - 3 * m, degree, cut, count)
        gate.deal()
        shares = [_kernels.table_eval(*gate.arguments(party)) for party in (0, 1)]
        np.testing.assert_array_equal(shares[0] + shares[1], gate.expected())


def test_every_position_of_a_table(path: str) -> None:
    gate = Gate(1, 5, 0, 1, 1, 1024)
    gate.xhat, gate.r = (g.ravel().astype(np.uint64) for g in np.meshgrid(range(32), range(32)))
    gate.alpha = gate.r
    gate.payload = np.stack((np.ones_like(gate.r), np.zeros_like(gate.r)), axis=1)
    gate.deal()
    shares = [_kernels.table_eval(*gate.arguments(party)) for party in (0, 1)]
    at = ((gate.xhat - gate.r) % np.uint64(32)).astype(np.intp)
    np.testing.assert_array_equal(shares[0] + shares[1], gate.coefficients[0, at])


@pytest.mark.parametrize("cut", [0, 1])
def test_shares_are_sums_over_the_full_domain(path: str, cut: int) -> None:
    gate = Gate(2, 6, 11, 2, cut, 21)
    gate.deal()
    beta = gate.xhat % np.uint64(2**11)
    at = ((gate.xhat[:, None] >> np.uint64(11)) - np.arange(64, dtype=np.uint64)) % np.uint64(64)
    c = gate.coefficients[:, at.astype(np.intp)]
    for party in (0, 1):
        roots = np.ascontiguousarray(gate.roots[:, party])
        p = np.moveaxis(_kernels.dpf_eval_full(party, 6, 3, roots, *gate.keys, TWEAK), 2, 0)
        a = [[(c[k] * p[j]).sum(axis=1) for j in range(3)] for k in range(3)]
        total = a[0][0] + beta * a[1][0] - a[1][1]
        total += beta * beta * a[2][0] - np.uint64(2) * beta * a[2][1] + a[2][2]
        np.testing.assert_array_equal(_kernels.table_eval(*gate.arguments(party)), total)


def test_all_paths_and_threads_agree() -> None:
    before, threads, results = _kernels.current_path(), _kernels.get_threads(), []
    try:
        for name in _kernels.paths():
            _kernels.use_path(name)
            for count in (1, 2, 5):
                _kernels.set_threads(count)
                gate = Gate(3, 7, 13, 2, 1, 1003)
                gate.deal()
                results.append([_kernels.table_eval(*gate.arguments(party)) for party in (0, 1)])
    finally:
        _kernels.set_threads(threads)
        _kernels.use_path(before)
    np.testing.assert_array_equal(results[0][0] + results[0][1], gate.expected())
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_bits_above_the_position_are_ignored(path: str) -> None:
    gate = Gate(4, 7, 13, 2, 0, 9)
    gate.deal()
    share = _kernels.table_eval(*gate.arguments(0))
    gate.xhat ^= np.uint64(2**64 - 2**20)
    np.testing.assert_array_equal(share, _kernels.table_eval(*gate.arguments(0)))


@pytest.mark.parametrize("count", [0, 1])
def test_no_value_and_one(path: str, count: int) -> None:
    gate = Gate(5, 8, 20, 3, 1, count)
    gate.deal()
    shares = [_kernels.table_eval(*gate.arguments(party)) for party in (0, 1)]
    np.testing.assert_array_equal(shares[0] + shares[1], gate.expected())


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"party": 2}, ValueError, "party must be in 0..1"),
        ({"xhat": np.zeros(3, np.uint64)}, ValueError, r"roots must have shape \(3, 16, \)"),
        ({"xhat": np.zeros((2, 1), np.uint64)}, ValueError, "xhat must have shape"),
        ({"xhat": np.zeros(2, np.int64)}, TypeError, "xhat must have dtype uint64"),
        ({"m": 0}, ValueError, "m must be in 1..12"),
        ({"m": 13}, ValueError, "m must be in 1..12"),
        ({"m": 5}, ValueError, r"coefficients must have shape \(3, 32, \)"),
        ({"s": -1}, ValueError, "s must be in 0..40"),
        ({"s": 41}, ValueError, "s must be in 0..40"),
        ({"degree": -1}, ValueError, "degree must be in 0..3"),
        ({"degree": 4}, ValueError, "degree must be in 0..3"),
        ({"degree": 1}, ValueError, r"coefficients must have shape \(2, 16, \)"),
        ({"coefficients": np.zeros((3, 16), np.int64)}, TypeError, "coefficients must have dtype uint64"),
        ({"coefficients": np.zeros((16, 3), np.uint64).T}, ValueError, "coefficients must be C-contiguous"),
        ({"roots": np.zeros((2, 2, 16), np.uint8)}, ValueError, "roots must have shape"),
        ({"cw": np.zeros((2, 5, 16), np.uint8)}, ValueError, "cw must have at most m = 4 levels, got 5"),
        ({"cw": np.zeros((2, 2, 16), np.uint8)}, ValueError, r"at most 8 words: w 2\^cut"),
        ({"cw": np.zeros((2, 3, 16), np.uint8)}, ValueError, r"final must have shape \(2, 6, \)"),
        ({"cw": np.zeros((1, 4, 16), np.uint8)}, ValueError, "cw must have shape"),
        ({"final": np.zeros((2, 4), np.uint64)}, ValueError, r"final must have shape \(2, 3, \)"),
        ({"tweak": bytes(17)}, ValueError, "tweak must have 16 bytes"),
        ({"tweak": "tweak"}, TypeError, "tweak must be bytes"),
    ],
)
def test_eval_refuses(change: dict[str, object], error: type[Exception], match: str) -> None:
    arguments: dict[str, object] = {
        "party": 0,
        "xhat": np.zeros(2, np.uint64),
        "m": 4,
        "s": 5,
        "degree": 2,
        "coefficients": np.zeros((3, 16), np.uint64),
        "roots": np.zeros((2, 16), np.uint8),
        "cw": np.zeros((2, 4, 16), np.uint8),
        "final": np.zeros((2, 3), np.uint64),
        "tweak": TWEAK,
    }
    with pytest.raises(error, match=match):
        _kernels.table_eval(**{**arguments, **change})  # type: ignore[arg-type]
