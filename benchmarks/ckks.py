"""Threshold CKKS and its peers side by side: ``python -m benchmarks.ckks``.

    python -m benchmarks.peers install openfhe                 once; TenSEAL comes with privinfer[tenseal]
    python -m benchmarks.ckks                                   everything, about ten minutes on two cores
    python -m benchmarks.ckks --parts product,keys --repeat 3
    python -m benchmarks.ckks --no-tenseal                      TenSEAL's own two rows take two minutes

Parts: the product of a plain 64 x 4096 matrix with a ciphertext; joint keys of 3, 5 and 8 parties; errors
that protocols add; kernels beside the planner's cost model; `sarah` with polynomials of degree 3; the
demonstration's model with its patients. Whoever is compared takes turns, after a warm-up each.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import queue
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ckks_parts, ckks_sessions, peers, systems
from benchmarks.run import QUIET_LOAD, RESULTS, machine, spread, stop_on_signals
from privinfer import _kernels
from privinfer.backends.ckks.diagonals import COSTS

SCHEMA = "privinfer.benchmark.ckks/1"
PARTS = ("product", "keys", "errors", "costs", "sarah", "demo")
PARTIES = (3, 5, 8)
#: Data limbs of the parameters, and of the Galois keys: OpenFHE's; the demonstration's, at both.
LEVELS = ((4, 4), (6, 4), (6, 6))
COSTS_AT = ((8192, 3), (16384, 3), (16384, 4), (16384, 6), (32768, 4))
SLICE = 1024  # columns that TenSEAL multiplies: it takes a rotation a column, so a quarter of the time
TENSEAL_TIMEOUT_S = 400.0
Found = dict[str, Any]


class OpenFHE:
    """The peer's process, with as many OpenMP threads as asked for; None: as many as it wants."""

    def __init__(self, path: Path, threads: int | None) -> None:
        self._heard: queue.Queue[tuple[str, Found | None]] = queue.Queue()
        command = [str(peers.python("openfhe")), "-W", "ignore", "-m", "benchmarks.peer_openfhe", str(path)]
        before = os.environ.get("OMP_NUM_THREADS")
        try:
            if threads is not None:
                os.environ["OMP_NUM_THREADS"] = str(threads)
            self.process = systems.Process("openfhe", command, self._heard)
        finally:
            os.environ.pop("OMP_NUM_THREADS", None)
            if before is not None:
                os.environ["OMP_NUM_THREADS"] = before
        self._answer("hello")
        self.process.tell(join={"n": ckks_parts.RING})
        self.ready = self._answer("ready")

    def ask(self, run: str, **options: Any) -> Found:
        """One run."""
        self.process.tell(run=run, at=0, **options)
        return self._answer("ran")

    def _answer(self, key: str) -> Found:
        _, message = self._heard.get(timeout=300)
        if message is None:
            raise systems.SystemFailed(f"OpenFHE ended: {self.process.last_words()}")
        return dict(message[key])


@contextlib.contextmanager
def openfhe(path: Path) -> Iterator[dict[str, OpenFHE]]:
    """Its processes by title: by its default and with one thread; none where it is not installed."""
    up: dict[str, OpenFHE] = {}
    try:
        if (reason := peers.why_missing("openfhe")) is not None:
            print(f"OpenFHE: {reason}")
        else:
            up = {"OpenFHE": OpenFHE(path, None), "OpenFHE, 1 thread": OpenFHE(path, 1)}
        yield up
    finally:
        for one in up.values():
            one.process.tell(stop=True)
            one.process.end()


def turns(contestants: dict[str, Callable[[], Found]], repeat: int) -> list[Found]:
    """After a warm-up each: a, b, c, a, b, c; one entry each with all its runs."""
    runs: dict[str, list[Found]] = {name: [] for name in contestants}
    for number in range(repeat + 1):
        for name, run in contestants.items():
            found = run()
            if number:
                runs[name].append(found)
    return [{"system": name, "n": repeat, "repetitions": found} for name, found in runs.items()]


def with_threads(threads: int, work: Callable[[], Found]) -> Callable[[], Found]:
    """The same with so many threads of our kernels."""

    def run() -> Found:
        before = _kernels.get_threads()
        _kernels.set_threads(threads)
        try:
            return work()
        finally:
            _kernels.set_threads(before)

    return run


# -- parts -----------------------------------------------------------------------------------------


