"""SEAL's objects: round trips, and hostile ones that are refused before anything is built from them."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privinfer.backends.ckks.protobuf import ContextMessage, VectorMessage
from privinfer.backends.ckks.seal import Format
from privinfer.backends.ckks.seal_header import Version, inflate, read_header
from privinfer.errors import ConfigError, IntegrityError, PrivinferError
from tests.support.rlwe import family

N = 1024
VERSION = Version(4, 3)
FORM = Format(N, family(N, 2), VERSION)
OTHER = Format(N, (*family(N, 3)[:1], family(N, 3)[2], family(N, 3)[3]), VERSION)
K, D = 3, 2
SCALE = 2.0**50
RNG = np.random.default_rng(7)


def residues(*leading: int, limbs: int = K) -> np.ndarray:
    """Random residues [*leading, limbs, N], each limb's largest among them."""
    q = np.array(FORM.primes[:limbs], np.uint64)[:, None]
    data = RNG.integers(0, q, (*leading, limbs, N), dtype=np.uint64)
    data[..., 0] = q[:, 0] - np.uint64(1)
    return data


CIPHERTEXT = residues(2, limbs=2)
PUBLIC, SECRET, SWITCH = residues(2), residues(), residues(D, 2)
GALOIS = {3: residues(D, 2), 2 * N - 1: residues(D, 2)}
BLOB = FORM.emit_ciphertext(CIPHERTEXT, SCALE)
Change = Callable[[bytes], bytes]


def put(offset: int, form: str, value: Any) -> Change:
    """Overwrite a field."""

    def change(blob: bytes) -> bytes:
        out = bytearray(blob)
        struct.pack_into("<" + form, out, offset, value)
        return bytes(out)

    return change


# -- round trips -----------------------------------------------------------------------------------


def test_byte_tables() -> None:
    """Offsets of the documented tables, once, by hand."""
    assert BLOB[:16] == struct.pack("<HBBBBHQ", 0xA15E, 16, 4, 3, 0, 0, len(BLOB))
    assert BLOB[16:48] == FORM.parms_id(2)
    assert struct.unpack_from("<BQQQdQ", BLOB, 48) == (1, 2, N, 2, SCALE, 1)
    assert struct.unpack_from("<Q", BLOB, 97)[0] == 16 + 8 + CIPHERTEXT.nbytes
    assert struct.unpack_from("<Q", BLOB, 105)[0] == CIPHERTEXT.size
    assert BLOB[113:] == CIPHERTEXT.tobytes()
    assert FORM.emit_secret_key(SECRET)[88:] == SECRET.tobytes()
    assert len(FORM.emit_parameters()) == 16 + 17 + 24 * (K + 1)


@pytest.mark.parametrize(("size", "limbs"), [(2, 1), (2, 2), (3, 2)])
def test_ciphertext(size: int, limbs: int) -> None:
    data = residues(size, limbs=limbs)
    blob = FORM.emit_ciphertext(data, 2.0**40)
    found, scale = FORM.parse_ciphertext(blob)
    assert len(blob) == FORM.ciphertext_bytes(size, limbs)
    assert scale == 2.0**40
    assert np.array_equal(found, data)
    assert found.flags.owndata
    assert found.flags.aligned


def test_keys() -> None:
    assert np.array_equal(FORM.parse_public_key(FORM.emit_public_key(PUBLIC)), PUBLIC)
    secret = FORM.emit_secret_key(SECRET)
    assert len(secret) == FORM.secret_key_bytes()
    assert np.array_equal(FORM.parse_secret_key(secret), SECRET)
    switch = FORM.emit_relinearisation_key(SWITCH)
    assert len(switch) == FORM.keys_bytes(1, 1)
    assert np.array_equal(FORM.parse_relinearisation_key(switch), SWITCH)
    galois = FORM.emit_galois_keys(GALOIS)
    assert len(galois) == FORM.keys_bytes(N, len(GALOIS))
    found = FORM.parse_galois_keys(galois)
    assert list(found) == list(GALOIS)
    assert all(np.array_equal(found[e], GALOIS[e]) for e in GALOIS)


