"""CBOR in its one canonical form: what parties sign and hash, and what they read from strangers.

Only plain values are read: integers, float64, booleans, null, text, bytes, lists, maps with text keys. No
tag is followed, so nothing is built at a stranger's wish; depth and size are bounded before anything is
taken.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

import cbor2

from privinfer.errors import ProtocolViolation

Value = None | bool | int | float | str | bytes | Sequence["Value"] | Mapping[str, "Value"]

MAX_BYTES: Final = 1 << 20
_MAX_DEPTH = 6
_MAX_ITEMS = 1 << 16
_MAX_IN_ALL = 1 << 18
_FLOATS = {25: ">e", 26: ">f", 27: ">d"}
T = TypeVar("T")
_SIMPLE = {20: False, 21: True, 22: None}


def dumps(value: Value) -> bytes:
    """The one encoding of a value (RFC 8949, 4.2: shortest forms, keys in bytewise order)."""
    encoded: bytes = cbor2.dumps(value, canonical=True)
    return encoded


def loads(data: bytes, what: str, culprit: str | None = None, most: int = MAX_BYTES) -> Value:
    """Read what :func:`dumps` wrote, from anybody.

    Parameters
    ----------
    data : bytes
        Hostile until read.
    what : str
        What an error calls it.
    culprit : str, optional
        Who sent it.
    most : int
        Bytes admitted.

    Raises
    ------
    ProtocolViolation
        It is longer, damaged, or has another form than the canonical one.
    """
    try:
        if len(data) > most:
            raise ValueError
        value, at = _item(data, 0, 0, [_MAX_IN_ALL])
        if at != len(data) or dumps(value) != data:  # one encoding of each value, nothing behind it
            raise ValueError
    except (ValueError, IndexError, struct.error, OverflowError):
        raise ProtocolViolation(f"{what} cannot be read", culprit=culprit) from None
    return value


def _head(data: bytes, at: int) -> tuple[int, int, int]:
    kind, low = data[at] >> 5, data[at] & 31
    at += 1
    if kind == 7 or low < 24:
        return kind, low, at
    size = {24: 1, 25: 2, 26: 4, 27: 8}.get(low)
    if size is None or at + size > len(data):
        raise ValueError
    return kind, int.from_bytes(data[at : at + size]), at + size


def _item(data: bytes, at: int, depth: int, left: list[int]) -> tuple[Value, int]:
    kind, value, at = _head(data, at)
    if kind == 0:
        return value, at
    if kind == 1:
        return -1 - value, at
    if kind in (2, 3):
        if value > len(data) - at:
            raise ValueError
        piece = bytes(data[at : at + value])
        return (piece if kind == 2 else piece.decode("utf-8")), at + value
    if kind == 7 and value in _SIMPLE:
        return _SIMPLE[value], at
    if kind == 7 and value in _FLOATS:
        form = _FLOATS[value]
        return float(struct.unpack_from(form, data, at)[0]), at + struct.calcsize(form)
    left[0] -= value if kind in (4, 5) else 0
    if kind not in (4, 5) or depth == _MAX_DEPTH or value > min(len(data) - at, _MAX_ITEMS) or left[0] < 0:
        raise ValueError
    if kind == 4:
        items: list[Value] = []
        for _ in range(value):
            item, at = _item(data, at, depth + 1, left)
            items.append(item)
        return items, at
    found: dict[str, Value] = {}
    for _ in range(value):
        key, at = _item(data, at, depth + 1, left)
        if not isinstance(key, str):
            raise ValueError
        found[key], at = _item(data, at, depth + 1, left)
    return found, at


class Fields:
    """A map that hands out each key once, with the type asked for; used like the session file's tables.

    Raises
    ------
    ProtocolViolation
        A key is missing, has another type, or is not known.
    """

    def __init__(self, value: Value, what: str, culprit: str | None = None) -> None:
        if not isinstance(value, Mapping):
            raise ProtocolViolation(f"{what} is not a map", culprit=culprit)
        self._left, self._what, self._culprit = dict(value), what, culprit

    def has(self, key: str) -> bool:
        """Whether a key is there still."""
        return key in self._left

    def take(self, key: str, kind: type[T], size: int | None = None) -> T:
        """A value of this type; bytes of this length where one is given."""
        value = self._left.pop(key, _MISSING)
        good = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if not good or (size is not None and isinstance(value, bytes) and len(value) != size):
            raise ProtocolViolation(f"{self._what} has no proper {key}", culprit=self._culprit)
        return value  # type: ignore[return-value]

    def finish(self) -> None:
        """Refuse what nobody asked for."""
        if self._left:
            name = min(self._left)[:40]
            shown = name if name.isprintable() else "?"
            raise ProtocolViolation(f"{self._what} has an unknown field {shown!r}", culprit=self._culprit)


_MISSING = object()
