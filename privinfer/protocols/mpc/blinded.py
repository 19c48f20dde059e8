"""ReLU by a blinded comparison, with the helper online: an eighth of the bytes of relu.py, one message more.

Functionality: x^ mod 2**n is known, -2**(n-1) <= x < 2**(n-1); out comes y^ mod 2**64 with y = max(x, 0).
Adversary: semi-honest, one of E1, E2, H. E1 and E2 share a seed that H does NOT know, from their own link;
without it H would learn x.
Preprocessing, to E2: the bits of r' = r mod 2**(n-1) over Z_p, and two shares mod 2**(64-n) a value.
Rounds: 3 one-way messages: E1, E2 -> H; H -> E2; the opening. Bytes a value online: n residues mod p from
each evaluator to H, 8 + 8 + (64-n)/8 from H to E2, 8 each way between the evaluators.
In all, n = 32: 20.7 + 8 dealt, 42.7 + 20 through H, 16 opened: 107.4. Correctness error: none.
Source: Damgard, Geisler, Kroigaard, "Efficient and secure comparison for on-line auctions", ACISP 2007,
with additive shares in place of encryption; docs/protocols.md, second comparison protocol.

Comparison of x' = x^ mod 2**(n-1), public to E1 and E2, with r', whose bits are shared over Z_p, p > n + 1.
Below the lowest bit stands one more position with x = 1, r = 0. The common seed gives for each value a bit
beta, a shift, and for each position s_i in Z_p^* and u_i in Z_p.
    c_i = 1 + (1 - 2 beta)(x_i - r_i) + sum over k > i of (x_k xor r_k)              linear in r_k
c_i is 0 only where all higher bits agree and x_i - r_i = 2 beta - 1: at the FIRST position that differs, if
at all, since 0 <= c_i <= n + 1 < p. The last position always differs, so q = [a zero exists] = [x' < r'] xor
beta, equality included.
    E1 -> H: shift(c_1) s + u        E2 -> H: shift(c_2) s - u        H: their sum is shift(c) s

What H sees. The sum has at most ONE zero. Every other entry is uniform in Z_p^* by its own s_i, so a full
permutation would hide nothing that the cyclic shift does not: it moves the zero to a uniform place. Whether
there is a zero is q, uniform by beta. And u makes E1's message uniform whatever the sum is. So H's view is a
uniform vector, a uniform bit, a uniform place and uniform nonzero values, whatever x^ is.
u is MANDATORY: without it H, who knows r and so both shares of every r_i, reads x' from the ratios of the
two vectors.

What E1 and E2 see. E2 gets shares of which E1's halves come from a stream it does not have: uniform. E1 gets
nothing but y^, under a fresh mask.

ReLU (relu.py), from d' = q xor msb(r) and beta' = beta xor 1 xor msb(x^), so that [x >= 0] = d' xor beta'.
With A = x^, B = 1 - msb(x^), m = msb(r), a nonnegative x is A - r + 2**n B m, hence
    y = [x >= 0] (A - r + 2**n B m)
      = beta' (A - r + 2**n B m) + (1 - 2 beta') (A d' - d' r + 2**n B d' m)
H shares d', d' r (the INTEGER r) and d' m. Shares of m and d' m count 2**n times, so they live mod 2**(64-n);
so does w in r = r_1 + r_2 - 2**n w, which spares the integer r, since E_i knows r_i.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from privinfer import _kernels
from privinfer.errors import IntegrityError, ProtocolViolation
from privinfer.graph import fixedpoint as fp
from privinfer.protocols.cost import Cost
from privinfer.protocols.mpc.dealing import Dealer, Dealt, packed, packed_size, unpack
from privinfer.protocols.mpc.gate import FromHelper, Gate, Rounds, ToHelper
from privinfer.protocols.mpc.relu import split_sign
from privinfer.protocols.mpc.wires import Masked, MaskPair, MaskShare, Narrow, Share, Wide, need
from privinfer.protocols.randomness import U64, Secret, Stream

ONE = np.uint64(1)
BLOCK = 64  # values packed together
SMALL_PRIME, LARGE_PRIME = 37, 53
MAX_BITS = LARGE_PRIME - 2
PRODUCTS = ("d", "d*r", "d*m")


def prime(bits: int) -> int:
    """The smaller prime above n + 1: 37 up to n = 35, 53 up to n = 51."""
    if not 2 <= bits <= MAX_BITS:
        raise TypeError(f"no blinded comparison in a ring of {bits} bits")
    return SMALL_PRIME if bits + 1 < SMALL_PRIME else LARGE_PRIME


def residues_size(count: int, positions: int, p: int) -> int:
    """Bytes of `positions` residues mod p a value: three in two bytes mod 37, four in three mod 53."""
    group = 3 if p == SMALL_PRIME else 4
    whole, rest = divmod(count, BLOCK)
    return (group - 1) * (whole * -(-BLOCK * positions // group) + -(-rest * positions // group))


def asked_size(count: int, bits: int) -> int:
    """Bytes each evaluator sends H online."""
    return residues_size(count, bits, prime(bits))


def answer_size(evaluator: int, count: int, bits: int) -> int:
    """Bytes H sends E1 (0) or E2 (1) online."""
    return evaluator * (2 * 8 * count + packed_size(count, fp.WIDE - bits))


def cost(step: fp.Step, bits: int, batch: int) -> Cost:
    """Rounds and bytes of the gate on a `bits`-bit wire."""
    count = batch * step.type.size
    return Cost(
        rounds=3,
        opened=8 * count,
        dealt=(0, residues_size(count, bits - 1, prime(bits)) + 2 * packed_size(count, fp.WIDE - bits)),
        asked=asked_size(count, bits),
        answered=(answer_size(0, count, bits), answer_size(1, count, bits)),
    )


def _flat(x: U64) -> U64:
    return np.ascontiguousarray(x).reshape(-1)


def _receive_bytes(dealt: Dealt, size: int) -> npt.NDArray[np.uint8]:
    words = dealt.receive((size // 8,), fp.WIDE).view(np.uint8)
    return np.concatenate((words, dealt.receive((size % 8,), 8).astype(np.uint8)))


class Answerer(Secret):
    """What H keeps of one gate until the evaluators ask."""

    __slots__ = ("_bits", "_labels", "_r", "_stream")

    def __init__(self, stream: Stream, labels: list[str], r: U64, bits: int) -> None:
        self._stream = stream
        self._labels = labels
        self._r: U64 | None = r
        self._bits = bits

    def answer(self, first: bytes, second: bytes, evaluators: tuple[str, str]) -> bytes:
        """Helper, online: from both evaluators' messages to what E2 is sent; E1 needs nothing.

        Parameters
        ----------
        first, second : bytes
            What E1 and E2 sent, of :func:`asked_size` bytes each.
        evaluators : tuple of str
            Their parties' names, for the blame.

        Returns
        -------
        bytes
            E2's shares of d', d' r and d' m.

        Raises
        ------
        ProtocolViolation
            A message does not hold residues.
        IntegrityError
            The gate was answered before.
        """
        r, self._r = self._r, None
        if r is None:
            raise IntegrityError("a comparison would be answered twice")
        n, p = self._bits, prime(self._bits)
        messages = [np.frombuffer(m, dtype=np.uint8) for m in (first, second)]
        try:
            # 1. q = [a zero exists]
            q = _kernels.blind_zero(messages[0], messages[1], r.size, n - 1, p)
        except ValueError:
            for message, party in zip(messages, evaluators, strict=True):
                if message.size != asked_size(r.size, n) or not _kernels.blind_valid(message, r.size, n, p):
                    raise ProtocolViolation("sent a malformed comparison", culprit=party) from None
            raise
        # 2. d' = q xor msb(r), and its products with r and with m = msb(r)
        m = r >> np.uint64(n - 1)
        d = q.astype(np.uint64).reshape(r.shape) ^ m
        parts = []
        for label, value, bits in zip(self._labels, (d, d * r, d & m), widths(n), strict=True):
            share = value - self._stream.draw(label, r.shape, bits)
            parts.append(packed(share, bits))
        return b"".join(parts)


def widths(bits: int) -> tuple[int, int, int]:
    """Rings of the shares of d', d' r and d' m."""
    return fp.WIDE, fp.WIDE, fp.WIDE - bits


