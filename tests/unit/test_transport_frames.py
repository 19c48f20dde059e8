"""Frames: round trips, and hostile bytes of every kind end in a typed error in bounded memory."""

import struct
import tracemalloc

import cbor2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privinfer.errors import PrivinferError, ProtocolViolation, ReplayError, TransportError
from privinfer.transport import HEADER_BYTES, Abort, Frame, Kind, decode_abort, encode_abort
from privinfer.transport.frames import MAX_CONTROL, Decoder, byte_view, encode, frame_bytes, header

SESSION = bytes(range(16))


def decode(data, **options):
    return list(Decoder(SESSION, "mallory", **options).feed(data))


frames = st.builds(
    Frame,
    st.sampled_from(Kind),
    st.integers(0, 255),
    st.integers(0, 65535),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=200),
)


@given(st.lists(frames, max_size=5), st.data())
def test_round_trip_in_any_pieces(sent, data):
    stream = b"".join(encode(frame, SESSION) for frame in sent)
    decoder, got, rest = Decoder(SESSION, "mallory"), [], stream
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        got += decoder.feed(rest[:size])
        rest = rest[size:]
    assert got == sent
    assert not decoder.midway
    assert sum(map(frame_bytes, sent)) == len(stream)


def test_layout_is_fixed():
    frame = Frame(Kind.DATA, 1, 2, 3, b"xy")
    expected = bytes.fromhex("50564931 02 01 0200 03000000") + SESSION + bytes.fromhex("0200000000000000")
    assert encode(frame, SESSION) == expected + b"xy"
    assert len(expected) == HEADER_BYTES == 36


def test_arrays_travel_without_their_shape():
    for array in (np.arange(12, dtype=np.uint64).reshape(3, 4), np.zeros((0, 3)), np.array(5.0)):
        (frame,) = decode(encode(Frame(Kind.DATA, 0, 0, 0, memoryview(array)), SESSION))
        assert bytes(frame.payload) == array.tobytes()
    big = np.arange(1 << 17, dtype=np.uint64)
    (frame,) = decode(encode(Frame(Kind.DATA, 0, 0, 0, memoryview(big)), SESSION))
    view = np.frombuffer(frame.payload, np.uint64)
    assert np.array_equal(view, big)
    assert not view.flags.writeable
    with pytest.raises(ValueError, match="contiguous"):
        byte_view(memoryview(np.zeros((4, 4)).T[:, :2]))


def test_repr_shows_no_payload():
    text = repr(Frame(Kind.DATA, 0, 0, 0, b"secret share"))
    assert "secret" not in text
    assert "12 bytes" in text


@pytest.mark.parametrize(
    "fields", [(2, 256, 0, 0), (2, -1, 0, 0), (2, 0, 65536, 0), (2, 0, 0, 2**32), (9, 0, 0, 0)]
)
def test_fields_out_of_range_are_not_sent(fields):
    with pytest.raises(ValueError, match=r"out of range|known kind"):
        encode(Frame(*fields), SESSION)


def test_too_long_is_not_sent():
    with pytest.raises(TransportError):
        header(Frame(Kind.DATA, 0, 0, 0, bytes(11)), SESSION, max_frame=10)
    with pytest.raises(TransportError):
        header(Frame(Kind.HELLO, 0, 0, 0, bytes(MAX_CONTROL + 1)), SESSION)


def raw_header(magic=b"PVI1", kind=2, session=SESSION, length=0):
    return struct.pack("<4sBBHI16sQ", magic, kind, 0, 0, 0, session, length)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (raw_header(magic=b"PVI2"), ProtocolViolation),
        (raw_header(magic=b"GET "), ProtocolViolation),
        (raw_header(kind=0), ProtocolViolation),
        (raw_header(kind=7), ProtocolViolation),
        (raw_header(session=bytes(16)), ReplayError),
        (raw_header(length=2**64 - 1), ProtocolViolation),
        (raw_header(length=(1 << 30) + 1), ProtocolViolation),
        (raw_header(kind=1, length=MAX_CONTROL + 1), ProtocolViolation),
        (raw_header(kind=3, length=MAX_CONTROL + 1), ProtocolViolation),
        (raw_header(kind=4, length=MAX_CONTROL + 1), ProtocolViolation),
    ],
)
def test_bad_headers(data, error):
    with pytest.raises(error) as caught:
        decode(data)
    assert type(caught.value) is error
    assert caught.value.culprit == "mallory"


