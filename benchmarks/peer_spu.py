"""One SecretFlow SPU party; runs in SPU's own environment, started by benchmarks/systems.py.

Timed: sharing the inputs, the network, and revealing the output to rank 0. Not timed: start, connecting,
compiling, sharing the weights. Links are plain TCP, SPU's default. The semi2k protocol takes its triples
from rank 0, its default, who could then open everything.
"""

# ruff: noqa: D102 - operators are named after the steps
from __future__ import annotations

import os
import re
import struct
import sys
import tempfile
from collections.abc import Callable
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
from benchmarks.job import Job, Laps, Line, load, now, owner_rank, serve
from benchmarks.workloads import evaluate

_SENDS = re.compile(rb"send actions (\d+)")
TIMEOUT_MS = 600_000


class Operators:
    """The steps of a workload in JAX, channels last: the layout SPU's compiler takes."""

    def __init__(self, jax: Any) -> None:
        self.jax, self.np = jax, jax.numpy

    def conv(self, x: Any, weight: Any, bias: Any, stride: int, padding: int) -> Any:
        y = self.jax.lax.conv_general_dilated(
            x, weight, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + bias

    def linear(self, x: Any, weight: Any, bias: Any) -> Any:
        return x @ weight + bias

    def relu(self, x: Any) -> Any:
        return self.jax.nn.relu(x)

    def add(self, x: Any, y: Any) -> Any:
        return x + y

    def concat(self, *xs: Any) -> Any:
        return self.np.concatenate(xs, axis=1)

    def flatten(self, x: Any) -> Any:
        return x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)

    def maxpool(self, x: Any, kernel: int, stride: int, padding: int) -> Any:
        window, step, pad = (1, kernel, kernel, 1), (1, stride, stride, 1), (padding, padding)
        pads = ((0, 0), pad, pad, (0, 0))
        return self.jax.lax.reduce_window(x, 0.0, self.jax.lax.max, window, step, pads)

    def mean(self, x: Any) -> Any:
        return x.mean(axis=(1, 2))

    def sigmoid(self, x: Any) -> Any:
        return self.jax.nn.sigmoid(x)

    def gelu(self, x: Any) -> Any:
        return self.jax.nn.gelu(x, approximate=False)

    def softmax(self, x: Any) -> Any:
        return self.jax.nn.softmax(x, axis=1)


def pack(share: Any) -> bytes:
    """A share as lengths and bytes."""
    parts = [share.meta, *share.share_chunks]
    return struct.pack(f"<I{len(parts)}Q", len(parts), *map(len, parts)) + b"".join(parts)


def unpack(data: bytes, kind: Callable[[], Any]) -> Any:
    """Inverse of :func:`pack`."""
    (count,) = struct.unpack_from("<I", data)
    at = 4 + 8 * count
    parts = []
    for size in struct.unpack_from(f"<{count}Q", data, 4):
        parts.append(data[at : at + size])
        at += size
    share = kind()
    share.meta, share.share_chunks = parts[0], parts[1:]
    return share


