"""Starts one system's parties, each a process on a host of its own, and has them run."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import secrets
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks import peers, workloads
from benchmarks.job import now
from benchmarks.network import Network

ROOT = Path(__file__).resolve().parent.parent
LEAD_S = 0.02  # between the command to run and the common start
JOIN_TIMEOUT_S = 300.0
RUN_TIMEOUT_S = 600.0
HELPER, RECEIVER, MODEL_OWNER = "helper", "patient", "startup"


class SystemFailed(Exception):
    """A system did not start, died, was late or reported an error; the message says which."""


@dataclass(frozen=True)
class Spec:
    """A row's system.

    Attributes
    ----------
    title : str
        For the table.
    trust : str
        Against whom it protects: rows are not alike in this.
    total : str
        What its total includes.
    peer : str or None
        Environment it runs in; None for privinfer.
    parties : int
        Computing parties; 0 where the workload decides.
    option : str
        Protocol or provider.
    """

    title: str
    trust: str
    total: str
    peer: str | None
    parties: int
    option: str = ""


_PEER_TOTAL = "sharing inputs, computing (its offline work included), revealing to one party"
_OUR_TRUST = "private unless two of {evaluator, evaluator, helper} collude; TLS 1.3 on every link"
_OUR_TOTAL = "offline + online: masking and sending inputs, dealing, computing, revealing to one receiver"
SPECS: dict[str, Spec] = {
    "privinfer": Spec("privinfer", _OUR_TRUST, _OUR_TOTAL, None, 0, "auto"),
    "privinfer-fss": Spec("privinfer, comparison keys", _OUR_TRUST, _OUR_TOTAL, None, 0, "fss"),
    "crypten": Spec(
        "CrypTen, 2 parties",
        "NOT private against party 0, which deals the triples; no TLS",
        _PEER_TOTAL,
        "crypten",
        2,
        "TFP",
    ),
    "crypten-3": Spec(
        "CrypTen, 3 parties",
        "NOT private against party 0, which deals the triples; no TLS",
        _PEER_TOTAL,
        "crypten",
        3,
        "TFP",
    ),
    "crypten-ttp": Spec(
        "CrypTen, 2 parties and a dealer",
        "private unless two of {party, party, dealer} collude; generator not cryptographic; no TLS",
        _PEER_TOTAL,
        "crypten",
        2,
        "TTP",
    ),
    "spu-aby3": Spec(
        "SPU ABY3, 3 parties",
        "private unless two of three collude; no TLS",
        _PEER_TOTAL,
        "spu",
        3,
        "aby3",
    ),
    "spu-semi2k": Spec(
        "SPU Semi2k, 2 parties",
        "NOT private against party 0, which deals the triples; no TLS",
        _PEER_TOTAL,
        "spu",
        2,
        "semi2k",
    ),
    "spu-cheetah": Spec(
        "SPU Cheetah, 2 parties",
        "private unless both collude, no dealer; no TLS",
        _PEER_TOTAL,
        "spu",
        2,
        "cheetah",
    ),
}
DEFAULT = ("privinfer", "privinfer-fss", "crypten", "spu-aby3", "spu-semi2k")


def why_unavailable(key: str) -> str | None:
    """Why a system cannot run here, or None where it can."""
    peer = SPECS[key].peer
    return None if peer is None else peers.why_missing(peer)


class Process:
    """The driver's end of one party."""

    def __init__(
        self, name: str, command: list[str], heard: queue.Queue[tuple[str, dict[str, Any] | None]]
    ) -> None:
        self.name = name
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in end()
        self.popen = subprocess.Popen(  # noqa: S603 - our own scripts in interpreters we made
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,  # Ctrl-C is for the driver, which ends them in order
        )
        self._heard = heard
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self.popen.stdout is not None  # noqa: S101
        for line in self.popen.stdout:
            with contextlib.suppress(json.JSONDecodeError):  # something a library printed before we took over
                self._heard.put((self.name, json.loads(line)))
        self._heard.put((self.name, None))

    def tell(self, **message: Any) -> None:
        """Send a message; that the process died is heard otherwise."""
        assert self.popen.stdin is not None  # noqa: S101
        with contextlib.suppress(OSError):
            self.popen.stdin.write(json.dumps(message).encode() + b"\n")
            self.popen.stdin.flush()

    def last_words(self) -> str:
        """The last line it wrote to standard error."""
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "it said nothing"

    def peak_rss(self) -> int | None:
        """Largest resident size so far, bytes."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.popen.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return None

    def cpu_seconds(self) -> float:
        """CPU time so far, of all threads."""
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{self.popen.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return 0.0

    def end(self) -> None:
        """Let it go by itself for a moment, then make it."""
        assert self.popen.stdin is not None  # noqa: S101
        assert self.popen.stdout is not None  # noqa: S101
        with contextlib.suppress(OSError):
            self.popen.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(2)
        self.popen.kill()
        self.popen.wait()
        self._thread.join(2)
        self.popen.stdout.close()
        self.errors.close()


class Running:
    """A system with its parties connected and the weights in place; use in a ``with`` block.

    Parameters
    ----------
    key : str
        A key of SPECS.
    work : Workload
        What to compute.
    job : Path
        Its arrays, as benchmarks.job saved them.
    kind : str
        A network.

    Attributes
    ----------
    start : dict
        Seconds until all processes had imported everything, and of each part of the set-up (slowest party).
    """

    def __init__(self, key: str, work: workloads.Workload, job: Path, kind: str, batch: int) -> None:
        self.key, self.spec, self.work, self.job = key, SPECS[key], work, job
        self.batch = batch
        self.basis: str | None = None
        self._heard: queue.Queue[tuple[str, dict[str, Any] | None]] = queue.Queue()
        self._processes: dict[str, Process] = {}
        if self.spec.peer is None:
            owners = list(dict.fromkeys(s.owner for s in work.sources))
            self._evaluators = (MODEL_OWNER, owners[0])
            self.names = [*owners, MODEL_OWNER, HELPER, RECEIVER]
            self.silent: set[str] = set()
        else:
            self.names = [f"party{k}" for k in range(self.spec.parties)]
            self.silent = {"dealer"} if self.spec.option == "TTP" else set()
            self.names += sorted(self.silent)
        self.talking = [n for n in self.names if n not in self.silent]
        self.network = Network(kind, len(self.names))
        self.start: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self.network.__enter__()
        try:
            self._begin()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            process.tell(stop=True)
        for name in self.silent & self._processes.keys():
            self._processes[name].popen.kill()
        for process in self._processes.values():
            process.end()
        self._processes.clear()
        self.network.__exit__(kind, error, trace)

    # -- starting --------------------------------------------------------------------------------

    def _begin(self) -> None:
        started = now()
        for k, name in enumerate(self.names):
            command = [*self.network.prefix(k), *self._command(k)]
            self._processes[name] = Process(name, command, self._heard)
        hello = self._collect("hello", self.names, JOIN_TIMEOUT_S)
        self.start["processes"] = now() - started
        join = self._manifest(hello) if self.spec.peer is None else {"addresses": self._peer_addresses()}
        before = self._wire()
        for process in self._processes.values():
            process.tell(join={**join, "interface": self.network.interface})
        ready = self._collect("ready", self.names, JOIN_TIMEOUT_S)
        for facts in ready.values():
            for part, seconds in facts["ready"].get("seconds", {}).items():
                self.start[part] = max(self.start.get(part, 0.0), seconds)
        self.start_wire = self._wire_since(before)

    def _command(self, k: int) -> list[str]:
        if self.spec.peer is None:
            host, port = self.network.addresses[k].rsplit(":", 1)
            return [sys.executable, "-m", "benchmarks.parties", self.names[k], host, port, str(self.job)]
        module = f"benchmarks.peer_{self.spec.peer}"
        arguments = [str(k), self.spec.option, str(self.job)]
        if self.spec.peer == "crypten":
            arguments.insert(1, str(self.spec.parties))
        return [str(peers.python(self.spec.peer)), "-W", "ignore", "-m", module, *arguments]

    def _peer_addresses(self) -> list[str]:
        return self.network.addresses[: self.spec.parties]

    def _manifest(self, hello: dict[str, dict[str, Any]]) -> dict[str, Any]:
        from privinfer.session import manifest as mf  # noqa: PLC0415 - peers' processes import this module not

        model, self.basis = workloads.as_model(self.work, self.work.inputs(self.batch))
        parties = []
        for name, address in zip(self.names, self.network.addresses, strict=True):
            host, port = address.rsplit(":", 1)
            parties.append(mf.Party(name, host, int(port), hello[name]["hello"]["certificate"]))
        shape = self.network.shape  # the session file says what its parties know of their lines
        assumed: dict[str, Any] = (
            {} if shape is None else {"round_trip_ms": shape.rtt_ms, "mbit_per_s": float(shape.mbit)}
        )
        manifest = mf.Manifest(
            session=secrets.token_hex(16),
            backend="mpc",
            model=model.architecture.digest(),
            parties=tuple(parties),
            model_owner=MODEL_OWNER,
            evaluators=self._evaluators,
            helper=HELPER,
            inputs={s.name: s.owner for s in self.work.sources},
            receivers={"output": RECEIVER},
            deadline=RUN_TIMEOUT_S,
            connect_timeout=JOIN_TIMEOUT_S,
            comparison=self.spec.option,
            **assumed,
        )
        return {"manifest": manifest.raw.decode(), "architecture": model.architecture.to_bytes().hex()}

    # -- running ---------------------------------------------------------------------------------

    def run(self, number: int, **options: Any) -> dict[str, Any]:
        """One inference with fresh inputs' shares and fresh randomness; returns its numbers."""
        wire, cpu = self._wire(), {n: p.cpu_seconds() for n, p in self._processes.items()}
        at = now() + LEAD_S
        self._tell_all(run=number, at=at, **options)
        second = at
        if options.get("kind") == "split":
            self._collect("dealt", self.talking, RUN_TIMEOUT_S)
            second = now() + LEAD_S
            self._tell_all(at=second)
        told = {n: m["ran"] for n, m in self._collect("ran", self.talking, RUN_TIMEOUT_S).items()}
        have = [m for m in told.values() if "error" in m]
        end = max(m["end"] for m in have)
        found: dict[str, Any] = {
            "error": max(m["error"] for m in have),
            "wire_bytes": self._wire_since(wire),
            "cpu_seconds": {n: round(p.cpu_seconds() - cpu[n], 2) for n, p in self._processes.items()},
        }
        if self.spec.peer is not None:
            found["seconds"] = {"total": end - at, **have[0]["seconds"]}
            if "rounds" in have[0]:
                found["rounds"] = have[0]["rounds"]
            if "sends" in have[0]:
                found["sends"] = {n: m["sends"] for n, m in told.items() if "sends" in m}
            return found
        if options.get("kind") == "split":
            offline, online = max(m["dealt"] for m in told.values()) - at, end - second
            found["seconds"] = {"offline": offline, "online": online, "total": offline + online}
        else:
            found["seconds"] = {
                "whole": end - at,
                "until all returned": max(map(_returned, told.values())) - at,
            }
        found["rounds"] = sum(told[self._evaluators[0]]["rounds"].values())
        found["bytes"] = {
            n: {phase: sum(to.values()) for phase, to in m["bytes"].items()} for n, m in told.items()
        }
        return found

    def _tell_all(self, **message: Any) -> None:
        for name in self.talking:
            self._processes[name].tell(**message)

    def peak_rss(self) -> dict[str, int | None]:
        """Of each party so far."""
        return {n: p.peak_rss() for n, p in self._processes.items()}

    def _wire(self) -> dict[str, int | None]:
        """Bytes sent by each host, or by all where they share one loopback."""
        if self.network.shape is None:
            return {"all": self.network.sent(next(iter(self._processes.values())).popen.pid)}
        return {n: self.network.sent(p.popen.pid) for n, p in self._processes.items()}

    def _wire_since(self, before: dict[str, int | None]) -> dict[str, int] | None:
        after, moved = self._wire(), {}
        for name, count in after.items():
            old = before[name]
            if count is None or old is None:
                return None
            moved[name] = count - old
        return moved

    def _collect(self, key: str, names: list[str], timeout: float) -> dict[str, dict[str, Any]]:
        """One message with `key` from each of these parties."""
        found: dict[str, dict[str, Any]] = {}
        until = now() + timeout
        while len(found) < len(names):
            try:
                name, message = self._heard.get(timeout=max(until - now(), 0.001))
            except queue.Empty:
                late = ", ".join(n for n in names if n not in found)
                raise SystemFailed(f"no {key!r} from {late} within {timeout:.0f} s") from None
            if message is None:
                if name in self.talking or name not in found:
                    words = self._processes[name].last_words()
                    raise SystemFailed(f"the process of {name} ended: {words}")
            elif "failed" in message:
                raise SystemFailed(f"{name}: {message['failed']}")
            elif key in message:
                found[name] = message
        return found


def _returned(message: dict[str, Any]) -> float:
    return float(message["returned"])
