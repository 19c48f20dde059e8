"""Many patients at once against one set of long-running parties: answers, latency, memory.

    python -m benchmarks.load [--patients 32] [--sessions 500] [--at-once 8] [--json FILE]

Every party but the patients is a process of its own, `privinfer serve` as it is installed; the patients are
threads of this one. Every answer is compared with the clear model within the declared bound.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import numpy as np

from privinfer.graph import ir, reference
from privinfer.graph.load import from_onnx
from privinfer.runtime.knock import ask
from privinfer.session.identity import Identity
from privinfer.session.template import Template

REPOSITORY = Path(__file__).resolve().parents[1]
COHORT = REPOSITORY / "examples" / "cohort"
OWNERS = {"xray": "hospital", "dna": "dna_company", "blood": "laboratory"}
SERVERS = ("hospital", "dna_company", "laboratory", "startup", "helper")
Rows = Mapping[str, Mapping[str, Any]]  # patient to input to one sample


@dataclasses.dataclass(frozen=True)
class Town:
    """Everybody's folders, on one machine.

    Attributes
    ----------
    folder : Path
        ``NAME/serve.toml`` for each server, ``template.toml``, ``PATIENT.key`` for each patient.
    ports : dict of int
        Of the servers.
    """

    folder: Path
    ports: dict[str, int]

    def config(self, name: str) -> Path:
        """A server's file."""
        return self.folder / name / "serve.toml"

    @property
    def template(self) -> Path:
        """What all hold."""
        return self.folder / "template.toml"


def lay_out(
    folder: Path, model: Path, ranges: Mapping[str, str], rows: Rows, ports: Mapping[str, int], **options: Any
) -> Town:
    """Make keys, template, records and configurations for five servers and the patients in `rows`.

    Parameters
    ----------
    folder : Path
        Empty.
    model : Path
        ONNX file with inputs xray, dna and blood.
    ranges : mapping
        ``LOW:HIGH`` for inputs whose range the file does not carry.
    rows : mapping
        What each patient's owners have of it.
    ports : mapping
        Of the servers.
    options
        Lines of every ``serve.toml``; `deadline` goes into the template.
    """
    deadline = options.pop("deadline", 60.0)
    lines = ["version = 1", 'backend = "mpc"', f"deadline = {deadline}", f"connect_timeout = {deadline}", ""]
    lines += [
        "[roles]",
        'model_owner = "startup"',
        'evaluators = ["startup", "hospital"]',
        'helper = "helper"',
        "",
    ]
    lines += ["[inputs]", *(f'{k} = "{v}"' for k, v in OWNERS.items()), "", "[receivers]", 'risk = "patient"']
    for name in SERVERS:
        home = folder / name
        home.mkdir()
        identity = Identity.generate(name, days=2)
        identity.save(home / "party.key")
        (folder / f"{name}.crt").write_text(identity.certificate_pem)
        address = f"127.0.0.1:{ports[name]}"
        lines += [
            "",
            "[[parties]]",
            f'name = "{name}"',
            f'address = "{address}"',
            f'certificate_file = "{name}.crt"',
        ]
    lines += ["", "[[parties]]", 'name = "patient"', ""]
    (folder / "draft.toml").write_text("\n".join(lines))
    typed = {
        k: (float(low), float(high))
        for k, (low, _, high) in ((k, v.partition(":")) for k, v in ranges.items())
    }
    loaded = from_onnx(model, typed or None)
    template = Template.from_draft(folder / "draft.toml", loaded.architecture.digest())
    (folder / "template.toml").write_text(template.dumps())
    listed = folder / "patients"
    listed.mkdir()
    for patient, own in rows.items():
        identity = Identity.generate(patient, days=2)
        identity.save(folder / f"{patient}.key")
        (listed / f"{patient}.crt").write_text(identity.certificate_pem)
        for shown, value in own.items():
            home = folder / OWNERS[shown] / "inputs" / patient
            home.mkdir(parents=True)
            np.save(home / f"{shown}.npy", value)
    for name in SERVERS:
        said = [
            "version = 1",
            'identity = "party.key"',
            *(f"{k} = {json.dumps(v)}" for k, v in options.items()),
        ]
        said += ["", "[[services]]", 'template = "../template.toml"', 'patients = "../patients"']
        if name in OWNERS.values():
            said.append('inputs = "inputs"')
        if name == "startup":
            said.append(f"model = {json.dumps(str(model))}")
            if ranges:
                said.append("ranges = { " + ", ".join(f'{k} = "{v}"' for k, v in ranges.items()) + " }")
        (folder / name / "serve.toml").write_text("\n".join(said) + "\n")
    return Town(folder, dict(ports))


@contextlib.contextmanager
def servers(town: Town, wait: float = 60.0) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """All servers as processes; their logs are in ``NAME/log.jsonl``. Ends them with SIGTERM."""
    running: dict[str, subprocess.Popen[str]] = {}
    with contextlib.ExitStack() as files:
        try:
            for name in SERVERS:
                log = files.enter_context(open(town.folder / name / "log.jsonl", "w"))
                running[name] = subprocess.Popen(  # noqa: S603 - our own module
                    [
                        sys.executable,
                        "-m",
                        "privinfer.cli.main",
                        "serve",
                        name,
                        "--config",
                        str(town.config(name)),
                    ],
                    stderr=log,
                    text=True,
                    cwd=REPOSITORY,
                )
            until = time.monotonic() + wait
            for name, process in running.items():
                while '"serving"' not in (town.folder / name / "log.jsonl").read_text():
                    if process.poll() is not None or time.monotonic() > until:
                        raise RuntimeError(f"{name}: {(town.folder / name / 'log.jsonl').read_text()}")
                    time.sleep(0.05)
            yield running
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def resident(pid: int) -> int:
    """Resident size of a process in bytes."""
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:")) * 1024


