"""Every protocol's error has the declared standard deviation within a factor of 2, for 2 to 8 parties.

With N = 1024 coefficients a sample's standard deviation strays from the true one by 1 / sqrt(2 N) = 2.2 %
of it (errors are close to normal and coefficients nearly uncorrelated), so a factor of 2 is more than 20 of
its deviations away.
"""

from __future__ import annotations

import numpy as np
import pytest

from privinfer.protocols.ckks import (
    encryption,
    from_shares,
    galois,
    key_switch,
    noise,
    public_switch,
    refresh,
    rekey,
    sampling,
    threshold,
    to_modular_shares,
    to_shares,
)
from privinfer.protocols.ckks.crs import CRS
from privinfer.protocols.ckks.keys import OwnKey, SecretShare
from privinfer.protocols.ckks.masks import IntegerShare
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.protocols.ckks.smudging import Smudging, choose, slot_error
from tests.support import ckks
from tests.support.ckks import Table

PARTIES = (2, 3, 5, 8)
CONSENT = b"c" * 32
parties = pytest.mark.parametrize("n", PARTIES)


def near(values, declared: float) -> None:
    measured = float(np.std(np.asarray(values, dtype=np.float64)))
    assert declared / 2 <= measured <= declared * 2, f"{measured:.4g} in place of {declared:.4g}"


@parties
def test_public_key_and_encryption(n):
    table = ckks.seated(n)
    p = table.parameters
    key_error = encryption.decrypt(p, table.joint, table.public.at(p.levels))
    near(ckks.small(p, key_error, p.data(p.levels)), noise.public_key(p, n))
    _, plaintext = ckks.message(p, 45, 3)
    ciphertext = encryption.encrypt(p, table.public, plaintext)
    near(ckks.error(table, ciphertext, plaintext), noise.fresh(p, n))
    again = encryption.rerandomise(p, table.public, ciphertext)
    assert not np.array_equal(again[1], ciphertext[1])
    near(ckks.error(table, again, plaintext), noise.fresh(p, n) * np.sqrt(2))


@parties
def test_rescale(n):
    table = ckks.seated(n)
    p = table.parameters
    _, ciphertext = ckks.encrypted(table, 10, 3)
    before = encryption.decrypt(p, table.joint, ciphertext)
    after = encryption.decrypt(p, table.joint, p.ring.rescale(ciphertext))
    # c0 + c1 s - q m' is what rounding left, times q: as integers, by composition
    whole = ckks.integers(p.ring.compose(p.ring.intt(before, p.data(3)), p.data(3)))
    less = ckks.integers(p.ring.compose(p.ring.intt(after, p.data(2)), p.data(2)))
    near([b - a / p.primes[2] for a, b in zip(whole, less, strict=True)], noise.rescale(p, n))


@parties
def test_relinearisation(n):
    table = table_copy(ckks.seated(n))
    p, s = table.parameters, table.joint
    key = ckks.relinearisation_key(table)
    ring, level = p.ring, 3
    basis = p.data(level)
    s2 = ring.mul(s.values, s.values, p.full)
    for j in range(p.digits):
        target = np.zeros_like(s2)
        target[j] = ring.scale(s2[j : j + 1], np.array([p.special % p.primes[j]], dtype=np.uint64), (j,))[0]
        found = ring.add(key[j, 0], ring.mul(key[j, 1], s.values, p.full), p.full)
        near(ckks.small(p, ring.sub(found, target, p.full), p.full), noise.relinearisation_key(p, n))
    c2 = sampling.uniform(p, 1, basis)[0]
    switched = ring.mod_down(ring.key_product(ring.decompose(c2), key, 1))
    wanted = ring.mul(c2, np.ascontiguousarray(s2[:level]), basis)
    near(ckks.error(table, switched, wanted), noise.relinearisation(p, n, level))


def table_copy(table: Table) -> Table:
    """The same keys with a common string nothing was drawn from."""
    return Table(table.parameters, table.secrets, CRS(ckks.SESSION, 1), table.public)


