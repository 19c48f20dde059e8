from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privinfer import _kernels
from tests import twins

TWEAK = bytes(range(50, 66))
# Words of the payload and levels cut: all that fit in a leaf.
LEAVES = [(w, cut) for w in range(1, 5) for cut in range(4) if w << cut <= 8]


@pytest.fixture(params=_kernels.paths())
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _kernels.current_path()
    _kernels.use_path(request.param)
    yield request.param
    _kernels.use_path(before)


def roots_of(rng: np.random.Generator, count: int) -> twins.U8:
    return rng.integers(0, 256, (count, 2, 16), np.uint8)


def outputs(m: int, w: int, roots: twins.U8, keys: tuple, tweak: bytes = TWEAK) -> list[twins.U64]:
    return [
        _kernels.dpf_eval_full(party, m, w, np.ascontiguousarray(roots[:, party]), *keys, tweak)
        for party in (0, 1)
    ]


def points(alpha: twins.U64, payload: twins.U64, m: int) -> twins.U64:
    out = np.zeros((len(alpha), 2**m, payload.shape[1]), np.uint64)
    out[np.arange(len(alpha)), alpha.astype(np.intp)] = payload
    return out


@pytest.mark.parametrize("m", range(9))
def test_every_point_of_a_small_domain(path: str, m: int) -> None:
    rng = np.random.default_rng(m)
    alpha = np.arange(2**m, dtype=np.uint64)
    roots = roots_of(rng, 2**m)
    for w, cut in LEAVES:
        if cut > m:
            continue
        payload = rng.integers(0, 2**64, (2**m, w), np.uint64)
        keys = _kernels.dpf_gen(alpha, payload, m, roots, TWEAK, cut)
        first, second = outputs(m, w, roots, keys)
        np.testing.assert_array_equal(first + second, points(alpha, payload, m))
        assert first.shape == (2**m, 2**m, w)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    m=st.integers(0, 7),
    leaf=st.sampled_from(LEAVES),
    count=st.integers(0, 19),
    tweak=st.binary(min_size=16, max_size=16),
)
def test_keys_and_outputs_are_their_twins(
    path: str, seed: int, m: int, leaf: tuple[int, int], count: int, tweak: bytes
) -> None:
    w, cut = leaf[0], min(leaf[1], m)
    rng = np.random.default_rng(seed)
    alpha = rng.integers(0, 2**m, count, np.uint64)
    payload = rng.integers(0, 2**64, (count, w), np.uint64)
    payload[::3] = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)[:w]
    roots = roots_of(rng, count)

    keys = _kernels.dpf_gen(alpha, payload, m, roots, tweak, cut)
    for ours, twin in zip(keys, twins.dpf_gen(alpha, payload, m, roots, tweak, cut), strict=True):
        assert ours.dtype == twin.dtype
        np.testing.assert_array_equal(ours, twin)

    shares = outputs(m, w, roots, keys, tweak)
    np.testing.assert_array_equal(shares[0] + shares[1], points(alpha, payload, m))
    # The twin takes its time: a few instances, the last among them.
    few = np.unique(np.concatenate((np.arange(min(count, 2)), np.arange(count)[-1:])))
    for party, share in enumerate(shares):
        assert share.dtype == np.uint64
        some = [np.ascontiguousarray(key[few]) for key in keys]
        twin = twins.dpf_eval_full(party, m, w, roots[few, party], *some, tweak)
        np.testing.assert_array_equal(share[few], twin)


@pytest.mark.parametrize(("w", "cut"), [(1, 0), (1, 3), (3, 1), (4, 0)])
def test_the_largest_domain(path: str, w: int, cut: int) -> None:
    rng = np.random.default_rng(w)
    for point in (0, 2**16 - 1, 2**15 + 5):
        alpha, payload = np.array([point], np.uint64), rng.integers(0, 2**64, (1, w), np.uint64)
        roots = roots_of(rng, 1)
        keys = _kernels.dpf_gen(alpha, payload, 16, roots, TWEAK, cut)
        first, second = outputs(16, w, roots, keys)
        np.testing.assert_array_equal(first + second, points(alpha, payload, 16))


