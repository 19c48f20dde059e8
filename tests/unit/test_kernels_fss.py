from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privinfer import _kernels
from tests import twins

TWEAK = bytes(range(100, 116))


@pytest.fixture(params=_kernels.paths())
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _kernels.current_path()
    _kernels.use_path(request.param)
    yield request.param
    _kernels.use_path(before)


def roots_of(rng: np.random.Generator, count: int) -> twins.U8:
    return rng.integers(0, 256, (count, 2, 16), np.uint8)


def outputs(x: twins.U64, bits: int, roots: twins.U8, keys: tuple, tweak: bytes = TWEAK) -> list[twins.U8]:
    return [
        _kernels.dcf_eval(party, x, bits, np.ascontiguousarray(roots[:, party]), *keys, tweak)
        for party in (0, 1)
    ]


@pytest.mark.parametrize("bits", range(10))
def test_every_pair_of_a_small_domain(path: str, bits: int) -> None:
    rng = np.random.default_rng(bits)
    alphas = np.arange(2**bits, dtype=np.uint64)
    roots = roots_of(rng, 2**bits)
    keys = _kernels.dcf_gen(alphas, bits, roots, TWEAK)
    # The portable path evaluates every third x of the largest domains, so that all paths take a second.
    step = 3 if path == "portable" and bits > 7 else 1
    for x in range(0, 2**bits, step):
        points = np.full(2**bits, x, np.uint64)
        first, second = outputs(points, bits, roots, keys)
        np.testing.assert_array_equal(first ^ second, points < alphas)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    bits=st.integers(0, 63),
    count=st.integers(0, 35),
    tweak=st.binary(min_size=16, max_size=16),
)
def test_keys_and_outputs_are_their_twins(path: str, seed: int, bits: int, count: int, tweak: bytes) -> None:
    rng = np.random.default_rng(seed)
    alpha = rng.integers(0, 2**bits, count, np.uint64)
    x = rng.integers(0, 2**bits, count, np.uint64)
    # Half of the points share a leaf with alpha, or lie next to it.
    x[::4] = alpha[::4]
    x[1::4] = alpha[1::4] ^ (x[1::4] & np.uint64(127)) % np.uint64(2**bits)
    roots = roots_of(rng, count)

    keys = _kernels.dcf_gen(alpha, bits, roots, tweak)
    for ours, twin in zip(keys, twins.dcf_gen(alpha, bits, roots, tweak), strict=True):
        assert ours.dtype == twin.dtype
        np.testing.assert_array_equal(ours, twin)

    shares = outputs(x, bits, roots, keys, tweak)
    for party, share in enumerate(shares):
        assert share.dtype == np.uint8
        np.testing.assert_array_equal(share, twins.dcf_eval(party, x, bits, roots[:, party], *keys, tweak))
    np.testing.assert_array_equal(shares[0] ^ shares[1], x < alpha)


