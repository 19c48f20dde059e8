from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import twins_rns
from tests.support.rlwe import SIGMA, family
from tests.support.rns import (
    ALL,
    CHAINS,
    KEY,
    P30,
    P50,
    P61,
    SETTINGS,
    WIDE,
    N,
    arguments,
    chosen,
    edge,
    kernel,
    on_every_path,
    residues,
    twin,
)

# -- every method against its twin -----------------------------------------------------------------


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("case", arguments("30 bits"))
def test_method_is_its_twin_on_every_path(chain: str, case: str) -> None:
    name, args = (
        case.split(maxsplit=1)[0],
        tuple(
            np.ascontiguousarray(arg) if isinstance(arg, np.ndarray) else arg
            for arg in arguments(chain)[case]
        ),
    )
    before = [arg.copy() for arg in args if isinstance(arg, np.ndarray)]
    expected = getattr(twin(CHAINS[chain]), name)(*args)
    for got in on_every_path(lambda: getattr(kernel(N, CHAINS[chain]), name)(*args)):
        assert got.dtype == expected.dtype
        assert got.shape == expected.shape
        np.testing.assert_array_equal(got, expected)
    for old, arg in zip(before, (arg for arg in args if isinstance(arg, np.ndarray)), strict=True):
        np.testing.assert_array_equal(arg, old)


@pytest.mark.parametrize("chain", CHAINS)
def test_fast_says_which_path(chain: str) -> None:
    for path, threads in SETTINGS:
        with chosen(path, threads):
            fast = kernel(N, CHAINS[chain]).fast
        if path == "portable" or chain in WIDE:
            assert not fast
        elif path == "avx512":  # such a CPU has FMA; others may lack it
            assert fast


@settings(max_examples=60)
@given(st.sampled_from(sorted(set(itertools.chain(*CHAINS.values())))), st.data())
def test_products_of_any_residues(q: int, data: st.DataObject) -> None:
    residue = st.one_of(
        st.integers(0, q - 1), st.sampled_from(edge(q)), st.integers(0, 2**20).map(lambda d: q - 1 - d % q)
    )
    pairs = data.draw(st.lists(st.tuples(residue, residue), min_size=1, max_size=64))
    a, b = (np.resize(np.array(side, np.uint64), (1, N)) for side in zip(*pairs, strict=True))
    expected = (a.astype(object) * b % q).astype(np.uint64)
    for got in on_every_path(lambda: kernel(N, (q,)).mul(a, b, (0,))):
        np.testing.assert_array_equal(got, expected)


