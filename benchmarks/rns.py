"""Polynomial kernels by operation, path and threads, in milliseconds: ``python -m benchmarks.rns``.

The least of many repetitions, so that what else the machine does counts little. Operations are those of a
ciphertext at `--limbs` limbs, under keys of seven digits or as many as there are limbs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from privinfer import _kernels
from privinfer.protocols.ckks.parameters import SCALE, Parameters

KEY = bytes(16)


def least(work: Callable[[], object], seconds: float) -> float:
    """Milliseconds of the quickest run within so many seconds, after one warm-up."""
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


def operations(n: int, limbs: int, terms: int) -> dict[str, Callable[[], object]]:
    """By name; arguments are ready."""
    parameters = Parameters(n, max(limbs, 7), insecure=True)
    k = _kernels.Rns(n, parameters.primes)
    data, wide = parameters.data(limbs), parameters.extended(limbs)
    c = k.uniform(KEY, 1, data)[0]
    pair = k.uniform(KEY, 2, data)
    digits = k.decompose(c)
    key = k.uniform(KEY, 2 * parameters.digits, parameters.full)
    key = key.reshape(parameters.digits, 2, parameters.limbs, n)
    product = k.key_product(digits, key, 9)
    x = k.uniform(KEY, 2 * terms, wide).reshape(terms, 2, len(wide), n)
    y = k.uniform(KEY, terms, wide)
    slots = np.exp(2j * np.pi * np.arange(n // 2) * 0.37)
    three = parameters.data(3)
    words, coefficients = k.wide_uniform(KEY, 1, 100), np.arange(n, dtype=np.float64)
    small = k.lift_wide(words, three)
    return {
        "ntt, one limb": lambda: k.ntt(c[:1], (0,)),
        "intt, one limb": lambda: k.intt(c[:1], (0,)),
        "add, a ciphertext": lambda: k.add(pair, pair, data),
        "mul, a ciphertext": lambda: k.mul(pair, pair, data),
        "decompose": lambda: k.decompose(c),
        "key_product": lambda: k.key_product(digits, key, 9),
        "key_product, element 1": lambda: k.key_product(digits, key, 1),
        "mod_down, a pair": lambda: k.mod_down(product),
        "rescale, a pair": lambda: k.rescale(pair),
        f"multiply_sum, {terms} terms": lambda: k.multiply_sum(x, y, wide),
        "automorph, a ciphertext": lambda: k.automorph(pair, 9),
        "encode, one": lambda: k.encode(slots, SCALE, wide),
        "encode, eight": lambda: k.encode(np.tile(slots, (8, 1)), SCALE, wide),
        "decode": lambda: k.decode(coefficients, SCALE),
        "lift_wide, three limbs": lambda: k.lift_wide(words, three),
        "compose, three limbs": lambda: k.compose(small, three),
        "to_ring64, three limbs": lambda: k.to_ring64(small, three),
        "uniform": lambda: k.uniform(KEY, 1, wide),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=16384)
    parser.add_argument("--limbs", type=int, default=4)
    parser.add_argument("--terms", type=int, default=16)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--paths", nargs="*", default=["portable", _kernels.paths()[-1]])
    parser.add_argument("--seconds", type=float, default=0.3, help="for each figure")
    args = parser.parse_args()
    columns = [(path, threads) for path in args.paths for threads in args.threads]
    found: dict[str, list[float]] = {}
    for path, threads in columns:
        _kernels.use_path(path)
        _kernels.set_threads(threads)
        for name, work in operations(args.n, args.limbs, args.terms).items():
            found.setdefault(name, []).append(least(work, args.seconds))
    print(f"n = {args.n}, {args.limbs} limbs; ms")
    print(f"{'':26}" + "".join(f"{f'{path} x{threads}':>14}" for path, threads in columns))
    for name, row in found.items():
        print(f"{name:26}" + "".join(f"{value:14.3f}" for value in row))


if __name__ == "__main__":
    main()
