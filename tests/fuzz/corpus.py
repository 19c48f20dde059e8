"""The corpus: what honest parties say and write, a small file each; `python -m tests.fuzz --write`."""

from __future__ import annotations

import contextlib
import io
import sqlite3
import ssl
import tempfile
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from privinfer.backends.ckks import roles as ckks_roles
from privinfer.backends.ckks.protobuf import ContextMessage, VectorMessage
from privinfer.graph.load import from_onnx
from privinfer.protocols.ckks.release import Entry
from privinfer.runtime import ahead, engage
from privinfer.runtime.ledger import ReleaseLedger
from privinfer.runtime.post import _ALIVE
from privinfer.runtime.store import Store
from privinfer.runtime.uses import Uses
from privinfer.session import agreement, canonical, weights_opening
from privinfer.session.fragment import write_fragment
from privinfer.session.keyfile import write_key, write_publication
from privinfer.session.sealed import _PREFIX
from privinfer.session.terms import Release, Terms
from privinfer.transport import Frame, Kind, encode_abort
from privinfer.transport.frames import encode
from tests.adversarial import stage
from tests.fuzz.targets import FORM, OWN, SESSION
from tests.support import consents as kit

FOLDER = Path(__file__).with_name("corpus")
LARGEST = 40_000  # bytes of a file in the corpus


def load(name: str) -> list[bytes]:
    """Examples of a target."""
    if name == "identity":  # no private key lies in a repository, and be it a test's
        return [stage.identity("hospital").private_pem()]
    return [file.read_bytes() for file in sorted((FOLDER / name).iterdir())]


def write() -> None:
    """Make all of it anew."""
    for name, examples in made().items():
        folder = FOLDER / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()
        for k, data in enumerate(examples):
            assert len(data) <= LARGEST, (name, k, len(data))
            (folder / f"{k:02}.bin").write_bytes(data)


def made() -> dict[str, list[bytes]]:
    """Target to examples."""
    m = stage.manifest()
    heard = recorded()
    hello = [f for f in heard if f.kind is Kind.HELLO]
    stream = b"".join(encode(f, SESSION) for f in heard)
    commitments = {"inputs": {"blood": bytes(range(32))}}
    values = [None, True, -5, 2**63, 1.5, "text", b"bytes", [1, [2, [3]]], {"a": {"b": []}}]
    shown = b"\1" * 96 * len(m.names)
    audited = receipts()
    return {
        "receipt": audited[:3],
        "consent": [b"\0" + kit.signed(kit.consent()), b"\1" + kit.signed(kit.revocation(kit.consent()))],
        "weights-opening": [weights_file()],
        "uses": [sqlite_file(fill_uses)],
        "claim": audited[3:4],
        "opening": audited[4:],
        "frames": [b"\x07" + stream[:4000], b"\xff" + stream[:900]],
        "abort": [encode_abort("PI202", "said two things", who) for who in ("hospital", None, "a or b")],
        "office": [stream[:6000], *(encode(f, SESSION) for f in heard[:8]), *map(control, range(5))],
        "greeting": [bytes(f.payload) for f in hello if f.step == 0][:1],
        "alike": [
            *(b"\0" + bytes(f.payload) for f in hello if f.step == 3),
            b"\1" + shown + bytes(64),
            b"\1" + bytes(len(shown)),
        ],
        "canonical": [
            canonical.dumps(v) for v in [*values, values, {str(k): v for k, v in enumerate(values)}]
        ],
        "joining": [agreement.statement("0.1.0", w) for w in (None, bytes(32))],
        "engagement": [canonical.dumps(commitments), engage.statement({})],
        "offer": [ahead.pack_offer(None), ahead.pack_offer(ahead.Offer(bytes(32), 3, 9, 1))],
        "architecture": [stage.model().architecture.to_bytes(), zoo()],
        "seeds": [b"\0" + (1).to_bytes(4, "little") + bytes(32), b"\1" + bytes(96)],
        "holders": [bytes([k, 2 * limbs]) + bytes(8) for k in range(9) for limbs in range(1, 10)],
        "manifest": [m.raw, manifest_with_terms()],
        "certificate": [stage.identity("hospital").certificate_pem.encode(), unknown_key()],
        "sealed": at_rest(),
        "sealed-header": [d[_PREFIX.size : _PREFIX.size + _PREFIX.unpack_from(d)[3]] for d in at_rest()],
        "protobuf": [
            ContextMessage(memoryview(b"parameters"), memoryview(b"public key"), 7, 2.0**40).emit(),
            VectorMessage((3, 4), (memoryview(b"one"), memoryview(b"two")), 2.0**40).emit(),
        ],
        "seal": seal(),
        "roles": [ahead.pack_roles({"evaluator1": b"kept", "owner:hospital": b""})],
        "request": [ckks_roles.Request(1, 0, 7, 1).to_bytes()],
        "store": [sqlite_file(fill_store)],
        "ledger": [sqlite_file(fill_ledger)],
        "array": arrays(),
        "onnx": [stage.onnx_bytes()],
    }


