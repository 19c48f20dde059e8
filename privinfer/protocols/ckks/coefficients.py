"""Matrix products and convolutions as products of polynomials, by their coefficients.

Everything is a convolution of rows: a matrix product has images of one pixel, a scale has as many groups as
channels. With P pixels of a tile (input plus padding, row by row in tw pixels), and blocks of rb rows, gb
groups, cb channels in and ob channels out:

    x[r, g, c, y, x]  at  (r gb^2 + g) B + c P + y tw + x                              B = ob cb P
    w[g, o, c, i, j]  at  g gb B + o cb P + (cb-1-c) P + (kh-1-i) dh tw + (kw-1-j) dw
    z[r, g, o, Y, X]  at  (r gb^2 + g + gb g) B + o cb P + (cb-1) P + v

with v = ((kh-1) dh + Y) tw + (kw-1) dw + X for the window whose first pixel is (Y, X). Why nothing else
falls there: every product of two coefficients lies at q cb P + (cb-1+c-c') P + u, where q counts (row, group
in, group of the weight, channel out) and 0 <= u < P + the least v, since pixel and kernel sum to that at
most. To reach z's place from another q or c - c' takes u >= P + v or u < 0. What exceeds degree N comes back
negated and ends below the first place that is read. All that is needed is rb gb^2 B <= N.
What is nobody's result is a sum of products too: it stays shared and is never put together.
Source: Cheetah (Huang et al., USENIX Security 2022, eprint 2022/207), sections 3.1 and 3.2; blocks of rows
and groups are added here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from privinfer.errors import ConfigError
from privinfer.protocols.randomness import U64

I64 = npt.NDArray[np.int64]
Number = TypeVar("Number", np.int64, np.uint64)
PRODUCT_WEIGHT = 64  # products of polynomials that take about as long as one more ciphertext


@dataclass(frozen=True, slots=True)
class Convolution:
    """A grouped convolution of rows shaped (groups * inputs, height, width).

    Attributes
    ----------
    groups : int
        Their number.
    inputs, outputs : int
        Channels of one group.
    height, width : int
        Of an image.
    kernel, stride, dilation : tuple of int
        Along height and width.
    padding : tuple of int
        Top, left, bottom, right.
    """

    groups: int
    inputs: int
    outputs: int
    height: int = 1
    width: int = 1
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def spans(self) -> tuple[int, int]:
        """Pixels that one window covers from end to end."""
        (kh, kw), (dh, dw) = self.kernel, self.dilation
        return (kh - 1) * dh + 1, (kw - 1) * dw + 1

    @property
    def windows(self) -> tuple[int, int]:
        """Height and width of the result."""
        top, left, bottom, right = self.padding
        (h, w), (sh, sw) = self.spans, self.stride
        return (self.height + top + bottom - h) // sh + 1, (self.width + left + right - w) // sw + 1

    def tile(self, windows: tuple[int, int]) -> tuple[int, int]:
        """Pixels that so many windows cover."""
        (h, w), (sh, sw) = self.spans, self.stride
        return (windows[0] - 1) * sh + h, (windows[1] - 1) * sw + w


@dataclass(frozen=True, slots=True)
class Packing:
    """Where each number of a convolution of `rows` rows lies in polynomials of degree `n`.

    Attributes
    ----------
    windows : tuple of int
        Height and width of the part of the result that one tile gives.
    blocks : tuple of int
        Rows (tiles of all images), groups, channels in and channels out of one polynomial.
    """

    convolution: Convolution
    rows: int
    n: int
    windows: tuple[int, int]
    blocks: tuple[int, int, int, int]

    @property
    def _tiles(self) -> tuple[int, int]:
        return _up(self.convolution.windows[0], self.windows[0]), _up(
            self.convolution.windows[1], self.windows[1]
        )

    @property
    def _pixels(self) -> tuple[int, int]:
        return self.convolution.tile(self.windows)

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Blocks of rows, of groups, of channels in, of channels out."""
        c, (nh, nw) = self.convolution, self._tiles
        totals = self.rows * nh * nw, c.groups, c.inputs, c.outputs
        a, b, d, e = (_up(total, block) for total, block in zip(totals, self.blocks, strict=True))
        return a, b, d, e

    @property
    def sent(self) -> int:
        """Polynomials of the input."""
        r, g, c, _ = self.counts
        return r * g * c

    @property
    def found(self) -> int:
        """Polynomials of the result."""
        r, g, _, o = self.counts
        return r * g * o

    def spread(self, x: U64) -> U64:
        """The input's polynomials.

        Parameters
        ----------
        x : ndarray, shape (rows, groups * inputs, height, width)
            Numbers mod 2**64.

        Returns
        -------
        ndarray, shape (row blocks, group blocks, input blocks, n)
            Coefficients.
        """
        k, (nh, nw), (th, tw) = self.convolution, self._tiles, self._pixels
        rb, gb, cb, ob = self.blocks
        nr, ng, nc, _ = self.counts
        top, left = k.padding[:2]
        sh, sw = self.windows[0] * k.stride[0], self.windows[1] * k.stride[1]
        high, wide = (nh - 1) * sh + th, (nw - 1) * sw + tw
        framed = np.zeros((self.rows, k.groups * k.inputs, high, wide), dtype=np.uint64)
        height, width = min(k.height, high - top), min(k.width, wide - left)
        if height > 0 and width > 0:
            framed[:, :, top : top + height, left : left + width] = x[:, :, :height, :width]
        ys = np.arange(nh)[:, None] * sh + np.arange(th)
        xs = np.arange(nw)[:, None] * sw + np.arange(tw)
        tiles = framed[:, :, ys[:, :, None, None], xs[None, None]]  # rows, channels, nh, th, nw, tw
        tiles = tiles.transpose(0, 2, 4, 1, 3, 5).reshape(-1, k.groups, k.inputs, th * tw)
        tiles = _padded(tiles, (nr * rb, ng * gb, nc * cb, th * tw))
        tiles = tiles.reshape(nr, rb, ng, gb, nc, cb * th * tw).transpose(0, 2, 4, 1, 3, 5)
        out = np.zeros((nr, ng, nc, self.n), dtype=np.uint64)
        used = np.zeros((nr, ng, nc, rb, gb, gb, ob, cb * th * tw), dtype=np.uint64)
        used[:, :, :, :, 0, :, 0] = tiles
        flat = used.reshape(nr, ng, nc, -1)
        out[..., : flat.shape[-1]] = flat
        return out

    def weights(self, w: I64) -> I64:
        """The weights' polynomials.

        Parameters
        ----------
        w : ndarray of int64, shape (groups * outputs, inputs, *kernel)
            Signed integers.

        Returns
        -------
        ndarray of int64, shape (group blocks, output blocks, input blocks, n)
            Coefficients.
        """
        k, (th, tw) = self.convolution, self._pixels
        _, gb, cb, ob = self.blocks
        _, ng, nc, no = self.counts
        (kh, kw), (dh, dw) = k.kernel, k.dilation
        whole = w.reshape(k.groups, k.outputs, k.inputs, kh, kw)
        whole = _padded(whole, (ng * gb, no * ob, nc * cb, kh, kw))
        whole = whole.reshape(ng, gb, no, ob, nc, cb, kh, kw).transpose(0, 2, 4, 1, 3, 5, 6, 7)
        out = np.zeros((ng, no, nc, self.n), dtype=np.int64)
        used = np.zeros((ng, no, nc, gb, gb, ob, cb, th, tw), dtype=np.int64)
        used[:, :, :, :, 0, :, :, : (kh - 1) * dh + 1 : dh, : (kw - 1) * dw + 1 : dw] = whole[
            ..., ::-1, ::-1, ::-1
        ]
        flat = used.reshape(ng, no, nc, -1)
        out[..., : flat.shape[-1]] = flat
        return out

    def gather(self, z: U64) -> U64:
        """The result from its polynomials.

        Parameters
        ----------
        z : ndarray, shape (row blocks, group blocks, output blocks, n)
            Coefficients, or what is known of them, such as a share.

        Returns
        -------
        ndarray, shape (rows, groups * outputs, *windows)
            Numbers.
        """
        k, (nh, nw), (th, tw), (oh, ow) = self.convolution, self._tiles, self._pixels, self.windows
        rb, gb, cb, ob = self.blocks
        nr, ng, _, no = self.counts
        (h, w), (sh, sw) = k.spans, k.stride
        used = z.reshape(nr, ng, no, self.n)[..., : rb * gb * gb * ob * cb * th * tw]
        used = used.reshape(nr, ng, no, rb, gb, gb, ob, cb, th, tw)[..., cb - 1, h - 1 :: sh, w - 1 :: sw]
        same = np.arange(gb)
        used = used[:, :, :, :, same, same].transpose(0, 3, 1, 4, 2, 5, 6, 7)
        used = used.reshape(nr * rb, ng * gb, no * ob, oh, ow)
        used = used[: self.rows * nh * nw, : k.groups, : k.outputs]
        used = used.reshape(self.rows, nh, nw, k.groups * k.outputs, oh, ow).transpose(0, 3, 1, 4, 2, 5)
        used = used.reshape(self.rows, k.groups * k.outputs, nh * oh, nw * ow)
        return np.ascontiguousarray(used[:, :, : k.windows[0], : k.windows[1]])


