"""All parties of a session on this machine: real processes over TLS, or threads over memory."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from queue import Empty, Queue
from typing import Any

import numpy as np

from privinfer import insecure as unsafe
from privinfer.backends import ckks, crypten, plain
from privinfer.backends.base import Phase, Progress, Role
from privinfer.backends.mpc import Mpc
from privinfer.errors import ConfigError, InputError, PrivinferError, TransportError
from privinfer.graph import ir, reference
from privinfer.graph.ranges import check_inputs
from privinfer.protocols.commitment import Opening, digest_of_weights
from privinfer.runtime import consents, evidence, limits, pipes, report
from privinfer.runtime.bring import check_fragments, split
from privinfer.runtime.party import BACKENDS, Party, Result
from privinfer.runtime.uses import Uses
from privinfer.session import manifest as mf
from privinfer.session import weights_opening
from privinfer.session.consent import Consent
from privinfer.session.identity import Identity
from privinfer.session.terms import Release, Terms
from privinfer.transport.memory import MemoryHub

SPARE_GRACE = 2.0  # seconds

LocalWatcher = Callable[[str, Role, Phase, Progress], None]
Inputs = Mapping[str, Mapping[str, Any]]
Keys = Mapping[str, str | os.PathLike[str]]


@dataclass(frozen=True)
class _Cast:
    """Who does what, before keys and ports are known."""

    names: tuple[str, ...]
    model_owner: str
    evaluators: tuple[str, ...]
    helper: str | None
    inputs: dict[str, str]
    receivers: dict[str, str]
    deadline: float
    key_holders: tuple[str, ...] = ()
    threshold: int = 0
    nonlinear: str = mf.NONLINEAR[0]
    receipts: str | None = None
    terms: Terms = field(default_factory=Terms)
    consent: bytes | None = None
    opening: Opening | None = None
    uses: str | None = None  # folder of all owners' ledgers of consents

    def arguments(self, name: str) -> dict[str, Any]:
        """What a party's run takes besides inputs."""
        return {"consent": self.consent} if name == self.terms.consent else {}

    def ledger(self, name: str) -> str | None:
        """Folder of a party's ledger of consents."""
        wanted = self.uses is not None and name in self.inputs.values()
        return f"{self.uses}/{name}" if wanted else None

    def manifest(self, backend: str, model: ir.Model, parties: list[mf.Party]) -> mf.Manifest:
        return mf.Manifest(
            session=secrets.token_hex(16),
            backend=backend,
            model=model.architecture.digest(),
            parties=tuple(parties),
            model_owner=self.model_owner,
            evaluators=self.evaluators,
            helper=self.helper,
            inputs=self.inputs,
            receivers=self.receivers,
            deadline=self.deadline,
            connect_timeout=self.deadline,
            insecure=(unsafe.CRYPTEN,) if backend == crypten.NAME else (),
            key_holders=self.key_holders,
            threshold=self.threshold,
            nonlinear=self.nonlinear,
            terms=self.terms,
        )

    def receipt(self, name: str) -> str | None:
        """Where a party's receipt will be."""
        return None if self.receipts is None else os.path.join(self.receipts, f"{name}.receipt")


