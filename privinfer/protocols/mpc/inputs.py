"""Input of an owner O: O masks it, both evaluators get the same x^, and a lie is pinned on somebody.

Functionality: O holds x; E1 and E2 learn x^ = x + r mod 2**64, H learns r, nobody else anything.
Adversary: semi-honest, one of E1, E2, H; O may be malicious in what it sends: unequal x^ would leak weight
masks, so E1 and E2 compare digests BEFORE the first opening, and O signs each digest.
Rounds: 1 (offline: the seeds; online: x^) and 1 to compare. Bytes: offline 36 to E1 and E2, 68 to H;
online 8 a value + 64 to each evaluator; compared: 96 an input, each way. Correctness error: rounding of
the input to f bits, 2**-(f+1).
Source: docs/protocols.md, input. No digest of a masked value ever reaches H or a log: H knows r and could
search for x.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from privinfer.errors import InputError, ProtocolViolation
from privinfer.graph import fixedpoint as fp
from privinfer.protocols.commitment import Opening
from privinfer.protocols.mpc.wires import MaskPair, MaskShare, Wide
from privinfer.protocols.randomness import SEED_BYTES, U64, Scope, Secret, Seed, Stream

SIGNATURE_BYTES = 64
DIGEST_BYTES = 32
SIGNED = b"privinfer/input/1:"
BATCH_BYTES = 4
MAX_BATCH = 1 << 16
Sign = Callable[[bytes], bytes]
Verify = Callable[[str, bytes, bytes], None]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class InputSeeds(Secret):
    """What the owner sends offline: the seed of r1 to E1, of r2 to E2, both to H."""

    seeds: tuple[Seed, Seed]
    batch: int

    @classmethod
    def fresh(cls, batch: int, digest: bytes = b"") -> InputSeeds:
        """Two new seeds, bound to the digest of the data where these exist already."""
        return cls((Seed.fresh(digest, b"1"), Seed.fresh(digest, b"2")), batch)

    @classmethod
    def of(cls, batch: int, opening: Opening, scope: Scope, step: fp.Step) -> InputSeeds:
        """Seeds that derive from the opening of the owner's commitment: an auditor can check x^ by it."""
        where = step.node, scope.session, scope.inference, scope.attempt
        return cls((opening.seed("input", 1, *where), opening.seed("input", 2, *where)), batch)

    @classmethod
    def parse(cls, data: bytes) -> InputSeeds:
        """Read what :meth:`to_helper` wrote."""
        batch, (first, second) = parse_seeds(data, "this party")
        return cls((first, second), batch)

    def to_evaluator(self, evaluator: int) -> bytes:
        """Offline message to E1 or E2."""
        return self.batch.to_bytes(BATCH_BYTES, "little") + self.seeds[evaluator].expose()

    def to_helper(self) -> bytes:
        """Offline message to H."""
        return self.batch.to_bytes(BATCH_BYTES, "little") + b"".join(s.expose() for s in self.seeds)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class MaskedInput(Secret):
    """What the owner sends online: x^ and its signature."""

    masked: bytes
    signature: bytes

    def online(self) -> bytes:
        """Online message, the same to E1 and E2."""
        return self.masked + self.signature


def evaluator_size() -> int:
    """Bytes of the offline message to an evaluator."""
    return BATCH_BYTES + SEED_BYTES


def helper_size() -> int:
    """Bytes of the offline message to H."""
    return BATCH_BYTES + 2 * SEED_BYTES


def online_size(step: fp.Step, batch: int) -> int:
    """Bytes of the online message."""
    return 8 * batch * step.type.size + SIGNATURE_BYTES


def compared_size(count: int) -> int:
    """Bytes each evaluator sends the other to compare `count` inputs."""
    return count * (DIGEST_BYTES + SIGNATURE_BYTES)


