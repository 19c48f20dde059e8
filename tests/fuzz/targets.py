"""What is fuzzed: one target for each parser that reads bytes from a peer or a file.

A target takes any bytes and returns, or raises a PrivinferError; where a peer sent them the error names it.
Whatever else comes out of one is a finding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from privinfer.backends.base import Phase, Receive
from privinfer.backends.ckks import roles as ckks_roles
from privinfer.backends.ckks.protobuf import ContextMessage, VectorMessage
from privinfer.backends.ckks.seal import Format
from privinfer.backends.ckks.seal_header import Version, inflate
from privinfer.errors import PrivinferError, ProtocolViolation
from privinfer.graph.from_onnx import from_onnx
from privinfer.graph.ir import Architecture
from privinfer.io.arrays import read_array, read_arrays
from privinfer.protocols.ckks import galois, public_key, refresh, relinearise, threshold
from privinfer.protocols.ckks.keys import PublicKey
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.ckks.rekey import OfflineKey
from privinfer.protocols.ckks.release import Entry
from privinfer.protocols.mpc import inputs
from privinfer.protocols.randomness import Scope
from privinfer.runtime import ahead, engage
from privinfer.runtime.agree import Joining
from privinfer.runtime.greeting import greet
from privinfer.runtime.ledger import ReleaseLedger
from privinfer.runtime.post import Office
from privinfer.runtime.store import Store
from privinfer.runtime.uses import Uses
from privinfer.session import (
    account,
    agreement,
    canonical,
    compare,
    opening,
    receipt,
    sealed,
    weights_opening,
)
from privinfer.session.consent import Consent, Revocation
from privinfer.session.fragment import FragmentHeader, read_fragment, read_header
from privinfer.session.identity import Identity, PublicIdentity
from privinfer.session.keyfile import KeyHeader, read_key, read_key_header, read_publication
from privinfer.session.manifest import Manifest
from privinfer.transport.endpoint import Counters, Endpoint
from privinfer.transport.frames import Decoder, Kind, decode_abort, encode
from tests.adversarial import stage
from tests.support import consents as kit
from tests.support.rlwe import family

PEER, OWN = "laboratory", "patient"
SESSION = b"s" * 16
SMALL = Parameters(1024, 2, insecure=True)
FORM = Format(1024, family(1024, 2), Version(4, 3))
MIB = 1 << 20


@dataclass(frozen=True)
class Target:
    """A parser under test.

    Attributes
    ----------
    run : callable
        Takes the bytes.
    peer : bool
        Whether a peer sent them, so that every error has to name it.
    cap : int
        Bytes of memory that any input of a few KiB may make it take.
    """

    run: Callable[[bytes], object]
    peer: bool = False
    cap: int = 4 * MIB


TARGETS: dict[str, Target] = {}


@functools.cache
def session(model_owner=stage.E1):
    """A session file of the stage."""
    return stage.manifest(model_owner=model_owner)


def target(name: str, peer: bool = False, cap: int = 4 * MIB):
    """Register a target."""

    def register(run):
        TARGETS[name] = Target(run, peer, cap)
        return run

    return register


def judge(name: str, data: bytes) -> PrivinferError | None:
    """Run one input; AssertionError where a target does what it must not."""
    one = TARGETS[name]
    raised = None
    try:
        one.run(data)
    except PrivinferError as error:
        raised = error
    if raised is not None:
        assert not one.peer or raised.culprit == PEER, f"names {raised.culprit}: {raised.message}"
        shown = f"{raised.message}{raised.hint or ''}"
        assert shown.isprintable(), "a message that cannot be shown"
        assert len(shown) < 2000, "a message too long to be shown"
    return raised


# -- the wire --------------------------------------------------------------------------------------


@target("frames", peer=True)
def frames(data):
    """A stream of frames, in pieces; what is read is what was written."""
    decoder, size, at = Decoder(SESSION, PEER), 1 + (data[0] if data else 0), 0
    for start in range(1, len(data), size):
        for frame in decoder.feed(data[start : start + size]):
            again = encode(frame, SESSION)
            assert data[1 + at : 1 + at + len(again)] == again
            at += len(again)


@target("abort", peer=True)
def abort(data):
    """Why a party gives up."""
    decode_abort(data, PEER)


class Deaf(Endpoint):
    """Sends nothing anywhere."""

    def __init__(self):
        self.name, self.peers = OWN, tuple(n for n in stage.NAMES if n != OWN)
        self.counters = Counters()

    def send(self, peer, frame):
        return

    def receive(self, timeout):
        raise TimeoutError

    def close(self):
        return


@contextlib.contextmanager
def office():
    """A post office without a network."""
    one = Office(Deaf(), stage.NAMES, 1e6, stage._cast())
    try:
        yield one
    finally:
        one.close()


@target("office", peer=True)
def post(data):
    """Any frames of one peer, sorted, and a message that is due taken."""
    with office() as one:
        one.begin(0)
        wanted = Receive("evaluator1", 3, 8)  # of whichever role the peer plays
        for frame in Decoder(SESSION, PEER).feed(data):
            one.watch.heard(PEER, frame)
            try:
                one._sort(PEER, frame)
            except PrivinferError as error:
                if error is one._told:  # why it gives up; it may be another's fault
                    return
                raise
            if frame.kind is Kind.DATA:
                for pair in one._pairs:
                    if one.cast[pair[0]] == PEER and one.cast[pair[1]] == OWN:
                        one.take(pair[1], Receive(pair[0], wanted.step, wanted.size), Phase.ONLINE)


class Heard:
    """An office in which one peer has said one thing in one step."""

    def __init__(self, step, data):
        self.step, self.data = step, data
        self.endpoint = Deaf()

    def tell(self, kind, phase, step, payload=b""):
        return

    def expect(self, step, check):
        if step == self.step:
            check(PEER, self.data)

    def hear(self, step, senders):
        raise Enough


class Enough(Exception):
    """The rest of the exchange is not this target's."""