def run_local(
    model: ir.Model,
    inputs: Inputs,
    *,
    backend: str = "mpc",
    receiver: str | Mapping[str, str] = "patient",
    model_owner: str = "startup",
    evaluators: tuple[str, str] | None = None,
    helper: str = "helper",
    key_holders: tuple[str, ...] | None = None,
    threshold: int | None = None,
    identities: Keys | None = None,
    nonlinear: str = mf.NONLINEAR[0],
    processes: bool = True,
    with_reference: bool = False,
    release: Mapping[str, Any] | None = None,
    insecure: tuple[str, ...] = (),
    deadline: float = 60.0,
    progress: LocalWatcher | None = None,
    receipts: str | os.PathLike[str] | None = None,
    consent: consents.Source | None = None,
    opening: str | os.PathLike[str] | Opening | None = None,
) -> Result:
    """Run one inference with every party on this machine.

    Parameters
    ----------
    model : Model
        From :func:`privinfer.from_onnx` or :func:`privinfer.from_torch`.
    inputs : mapping of mapping
        Owner to its named inputs: arrays shaped (batch, ...), or one sample; for "ckks" a
        :class:`privinfer.session.Fragment` too, with its owner's key file in `identities`.
    backend : {"mpc", "ckks", "crypten", "plain"}
        "ckks" has key holders in place of evaluators and helper, "crypten" neither; "crypten" and "plain"
        have to be named in `insecure` too.
    receiver : str or mapping
        Who learns the outputs: one party, or a party for each output's name.
    model_owner, helper : str
        Parties in these roles.
    evaluators : tuple of two str, optional
        The model owner and the first owner by default.
    key_holders : tuple of str, optional
        For "ckks": who holds a share of the joint key; all owners and receivers by default.
    threshold : int, optional
        For "ckks": how many key holders an answer takes; all of them by default.
    identities : mapping, optional
        Key files of parties; all others get a key for this run.
    nonlinear : {"polynomial", "exact"}
        For "ckks": the whole model under encryption, which takes polynomials for activations; or linear
        layers under encryption and everything else exactly, by evaluators and helper.
    processes : bool
        Each party a process with its own key and TLS connections (True), or threads of this process
        over memory (False), which is quicker for tests and notebooks.
    with_reference : bool
        Run the model in the clear too and put the largest absolute difference into the report.
    release : mapping, optional
        What of the results may leave, as under ``[terms.release]`` in a session file (docs/release.md).
        Budgets and rates are counted for this call alone.
    insecure : tuple of str
        Names from :mod:`privinfer.insecure`.
    deadline : float
        Seconds; a party silent that long when something is due has failed.
    progress : callable, optional
        Told of party, role, phase and how far it is.
    receipts : path, optional
        Folder for every party's receipt, ``NAME.receipt``; made where it is missing. Owners' openings
        lie there too: between real parties they would not.
    consent : path or bytes, optional
        Signed consent; purpose and who consents are taken from it. All parties check it, against the keys
        in `identities`. Uses are counted for this call only.
    opening : path or Opening, optional
        Of the commitment to the weights, which a consent names; from a path with the model owner's key.

    Returns
    -------
    Result
        All receivers' outputs, and a report with one entry a party.

    Raises
    ------
    PrivinferError
        Whatever stopped the run, with the culprit's name; no process is left behind.
    """
    unsafe.check_known(insecure)
    if nonlinear not in mf.NONLINEAR or (nonlinear != mf.NONLINEAR[0] and backend != ckks.NAME):
        raise ConfigError(
            f"nonlinear={nonlinear!r} makes no sense with the backend {backend!r}",
            hint=f'backend="ckks" takes {" or ".join(mf.NONLINEAR)}',
        )
    rows = _rows(model, inputs)
    arrays, fragments = split({k: v for own in rows.values() for k, v in own.items()})
    checked = check_inputs(model.architecture, arrays, _known(model) - set(fragments))
    if fragments:
        check_fragments(backend, fragments, len(next(iter(checked.values()))) if checked else None)
        if with_reference:
            raise ConfigError("a fragment has no clear values to run the reference with")
    terms = Terms(release=_read_release(release or {}))
    limits.refuse(backend, terms.release, backend == Mpc.name or nonlinear == ckks.EXACT)
    if backend == "plain" and (consent is not None or opening is not None):
        raise ConfigError("a consent and an opening go with parties, and backend plain has none")
    if backend == "plain":
        if terms.release.limited:
            raise ConfigError("backend plain counts no answers")
        unsafe.require(unsafe.PLAINTEXT, insecure)
        if receipts is not None:
            raise ConfigError("backend 'plain' has no parties that could keep receipts")
        result = _run_plain(model, checked, insecure)
    elif backend in BACKENDS:
        if backend == crypten.NAME:
            unsafe.require(unsafe.CRYPTEN, insecure)
            crypten.check_installed()
            cast = _plan_cast(model, rows, receiver, model_owner, (), None, deadline)
        elif backend == ckks.NAME:
            if nonlinear == ckks.EXACT:
                cast = _plan_cast(model, rows, receiver, model_owner, evaluators, helper, deadline)
            else:
                ckks.check_model(model.architecture)
                cast = _plan_cast(model, rows, receiver, model_owner, (), None, deadline)
            cast = _with_holders(cast, key_holders, threshold, nonlinear)
        else:
            cast = _plan_cast(model, rows, receiver, model_owner, evaluators, helper, deadline)
        for name in set(identities or ()) - set(cast.names):
            raise ConfigError(f"identities name {name}, who takes no part")
        cast = dataclasses.replace(cast, terms=terms)
        if receipts is not None:
            cast = dataclasses.replace(
                cast, receipts=os.fspath(receipts), terms=dataclasses.replace(terms, receipts=True)
            )
            try:
                os.makedirs(receipts, exist_ok=True)
            except OSError as error:
                why = (error.strerror or "error").lower()
                raise ConfigError(f"cannot make folder {os.fspath(receipts)}: {why}") from None
        run = _run_processes if processes else _run_threads
        with (
            _under_consent(cast, consent, opening, model, identities or {}) as cast,
            _folder(terms.release.limited) as ledgers,
        ):
            result = run(cast, backend, model, rows, progress, identities or {}, ledgers)
        if terms.release.limited:
            result.report["release"]["counted"] = "for this call"
    else:
        known = ", ".join([*BACKENDS, "plain"])
        raise ConfigError(f"there is no backend {backend!r}", hint=f"known: {known}")
    if with_reference:
        clear = reference.run(model, checked)
        worst = max(float(np.abs(clear[k] - v).max(initial=0)) for k, v in result.outputs.items())
        result.report["largest_absolute_error"] = worst
    return result


