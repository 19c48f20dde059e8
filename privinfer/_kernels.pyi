"""Compiled kernels: products over Z_2^64, AES counter mode, distributed functions, blinded comparison.

Arrays must be C-contiguous, aligned and of exactly the dtype named; anything else raises `TypeError` (type
or dtype) or `ValueError` (shape, bounds, layout). Size 0 is valid on every axis unless said otherwise. The
results are new arrays. The GIL is released while a kernel runs, and work beyond some 100 us is split over
`get_threads()` threads. Results do not depend on the path or on the number of threads.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

def matmul(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Matrix product modulo 2^64.

    Parameters
    ----------
    a : uint64 array, shape (M, K)
        Any values.
    b : uint64 array, shape (K, N)
        Any values.

    Returns
    -------
    uint64 array, shape (M, N)
        ``a b mod 2^64``; zeros if K = 0.
    """

def conv2d(
    x: NDArray[np.uint64],
    w: NDArray[np.uint64],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> NDArray[np.uint64]:
    """Two-dimensional convolution modulo 2^64 (cross-correlation, as in torch), padded with zeros.

    Parameters
    ----------
    x : uint64 array, shape (B, C, H, W)
        Any values.
    w : uint64 array, shape (O, C / groups, KH, KW)
        Any values; KH and KW at least 1.
    stride : (int, int)
        Down and across, at least 1.
    padding : (int, int, int, int)
        Top, left, bottom, right, at least 0.
    dilation : (int, int)
        Down and across, at least 1.
    groups : int
        Divides C and O.

    Returns
    -------
    uint64 array, shape (B, O, OH, OW)
        OH = (H + top + bottom - dilation (KH - 1) - 1) // stride + 1, at least 1, and OW alike.
    """

def pack_bits(values: NDArray[np.uint64], bits: int) -> NDArray[np.uint8]:
    """Pack the low bits of each value densely: bit i of value j is bit ``j * bits + i`` of the stream.

    Parameters
    ----------
    values : uint64 array, shape (n,)
        Any values; bits above the lowest `bits` are ignored.
    bits : int
        1 to 64.

    Returns
    -------
    uint8 array, shape (ceil(n * bits / 8),)
        Bit b of the stream is bit ``b % 8`` of byte ``b // 8``; unused bits of the last byte are 0.
    """

def unpack_bits(data: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint64]:
    """Inverse of `pack_bits`.

    Parameters
    ----------
    data : uint8 array, shape (ceil(count * bits / 8),)
        Another length, or a non-zero bit after the last value, raises `ValueError`: values have one encoding.
    bits : int
        1 to 64.
    count : int
        Number of values.

    Returns
    -------
    uint64 array, shape (count,)
        Values below ``2^bits``.
    """

def prg_u64(key: bytes, counter: int, count: int) -> NDArray[np.uint64]:
    """Keystream of AES-128 in counter mode (FIPS 197, NIST SP 800-38A), constant time in the key.

    Parameters
    ----------
    key : bytes
        16 bytes.
    counter : int
        First block, 0 <= counter < 2^64, encrypted as a 128-bit little-endian number. The last block must lie
        below 2^64 too.
    count : int
        Number of words.

    Returns
    -------
    uint64 array, shape (count,)
        Two little-endian words a block; of the last block the second is dropped if `count` is odd.
    """

def dcf_gen(
    alpha: NDArray[np.uint64], bits: int, roots: NDArray[np.uint8], tweak: bytes
) -> tuple[NDArray[np.uint8], NDArray[np.uint64], NDArray[np.uint8]]:
    """Make key pairs of the distributed comparison function ``[x < alpha]``, outputs shared by xor.

    Eprint 2020/1392, figure 1 (Gen), with the output group Z_2 and leaves of 128 outputs, hence
    L = max(bits - 7, 0) levels. The PRG is AES in Matyas-Meyer-Oseas mode under two fixed keys derived from
    `tweak`. 4 L + 2 AES calls an instance. Constant time in `alpha` and `roots`.

    Parameters
    ----------
    alpha : uint64 array, shape (n,)
        Secret, each below ``2^bits``.
    bits : int
        0 to 63, the domain being ``[0, 2^bits)``. With 0 the only output is 0.
    roots : uint8 array, shape (n, 2, 16)
        Secret: the two parties' roots, uniform, fresh for every instance. Bits 0 and 1 are ignored.
    tweak : bytes
        16 bytes, public.

    Returns
    -------
    cw : uint8 array, shape (n, L, 16)
        Bit 0 of a word (little-endian) is t_CW^L, bit 1 t_CW^R, the other bits s_CW.
    vcw : uint64 array, shape (n,)
        Bit l is V_CW of level l from the root.
    leaf : uint8 array, shape (n, 16)
        Correction of the 128 outputs of the leaf.

    All three go to both parties, each with its own root.
    """

def dcf_eval(
    party: int,
    x: NDArray[np.uint64],
    bits: int,
    roots: NDArray[np.uint8],
    cw: NDArray[np.uint8],
    vcw: NDArray[np.uint64],
    leaf: NDArray[np.uint8],
    tweak: bytes,
) -> NDArray[np.uint8]:
    """One party's xor shares of ``[x < alpha]``: eprint 2020/1392, figure 1 (Eval).

    L + 1 AES calls an instance, L = max(bits - 7, 0). Constant time in the key; `x` is public.

    Parameters
    ----------
    party : int
        0 or 1.
    x : uint64 array, shape (n,)
        Public, each below ``2^bits``.
    bits : int
        0 to 63.
    roots : uint8 array, shape (n, 16)
        This party's roots.
    cw, vcw, leaf : arrays, shapes (n, L, 16), (n,), (n, 16)
        As made by `dcf_gen`; any content is safe, a wrong one gives wrong bits.
    tweak : bytes
        16 bytes, as given to `dcf_gen`.

    Returns
    -------
    uint8 array, shape (n,)
        0 or 1.
    """

def dpf_gen(
    alpha: NDArray[np.uint64],
    payload: NDArray[np.uint64],
    m: int,
    roots: NDArray[np.uint8],
    tweak: bytes,
    cut: int = 0,
) -> tuple[NDArray[np.uint8], NDArray[np.uint64]]:
    """Make key pairs of the distributed point function: ``payload`` at ``alpha``, 0 elsewhere, shared by sum.

    Eprint 2018/707, figure 1 (Gen), with w words of Z_2^64 as output and the tree cut `cut` levels early;
    csrc/fss/dpf.h has the details and what a cut saves. ``4 (m - cut) + 2 ceil(w 2^cut / 2)`` AES calls an
    instance. Constant time in `alpha`, `payload` and `roots`.

    Parameters
    ----------
    alpha : uint64 array, shape (n,)
        Secret, each below ``2^m``.
    payload : uint64 array, shape (n, w)
        Secret, any values; w is 1 to 4.
    m : int
        0 to 16, the domain being ``[0, 2^m)``.
    roots : uint8 array, shape (n, 2, 16)
        Secret: the two parties' roots, uniform, fresh for every instance. Bits 0 and 1 are ignored.
    tweak : bytes
        16 bytes, public.
    cut : int
        0 to m, with ``w 2^cut <= 8``.

    Returns
    -------
    cw : uint8 array, shape (n, m - cut, 16)
        Bit 0 of a word (little-endian) is t_CW^L, bit 1 t_CW^R, the other bits s_CW.
    final : uint64 array, shape (n, w 2^cut)
        Correction of the outputs of a leaf: all parts of word 0, then of word 1, and so on.

    Both go to both parties, each with its own root.
    """

def dpf_eval_full(
    party: int,
    m: int,
    w: int,
    roots: NDArray[np.uint8],
    cw: NDArray[np.uint8],
    final: NDArray[np.uint64],
    tweak: bytes,
) -> NDArray[np.uint64]:
    """One party's additive shares of all outputs: eprint 2018/707, figure 1 (Eval), on the whole domain.

    ``(2 + ceil(w 2^cut / 2)) 2^(m - cut) - 2`` AES calls an instance. Constant time in the key.

    Parameters
    ----------
    party : int
        0 or 1.
    m : int
        0 to 16.
    w : int
        1 to 4.
    roots : uint8 array, shape (n, 16)
        This party's roots.
    cw, final : arrays, shapes (n, m - cut, 16), (n, w 2^cut)
        As made by `dpf_gen`; `cut` is read from the shape of `cw`. Any content is safe, a wrong one gives
        wrong shares.
    tweak : bytes
        16 bytes, as given to `dpf_gen`.

    Returns
    -------
    uint64 array, shape (n, 2^m, w)
        The two parties' sum to the payload at alpha, to 0 elsewhere, modulo 2^64.
    """

def table_eval(
    party: int,
    xhat: NDArray[np.uint64],
    m: int,
    s: int,
    degree: int,
    coefficients: NDArray[np.uint64],
    roots: NDArray[np.uint8],
    cw: NDArray[np.uint8],
    final: NDArray[np.uint64],
    tweak: bytes,
) -> NDArray[np.uint64]:
    """One party's additive shares of a table of polynomials at a masked position.

    With a mask r of which ``alpha = (r >> s) mod 2^m`` and ``rho = r mod 2^s``, keys of `dpf_gen` for alpha
    and the payload (1, rho, .., rho^degree), ``u = ((xhat >> s) - alpha) mod 2^m`` and ``beta = xhat mod
    2^s``, the two shares sum to ``sum over k of C_k[u] (beta - rho)^k`` modulo 2^64. csrc/approx/table.h has
    the algebra. AES calls as of `dpf_eval_full`; no memory for the outputs of the tree. Constant time in the
    key.

    Parameters
    ----------
    party : int
        0 or 1.
    xhat : uint64 array, shape (n,)
        Public, any values; bits above the lowest ``m + s`` are ignored.
    m : int
        1 to 12.
    s : int
        0 to 40.
    degree : int
        0 to 3.
    coefficients : uint64 array, shape (degree + 1, 2^m)
        Public, any values: row k is C_k.
    roots : uint8 array, shape (n, 16)
        This party's roots.
    cw, final : arrays, shapes (n, m - cut, 16), (n, (degree + 1) 2^cut)
        As made by `dpf_gen`; `cut` is read from the shape of `cw`. Any content is safe, a wrong one gives
        wrong shares.
    tweak : bytes
        16 bytes, as given to `dpf_gen`.

    Returns
    -------
    uint64 array, shape (n,)
        Any values.
    """

def blind_share_bits(r: NDArray[np.uint64], bits: int, p: int, key: bytes) -> NDArray[np.uint8]:
    """Second shares over Z_p of the bits of r, packed: ``r_i - rho_i mod p`` with rho drawn from `key`.

    This and the four below are the blinded comparison of `privinfer.protocols.mpc.blinded`, where the symbols
    are explained; csrc/blind/blind.h defines streams and packing. Every 64 values, and what is left, take
    ``2 ceil(T / 3)`` bytes where p = 37 and ``3 ceil(T / 4)`` where p = 53, T being the number of residues.
    Constant time in all secrets.

    Parameters
    ----------
    r : uint64 array, shape (n,)
        Secret, each below ``2^bits``.
    bits : int
        1 to p - 3.
    p : int
        37 or 53.
    key : bytes
        16 bytes, used for nothing else.

    Returns
    -------
    uint8 array, one dimension
        `bits` residues a value, packed.
    """

def blind_mask(
    party: int,
    x: NDArray[np.uint64],
    bits: int,
    p: int,
    shares: bytes | NDArray[np.uint8],
    key_pair: bytes,
) -> NDArray[np.uint8]:
    """One evaluator's blinded share of the comparison: ``s c + u`` or ``s c - u``, shifted, packed.

    Parameters
    ----------
    party : int
        0 or 1.
    x : uint64 array, shape (n,)
        Each below ``2^bits``.
    bits : int
        1 to p - 3.
    p : int
        37 or 53.
    shares : bytes or uint8 array
        Party 0: the key given to `blind_share_bits`. Party 1: its result; `ValueError` if malformed.
    key_pair : bytes
        16 bytes both evaluators have and whoever adds their results has not; used for nothing else.

    Returns
    -------
    uint8 array, one dimension
        ``bits + 1`` residues a value, packed; uniform.
    """

def blind_zero(
    first: NDArray[np.uint8], second: NDArray[np.uint8], count: int, bits: int, p: int
) -> NDArray[np.uint8]:
    """Find in which sums of two `blind_mask` results there is a zero: ``[x < r] xor beta``.

    Parameters
    ----------
    first, second : uint8 arrays, one dimension
        As made by `blind_mask`; `ValueError` if malformed.
    count : int
        Number of values, at most ``2^38``.
    bits : int
        1 to p - 3.
    p : int
        37 or 53.

    Returns
    -------
    uint8 array, shape (count,)
        0 or 1.
    """

def blind_beta(key_pair: bytes, count: int) -> NDArray[np.uint8]:
    """Return the bits beta that `blind_mask` uses, 0 or 1, shape (count,); `count` is at most ``2^38``."""

def blind_valid(data: NDArray[np.uint8], count: int, positions: int, p: int) -> bool:
    """Tell whether `data` packs residues: each below p, what is left over zero.

    Parameters
    ----------
    data : uint8 array, one dimension
        Of the right length; another raises `ValueError`.
    count : int
        Number of values, at most ``2^38``.
    positions : int
        Residues a value, 1 to p - 2.
    p : int
        37 or 53.

    Returns
    -------
    bool
        Whether it does.
    """

def get_threads() -> int:
    """Return the largest number of threads a kernel uses; at first the CPUs of this machine, at most 8."""

def set_threads(count: int) -> None:
    """Set the largest number of threads a kernel uses, 1 to 256, for the whole process."""

def cpu_features() -> dict[str, bool]:
    """Return which instruction sets the kernels can use this CPU has."""

def paths() -> list[str]:
    """Return the code paths this CPU can run, slowest first: "portable", "avx2", "vaes", "avx512"."""

def current_path() -> str:
    """Return the code path in use, at first the last of `paths`."""

def use_path(name: str) -> None:
    """Choose a code path for the whole process (for tests); `ValueError` if unknown or unavailable."""

class Rns:
    """Polynomials of degree below n modulo the primes of a chain, the last of which is special.

    Parameters
    ----------
    n : int
        A power of two from 1024 to 65536.
    primes : sequence of int
        1 to 64 distinct primes = 1 mod 2n below 2^61. Where all are below 2^50 and the CPU has AVX2 and FMA,
        products are done in doubles; results are the same.

    Notes
    -----
    A basis is a sequence of places of primes, one for each limb. Residues have to be below their primes (not
    checked). `..` stands for any leading axes. Methods are described in `privinfer.protocols.ckks.ring`.
    """

    def __init__(self, n: int, primes: Sequence[int]) -> None: ...
    @property
    def fast(self) -> bool:
        """Whether the vector path is in use."""

    def ntt(self, a: NDArray[np.uint64], basis: Sequence[int]) -> NDArray[np.uint64]:
        """NTT form of (.., l, n)."""

    def intt(self, a: NDArray[np.uint64], basis: Sequence[int]) -> NDArray[np.uint64]:
        """Inverse of :meth:`ntt`."""

    def add(self, a: NDArray[np.uint64], b: NDArray[np.uint64], basis: Sequence[int]) -> NDArray[np.uint64]:
        """Sum; b has the shape of a, or (l, n)."""

    def sub(self, a: NDArray[np.uint64], b: NDArray[np.uint64], basis: Sequence[int]) -> NDArray[np.uint64]:
        """Difference, as :meth:`add`."""

    def mul(self, a: NDArray[np.uint64], b: NDArray[np.uint64], basis: Sequence[int]) -> NDArray[np.uint64]:
        """Product position by position, as :meth:`add`."""

    def neg(self, a: NDArray[np.uint64], basis: Sequence[int]) -> NDArray[np.uint64]:
        """Negative."""

    def scale(
        self, a: NDArray[np.uint64], scalars: NDArray[np.uint64], basis: Sequence[int]
    ) -> NDArray[np.uint64]:
        """Each limb times its scalar, which is below its prime."""

    def automorph(self, a: NDArray[np.uint64], element: int) -> NDArray[np.uint64]:
        """``a(X^element)`` of (.., n) in NTT form; element odd, below 2n."""

    def lift(self, v: NDArray[np.int64], basis: Sequence[int]) -> NDArray[np.uint64]:
        """Residues (.., l, n) of signed coefficients (.., n)."""

    def lift_wide(self, words: NDArray[np.uint64], basis: Sequence[int]) -> NDArray[np.uint64]:
        """Residues (.., l, n) of signed 128-bit coefficients (.., n, 2), low word first."""

    def compose(self, a: NDArray[np.uint64], basis: Sequence[int]) -> NDArray[np.uint64]:
        """Centred integers (.., n, 2) of (.., l, n), l at most 4; `ValueError` where one exceeds 128 bits."""

    def to_ring64(self, a: NDArray[np.uint64], basis: Sequence[int]) -> NDArray[np.uint64]:
        """``round(2^64 a / Q) mod 2^64`` (.., n) of (.., l, n), off by l at most."""

    def uniform(self, key: bytes, count: int, basis: Sequence[int]) -> NDArray[np.uint64]:
        """Uniform residues (count, l, n) from AES-128-CTR under 16 bytes."""

    def ternary(self, key: bytes, count: int) -> NDArray[np.int64]:
        """Uniform in {-1, 0, 1}, (count, n)."""

    def binomial(self, key: bytes, count: int) -> NDArray[np.int64]:
        """21 bits less 21 bits, (count, n)."""

    def wide_uniform(self, key: bytes, count: int, bits: int) -> NDArray[np.uint64]:
        """Signed 128-bit numbers in [-2^bits, 2^bits), (count, n, 2); bits at most 120."""

    def decompose(self, c: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Digits (l, l + 1, n) of (l, n), NTT form."""

    def key_product(
        self, digits: NDArray[np.uint64], key: NDArray[np.uint64], element: int
    ) -> NDArray[np.uint64]:
        """Digits permuted by the automorphism, times a key (l or more, 2, primes, n): (2, l + 1, n)."""

    def mod_down(self, a: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Divide (.., l + 1, n) over the first l primes and the special one by the special one."""

    def rescale(self, a: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Divide (.., l, n) by the last of the first l primes."""

    def multiply_sum(
        self, x: NDArray[np.uint64], y: NDArray[np.uint64], basis: Sequence[int]
    ) -> NDArray[np.uint64]:
        """Sum over the first axis of x (count, 2, l, n) times y (count, l, n): (2, l, n)."""

    def encode(self, slots: NDArray[np.complex128], scale: float, basis: Sequence[int]) -> NDArray[np.uint64]:
        """Canonical embedding of (.., n / 2) in NTT form; `ValueError` where a coefficient reaches 2^62."""

    def decode(self, coefficients: NDArray[np.float64], scale: float) -> NDArray[np.complex128]:
        """Slots (.., n / 2) of coefficients (.., n), divided by the scale."""
