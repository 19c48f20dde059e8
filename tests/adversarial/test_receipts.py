"""Receipts between six parties: what is in them, what is not, and who is named for a false one."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from unittest import mock

import pytest
from blake3 import blake3

from privinfer.backends.base import Phase
from privinfer.backends.mpc import roles
from privinfer.errors import ConfigError, IntegrityError, ProtocolViolation, TransportError
from privinfer.graph.lower import compile_program
from privinfer.protocols.commitment import digest_of
from privinfer.runtime import engage, evidence
from privinfer.runtime.audit import Audit
from privinfer.runtime.greeting import PAIRS
from privinfer.runtime.party import Party
from privinfer.runtime.post import GREETINGS
from privinfer.runtime.store import Store
from privinfer.runtime.transcript import TagKey, Transcript
from privinfer.session import opening, receipt
from privinfer.session.compare import compare
from privinfer.session.receipt import CLAIM_BYTES, CORE, ENTRY_BYTES, Claim, Entry, Leg, Mark, begin, extend
from privinfer.session.terms import Terms
from privinfer.transport import Frame, Kind
from tests.adversarial import stage
from tests.adversarial.test_liars import everybody

BASE = stage.manifest(terms=Terms(receipts=True, purpose="care"))
LIAR = "laboratory"
PAIR = ("laboratory", "startup")


class Wire:
    """Everything that passed between the parties."""

    def __init__(self):
        self.frames, self._lock = [], threading.Lock()

    def __call__(self, source, destination, frame):
        with self._lock:
            self.frames.append(
                (source, destination, dataclasses.replace(frame, payload=bytes(frame.payload)))
            )
        return frame


@dataclasses.dataclass
class Kept:
    """A session of two runs, its receipts, and what passed."""

    folder: object
    receipts: dict
    wire: Wire
    inputs: list
    reports: dict

    def opened(self, name):
        return opening.load(self.folder / f"{name}.opening")


def read(folder):
    return {name: receipt.load(folder / f"{name}.receipt") for name in stage.NAMES}


def played(folder, **changes):
    play = stage.Play(base=changes.pop("base", BASE), receipts=folder, **changes)
    return play.run()


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder, wire = tmp_path_factory.mktemp("receipts"), Wire()
    inputs = [stage.rows(2, seed=1), stage.rows(3, seed=2)]
    outcomes = played(folder, hook=wire, runs=2, inputs=inputs)
    assert [o.error for o in outcomes.values()] == [None] * len(outcomes)
    return Kept(folder, read(folder), wire, inputs, {n: o.report for n, o in outcomes.items()})


def again(one, **changes):
    """A receipt that its party changed and signed anew, as only it can."""
    changed = dataclasses.replace(one, **changes)
    return receipt.loads(changed.to_bytes(stage.identity(one.party)))


def with_leg(one, at, **changes):
    legs = list(one.legs)
    legs[at] = dataclasses.replace(legs[at], **changes)
    return {"legs": legs}


def changed_entry(data, index, at=CORE.size - 1):
    """The chain with a bit of message `index` changed: of its tag by default."""
    place = index * ENTRY_BYTES + at
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


# -- honest ----------------------------------------------------------------------------------------


def test_all_receipts_agree_on_every_message(kept):
    found = compare(list(kept.receipts.values()))
    assert found.findings == []
    sent = {}
    for source, destination, frame in kept.wire.frames:
        noted = frame.kind is Kind.DATA or (frame.kind is Kind.HELLO and frame.step >= GREETINGS)
        sent[source, destination] = sent.get((source, destination), 0) + noted
    assert found.agreed == sent
    assert all(count >= 4 for count in sent.values())  # a commitment and what was heard, in each run


def test_each_is_signed_for_by_everybody(kept):
    for name, one in kept.receipts.items():
        assert one.code is None
        assert [e.run for e in one.entered] == [0, 1]
        assert [set(leg.peers) for leg in one.legs] == [set(stage.NAMES) - {name}] * 2
        assert set(one.agreement.signatures) == set(stage.NAMES)
        assert compare([one]).findings == []
        assert kept.reports[name]["receipt"] == str(kept.folder / f"{name}.receipt")


def test_bytes_are_those_declared(kept):
    """32 bytes a peer at the join, CLAIM_BYTES a peer and inference."""
    halves = [len(f.payload) for _, _, f in kept.wire.frames if f.kind is Kind.HELLO and f.step == PAIRS]
    words = [len(f.payload) for _, _, f in kept.wire.frames if f.kind is Kind.DONE]
    pairs = len(stage.NAMES) * (len(stage.NAMES) - 1)
    assert halves == [32] * pairs
    assert words == [CLAIM_BYTES] * (2 * pairs)
    assert CLAIM_BYTES == 160


def test_no_contents_and_no_plain_hash_of_any(kept):
    """Whoever knows the mask, as the helper does, could search for a value by its hash."""
    data = b"".join((kept.folder / f"{name}.receipt").read_bytes() for name in stage.NAMES)
    searched = 0
    for _, _, frame in kept.wire.frames:
        if frame.kind is not Kind.DATA:
            continue
        for content in (frame.payload, frame.payload[:-64]):  # with and without a signature behind
            if len(content) < 8:
                continue
            searched += 1
            assert content[:64] not in data
            for plain in (hashlib.sha256, hashlib.blake2b, hashlib.sha512, blake3):
                assert plain(content).digest()[:32] not in data
    assert searched > 100


def test_no_secret_of_an_opening_is_in_a_receipt(kept):
    data = b"".join((kept.folder / f"{name}.receipt").read_bytes() for name in stage.NAMES)
    for name in (*stage.INPUTS.values(), stage.E1):
        path = kept.folder / f"{name}.opening"
        assert path.stat().st_mode & 0o777 == 0o600
        shown = opening.load(path)
        for secret in (*shown.keys.values(), *shown.inputs.values(), *shown.signatures.values()):
            assert secret not in data
            assert secret.hex() not in repr(shown)
    assert not (kept.folder / "helper.opening").exists()
    assert not (kept.folder / "patient.opening").exists()


def test_equal_contents_have_other_tags_at_other_pairs_places_and_directions():
    """So nobody outside of a pair can tell from its tags that it heard the same."""
    session = bytes(32)
    keys = [TagKey.of({"a": bytes([k]) * 32, "b": bytes(32)}, session) for k in range(2)]
    frame = Frame(Kind.DATA, Phase.ONLINE, 3, 4, b"masked value")
    tags = {key.tag(index, sender, frame) for key in keys for index in range(3) for sender in "ab"}
    assert len(tags) == 12
    swapped = TagKey.of({"b": bytes(32), "a": bytes(32)}, session)
    assert swapped.tag(0, "a", frame) == keys[0].tag(0, "a", frame)
    for other in (dataclasses.replace(frame, step=5), dataclasses.replace(frame, payload=b"masked valuf")):
        assert keys[0].tag(0, "a", other) != keys[0].tag(0, "a", frame)
    assert TagKey.of({"a": bytes(32), "c": bytes(32)}, session).expose() != keys[0].expose()
    assert "hidden" in repr(keys[0])


# -- afterwards ------------------------------------------------------------------------------------


def test_every_byte_is_signed(kept):
    data = (kept.folder / "patient.receipt").read_bytes()
    for at in range(0, len(data), 97):
        with pytest.raises(IntegrityError):
            receipt.loads(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    for size in (0, 1, 100, len(data) - 1):
        with pytest.raises(IntegrityError):
            receipt.loads(data[:size])
    with pytest.raises(IntegrityError):
        receipt.loads(data + b"\0")


# What a party says of itself alone: nobody else can know better.
OWN_WORD = {"started": 5, "joint": bytes(32), "code": "PI201", "culprit": "helper", "missing": ["helper"]}


def changes_of(one):
    """A change of each field, signed anew by the receipt's own party."""
    peer = next(iter(one.legs[0].sent))
    other = "helper" if one.party != "helper" else "patient"
    document = one.agreement.document.replace(b"care", b"sale")
    moved = dataclasses.replace(one.agreement, document=document)
    unsigned = {**one.agreement.signatures, other: bytes(64)}
    leg, entered = one.legs[0], one.entered[0]
    lied = engage.statement({"blood": bytes(32)})
    return {
        "party": {"party": other},
        "agreement": {"agreement": moved},
        "agreement.signatures": {"agreement": dataclasses.replace(one.agreement, signatures=unsigned)},
        "certificates": {"certificates": {**one.certificates, other: one.certificates[one.party]}},
        "keys": {"keys": {**one.keys, peer: bytes(32)}},
        "entered": {"entered": [dataclasses.replace(entered, said={**entered.said, LIAR: lied})]},
        "entered.run": {"entered": [dataclasses.replace(entered, run=7)]},
        "legs, turned": {"legs": one.legs[::-1]},
        "legs.sent": with_leg(one, 0, sent={**leg.sent, peer: changed_entry(leg.sent[peer], 0)}),
        "legs.sent, left out": with_leg(one, 0, sent={**leg.sent, peer: leg.sent[peer][:-ENTRY_BYTES]}),
        "legs.received": with_leg(
            one, 0, received={**leg.received, peer: changed_entry(leg.received[peer], 0)}
        ),
        "legs.own": with_leg(one, 0, own={**leg.own, peer: changed_entry(leg.own[peer], 0, 5)}),
        "legs.peers": with_leg(one, 0, peers={**leg.peers, peer: changed_entry(leg.peers[peer], 0, 5)}),
        "legs, left out": {"legs": one.legs[:1]},
    } | {field: {field: value} for field, value in OWN_WORD.items()}


