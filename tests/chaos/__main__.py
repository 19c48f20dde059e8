"""Chaos: sessions on real processes with kill -9, SIGSTOP, resets, delays and full disks.

python -m tests.chaos --sessions 300 --seed 1 --report chaos.json
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import json
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.run import Chaos
from tests.chaos.schedule import plans


async def play(folder: Path, count: int, seed: int, seconds: float) -> dict:
    """Play so many sessions, or those that fit into the time; returns the report."""
    chaos, sessions, until = Chaos(folder), [], time.monotonic() + seconds
    for plan in plans(count, seed):
        if time.monotonic() > until:
            break
        sessions.append(await chaos.play(plan))
        for line in sessions[-1]["findings"]:
            print(line, flush=True)
    reused = chaos.audit()
    happened = collections.Counter(f["what"] for s in sessions for f in s["faults"])
    return {
        "schema": "privinfer.chaos/1",
        "seed": seed,
        "sessions": len(sessions),
        "faults": dict(happened),
        "answered": sum(str(s["ended"].get("patient", "")).startswith("done") for s in sessions),
        "kinds": dict(collections.Counter(s["kind"] for s in sessions)),
        "parties_ended": dict(chaos.ended),
        "audited": reused,
        "findings": chaos.findings,
        "played": sessions,
    }


def main() -> int:
    """Parse the command line, play, write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sessions", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=3600.0, help="stop after so long")
    parser.add_argument("--report", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        found = asyncio.run(play(Path(folder), asked.sessions, asked.seed, asked.seconds))
    if asked.report is not None:
        asked.report.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({k: v for k, v in found.items() if k != "played"}, indent=1))
    return 1 if found["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
