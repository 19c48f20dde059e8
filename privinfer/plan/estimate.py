"""What a session would cost, before anything runs: seconds, bytes, rounds, memory, price, for each backend.

Bytes and rounds are the protocols' own formulas, which tests hold to the wire. Seconds are counts of work
(`work.py`) over this machine's speeds (`calibrate.py`) times the factors below, and what the network adds.
They are those of parties that share a machine like this one, as in docs/benchmarks.md: parties with a
machine each are faster where computing decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from privinfer.backends import ckks
from privinfer.backends.base import Network, Phase, Table
from privinfer.backends.ckks import roles as ckks_roles
from privinfer.backends.mpc import Mpc, roles
from privinfer.errors import ConfigError, ModelUnsupported, PrecisionError, PrivinferError
from privinfer.graph import ir
from privinfer.plan import cost_ckks
from privinfer.plan.calibrate import Speeds, calibrate
from privinfer.plan.cost import Key
from privinfer.plan.prices import Prices
from privinfer.plan.trust import trust
from privinfer.plan.work import Work, count, line_seconds
from privinfer.session.manifest import Manifest

PHASES = (Phase.SETUP, Phase.OFFLINE, Phase.ONLINE)
# name: (round trip in ms, Mbit/s); "own" is what the session file says
NETWORKS: dict[str, tuple[float, float] | None] = {
    "own": None,
    "lo": (0.02, 10_000.0),
    "lan": (1.0, 1_000.0),
    "wan": (40.0, 100.0),
}
GOODPUT = 0.87  # of a line's rate, what TCP and TLS leave on one that was idle
SWITCHING = 3e-4  # seconds a hop beyond half the round trip takes, where there is a network

# How often each count is gone through, all parties together on two cores: fitted, least relative squares, to
# the medians in benchmarks/results/planner-2026-11-25.json.
# The fit finds no place for AES offline, where it cannot be told from what is sent: half a time, since the
# helper has two cores for it. `setup` is read off: a term for connecting, which grows with pairs, and one a
# weight.
_TWO_CORES = 2
_FACTORS: dict[Phase, dict[str, float]] = {
    Phase.SETUP: {"pairs": 8.3, "weights": 420.0},
    Phase.OFFLINE: {
        "start": 14.411,
        "pairs": 2.489,
        "steps": 1.032,
        "aes": 0.553,
        "multiply_adds": 2.481,
        "blinded": 6.636,
        "sent": 2.493,
        "bulk": 2.489,  # one row decides this one
    },
    Phase.ONLINE: {
        "start": 11.802,
        "pairs": 0.453,
        "steps": 0.528,
        "messages": 13.089,
        "aes": 1.148,
        "multiply_adds": 1.231,
        "words": 135.671,
        "blinded": 0.0,
        "sent": 3.308,
    },
}
_SETUP_HOPS = 14  # half round trips of connecting, greeting and agreeing
_CKKS_NTTS = 16_050.0  # transforms a second where the plan's own cost model was made
_CKKS_RUN = 1.12  # measured over planned: 1.02 and 1.23 in benchmarks/results/ckks-2026-11-25.json
_CKKS_KEY, _CKKS_START = 24.0, 2270.0  # transforms a transform of a key; thousand calls: the same file
_EXACT = 6.0  # transforms a limb of what is sent under encryption
_LIMB_BYTES = 16384 * 50 // 8
_BASE_MEMORY = 62_000_000  # the interpreter and the libraries
_HELD, _HELD_WEIGHTS = 2.2, 1.1  # of an evaluator's footprint, and of the weights


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to run the session on one network.

    Attributes
    ----------
    backend : str
        "mpc fss", "mpc blinded", "mpc auto", "ckks polynomial" or "ckks exact".
    network : str
        A key of NETWORKS.
    reason : str or None
        Why it cannot be; everything below is empty then.
    seconds : dict
        By phase: setup once a session, offline and online a run.
    bytes : dict
        Payload by phase between different parties.
    rounds : int
        One-way messages on the critical path while online.
    memory : int
        Bytes at the party that needs most.
    key_bytes : int
        Joint keys (`ckks`), or comparison and table keys with masks, in all.
    trust : str
    error_bound : float
    helper : bool
        Whether a helper is needed.
    price, setup_price : float
        Of a run and of the setup, in the price table's currency.
    """

    backend: str
    network: str
    reason: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    rounds: int = 0
    memory: int = 0
    key_bytes: int = 0
    trust: str = ""
    error_bound: float = 0.0
    helper: bool = False
    price: float = 0.0
    setup_price: float = 0.0

    @property
    def run_seconds(self) -> float:
        """Offline and online."""
        return self.seconds.get("offline", 0.0) + self.seconds.get("online", 0.0)

    def as_json(self) -> dict[str, Any]:
        """Everything by name."""
        return dataclasses.asdict(self) | {"run_seconds": self.run_seconds}


