"""One party of a session: it joins, runs inferences, leaves, and names the culprit where one fails."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from privinfer.backends import ckks, crypten
from privinfer.backends.base import (
    Backend,
    Network,
    Outputs,
    Phase,
    Play,
    Player,
    Private,
    Progress,
    Role,
    Table,
)
from privinfer.backends.mpc import Mpc, roles
from privinfer.errors import ConfigError, InputError, IntegrityError, PrivinferError, TransportError
from privinfer.graph import ir
from privinfer.plan.cost import declared_run
from privinfer.plan.estimate import Estimate, estimate
from privinfer.protocols.ckks.release import Record
from privinfer.protocols.commitment import Opening
from privinfer.protocols.randomness import Scope
from privinfer.runtime import chunks, consents, engage, evidence, limits, report
from privinfer.runtime.agree import Joining, commit_to_weights
from privinfer.runtime.ahead import (
    agreed,
    check_whole,
    pack_offer,
    pack_roles,
    parse_offer,
    unpack_roles,
    whole,
)
from privinfer.runtime.alike import Alike
from privinfer.runtime.bring import bring
from privinfer.runtime.drive import drive
from privinfer.runtime.engage import Engaged, Engagement
from privinfer.runtime.evidence import Evidence
from privinfer.runtime.greeting import ARCHITECTURE, OFFERS, greet
from privinfer.runtime.ledger import ReleaseLedger
from privinfer.runtime.post import GREETINGS, Office
from privinfer.runtime.store import Offer, Store
from privinfer.runtime.uses import Uses
from privinfer.session import weights_opening
from privinfer.session.agreement import run_context
from privinfer.session.identity import Identity
from privinfer.session.manifest import Manifest
from privinfer.transport.endpoint import Endpoint
from privinfer.transport.frames import Kind
from privinfer.transport.mesh import Listener
from privinfer.transport.tls import connect

Watcher = Callable[[Role, Phase, Progress], None]
BACKENDS: dict[str, type[Backend]] = {"mpc": Mpc, "ckks": ckks.Ckks, "crypten": crypten.Crypten}


@dataclass(frozen=True)
class Result:
    """What a run gave the party that asked.

    Attributes
    ----------
    outputs : dict of ndarray
        This party's outputs by name, float64, batch first.
    report : dict
        Numbers of the run, schema ``privinfer.report/1``; see docs/report.md.
    """

    outputs: Outputs = field(repr=False)
    report: dict[str, Any] = field(repr=False)


class Session:
    """A sealed session file, ready to be joined.

    Attributes
    ----------
    manifest : Manifest
        What all parties hold alike.
    """

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Session:
        """Read a sealed session file.

        Raises
        ------
        ConfigError
            The file is missing, malformed or contradicts itself.
        """
        return cls(Manifest.load(path))

    def estimate(self, model: ir.Model, *, batch: int = 1) -> Estimate:
        """What this session would cost with each backend; see :func:`privinfer.plan.estimate`.

        Parameters
        ----------
        model : Model
            That it was sealed for.
        batch : int
            Rows of a run.

        Returns
        -------
        Estimate
            Seconds, bytes, rounds, memory, trust and price of each choice on each network.

        Raises
        ------
        ConfigError
            The model is not this session's.
        """
        return estimate(model, self.manifest, batch=batch)

    def join(
        self,
        name: str,
        identity: str | os.PathLike[str] | Identity,
        *,
        model: ir.Model | None = None,
        progress: Watcher | None = None,
        listener: Listener | None = None,
        shared: bool = False,
        store: str | os.PathLike[str] | Store | None = None,
        opening: str | os.PathLike[str] | Opening | None = None,
        receipt: str | os.PathLike[str] | None = None,
        ledger: str | os.PathLike[str] | None = None,
        uses: str | os.PathLike[str] | None = None,
    ) -> Party:
        """Connect with all other parties as `name`; returns when everybody is there and agrees.

        Parameters
        ----------
        name : str
            This party.
        identity : path or Identity
            Its key file, made by ``privinfer keygen``.
        model : Model, optional
            Required of the model owner and of nobody else.
        progress : callable, optional
            Told how far each phase is.
        listener : Listener, optional
            Listening socket to use in place of the address in the session file.
        shared : bool
            The others are reached at ports that serve many sessions: ``privinfer serve``.
        store : path or Store, optional
            Where what was dealt ahead lies, or will; see :meth:`Party.deal`. Used when all parties that
            keep something brought theirs.
        opening : path or Opening, optional
            The model owner's, made by ``privinfer commit``, where the session names a commitment to the
            weights.
        receipt : path, optional
            Where this party's receipt will be when it leaves, where the session's terms ask for receipts; an
            owner's secret opening lies beside it as ``.opening``. See docs/receipts.md.
        ledger : path, optional
            Folder in which this party counts answers, where the terms limit them and it is an evaluator (or
            the model owner, without evaluators); the same for every session. docs/release.md.
        uses : path, optional
            Folder of an owner's ledger of consents, the same for all its sessions; required of owners to
            run a session with ``terms.consent``.

        Returns
        -------
        Party
            To be used in a ``with`` block.

        Raises
        ------
        ConfigError
            This party's key, model, opening or session file does not fit the others'.
        TransportError
            A party did not come in time, or was lost; the culprit is named.
        """
        manifest = self.manifest
        if not isinstance(identity, Identity):
            identity = Identity.load(identity)
        if store is not None and not isinstance(store, Store):
            store = Store(store, manifest.digest(), name)
        try:
            check_part(manifest, name, identity, model)
            if opening is not None and not isinstance(opening, Opening):
                opening = Opening(weights_opening.read(opening, identity).secret)
            commit_to_weights(manifest, model, opening)
            evidence.check(manifest, receipt)
            limits.check(manifest, name, ledger)
            spent = None if uses is None else Uses(uses, name)
            endpoint = connect(
                name,
                identity.private_pem(),
                [(p.name, p.host, p.port, p.certificate_pem) for p in manifest.parties],
                bytes.fromhex(manifest.session),
                manifest.connect_timeout,
                listener,
                shared=shared,
                stall_timeout=manifest.deadline,
            )
        except BaseException:
            if store is not None:
                store.close()
            raise
        return Party(
            manifest,
            name,
            identity,
            endpoint,
            model=model,
            progress=progress,
            store=store,
            opening=opening,
            receipt=receipt,
            ledger=ledger,
            uses=spent,
        )


def check_part(manifest: Manifest, name: str, identity: Identity, model: ir.Model | None) -> None:
    """Raise ConfigError where this party's own things do not fit the session; nothing was sent yet."""
    party = manifest.party(name)
    if identity.fingerprint != party.identity.fingerprint:
        raise ConfigError(
            f"this key is not the one the session file has for {name}",
            culprit=name,
            hint="use the key whose certificate was sealed into the session",
        )
    if manifest.backend not in BACKENDS:
        raise ConfigError(
            f"backend {manifest.backend!r} cannot run between parties", hint=f"known: {', '.join(BACKENDS)}"
        )
    BACKENDS[manifest.backend]().cast(manifest)  # may refuse, and better now than when all are connected
    manifest.terms.check_time()
    if (name == manifest.model_owner) != (model is not None):
        raise ConfigError(
            "the model owner has to bring the model, and nobody else", hint=f"that is {manifest.model_owner}"
        )
    if model is not None and model.architecture.digest() != manifest.model:
        raise ConfigError(
            "this model is not the one the session was sealed for",
            culprit=name,
            hint="seal the session again with this model, or load the right one with the same options",
        )
    if model is not None and manifest.backend == ckks.NAME and manifest.nonlinear != ckks.EXACT:
        ckks.check_model(model.architecture)


