"""Which sessions a serving party takes part in: `serve.toml`, and what it makes of a proposal."""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from privinfer.errors import ConfigError, InputError, RefusedError, ReplayError
from privinfer.graph import ir
from privinfer.graph.load import from_onnx
from privinfer.io.arrays import read_array
from privinfer.session import files, toml
from privinfer.session.fragment import Fragment
from privinfer.session.identity import Identity, PublicIdentity
from privinfer.session.manifest import Manifest
from privinfer.session.sealed import is_sealed
from privinfer.session.template import Template

VERSION = 1
ANYBODY = "any"
MAX_CERTIFICATES = 100_000
_SUFFIXES = (".npy", ".fragment")
_MOMENT_S = 2.0
_REMEMBERED = 1 << 16  # session identifiers, 16 bytes each, and receivers with their last times


@dataclass(frozen=True)
class Service:
    """One template that a server takes part in.

    Attributes
    ----------
    name : str
        Of the server in it.
    template : Template
        Who takes part and what is computed.
    patients : Path or None
        Folder with the certificates of those who may ask; None: anybody.
    inputs : Path or None
        Folder with a folder for each patient, for an owner.
    model : Model or None
        For the model owner.
    fragment_key : Path or None
        The owner's CKKS key.
    owned : tuple of str
        Inputs this party brings.
    """

    name: str
    template: Template
    patients: Path | None
    inputs: Path | None
    model: ir.Model | None = field(repr=False)
    fragment_key: Path | None
    owned: tuple[str, ...]

    @classmethod
    def read(cls, table: toml.Table, identity: Identity, folder: Path) -> Self:
        """Read ``[[services]]``; sealing it once for a stranger shows whether it can be sealed at all."""
        template = Template.load(folder / table.text("template"))
        sample = template.sample()
        name = identity.name
        if sample.party(name).identity != identity.public:
            raise ConfigError("the template has another certificate of this party", culprit=name)
        patients = table.text("patients")
        inputs = folder / table.text("inputs") if table.has("inputs") else None
        key = folder / table.text("fragment_key") if table.has("fragment_key") else None
        model = _model(table, folder) if table.has("model") else None
        table.finish()
        owned = tuple(sorted(k for k, owner in sample.inputs.items() if owner == name))
        service = cls(
            name, template, None if patients == ANYBODY else folder / patients, inputs, model, key, owned
        )
        service._check(sample)
        return service

    def _check(self, sample: Manifest) -> None:
        if (self.model is not None) != (sample.model_owner == self.name):
            raise ConfigError("model is for the model owner, and only for it", culprit=self.name)
        if self.model is not None and self.model.architecture.digest() != sample.model:
            raise ConfigError("the model is not the one of the template", culprit=self.name)
        if self.model is not None and sample.terms.weights is not None:
            raise ConfigError("terms.weights cannot be served yet", hint="leave it out of the template")
        if (self.inputs is not None) != bool(self.owned):
            raise ConfigError("inputs is for parties that own an input, and only for them", culprit=self.name)
        if self.owned and self.patients is None:
            raise ConfigError(
                "patients cannot be any where records are kept by a patient's name",
                culprit=self.name,
                hint="name a folder with the certificates of the patients",
            )
        if self.patients is not None and not self.patients.is_dir():
            raise ConfigError(f"patients: {self.patients} is not a folder", culprit=self.name)
        for shown in self.owned:
            if "/" in shown or shown.startswith("."):
                raise ConfigError(f"input {shown!r} makes no file name")

    def knows(self, patient: PublicIdentity) -> bool:
        """Whether this very certificate is on the list; read anew each time, so that it can be revoked."""
        if self.patients is None:
            return True
        try:
            with open(self.patients / f"{patient.name}.crt", "rb") as file:
                listed = PublicIdentity.from_certificate(file.read(1 << 16).decode("ascii", "replace"))
        except (OSError, ConfigError):
            return False
        return listed == patient

    def bring(self, patient: str) -> dict[str, Any]:
        """Read the inputs that this party brings for a patient.

        Raises
        ------
        InputError
            There are none, or they cannot be read; where they lie is not said.
        """
        found: dict[str, Any] = {}
        for shown in self.owned:
            path = self._find(patient, shown)
            at_rest = path.suffix == ".fragment" or is_sealed(path)
            if at_rest and self.fragment_key is None:
                raise InputError("has a fragment and no key for it", culprit=self.name)
            found[shown] = Fragment(path, self.fragment_key) if at_rest else read_array(path)  # type: ignore[arg-type]
        return found

    def check_records(self, patient: str) -> None:
        """Raise InputError where a file is missing, before anything is agreed to."""
        for shown in self.owned:
            self._find(patient, shown)

    def _find(self, patient: str, shown: str) -> Path:
        if self.inputs is not None:
            for suffix in _SUFFIXES:
                path = self.inputs / patient / f"{shown}{suffix}"
                if path.is_file():
                    return path
        raise InputError("has no record of this patient", culprit=self.name)