@given(st.binary(max_size=400))
def test_random_bytes(data):
    try:
        decode(data)
    except PrivinferError as error:
        assert error.culprit == "mallory"  # noqa: PT017


@given(st.binary(max_size=60), st.integers(0, 95), st.integers(1, 255))
def test_one_changed_byte(payload, at, flip):
    frame = Frame(Kind.DATA, 1, 2, 3, payload)
    data = bytearray(encode(frame, SESSION))
    data[at % len(data)] ^= flip
    try:
        got = decode(bytes(data))
    except (ProtocolViolation, ReplayError) as error:
        assert error.culprit == "mallory"  # noqa: PT017
    else:
        assert got != [frame]


@given(frames, st.integers(0, 300))
def test_truncation_is_seen(frame, keep):
    data = encode(frame, SESSION)
    decoder = Decoder(SESSION, "mallory")
    cut = data[: min(keep, len(data))]
    got = list(decoder.feed(cut))
    assert bool(got) == (len(cut) == len(data))
    assert decoder.midway == (0 < len(cut) < len(data))


def test_a_lying_length_allocates_nothing_much():
    decoder = Decoder(SESSION, "mallory")
    tracemalloc.start()
    try:
        assert list(decoder.feed(raw_header(length=1 << 30))) == []
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        for _ in range(64):  # 1 MiB really sent
            assert list(decoder.feed(bytes(1 << 14))) == []
        assert tracemalloc.get_traced_memory()[1] < 5 << 20
    finally:
        tracemalloc.stop()
    assert decoder.midway


# -- aborts ----------------------------------------------------------------------------------------


@given(st.text(max_size=700), st.none() | st.from_regex(r"[a-z][a-z0-9_-]{0,31}", fullmatch=True))
def test_abort_round_trip(message, culprit):
    payload = encode_abort("PI201", message, culprit)
    got = decode_abort(memoryview(payload), "mallory")
    assert (got.code, got.culprit) == ("PI201", culprit)
    assert got.message.isprintable()
    assert len(got.message) <= 500
    assert cbor2.loads(payload) == {"code": "PI201", "culprit": culprit, "message": got.message}


def test_abort_is_made_harmless():
    got = decode_abort(encode_abort("PI202", "a\nb\x1b[31m\ud800", "no name"), "mallory")
    assert got == Abort("PI202", "a?b?[31m?", None)
    with pytest.raises(ValueError, match="PI and three"):
        encode_abort("X", "m", None)


def dump(**changes):
    return cbor2.dumps({"code": "PI201", "culprit": None, "message": "m"} | changes, canonical=True)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xa3",
        b"\xff" * 100,
        bytes(5000),
        dump()[:-1],
        dump() + b"\x00",
        dump(code="PI2011"),
        dump(code=7),
        dump(code=None),
        dump(message=None),
        dump(message="a\nb"),
        dump(message="\u202e"),  # would turn the rest of the line around
        dump(message="m" * 501),
        dump(message="m" * 100_000),
        dump(culprit="Nobody"),
        dump(culprit="a" * 33),
        dump(culprit=["a"]),
        dump(culprit=cbor2.CBORTag(35, "(a+)+$")),
        dump(message=2**70),
        dump(extra="x"),
        cbor2.dumps({"message": "m", "culprit": None, "code": "PI201"}),
        cbor2.dumps(["PI201", None, "m"]),
        dump(message="m").replace(b"am", b"a\xff"),
        dump(message="m").replace(b"am", b"x\x01m"),
        b"\x81" * 2000,
    ],
)
def test_hostile_aborts(payload):
    with pytest.raises(ProtocolViolation, match="cannot be read") as caught:
        decode_abort(payload, "mallory")
    assert caught.value.culprit == "mallory"


@settings(max_examples=300)
@given(st.binary(max_size=100), st.integers(0, 60))
def test_damaged_aborts(noise, at):
    good = encode_abort("PI201", "lost", "helper")
    data = good[:at] + noise + good[at + len(noise) :]
    try:
        got = decode_abort(data, "mallory")
    except ProtocolViolation:
        return
    assert got.message.isprintable()
    assert encode_abort(got.code, got.message, got.culprit) == data  # one abort has one encoding
