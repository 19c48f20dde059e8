"""One party of a chaos session, in a process forked from a server that has everything imported."""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import privinfer
from privinfer.backends.base import Phase
from privinfer.runtime.attend import attend
from privinfer.runtime.ledger import ReleaseLedger
from privinfer.runtime.party import Party
from privinfer.runtime.store import Store
from privinfer.transport.mesh import listen
from tests.chaos import casts

for cast in casts.CASTS.values():
    cast.model()  # once, in the server


def take_part(plan: dict[str, Any]) -> None:
    """Join, run, and say in a file how it ended.

    Parameters
    ----------
    plan : dict
        name, number, folder (keys, session file, stores), audit, out, temporary, port, kind, rows and
        file_limit.
    """
    name, folder = plan["name"], Path(plan["folder"])
    errors = os.open(plan["out"] + ".err", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    os.dup2(errors, 2)
    os.close(errors)
    os.makedirs(plan["temporary"])
    tempfile.tempdir = plan["temporary"]
    audit = os.open(plan["audit"], os.O_WRONLY)
    _watch(name, audit, plan["number"])
    if plan["file_limit"] is not None:  # the audit is a pipe, which it does not concern
        resource.setrlimit(resource.RLIMIT_FSIZE, (plan["file_limit"], resource.RLIM_INFINITY))
    open_before = set(os.listdir("/proc/self/fd"))
    try:
        with casts.of(plan["kind"])[1].around():
            told = _run(plan, name, folder)
    finally:  # what is said of it must not be lost
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    gc.collect()
    extra = len(set(os.listdir("/proc/self/fd")) - open_before) + threading.active_count() - 1
    with open(plan["out"] + ".new", "w") as file:
        json.dump(told | {"ended": time.time(), "left": extra}, file)
    os.rename(plan["out"] + ".new", plan["out"])
    sys.exit(0 if told["error"] is None else 1)


def _run(plan: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = {"error": None, "outputs": None, "lost": [], "dealt": None}
    cast = casts.of(plan["kind"])[1]
    store = folder / "stores" / name if plan["kind"] != "live" and name in cast.keepers else None
    options: dict[str, Any] = {"model": cast.model() if name == cast.model_owner else None, "store": store}
    own = cast.rows(plan["rows"], plan["number"]).get(name, {})
    try:
        session = privinfer.Session.load(folder / "session.toml")
        key = folder / f"{name}.key"
        if plan["kind"] == "deal":
            with session.join(name, key, listener=listen("127.0.0.1", plan["port"]), **options) as party:
                party.deal(4, plan["rows"])
                result, told["dealt"] = party.run(own), "deal"
        else:
            done = attend(
                session,
                name,
                key,
                own,
                attempts=plan["attempts"],
                listener=lambda: listen("127.0.0.1", plan["port"]),
                **options,
            )
            result, told["dealt"] = done.result, done.report["dealt"]
            told["lost"] = [e.culprit for e in done.lost]
        if result is not None:
            told["outputs"] = {k: v.tolist() for k, v in result.outputs.items()}
    except privinfer.PrivinferError as error:
        told["error"] = [type(error).__name__, error.culprit, error.message, error.code]
    return told


def _watch(name: str, audit: int, number: int) -> None:
    """Note, for the audit: each piece that leaves the store, each run that goes online, and in which join."""
    take, drive = Store.take, Party._drive
    agreed = [""]

    def note(what: str, *fields: object) -> None:
        os.write(audit, (" ".join(map(str, (what, name, number, *fields))) + "\n").encode())

    def watched(self: Store, generation: bytes, piece: int) -> bytes:
        data = take(self, generation, piece)
        note("piece", agreed[0], generation.hex(), piece)
        return data

    def begun(self: Party, phase: Any, start: Any) -> Any:
        agreed[0] = self.agreement.digest.hex()
        if phase is Phase.ONLINE:
            note("online", agreed[0], self._next)
        return drive(self, phase, start)

    def resumed(self: Party) -> None:
        agreed[0] = self.agreement.digest.hex()
        resume(self)

    def released(self: ReleaseLedger, entries: Any) -> None:
        record(self, entries)
        for entry in entries:
            note("share", entry.digest.hex(), entry.session.hex(), entry.step.replace(" ", "_"))

    resume, record = Party._resume, ReleaseLedger.record
    ReleaseLedger.record = released  # type: ignore[method-assign]
    Store.take, Party._drive, Party._resume = watched, begun, resumed  # type: ignore[method-assign]