@pytest.mark.parametrize("bits", [1, 6, 7, 8, 31, 32, 47, 62, 63])
def test_the_ends_of_the_domain(path: str, bits: int) -> None:
    top = 2**bits - 1
    ends = sorted({0, 1, top // 2, top // 2 + 1, top - 1, top})
    alpha, x = (np.ascontiguousarray(g.ravel()) for g in np.meshgrid(np.array(ends, np.uint64), ends))
    x = x.astype(np.uint64)
    roots = roots_of(np.random.default_rng(bits), len(x))
    first, second = outputs(x, bits, roots, _kernels.dcf_gen(alpha, bits, roots, TWEAK))
    np.testing.assert_array_equal(first ^ second, x < alpha)


@pytest.mark.parametrize("threads", [1, 3])
def test_large_batches_agree_across_threads(path: str, threads: int) -> None:
    count = 150 if path == "portable" else 5003
    rng = np.random.default_rng(3)
    alpha, x = rng.integers(0, 2**31, (2, count), np.uint64)
    roots = roots_of(rng, count)
    before = _kernels.get_threads()
    _kernels.set_threads(threads)
    try:
        first, second = outputs(x, 31, roots, _kernels.dcf_gen(alpha, 31, roots, TWEAK))
    finally:
        _kernels.set_threads(before)
    np.testing.assert_array_equal(first ^ second, x < alpha)


def test_the_two_low_bits_of_a_root_are_ignored(path: str) -> None:
    rng = np.random.default_rng(4)
    alpha = rng.integers(0, 2**20, 5, np.uint64)
    roots = roots_of(rng, 5)
    other = roots.copy()
    other[:, :, 0] ^= 3
    for a, b in zip(
        _kernels.dcf_gen(alpha, 20, roots, TWEAK), _kernels.dcf_gen(alpha, 20, other, TWEAK), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(("alpha", "x"), [(0, 0), (5, 4), (2**20, 2**20 - 1), (2**31 - 1, 3)])
@pytest.mark.parametrize("party", [0, 1])
def test_what_one_party_sees_looks_uniform(alpha: int, x: int, party: int) -> None:
    # Roots are fixed by the seed. For k degrees of freedom the statistic has mean k and variance 2 k; six
    # deviations are allowed.
    count = 20_000
    roots = roots_of(np.random.default_rng(alpha + x), count)
    alphas, points = np.full(count, alpha, np.uint64), np.full(count, x, np.uint64)
    keys = _kernels.dcf_gen(alphas, 31, roots, TWEAK)
    share = outputs(points, 31, roots, keys)[party]
    assert chi_square(np.bincount(share, minlength=2)) < 1 + 6 * 2**0.5

    cw, vcw, leaf = keys
    for data in (cw[:, 0], cw[:, -1], leaf):
        assert chi_square(np.bincount(data.ravel(), minlength=256)) < 255 + 6 * 510**0.5
    for level in range(24):
        bit = (vcw >> np.uint64(level) & np.uint64(1)).astype(np.int64)
        # Together with this party's output bit: four cells.
        assert chi_square(np.bincount(2 * bit + share, minlength=4)) < 3 + 6 * 6**0.5
    assert not np.any(vcw >> np.uint64(24))


def valid(count: int = 2, bits: int = 10) -> dict[str, object]:
    return {
        "alpha": np.zeros(count, np.uint64),
        "bits": bits,
        "roots": np.zeros((count, 2, 16), np.uint8),
        "tweak": TWEAK,
    }


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"alpha": np.array([0, 1024], np.uint64)}, ValueError, r"alpha must be below 2\^10"),
        ({"alpha": np.array([1, 0], np.uint64), "bits": 0}, ValueError, r"alpha must be below 2\^0"),
        ({"alpha": np.zeros((2, 1), np.uint64)}, ValueError, "alpha must have shape"),
        ({"alpha": np.zeros(2, np.int64)}, TypeError, "alpha must have dtype uint64"),
        ({"bits": 64}, ValueError, "bits must be in 0..63"),
        ({"bits": -1}, ValueError, "bits must be in 0..63"),
        ({"roots": np.zeros((2, 16), np.uint8)}, ValueError, "roots must have shape"),
        ({"roots": np.zeros((3, 2, 16), np.uint8)}, ValueError, "roots must have shape"),
        ({"roots": np.zeros((2, 2, 16), np.int8)}, TypeError, "roots must have dtype uint8"),
        ({"tweak": bytes(8)}, ValueError, "tweak must have 16 bytes"),
        ({"tweak": bytearray(16)}, TypeError, "tweak must be bytes"),
    ],
)
def test_gen_refuses(change: dict[str, object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        _kernels.dcf_gen(**{**valid(), **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"party": 2}, ValueError, "party must be in 0..1"),
        ({"party": -1}, ValueError, "party must be in 0..1"),
        ({"x": np.array([0, 1024], np.uint64)}, ValueError, r"x must be below 2\^10"),
        ({"bits": 11}, ValueError, r"cw must have shape \(2, 4, 16, \)"),
        ({"roots": np.zeros((2, 2, 16), np.uint8)}, ValueError, "roots must have shape"),
        ({"roots": np.zeros((2, 2, 16), np.uint8)[:, 0]}, ValueError, "roots must be C-contiguous"),
        ({"cw": np.zeros((2, 2, 16), np.uint8)}, ValueError, "cw must have shape"),
        ({"vcw": np.zeros(1, np.uint64)}, ValueError, "vcw must have shape"),
        ({"leaf": np.zeros((2, 15), np.uint8)}, ValueError, "leaf must have shape"),
        ({"tweak": bytes(17)}, ValueError, "tweak must have 16 bytes"),
    ],
)
def test_eval_refuses(change: dict[str, object], error: type[Exception], match: str) -> None:
    arguments: dict[str, object] = {
        "party": 0,
        "x": np.zeros(2, np.uint64),
        "bits": 10,
        "roots": np.zeros((2, 16), np.uint8),
        "cw": np.zeros((2, 3, 16), np.uint8),
        "vcw": np.zeros(2, np.uint64),
        "leaf": np.zeros((2, 16), np.uint8),
        "tweak": TWEAK,
    }
    with pytest.raises(error, match=match):
        _kernels.dcf_eval(**{**arguments, **change})  # type: ignore[arg-type]
