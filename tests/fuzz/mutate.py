"""Mutations without coverage: what runs in a test, and where atheris is not installed."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator, Sequence

_NUMBERS = (0, 1, 2, 7, 23, 24, 31, 127, 128, 255, 256, 4096, 65535, 1 << 20, 1 << 31, (1 << 32) - 1)
_LONG = (1 << 62, 1 << 63, (1 << 64) - 1)
_MAX = 1 << 16


def mutations(corpus: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """Examples as they are, then changed for ever; the same for the same seed."""
    yield from corpus
    yield from (b"", b"\0", b"\xff" * 64)
    draw = random.Random(seed)  # which bytes a test changes is no secret
    while True:
        data = bytearray(draw.choice(corpus))
        for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
            data = _change(data, corpus, draw)
        yield bytes(data[:_MAX])


def _change(data: bytearray, corpus: Sequence[bytes], draw: random.Random) -> bytearray:
    # headers stand in front: half of all changes go to the first 64 bytes
    at = draw.randrange(min(len(data), 64) + 1 if draw.random() < 0.5 else len(data) + 1)
    match draw.randrange(9):
        case 0 if data:
            data[at % len(data)] ^= 1 << draw.randrange(8)
        case 1 if data:
            data[at % len(data)] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        case 2:
            del data[at:]
        case 3:
            del data[at : at + draw.choice((1, 2, 4, 8, 32))]
        case 4:
            data[at:at] = draw.randbytes(draw.choice((1, 2, 4, 8, 32)))
        case 5:
            other = draw.choice(corpus)
            start = draw.randrange(len(other) + 1)
            data[at:] = other[start:]
        case 6:
            size = draw.choice((1, 4, 16, 64, 256))
            data[at:at] = data[at : at + size] * draw.choice((1, 2, 16))
        case 7:
            form = draw.choice(("<H", "<I", ">H", ">I"))
            number = draw.choice(_NUMBERS) & (0xFFFF if form[1] == "H" else 0xFFFFFFFF)
            data[at : at + struct.calcsize(form)] = struct.pack(form, number)
        case _:
            form = draw.choice(("<Q", ">Q"))
            data[at : at + 8] = struct.pack(form, draw.choice(_NUMBERS + _LONG))
    return data
