"""Dealing ahead: which stored piece all parties of a session use next, and what each keeps in its store."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterable, Mapping

import cbor2

from privinfer.backends.base import Role
from privinfer.errors import IntegrityError, ProtocolViolation
from privinfer.runtime.store import Offer

_OFFER = struct.Struct("<B32sQQI")
OFFER_BYTES = _OFFER.size


def pack_offer(offer: Offer | None) -> bytes:
    """What a party tells the others of its store."""
    if offer is None:
        return _OFFER.pack(0, b"", 0, 0, 0)
    return _OFFER.pack(1, offer.generation, offer.number, offer.end, offer.batch)


def parse_offer(data: bytes, peer: str) -> Offer | None:
    """Read what :func:`pack_offer` wrote."""
    if len(data) != _OFFER.size or data[0] > 1:
        raise ProtocolViolation("sent a malformed offer", culprit=peer)
    has, generation, number, end, batch = _OFFER.unpack(data)
    return Offer(generation, number, end, batch) if has else None


def agreed(offers: Iterable[Offer | None]) -> Offer | None:
    """What all who keep something can use: one generation, the largest next number, the smallest end.

    None where somebody has nothing, or something of another generation: then masks are dealt live.
    """
    known = list(offers)
    if not known or any(o is None for o in known):
        return None
    have = [o for o in known if o is not None]
    first = have[0]
    if any((o.generation, o.batch) != (first.generation, first.batch) for o in have):
        return None
    number, end = max(o.number for o in have), min(o.end for o in have)
    return Offer(first.generation, number, end, first.batch) if number < end else None


def whole(offer: Offer | None, pieces: int) -> Offer | None:
    """The same without runs of which a piece is gone: each takes `pieces`, counted from the first."""
    if offer is None:
        return None
    number = offer.number + (offer.first - offer.number) % pieces
    end = offer.end - (offer.end - offer.first) % pieces
    return dataclasses.replace(offer, number=number, end=end) if number < end else None


def check_whole(own: Offer, theirs: Offer | None, pieces: int, peer: str) -> None:
    """Raise ProtocolViolation where a peer offers part of a run of a generation that this party has too."""
    if theirs is None or (theirs.generation, theirs.batch) != (own.generation, own.batch):
        return
    if (theirs.number - own.first) % pieces or (theirs.end - own.first) % pieces:
        raise ProtocolViolation("offers a part of a run", culprit=peer)


def pack_roles(kept: Mapping[Role, bytes | None]) -> bytes:
    """What the roles of one party keep, as one blob."""
    return cbor2.dumps({role: data for role, data in kept.items() if data is not None})


def unpack_roles(blob: bytes) -> dict[Role, bytes]:
    """Inverse of :func:`pack_roles`."""
    try:
        found = cbor2.loads(blob)
        if isinstance(found, dict) and all(
            isinstance(k, str) and isinstance(v, bytes) for k, v in found.items()
        ):
            return found
    except (
        cbor2.CBORError,
        ValueError,
        EOFError,
    ):  # the bytes match their digest, so another version wrote them
        pass
    raise IntegrityError("the store was written by another version", hint="remove it and deal again")
