"""`privinfer doctor`: what may keep a party from taking part, each with a hint."""

from __future__ import annotations

import datetime as dt
import importlib.util
import os
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from privinfer import _kernels
from privinfer.cli.common import JsonOption, say_json
from privinfer.errors import ConfigError, PrivinferError
from privinfer.session.identity import Identity
from privinfer.session.manifest import Manifest

# Extra: (module that it brings, what it is for)
EXTRAS = {
    "onnx": ("onnx", "the model owner's ONNX files"),
    "torch": ("torch", "models from torch"),
    "ckks": ("tenseal", "ciphertexts from and to SEAL"),
}
NEEDED = ("numpy", "cbor2", "cryptography", "Crypto", "rich", "typer")
SOON = dt.timedelta(days=14)
SKEW = 120.0  # seconds a file may seem to come from the future
EARLIEST = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)  # no clock of a machine that runs this is before


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    what : str
    state : {"ok", "note", "bad"}
        A note does not stop anything.
    said : str
    hint : str or None
    """

    what: str
    state: str
    said: str
    hint: str | None = None


def doctor(
    session: Annotated[Path | None, typer.Option(help="Session file to look at too.")] = None,
    party: Annotated[str | None, typer.Option(help="Which party of it this machine is.")] = None,
    identity: Annotated[Path | None, typer.Option(help="Its key file; NAME.key by default.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Look at CPU, packages, clock and, for a session, certificates, key and port; exit 11 if any is bad."""
    if party is not None and session is None:
        raise ConfigError("--party goes with --session", hint="--session session.toml")
    if identity is not None and party is None:
        raise ConfigError("--identity goes with --party", hint="--party NAME")
    found = list(examine(session, party, identity))
    if as_json:
        say_json({"schema": "privinfer.doctor/1", "findings": [asdict(f) for f in found]})
    else:
        for one in found:
            typer.echo(f"{one.state:<5} {one.what}: {one.said}")
            if one.hint:
                typer.echo(f"      hint: {one.hint}")
    if any(f.state == "bad" for f in found):
        raise typer.Exit(ConfigError.exit_code)


def examine(session: Path | None, party: str | None, identity: Path | None) -> Iterator[Finding]:
    """Everything that is looked at, in order."""
    yield from _machine()
    yield from _packages()
    yield from _clock(session)
    if session is None:
        return
    try:
        manifest = Manifest.load(session)
    except PrivinferError as error:
        yield Finding("session", "bad", str(error), error.hint or "get the sealed file again")
        return
    yield Finding("session", "ok", f"{len(manifest.parties)} parties, {manifest.backend}")
    yield from _certificates(manifest)
    if party is not None:
        yield from _party(manifest, party, identity or Path(f"{party}.key"))


def _machine() -> Iterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", "ok", version)
    features = _kernels.cpu_features()
    has = ", ".join(sorted(k for k, v in features.items() if v)) or "none"
    if features.get("aes"):
        yield Finding("cpu", "ok", f"{has}; kernels on {_kernels.current_path()}")
    else:
        yield Finding(
            "cpu",
            "note",
            f"no AES instructions ({has})",
            "it works, slowly; in a virtual machine pass the CPU on",
        )
    threads, cores = _kernels.get_threads(), os.cpu_count() or 1
    yield Finding("threads", "ok", f"{threads} of {cores} CPUs")


def _packages() -> Iterator[Finding]:
    for module in NEEDED:
        if not _there(module):
            yield Finding(
                "packages", "bad", f"{module} is missing", "pip install --force-reinstall privinfer"
            )
    for extra, (module, purpose) in EXTRAS.items():
        if _there(module):
            yield Finding(f"extra {extra}", "ok", f"{module}, for {purpose}")
        else:
            hint = f"if you need it: pip install 'privinfer[{extra}]'"
            yield Finding(f"extra {extra}", "note", f"{module} is missing, for {purpose}", hint)


def _there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _clock(session: Path | None) -> Iterator[Finding]:
    now = dt.datetime.now(dt.UTC)
    hint = "set the clock, best by NTP (timedatectl set-ntp true)"
    if now < EARLIEST:
        yield Finding("clock", "bad", f"{now:%Y-%m-%d} is long ago", hint)
        return
    if session is not None and session.exists():
        ahead = session.stat().st_mtime - time.time()
        if ahead > SKEW:
            yield Finding("clock", "bad", f"the session file is {ahead:.0f} s in this clock's future", hint)
            return
    yield Finding("clock", "ok", f"{now:%Y-%m-%d %H:%M:%S} UTC; compare it with the other parties'")


def _certificates(manifest: Manifest) -> Iterator[Finding]:
    """Those that have expired did not pass `Manifest.load`."""
    now = dt.datetime.now(dt.UTC)
    for one in manifest.parties:
        left = one.identity.not_after - now
        if left < SOON:
            yield Finding(
                "certificate",
                "note",
                f"{one.name}: {left.days} days left",
                f"{one.name} makes a new one with `privinfer keygen`, then seal again",
            )
        else:
            yield Finding("certificate", "ok", f"{one.name}: until {one.identity.not_after:%Y-%m-%d}")
    try:
        manifest.terms.check_time()
    except PrivinferError as error:
        yield Finding("terms", "bad", str(error), error.hint or "seal a new session")


def _party(manifest: Manifest, name: str, key: Path) -> Iterator[Finding]:
    try:
        party = manifest.party(name)
        own = Identity.load(key)
    except PrivinferError as error:
        yield Finding("key", "bad", str(error), error.hint or f"`privinfer keygen {name}` makes one")
        return
    if own.fingerprint != party.identity.fingerprint:
        hint = "use the key whose certificate was sealed into the session"
        yield Finding("key", "bad", f"{key} is not the key that the session has for {name}", hint)
    else:
        yield Finding("key", "ok", f"{key} fits")
    if name == manifest.names[-1]:
        yield Finding("port", "ok", f"{name} is the last in the list and only dials")
        return
    yield _port(party.host, party.port)


def _port(host: str, port: int) -> Finding:
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        return Finding("port", "bad", f"{host} has no address", "check its spelling, or DNS")
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen()
        except OSError as error:
            why = (error.strerror or "cannot be used").lower()
            hint = (
                "end what listens there (ss -ltnp), or seal the session with another port"
                if "in use" in why
                else "the address in the session file has to be one of this machine"
            )
            return Finding("port", "bad", f"{host}:{port}: {why}", hint)
    return Finding("port", "ok", f"{host}:{port} is free; the others have to reach it through firewalls")
