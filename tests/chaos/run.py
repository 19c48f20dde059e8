"""Sessions on real processes in which things go wrong, and what has to hold after each of them."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import multiprocessing
import os
import signal
import sqlite3
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from privinfer.errors import BY_CODE
from privinfer.session import Identity
from privinfer.session.manifest import Party as Entry
from tests.chaos import casts
from tests.chaos.lines import Line
from tests.chaos.schedule import ATTEMPTS, CONNECT, DEADLINE, Fault, Plan
from tests.multiparty.troupe import free_ports, listening

# After the last fault: what is left of an attempt, and those that follow.
LIMIT_S = ATTEMPTS * (CONNECT + 2 * DEADLINE + 3.0)
SERVER = multiprocessing.get_context("forkserver")


class Chaos:
    """Keys and session files of the casts in a folder, and sessions between them, one after another.

    Attributes
    ----------
    findings : list of str
        Whatever must not be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.findings: list[str] = []
        self.ended: collections.Counter[str] = collections.Counter()
        self.notes: list[list[str]] = []
        self._called: dict[str, dict[str, int]] = {}
        self._behind: dict[str, dict[str, int]] = {}
        for kind, cast in casts.CASTS.items():
            names, ports = cast.names, free_ports(2 * len(cast.names))
            self._called[kind] = dict(zip(names, ports, strict=False))
            self._behind[kind] = dict(zip(names, ports[len(names) :], strict=True))
            (folder / kind).mkdir()
            parties = []
            for name in names:
                one = Identity.generate(name, days=2)
                one.save(folder / kind / f"{name}.key")
                parties.append(Entry(name, "127.0.0.1", self._called[kind][name], one.certificate_pem))
            session = cast.manifest(DEADLINE, parties=tuple(parties), connect_timeout=CONNECT)
            session.save(folder / kind / "session.toml")
        os.mkfifo(folder / "audit", 0o600)
        os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        SERVER.set_forkserver_preload(["tests.chaos.actor"])
        warm = SERVER.Process(target=os.getpid)  # starts the server, whose descriptors stay
        warm.start()
        warm.join()
        warm.close()

    # -- one session -----------------------------------------------------------------------------

    async def play(self, plan: Plan) -> dict[str, Any]:
        """Play a session and look at what it left; returns its line of the report."""
        before, found = _descriptors(), len(self.findings)
        place = self.folder / f"{plan.number:04}"
        place.mkdir()
        kind, cast = casts.of(plan.kind)
        started = time.monotonic()
        async with contextlib.AsyncExitStack() as stack:
            lines = {
                name: await stack.enter_async_context(
                    Line(self._called[kind][name], self._behind[kind][name])
                )
                for name in cast.names
            }
            audit = os.open(self.folder / "audit", os.O_RDWR | os.O_NONBLOCK)
            stack.callback(os.close, audit)
            ended = await self._processes(plan, place, lines, started, audit)
        how = self._judge(plan, ended)
        self._left(plan, before, place)
        return plan.plain() | {
            "seconds": round(time.monotonic() - started, 2),
            "ended": how,
            "findings": self.findings[found:],
        }

    async def _processes(
        self, plan: Plan, place: Path, lines: dict[str, Line], started: float, audit: int
    ) -> dict[str, tuple[int | None, Path]]:
        kind, cast = casts.of(plan.kind)
        running: dict[str, tuple[BaseProcess, Path]] = {}
        every: list[BaseProcess] = []

        def start(name: str) -> None:
            limits = [int(f.size) for f in plan.faults if f.what == "full" and f.victim == name]
            out = place / f"{name}-{len(every)}"
            task = {
                "name": name,
                "number": plan.number,
                "folder": str(self.folder / kind),
                "audit": str(self.folder / "audit"),
                "out": str(out),
                "temporary": f"{out}.tmp",
                "port": self._behind[kind][name],
                "kind": plan.kind,
                "rows": plan.rows,
                "attempts": ATTEMPTS,
                "file_limit": min(limits, default=None),
            }
            process = SERVER.Process(target=_child, args=(task,))
            process.start()
            every.append(process)
            running[name] = process, out

        for name in cast.names:
            start(name)
        faults = [
            asyncio.create_task(_happen(f, running, lines, start)) for f in plan.faults if f.what != "full"
        ]
        last = max((f.at + f.lasts for f in plan.faults), default=0.0)
        until = started + last + LIMIT_S
        while any(p.is_alive() for p in every) or not all(t.done() for t in faults):
            self._read(audit)
            if time.monotonic() > until:
                hung = sorted({n for n, (p, _) in running.items() if p.is_alive()})
                self.findings.append(f"session {plan.number}: hung: {', '.join(hung)}")
                break
            await asyncio.sleep(0.02)
        for task in faults:
            task.cancel()
        for failed in await asyncio.gather(*faults, return_exceptions=True):
            if isinstance(failed, Exception):
                raise failed
        for process in every:
            if process.is_alive():
                process.kill()
            process.join()
        self._read(audit)
        ended = {name: (process.exitcode, out) for name, (process, out) in running.items()}
        for process in every:
            process.close()
        return ended

    def _read(self, audit: int) -> None:
        with contextlib.suppress(BlockingIOError):
            while data := os.read(audit, 1 << 16):
                self.notes += [line.split() for line in data.decode().splitlines()]

    # -- what has to hold ------------------------------------------------------------------------

    def _judge(self, plan: Plan, ended: dict[str, tuple[int | None, Path]]) -> dict[str, list[Any] | str]:
        """How each party ended: with a right answer, a typed error, or killed by us."""
        how: dict[str, list[Any] | str] = {}
        cast = casts.of(plan.kind)[1]
        wanted = cast.wanted(plan.rows, plan.number)
        killed = {f.victim for f in plan.faults if f.what == "kill"}
        for name, (code, out) in ended.items():
            complaint = Path(f"{out}.err")
            complained = complaint.read_text()[-2000:] if complaint.exists() else ""
            if not out.exists():
                if code == -signal.SIGKILL and name in killed:
                    how[name] = "killed"
                else:
                    self.findings.append(
                        f"session {plan.number}: {name} ended with {code} and without a word: " + complained
                    )
                continue
            said = json.loads(out.read_text())
            error, outputs = said["error"], said["outputs"]
            if said["left"]:
                self.findings.append(f"session {plan.number}: {name} leaves {said['left']}")
            if complained:
                self.findings.append(f"session {plan.number}: {name}: {complained}")
            if error is None:
                how[name] = f"done ({said['dealt']}, attempt {len(said['lost']) + 1})"
                if (name == cast.receiver) != (outputs is not None):
                    self.findings.append(f"session {plan.number}: {name} has outputs that are not its own")
                elif name == cast.receiver:
                    off = np.abs(np.array(outputs[cast.output]) - wanted).max()
                    if not off <= cast.bound():
                        self.findings.append(f"session {plan.number}: a wrong answer, off by {off:g}")
            else:
                how[name] = error
                if error[3] not in BY_CODE or error[3] == "PI000":
                    self.findings.append(f"session {plan.number}: {name} ended with {error}")
                elif error[0] != "TransportError" and error[0] != "ConfigError":
                    # nobody lied, so nobody may be accused of it
                    self.findings.append(f"session {plan.number}: {name} accuses: {error}")
            self.ended[said["error"][0] if error else "done"] += 1
        return how

    def _left(self, plan: Plan, before: dict[str, str], place: Path) -> None:
        """No port, file or descriptor stays; what a killed process had open, nobody could close."""
        number = plan.number
        if ports := listening(
            [p for ports in (self._called, self._behind) for k in ports.values() for p in k.values()]
        ):
            self.findings.append(f"session {number}: somebody listens on {sorted(ports)}")
        after = _descriptors()
        if extra := {k: v for k, v in after.items() if k not in before}:
            self.findings.append(f"session {number}: left open: {extra}")
        for out in place.glob("*.tmp"):
            if Path(str(out)[:-4]).exists() and os.listdir(out):
                self.findings.append(f"session {number}: {out.name} holds {os.listdir(out)}")

    def audit(self) -> dict[str, int]:
        """Nothing served twice: pieces of the stores, agreements; and what left a store is marked there."""
        pieces = [note for note in self.notes if note[0] == "piece"]
        runs = [note for note in self.notes if note[0] == "online"]
        taken = collections.Counter((n[1], n[4], n[5]) for n in pieces)
        self.findings += [f"{k} was used {count} times" for k, count in taken.items() if count > 1]
        joins: dict[tuple[str, str], set[str]] = collections.defaultdict(set)
        for note in pieces:
            joins[note[4], note[5]].add(note[3])
        self.findings += [f"piece {k} served in {len(v)} joins" for k, v in joins.items() if len(v) > 1]
        began = collections.Counter((n[1], n[3], n[4]) for n in runs)
        self.findings += [f"run {k} went online {count} times" for k, count in began.items() if count > 1]
        for name in {n[1] for n in pieces}:
            index = self.folder / "mpc" / "stores" / name / "store.sqlite"
            with contextlib.closing(sqlite3.connect(index)) as db:
                for _, generation, piece in (k for k in taken if k[0] == name):
                    row = db.execute(
                        "SELECT used FROM piece WHERE hex(generation) = ? AND number = ?",
                        (generation.upper(), int(piece)),
                    ).fetchone()
                    if row is None or row[0] != 1:
                        self.findings.append(f"{name}: piece {piece} was used and is not marked")
        shares = [note for note in self.notes if note[0] == "share"]
        for what, key in (("ciphertext", 3), ("step", slice(4, 6))):
            once = collections.Counter((n[1], str(n[key])) for n in shares)
            self.findings += [f"shares of {what} {k}: {count}" for k, count in once.items() if count > 1]
        for name in {n[1] for n in shares}:
            index = self.folder / "ckks" / "stores" / name / "ledger" / "ledger.sqlite"
            with contextlib.closing(sqlite3.connect(index)) as db:
                there = {row[0] for row in db.execute("SELECT lower(hex(digest)) FROM release")}
            if missing := {n[3] for n in shares if n[1] == name} - there:
                self.findings.append(f"{name}: {len(missing)} shares left that its ledger does not have")
        return {"pieces": len(pieces), "online": len(runs), "shares": len(shares)}


def _child(task: dict[str, Any]) -> None:
    from tests.chaos.actor import take_part  # in the server, where it is loaded

    take_part(task)


async def _happen(fault: Fault, running: dict[str, Any], lines: dict[str, Line], start: Any) -> None:
    """Let one fault happen at its time, and end at its own."""
    await asyncio.sleep(fault.at)
    process = running[fault.victim][0]
    match fault.what:
        case "kill":
            process.kill()
            if fault.lasts:
                await asyncio.sleep(fault.lasts)
                process.join()
                start(fault.victim)
        case "stop":
            _signal(process, signal.SIGSTOP)
            try:
                await asyncio.sleep(fault.lasts)
            finally:
                _signal(process, signal.SIGCONT)
        case "reset":
            lines[fault.victim].reset()
        case _:
            lines[fault.victim].delay = fault.size
            await asyncio.sleep(fault.lasts)
            lines[fault.victim].delay = 0.0


def _signal(process: BaseProcess, what: int) -> None:
    with contextlib.suppress(ProcessLookupError, TypeError):
        if process.is_alive():
            os.kill(process.pid or 0, what)


def _descriptors() -> dict[str, str]:
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found