def _read_release(given: Mapping[str, Any]) -> Release:
    """Terms of release from a mapping; ConfigError names what is not one."""
    known = {f.name for f in dataclasses.fields(Release)}
    for name in set(given) - known:
        raise ConfigError(f"release has no {name!r}", hint=f"known: {', '.join(sorted(known))}")
    for name, value in given.items():
        whole = name in ("decimals", "answers")
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise ConfigError(f"release.{name} is no {'whole number' if whole else 'number'}")
    return Release(**given)


def _rows(model: ir.Model, inputs: Inputs) -> dict[str, dict[str, Any]]:
    """Inputs by owner, each owner's checked by the same code that its own process will run."""
    seen: dict[str, str] = {}
    found: dict[str, dict[str, Any]] = {}
    for owner, own in inputs.items():
        if not isinstance(own, Mapping):
            raise InputError(f"inputs of {owner!r} are no mapping from names to arrays")
        for name in own:
            if name in seen:
                raise InputError(f"input {name!r} comes from both {seen[name]!r} and {owner!r}")
            seen[name] = owner
        arrays, fragments = split(own)
        for name in set(fragments) - _known(model):
            raise InputError(f"there is no input {name!r} here", culprit=owner)
        try:
            checked = check_inputs(model.architecture, arrays, set(arrays) & _known(model))
            found[owner] = {**checked, **fragments}
        except InputError as error:
            error.culprit = owner
            raise
    return found


def _known(model: ir.Model) -> set[str]:
    return {i.name for i in model.architecture.inputs}


def _plan_cast(
    model: ir.Model,
    rows: Mapping[str, Mapping[str, Any]],
    receiver: str | Mapping[str, str],
    model_owner: str,
    evaluators: tuple[str, ...] | None,
    helper: str | None,
    deadline: float,
) -> _Cast:
    outputs = [o.name for o in model.architecture.outputs]
    receivers = dict.fromkeys(outputs, receiver) if isinstance(receiver, str) else dict(receiver)
    if evaluators is None:
        other = next((o for o in rows if o not in (model_owner, helper)), None)
        if other is None:
            raise ConfigError(
                "no owner can be the second evaluator", hint="name two parties: evaluators=(..., ...)"
            )
        evaluators = (model_owner, other)
    owners = {name: owner for owner, own in rows.items() for name in own}
    helpers = [] if helper is None else [helper]
    names = tuple(dict.fromkeys([*rows, model_owner, *evaluators, *helpers, *receivers.values()]))
    return _Cast(names, model_owner, evaluators, helper, owners, receivers, deadline)


def _with_holders(
    cast: _Cast, key_holders: tuple[str, ...] | None, threshold: int | None, nonlinear: str
) -> _Cast:
    if key_holders is None:
        key_holders = tuple(dict.fromkeys([*cast.inputs.values(), *cast.receivers.values()]))
    names = tuple(dict.fromkeys([*cast.names, *key_holders]))
    wanted = len(key_holders) if threshold is None else threshold
    return dataclasses.replace(
        cast, names=names, key_holders=key_holders, threshold=wanted, nonlinear=nonlinear
    )


@contextlib.contextmanager
def _folder(wanted: bool) -> Iterator[str | None]:
    """A folder for ledgers of this call, where answers are counted; a parent that is killed leaves it."""
    if not wanted:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="privinfer-ledger-") as folder:
        yield folder


