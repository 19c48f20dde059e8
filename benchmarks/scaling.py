"""Does cost grow as it should? Time and bytes against batch, number of owners and layer width.

    python -m benchmarks.scaling [--sweep batch,owners,width] [--net lo] [--repeat 5] [--out FILE.json]

Every series gets two fits: the exponent p of c x^p over the upper half of the sweep, where fixed costs
weigh least, and a straight line a + b x over all of it, b being what one more row, owner or neuron costs.
What to expect:

- batch: exponent 1 or a little less for time and for bytes; the weights are sent once and do not grow.
- owners: a straight line whose slope is one owner's input and branch, whatever the others bring.
- width: bytes of the offline and online phases with exponent 1, weights (setup) with 2, time between the two.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import job, network, run, systems, workloads
from benchmarks.workloads import Draft, Source, Workload

SCHEMA = "privinfer.scaling/1"
FEATURES = 256


@dataclass(frozen=True)
class Sweep:
    """One variable, its values, and the workload and batch for a value."""

    variable: str
    values: tuple[int, ...]
    build: Callable[[int], tuple[Workload, int]]


def owners(count: int) -> Workload:
    """`count` owners with an input each; their branches are added, so what follows has one size."""
    d = Draft()
    names = [f"input{k}" for k in range(count)]
    branches = [d.linear(f"branch{k}", name, FEATURES, 16) for k, name in enumerate(names)]
    total = branches[0]
    for k, branch in enumerate(branches[1:], 1):
        total = d.put(f"sum{k}", "add", total, branch)
    d.linear("output", d.relu(total), 16, 2)
    sources = tuple(Source(n, (FEATURES,), -4, 4, f"owner{k}", "normal") for k, n in enumerate(names))
    return d.done(f"{count} owners", sources)


def width(neurons: int) -> Workload:
    """Two hidden layers of `neurons` each."""
    d = Draft()
    h = d.relu(d.linear("first", "x", FEATURES, neurons))
    h = d.relu(d.linear("second", h, neurons, neurons))
    d.linear("output", h, neurons, 2)
    return d.done(f"{neurons} wide", (Source("x", (FEATURES,), -4, 4, "hospital", "normal"),))


def sweeps(work: str) -> dict[str, Sweep]:
    """All of them; the batch sweep is over one of the reference workloads."""
    return {
        "batch": Sweep("batch", (1, 2, 4, 8, 16, 32, 64, 128, 256), lambda b: (workloads.load(work), b)),
        "owners": Sweep("owners", (1, 2, 4, 6, 8, 12, 16), lambda k: (owners(k), 16)),
        "width": Sweep("width", (64, 128, 256, 512, 1024, 2048), lambda w: (width(w), 16)),
    }


def point(work: Workload, batch: int, net: str, repeat: int, folder: Path) -> dict[str, Any]:
    """Medians of one value of the sweep."""
    path = folder / "job.npz"
    job.save(path, work, batch)
    with systems.Running("privinfer", work, path, net, batch) as up:
        first = up.run(0, kind="split")
        runs = [up.run(1 + n, kind="split") for n in range(repeat)]
        sizes = [v for v in up.peak_rss().values() if v]
        setup = up.start["join"]
    phases = {p: sum(by.get(p, 0) for by in runs[0]["bytes"].values()) for p in ("offline", "online")}
    phases["setup"] = sum(by.get("setup", 0) for by in first["bytes"].values())
    return {
        "seconds": {
            "setup": round(setup, 5),
            **{
                p: round(statistics.median(r["seconds"][p] for r in runs), 5)
                for p in ("offline", "online", "total")
            },
        },
        "spread": {p: run.spread([r["seconds"][p] for r in runs]) for p in ("offline", "online", "total")},
        "bytes": phases,
        "sent": {n: {p: by.get(p, 0) for p in ("offline", "online")} for n, by in runs[0]["bytes"].items()},
        "rounds": runs[0]["rounds"],
        "peak_rss_bytes_all": sum(sizes),
        "error": max(r["error"] for r in [first, *runs]),
        "ranges": up.basis,
    }


def fits(xs: list[int], ys: list[float]) -> dict[str, float]:
    """Exponent over the upper half; line over everything, and how far any point lies from it."""
    x, y = np.array(xs, dtype=float), np.maximum(np.array(ys, dtype=float), 1e-12)
    tail = slice(len(x) // 2, None) if len(x) >= 4 else slice(None)
    exponent = float(np.polyfit(np.log(x[tail]), np.log(y[tail]), 1)[0]) if len(x) > 1 else float("nan")
    slope, intercept = np.polyfit(x, y, 1) if len(x) > 1 else (float("nan"), float(y[0]))
    off = np.abs(slope * x + intercept - y) / y
    return {
        "exponent": round(exponent, 3),
        "each_more": float(f"{slope:.6g}"),
        "fixed": float(f"{intercept:.6g}"),
        "worst_relative_residual": round(float(off.max()), 4),
    }


def series(points: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Named columns of the points, as they are fitted and plotted."""
    found: dict[str, list[float]] = {}
    for group, unit in (("seconds", "s"), ("bytes", "bytes")):
        for phase in points[0][group]:
            found[f"{phase} {unit}"] = [p[group][phase] for p in points]
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the sweeps; the results file is written anew after each."""
    p = argparse.ArgumentParser(prog="benchmarks.scaling", description="how cost grows")
    p.add_argument("--sweep", default="batch,owners,width")
    p.add_argument("--work", default="sarah", choices=list(workloads.CATALOGUE), help="of the batch sweep")
    p.add_argument("--net", default="lo", choices=list(network.NETWORKS))
    p.add_argument("--repeat", type=int, default=5)
    p.add_argument("--most", type=int, default=1 << 30, help="leave out larger values (for a quick look)")
    p.add_argument("--note", default="")
    p.add_argument("--out", type=Path)
    args = p.parse_args(argv)
    known = sweeps(args.work)
    wanted = args.sweep.split(",")
    if unknown := [s for s in wanted if s not in known]:
        p.error(f"unknown sweep {unknown[0]!r}; known: {', '.join(known)}")
    run.stop_on_signals()
    stamp = dt.datetime.now(dt.UTC)
    out = args.out or run.RESULTS / f"scaling-{stamp:%Y-%m-%dT%H%M}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {
        "schema": SCHEMA,
        "started": stamp.isoformat(timespec="seconds"),
        "note": args.note,
        "repeat": args.repeat,
        "net": args.net,
        "work": args.work,
        "machine": run.machine(),
        "versions": run.versions(["privinfer"]),
        "sweeps": {},
    }
    with tempfile.TemporaryDirectory(prefix="privinfer-bench-") as folder:
        for name in wanted:
            values = [v for v in known[name].values if v <= args.most] or list(known[name].values[:1])
            points = []
            for value in values:
                work, batch = known[name].build(value)
                found = point(work, batch, args.net, args.repeat, Path(folder))
                points.append({"x": value, **found})
                seconds = ", ".join(f"{k} {v:.4f} s" for k, v in found["seconds"].items())
                print(f"{name} {value}: {seconds}, {found['bytes']}", flush=True)
            fitted = {k: fits(values, v) for k, v in series(points).items()}
            results["sweeps"][name] = {"points": points, "fits": fitted}
            for k, f in fitted.items():
                print(
                    f"  {k}: x^{f['exponent']:.2f}; {f['fixed']:.4g} + {f['each_more']:.4g} each", flush=True
                )
            out.write_text(json.dumps(results, indent=1) + "\n")
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
