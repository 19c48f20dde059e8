from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privinfer import _kernels
from tests import twins

EXTREME = np.array([0, 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1], np.uint64)
SHARED = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@pytest.fixture(params=_kernels.paths())
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _kernels.current_path()
    _kernels.use_path(request.param)
    yield request.param
    _kernels.use_path(before)


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = _kernels.get_threads()
    _kernels.set_threads(request.param)
    yield request.param
    _kernels.set_threads(before)


def ring(rng: np.random.Generator, *shape: int) -> twins.U64:
    """Uniform values with extreme ones strewn in."""
    uniform = rng.integers(0, 2**64, shape, np.uint64)
    return np.where(rng.random(shape) < 0.3, rng.choice(EXTREME, shape), uniform)


SEED = st.integers(0, 2**32).map(np.random.default_rng)
SIZE = st.sampled_from([0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40])


@settings(max_examples=60, **SHARED)
@given(rng=SEED, m=SIZE, k=SIZE, n=SIZE)
def test_matmul_is_its_twin(path: str, rng: np.random.Generator, m: int, k: int, n: int) -> None:
    a, b = ring(rng, m, k), ring(rng, k, n)
    out = _kernels.matmul(a, b)
    assert out.dtype == np.uint64
    assert out.shape == (m, n)
    np.testing.assert_array_equal(out, twins.matmul(a, b))


# Around the tiles (128 x 128, 256 deep), the strips of the few-row product (512) and the work worth a thread.
@pytest.mark.parametrize(
    ("m", "k", "n"),
    [
        (1, 944, 16),
        (1, 300, 1025),
        (7, 257, 513),
        (8, 256, 128),
        (8, 257, 129),
        (129, 513, 130),
        (257, 255, 1),
        (128, 1, 127),
        (1, 4099, 600),
    ],
)
def test_matmul_across_tiles(path: str, threads: int, m: int, k: int, n: int) -> None:
    rng = np.random.default_rng(m + k + n)
    a, b = ring(rng, m, k), ring(rng, k, n)
    np.testing.assert_array_equal(_kernels.matmul(a, b), a @ b)


def test_matmul_of_the_largest_values_wraps(path: str) -> None:
    a = np.full((9, 700), 2**64 - 1, np.uint64)
    np.testing.assert_array_equal(_kernels.matmul(a, a.T.copy()), np.full((9, 9), 700, np.uint64))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, object]]:
    groups = draw(st.integers(1, 3))
    per_group, outputs = draw(st.integers(0, 3)), groups * draw(st.integers(0, 5))
    kernel = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    dilation = (draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    padding = tuple(draw(st.integers(0, 4)) for _ in range(4))
    needed = [dilation[i] * (kernel[i] - 1) + 1 - padding[i] - padding[i + 2] for i in range(2)]
    size = [max(0, needed[i]) + draw(st.integers(0, 13)) for i in range(2)]
    options = {
        "stride": (draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
    }
    batch = draw(st.integers(0, 3))
    return (batch, groups * per_group, *size), (outputs, per_group, *kernel), options


@settings(max_examples=100, **SHARED)
@given(rng=SEED, case=convolutions())
def test_conv2d_is_its_twin(path: str, rng: np.random.Generator, case: tuple) -> None:
    x, w, options = ring(rng, *case[0]), ring(rng, *case[1]), case[2]
    np.testing.assert_array_equal(_kernels.conv2d(x, w, **options), twins.conv2d(x, w, **options))


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "groups"),
    [
        ((1, 1, 28, 28), (8, 1, 3, 3), 1),
        ((2, 32, 12, 12), (131, 32, 3, 3), 1),  # deeper than a slice of 256, more outputs than a tile
        ((9, 4, 3, 3), (6, 2, 3, 3), 2),  # tiles that span images
        ((1, 2, 1, 300), (4, 2, 1, 5), 1),  # rows longer than a tile
        ((3, 64, 14, 14), (64, 1, 3, 3), 64),  # depthwise
    ],
)
def test_conv2d_across_tiles(
    path: str, threads: int, x_shape: tuple[int, ...], w_shape: tuple[int, ...], groups: int
) -> None:
    rng = np.random.default_rng(sum(x_shape))
    x, w = ring(rng, *x_shape), ring(rng, *w_shape)
    options = {"stride": (1, 2), "padding": (1, 1, 2, 0), "dilation": (1, 1), "groups": groups}
    np.testing.assert_array_equal(_kernels.conv2d(x, w, **options), twins.conv2d(x, w, **options))


