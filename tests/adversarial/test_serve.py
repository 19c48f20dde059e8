"""Serving parties on real sockets: an answer, every refusal by name, and strangers that spoil nothing."""

import contextlib
import socket
import ssl
import struct
import time
import urllib.request

import numpy as np
import pytest

from privinfer.errors import (
    ConfigError,
    InputError,
    ProtocolViolation,
    RefusedError,
    ReplayError,
    TransportError,
)
from privinfer.graph import reference
from privinfer.runtime import knock as kn
from privinfer.runtime.observe import FIELDS
from privinfer.session import Identity, canonical
from privinfer.session.template import Template
from privinfer.transport.router import KNOCK
from tests.adversarial import stage
from tests.support.town import lay_out, street

BOUND = stage.model().architecture.precision.error_bound


class Place:
    """A town that serves, with one patient on its list."""

    def __init__(self, town, rows, served):
        self.town, self.rows, self.served = town, rows, served
        self.template = Template.load(town.template)
        self.alice = Identity.load(town.folder / "alice.key")

    def party(self, name):
        return self.template.sample().party(name)

    def answers(self):
        found = kn.ask(self.template, self.alice, wait=30).outputs["risk"]
        clear = reference.run(stage.model(), {k: v[None] for k, v in self.rows["alice"].items()})["risk"]
        assert np.abs(found - clear).max() <= BOUND

    def dial(self, name="helper", data=b""):
        sock = socket.create_connection(("127.0.0.1", self.town.ports[name]), timeout=20)
        sock.sendall(data)
        return sock

    def line(self, name="helper"):
        """A line to a server by hand."""
        context = ssl.create_default_context(cadata=self.party(name).certificate_pem)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return kn.Line(context.wrap_socket(self.dial(name, KNOCK)), name)

    def free(self):
        """No place is taken, for longer than it takes to give one back."""
        until = time.monotonic() + 20
        while any(s._slots.taken or s._policy._running for s in self.served.servers.values()):
            assert time.monotonic() < until
            time.sleep(0.01)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    town, rows = lay_out(tmp_path_factory.mktemp("town"), per_hour=1000)
    with street(town) as served:
        yield Place(town, rows, served)


@pytest.fixture(autouse=True)
def still_served(place):
    """After each test all places are free."""
    yield
    place.free()


def greeted(line):
    return line.hear("greeting", kn.MAX_ANSWER, 20).take("nonce", bytes, 32)


def propose(place, line, manifest, identity, *, nonce=None, server="helper", raw=None):
    said = greeted(line)
    raw = manifest.raw if raw is None else raw
    fingerprint = place.party(server).identity.fingerprint
    signature = identity.sign(kn.proposal(nonce or said, fingerprint, raw))
    line.say({"session": raw, "signature": signature})
    kn._answered(line.hear("answer", kn.MAX_ANSWER, 20), "helper")


def test_an_answer(place):
    place.answers()
    place.free()
    for name in place.served.servers:
        assert place.served.codes(name, "ended")[-1] == "answered"
        for line in place.served.lines(name):
            assert set(line) <= {"time", *FIELDS}


# -- who is refused --------------------------------------------------------------------------------


def test_a_stranger(place):
    with pytest.raises(RefusedError, match="not on the list") as caught:
        kn.ask(place.template, Identity.generate("mallory", days=1))
    assert caught.value.culprit in place.town.ports
    assert caught.value.retry == 0


def test_a_stranger_with_a_patients_name(place):
    """Records go by name, so the name alone must not do."""
    with pytest.raises(RefusedError, match="not on the list"):
        kn.ask(place.template, Identity.generate("alice", days=1))


def test_a_patient_without_a_record(place):
    bob = Identity.generate("bob", days=1)
    (place.town.folder / "patients" / "bob.crt").write_text(bob.certificate_pem)
    with pytest.raises(InputError, match="no record"):
        kn.ask(place.template, bob)
    (place.town.folder / "patients" / "bob.crt").unlink()
    with pytest.raises(RefusedError):  # from the next moment on
        kn.ask(place.template, bob)


