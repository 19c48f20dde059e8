"""The session file: who takes part, in which role, under which deadlines; every party holds the same bytes.

A draft names certificates by file; sealing it embeds them, draws the session identifier and fixes the
model. From then on the SHA-256 of the file's bytes is what the parties compare before anything else.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from privinfer.errors import ConfigError
from privinfer.session import files, toml
from privinfer.session.identity import MAX_PEM, PublicIdentity, check_name
from privinfer.session.terms import Release, Terms

VERSION = 1
MAX_PARTIES = 64
MAX_INPUTS = 256
COMPARISONS = ("auto", "fss", "blinded")
BACKENDS = ("plain", "mpc", "ckks", "crypten")
NONLINEAR = ("polynomial", "exact")
DEFAULT_DEADLINE = 30.0
DEFAULT_CONNECT_TIMEOUT = 60.0
_HEX32 = re.compile(r"[0-9a-f]{32}")
_HEX64 = re.compile(r"[0-9a-f]{64}")
_INSECURE = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
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
        return cls.loads(files.read(Path(path), toml.MAX_FILE, "session file"))

    @classmethod
    def loads(cls, raw: bytes) -> Self:
        """Read the bytes of a sealed session file; see :meth:`load`."""
        top = toml.Table(toml.parse(raw), "")
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
        top = toml.Table(toml.parse(files.read(path, toml.MAX_FILE, "draft")), "")
        if top.has("model") and top.text("model") != model_hash:
            raise ConfigError("model is not the one the session is sealed for")
        if top.has("session"):
            top.text("session")
        return cls._build(top, secrets.token_hex(16), model_hash, path.parent, weights)

    @classmethod
    def _build(
        cls, top: toml.Table, session: str, model: str, folder: Path | None, weights: str | None = None
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
            f"session = {toml.quote(self.session)}",
            f"backend = {toml.quote(self.backend)}",
            f"model = {toml.quote(self.model)}",
            f"deadline = {float(self.deadline)!r}",
            f"connect_timeout = {float(self.connect_timeout)!r}",
            f"insecure = {toml.array(self.insecure)}",
            f"comparison = {toml.quote(self.comparison)}",
            f"round_trip_ms = {float(self.round_trip_ms)!r}",
            f"mbit_per_s = {float(self.mbit_per_s)!r}",
            # said only where it is not the default: files from before it existed keep their bytes
            *([] if self.nonlinear == NONLINEAR[0] else [f"nonlinear = {toml.quote(self.nonlinear)}"]),
            "",
            "[roles]",
            f"model_owner = {toml.quote(self.model_owner)}",
            f"evaluators = {toml.array(self.evaluators)}",
        ]
        if self.helper is not None:
            lines.append(f"helper = {toml.quote(self.helper)}")
        if self.key_holders:
            lines.append(f"key_holders = {toml.array(self.key_holders)}")
            lines.append(f"threshold = {self.threshold}")
        if self.terms != Terms():
            lines += _terms_lines(self.terms)
        for title, table in (("inputs", self.inputs), ("receivers", self.receivers)):
            lines += ["", f"[{title}]"]
            lines += [f"{toml.bare(name)} = {toml.quote(party)}" for name, party in table.items()]
        for party in self.parties:
            pem = party.certificate_pem.strip()
            lines += [
                "",
                "[[parties]]",
                f"name = {toml.quote(party.name)}",
                f"address = {toml.quote(party.address)}",
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
        files.write_new(path, self.raw)

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
        toml.check_seconds(key, seconds)
    if m.comparison not in COMPARISONS:
        raise ConfigError(f"comparison is none of {', '.join(COMPARISONS)}")
    if m.nonlinear not in NONLINEAR:
        raise ConfigError(f"nonlinear is none of {', '.join(NONLINEAR)}")
    if m.nonlinear != NONLINEAR[0] and m.backend != "ckks":
        raise ConfigError(
            "nonlinear makes sense for ckks only", hint="mpc computes what is not linear exactly anyway"
        )
    for key, number in (("round_trip_ms", m.round_trip_ms), ("mbit_per_s", m.mbit_per_s)):
        toml.check_positive(key, number)
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
        if toml.split_address(party.address) is None:
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
            toml.check_key(title, key)
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


# -- reading ---------------------------------------------------------------------------------------


def _party(entry: toml.Table, folder: Path | None) -> Party:
    name = check_name(entry.text("name"), entry.path("name"))
    address = toml.split_address(entry.text("address"))
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
            pem = files.read(file, MAX_PEM, "certificate").decode("ascii")
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


def _terms(table: toml.Table) -> Terms:
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


def _terms_lines(terms: Terms) -> list[str]:
    lines = ["", "[terms]", f"purpose = {toml.quote(terms.purpose)}"]
    if terms.expires is not None:
        lines.append(f"expires = {terms.expires.isoformat()}")
    for key in ("consent", "weights"):
        if (value := getattr(terms, key)) is not None:
            lines.append(f"{key} = {toml.quote(value)}")
    lines.append(f"receipts = {str(terms.receipts).lower()}")
    if terms.release != Release():
        lines += ["", "[terms.release]"]
        for key in Release.__dataclass_fields__:
            value = getattr(terms.release, key)
            if value != getattr(Release(), key):
                lines.append(f"{key} = {value!r}")
    if terms.doors:
        lines += ["", "[terms.doors]"]
        lines += [f"{toml.bare(name)} = {toml.quote(door)}" for name, door in terms.doors.items()]
    return lines