class Party:
    """One party with everything compiled and the weights shared."""

    def __init__(self, job: Job, protocol: str, rank: int, addresses: list[str]) -> None:
        import jax  # noqa: PLC0415 - these are there only in this environment
        import numpy as np  # noqa: PLC0415
        import spu  # noqa: PLC0415
        from spu import libspu  # noqa: PLC0415
        from spu.utils import frontend  # noqa: PLC0415

        self.job, self.rank, self.parties, self.lib, self.np = job, rank, len(addresses), libspu, np
        self.others = [k for k in range(self.parties) if k != rank]
        laps = Laps(now())
        link = libspu.link.Desc()
        link.recv_timeout_ms = link.http_timeout_ms = TIMEOUT_MS
        for k, address in enumerate(addresses):
            link.add_party(f"party{k}", address)
        self.link = libspu.link.create_brpc(link, rank)
        laps.mark("connect")

        def configuration(profiled: bool) -> Any:
            kind = getattr(libspu.ProtocolKind, protocol.upper())
            c = libspu.RuntimeConfig(protocol=kind, field=libspu.FieldType.FM64)
            c.enable_pphlo_profile = profiled
            return c

        self.runtime = spu.Runtime(self.link, configuration(False))
        self.counting = spu.Runtime(self.link, configuration(True))
        self.io = spu.Io(self.parties, configuration(False))
        weights = {n: tuple(self._layout(a, True) for a in pair) for n, pair in job.weights.items()}
        inputs = {n: self._layout(x, False) for n, x in job.inputs.items()}
        operators = Operators(jax)
        flat = jax.tree_util.tree_leaves((weights, inputs))
        self.names = [f"value{k}" for k in range(len(flat))]
        self.executable, _ = frontend.compile(
            frontend.Kind.JAX,
            lambda w, x: evaluate(operators, job.steps, w, x),
            (weights, inputs),
            {},
            self.names,
            [libspu.Visibility.VIS_SECRET] * len(flat),
            lambda _: ["output"],
        )
        laps.mark("compile")
        self.flat = flat
        owners = {n: owner_rank(job, n, self.parties) for n in inputs}
        self.owner: list[int] = jax.tree_util.tree_leaves((dict.fromkeys(weights, (0, 0)), owners))
        count = len(jax.tree_util.tree_leaves(weights))
        self.inputs = range(count, len(flat))
        for k in range(count):
            self.share(k, (self.runtime, self.counting))
        laps.mark("share weights")
        self.facts = {"seconds": laps.seconds}

    def _layout(self, array: Any, weight: bool) -> Any:
        if array.ndim != 4:
            return array
        order = (2, 3, 1, 0) if weight else (0, 2, 3, 1)
        return self.np.ascontiguousarray(array.transpose(order))

    def share(self, k: int, runtimes: tuple[Any, ...]) -> None:
        """Secret-share value k from its owner."""
        if self.owner[k] == self.rank:
            shares = self.io.make_shares(self.flat[k], self.lib.Visibility.VIS_SECRET)
            for other in self.others:
                self.link.send_async(other, pack(shares[other]))
            mine = shares[self.rank]
        else:
            mine = unpack(self.link.recv(self.owner[k]), self.lib.Share)
        for runtime in runtimes:
            runtime.set_var(self.names[k], mine)

    def run(self, message: dict[str, Any]) -> dict[str, Any]:
        """One inference."""
        counting = bool(message.get("count"))
        runtime = self.counting if counting else self.runtime
        laps = Laps(message["at"])
        for k in self.inputs:
            self.share(k, (runtime,))
        laps.mark("share inputs")
        sends = 0
        if counting:
            with Printed() as printed:
                runtime.run(self.executable)
            sends = sum(map(int, _SENDS.findall(printed.text)))
        else:
            runtime.run(self.executable)
        laps.mark("compute")
        mine = runtime.get_var("output")
        told: dict[str, Any] = {}
        if self.rank == 0:
            shares = [mine, *(unpack(self.link.recv(other), self.lib.Share) for other in self.others)]
            output = self.io.reconstruct(shares)
        else:
            self.link.send(0, pack(mine))
        laps.mark("reveal")
        told |= {"end": laps.at, "seconds": laps.seconds}
        if counting and sends:
            told["sends"] = sends
        if self.rank == 0:
            if output.ndim == 4:
                output = output.transpose(0, 3, 1, 2)
            told["error"] = self.job.error(output)
        return told


class Printed:
    """What C++ code writes to standard output and error meanwhile: SPU's profile goes there."""

    def __enter__(self) -> Printed:
        self.file = tempfile.TemporaryFile()
        self.kept = {fd: os.dup(fd) for fd in (1, 2)}
        for fd in self.kept:
            os.dup2(self.file.fileno(), fd)
        return self

    def __exit__(self, *_: object) -> None:
        for fd, old in self.kept.items():
            os.dup2(old, fd)
            os.close(old)
        self.file.seek(0)
        self.text = self.file.read()
        self.file.close()


def main() -> None:
    """Play one party from the driver's messages."""
    rank, protocol, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    line = Line()
    import jax  # noqa: F401, PLC0415 - imports belong to the start, not to the set-up
    import spu.utils.frontend  # noqa: F401, PLC0415

    line.say(hello={"rank": rank})
    party = Party(load(path), protocol, rank, line.hear()["join"]["addresses"])
    serve(line, party.run, party.facts)
    os._exit(0)  # its own end waits for parties that are gone already


if __name__ == "__main__":
    main()