def test_a_replayed_session(place):
    manifest = place.template.seal(place.alice.public)
    for error in (None, ReplayError):
        with place.line() as line, contextlib.ExitStack() as stack:
            if error is not None:
                stack.enter_context(pytest.raises(error, match="held before"))
            propose(place, line, manifest, place.alice)
        place.free()


def test_a_replayed_signature(place):
    """What was signed for another connection, or for another server, is worth nothing."""
    manifest = place.template.seal(place.alice.public)
    with place.line() as line, pytest.raises(ProtocolViolation, match="signature"):
        propose(place, line, manifest, place.alice, nonce=bytes(32))
    with place.line() as line, pytest.raises(ProtocolViolation, match="signature"):
        propose(place, line, manifest, place.alice, server="startup")
    with place.line() as line, pytest.raises(ProtocolViolation, match="signature"):
        propose(place, line, manifest, Identity.generate("alice", days=1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('helper = "helper"', 'helper = "laboratory"'),
        ('risk = "alice"', 'risk = "laboratory"'),
        ('xray = "hospital"', 'xray = "laboratory"'),
        ("deadline = 5.0", "deadline = 86400.0"),
        ("insecure = []", 'insecure = ["plaintext"]'),
        ("version = 1\n", "version = 1 # me\n"),
    ],
)
def test_another_session_than_the_template(place, old, new):
    raw = place.template.seal(place.alice.public).raw.decode()
    assert old in raw
    with place.line() as line, pytest.raises(ConfigError):
        propose(place, line, None, place.alice, raw=raw.replace(old, new, 1).encode())


def test_one_session_at_once_for_one_certificate(place):
    with place.line() as first:
        propose(place, first, place.template.seal(place.alice.public), place.alice)
        with place.line() as second, pytest.raises(RefusedError, match="at once") as caught:
            propose(place, second, place.template.seal(place.alice.public), place.alice)
        assert caught.value.retry > 0
        assert "ask again" in caught.value.hint


def test_a_server_that_shows_another_certificate(place):
    hospital, helper = place.party("hospital"), place.party("helper")
    false = type(helper)("helper", hospital.host, hospital.port, helper.certificate_pem)
    with pytest.raises(TransportError, match="another certificate") as caught:
        kn.knock(place.template.seal(place.alice.public), false, place.alice, 5)
    assert caught.value.culprit == "helper"


# -- what strangers send ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<I", 1 << 31),
        struct.pack("<I", kn.MAX_PROPOSAL + 1) + bytes(100),
        struct.pack("<I", 4) + b"\xff\xff\xff\xff",
        struct.pack("<I", 0),
        None,
        {"session": b"", "signature": bytes(64)},
        {"session": b"\xff" * 99, "signature": bytes(64)},
        {"session": b"a = [" + b"[" * 3000, "signature": bytes(64)},
        {"session": b"x", "signature": bytes(63)},
        {"session": b"x", "signature": bytes(64), "more": 1},
    ],
    ids=["2 GB", "oversized", "no CBOR", "empty", "null", "no file", "no text", "nested", "short", "field"],
)
def test_garbage_in_a_proposal(place, data):
    before = len(place.served.codes("helper", "refused"))
    with place.line() as line:
        greeted(line)
        line._sock.sendall(data) if isinstance(data, bytes) else line.say(data)
        with pytest.raises((ProtocolViolation, ConfigError, OSError)):
            kn._answered(line.hear("answer", kn.MAX_ANSWER, 20), "helper")
    until = time.monotonic() + 20
    while len(codes := place.served.codes("helper", "refused")) == before:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert codes[-1] in (ProtocolViolation.code, ConfigError.code)