@settings(max_examples=60, **SHARED)
@given(rng=SEED, bits=st.integers(1, 64), count=st.integers(0, 70))
def test_packing_is_its_twin(path: str, rng: np.random.Generator, bits: int, count: int) -> None:
    values = ring(rng, count)
    packed = _kernels.pack_bits(values, bits)
    np.testing.assert_array_equal(packed, twins.pack_bits(values, bits))
    unpacked = _kernels.unpack_bits(packed, bits, count)
    np.testing.assert_array_equal(unpacked, twins.unpack_bits(packed, bits, count))
    np.testing.assert_array_equal(unpacked, values & np.uint64(2**bits - 1))


@pytest.mark.parametrize("bits", range(1, 65))
def test_every_width_round_trips_with_its_tails(path: str, bits: int) -> None:
    rng = np.random.default_rng(bits)
    for count in (0, 1, 7, 8, 9, 64, 67):
        values = ring(rng, count)
        packed = _kernels.pack_bits(values, bits)
        np.testing.assert_array_equal(packed, twins.pack_bits(values, bits))
        np.testing.assert_array_equal(
            _kernels.unpack_bits(packed, bits, count), values & np.uint64(2**bits - 1)
        )


@pytest.mark.parametrize("bits", [1, 13, 32])
def test_packing_by_several_threads(threads: int, bits: int) -> None:
    values = ring(np.random.default_rng(bits), 2**18 * 2 + 13)
    packed = _kernels.pack_bits(values, bits)
    low = (values & np.uint64(2**bits - 1)).astype("<u8")
    stream = np.unpackbits(low.view(np.uint8).reshape(-1, 8), axis=1, bitorder="little")[:, :bits]
    np.testing.assert_array_equal(packed, np.packbits(stream, bitorder="little"))
    np.testing.assert_array_equal(_kernels.unpack_bits(packed, bits, len(values)), low)


@settings(max_examples=60, **SHARED)
@given(bits=st.integers(1, 64), count=st.integers(1, 40), data=st.data())
def test_bits_after_the_last_value_are_refused(bits: int, count: int, data: st.DataObject) -> None:
    packed = _kernels.pack_bits(np.zeros(count, np.uint64), bits)
    spare = len(packed) * 8 - count * bits
    if spare:
        packed[-1] |= np.uint8(1 << (7 - data.draw(st.integers(0, spare - 1))))
        with pytest.raises(ValueError, match="non-zero bits"):
            _kernels.unpack_bits(packed, bits, count)


def test_parallel_callers_do_not_disturb_each_other() -> None:
    rng = np.random.default_rng(0)
    a, b = ring(rng, 150, 150), ring(rng, 150, 150)
    expected = a @ b
    with ThreadPoolExecutor(4) as pool:
        for out in pool.map(lambda _: _kernels.matmul(a, b), range(24)):
            np.testing.assert_array_equal(out, expected)


ONE = np.ones((1, 1), np.uint64)
IMAGE = np.ones((1, 2, 4, 4), np.uint64)
KERNEL = np.ones((2, 2, 3, 3), np.uint64)
PLAIN = {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1}


