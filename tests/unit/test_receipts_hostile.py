"""Receipts and openings written by strangers: a typed error or an honest answer, in bounded memory."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privinfer.errors import IntegrityError, PrivinferError, ProtocolViolation
from privinfer.runtime.audit import Audit
from privinfer.session import canonical, opening, receipt
from privinfer.session.account import summary
from privinfer.session.compare import compare
from privinfer.session.receipt import CORE, ENTRY_BYTES, Entry, Mark, begin, extend
from privinfer.session.terms import Terms
from tests.adversarial import stage

BASE = stage.manifest(terms=Terms(receipts=True))


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    outcomes = stage.Play(base=BASE, receipts=folder).run()
    assert not any(o.error for o in outcomes.values())
    return folder


@pytest.fixture(scope="module")
def one(kept):
    return receipt.load(kept / "patient.receipt")


def everything(data):
    """What an auditor does with a file; whatever it holds, only errors of ours come out."""
    try:
        found = compare([receipt.loads(data)])
        summary(found)
        Audit(found, opening.Opened(bytes(32), "patient", {}))
    except PrivinferError:
        return
    raise AssertionError("a stranger's opening fitted")


leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(1 << 64), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=64)
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def paths(value, so_far=()):
    yield so_far
    if isinstance(value, dict):
        for key, item in value.items():
            yield from paths(item, (*so_far, key))
    elif isinstance(value, list):
        for k, item in enumerate(value):
            yield from paths(item, (*so_far, k))


def put(value, path, new):
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(value[path[0]], path[1:], new)
    return copy


def signed(body):
    """By the party whose identity this test has: as a stranger signs what it made up."""
    digest = receipt.hashlib.sha256(body).digest()
    signature = stage.identity("patient").sign(b"privinfer/receipt/1:" + digest)
    return canonical.dumps({"format": receipt.FORMAT, "body": body, "signature": signature})


@settings(max_examples=150)
@given(data=st.data())
def test_any_field_of_the_body_replaced(one, data):
    body = canonical.loads(one.body(), "body", None, receipt.MAX_BYTES)
    path = data.draw(st.sampled_from(list(paths(body))))
    everything(signed(canonical.dumps(put(body, path, data.draw(values)))))


@settings(max_examples=150)
@given(data=st.data())
def test_any_field_of_the_agreement_replaced_and_signed_by_all(one, data):
    """A stranger can make up all parties, keys and signatures: then anything may stand in the document."""
    document = canonical.loads(one.agreement.document, "document")
    path = data.draw(st.sampled_from(list(paths(document))))
    moved = dataclasses.replace(
        one.agreement, document=canonical.dumps(put(document, path, data.draw(values)))
    )
    moved = dataclasses.replace(
        moved, signatures={name: stage.identity(name).sign(moved.signed) for name in stage.NAMES}
    )
    everything(
        dataclasses.replace(one, agreement=moved, entered=[], legs=[]).to_bytes(stage.identity("patient"))
    )


@given(st.binary(max_size=200) | values.map(canonical.dumps))
def test_anything_at_all(data):
    with pytest.raises(IntegrityError):
        receipt.loads(data)


@given(st.binary(max_size=200) | values.map(canonical.dumps))
def test_any_opening(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("opening") / "x.opening"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(IntegrityError):
        opening.load(path)


def test_how_many_things_is_bounded():
    """A map, list or number takes one byte there and a hundred here."""

    def lists(count):
        inner = b"\x99" + (60_000).to_bytes(2, "big") + b"\x80" * 60_000
        return bytes([0x80 + count]) + inner * count

    assert canonical.loads(lists(4), "it") == [[[]] * 60_000] * 4
    with pytest.raises(ProtocolViolation):
        canonical.loads(lists(5), "it")


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 1 << 40), st.binary(min_size=32, max_size=32))))
def test_chains_and_entries(messages):
    """Heads tell any two histories apart, and entries come back as they went in."""
    mark, data, heads = begin(bytes(32), "a", "b"), b"", set()
    for kind, size, tag in messages:
        core = CORE.pack(kind, 1, 2, 3, size, tag)
        mark = extend(mark, core, size)
        data += core + (7).to_bytes(8, "little")
        heads.add(mark.head)
    assert len(heads) == len(messages) == mark.count
    assert mark.size == sum(size for _, size, _ in messages)
    assert Mark.parse(mark.pack()) == mark
    assert [(e.fields[0], e.fields[4], e.fields[5], e.time) for e in Entry.split(data)] == [
        (*message, 7) for message in messages
    ]
    assert len(data) == ENTRY_BYTES * len(messages)
    assert begin(bytes(32), "b", "a") != begin(bytes(32), "a", "b")
