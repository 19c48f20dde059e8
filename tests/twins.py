"""Slow, plain twins of the compiled kernels: what `privinfer._kernels` must compute, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from Crypto.Cipher import AES
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
U8 = NDArray[np.uint8]

MASK64 = 2**64 - 1


def matmul(a: U64, b: U64) -> U64:
    """Product over Z_2^64, in Python integers."""
    exact = a.astype(object) @ b.astype(object) if a.shape[1] else np.zeros((a.shape[0], b.shape[1]), object)
    return (exact & MASK64).astype(np.uint64)


def conv2d(
    x: U64,
    w: U64,
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
) -> U64:
    """Cross-correlation over Z_2^64, one kernel tap at a time; NumPy's uint64 wraps."""
    top, left, bottom, right = padding
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    batch, _, height, width = x.shape
    outputs, per_group, kernel_h, kernel_w = w.shape
    out_h = (height - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    out_w = (width - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    y = np.zeros((batch, outputs, out_h, out_w), np.uint64)
    for o in range(outputs):
        first = o // (outputs // groups) * per_group
        for c in range(per_group):
            for i in range(kernel_h):
                for j in range(kernel_w):
                    rows = slice(i * dilation[0], i * dilation[0] + (out_h - 1) * stride[0] + 1, stride[0])
                    cols = slice(j * dilation[1], j * dilation[1] + (out_w - 1) * stride[1] + 1, stride[1])
                    y[:, o] += x[:, first + c, rows, cols] * w[o, c, i, j]
    return y


def pack_bits(values: U64, bits: int) -> U8:
    """Low `bits` bits of each value, one after another in a little-endian integer."""
    stream = 0
    for i, value in enumerate(values.tolist()):
        stream |= (value % 2**bits) << (i * bits)
    return np.frombuffer(stream.to_bytes((len(values) * bits + 7) // 8, "little"), np.uint8)


def unpack_bits(data: U8, bits: int, count: int) -> U64:
    """Inverse of `pack_bits`."""
    stream = int.from_bytes(data.tobytes(), "little")
    return np.array([(stream >> (i * bits)) % 2**bits for i in range(count)], np.uint64)


def prg_u64(key: bytes, counter: int, count: int) -> U64:
    """AES-128 of consecutive little-endian counter blocks, two little-endian words a block."""
    blocks = b"".join((counter + i).to_bytes(16, "little") for i in range((count + 1) // 2))
    return np.frombuffer(AES.new(key, AES.MODE_ECB).encrypt(blocks), "<u8")[:count].astype(np.uint64)


class Dcf:
    """Distributed comparison [x < alpha] of one instance: eprint 2020/1392, figure 1, output group Z_2.

    Sums and differences are xor. The tree has D - 7 levels above leaves of 128 outputs. Seeds are integers
    (little-endian) whose bits 0 and 1 are zero.
    """

    def __init__(self, bits: int, tweak: bytes) -> None:
        self.bits = bits
        self.levels = max(bits - 7, 0)
        derive = AES.new(tweak, AES.MODE_ECB)
        self.sides = [AES.new(derive.encrypt(side.to_bytes(16, "little")), AES.MODE_ECB) for side in range(2)]

    def child(self, s: int, side: int) -> int:
        """AES_k(s) + s, all 128 bits."""
        return int.from_bytes(self.sides[side].encrypt(s.to_bytes(16, "little")), "little") ^ s

    def expand(self, s: int, side: int) -> tuple[int, int, int]:
        """Half of G(s): seed, value bit and control bit of one child."""
        block = self.child(s, side)
        return block & ~3, block >> 1 & 1, block & 1

    def path(self, point: int) -> Iterator[int]:
        """Bits of alpha or x that walk the tree, most significant first."""
        for level in range(self.levels):
            yield point >> (self.bits - 1 - level) & 1

    def gen(self, alpha: int, roots: tuple[bytes, bytes]) -> tuple[list[bytes], int, bytes]:
        """Correction words: 16 bytes a level, the value bits of all levels, the leaf."""
        # Let V_alpha = 0, t_0 = 0, t_1 = 1.
        s = [int.from_bytes(root, "little") & ~3 for root in roots]
        t = [0, 1]
        v_alpha = 0
        words, value_words = [], 0
        for level, alpha_i in enumerate(self.path(alpha)):
            # s^L || v^L || t^L || s^R || v^R || t^R = G(s), for both parties.
            children = [[self.expand(s[b], side) for side in (0, 1)] for b in (0, 1)]
            # If alpha_i = 0 then Keep = L, Lose = R, else Keep = R, Lose = L.
            keep, lose = alpha_i, 1 - alpha_i
            # s_CW = s_0^Lose + s_1^Lose.
            s_cw = children[0][lose][0] ^ children[1][lose][0]
            # V_CW = v_0^Lose + v_1^Lose + V_alpha; if Lose = L then V_CW += beta, beta = 1.
            v_cw = children[0][lose][1] ^ children[1][lose][1] ^ v_alpha
            if lose == 0:
                v_cw ^= 1
            # V_alpha += v_0^Keep + v_1^Keep + V_CW.
            v_alpha ^= children[0][keep][1] ^ children[1][keep][1] ^ v_cw
            # t_CW^L = t_0^L + t_1^L + alpha_i + 1; t_CW^R = t_0^R + t_1^R + alpha_i.
            t_cw = [children[0][0][2] ^ children[1][0][2] ^ alpha_i ^ 1]
            t_cw.append(children[0][1][2] ^ children[1][1][2] ^ alpha_i)
            words.append((s_cw | t_cw[0] | t_cw[1] << 1).to_bytes(16, "little"))
            value_words |= v_cw << level
            # s_b = s_b^Keep + t_b s_CW; t_b = t_b^Keep + t_b t_CW^Keep.
            for b in (0, 1):
                s[b], t[b] = (
                    children[b][keep][0] ^ (s_cw if t[b] else 0),
                    children[b][keep][2] ^ (t_cw[keep] if t[b] else 0),
                )
        # CW^(n+1) = Convert(s_0) + Convert(s_1) + V_alpha, plus the outputs [j < alpha mod 128] of the leaf.
        leaf = self.child(s[0], 0) ^ self.child(s[1], 0) ^ (v_alpha * (2**128 - 1))
        for j in range(alpha % 128):
            leaf ^= 1 << j
        return words, value_words, leaf.to_bytes(16, "little")

    def evaluate(
        self, party: int, x: int, root: bytes, words: list[bytes], value_words: int, leaf: bytes
    ) -> int:
        """One party's share of [x < alpha]."""
        # Let V = 0, t = b.
        s, t, v = int.from_bytes(root, "little") & ~3, party, 0
        for level, x_i in enumerate(self.path(x)):
            word = int.from_bytes(words[level], "little")
            seed, value, control = self.expand(s, x_i)
            # V += v^{x_i} + t V_CW.
            v ^= value ^ (t & value_words >> level)
            # s = s^{x_i} + t s_CW; t = t^{x_i} + t t_CW^{x_i}.
            s, t = seed ^ (word & ~3 if t else 0), control ^ (t & word >> x_i)
        # V + Convert(s) + t CW^(n+1), of which output x mod 128 counts.
        outputs = self.child(s, 0) ^ (int.from_bytes(leaf, "little") if t else 0)
        return v ^ (outputs >> (x % 128) & 1)


def dcf_gen(alpha: U64, bits: int, roots: U8, tweak: bytes) -> tuple[U8, U64, U8]:
    """Keys of a batch, in the layout of the kernel."""
    dcf = Dcf(bits, tweak)
    cw = np.zeros((len(alpha), dcf.levels, 16), np.uint8)
    vcw = np.zeros(len(alpha), np.uint64)
    leaf = np.zeros((len(alpha), 16), np.uint8)
    for i, point in enumerate(alpha.tolist()):
        words, vcw[i], last = dcf.gen(point, (roots[i, 0].tobytes(), roots[i, 1].tobytes()))
        for level, word in enumerate(words):
            cw[i, level] = np.frombuffer(word, np.uint8)
        leaf[i] = np.frombuffer(last, np.uint8)
    return cw, vcw, leaf


def dcf_eval(party: int, x: U64, bits: int, roots: U8, cw: U8, vcw: U64, leaf: U8, tweak: bytes) -> U8:
    """One party's output bits of a batch."""
    dcf = Dcf(bits, tweak)
    out = [
        dcf.evaluate(
            party, point, roots[i].tobytes(), [w.tobytes() for w in cw[i]], int(vcw[i]), leaf[i].tobytes()
        )
        for i, point in enumerate(x.tolist())
    ]
    return np.array(out, np.uint8)


class Dpf:
    """Distributed point function of one instance: eprint 2018/707, figure 1, output group (Z_2^64)^w.

    The tree reads points from the lowest bit and stops `cut` levels early, at leaves of 2^cut outputs:
    output `part` of a leaf that the low bits of v lead to is v's whose high bits are `part`. Seeds are
    integers (little-endian) whose bits 0 and 1 are zero.
    """

    def __init__(self, m: int, w: int, cut: int, tweak: bytes) -> None:
        self.w, self.cut, self.depth = w, cut, m - cut
        derive = AES.new(tweak, AES.MODE_ECB)
        keys = [derive.encrypt(i.to_bytes(16, "little")) for i in range(4)]
        self.ciphers = [AES.new(key, AES.MODE_ECB) for key in keys]

    def prg(self, s: int, i: int) -> int:
        """AES_ki(s) + s, all 128 bits."""
        return int.from_bytes(self.ciphers[i].encrypt(s.to_bytes(16, "little")), "little") ^ s

    def expand(self, s: int, side: int) -> tuple[int, int]:
        """Half of G(s): seed and control bit of one child."""
        block = self.prg(s, side)
        return block & ~3, block & 1

    def convert(self, s: int) -> list[int]:
        """The words of a leaf: all parts of word 0, then of word 1, and so on."""
        total = self.w << self.cut
        return [self.prg(s, q // 2) >> 64 * (q % 2) & MASK64 for q in range(total)]

    def gen(
        self, alpha: int, payload: list[int], roots: tuple[bytes, bytes]
    ) -> tuple[list[bytes], list[int]]:
        """Correction words: 16 bytes a level, and the words of the leaf."""
        s = [int.from_bytes(root, "little") & ~3 for root in roots]
        t = [0, 1]
        words = []
        for level in range(self.depth):
            keep = alpha >> level & 1
            lose = 1 - keep
            children = [[self.expand(s[b], side) for side in (0, 1)] for b in (0, 1)]
            # s_CW = s_0^Lose + s_1^Lose.
            s_cw = children[0][lose][0] ^ children[1][lose][0]
            # t_CW^L = t_0^L + t_1^L + alpha_i + 1; t_CW^R = t_0^R + t_1^R + alpha_i.
            t_cw = [children[0][0][1] ^ children[1][0][1] ^ keep ^ 1]
            t_cw.append(children[0][1][1] ^ children[1][1][1] ^ keep)
            words.append((s_cw | t_cw[0] | t_cw[1] << 1).to_bytes(16, "little"))
            for b in (0, 1):
                seed, control = children[b][keep]
                s[b], t[b] = seed ^ (s_cw if t[b] else 0), control ^ (t_cw[keep] if t[b] else 0)
        # CW^(n+1) = (-1)^t_1 (beta - Convert(s_0) + Convert(s_1)).
        beta = [0] * (self.w << self.cut)
        beta[alpha >> self.depth :: 1 << self.cut] = payload
        sign = -1 if t[1] else 1
        leaves = zip(beta, self.convert(s[0]), self.convert(s[1]), strict=True)
        return words, [sign * (x - y + z) & MASK64 for x, y, z in leaves]

    def evaluate(self, party: int, v: int, root: bytes, words: list[bytes], last: list[int]) -> list[int]:
        """One party's shares of the words at v."""
        s, t = int.from_bytes(root, "little") & ~3, party
        for level in range(self.depth):
            side = v >> level & 1
            word = int.from_bytes(words[level], "little")
            seed, control = self.expand(s, side)
            s, t = seed ^ (word & ~3 if t else 0), control ^ (t & word >> side)
        sign = -1 if party else 1
        outputs = [sign * (x + (y if t else 0)) & MASK64 for x, y in zip(self.convert(s), last, strict=True)]
        return outputs[v >> self.depth :: 1 << self.cut]


def dpf_gen(alpha: U64, payload: U64, m: int, roots: U8, tweak: bytes, cut: int = 0) -> tuple[U8, U64]:
    """Keys of a batch, in the layout of the kernel."""
    count, w = payload.shape
    dpf = Dpf(m, w, cut, tweak)
    cw = np.zeros((count, m - cut, 16), np.uint8)
    last = np.zeros((count, w << cut), np.uint64)
    for i in range(count):
        pair = (roots[i, 0].tobytes(), roots[i, 1].tobytes())
        words, last[i] = dpf.gen(int(alpha[i]), payload[i].tolist(), pair)
        for level, word in enumerate(words):
            cw[i, level] = np.frombuffer(word, np.uint8)
    return cw, last


def dpf_eval_full(party: int, m: int, w: int, roots: U8, cw: U8, final: U64, tweak: bytes) -> U64:
    """One party's shares of all outputs of a batch."""
    dpf = Dpf(m, w, m - cw.shape[1], tweak)
    out = np.zeros((len(cw), 2**m, w), np.uint64)
    for i in range(len(cw)):
        words = [word.tobytes() for word in cw[i]]
        for v in range(2**m):
            out[i, v] = dpf.evaluate(party, v, roots[i].tobytes(), words, final[i].tolist())
    return out


def table_eval(
    party: int,
    xhat: U64,
    m: int,
    s: int,
    degree: int,
    coefficients: U64,
    roots: U8,
    cw: U8,
    final: U64,
    tweak: bytes,
) -> U64:
    """One party's shares of C[u](beta - rho), in the words of csrc/approx/table.h; NumPy's uint64 wraps."""
    shares = dpf_eval_full(party, m, degree + 1, roots, cw, final, tweak)
    out = np.zeros((len(xhat), 1), np.uint64)
    for i, x in enumerate(xhat.tolist()):
        beta = x % 2**s
        at = ((x >> s) % 2**m - np.arange(2**m)) % 2**m
        for k in range(degree + 1):
            powers = np.zeros(2**m, np.uint64)
            for j in range(k + 1):
                factor = math.comb(k, j) * beta ** (k - j) * (-1) ** j
                powers += np.uint64(factor & MASK64) * shares[i, :, j]
            out[i] += (coefficients[k, at] * powers).sum()
    return out[:, 0]


# Blinded comparison: the algebra of privinfer/protocols/mpc/blinded.py, then csrc/blind/blind.h's streams.


def blind_terms(first: int, x: NDArray[np.int64], rho: NDArray[np.int64], beta: NDArray[np.int64], p: int):
    """One evaluator's shares of c, positions first; x and rho hold the bits, lowest first.

    c_i = 1 + (1 - 2 beta)(x_i - r_i) + sum over k > i of (x_k xor r_k), with one more position below where
    x = 1 and r = 0; `first` is 1 for the evaluator whose share takes what is public.
    """
    x = np.concatenate((np.ones_like(x[:1]), x))
    rho = np.concatenate((np.zeros_like(rho[:1]), rho))
    xor = np.where(x == 1, first - rho, rho)
    above = np.cumsum(xor[::-1], axis=0)[::-1] - xor
    sign = 1 - 2 * beta
    return (first * (1 + sign * x) - sign * rho + above) % p


def blind_shift(c: NDArray[np.int64], shift: NDArray[np.int64]) -> NDArray[np.int64]:
    """Position i of each value moves to i + shift, cyclically."""
    rows = len(c)
    source = (np.arange(rows).reshape(-1, *[1] * (c.ndim - 1)) - shift) % rows
    return np.take_along_axis(c, source, axis=0)


def blind_words(key: bytes, purpose: int, block: int, limit: int, count: int) -> NDArray[np.int64]:
    """The first `count` 16-bit words below `limit` of a block's keystream."""
    cipher = AES.new(key, AES.MODE_ECB)
    start, drawn = (purpose << 62) + (block << 28), 64
    while True:
        stream = b"".join((start + i).to_bytes(16, "little") for i in range(drawn))
        words = np.frombuffer(cipher.encrypt(stream), "<u2").astype(np.int64)
        kept = words[words < limit]
        if len(kept) >= count:
            return kept[:count]
        drawn *= 2


def blind_sample(key: bytes, purpose: int, block: int, modulus: int, rows: int) -> NDArray[np.int64]:
    """Uniform residues of one block, shaped (rows, 64): each word gives two, half a block apart."""
    square = modulus**2
    words = blind_words(key, purpose, block, 2**16 // square * square, 32 * rows)
    return np.concatenate((words % modulus, words // modulus % modulus)).reshape(rows, 64)


def blind_pack(residues: NDArray[np.int64], p: int) -> U8:
    """One block's residues, shaped (rows, width)."""
    group = 3 if p == 37 else 4
    parts = residues.reshape(-1).tolist()
    parts += [0] * (-len(parts) % group)
    g = len(parts) // group
    if p == 37:
        words = [parts[k] + 37 * parts[k + g] + 37**2 * parts[k + 2 * g] for k in range(g)]
        return np.frombuffer(b"".join(w.to_bytes(2, "little") for w in words), np.uint8)
    last = parts[3 * g :]
    return np.array([parts[k] | (last[k % g] >> 2 * (k // g) & 3) << 6 for k in range(3 * g)], np.uint8)


def blind_unpack(data: U8, rows: int, width: int, p: int) -> NDArray[np.int64]:
    """Inverse of `blind_pack`; ValueError where it is no packing."""
    total = rows * width
    if p == 37:
        words = np.ascontiguousarray(data).view("<u2").astype(np.int64)
        parts = np.concatenate((words % 37, words // 37 % 37, words // 37**2))
    else:
        low, high = data.astype(np.int64) % 64, (data.astype(np.int64) // 64).reshape(3, -1)
        parts = np.concatenate((low, high[0] + 4 * high[1] + 16 * high[2]))
    if (parts >= p).any() or parts[total:].any():
        raise ValueError("no packing")
    return parts[:total].reshape(rows, width)


def blind_blocks(count: int) -> Iterator[tuple[int, int, int]]:
    """Index, first value and width of each block."""
    for block in range((count + 63) // 64):
        yield block, 64 * block, min(64, count - 64 * block)


def blind_split(data: U8, count: int, rows: int, p: int) -> Iterator[U8]:
    """The bytes of each block."""
    group = 3 if p == 37 else 4
    at = 0
    for _, _, width in blind_blocks(count):
        size = (group - 1) * -(-rows * width // group)
        yield data[at : at + size]
        at += size
    assert at == len(data)


def _bits(values: U64, bits: int) -> NDArray[np.int64]:
    return np.array([[v >> i & 1 for v in values.tolist()] for i in range(bits)], np.int64).reshape(bits, -1)


def _joined(parts: list[U8]) -> U8:
    return np.concatenate([np.zeros(0, np.uint8), *parts])


def blind_share_bits(r: U64, bits: int, p: int, key: bytes) -> U8:
    """E2's shares of the bits of r."""
    parts = []
    for block, at, width in blind_blocks(len(r)):
        rho = blind_sample(key, 0, block, p, bits)[:, :width]
        parts.append(blind_pack((_bits(r[at : at + width], bits) - rho) % p, p))
    return _joined(parts)


def blind_mask(
    party: int, x: U64, bits: int, p: int, shares: bytes | U8, key_pair: bytes, *, add: bool = True
) -> U8:
    """One evaluator's message; without `add` it lacks u, and H can read x."""
    rows, parts = bits + 1, []
    packed = [] if isinstance(shares, bytes) else list(blind_split(shares, len(x), bits, p))
    for block, at, width in blind_blocks(len(x)):
        if isinstance(shares, bytes):
            rho = blind_sample(shares, 0, block, p, bits)[:, :width]
        else:
            rho = blind_unpack(packed[block], bits, width, p)
        beta = blind_beta_block(key_pair, block)[:width]
        c = blind_terms(1 - party, _bits(x[at : at + width], bits), rho, beta, p)
        shift = blind_words(key_pair, 1, block, 2**16 // rows * rows, 64)[:width] % rows
        s = 1 + blind_sample(key_pair, 2, block, p - 1, rows)[:, :width]
        u = blind_sample(key_pair, 3, block, p, rows)[:, :width] * add
        parts.append(blind_pack((blind_shift(c, shift) * s + (1 - 2 * party) * u) % p, p))
    return _joined(parts)


def blind_zero(first: U8, second: U8, count: int, bits: int, p: int) -> U8:
    """Whether the sum of two messages has a zero."""
    parts = []
    blocks = zip(blind_split(first, count, bits + 1, p), blind_split(second, count, bits + 1, p), strict=True)
    for (_, _, width), (a, b) in zip(blind_blocks(count), blocks, strict=True):
        total = blind_unpack(a, bits + 1, width, p) + blind_unpack(b, bits + 1, width, p)
        parts.append((total % p == 0).any(axis=0).astype(np.uint8))
    return _joined(parts)


def blind_beta_block(key_pair: bytes, block: int) -> NDArray[np.int64]:
    """The 64 bits of one block."""
    word = AES.new(key_pair, AES.MODE_ECB).encrypt((block << 28).to_bytes(16, "little"))
    return np.array([int.from_bytes(word[:8], "little") >> v & 1 for v in range(64)], np.int64)


def blind_beta(key_pair: bytes, count: int) -> U8:
    """The bits beta of `count` values."""
    return _joined([blind_beta_block(key_pair, b)[:w].astype(np.uint8) for b, _, w in blind_blocks(count)])