@settings(max_examples=60)
@given(
    st.sampled_from(sorted(set(itertools.chain(*CHAINS.values())))),
    st.lists(
        st.one_of(
            st.integers(-(2**127), 2**127 - 1),
            st.builds(
                lambda k, d: max(-(2**127), min(k + d, 2**127 - 1)),
                st.sampled_from([s * 2**e for s in (-1, 1) for e in (0, 50, 62, 63, 64, 126, 127)]),
                st.integers(-5, 5),
            ),
        ),
        min_size=1,
        max_size=64,
    ),
)
def test_residues_of_any_integers(q: int, values: list[int]) -> None:
    """128 bits, of multiples of q too, where a quotient that is off by one shows."""
    values = [*values, *(v // q * q for v in values if v // q * q >= -(2**127))]
    v = np.resize(np.array(values, object), N)
    found = kernel(N, (q,)).lift_wide(twins_rns.words(v), (0,))
    np.testing.assert_array_equal(found[0], (v % q).astype(np.uint64))
    short = np.array([int(x) % 2**64 - 2**63 for x in v], np.int64)
    np.testing.assert_array_equal(
        kernel(N, (q,)).lift(short, (0,))[0], (short.astype(object) % q).astype(np.uint64)
    )


# -- transforms --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1024, 2048, 4096, 8192, 16384, 32768, 65536])
def test_transform_by_definition_in_every_size(n: int) -> None:
    """Largest primes, residues at the edges: all paths give the same, and two values are right."""
    primes = (*family(n, 1), family(n, 0, 30)[0])
    k, basis = kernel(n, primes), (0, 1, 2)
    a = residues(np.random.default_rng(n), primes, 2, n=n)
    done = on_every_path(lambda: k.ntt(a, basis))
    for got in done[1:]:
        np.testing.assert_array_equal(got, done[0])
    for got in on_every_path(lambda: k.intt(done[0], basis)):
        np.testing.assert_array_equal(got, a)
    for limb, q in enumerate(primes):
        root = twins_rns.smallest_root(n, q) if n <= 16384 else _least_root(n, q)
        for i in (1, n - 2):
            e = 2 * int(f"{i:0{n.bit_length() - 1}b}"[::-1], 2) + 1
            x, value = pow(root, e, q), 0
            for c in reversed(a[1, limb].tolist()):
                value = (value * x + c) % q
            assert value == done[0][1, limb, i]


def _least_root(n: int, q: int) -> int:
    roots = (pow(g, (q - 1) // (2 * n), q) for g in range(2, q))
    root = next(r for r in roots if pow(r, n, q) == q - 1)
    square, least = root * root % q, root
    for _ in range(n):
        root = root * square % q
        least = min(least, root)
    return least


def test_transforms_of_residues_at_the_edges() -> None:
    """Doubles grow most where all residues are at the edges: the paths agree on a hundred of these."""
    rng = np.random.default_rng(3)
    a = np.ascontiguousarray(residues(rng, P50, 100)[1::2])
    a[0] = np.array(P50, np.uint64)[:, None] - np.uint64(1)
    a[1] = np.array(P50, np.uint64)[:, None] // np.uint64(2)
    k = kernel(N, P50)
    for work in (
        lambda: k.ntt(a, ALL),
        lambda: k.intt(a, ALL),
        lambda: k.rescale(np.ascontiguousarray(a[:, :3])),
        lambda: k.mod_down(a),
    ):
        first, *others = on_every_path(work)
        assert (first < np.array(P50, np.uint64)[: first.shape[1], None]).all()
        for other in others:
            np.testing.assert_array_equal(other, first)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 300])
def test_sums_of_many_largest_products(chain: str, count: int) -> None:
    """(q - 1)^2 = 1: the sum of `count` products is `count`."""
    primes = CHAINS[chain]
    largest = np.array(primes, np.uint64)[:, None] - np.ones((1, N), np.uint64)
    x, y = np.broadcast_to(largest, (count, 2, 4, N)).copy(), np.broadcast_to(largest, (count, 4, N)).copy()
    expected = np.broadcast_to(np.array([count % q for q in primes], np.uint64)[:, None], (2, 4, N))
    for got in on_every_path(lambda: kernel(N, primes).multiply_sum(x, y, ALL)):
        np.testing.assert_array_equal(got, expected)


def test_products_of_polynomials_wrap_around() -> None:
    k = kernel(N, P50)
    v = np.zeros((2, N), np.int64)
    v[0, N - 1], v[1, 3] = 5, 7  # 5 X^(n - 1) 7 X^3 = -35 X^2
    a = k.ntt(k.lift(v, ALL), ALL)
    expected = np.zeros(N, np.int64)
    expected[2] = -35
    found = k.intt(k.mul(a[0], a[1], ALL), ALL)
    np.testing.assert_array_equal(found, k.lift(expected, ALL))


@settings(max_examples=40)
@given(st.integers(0, N - 1).map(lambda k: 2 * k + 1), st.integers(0, N - 1).map(lambda k: 2 * k + 1))
def test_automorphisms_of_coefficients(element: int, other: int) -> None:
    """X^k goes to X^(k element), and one after the other to the product."""
    k, v = kernel(N, P50), np.random.default_rng(element).integers(-9, 10, N)
    moved = np.zeros(N, np.int64)
    for at, c in enumerate(v.tolist()):
        to = at * element % (2 * N)
        moved[to % N] = c if to < N else -c
    a, b = k.ntt(k.lift(v, ALL), ALL), k.ntt(k.lift(moved, ALL), ALL)
    np.testing.assert_array_equal(k.automorph(a, element), b)
    np.testing.assert_array_equal(k.automorph(b, other), k.automorph(a, element * other % (2 * N)))
    # The product with a key moves digits in another way: one digit, key 1.
    one = np.ones((1, 2, 4, N), np.uint64)
    for got in on_every_path(lambda: k.key_product(a[None, [0, 3]].copy(), one, element)):
        np.testing.assert_array_equal(got[0], b[[0, 3]])
        np.testing.assert_array_equal(got[1], b[[0, 3]])


def test_16384() -> None:
    n, primes = 16384, family(16384, 3)
    k = kernel(n, primes)
    a = residues(np.random.default_rng(4), primes, n=n)[None]
    forward = on_every_path(lambda: k.ntt(a, ALL))
    assert all(np.array_equal(got, forward[0]) for got in forward[1:])
    assert all(np.array_equal(got, a) for got in on_every_path(lambda: k.intt(forward[0], ALL)))
    key = k.uniform(KEY, 6, ALL).reshape(3, 2, 4, n)
    switched = on_every_path(lambda: k.mod_down(k.key_product(k.decompose(forward[0][0, :3].copy()), key, 5)))
    assert all(np.array_equal(got, switched[0]) for got in switched[1:])


# -- integers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("primes", [P50, P61, P30])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_compose_at_the_edges(primes: tuple[int, ...], count: int) -> None:
    """Centred on either side of Q / 2, and at the ends of 128 bits."""
    k, basis = kernel(N, primes), range(count)
    Q = math.prod(primes[:count])
    ends = [Q // 2, Q // 2 - 1, -(Q // 2), 0, 1, -1]
    good = [v for v in (*ends, 2**127 - 1, -(2**127)) if -(2**127) <= v < 2**127 and abs(v) <= Q // 2]
    v = np.resize(np.array(good, object), N)
    a = np.stack([(v % q).astype(np.uint64) for q in primes[:count]])
    np.testing.assert_array_equal(k.compose(a, basis), twins_rns.words(v))
    np.testing.assert_array_equal(k.lift_wide(k.compose(a, basis), basis), a)
    for bad in (2**127, -(2**127) - 1, Q // 2):
        if abs(bad) <= Q // 2 and not -(2**127) <= bad < 2**127:
            v[N - 1] = bad
            b = np.stack([(v % q).astype(np.uint64) for q in primes[:count]])
            with pytest.raises(ValueError, match="does not fit 128 bits"):
                k.compose(b, basis)


@pytest.mark.parametrize("chain", CHAINS)
def test_to_ring64_is_near_the_quotient(chain: str) -> None:
    """Every limb's quotient is off by half a unit."""
    primes = CHAINS[chain]
    a = residues(np.random.default_rng(5), primes, 2)
    exact = twin(primes).integers(a, ALL) * 2**64
    found = kernel(N, primes).to_ring64(a, ALL).astype(object)
    Q = math.prod(primes)
    off = (found * Q - exact + 2**63 * Q) % (2**64 * Q) - 2**63 * Q
    assert (abs(2 * off) <= len(primes) * Q).all()


# -- key switching -----------------------------------------------------------------------------------


def switching_key(k: Any, primes: tuple[int, ...], secret: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(b_j, a_j) with b_j + a_j s = P target in limb j, and a binomial error."""
    rows = []
    for j, q in enumerate(primes[:-1]):
        a = k.uniform(bytes([j]) * 16, 1, ALL)[0]
        b = k.sub(k.ntt(k.lift(k.binomial(bytes([64 + j]) * 16, 1), ALL), ALL)[0], k.mul(a, secret, ALL), ALL)
        times_p = k.scale(target[j : j + 1].copy(), np.array([primes[-1] % q], np.uint64), (j,))
        b[j] = k.add(b[j : j + 1].copy(), times_p, (j,))[0]
        rows.append(np.stack([b, a]))
    return np.stack(rows)


@pytest.mark.parametrize("limbs", [1, 2, 3])
@pytest.mark.parametrize("element", [1, 3, 2 * N - 1, 9])
def test_key_switching_moves_a_product_to_another_key(limbs: int, element: int) -> None:
    """c(X^g) s'(X^g) under s: the error is sum_j digit_j e_j / P and the rounding of b and of a s.

    Digits are uniform in +-q_j / 2, q_j < P; errors have variance sigma^2. A coefficient of a digit's product
    is a sum of N products, of variance N q^2 / 12 sigma^2; roundings have 1/12, and 2/3 N of them next to s.
    A sum of so many terms exceeds 8 deviations with probability 1e-15. No coefficient ever exceeds N largest
    digits times the largest error, and half of (1 + N) for the roundings.
    """
    primes, data = P50, range(limbs)
    k = kernel(N, primes)
    s, other = k.ntt(k.lift(k.ternary(KEY, 2), ALL), ALL)
    c = k.uniform(bytes(16), 1, data)[0]
    key = switching_key(k, primes, s, k.automorph(other, element))
    std = math.sqrt(limbs * N / 12 * SIGMA**2 + (1 + 2 * N / 3) / 12)
    never = limbs * N / 2 * 21 + (1 + N) / 2
    expected = k.automorph(k.mul(c, other[:limbs].copy(), data), element)
    b, a = k.mod_down(k.key_product(k.decompose(c), key, element))
    found = k.add(b, k.mul(a, s[:limbs].copy(), data), data)
    error = k.intt(k.sub(found, expected, data), data)
    error = twins_rns.centred(twin(primes).integers(error, data), math.prod(primes[:limbs]))
    assert std / 2 < float(np.sqrt((error.astype(float) ** 2).mean())) < 2 * std
    assert np.abs(error).max() <= min(8 * std, never)


def test_digits_add_up_to_the_polynomial() -> None:
    k = kernel(N, P50)
    c = residues(np.random.default_rng(6), P50[:3], 2)[1]  # coefficients at the edges
    digits = k.intt(k.decompose(k.ntt(c, (0, 1, 2))), (0, 1, 2, 3))
    for j, q in enumerate(P50[:3]):
        small = twins_rns.centred(c[j].astype(object), q)
        np.testing.assert_array_equal(digits[j], twin(P50).residues(small, ALL))


# -- SEAL --------------------------------------------------------------------------------------------


def test_transform_is_that_of_seal() -> None:
    """A secret key SEAL made: our inverse finds ternary coefficients, the same under each prime."""
    pytest.importorskip("tenseal")
    from privinfer.backends.ckks import tenseal as bridge
    from privinfer.backends.ckks.protobuf import _Reader

    ts = bridge.load()
    made = ts.context(ts.SCHEME_TYPE.CKKS, 4096, coeff_mod_bit_sizes=[40, 25, 40], n_threads=1)
    form = bridge.read_context(made.serialize(save_galois_keys=False, save_relin_keys=False)).form
    whole = made.serialize(save_secret_key=True, save_galois_keys=False, save_relin_keys=False)
    private = dict(_Reader("test", None).fields(whole, {1: 2, 2: 2, 3: 2, 4: 0}))[3]
    packed = dict(_Reader("test", None).fields(private, {1: 2, 2: 0, 3: 0}))[1]
    s = form.parse_secret_key(bridge.inflate(packed, form.secret_key_bytes(), bridge.zstd()))
    k, basis = kernel(form.n, form.primes), range(len(form.primes))
    for a in on_every_path(lambda: k.intt(np.ascontiguousarray(s), basis)):
        first = twins_rns.centred(a[0].astype(object), form.primes[0])
        assert set(first) == {-1, 0, 1}
        np.testing.assert_array_equal(k.lift(first.astype(np.int64), basis), a)
