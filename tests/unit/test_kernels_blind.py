from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privinfer import _kernels
from tests import twins
from tests.support import stats

PRIMES = (37, 53)
KEY, PAIR = bytes(range(16)), bytes(range(50, 66))


@pytest.fixture(params=_kernels.paths())
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _kernels.current_path()
    _kernels.use_path(request.param)
    yield request.param
    _kernels.use_path(before)


def below(rng: np.random.Generator, bits: int, count: int) -> twins.U64:
    return rng.integers(0, 2**bits, count, np.uint64)


def messages(x: twins.U64, r: twins.U64, bits: int, p: int, key: bytes = KEY, pair: bytes = PAIR):
    second = _kernels.blind_share_bits(r, bits, p, key)
    return [_kernels.blind_mask(party, x, bits, p, (key, second)[party], pair) for party in (0, 1)]


def less(x: twins.U64, r: twins.U64, bits: int, p: int, key: bytes = KEY, pair: bytes = PAIR) -> twins.U8:
    first, second = messages(x, r, bits, p, key, pair)
    return _kernels.blind_zero(first, second, len(x), bits, p) ^ _kernels.blind_beta(pair, len(x))


# -- against the twins -----------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    p=st.sampled_from(PRIMES),
    count=st.one_of(st.integers(0, 5), st.sampled_from([63, 64, 65, 127, 128, 130])),
    data=st.data(),
)
def test_every_kernel_is_its_twin(path: str, seed: int, p: int, count: int, data: st.DataObject) -> None:
    bits = data.draw(st.one_of(st.integers(1, p - 3), st.sampled_from([1, p - 3])))
    rng = np.random.default_rng(seed)
    x, r = below(rng, bits, count), below(rng, bits, count)
    x[::4] = r[::4]
    key, pair = rng.bytes(16), rng.bytes(16)

    second = _kernels.blind_share_bits(r, bits, p, key)
    np.testing.assert_array_equal(second, twins.blind_share_bits(r, bits, p, key))
    assert _kernels.blind_valid(second, count, bits, p)
    sent = messages(x, r, bits, p, key, pair)
    for party, message in enumerate(sent):
        assert message.dtype == np.uint8
        assert _kernels.blind_valid(message, count, bits + 1, p)
        twin = twins.blind_mask(party, x, bits, p, (key, second)[party], pair)
        np.testing.assert_array_equal(message, twin)
    zero = _kernels.blind_zero(*sent, count, bits, p)
    np.testing.assert_array_equal(zero, twins.blind_zero(*sent, count, bits, p))
    beta = _kernels.blind_beta(pair, count)
    np.testing.assert_array_equal(beta, twins.blind_beta(pair, count))
    assert zero.dtype == beta.dtype == np.uint8
    np.testing.assert_array_equal(zero ^ beta, x < r)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32), p=st.sampled_from(PRIMES), count=st.integers(0, 130), rows=st.integers(1, 35)
)
def test_what_is_no_packing_is_found(path: str, seed: int, p: int, count: int, rows: int) -> None:
    """Any bytes: the kernel and the twin agree on whether they are residues."""
    rng = np.random.default_rng(seed)
    residues = [rng.integers(0, p, (rows, w)) for _, _, w in twins.blind_blocks(count)]
    data = np.concatenate([np.zeros(0, np.uint8), *(twins.blind_pack(b, p) for b in residues)])
    assert _kernels.blind_valid(data, count, rows, p)
    for _ in range(8 if len(data) else 0):
        changed = data.copy()
        changed[rng.integers(0, len(data))] ^= np.uint8(1 << int(rng.integers(0, 8)))
        try:
            for part, (_, _, w) in zip(
                twins.blind_split(changed, count, rows, p), twins.blind_blocks(count), strict=True
            ):
                twins.blind_unpack(part, rows, w, p)
            good = True
        except ValueError:
            good = False
        assert _kernels.blind_valid(changed, count, rows, p) == good


