"""Bilinear gate whose weights stay with the model owner: z = x W + b on ciphertexts, then truncation.

Functionality: as `linear.py`, y = trunc(x W + b), but W and b are known to the model owner alone, in no form
to anybody else: y^ under a fresh mask comes out.
Adversary: semi-honest. Private unless two of {E1, E2, H} collude (they unmask wires), or all key holders with
the model owner (they decrypt).
Preprocessing: H deals rz (`rescale.py`): q / 8 bytes a value of z to E2; nothing where nothing is dropped.
Rounds: `hops` + 1, in this order. Bytes are declared in :func:`cost`.
1. E1 encrypts x^ - r1, E2 encrypts -r2: numbers mod 2**64 (`ckks/ring64.py`), packed by coefficients
   (`ckks/coefficients.py`), under the joint public key. The model owner adds the two: x, wherever it wraps.
2. The model owner multiplies and sums, drops a limb, adds a fresh encryption of zero, and sends the second
   halves c1 to the key holders: c0 never leaves it.
3. Key holders send s_i c1 + e_i - M_i, M_i uniform mod Q (`ckks/to_modular_shares.py`). Rounded to Z_2^64,
   what they keep and what the model owner gets add up to x W; the model owner adds its bias to its share.
4. Who is an evaluator too keeps its share t. Everybody else has a seed with E1: the draw a from it is E1's,
   t - a goes to E2. With the model owner at an evaluator this comes with message 3: 3 hops, otherwise 4.
5. The evaluators open z + rz truncated.
Correctness error: |y - z / 2**shift| < 1.5 + (n + 1) / 2**shift units in the last place for n key holders
(`opening.py`, `ring64.py`); n + 1 units of z where nothing is dropped.
The n + 1 units depend on shares that nobody has all of. Every holder knows the rounding of its own: what a
receiver that is a key holder could tell from the last place of y is where its rounding turns, to within
(n + 1) / 2**shift.
Source: docs/ckks.md, exact mode; the hybrid of Gazelle (USENIX Security 2018) and Cheetah (2022).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from privinfer.graph import fixedpoint as fp
from privinfer.graph import ir
from privinfer.protocols.ckks import coefficients, encryption, ring64, to_modular_shares, to_shares
from privinfer.protocols.ckks.coefficients import I64, Convolution, Packing
from privinfer.protocols.ckks.keys import KeyShare, PublicKey
from privinfer.protocols.ckks.messages import Message, residues_size
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.ckks.release import Permit
from privinfer.protocols.cost import Cost
from privinfer.protocols.mpc import rescale
from privinfer.protocols.mpc.dealing import Dealt, packed_size
from privinfer.protocols.mpc.gate import FromProducts, Gate, Rounds, ToModelOwner, Wait
from privinfer.protocols.mpc.wires import Masked, MaskShare, Wide, need
from privinfer.protocols.randomness import U64, Stream

RING: Final = 8192
SENT: Final = 3  # limbs: 150 bits hold 64, the weights and the noise
OPENED: Final = 2  # 100 bits hold 64 and what rounding adds
HOPS: Final = 3  # with the model owner at an evaluator; one more elsewhere


def parameters() -> Parameters:
    """Of every session's joint key: log2(QP) is 200 with the special prime, 150 as used."""
    return Parameters(RING, SENT)


