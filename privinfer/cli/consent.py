"""`privinfer consent`: a patient grants, looks at and revokes; an owner notes revocations in its ledger."""

from __future__ import annotations

import datetime as dt
import time
from pathlib import Path
from typing import Annotated

import typer

from privinfer.cli.fragment import IdentityOption, load_certificate, load_identity
from privinfer.errors import ConfigError
from privinfer.runtime.uses import Uses
from privinfer.session import consent as documents
from privinfer.session.consent import Consent, Revocation, moment
from privinfer.session.manifest import Manifest

app = typer.Typer(no_args_is_help=True, help="Signed consent to the use of data about a person.")

Who = Annotated[str, typer.Argument(help="Name of the party whose terminal this is.")]
UsesOption = Annotated[Path | None, typer.Option(help="Folder of an owner's ledger of consents.")]


@app.command()
def grant(
    name: Who,
    until: Annotated[str, typer.Option(help="When it ends: 2027-01-31, or with a time, UTC.")],
    session: Annotated[Path, typer.Option(help="Sealed session file that asks for it.")] = Path(
        "session.toml"
    ),
    start: Annotated[str | None, typer.Option("--from", help="When it begins; now by default.")] = None,
    uses: Annotated[int, typer.Option(min=1, help="Runs in all.")] = 1,
    rows: Annotated[int, typer.Option(min=1, help="Rows of one run.")] = 1,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", help="An input that may be used; all by default.")
    ] = None,
    identity: IdentityOption = None,
    out: Annotated[Path | None, typer.Option(help="New file; NAME.consent by default.")] = None,
) -> None:
    """Sign a consent to what a session file asks for; it holds in later sessions that ask for the same."""
    who = load_identity(name, identity)
    manifest = Manifest.load(session)
    if manifest.terms.consent != name:
        asked = manifest.terms.consent or "nobody"
        raise ConfigError(f"the session asks for the consent of {asked}, not of {name}")
    found = documents.for_session(
        manifest,
        read_time("--until", until),
        inputs=None if inputs is None else tuple(inputs),
        not_before=None if start is None else read_time("--from", start),
        uses=uses,
        rows=rows,
    )
    file = out or Path(f"{name}.consent")
    documents.save(file, found.sign(who))
    typer.echo(f"{file}  for the party {name} of a session, and for nobody else")
    describe(found)


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A consent or a revocation.")],
    certificate: Annotated[
        Path | None, typer.Option(help="The patient's certificate: is it the one that signed?")
    ] = None,
    uses: UsesOption = None,
    owner: Annotated[str | None, typer.Option(help="Whose ledger --uses is.")] = None,
) -> None:
    """Print what a consent or revocation says; its signature is checked."""
    found = documents.from_file(file)
    if certificate is not None and load_certificate(certificate).fingerprint != found.certificate.hex():
        raise ConfigError(f"{file} was not signed with {certificate}", culprit=found.patient)
    describe(found)
    line("signature", "good" if certificate else "good; whose it is, the certificate says: --certificate")
    if uses is not None:
        if owner is None or not isinstance(found, Consent):
            raise ConfigError("--uses goes with --owner NAME and a consent")
        state = existing(uses, owner).state(found)
        line("at " + owner, f"{state.spent} of {found.uses} uses spent")
        if state.revoked is not None:
            line("", f"revoked at {moment(state.revoked)}")


@app.command()
def revoke(
    name: Who,
    file: Annotated[Path, typer.Argument(help="The consent; at an owner, the patient's revocation.")],
    identity: IdentityOption = None,
    uses: Annotated[Path | None, typer.Option(help="At an owner: folder of its ledger of consents.")] = None,
    out: Annotated[Path | None, typer.Option(help="New file; FILE with .revocation by default.")] = None,
) -> None:
    """Sign a revocation (the patient), or note one in a ledger (an owner, with --uses)."""
    found = documents.from_file(file)
    if uses is not None:
        if not isinstance(found, Revocation):
            raise ConfigError(
                f"{file} is a consent, and an owner notes revocations",
                hint="the patient makes one: privinfer consent revoke NAME FILE",
            )
        new = Uses(uses, name).revoke(found, documents.load(file))
        typer.echo(f"{name}: {'noted' if new else 'was noted before'}; consent {found.id.hex()} is refused")
        return
    if not isinstance(found, Consent):
        raise ConfigError(f"{file} is a revocation already", hint="an owner notes it with --uses FOLDER")
    who = load_identity(name, identity)
    target = out or file.with_suffix(".revocation")
    documents.save(target, Revocation(found.id, found.patient, found.certificate, int(time.time())).sign(who))
    typer.echo(f"{target}  for every owner: privinfer consent revoke OWNER {target.name} --uses FOLDER")


def describe(found: Consent | Revocation) -> None:
    """Print the fields of a document."""
    line("consent" if isinstance(found, Consent) else "revokes", found.id.hex())
    line("of", f"{found.patient}, certificate {found.certificate.hex()}")
    if isinstance(found, Revocation):
        line("time", moment(found.time))
        return
    line("inputs", ", ".join(f"{name} of {owner}" for name, owner in sorted(found.inputs.items())))
    line("purpose", found.purpose)
    for name, key in sorted(found.receivers.items()):
        line("receiver", f"{name}, certificate {key.hex()}")
    line("model", found.architecture.hex())
    line("weights", found.weights.hex())
    line("valid", f"{moment(found.not_before)} to {moment(found.until)}")
    line("uses", f"{found.uses}, of at most {found.rows} row{'s' if found.rows > 1 else ''} each")


def line(title: str, value: str) -> None:
    """One field."""
    typer.echo(f"{title:<12} {value}")


def existing(folder: Path, owner: str) -> Uses:
    """A ledger that is there: looking makes none."""
    if not (folder / "uses.sqlite").is_file():
        raise ConfigError(f"{folder} is no ledger of consents")
    return Uses(folder, owner)


def read_time(option: str, text: str) -> dt.datetime:
    """A date or time; UTC where it names no zone."""
    try:
        found = dt.datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{option} {text} is not a time", hint="for example 2027-01-31 or 2027-01-31T12:00"
        ) from None
    return found.replace(tzinfo=dt.UTC) if found.tzinfo is None else found