@dataclass(frozen=True, slots=True)
class Estimate:
    """All choices, and what they were computed with.

    Attributes
    ----------
    choices : tuple of Choice
    speeds : Speeds
        Of this machine.
    prices : Prices
    batch : int
    """

    choices: tuple[Choice, ...]
    speeds: Speeds
    prices: Prices
    batch: int


def estimate(
    model: ir.Model | ir.Architecture,
    manifest: Manifest,
    *,
    batch: int = 1,
    networks: Sequence[str] = tuple(NETWORKS),
    speeds: Speeds | None = None,
    prices: Prices | None = None,
) -> Estimate:
    """Tell what a session would cost with each backend that the parties could agree on.

    Parameters
    ----------
    model : Model or Architecture
        The session's. Weights decide nothing.
    manifest : Manifest
        Who takes part; backends it does not name are tried with the same parties.
    batch : int
        Rows of a run.
    networks : sequence of str
        Keys of NETWORKS.
    speeds : Speeds, optional
        Measured now by default, which takes about five seconds.
    prices : Prices, optional

    Returns
    -------
    Estimate
        A choice for each backend and network; what cannot be says why.

    Raises
    ------
    ConfigError
        No such network, no rows, or a model that the session was not sealed for.
    """
    architecture = model.architecture if isinstance(model, ir.Model) else model
    if unknown := [n for n in networks if n not in NETWORKS]:
        raise ConfigError(f"there is no network {unknown[0]!r}", hint=f"known: {', '.join(NETWORKS)}")
    if batch < 1:
        raise ConfigError(f"a run has one row at least, not {batch}")
    if architecture.digest() != manifest.model:
        raise ConfigError(
            "this model is not the one the session was sealed for",
            hint="load it with the same ranges and bits, or estimate with the draft",
        )
    speeds, prices = speeds or calibrate(), prices or Prices()
    choices = []
    for network in networks:
        line = NETWORKS[network] or (manifest.round_trip_ms, manifest.mbit_per_s)
        for name, variant in variants(manifest).items():
            try:
                if isinstance(variant, str):
                    raise ConfigError(variant)
                there = dataclasses.replace(variant, round_trip_ms=line[0], mbit_per_s=line[1])
                found = choice_of(architecture, there, batch, speeds, prices, name, network)
            except (ConfigError, ModelUnsupported, PrecisionError) as error:
                found = Choice(name, network, error.message)
            choices.append(found)
    return Estimate(tuple(choices), speeds, prices, batch)


def choice_of(
    architecture: ir.Architecture,
    manifest: Manifest,
    batch: int,
    speeds: Speeds,
    prices: Prices,
    name: str = "",
    network: str = "own",
) -> Choice:
    """One session as its file has it, on the lines that it assumes.

    Raises
    ------
    ConfigError, ModelUnsupported, PrecisionError
        Why this backend cannot run the model with these parties.
    """
    return _Asked(architecture, manifest, batch, speeds, prices).choice(name or manifest.backend, network)


def units(work: Work, speeds: Speeds) -> dict[str, float]:
    """Seconds that going once through each count of work takes, on one thread."""
    s = speeds
    return {
        "start": 1000 * s.call,
        "pairs": work.pairs * 1000 * s.call,
        "steps": work.steps * 100 * s.call,
        "messages": work.messages * 100 * s.call,
        "aes": work.aes / s.aes,
        "multiply_adds": work.multiply_adds / s.multiply_adds,
        "weights": work.weights / s.words,
        "words": work.words / s.words,
        "blinded": work.blinded / s.words,
        "sent": work.sent / s.tls_bytes,
        "bulk": work.bulk / s.tls_bytes,
    }


# -- who would do what -----------------------------------------------------------------------------