def deal(dealer: Dealer, x: MaskPair) -> tuple[MaskPair, Answerer]:
    """Helper, offline: shares of the bits of r', of w and of m; the new mask, and what H keeps."""
    n, p, r = x.bits, prime(x.bits), x.total()
    m, below = split_sign(r, n)
    key = dealer.streams[0].draw_blocks(dealer.label("bits"), 1).tobytes()
    dealer.parcels[1].append(_kernels.blind_share_bits(_flat(below), n - 1, p, key).data)
    dealer.split("w", (x.first + x.second) >> np.uint64(n), fp.WIDE - n)
    dealer.split("m", m, fp.WIDE - n)
    labels = [dealer.label(name) for name in PRODUCTS]
    return dealer.fresh("mask", r.shape, fp.WIDE), Answerer(dealer.streams[0], labels, r, n)


class BlindedReluGate(Gate):
    """An evaluator's half of a ReLU that asks the helper.

    Parameters
    ----------
    dealt : Dealt
        This evaluator's end of the step.
    between : Stream
        Of a seed that E1 and E2 have and H has not.
    x : MaskShare
        This evaluator's half of the mask of the wire that goes in.
    """

    __slots__ = ("_bits", "_dealt", "_fresh", "_m", "_pair", "_r", "_shares")

    def __init__(self, dealt: Dealt, between: Stream, x: MaskShare) -> None:
        n, p, shape, count = x.bits, prime(x.bits), x.values.shape, x.values.size
        self._shares: bytes | npt.NDArray[np.uint8]
        if dealt.evaluator == 0:
            self._shares = dealt.stream.draw_blocks(dealt.label("bits"), 1).tobytes()
        else:
            self._shares = _receive_bytes(dealt, residues_size(count, n - 1, p))
            if not _kernels.blind_valid(self._shares, count, n - 1, p):
                raise ValueError("shares that are no residues")
        w = dealt.share("w", shape, fp.WIDE - n).values
        self._r = x.values - (w << np.uint64(n))  # share of the integer r
        self._m = dealt.share("m", shape, fp.WIDE - n).values
        self._pair = between.draw_blocks(dealt.label("blind"), 1).tobytes()
        self._fresh = dealt.fresh("mask", shape, fp.WIDE)
        self._dealt = dealt
        self._bits = n
        super().__init__(dealt.evaluator, self._fresh.share)

    def evaluate(self, x: Masked) -> Rounds:
        """Ask H, combine its shares locally, open y^."""
        self.start()
        n, first = self._bits, self.evaluator == 0
        xh = need(Narrow, x).values
        msb, below = split_sign(xh, n)
        # 1. to H: shift(c) s + u or - u
        message = _kernels.blind_mask(self.evaluator, _flat(below), n - 1, prime(n), self._shares, self._pair)
        yield ToHelper(message.data)
        # 2. from H: shares of d', d' r, d' m
        answer = yield FromHelper(answer_size(self.evaluator, xh.size, n))
        d, dr, dm = self._products(answer, xh.shape)
        beta = _kernels.blind_beta(self._pair, xh.size).astype(np.uint64).reshape(xh.shape)
        beta ^= ONE ^ msb
        # 3. y = beta' (A - r + 2^n B m) + (1 - 2 beta') (A d' - d' r + 2^n B d' m); A is public, so E1's
        wrapped = (ONE ^ msb) << np.uint64(n)
        fixed = wrapped * self._m - self._r
        if first:
            fixed += xh
        varied = xh * d - dr + wrapped * dm
        y = beta * fixed + (ONE - (beta << ONE)) * varied
        # 4. open y + r'
        opened = yield self._fresh.blind(Share(y, fp.WIDE))
        return need(Wide, opened)

    def _products(self, answer: object, shape: tuple[int, ...]) -> list[U64]:
        """Shares of d', d' r and d' m: E1's from its stream, E2's from H's answer."""
        if not isinstance(answer, bytes) or len(answer) != answer_size(
            self.evaluator, math.prod(shape), self._bits
        ):
            raise TypeError("a gate that asked the helper was not given its answer")
        found = []
        for name, bits in zip(PRODUCTS, widths(self._bits), strict=True):
            if self.evaluator == 0:
                found.append(self._dealt.share(name, shape, bits).values)
                continue
            size = packed_size(math.prod(shape), bits)
            found.append(unpack(answer[:size], bits, shape))
            answer = answer[size:]
        return found
