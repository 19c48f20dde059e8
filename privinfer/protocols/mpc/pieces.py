"""Piecewise affine function of a narrow wire with public breaks: exact up to its truncation, two rounds.

Functionality: x^ mod 2**n is known, every x - b_k in [-2**(n-1), 2**(n-1)), and with a slope, where q > n
(below), x in [-2**(n-2), 2**(n-2)); out comes y^ with
    y = offset + slope x + sum_k [x >= b_k] (jump_k + bend_k (x - b_k))
less `shift` bits: narrow, or wide with a shift of 0.
Adversary: semi-honest, one of E1, E2, H. d_k^ is one bit under a rho_k of its own, y^ under a fresh mask.
Preprocessing: ONE comparison key for n - 1 bits to both, whatever the number K of breaks. With q bits of
ring (rescale.py) to E2, a value: K shares of rho_k mod 2**q, one of rho_k r for each k that bends; where
q > n and anything bends or slopes, mod 2**(q-n), w, m, and rho_k m for each k that bends, otherwise one
bit of m; with a shift, rz mod 2**q.
Rounds: 2. Bytes online: K bits, then n / 8 bytes (8 if wide) a value, each way.
Correctness error: none without a shift, below 1.5 units in the last place with one.
Source: docs/protocols.md, ReLU; one key evaluated at several public points is the multiple interval
containment of Boyle et al., Eurocrypt 2021, from which their splines are made.

One key serves all breaks: x - b_k has the mask r of x and the public masked value z_k^ = x^ - b_k mod 2**n,
so each of the K comparisons is [z_k^' < r'] with the same threshold r'. A whole key hides r' from who has it,
and evaluating it is a local computation on the key and on x^, which both evaluators know: what K evaluations
show is a function of what none shows. What is SENT are K bits, and each lies under a fresh rho_k.

With z_k = x - b_k, z' the low n-1 bits of z, m = msb(r):
    d_k = [z_k >= 0] = 1 xor msb(z_k^) xor m xor [z_k^' < r']
    D_k     = d^ + (1 - 2 d^) rho_k      and the same with r, m and their products
    D_k z_k = z_k^ D_k - D_k r + 2**n (1 - msb(z_k^)) D_k m     mod 2**q    (relu.py)
    x       = u - r + 2**n (1 - msb(u)) m - o,  u = (x^ + o) mod 2**n, o = 2**(n-2)    (extend.py)
Where q = n, as for a narrow y without a shift, everything times 2**n is gone, and so are w and the ms.
"""

from __future__ import annotations

import numpy as np

from privinfer.graph import fixedpoint as fp
from privinfer.protocols.cost import Cost
from privinfer.protocols.mpc import comparison, rescale
from privinfer.protocols.mpc.dealing import Dealer, Dealt, packed_size
from privinfer.protocols.mpc.gate import Gate, Rounds
from privinfer.protocols.mpc.relu import split_sign
from privinfer.protocols.mpc.wires import Blinded, Masked, MaskPair, MaskShare, Narrow, need
from privinfer.protocols.randomness import U64

ONE = np.uint64(1)


def bending(op: fp.Pieces) -> list[int]:
    """The breaks at which the slope changes: only they need products with r."""
    return [k for k, bend in enumerate(op.bends) if bend]


def products(step: fp.Step, op: fp.Pieces, bits: int) -> tuple[tuple[str, int, int], ...]:
    """What is shared: how many a value, and mod which power of two."""
    if not len(op.breaks) == len(op.jumps) == len(op.bends) > 0:
        raise TypeError("pieces need breaks, and a jump and a bend for each")
    q, bends = rescale.ring(step, op.shift), len(bending(op))
    high = max(q - bits, 0)  # bits of what is multiplied by 2**n
    carries = high > 0 and (bends > 0 or op.slope != 0)
    found = [("rho", len(op.breaks), q), ("m", 1, high if carries else 1)]
    if bends:
        found.append(("rho*r", bends, q))
    if carries:
        found.append(("w", 1, high))
        if bends:
            found.append(("rho*m", bends, high))
    return tuple(found)


def cost(step: fp.Step, op: fp.Pieces, bits: int, batch: int) -> Cost:
    """Rounds and bytes of the gate on a `bits`-bit wire."""
    count = batch * step.type.size
    keys = comparison.key_size(count, bits - 1)
    shares = sum(packed_size(k * count, b) for _, k, b in products(step, op, bits))
    return Cost(
        rounds=2,
        opened=packed_size(len(op.breaks) * count, 1) + packed_size(count, step.type.bits),
        common=keys,
        dealt=(keys, keys + shares + rescale.size(step, op.shift, count)),
    )


