"""What the planner says beside what is measured.

    python -m benchmarks.predict                              the rows of the reference table
    python -m benchmarks.predict --work sarah --net lo,lan,wan --repeat 5
    python -m benchmarks.predict --from benchmarks/results/2026-11-25.json     no run: rows of a results file

The machine is calibrated first, while nothing else runs; then each row is run as in benchmarks.run. The table
has measured and predicted seconds and their ratio; the last line says how many lie within the aim.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import network, run, systems, workloads
from privinfer.plan.calibrate import Speeds, calibrate
from privinfer.plan.estimate import Choice, choice_of
from privinfer.plan.prices import Prices
from privinfer.session import manifest as mf
from privinfer.session.identity import Identity

AIM = 0.30
# The machine of benchmarks/results/2026-11-25.json, the best that was seen of each while others ran on it.
REFERENCE = Speeds(
    cores=2,
    aes=4.1e8,
    multiply_adds=4.89e9,
    words=3.08e9,
    ntts=16_344.0,
    tls_bytes=1.15e9,
    round_trip=1.73e-5,
    call=4.69e-7,
)
LO = (0.02, 10_000.0)  # round trip in ms, Mbit/s: not assumed but what the machine does


def predict(row: run.Row, key: str, speeds: Speeds) -> Choice:
    """What the planner says of a row, with the session file that the row is run with."""
    return predict_work(workloads.load(row.work), row, key, speeds)


def predict_work(work: workloads.Workload, row: run.Row, key: str, speeds: Speeds) -> Choice:
    """The same of a workload that is in no catalogue."""
    model, _ = workloads.as_model(work, work.inputs(row.batch))
    owners = list(dict.fromkeys(s.owner for s in work.sources))
    names = [*owners, systems.MODEL_OWNER, systems.HELPER, systems.RECEIVER]
    parties = tuple(
        mf.Party(n, "127.0.0.1", 1 + k, Identity.generate(n, days=1).certificate_pem)
        for k, n in enumerate(names)
    )
    shape = network.NETWORKS[row.net]
    trip, rate = LO if shape is None else (shape.rtt_ms, float(shape.mbit))
    manifest = mf.Manifest(
        session="0" * 32,
        backend="mpc",
        model=model.architecture.digest(),
        parties=parties,
        model_owner=systems.MODEL_OWNER,
        evaluators=(systems.MODEL_OWNER, owners[0]),
        helper=systems.HELPER,
        inputs={s.name: s.owner for s in work.sources},
        receivers={"output": systems.RECEIVER},
        comparison=systems.SPECS[key].option,
        round_trip_ms=trip,
        mbit_per_s=rate,
    )
    return choice_of(model.architecture, manifest, row.batch, speeds, Prices())


def compare(row: run.Row, found: dict[str, Any], choice: Choice) -> list[dict[str, Any]]:
    """Measured medians, predictions and ratios of a row."""
    seconds = {k: v["median"] for k, v in found["summary"]["seconds"].items()}
    told = choice.seconds | {"total": choice.run_seconds}
    return [
        {
            **dataclasses.asdict(row),
            "system": found["system"],
            "phase": phase,
            "measured": seconds[phase],
            "predicted": round(told[phase], 5),
            "ratio": round(told[phase] / seconds[phase], 3),
        }
        for phase in ("offline", "online", "total")
    ]


def measured(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows with a summary, of a file or run now."""
    if args.results is not None:
        return list(json.loads(args.results.read_text())["rows"])
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="privinfer-predict-") as folder:
        for row in run.rows_of(args):
            print(row, flush=True)
            rows.extend(run.measure_row(row, ["privinfer", "privinfer-fss"], args.repeat, Path(folder)))
    return rows


def main(argv: list[str] | None = None) -> int:
    """Print the table; exit 1 where a total lies outside the aim."""
    p = argparse.ArgumentParser(
        prog="benchmarks.predict", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    p.add_argument("--work", type=lambda t: t.split(","))
    p.add_argument("--batch", type=lambda t: t.split(","))
    p.add_argument("--net", type=lambda t: t.split(","))
    p.add_argument("--repeat", type=int, default=5)
    p.add_argument("--from", dest="results", type=Path, help="results of benchmarks.run in place of a run")
    p.add_argument("--reference", action="store_true", help="speeds of the reference machine")
    p.add_argument("--out", type=Path, help="write the table as JSON too")
    args = p.parse_args(argv)
    run.stop_on_signals()
    speeds = REFERENCE if args.reference else calibrate()
    print(speeds)
    lines: list[dict[str, Any]] = []
    for found in measured(args):
        if not found["system"].startswith("privinfer") or "summary" not in found:
            continue
        row = run.Row(found["workload"], found["batch"], found["net"])
        lines += compare(row, found, predict(row, found["system"], speeds))
    print(f"{'row':28} {'system':14} {'phase':8} {'measured':>9} {'predicted':>9} {'ratio':>6}")
    for one in lines:
        name = f"{one['work']}, {one['batch']}, {one['net']}"
        print(
            f"{name:28} {one['system']:14} {one['phase']:8} {one['measured']:9.4f} {one['predicted']:9.4f} "
            f"{one['ratio']:6.2f}"
        )
    totals = [one for one in lines if one["phase"] == "total"]
    within = sum(abs(one["ratio"] - 1) <= AIM for one in totals)
    print(f"{within} of {len(totals)} totals within {AIM:.0%}")
    if args.out is not None:
        document = {"machine": run.machine(), "speeds": speeds.as_json(), "rows": lines}
        args.out.write_text(json.dumps(document, indent=1) + "\n")
    return 0 if within == len(totals) else 1


if __name__ == "__main__":
    sys.exit(main())