def variants(manifest: Manifest) -> dict[str, Manifest | str]:
    """Session files with the same parties for every backend, or why there is none."""
    found: dict[str, Manifest | str] = {}
    three: Manifest | str
    try:
        three = _with_evaluators(manifest)
    except PrivinferError as error:
        three = error.message
    for comparison in ("auto", "fss", "blinded"):
        found[f"mpc {comparison}"] = (
            three
            if isinstance(three, str)
            else dataclasses.replace(three, backend="mpc", comparison=comparison, key_holders=(), threshold=0)
        )
    holders = manifest.key_holders or tuple(
        dict.fromkeys([*manifest.inputs.values(), *manifest.receivers.values()])
    )
    common: dict[str, Any] = {"backend": ckks.NAME, "key_holders": holders, "insecure": ()}
    try:
        found["ckks polynomial"] = _only_busy(
            manifest,
            common
            | {
                "evaluators": (),
                "helper": None,
                "threshold": manifest.threshold or len(holders),
                "nonlinear": "polynomial",
            },
        )
    except PrivinferError as error:
        found["ckks polynomial"] = error.message
    try:
        found["ckks exact"] = (
            three
            if isinstance(three, str)
            else dataclasses.replace(three, **common, threshold=len(holders), nonlinear=ckks.EXACT)
        )
    except PrivinferError as error:
        found["ckks exact"] = error.message
    return found


def _with_evaluators(manifest: Manifest) -> Manifest:
    """The session with two evaluators and a helper: its own, or the first parties that can be."""
    evaluators, helper = manifest.evaluators, manifest.helper
    if not evaluators or helper is None:
        receivers = set(manifest.receivers.values())
        others = [n for n in manifest.names if n != manifest.model_owner and n not in receivers]
        if len(others) < 2:
            raise ConfigError("there are too few parties for two evaluators and a helper")
        evaluators, helper = (manifest.model_owner, others[0]), others[-1]
    kept = {"evaluators": evaluators, "helper": helper, "backend": "mpc", "nonlinear": "polynomial"}
    return _only_busy(manifest, kept | {"key_holders": (), "threshold": 0, "insecure": ()})


def _only_busy(manifest: Manifest, changes: dict[str, Any]) -> Manifest:
    """The session with other roles; parties that have none left leave."""
    held = {manifest.model_owner, *manifest.inputs.values(), *manifest.receivers.values()}
    held.update(changes["evaluators"], changes["key_holders"])
    held.update(n for n in (changes["helper"], manifest.terms.consent) if n is not None)
    parties = tuple(p for p in manifest.parties if p.name in held)
    return dataclasses.replace(manifest, parties=parties, **changes)


_Parts: TypeAlias = tuple[
    dict[Phase, float], dict[Phase, float], dict[Key, int], int, int, int, float
]  # busy and waiting seconds, bytes, rounds, memory, bytes of keys, error bound


