"""What coalitions see: garbage without the last share, uniform sub-shares, masks that hide; and attacks that
work.

Statistics have exact tails (tests/support/stats.py); each is shown to catch a variant that is broken on
purpose.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from privinfer.protocols.ckks import encryption, galois, masks, threshold, to_shares
from privinfer.protocols.ckks.crs import CRS, Common
from privinfer.protocols.ckks.keys import KeyShare, SecretShare
from privinfer.protocols.ckks.parameters import SECURITY, Parameters
from tests.support import ckks, stats
from tests.support.ckks import SESSION, SMALL

PARTIES = (2, 3, 5, 8)


def share_of_modulus(table, ciphertext, key) -> float:
    """Mean of |c0 + c1 s| over Q / 2: 1/2 for garbage, near 0 for a message."""
    p, level = table.parameters, ciphertext.shape[1]
    opened = encryption.decrypt(p, key, ciphertext)
    values = ckks.integers(p.ring.compose(p.ring.intt(opened, p.data(level)), p.data(level)))
    half = p.modulus(level) // 2
    return float(sum(Fraction(abs(v), half) for v in values) / len(values))


@pytest.mark.parametrize("n", PARTIES)
def test_all_but_one_decrypt_to_garbage(n):
    table = ckks.seated(n)
    p = table.parameters
    _, ciphertext = ckks.encrypted(table, 45, 2)
    assert share_of_modulus(table, ciphertext, table.joint) < 2.0**-50
    for missing in table.holders:
        coalition = ckks.total_key(p, [s for name, s in table.secrets.items() if name != missing])
        assert abs(share_of_modulus(table, ciphertext, coalition) - 0.5) < stats.hoeffding(
            1, p.n, stats.ALARM / n
        )


def test_fewer_than_t_decrypt_to_garbage_and_see_uniform_sub_shares():
    table, t = ckks.seated(5), 3
    p = table.parameters
    access = threshold.Access(table.holders, t)
    dealt = {name: threshold.generate_shares(p, access, name, s) for name, s in table.secrets.items()}
    held = {
        h: threshold.aggregate(p, access, h, {d: dealt[d][h] for d in table.holders}) for h in table.holders
    }
    _, ciphertext = ckks.encrypted(table, 45, 2)
    few = table.holders[: t - 1]
    # the best linear guesses: as if a third were there, or as if t were 2
    smaller = threshold.Access(table.holders, t - 1)
    guesses = [[threshold.finish(smaller, held[h], few) for h in few]]
    for third in table.holders[t - 1 :]:
        guesses.append([threshold.finish(access, held[h], (*few, third)) for h in few])
    for guess in guesses:
        found = share_of_modulus(table, ciphertext, ckks.total_key(p, guess))
        assert abs(found - 0.5) < stats.hoeffding(1, p.n, stats.ALARM / len(guesses))
    # all primes lie within 2**-20 of 2**50, so the top four bits of a uniform residue are as good as uniform
    for holder in few:
        values = dealt[table.holders[4]][holder].values
        assert_uniform(np.bincount((values >> np.uint64(46)).reshape(-1).astype(np.int64), minlength=16), 2)


def assert_uniform(counts, comparisons: int = 1) -> None:
    x, freedom = stats.uniform_statistic(counts)
    assert x < stats.critical(freedom, stats.ALARM / comparisons)


@pytest.mark.parametrize("n", SECURITY)
@pytest.mark.parametrize("message_bits", [20, 50, 66])
def test_masks_leave_a_statistical_distance_of_2_to_minus_41(n, message_bits):
    """Exactly: uniform on 2**(B + 1) integers against its shift by m < 2**message_bits, N times."""
    p = Parameters(n, 1)
    bits = masks.mask_bits(p, message_bits)
    shift = Fraction(2**message_bits - 1, 2 ** (bits + 1))
    assert n * shift < Fraction(1, 2**41)
    assert bits == message_bits + 40 + p.log_n


def view(value: int) -> np.ndarray:
    """Histogram of what remains of the aggregator's view when all but one holder tell it their masks."""
    table = ckks.seated(3)
    p = table.parameters
    values = np.full(p.n, value, dtype=np.int64)
    plaintext = p.ring.ntt(p.ring.lift(values, p.data(3)), p.data(3))
    counts = np.zeros(16, dtype=np.int64)
    for _ in range(4):
        c = encryption.encrypt(p, table.public, plaintext)
        made = {
            name: to_shares.generate_share(p, s, c[1], 3, 46, ckks.permit("view", c[1]))
            for name, s in table.secrets.items()
        }
        sent = {name: message for name, (_, message) in made.items()}
        rest = to_shares.finish(p, c[0], to_shares.aggregate(p, 3, sent, table.holders))
        for name in table.holders[1:]:
            rest = rest + made[name][0]
        bits = masks.mask_bits(p, 46)
        cells = [min(max((v + (1 << bits)) >> (bits - 3), 0), 15) for v in ckks.integers(rest.words)]
        counts += np.bincount(cells, minlength=16)
    return counts


def test_the_aggregator_with_all_but_one_holder_sees_the_last_mask(monkeypatch):
    largest = (1 << 45) - 1
    for value in (0, largest, -largest):
        assert_uniform(view(value), 3)
    # without the 40 bits the same statistic sees the message
    monkeypatch.setattr(masks, "mask_bits", lambda parameters, message_bits: message_bits)
    x, freedom = stats.uniform_statistic(view(largest))
    assert x > stats.critical(freedom, stats.ALARM)


def test_two_galois_keys_under_one_polynomial_give_the_secret_away():
    """The attack that labels of the common string stop."""
    p, secret, ring = SMALL, SecretShare.fresh(SMALL), SMALL.ring
    g, h = galois.element_of(p, 1), galois.element_of(p, 2)

    def difference(first: Common, second: Common):
        shares = [galois.generate_share(p, secret, c).data[0] for c in (first, second)]
        return ring.sub(shares[0], shares[1], p.full)

    common = galois.sample(p, CRS(SESSION), g)
    found = difference(common, Common(galois.KIND, h, common.data))
    # where the gadget is 0 the difference is two errors; in limb 0, P times what the difference of images is
    noise = ckks.small(p, np.ascontiguousarray(found[1:]), p.full[1:])
    assert np.abs(noise).max() <= 2 * 21
    clean = ring.sub(found[:1], ring.ntt(ring.lift(noise, (0,)), (0,)), (0,))
    inverse = np.array([pow(p.special, -1, p.primes[0])], dtype=np.uint64)
    images = [ring.automorph(secret.values, e) for e in (g, h)]
    assert np.array_equal(ring.scale(clean, inverse, (0,)), ring.sub(*images, p.full)[:1])

    crs = CRS(SESSION)
    honest = difference(galois.sample(p, crs, g), galois.sample(p, crs, h))
    values = ring.intt(np.ascontiguousarray(honest[1:2]), (1,))
    assert_uniform(np.bincount((values[0] >> np.uint64(46)).astype(np.int64), minlength=16))


def test_an_own_key_and_shares_have_nothing_in_common():
    """s_owner is independent of every s_i: no constructor makes one of the other."""
    keys = [SecretShare.fresh(SMALL).expose() for _ in range(6)]
    for k, a in enumerate(keys):
        for b in keys[:k]:
            # products of independent ternary coefficients lie in [-1, 1] and have mean 0
            assert abs(float(np.mean(a * b))) < stats.hoeffding(2, SMALL.n, stats.ALARM / 15)
    assert not issubclass(KeyShare, SecretShare)
