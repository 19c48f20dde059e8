"""Parameters, common string, keys, smudging, masks: what does not need two parties."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest

from privinfer.errors import ConfigError, IntegrityError, PrecisionError
from privinfer.protocols.ckks import (
    from_shares,
    galois,
    masks,
    noise,
    public_key,
    refresh,
    relinearise,
    sampling,
    smudging,
    threshold,
    to_shares,
)
from privinfer.protocols.ckks.crs import CRS
from privinfer.protocols.ckks.gadget import add_gadget
from privinfer.protocols.ckks.keys import OwnKey, PublicKey, SecretShare
from privinfer.protocols.ckks.masks import IntegerShare
from privinfer.protocols.ckks.parameters import SECURITY, Parameters, family, is_prime, most_levels
from tests.support import ckks
from tests.support.ckks import SESSION, SMALL


def test_primes_are_the_largest_of_their_kind_below_2_to_50():
    for n in (1024, 16384, 65536):
        found = family(n, 5)
        assert all(p % (2 * n) == 1 and is_prime(p) for p in found)
        assert found == tuple(sorted(found, reverse=True))
        between = range((1 << 50) - 2 * n + 1, found[-1], -2 * n)
        assert [c for c in between if is_prime(c)] == list(found[:-1])
    assert [k for k in range(60) if is_prime(k)] == [
        k for k in range(2, 60) if all(k % d for d in range(2, k))
    ]
    assert not is_prime(3215031751)  # a strong pseudoprime to 2, 3, 5 and 7


def test_two_sessions_of_one_ring_agree_on_a_prefix():
    few, many = Parameters(16384, 3), Parameters(16384, 7)
    assert few.primes[:3] == many.primes[:3]
    assert few.special == many.special == max(many.primes)
    assert few.digest() != many.digest()
    assert Parameters(16384, 3).digest() == few.digest()


@pytest.mark.parametrize(("n", "limit"), SECURITY.items())
def test_less_than_128_bits_is_refused(n, limit):
    most = most_levels(n)
    if most:
        assert Parameters(n, most).log2_qp <= limit
    with pytest.raises(ConfigError, match=rf"N = {n} .* it may have {limit} at most"):
        Parameters(n, most + 1)


def test_insecure_parameters_are_asked_for_and_never_pass_for_others():
    with pytest.raises(ConfigError, match="may have 0 at most"):
        Parameters(1024, 1)
    with pytest.raises(ConfigError, match="128 bits"):
        SMALL.check_security()
    assert Parameters(8192, 3, insecure=True).digest() != Parameters(8192, 3).digest()
    for n, levels in ((1000, 3), (512, 1), (1 << 17, 3), (8192, 0), (8192, 65)):
        with pytest.raises(ConfigError, match=r"between|power of two"):
            Parameters(n, levels)


def test_levels_outside_the_parameters_are_refused():
    assert SMALL.data(2) == (0, 1)
    assert SMALL.extended(2) == (0, 1, 4)
    assert SMALL.full == (0, 1, 2, 3, 4)
    for level in (0, 5):
        with pytest.raises(ConfigError, match="level"):
            SMALL.data(level)


def test_everybody_draws_the_same_common_string_and_every_label_another():
    def drawn(session=SESSION, attempt=0, kind="k", label=3, digit=0):
        return CRS(session, attempt).draw(SMALL, kind, label, digit + 1, SMALL.full).data[digit]

    first = drawn()
    assert np.array_equal(first, drawn())
    others = [
        drawn(b"t" * 32),
        drawn(attempt=1),
        drawn(kind="l"),
        drawn(label=5),
        drawn(label="3"),
        drawn(digit=1),
    ]
    for k, other in enumerate(others):
        for another in (first, *others[:k]):
            assert not np.any(np.all(other == another, axis=-1))


def test_a_common_string_serves_once():
    crs = CRS(SESSION)
    common = galois.sample(SMALL, crs, 3)
    with pytest.raises(IntegrityError, match="common string 'galois key', 3, would be used twice"):
        galois.sample(SMALL, crs, 3)
    galois.sample(SMALL, crs, 9)
    secret = SecretShare.fresh(SMALL)
    with pytest.raises(IntegrityError, match="'galois key' would be used for 'public key'"):
        public_key.generate_share(SMALL, SESSION, "hospital", secret, common)
    galois.generate_share(SMALL, secret, common)
    with pytest.raises(IntegrityError, match="would mask a second share"):
        galois.generate_share(SMALL, secret, common)


def test_secrets_are_ternary_uniform_hidden_and_come_back():
    secret = SecretShare.fresh(SMALL)
    coefficients = secret.expose()
    counts = np.bincount(coefficients + 1, minlength=3)
    assert counts.sum() == SMALL.n
    assert np.all(np.abs(counts - SMALL.n / 3) < 6.5 * math.sqrt(SMALL.n * 2 / 9))  # 1e-10 a count
    assert np.array_equal(SecretShare.restore(SMALL, coefficients).values, secret.values)
    with pytest.raises(ConfigError, match="in -1, 0, 1"):
        SecretShare.restore(SMALL, coefficients * 2 + 1)
    own = OwnKey.fresh(SMALL)
    for hidden in (secret, own, IntegerShare(np.zeros((4, 2), dtype=np.uint64))):
        assert "hidden" in repr(hidden)
        assert "array" not in repr(hidden)
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(hidden)
        with pytest.raises(TypeError, match="not pickled"):
            copy.copy(hidden)
    assert len(repr(own.public)) < 40


def test_public_keys_cross_the_wire():
    own = OwnKey.fresh(SMALL)
    data = own.public.to_bytes()
    assert len(data) == PublicKey.size(SMALL)
    back = PublicKey.parse(SMALL, data, "patient")
    assert np.array_equal(back.data, own.public.data)
    assert back.digest() == own.public.digest()
    assert OwnKey.restore(own.secret).public.digest() != own.public.digest()


def test_nothing_is_drawn_twice():
    drawn = [sampling.fresh_key("x") for _ in range(100)]
    assert len(set(drawn)) == 100
    assert not np.array_equal(sampling.errors(SMALL, (0,), 1), sampling.errors(SMALL, (0,), 1))


def test_the_gadget_puts_p_into_one_limb():
    digits = np.zeros((SMALL.digits, SMALL.limbs, SMALL.n), dtype=np.uint64)
    target = sampling.uniform(SMALL, 1, SMALL.full)[0]
    add_gadget(SMALL, digits, target)
    for j in range(SMALL.digits):
        q = SMALL.primes[j]
        wanted = [int(v) * SMALL.special % q for v in target[j, :20]]
        assert digits[j, j, :20].tolist() == wanted
        assert not np.any(np.delete(digits[j], j, axis=0))


# -- smudging --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 20, 48])
def test_smudging_is_uniform_within_its_bound(bits):
    s = smudging.Smudging(bits)
    p = SMALL
    e = np.concatenate([ckks.small(p, p.ring.ntt(s.sample(p, (0, 1)), (0, 1)), (0, 1)) for _ in range(8)])
    assert e.min() >= -s.bound
    assert e.max() < s.bound
    exact = math.sqrt(((1 << (2 * bits + 2)) - 1) / 12)  # of the integers -2**b .. 2**b - 1
    assert abs(np.std(e.astype(float)) / exact - 1) < 0.05
    assert exact <= s.std
    counts = np.bincount((e + s.bound) >> (bits - 1), minlength=4)
    assert np.all(np.abs(counts - len(e) / 4) < 6.5 * math.sqrt(len(e) * 3 / 16))


def test_bits_of_flooding():
    p = Parameters(16384, 7)
    assert smudging.flooding_bits(2.0**10, 40) == pytest.approx(30 - math.log2(math.sqrt(3)))
    # one shift by e moves a uniform distribution on 2**(b+1) values by |e| / 2**(b+1)
    assert smudging.distance_bits(p, 2.0**10, 60) == pytest.approx(
        61 - 14 - 10 - math.log2(math.sqrt(2 / math.pi))
    )
    text = smudging.Smudging(30).describe(p, 3, 2.0**10)
    assert text.startswith("smudging uniform in +-2^30, sigma = 2^29.2, 19.2 bits of flooding, 13")


def test_the_most_smudging_for_a_wanted_error():
    p = Parameters(16384, 7)
    for parties in (1, 3, 8):
        for wanted in (1e-2, 1e-4, 3e-7):
            bits = smudging.choose(p, parties, wanted).bits
            assert smudging.slot_error(p, bits, parties) <= wanted < smudging.slot_error(p, bits + 1, parties)
    with pytest.raises(PrecisionError, match="no smudging"):
        smudging.choose(p, 3, 1e-20)
    for bits in (0, 121):
        with pytest.raises(PrecisionError, match="between 1 and 120"):
            smudging.Smudging(bits)


# -- masks -----------------------------------------------------------------------------------------


def test_room_for_masks():
    p = Parameters(16384, 7)
    assert masks.mask_bits(p, 55) == 55 + 40 + 14
    assert not masks.fits(p, 2, 3, 55)  # 100 bits
    assert masks.fits(p, 3, 3, 55)
    assert masks.smallest_level(p, 3, 55) == 3
    # Q_low > 2 (n + 1) 2**B, to the bit
    q = p.modulus(2)
    for holders in (2, 3, 5, 8):
        for bits in range(20, 60):
            assert masks.fits(p, 2, holders, bits) == (q > 2 * (holders + 1) * 2 ** (bits + 54))
    assert not masks.fits(p, 3, 3, 67)  # 121 bits of mask are more than the kernel draws
    with pytest.raises(PrecisionError, match=r"masks of 109 bits for 3 key holders .* do not fit 2 levels"):
        masks.check_room(p, 2, 3, 55, "refresh")
    with pytest.raises(PrecisionError, match="do not fit 7 levels"):
        masks.smallest_level(p, 3, 80)


def test_integer_shares_carry():
    def share(*values):
        words = [[v & (2**64 - 1), (v >> 64) & (2**64 - 1)] for v in values]
        return IntegerShare(np.array(words, dtype=np.uint64))

    a, b = (5, -1, 2**64 - 1, -(2**100), 2**126), (7, 1, 1, 2**64, -1)
    total = share(*a) + share(*b)
    assert ckks.integers(total.words) == [x + y for x, y in zip(a, b, strict=True)]
    assert total.mod64().tolist() == [(x + y) % 2**64 for x, y in zip(a, b, strict=True)]


# -- sizes -----------------------------------------------------------------------------------------


def test_bytes_are_those_of_the_measurements():
    """docs: N = 16384 with 4 limbs at key level, W = 8 N: KW, 2 DKW, DKW, DKW; a share lW."""
    p = Parameters(16384, 3)
    w = 8 * 16384
    assert public_key.size(p) == (32, 32 + 4 * w)
    assert relinearise.size(p) == (2 * 3 * 4 * w, 2 * 3 * 4 * w, 3 * 4 * w)
    assert galois.size(p) == 3 * 4 * w
    assert threshold.size(p) == 4 * w
    assert to_shares.size(p, 2) == 2 * w
    assert from_shares.size(p, 3) == (3 * w, 6 * w)
    assert refresh.size(p, refresh.Span(2, 3, 3, 40)) == 5 * w


def test_noise_formulas_at_known_points():
    p = Parameters(16384, 7)
    assert noise.fresh(p, 3) == pytest.approx(math.sqrt(10.5 * 65537))
    assert noise.refresh(3) == pytest.approx(math.sqrt(63))
    assert noise.rotation(p, 3, 7) > noise.rotation(p, 3, 1) > noise.rounding(p, 3)
    assert noise.slot_std(p, 2.0**10) == pytest.approx(2.0**-40 * math.sqrt(8192))
    assert noise.product(p, 3.0, 0.0, 1.0, 5.0) == pytest.approx(128 * 15)