def recorded() -> list[Frame]:
    """What one owner said to the patient, and the patient to it, in an honest run."""
    found = []

    def hook(source, destination, frame):
        if {source, destination} == {"laboratory", OWN} and frame.kind is not Kind.ALIVE:
            found.append(frame)
        return frame

    outcomes = stage.Play(hook=hook).run()
    assert not [o.error for o in outcomes.values() if o.error]
    return found


def weights_file() -> bytes:
    """A model owner's opening, as `privinfer weights` writes it."""
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "weights.opening"
        who, chain = stage.identity(stage.E1), {"architecture": bytes(32), "commitment": bytes(range(32))}
        weights_opening.write(file, who, bytes(weights_opening.SECRET_BYTES), **chain)
        return file.read_bytes()


def fill_uses(folder):
    """One consent, used once, and a revocation of another."""
    ledger = Uses(folder, OWN)
    ledger.spend(kit.consent(id=bytes(16)), b"signed", bytes(32), 7)
    other = kit.consent(id=b"\1" * 16)
    ledger.revoke(kit.revocation(other), kit.signed(kit.revocation(other)))


def receipts() -> list[bytes]:
    """A receipt, its body, its agreement; a claim; an opening."""
    with tempfile.TemporaryDirectory() as place:
        base = stage.manifest(terms=Terms(receipts=True))
        outcomes = stage.Play(base=base, receipts=Path(place)).run()
        assert not [o.error for o in outcomes.values() if o.error]
        whole = (Path(place) / f"{OWN}.receipt").read_bytes()
        opened = next(Path(place).glob("laboratory*.opening")).read_bytes()
    body = canonical.loads(whole, "receipt", None, LARGEST)["body"]
    kept = canonical.loads(body, "receipt", None, LARGEST)
    said = next(iter(kept["legs"][0]["peers"].values()))
    return [b"\0" + whole, b"\1" + body, b"\2" + kept["agreement"], said, opened]


def control(k: int) -> bytes:
    """Frames that a short run has none of."""
    word = [
        Frame(Kind.ALIVE, 3, 0, 0, _ALIVE.pack(2, 9, 1 << 40)),
        Frame(Kind.ABORT, 3, 0, 0, encode_abort("PI201", "gone", "hospital")),
        Frame(Kind.DONE, 3, 0, 0, b"\0" * 4),
        Frame(Kind.BYE, 3, 0, 0),
        Frame(Kind.DATA, 2, 5, 3, bytes(8)),
    ][k]
    return encode(word, SESSION)