@pytest.mark.parametrize("data", [b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n", bytes(500)])
def test_garbage_in_place_of_tls(place, data):
    with place.dial(data=KNOCK + data) as sock, contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096):
            pass


def test_many_that_knock_and_say_no_more(place, monkeypatch):
    """The oldest go; who speaks is heard."""
    monkeypatch.setattr("privinfer.runtime.serve.MAX_KNOCKING", 4)
    held = [place.dial(data=KNOCK) for _ in range(12)]
    try:
        place.answers()
        assert len(place.served.servers["helper"]._knocking) <= 4
    finally:
        for sock in held:
            sock.close()


@pytest.mark.parametrize("word", [{"go": False}, {"go": 1}, {}, None])
def test_a_place_is_given_back(place, word):
    with place.line() as line:
        propose(place, line, place.template.seal(place.alice.public), place.alice)
        assert place.served.servers["helper"]._slots.taken == 1
        if word is not None:
            line.say(word)
    place.free()


def test_answers_that_a_server_makes_up(place):
    """Of a hostile server: whatever it writes, the error is typed, short and printable."""
    good = {"answer": "refused", "code": "PI302", "message": "no", "hint": "", "retry": 1.0}
    for change, kind in (
        ({"code": "PI999"}, RefusedError),
        ({"message": "a\n\x1b[31m" + "x" * 3000}, RefusedError),
        ({"retry": float("nan")}, RefusedError),
        ({"retry": -1.0}, RefusedError),
        ({"retry": 1}, ProtocolViolation),
        ({"more": 1}, ProtocolViolation),
        ({"code": 7}, ProtocolViolation),
    ):
        fields = canonical.Fields(
            canonical.loads(canonical.dumps(good | change), "answer", "s"), "answer", "s"
        )
        with pytest.raises(kind) as caught:
            kn._answered(fields, "s")
        assert caught.value.culprit == "s"
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 600
        assert 0 <= getattr(caught.value, "retry", 0.0) <= 86400


# -- stopping, watching ----------------------------------------------------------------------------


def test_metrics_health_and_a_graceful_stop(tmp_path):
    pytest.importorskip("prometheus_client")
    town, _ = lay_out(tmp_path, metrics="127.0.0.1:1")
    file = town.config("helper")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file.write_text(file.read_text().replace("127.0.0.1:1", f"127.0.0.1:{port}"))
    alice = Identity.load(tmp_path / "alice.key")
    template = Template.load(town.template)
    manifest = template.seal(alice.public)

    def get(path):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            return answer.read().decode()

    with street(town, ["helper"]) as served:
        server = served.servers["helper"]
        assert get("/healthz") == "ok\n"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            get("/else")
        with kn.knock(manifest, manifest.party("helper"), alice, 20):
            assert "privinfer_running 1.0" in get("/metrics")
            server.request_stop()
            until = time.monotonic() + 20
            while not served.codes("helper", "stopping"):
                assert time.monotonic() < until
                time.sleep(0.01)
            with pytest.raises(urllib.error.HTTPError, match="503"):
                get("/healthz")
            (tmp_path / "patients" / "bob.crt").write_text((bob := Identity.generate("bob")).certificate_pem)
            other = template.seal(bob.public)
            with pytest.raises(RefusedError, match="stopping") as caught:
                kn.knock(other, other.party("helper"), bob, 20)
            assert caught.value.retry > 0


def test_one_server_is_down(tmp_path):
    """Whoever accepted already gives its place back at once."""
    town, _ = lay_out(tmp_path)
    names = [n for n in town.ports if n != "laboratory"]
    with street(town, names) as served:
        with pytest.raises(TransportError) as caught:
            kn.ask(town.template, town.folder / "alice.key")
        assert caught.value.culprit == "laboratory"
        until = time.monotonic() + 20
        while any(server._slots.taken for server in served.servers.values()):
            assert time.monotonic() < until
            time.sleep(0.01)
