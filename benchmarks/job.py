"""What every party's process of every system shares: the job file, the talk with the driver, and the clock.

NumPy and the standard library only, since it runs in the peers' environments too. A job is one ``.npz``
without pickled objects: the steps as JSON, the weights, the inputs, and the output in float64. With the
driver a party speaks JSON, one line a message, over its standard input and output:

    it says  {"hello": {...}}                 imports are done, nothing is connected yet
    it hears {"join": {...}}                  addresses, or a session file
    it says  {"ready": {"seconds": {...}}}    connected, weights are where they have to be
    it hears {"run": n, "at": t, ...}         one inference, to start at time t of the common clock
    it says  {"ran": {...}}
    it hears {"stop": true}
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.workloads import Array, Step, Weights, Workload, reference

# One clock for all processes of a machine: CLOCK_MONOTONIC.
now = time.monotonic


@dataclasses.dataclass(frozen=True)
class Job:
    """One row of the table as arrays."""

    steps: tuple[Step, ...]
    weights: Weights
    inputs: dict[str, Array]
    owners: dict[str, str]
    expected: Array

    def error(self, output: Any) -> float:
        """Largest absolute difference to float64; infinite for another shape or a value that is no number."""
        got = np.asarray(output, dtype=np.float64)
        if got.shape != self.expected.shape or not np.isfinite(got).all():
            return float("inf")
        return float(np.abs(got - self.expected).max(initial=0))


def save(path: Path, work: Workload, batch: int) -> Job:
    """Write the job of a workload and return it."""
    inputs = work.inputs(batch)
    owners = {s.name: s.owner for s in work.sources}
    job = Job(work.steps, work.weights, inputs, owners, reference(work, inputs))
    head = {"steps": [dataclasses.asdict(s) for s in work.steps], "owners": owners}
    arrays: dict[str, Any] = {"head": np.frombuffer(json.dumps(head).encode(), dtype=np.uint8)}
    for name, (weight, bias) in work.weights.items():
        arrays[f"weight {name}"], arrays[f"bias {name}"] = weight, bias
    arrays |= {f"input {name}": x for name, x in inputs.items()}
    np.savez(path, expected=job.expected, **arrays)
    return job


def load(path: str | Path) -> Job:
    """Read what :func:`save` wrote."""
    with np.load(path, allow_pickle=False) as file:
        found = dict(file)
    head = json.loads(found.pop("head").tobytes())
    steps = tuple(Step(s["name"], s["op"], tuple(s["inputs"]), s["options"]) for s in head["steps"])
    kind = {"weight": {}, "bias": {}, "input": {}}  # type: dict[str, dict[str, Array]]
    expected = found.pop("expected")
    for key, value in found.items():
        what, name = key.split(" ", 1)
        kind[what][name] = value
    weights = {name: (w, kind["bias"][name]) for name, w in kind["weight"].items()}
    return Job(steps, weights, kind["input"], head["owners"], expected)


class Line:
    """A party's end of the talk with the driver.

    Standard output belongs to it; whatever else prints goes to standard error. Should the driver vanish,
    standard input ends and so does the process, also in the middle of a run.
    """

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._heard: list[dict[str, Any]] = []
        self._news = threading.Condition()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in sys.stdin:
            with self._news:
                self._heard.append(json.loads(line))
                self._news.notify()
        os._exit(3)

    def say(self, **message: Any) -> None:
        """Tell the driver."""
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def hear(self) -> dict[str, Any]:
        """Wait for the driver's next message."""
        with self._news:
            while not self._heard:
                self._news.wait()
            return self._heard.pop(0)


def wait_until(moment: float) -> None:
    """Sleep, then spin for the last bit, until a time of the common clock."""
    while (rest := moment - now()) > 0:
        if rest > 0.0005:
            time.sleep(rest - 0.0004)


class Laps:
    """Seconds between the marks of one run."""

    def __init__(self, start: float) -> None:
        self.at = self.start = start
        self.seconds: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """End the lap called `name`."""
        self.at, before = now(), self.at
        self.seconds[name] = self.at - before


def owner_rank(job: Job, name: str, parties: int) -> int:
    """Which of a peer's parties brings an input: rank 0 has the weights, the owners follow in turn."""
    owners = list(dict.fromkeys(job.owners.values()))
    return (1 + owners.index(job.owners[name])) % parties


def serve(line: Line, one_run: Any, facts: Mapping[str, Any]) -> None:
    """Answer the driver until it says stop; `one_run(message)` gives what "ran" carries."""
    line.say(ready=dict(facts))
    while "stop" not in (message := line.hear()):
        wait_until(message["at"])
        line.say(ran=one_run(message))