def believed(party, message, signature):
    """Half of the peer's signatures are good, for a fuzzer has to get past them; nobody else's can be."""
    if party != PEER or (signature[:1] and signature[0] & 1):
        raise ProtocolViolation("signature does not verify", culprit=party)


@target("greeting", peer=True)
def greeting(data):
    """The first HELLO."""
    with contextlib.suppress(Enough):
        greet(Heard(0, data), session(), OWN, stage.identity(OWN), believed)


@target("alike", peer=True)
def alike(data):
    """A statement and what is shown of the others': step by the first byte."""
    m, step = session(), 3 + (data[0] & 1 if data else 0)
    one = Joining(Heard(step, data[1:]), m, stage.identity(OWN), believed, [bytes(16)] * len(m.names))
    one.tell(None)
    if step == 4:
        one._alike._entries.update(dict.fromkeys(m.names, b"\x01" * 96))
        one._alike._office.expect(step, one._alike._compare)


@target("canonical", peer=True)
def plain(data):
    """CBOR of anybody; one encoding a value."""
    assert canonical.dumps(canonical.loads(data, "this", PEER)) == data


@target("joining", peer=True)
def joining(data):
    """What a party says of itself at the join."""
    agreement.read_statement(data, PEER, session(PEER))


@target("engagement", peer=True)
def engagement(data):
    """What an owner commits to."""
    engage.read(session(), {PEER: data})


@target("offer", peer=True)
def offer(data):
    """What a party says of its store, and what comes of it beside this party's own."""
    found = ahead.parse_offer(data, PEER)
    own = ahead.Offer(bytes(32), 2, 8, 1, 0)
    ahead.check_whole(own, found, 2, PEER)
    ahead.agreed([own, found])


@target("architecture", cap=16 * MIB)
def architecture(data):
    """The model's public half."""
    assert Architecture.from_bytes(data).to_bytes() == data


def exactly(data: bytes, size: int) -> bytes:
    """The post office hands out messages of the size that is due, and no others."""
    return data[:size].ljust(size, b"\0")


@target("seeds", peer=True)
def seeds(data):
    """An owner's seeds, or its masked values."""
    if data[:1] == b"\1":
        step = stage._program().sources()[0]
        size = 8 * step.type.size + inputs.SIGNATURE_BYTES
        scope = Scope(bytes(32), 0)
        inputs.Received.parse(step, PEER, (1, *step.type.shape), exactly(data[1:], size), scope, believed)
    else:
        inputs.parse_seeds(exactly(data[1:], inputs.helper_size()), PEER)