@contextlib.contextmanager
def _under_consent(
    cast: _Cast,
    consent: consents.Source | None,
    opening: str | os.PathLike[str] | Opening | None,
    model: ir.Model,
    keys: Keys,
) -> Iterator[_Cast]:
    """The cast with the terms that a consent and an opening make, and ledgers for this call."""
    if opening is not None and not isinstance(opening, Opening):
        if cast.model_owner not in keys:
            raise ConfigError("an opening opens with the model owner's key", hint="name it in identities")
        opening = Opening(weights_opening.read(opening, Identity.load(keys[cast.model_owner])).secret)
    terms = cast.terms
    if opening is not None:
        made = opening.commit("weights", digest_of_weights(model), model.architecture.digest())
        terms = dataclasses.replace(terms, weights=made.hex())
    if consent is None:
        yield dataclasses.replace(cast, terms=terms, opening=opening)
        return
    if opening is None:
        raise ConfigError("a consent names the weights, and their opening is missing", hint="opening=")
    signed = consents.read_source(consent)
    said = consents.own(signed, None, Consent)
    terms = dataclasses.replace(terms, purpose=said.purpose, consent=said.patient)
    with tempfile.TemporaryDirectory(prefix="privinfer-uses-") as folder:
        yield dataclasses.replace(cast, terms=terms, opening=opening, consent=signed, uses=folder)


def _run_plain(model: ir.Model, rows: Mapping[str, Any], insecure: tuple[str, ...]) -> Result:
    started = time.perf_counter()
    outputs = plain.run(model, rows)
    return Result(
        outputs,
        {
            "schema": report.SCHEMA,
            "backend": "plain",
            "parties": {},
            "seconds": {"setup": 0.0, "offline": 0.0, "online": time.perf_counter() - started},
            "trust": "not private: plaintext in one process",
            "insecure": list(insecure),
        },
    )


def _merge(reports: dict[str, dict[str, Any]], outputs: dict[str, Any], cast: _Cast) -> Result:
    """One report of all parties; the session's online time is that of the slowest that computes."""
    computing = cast.evaluators or tuple(name for name in cast.names if name in reports)
    first = reports[computing[0]]
    slower = {
        phase: max(reports[e]["seconds"][phase] for e in computing)
        for phase in ("setup", "offline", "online")
    }
    shared = ("schema", "backend", "session", "precision", "trust", "insecure", "online_rounds", "chunks")
    own = ("roles", "sees", "bytes", "seconds", "peak_rss_bytes", "receipt")
    merged = {key: first[key] for key in shared}
    merged["precision"] = reports[cast.model_owner]["precision"]
    merged["seconds"] = slower
    merged["parties"] = {
        name: {k: reports[name][k] for k in own if k in reports[name]}
        for name in cast.names
        if name in reports
    }
    if "release" in (counted := reports[(cast.evaluators or (cast.model_owner,))[0]]):
        merged["release"] = counted["release"]
    if lost := [name for name in cast.names if name not in reports]:
        merged["lost"] = lost
    return Result(outputs, merged)


# -- threads over memory ---------------------------------------------------------------------------


