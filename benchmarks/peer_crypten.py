"""One CrypTen party; runs in CrypTen's own environment, started by benchmarks/systems.py.

Timed: sharing the inputs, the network, and revealing the output to rank 0. Not timed: start, connecting,
sharing the weights. Its default provider of triples, "TFP", lets rank 0 deal them, who could then open
everything; "TTP" has one more process for that. It counts its own rounds in the warm-up only, since
counting costs time.
"""

# ruff: noqa: D102 - operators are named after the steps
from __future__ import annotations

import os
import sys
import threading
import types
from typing import Any

from benchmarks.job import Job, Laps, Line, load, now, owner_rank, serve


def import_crypten() -> Any:
    """Import CrypTen next to a torch that is newer than it."""
    gone = types.ModuleType("torch.onnx._internal.registration")
    gone.registry = None  # type: ignore[attr-defined] # only CrypTen's importer of models would use it
    sys.modules.setdefault(gone.__name__, gone)
    import crypten  # noqa: PLC0415 - after the stand-in

    return crypten


class Operators:
    """The steps of a workload on CrypTen's tensors."""

    def __init__(self, crypten: Any) -> None:
        self.crypten = crypten

    def conv(self, x: Any, weight: Any, bias: Any, stride: int, padding: int) -> Any:
        return x.conv2d(weight, stride=stride, padding=padding) + bias.view(1, -1, 1, 1)

    def linear(self, x: Any, weight: Any, bias: Any) -> Any:
        return x.matmul(weight) + bias

    def relu(self, x: Any) -> Any:
        return x.relu()

    def add(self, x: Any, y: Any) -> Any:
        return x + y

    def concat(self, *xs: Any) -> Any:
        return self.crypten.cat(list(xs), dim=1)

    def flatten(self, x: Any) -> Any:
        return x.flatten(start_dim=1)

    def maxpool(self, x: Any, kernel: int, stride: int, padding: int) -> Any:
        return x.max_pool2d(kernel, stride=stride, padding=padding)

    def mean(self, x: Any) -> Any:
        return x.mean(dim=(2, 3))

    def sigmoid(self, x: Any) -> Any:
        return x.sigmoid()

    def gelu(self, x: Any) -> Any:
        return x * (1 + (x / 2**0.5).erf()) / 2  # it has no GELU of its own

    def softmax(self, x: Any) -> Any:
        return x.softmax(1)


class Party:
    """One computing party with the weights shared."""

    def __init__(self, crypten: Any, job: Job, rank: int, parties: int) -> None:
        import torch  # noqa: PLC0415 - it is there only in this environment

        self.crypten, self.torch, self.job, self.rank, self.parties = crypten, torch, job, rank, parties
        self.operators = Operators(crypten)
        self.weights = {name: tuple(self.share(a, 0) for a in pair) for name, pair in job.weights.items()}

    def share(self, array: Any, owner: int) -> Any:
        """Secret-share an array; only its owner's content counts, the others need the shape."""
        own = self.rank == owner
        tensor = self.torch.from_numpy(array.copy()) if own else self.torch.zeros(array.shape)
        return self.crypten.cryptensor(tensor, src=owner)

    def run(self, message: dict[str, Any]) -> dict[str, Any]:
        """One inference."""
        from benchmarks.workloads import evaluate  # noqa: PLC0415

        communicator = self.crypten.communicator.get()
        self.crypten.cfg.communicator.verbose = counting = bool(message.get("count"))
        communicator.reset_communication_stats()
        laps = Laps(message["at"])
        inputs = {k: self.share(x, owner_rank(self.job, k, self.parties)) for k, x in self.job.inputs.items()}
        laps.mark("share inputs")
        secret = evaluate(self.operators, self.job.steps, self.weights, inputs)
        laps.mark("compute")
        output = secret.get_plain_text(dst=0)
        laps.mark("reveal")
        told: dict[str, Any] = {"end": laps.at, "seconds": laps.seconds}
        if counting:
            told["rounds"] = communicator.get_communication_stats()["rounds"]
        if self.rank == 0:
            told["error"] = self.job.error(output.double().numpy())
        return told


def main() -> None:
    """Play one party from the driver's messages."""
    rank, parties, provider, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    line = Line()
    import torch  # noqa: PLC0415

    torch.set_num_threads(1)  # there are as many processes as cores
    crypten = import_crypten()
    line.say(hello={"rank": rank})
    join = line.hear()["join"]
    started = now()
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(parties),
        RENDEZVOUS=f"tcp://{join['addresses'][0]}",
        DISTRIBUTED_BACKEND="gloo",
        GLOO_SOCKET_IFNAME=join["interface"],
    )
    crypten.cfg.mpc.provider = provider
    if rank == parties:
        line.say(ready={})
        crypten.mpc.provider.TTPServer()  # until the driver ends it
        threading.Event().wait()
    crypten.init()
    connected = now()
    party = Party(crypten, load(path), rank, parties)
    facts = {"seconds": {"connect": connected - started, "share weights": now() - connected}}
    serve(line, party.run, facts)
    os._exit(0)  # its own end waits for parties that are gone already


if __name__ == "__main__":
    main()
