"""How near the kernels come to what the machine can do.

    python -m benchmarks.roofline [--out FILE.json]

For every code path this CPU has, with one thread and with all: multiply-adds mod 2^64 a second of `matmul`
and `conv2d` against the same instructions in registers alone, and AES calls a second of the comparison
kernels against bare AES (``roofline.c``). A path's figure over its own peak says how well it is written;
over the best peak, what another mix of instructions could still give.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import run
from privinfer import _kernels as k

SCHEMA = "privinfer.roofline/1"
HERE = Path(__file__).resolve().parent
BITS = 32
LEVELS = BITS - 7  # csrc/fss/dcf.h


def peaks(threads: int) -> dict[str, Any]:
    """Compile and run roofline.c."""
    with tempfile.TemporaryDirectory(prefix="privinfer-roofline-") as folder:
        program = str(Path(folder) / "roofline")
        build = ["gcc", "-O2", "-pthread", "-o", program, str(HERE / "roofline.c")]
        subprocess.run(build, check=True)  # noqa: S603 - fixed command
        done = subprocess.run([program, str(threads)], check=True, capture_output=True, text=True)  # noqa: S603
    return dict(json.loads(done.stdout))


def best(work: Callable[[], Any], repeat: int) -> float:
    """Least seconds of some calls: a peak is compared with a peak."""
    work()
    found = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return min(found)


def kernels(repeat: int, small: bool) -> dict[str, dict[str, float]]:
    """Operations a second of each kernel on the path and with the threads set now."""
    rng = np.random.default_rng(1)

    def words(*shape: int) -> Any:
        return rng.integers(0, 1 << 64, shape, dtype=np.uint64)

    side = 256 if small else 1024
    a, b, row = words(side, side), words(side, side), words(1, side)
    x, w = words(1, 64, 56, 56), words(64, 64, 3, 3)
    conv = ((1, 1), (1, 1, 1, 1), (1, 1), 1)
    n = 10_000 if small else 200_000
    alpha = rng.integers(0, 1 << BITS, n, dtype=np.uint64)
    roots = rng.integers(0, 256, (n, 2, 16), dtype=np.uint8)
    tweak, key = bytes(16), bytes(range(16))
    cw, vcw, leaf = k.dcf_gen(alpha, BITS, roots, tweak)
    own = np.ascontiguousarray(roots[:, 0])
    count = 1 << (18 if small else 24)
    macs = {
        f"matmul {side}x{side}x{side}": (side**3, lambda: k.matmul(a, b)),
        f"matmul 1x{side}x{side}": (side**2, lambda: k.matmul(row, b)),
        "conv 64x56x56 to 64, 3x3": (64 * 64 * 9 * 56 * 56, lambda: k.conv2d(x, w, *conv)),
    }
    aes = {
        "dcf_gen": ((4 * LEVELS + 2) * n, lambda: k.dcf_gen(alpha, BITS, roots, tweak)),
        "dcf_eval": ((LEVELS + 1) * n, lambda: k.dcf_eval(0, alpha, BITS, own, cw, vcw, leaf, tweak)),
        "prg_u64": (count // 2, lambda: k.prg_u64(key, 0, count)),
    }
    return {
        kind: {name: done / best(work, repeat) for name, (done, work) in table.items()}
        for kind, table in (("mac", macs), ("aes", aes))
    }


def measure(repeat: int, small: bool = False) -> list[dict[str, Any]]:
    """All paths, one thread and all."""
    threads, path = k.get_threads(), k.current_path()
    rows = []
    try:
        for count in sorted({1, min(threads, os.cpu_count() or 1)}):
            top = peaks(count)
            k.set_threads(count)
            for name in k.paths():
                k.use_path(name)
                for kind, table in kernels(repeat, small).items():
                    own = top[kind].get("avx2" if kind == "mac" and name == "vaes" else name)
                    most = max(top[kind].values(), default=None)
                    for kernel, rate in table.items():
                        rows.append(
                            {
                                "kind": kind,
                                "kernel": kernel,
                                "path": name,
                                "default": name == path,
                                "threads": count,
                                "per_second": float(f"{rate:.4g}"),
                                "peak_of_its_instructions": own,
                                "peak_of_this_machine": most,
                                "of_its_instructions": round(rate / own, 3) if own else None,
                                "of_this_machine": round(rate / most, 3) if most else None,
                            }
                        )
    finally:
        k.set_threads(threads)
        k.use_path(path)
    return rows


def main(argv: list[str] | None = None) -> int:
    """Measure and write."""
    p = argparse.ArgumentParser(prog="benchmarks.roofline", description="kernels against the machine")
    p.add_argument("--repeat", type=int, default=5)
    p.add_argument("--note", default="")
    p.add_argument("--out", type=Path)
    args = p.parse_args(argv)
    stamp = dt.datetime.now(dt.UTC)
    out = args.out or run.RESULTS / f"roofline-{stamp:%Y-%m-%dT%H%M}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "started": stamp.isoformat(timespec="seconds"),
        "note": args.note,
        "machine": run.machine(),
        "versions": run.versions(["privinfer"]),
    }
    results["rows"] = measure(args.repeat)
    for r in results["rows"]:
        share = (
            ""
            if r["of_its_instructions"] is None
            else f"{r['of_its_instructions']:.0%} of its instructions, "
        )
        rest = "" if r["of_this_machine"] is None else f"{r['of_this_machine']:.0%} of the machine"
        print(f"{r['threads']} x {r['path']:8} {r['kernel']:26} {r['per_second']:.3g}/s  {share}{rest}")
    out.write_text(json.dumps(results, indent=1) + "\n")
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