@target("holders", peer=True, cap=16 * MIB)
def holders(data):
    """Every message of threshold CKKS: which, how many limbs, and the first of their bytes."""
    which, limbs = ((data[0] % 9, data[1] % 32)) if len(data) > 1 else (0, 0)
    body = memoryview(exactly(data[2:], 8 * SMALL.n * limbs) + data[2 : 2 + (limbs & 1)])
    match which:
        case 0:
            public_key.parse(SMALL, body, PEER)
        case 1:
            relinearise.parse_first(SMALL, body, PEER)
        case 2:
            relinearise.parse_sum(SMALL, body, PEER)
        case 3:
            relinearise.parse_second(SMALL, body, PEER)
        case 4:
            galois.parse(SMALL, body, PEER)
        case 5:
            threshold.parse(SMALL, body, PEER, OWN)
        case 6:
            PublicKey.parse(SMALL, body, PEER)
        case 7:
            OfflineKey.parse(SMALL, body, PEER)
        case _:
            refresh.parse(SMALL, refresh.Span(1, 2, 3, 40), body, PEER)


# -- files -----------------------------------------------------------------------------------------


@functools.cache
def folder() -> Path:
    """Where files under test are written: in memory where there is such a place."""
    shared = Path("/dev/shm")
    place = tempfile.TemporaryDirectory(prefix="fuzz-", dir=shared if os.access(shared, os.W_OK) else None)
    folder.place = place
    return Path(place.name)


def in_file(data, name):
    """The bytes as a file of this party's alone."""
    file = folder() / name
    file.write_bytes(data)
    file.chmod(0o600)
    return file


@target("manifest", cap=16 * MIB)
def manifest(data):
    """A session file; what is read can be written and read again."""
    found = Manifest.loads(data)
    assert Manifest.loads(found.dumps().encode()) == found
    found.digest()


@target("certificate")
def certificate(data):
    """A certificate in PEM."""
    PublicIdentity.from_certificate(data.decode("latin-1"))


@target("identity")
def identity(data):
    """A party's key file."""
    Identity.load(in_file(data, "some.key"))


@target("sealed")
def at_rest(data):
    """A fragment, key or mark of a publication, whose signature nobody made."""
    who = stage.identity("hospital")
    file = in_file(data, "some.fragment")
    with contextlib.suppress(PrivinferError):
        read_header(file)
    with contextlib.suppress(PrivinferError):
        read_key_header(file)
    with contextlib.suppress(PrivinferError):
        read_key(file, who)
    (folder() / "some.fragment.published").write_bytes(data)
    (folder() / "some.fragment.published").chmod(0o600)
    with contextlib.suppress(PrivinferError):
        read_publication(file, who.public, key=bytes(32))
    read_fragment(file, who.public, name="xray", shape=(4,), bounds=(-4.0, 4.0))


@target("sealed-header")
def header(data):
    """The header of such a file, by itself."""
    found = sealed._decode(data, "this file")
    with contextlib.suppress(PrivinferError):
        FragmentHeader.decode(found, "this file").size()
    KeyHeader.decode(found, "this file").size()


@functools.cache
def honest_receipt():
    """The receipt of the corpus."""
    return receipt._parse(
        Path(__file__).with_name("corpus").joinpath("receipt/00.bin").read_bytes()[1:], "x"
    )[0]


@target("receipt", cap=24 * MIB)
def auditor(data):
    """A receipt as a file, its body as if it were signed, or an agreement as if all had signed it."""
    match data[:1]:
        case b"\1":
            outer = {"format": receipt.FORMAT, "body": data[1:], "signature": bytes(64)}
            found = receipt._parse(canonical.dumps(outer), "receipt")[0]
        case b"\2":
            signed = agreement.Agreement(data[1:], {})
            found = dataclasses.replace(honest_receipt(), agreement=signed)
        case _:
            found = receipt.loads(data[1:])
    account.facts(found)
    account.commitments(found, 0)
    receipt.outcome_of(found)
    account.summary(compare.compare([found]))


@target("consent", peer=True)
def agreed(data):
    """A consent or a revocation, as a peer brings it."""
    (Revocation if data[:1] == b"\1" else Consent).read(data[1:], PEER)


@target("weights-opening")
def committed(data):
    """A model owner's opening."""
    file = in_file(data, "weights.opening")
    with contextlib.suppress(PrivinferError):
        weights_opening.read(file)
    weights_opening.read(file, stage.identity(stage.E1))