def deal(step: fp.Step, op: fp.Pieces, dealer: Dealer, x: MaskPair) -> MaskPair:
    """Helper: one key for r', the products, rz; returns the new mask."""
    wanted = products(step, op, x.bits)
    r = x.total()
    m, below = split_sign(r, x.bits)
    comparison.deal(dealer, below, x.bits - 1)
    rho = dealer.private.draw(dealer.label("rho"), (len(op.breaks), *r.shape), 1)
    bent = rho[bending(op)]
    wrap = (x.first + x.second) >> np.uint64(x.bits)
    values = {"rho": rho, "m": m, "rho*r": bent * r, "w": wrap, "rho*m": bent & m}
    for name, _, bits in wanted:
        dealer.split(name, values[name], bits)
    return rescale.deal(step, op.shift, dealer, r.shape)


class PiecesGate(Gate):
    """An evaluator's half of a piecewise affine function."""

    __slots__ = ("_bits", "_keys", "_op", "_r", "_rz", "_shares", "_step")

    def __init__(self, step: fp.Step, op: fp.Pieces, dealt: Dealt, x: MaskShare) -> None:
        shape, bits = x.values.shape, x.bits
        wanted = products(step, op, bits)
        self._keys = comparison.ComparisonKeys.take(dealt, x.values.size, bits - 1)
        self._shares = {
            name: dealt.share(name, shape if name in {"w", "m"} else (k, *shape), b).values
            for name, k, b in wanted
        }
        # the integer r = r_1 + r_2 - 2**n w, on shares mod 2**q
        self._r = x.values
        if "w" in self._shares:
            self._r = x.values - (self._shares["w"] << np.uint64(bits))
        mask, self._rz = rescale.take(step, op.shift, dealt, shape)
        self._step, self._op, self._bits = step, op, bits
        super().__init__(dealt.evaluator, mask)

    def evaluate(self, x: Masked) -> Rounds:
        """Open all d_k^, combine locally, open y^."""
        self.start()
        first = np.uint64(self.evaluator == 0)
        op, n, xh = self._op, self._bits, need(Narrow, x).values
        rho, m = self._shares["rho"], self._shares["m"]
        # 1. d_k^ = 1 xor msb(z_k^) xor m xor [z_k^' < r'] xor rho_k, with one key at K points; E1 adds
        #    what is public, and shares mod a power of two are shares mod 2 in their lowest bit
        zh = [fp.low_bits(xh - integer(b), n) for b in op.breaks]
        bits = np.empty(rho.shape, dtype=np.uint64)
        for k, z in enumerate(zh):
            msb, below = split_sign(z, n)
            bits[k] = self._keys.less(below) ^ ((m + rho[k]) & ONE) ^ (first * (ONE ^ msb))
        opened: Masked = yield Blinded(bits, 1)
        # 2. y = offset + slope x + sum_k jump_k D_k + bend_k (z_k^ D_k - D_k r + 2^n (1 - msb) D_k m)
        y = first * integer(op.offset) + self._line(xh)
        bent = {k: at for at, k in enumerate(bending(op))}
        for k, z in enumerate(zh):
            d = opened.values[k]
            flip = ONE - (d << ONE)  # 1 - 2 d^ in Z_2^64
            big_d = first * d + flip * rho[k]
            if k not in bent:
                y += integer(op.jumps[k]) * big_d
                continue
            bend = integer(op.bends[k])
            y += (integer(op.jumps[k]) + bend * z) * big_d
            y -= bend * (d * self._r + flip * self._shares["rho*r"][bent[k]])
            if "rho*m" in self._shares:
                big_dm = d * m + flip * self._shares["rho*m"][bent[k]]
                y += bend * (((ONE ^ (z >> np.uint64(n - 1))) * big_dm) << np.uint64(n))
        # 3. open y + r'
        out: Masked = yield rescale.cut(self._step, op.shift, y + self._rz)
        return out

    def _line(self, xh: U64) -> U64:
        """A share of slope x mod 2**q."""
        if not self._op.slope:
            return np.zeros_like(xh)
        n, first, o = self._bits, np.uint64(self.evaluator == 0), np.uint64(1 << (self._bits - 2))
        u = fp.low_bits(xh + o, n)
        x = first * (u - o) - self._r
        if "w" in self._shares:
            x += ((ONE ^ (u >> np.uint64(n - 1))) * self._shares["m"]) << np.uint64(n)
        return integer(self._op.slope) * x


def integer(value: int) -> np.uint64:
    """A public integer of any sign in Z_2^64."""
    return np.uint64(value % 2**fp.WIDE)
