"""Files at rest: what they hold, how they are written, and what is refused before it is believed."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privinfer.errors import ConfigError, InputError, IntegrityError, PrivinferError
from privinfer.session import fragment, keyfile, sealed
from privinfer.session.fragment import read_fragment, read_header, write_fragment
from privinfer.session.identity import Identity
from privinfer.session.keyfile import read_key, write_key

N, LEVELS, COUNT = 1024, 2, 1
OWNER, STRANGER = Identity.generate("hospital", days=2), Identity.generate("laboratory", days=2)
RENEWED = Identity.generate("hospital", days=2)
PARAMETERS, KEY_ID = b"p" * 32, b"k" * 32
DATA = np.arange(COUNT * 2 * LEVELS * N, dtype=np.uint64).reshape(COUNT, 2, LEVELS, N)
PUBLIC = np.arange(2 * (LEVELS + 1) * N, dtype=np.uint64).reshape(2, LEVELS + 1, N)
SECRET = bytes(range(256)) * 4
ASKED: dict[str, Any] = {"name": "xray", "shape": (1, 28, 28), "bounds": (0.0, 1.0)}
Change = Callable[[bytes], bytes]


def write(path: Path, **changes: Any) -> fragment.FragmentHeader:
    fields: dict[str, Any] = {**ASKED, "parameters": PARAMETERS, "key": KEY_ID, "scale": 2.0**50}
    return write_fragment(path, OWNER, DATA, **{**fields, **changes})


def read(path: Path, **changes: Any) -> fragment.StoredFragment:
    return read_fragment(path, OWNER.public, **{**ASKED, **changes})


@pytest.fixture(scope="module")
def blob(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("blob") / "x.fragment"
    write(file, created=1_800_000_000)
    return file.read_bytes()


@pytest.fixture(scope="module")
def key_blob(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("key") / "x.ckks"
    write_key(file, OWNER, SECRET, PUBLIC, parameters=PARAMETERS, key=KEY_ID)
    return file.read_bytes()


def header_of(blob: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and what follows it."""
    (length,) = struct.unpack_from("<I", blob, 12)
    return cbor2.loads(blob[24 : 24 + length]), blob[24 + length :]


def with_header(blob: bytes, by: Identity | None, /, **changes: Any) -> bytes:
    """Another header, signed again: what a malicious owner could write."""
    header, rest = header_of(blob)
    header.update(changes)
    header = {k: v for k, v in header.items() if v is not None}
    encoded = cbor2.dumps(header, canonical=True)
    prefix = blob[:12] + struct.pack("<I", len(encoded)) + blob[16:24] + encoded
    body = rest[:-64]
    if by is None:
        return prefix + rest
    return prefix + body + by.sign(sealed._SIGNED + sealed._digest(prefix, memoryview(body)))


# -- fragments -------------------------------------------------------------------------------------


def test_round_trip(tmp_path: Path) -> None:
    written = write(tmp_path / "x.fragment")
    found = read(tmp_path / "x.fragment", parameters=PARAMETERS, key=KEY_ID)
    assert found.header == written == read_header(tmp_path / "x.fragment")
    assert np.array_equal(found.data, DATA)
    assert found.data.dtype == np.uint64
    header = found.header
    assert (header.owner, header.input, header.shape) == ("hospital", "xray", (1, 28, 28))
    assert (header.low, header.high, header.n, header.levels, header.count) == (0.0, 1.0, N, LEVELS, COUNT)
    assert header.signer == OWNER.fingerprint
    assert [p.name for p in tmp_path.iterdir()] == ["x.fragment"]


def test_a_wider_range_takes_it(tmp_path: Path) -> None:
    write(tmp_path / "x.fragment")
    assert read(tmp_path / "x.fragment", bounds=(-1.0, 2.0)).header.high == 1.0