def part_product(up: dict[str, OpenFHE], path: Path, args: argparse.Namespace) -> list[Found]:
    """A plain 64 x 4096 matrix times a ciphertext, N = 16384, four data limbs."""
    with np.load(path) as file:
        ours = ckks_parts.Product(file["matrix"], file["x"])
    usual = _kernels.get_threads()
    contestants: dict[str, Callable[[], Found]] = {
        "privinfer": ours.run,
        "privinfer, 1 thread": with_threads(1, ours.run),
    }
    for name, peer in up.items():
        contestants[f"{name}, hoisted"] = lambda peer=peer: peer.ask("product", hoisted=True)  # type: ignore[misc]
        contestants[name] = lambda peer=peer: peer.ask("product", hoisted=False)  # type: ignore[misc]
    found = turns(contestants, args.repeat)
    for row in found:
        row["seconds"] = spread([r["seconds"] for r in row["repetitions"]])
        row["error"] = max(r["error"] for r in row["repetitions"])
    found[0]["threads"] = usual
    if args.tenseal:
        found.append(tenseal("product", str(path), title=f"TenSEAL's matmul, {ckks_parts.ROWS} x {SLICE}"))
    return found


def part_keys(up: dict[str, OpenFHE], path: Path, args: argparse.Namespace) -> list[Found]:
    """Public key, relinearisation key and 20 rotations, all parties in one process one after the other."""
    rows = []
    for parties in PARTIES:
        contestants: dict[str, Callable[[], Found]] = {}
        for levels, few in LEVELS:
            name = f"privinfer, {levels} limbs, rotations at {few}"

            def work(parties: int = parties, levels: int = levels, few: int = few) -> Found:
                return ckks_parts.joint_keys(parties, levels, few)

            contestants[name] = work
            if (levels, few) == LEVELS[0]:
                contestants[f"{name}, 1 thread"] = with_threads(1, work)
        for name, peer in up.items():
            contestants[name] = lambda peer=peer, parties=parties: peer.ask("keys", parties=parties)  # type: ignore[misc]
        for row in turns(contestants, args.repeat):
            runs = row["repetitions"]
            row["parties"] = parties
            row["seconds"] = spread([sum(r["seconds"].values()) for r in runs])
            row["by_kind"] = {k: spread([r["seconds"][k] for r in runs]) for k in runs[0]["seconds"]}
            row["bytes"] = runs[0]["bytes"]
            row["declared_bytes"] = runs[0].get("declared_bytes")
            del row["repetitions"]
            rows.append(row)
    return rows


def part_errors(up: dict[str, OpenFHE], path: Path, args: argparse.Namespace) -> list[Found]:
    """Standard deviations measured and declared."""
    return [row for n in PARTIES for row in ckks_parts.errors(n)]


def part_costs(up: dict[str, OpenFHE], path: Path, args: argparse.Namespace) -> list[Found]:
    """Milliseconds of kernels, and what the planner's cost model has for them."""
    rows = []
    for n, limbs in COSTS_AT:
        model = COSTS.at(n, limbs)
        measured = ckks_parts.costs(n, limbs, 4 * args.repeat)
        rows.append(
            {"n": n, "limbs": limbs, "ms": measured, "model": {k: getattr(model, k) for k in measured}}
        )
    return rows


def part_sarah(up: dict[str, OpenFHE], path: Path, args: argparse.Namespace) -> Found:
    """Keys ready: through processes, and the model owner's evaluation alone."""
    case = ckks_sessions.sarah()
    found = whole(case, args, 0)
    if args.tenseal:
        found["tenseal"] = tenseal("sarah-small", title="TenSEAL, sarah-small, squares, one key")
    return found


def part_demo(up: dict[str, OpenFHE], path: Path, args: argparse.Namespace) -> Found:
    """Keys ready: one patient at a time, then all in batches."""
    return whole(ckks_sessions.demo(args.patients), args, args.batch)


def whole(case: ckks_sessions.Case, args: argparse.Namespace, batch: int) -> Found:
    """Evaluation alone, and one session with a warm-up, single rows and, where asked for, batches."""
    alone = ckks_sessions.Alone(case)
    runs = [alone.run() for _ in range(args.repeat + 1)][1:]
    labels = {k for r in runs for k in r["steps"]}
    found: Found = {
        "plan": alone.plan.describe(),
        "planned_seconds": alone.plan.seconds,
        "alone": {
            "seconds": spread([r["seconds"] for r in runs]),
            "steps": {k: spread([r["steps"][k] for r in runs]) for k in sorted(labels)},
            "prepare_seconds": alone.prepare_seconds,
            "error": max(r["error"] for r in runs),
        },
    }
    del alone  # the keys and diagonals of a session follow, beside which these would be in the way
    one = case.some(slice(case.single, case.single + 1))
    asked = [one] * (args.repeat + 1)
    count = len(next(iter(case.rows.values())))
    if batch:
        asked += [case.some(slice(k, min(k + batch, count))) for k in range(0, count, batch)]
    told = ckks_sessions.session(case, asked)
    warm, single, batches = told[0], told[1 : args.repeat + 1], told[args.repeat + 1 :]
    for run in told:
        run.pop("output")
    found["setup"] = {
        "seconds": warm["seconds"]["setup"],
        "bytes": {n: b["setup"] for n, b in warm["bytes"].items()},
    }
    found["single"] = {
        "seconds": spread([r["seconds"]["online"] for r in single]),
        "error": max(r["error"] for r in single),
        "bytes": {n: b["online"] for n, b in single[0]["bytes"].items()},
        "rounds": single[0]["rounds"],
        "peak_rss_bytes": single[-1]["peak_rss_bytes"],
        "n": len(single),
    }
    if batches:
        rows = sum(r["rows"] for r in batches)
        found["batches"] = {
            "rows": rows,
            "batch": batch,
            "same_decisions": sum(r["same_decisions"] for r in batches),
            "error": max(r["error"] for r in batches),
            "seconds": spread([r["seconds"]["online"] for r in batches]),
            "seconds_a_row": round(sum(r["seconds"]["online"] for r in batches) / rows, 5),
        }
    return found