def mask_input(step: fp.Step, values: U64, seeds: InputSeeds, scope: Scope, sign: Sign) -> MaskedInput:
    """Owner: x^ = x + r1 + r2, and a signature over its digest.

    Raises
    ------
    InputError
        The masks were dealt for another batch.
    """
    if len(values) != seeds.batch:
        raise InputError(f"input {step.node!r} has {len(values)} rows, but {seeds.batch} were dealt for")
    r1, r2 = (mask_share(step, values.shape, s, scope).values for s in seeds.seeds)
    r1 += r2
    r1 += values
    masked = r1.astype("<u8", copy=False).tobytes()
    return MaskedInput(masked, sign(statement(step, scope, hashlib.sha256(masked).digest())))


def statement(step: fp.Step, scope: Scope, digest: bytes) -> bytes:
    """What the owner signs."""
    head = f"{step.node}:{scope.inference}:{scope.attempt}:".encode()
    return SIGNED + head + scope.session + digest


def mask_share(step: fp.Step, shape: tuple[int, ...], seed: Seed, scope: Scope) -> MaskShare:
    """Evaluator: its half of the mask."""
    return MaskShare(Stream(seed, scope, "input").draw(step.node, shape), fp.WIDE)


def mask_pair(step: fp.Step, shape: tuple[int, ...], seeds: tuple[Seed, Seed], scope: Scope) -> MaskPair:
    """Helper: both halves."""
    first, second = (mask_share(step, shape, s, scope).values for s in seeds)
    return MaskPair(first, second, fp.WIDE)


def parse_seeds(data: bytes, owner: str) -> tuple[int, list[Seed]]:
    """Batch size and seeds of an offline message.

    Raises
    ------
    InputError
        The batch is not in 0 to 65,536.
    """
    batch = int.from_bytes(data[:BATCH_BYTES], "little")
    if batch > MAX_BATCH:
        raise InputError(f"a batch of {batch} is more than {MAX_BATCH}", culprit=owner)
    seeds = data[BATCH_BYTES:]
    return batch, [Seed(seeds[k : k + SEED_BYTES]) for k in range(0, len(seeds), SEED_BYTES)]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Received(Secret):
    """An evaluator's copy of one masked input, with what the owner signed."""

    step: fp.Step
    owner: str
    wire: Wide
    digest: bytes
    signature: bytes

    @classmethod
    def parse(
        cls, step: fp.Step, owner: str, shape: tuple[int, ...], data: bytes, scope: Scope, verify: Verify
    ) -> Received:
        """Read the online message; ProtocolViolation names the owner where the signature is wrong."""
        masked, signature = memoryview(data)[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]
        digest = hashlib.sha256(masked).digest()
        verify(owner, statement(step, scope, digest), signature)
        values = np.frombuffer(masked, dtype="<u8").astype(np.uint64, copy=False).reshape(shape)
        return cls(step, owner, Wide(values, fp.WIDE), digest, signature)


def comparison_message(received: list[Received]) -> bytes:
    """Digests and signatures, to the other evaluator."""
    return b"".join(r.digest + r.signature for r in received)


def compare(received: list[Received], data: bytes, other: str, scope: Scope, verify: Verify) -> None:
    """Stop before anything depends on inputs that the evaluators hold differently.

    Raises
    ------
    ProtocolViolation
        An owner signed two different values (the owner is the culprit), or the other evaluator shows a
        digest that the owner never signed (the evaluator is).
    """
    size = DIGEST_BYTES + SIGNATURE_BYTES
    for k, own in enumerate(received):
        digest = data[k * size : k * size + DIGEST_BYTES]
        signature = data[k * size + DIGEST_BYTES : (k + 1) * size]
        if digest == own.digest:
            continue
        try:
            verify(own.owner, statement(own.step, scope, digest), signature)
        except ProtocolViolation:
            raise ProtocolViolation(
                f"shows a value for input {own.step.node!r} that its owner never signed",
                culprit=other,
                step=own.step.node,
            ) from None
        raise ProtocolViolation(
            f"sent the evaluators two different values for input {own.step.node!r}",
            culprit=own.owner,
            step=own.step.node,
        )
