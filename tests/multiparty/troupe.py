"""Real processes over TLS on this machine: keys, a sealed session, six subprocesses."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from privinfer.session import Identity, Manifest
from privinfer.session.manifest import Party as Entry
from tests.adversarial import stage

ACTOR = str(Path(__file__).with_name("actor.py"))
CLI = [sys.executable, "-m", "privinfer.cli.main"]


def free_ports(count):
    """Below the range that outgoing connections take theirs from, so that none is lost meanwhile."""
    found = []
    while len(found) < count:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def listening(ports):
    """Which of the ports somebody still listens on."""
    taken = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A":
            taken.add(int(fields[1].split(":")[1], 16))
    return taken & set(ports)


class Troupe:
    """Keys and a sealed session in a folder, and the processes of its parties."""

    def __init__(self, folder, deadline=2.0, connect_timeout=None, **changes):
        self.folder = Path(folder)
        names = changes.pop("names", stage.NAMES)
        self.chunk_bytes = changes.pop("chunk_bytes", None)
        self.attempts = changes.pop("attempts", None)
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        parties = []
        for name in names:
            one = Identity.generate(name, days=2)
            one.save(self.folder / f"{name}.key")
            parties.append(Entry(name, "127.0.0.1", self.ports[name], one.certificate_pem))
        self.manifest: Manifest = stage.manifest(
            deadline, parties=tuple(parties), connect_timeout=connect_timeout or 20.0, **changes
        )
        self.session = self.folder / "session.toml"
        self.manifest.save(self.session)
        self.model = self.folder / "model.onnx"
        self.model.write_bytes(stage.onnx_bytes())
        self.running = {}
        self.started = {}

    def start(self, name, inputs, act=None):
        plan = {
            "model": str(self.model) if name == self.manifest.model_owner else None,
            "inputs": [{k: v.tolist() for k, v in own.get(name, {}).items()} for own in inputs],
            "act": act,
            "chunk_bytes": self.chunk_bytes,
            "attempts": self.attempts,
        }
        process = subprocess.Popen(
            [sys.executable, ACTOR, str(self.session), name, str(self.folder / f"{name}.key")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self.folder,
        )
        process.stdin.write(json.dumps(plan).encode())
        process.stdin.close()
        process.stdin = None
        self.running[name], self.started[name] = process, time.time()

    def run(self, inputs=None, acts=None, absent=(), runs=1, limit=40):
        """Start all but the absent; what each said, its exit code and standard error."""
        inputs = inputs or [stage.rows()] * runs
        acts = acts or {}
        for name in self.manifest.names:
            if name not in absent:
                self.start(name, inputs, acts.get(name))
        ended = {}
        until = time.monotonic() + limit
        stopped = {n for n, a in acts.items() if a[1] == "SIGSTOP"}
        try:
            for name, process in self.running.items():
                if name not in stopped:
                    out, err = process.communicate(timeout=max(0.1, until - time.monotonic()))
                    ended[name] = self._parse(process, out, err)
        finally:
            self.end()
        for name in stopped:
            process = self.running[name]
            out, err = process.communicate()
            ended[name] = self._parse(process, out, err)
        assert not listening(self.ports.values())
        return ended

    def _parse(self, process, out, err):
        lines = [json.loads(line) for line in out.decode().splitlines()]
        said = {k: v for line in lines for k, v in line.items()}
        return said | {"code": process.returncode, "stderr": err.decode()}

    def end(self):
        for process in self.running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            if process.stdout and not process.stdout.closed and process.returncode is None:
                process.wait(5)


def nothing_written(folder, before):
    return set(os.listdir(folder)) - set(before)
