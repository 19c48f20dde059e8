"""Canonical CBOR: what goes in comes out, and nothing else is read."""

from __future__ import annotations

import contextlib
import math

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privinfer.errors import ProtocolViolation
from privinfer.session import canonical
from privinfer.session.canonical import Fields

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**64), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def depth(value: object) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(depth, inner), default=0) if isinstance(value, dict | list) else 0


@given(PLAIN)
def test_round_trip(value: object) -> None:
    if depth(value) > 6:
        return
    data = canonical.dumps(value)  # type: ignore[arg-type]
    assert canonical.loads(data, "it") == value
    assert canonical.dumps(canonical.loads(data, "it")) == data


@given(PLAIN, st.data())
def test_one_encoding_of_each_value(value: object, data: st.DataObject) -> None:
    """Whatever byte is changed, another value or an error comes out: never the same value."""
    good = canonical.dumps(value)  # type: ignore[arg-type]
    at = data.draw(st.integers(0, len(good) - 1))
    bad = good[:at] + bytes([good[at] ^ data.draw(st.integers(1, 255))]) + good[at + 1 :]
    with contextlib.suppress(ProtocolViolation):
        assert canonical.dumps(canonical.loads(bad, "it")) == bad


@given(st.binary(max_size=64))
def test_anything_else_is_an_error(data: bytes) -> None:
    with contextlib.suppress(ProtocolViolation):
        canonical.loads(data, "it")


def test_the_culprit_is_named() -> None:
    with pytest.raises(ProtocolViolation, match=r"^statement cannot be read \(culprit: patient\)$"):
        canonical.loads(b"", "statement", "patient")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x18\x01",  # 1 in two bytes
        b"\xa2\x61b\x01\x61a\x02",  # keys out of order
        b"\xa2\x61a\x01\x61a\x02",  # a key twice
        b"\xc0\x60",  # a tag
        b"\x5f\xff",  # of no declared length
        b"\x9b" + b"\xff" * 8,  # a list longer than the universe
        b"\x81" * 7 + b"\x00",  # too deep
        b"\xa1\x01\x01",  # a key that is no text
        cbor2.dumps([1], canonical=True) + b"\x00",
        b"\xf7",  # undefined
        b"\x62\xff\xff",  # no UTF-8
    ],
)
def test_hostile(data: bytes) -> None:
    with pytest.raises(ProtocolViolation, match=r"^it cannot be read$"):
        canonical.loads(data, "it")


def test_too_long() -> None:
    with pytest.raises(ProtocolViolation):
        canonical.loads(canonical.dumps(bytes(100)), "it", most=99)


def test_not_a_number_has_one_form() -> None:
    value = canonical.loads(canonical.dumps(math.nan), "it")
    assert isinstance(value, float)
    assert math.isnan(value)


def test_fields() -> None:
    fields = Fields({"a": 1, "b": b"xy", "c": True}, "it", "patient")
    assert fields.has("a")
    assert fields.take("a", int) == 1
    assert not fields.has("a")
    with pytest.raises(ProtocolViolation, match="it has no proper b"):
        Fields({"b": b"xy"}, "it").take("b", bytes, 3)
    with pytest.raises(ProtocolViolation, match="it has no proper c"):  # True is no number
        Fields({"c": True}, "it").take("c", int)
    with pytest.raises(ProtocolViolation, match="unknown field 'b'"):
        fields.finish()
    with pytest.raises(ProtocolViolation, match="it is not a map"):
        Fields([1], "it")