@dataclass(frozen=True)
class Config:
    """What ``serve.toml`` says.

    Attributes
    ----------
    identity : Identity
        The server's.
    listen : tuple of str and int
        Address.
    metrics : tuple of str and int, or None
        Address of ``/metrics`` and ``/healthz``.
    sessions, queue : int
        Sessions at once, and how many may wait for their turn.
    queue_seconds : float
        How long.
    per_patient : int
        Sessions at once for one certificate.
    per_hour : int
        Sessions an hour for one certificate.
    stop_seconds : float
        How long sessions that run may go on after SIGTERM.
    services : tuple of Service
        What is served.
    """

    identity: Identity
    listen: tuple[str, int]
    metrics: tuple[str, int] | None
    sessions: int
    queue: int
    queue_seconds: float
    per_patient: int
    per_hour: int
    stop_seconds: float
    services: tuple[Service, ...]

    @classmethod
    def load(cls, path: str | os.PathLike[str], name: str) -> Self:
        """Read a server's file; paths in it are relative to it.

        Raises
        ------
        ConfigError
            Something is missing, unknown, or does not fit; the message names the key.
        """
        file = Path(path)
        top = toml.Table(toml.parse(files.read(file, toml.MAX_FILE, "server file")), "")
        if top.integer("version") != VERSION:
            raise ConfigError(f"version is not {VERSION}")
        identity = Identity.load(file.parent / top.text("identity"))
        if identity.name != name:
            raise ConfigError(f"identity is of {identity.name}, not of {name}", culprit=name)
        services = tuple(Service.read(one, identity, file.parent) for one in top.tables("services", 64))
        if not services:
            raise ConfigError("services is empty", hint="a [[services]] table for each template")
        default = services[0].template.sample().party(name).address
        config = cls(
            identity,
            _address(top, "listen", default),
            _address(top, "metrics", None) if top.has("metrics") else None,
            _count(top, "sessions", 8),
            _count(top, "queue", 32, least=0),
            top.positive("queue_seconds", 30.0),
            _count(top, "per_patient", 1),
            _count(top, "per_hour", 60),
            top.positive("stop_seconds", 60.0),
            services,
        )
        top.finish()
        return config


def _model(table: toml.Table, folder: Path) -> ir.Model:
    """The model owner's, with ``ranges = { input = "LOW:HIGH" }`` where the file carries none."""
    ranges: dict[str, tuple[float, float]] = {}
    for key, text in (table.table("ranges").mapping(64) if table.has("ranges") else {}).items():
        low, _, high = text.partition(":")
        try:
            ranges[key] = float(low), float(high)
        except ValueError:
            raise ConfigError(f"ranges: {key} is not LOW:HIGH") from None
    bits = table.integer("comparison_bits") if table.has("comparison_bits") else 32
    return from_onnx(folder / table.text("model"), ranges or None, comparison_bits=bits)


def _count(top: toml.Table, key: str, default: int, least: int = 1) -> int:
    value = top.integer(key) if top.has(key) else default
    if not least <= value <= 10_000:
        raise ConfigError(f"{key} is not in {least}..10000")
    return value


def _address(top: toml.Table, key: str, default: str | None) -> tuple[str, int]:
    text = default if default is not None and not top.has(key) else top.text(key)
    host, _, port = text.rpartition(":")
    if host in ("0.0.0.0", "[::]") and port.isdigit() and 0 < int(port) < 1 << 16:  # noqa: S104 - as asked
        return host.strip("[]"), int(port)
    if (found := toml.split_address(text)) is None:
        raise ConfigError(f"{key} is not host:port")
    return found