@pytest.mark.parametrize(
    ("a", "b", "error", "match"),
    [
        (ONE.astype(np.int64), ONE, TypeError, "a must have dtype uint64"),
        (ONE, ONE.astype(np.float64), TypeError, "b must have dtype uint64"),
        (ONE.astype(">u8"), ONE, TypeError, "a must have dtype uint64"),
        (ONE.tolist(), ONE, TypeError, "a must be a NumPy array"),
        (None, ONE, TypeError, "a must be a NumPy array"),
        (ONE[0], ONE, ValueError, r"a must have shape \(\*, \*, \), got \(1,\)"),
        (ONE, np.ones((2, 1), np.uint64), ValueError, r"b must have shape \(1, \*, \), got \(2, 1\)"),
        (np.ones((4, 4), np.uint64)[:, ::2], np.ones((2, 1), np.uint64), ValueError, "C-contiguous"),
        (np.ones((4, 2), np.uint64).T, np.ones((4, 1), np.uint64), ValueError, "C-contiguous"),
        (np.ones(9, np.uint8)[1:].view(np.uint64).reshape(1, 1), ONE, ValueError, "aligned"),
    ],
)
def test_matmul_refuses(a: object, b: object, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        _kernels.matmul(a, b)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"stride": (0, 1)}, ValueError, "stride must be in"),
        ({"stride": (1, 2**31)}, ValueError, "stride must be in"),
        ({"stride": 1}, TypeError, "stride must be a sequence of 2"),
        ({"stride": (1, 1, 1)}, TypeError, "stride must be a sequence of 2"),
        ({"padding": (0, 0, 0, -1)}, ValueError, "padding must be in"),
        ({"padding": (0, 0)}, TypeError, "padding must be a sequence of 4"),
        ({"dilation": (0, 1)}, ValueError, "dilation must be in"),
        ({"dilation": (1, 2)}, ValueError, "larger than the padded x along width"),
        ({"dilation": (2**31 - 1, 1)}, ValueError, "larger than the padded x along height"),
        ({"groups": 0}, ValueError, "groups must be in"),
        ({"groups": 3}, ValueError, "groups must divide"),
        ({"groups": 2}, ValueError, r"w must have shape \(\*, 1, \*, \*\)"),
        ({"groups": 1.0}, TypeError, "groups must be an integer"),
        ({"padding": (2**30,) * 4}, ValueError, "too large"),
        ({"w": KERNEL[:, :, :0]}, ValueError, "empty kernel"),
        ({"w": KERNEL[0]}, ValueError, "w must have shape"),
        ({"x": IMAGE.astype(np.uint32)}, TypeError, "x must have dtype"),
    ],
)
def test_conv2d_refuses(change: dict[str, object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        _kernels.conv2d(**{"x": IMAGE, "w": KERNEL, **PLAIN, **change})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "bits", "count", "match"),
    [
        (3, 8, 4, "data must have 4 bytes"),
        (5, 8, 4, "data must have 4 bytes"),
        (0, 1, 1, "data must have 1 bytes"),
        (0, 64, 2**56, "data must have"),
        (0, 8, 2**64, "count must be in"),
        (4, 0, 4, "bits must be in"),
        (4, 65, 4, "bits must be in"),
        (4, 8, -1, "count must be in"),
    ],
)
def test_unpack_bits_refuses(size: int, bits: int, count: int, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        _kernels.unpack_bits(np.zeros(size, np.uint8), bits, count)


@pytest.mark.parametrize("bits", [0, 65, -1])
def test_pack_bits_refuses_widths(bits: int) -> None:
    with pytest.raises(ValueError, match="bits must be in"):
        _kernels.pack_bits(np.zeros(1, np.uint64), bits)


def test_paths_and_threads_are_chosen_by_name_and_number() -> None:
    before, threads = _kernels.current_path(), _kernels.get_threads()
    assert _kernels.paths()[0] == "portable"
    assert before in _kernels.paths()
    assert all(type(present) is bool for present in _kernels.cpu_features().values())
    with pytest.raises(ValueError, match="unknown path"):
        _kernels.use_path("abacus")
    for count in (0, -1, 257):
        with pytest.raises(ValueError, match="count must be in"):
            _kernels.set_threads(count)
    assert (_kernels.current_path(), _kernels.get_threads()) == (before, threads)