def zoo() -> bytes:
    """An architecture with more operators, tables among them."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[2, 2]),
        helper.make_node("MaxPool", ["c"], ["p"], kernel_shape=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Sigmoid", ["f"], ["s"]),
        helper.make_node("Softmax", ["s"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "more",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 5, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 8])],
        [numpy_helper.from_array(np.full((2, 1, 2, 2), 0.25, np.float32), "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return from_onnx(proto.SerializeToString(), {"x": (-1.0, 1.0)}).architecture.to_bytes()


def unknown_key() -> bytes:
    """A certificate whose key is of a kind that nobody knows: found by fuzzing."""
    der = stage.identity("hospital").public.der.replace(b"\x06\x03\x2b\x65\x70", b"\x06\x03\x29\x65\x70")
    return ssl.DER_cert_to_PEM_cert(der).encode()


def manifest_with_terms() -> bytes:
    """A session file in which everything is said."""
    release = Release(
        decimals=3, epsilon=1.0, delta=1e-6, sensitivity=1.0, epsilon_budget=5, delta_budget=1e-5
    )
    terms = Terms(purpose="care", consent=OWN, weights="0a" * 32, receipts=True, release=release)
    return stage.manifest(terms=terms).raw


def at_rest() -> list[bytes]:
    """A fragment, a key, a mark."""
    who = stage.identity("hospital")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        chain = {"parameters": bytes(32), "key": bytes(range(32))}
        data = np.zeros((1, 2, 1, 1024), np.uint64)
        write_fragment(
            folder / "f", who, data, name="xray", shape=(4,), bounds=(-4, 4), scale=2.0**40, **chain
        )
        write_key(folder / "k", who, bytes(64), np.zeros((2, 2, 1024), np.uint64), **chain)
        write_publication(folder / "k", who, key=bytes(32), joint=bytes(32))
        return [(folder / n).read_bytes() for n in ("f", "k", "k.published")]


def seal() -> list[bytes]:
    """SEAL's objects, the small ones; of the large ones the beginning."""
    import zlib

    from privinfer.backends.ckks.seal_header import HEADER, MAGIC, ZLIB

    ciphertext = FORM.emit_ciphertext(np.zeros((2, 1, 1024), np.uint64), 2.0**30)
    packed = zlib.compress(bytes(4000))
    header = HEADER.pack(MAGIC, 16, 4, 3, ZLIB, 0, 16 + len(packed))
    key = FORM.emit_relinearisation_key(np.zeros((2, 2, 3, 1024), np.uint64))
    public = FORM.emit_public_key(np.zeros((2, 3, 1024), np.uint64))
    many = FORM.emit_galois_keys({3: np.zeros((2, 2, 3, 1024), np.uint64)})
    return [
        b"\0" + ciphertext,
        b"\1" + public[:2000],
        b"\2" + key[:2000],
        b"\3" + many[:2000],
        b"\4" + FORM.emit_parameters(),
        b"\5" + header + packed,
    ]


def sqlite_file(fill) -> bytes:
    """The SQLite file that `fill` leaves in a folder, without its journal."""
    with tempfile.TemporaryDirectory() as place:
        fill(Path(place))
        (found,) = Path(place).glob("*.sqlite")
        with contextlib.closing(sqlite3.connect(found)) as db:
            db.execute("PRAGMA journal_mode = DELETE")
            db.execute("VACUUM")
        return found.read_bytes()


def fill_store(folder):
    """Three pieces, the first used."""
    with Store(folder, b"session", OWN) as store:
        store.begin(bytes(32), 1, b"setup")
        for number in range(3):
            store.add(bytes(32), number, b"piece %d" % number)
        store.take(bytes(32), 0)


def fill_ledger(folder):
    """Two entries."""
    with ReleaseLedger(folder, OWN) as ledger:
        ledger.record([Entry(bytes(16), f"step {k}", bytes([k]) * 32) for k in (1, 2)])


def arrays() -> list[bytes]:
    """Files of numbers."""
    out = io.BytesIO()
    np.save(out, np.arange(6.0).reshape(2, 3))
    several = io.BytesIO()
    np.savez(several, xray=np.arange(3), dna=np.ones((2, 2)))
    return [b"\0" + out.getvalue(), b"\1" + several.getvalue(), b"\2" + b"1,2.5,-3\n4,5e3,6\n"]
