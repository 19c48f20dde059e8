from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import pytest

from privinfer import _kernels
from tests.support.rns import (
    ALL,
    CHAINS,
    KEY,
    P50,
    SETTINGS,
    N,
    arguments,
    chosen,
    complex_slots,
    kernel,
    residues,
    twin,
)

A = np.zeros((4, N), np.uint64)
DIGITS, SWITCH = np.zeros((3, 4, N), np.uint64), np.zeros((3, 2, 4, N), np.uint64)
SLOTS, REALS = np.zeros(N // 2, np.complex128), np.zeros(N)
HUGE = 2**64


@pytest.mark.parametrize(
    ("name", "args", "error", "match"),
    [
        ("ntt", (A.astype(np.int64), ALL), TypeError, "a must have dtype uint64"),
        ("ntt", (A.astype(">u8"), ALL), TypeError, "a must have dtype uint64"),
        ("ntt", (A.tolist(), ALL), TypeError, "a must be a NumPy array"),
        ("ntt", (None, ALL), TypeError, "a must be a NumPy array"),
        ("ntt", (A[:3], ALL), ValueError, r"a must have shape \(\.\., 4, 1024\), got \(3, 1024\)"),
        ("ntt", (A[:, :-1], ALL), ValueError, "a must have shape"),
        ("ntt", (A[0], ALL), ValueError, "a must have shape"),
        ("ntt", (np.uint64(3), ALL), TypeError, "a must be a NumPy array"),
        ("ntt", (np.array(3, np.uint64), ALL), ValueError, r"got \(\)"),
        ("ntt", (A[::-1], ALL), ValueError, "a must be C-contiguous"),
        ("ntt", (np.broadcast_to(A[0], (4, N)), ALL), ValueError, "a must be C-contiguous"),
        (
            "ntt",
            (np.zeros(8 * 4 * N + 1, np.uint8)[1:].view(np.uint64).reshape(4, N), ALL),
            ValueError,
            "aligned",
        ),
        ("ntt", (A, 3), TypeError, "basis must be a sequence"),
        ("ntt", (A, "0123"), TypeError, "basis must be an integer"),
        ("ntt", (A, ()), ValueError, "basis must have 1 to 4 primes"),
        ("ntt", (A, range(10**18)), ValueError, "basis must "),
        ("ntt", (A, (0, 1, 2, 3, 0)), ValueError, "basis must have 1 to 4 primes"),
        ("ntt", (A, (0, 1, 2, 4)), ValueError, r"basis must be in 0\.\.3"),
        ("ntt", (A, (0, 1, 2, -1)), ValueError, r"basis must be in 0\.\.3"),
        ("ntt", (A, (0, 1, 2, HUGE)), ValueError, r"basis must be in 0\.\.3"),
        ("ntt", (A, (0, 1, 2, 1.5)), TypeError, "basis must be an integer"),
        ("intt", (A, (0, 1)), ValueError, "a must have shape"),
        ("add", (A, A[None], ALL), ValueError, "b must have the shape of a"),
        ("sub", (A[None], np.stack([A, A]), ALL), ValueError, "b must have the shape of a"),
        ("mul", (A, A[:2], ALL), ValueError, "b must have shape"),
        ("neg", (A, (0,)), ValueError, "a must have shape"),
        ("scale", (A, np.array(P50, np.uint64), ALL), ValueError, "scalars must be below their primes"),
        ("scale", (A, np.zeros(3, np.uint64), ALL), ValueError, "scalars must have shape"),
        ("scale", (A, np.zeros((2, 4), np.uint64), ALL), ValueError, "scalars must have one axis"),
        ("scale", (A, np.zeros((0, 4), np.uint64), ALL), ValueError, "scalars must have one axis"),
        ("automorph", (A, 2), ValueError, "element must be odd"),
        ("automorph", (A, 2 * N + 1), ValueError, r"element must be in 1\.\.2047"),
        ("automorph", (A, -1), ValueError, r"element must be in 1\.\.2047"),
        ("automorph", (A, "3"), TypeError, "element must be an integer"),
        ("lift", (A, ALL), TypeError, "v must have dtype int64"),
        ("lift_wide", (A[0], ALL), ValueError, "words must have shape"),
        ("lift_wide", (np.zeros((N, 2), np.int64), ALL), TypeError, "words must have dtype uint64"),
        ("compose", (A[:2], (1, 1)), ValueError, "basis must have distinct primes"),
        ("to_ring64", (A[:2], (1, 1)), ValueError, "basis must have distinct primes"),
        ("uniform", (KEY[1:], 1, ALL), ValueError, "key must have 16 bytes"),
        ("uniform", (bytearray(KEY), 1, ALL), TypeError, "key must be bytes"),
        ("uniform", (KEY, -1, ALL), ValueError, "count must be in"),
        ("uniform", (KEY, 65537, ALL), ValueError, "count must be in"),
        ("ternary", (KEY, HUGE), ValueError, "count must be in"),
        ("binomial", (KEY, 1.0), TypeError, "count must be an integer"),
        ("wide_uniform", (KEY, 1, 121), ValueError, r"bits must be in 0\.\.120"),
        ("decompose", (A,), ValueError, "c has 4 limbs, which is not 1 to 3"),
        ("decompose", (A[:0],), ValueError, "c has 0 limbs"),
        ("decompose", (A[None, :3],), ValueError, "c must have two axes"),
        ("decompose", (A[0],), ValueError, "c must have two axes or more"),
        ("key_product", (DIGITS[:2], SWITCH, 1), ValueError, "digits must have shape"),
        ("key_product", (DIGITS[None], SWITCH, 1), ValueError, "digits must have three axes"),
        ("key_product", (DIGITS, SWITCH[:2], 1), ValueError, "key must have four axes, and a row a digit"),
        ("key_product", (DIGITS, SWITCH[None], 1), ValueError, "key must have four axes"),
        ("key_product", (DIGITS, SWITCH[:, :, :3], 1), ValueError, "key must have shape"),
        ("key_product", (DIGITS, SWITCH, 0), ValueError, "element must be in"),
        ("mod_down", (A[:1],), ValueError, "a has 1 limbs, which is not 2 to 4"),
        ("mod_down", (np.zeros((5, N), np.uint64),), ValueError, "a has 5 limbs"),
        ("rescale", (A,), ValueError, "a has 4 limbs, which is not 1 to 3"),
        ("rescale", (A[:1],), ValueError, "a must have two limbs or more"),
        ("multiply_sum", (np.stack([A, A]), A[None], ALL), ValueError, "x must have four axes"),
        ("multiply_sum", (np.zeros((2, 2, 4, N), np.uint64), A[None], ALL), ValueError, "the same count"),
        ("encode", (REALS[: N // 2], 1.0, ALL), TypeError, "slots must have dtype complex128"),
        ("encode", (SLOTS[1:], 1.0, ALL), ValueError, "slots must have shape"),
        ("encode", (SLOTS, 0, ALL), ValueError, "scale must be above 0"),
        ("encode", (SLOTS, math.nan, ALL), ValueError, "scale must be above 0"),
        ("encode", (SLOTS, math.inf, ALL), ValueError, "scale must be above 0"),
        ("encode", (SLOTS, 10**400, ALL), ValueError, "scale must be above 0"),
        ("encode", (SLOTS, "1", ALL), TypeError, "scale must be a number"),
        ("encode", (SLOTS, 1j, ALL), TypeError, "scale must be a number"),
        ("decode", (REALS, None), TypeError, "scale must be a number"),
        ("decode", (REALS.astype(np.float32), 1.0), TypeError, "coefficients must have dtype float64"),
        ("decode", (REALS[1:], 1.0), ValueError, "coefficients must have shape"),
    ],
)
def test_refuses(name: str, args: tuple[Any, ...], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        getattr(kernel(N, P50), name)(*args)


@pytest.mark.parametrize(
    ("n", "primes", "error", "match"),
    [
        (512, (12289,), ValueError, r"n must be in 1024\.\.65536"),
        (131072, (12289,), ValueError, r"n must be in 1024\.\.65536"),
        (1500, (12289,), ValueError, "n must be a power of two"),
        (1024.0, (12289,), TypeError, "n must be an integer"),
        (2**70, (12289,), ValueError, "n must be in"),
        (1024, (), ValueError, "1 to 64 primes"),
        (1024, range(10**15, 2 * 10**15), ValueError, "1 to 64 primes"),
        (1024, 12289, TypeError, "primes must be a sequence"),
        (1024, (12289, 12289), ValueError, "primes must be distinct"),
        (1024, (0,), ValueError, "primes must be in"),
        (1024, (1,), ValueError, "primes must be in"),
        (1024, (2**61,), ValueError, "primes must be in"),
        (1024, (2049,), ValueError, "primes = 1 mod 2n"),  # 3 * 683
        (1024, (1024 * 2 * 1024 * 2 + 1,), ValueError, "primes = 1 mod 2n"),  # 2^22 + 1
        (1024, (10007,), ValueError, "primes = 1 mod 2n"),
        (4096, (12289, 12289 + 2**13), ValueError, "primes = 1 mod 2n"),
        (1024, (P50[0] * 12289 % 2**60 // 2048 * 2048 + 1,), ValueError, "primes = 1 mod 2n"),
    ],
)
def test_refuses_to_be(n: Any, primes: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        _kernels.Rns(n, primes)


def test_one_prime_has_no_special_one() -> None:
    k, a = kernel(N, (12289,)), np.zeros((1, N), np.uint64)
    for work in (
        lambda: k.decompose(a),
        lambda: k.mod_down(np.zeros((2, N), np.uint64)),
        lambda: k.key_product(np.zeros((1, 2, N), np.uint64), np.zeros((1, 2, 1, N), np.uint64), 1),
    ):
        with pytest.raises(ValueError, match="limbs"):
            work()


@pytest.mark.parametrize("chain", CHAINS)
def test_whatever_the_residues_nothing_breaks(chain: str) -> None:
    """Residues above their primes give residues of nothing in particular, and harm nobody."""
    primes, ones = CHAINS[chain], np.uint64(2**64 - 1)
    k = kernel(N, primes)
    for name, args in arguments(chain).items():
        bad = tuple(
            np.full(a.shape, ones) if isinstance(a, np.ndarray) and a.dtype == np.uint64 and a.ndim > 1 else a
            for a in args
        )
        for setting in SETTINGS[::2]:
            with chosen(*setting):
                try:
                    getattr(k, name.split()[0])(*bad)
                except ValueError as refusal:
                    assert "does not fit 128 bits" in str(refusal) or "below their primes" in str(refusal)  # noqa: PT017


def test_no_rows_at_all() -> None:
    k = kernel(N, P50)
    none = np.zeros((3, 0, 4, N), np.uint64)
    for got in (
        k.ntt(none, ALL),
        k.intt(none, ALL),
        k.add(none, none, ALL),
        k.mul(none, A, ALL),
        k.neg(none, ALL),
        k.automorph(none, 5),
    ):
        assert got.shape == none.shape
    assert k.lift(np.zeros((0, N), np.int64), ALL).shape == (0, 4, N)
    assert k.lift_wide(np.zeros((0, N, 2), np.uint64), ALL).shape == (0, 4, N)
    assert k.compose(none, ALL).shape == (3, 0, N, 2)
    assert k.to_ring64(none, ALL).shape == (3, 0, N)
    assert k.mod_down(none).shape == (3, 0, 3, N)
    assert k.rescale(none[:, :, :2].copy()).shape == (3, 0, 1, N)
    assert k.encode(np.zeros((0, N // 2), np.complex128), 1.0, ALL).shape == (0, 4, N)
    assert k.decode(np.zeros((0, N)), 1.0).shape == (0, N // 2)
    # So many rows of nothing that the strides of the result overflow.
    with pytest.raises(ValueError, match="too big"):
        k.lift(np.zeros((0, 2**49, N), np.int64), ALL)


def test_one_ring_in_many_threads() -> None:
    """Orders of automorphisms and roots of the embedding are made at first use, by whoever comes first."""
    k, elements = _kernels.Rns(N, P50), range(1, 2 * N, 32)
    a, z = residues(np.random.default_rng(12), P50), complex_slots(13)
    expected = [twin(P50).automorph(a, e) for e in elements[:8]]
    encoded = kernel(N, P50).encode(z, 2.0**50, ALL)
    wrong: list[Any] = []

    def work(shift: int) -> None:
        for i in range(len(elements)):
            e = (i + shift) % len(elements)
            got = k.automorph(a, elements[e])
            if e < 8 and not np.array_equal(got, expected[e]):
                wrong.append(e)
            if i % 16 == 0 and not np.array_equal(k.encode(z, 2.0**50, ALL), encoded):
                wrong.append("encode")

    threads = [threading.Thread(target=work, args=(7 * t,)) for t in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