@parties
@pytest.mark.parametrize("step", [1, -3, None])
def test_rotation(n, step):
    table = table_copy(ckks.seated(n))
    p = table.parameters
    ring, level = p.ring, 3
    basis = p.data(level)
    element = galois.conjugation(p) if step is None else galois.element_of(p, step)
    key = ckks.galois_key(table, element)
    _, ciphertext = ckks.encrypted(table, 45, level)
    digits = ring.decompose(np.ascontiguousarray(ciphertext[1]))
    rotated = ring.mod_down(ring.key_product(digits, key, element))
    rotated[0] = ring.add(rotated[0], ring.automorph(np.ascontiguousarray(ciphertext[0]), element), basis)
    wanted = ring.automorph(encryption.decrypt(p, table.joint, ciphertext), element)
    near(ckks.error(table, rotated, wanted), noise.rotation(p, n, level))


@parties
def test_key_switch(n):
    table, smudging = ckks.seated(n), Smudging(20)
    p = table.parameters
    _, ciphertext = ckks.encrypted(table, 45, 2)
    new = {name: SecretShare.fresh(p) for name in table.holders}
    shares = {
        name: key_switch.generate_share(
            p, s, new[name], ciphertext[1], smudging, ckks.permit("switch", ciphertext[1])
        )
        for name, s in table.secrets.items()
    }
    switched = key_switch.finish(p, ciphertext, key_switch.aggregate(p, 2, shares, table.holders))
    before = encryption.decrypt(p, table.joint, ciphertext)
    target = ckks.total_key(p, list(new.values()))
    near(ckks.error(table, switched, before, target), noise.key_switch(n, smudging))


def public_switched(table: Table, ciphertext, target, smudging, keys=None):
    p, level = table.parameters, ciphertext.shape[1]
    keys = table.secrets if keys is None else keys
    shares = {
        name: public_switch.generate_share(
            p, s, target, ciphertext[1], smudging, ckks.permit("result", ciphertext[1])
        )
        for name, s in keys.items()
    }
    wire = {name: public_switch.parse(p, share.to_bytes(), level, name) for name, share in shares.items()}
    assert all(len(share.to_bytes()) == public_switch.size(p, level) for share in shares.values())
    total = public_switch.aggregate(p, level, wire, tuple(keys))
    return public_switch.finish(p, ciphertext[0], total)


@parties
@pytest.mark.parametrize("bits", [1, 20])
def test_public_switch(n, bits):
    table, smudging = ckks.seated(n), Smudging(bits)
    p = table.parameters
    receiver = OwnKey.fresh(p)
    _, ciphertext = ckks.encrypted(table, 45, 2)
    before = encryption.decrypt(p, table.joint, ciphertext)
    switched = public_switched(table, ciphertext, receiver.public, smudging)
    near(ckks.error(table, switched, before, receiver.secret), noise.public_switch(p, n, smudging))


@parties
def test_rekeying_online(n):
    table, smudging = ckks.seated(n), Smudging(8)
    p = table.parameters
    owner = OwnKey.fresh(p)
    _, plaintext = ckks.message(p, 45, 3)
    fragment = encryption.encrypt(p, owner.public, plaintext)
    share = rekey.switch(p, owner, table.public, fragment[1], smudging, ckks.permit("fragment", fragment[1]))
    total = public_switch.aggregate(p, 3, {"hospital": share}, ["hospital"])
    switched = public_switch.finish(p, fragment[0], total)
    before = encryption.decrypt(p, owner.secret, fragment)
    near(ckks.error(table, switched, before), noise.rekey_online(p, n, smudging))


@parties
@pytest.mark.parametrize("level", [1, 4])
def test_rekeying_offline(n, level):
    table = ckks.seated(n)
    p = table.parameters
    owner = OwnKey.fresh(p)
    key = rekey.publish(p, owner, table.public, CONSENT)
    wire = key.to_bytes()
    assert len(wire) == rekey.size(p, level)[1]
    key = rekey.OfflineKey.parse(p, wire, "hospital")
    _, plaintext = ckks.message(p, 45, level)
    fragment = encryption.encrypt(p, owner.public, plaintext)
    switched = rekey.apply(p, key, table.public, CONSENT, fragment)
    before = encryption.decrypt(p, owner.secret, fragment)
    near(ckks.error(table, switched, before), noise.rekey_offline(p, n, level))


