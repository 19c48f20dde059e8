"""Consents and revocations as documents: what is signed comes back, anything else is refused by name."""

from __future__ import annotations

import dataclasses
import datetime as dt
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privinfer.errors import ConfigError, ConsentError, IntegrityError, ProtocolViolation
from privinfer.session import Identity, canonical
from privinfer.session import consent as documents
from privinfer.session.consent import CONSENT, Consent, Revocation, check, for_session
from tests.adversarial import stage
from tests.support import consents as kit

PATIENT = stage.identity("patient")
BASE = kit.consent()
SIGNED = kit.signed(BASE)
OTHER = Identity.generate("patient", days=2)  # the same name, another key

names = st.from_regex(r"[a-z][a-z0-9_-]{0,31}", fullmatch=True)
digests = st.binary(min_size=32, max_size=32)
texts = st.text(st.characters(codec="utf-8", categories=("L", "N", "P")), min_size=1, max_size=40)
made = st.builds(
    Consent,
    id=st.binary(min_size=16, max_size=16),
    patient=st.just("patient"),
    certificate=st.just(bytes.fromhex(PATIENT.fingerprint)),
    inputs=st.dictionaries(texts, names, min_size=1, max_size=5),
    architecture=digests,
    weights=digests,
    purpose=texts,
    receivers=st.dictionaries(names, digests, min_size=1, max_size=3),
    not_before=st.integers(0, 10**9),
    until=st.integers(10**9 + 1, 253402300799),
    uses=st.integers(1, 1_000_000),
    rows=st.integers(1, 1 << 31),
)


@settings(max_examples=20)
@given(made)
def test_what_is_signed_comes_back(one: Consent) -> None:
    assert Consent.read(one.sign(PATIENT)) == one


@given(st.binary(min_size=16, max_size=16), st.integers(0, 253402300799))
def test_a_revocation_comes_back(number: bytes, time: int) -> None:
    one = Revocation(number, "patient", bytes.fromhex(PATIENT.fingerprint), time)
    assert Revocation.read(one.sign(PATIENT)) == one


@settings(max_examples=60)
@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
def test_no_changed_byte_is_accepted(at: int, change: int) -> None:
    data = bytearray(SIGNED)
    data[at] ^= change
    with pytest.raises((ProtocolViolation, ConsentError)) as e:
        Consent.read(bytes(data), "patient")
    assert e.value.culprit == "patient"


@given(st.binary(max_size=200) | st.integers(0, len(SIGNED) - 1).map(lambda n: SIGNED[:n]))
def test_strangers_bytes_are_refused(data: bytes) -> None:
    for kind in (Consent, Revocation):
        with pytest.raises(ProtocolViolation):
            kind.read(data)


def resigned(identity: Identity = PATIENT, form: str = CONSENT, drop: str = "", **changes: Any) -> bytes:
    """A consent with other fields, and a good signature."""
    fields = {"format": CONSENT, **{n: getattr(BASE, n) for n in Consent.__slots__}} | changes
    fields.pop(drop, None)
    inner = canonical.dumps(fields)
    return canonical.dumps(
        {
            "document": inner,
            "certificate": identity.certificate_pem,
            "signature": identity.sign(form.encode() + b":" + inner),
        }
    )


IMPOSSIBLE = {
    "id": [b"", bytes(15), "x", None],
    "patient": ["", "Patient", 1],
    "certificate": [bytes(31), None],
    "inputs": [
        {},
        [],
        {"x": 1},
        {"x": "A"},
        {"": "hospital"},
        {"a\nb": "hospital"},
        {str(k): "a" for k in range(257)},
    ],
    "architecture": [bytes(31), "0" * 64],
    "weights": [bytes(33), None],
    "purpose": ["", "a\nb", "x" * 201, b"care"],
    "receivers": [{}, {"patient": bytes(31)}, {"P": bytes(32)}, {"patient": "x"}, [bytes(32)]],
    "not_before": [-1, 1.0, True, 253402300800],
    "until": [BASE.not_before, 253402300800, None],
    "uses": [0, -1, 1_000_001, True, 1.5],
    "rows": [0, (1 << 31) + 1, False],
    "format": ["privinfer/consent/2", "privinfer/revocation/1", None],
    "more": [1],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [(f, v) for f, values in IMPOSSIBLE.items() for v in values],
    ids=[
        f"{f}-{k}" for f, values in IMPOSSIBLE.items() for k in range(len(values))
    ],  # some are today's times
)
def test_an_impossible_field_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ProtocolViolation, match=rf"{field}|another version") as e:
        Consent.read(resigned(**{field: value}), "patient")
    assert e.value.culprit == "patient"


@pytest.mark.parametrize("field", ["format", *Consent.__slots__])
def test_a_missing_field_is_refused(field: str) -> None:
    with pytest.raises(ProtocolViolation, match=f"consent has no proper {field}"):
        Consent.read(resigned(drop=field), "patient")