consent_of_a_day = functools.cache(kit.consent)


@target("uses", cap=16 * MIB)
def uses(data):
    """A ledger of uses that is damaged: it is refused, or counts."""

    def use(place):
        one = Uses(place, OWN)
        consent = dataclasses.replace(consent_of_a_day(), id=bytes(16))
        with contextlib.suppress(PrivinferError):
            before = one.state(consent).spent
            one.spend(consent, b"signed", bytes(32), 0)
            assert one.state(consent).spent == before + 1
            with contextlib.suppress(PrivinferError):
                one.spend(consent, b"signed", bytes(32), 1)
                raise AssertionError("a consent for one use served twice")

    _database("uses", data, use)


@target("claim", peer=True)
def claim(data):
    """What a party signs at the end of an inference."""
    assert receipt.Claim.parse(data, PEER).pack() == data


@target("opening")
def opened(data):
    """An opening for an auditor."""
    opening.load(in_file(data, "some.opening"))


@target("protobuf")
def protobuf(data):
    """TenSEAL's context and vector."""
    with contextlib.suppress(PrivinferError):
        ContextMessage.parse(data, PEER)
    VectorMessage.parse(data, 512, PEER)


@target("seal", cap=24 * MIB)
def seal(data):
    """SEAL's objects; which one, by the first byte."""
    which, blob = (data[0] if data else 0) % 6, data[1:]
    match which:
        case 0:
            FORM.parse_ciphertext(blob, PEER)
        case 1:
            FORM.parse_public_key(blob, PEER)
        case 2:
            FORM.parse_relinearisation_key(blob, PEER)
        case 3:
            FORM.parse_galois_keys(blob, PEER)
        case 4:
            Format.parse_parameters(blob, FORM.version, PEER)
        case _:
            inflate(blob, 1 << 16, culprit=PEER)


@target("roles")
def roles_kept(data):
    """What the roles of a party kept, and what one of them did."""
    ahead.unpack_roles(data)


@target("request")
def request(data):
    """What a model owner asks of key holders."""
    found = ckks_roles.Request.parse(exactly(data, ckks_roles.REQUEST_BYTES))
    assert found.to_bytes() == exactly(data, ckks_roles.REQUEST_BYTES)
    found.places()


def _database(name, data, use):
    """A folder whose SQLite file holds these bytes."""
    place = folder() / name
    place.mkdir(exist_ok=True)
    for left in place.iterdir():
        left.unlink()
    (place / f"{name}.sqlite").write_bytes(data)
    use(place)


@target("store", cap=16 * MIB)
def store(data):
    """A store whose index is damaged: it is refused, or hands each piece out once at most."""

    def taken(one, found):
        try:
            return one.take(found.generation, found.number)
        except PrivinferError:
            return None

    def use(place):
        for number in range(3):
            (place / f"{bytes(32).hex()}-{number}.bin").write_bytes(b"piece %d" % number)
        with Store(place, b"session", OWN) as one:
            found = one.offer()
            one.held()
            if found is not None:
                with contextlib.suppress(PrivinferError):
                    one.setup(found.generation)
                first, second = taken(one, found), taken(one, found)
                assert first is None or second is None, "a piece served twice"
            with contextlib.suppress(PrivinferError):
                one.add(bytes(32), 7, b"more")

    _database("store", data, use)


@target("ledger", cap=16 * MIB)
def ledger(data):
    """A ledger that is damaged: it is refused, or an entry is written once."""

    def use(place):
        with ReleaseLedger(place, OWN) as one:
            one.record([Entry(bytes(16), "fuzzed", bytes(32))])
            try:
                one.record([Entry(bytes(16), "fuzzed", bytes(32))])
            except PrivinferError:
                return
            raise AssertionError("an entry was recorded twice")

    _database("ledger", data, use)


@target("array", cap=64 * MIB)
def array(data):
    """An input in a file."""
    kinds = (".npy", ".npz", ".csv")
    file = in_file(data[1:], "some" + kinds[(data[0] if data else 0) % 3])
    if file.suffix == ".npz":
        with contextlib.suppress(PrivinferError):
            read_arrays(file)
    read_array(file)


@target("onnx", cap=64 * MIB)
def model(data):
    """A model file."""
    from_onnx(data, dict.fromkeys(stage.SHAPES, (-4.0, 4.0)))
