"""privinfer and its peers side by side.

    python -m benchmarks.run                                            all rows of the reference table
    python -m benchmarks.run --work sarah --batch 1,16 --net lo,wan     the product of what is named
    python -m benchmarks.run --peers privinfer,spu-aby3 --repeat 3

In each row all systems are up and warm, and take turns: a, b, c, a, b, c. See README.md in this folder for
what the numbers mean.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks import job, network, peers, systems, workloads

SCHEMA = "privinfer.benchmark/1"
QUIET_LOAD = 0.5
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Row:
    """A workload at a batch size on a network."""

    work: str
    batch: int
    net: str

    def __str__(self) -> str:
        return f"{self.work}, batch {self.batch}, {self.net}"


REFERENCE = (
    Row("sarah", 1, "lo"),
    Row("sarah", 1, "lan"),
    Row("sarah", 1, "wan"),
    Row("sarah", 16, "lo"),
    Row("relu", 1, "lo"),
    Row("conv", 1, "lo"),
    Row("matmul", 1024, "lo"),
    Row("resnet18-64", 1, "lo"),
    Row("sigmoid", 1, "lo"),
    Row("gelu", 1, "lo"),
    Row("softmax", 1000, "lo"),
)


def rows_of(args: argparse.Namespace) -> list[Row]:
    """The rows that were asked for."""
    if not (args.work or args.batch or args.net):
        return list(REFERENCE)
    rows = []
    for net in args.net or ["lo"]:
        for work in args.work or ["sarah"]:
            fixed = workloads.load(work).rows
            batches = [fixed] if fixed else [int(b) for b in args.batch or ["1"]]
            rows += [Row(work, b, net) for b in batches]
    return rows


def measure_row(row: Row, keys: list[str], repeat: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Run one row; gives one entry a system."""
    work = workloads.load(row.work)
    path = folder / "job.npz"
    job.save(path, work, row.batch)
    entries = {key: entry(row, key) for key in keys}
    with contextlib.ExitStack() as stack:
        up: dict[str, systems.Running] = {}
        homes: dict[str, contextlib.ExitStack] = {}

        def attempt(key: str, action: Any) -> None:
            """Do it; a system that fails leaves the row and the others go on."""
            try:
                action()
            except (systems.SystemFailed, network.NetworkUnavailable) as error:
                entries[key]["status"], entries[key]["reason"] = "failed", str(error)
                up.pop(key, None)
                homes[key].close()

        def start(key: str) -> None:
            running = systems.Running(key, work, path, row.net, row.batch)
            up[key] = homes[key].enter_context(running)
            note = entries[key]
            note["parties"], note["start_seconds"] = running.names, running.start
            note["start_wire_bytes"], note["ranges"] = running.start_wire, running.basis

        def once(key: str, number: int) -> None:
            note = entries[key]
            if systems.SPECS[key].peer is None:
                found = up[key].run(2 * number, kind="split")
                whole = up[key].run(2 * number + 1, kind="whole")
                found["seconds"] |= whole["seconds"]
                found["error"] = max(found["error"], whole["error"])
            else:
                found = up[key].run(number, count=number == 0)
            if number:
                note["repetitions"].append(found)
            else:
                note["warm_up"] = found
            note["peak_rss_bytes"] = up[key].peak_rss()

        for key in keys:
            if (reason := systems.why_unavailable(key)) is not None:
                entries[key]["status"], entries[key]["reason"] = "not run", reason
                continue
            homes[key] = stack.enter_context(contextlib.ExitStack())
            attempt(key, lambda key=key: start(key))
        for number in range(repeat + 1):
            for key in list(up):
                attempt(key, lambda key=key, number=number: once(key, number))
    for found in entries.values():
        if found["repetitions"]:
            found["summary"] = summary(found)
    yield from entries.values()