def refreshed(table: Table, ciphertext, span, keys=None):
    p = table.parameters
    keys = table.secrets if keys is None else keys
    common = refresh.sample(p, table.crs, "step 0", span)
    shares = {
        name: refresh.generate_share(
            p, span, s, ckks.fresh(common), ciphertext[1], ckks.permit("refresh", ciphertext[1])
        )
        for name, s in keys.items()
    }
    assert all(len(share.to_bytes()) == refresh.size(p, span) for share in shares.values())
    wire = {name: refresh.parse(p, span, share.to_bytes(), name) for name, share in shares.items()}
    total = refresh.aggregate(p, span, wire, tuple(keys))
    return refresh.finish(p, span, common, ciphertext[0], total)


@parties
def test_refresh(n):
    table = table_copy(ckks.seated(n))
    p = table.parameters
    _, ciphertext = ckks.encrypted(table, 45, 3)
    fresh = refreshed(table, ciphertext, refresh.Span(low=3, high=4, holders=n, message_bits=46))
    assert fresh.shape == (2, 4, p.n)
    before = ckks.small(p, encryption.decrypt(p, table.joint, ciphertext), p.data(3))
    wanted = p.ring.ntt(p.ring.lift(before, p.data(4)), p.data(4))
    near(ckks.error(table, fresh, wanted), noise.refresh(n))


@parties
def test_to_shares_and_back(n):
    table = table_copy(ckks.seated(n))
    p, level = table.parameters, 3
    _, ciphertext = ckks.encrypted(table, 45, level)
    before = ckks.small(p, encryption.decrypt(p, table.joint, ciphertext), p.data(level))
    made = {
        name: to_shares.generate_share(p, s, ciphertext[1], n, 46, ckks.permit("shares", ciphertext[1]))
        for name, s in table.secrets.items()
    }
    total = to_shares.aggregate(p, level, {name: sent for name, (_, sent) in made.items()}, table.holders)
    rest = to_shares.finish(p, ciphertext[0], total)
    sums = [
        sum(c)
        for c in zip(
            *(ckks.integers(m.words) for m, _ in made.values()), ckks.integers(rest.words), strict=True
        )
    ]
    difference = [a - int(b) for a, b in zip(sums, before, strict=True)]
    near(difference, noise.to_shares(n))
    # exact over the integers, hence modulo 2**64
    mod = sum((m.mod64() for m, _ in made.values()), start=rest.mod64())
    assert np.array_equal(mod.view(np.int64), np.array(sums))

    # the first holder is the aggregator
    common = from_shares.sample(p, table.crs, "back", p.levels)
    plain = {name: mask for name, (mask, _) in made.items()}
    plain[table.holders[0]] = plain[table.holders[0]] + rest
    back = {
        name: from_shares.generate_share(p, s, ckks.fresh(common), plain[name])
        for name, s in table.secrets.items()
    }
    total = from_shares.aggregate(p, p.levels, back, table.holders)
    again = from_shares.finish(p, common, total)
    exact = p.ring.ntt(p.ring.lift(np.array(sums), p.data(p.levels)), p.data(p.levels))
    near(ckks.error(table, again, exact), noise.from_shares(n))


@parties
def test_to_modular_shares(n):
    """Any plaintext modulo Q, also one that fills it."""
    table = ckks.seated(n)
    p, level = table.parameters, 3
    basis = p.data(level)
    plaintext = sampling.uniform(p, 1, basis)[0]
    ciphertext = encryption.encrypt(p, table.public, plaintext)
    made = {
        name: to_modular_shares.generate_share(p, s, ciphertext[1], ckks.permit("shares", ciphertext[1]))
        for name, s in table.secrets.items()
    }
    total = to_shares.aggregate(p, level, {name: sent for name, (_, sent) in made.items()}, table.holders)
    whole = to_modular_shares.finish(p, ciphertext[0], total).residues
    for mask, _ in made.values():
        whole = p.ring.add(whole, mask.residues, basis)
    before = encryption.decrypt(p, table.joint, ciphertext)
    difference = p.ring.sub(p.ring.ntt(whole, basis), before, basis)
    near(ckks.small(p, difference, basis), noise.to_shares(n))


