"""Every received message of threshold CKKS, spoiled in one place: the exact error, and who is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pytest

from privinfer.errors import ConfigError, ConsentError, IntegrityError, PrecisionError, ProtocolViolation
from privinfer.protocols.ckks import (
    encryption,
    from_shares,
    galois,
    key_switch,
    public_key,
    public_switch,
    refresh,
    rekey,
    relinearise,
    sampling,
    threshold,
    to_modular_shares,
    to_shares,
)
from privinfer.protocols.ckks.crs import CRS
from privinfer.protocols.ckks.keys import OwnKey, PublicKey, SecretShare
from privinfer.protocols.ckks.messages import Message
from privinfer.protocols.ckks.smudging import Smudging
from tests.support import ckks
from tests.support.ckks import SESSION, SMALL

HOLDERS = ("hospital", "dna_company", "laboratory")
LIAR = "dna_company"
P = SMALL
SPAN = refresh.Span(low=3, high=4, holders=3, message_bits=46)
CONSENT = b"c" * 32


@dataclass(frozen=True)
class Round:
    """Valid messages of all holders, and what reads and adds them."""

    shares: dict[str, Any]
    parse: Callable[[bytes, str], Any]
    aggregate: Callable[[dict[str, Any]], Any]
    step: str


@lru_cache(maxsize=1)
def rounds() -> dict[str, Round]:
    """A valid run of everything."""
    crs, smudging = CRS(SESSION, 7), Smudging(10)
    table = ckks.seat(P, 3, attempt=6)
    secrets, names = table.secrets, table.holders
    assert names == HOLDERS
    _, c = ckks.encrypted(table, 45, 3)

    def permit():
        return ckks.permit("step", c[1])

    first_common = relinearise.sample(P, crs)
    first = {n: relinearise.generate_first(P, s, ckks.fresh(first_common)) for n, s in secrets.items()}
    total = relinearise.aggregate_first(P, {n: share for n, (_, share) in first.items()}, names)
    second = {n: relinearise.generate_second(P, state, total) for n, (state, _) in first.items()}
    rotation = galois.sample(P, crs, 3)
    target = OwnKey.fresh(P).public
    new = {n: SecretShare.fresh(P) for n in names}
    back, again = from_shares.sample(P, crs, "c", 3), refresh.sample(P, crs, "c", SPAN)
    return {
        "relinearisation 1": Round(
            {n: share for n, (_, share) in first.items()},
            lambda data, who: relinearise.parse_first(P, data, who),
            lambda shares: relinearise.aggregate_first(P, shares, names),
            relinearise.KIND,
        ),
        "relinearisation 2": Round(
            second,
            lambda data, who: relinearise.parse_second(P, data, who),
            lambda shares: relinearise.aggregate_second(P, shares, names),
            relinearise.KIND,
        ),
        "galois": Round(
            {n: galois.generate_share(P, s, ckks.fresh(rotation)) for n, s in secrets.items()},
            lambda data, who: galois.parse(P, data, who),
            lambda shares: galois.aggregate(P, shares, names),
            galois.KIND,
        ),
        "key switch": Round(
            {
                n: key_switch.generate_share(P, s, new[n], c[1], smudging, permit())
                for n, s in secrets.items()
            },
            lambda data, who: key_switch.parse(P, data, 3, who),
            lambda shares: key_switch.aggregate(P, 3, shares, names),
            key_switch.KIND,
        ),
        "public switch": Round(
            {
                n: public_switch.generate_share(P, s, target, c[1], smudging, permit())
                for n, s in secrets.items()
            },
            lambda data, who: public_switch.parse(P, data, 3, who),
            lambda shares: public_switch.aggregate(P, 3, shares, names),
            public_switch.KIND,
        ),
        "to shares": Round(
            {n: to_shares.generate_share(P, s, c[1], 3, 46, permit())[1] for n, s in secrets.items()},
            lambda data, who: to_shares.parse(P, data, 3, who),
            lambda shares: to_shares.aggregate(P, 3, shares, names),
            to_shares.KIND,
        ),
        "from shares": Round(
            {n: from_shares.generate_share(P, s, ckks.fresh(back), None) for n, s in secrets.items()},
            lambda data, who: from_shares.parse(P, data, 3, who),
            lambda shares: from_shares.aggregate(P, 3, shares, names),
            from_shares.KIND,
        ),
        "refresh": Round(
            {
                n: refresh.generate_share(P, SPAN, s, ckks.fresh(again), c[1], permit())
                for n, s in secrets.items()
            },
            lambda data, who: refresh.parse(P, SPAN, data, who),
            lambda shares: refresh.aggregate(P, SPAN, shares, names),
            refresh.KIND,
        ),
    }


KINDS = (
    "relinearisation 1",
    "relinearisation 2",
    "galois",
    "key switch",
    "public switch",
    "to shares",
    "from shares",
    "refresh",
)
kinds = pytest.mark.parametrize("kind", KINDS)


def arrays(share) -> tuple[str, ...]:
    return ("low", "high") if isinstance(share, refresh.RefreshShare) else ("data",)


def spoiled(share, part: str, change):
    """The share with one array changed."""
    if part == "data":
        return type(share)(change(share.data.copy()))
    return replace(share, **{part: Message(change(getattr(share, part).data.copy()))})


def too_large(at):
    def change(a):
        flat = a.reshape(-1, a.shape[-2], a.shape[-1])
        limb = at % a.shape[-2]
        flat[-1, limb, at % P.n] = P.primes[limb]  # the smallest residue that is not canonical
        return a

    return change


def blame(kind: str, action) -> ProtocolViolation:
    with pytest.raises(ProtocolViolation) as e:
        action()
    assert e.value.culprit == LIAR
    assert e.value.step == rounds()[kind].step
    return e.value


@kinds
def test_a_valid_run_passes(kind):
    r = rounds()[kind]
    for name, share in r.shares.items():
        data = share.to_bytes()
        assert r.parse(data, name).to_bytes() == data
        assert "array" not in repr(share)
    r.aggregate(r.shares)


@kinds
@pytest.mark.parametrize("at", [0, -1])
def test_a_coefficient_out_of_range(kind, at):
    r = rounds()[kind]
    for part in arrays(r.shares[LIAR]):
        bad = spoiled(r.shares[LIAR], part, too_large(at))
        assert "not below its prime" in str(blame(kind, lambda bad=bad: r.aggregate({**r.shares, LIAR: bad})))
        assert "not below its prime" in str(blame(kind, lambda bad=bad: r.parse(bad.to_bytes(), LIAR)))


@kinds
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[..., :-1, :], "in place of"),
        (lambda a: a[..., : P.n // 2], "in place of"),
        (lambda a: a[None], "in place of"),
        (lambda a: a.astype(np.int64), "residues are uint64"),
        (lambda a: a.astype(np.float64), "residues are uint64"),
        (lambda a: a.tobytes(), "residues are uint64"),
    ],
)
def test_a_wrong_shape_or_type(kind, change, message):
    r = rounds()[kind]
    for part in arrays(r.shares[LIAR]):
        bad = spoiled(r.shares[LIAR], part, change)
        assert message in str(blame(kind, lambda bad=bad: r.aggregate({**r.shares, LIAR: bad})))


@kinds
def test_a_truncated_or_longer_message(kind):
    r = rounds()[kind]
    data = r.shares[LIAR].to_bytes()
    for bad in (data[:-1], data[:-8], data[: len(data) // 2], b"", data + bytes(8)):
        assert f"a message of {len(bad)} bytes in place of {len(data)}" in str(
            blame(kind, lambda bad=bad: r.parse(bad, LIAR))
        )


@kinds
def test_an_unknown_holder_and_a_missing_one(kind):
    r = rounds()[kind]
    with pytest.raises(ProtocolViolation, match="mallory is no key holder here") as e:
        r.aggregate({**r.shares, "mallory": r.shares[LIAR]})
    assert e.value.culprit == "mallory"
    less = {n: s for n, s in r.shares.items() if n != LIAR}
    assert "nothing came from" in str(blame(kind, lambda: r.aggregate(less)))


# -- the public key's commitments --------------------------------------------------------------------


def committed():
    crs = CRS(SESSION, 9)
    a = public_key.sample(P, crs)
    states = {
        n: public_key.generate_share(P, SESSION, n, SecretShare.fresh(P), ckks.fresh(a)) for n in HOLDERS
    }
    commitments = {n: s.commitment for n, s in states.items()}
    return states, commitments, {n: s.reveal(commitments, HOLDERS) for n, s in states.items()}


def test_a_broken_commitment_names_its_holder():
    _, commitments, openings = committed()
    public_key.aggregate(P, SESSION, commitments, openings, HOLDERS)
    honest = openings[LIAR]
    other = honest.data.copy()
    other[0, 0] = (other[0, 0] + np.uint64(1)) % np.uint64(P.primes[0])
    for bad in (
        public_key.Opening(other, honest.nonce),
        public_key.Opening(honest.data, bytes(32)),
        openings["hospital"],  # a copy of another's: the party's name is in the commitment
    ):
        with pytest.raises(ProtocolViolation, match="not the one committed to") as e:
            public_key.aggregate(P, SESSION, commitments, {**openings, LIAR: bad}, HOLDERS)
        assert (e.value.culprit, e.value.step, e.value.round) == (LIAR, "public key", 2)
    with pytest.raises(ProtocolViolation, match="not the one committed to") as e:
        public_key.aggregate(
            P,
            SESSION,
            {**commitments, LIAR: commitments["hospital"]},
            {**openings, LIAR: openings["hospital"]},
            HOLDERS,
        )
    assert e.value.culprit == LIAR
    with pytest.raises(ProtocolViolation, match="not the one committed to"):
        public_key.aggregate(P, b"t" * 32, commitments, openings, HOLDERS)


def test_nothing_is_revealed_before_all_have_committed():
    states, commitments, openings = committed()
    less = {n: c for n, c in commitments.items() if n != LIAR}
    with pytest.raises(ProtocolViolation, match=f"nothing came from {LIAR}") as e:
        states["hospital"].reveal(less, HOLDERS)
    assert e.value.culprit == LIAR
    with pytest.raises(ProtocolViolation, match="has 32 bytes") as e:
        states["hospital"].reveal({**commitments, LIAR: b"short"}, HOLDERS)
    assert e.value.culprit == LIAR
    with pytest.raises(ProtocolViolation, match="mallory is no key holder") as e:
        states["hospital"].reveal({**commitments, "mallory": bytes(32)}, HOLDERS)
    assert e.value.culprit == "mallory"
    data = openings[LIAR].to_bytes()
    assert public_key.parse(P, data, LIAR).to_bytes() == data
    for bad in (data[:-1], data[:31], b"", data + b"x"):
        with pytest.raises(ProtocolViolation, match="in place of") as e:
            public_key.parse(P, bad, LIAR)
        assert e.value.culprit == LIAR
    bad = data[:32] + b"\xff" * 8 + data[40:]
    with pytest.raises(ProtocolViolation, match="not below its prime") as e:
        public_key.parse(P, bad, LIAR)
    assert e.value.culprit == LIAR


# -- the aggregator, owners, receivers ---------------------------------------------------------------


def test_a_bad_sum_from_the_aggregator():
    common = relinearise.sample(P, CRS(SESSION, 11))
    state, share = relinearise.generate_first(P, SecretShare.fresh(P), common)
    bad = relinearise.FirstSum(too_large(0)(share.data.copy()))
    with pytest.raises(ProtocolViolation, match="not below its prime") as e:
        relinearise.generate_second(P, state, bad, "startup")
    assert e.value.culprit == "startup"
    with pytest.raises(ProtocolViolation, match="in place of") as e:
        relinearise.parse_sum(P, bad.to_bytes()[:-8], "startup")
    assert e.value.culprit == "startup"
    relinearise.generate_second(P, state, relinearise.FirstSum(share.data), "startup")  # nothing was spent
    with pytest.raises(IntegrityError, match="a second share for one first round"):
        relinearise.generate_second(P, state, relinearise.FirstSum(share.data))


def test_bad_ciphertexts_and_keys():
    good = np.zeros((2, 3, P.n), dtype=np.uint64)
    encryption.check_ciphertext(P, good, 3, "startup")
    for bad in (good[:1], good[:, :2], too_large(1)(good.copy())):
        with pytest.raises(ProtocolViolation) as e:
            encryption.check_ciphertext(P, bad, 3, "startup")
        assert (e.value.culprit, e.value.step) == ("startup", "ciphertext")
    with pytest.raises(ProtocolViolation, match="in place of") as e:
        encryption.parse(P, good.tobytes()[:-1], 3, "startup")
    assert e.value.culprit == "startup"
    with pytest.raises(ProtocolViolation, match="in place of") as e:
        PublicKey.parse(P, bytes(100), "patient")
    assert e.value.culprit == "patient"


def test_an_offline_key_serves_one_joint_key_and_one_consent():
    joint, other, owner = OwnKey.fresh(P).public, OwnKey.fresh(P).public, OwnKey.fresh(P)
    fragment = encryption.encrypt_zero(P, owner.public, 2)
    key = rekey.publish(P, owner, joint, CONSENT)
    rekey.apply(P, key, joint, CONSENT, fragment)
    with pytest.raises(IntegrityError, match="for another joint key"):
        rekey.apply(P, key, other, CONSENT, fragment)
    with pytest.raises(ConsentError, match="under another consent"):
        rekey.apply(P, key, joint, b"d" * 32, fragment)
    for target in (joint, other):
        with pytest.raises(IntegrityError, match="published for a joint key before"):
            rekey.publish(P, owner, target, CONSENT)
    with pytest.raises(ConsentError, match="32 bytes"):
        rekey.publish(P, OwnKey.fresh(P), joint, b"yes")
    data = key.to_bytes()
    for bad in (data[:-1], data[:64], b""):
        with pytest.raises(ProtocolViolation, match="in place of") as e:
            rekey.OfflineKey.parse(P, bad, "hospital")
        assert e.value.culprit == "hospital"


# -- shares of a ciphertext, once --------------------------------------------------------------------


def test_a_permit_is_good_for_one_share_of_its_ciphertext():
    secret, smudging = SecretShare.fresh(P), Smudging(10)
    target = OwnKey.fresh(P).public
    c, other = (encryption.encrypt_zero(P, target, 3) for _ in range(2))
    makers = {
        "key switch": lambda c1, p: key_switch.generate_share(P, secret, secret, c1, smudging, p),
        "public switch": lambda c1, p: public_switch.generate_share(P, secret, target, c1, smudging, p),
        "to shares": lambda c1, p: to_shares.generate_share(P, secret, c1, 2, 46, p),
        "to modular shares": lambda c1, p: to_modular_shares.generate_share(P, secret, c1, p),
        "refresh": lambda c1, p: refresh.generate_share(
            P, SPAN, secret, refresh.sample(P, CRS(SESSION), "c", SPAN), c1, p
        ),
    }
    for make in makers.values():
        permit = ckks.permit("step 1", c[1])
        make(c[1], permit)
        with pytest.raises(IntegrityError, match="step 'step 1': a second share of one ciphertext"):
            make(c[1], permit)
        with pytest.raises(IntegrityError, match="step 'step 1': the share would be of another ciphertext"):
            make(other[1], ckks.permit("step 1", c[1]))


def test_masks_without_room_are_refused_before_anything_is_spent():
    secret = SecretShare.fresh(P)
    c = encryption.encrypt_zero(P, OwnKey.fresh(P).public, 2)
    permit = ckks.permit("step", c[1])
    span = refresh.Span(low=2, high=4, holders=3, message_bits=50)
    common = refresh.sample(P, CRS(SESSION), "c", span)
    with pytest.raises(
        PrecisionError, match=r"refresh: masks of 100 bits for 3 key holders .* do not fit 2 levels"
    ):
        refresh.generate_share(P, span, secret, common, c[1], permit)
    with pytest.raises(PrecisionError, match="encryption to shares: masks of 100 bits"):
        to_shares.generate_share(P, secret, c[1], 3, 50, permit)
    permit.use(c[1])
    common.start(refresh.KIND)


def test_shares_that_do_not_add_up():
    """A canonical share of something else: at three limbs the sum is no integer of 128 bits, but for luck."""
    for kind, finish in (
        ("to shares", lambda total, c: to_shares.finish(P, c[0], total)),
        ("refresh", lambda total, c: refresh.finish(P, SPAN, None, c[0], total)),
    ):
        r = rounds()[kind]
        part = arrays(r.shares[LIAR])[0]
        bad = spoiled(r.shares[LIAR], part, lambda a: sampling.uniform(P, 1, (0, 1, 2))[0])
        c = np.zeros((2, 3, P.n), dtype=np.uint64)
        with pytest.raises(ProtocolViolation, match="the shares do not add up to a message") as e:
            finish(r.aggregate({**r.shares, LIAR: bad}), c)
        assert (e.value.culprit, e.value.step) == (None, r.step)


# -- t of n ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0, -1, 4])
def test_t_is_in_1_to_n(t):
    with pytest.raises(ConfigError, match=f"t = {t} is not between 1 and the 3 key holders"):
        threshold.Access(HOLDERS, t)


def test_active_sets():
    with pytest.raises(ConfigError, match="named twice"):
        threshold.Access(("a", "b", "a"), 2)
    access, secret = threshold.Access(HOLDERS, 2), SecretShare.fresh(P)
    with pytest.raises(ConfigError, match="mallory is no key holder") as e:
        threshold.generate_shares(P, access, "mallory", secret)
    assert e.value.culprit == "mallory"
    dealt = {n: threshold.generate_shares(P, access, n, secret) for n in HOLDERS}
    received = {n: dealt[n]["hospital"] for n in HOLDERS}
    held = threshold.aggregate(P, access, "hospital", received)
    for active, message in (
        (("hospital",), "2 different key holders"),
        (HOLDERS, "2 different key holders"),
        (("hospital", "hospital"), "2 different key holders"),
        (("laboratory", "dna_company"), "hospital is not among the active"),
        (("hospital", "mallory"), "mallory is no key holder"),
    ):
        with pytest.raises(ConfigError, match=message) as e:
            threshold.finish(access, held, active)
        assert e.value.culprit == ("mallory" if "mallory" in active else None)
    with pytest.raises(ProtocolViolation, match=f"nothing came from {LIAR}") as e:
        threshold.aggregate(P, access, "hospital", {n: s for n, s in received.items() if n != LIAR})
    assert e.value.culprit == LIAR
    with pytest.raises(ProtocolViolation, match="mallory is no key holder here") as e:
        threshold.aggregate(P, access, "hospital", {**received, "mallory": received[LIAR]})
    assert e.value.culprit == "mallory"
    data = received[LIAR].expose()
    for bad, message in (
        (data[:-1], "in place of"),
        (data + b"x", "in place of"),
        (b"\xff" * 8 + data[8:], "not below its prime"),
    ):
        with pytest.raises(ProtocolViolation, match=message) as e:
            threshold.parse(P, bad, LIAR, "hospital")
        assert (e.value.culprit, e.value.step) == (LIAR, threshold.KIND)
    wrong = threshold.SubShare(LIAR, "hospital", received[LIAR].values[:-1])
    with pytest.raises(ProtocolViolation, match="in place of") as e:
        threshold.aggregate(P, access, "hospital", {**received, LIAR: wrong})
    assert e.value.culprit == LIAR


def test_galois_elements_out_of_range():
    for element in (1, 2, 0, -3, 2 * P.n, 2 * P.n + 1):
        with pytest.raises(ConfigError, match="is not odd and between"):
            galois.sample(P, CRS(SESSION), element)
