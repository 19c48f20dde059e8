"""The networks that systems are measured on: loopback, or hosts of their own behind a delay and a rate.

The kernels this has to run on have no netem, so ``switch.c`` delays and limits packets between network
namespaces. Only addresses inside these namespaces are used. They have no names in the system: when the
switch's process ends, or this one does in whatever way, they are gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HERE = Path(__file__).resolve().parent
FIRST_PORT = 9700
PROBE_ROUNDS = 40


@dataclass(frozen=True)
class Shape:
    """Rate of each host's link in each direction, round trip between two hosts, largest packet."""

    mbit: float
    rtt_ms: float
    mtu: int


# Large packets keep the switch's own cost on lan small. wan-1500 shows what ordinary packets change on wan:
# TCP starts with ten of them.
NETWORKS: dict[str, Shape | None] = {
    "lo": None,
    "lan": Shape(1000, 1, 9000),
    "wan": Shape(100, 40, 9000),
    "wan-1500": Shape(100, 40, 1500),
}


class NetworkUnavailable(Exception):
    """The network cannot be made on this machine; the message says why."""


class Network:
    """Hosts for one system's parties; use in a ``with`` block.

    Parameters
    ----------
    kind : str
        A key of NETWORKS.
    hosts : int
        How many.

    Attributes
    ----------
    isolated : bool
        Whether the hosts are in namespaces; loopback falls back to this machine's own where that is not
        allowed.
    addresses : list of str
        ``host:port`` for each host.
    interface : str
        "lo" or "eth0".
    """

    def __init__(self, kind: str, hosts: int) -> None:
        self.kind, self.hosts, self.shape = kind, hosts, NETWORKS[kind]
        self.interface = "lo" if self.shape is None else "eth0"
        self.isolated = False
        self.dropped: int | None = None
        self._spaces: list[str] = []
        self._switch: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        trouble = why_no_namespaces()
        if trouble is None:
            self._start()
            ports = [FIRST_PORT + k for k in range(self.hosts)]
        elif self.shape is not None:
            raise NetworkUnavailable(trouble)
        else:
            ports = _free_ports(self.hosts)
        ips = ["127.0.0.1" if self.shape is None else f"10.88.0.{k + 1}" for k in range(self.hosts)]
        self.addresses = [f"{ip}:{port}" for ip, port in zip(ips, ports, strict=True)]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._switch is None:
            return
        assert self._switch.stdin is not None  # noqa: S101
        assert self._switch.stdout is not None  # noqa: S101
        self._switch.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._switch.wait(5)
        self._switch.kill()
        with contextlib.suppress(json.JSONDecodeError):
            self.dropped = json.loads(self._switch.stdout.read() or "{}").get("dropped")
        self._switch.stdout.close()
        self._switch.wait()

    def _start(self) -> None:
        shape = () if self.shape is None else (self.shape.mbit, self.shape.rtt_ms, self.shape.mtu)
        self._switch = subprocess.Popen(  # noqa: S603 - our own program
            [str(_switch()), str(self.hosts), *map(str, shape)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._switch.stdout is not None  # noqa: S101
        first = self._switch.stdout.readline()
        if not first:
            raise NetworkUnavailable("the switch did not start; its message is above")
        self._spaces = json.loads(first)["namespaces"]
        self.isolated = True

    def prefix(self, host: int) -> list[str]:
        """What to put before a command so that it runs on a host; its process id stays the command's."""
        return ["nsenter", f"--net={self._spaces[host]}", "--"] if self.isolated else []

    def sent(self, pid: int) -> int | None:
        """Bytes that left a process's host so far, with TCP/IP headers; None where it is not ours alone."""
        if not self.isolated:
            return None
        for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
            name, _, numbers = line.partition(":")
            if name.strip() == self.interface:
                return int(numbers.split()[8])
        return None

    def facts(self) -> dict[str, Any]:
        """For the results file."""
        return {"isolated": self.isolated, **({} if self.shape is None else asdict(self.shape))}


def measure(kind: str) -> dict[str, Any]:
    """Round trip and goodput between two hosts as a program sees them: the emulation, checked."""
    try:
        with Network(kind, 2) as net:
            ends = [
                subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    [
                        *net.prefix(k),
                        sys.executable,
                        "-m",
                        "benchmarks.network",
                        str(k),
                        net.addresses[1],
                        kind,
                    ],
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=HERE.parent,
                )
                for k in (1, 0)
            ]
            try:
                outs = [end.communicate(timeout=60)[0] for end in ends]
            finally:
                for end in ends:
                    end.kill()
                    end.wait()
            found = {**net.facts(), **json.loads(outs[1])}
        return {**found, "dropped": net.dropped}
    except NetworkUnavailable as error:
        return {"unavailable": str(error)}


def why_no_namespaces() -> str | None:
    """Why this process cannot make network namespaces, or None where it can."""
    if sys.platform != "linux":
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("nsenter") is None or shutil.which("gcc") is None:
        return "nsenter and gcc are needed to emulate networks"
    if not Path("/dev/net/tun").exists():
        return "there is no /dev/net/tun"
    return None


_built: list[Path] = []


def _switch() -> Path:
    """The switch, compiled once a process."""
    if not _built:
        folder = Path(tempfile.mkdtemp(prefix="privinfer-switch-"))
        command = ["gcc", "-O2", "-o", str(folder / "switch"), str(HERE / "switch.c")]
        subprocess.run(command, check=True)  # noqa: S603 - fixed command
        _built.append(folder / "switch")
        import atexit  # noqa: PLC0415 - only where something was made

        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return _built[0]


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [s.getsockname()[1] for s in sockets]


# -- the two ends of a measurement -------------------------------------------------------------------


def _probe(rank: int, address: str, kind: str) -> None:
    from benchmarks.job import now  # noqa: PLC0415 - only the probe needs it

    host, port = address.rsplit(":", 1)
    shape = NETWORKS[kind]
    size = int((shape.mbit if shape else 8000) * 1e6 / 8)  # about one second
    if rank == 1:
        with socket.create_server((host, int(port))) as server, server.accept()[0] as end:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(PROBE_ROUNDS):
                end.sendall(end.recv(1))
            for _ in range(2):
                left = size
                while left:
                    left -= len(end.recv(min(left, 1 << 20)))
                end.sendall(b".")
        return
    until = now() + 20
    while True:
        try:
            end = socket.create_connection((host, int(port)))
            break
        except OSError:
            if now() > until:
                raise
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    trips = []
    for _ in range(PROBE_ROUNDS):
        start = now()
        end.sendall(b".")
        end.recv(1)
        trips.append(now() - start)
    data, rates = bytes(size), []
    for _ in range(2):  # the first also opens TCP's window
        start = now()
        end.sendall(data)
        end.recv(1)
        rates.append(size * 8e-6 / (now() - start))
    end.close()
    print(
        json.dumps(
            {
                "measured_rtt_ms": round(statistics.median(trips) * 1e3, 3),
                "measured_rtt_ms_max": round(max(trips) * 1e3, 3),
                "measured_mbit": round(rates[1], 1),
                "measured_mbit_cold": round(rates[0], 1),
            }
        )
    )


if __name__ == "__main__":
    _probe(int(sys.argv[1]), sys.argv[2], sys.argv[3])