@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4, 5)])
def test_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    write(tmp_path / "x.fragment", shape=shape)
    assert read(tmp_path / "x.fragment", shape=shape).header.shape == shape


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"name": "mri"}, InputError, "is input 'xray', not 'mri'"),
        ({"shape": (28, 28)}, InputError, r"has shape \(1, 28, 28\), not \(28, 28\)"),
        ({"bounds": (0.0, 0.5)}, InputError, r"values in \(0, 1\), and the session takes \(0, 0.5\)"),
        ({"bounds": (0.5, 1.0)}, InputError, "values in"),
        ({"parameters": b"q" * 32}, ConfigError, "under other parameters"),
        ({"key": b"q" * 32}, ConfigError, "under another key of its owner"),
    ],
)
def test_not_what_is_asked(
    tmp_path: Path, changes: dict[str, Any], error: type[PrivinferError], said: str
) -> None:
    write(tmp_path / "x.fragment")
    with pytest.raises(error, match=said) as caught:
        read(tmp_path / "x.fragment", **changes)
    assert caught.value.culprit == "hospital"


def test_of_somebody_else(tmp_path: Path) -> None:
    file = tmp_path / "x.fragment"
    write(file)
    with pytest.raises(ConfigError, match="belongs to hospital, not laboratory"):
        read_fragment(file, STRANGER.public, **ASKED)
    with pytest.raises(ConfigError, match="signed under another certificate of hospital"):
        read_fragment(file, RENEWED.public, **ASKED)