def _up(total: int, block: int) -> int:
    return -(-total // block)


def _padded(a: npt.NDArray[Number], shape: tuple[int, ...]) -> npt.NDArray[Number]:
    return np.pad(a, [(0, to - have) for to, have in zip(shape, a.shape, strict=True)])


def _halves(total: int, most: int) -> list[int]:
    """Powers of two below, and the whole."""
    found = [1 << k for k in range(total.bit_length()) if 1 << k < total]
    return [block for block in [*found, total] if block <= most]


@lru_cache(maxsize=1024)
def choose(convolution: Convolution, rows: int, n: int) -> Packing:
    """The packing with the fewest ciphertexts: the same for everybody, for it depends on shapes alone.

    Raises
    ------
    ConfigError
        One window covers more than n pixels.
    """
    k = convolution
    windows = _windows(k, n)
    th, tw = k.tile(windows)
    tiles = rows * _up(k.windows[0], windows[0]) * _up(k.windows[1], windows[1])
    best: tuple[float, Packing] | None = None
    for gb in _halves(k.groups, n):
        for cb in _halves(k.inputs, n // (th * tw)):
            room = n // (gb * gb * cb * th * tw)
            for ob in dict.fromkeys([*_halves(k.outputs, room), min(k.outputs, room)]):
                if not ob:
                    continue
                one = Packing(k, rows, n, windows, (max(1, min(tiles, room // ob)), gb, cb, ob))
                nr, ng, nc, no = one.counts
                cost = nr * ng * (nc + no + nc * no / PRODUCT_WEIGHT)
                if best is None or cost < best[0]:
                    best = cost, one
    if best is None:
        raise ConfigError(f"polynomials of degree {n} do not hold a convolution of {k.spans} pixels")
    return best[1]


def _windows(k: Convolution, n: int) -> tuple[int, int]:
    """Windows of one tile: all of them, or halves and quarters as long as they do not fit."""
    high, wide = k.windows
    while True:
        th, tw = k.tile((high, wide))
        if th * tw <= n or (high, wide) == (1, 1):
            return high, wide
        if (th >= tw and high > 1) or wide == 1:
            high = _up(high, 2)
        else:
            wide = _up(wide, 2)
