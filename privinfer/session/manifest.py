"""The session file: who takes part, in which role, under which deadlines; every party holds the same bytes.

A draft names certificates by file; sealing it embeds them, draws the session identifier and fixes the
model. From then on the SHA-256 of the file's bytes is what the parties compare before anything else.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import ipaddress
import os
import re
import secrets
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from privinfer.errors import ConfigError
from privinfer.session.identity import MAX_PEM, PublicIdentity, check_name
from privinfer.session.terms import Release, Terms

VERSION = 1
MAX_FILE = 1 << 20
MAX_LINE = 4096  # no line of ours is longer; bounds what nested or dotted TOML can cost
MAX_PARTIES = 64
MAX_INPUTS = 256
MAX_SECONDS = 86400.0
COMPARISONS = ("auto", "fss", "blinded")
MAX_NUMBER = 1e7
BACKENDS = ("plain", "mpc", "ckks", "crypten")
NONLINEAR = ("polynomial", "exact")
DEFAULT_DEADLINE = 30.0
DEFAULT_CONNECT_TIMEOUT = 60.0
_HEX32 = re.compile(r"[0-9a-f]{32}")
_HEX64 = re.compile(r"[0-9a-f]{64}")
_INSECURE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_HOST = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*", re.IGNORECASE)
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SEAL = "this looks like a draft: seal it first"
_KEYGEN = "make a new identity with `privinfer keygen`, and seal the session again"


@dataclass(frozen=True, slots=True)
class Party:
    """One party of a session.

    Attributes
    ----------
    name : str
        Party name.
    host : str
        Name or address, IPv6 without brackets.
    port : int
        1..65535.
    certificate_pem : str
        Its certificate.
    """

    name: str
    host: str
    port: int
    certificate_pem: str

    @property
    def address(self) -> str:
        """``host:port``, IPv6 in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def identity(self) -> PublicIdentity:
        """The certificate, parsed."""
        return PublicIdentity.from_certificate(self.certificate_pem)


