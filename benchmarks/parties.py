"""One privinfer party for many runs of one session; started by benchmarks/systems.py.

Its key is made here and never leaves. It joins once by the public Session API; every run is a fresh offline
and a fresh online phase. A run comes in two kinds:

- whole: `Party.run` as everybody calls it; timed from the common start until the receiver holds the output.
- split: the same, but every party waits between the phases until all have everything that is dealt. This
  gives each phase a time of its own with nothing of the other in it, as when the helper has dealt before
  the patient comes.
"""

from __future__ import annotations

import sys
from typing import Any

from benchmarks.job import Line, load, now, serve, wait_until
from privinfer.backends.base import Phase
from privinfer.errors import PrivinferError
from privinfer.graph import ir
from privinfer.runtime import memory
from privinfer.runtime.party import Party, Session
from privinfer.session.identity import Identity
from privinfer.session.manifest import Manifest
from privinfer.transport.mesh import listen


class Stopwatch:
    """Stands between a party and its phases, notes when they end and holds the second one back."""

    def __init__(self, party: Party, line: Line) -> None:
        self.line, self.split = line, False  # held back once a run: later chunks follow by themselves
        self.ends: dict[str, float] = {}
        self._inner = party._drive
        party._drive = self._drive  # type: ignore[method-assign] # until there is a public way to deal ahead

    def _drive(self, phase: Phase, start: Any) -> Any:
        if phase is Phase.ONLINE and self.split:
            self.split = False
            self.line.say(dealt=True)
            wait_until(self.line.hear()["at"])
        result = self._inner(phase, start)
        self.ends[phase.name.lower()] = now()
        return result


def model_of(path: str, architecture: str) -> ir.Model:
    """Parameters from the job, architecture (and so the precision) from the driver."""
    parameters = {name: {"weight": w, "bias": b} for name, (w, b) in load(path).weights.items()}
    return ir.Model(ir.Architecture.from_bytes(bytes.fromhex(architecture)), parameters)


def main() -> int:
    """Play one party from the driver's messages."""
    memory.keep_freed()  # as the command and run_local's parties do
    name, host, port, path = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    line = Line()
    identity = Identity.generate(name, days=2)
    listener = listen(host, port)
    line.say(hello={"certificate": identity.certificate_pem})
    join = line.hear()["join"]
    manifest = Manifest.loads(join["manifest"].encode())
    job = load(path)
    model = model_of(path, join["architecture"]) if name == manifest.model_owner else None
    inputs = {k: x for k, x in job.inputs.items() if manifest.inputs[k] == name}
    try:
        started = now()
        with Session(manifest).join(name, identity, model=model, listener=listener) as party:
            joined = now()
            watch = Stopwatch(party, line)
            facts: dict[str, Any] = {"seconds": {"join": joined - started}}

            def one_run(message: dict[str, Any]) -> dict[str, Any]:
                watch.split = message.get("kind") == "split"
                result = party.run(inputs)
                report = party.report or {}
                told: dict[str, Any] = {
                    "end": watch.ends["online"],
                    "dealt": watch.ends["offline"],
                    "returned": now(),
                    "rounds": report["online_rounds"],
                    "bytes": report["bytes"]["sent"],
                }
                if result is not None:
                    told["error"] = job.error(result.outputs["output"])
                return told

            serve(line, one_run, facts)
    except PrivinferError as error:
        line.say(failed=str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
