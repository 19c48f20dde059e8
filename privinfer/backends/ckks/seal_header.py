"""The header that begins each of SEAL's objects, and what compression hides behind it.

16 bytes, little endian: magic 0xA15E (2), size of the header (1), SEAL's major and minor version (1, 1),
compression (1), reserved (2), size of everything (8). Malformed bytes are an IntegrityError; what is well
formed but of another version, or compressed, is a ConfigError.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from typing import Final, NamedTuple

from privinfer.errors import ConfigError, IntegrityError

Blob = bytes | bytearray | memoryview
Inflate = Callable[[memoryview, int], bytes]

MAGIC: Final = 0xA15E
NONE, ZLIB, ZSTD = 0, 1, 2
MAX_RATIO: Final = (
    4  # residues are uniform: of 64 bits, those of a prime of 16 or more cannot be squeezed out
)
MAX_SPARE: Final = 1 << 20  # but empty rows of Galois keys can
HEADER: Final = struct.Struct("<HBBBBHQ")
_COMPRESSIONS = {ZLIB: "zlib", ZSTD: "zstd"}


class Version(NamedTuple):
    """SEAL's major and minor version; objects are exchanged between equal ones only."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


class Header(NamedTuple):
    """What the first 16 bytes of an object say."""

    version: Version
    compression: int
    size: int


def read_header(blob: Blob, what: str = "object", culprit: str | None = None) -> Header:
    """The header of an object, of any version and compression, checked against the bytes that are there.

    Parameters
    ----------
    blob : bytes
        The whole object and nothing behind it.
    what : str
        What errors call it.
    culprit : str, optional
        The party it came from.

    Raises
    ------
    IntegrityError
        It is no SEAL object, or is cut off, or something follows it.
    """
    if len(blob) < HEADER.size:
        raise IntegrityError(f"SEAL {what} is cut off: {len(blob)} bytes hold no header", culprit=culprit)
    magic, length, major, minor, compression, reserved, size = HEADER.unpack_from(blob)
    if magic != MAGIC or length != HEADER.size or reserved:
        raise IntegrityError(f"SEAL {what} does not begin with SEAL's header", culprit=culprit)
    if compression not in (NONE, ZLIB, ZSTD):
        raise IntegrityError(f"SEAL {what} has an unknown compression", culprit=culprit)
    if size != len(blob):
        raise IntegrityError(
            f"SEAL {what} is cut off or too long: its header says {size} bytes, {len(blob)} are there",
            culprit=culprit,
        )
    return Header(Version(major, minor), compression, size)


def inflate(
    blob: Blob, limit: int, zstd: Inflate | None = None, what: str = "object", culprit: str | None = None
) -> Blob:
    """An object without its compression: at most `limit` bytes, and what uniform residues may come from.

    Parameters
    ----------
    blob : bytes
        Any object.
    limit : int
        Bytes that the result, header included, may have: the size of an honest one.
    zstd : callable, optional
        (compressed bytes, limit) to bytes; without it zstd is refused.
    what, culprit : str
        For errors.

    Raises
    ------
    ConfigError
        zstd, and no way to undo it.
    IntegrityError
        It does not inflate, or to more than `limit`.
    """
    header = read_header(blob, what, culprit)
    if header.compression == NONE:
        return blob
    packed = memoryview(blob)[HEADER.size :]
    room = min(limit - HEADER.size, MAX_RATIO * len(packed) + MAX_SPARE)
    if header.compression == ZSTD:
        if zstd is None:
            raise _compressed(what, header.compression, culprit)
        members = zstd(packed, room)
    else:
        try:
            stream = zlib.decompressobj()
            members = stream.decompress(packed, room + 1)
            whole = stream.eof and not stream.unused_data
        except zlib.error:
            raise IntegrityError(f"SEAL {what} is compressed and damaged", culprit=culprit) from None
        if len(members) <= room and not whole:
            raise IntegrityError(f"SEAL {what} is compressed and cut off", culprit=culprit)
    if len(members) > room:
        raise IntegrityError(f"SEAL {what} inflates to more than {room} bytes", culprit=culprit)
    return make_header(header.version, len(members) + HEADER.size) + members


def make_header(version: Version, size: int) -> bytes:
    """Header of an uncompressed object of `size` bytes, header included."""
    return HEADER.pack(MAGIC, HEADER.size, version.major, version.minor, NONE, 0, size)


def check_outer(blob: Blob, version: Version, what: str, culprit: str | None) -> None:
    """Header of an outermost object: whole, of this version, uncompressed."""
    header = read_header(blob, what, culprit)
    if header.version != version:
        raise ConfigError(
            f"SEAL {what}: written by SEAL {header.version}, and this is SEAL {version}",
            culprit=culprit,
            hint="all parties install the same tenseal",
        )
    if header.compression != NONE:
        raise _compressed(what, header.compression, culprit)


def _compressed(what: str, compression: int, culprit: str | None) -> ConfigError:
    return ConfigError(
        f"SEAL {what}: compressed with {_COMPRESSIONS[compression]}, which is not read",
        culprit=culprit,
        hint="save it with compr_mode_type::none",
    )


def check_inner(blob: Blob, offset: int, version: Version, size: int, what: str, culprit: str | None) -> None:
    """Header of an array or modulus inside an object, whose place and size are known."""
    found = bytes(memoryview(blob)[offset : offset + HEADER.size])
    if found != make_header(version, size):
        raise IntegrityError(f"SEAL {what}: a header inside it is wrong", culprit=culprit)
