"""Chains of primes, and kernels over them on every path, for the tests of `_kernels.Rns`."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import numpy as np

from privinfer import _kernels
from tests import twins_rns
from tests.support.rlwe import family

N = 1024
KEY = bytes(range(16))
SETTINGS = list(itertools.product(_kernels.paths(), (1, 2)))

P50, P30, P61 = family(N, 3), family(N, 3, 30), family(N, 3, 61)
CHAINS = {
    "just below 2^50": P50,
    "30 bits": P30,
    "just below 2^61": P61,  # never on the vector path
    "50, 14, 30, 50 bits": (P50[0], 12289, P30[0], P50[3]),
    "61, 14, 50, 30 bits": (P61[0], 12289, P50[0], P30[3]),
}
WIDE = {"just below 2^61", "61, 14, 50, 30 bits"}
ALL = (0, 1, 2, 3)


@contextlib.contextmanager
def chosen(path: str, threads: int) -> Iterator[None]:
    """One path and so many threads, for a while."""
    before = _kernels.current_path(), _kernels.get_threads()
    _kernels.use_path(path)
    _kernels.set_threads(threads)
    try:
        yield
    finally:
        _kernels.use_path(before[0])
        _kernels.set_threads(before[1])


def on_every_path(work: Callable[[], Any]) -> list[Any]:
    """Results by path and number of threads."""
    out = []
    for setting in SETTINGS:
        with chosen(*setting):
            out.append(work())
    return out


@cache
def kernel(n: int, primes: tuple[int, ...]) -> Any:
    return _kernels.Rns(n, primes)


@cache
def twin(primes: tuple[int, ...]) -> twins_rns.Rns:
    return twins_rns.Rns(N, primes)


def residues(rng: np.random.Generator, primes, *lead: int, n: int = N) -> np.ndarray:
    """Residues [.., l, n]; in every other row only those at the edges."""
    out = np.stack([rng.integers(0, q, (*lead, n), np.uint64) for q in primes], -2)
    edges = np.stack([rng.choice(np.array(edge(q), np.uint64), (*lead, n)) for q in primes], -2)
    out.reshape(-1, len(primes), n)[1::2] = edges.reshape(-1, len(primes), n)[1::2]
    return out


def edge(q: int) -> tuple[int, ...]:
    return (0, 1, (q - 1) // 2, (q + 1) // 2, q - 1)


def complex_slots(seed: int, *lead: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.sqrt(rng.random((*lead, N // 2))) * np.exp(2j * np.pi * rng.random((*lead, N // 2)))


@cache
def arguments(chain: str) -> dict[str, tuple[Any, ...]]:
    """By name of the method, and what sets cases of one apart: what to call every method with."""
    primes, rng = CHAINS[chain], np.random.default_rng(len(chain))
    a, b = residues(rng, primes, 2), residues(rng, primes, 2)
    digits = np.stack([residues(rng, (*primes[:2], primes[3])) for _ in range(2)])
    key = residues(rng, primes, 3, 2)
    few, scattered = (0, 1), (3, 1)
    wide = rng.integers(0, 2**64, (N, 2), np.uint64)
    wide[:4] = twins_rns.words(np.array([-(2**127), 2**127 - 1, -1, 0], object))
    v = rng.integers(-(2**63), 2**63, (2, N), np.int64)
    v[0, :3] = -(2**63), 2**63 - 1, 0
    return {
        "ntt": (a, ALL),
        "ntt of some": (a[:1, [3, 1]], scattered),
        "intt": (a, ALL),
        "add": (a, b, ALL),
        "add one to all": (a, b[1], ALL),
        "sub": (a, b, ALL),
        "sub one from all": (a, b[1], ALL),
        "mul": (a, b, ALL),
        "mul all by one": (a, b[1], ALL),
        "mul of one prime twice": (a[:, [1, 1]], b[:, [1, 1]], (1, 1)),
        "neg": (a, ALL),
        "scale": (a, np.array([q - 1 for q in primes], np.uint64), ALL),
        "automorph": (a, 3),
        "automorph by -1": (a[0, 0], 2 * N - 1),
        "automorph by nothing": (a, 1),
        "lift": (v, ALL),
        "lift of small ones": (v % 43 - 21, ALL),
        "lift of what is small for some": (v >> 15, ALL),
        "lift_wide": (wide, ALL),
        "compose": (a[:, :2], few),
        "compose another way": (a[:, [3, 1]], scattered),
        "to_ring64": (a, ALL),
        "uniform": (KEY, 2, ALL),
        "ternary": (KEY, 2),
        "binomial": (KEY, 2),
        "wide_uniform": (KEY, 2, 120),
        "wide_uniform of two values": (KEY, 1, 0),
        "decompose": (a[0, :3],),
        "decompose of one limb": (a[1, :1],),
        "key_product": (digits, key, 1),
        "key_product rotated": (digits, key, 9),
        "key_product turned": (digits, key, 2 * N - 5),
        "key_product with as many digits as rows": (digits, key[:2], 3),
        "mod_down": (a[:, [0, 1, 3]],),
        "mod_down to one limb": (a[1, [0, 3]],),
        "rescale": (a[:, :3],),
        "multiply_sum": (np.stack([a, b, a, b, b]), np.stack([b[1], a[1], a[0], b[0], b[1]]), ALL),
        "multiply_sum of nothing": (a[:0, None].repeat(2, 1), b[:0], ALL),
    }
