"""Pieces of benchmarks/ckks.py that run in its own process: the product, joint keys, errors of protocols."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.ckks_linear import planned
from privinfer.backends.ckks import linear
from privinfer.backends.ckks.affine import Matrix
from privinfer.backends.ckks.diagonals import diagonal_values
from privinfer.protocols.ckks import (
    encryption,
    galois,
    noise,
    public_key,
    public_switch,
    refresh,
    rekey,
    relinearise,
    threshold,
)
from privinfer.protocols.ckks.crs import CRS
from privinfer.protocols.ckks.keys import OwnKey, SecretShare
from privinfer.protocols.ckks.parameters import SCALE, Parameters
from privinfer.protocols.ckks.smudging import Smudging
from tests.support import ckks
from tests.support.ckks_oracle import Oracle

RING, LIMBS = 16384, 4
ROWS, COLUMNS = 64, 4096
ROTATIONS = (*range(1, 8), *range(8, ROWS, 8), *(ROWS << k for k in range(6)))  # OpenFHE's runner's


class Product:
    """The 64 x 4096 product, keys and diagonals ready."""

    def __init__(self, matrix: Any, x: Any, babies: int = 16) -> None:
        parameters = Parameters(RING, LIMBS)
        slots = parameters.slots
        self.oracle = Oracle(parameters, 3)
        steps = planned(ROWS, COLUMNS, slots, babies)
        self.ckks = self.oracle.arithmetic(sorted(steps.rotations))
        rows, columns = np.divmod(np.arange(matrix.size), COLUMNS)
        entries = Matrix(rows.astype(np.int32), columns.astype(np.int32), matrix.reshape(-1))
        values = diagonal_values([entries], steps)
        self.prepared = linear.prepare(
            self.ckks, steps, values, [None], limbs=LIMBS, scales=[SCALE], scale=SCALE
        )
        self.given = self.oracle.encrypt(np.tile(x, slots // COLUMNS), LIMBS)
        self.expected = np.tile(matrix @ x, slots // ROWS)

    def run(self) -> dict[str, float]:
        """Seconds and error."""
        at = time.perf_counter()
        (y,) = linear.product(self.ckks, [self.given], self.prepared)
        seconds = time.perf_counter() - at
        return {
            "seconds": seconds,
            "error": float(np.abs(self.oracle.decrypt(y).real - self.expected).max()),
        }


def joint_keys(parties: int, levels: int, galois_levels: int) -> dict[str, Any]:
    """All parties' work one after the other, each drawing the common polynomials itself, and the sums.

    Returns
    -------
    dict
        Seconds of each kind; bytes that a party sends, as made and as the formulas declare.
    """
    p, few = Parameters(RING, levels), Parameters(RING, galois_levels)
    names, session = (
        ckks.NAMES[:parties],
        np.random.default_rng().bytes(32),
    )  # a label: nothing is drawn of it
    strings = {name: CRS(session) for name in names}
    secrets = {name: SecretShare.fresh(p) for name in names}
    lower = {name: SecretShare.restore(few, s.expose()) for name, s in secrets.items()}
    of_all = CRS(session)  # the aggregator's
    p.ring, few.ring  # noqa: B018 - tables are made once a process
    seconds, sent, declared = {}, {}, {}

    at = time.perf_counter()
    made = {
        name: public_key.generate_share(p, session, name, s, public_key.sample(p, strings[name]))
        for name, s in secrets.items()
    }
    commitments = {name: c.commitment for name, c in made.items()}
    openings = {name: c.reveal(commitments, names) for name, c in made.items()}
    total = public_key.aggregate(p, session, commitments, openings, names)
    public_key.finish(p, public_key.sample(p, of_all), total)
    seconds["public"] = time.perf_counter() - at
    sent["public"] = len(made[names[0]].commitment) + len(openings[names[0]].to_bytes())
    declared["public"] = sum(public_key.size(p))

    at = time.perf_counter()
    rounds = {
        name: relinearise.generate_first(p, s, relinearise.sample(p, strings[name]))
        for name, s in secrets.items()
    }
    first = relinearise.aggregate_first(p, {k: share for k, (_, share) in rounds.items()}, names)
    second = {k: relinearise.generate_second(p, state, first) for k, (state, _) in rounds.items()}
    relinearise.finish(p, first, relinearise.aggregate_second(p, second, names))
    seconds["relinearisation"] = time.perf_counter() - at
    sent["relinearisation"] = len(rounds[names[0]][1].to_bytes()) + len(second[names[0]].to_bytes())
    up, _, again = relinearise.size(p)
    declared["relinearisation"] = up + again

    at, size = time.perf_counter(), 0
    for step in ROTATIONS:
        element = galois.element_of(few, step)
        shares = {
            k: galois.generate_share(few, s, galois.sample(few, strings[k], element))
            for k, s in lower.items()
        }
        common = galois.sample(few, of_all, element)
        galois.finish(few, common, galois.aggregate(few, shares, names))
        size += shares[names[0]].data.nbytes
    seconds["rotations"] = time.perf_counter() - at
    sent["rotations"], declared["rotations"] = size, len(ROTATIONS) * galois.size(few)
    return {"seconds": seconds, "bytes": sent, "declared_bytes": declared}


def errors(parties: int) -> list[dict[str, Any]]:
    """Standard deviation of what each protocol adds to a coefficient, against what is declared of it."""
    p = Parameters(RING, 6)
    table = ckks.seat(p, parties)
    owner, receiver, consent = OwnKey.fresh(p), OwnKey.fresh(p), bytes(32)
    found: list[dict[str, Any]] = []

    def note(name: str, values: Any, declared: float, active: int = parties) -> None:
        measured = float(np.std(np.asarray(values, dtype=np.float64)))
        slots = noise.slot_std(p, measured)
        row = {"protocol": name, "parties": parties, "active": active, "measured": measured}
        found.append(row | {"declared": declared, "ratio": measured / declared, "slot_std": slots})

    def each(keys: Any, make: Callable[[str, Any], Any]) -> dict[str, Any]:
        return {name: make(name, key) for name, key in keys.items()}

    def switch(name: str, keys: Any, active: int) -> None:
        """PCKS without flooding, so that it is the protocol's own noise that is seen."""
        smudging = Smudging(8)
        shares = each(
            keys,
            lambda _, s: public_switch.generate_share(
                p, s, receiver.public, low[1], smudging, ckks.permit("result", low[1])
            ),
        )
        total = public_switch.aggregate(p, 3, shares, tuple(keys))
        new = public_switch.finish(p, low[0], total)
        note(
            name,
            ckks.error(table, new, before, receiver.secret),
            noise.public_switch(p, active, smudging),
            active,
        )

    def again(name: str, keys: Any, active: int) -> None:
        span = refresh.Span(low=3, high=6, holders=active, message_bits=46)
        common = refresh.sample(p, table.crs, name, span)
        shares = each(
            keys,
            lambda _, s: refresh.generate_share(
                p, span, s, ckks.fresh(common), low[1], ckks.permit("refresh", low[1])
            ),
        )
        new = refresh.finish(p, span, common, low[0], refresh.aggregate(p, span, shares, tuple(keys)))
        note(name, ckks.error(table, new, wanted), noise.refresh(active), active)

    _, plain = ckks.message(p, 45, 3)
    low = encryption.encrypt(p, table.public, plain)
    note("encryption under the joint key", ckks.error(table, low, plain), noise.fresh(p, parties), 1)
    before = encryption.decrypt(p, table.joint, low)
    whole = ckks.small(p, before, p.data(3))
    wanted = p.ring.ntt(p.ring.lift(whole, p.data(6)), p.data(6))
    switch("switch to the receiver (PCKS)", table.secrets, parties)
    again("refresh", table.secrets, parties)

    fragment = encryption.encrypt(p, owner.public, plain)
    clear = encryption.decrypt(p, owner.secret, fragment)
    smudging = Smudging(8)
    share = rekey.switch(p, owner, table.public, fragment[1], smudging, ckks.permit("fragment", fragment[1]))
    online = public_switch.finish(p, fragment[0], public_switch.aggregate(p, 3, {"owner": share}, ["owner"]))
    note(
        "re-keying, owner online",
        ckks.error(table, online, clear),
        noise.rekey_online(p, parties, smudging),
        1,
    )
    key = rekey.publish(p, owner, table.public, consent)
    offline = rekey.apply(p, key, table.public, consent, fragment)
    note("re-keying, owner offline", ckks.error(table, offline, clear), noise.rekey_offline(p, parties, 3), 1)

    if parties > 2:
        t = parties - 1
        access = threshold.Access(table.holders, t)
        dealt = {n: threshold.generate_shares(p, access, n, s) for n, s in table.secrets.items()}
        held = {
            n: threshold.aggregate(
                p, access, n, {d: threshold.parse(p, dealt[d][n].expose(), d, n) for d in table.holders}
            )
            for n in table.holders
        }
        active = table.holders[1:]
        keys = {n: threshold.finish(access, held[n], active) for n in active}
        switch(f"PCKS by {t} of {parties}", keys, t)
        again(f"refresh by {t} of {parties}", keys, t)
    return found