def test_parameters() -> None:
    assert Format.parse_parameters(FORM.emit_parameters(), VERSION) == FORM


def test_zlib_under_a_cap() -> None:
    packed = zlib.compress(BLOB[16:])
    blob = struct.pack("<HBBBBHQ", 0xA15E, 16, 4, 3, 1, 0, 16 + len(packed)) + packed
    assert inflate(blob, len(BLOB)) == BLOB
    assert inflate(BLOB, 0) is BLOB  # nothing to undo
    with pytest.raises(IntegrityError, match="inflates to more than"):
        inflate(blob, len(BLOB) - 1)
    bomb = zlib.compress(bytes(1 << 26))
    bomb = struct.pack("<HBBBBHQ", 0xA15E, 16, 4, 3, 1, 0, 16 + len(bomb)) + bomb
    tracemalloc.start()
    with pytest.raises(IntegrityError, match="inflates to more than"):
        inflate(bomb, len(BLOB))
    assert tracemalloc.get_traced_memory()[1] < 1 << 20  # of 64 MiB; zlib's own window is in it
    tracemalloc.stop()
    for cut in (packed[:-1], packed[:20], packed + b"x", b"", b"nonsense"):
        with pytest.raises(IntegrityError, match="compressed and"):
            inflate(struct.pack("<HBBBBHQ", 0xA15E, 16, 4, 3, 1, 0, 16 + len(cut)) + cut, len(BLOB))


# -- hostile objects -------------------------------------------------------------------------------

HUGE = (1 << 64) - 1
HEADERS: dict[str, tuple[Change, type[PrivinferError], str]] = {
    "empty": (lambda b: b"", IntegrityError, "cut off"),
    "half a header": (lambda b: b[:9], IntegrityError, "cut off"),
    "header alone": (lambda b: put(8, "Q", 16)(b[:16]), IntegrityError, "cut off"),
    "truncated": (lambda b: b[:-1], IntegrityError, "cut off or too long"),
    "something behind": (lambda b: b + b"\0", IntegrityError, "cut off or too long"),
    "magic": (put(0, "H", 0xA15F), IntegrityError, "does not begin with SEAL's header"),
    "header size": (put(2, "B", 24), IntegrityError, "does not begin with SEAL's header"),
    "reserved": (put(6, "H", 1), IntegrityError, "does not begin with SEAL's header"),
    "older minor version": (put(4, "B", 1), ConfigError, "written by SEAL 4.1, and this is SEAL 4.3"),
    "older major version": (put(3, "B", 3), ConfigError, "written by SEAL 3.3, and this is SEAL 4.3"),
    "zlib": (put(5, "B", 1), ConfigError, "compressed with zlib"),
    "zstd": (put(5, "B", 2), ConfigError, "compressed with zstd"),
    "unknown compression": (put(5, "B", 9), IntegrityError, "unknown compression"),
    "huge size": (put(8, "Q", HUGE), IntegrityError, "cut off or too long"),
}
CIPHERTEXTS: dict[str, tuple[Change, type[PrivinferError], str]] = {
    "other parameters": (
        lambda b: OTHER.emit_ciphertext(CIPHERTEXT % 7, 1e9),
        ConfigError,
        "other parameters",
    ),
    "parms_id": (put(16, "B", BLOB[16] ^ 1), ConfigError, "other parameters"),
    "parms_id of another level": (lambda b: b[:16] + FORM.parms_id(1) + b[48:], ConfigError, "other param"),
    "zero parms_id": (lambda b: b[:16] + bytes(32) + b[48:], ConfigError, "other parameters"),
    "coefficient form": (put(48, "B", 0), IntegrityError, "not in NTT form"),
    "half true": (put(48, "B", 2), IntegrityError, "not in NTT form"),
    "one polynomial": (put(49, "Q", 1), IntegrityError, "1 polynomials"),
    "absurd size": (put(49, "Q", HUGE), IntegrityError, "polynomials"),
    "three polynomials in the bytes of two": (put(49, "Q", 3), IntegrityError, "bytes, not"),
    "another degree": (put(57, "Q", 2 * N), ConfigError, "degree 2048, not 1024"),
    "absurd degree": (put(57, "Q", HUGE), ConfigError, "degree"),
    "no limbs": (put(65, "Q", 0), IntegrityError, "0 limbs"),
    "key limbs": (put(65, "Q", 3), IntegrityError, "3 limbs"),
    "absurd limbs": (put(65, "Q", HUGE), IntegrityError, "limbs"),
    "scale 0": (put(73, "d", 0.0), IntegrityError, "scale"),
    "negative scale": (put(73, "d", -SCALE), IntegrityError, "scale"),
    "scale of nothing": (put(73, "d", float("nan")), IntegrityError, "scale"),
    "infinite scale": (put(73, "d", float("inf")), IntegrityError, "scale"),
    "scale beyond the moduli": (put(73, "d", 2.0**100), IntegrityError, "scale does not fit 2 limbs"),
    "correction factor": (put(81, "Q", 2), IntegrityError, "not in NTT form"),
    "inner magic": (put(89, "H", 0), IntegrityError, "a header inside"),
    "inner version": (put(93, "B", 1), IntegrityError, "a header inside"),
    "inner compression": (put(94, "B", 1), IntegrityError, "a header inside"),
    "inner size": (put(97, "Q", HUGE), IntegrityError, "a header inside"),
    "count": (put(105, "Q", CIPHERTEXT.size - 1), IntegrityError, "count"),
    "absurd count": (put(105, "Q", HUGE), IntegrityError, "count"),
    "not reduced": (put(113, "Q", FORM.primes[0]), IntegrityError, "limb 0 is not reduced"),
    "not reduced at the end": (
        lambda b: b[:-8] + struct.pack("<Q", FORM.primes[1]),
        IntegrityError,
        "limb 1",
    ),
    "all ones": (lambda b: b[:113] + b"\xff" * (len(b) - 113), IntegrityError, "not reduced"),
}