class Policy:
    """Decides about proposals; one for a server, used by many threads."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._changed = threading.Condition()
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._times: OrderedDict[str, deque[float]] = OrderedDict()
        self._running: dict[str, int] = {}

    def match(self, raw: bytes) -> tuple[Manifest, Service, PublicIdentity]:
        """Find the template that a proposed session file was sealed from, byte for byte.

        Raises
        ------
        ConfigError
            It is none, or of no template of this server.
        """
        manifest = Manifest.loads(raw)
        asking = set(manifest.receivers.values())
        patient = manifest.party(asking.pop()).identity if len(asking) == 1 else None
        for service in self._config.services if patient is not None else ():
            try:
                expected = service.template.seal(patient, manifest.session)  # type: ignore[arg-type]
            except ConfigError:
                continue
            if expected.raw == raw:
                return expected, service, patient  # type: ignore[return-value]
        raise ConfigError(
            "the session is of no template that is served here",
            hint="do both hold the same template? compare them with sha256sum",
        )

    def admits(self, manifest: Manifest, service: Service, patient: PublicIdentity) -> None:
        """Raise where this patient may not have this session; the place for consents too.

        Raises
        ------
        RefusedError
            It is not on the list.
        InputError
            There is no record of it.
        """
        manifest.terms.check_time()
        if not service.knows(patient):
            raise RefusedError(
                "this certificate is not on the list", hint="ask the party to add it to its patients"
            )
        service.check_records(patient.name)

    def begin(self, manifest: Manifest, patient: PublicIdentity) -> None:
        """Count a session; :meth:`end` has to follow where it did not raise.

        Raises
        ------
        ReplayError
            Its identifier was used before.
        RefusedError
            This certificate has too many, at once or an hour.
        """
        session = bytes.fromhex(manifest.session)
        who = patient.fingerprint
        with self._changed:
            # whoever has its answer and asks again at once is ahead of the servers by a moment
            most = self._config.per_patient
            free = self._changed.wait_for(lambda: self._running.get(who, 0) < most, _MOMENT_S)
            if session in self._seen:
                raise ReplayError("this session was held before", hint="seal a new one")
            now = time.monotonic()
            if not free:
                raise _later(f"{self._config.per_patient} sessions at once are the most", 5.0)
            times = self._times.setdefault(who, deque())
            self._times.move_to_end(who)
            while times and times[0] < now - 3600:
                times.popleft()
            if len(times) >= self._config.per_hour:
                raise _later(f"{self._config.per_hour} sessions an hour are the most", times[0] + 3600 - now)
            times.append(now)
            self._seen[session] = None
            self._running[who] = self._running.get(who, 0) + 1
            while len(self._seen) > _REMEMBERED:
                self._seen.popitem(last=False)
            while len(self._times) > _REMEMBERED:
                self._times.popitem(last=False)

    def end(self, patient: PublicIdentity) -> None:
        """A session that was begun is over."""
        with self._changed:
            left = self._running[patient.fingerprint] - 1
            if left:
                self._running[patient.fingerprint] = left
            else:
                del self._running[patient.fingerprint]
            self._changed.notify_all()


def _later(message: str, seconds: float) -> RefusedError:
    error = RefusedError(message, hint=f"ask again in {max(1, round(seconds))} s")
    error.retry = max(1.0, seconds)
    return error


class Slots:
    """Sessions at once, first come first served; those who wait are counted too."""

    def __init__(self, most: int, queue: int) -> None:
        self._most, self._queue = most, queue
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()
        self.taken = 0
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many wait for their turn."""
        return len(self._waiting)

    def take(self, seconds: float) -> None:
        """Wait for a turn; :meth:`give` has to follow where it did not raise.

        Raises
        ------
        RefusedError
            Too many wait, it took too long, or the server stops.
        """
        ticket = object()
        until = time.monotonic() + seconds
        with self._changed:
            if self._closed:
                raise _later("this server is stopping", 60.0)
            if self.taken >= self._most and len(self._waiting) >= self._queue:
                raise _later("too many sessions wait already", 2.0)
            self._waiting.append(ticket)
            try:
                while self.taken >= self._most or self._waiting[0] is not ticket:
                    rest = until - time.monotonic()
                    if rest <= 0:
                        raise _later("no session ended in time", 5.0)
                    self._changed.wait(rest)
                    if self._closed:
                        raise _later("this server is stopping", 60.0)
                self.taken += 1
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()

    def give(self) -> None:
        """A session is over."""
        with self._changed:
            self.taken -= 1
            self._changed.notify_all()

    def close(self) -> None:
        """Let nobody in any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def idle(self, seconds: float) -> bool:
        """Wait until no session runs; says whether that came."""
        until = time.monotonic() + seconds
        with self._changed:
            while self.taken:
                if (rest := until - time.monotonic()) <= 0:
                    return False
                self._changed.wait(rest)
        return True