def check_names(manifest: Manifest, architecture: ir.Architecture) -> None:
    """Raise ConfigError where the session names other inputs or outputs than the model has."""
    for what, named, have in (
        ("inputs", manifest.inputs, {i.name for i in architecture.inputs}),
        ("receivers", manifest.receivers, {o.name for o in architecture.outputs}),
    ):
        if set(named) != have:
            raise ConfigError(
                f"the session's {what} are {sorted(named)}, the model's {sorted(have)}",
                hint=f"name every one of them once under [{what}]",
            )


class Party:
    """A party that has joined; made by :meth:`Session.join`.

    Attributes
    ----------
    report : dict or None
        Numbers of the last run.
    agreement : Agreement
        What all parties of this join signed.
    """

    def __init__(
        self,
        manifest: Manifest,
        name: str,
        identity: Identity,
        endpoint: Endpoint,
        *,
        model: ir.Model | None = None,
        progress: Watcher | None = None,
        store: Store | None = None,
        opening: Opening | None = None,
        receipt: str | os.PathLike[str] | None = None,
        ledger: str | os.PathLike[str] | None = None,
        uses: Uses | None = None,
    ) -> None:
        self.manifest, self.name = manifest, name
        self.report: dict[str, Any] | None = None
        self._identity, self._model, self._progress = identity, model, progress
        self._verifiers = {p.name: p.identity for p in manifest.parties}
        self._backend = BACKENDS[manifest.backend]()
        self._cast = self._backend.cast(manifest)
        spare = self._backend.spare(manifest)
        ordered = self._backend.ordered and manifest.nonlinear != ckks.EXACT
        self._office = Office(endpoint, manifest.names, manifest.deadline, self._cast, spare, ordered=ordered)
        kept = Evidence(manifest, identity, self._verify, receipt)
        self._evidence = kept if manifest.terms.receipts else None
        self._failed: PrivinferError | None = None
        self._closed = False
        self._next = 0
        self._store = store
        self._opening = opening
        self._keeper: limits.Keeper | None = None
        self._uses = uses
        self._offer: Offer | None = None
        self._asked = 0
        self._dealt = self._live = self._bringing = False
        self._closing = contextlib.ExitStack()
        self._players: dict[Role, Player] = {}
        self._seconds: dict[str, float] = {}
        try:
            with _Guard(self):
                self._keeper = limits.Keeper.open(manifest, name, ledger)
                self._setup()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self._failed is None:
            self._fail(TransportError("left because of an error of its own", culprit=self.name))
        self.close()

    def __repr__(self) -> str:
        return f"Party({self.name!r}, session={self.manifest.session[:8]}, runs={self._next})"

    # -- joining ---------------------------------------------------------------------------------

    def _setup(self) -> None:
        started = time.perf_counter()
        m = self.manifest
        nonces = greet(self._office, m, self.name, self._identity, self._verify)
        joining = Joining(self._office, m, self._identity, self._verify, nonces)
        joining.tell(self._commit_to_weights())
        self.architecture = self._agree_on_architecture()
        self.agreement = joining.sign(self.architecture, report.precision(m, self.architecture))
        if self._evidence is not None:
            self._evidence.begin(self._office, self.agreement)
        session = self.agreement.digest
        network = Network(m.comparison, m.round_trip_ms / 1e3, m.mbit_per_s * 1e6)
        table = Table(
            self._cast,
            m.inputs,
            m.receivers,
            self.architecture,
            session,
            network,
            m.threshold,
            m.terms.release,
        )
        self._table = table
        limits.describe(m, table, None)  # noise that does not fit is refused by everybody
        release = self._open_ledger() if self.name in m.key_holders else None
        sign = self._identity.sign if self._evidence is None else self._evidence.sign
        self._private = Private(
            sign,
            self._verify,
            self._model,
            release=release,
            weights=self._opening,
            budget=self._keeper,
        )
        self._players = {
            role: self._backend.player(role, table, self._private)
            for role, p in self._cast.items()
            if p == self.name
        }
        self._agree_on_store()
        if self._evidence is not None:
            self._evidence.exchange(self._office)
        if self._offer is None:
            self._set_up_live()
        self._seconds["setup"] = time.perf_counter() - started

    def _commit_to_weights(self) -> bytes | None:
        made = commit_to_weights(self.manifest, self._model, self._opening)
        if made is None:
            return None
        self._opening, commitment = made
        return commitment

    def _open_ledger(self) -> Record:
        """The ledger of decryption shares: beside the store, or for as long as this join's keys live."""
        if self._store is not None:
            folder = str(self._store.folder / "ledger")
        else:
            try:
                folder = self._closing.enter_context(tempfile.TemporaryDirectory(prefix="privinfer-ledger-"))
            except OSError as e:
                why = (e.strerror or "error").lower()
                raise ConfigError(f"no folder can be made for the ledger: {why}", culprit=self.name) from None
        return self._closing.enter_context(ReleaseLedger(folder, self.name)).record

    def _set_up_live(self) -> None:
        """Send and receive the masked weights, once a join."""
        if not self._live:
            self._drive(Phase.SETUP, lambda p: p.setup())
            self._live = True

    def _agree_on_store(self) -> None:
        """Find what everybody has in store; each party hears the same offers and decides the same."""
        own = self._store.offer() if self._store is not None else None
        pieces = chunks.count(own.batch, self._at_once_ahead()) if own is not None else 1
        own = whole(own, pieces)
        heard = {self.name: pack_offer(own)}
        step, self._asked = OFFERS + self._asked, self._asked + 1
        self._office.tell(Kind.HELLO, Phase.SETUP, step, heard[self.name])
        peers = set(self._office.endpoint.peers)
        heard |= self._office.hear(step, peers)
        offers = {peer: parse_offer(data, peer) for peer, data in heard.items()}
        for peer, offer in offers.items():
            if own is not None:
                check_whole(own, offer, pieces, peer)
        keepers = {party for role, party in self._cast.items() if self._backend.keeps(role)}
        self._offer = agreed(offers[keeper] for keeper in sorted(keepers))
        if self._offer is not None and self._store is not None and own is not None:
            setups = unpack_roles(self._store.setup(self._offer.generation))
            for role, data in setups.items():
                self._players[role].restore(self._offer.generation, data)

    def _agree_on_architecture(self) -> ir.Architecture:
        owner = self.manifest.model_owner
        if self._model is not None:
            architecture = self._model.architecture
            self._office.tell(Kind.HELLO, Phase.SETUP, ARCHITECTURE, architecture.to_bytes())
        else:
            data = self._office.hear(ARCHITECTURE, {owner})[owner]
            if hashlib.sha256(data).hexdigest() != self.manifest.model:
                raise ConfigError("sent another architecture than the session names", culprit=owner)
            architecture = ir.Architecture.from_bytes(data)
        check_names(self.manifest, architecture)
        return architecture

    def _verify(self, party: str, message: bytes, signature: bytes) -> None:
        self._verifiers[party].verify(message, signature)

    # -- dealing ahead ---------------------------------------------------------------------------

    def deal(self, count: int, batch: int = 1) -> None:
        """Fill the stores for `count` inferences of `batch` rows; every party calls this alike.

        Parameters
        ----------
        count : int
            How many.
        batch : int
            Rows of each; many go in chunks, as they will be run.

        Raises
        ------
        ConfigError
            A store is missing or full, or this join has dealt before.
        """
        if self._failed is not None:
            raise self._failed
        with _Guard(self):
            keeps = any(self._backend.keeps(role) for role in self._players)
            if keeps and self._store is None:
                raise ConfigError("has no store to deal into", hint="join with store=DIR")
            if self._dealt:
                raise ConfigError("has dealt in this session already", hint="join again to deal more")
            self._dealt = True
            self._office.begin(self._next)
            self._set_up_live()
            generation = self._table.session
            if keeps and self._store is not None:
                kept = {role: player.keep() for role, player in self._players.items()}
                self._store.begin(generation, batch, pack_roles(kept))
                self._store.room_for(count * self._dealt_size(batch))
            at_once = self._at_once_ahead()
            for left in [*range(batch, 0, -at_once)] * count if batch else [0] * count:
                number, self._next = self._next, self._next + 1
                self._office.begin(number)
                scope = Scope(generation, number)
                plays = {role: player.deal(scope, left) for role, player in self._players.items()}
                kept = self._play(Phase.OFFLINE, plays)
                if keeps and self._store is not None:
                    self._store.add(generation, number, pack_roles(kept))
                chunks.settle(self.manifest, self.name, 0, self._office.barrier(number))
            self._agree_on_store()

    def _at_once_ahead(self) -> int:
        return self._backend.rows_at_once(self._table, roles.AHEAD)

    def _dealt_size(self, batch: int) -> int:
        if self.manifest.backend != Mpc.name:
            return 0  # keys are kept, and of each inference its number
        moved = declared_run(dataclasses.replace(self._table, network=roles.AHEAD), batch)
        return sum(
            size
            for (phase, _, receiver), size in moved.items()
            if phase is Phase.OFFLINE and receiver in self._players and receiver in roles.EVALUATORS
        )

    # -- running ---------------------------------------------------------------------------------

    def run(
        self,
        inputs: Mapping[str, Any] | None = None,
        *,
        consent: consents.Source | None = None,
        revocations: Sequence[consents.Source] = (),
    ) -> Result | None:
        """Take part in one inference; every party of the session calls this once for each.

        A batch too large for memory goes in chunks (docs/protocols.md); what is returned is whole.

        Parameters
        ----------
        inputs : mapping of array_like or Fragment, optional
            This party's inputs by name: real or integer arrays shaped (batch, ...) or one sample; with
            backend "ckks" also a :class:`privinfer.session.Fragment`, which is one row. Checked before
            anything is sent.
        consent : path or bytes, optional
            Signed consent to this run, made by ``privinfer consent grant``; required of the party that
            the session's terms name.
        revocations : sequence of path or bytes
            Signed revocations of earlier consents, which every owner notes; of the same party.

        Returns
        -------
        Result or None
            The outputs at their receiver; None at every other party. :attr:`report` is set at all.

        Raises
        ------
        InputError
            An input is missing, unknown, of another shape or dtype, not finite or out of range.
        ConfigError, IntegrityError
            A fragment is of another owner or key, or damaged; an owner has no ledger of consents.
        ConsentError
            The terms ask for a consent, and there is none to this run.
        TransportError, ProtocolViolation
            A party was lost, was late or broke the protocol; the culprit is named.
        """
        if self._failed is not None:
            raise self._failed
        with _Guard(self):
            self._bringing = True
            rows = bring(self.manifest, self._table, self._identity, self._private, inputs or {})
            self._bringing = False
            brought = consents.bring(self.manifest, self.name, consent, revocations, self._uses)
            offer = self._offer
            if offer is not None and rows not in (None, offer.batch):
                raise InputError(
                    f"the store was dealt for batches of {offer.batch} rows",
                    hint="bring as many rows, or join without a store",
                )
            tally = chunks.Tally()
            engagement = self._engage(rows, brought)
            first = self._next
            before = self._office.endpoint.counters.snapshot()
            left: int | None = None
            while left != 0:
                left = self._chunk(tally, engagement, ahead=offer is not None)
            self._private.forget()
        moved = report.traffic(self._office.endpoint.counters, before if first else None)
        self.report = {
            **report.of_party(self.manifest, self.name, self.architecture),
            "inference": first,
            "chunks": tally.chunks,
            "bytes": moved,
            "online_rounds": dict(tally.rounds),
            "dealt": "live" if offer is None else "ahead",
            "seconds": {**self._seconds, "offline": tally.offline, "online": tally.online},
            "peak_rss_bytes": report.peak_rss(),
        }
        if self._evidence is not None and self._evidence.path is not None:
            self.report["receipt"] = str(self._evidence.path)
        if released := limits.describe(self.manifest, self._table, self._keeper):
            self.report["release"] = released
        if notes := [note for player in self._players.values() for note in player.notes]:
            self.report["precision"]["notes"] = notes
        outputs = tally.outputs()
        return Result(outputs, self.report) if outputs else None

    def _engage(self, rows: int | None, brought: consents.Brought) -> Engaged:
        """Commit to what this party brings, hear what the others commit to, and come under the consent."""
        m, run, session = self.manifest, self._next, self._table.session
        self._office.begin(run)
        m.terms.check_time()
        if self._evidence is not None:
            self._evidence.check_room()
        alike = Alike(
            self._office,
            GREETINGS + 2 * run,
            m.names,
            self.name,
            self._identity.sign,
            self._verify,
            run_context(session, run),
        )
        commitments = engage.commit(self._private, session, run)
        alike.tell(engage.statement(commitments, engage.make_key(self._private, m, self.name), brought))
        if self._evidence is not None:
            self._evidence.opened(run, self._private.openings)
        heard: list[Engagement] = []

        def admit(said: dict[str, bytes]) -> bytes:
            """Before this party shows what it heard: who settles knows that all others admit it too."""
            if self._evidence is not None:
                self._evidence.entered(run, "live" if self._offer is None else "ahead", alike.signed())
            heard.append(engage.read(m, said))
            consents.admit(heard[0].brought, m, self.name, self._uses, session=session, run=run, rows=rows)
            return b""

        alike.hear(admit)
        self._private.keys.public.update(heard[0].keys)
        return Engaged(heard[0], alike)

    def _chunk(self, tally: chunks.Tally, engaged: Engaged, *, ahead: bool) -> int:
        """One inference over the rows that come next; says how many are left."""
        number = self._next
        self._next += 1  # never again this number, however this run ends
        self._office.begin(number)
        if ahead:
            self._resume()
        else:
            self._set_up_live()
            scope = Scope(self._table.session, number)
            self._drive(Phase.OFFLINE, lambda p: p.offline(scope))
        engaged.settle()  # nothing that depends on an input has left yet
        tally.dealt()
        tally.done(self._drive(Phase.ONLINE, lambda p: p.online()).values())
        told = chunks.told(self._players.values())
        words = self._office.barrier(number, chunks.word(self.name, self.manifest, told))
        tally.rounds.update(self._rounds(roles.AHEAD if ahead else self._table.network))
        return chunks.settle(self.manifest, self.name, told, words)

    def _resume(self) -> None:
        """Take this chunk's piece from the store: it is marked as used before anything is sent."""
        offer = self._offer
        if offer is None:
            raise IntegrityError("what was dealt ahead ends within a run")
        kept: dict[Role, bytes] = {}
        if self._store is not None and any(self._backend.keeps(role) for role in self._players):
            kept = unpack_roles(self._store.take(offer.generation, offer.number))
        following = dataclasses.replace(offer, number=offer.number + 1)
        self._offer = following if following.number < following.end else None
        scope = Scope(offer.generation, offer.number)
        plays = {role: player.resume(scope, kept.get(role)) for role, player in self._players.items()}
        self._play(Phase.OFFLINE, plays)

    def _rounds(self, network: Network) -> dict[str, int]:
        """One-way messages on the critical path: as counted by an evaluator, as declared elsewhere."""
        if self.manifest.backend == crypten.NAME:
            return crypten.rounds(self._players)
        if self.manifest.backend == ckks.NAME and not ckks.is_exact(self._table):
            return ckks.rounds(self._table)
        counted = [p.rounds for p in self._players.values() if p.rounds is not None]
        batches = [p.batch for p in self._players.values() if p.batch is not None]
        if counted:
            between = counted[0]
        elif batches:
            between = roles.rounds(roles.choose(roles.compile_for(self._table), network, batches[0]))
        else:  # the model owner is not told how many rows there are
            return {"input": 1, "compare": 1, "output": 1}
        return {"input": 1, "compare": 1, "evaluators": between, "output": 1}

    def _drive(self, phase: Phase, start: Callable[[Player], Any]) -> dict[Role, Any]:
        return self._play(phase, {role: start(player) for role, player in self._players.items()})

    def _play(self, phase: Phase, plays: Mapping[Role, Play]) -> dict[Role, Any]:
        try:
            return drive(plays, self._office, phase, self._progress)
        finally:
            for play in plays.values():
                play.close()

    # -- ending ----------------------------------------------------------------------------------

    def may_begin_again(self) -> bool:
        """Whether nothing that depends on an input has left or reached this party, nor one that gave up.

        Waits up to a second for the others' last words; asked after a run has failed, before :meth:`close`.
        """
        self._office.hear_out()
        return not self._office.online

    def _fail(self, error: PrivinferError) -> PrivinferError:
        """End the session here and tell everybody, once."""
        if isinstance(error, TransportError) and error.culprit not in (None, self.name):
            error = self._office.last_words(error)
        self._failed = error
        told = error
        if error.culprit == self.name and (isinstance(error, InputError) or self._bringing):
            # how far an input lies outside its range is its owner's secret, and so is where its files lie
            told = InputError("refused its own input before anything was sent", culprit=self.name)
        self._office.abort(told)
        return error

    def close(self) -> None:
        """Leave the session; may be called again."""
        if self._closed:
            return
        self._closed = True
        if self._failed is None:
            self._office.leave()
        self._office.close()
        if self._store is not None:
            self._store.close()
        if self._keeper is not None:
            self._keeper.close()
        self._closing.close()
        self._write_receipt()

    def _write_receipt(self) -> None:
        if self._evidence is None:
            return
        office, joint = self._office, ckks.joint_key(self._players.values())
        try:
            self._evidence.write(office.missing, self._failed, self._opening, joint)
        except ConfigError as error:
            if self._failed is None:
                raise
            self._failed.add_note(error.message)  # why the session ended matters more


class _Guard:
    """Whatever goes wrong inside ends the session for all, with this party's name where it is its own."""

    def __init__(self, party: Party) -> None:
        self.party = party

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        party = self.party
        if not isinstance(error, PrivinferError):
            stop = "was stopped" if isinstance(error, KeyboardInterrupt) else "met an internal error"
            party._fail(PrivinferError(stop, culprit=party.name))
            return
        if error.culprit is None:
            error.culprit = party.name
        told = party._fail(error)
        if told is not error:
            raise told from None