# -- one choice ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Asked:
    """A session, a batch and a machine."""

    architecture: ir.Architecture
    manifest: Manifest
    batch: int
    speeds: Speeds
    prices: Prices

    def choice(self, name: str, network: str) -> Choice:
        m = self.manifest
        if m.backend == ckks.NAME and m.nonlinear != ckks.EXACT:
            busy, waits, size, rounds, memory, keys, bound = self._ckks()
        else:
            busy, waits, size, rounds, memory, keys, bound = self._mpc()
        cast = self._table().party
        moved = {
            p.name.lower(): sum(v for k, v in size.items() if k[0] is p and cast[k[1]] != cast[k[2]])
            for p in PHASES
        }
        cores = self._cores()
        price = {
            p: self.prices.of(busy[p] * cores, moved[p.name.lower()]) for p in PHASES
        }  # cores are paid while they compute
        return Choice(
            backend=name,
            network=network,
            seconds={p.name.lower(): busy[p] + waits[p] for p in PHASES},
            bytes=moved,
            rounds=rounds,
            memory=memory,
            key_bytes=keys,
            trust=trust(m),
            error_bound=bound,
            helper=m.helper is not None,
            price=price[Phase.OFFLINE] + price[Phase.ONLINE],
            setup_price=price[Phase.SETUP],
        )

    def _table(self) -> Table:
        m = self.manifest
        cast = ckks.Ckks().cast(m) if m.backend == ckks.NAME else Mpc().cast(m)
        network = Network(m.comparison, m.round_trip_ms / 1e3, m.mbit_per_s * 1e6)
        return Table(cast, m.inputs, m.receivers, self.architecture, b"", network, m.threshold)

    def _waits(self, size: dict[Key, int], hops: dict[Phase, int]) -> dict[Phase, float]:
        """Seconds of a network: hops, and the fullest line."""
        m = self.manifest
        trip, rate = m.round_trip_ms / 1e3, m.mbit_per_s * 1e6 * GOODPUT
        if trip < 1e-4:  # loopback: sending is computing, and is counted there
            return dict.fromkeys(PHASES, 0.0)
        cast = dict(self._table().party)
        return {p: hops[p] * (trip / 2 + SWITCHING) + line_seconds(size, p, cast, rate) for p in PHASES}

    def _mpc(self) -> _Parts:
        table = self._table()
        program = roles.compile_for(table)
        at_once = roles.rows_at_once(program, table.network)
        busy, waits = dict.fromkeys(PHASES, 0.0), dict.fromkeys(PHASES, 0.0)
        size: dict[Key, int] = {}
        rounds = held = weights = 0
        left, first = self.batch, True
        while left or first:
            rows, left = roles.cut(left, at_once)
            chosen = roles.choose(program, table.network, rows)
            work, moved = count(chosen, table, rows)
            phases = PHASES if first else PHASES[1:]
            moved = {k: v for k, v in moved.items() if k[0] in phases}
            hops = {p: int(work[p].messages) for p in PHASES} | {Phase.SETUP: _SETUP_HOPS}
            wait = self._waits(moved, hops)
            for p in phases:
                busy[p] += self._busy(p, work[p])
                waits[p] += wait[p]
            if self.manifest.backend == ckks.NAME:
                busy[Phase.ONLINE] += self._encrypted(moved)
            for key, value in moved.items():
                size[key] = size.get(key, 0) + value
            rounds += int(work[Phase.ONLINE].messages)
            held = max(held, roles.footprint(chosen, rows))
            weights, first = int(work[Phase.SETUP].weights), False
        memory = int(_BASE_MEMORY + _HELD * held + _HELD_WEIGHTS * 8 * weights)
        keys = sum(v for k, v in size.items() if k[0] is Phase.OFFLINE and k[1] == roles.HELPER)
        bound = float(self.architecture.precision.error_bound or 0.0)
        return busy, waits, size, rounds, memory, keys, bound

    def _busy(self, phase: Phase, work: Work) -> float:
        """Seconds of computing."""
        unit = units(work, self.speeds)
        return sum(f * unit[k] for k, f in _FACTORS[phase].items()) * _TWO_CORES / self._cores()

    def _cores(self) -> int:
        """Cores that parties on one machine can keep busy: two evaluators and a helper."""
        return min(self.speeds.cores, 3)

    def _encrypted(self, size: dict[Key, int]) -> float:
        """Exact mode: seconds of products under encryption."""
        out = sum(v for k, v in size.items() if k[0] is Phase.ONLINE and roles.MODEL_OWNER in k[1:])
        return _EXACT * out / _LIMB_BYTES / self.speeds.ntts

    def _ckks(self) -> _Parts:
        table = self._table()
        if self.batch > ckks_roles.MAX_BATCH:
            raise ConfigError(f"a run under encryption has at most {ckks_roles.MAX_BATCH} rows")
        setting = ckks_roles.setting_of(table)
        plan, p, n = setting.plan, setting.parameters, setting.linear
        size = cost_ckks.declared(setting, self.batch)
        ring = p.n / 16384
        keys = len(plan.galois_elements) * n.digits * n.limbs + 3 * plan.relinearises * p.digits * p.limbs
        made = _CKKS_KEY * ring * len(setting.holders) * keys / self.speeds.ntts
        busy = {
            Phase.SETUP: _CKKS_START * 1000 * self.speeds.call + made,
            Phase.OFFLINE: 0.0,
            Phase.ONLINE: _CKKS_RUN * plan.seconds * self.batch * _CKKS_NTTS / self.speeds.ntts,
        }
        rounds = sum(ckks.rounds(table).values())
        waits = self._waits(size, {Phase.SETUP: _SETUP_HOPS + 8, Phase.OFFLINE: 2, Phase.ONLINE: rounds})
        joint = sum(v for k, v in size.items() if k[0] is Phase.SETUP and k[2] == ckks_roles.MODEL_OWNER)
        # encoded diagonals, keys of all holders while they are added up, and the sums
        memory = int(3 * _BASE_MEMORY + 1.6 * plan.encoded_bytes + joint)
        bound = max(ckks_roles.declared_error(plan, one) for one in plan.outputs)
        return busy, waits, size, rounds, memory, joint, bound