def passes(key: bytes, purpose: int, block: int, modulus: int, rows: int) -> int:
    """How often the kernel goes back to a block's keystream: each time for the words it still lacks."""
    cipher = twins.AES.new(key, twins.AES.MODE_ECB)
    counter, have, times, wanted = (purpose << 62) + (block << 28), 0, 0, 32 * rows
    limit = 2**16 // modulus**2 * modulus**2
    while have < wanted:
        blocks = -(-(wanted - have) // 8)
        stream = b"".join((counter + i).to_bytes(16, "little") for i in range(blocks))
        have += int((np.frombuffer(cipher.encrypt(stream), "<u2") < limit).sum())
        counter, times = counter + blocks, times + 1
    return times


def test_a_block_that_lacks_words_reads_on(path: str) -> None:
    """Blocks that need one, two, three and more draws all follow the one stream that is defined."""
    count, bits, p = 64 * 120, 31, 37
    x = below(np.random.default_rng(8), bits, count)
    r = x[::-1].copy()
    seen = {passes(KEY, 0, block, p, bits) for block in range(120)}
    assert {2, 3} <= seen
    seen = {passes(PAIR, 3, block, p, bits + 1) for block in range(120)}
    assert {2, 3} <= seen
    # few words: some blocks lack none
    assert 1 in {passes(KEY, 0, block, 53, 1) for block in range(120)}
    second = _kernels.blind_share_bits(r, bits, p, KEY)
    np.testing.assert_array_equal(second, twins.blind_share_bits(r, bits, p, KEY))
    np.testing.assert_array_equal(
        _kernels.blind_mask(0, x, bits, p, KEY, PAIR), twins.blind_mask(0, x, bits, p, KEY, PAIR)
    )
    few = x & np.uint64(1)
    np.testing.assert_array_equal(
        _kernels.blind_share_bits(few, 1, 53, KEY), twins.blind_share_bits(few, 1, 53, KEY)
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_large_batches_agree_across_threads(path: str, threads: int) -> None:
    count = 300 if path == "portable" else 20_003
    rng = np.random.default_rng(3)
    x, r = below(rng, 31, count), below(rng, 31, count)
    whole = messages(x, r, 31, 37)
    before = _kernels.get_threads()
    _kernels.set_threads(threads)
    try:
        for ours, other in zip(messages(x, r, 31, 37), whole, strict=True):
            np.testing.assert_array_equal(ours, other)
        np.testing.assert_array_equal(less(x, r, 31, 37), x < r)
    finally:
        _kernels.set_threads(before)


# -- correctness -----------------------------------------------------------------------------------


@pytest.mark.parametrize("p", PRIMES)
@pytest.mark.parametrize("bits", range(1, 7))
def test_every_pair_of_a_small_domain(path: str, bits: int, p: int) -> None:
    x, r = (v.reshape(-1).astype(np.uint64) for v in np.meshgrid(np.arange(2**bits), np.arange(2**bits)))
    for k in range(3):
        pair = bytes([k] * 16)
        np.testing.assert_array_equal(less(x, r, bits, p, bytes([9 + k] * 16), pair), x < r)


@pytest.mark.parametrize(("bits", "p"), [(31, 37), (34, 37), (31, 53), (47, 53), (50, 53)])
def test_the_ends_of_the_domain_and_between(path: str, bits: int, p: int) -> None:
    top = 2**bits - 1
    ends = np.array(sorted({0, 1, top // 2, top // 2 + 1, top - 1, top}), np.uint64)
    x, r = (np.repeat(v.reshape(-1), 5) for v in np.meshgrid(ends, ends))
    np.testing.assert_array_equal(less(x, r, bits, p), x < r)
    rng = np.random.default_rng(bits)
    x = below(rng, bits, 400)
    r = np.where(
        rng.integers(0, 2, 400) == 1,
        x ^ (np.uint64(1) << rng.integers(0, bits, 400, np.uint64)),
        below(rng, bits, 400),
    )
    np.testing.assert_array_equal(less(x, r, bits, p), x < r)


# -- what each side sees ---------------------------------------------------------------------------


@pytest.mark.parametrize("p", PRIMES)
def test_the_samples_are_uniform(p: int) -> None:
    """Of the shares, of u (E1's message where c s is fixed by nothing else) and of both halves of a word."""
    count, bits = 64 * 300, 9
    zero = np.zeros(count, np.uint64)
    shares = _kernels.blind_share_bits(zero, bits, p, KEY)
    message = _kernels.blind_mask(0, zero, bits, p, KEY, PAIR)
    tests = []
    for data, rows in ((shares, bits), (message, bits + 1)):
        blocks = [twins.blind_unpack(b, rows, 64, p) for b in twins.blind_split(data, count, rows, p)]
        parts = np.stack(blocks)
        tests += [np.bincount(parts.reshape(-1), minlength=p)]
        flat = parts.reshape(len(blocks), -1)
        half = flat.shape[1] // 2
        # if independent, then so is every combination
        for k in (1, 2, p - 1):
            tests += [np.bincount((flat[:, :half] + k * flat[:, half:]).reshape(-1) % p, minlength=p)]
    s = np.stack([twins.blind_sample(PAIR, 2, b, p - 1, bits) for b in range(300)])
    tests += [np.bincount(s.reshape(-1), minlength=p - 1)]
    rows = bits + 1
    shifts = np.stack([twins.blind_words(PAIR, 1, b, 2**16 // rows * rows, 64) % rows for b in range(300)])
    tests += [np.bincount(shifts.reshape(-1), minlength=rows)]
    tests += [np.bincount(_kernels.blind_beta(PAIR, count), minlength=2)]
    for counts in tests:
        statistic, freedom = stats.uniform_statistic(counts)
        assert statistic < stats.critical(freedom, stats.ALARM / len(tests))


@pytest.mark.parametrize(
    ("x", "r"), [(0, 0), (0, 2**31 - 1), (2**31 - 1, 0), (2**31 - 1, 2**31 - 1), (5, 4), (4, 5)]
)
def test_the_helpers_sum_looks_the_same_for_every_pair(x: int, r: int) -> None:
    """A uniform bit (is there a zero), a uniform place of it, uniform nonzero values elsewhere; u on top."""
    count, bits, p = 64 * 200, 31, 37
    first, second = messages(np.full(count, x, np.uint64), np.full(count, r, np.uint64), bits, p)
    a, b = (
        np.concatenate(
            [twins.blind_unpack(m, bits + 1, 64, p) for m in twins.blind_split(data, count, bits + 1, p)],
            axis=1,
        )
        for data in (first, second)
    )
    total = (a + b) % p
    zeros = (total == 0).sum(axis=0)
    assert zeros.max() == 1
    places = np.argmax(total == 0, axis=0)[zeros == 1]
    tests = [
        np.bincount(zeros, minlength=2),
        np.bincount(places, minlength=bits + 1),
        np.bincount(total[total > 0], minlength=p)[1:],
    ]
    tests += [np.bincount((a + k * total).reshape(-1) % p, minlength=p) for k in (0, 1, 2, p - 1)]
    tests += [np.bincount(total[i][total[i] > 0], minlength=p)[1:] for i in (0, 7, bits)]
    for counts in tests:
        statistic, freedom = stats.uniform_statistic(counts)
        assert statistic < stats.critical(freedom, stats.ALARM / (6 * len(tests)))


# -- refusals --------------------------------------------------------------------------------------

TWO = np.zeros(2, np.uint64)
SHARES = np.zeros(14, np.uint8)  # 2 values of 10 residues mod 37
SUMS = np.zeros(16, np.uint8)  # 2 values of 11


@pytest.mark.parametrize(
    ("name", "arguments", "error", "match"),
    [
        ("share_bits", (TWO.astype(np.int64), 10, 37, KEY), TypeError, "r must have dtype uint64"),
        ("share_bits", (TWO.reshape(2, 1), 10, 37, KEY), ValueError, "r must have shape"),
        ("share_bits", (TWO + np.uint64(1024), 10, 37, KEY), ValueError, r"r must be below 2\^10"),
        ("share_bits", (TWO, 0, 37, KEY), ValueError, r"bits must be in 1\.\.34"),
        ("share_bits", (TWO, 35, 37, KEY), ValueError, r"bits must be in 1\.\.34"),
        ("share_bits", (TWO, 51, 53, KEY), ValueError, r"bits must be in 1\.\.50"),
        ("share_bits", (TWO, 10, 41, KEY), ValueError, "p must be 37 or 53"),
        ("share_bits", (TWO, 10, 37, bytes(15)), ValueError, "key must have 16 bytes"),
        ("share_bits", (TWO, 10, 37, bytearray(16)), TypeError, "key must be bytes"),
        ("mask", (2, TWO, 10, 37, KEY, PAIR), ValueError, r"party must be in 0\.\.1"),
        ("mask", (0, TWO, 10, 37, SHARES, PAIR), TypeError, "shares must be bytes"),
        ("mask", (1, TWO, 10, 37, KEY, PAIR), TypeError, "shares must be a NumPy array"),
        ("mask", (1, TWO, 10, 37, SHARES[1:], PAIR), ValueError, r"shares must have shape \(14, \)"),
        ("mask", (1, TWO, 10, 37, SHARES + np.uint8(255), PAIR), ValueError, "shares must hold packed"),
        ("mask", (1, TWO + np.uint64(1024), 10, 37, SHARES, PAIR), ValueError, r"x must be below 2\^10"),
        ("mask", (0, TWO, 10, 37, KEY, bytes(17)), ValueError, "key_pair must have 16 bytes"),
        ("zero", (SUMS, SHARES, 2, 10, 37), ValueError, r"second must have shape \(16, \)"),
        ("zero", (SHARES, SUMS, 2, 10, 37), ValueError, r"first must have shape \(16, \)"),
        ("zero", (SUMS, SUMS + np.uint8(255), 2, 10, 37), ValueError, "must hold packed residues"),
        ("zero", (SUMS + np.uint8(255), SUMS, 2, 10, 37), ValueError, "must hold packed residues"),
        ("zero", (SUMS, SUMS, -2, 10, 37), ValueError, "count must be in"),
        ("zero", (SUMS, SUMS, 3, 10, 37), ValueError, "first must have shape"),
        ("beta", (PAIR, -1), ValueError, "count must be in"),
        ("beta", (PAIR[1:], 1), ValueError, "key_pair must have 16 bytes"),
        ("valid", (SUMS, 2, 36, 37), ValueError, r"positions must be in 1\.\.35"),
        ("valid", (SUMS, 1, 11, 37), ValueError, "data must have shape"),
        ("valid", (SUMS.astype(np.int8), 2, 11, 37), TypeError, "data must have dtype uint8"),
    ],
)
def test_refuses(name: str, arguments: tuple[object, ...], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        getattr(_kernels, f"blind_{name}")(*arguments)