@pytest.mark.parametrize(("change", "error", "said"), HEADERS.values(), ids=HEADERS.keys())
@pytest.mark.parametrize("kind", ["ciphertext", "public", "secret", "relin", "galois", "parameters"])
def test_hostile_header(kind: str, change: Change, error: type[PrivinferError], said: str) -> None:
    blob, parse = KINDS[kind]
    with pytest.raises(error, match=said):
        parse(change(blob))


@pytest.mark.parametrize(("change", "error", "said"), CIPHERTEXTS.values(), ids=CIPHERTEXTS.keys())
def test_hostile_ciphertext(change: Change, error: type[PrivinferError], said: str) -> None:
    with pytest.raises(error, match=said) as caught:
        FORM.parse_ciphertext(change(BLOB), culprit="hospital")
    assert caught.value.culprit == "hospital"


def test_seeded_ciphertext() -> None:
    """SEAL may write a seed in the place of the second polynomial; that form is named and refused."""
    half = BLOB[:113] + BLOB[113 : 113 + CIPHERTEXT.nbytes // 2] + bytes(81)
    with pytest.raises(IntegrityError) as caught:
        FORM.parse_ciphertext(put(8, "Q", len(half))(half))
    assert "seed" in str(caught.value.hint)


KINDS: dict[str, tuple[bytes, Callable[[bytes], Any]]] = {
    "ciphertext": (BLOB, FORM.parse_ciphertext),
    "public": (FORM.emit_public_key(PUBLIC), FORM.parse_public_key),
    "secret": (FORM.emit_secret_key(SECRET), FORM.parse_secret_key),
    "relin": (FORM.emit_relinearisation_key(SWITCH), FORM.parse_relinearisation_key),
    "galois": (FORM.emit_galois_keys(GALOIS), FORM.parse_galois_keys),
    "parameters": (FORM.emit_parameters(), lambda b: Format.parse_parameters(b, VERSION)),
}

FIRST = 16 + 32 + 8  # where the rows of switching keys begin
INNER = FIRST + 8  # the first public key of the only row
OTHERS: dict[str, tuple[str, Change, type[PrivinferError], str]] = {
    "public key at data level": ("public", lambda b: BLOB, IntegrityError, "2 limbs"),
    "public key with a scale": ("public", put(73, "d", 2.0), IntegrityError, "has a scale"),
    "public key of three": ("public", put(49, "Q", 3), IntegrityError, "3 polynomials"),
    "secret key of another chain": ("secret", put(16, "B", 0), ConfigError, "other parameters"),
    "secret key of absurd length": ("secret", put(48, "Q", HUGE), IntegrityError, "coefficients"),
    "secret key not reduced": ("secret", put(88, "Q", HUGE), IntegrityError, "limb 0"),
    "two relinearisation keys": ("relin", put(48, "Q", 2), IntegrityError, "2 rows, not 1"),
    "absurd rows": ("relin", put(48, "Q", HUGE), IntegrityError, "rows"),
    "no digits": ("relin", put(FIRST, "Q", 0), IntegrityError, "0 digits"),
    "absurd digits": ("relin", put(FIRST, "Q", HUGE), IntegrityError, "digits"),
    "one digit more": ("relin", put(FIRST, "Q", 3), IntegrityError, "3 digits, not 2"),
    "key of another chain": ("relin", put(16, "B", 0), ConfigError, "other parameters"),
    "digit of another chain": ("relin", put(INNER + 16, "B", 0), ConfigError, "other parameters"),
    "compressed digit": ("relin", put(INNER + 5, "B", 2), ConfigError, "compressed"),
    "digit of another version": ("relin", put(INNER + 4, "B", 1), ConfigError, "SEAL 4.1"),
    "digit that claims less": ("relin", put(INNER + 8, "Q", 16), IntegrityError, "cut off or too long"),
    "digit not reduced": ("relin", put(INNER + 113, "Q", HUGE), IntegrityError, "limb 0"),
    "fewer Galois rows": ("galois", put(48, "Q", N - 1), IntegrityError, "rows, not 1024"),
    "absurd Galois rows": ("galois", put(48, "Q", HUGE), IntegrityError, "rows"),
    "shifted Galois rows": ("galois", put(FIRST, "Q", D), IntegrityError, "header|digits|cut off"),
    "Galois row too many": ("galois", put(FIRST + 8, "Q", 0), IntegrityError, "digits|too many|cut off"),
    "scheme BFV": ("parameters", put(16, "B", 1), ConfigError, "not of CKKS"),
    "degree 0": ("parameters", put(17, "Q", 0), ConfigError, "degree 0"),
    "degree no power of two": ("parameters", put(17, "Q", 1536), ConfigError, "degree 1536"),
    "absurd modulus degree": ("parameters", put(17, "Q", HUGE), ConfigError, "degree"),
    "no moduli": ("parameters", put(25, "Q", 0), IntegrityError, "0 moduli"),
    "absurd moduli": ("parameters", put(25, "Q", HUGE), IntegrityError, "moduli"),
    "composite modulus": ("parameters", put(49, "Q", 2 * N * 4 + 1), ConfigError, "is no prime"),
    "even modulus": ("parameters", put(49, "Q", 1 << 40), ConfigError, "is no prime"),
    "modulus 0": ("parameters", put(49, "Q", 0), ConfigError, "is no prime"),
    "huge modulus": ("parameters", put(49, "Q", HUGE), ConfigError, "is no prime"),
    "repeated modulus": ("parameters", put(49, "Q", FORM.primes[1]), ConfigError, "occurs twice"),
    "inner header": ("parameters", put(33, "B", 0), IntegrityError, "a header inside"),
    "plaintext modulus": ("parameters", lambda b: b[:-8] + b"\x11" + bytes(7), IntegrityError, "plaintext"),
}


@pytest.mark.parametrize(("kind", "change", "error", "said"), OTHERS.values(), ids=OTHERS.keys())
def test_hostile_object(kind: str, change: Change, error: type[PrivinferError], said: str) -> None:
    blob, parse = KINDS[kind]
    with pytest.raises(error, match=said):
        parse(change(blob))


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_object_costs_no_memory(kind: str) -> None:
    """A refusal at the last coefficient allocates less than the object's own size."""
    blob, parse = KINDS[kind]
    bad = bytes(blob[:-8]) + b"\xff" * 8
    with pytest.raises(PrivinferError):
        parse(bad)
    tracemalloc.start()
    with pytest.raises(PrivinferError):
        parse(bad)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= len(blob) + 100_000  # and what Python's own objects and NumPy's buffers take


def test_every_bit_of_a_header() -> None:
    """Each of the 904 bits before the data: a typed error, or (a scale has many values) a ciphertext."""
    accepted = []
    for bit in range(8 * 113):
        bad = bytearray(BLOB)
        bad[bit // 8] ^= 1 << bit % 8
        try:
            found, scale = FORM.parse_ciphertext(bytes(bad))
        except PrivinferError:
            continue
        accepted.append(bit // 8)
        assert np.array_equal(found, CIPHERTEXT)
        assert 1 <= scale < 2.0**100
    assert set(accepted) <= set(range(73, 81))


@given(kind=st.sampled_from(sorted(KINDS)), data=st.data())
def test_any_damage_is_a_typed_error(kind: str, data: st.DataObject) -> None:
    """Cuts, insertions and flips anywhere: a typed error, or something of the right kind."""
    blob, parse = KINDS[kind]
    at = data.draw(st.one_of(st.integers(0, 200), st.integers(0, len(blob))))
    piece = data.draw(st.binary(max_size=24))
    drop = data.draw(st.one_of(st.just(len(piece)), st.integers(0, len(blob))))
    bad = blob[:at] + piece + blob[at + drop :]
    if data.draw(st.booleans()) and len(bad) >= 16:
        bad = put(8, "Q", len(bad))(bad)
    try:
        parse(bad)
    except PrivinferError:
        return
    assert len(bad) == len(blob)


@pytest.mark.parametrize(
    ("emit", "array"),
    [
        (lambda a: FORM.emit_ciphertext(a, SCALE), CIPHERTEXT),
        (FORM.emit_public_key, PUBLIC),
        (FORM.emit_secret_key, SECRET),
        (FORM.emit_relinearisation_key, SWITCH),
        (lambda a: FORM.emit_galois_keys({3: a}), SWITCH),
    ],
)
def test_arrays_are_checked_on_the_way_out(emit: Callable[[np.ndarray], bytes], array: np.ndarray) -> None:
    """A peer's array goes to SEAL only through here."""
    for bad in (array.astype(np.int64), array[..., :-1], array[..., :1, :], array[None], array[0]):
        if bad.shape == array.shape and bad.dtype == np.uint64:
            continue
        if bad.ndim == 3 and bad.shape[1] in (1, 2) and bad.shape[2] == N and array is CIPHERTEXT:
            continue  # a ciphertext at a lower level
        with pytest.raises(IntegrityError):
            emit(bad)
    bad = array.copy()
    bad[..., -1, -1] = FORM.primes[array.shape[-2] - 1]
    with pytest.raises(IntegrityError, match="not reduced"):
        emit(bad)


@pytest.mark.parametrize("element", [0, 2, -1, 2 * N, 2 * N + 1])
def test_no_galois_element(element: int) -> None:
    with pytest.raises(IntegrityError, match="no Galois element"):
        FORM.emit_galois_keys({element: SWITCH})


@pytest.mark.parametrize(
    ("n", "primes"), [(1000, FORM.primes), (N, ()), (N, (4097, 4097)), (512, FORM.primes), (N, (2047,))]
)
def test_no_chain(n: int, primes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="CKKS parameters: "):
        Format(n, primes, VERSION)


def test_header_of_any_version() -> None:
    assert read_header(put(4, "B", 9)(BLOB)).version == Version(4, 9)
    assert str(Version(4, 9)) == "4.9"


# -- TenSEAL's messages ----------------------------------------------------------------------------

CONTEXT = ContextMessage(b"parms", b"public", 7, SCALE, b"relin", b"galois" * 40)
VECTOR = VectorMessage((300, 5), (b"first", b"second" * 50), SCALE)


def test_messages() -> None:
    assert ContextMessage.parse(CONTEXT.emit()) == CONTEXT
    assert VectorMessage.parse(VECTOR.emit(), N // 2) == VECTOR
    alone = ContextMessage(b"parms")
    assert ContextMessage.parse(alone.emit()) == alone


MESSAGES: dict[str, tuple[bytes, type[PrivinferError], str]] = {
    "empty": (b"", IntegrityError, "lacks its parameters"),
    "no public part": (b"\x0a\x01p", IntegrityError, "lacks its parameters or its public part"),
    "secret": (CONTEXT.emit(b"secret"), ConfigError, "holds a secret key"),
    "symmetric": (CONTEXT.emit() + b"\x20\x01", ConfigError, "symmetric"),
    "unknown field": (CONTEXT.emit() + b"\x28\x01", IntegrityError, "does not write"),
    "wrong wire type": (CONTEXT.emit() + b"\x21" + bytes(8), IntegrityError, "does not write"),
    "field 0": (b"\x02\x00", IntegrityError, "does not write"),
    "twice": (CONTEXT.emit() + b"\x0a\x01p", IntegrityError, "too often"),
    "length beyond": (b"\x0a\x7fp", IntegrityError, "cut off"),
    "absurd length": (b"\x0a" + b"\xff" * 9 + b"\x01", IntegrityError, "cut off"),
    "more than 64 bits": (b"\x0a" + b"\xff" * 9 + b"\x02", IntegrityError, "more than 64 bits"),
    "endless number": (b"\x0a" + b"\xff" * 40, IntegrityError, "more than 64 bits"),
    "number cut off": (b"\x0a\xff", IntegrityError, "cut off"),
    "flags": (ContextMessage(b"p", flags=8).emit(), IntegrityError, "unknown flags"),
    "scale": (ContextMessage(b"p", scale=float("nan")).emit(), IntegrityError, "no finite scale"),
}
VECTORS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "do not agree"),
    "no sizes": (VectorMessage((), (b"c",), 1.0).emit(), "do not agree"),
    "more sizes": (VectorMessage((1, 1), (b"c",), 1.0).emit(), "do not agree"),
    "size 0": (VectorMessage((0,), (b"c",), 1.0).emit(), "do not agree"),
    "too many slots": (VectorMessage((N // 2 + 1,), (b"c",), 1.0).emit(), "do not agree"),
    "scale 0": (VectorMessage((1,), (b"c",), 0.0).emit(), "no positive scale"),
    "endless sizes": (b"\x0a\xff\xff\x01" + b"\x01" * 32767, "too many sizes"),
    "too many ciphertexts": (b"\x12\x01c" * 4097, "too often"),
}


@pytest.mark.parametrize(("blob", "error", "said"), MESSAGES.values(), ids=MESSAGES.keys())
def test_hostile_context(blob: bytes, error: type[PrivinferError], said: str) -> None:
    with pytest.raises(error, match=said):
        ContextMessage.parse(blob)


@pytest.mark.parametrize(("blob", "said"), VECTORS.values(), ids=VECTORS.keys())
def test_hostile_vector(blob: bytes, said: str) -> None:
    with pytest.raises(IntegrityError, match=said):
        VectorMessage.parse(blob, N // 2)


@given(blob=st.one_of(st.binary(max_size=64), st.binary(max_size=8).map(CONTEXT.emit().__add__)))
def test_any_message(blob: bytes) -> None:
    for parse in (ContextMessage.parse, lambda b: VectorMessage.parse(b, N // 2)):
        try:
            parse(blob)
        except PrivinferError:
            continue
