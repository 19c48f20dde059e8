"""Serving parties of the small stage, in threads of the test's process or as processes."""

import contextlib
import io
import json
import threading

from benchmarks import load
from privinfer.runtime.observe import Log
from privinfer.runtime.policy import Config
from privinfer.runtime.serve import Server
from tests.adversarial import stage
from tests.multiparty.troupe import free_ports

RANGES = dict.fromkeys(stage.SHAPES, "-4:4")


def rows(*patients):
    """A record for each patient."""
    return {
        patient: {k: v[0] for k, v in stage.flat(stage.rows(seed=3 + k)).items()}
        for k, patient in enumerate(patients)
    }


def lay_out(folder, patients=("alice",), **options):
    """Folders and files of everybody; returns the town and the records."""
    model = folder / "model.onnx"
    model.write_bytes(stage.onnx_bytes())
    found = rows(*patients)
    ports = dict(zip(load.SERVERS, free_ports(len(load.SERVERS)), strict=True))
    options = {"deadline": 5.0, "queue_seconds": 5.0, "stop_seconds": 10.0} | options
    return load.lay_out(folder, model, RANGES, found, ports, **options), found


class Street:
    """All servers of a town, in threads."""

    def __init__(self, town, names=load.SERVERS):
        self.town = town
        self.logs = {name: io.StringIO() for name in names}
        self.servers = {}
        self._threads = []
        for name in names:
            self.servers[name] = Server(Config.load(town.config(name), name), Log(name, self.logs[name]))
        for server in self.servers.values():
            thread = threading.Thread(target=server.run, daemon=True)
            thread.start()
            self._threads.append(thread)

    def lines(self, name):
        return [json.loads(line) for line in self.logs[name].getvalue().splitlines()]

    def codes(self, name, event):
        return [line.get("code") for line in self.lines(name) if line["event"] == event]

    def stop(self):
        for server in self.servers.values():
            server.request_stop()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()


@contextlib.contextmanager
def street(town, names=load.SERVERS):
    """Servers that serve while the block runs."""
    made = Street(town, names)
    try:
        yield made
    finally:
        made.stop()
