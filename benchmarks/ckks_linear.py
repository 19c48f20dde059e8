"""A plain 64 x 4096 matrix times one ciphertext, N = 16384, four limbs: ``python -m benchmarks.ckks_linear``.

One sample, keys and diagonals ready, two threads; the median of five. The result is decrypted and compared
with NumPy before anything is printed. OpenFHE's threshold CKKS takes 491 ms for the same product on the same
machine, SEAL without hoisting 461 ms.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from privinfer import _kernels
from privinfer.backends.ckks import linear
from privinfer.backends.ckks.affine import Matrix
from privinfer.backends.ckks.diagonals import Diagonals, diagonal_values
from privinfer.backends.ckks.layout import input_layout
from privinfer.protocols.ckks.parameters import SCALE, Parameters
from tests.support.ckks_oracle import Oracle


def clock(work: Callable[[], object], repeat: int) -> float:
    """Median milliseconds after one warm-up."""
    work()
    took = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        took.append(1e3 * (time.perf_counter() - start))
    return statistics.median(took)


def planned(m: int, d: int, slots: int, baby: int) -> Diagonals:
    """Steps of a dense m x d product with this many baby steps."""
    step = np.arange(m)
    none = np.zeros(m, dtype=np.int64)
    folds = tuple(m << k for k in range((d // m).bit_length() - 1))
    return Diagonals(
        (input_layout((d,), slots),),
        input_layout((m,), slots),
        none,
        none,
        step - step % baby,
        step % baby,
        folds,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--babies", type=int, nargs="*", default=[4, 8, 16, 32])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    _kernels.set_threads(args.threads)
    limbs, m, d = 4, 64, 4096
    parameters = Parameters(16384, limbs)
    slots = parameters.slots
    rng = np.random.default_rng(1)
    matrix, x = rng.normal(size=(m, d)) / 64, rng.uniform(-1, 1, d)
    oracle = Oracle(parameters, 3)
    rows, columns = np.divmod(np.arange(m * d), d)
    entries = Matrix(rows.astype(np.int32), columns.astype(np.int32), matrix.reshape(-1))
    folds = planned(m, d, slots, 1).folds
    ckks = oracle.arithmetic([*folds, *range(1, m)])
    cipher = oracle.encrypt(np.tile(x, slots // d), limbs)
    print(f"load before: {os.getloadavg()[0]:.2f}; {args.threads} threads")
    for baby in args.babies:
        start = time.perf_counter()
        steps = planned(m, d, slots, baby)
        values = diagonal_values([entries], steps)
        prepared = linear.prepare(ckks, steps, values, [None], limbs=limbs, scales=[SCALE], scale=SCALE)
        ready = 1e3 * (time.perf_counter() - start)
        (y,) = linear.product(ckks, [cipher], prepared)
        error = np.abs(oracle.decrypt(y).real - np.tile(matrix @ x, slots // m)).max()
        spent = time.process_time()
        whole = clock(partial(linear.product, ckks, [cipher], prepared), args.repeat)
        spent = 1e3 * (time.process_time() - spent) / (args.repeat + 1)
        table = linear.baby_table(ckks, [cipher], prepared)
        wide = linear.giant_sum(ckks, table, prepared.outputs[0], prepared)
        stages = {
            "babies": clock(partial(linear.baby_table, ckks, [cipher], prepared), args.repeat),
            "giants": clock(
                partial(linear.giant_sum, ckks, table, prepared.outputs[0], prepared), args.repeat
            ),
            "folds": clock(partial(ckks.fold, wide, folds), args.repeat),
        }
        print(
            f"{baby} babies, {m // baby} giants, {len(folds)} folds: {whole:.1f} ms, {spent:.1f} of CPU ("
            + ", ".join(f"{k} {v:.1f}" for k, v in stages.items())
            + f"), {prepared.nbytes / 1e6:.0f} MB encoded in {ready:.0f} ms, error 2^{np.log2(error):.1f}"
        )


if __name__ == "__main__":
    main()