def drive(
    town: Town, model: ir.Model, rows: Rows, sessions: int, wait: float = 600.0, seconds: float = 1e9
) -> dict[str, Any]:
    """Let all patients ask, each again once it has its answer, `sessions` times or for `seconds` in all.

    Returns
    -------
    dict
        Latency percentiles in seconds, sessions a second, what failed, resident bytes of every server by
        sessions done and their slope over the second half.
    """
    until = time.monotonic() + seconds
    todo: Queue[int] = Queue()
    for k in range(sessions):
        todo.put(k)
    template = Template.load(town.template)
    bound = float(model.architecture.precision.error_bound or 0.0)
    latencies: list[float] = []
    failures: dict[str, int] = {}
    again = [0]
    worst = [0.0]
    lock = threading.Lock()

    def patient(name: str) -> None:
        identity = Identity.load(town.folder / f"{name}.key")
        clear = reference.run(model, {k: np.asarray(v)[None] for k, v in rows[name].items()})["risk"]

        def count(_: object) -> None:
            again[0] += 1

        while time.monotonic() < until:
            try:
                todo.get_nowait()
            except Empty:
                return
            started = time.perf_counter()
            try:
                found = ask(template, identity, patience=wait, wait=wait, asked=count).outputs["risk"]
                off = float(np.abs(found - clear).max())
                outcome = None if off <= bound else "wrong"
            except Exception as error:
                outcome, off = f"{type(error).__name__}: {error}", 0.0
            with lock:
                if outcome is None:
                    latencies.append(time.perf_counter() - started)
                    worst[0] = max(worst[0], off)
                else:
                    failures[outcome] = failures.get(outcome, 0) + 1

    with servers(town) as running:
        samples: list[tuple[int, dict[str, int]]] = []
        threads = [threading.Thread(target=patient, args=(name,), daemon=True) for name in rows]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            samples.append((len(latencies), {name: resident(p.pid) for name, p in running.items()}))
            time.sleep(0.5)
        took = time.perf_counter() - started
        samples.append((len(latencies), {name: resident(p.pid) for name, p in running.items()}))
        ended = {name: p.poll() for name, p in running.items()}
    half = [(done, sizes) for done, sizes in samples if done >= len(latencies) / 2]
    done = np.array([d for d, _ in half], dtype=np.float64)
    slope = {
        name: float(np.polyfit(done, [s[name] for _, s in half], 1)[0]) if len(set(done)) > 1 else 0.0
        for name in SERVERS
    }
    return {
        "patients": len(rows),
        "sessions": sessions - todo.qsize(),
        "answered": len(latencies),
        "failures": failures,
        "asked_again": again[0],
        "largest_difference": worst[0],
        "declared_error_bound": bound,
        "seconds": took,
        "sessions_a_second": len(latencies) / took,
        "latency_s": {
            f"p{q}": float(np.percentile(latencies, q)) if latencies else None for q in (50, 90, 95, 99, 100)
        },
        "resident_mb": {
            name: {
                "first": samples[0][1][name] / 1e6,
                "half": half[0][1][name] / 1e6,
                "last": samples[-1][1][name] / 1e6,
                "largest": max(s[name] for _, s in samples) / 1e6,
            }
            for name in SERVERS
        },
        "slope_bytes_a_session_second_half": slope,
        "ended_early": {name: code for name, code in ended.items() if code is not None},
        "samples": [[d, *(s[n] for n in SERVERS)] for d, s in samples[:: max(1, len(samples) // 200)]],
    }


def cohort_rows(count: int) -> dict[str, dict[str, Any]]:
    """The first test patients of the example's cohort."""
    sys.path.insert(0, str(COHORT.parent))
    from cohort.cohort import load  # type: ignore[import-not-found]  # noqa: PLC0415 - beside the package

    inputs = load("test").inputs()
    return {f"patient{k}": {name: values[k] for name, values in inputs.items()} for k in range(count)}


def free_ports() -> dict[str, int]:
    """A free port for each server."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in SERVERS]
    found = {name: sock.getsockname()[1] for name, sock in zip(SERVERS, held, strict=True)}
    for sock in held:
        sock.close()
    return found


def main() -> None:
    """Run it and print what came out."""
    parser = argparse.ArgumentParser(description="Load of serving parties")
    parser.add_argument("--patients", type=int, default=32)
    parser.add_argument("--sessions", type=int, default=500)
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no session after that")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="privinfer-load-") as folder:
        rows = cohort_rows(args.patients)
        options = {
            "sessions": args.at_once,
            "queue": args.patients,
            "queue_seconds": 300.0,
            "per_hour": 10_000,
        }
        town = lay_out(Path(folder), COHORT / "risk.onnx", {}, rows, free_ports(), **options)
        found = drive(town, from_onnx(COHORT / "risk.onnx"), rows, args.sessions, seconds=args.seconds)
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    del found["samples"]
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