@dataclass(frozen=True)
class Manifest:
    """A sealed session; one that exists is valid, for making it checks everything.

    Attributes
    ----------
    session : str
        Identifier, 32 hex digits.
    backend : str
        ``plain``, ``mpc``, ``ckks`` or ``crypten``.
    model : str
        SHA-256 of the architecture, hex.
    parties : tuple of Party
        In the order all parties use.
    model_owner : str
        Provides the weights.
    evaluators : tuple of str
        Two for ``mpc`` and for ``ckks`` in exact mode.
    helper : str or None
        Deals correlated randomness; required where there are evaluators.
    key_holders : tuple of str
        Hold a share of the joint secret key each, in this order; required for ``ckks``.
    threshold : int
        How many key holders have to take part in an answer; 0 where there are none.
    nonlinear : str
        For ``ckks``: ``polynomial``, all of the model under encryption, or ``exact``, its linear layers under
        encryption and everything else by evaluators and helper.
    terms : Terms
        Purpose, expiry, consent, evidence and what of a result may leave.
    inputs : dict
        From the name of an input to its owner.
    receivers : dict
        From the name of an output to the only party that learns it.
    deadline : float
        Seconds; a peer silent that long when something is due has failed.
    connect_timeout : float
        Seconds within which all parties must have connected.
    insecure : tuple of str
        Insecure options everybody agrees to.
    comparison : str
        ``auto``, ``fss`` (keys dealt before, fewest rounds) or ``blinded`` (helper online, fewest bytes).
    round_trip_ms, mbit_per_s : float
        What ``auto`` assumes of the lines; only speed depends on it.
    raw : bytes
        The file's bytes, or those :meth:`dumps` gives: what :meth:`digest` covers.

    Raises
    ------
    ConfigError
        On any contradiction; the message names the key.
    """

    session: str
    backend: str
    model: str
    parties: tuple[Party, ...]
    model_owner: str
    evaluators: tuple[str, ...]
    helper: str | None
    inputs: dict[str, str]
    receivers: dict[str, str]
    deadline: float = DEFAULT_DEADLINE
    connect_timeout: float = DEFAULT_CONNECT_TIMEOUT
    insecure: tuple[str, ...] = ()
    comparison: str = "auto"
    round_trip_ms: float = 0.2
    mbit_per_s: float = 10_000.0
    key_holders: tuple[str, ...] = ()
    threshold: int = 0
    nonlinear: str = NONLINEAR[0]
    terms: Terms = field(default_factory=Terms)
    # not an argument, so that dataclasses.replace() cannot carry old bytes over to new fields
    raw: bytes = field(init=False, repr=False, compare=False, default=b"")

    def __post_init__(self) -> None:
        _validate(self)
        object.__setattr__(self, "raw", self.dumps().encode())

    # -- files -----------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a sealed session file.

        Raises
        ------
        ConfigError
            If it is not a valid one; the message names the key.
        """
        return cls.loads(_read(Path(path), MAX_FILE, "session file"))

    @classmethod
    def loads(cls, raw: bytes) -> Self:
        """Read the bytes of a sealed session file; see :meth:`load`."""
        top = _Table(_parse(raw), "")
        top.required("session", hint=_SEAL)
        top.required("model", hint=_SEAL)
        manifest = cls._build(top, top.text("session"), top.text("model"), None)
        object.__setattr__(manifest, "raw", bytes(raw))
        return manifest

    @classmethod
    def seal(cls, draft_path: str | os.PathLike[str], model_hash: str, weights: str | None = None) -> Self:
        """Make a session from a draft.

        Embeds the certificates the draft names by file (relative to the draft) and draws a fresh session
        identifier, whatever the draft says.

        Parameters
        ----------
        draft_path : path-like
            Draft.
        model_hash : str
            SHA-256 of the architecture, hex; must agree with the draft's ``model`` if it has one.
        weights : str, optional
            Commitment to the weights, hex; must agree with the draft's ``terms.weights`` if it has one.
        """
        path = Path(draft_path)
        top = _Table(_parse(_read(path, MAX_FILE, "draft")), "")
        if top.has("model") and top.text("model") != model_hash:
            raise ConfigError("model is not the one the session is sealed for")
        if top.has("session"):
            top.text("session")
        return cls._build(top, secrets.token_hex(16), model_hash, path.parent, weights)

    @classmethod
    def _build(
        cls, top: _Table, session: str, model: str, folder: Path | None, weights: str | None = None
    ) -> Self:
        """Build from a parsed file; given a ``folder`` it is a draft, which may leave defaults out."""
        draft = folder is not None
        # checked before anything else: another version may mean other keys
        if top.integer("version") != VERSION:
            raise ConfigError(f"version is not {VERSION}", hint="update privinfer at the older party")
        roles = top.table("roles")
        model_owner = roles.text("model_owner")
        evaluators = roles.texts("evaluators", MAX_PARTIES) if roles.has("evaluators") else ()
        helper = roles.text("helper") if roles.has("helper") else None
        key_holders = roles.texts("key_holders", MAX_PARTIES) if roles.has("key_holders") else ()
        threshold = roles.integer("threshold") if roles.has("threshold") else len(key_holders)
        roles.finish()
        backend = top.text("backend")
        parties = tuple(_party(entry, folder) for entry in top.tables("parties", MAX_PARTIES))
        inputs = top.table("inputs").mapping(MAX_INPUTS)
        receivers = top.table("receivers").mapping(MAX_INPUTS)
        deadline = top.seconds("deadline", DEFAULT_DEADLINE if draft else None)
        connect_timeout = top.seconds("connect_timeout", DEFAULT_CONNECT_TIMEOUT if draft else None)
        insecure = () if draft and not top.has("insecure") else top.texts("insecure", 64)
        comparison = top.text("comparison") if top.has("comparison") else "auto"
        round_trip_ms = top.positive("round_trip_ms", 0.2)
        mbit_per_s = top.positive("mbit_per_s", 10_000.0)
        nonlinear = top.text("nonlinear") if top.has("nonlinear") else NONLINEAR[0]
        terms = _terms(top.table("terms")) if top.has("terms") else Terms()
        top.finish()
        if weights is not None:
            if terms.weights not in (None, weights):
                raise ConfigError("terms.weights is not the commitment that the opening opens")
            terms = dataclasses.replace(terms, weights=weights)
        return cls(
            session=session,
            backend=backend,
            model=model,
            parties=parties,
            model_owner=model_owner,
            evaluators=evaluators,
            helper=helper,
            inputs=inputs,
            receivers=receivers,
            deadline=deadline,
            connect_timeout=connect_timeout,
            insecure=insecure,
            comparison=comparison,
            round_trip_ms=round_trip_ms,
            mbit_per_s=mbit_per_s,
            key_holders=key_holders,
            threshold=threshold,
            nonlinear=nonlinear,
            terms=terms,
        )

    def dumps(self) -> str:
        """Return the session file in the one form this library writes."""
        lines = [
            f"version = {VERSION}",
            f"session = {_quote(self.session)}",
            f"backend = {_quote(self.backend)}",
            f"model = {_quote(self.model)}",
            f"deadline = {float(self.deadline)!r}",
            f"connect_timeout = {float(self.connect_timeout)!r}",
            f"insecure = {_array(self.insecure)}",
            f"comparison = {_quote(self.comparison)}",
            f"round_trip_ms = {float(self.round_trip_ms)!r}",
            f"mbit_per_s = {float(self.mbit_per_s)!r}",
            # said only where it is not the default: files from before it existed keep their bytes
            *([] if self.nonlinear == NONLINEAR[0] else [f"nonlinear = {_quote(self.nonlinear)}"]),
            "",
            "[roles]",
            f"model_owner = {_quote(self.model_owner)}",
            f"evaluators = {_array(self.evaluators)}",
        ]
        if self.helper is not None:
            lines.append(f"helper = {_quote(self.helper)}")
        if self.key_holders:
            lines.append(f"key_holders = {_array(self.key_holders)}")
            lines.append(f"threshold = {self.threshold}")
        if self.terms != Terms():
            lines += _terms_lines(self.terms)
        for title, table in (("inputs", self.inputs), ("receivers", self.receivers)):
            lines += ["", f"[{title}]"]
            lines += [f"{_key(name)} = {_quote(party)}" for name, party in table.items()]
        for party in self.parties:
            pem = party.certificate_pem.strip()
            lines += [
                "",
                "[[parties]]",
                f"name = {_quote(party.name)}",
                f"address = {_quote(party.address)}",
                f'certificate = """\n{pem}\n"""',
            ]
        return "\n".join(lines) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :attr:`raw` to a new file.

        Raises
        ------
        ConfigError
            If the file exists or cannot be written.
        """
        try:
            with open(path, "xb") as file:
                file.write(self.raw)
        except FileExistsError as exc:
            raise ConfigError(f"{os.fspath(path)} exists already") from exc
        except OSError as exc:
            raise ConfigError(f"cannot write {os.fspath(path)}: {_reason(exc)}") from exc

    # -- questions -------------------------------------------------------------------------------

    def digest(self) -> bytes:
        """SHA-256 of :attr:`raw`: files that differ in one byte, even in a comment, do not agree."""
        return hashlib.sha256(self.raw).digest()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parties in order."""
        return tuple(party.name for party in self.parties)

    def party(self, name: str) -> Party:
        """Return the party of that name.

        Raises
        ------
        ConfigError
            If there is none.
        """
        for party in self.parties:
            if party.name == name:
                return party
        raise ConfigError(f"{name} is not a party of this session", hint=f"it has {', '.join(self.names)}")

    def roles_of(self, name: str) -> list[str]:
        """Return a party's roles, in this order.

        Of owner, model_owner, evaluator, helper, key_holder, receiver.
        """
        self.party(name)
        held = {
            "owner": name in self.inputs.values(),
            "model_owner": name == self.model_owner,
            "evaluator": name in self.evaluators,
            "helper": name == self.helper,
            "key_holder": name in self.key_holders,
            "receiver": name in self.receivers.values(),
        }
        return [role for role, holds in held.items() if holds]

    def __hash__(self) -> int:
        return hash(self.digest())


# -- validation ------------------------------------------------------------------------------------


def _validate(m: Manifest) -> None:
    """Check everything that does not depend on how the manifest was made."""
    if not isinstance(m.session, str) or not _HEX32.fullmatch(m.session):
        raise ConfigError("session is not 32 lower-case hex digits")
    if not isinstance(m.model, str) or not _HEX64.fullmatch(m.model):
        raise ConfigError("model is not 64 lower-case hex digits")
    if m.backend not in BACKENDS:
        raise ConfigError(f"backend is none of {', '.join(BACKENDS)}")
    for key, seconds in (("deadline", m.deadline), ("connect_timeout", m.connect_timeout)):
        _check_seconds(key, seconds)
    if m.comparison not in COMPARISONS:
        raise ConfigError(f"comparison is none of {', '.join(COMPARISONS)}")
    if m.nonlinear not in NONLINEAR:
        raise ConfigError(f"nonlinear is none of {', '.join(NONLINEAR)}")
    if m.nonlinear != NONLINEAR[0] and m.backend != "ckks":
        raise ConfigError(
            "nonlinear makes sense for ckks only", hint="mpc computes what is not linear exactly anyway"
        )
    for key, number in (("round_trip_ms", m.round_trip_ms), ("mbit_per_s", m.mbit_per_s)):
        _check_positive(key, number)
    for i, option in enumerate(m.insecure):
        if not isinstance(option, str) or not _INSECURE.fullmatch(option):
            raise ConfigError(f"insecure[{i}] is not the name of an option")
    if len(set(m.insecure)) != len(m.insecure):
        raise ConfigError("insecure names an option twice")
    _validate_parties(m.parties)
    _validate_roles(m)


def _validate_parties(parties: tuple[Party, ...]) -> None:
    if not 2 <= len(parties) <= MAX_PARTIES:
        raise ConfigError(f"parties must be 2 to {MAX_PARTIES}")
    now = dt.datetime.now(dt.UTC)
    seen: dict[object, int] = {}
    for i, party in enumerate(parties):
        key = f"parties[{i}]"
        check_name(party.name, f"{key}.name")
        if _split_address(party.address) is None:
            raise ConfigError(f"{key}.address is not host:port", culprit=party.name)
        try:
            identity = party.identity
        except ConfigError as exc:
            raise ConfigError(f"{key}.certificate: {exc.message}", culprit=party.name, hint=exc.hint) from exc
        for what, value in (
            ("name", party.name),
            ("address", (party.host.lower(), party.port)),
            ("certificate", identity.der),
        ):
            # values of different kinds never compare equal, so one dictionary does
            if (other := seen.setdefault((what, value), i)) != i:
                raise ConfigError(f"{key}.{what} is also that of parties[{other}]", culprit=party.name)
        if identity.name != party.name:
            raise ConfigError(f"{key}.certificate bears the name {identity.name}", culprit=party.name)
        if now > identity.not_after:
            raise ConfigError(f"{key}.certificate has expired", culprit=party.name, hint=_KEYGEN)
        if now < identity.not_before:
            raise ConfigError(
                f"{key}.certificate is not valid yet",
                culprit=party.name,
                hint=f"compare the clocks, or {_KEYGEN}",
            )


def _validate_roles(m: Manifest) -> None:
    names = {party.name for party in m.parties}
    held: set[str] = set()

    def take(key: str, name: object) -> None:
        if not isinstance(name, str) or name not in names:
            raise ConfigError(f"{key} names a party that is not listed")
        held.add(name)

    take("roles.model_owner", m.model_owner)
    for i, name in enumerate(m.evaluators):
        take(f"roles.evaluators[{i}]", name)
    if len(set(m.evaluators)) != len(m.evaluators):
        raise ConfigError("roles.evaluators names a party twice")
    if m.helper is not None:
        take("roles.helper", m.helper)
    _validate_holders(m, take)
    for title, table in (("inputs", m.inputs), ("receivers", m.receivers)):
        if not 1 <= len(table) <= MAX_INPUTS:
            raise ConfigError(f"{title} must have 1 to {MAX_INPUTS} entries")
        for key, name in table.items():
            _check_key(title, key)
            take(f"{title}.{key}", name)
    for name in m.terms.doors:
        if name not in m.inputs:
            raise ConfigError(f"terms.doors names {name!r}, which is no input")
    if m.terms.consent is not None:
        take("terms.consent", m.terms.consent)
        if m.terms.weights is None:
            raise ConfigError(
                "terms.weights is missing, and a consent names them",
                hint="`privinfer commit` makes an opening, `privinfer seal --opening` puts it in",
            )
    exact = m.nonlinear == "exact"
    if m.backend == "mpc" or exact:
        what = "exact mode" if exact else m.backend
        if len(m.evaluators) != 2:
            raise ConfigError(f"roles.evaluators must be two for {what}")
        if m.helper is None:
            raise ConfigError(f"roles.helper is missing, and {what} needs one")
        if m.helper in m.evaluators:
            raise ConfigError(
                "roles.helper is an evaluator too",
                culprit=m.helper,
                hint="evaluators and helper are three organisations: any two together learn everything",
            )
    for party in m.parties:
        if party.name not in held:
            raise ConfigError(
                "party has no role", culprit=party.name, hint="give it a role or take it off the list"
            )


def _validate_holders(m: Manifest, take: Callable[[str, object], None]) -> None:
    """Check who holds shares of the joint key."""
    for i, name in enumerate(m.key_holders):
        take(f"roles.key_holders[{i}]", name)
    holders = len(m.key_holders)
    if len(set(m.key_holders)) != holders:
        raise ConfigError("roles.key_holders names a party twice")
    if m.backend != "ckks":
        if m.key_holders or m.threshold:
            raise ConfigError("roles.key_holders makes sense for ckks only")
        return
    exact = m.nonlinear == "exact"
    if not exact and (m.evaluators or m.helper is not None):
        raise ConfigError(
            "ckks has neither evaluators nor a helper",
            hint="the model owner computes, key holders open; or set nonlinear to exact",
        )
    if holders < 2:
        raise ConfigError("roles.key_holders must be two or more for ckks")
    if isinstance(m.threshold, bool) or not isinstance(m.threshold, int) or not 1 <= m.threshold <= holders:
        raise ConfigError(
            f"roles.threshold is not in 1..{holders}, the number of key holders",
            hint="leave it out: then all of them are needed",
        )
    if exact and m.threshold != holders:
        raise ConfigError("roles.threshold has to name all key holders in exact mode", hint="leave it out")


def _check_seconds(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{key} is not a number of seconds")
    if not 0 < value <= MAX_SECONDS:  # false for NaN too
        raise ConfigError(f"{key} must lie above 0 and not above {MAX_SECONDS:g} seconds")
    return float(value)


def _check_positive(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_NUMBER:
        raise ConfigError(f"{key} is not a number above 0 and not above {MAX_NUMBER:g}")
    return float(value)


def _check_key(title: str, key: object) -> str:
    if not isinstance(key, str) or not 1 <= len(key) <= 128 or not key.isprintable():
        raise ConfigError(f"{title} has a name that is not 1 to 128 printable characters")
    return key


def _split_address(address: str) -> tuple[str, int] | None:
    """Split ``host:port`` or ``[ipv6]:port``; None if it is neither."""
    host, colon, digits = address.rpartition(":")
    if not colon or not re.fullmatch(r"[1-9][0-9]{0,4}", digits) or int(digits) > 65535:
        return None
    if host.startswith("[") and host.endswith("]"):
        try:
            ip: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            return None
        if "%" in host:  # a zone means something on one machine only
            return None
    else:
        if len(host) > 253 or not _HOST.fullmatch(host):
            return None
        if not re.fullmatch(r"[0-9.]+", host):
            return host.lower(), int(digits)
        try:
            ip = ipaddress.IPv4Address(host)
        except ValueError:
            return None
    if ip.is_unspecified or ip.is_multicast:  # nobody can be dialled there
        return None
    return str(ip), int(digits)


# -- reading ---------------------------------------------------------------------------------------


def _party(entry: _Table, folder: Path | None) -> Party:
    name = check_name(entry.text("name"), entry.path("name"))
    address = _split_address(entry.text("address"))
    if address is None:
        raise ConfigError(
            f"{entry.path('address')} is not host:port",
            culprit=name,
            hint="for example 192.0.2.7:7001, hospital.example:7001 or [2001:db8::7]:7001",
        )
    if folder is None or entry.has("certificate"):
        if entry.has("certificate_file"):
            raise ConfigError(
                f"{entry.path('certificate_file')} cannot stand here",
                culprit=name,
                hint=_SEAL if folder is None else "give either certificate or certificate_file",
            )
        pem = entry.text("certificate")
    else:
        file = folder / entry.text("certificate_file")
        try:
            pem = _read(file, MAX_PEM, "certificate").decode("ascii")
        except UnicodeDecodeError as exc:
            raise ConfigError(f"{entry.path('certificate_file')} is not a PEM file", culprit=name) from exc
        except ConfigError as exc:
            raise ConfigError(f"{entry.path('certificate_file')}: {exc.message}", culprit=name) from exc
    entry.finish()
    try:
        pem = PublicIdentity.from_certificate(pem).pem  # in one form, whatever line ends it came with
    except ConfigError as exc:
        raise ConfigError(f"{entry.path('certificate')}: {exc.message}", culprit=name, hint=exc.hint) from exc
    return Party(name, address[0], address[1], pem)


def _terms(table: _Table) -> Terms:
    release = Release()
    if table.has("release"):
        found = table.table("release")
        whole = {k: found.integer(k) for k in ("decimals", "answers") if found.has(k)}
        rest = ("epsilon", "delta", "sensitivity", "epsilon_budget", "delta_budget", "hours")
        real = {k: found.positive(k, 0.0) for k in rest if found.has(k)}
        found.finish()
        release = Release(**whole, **real)  # type: ignore[arg-type]
    terms = Terms(
        purpose=table.text("purpose") if table.has("purpose") else "",
        expires=table.moment("expires") if table.has("expires") else None,
        consent=table.text("consent") if table.has("consent") else None,
        weights=table.text("weights") if table.has("weights") else None,
        receipts=table.flag("receipts") if table.has("receipts") else False,
        release=release,
        doors=table.table("doors").mapping(MAX_INPUTS) if table.has("doors") else {},
    )
    table.finish()
    return terms


class _Table:
    """A TOML table that hands out each key once, with the type asked for, and refuses the rest."""

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self._values = values
        self._where = where
        self._left = set(values)

    def path(self, key: str) -> str:
        shown = key if _BARE.fullmatch(key) and len(key) <= 64 else _quote(key[:64])
        return f"{self._where}.{shown}" if self._where else shown

    def has(self, key: str) -> bool:
        return key in self._values

    def required(self, key: str, hint: str | None = None) -> object:
        if key not in self._values:
            raise ConfigError(f"{self.path(key)} is missing", hint=hint)
        self._left.discard(key)
        return self._values[key]

    def finish(self) -> None:
        if self._left:
            raise ConfigError(f"{self.path(min(self._left))} is not a known key")

    def text(self, key: str) -> str:
        value = self.required(key)
        if not isinstance(value, str):
            raise ConfigError(f"{self.path(key)} is not a string")
        return value

    def integer(self, key: str) -> int:
        value = self.required(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ConfigError(f"{self.path(key)} is not an integer")
        return value

    def flag(self, key: str) -> bool:
        value = self.required(key)
        if not isinstance(value, bool):
            raise ConfigError(f"{self.path(key)} is neither true nor false")
        return value

    def moment(self, key: str) -> dt.datetime:
        value = self.required(key)
        if not isinstance(value, dt.datetime) or value.tzinfo is None:
            raise ConfigError(
                f"{self.path(key)} is not a time with its zone", hint="for example 2027-01-31T12:00:00Z"
            )
        return value

    def seconds(self, key: str, default: float | None) -> float:
        if default is not None and not self.has(key):
            return default
        return _check_seconds(self.path(key), self.required(key))

    def positive(self, key: str, default: float) -> float:
        return _check_positive(self.path(key), self.required(key)) if self.has(key) else default

    def texts(self, key: str, most: int) -> tuple[str, ...]:
        items: list[str] = []
        for i, value in enumerate(self._list(key, most)):
            if not isinstance(value, str):
                raise ConfigError(f"{self.path(key)}[{i}] is not a string")
            items.append(value)
        return tuple(items)

    def table(self, key: str) -> _Table:
        value = self.required(key)
        if not isinstance(value, dict):
            raise ConfigError(f"{self.path(key)} is not a table")
        return _Table(value, self.path(key))

    def tables(self, key: str, most: int) -> list[_Table]:
        found: list[_Table] = []
        for i, value in enumerate(self._list(key, most)):
            if not isinstance(value, dict):
                raise ConfigError(f"{self.path(key)}[{i}] is not a table")
            found.append(_Table(value, f"{self.path(key)}[{i}]"))
        return found

    def mapping(self, most: int) -> dict[str, str]:
        if not 1 <= len(self._values) <= most:
            raise ConfigError(f"{self._where} must have 1 to {most} entries")
        return {_check_key(self._where, key): self.text(key) for key in self._values}

    def _list(self, key: str, most: int) -> list[object]:
        value = self.required(key)
        if not isinstance(value, list):
            raise ConfigError(f"{self.path(key)} is not an array")
        if len(value) > most:
            raise ConfigError(f"{self.path(key)} has more than {most} entries")
        return value


def _parse(raw: bytes) -> dict[str, object]:
    if len(raw) > MAX_FILE:
        raise ConfigError(f"session file is longer than {MAX_FILE} bytes")
    if any(len(line) > MAX_LINE for line in raw.split(b"\n")):
        raise ConfigError(f"session file has a line of more than {MAX_LINE} bytes")
    try:
        return tomllib.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as exc:
        raise ConfigError("session file is not UTF-8") from exc
    except (ValueError, RecursionError) as exc:  # ValueError: bad TOML, and numbers with too many digits
        where = re.search(r"line \d+", str(exc))
        raise ConfigError(f"session file is not TOML{f' ({where[0]})' if where else ''}") from exc


def _read(path: Path, most: int, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except OSError as exc:
        raise ConfigError(f"cannot read {what} {path}: {_reason(exc)}") from exc
    except ValueError as exc:  # a zero byte in the path
        raise ConfigError(f"cannot read {what}: not a path") from exc
    if len(data) > most:
        raise ConfigError(f"{what} {path} is longer than {most} bytes")
    return data


def _reason(exc: OSError) -> str:
    return (exc.strerror or type(exc).__name__).lower()


# -- writing ---------------------------------------------------------------------------------------


def _quote(text: str) -> str:
    """Return a TOML basic string."""
    parts = []
    for char in text:
        if char in '"\\':
            parts.append("\\" + char)
        elif ord(char) < 0x20 or ord(char) == 0x7F:
            parts.append(f"\\u{ord(char):04X}")
        else:
            parts.append(char)
    return '"' + "".join(parts) + '"'


def _terms_lines(terms: Terms) -> list[str]:
    lines = ["", "[terms]", f"purpose = {_quote(terms.purpose)}"]
    if terms.expires is not None:
        lines.append(f"expires = {terms.expires.isoformat()}")
    for key in ("consent", "weights"):
        if (value := getattr(terms, key)) is not None:
            lines.append(f"{key} = {_quote(value)}")
    lines.append(f"receipts = {str(terms.receipts).lower()}")
    if terms.release != Release():
        lines += ["", "[terms.release]"]
        for key in Release.__dataclass_fields__:
            value = getattr(terms.release, key)
            if value != getattr(Release(), key):
                lines.append(f"{key} = {value!r}")
    if terms.doors:
        lines += ["", "[terms.doors]"]
        lines += [f"{_key(name)} = {_quote(door)}" for name, door in terms.doors.items()]
    return lines


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _quote(name)


def _array(items: tuple[str, ...]) -> str:
    return "[" + ", ".join(map(_quote, items)) + "]"