def costs(n: int, limbs: int, repeat: int) -> dict[str, float]:
    """Milliseconds of what the planner's cost model counts, the least of some runs."""
    p = Parameters(n, limbs)
    oracle = Oracle(p)
    evaluator, ring = oracle.arithmetic([1]), p.ring
    x = oracle.encrypt(np.full(p.slots, 0.1), limbs)
    basis, extended = p.data(limbs), p.extended(limbs)
    element, key = evaluator.element(1), evaluator.key(1)
    digits = ring.decompose(x.data[1])

    def baby() -> Any:
        turned = ring.key_product(digits, key, element)
        c0 = ring.automorph(x.data[0], element)
        turned[0, :limbs] = ring.add(turned[0, :limbs], c0, basis)
        return turned

    wide = baby()
    table = np.stack([wide] * 16)
    diagonals = np.ascontiguousarray(table[:, 0])

    def giant() -> Any:
        turned = ring.key_product(ring.decompose(ring.mod_down(wide[1])), key, element)
        turned[0] = ring.add(turned[0], ring.automorph(wide[0], element), extended)
        return ring.add(wide, turned, extended)

    def least(work: Callable[[], Any]) -> float:
        found = []
        for _ in range(repeat + 1):
            at = time.perf_counter()
            work()
            found.append(1e3 * (time.perf_counter() - at))
        return min(found[1:])

    return {
        "baby": least(baby),
        "giant": least(giant),
        "diagonal": least(lambda: ring.multiply_sum(table, diagonals, extended)) / 16,
        "fold": least(lambda: evaluator.fold(x, [1])),
        "digits": least(lambda: ring.decompose(x.data[1])),
        "product": least(lambda: evaluator.rescale(evaluator.multiply(x, x))),
    }