def entry(row: Row, key: str) -> dict[str, Any]:
    """What is known of a row before it runs."""
    spec = systems.SPECS[key]
    return {
        "workload": row.work,
        "batch": row.batch,
        "net": row.net,
        "system": key,
        "title": spec.title,
        "trust": spec.trust,
        "total_includes": spec.total,
        "status": "ok",
        "repetitions": [],
    }


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Median, least and largest seconds; median bytes; rounds; largest error and resident size."""
    runs = found["repetitions"]
    seconds = {
        name: spread([r["seconds"][name] for r in runs if name in r["seconds"]])
        for name in runs[0]["seconds"]
    }
    gist: dict[str, Any] = {"n": len(runs), "seconds": seconds, "error": max(r["error"] for r in runs)}
    if runs[0]["wire_bytes"] is not None:
        wire = {n: int(statistics.median(r["wire_bytes"][n] for r in runs)) for n in runs[0]["wire_bytes"]}
        gist["wire_bytes"], gist["wire_bytes_all"] = wire, sum(wire.values())
    if "bytes" in runs[0]:
        phases = sorted({p for by in runs[0]["bytes"].values() for p in by} - {"setup"})
        gist["bytes"] = {
            p: {n: int(statistics.median(r["bytes"][n].get(p, 0) for r in runs)) for n in runs[0]["bytes"]}
            for p in phases
        }
        first = found["warm_up"]["bytes"]
        gist["bytes"]["setup"] = {n: by.get("setup", 0) for n, by in first.items()}
    for count in ("rounds", "sends"):
        if count in found["warm_up"]:
            gist[count] = found["warm_up"][count]
    sizes = [v for v in found["peak_rss_bytes"].values() if v]
    gist["peak_rss_bytes"] = max(sizes, default=None)
    gist["peak_rss_bytes_all"] = sum(sizes)
    gist["cpu_seconds_all"] = statistics.median(sum(r["cpu_seconds"].values()) for r in runs)
    return gist


def spread(values: list[float]) -> dict[str, float]:
    """Median and ends."""
    ends = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {k: round(v, 5) for k, v in ends.items()}


# -- the machine -------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    from privinfer import _kernels as k  # noqa: PLC0415 - table.py reads results without it

    cpu = next(
        (line.split(":")[1].strip() for line in _read("/proc/cpuinfo").splitlines() if "model name" in line),
        platform.processor(),
    )
    memory = next(
        (int(w.split()[1]) * 1024 for w in _read("/proc/meminfo").splitlines() if "MemTotal" in w), 0
    )
    load = os.getloadavg()[0]
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "features": sorted(name for name, there in k.cpu_features().items() if there),
        "kernel_path": k.current_path(),
        "kernel_threads": k.get_threads(),
        "memory_bytes": memory,
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_before": round(load, 2),
        "quiet": load < QUIET_LOAD,
    }


def versions(keys: list[str]) -> dict[str, Any]:
    """Of privinfer and of every peer that takes part."""
    git = ["git", "-C", str(systems.ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    found = subprocess.run(git, capture_output=True, text=True, check=False)  # noqa: S603 - fixed command
    known: dict[str, Any] = {"privinfer": found.stdout.strip() or "unknown"}
    for peer in {systems.SPECS[k].peer for k in keys} - {None}:
        assert peer is not None  # noqa: S101
        if peers.why_missing(peer) is None:
            known |= {f"{peer}: {name}": v for name, v in peers.versions(peer).items()}
    return dict(sorted(known.items()))


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def stop_on_signals() -> None:
    """Leave by an exception, so that every process and network is taken down."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGINT, leave)  # also where a shell started this with the signal ignored


# -- the command -------------------------------------------------------------------------------------


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Command line."""

    def names(known: Any) -> Any:
        def split(text: str) -> list[str]:
            items = [t for t in text.split(",") if t]
            for item in items:
                if item not in known:
                    raise argparse.ArgumentTypeError(f"unknown {item!r}; known: {', '.join(known)}")
            return items

        return split

    p = argparse.ArgumentParser(prog="benchmarks.run", description="privinfer and its peers side by side")
    p.add_argument("--work", type=names(workloads.CATALOGUE), help=", ".join(workloads.CATALOGUE))
    p.add_argument(
        "--batch", type=lambda t: t.split(","), help="1,16; micro workloads have a size of their own"
    )
    p.add_argument("--net", type=names(network.NETWORKS), help=", ".join(network.NETWORKS))
    p.add_argument(
        "--peers", type=names(systems.SPECS), default=list(systems.DEFAULT), help=", ".join(systems.SPECS)
    )
    p.add_argument(
        "--repeat", type=int, default=5, help="repetitions of each system in each row, after a warm-up"
    )
    p.add_argument("--out", type=Path, help="results file; benchmarks/results/DATE.json by default")
    p.add_argument("--note", default="", help="kept in the results, for instance what else ran")
    args = p.parse_args(argv)
    if args.repeat < 1:
        p.error("--repeat is 1 at least")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the rows; the results file is written anew after each."""
    args = parse(argv)
    stop_on_signals()
    rows = rows_of(args)
    stamp = dt.datetime.now(dt.UTC)
    out = args.out or RESULTS / f"{stamp:%Y-%m-%dT%H%M}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "started": stamp.isoformat(timespec="seconds"),
        "note": args.note,
        "repeat": args.repeat,
        "machine": machine(),
        "versions": versions(args.peers),
        "networks": {},
        "rows": [],
    }
    if not results["machine"]["quiet"]:
        print(
            f"warning: the load of this machine is {results['machine']['load_before']}: not for publication"
        )
    for net in dict.fromkeys(row.net for row in rows):
        results["networks"][net] = network.measure(net)
        print(f"{net}: {results['networks'][net]}", flush=True)
    with tempfile.TemporaryDirectory(prefix="privinfer-bench-") as folder:
        for row in rows:
            print(f"\n{row}", flush=True)
            for found in measure_row(row, args.peers, args.repeat, Path(folder)):
                results["rows"].append(found)
                print(f"  {line(found)}", flush=True)
            results["finished"] = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
            out.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\n{out}")
    return 0


def line(found: dict[str, Any]) -> str:
    """One entry for the terminal."""
    if "summary" not in found:
        return f"{found['system']:12} {found['status']}: {found.get('reason', '')}"
    gist = found["summary"]
    parts = [f"{name} {s['median']:.3f} s" for name, s in gist["seconds"].items()]
    if "wire_bytes_all" in gist:
        parts.append(f"{gist['wire_bytes_all'] / 1e6:.2f} MB")
    return f"{found['system']:12} {', '.join(parts)}, error {gist['error']:.1e}"


if __name__ == "__main__":
    sys.exit(main())
