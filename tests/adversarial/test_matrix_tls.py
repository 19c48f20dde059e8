"""A sample of the matrix of `test_matrix.py` over TLS: the same errors, the same culprits."""

from __future__ import annotations

import functools
from concurrent.futures import ThreadPoolExecutor

import pytest

from privinfer.errors import PrivinferError, TransportError
from privinfer.session.manifest import Party as Entry
from privinfer.transport.endpoint import Endpoint
from privinfer.transport.tls import connect
from tests.adversarial import stage, test_matrix
from tests.adversarial.tamper import Tamper
from tests.multiparty.troupe import free_ports

pytestmark = pytest.mark.slow
DEADLINE = 2.0
EACH = 2  # kinds of messages of each way
SIX = ("flip middle", "two tales", "truncated")  # ways with more


class Lines:
    """The endpoints of a session, as ways of tampering see them."""

    def __init__(self, manifest):
        self.manifest, self.ends = manifest, {}

    def frame(self, source, destination, frame):
        """Put a frame on the line past everybody's back."""
        self.ends[source].send(destination, frame)

    def raw(self, source, destination, data, *, end):
        """Put bytes into the TLS stream; then its end, or nothing more."""
        link = self.ends[source]._links[destination]
        link.write(data, memoryview(b""))
        if end:
            link.finish()
            link.shutdown()


class Tampered(Endpoint):
    """A TLS endpoint whose frames pass a hook before they are encrypted."""

    def __init__(self, inner, hook):
        self._inner, self._hook = inner, hook
        self.name, self.peers, self.counters = inner.name, inner.peers, inner.counters

    def send(self, peer, frame):
        self._passed(peer, frame, self._inner.send)

    def send_if_idle(self, peer, frame):
        return self._passed(peer, frame, self._inner.send_if_idle)

    def _passed(self, peer, frame, send):
        copy = self._hook(self.name, peer, stage.changed(frame, payload=bytes(frame.payload)))
        return True if copy is None else send(peer, copy)

    def receive(self, timeout):
        return self._inner.receive(timeout)

    def close(self):
        self._inner.close()


@functools.cache
def base():
    """A session file; the ports are drawn for each play."""
    return stage.manifest(DEADLINE)


def play(kind, way):
    """One cell."""
    ports = free_ports(len(stage.NAMES))
    parties = tuple(
        Entry(n, "127.0.0.1", port, stage.identity(n).certificate_pem)
        for n, port in zip(stage.NAMES, ports, strict=True)
    )
    manifest = stage.manifest(DEADLINE, parties=parties, connect_timeout=20.0)
    one = Tamper(kind, test_matrix.WAYS[way], Lines(manifest))

    def wrap(name, _):
        who = stage.identity(name).private_pem()
        addresses = [(p.name, p.host, p.port, p.certificate_pem) for p in manifest.parties]
        end = connect(name, who, addresses, bytes.fromhex(manifest.session), 20.0, stall_timeout=DEADLINE)
        one.lines.ends[name] = end
        return Tampered(end, one)

    staged = stage.Play(base=manifest, wrap=wrap, act=one.joined)
    return one, staged.run(limit=40.0)


def sample():
    """Ways, each with a few kinds of messages spread over the session."""
    for way in test_matrix.WAYS:
        kinds = [k for k in test_matrix.cells(way) if k not in test_matrix.HEARSAY]
        count = min(len(kinds), 6 if way in SIX else EACH)
        for k in range(count):
            yield way, kinds[(2 * k + 1) * len(kinds) // (2 * count)]


def test_a_sample_over_tls(record_property):
    cells = list(sample())
    with ThreadPoolExecutor(3) as pool:
        ended = list(pool.map(lambda cell: play(cell[1], cell[0]), cells))
    bad = {}
    for (way, kind), (one, outcomes) in zip(cells, ended, strict=True):
        if wrong := judge(kind, way, one, outcomes):
            again = play(kind, way)  # alone: a deadline is promised on a machine of one's own
            if wrong := judge(kind, way, *again):
                bad[way, kind] = wrong
    trusted = sum(test_matrix.trusted(kind, way) for way, kind in cells)
    record_property("cells", [len(cells) - trusted, trusted])
    print(f"{len(cells)} cells over TLS")
    assert not bad, "\n".join(f"{k}: {w}" for k, w in bad.items())


def judge(kind, way, one, outcomes):
    """As in memory, but that times hold a handshake, and that a broken line may be seen from either side."""
    if one.sender is None:
        return ["never sent"]
    wrong = [w for w in test_matrix.judge(kind, way, one, outcomes) if " took " not in w]
    for name, outcome in outcomes.items():
        if outcome.error is not None and not isinstance(outcome.error, PrivinferError):
            wrong.append(f"{name}: {outcome.error!r}")
        if isinstance(outcome.error, TransportError) and "did not connect" in outcome.error.message:
            wrong.append(f"{name}: the mesh was not made")
    return wrong