@dataclass(frozen=True, slots=True)
class Product:
    """How one bilinear map of `batch` rows is packed.

    Attributes
    ----------
    op : Linear, Conv2d or Scale
        The map.
    shape : tuple of int
        Of its input, without the batch.
    batch : int
        Rows.
    """

    op: ir.Linear | ir.Conv2d | ir.Scale
    shape: ir.Shape
    batch: int

    @property
    def packing(self) -> Packing:
        """The same for everybody; needs a row at least."""
        size = int(np.prod((self.batch, *self.shape), dtype=np.int64))
        match self.op:
            case ir.Linear(inputs, outputs):
                shape, rows = Convolution(1, inputs, outputs), size // inputs
            case ir.Scale(_, channels):
                shape, rows = Convolution(channels, 1, 1), size // channels
            case ir.Conv2d() as op:
                shape = Convolution(
                    op.groups,
                    op.inputs // op.groups,
                    op.outputs // op.groups,
                    self.shape[1],
                    self.shape[2],
                    op.kernel,
                    op.stride,
                    op.padding,
                    op.dilation,
                )
                rows = self.batch
        return coefficients.choose(shape, rows, RING)

    def spread(self, x: U64) -> U64:
        """Coefficients of an input or a share of it, shape (polynomials, N)."""
        if isinstance(self.op, ir.Scale):
            x = np.moveaxis(x, self.op.axis, -1)
        if not isinstance(self.op, ir.Conv2d):
            x = x.reshape(-1, x.shape[-1], 1, 1)
        return self.packing.spread(x).reshape(-1, RING)

    def gather(self, z: U64) -> U64:
        """The map's values, or shares of them, from coefficients of shape (polynomials, N)."""
        packing = self.packing
        nr, ng, _, no = packing.counts
        found = packing.gather(z.reshape(nr, ng, no, RING))
        match self.op:
            case ir.Linear(_, outputs):
                return found.reshape(self.batch, *self.shape[:-1], outputs)
            case ir.Scale(axis, channels):
                moved = [self.batch, *self.shape]
                del moved[axis]
                found = found.reshape(*moved, channels)
                return np.ascontiguousarray(np.moveaxis(found, -1, axis))
        return found

    def weights(self, weight: U64) -> I64:
        """Coefficients of the weights as they are sent in no message: signed, (groups, out, in, N)."""
        signed = weight.view(np.int64)
        match self.op:
            case ir.Linear():
                signed = signed.T[:, :, None, None]
            case ir.Scale():
                signed = signed[:, None, None, None]
        return self.packing.weights(np.ascontiguousarray(signed))


def cost(step: fp.Step, op: fp.Bilinear, shape: ir.Shape, batch: int) -> Cost:
    """Rounds and bytes of the gate; `shape` is that of its input."""
    count = batch * step.type.size
    sent = found = 0
    if count:
        packing = Product(op.op, shape, batch).packing
        sent, found = packing.sent, packing.found
    p = parameters()
    return Cost(
        rounds=op.hops + 1,
        opened=packed_size(count, step.type.bits),
        dealt=(0, rescale.size(step, op.shift, count)),
        encrypted=sent * encryption.size(p, SENT),
        halves=residues_size(p, found * OPENED),
        products=8 * count,
    )


class EncryptedGate(Gate):
    """An evaluator's half.

    Parameters
    ----------
    step, op
        Of the program.
    dealt : Dealt
        What H dealt.
    x : MaskShare
        This evaluator's half of the mask of what comes in.
    public : PublicKey
        Joint.
    sources : tuple of str
        Roles that send this evaluator a share.
    seeded : list of Stream
        E1: with each role whose share goes to E2.
    """

    __slots__ = ("_op", "_own", "_product", "_public", "_r", "_rz", "_shape", "_sources", "_step")

    def __init__(
        self,
        step: fp.Step,
        op: fp.Bilinear,
        dealt: Dealt,
        x: MaskShare,
        public: PublicKey,
        sources: tuple[str, ...],
        seeded: list[Stream],
    ) -> None:
        batch, *inner = x.values.shape
        self._product = Product(op.op, tuple(inner), batch)
        self._shape = (batch, *step.type.shape)
        mask, self._rz = rescale.take(step, op.shift, dealt, self._shape)
        super().__init__(dealt.evaluator, mask)
        self._own = draws(step, self._shape, seeded)
        self._step, self._op, self._r, self._public, self._sources = step, op, x.values, public, sources

    def evaluate(self, x: Masked) -> Rounds:
        """Encrypt, wait for shares of the products, open them truncated."""
        self.start()
        hidden = need(Wide, x).values if self.evaluator == 0 else np.zeros_like(self._r)
        data = b""
        if self._r.size:
            data = encrypt(self._public, self._product.spread(hidden - self._r))
        yield ToModelOwner(data)
        for _ in range(self._op.hops - 2):
            yield Wait()
        parts: list[bytes] = yield FromProducts(self._sources, 8 * self._own.size)
        z = self._own + self._rz
        for part in parts:
            z += np.frombuffer(part, dtype="<u8").astype(np.uint64).reshape(self._shape)
        opened: Masked = yield rescale.cut(self._step, self._op.shift, z)
        return opened


