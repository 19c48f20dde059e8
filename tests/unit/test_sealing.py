"""Results sealed to the key of one run: the RFC's vector, and everything that must not open."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from Crypto.Protocol.DH import import_x25519_private_key
from hypothesis import given
from hypothesis import strategies as st

from privinfer.errors import IntegrityError, ProtocolViolation
from privinfer.protocols import sealing
from privinfer.protocols.randomness import Scope
from privinfer.protocols.sealing import KEY_BYTES, OVERHEAD, Context, Keys, ReceiverKey

VECTOR = Path(__file__).parents[1] / "vectors/hpke/base_x25519_sha256_chacha20poly1305.json"
CONTEXT = Context(bytes(range(32)), Scope(bytes(range(32, 64)), 4, 1), 77, "evaluator1")
KEY = ReceiverKey.fresh()
MESSAGE = b"a result in twenty-seven b."


class Foreign(Context):
    """The vector's info and aad."""

    def info(self) -> bytes:
        return bytes.fromhex(vector()["info"])

    def associated(self) -> bytes:
        return bytes.fromhex(vector()["aad"])


def vector() -> dict[str, str]:
    found: dict[str, str] = json.loads(VECTOR.read_text())
    return found


def test_the_vector_of_rfc_9180() -> None:
    v = {k: bytes.fromhex(x) for k, x in vector().items()}
    key = ReceiverKey(import_x25519_private_key(v["skRm"]))
    context = Foreign(b"", Scope(b"", 0), 0, "")
    assert key.public == v["pkRm"]
    assert key.open(v["enc"] + v["ct"], context, "sender") == v["pt"]
    assert key.open(sealing.seal(key.public, v["pt"], context), context, "sender") == v["pt"]


@given(st.binary(max_size=200))
def test_what_is_sealed_opens(message: bytes) -> None:
    sealed = sealing.seal(KEY.public, message, CONTEXT)
    assert len(sealed) == OVERHEAD + len(message)
    assert KEY.open(sealed, CONTEXT, "sender") == message


def test_no_two_are_alike() -> None:
    assert (
        len({sealing.seal(KEY.public, MESSAGE, CONTEXT)[k : k + 32] for _ in range(8) for k in (0, 32)}) == 16
    )
    assert len({ReceiverKey.fresh().public for _ in range(8)}) == 8


def refused(sealed: bytes, context: Context = CONTEXT, key: ReceiverKey = KEY) -> None:
    with pytest.raises(ProtocolViolation, match="does not open") as caught:
        key.open(sealed, context, "hospital")
    assert caught.value.culprit == "hospital"


def test_any_bit_that_flips_is_seen() -> None:
    sealed = sealing.seal(KEY.public, MESSAGE, CONTEXT)
    for at in range(8 * len(sealed)):
        if at == 8 * KEY_BYTES - 1:
            continue  # X25519 ignores the top bit of a point; the next test has it
        changed = bytearray(sealed)
        changed[at // 8] ^= 1 << at % 8
        refused(bytes(changed))


def test_the_bit_that_a_point_ignores_is_bound_all_the_same() -> None:
    sealed = bytearray(sealing.seal(KEY.public, MESSAGE, CONTEXT))
    sealed[KEY_BYTES - 1] ^= 0x80
    refused(bytes(sealed))


@pytest.mark.parametrize("size", [0, 1, KEY_BYTES - 1, KEY_BYTES, OVERHEAD - 1, OVERHEAD + 3])
def test_cut_short(size: int) -> None:
    refused(sealing.seal(KEY.public, MESSAGE, CONTEXT)[:size])


@pytest.mark.parametrize("point", [bytes(32), b"\1" + bytes(31), b"\xed" + b"\xff" * 30 + b"\x7f"])
def test_points_of_low_order(point: bytes) -> None:
    refused(point + bytes(64))
    with pytest.raises(ProtocolViolation, match="no key"):
        sealing.check(point, "patient")


def test_another_place_does_not_open() -> None:
    sealed = sealing.seal(KEY.public, MESSAGE, CONTEXT)
    scope = CONTEXT.scope
    for change in (
        {"session": bytes(32)},
        {"scope": dataclasses.replace(scope, session=bytes(32))},
        {"scope": dataclasses.replace(scope, inference=5)},
        {"scope": dataclasses.replace(scope, attempt=0)},
        {"step": 78},
        {"sender": "evaluator2"},
    ):
        refused(sealed, dataclasses.replace(CONTEXT, **change))
    refused(sealed, key=ReceiverKey.fresh())


@pytest.mark.parametrize("said", [b"", bytes(31), b"x" * 33, "x" * 32, None, 7])
def test_what_is_no_key(said: object) -> None:
    with pytest.raises(ProtocolViolation, match="no key") as caught:
        sealing.check(said, "patient")
    assert caught.value.culprit == "patient"


def test_keys_are_forgotten_with_their_run() -> None:
    keys = Keys({"patient": KEY.public}, KEY)
    assert keys.open(keys.seal("patient", MESSAGE, CONTEXT), CONTEXT, "sender") == MESSAGE
    keys.forget()
    with pytest.raises(IntegrityError, match="without its receiver's key"):
        keys.seal("patient", MESSAGE, CONTEXT)
    with pytest.raises(IntegrityError, match="no key"):
        keys.open(bytes(64), CONTEXT, "sender")
    assert "hidden" in repr(KEY)
    assert KEY.public.hex() not in repr(Keys(own=KEY))
