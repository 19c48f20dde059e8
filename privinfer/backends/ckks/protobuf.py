"""TenSEAL's two messages, context and vector, in protobuf's wire format: read and written by hand.

A message is a sequence of fields, each a key (field number, wire type) and a value: a varint, 8 bytes, or a
length and that many bytes. Only fields that TenSEAL writes are let through, each once, in any order; SEAL's
objects inside are views of the message, not copies, and are checked by `seal.py` afterwards.

=========  ==========================================================================================
context    1 parameters; 2 public part; 3 private part (refused); 4 kind (0: public keys)
public     1 public key; 2 flags (1 relinearise, 2 rescale, 4 switch modulus); 3 scale; 4 relin; 5 Galois
vector     1 sizes, packed varints; 2 ciphertexts, repeated; 3 scale
=========  ==========================================================================================
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from privinfer.backends.ckks.seal_header import Blob
from privinfer.errors import ConfigError, IntegrityError

VARINT, EIGHT, BYTES = 0, 1, 2
RELINEARISE, RESCALE, SWITCH_MODULUS = 1, 2, 4
AUTOMATIC: Final = RELINEARISE | RESCALE | SWITCH_MODULUS
MAX_CIPHERTEXTS: Final = 4096
MAX_VARINT_BYTES: Final = 10
_DOUBLE = struct.Struct("<d")
_EMPTY: Final = memoryview(b"")


@dataclass(frozen=True, slots=True)
class ContextMessage:
    """A TenSEAL context without its secret: SEAL objects as bytes, empty where there is none."""

    parameters: Blob
    public_key: Blob = _EMPTY
    flags: int = AUTOMATIC
    scale: float = -1.0
    relinearisation_key: Blob = _EMPTY
    galois_keys: Blob = _EMPTY

    def emit(self, secret_key: Blob = _EMPTY) -> bytes:
        """Bytes for ``tenseal.context_from``; with `secret_key` they are SECRET and stay in this process."""
        public = [
            *_bytes(1, self.public_key),
            _key(2, VARINT) + _varint(self.flags),
            _key(3, EIGHT) + _DOUBLE.pack(self.scale),
            *_bytes(4, self.relinearisation_key),
            *_bytes(5, self.galois_keys),
        ]
        length = sum(map(len, public))
        parts: list[Blob] = [*_bytes(1, self.parameters), _key(2, BYTES) + _varint(length), *public]
        if len(secret_key):
            private = list(_bytes(1, secret_key))
            parts += [_key(3, BYTES) + _varint(sum(map(len, private))), *private]
        return b"".join(parts)

    @classmethod
    def parse(cls, blob: Blob, culprit: str | None = None) -> ContextMessage:
        """Split a context into SEAL objects, which are not looked at.

        Raises
        ------
        ConfigError
            It holds a secret key, or is symmetric.
        IntegrityError
            Not what TenSEAL would write.
        """
        reader = _Reader("TenSEAL context", culprit)
        parameters, public = _EMPTY, None
        for number, value in reader.fields(blob, {1: BYTES, 2: BYTES, 3: BYTES, 4: VARINT}):
            if number == 1:
                parameters = reader.view(value)
            elif number == 2:
                public = reader.view(value)
            elif number == 3:
                raise ConfigError(
                    "TenSEAL context holds a secret key",
                    culprit=culprit,
                    hint="a context is shared after serialize(save_secret_key=False)",
                )
            elif value:
                raise ConfigError("TenSEAL context is symmetric, a public key is needed", culprit=culprit)
        if not len(parameters) or public is None:
            reader.fail("lacks its parameters or its public part")
        found: dict[int, object] = dict(
            reader.fields(public, {1: BYTES, 2: VARINT, 3: EIGHT, 4: BYTES, 5: BYTES})
        )
        flags, scale = found.get(2, 0), found.get(3, 0.0)
        if not isinstance(flags, int) or flags > AUTOMATIC:
            reader.fail("has unknown flags")
        if not isinstance(scale, float) or not math.isfinite(scale):
            reader.fail("has no finite scale")
        keys = [reader.view(found.get(number, _EMPTY)) for number in (1, 4, 5)]
        return cls(parameters, keys[0], flags, scale, keys[1], keys[2])


@dataclass(frozen=True, slots=True)
class VectorMessage:
    """A TenSEAL CKKSVector: how many slots of each ciphertext count, and SEAL's ciphertexts as bytes."""

    sizes: tuple[int, ...]
    ciphertexts: tuple[Blob, ...]
    scale: float

    def emit(self) -> bytes:
        """Bytes for ``tenseal.ckks_vector_from``."""
        sizes = b"".join(map(_varint, self.sizes))
        parts: list[Blob] = list(_bytes(1, sizes))
        for ciphertext in self.ciphertexts:
            parts += _bytes(2, ciphertext)
        return b"".join([*parts, _key(3, EIGHT) + _DOUBLE.pack(self.scale)])

    @classmethod
    def parse(cls, blob: Blob, slots: int, culprit: str | None = None) -> VectorMessage:
        """Split a vector into ciphertexts, which are not looked at.

        Parameters
        ----------
        blob : bytes
            The message.
        slots : int
            Slots of a ciphertext, N / 2.
        culprit : str, optional
            The party it came from.

        Raises
        ------
        IntegrityError
            Not what TenSEAL would write.
        """
        reader = _Reader("TenSEAL vector", culprit)
        sizes: Sequence[int] = ()
        ciphertexts: list[memoryview] = []
        scale = 0.0
        for number, value in reader.fields(blob, {1: BYTES, 2: BYTES, 3: EIGHT}, repeated=2):
            if number == 1:
                sizes = reader.varints(reader.view(value))
            elif number == 2:
                ciphertexts.append(reader.view(value))
            elif isinstance(value, float):
                scale = value
        if not ciphertexts or len(ciphertexts) != len(sizes) or any(not 1 <= s <= slots for s in sizes):
            reader.fail("and its ciphertexts do not agree in size")
        if not math.isfinite(scale) or scale <= 0:
            reader.fail("has no positive scale")
        return cls(tuple(sizes), tuple(ciphertexts), scale)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Wire format; every length is compared with what is left before it is used."""

    what: str
    culprit: str | None

    def fail(self, why: str) -> NoReturn:
        raise IntegrityError(f"{self.what} {why}", culprit=self.culprit)

    def view(self, value: object) -> memoryview:
        """`value` of a field that was declared BYTES."""
        assert isinstance(value, memoryview)  # noqa: S101 - fields() made it
        return value

    def fields(
        self, blob: Blob, known: dict[int, int], repeated: int | None = None
    ) -> Iterator[tuple[int, int | float | memoryview]]:
        """(number, value) of every field; `known` maps number to wire type, all but `repeated` come once."""
        view, at, seen = memoryview(blob), 0, [0] * (max(known) + 1)
        while at < len(view):
            key, at = self.varint(view, at)
            number, kind = key >> 3, key & 7
            if known.get(number) != kind:
                self.fail("has a field that TenSEAL does not write")
            seen[number] += 1
            if seen[number] > (MAX_CIPHERTEXTS if number == repeated else 1):
                self.fail(f"has field {number} too often")
            if kind == VARINT:
                value, at = self.varint(view, at)
                yield number, value
                continue
            length, at = (_DOUBLE.size, at) if kind == EIGHT else self.varint(view, at)
            if length > len(view) - at:
                self.fail("is cut off")
            piece = view[at : at + length]
            at += length
            yield number, piece if kind == BYTES else float(_DOUBLE.unpack(piece)[0])

    def varint(self, view: memoryview, at: int) -> tuple[int, int]:
        """A varint below 2^64 and where it ends."""
        value = 0
        for i in range(MAX_VARINT_BYTES):
            if at + i >= len(view):
                self.fail("is cut off")
            value |= (view[at + i] & 127) << (7 * i)
            if view[at + i] < 128:
                if value >= 1 << 64:
                    break
                return value, at + i + 1
        self.fail("holds a number of more than 64 bits")

    def varints(self, view: memoryview) -> list[int]:
        """Packed varints."""
        values: list[int] = []
        at = 0
        while at < len(view):
            if len(values) == MAX_CIPHERTEXTS:
                self.fail("has too many sizes")
            value, at = self.varint(view, at)
            values.append(value)
        return values


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _key(number: int, kind: int) -> bytes:
    return _varint(number << 3 | kind)


def _bytes(number: int, value: Blob) -> tuple[Blob, ...]:
    """A field of bytes; nothing where it is empty, as proto3 has it."""
    return (_key(number, BYTES) + _varint(len(value)), value) if len(value) else ()
