"""Files that outlive a session: a header, a body, and the owner's signature over both.

======  ====  =====================================================================================
offset  size
======  ====  =====================================================================================
0       8     ``PRIVINF`` and a zero byte
8       2     format version, little endian like all numbers here
10      2     kind: 1 fragment, 2 key, 3 mark of a publication, 4 opening of weights
12      4     h, bytes of the header, at most 4096
16      8     b, bytes of the body, at most 2 GiB
24      h     header: CBOR in canonical form, a map of text to numbers, text, bytes and lists of numbers
24+h    b     body
24+h+b  64    Ed25519 signature over SHA-512 of everything before it
======  ====  =====================================================================================

Whoever reads one knows nothing about it yet, so every size is compared with the file's before a byte is
taken, and the header is read by a decoder that knows nothing but what stands in the table.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from privinfer.errors import ConfigError, IntegrityError, ProtocolViolation
from privinfer.session import canonical
from privinfer.session.identity import Identity, PublicIdentity

Value = int | float | str | bytes | list["Value"]

MAGIC: Final = b"PRIVINF\x00"
VERSION: Final = 1
FRAGMENT, KEY, PUBLICATION, OPENING = 1, 2, 3, 4
KINDS: Final = {FRAGMENT: "fragment", KEY: "key", PUBLICATION: "publication", OPENING: "opening"}
MAX_HEADER: Final = 4096
MAX_BODY: Final = 2 << 30
SIGNATURE: Final = 64
_PREFIX = struct.Struct("<8sHHIQ")
_SIGNED = b"privinfer file at rest v1\x00"
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)  # as on memory sticks
_AGAIN: Final = "copy it again from where it was written"


@dataclass(frozen=True, slots=True)
class Sealed:
    """A file that was read and whose form is right; :meth:`verify` says whether its owner made it.

    Attributes
    ----------
    kind : int
    header : dict
    size : int
        Bytes of the body.
    body : memoryview
        Empty where only the header was read.
    prefix : bytes
        Everything before the body.
    """

    kind: int
    header: dict[str, Value]
    size: int
    body: memoryview
    prefix: bytes
    signature: bytes

    def digest(self) -> bytes:
        """SHA-256 of the file, where its body was read."""
        digest = hashlib.sha256(self.prefix)
        digest.update(self.body)
        digest.update(self.signature)
        return digest.digest()

    def verify(self, owner: PublicIdentity, name: str) -> None:
        """Raise IntegrityError where this is not what `owner` signed."""
        try:
            owner.verify(_SIGNED + _digest(self.prefix, self.body), self.signature)
        except ProtocolViolation:
            raise IntegrityError(
                f"{name} was changed after {owner.name} signed it, or is not theirs",
                culprit=owner.name,
                hint=_AGAIN,
            ) from None


def encode_prefix(kind: int, header: dict[str, Value], body: int) -> bytes:
    """Everything that stands before a body of `body` bytes."""
    encoded = canonical.dumps(header)
    if len(encoded) > MAX_HEADER or body > MAX_BODY:
        raise ConfigError(f"a {KINDS[kind]} of {len(encoded)} and {body} bytes is too large")
    return _PREFIX.pack(MAGIC, VERSION, kind, len(encoded), body) + encoded


def write(
    path: str | os.PathLike[str], identity: Identity, prefix: bytes, body: memoryview, mode: int = 0o666
) -> None:
    """Sign and write a file that does not exist yet: it is there as a whole or not at all.

    Parameters
    ----------
    path : path
        Must not exist.
    identity : Identity
        Signs.
    prefix : bytes
        From :func:`encode_prefix`.
    body : memoryview
        Of bytes.
    mode : int
        Permissions, before the process's mask.

    Raises
    ------
    ConfigError
        It exists, or cannot be written.
    """
    signature = identity.sign(_SIGNED + _digest(prefix, body))
    file = Path(path)
    new = file.with_name(f".{secrets.token_hex(16)}")
    try:
        if os.path.lexists(file):
            raise _exists(file)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with open(fd, "wb") as out:
                for part in (prefix, body, signature):
                    out.write(part)
                out.flush()
                os.fsync(out.fileno())
            _put(new, file, mode)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(new)
        folder = os.open(file.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except FileExistsError:
        raise _exists(file) from None
    except OSError as e:
        raise ConfigError(f"cannot write {file}: {(e.strerror or 'error').lower()}") from None


def _put(new: Path, file: Path, mode: int) -> None:
    """Give a finished file its name; FileExistsError where another process was faster."""
    try:
        os.link(new, file)  # unlike a rename it never replaces anything
    except OSError as e:
        if e.errno not in _NO_LINKS:
            raise
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode))
        os.replace(new, file)  # our own, empty one


def is_sealed(path: str | os.PathLike[str]) -> bool:
    """Whether a file starts like one of these; False where it cannot be read."""
    file = Path(path)
    try:
        if not file.is_file():  # opening a named pipe would wait
            return False
        with file.open("rb") as stream:
            return stream.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read(
    path: str | os.PathLike[str], kind: int, *, private: bool = False, only_header: bool = False
) -> Sealed:
    """Read a file of `kind` and check its form; nobody's signature is checked yet.

    Parameters
    ----------
    path : path
        Any file.
    kind : int
        FRAGMENT, KEY, PUBLICATION or OPENING.
    private : bool
        Refuse one that others may read.
    only_header : bool
        Leave the body where it is.

    Raises
    ------
    ConfigError
        Missing, unreadable, of another kind, written by a later privinfer, or readable by others.
    IntegrityError
        Not such a file, cut off, or with something behind its end.
    """
    file = Path(path)
    what = KINDS[kind]
    try:
        # Non-blocking: a named pipe in the file's place must not hang us.
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except OSError as e:
        raise ConfigError(f"cannot read {what} {file}: {(e.strerror or 'error').lower()}") from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise ConfigError(f"{what} {file} is not a regular file")
    with open(fd, "rb") as stream:
        if private and os.name == "posix" and status.st_mode & 0o077:
            raise ConfigError(f"{what} {file} can be read by others", hint=f"chmod 600 {file}")
        start = stream.read(_PREFIX.size)
        length, body = _check_prefix(start, kind, status.st_size, f"{what} {file}")
        prefix = start + stream.read(length)
        if len(prefix) != len(start) + length:
            raise IntegrityError(f"{what} {file} is cut off", hint=_AGAIN)
        header = _decode(prefix[_PREFIX.size :], f"{what} {file}")
        rest = b"" if only_header else stream.read(body + SIGNATURE)
    if not only_header and len(rest) != body + SIGNATURE:
        raise IntegrityError(f"{what} {file} is cut off", hint=_AGAIN)
    return Sealed(kind, header, body, memoryview(rest)[:body], prefix, rest[body:])


def _check_prefix(start: bytes, kind: int, size: int, name: str) -> tuple[int, int]:
    if len(start) < _PREFIX.size:
        raise IntegrityError(f"{name} is cut off", hint=_AGAIN)
    magic, version, found, length, body = _PREFIX.unpack(start)
    if magic != MAGIC:
        raise IntegrityError(
            f"{name} is no file of privinfer",
            hint="privinfer fragment writes fragments and keys, privinfer commit openings",
        )
    if version != VERSION:
        raise ConfigError(
            f"{name} has format version {version}, and this privinfer reads {VERSION}",
            hint="use the release that wrote it, or a later one" if version > VERSION else None,
        )
    if found != kind:
        raise ConfigError(
            f"{name} is a {KINDS.get(found, 'file of unknown kind')}",
            hint=f"give the {KINDS[kind]}",
        )
    if length > MAX_HEADER or body > MAX_BODY:
        raise IntegrityError(f"{name} declares {length} and {body} bytes, which is too large")
    if size != _PREFIX.size + length + body + SIGNATURE:
        raise IntegrityError(f"{name} is cut off or too long", hint=_AGAIN)
    return length, body


def _digest(prefix: bytes, body: memoryview) -> bytes:
    digest = hashlib.sha512(prefix)
    digest.update(body)
    return digest.digest()


def _exists(file: Path) -> ConfigError:
    return ConfigError(f"{file} exists already", hint="choose another file name")


# -- header ----------------------------------------------------------------------------------------


def _decode(data: bytes, name: str) -> dict[str, Value]:
    """A canonical map of text to plain values and lists of them."""
    try:
        found = canonical.loads(data, name, most=MAX_HEADER)
    except ProtocolViolation:
        found = None
    if not isinstance(found, dict) or not all(_is_plain(v) for v in found.values()):
        raise IntegrityError(f"the header of {name} is damaged")
    return found


def _is_plain(value: object, nested: bool = False) -> bool:
    if isinstance(value, list):
        return not nested and all(_is_plain(item, nested=True) for item in value)
    if isinstance(value, int):
        return not isinstance(value, bool) and value >= 0
    return isinstance(value, float | str | bytes)