# What happens at the model owner and at the key holders.


def prepare(product: Product, weight: U64) -> U64:
    """Model owner: the weights' polynomials, shape (groups, out, in, SENT, N), NTT form."""
    p = parameters()
    basis = p.data(SENT)
    return p.ring.ntt(p.ring.lift(product.weights(weight), basis), basis)


def multiply(public: PublicKey, packing: Packing, weights: U64, x: U64) -> U64:
    """Model owner: ciphertexts of x W, none of which shows how it was computed.

    Parameters
    ----------
    public : PublicKey
        Joint.
    packing : Packing
        Of this product.
    weights : ndarray of uint64
        From :func:`prepare`.
    x : ndarray of uint64, shape (sent, 2, SENT, N)
        The sum of both evaluators' ciphertexts.

    Returns
    -------
    ndarray of uint64, shape (found, 2, OPENED, N)
        c0, to be kept, and c1, to be sent.
    """
    p, found = public.parameters, []
    rows, groups, inputs, outputs = packing.counts
    x = x.reshape(rows, groups, inputs, *x.shape[1:])
    for row in range(rows):
        for group in range(groups):
            for out in range(outputs):
                z = p.ring.multiply_sum(x[row, group], weights[group, out], p.data(SENT))
                found.append(encryption.rerandomise(p, public, p.ring.rescale(z)))
    return np.stack(found)


def holder_share(secret: KeyShare, c1: U64, permits: Sequence[Permit]) -> tuple[U64, bytes]:
    """Key holder: its share mod 2**64 of the coefficients, and what it sends the model owner."""
    p = secret.parameters
    kept, said = [], []
    for one, permit in zip(c1, permits, strict=True):
        mask, masked = to_modular_shares.generate_share(p, secret, one, permit)
        kept.append(ring64.decode(p, mask.residues))
        said.append(masked.to_bytes())
    return np.stack(kept), b"".join(said)


def owner_share(c0: U64, came: Mapping[str, bytes]) -> U64:
    """Model owner: its share mod 2**64 from what each key holder sent; ProtocolViolation names a culprit."""
    p, holders = parameters(), list(came)
    size, kept = residues_size(p, OPENED), []
    for k, first in enumerate(c0):
        shares = {
            name: to_shares.parse(p, memoryview(data)[k * size : (k + 1) * size], OPENED, name)
            for name, data in came.items()
        }
        total = to_shares.aggregate(p, OPENED, shares, holders)
        kept.append(ring64.decode(p, to_modular_shares.finish(p, first, total).residues))
    return np.stack(kept)


# How a share gets to the evaluators.


def draws(step: fp.Step, shape: tuple[int, ...], seeded: list[Stream]) -> U64:
    """E1's part of the shares of those that have a seed with it."""
    total = np.zeros(shape, dtype=np.uint64)
    for stream in seeded:
        total += stream.draw(f"{step.index}/product", shape)
    return total


def hand_on(step: fp.Step, share: U64, seed: Stream | None) -> bytes:
    """What a role sends of its share: less what E1 draws, or all of it, to the evaluator of its own party."""
    if seed is not None:
        share = share - draws(step, share.shape, [seed])
    return share.astype("<u8", copy=False).tobytes()


def encrypt(public: PublicKey, values: U64) -> bytes:
    """Ciphertexts of numbers mod 2**64, shape (polynomials, N), as they are sent."""
    p = public.parameters
    plain = ring64.encode(p, SENT, values)
    return Message(np.stack([encryption.encrypt(p, public, one) for one in plain])).to_bytes()
