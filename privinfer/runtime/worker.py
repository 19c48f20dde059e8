"""A party in a process of its own, started by :func:`privinfer.run_local`; talks CBOR over its pipes.

    it says  {certificate, port}                       its key was made here, or is in the file named
    it hears {manifest, model, runs, receipt, ...}     its own inputs only; opening, consent where it has one
    it says  {progress} ..., then {outputs, report} for each run, or {error}

Standard output belongs to the pipe; whatever prints goes to standard error. If the parent goes, so does
the process: its standard input ends.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from typing import IO, Any

from privinfer.backends.base import Phase, Progress, Role
from privinfer.errors import PrivinferError
from privinfer.protocols.commitment import Opening
from privinfer.runtime import memory, pipes
from privinfer.runtime.party import Session
from privinfer.session.identity import Identity
from privinfer.session.manifest import Manifest
from privinfer.transport.mesh import listen


def main() -> int:
    """Play one party from its parent's messages."""
    memory.keep_freed()
    name = sys.argv[1]
    said = os.fdopen(os.dup(1), "wb")
    heard = os.fdopen(os.dup(0), "rb")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    lock = threading.Lock()

    def say(message: Mapping[str, Any]) -> None:
        with lock:
            pipes.write(said, message)

    last = [0.0]

    def progress(role: Role, phase: Phase, event: Progress) -> None:
        now = time.monotonic()
        if now - last[0] > 0.05 or event.done == event.total:
            last[0] = now
            state = [role, phase.name.lower(), event.done, event.total, event.label]
            say({"progress": state})

    try:
        identity = Identity.load(sys.argv[2]) if sys.argv[2:] else Identity.generate(name, days=2)
    except PrivinferError as error:
        say({"error": pipes.describe(error)})
        return error.exit_code
    listener = listen("127.0.0.1", 0)
    say({"certificate": identity.certificate_pem, "port": listener.getsockname()[1]})
    task = pipes.read(heard)
    if task is None:
        return 1
    threading.Thread(target=_end_with_parent, args=(heard,), daemon=True).start()
    try:
        model = pipes.unpack_model(task["model"]) if task["model"] is not None else None
        session = Session(Manifest.loads(task["manifest"]))
        opening = Opening(task["opening"]) if "opening" in task else None
        with session.join(
            name,
            identity,
            model=model,
            progress=progress,
            listener=listener,
            opening=opening,
            receipt=task["receipt"],
            ledger=task["ledger"],
            uses=task["uses"],
        ) as party:
            for packed in task["runs"]:
                result = party.run(pipes.unpack_inputs(packed), consent=task.get("consent"))
                outputs = pipes.pack_arrays(result.outputs) if result else {}
                say({"outputs": outputs, "report": party.report})
    except PrivinferError as error:
        say({"error": pipes.describe(error)})
        return error.exit_code
    return 0


def _end_with_parent(pipe: IO[bytes]) -> None:
    if not pipe.read(1):
        os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