@pytest.mark.parametrize("threads", [1, 3])
def test_large_batches_agree_across_threads(path: str, threads: int) -> None:
    count = 150 if path == "portable" else 5003
    rng = np.random.default_rng(3)
    alpha, payload = rng.integers(0, 2**5, count, np.uint64), rng.integers(0, 2**64, (count, 2), np.uint64)
    roots = roots_of(rng, count)
    before = _kernels.get_threads()
    _kernels.set_threads(threads)
    try:
        first, second = outputs(5, 2, roots, _kernels.dpf_gen(alpha, payload, 5, roots, TWEAK, 1))
    finally:
        _kernels.set_threads(before)
    np.testing.assert_array_equal(first + second, points(alpha, payload, 5))


def test_all_paths_agree() -> None:
    count = 37
    rng = np.random.default_rng(6)
    alpha, payload = rng.integers(0, 2**9, count, np.uint64), rng.integers(0, 2**64, (count, 3), np.uint64)
    roots = roots_of(rng, count)
    before, results = _kernels.current_path(), []
    for name in _kernels.paths():
        _kernels.use_path(name)
        keys = _kernels.dpf_gen(alpha, payload, 9, roots, TWEAK, 1)
        results.append([*keys, *outputs(9, 3, roots, keys)])
    _kernels.use_path(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_without_a_cut_it_is_the_default() -> None:
    rng = np.random.default_rng(7)
    alpha, payload, roots = np.array([5], np.uint64), np.array([[1, 2]], np.uint64), roots_of(rng, 1)
    for a, b in zip(
        _kernels.dpf_gen(alpha, payload, 4, roots, TWEAK),
        _kernels.dpf_gen(alpha, payload, 4, roots, TWEAK, cut=0),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_the_two_low_bits_of_a_root_are_ignored(path: str) -> None:
    rng = np.random.default_rng(4)
    alpha, payload = rng.integers(0, 2**8, 5, np.uint64), rng.integers(0, 2**64, (5, 3), np.uint64)
    roots = roots_of(rng, 5)
    other = roots.copy()
    other[:, :, 0] ^= 3
    keys = _kernels.dpf_gen(alpha, payload, 8, roots, TWEAK)
    for a, b in zip(keys, _kernels.dpf_gen(alpha, payload, 8, other, TWEAK), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(outputs(8, 3, roots, keys), outputs(8, 3, other, keys), strict=True):
        np.testing.assert_array_equal(a, b)


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("alpha", [0, 5, 63])
@pytest.mark.parametrize("cut", [0, 1])
def test_what_one_party_sees_looks_uniform(alpha: int, cut: int) -> None:
    # Roots are fixed by the seed. For k degrees of freedom the statistic has mean k and variance 2 k; six
    # deviations are allowed. The payload is the plainest there is.
    count, m = 5_000, 6
    roots = roots_of(np.random.default_rng(alpha + cut), count)
    payload = np.tile(np.array([1, 0, 0], np.uint64), (count, 1))
    cw, final = _kernels.dpf_gen(np.full(count, alpha, np.uint64), payload, m, roots, TWEAK, cut)
    for data in (cw[:, 0], cw[:, -1], final.view(np.uint8)):
        assert chi_square(np.bincount(data.ravel(), minlength=256)) < 255 + 6 * 510**0.5
    for share in outputs(m, 3, roots, (cw, final)):
        for v in {alpha, 0, 63}:
            seen = np.ascontiguousarray(share[:, v])
            assert chi_square(np.bincount(seen.view(np.uint8).ravel(), minlength=256)) < 255 + 6 * 510**0.5
            # The lowest bit of a word together with the control bits in cw: no more than chance.
            for word in range(3):
                cells = 4 * (seen[:, word] & np.uint64(1)).astype(np.int64) + (cw[:, -1, 0] & 3)
                assert chi_square(np.bincount(cells, minlength=8)) < 7 + 6 * 14**0.5


def valid(count: int = 2, m: int = 10, w: int = 3) -> dict[str, object]:
    return {
        "alpha": np.zeros(count, np.uint64),
        "payload": np.zeros((count, w), np.uint64),
        "m": m,
        "roots": np.zeros((count, 2, 16), np.uint8),
        "tweak": TWEAK,
    }


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"alpha": np.array([0, 1024], np.uint64)}, ValueError, r"alpha must be below 2\^10"),
        ({"alpha": np.array([1, 0], np.uint64), "m": 0}, ValueError, r"alpha must be below 2\^0"),
        ({"alpha": np.zeros((2, 1), np.uint64)}, ValueError, "alpha must have shape"),
        ({"alpha": np.zeros(2, np.int64)}, TypeError, "alpha must have dtype uint64"),
        ({"payload": np.zeros((3, 3), np.uint64)}, ValueError, "payload must have shape"),
        ({"payload": np.zeros(2, np.uint64)}, ValueError, "payload must have shape"),
        ({"payload": np.zeros((2, 0), np.uint64)}, ValueError, r"payload must have 1\.\.4 words, got 0"),
        ({"payload": np.zeros((2, 5), np.uint64)}, ValueError, r"payload must have 1\.\.4 words, got 5"),
        ({"payload": np.zeros((2, 3), np.int64)}, TypeError, "payload must have dtype uint64"),
        ({"m": 17}, ValueError, "m must be in 0..16"),
        ({"m": -1}, ValueError, "m must be in 0..16"),
        ({"cut": -1}, ValueError, "cut must be in 0..10"),
        ({"m": 0, "cut": 1}, ValueError, "cut must be in 0..0"),
        ({"cut": 2}, ValueError, r"at most 8 words: w 2\^cut"),
        ({"roots": np.zeros((2, 16), np.uint8)}, ValueError, "roots must have shape"),
        ({"roots": np.zeros((3, 2, 16), np.uint8)}, ValueError, "roots must have shape"),
        ({"roots": np.zeros((2, 2, 16), np.int8)}, TypeError, "roots must have dtype uint8"),
        ({"tweak": bytes(8)}, ValueError, "tweak must have 16 bytes"),
        ({"tweak": bytearray(16)}, TypeError, "tweak must be bytes"),
    ],
)
def test_gen_refuses(change: dict[str, object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        _kernels.dpf_gen(**{**valid(), **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"party": 2}, ValueError, "party must be in 0..1"),
        ({"m": 17}, ValueError, "m must be in 0..16"),
        ({"m": 3}, ValueError, "cw must have at most m = 3 levels, got 4"),
        ({"m": 7}, ValueError, r"at most 8 words: w 2\^cut"),
        ({"m": 5}, ValueError, r"final must have shape \(2, 6, \)"),
        ({"w": 0}, ValueError, "w must be in 1..4"),
        ({"w": 5}, ValueError, "w must be in 1..4"),
        ({"w": 2}, ValueError, r"final must have shape \(2, 2, \)"),
        ({"roots": np.zeros((2, 2, 16), np.uint8)}, ValueError, "roots must have shape"),
        ({"roots": np.zeros((2, 2, 16), np.uint8)[:, 0]}, ValueError, "roots must be C-contiguous"),
        ({"roots": np.zeros((1, 16), np.uint8)}, ValueError, "cw must have shape"),
        ({"cw": np.zeros((2, 4, 15), np.uint8)}, ValueError, "cw must have shape"),
        ({"cw": np.zeros((2, 4, 16), np.uint64)}, TypeError, "cw must have dtype uint8"),
        ({"final": np.zeros((1, 3), np.uint64)}, ValueError, "final must have shape"),
        ({"tweak": bytes(17)}, ValueError, "tweak must have 16 bytes"),
    ],
)
def test_eval_refuses(change: dict[str, object], error: type[Exception], match: str) -> None:
    arguments: dict[str, object] = {
        "party": 0,
        "m": 4,
        "w": 3,
        "roots": np.zeros((2, 16), np.uint8),
        "cw": np.zeros((2, 4, 16), np.uint8),
        "final": np.zeros((2, 3), np.uint64),
        "tweak": TWEAK,
    }
    with pytest.raises(error, match=match):
        _kernels.dpf_eval_full(**{**arguments, **change})  # type: ignore[arg-type]