def _run_threads(
    cast: _Cast,
    backend: str,
    model: ir.Model,
    rows: Mapping[str, Any],
    progress: LocalWatcher | None,
    keys: Keys,
    ledgers: str | None,
) -> Result:
    identities = {
        name: Identity.load(keys[name]) if name in keys else Identity.generate(name, days=2)
        for name in cast.names
    }
    parties = [
        mf.Party(name, "127.0.0.1", 1 + k, identities[name].certificate_pem)
        for k, name in enumerate(cast.names)
    ]
    manifest = cast.manifest(backend, model, parties)
    hub = MemoryHub(cast.names)
    spare = BACKENDS[backend]().spare(manifest)
    found: dict[str, Result | None] = {}
    reports: dict[str, dict[str, Any]] = {}
    errors: list[BaseException] = []

    def play(name: str) -> None:
        try:
            own = model if name == manifest.model_owner else None
            watch = _for_party(progress, name)
            path = cast.receipt(name)
            evidence.check(manifest, path)
            end = hub.endpoint(name)
            folder = cast.ledger(name)
            with Party(
                manifest,
                name,
                identities[name],
                end,
                model=own,
                progress=watch,
                opening=cast.opening if own is not None else None,
                receipt=path,
                ledger=ledgers and os.path.join(ledgers, name),
                uses=None if folder is None else Uses(folder, name),
            ) as party:
                found[name] = party.run(rows.get(name, {}), **cast.arguments(name))
                assert party.report is not None  # noqa: S101 - run() has set it
                reports[name] = party.report
        except BaseException as error:  # told to the caller below, whatever it is
            if name not in spare or not isinstance(error, PrivinferError):
                errors.append(error)

    threads = [threading.Thread(target=play, args=(name,), name=name, daemon=True) for name in cast.names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    hub.close()
    if errors:
        # an error that is not ours is a bug, and the others only heard of it
        raise next((e for e in errors if not isinstance(e, PrivinferError)), errors[0])
    outputs = {k: v for r in found.values() if r is not None for k, v in r.outputs.items()}
    return _merge(reports, outputs, cast)


def _for_party(progress: LocalWatcher | None, name: str) -> Callable[[Role, Phase, Progress], None] | None:
    if progress is None:
        return None
    return lambda role, phase, event: progress(name, role, phase, event)


# -- processes over TLS ----------------------------------------------------------------------------


class _Worker:
    """The parent's end of one party's process."""

    def __init__(
        self,
        name: str,
        heard: Queue[tuple[str, dict[str, Any] | None]],
        key: str | os.PathLike[str] | None,
    ) -> None:
        self.name = name
        own = [] if key is None else [os.fspath(key)]
        self.process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", "privinfer.runtime.worker", name, *own],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._heard = heard
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None  # noqa: S101 - it is a pipe
        try:
            while (message := pipes.read(self.process.stdout)) is not None:
                self._heard.put((self.name, message))
        finally:
            self._heard.put((self.name, None))

    def tell(self, message: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None  # noqa: S101 - it is a pipe
        with contextlib.suppress(OSError):  # that it died is heard from its other pipe
            pipes.write(self.process.stdin, message)

    def end(self, wait: float) -> None:
        """Let it end by itself, then make it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(wait)
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _run_processes(
    cast: _Cast,
    backend: str,
    model: ir.Model,
    rows: Mapping[str, Any],
    progress: LocalWatcher | None,
    keys: Keys,
    ledgers: str | None,
) -> Result:
    heard: Queue[tuple[str, dict[str, Any] | None]] = Queue()
    workers: dict[str, _Worker] = {}
    graceful = 2.0 if cast.receipts else 0.0  # they are written whatever happened
    try:
        for name in cast.names:
            workers[name] = _Worker(name, heard, keys.get(name))
        greetings = _collect(heard, set(cast.names), "certificate", None)
        parties = [
            mf.Party(name, "127.0.0.1", greetings[name]["port"], greetings[name]["certificate"])
            for name in cast.names
        ]
        manifest = cast.manifest(backend, model, parties)
        for name, one in workers.items():
            own = pipes.pack_model(model) if name == cast.model_owner else None
            runs = [pipes.pack_inputs(rows.get(name, {}))]
            task = {
                "manifest": manifest.raw,
                "model": own,
                "runs": runs,
                "receipt": cast.receipt(name),
                "ledger": ledgers and os.path.join(ledgers, name),
                "uses": cast.ledger(name),
            }
            if own is not None and cast.opening is not None:
                task["opening"] = cast.opening.expose()
            one.tell(task | cast.arguments(name))
        spare = BACKENDS[backend]().spare(manifest)
        finished = _collect(heard, set(cast.names), "report", progress, spare)
        graceful = 2.0
    finally:
        for one in workers.values():
            one.end(graceful)
    outputs = {k: v for f in finished.values() for k, v in pipes.unpack_arrays(f["outputs"]).items()}
    return _merge({name: f["report"] for name, f in finished.items()}, outputs, cast)


def _collect(
    heard: Queue[tuple[str, dict[str, Any] | None]],
    names: set[str],
    key: str,
    progress: LocalWatcher | None,
    spare: frozenset[str] = frozenset(),
) -> dict[str, dict[str, Any]]:
    """Wait for one message with `key` from each process; raises what any of them reports.

    Spare ones may end without.
    """
    found: dict[str, dict[str, Any]] = {}
    awaited = set(names)
    while missing := awaited - found.keys():
        try:  # the others are done: so is a spare one, unless it was stopped
            name, message = heard.get(timeout=SPARE_GRACE if missing <= spare else None)
        except Empty:
            break
        if message is None:
            if name in spare:
                awaited.discard(name)
            elif name not in found:
                raise TransportError("its process ended", culprit=name)
        elif "error" in message:
            if name not in spare:
                pipes.raise_described(message["error"])
            awaited.discard(name)
        elif "progress" in message:
            if progress is not None:
                role, phase, *rest = message["progress"]
                progress(name, role, Phase[phase.upper()], Progress(*rest))
        elif key in message:
            found[name] = message
    return found
