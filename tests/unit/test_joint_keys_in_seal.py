"""Keys that the protocols make between three holders, in SEAL: it encrypts and evaluates with them."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("tenseal")

from privinfer.backends.ckks import tenseal as bridge
from privinfer.backends.ckks.tenseal import PublicContext
from privinfer.protocols.ckks import encryption, noise
from privinfer.protocols.ckks.parameters import SCALE, Parameters
from tests.support.ckks import Table, galois_key, relinearisation_key, seat

PARAMETERS = Parameters(8192, 3)
HOLDERS = 3
# as in test_tenseal_bridge.py: what a product of two complex Gaussians exceeds in one run of a million
TAIL = 18.0


def slots(std: float) -> float:
    """The bound of a slot where each coefficient has `std`."""
    return TAIL * std * math.sqrt(PARAMETERS.n / 2) / SCALE + 2.0**-45


@pytest.fixture(scope="module")
def table() -> Table:
    return seat(PARAMETERS, HOLDERS)


@pytest.fixture(scope="module")
def context(table: Table) -> PublicContext:
    elements = [pow(3, step, 2 * PARAMETERS.n) for step in (1, 2, 4)]
    return PublicContext(
        bridge.form_of(PARAMETERS.n, PARAMETERS.primes),
        public_key=table.public.data,
        relinearisation_key=relinearisation_key(table),
        galois_keys={element: galois_key(table, element) for element in elements},
    )


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(5).uniform(-1, 1, PARAMETERS.slots)


def test_seal_encrypts_and_the_holders_decrypt(table: Table, context: PublicContext, x: np.ndarray) -> None:
    data, scale = context.encrypt(x)
    ring, basis = PARAMETERS.ring, PARAMETERS.data(1)
    opened = ring.intt(np.ascontiguousarray(encryption.decrypt(PARAMETERS, table.joint, data)[:1]), basis)[0]
    q = PARAMETERS.primes[0]
    signed = np.where(opened > q // 2, opened.astype(np.int64) - q, opened.astype(np.int64))
    found = ring.decode(signed.astype(np.float64), scale).real
    assert np.abs(found - x).max() < slots(noise.fresh(PARAMETERS, HOLDERS))


def test_we_encrypt_and_seal_decrypts(table: Table, context: PublicContext, x: np.ndarray) -> None:
    """Our encoding has SEAL's order of slots."""
    plain = PARAMETERS.ring.encode(x.astype(np.complex128), SCALE, PARAMETERS.data(2))
    data = encryption.encrypt(PARAMETERS, table.public, plain)
    found = bridge.decrypt(context.form, table.joint.values, data, SCALE)
    assert np.abs(found - x).max() < slots(noise.fresh(PARAMETERS, HOLDERS))


def test_seal_evaluates(table: Table, context: PublicContext, x: np.ndarray) -> None:
    """A square needs the relinearisation key, a sum of eight the rotations by 4, 2 and 1."""
    vector = context.vector(*context.encrypt(x))
    found = bridge.decrypt(context.form, table.joint.values, *context.read(vector.square()))
    drift = PARAMETERS.primes[2] / SCALE  # TenSEAL calls the scale SCALE again
    assert np.abs(found * drift - x * x).max() < 3 * slots(noise.fresh(PARAMETERS, HOLDERS))
    data, scale = context.encrypt(np.tile(x[:8], PARAMETERS.slots // 8))
    total = context.vector(data, scale, size=8).sum()
    found = bridge.decrypt(context.form, table.joint.values, *context.read(total))
    # three doublings, each with a switch; SEAL's digits are not centred, which is seen next to X = 1
    switch = (
        HOLDERS * math.sqrt(PARAMETERS.levels * PARAMETERS.n) * 3.24 * PARAMETERS.n / math.pi / math.sqrt(3)
    )
    peak = TAIL * switch * math.sqrt(PARAMETERS.levels) / SCALE
    assert abs(found[0] - x[:8].sum()) < 8 * (slots(noise.fresh(PARAMETERS, HOLDERS)) + peak)
