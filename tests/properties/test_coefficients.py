"""Convolutions as products of polynomials, against NumPy; numbers mod 2**64 as messages mod Q, to the bit."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from privinfer.errors import ConfigError, PrecisionError
from privinfer.graph import ir, reference
from privinfer.protocols.ckks import ring64
from privinfer.protocols.ckks.coefficients import Convolution, Packing, choose
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.mpc import encrypted

U64 = npt.NDArray[np.uint64]
EXTREMES = (0, 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1)
seeds = st.integers(0, 2**32)


def wide(rng: np.random.Generator, shape: tuple[int, ...]) -> U64:
    """Numbers mod 2**64, extremes among them."""
    x = rng.integers(0, 2**64, shape, dtype=np.uint64)
    extreme = np.array(EXTREMES, dtype=np.uint64)[rng.integers(0, len(EXTREMES), shape)]
    return np.where(rng.random(shape) < 0.5, x, extreme)


def negacyclic(a: U64, b: U64) -> U64:
    """The product modulo X^n + 1, from its definition."""
    out = np.zeros_like(a)
    for i in np.flatnonzero(b):
        turned = np.roll(a, i)
        turned[:i] = np.uint64(0) - turned[:i]
        out += turned * b[i]
    return out


def by_polynomials(packing: Packing, x: U64, w: U64) -> U64:
    """What a model owner computes, in the clear."""
    rows, groups, inputs, outputs = packing.counts
    xs, ws = packing.spread(x), packing.weights(w.view(np.int64)).view(np.uint64)
    assert xs.shape == (rows, groups, inputs, packing.n)
    assert ws.shape == (groups, outputs, inputs, packing.n)
    z = np.zeros((rows, groups, outputs, packing.n), dtype=np.uint64)
    for r, g, o, i in np.ndindex(rows, groups, outputs, inputs):
        z[r, g, o] += negacyclic(xs[r, g, i], ws[g, o, i])
    return packing.gather(z)


@st.composite
def convolutions(draw: st.DrawFn) -> Convolution:
    small = st.integers(1, 4)
    pair = st.tuples(st.integers(1, 3), st.integers(1, 3))
    size = st.integers(1, 12)
    pad = st.integers(0, 3)
    k = Convolution(
        draw(small),
        draw(small),
        draw(small),
        draw(size),
        draw(size),
        draw(pair),
        draw(pair),
        draw(st.tuples(pad, pad, pad, pad)),
        draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
    )
    assume(min(k.windows) > 0)
    return k


@given(convolutions(), st.integers(1, 4), st.sampled_from([128, 256, 1024]), seeds)
def test_convolutions(k: Convolution, rows: int, n: int, seed: int) -> None:
    """Stride, padding, dilation, groups, tiles where an image is larger than a polynomial."""
    rng = np.random.default_rng(seed)
    x = wide(rng, (rows, k.groups * k.inputs, k.height, k.width))
    w = wide(rng, (k.groups * k.outputs, k.inputs, *k.kernel))
    op = ir.Conv2d(
        k.groups * k.inputs, k.groups * k.outputs, k.kernel, k.stride, k.padding, k.dilation, k.groups
    )
    packing = choose(k, rows, n)
    np.testing.assert_array_equal(by_polynomials(packing, x, w), reference.linear_map(op, x, w))


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 5), seeds)
def test_matrices(inputs: int, outputs: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, w = wide(rng, (rows, inputs, 1, 1)), wide(rng, (outputs, inputs, 1, 1))
    packing = choose(Convolution(1, inputs, outputs), rows, 128)
    got = by_polynomials(packing, x, w)
    np.testing.assert_array_equal(got[..., 0, 0], x[..., 0, 0] @ w[..., 0, 0].T)


@given(st.data(), st.integers(1, 3), seeds)
def test_every_operator_in_its_own_shape(data: st.DataObject, batch: int, seed: int) -> None:
    """Spread and gather by operator: what goes in at each place, and what comes out, in the wire's shapes."""
    rng = np.random.default_rng(seed)
    shape = data.draw(st.sampled_from([(1,), (7,), (3, 5), (2, 3, 4), (6, 1, 1)]))
    axis = data.draw(st.integers(1, len(shape)))
    op = data.draw(st.sampled_from([ir.Linear(shape[-1], 4), ir.Scale(axis, shape[axis - 1])]))
    product = encrypted.Product(op, shape, batch)
    x = wide(rng, (batch, *shape))
    weight = rng.integers(-(2**20), 2**20, op.parameters()["weight"]).view(np.uint64)
    packing = product.packing
    rows, groups, inputs, outputs = packing.counts
    xs = product.spread(x).reshape(rows, groups, inputs, -1)
    ws = product.weights(weight).view(np.uint64)
    z = np.zeros((rows, groups, outputs, packing.n), dtype=np.uint64)
    for r, g, o, i in np.ndindex(rows, groups, outputs, inputs):
        z[r, g, o] += negacyclic(xs[r, g, i], ws[g, o, i])
    want = reference.linear_map(op, x, weight)
    np.testing.assert_array_equal(product.gather(z.reshape(-1, packing.n)), want)


def test_few_ciphertexts() -> None:
    """Rows share polynomials, and blocks are balanced: what a layer costs is decided here."""
    assert choose(Convolution(1, 16, 1), 100, 8192).sent == 1
    one = choose(Convolution(1, 4096, 64), 1, 8192)
    assert one.sent + one.found <= 12  # a row of blocks either way would take 33
    image = choose(Convolution(1, 1, 8, 28, 28, (5, 5), (2, 2), (2, 2, 2, 2)), 1, 8192)
    assert (image.sent, image.found) == (1, 1)
    large = choose(Convolution(1, 1, 1, 300, 200, (3, 3)), 1, 8192)
    assert large.sent == large.found == 8  # tiles: 298 x 198 windows are 7.2 polynomials


def test_a_window_larger_than_a_polynomial() -> None:
    with pytest.raises(ConfigError, match="100, 100"):
        choose(Convolution(1, 1, 1, 100, 100, (100, 100)), 1, 8192)


@given(seeds)
def test_numbers_as_messages(seed: int) -> None:
    """Residues of floor(Q m / 2**64), against Python's integers; two of them add up as Z_2^64 does."""
    p = Parameters(1024, 3, insecure=True)
    rng = np.random.default_rng(seed)
    a, b = wide(rng, (1024,)), wide(rng, (1024,))
    q, basis = p.modulus(3), p.data(3)
    first, second = (p.ring.intt(ring64.encode(p, 3, v), basis) for v in (a, b))
    for k in basis:
        want = [(q * int(m) >> 64) % p.primes[k] for m in a[:50]]
        assert first[k, :50].tolist() == want
    total = ring64.decode(p, p.ring.add(first, second, basis))
    off = (total - (a + b)).view(np.int64)
    assert np.abs(off).max() <= 2  # three limbs, each rounds by half a unit; the encoding by less than 2**-80


def test_weights_that_noise_would_show_through() -> None:
    p = encrypted.parameters()
    ring64.check_weights(p, 64, encrypted.SENT, encrypted.OPENED, 2.0**50, "fine")
    with pytest.raises(PrecisionError, match="'steep'"):
        ring64.check_weights(p, 3, encrypted.SENT, encrypted.OPENED, 2.0**62, "steep")