def test_impostor(tmp_path: Path, blob: bytes) -> None:
    """Names are only believed where the signature says so."""
    file = tmp_path / "x.fragment"
    file.write_bytes(with_header(blob, STRANGER))
    with pytest.raises(IntegrityError, match="changed after hospital signed it, or is not theirs"):
        read(file)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "a\nb"},
        {"name": "a\x1b[2J"},
        {"name": "x" * 129},
        {"name": "\u202eyarx"},
        {"shape": (0,)},
        {"shape": (1,) * 9},
        {"shape": (1 << 13, 1 << 13)},
        {"bounds": (1.0, 0.0)},
        {"bounds": (0.0, float("inf"))},
        {"bounds": (float("nan"), 1.0)},
    ],
)
def test_what_cannot_be_written(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        write(tmp_path / "x.fragment", **changes)
    assert list(tmp_path.iterdir()) == []


HUGE = (1 << 64) - 1


def put(offset: int, form: str, value: Any) -> Change:
    def change(blob: bytes) -> bytes:
        out = bytearray(blob)
        struct.pack_into("<" + form, out, offset, value)
        return bytes(out)

    return change


HOSTILE: dict[str, tuple[Change, type[PrivinferError], str]] = {
    "empty": (lambda b: b"", IntegrityError, "cut off"),
    "half a prefix": (lambda b: b[:20], IntegrityError, "cut off"),
    "prefix alone": (lambda b: b[:24], IntegrityError, "cut off"),
    "truncated": (lambda b: b[:-1], IntegrityError, "cut off or too long"),
    "something behind": (lambda b: b + b"x", IntegrityError, "cut off or too long"),
    "magic": (put(0, "B", 0), IntegrityError, "no file of privinfer"),
    "version 0": (put(8, "H", 0), ConfigError, "format version 0, and this privinfer reads 1"),
    "version 2": (put(8, "H", 2), ConfigError, "format version 2, and this privinfer reads 1"),
    "a key": (put(10, "H", 2), ConfigError, "is a key"),
    "unknown kind": (put(10, "H", 77), ConfigError, "file of unknown kind"),
    "absurd header": (put(12, "I", (1 << 32) - 1), IntegrityError, "too large"),
    "absurd body": (put(16, "Q", HUGE), IntegrityError, "too large"),
    "body one byte less": (put(16, "Q", DATA.nbytes - 1), IntegrityError, "cut off or too long"),
    "body one byte less and cut": (
        lambda b: put(16, "Q", DATA.nbytes - 1)(b)[:-1],
        IntegrityError,
        "its header says",
    ),
    "header is no map": (put(24, "B", 0x80), IntegrityError, "header of .* is damaged"),
    "header has a tag": (put(24, "B", 0xC0), IntegrityError, "header of .* is damaged"),
    "ciphertext changed": (lambda b: b[:-100] + b"\xff" + b[-99:], IntegrityError, "changed after"),
    "signature changed": (lambda b: b[:-1] + bytes([b[-1] ^ 1]), IntegrityError, "changed after"),
    "header not signed": (lambda b: with_header(b, None, high=0.5), IntegrityError, "changed after"),
    "unknown field": (lambda b: with_header(b, OWNER, more=1), IntegrityError, "fields of its version"),
    "missing field": (lambda b: with_header(b, OWNER, scale=None), IntegrityError, "fields of its version"),
    "owner": (lambda b: with_header(b, OWNER, owner="No Name"), IntegrityError, "owner in the header"),
    "owner is bytes": (lambda b: with_header(b, OWNER, owner=b"hospital"), IntegrityError, "owner in the"),
    "signer": (lambda b: with_header(b, OWNER, signer="abc"), IntegrityError, "signer in the header"),
    "input": (lambda b: with_header(b, OWNER, input="a\rb"), IntegrityError, "input in the header"),
    "shape": (lambda b: with_header(b, OWNER, shape=[1 << 30]), IntegrityError, "shape in the header"),
    "shape of text": (lambda b: with_header(b, OWNER, shape=["1"]), IntegrityError, "shape in the header"),
    "shape of lists": (lambda b: with_header(b, OWNER, shape=[[1]]), IntegrityError, "is damaged"),
    "shape is a number": (lambda b: with_header(b, OWNER, shape=1), IntegrityError, "shape in the header"),
    "negative shape": (lambda b: with_header(b, OWNER, shape=[-1]), IntegrityError, "is damaged"),
    "range": (lambda b: with_header(b, OWNER, low=2.0), IntegrityError, "low in the header"),
    "range of text": (lambda b: with_header(b, OWNER, high="1"), IntegrityError, "low in the header"),
    "infinite range": (lambda b: with_header(b, OWNER, high=float("inf")), IntegrityError, "low in the"),
    "n": (lambda b: with_header(b, OWNER, n=1000), IntegrityError, "n in the header"),
    "absurd n": (lambda b: with_header(b, OWNER, n=HUGE), IntegrityError, "n in the header"),
    "levels": (lambda b: with_header(b, OWNER, levels=0), IntegrityError, "levels in the header"),
    "one level more": (lambda b: with_header(b, OWNER, levels=3), IntegrityError, "its header says"),
    "count": (lambda b: with_header(b, OWNER, count=HUGE), IntegrityError, "count in the header"),
    "count is true": (lambda b: with_header(b, OWNER, count=True), IntegrityError, "is damaged"),
    "scale": (lambda b: with_header(b, OWNER, scale=0.0), IntegrityError, "scale in the header"),
    "parameters": (lambda b: with_header(b, OWNER, parameters=b""), IntegrityError, "parameters in the"),
    "key id": (lambda b: with_header(b, OWNER, key_id=b"k" * 31), IntegrityError, "key_id in the header"),
    "created": (lambda b: with_header(b, OWNER, created=1 << 60), IntegrityError, "created in the header"),
    "nothing": (lambda b: bytes(len(b)), IntegrityError, "no file of privinfer"),
}


@pytest.mark.parametrize(("change", "error", "said"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_fragment(
    tmp_path: Path, blob: bytes, change: Change, error: type[PrivinferError], said: str
) -> None:
    file = tmp_path / "x.fragment"
    file.write_bytes(change(blob))
    with pytest.raises(error, match=said):
        read(file)


@given(data=st.data())
def test_any_damaged_byte_is_a_typed_error(
    tmp_path_factory: pytest.TempPathFactory, blob: bytes, data: st.DataObject
) -> None:
    """A flip or cut anywhere: an error of ours, or (header alone) a header that is possible."""
    file = tmp_path_factory.getbasetemp() / "damaged.fragment"
    at = data.draw(st.one_of(st.integers(0, 600), st.integers(0, len(blob) - 1)))
    bad = bytearray(blob)
    bad[at] ^= data.draw(st.integers(1, 255))
    file.write_bytes(bad[: data.draw(st.one_of(st.just(len(bad)), st.integers(0, len(bad))))])
    with pytest.raises(PrivinferError):
        read(file)
    try:
        read_header(file)
    except PrivinferError:
        return


def test_every_bit_of_a_header(tmp_path: Path, blob: bytes) -> None:
    """No bit of prefix or header can be turned."""
    file = tmp_path / "x.fragment"
    (length,) = struct.unpack_from("<I", blob, 12)
    for bit in range(8 * (24 + length)):
        bad = bytearray(blob)
        bad[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bad)
        with pytest.raises(PrivinferError):
            read(file)


@given(header=st.binary(max_size=80))
def test_any_header_is_a_typed_error(tmp_path_factory: pytest.TempPathFactory, header: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.fragment"
    prefix = struct.pack("<8sHHIQ", b"PRIVINF\x00", 1, 1, len(header), 8)
    file.write_bytes(prefix + header + bytes(8 + 64))
    with pytest.raises(IntegrityError):
        read(file)


def test_nested_header(tmp_path: Path) -> None:
    """Depth costs nothing: lists of lists are not in the table."""
    header = b"\xa1\x61a" + b"\x81" * 4000 + b"\x00"
    prefix = struct.pack("<8sHHIQ", b"PRIVINF\x00", 1, 1, len(header), 0)
    (tmp_path / "x").write_bytes(prefix + header + bytes(64))
    with pytest.raises(IntegrityError, match="damaged"):
        read(tmp_path / "x")


# -- files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["file", "link", "folder"])
def test_nothing_is_overwritten(tmp_path: Path, left: str) -> None:
    file = tmp_path / "x.fragment"
    if left == "file":
        file.write_text("precious")
    elif left == "link":
        file.symlink_to(tmp_path / "nowhere")
    else:
        file.mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        write(file)
    with pytest.raises(ConfigError, match="exists already"):
        write_key(file, OWNER, SECRET, PUBLIC, parameters=PARAMETERS, key=KEY_ID)
    assert [p.name for p in tmp_path.iterdir()] == ["x.fragment"]
    assert left != "file" or file.read_text() == "precious"


def test_a_race_is_lost_not_won(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else makes the file between our look and our link."""
    file = tmp_path / "x.fragment"
    file.write_text("precious")
    monkeypatch.setattr(os.path, "lexists", lambda _: False)
    with pytest.raises(ConfigError, match="exists already"):
        write(file)
    assert [p.name for p in tmp_path.iterdir()] == ["x.fragment"]
    assert file.read_text() == "precious"


def test_a_disk_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    file = tmp_path / "x.fragment"
    write(file)
    assert np.array_equal(read(file).data, DATA)
    monkeypatch.setattr(os.path, "lexists", lambda _: False)
    with pytest.raises(ConfigError, match="exists already"):
        write(file, name="mri")
    assert read(file).header.input == "xray"
    assert [p.name for p in tmp_path.iterdir()] == ["x.fragment"]


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="no space left on device"):
        write(tmp_path / "x.fragment")
    assert list(tmp_path.iterdir()) == []


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write .*: no such file or directory"):
        write(tmp_path / "missing" / "x.fragment")
    with pytest.raises(ConfigError, match=r"cannot write .*: file name too long"):
        write(tmp_path / ("x" * 300))


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_no_file(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "x.fragment"
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    for action in (lambda: read(file), lambda: read_header(file), lambda: read_key(file, OWNER)):
        with pytest.raises(ConfigError):
            action()


# -- keys ------------------------------------------------------------------------------------------


def test_key_round_trip(tmp_path: Path) -> None:
    file = tmp_path / "x.ckks"
    mask = os.umask(0)  # private whatever the mask
    try:
        written = write_key(file, OWNER, SECRET, PUBLIC, parameters=PARAMETERS, key=KEY_ID)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    found = read_key(file, OWNER)
    assert found.header == written
    assert found.secret == SECRET
    assert np.array_equal(found.public, PUBLIC)
    assert repr(found) == "StoredKey(owner='hospital', hidden)"
    with pytest.raises(TypeError, match="secret"):
        found.__reduce__()


def test_nothing_secret_in_the_clear(key_blob: bytes) -> None:
    for at in range(0, len(SECRET) - 16, 16):
        assert SECRET[at : at + 16] not in key_blob


def test_two_files_of_one_key_share_nothing(tmp_path: Path) -> None:
    headers = [
        write_key(tmp_path / name, OWNER, SECRET, PUBLIC, parameters=PARAMETERS, key=KEY_ID) for name in "ab"
    ]
    assert headers[0].salt != headers[1].salt
    assert headers[0].nonce != headers[1].nonce


def test_key_of_somebody_else(tmp_path: Path, key_blob: bytes) -> None:
    file = tmp_path / "x.ckks"
    file.write_bytes(key_blob)
    file.chmod(0o600)
    with pytest.raises(ConfigError, match="belongs to hospital, not laboratory"):
        read_key(file, STRANGER)
    with pytest.raises(ConfigError, match="another certificate of hospital"):
        read_key(file, RENEWED)
    # who rewrites the header and signs still lacks the key
    file.write_bytes(with_header(key_blob, RENEWED, signer=RENEWED.fingerprint))
    with pytest.raises(IntegrityError, match="cannot be opened with this identity"):
        read_key(file, RENEWED)


def test_key_that_others_can_read(tmp_path: Path, key_blob: bytes) -> None:
    file = tmp_path / "x.ckks"
    file.write_bytes(key_blob)
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="can be read by others") as caught:
        read_key(file, OWNER)
    assert caught.value.hint == f"chmod 600 {file}"


def test_fragment_is_no_key(tmp_path: Path, blob: bytes) -> None:
    file = tmp_path / "x.ckks"
    file.write_bytes(blob)
    file.chmod(0o600)
    with pytest.raises(ConfigError, match="is a fragment"):
        read_key(file, OWNER)


@given(data=st.data())
def test_any_damaged_byte_of_a_key(
    tmp_path_factory: pytest.TempPathFactory, key_blob: bytes, data: st.DataObject
) -> None:
    file = tmp_path_factory.getbasetemp() / "damaged.ckks"
    bad = bytearray(key_blob)
    at = data.draw(st.one_of(st.integers(0, 1600), st.integers(0, len(bad) - 1)))
    bad[at] ^= data.draw(st.integers(1, 255))
    file.write_bytes(bad)
    file.chmod(0o600)
    with pytest.raises(PrivinferError):
        read_key(file, OWNER)


def test_header_is_bound_to_the_secret(tmp_path: Path, key_blob: bytes) -> None:
    """Even the owner's own signature does not make another header fit: it is authenticated data."""
    file = tmp_path / "x.ckks"
    file.write_bytes(with_header(key_blob, OWNER, created=1))
    file.chmod(0o600)
    with pytest.raises(IntegrityError, match="cannot be opened"):
        read_key(file, OWNER)


def test_derived_keys() -> None:
    """One purpose and salt, one key; nobody else's."""
    salt = b"s" * 32
    assert OWNER.derive_key("a", salt) == OWNER.derive_key("a", salt)
    assert len(OWNER.derive_key("a", salt)) == 32
    others = [OWNER.derive_key("b", salt), OWNER.derive_key("a", b"t" * 32), STRANGER.derive_key("a", salt)]
    assert OWNER.derive_key("a", salt) not in others


# -- marks of a publication ------------------------------------------------------------------------


def test_publication(tmp_path: Path) -> None:
    key = tmp_path / "x.ckks"
    assert keyfile.read_publication(key, OWNER.public, key=KEY_ID) is None
    keyfile.write_publication(key, OWNER, key=KEY_ID, joint=b"j" * 32)
    assert keyfile.read_publication(key, OWNER.public, key=KEY_ID) == b"j" * 32
    with pytest.raises(IntegrityError, match="published for a joint key before") as caught:
        keyfile.write_publication(key, OWNER, key=KEY_ID, joint=b"i" * 32)
    assert caught.value.culprit == "hospital"
    with pytest.raises(IntegrityError, match="of another key"):
        keyfile.read_publication(key, OWNER.public, key=b"q" * 32)
    with pytest.raises(IntegrityError, match="changed after"):
        keyfile.read_publication(key, STRANGER.public, key=KEY_ID)


def test_publication_that_was_emptied(tmp_path: Path) -> None:
    """A mark that cannot be read is not a mark that is absent."""
    mark = tmp_path / "x.ckks.published"
    mark.touch(0o600)
    with pytest.raises(IntegrityError, match="cut off"):
        keyfile.read_publication(tmp_path / "x.ckks", OWNER.public, key=KEY_ID)
