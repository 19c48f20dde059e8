"""One party in a process of its own, for tests: joins through the public face, and dies where it is told to.

    python actor.py SESSION NAME KEY < plan.json

The plan: {"model": path or null, "inputs": [{name: nested list}, ...], "act": [moment, signal] or null,
"chunk_bytes": number or null, "attempts": number or null}; one run for each entry of inputs, or with
attempts one in all. Standard output gets one JSON line: outputs, report, error, seconds.
"""

import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import privinfer
from privinfer.backends.mpc import roles
from privinfer.runtime.attend import attend


def main():
    session, name, key = sys.argv[1:]
    plan = json.load(sys.stdin)
    moment, how = plan.get("act") or (None, None)
    roles.CHUNK_BYTES = plan.get("chunk_bytes") or roles.CHUNK_BYTES

    times = Counter()

    def act(now):
        times[now] += 1
        if now == moment or f"{now} {times[now]}" == moment:
            print(json.dumps({"acted": time.time()}), flush=True)
            os.kill(os.getpid(), getattr(signal, how))

    act("before")
    model = None
    if plan.get("model"):
        ranges = dict.fromkeys(("xray", "dna", "blood"), (-4.0, 4.0))
        model = privinfer.from_onnx(plan["model"], ranges)
    told = {"outputs": [], "reports": [], "error": None}
    try:
        loaded = privinfer.Session.load(session)
        watch = lambda role, phase, event: act(phase.name.lower())  # noqa: E731
        if plan.get("attempts"):
            own, tries = plan["inputs"][0], plan["attempts"]
            done = attend(loaded, name, key, own, attempts=tries, model=model, progress=watch)
            outputs = {k: v.tolist() for k, v in done.result.outputs.items()} if done.result else None
            told |= {"outputs": [outputs], "reports": [done.report], "lost": [e.culprit for e in done.lost]}
            print(json.dumps(told | {"ended": time.time()}), flush=True)
            return 0
        with loaded.join(name, key, model=model, progress=watch) as party:
            act("joined")
            for own in plan["inputs"]:
                result = party.run(own)
                told["outputs"].append({k: v.tolist() for k, v in result.outputs.items()} if result else None)
                told["reports"].append(party.report)
    except privinfer.PrivinferError as error:
        told["error"] = [type(error).__name__, error.culprit, error.message]
        print(json.dumps(told | {"ended": time.time()}), flush=True)
        return error.exit_code
    print(json.dumps(told | {"ended": time.time()}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