def tenseal(what: str, *arguments: str, title: str) -> Found:
    """Once, in a process of its own."""
    row: Found = {"system": title, "n": 1}
    if util.find_spec("tenseal") is None:
        return row | {"reason": "not installed: pip install privinfer[tenseal]"}
    command = [sys.executable, "-m", "benchmarks.peer_tenseal", what, *arguments]
    try:
        ran = subprocess.run(  # noqa: S603 - our own module
            command, capture_output=True, text=True, check=False, cwd=systems.ROOT, timeout=TENSEAL_TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return row | {"reason": f"not done after {TENSEAL_TIMEOUT_S:.0f} s"}
    if ran.returncode:
        return row | {"reason": (ran.stderr.strip() or "no message").splitlines()[-1][:300]}
    found: Found = json.loads(ran.stdout.splitlines()[-1])
    return row | found | {"seconds": spread([found["seconds"]])}


# -- the command -----------------------------------------------------------------------------------


def versions() -> Found:
    """Of all that takes part."""
    git = ["git", "-C", str(systems.ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(git, capture_output=True, text=True, check=False)  # noqa: S603 - fixed command
    known: Found = {"privinfer": found.stdout.strip() or "unknown"}
    if peers.why_missing("openfhe") is None:
        known |= peers.versions("openfhe")
    with contextlib.suppress(metadata.PackageNotFoundError):
        known["tenseal"] = metadata.version("tenseal")
    return known


def main(argv: list[str] | None = None) -> int:
    """Run the parts; the results file is written anew after each."""
    p = argparse.ArgumentParser(prog="benchmarks.ckks", description="threshold CKKS and its peers")
    p.add_argument("--parts", default=",".join(PARTS), help="of " + ", ".join(PARTS))
    p.add_argument("--repeat", type=int, default=5, help="repetitions after a warm-up")
    p.add_argument("--patients", type=int, default=100, help="of the demonstration, in batches")
    p.add_argument("--batch", type=int, default=20, help="patients at once")
    p.add_argument("--no-tenseal", dest="tenseal", action="store_false", help="leave its two rows out")
    p.add_argument("--out", type=Path, help="results file; benchmarks/results/ckks-DATE.json by default")
    p.add_argument("--note", default="", help="kept in the results")
    args = p.parse_args(argv)
    chosen = [t for t in args.parts.split(",") if t]
    if unknown := set(chosen) - set(PARTS):
        p.error(f"unknown parts: {', '.join(sorted(unknown))}")
    stop_on_signals()
    stamp = dt.datetime.now(dt.UTC)
    out = args.out or RESULTS / f"ckks-{stamp:%Y-%m-%d}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    results: Found = {
        "schema": SCHEMA,
        "started": stamp.isoformat(timespec="seconds"),
        "note": args.note,
        "repeat": args.repeat,
        "machine": machine(),
        "versions": versions(),
        "parts": {},
    }
    if results["machine"]["load_before"] >= QUIET_LOAD:
        print(f"warning: load {results['machine']['load_before']}: not for publication")
    with tempfile.TemporaryDirectory(prefix="privinfer-bench-") as folder:
        path = Path(folder) / "product.npz"
        rng = np.random.default_rng(1)
        shape = ckks_parts.ROWS, ckks_parts.COLUMNS
        np.savez(path, matrix=rng.normal(size=shape) / 64, x=rng.uniform(-1, 1, shape[1]), slice=SLICE)
        with contextlib.ExitStack() as stack:
            peered = bool({"product", "keys"} & set(chosen))
            up = stack.enter_context(openfhe(path)) if peered else {}
            for part in PARTS:
                if part not in chosen:
                    continue
                if part not in ("product", "keys"):
                    stack.close()  # whole inferences have the machine for themselves
                at = time.monotonic()
                results["parts"][part] = globals()[f"part_{part}"](up, path, args)
                print(f"{part}: {time.monotonic() - at:.0f} s", flush=True)
                results["finished"] = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
                out.write_text(json.dumps(results, indent=1) + "\n")
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
