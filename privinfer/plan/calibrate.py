"""How fast this machine is, measured in a few seconds: what the planner multiplies its counts with.

Each number is the best of several short measurements on one thread: what else runs at the moment makes a
measurement slower, never faster. The numbers that go in are no secrets.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from privinfer import _kernels
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.session.identity import Identity

_KEYS = 20_000
_KEY_BITS = 31
_SIDE = 256
_WORDS = 1 << 20
_TLS_BYTES = 1 << 22
_PINGS = 50
_CALLS = 1000
_PASSES = 4
_SHARE = 0.6  # seconds for each measurement: seven of them, and the certificate, are about five


@dataclass(frozen=True, slots=True)
class Speeds:
    """Speeds of one machine, on one thread.

    Attributes
    ----------
    cores : int
    aes : float
        AES calls a second, as key generation makes them.
    multiply_adds : float
        Modulo 2**64, a second, in a matrix product.
    words : float
        64-bit words a second through an elementwise product.
    ntts : float
        Transforms of one limb of degree 16384 a second.
    tls_bytes : float
        Bytes a second through TLS 1.3, both ends together.
    round_trip : float
        Seconds of a small message over loopback and back.
    call : float
        Seconds of one NumPy call on a few numbers: what the interpreter costs.
    """

    cores: int
    aes: float
    multiply_adds: float
    words: float
    ntts: float
    tls_bytes: float
    round_trip: float
    call: float

    def as_json(self) -> dict[str, float]:
        """The numbers by name."""
        return asdict(self)


def calibrate(share: float = _SHARE) -> Speeds:
    """Measure this machine.

    Parameters
    ----------
    share : float
        Seconds for each of seven measurements.

    Returns
    -------
    Speeds
    """
    before = _kernels.get_threads()
    _kernels.set_threads(1)
    try:
        with _echo() as ping:
            works = {
                "aes": _aes(),
                "product": _product(),
                "pass": _pass(),
                "ntt": _ntt(),
                "tls": _tls(),
                "trip": ping,
                "call": _calls(),
            }
            best = dict.fromkeys(works, float("inf"))
            for _ in range(_PASSES):  # one after another, since what disturbs comes and goes
                for name, work in works.items():
                    best[name] = min(best[name], _best(work, share / _PASSES))
    finally:
        _kernels.set_threads(before)
    return Speeds(
        cores=_cores(),
        aes=_KEYS * (4 * (_KEY_BITS - 7) + 2) / best["aes"],
        multiply_adds=_SIDE**3 / best["product"],
        words=_WORDS / best["pass"],
        ntts=1 / best["ntt"],
        tls_bytes=_TLS_BYTES / best["tls"],
        round_trip=best["trip"] / _PINGS,
        call=best["call"] / _CALLS,
    )


def _cores() -> int:
    """CPUs this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def _best(work: Callable[[], object], share: float) -> float:
    """Least seconds of several calls, after one to warm up."""
    work()
    best, until = float("inf"), time.perf_counter() + share
    while (started := time.perf_counter()) < until or best == float("inf"):
        work()
        best = min(best, time.perf_counter() - started)
    return best


def _aes() -> Callable[[], object]:
    alpha = np.arange(_KEYS, dtype=np.uint64)
    roots = np.zeros((_KEYS, 2, 16), dtype=np.uint8)
    tweak = bytes(16)
    return lambda: _kernels.dcf_gen(alpha, _KEY_BITS, roots, tweak)


def _product() -> Callable[[], object]:
    a = np.arange(_SIDE * _SIDE, dtype=np.uint64).reshape(_SIDE, _SIDE)
    return lambda: _kernels.matmul(a, a)


def _pass() -> Callable[[], object]:
    a = np.arange(_WORDS, dtype=np.uint64)
    return lambda: a * a


def _ntt() -> Callable[[], object]:
    p = Parameters(16384, 2)
    rns = _kernels.Rns(p.n, [int(q) for q in p.primes])
    a = np.ones((1, p.n), dtype=np.uint64)
    return lambda: rns.ntt(a, [0])


def _calls() -> Callable[[], object]:
    a = np.arange(8, dtype=np.uint64)

    def work() -> None:
        for _ in range(_CALLS):
            np.add(a, a)

    return work


def _tls() -> Callable[[], object]:
    identity = Identity.generate("calibration", days=1)
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False  # both ends are this function
    client.load_verify_locations(cadata=identity.certificate_pem)
    with tempfile.TemporaryDirectory() as folder:  # a key for this one measurement, in a folder of ours alone
        pem = Path(folder) / "one.pem"
        pem.touch(mode=0o600)
        pem.write_bytes(identity.private_pem())
        server.load_cert_chain(pem)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(back, there)
    far = server.wrap_bio(there, back, server_side=True)
    waiting = [near, far]
    while waiting:
        end = waiting.pop(0)
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(end)
    data = bytes(_TLS_BYTES)

    def work() -> None:
        near.write(data)
        left = len(data)
        while left:
            left -= len(far.read(left))

    return work


@contextlib.contextmanager
def _echo() -> Iterator[Callable[[], object]]:
    """Small messages over loopback and back; `_PINGS` of them a call."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def echo() -> None:
            with server.accept()[0] as end:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while data := end.recv(64):
                    end.sendall(data)

        thread = threading.Thread(target=echo, daemon=True)
        thread.start()
        with socket.create_connection(server.getsockname()) as end:
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def work() -> None:
                for _ in range(_PINGS):
                    end.sendall(b".")
                    end.recv(1)

            yield work
        thread.join(1)