def test_every_field_has_a_change_here(kept):
    tried = {name.partition(".")[0].partition(",")[0] for name in changes_of(kept.receipts["patient"])}
    assert tried == {field.name for field in dataclasses.fields(receipt.Receipt)}


@pytest.mark.parametrize("name", ["startup", "helper"])
def test_a_change_that_its_party_signs_anew(kept, name):
    """Refused at once, or its party is convicted by what it signed before: never believed."""
    one = kept.receipts[name]
    others = [r for n, r in kept.receipts.items() if n != name]
    for what, change in changes_of(one).items():
        changed = dataclasses.replace(one, **change)
        data = changed.to_bytes(stage.identity(name))
        if what in OWN_WORD:
            assert compare([receipt.loads(data), *others]).findings == []
            continue
        try:
            found = compare([receipt.loads(data), *others]).findings
        except IntegrityError:
            continue
        except ConfigError:
            assert what == "agreement"
            continue
        assert found, what
        assert (found[0].suspects, found[0].proven_by) == ((name,), name), what


@pytest.mark.parametrize("sent", [True, False])
@pytest.mark.parametrize("leg", [0, 1])
def test_diverged_first_at(kept, sent, leg):
    """The earliest message that differs is named, by its number in the chain of the pair."""
    s, r = PAIR
    name, peer = (s, r) if sent else (r, s)
    one = kept.receipts[name]
    before = sum(len(k.sent[r]) // ENTRY_BYTES for k in kept.receipts[s].legs[:leg])
    side = "sent" if sent else "received"
    chains = dict(getattr(one.legs[leg], side))
    chains[peer] = changed_entry(changed_entry(chains[peer], 2), 1)
    lied = again(one, **with_leg(one, leg, **{side: chains}))
    others = [r for n, r in kept.receipts.items() if n != name]
    for given in ([lied, kept.receipts[peer]], [kept.receipts[peer], lied], [*others, lied]):
        found = compare(given).findings[0]
        assert found.message == before + 1
        assert f"{s} -> {r} diverged first at message {before + 1} (contents)" in found.text
        assert (found.suspects, found.proven_by) == ((name,), name)


def test_a_receipt_alone_shows_what_its_own_party_signed(kept):
    one = kept.receipts["startup"]
    chains = {**one.legs[0].sent, "helper": changed_entry(one.legs[0].sent["helper"], 0)}
    (found, *_) = compare([again(one, **with_leg(one, 0, sent=chains))]).findings
    assert (found.suspects, found.proven_by) == (("startup",), "startup")


def test_who_drops_its_own_signature_is_convicted_by_the_copy_at_its_peer(kept):
    one = kept.receipts["startup"]
    chains = {**one.legs[1].sent, "helper": changed_entry(one.legs[1].sent["helper"], 0)}
    own = {peer: claim for peer, claim in one.legs[1].own.items() if peer != "helper"}
    peers = {peer: claim for peer, claim in one.legs[1].peers.items() if peer != "helper"}
    lied = again(one, **with_leg(one, 1, sent=chains, own=own, peers=peers))
    assert compare([lied]).findings == []  # alone it can say what it likes
    (found, *_) = compare([lied, kept.receipts["helper"]]).findings
    assert (found.suspects, found.proven_by) == (("startup",), "startup")


def unsigned(one, leg=1):
    """As a session leaves a receipt that ends before anything of this inference was signed."""
    return with_leg(one, leg, own={}, peers={})


def test_nothing_is_proven_where_nothing_was_signed(kept):
    s, r = PAIR
    first, second = kept.receipts[s], kept.receipts[r]
    first = again(first, **unsigned(first))
    cut = dataclasses.replace(second, **unsigned(second))
    chains = {**cut.legs[1].received, s: changed_entry(cut.legs[1].received[s], 1)}
    lied = again(second, **with_leg(cut, 1, received=chains))
    (found,) = compare([first, lied]).findings
    assert (found.suspects, found.proven_by) == (PAIR, None)
    assert "nothing was signed yet" in found.text
    # what was sent last may not have arrived; more than was sent cannot have
    short = {**cut.legs[1].received, s: cut.legs[1].received[s][:-ENTRY_BYTES]}
    assert compare([first, again(second, **with_leg(cut, 1, received=short))]).findings == []
    more = {**cut.legs[1].received, s: cut.legs[1].received[s] * 2}
    (found,) = compare([first, again(second, **with_leg(cut, 1, received=more))]).findings
    assert "received, never sent" in found.text


def reclaimed(one, peer, leg, **chains):
    """Another account, and a claim that goes with it: what a liar does during the run."""
    lied = dataclasses.replace(one, **with_leg(one, leg, **chains))
    before = Claim.parse(one.legs[leg].own[peer])
    sent = list(lied.marks(peer, sent=True))[leg]
    received = list(lied.marks(peer, sent=False))[leg]
    claim = dataclasses.replace(before, sent=sent, received=received)
    message = claim.signed(one.agreement.digest, leg, one.party, peer, one.keys[peer])
    return lied, dataclasses.replace(claim, signature=stage.identity(one.party).sign(message)).pack()


def test_both_stand_by_what_they_signed(kept):
    s, r = PAIR
    first, second = kept.receipts[s], kept.receipts[r]
    chains = {**second.legs[1].received, s: changed_entry(second.legs[1].received[s], 1)}
    lied, claim = reclaimed(second, s, 1, received=chains)
    lied = again(lied, **with_leg(lied, 1, own={**lied.legs[1].own, s: claim}))
    told = again(first, **with_leg(first, 1, peers={**first.legs[1].peers, r: claim}))
    found = [f for f in compare([told, lied]).findings if f.message is not None]
    assert found[0].suspects == PAIR
    assert found[0].proven_by is None
    assert "both stand by what they signed" in found[0].text
    assert compare([told]).findings[0].suspects == (s, r)  # the other's signed account alone


def test_two_receipts_or_two_statements_of_one_party(kept):
    one = kept.receipts["patient"]
    (found,) = compare([one, again(one, started=one.started + 1)]).findings
    assert (found.suspects, found.proven_by) == (("patient",), "patient")
    content = engage.statement({"blood": bytes(32)})
    context = b"run:" + one.agreement.digest + bytes(8)
    signed = b"privinfer/alike/1:" + LIAR.encode() + b":" + context + hashlib.sha256(content).digest()
    entered = list(one.entered)
    entered[0] = dataclasses.replace(
        entered[0],
        said={**entered[0].said, LIAR: content},
        signatures={**entered[0].signatures, LIAR: stage.identity(LIAR).sign(signed)},
    )
    (found,) = compare([again(one, entered=entered), kept.receipts["helper"]]).findings
    assert (found.suspects, found.proven_by) == ((LIAR,), LIAR)


def test_receipts_of_two_joins(kept, tmp_path):
    played(tmp_path)
    with pytest.raises(ConfigError, match="different joins"):
        compare([kept.receipts["patient"], read(tmp_path)["patient"]])
    with pytest.raises(ConfigError, match="another join"):
        Audit(compare([kept.receipts["patient"]]), opening.load(tmp_path / "hospital.opening"))


# -- openings --------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [0, 1])
@pytest.mark.parametrize("name", list(stage.INPUTS))
def test_an_input_opens(kept, name, run):
    owner = stage.INPUTS[name]
    values = kept.inputs[run][owner][name]
    shown = kept.opened(owner)
    wanted = {e for e in (stage.E1, stage.E2) if e != owner}
    for receipts in (list(kept.receipts.values()), [kept.receipts[owner]]):
        found = Audit(compare(receipts), shown).input(name, values, run)
        assert found["masked"].keys() == wanted
        assert all("derives from these values" in text for text in found["masked"].values())
    found = Audit(compare([kept.receipts["helper"]]), shown).input(name, values, run)
    assert all("not checked" in text for text in found["masked"].values())
    for other in (values + 2.0**-16, values[:1], kept.inputs[1 - run][owner][name], values[::-1]):
        with pytest.raises(IntegrityError) as caught:
            Audit(compare(receipts), shown).input(name, other, run)
        assert caught.value.culprit == owner


def test_openings_that_do_not_fit(kept):
    shown, everything = kept.opened(LIAR), compare(list(kept.receipts.values()))
    values = kept.inputs[0][LIAR]["blood"]
    with pytest.raises(ConfigError, match="which run"):
        Audit(everything, shown).input("blood", values)
    with pytest.raises(ConfigError, match="owns no input"):
        Audit(everything, shown).input("dna", values, 0)
    with pytest.raises(ConfigError, match="not the model owner's"):
        Audit(everything, shown).weights(stage.model())
    other = dataclasses.replace(shown, keys={**shown.keys, "startup": bytes(32)})
    with pytest.raises(IntegrityError, match="another key") as caught:
        Audit(everything, other).input("blood", values, 0)
    assert caught.value.culprit == LIAR
    bare = dataclasses.replace(shown, signatures={})
    with pytest.raises(IntegrityError, match="does not derive"):
        Audit(everything, bare).input("blood", values, 0)


def test_weights_open(kept):
    shown, everything = kept.opened(stage.E1), compare(list(kept.receipts.values()))
    found = Audit(everything, shown).weights(stage.model())
    assert found["masked"].keys() == {"hospital", "helper"}
    assert all("derives from these weights" in text for text in found["masked"].values())
    with pytest.raises(IntegrityError) as caught:
        Audit(everything, shown).weights(stage.model(1))
    assert caught.value.culprit == stage.E1
    with pytest.raises(IntegrityError):
        Audit(everything, dataclasses.replace(shown, weights=bytes(32))).weights(stage.model())


def test_who_commits_to_one_thing_and_computes_with_another(tmp_path, monkeypatch):
    """The run cannot see it, the audit does: the commitment opens, what was sent does not derive from it."""
    honest = engage.commit
    other = stage.rows(seed=9)[LIAR]["blood"]

    def lying(private, session, run):
        if "blood" not in private.inputs:
            return honest(private, session, run)
        brought = dict(private.inputs)
        private.inputs.update({"blood": other})
        try:
            return honest(private, session, run)
        finally:
            private.inputs.update(brought)

    monkeypatch.setattr(engage, "commit", lying)
    inputs = stage.rows(seed=1)
    assert not any(o.error for o in played(tmp_path, inputs=inputs).values())
    everything, shown = compare(list(read(tmp_path).values())), opening.load(tmp_path / f"{LIAR}.opening")
    assert digest_of(other) != digest_of(inputs[LIAR]["blood"])
    with pytest.raises(IntegrityError, match="not the input that was committed to"):
        Audit(everything, shown).input("blood", inputs[LIAR]["blood"])
    with pytest.raises(IntegrityError, match="does not derive from these values") as caught:
        Audit(everything, shown).input("blood", other)
    assert caught.value.culprit == LIAR


def test_a_run_in_chunks_opens_as_a_whole(tmp_path, monkeypatch):
    program = compile_program(stage.model().architecture)
    monkeypatch.setattr(roles, "CHUNK_BYTES", roles.footprint(program, 2))
    inputs = stage.rows(5)
    outcomes = played(tmp_path, inputs=inputs)
    assert not any(o.error for o in outcomes.values())
    assert outcomes["patient"].report["chunks"] == 3
    found = read(tmp_path)
    assert [bool(leg.own) for leg in found["helper"].legs] == [True] * 3
    values = inputs[LIAR]["blood"]
    audit = Audit(compare(list(found.values())), opening.load(tmp_path / f"{LIAR}.opening"))
    masked = audit.input("blood", values)["masked"]
    assert all("derives from these values" in text for text in masked.values())
    # a word lies in front of the claims of those who say how many rows are left
    assert Claim.parse(found["helper"].legs[0].own["patient"]).word == (3).to_bytes(4, "little")
    values = values.copy()
    values[4, 0] += 1
    with pytest.raises(IntegrityError):
        audit.input("blood", values)


def test_dealt_ahead(tmp_path):
    """Dealing is in the receipt too; masks that were dealt before the data came are not bound to them."""
    keepers = ("hospital", "dna_company", "laboratory", "startup")

    def store(name):
        return Store(tmp_path / name, BASE.digest(), name, 1 << 30) if name in keepers else None

    dealing, running = tmp_path / "dealing", tmp_path / "running"
    dealing.mkdir()
    running.mkdir()
    deal = played(dealing, stores=store, runs=0, act=lambda name, party: party.deal(2))
    assert not any(o.error for o in deal.values())
    assert len(read(dealing)["helper"].legs) == 2
    assert compare(list(read(dealing).values())).findings == []
    inputs = stage.rows()
    assert not any(o.error for o in played(running, stores=store, inputs=inputs).values())
    found = compare(list(read(running).values()))
    assert found.findings == []
    assert [e.dealt for e in found.receipts["patient"].entered] == ["ahead"]
    shown = Audit(found, opening.load(running / f"{LIAR}.opening")).input("blood", inputs[LIAR]["blood"])
    assert shown["commitment"] == "opens to these values"
    assert all("dealt before" in text for text in shown["masked"].values())
    weights = Audit(found, opening.load(running / "startup.opening")).weights(stage.model())
    assert all("earlier join" in text for text in weights["masked"].values())


# -- during a session ------------------------------------------------------------------------------


def lying(change, kind, step=None, to=None):
    def hook(source, destination, frame):
        if source != LIAR:
            return frame
        if frame.kind is kind and step in (None, frame.step) and to in (None, destination):
            return stage.changed(frame, payload=change(bytes(frame.payload)))
        return None if frame.kind is Kind.ABORT else frame

    return hook


@pytest.mark.parametrize("at", [0, 40, 50, 90, 96, 159])
def test_a_flipped_bit_in_a_claim(tmp_path, at):
    def flip(data):
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    everybody(
        played(tmp_path, hook=lying(flip, Kind.DONE)), ProtocolViolation, LIAR, "signature", but=(LIAR,)
    )
    for name in set(stage.NAMES) - {LIAR}:
        one = receipt.load(tmp_path / f"{name}.receipt")
        assert (one.code, one.culprit) == ("PI202", LIAR)
        assert not any(LIAR in leg.peers for leg in one.legs)  # no evidence: anybody could have made it


@pytest.mark.parametrize("size", [0, 1, 159, 177, 300])
def test_a_claim_of_another_size(tmp_path, size):
    hook = lying(lambda data: (data + bytes(200))[:size], Kind.DONE)
    everybody(played(tmp_path, hook=hook), ProtocolViolation, LIAR, "malformed account", but=(LIAR,))


@pytest.mark.parametrize("size", [0, 31, 33])
def test_half_a_key_of_another_size(tmp_path, size):
    hook = lying(lambda data: (data + data)[:size], Kind.HELLO, PAIRS)
    everybody(played(tmp_path, hook=hook), ProtocolViolation, LIAR, "half of a key", but=(LIAR,))


def test_another_half_than_the_own_tags_use(tmp_path):
    """Its tags fit at nobody: whoever it told another half than it uses finds out at the first claim."""
    hook = lying(lambda data: bytes(32), Kind.HELLO, PAIRS, to="helper")
    outcomes = played(tmp_path, hook=hook)
    assert set(stage.culprits(outcomes, but=(LIAR,)).values()) == {LIAR}


def test_a_false_account_is_named_and_kept_as_evidence(tmp_path, monkeypatch):
    """Signed by the liar itself: it stands in its peer's receipt and contradicts that."""
    honest = Transcript.claims

    def false(self, number, word):
        found = honest(self, number, word)
        if self.name == LIAR:
            claim = Claim.parse(found["startup"])
            moved = Mark(bytes(32), claim.sent.count, claim.sent.size)
            claim = dataclasses.replace(claim, sent=moved)
            message = claim.signed(self._session, number, LIAR, "startup", self.keys["startup"].check())
            found["startup"] = dataclasses.replace(claim, signature=self._sign(message)).pack()
        return found

    monkeypatch.setattr(Transcript, "claims", false)
    outcomes = played(tmp_path)
    error = outcomes["startup"].error
    assert (type(error), error.culprit) == (ProtocolViolation, LIAR)
    assert "another account" in error.message
    victim, liar = (receipt.load(tmp_path / f"{n}.receipt") for n in ("startup", LIAR))
    assert (victim.code, victim.culprit) == ("PI202", LIAR)
    assert Claim.parse(victim.legs[0].peers[LIAR]).sent.head == bytes(32)
    assert compare([victim]).findings[0].suspects == ("startup", LIAR)
    found = compare([victim, liar]).findings
    assert (found[0].suspects, found[0].proven_by) == ((LIAR,), LIAR)


def test_a_message_before_all_have_joined_is_in_no_receipt_and_is_refused(tmp_path):
    sent = []

    def hook(source, destination, frame):
        if source == LIAR and destination == "startup" and frame.kind is Kind.HELLO and not sent:
            sent.append(1)
            channel = stage._pairs().index((f"owner:{LIAR}", roles.E1))
            early = Frame(Kind.DATA, Phase.OFFLINE, channel, 0, b"early")
            play.hub._endpoints["startup"]._deliver(LIAR, early)
        return frame

    play = stage.Play(base=BASE, receipts=tmp_path, hook=hook)
    outcomes = play.run()
    error = outcomes["startup"].error
    assert (type(error), error.culprit) == (ProtocolViolation, LIAR)


def test_a_receipt_of_a_session_that_failed(tmp_path):
    def hook(source, destination, frame):
        gone = source == LIAR and frame.kind is Kind.DATA and frame.phase == Phase.ONLINE
        return None if gone else frame

    base = stage.manifest(deadline=1.0, terms=BASE.terms)
    outcomes = played(tmp_path, base=base, hook=hook, deadline=1.0)
    assert all(isinstance(o.error, TransportError) for o in outcomes.values())
    found = read(tmp_path)
    assert {one.code for one in found.values()} == {"PI201"}
    assert {one.culprit for one in found.values()} == {LIAR}
    for one in found.values():
        assert [e.run for e in one.entered] == [0]
        assert any(leg.sent for leg in one.legs)
    assert [leg.own for leg in found["startup"].legs] == [{}]
    # The owner had done its part and said so: two accounts of what the evaluators got, and no way to tell.
    findings = compare(list(found.values())).findings
    assert {f.suspects for f in findings} == {(LIAR, "startup"), (LIAR, "hospital")}
    assert all("sent, never received" in f.text and f.proven_by is None for f in findings)


def test_nothing_is_agreed_to_no_receipt(tmp_path):
    """Before the agreement there is nothing to show, and no file."""
    other = stage.manifest(deadline=4.0, terms=BASE.terms)
    outcomes = played(tmp_path, manifests={LIAR: other})
    assert all(o.error is not None for o in outcomes.values())
    assert list(tmp_path.iterdir()) == []


def test_sessions_without_receipts_say_as_much_as_before(tmp_path):
    wire = Wire()
    outcomes = stage.Play(hook=wire).run()
    assert not any(o.error for o in outcomes.values())
    assert {len(f.payload) for _, _, f in wire.frames if f.kind is Kind.DONE} == {0}
    assert not any(f.kind is Kind.HELLO and f.step == PAIRS for _, _, f in wire.frames)
    assert "receipt" not in outcomes["patient"].report


@pytest.mark.parametrize("late", range(3))
@pytest.mark.parametrize("turned", [False, True])
def test_nobody_can_make_an_honest_receipt_contradict_its_own_signature(late, turned):
    """A message more than the peer signs for, before this party signs or after: its own claim holds."""
    frame = Frame(Kind.DATA, Phase.ONLINE, 0, 0, b"x")
    a, b = stage.E1, stage.E2

    def verify(party, message, signature):
        stage.identity(party).public.verify(message, signature)

    first = Transcript(a, (b,), bytes(32), stage.identity(a).sign, verify)
    second = Transcript(b, (a,), bytes(32), stage.identity(b).sign, verify)
    first.take_half(b, second.halves[a])
    second.take_half(a, first.halves[b])
    second.sent(a, frame)
    first.received(b, frame)
    theirs = second.claims(0, b"")[a]
    events = [lambda: first.claims(0, b""), lambda: first.ended(b, 0, theirs)]
    if turned:
        events.reverse()
    events.insert(late, lambda: first.received(b, frame))
    for event in events:
        event()
    leg = first.legs()[0]
    mark = begin(bytes(32), b, a)
    for entry in Entry.split(leg.received[b]):
        mark = extend(mark, entry.core, entry.fields[4])
    assert Claim.parse(leg.own[b]).received == mark
    if late == 0:  # more than the peer signed for
        with pytest.raises(ProtocolViolation) as caught:
            first.compare({b})
        assert caught.value.culprit == b
    else:
        first.compare({b})
        assert len(first.legs()) == 2


def test_who_keeps_none_still_signs_for_the_others(tmp_path):
    """A session asks all for receipts; a party that names no file has none and says what the others need."""
    kept = Party.__init__

    def without(self, manifest, name, *arguments, **given):
        kept(self, manifest, name, *arguments, **(given | ({"receipt": None} if name == LIAR else {})))

    with mock.patch.object(Party, "__init__", without):
        outcomes = played(tmp_path, runs=2, inputs=[stage.rows(), stage.rows()])
    assert not any(o.error for o in outcomes.values())
    assert "receipt" not in outcomes[LIAR].report
    found = [receipt.load(tmp_path / f"{name}.receipt") for name in stage.NAMES if name != LIAR]
    assert not (tmp_path / f"{LIAR}.receipt").exists()
    assert not (tmp_path / f"{LIAR}.opening").exists()
    assert all(LIAR in leg.peers for one in found for leg in one.legs)
    assert compare(found).findings == []


# -- what is refused before anything is sent -------------------------------------------------------


def test_refused_before_the_join(tmp_path, monkeypatch):
    path = tmp_path / "a.receipt"
    evidence.check(BASE, path)
    with pytest.raises(ConfigError, match="keeps no receipts"):
        evidence.check(stage.manifest(), path)
    with pytest.raises(ConfigError, match="cannot write"):
        evidence.check(BASE, tmp_path / "none" / "a.receipt")
    assert evidence.beside(tmp_path / "a.cbor") == tmp_path / "a.opening"
    assert evidence.beside(tmp_path / "a.receipt.2") == tmp_path / "a.receipt.2.opening"
    assert evidence.beside(tmp_path / "a.opening") == tmp_path / "a.opening.opening"
    for taken in ("a.receipt", "a.opening"):
        (tmp_path / taken).touch()
        with pytest.raises(ConfigError, match="exists already"):
            evidence.check(BASE, path)
        (tmp_path / taken).unlink()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="blake3"):
        evidence.check(BASE, None)


def test_a_full_receipt_begins_no_run(monkeypatch):
    made = Transcript("a", ("b",), bytes(32), lambda m: bytes(64), lambda *a: None)
    made.check_room()
    monkeypatch.setattr("privinfer.runtime.transcript.MAX_ENTRIES", 4)
    frame = Frame(Kind.DATA, Phase.ONLINE, 0, 0, b"x")
    with pytest.raises(ProtocolViolation, match="before all had joined"):
        made.received("b", frame)
    made.take_half("b", bytes(32))
    for _ in range(4):
        made.received("b", frame)
    with pytest.raises(ConfigError, match="full"):
        made.check_room()
    with pytest.raises(ProtocolViolation) as caught:
        made.received("b", frame)
    assert caught.value.culprit == "b"
    assert isinstance(made.legs()[0], Leg)
    assert len(list(Entry.split(made.legs()[0].received["b"]))) == 4