def test_shares_of_a_party_without_a_key():
    table = table_copy(ckks.seated(3))
    p = table.parameters
    values, plaintext = ckks.message(p, 45, 2)
    words = np.stack([values.view(np.uint64), (values >> 63).view(np.uint64)], axis=1)
    ciphertext = from_shares.encrypt(p, table.public, IntegerShare(np.ascontiguousarray(words)), 2)
    near(ckks.error(table, ciphertext, plaintext), noise.fresh(p, 3))


@pytest.mark.parametrize(("n", "t"), [(3, 2), (5, 2), (5, 3), (3, 1), (4, 4)])
def test_any_t_of_n_act_for_all(n, t):
    table = table_copy(ckks.seated(n))
    p = table.parameters
    access = threshold.Access(table.holders, t)
    dealt = {name: threshold.generate_shares(p, access, name, s) for name, s in table.secrets.items()}
    held = {}
    for holder in table.holders:
        received = {
            dealer: threshold.parse(p, dealt[dealer][holder].expose(), dealer, holder)
            for dealer in table.holders
        }
        held[holder] = threshold.aggregate(p, access, holder, received)
    for active in (table.holders[:t], table.holders[-t:], table.holders[::-1][:t]):
        keys = {name: threshold.finish(access, held[name], active) for name in active}
        assert np.array_equal(ckks.total_key(p, list(keys.values())).values, table.joint.values)
    receiver, smudging = OwnKey.fresh(p), Smudging(20)
    _, ciphertext = ckks.encrypted(table, 45, 3)
    before = encryption.decrypt(p, table.joint, ciphertext)
    switched = public_switched(table, ciphertext, receiver.public, smudging, keys)
    near(ckks.error(table, switched, before, receiver.secret), noise.public_switch(p, t, smudging))
    fresh = refreshed(table, ciphertext, refresh.Span(3, 4, t, 46), keys)
    wanted = ckks.small(p, before, p.data(3))
    wanted = p.ring.ntt(p.ring.lift(wanted, p.data(4)), p.data(4))
    near(ckks.error(table, fresh, wanted), noise.refresh(t))


def test_a_ring_of_16384():
    """The ring of the demonstrations, at 128 bits: encryption, re-keying, refresh, result."""
    p = Parameters(16384, 7)
    table = ckks.seat(p, 3)
    owner, receiver = OwnKey.fresh(p), OwnKey.fresh(p)
    _, plaintext = ckks.message(p, 52, 3)
    fragment = encryption.encrypt(p, owner.public, plaintext)
    key = rekey.publish(p, owner, table.public, CONSENT)
    joint = rekey.apply(p, key, table.public, CONSENT, fragment)
    before = encryption.decrypt(p, owner.secret, fragment)
    near(ckks.error(table, joint, before), noise.rekey_offline(p, 3, 3))

    fresh = refreshed(table, joint, refresh.Span(low=3, high=7, holders=3, message_bits=53))
    opened = p.ring.compose(p.ring.intt(encryption.decrypt(p, table.joint, joint), p.data(3)), p.data(3))
    wanted = p.ring.ntt(p.ring.lift_wide(opened, p.data(7)), p.data(7))
    near(ckks.error(table, fresh, wanted), noise.refresh(3))

    smudging = choose(p, 3, 1e-4)
    low = np.ascontiguousarray(fresh[:, :2])
    switched = public_switched(table, low, receiver.public, smudging)
    before = encryption.decrypt(p, table.joint, low)
    near(ckks.error(table, switched, before, receiver.secret), noise.public_switch(p, 3, smudging))
    # slots: sigma sqrt(n N / 2) / Delta
    difference = p.ring.sub(encryption.decrypt(p, receiver.secret, switched), before, p.data(2))
    slots = p.ring.decode(ckks.small(p, difference, p.data(2)).astype(np.float64), float(1 << 50))
    near(slots.real, slot_error(p, smudging.bits, 3))
    assert slot_error(p, smudging.bits, 3) <= 1e-4 < slot_error(p, smudging.bits + 1, 3)