def test_whose_signature_it_is() -> None:
    for liar in (OTHER, stage.identity("hospital")):
        with pytest.raises(ConsentError, match="signed by another key than it names"):
            Consent.read(resigned(liar), "patient")
        with pytest.raises(ConfigError, match="not the one of patient"):
            BASE.sign(liar)
    with pytest.raises(ConsentError, match="the signature of the consent is wrong"):
        Consent.read(resigned(form="privinfer/revocation/1"), "patient")
    envelope = canonical.loads(SIGNED, "x")
    assert isinstance(envelope, dict)
    with pytest.raises(ConsentError, match="signature of the consent is wrong"):
        Consent.read(canonical.dumps(envelope | {"certificate": OTHER.certificate_pem}))
    for pem in ("", "x", PATIENT.private_pem().decode()):
        with pytest.raises(ProtocolViolation, match="no proper certificate"):
            Consent.read(canonical.dumps(envelope | {"certificate": pem}))


NOW = dt.datetime.now(dt.UTC)
OTHER_KEY = dict.fromkeys(stage.RECEIVERS.values(), bytes(32))
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "patient": ({"patient": "laboratory"}, "was not given by patient"),
    "certificate": ({"certificate": bytes.fromhex(OTHER.fingerprint)}, "was not given by patient"),
    "architecture": ({"architecture": bytes(32)}, "is for another model"),
    "weights": ({"weights": bytes(32)}, "is for other weights of the model"),
    "purpose": ({"purpose": kit.PURPOSE + "s"}, "is for another purpose"),
    "receiver": ({"receivers": {"laboratory": bytes(32)}}, "does not have patient as a receiver"),
    "receiver's key": ({"receivers": OTHER_KEY}, "names another key of receiver patient"),
    "no xray": (
        {"inputs": {k: v for k, v in stage.INPUTS.items() if k != "xray"}},
        "does not cover input 'xray' of hospital",
    ),
    "blood of another": (
        {"inputs": stage.INPUTS | {"blood": "hospital"}},
        "does not cover input 'blood' of laboratory",
    ),
    "too early": (
        {"not_before": 4_000_000_000, "until": 4_000_000_001},
        "is not valid before 2096-10-02 07:06:40 UTC",
    ),
    "too late": ({"not_before": 1, "until": 1_000_000_000}, "expired at 2001-09-09 01:46:40 UTC"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_consent_to_something_else_is_refused(case: str) -> None:
    changes, why = REFUSED[case]
    with pytest.raises(ConsentError) as e:
        check(dataclasses.replace(BASE, **changes), kit.session())
    assert (e.value.message, e.value.culprit) == (f"the consent {why}", "patient")


def test_time_and_rows_to_the_letter() -> None:
    session, one = kit.session(), dataclasses.replace(BASE, not_before=100, until=200, rows=3)

    def at(seconds: float, rows: int | None = None) -> None:
        check(one, session, rows=rows, now=dt.datetime.fromtimestamp(seconds, dt.UTC))

    at(100), at(199.9, 3), at(150, 0), at(150)
    for seconds in (99.9, 200):
        with pytest.raises(ConsentError, match=r"not valid before|expired"):
            at(seconds)
    with pytest.raises(ConsentError, match="allows 3 rows a run, and this one has 4"):
        at(150, 4)


def test_a_consent_may_cover_more_than_the_session() -> None:
    more = {"receivers": BASE.receivers | {"doctor": bytes(32)}, "inputs": BASE.inputs | {"ecg": "hospital"}}
    check(dataclasses.replace(BASE, **more), kit.session())


def test_what_a_session_asks_for() -> None:
    until = NOW + dt.timedelta(days=1)
    one = for_session(kit.session(), until, inputs=("xray",), uses=4, rows=2)
    assert one.inputs == {"xray": "hospital"}
    assert (one.uses, one.rows, one.until) == (4, 2, int(until.timestamp()))
    assert one.receivers == {"patient": bytes.fromhex(PATIENT.fingerprint)}
    assert one.id != for_session(kit.session(), until).id
    with pytest.raises(ConfigError, match="asks for no consent"):
        for_session(stage.manifest(), until)
    with pytest.raises(ConfigError, match="asks for no consent"):
        check(BASE, stage.manifest())


def test_files(tmp_path: Any) -> None:
    file = tmp_path / "a.consent"
    documents.save(file, SIGNED)
    assert documents.from_file(file) == BASE
    with pytest.raises(ConfigError, match="exists already"):
        documents.save(file, SIGNED)
    with pytest.raises(ConfigError, match="cannot write"):
        documents.save(tmp_path / "no" / "a", SIGNED)
    for content, error in (
        (b"", "cannot be read"),
        (SIGNED[:-1], "cannot be read"),
        (bytes(70000), "longer"),
    ):
        (tmp_path / "b").write_bytes(content)
        with pytest.raises(IntegrityError, match=error):
            documents.from_file(tmp_path / "b")
    with pytest.raises(ConfigError, match="cannot read"):
        documents.from_file(tmp_path / "none")
    with pytest.raises(ConfigError, match="cannot read"):
        documents.from_file(tmp_path)
