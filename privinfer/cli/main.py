"""The `privinfer` command: arguments in, one line of error and one of hint out, never a traceback."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from privinfer import __version__, insecure
from privinfer.backends.base import Phase, Progress, Role
from privinfer.backends.ckks.moving import check_at_home
from privinfer.cli import commit as commit_command
from privinfer.cli import consent as consent_command
from privinfer.cli import demo as demo_command
from privinfer.cli import doctor as doctor_command
from privinfer.cli import door as door_command
from privinfer.cli import estimate as estimate_command
from privinfer.cli import fragment as fragment_command
from privinfer.cli import new as new_command
from privinfer.cli import run as run_command
from privinfer.cli import serve as serve_command
from privinfer.cli import verify as verify_command
from privinfer.cli.common import (
    BitsOption,
    CalibrationOption,
    RangeOption,
    check_writable,
    complain,
    give_outputs,
    load_model,
    pairs,
    write_json,
)
from privinfer.errors import ConfigError, InputError, PrivinferError
from privinfer.graph import ir
from privinfer.io.arrays import read_array
from privinfer.runtime import limits, memory
from privinfer.runtime.attend import MAX_ATTEMPTS, attend
from privinfer.runtime.bring import check_fragments, split
from privinfer.runtime.consents import bring as bring_consent
from privinfer.runtime.party import BACKENDS, Session, check_names
from privinfer.runtime.store import Store
from privinfer.runtime.uses import Uses
from privinfer.session.consent import Consent
from privinfer.session.consent import check as check_covers
from privinfer.session.fragment import Fragment
from privinfer.session.identity import Identity
from privinfer.session.manifest import Manifest
from privinfer.session.sealed import is_sealed

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # its tracebacks would show local variables, shares among them
    help="One neural network over data held by several parties; only the agreed receiver learns the output.",
)

app.add_typer(fragment_command.app, name="fragment")
app.command()(new_command.new)
app.command()(doctor_command.doctor)
app.command()(estimate_command.estimate)
app.command()(run_command.run)
app.command()(run_command.page)
app.command()(serve_command.serve)
app.command()(serve_command.ask)
app.add_typer(consent_command.app, name="consent")
app.add_typer(door_command.app, name="door")

LedgerOption = Annotated[
    Path | None,
    typer.Option(help="Folder in which this party counts answers, where the session limits them."),
]
StoreOption = Annotated[Path | None, typer.Option(help="Folder for what is dealt ahead.")]
OpeningOption = Annotated[
    Path | None, typer.Option(help="What `privinfer commit` wrote, where the session names the weights.")
]


@app.command()
def keygen(
    name: Annotated[str, typer.Argument(help="Name of the party.")],
    out: Annotated[Path, typer.Option(help="Folder for NAME.key and NAME.crt.")] = Path("."),
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long the certificate is valid.")] = 365,
) -> None:
    """Make a party's key (keep it) and certificate (give it to the session)."""
    identity = Identity.generate(name, days)
    key, certificate = out / f"{name}.key", out / f"{name}.crt"
    if certificate.exists():
        raise ConfigError(f"{certificate} exists already", hint="choose another folder with --out")
    identity.save(key)
    certificate.write_text(identity.certificate_pem)
    typer.echo(f"{key}  secret, stays here\n{certificate}  public, for the session file")
    typer.echo(f"sha256 {identity.fingerprint}")


@app.command()
def seal(
    draft: Annotated[Path, typer.Argument(help="Draft of the session file.")],
    model: Annotated[Path, typer.Option(help="The model owner's ONNX file.")],
    out: Annotated[Path, typer.Option(help="Sealed session file, for every party.")] = Path("session.toml"),
    ranges: RangeOption = None,
    comparison_bits: BitsOption = None,
    calibration: CalibrationOption = None,
    opening: OpeningOption = None,
    template: Annotated[
        bool, typer.Option("--template", help="Leave the last party open, for `serve` and `ask`.")
    ] = False,
) -> None:
    """Fix parties, certificates and model in a session file that every party then holds alike."""
    loaded = load_model(model, ranges, comparison_bits, calibration)
    weights = None if opening is None else commit_command.commitment_for(opening, loaded)
    if template:
        if weights is not None:
            raise ConfigError(
                "a template takes no opening", hint=f'weights = "{weights}" in the draft\'s [terms]'
            )
        serve_command.seal_template(draft, loaded.architecture, out)
        return
    manifest = Manifest.seal(draft, loaded.architecture.digest(), weights)
    if manifest.backend not in BACKENDS:
        raise ConfigError(
            f"backend {manifest.backend!r} cannot run between parties", hint=f"known: {', '.join(BACKENDS)}"
        )
    if manifest.backend == insecure.CRYPTEN:
        insecure.require(insecure.CRYPTEN, manifest.insecure)
    limits.refuse(manifest.backend, manifest.terms.release, limits.on_wires(manifest))
    check_names(manifest, loaded.architecture)
    manifest.save(out)
    typer.echo(f"{out}  sha256 {manifest.digest().hex()}")


@app.command()
def commit(
    model: Annotated[Path, typer.Argument(help="The model owner's ONNX file.")],
    identity: Annotated[Path, typer.Option(help="Key file of the model owner: it opens the opening.")],
    out: Annotated[Path | None, typer.Option(help="New file; MODEL with .opening by default.")] = None,
    ranges: RangeOption = None,
    comparison_bits: BitsOption = None,
    calibration: CalibrationOption = None,
) -> None:
    """Commit to a model's weights; `seal --opening` puts the commitment into a session file."""
    loaded = load_model(model, ranges, comparison_bits, calibration)
    file = out or model.with_suffix(".opening")
    made = commit_command.commit(loaded, Identity.load(identity), file)
    typer.echo(f"{file}  secret, stays here; it opens with this identity only\nweights {made}")


@app.command()
def party(
    name: Annotated[str, typer.Argument(help="Which party of the session this is.")],
    session: Annotated[Path, typer.Option(help="Sealed session file.")] = Path("session.toml"),
    identity: Annotated[Path | None, typer.Option(help="Key file; NAME.key by default.")] = None,
    model: Annotated[Path | None, typer.Option(help="ONNX file, for the model owner.")] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME=FILE",
            help="An input: array, fragment, or what its door reads.",
        ),
    ] = None,
    doors: Annotated[
        list[str] | None,
        typer.Option("--door", metavar="NAME=FILE", help="Door file of an input."),
    ] = None,
    fragment_key: Annotated[
        Path | None, typer.Option(help="The owner's CKKS key, for fragments; NAME.ckks by default.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder for the receiver's outputs (.npy).")] = None,
    report: Annotated[Path | None, typer.Option(help="Write this party's report as JSON.")] = None,
    ranges: RangeOption = None,
    comparison_bits: BitsOption = None,
    calibration: CalibrationOption = None,
    store: StoreOption = None,
    attempts: Annotated[
        int,
        typer.Option(min=1, max=MAX_ATTEMPTS, help="Joins, where a party is lost before the online phase."),
    ] = 1,
    receipt: Annotated[
        Path | None,
        typer.Option(help="This party's receipt, where the session asks for them; NAME.receipt by default."),
    ] = None,
    ledger: LedgerOption = None,
    opening: OpeningOption = None,
    consent: Annotated[
        Path | None, typer.Option(help="Signed consent, at the party that has to bring one.")
    ] = None,
    revocation: Annotated[
        list[Path] | None, typer.Option(help="Revocation of an earlier consent, for all owners to note.")
    ] = None,
    uses: Annotated[
        Path | None, typer.Option(help="Folder of an owner's ledger of consents, one for all sessions.")
    ] = None,
) -> None:
    """Take part in one inference as one party; the others run the same command elsewhere."""
    memory.keep_freed()
    sealed = Session.load(session)
    sealed.manifest.party(name)
    # an inference is spent once it has begun, so whatever could stop its end is looked at before
    check_writable(report)
    check_writable(output / "x" if output is not None else None, make=True)
    own = read_inputs(inputs, fragment_key or Path(f"{name}.ckks"), doors, sealed.manifest.terms.doors)
    loaded = own_model(model, ranges, comparison_bits, calibration)
    mine = {k for k, owner in sealed.manifest.inputs.items() if owner == name}
    if set(own) != mine:
        brought = ", ".join(sorted(own)) or "none"
        raise InputError(
            f"{name} has to bring {', '.join(sorted(mine)) or 'no input'}, not {brought}",
            hint="name each of them once with --input NAME=FILE",
        )
    key = Identity.load(identity or Path(f"{name}.key"))
    check_fragments_at_home(sealed, key, own, fragment_key)
    check_consent(sealed.manifest, name, consent, revocation or [], uses)
    if receipt is None and sealed.manifest.terms.receipts:
        receipt = Path(f"{name}.receipt")
    announce(sealed, name)
    done = attend(
        sealed,
        name,
        key,
        own,
        attempts=attempts,
        consent=consent,
        revocations=revocation or [],
        model=loaded,
        progress=teller(name),
        store=store,
        opening=opening,
        receipt=receipt,
        ledger=ledger,
        uses=uses,
    )
    if report is not None:
        write_json(report, done.report)
    result = done.result
    if result is None:
        typer.echo(f"{name}: done; the result is the receiver's alone", err=True)
        return
    give_outputs(result.outputs, output)


@app.command()
def deal(
    name: Annotated[str, typer.Argument(help="Which party of the session this is.")],
    count: Annotated[int, typer.Option(min=1, help="For how many inferences; the same at all parties.")],
    session: Annotated[Path, typer.Option(help="Sealed session file.")] = Path("session.toml"),
    identity: Annotated[Path | None, typer.Option(help="Key file; NAME.key by default.")] = None,
    model: Annotated[Path | None, typer.Option(help="ONNX file, for the model owner.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows of each; the same at all parties.")] = 1,
    store: StoreOption = None,
    ledger: LedgerOption = None,
    budget: Annotated[str, typer.Option(help="Disk this store may take: 500M, 4G.")] = "4G",
    opening: OpeningOption = None,
    ranges: RangeOption = None,
    comparison_bits: BitsOption = None,
    calibration: CalibrationOption = None,
) -> None:
    """Fill the stores before anybody's data come; `party --store` then starts online at once."""
    sealed = Session.load(session)
    sealed.manifest.party(name)
    loaded = own_model(model, ranges, comparison_bits, calibration)
    if store is None and keeps(sealed.manifest, name):
        raise ConfigError(f"{name} keeps part of what is dealt", hint="say where with --store FOLDER")
    key = identity or Path(f"{name}.key")
    announce(sealed, name)
    kept = Store(store, sealed.manifest.digest(), name, read_size(budget)) if store is not None else None
    with sealed.join(
        name, key, model=loaded, progress=teller(name), store=kept, opening=opening, ledger=ledger
    ) as member:
        member.deal(count, batch)
    typer.echo(f"{name}: dealt for {count} inferences of {batch} rows", err=True)


@app.command()
def verify(
    receipts: Annotated[list[Path], typer.Argument(help="Receipts of one join, from one party or several.")],
    session: Annotated[Path | None, typer.Option(help="Sealed session file that they have to be of.")] = None,
    opening: Annotated[
        Path | None, typer.Option(help="A party's secret, to look at what it brought.")
    ] = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--input", metavar="NAME=FILE", help="Values it says it brought.")
    ] = None,
    run: Annotated[int | None, typer.Option(min=0, help="Which run they belong to.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Model it says it served, ONNX.")] = None,
    ranges: RangeOption = None,
    comparison_bits: BitsOption = None,
    calibration: CalibrationOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check receipts, alone and against each other: who diverged first, and whose signature proves it."""
    given = pairs(inputs, "--input", InputError, "NAME=FILE")
    verify_command.run(
        receipts,
        session=session,
        opening=opening,
        inputs={name: Path(file) if is_sealed(file) else read_array(file) for name, file in given.items()},
        weights=None if weights is None else load_model(weights, ranges, comparison_bits, calibration),
        number=run,
        as_json=as_json,
    )


@app.command()
def demo(
    patient: Annotated[int, typer.Option(min=0, help="Which synthetic test patient.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="How many patients from there on.")] = 1,
    backend: Annotated[str, typer.Option(help="mpc, ckks or exact (ckks, with exact ReLUs).")] = "mpc",
    report: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
    examples: Annotated[
        Path | None, typer.Option(help="Folder `examples/cohort` of the source tree.")
    ] = None,
) -> None:
    """X-ray, genotypes and bloods of a synthetic patient, six processes, one answer for her alone."""
    check_writable(report)
    found = demo_command.run(patient, batch, examples, backend)
    if report is not None:
        write_json(report, found)


def keeps(manifest: Manifest, name: str) -> bool:
    """Whether a party keeps something of what is dealt ahead."""
    if manifest.backend not in BACKENDS:
        return False  # joining says so
    backend = BACKENDS[manifest.backend]()
    return any(backend.keeps(role) for role, party in backend.cast(manifest).items() if party == name)


def own_model(
    model: Path | None, ranges: list[str] | None, comparison_bits: int | None, calibration: Path | None
) -> ir.Model | None:
    """The model owner's model; options of it make no sense without."""
    if model is not None:
        return load_model(model, ranges, comparison_bits, calibration)
    for option, given in (
        ("--range", ranges),
        ("--comparison-bits", comparison_bits),
        ("--calibration", calibration),
    ):
        if given is not None:
            raise ConfigError(f"{option} goes with --model", hint="only the model owner needs it")
    return None


def read_inputs(
    given: list[str] | None, key: Path, doors: list[str] | None, agreed: Mapping[str, str]
) -> dict[str, Any]:
    """Arrays, through the doors of the session, and fragments, which `key` will open."""
    found: dict[str, Any] = {}
    inputs = pairs(given, "--input", InputError, "NAME=FILE")
    chosen = pairs(doors, "--door", ConfigError, "NAME=FILE")
    door_command.check_names(chosen, inputs)
    for name, file in inputs.items():
        if Path(file).suffix == ".fragment" or is_sealed(file):
            found[name] = Fragment(Path(file), key)
        else:
            door = Path(chosen[name]) if name in chosen else None
            found[name] = door_command.bring(name, file, door, agreed.get(name))
    return found


def check_fragments_at_home(
    sealed: Session, identity: Identity, own: dict[str, Any], key: Path | None
) -> None:
    """Refuse fragments that fit no session of this party's, before the others are called."""
    _, fragments = split(own)
    if key is not None and not fragments:
        raise ConfigError("--fragment-key goes with a fragment", hint="--input NAME=FILE.fragment")
    if fragments:
        check_fragments(sealed.manifest.backend, fragments, None)
    for name, fragment in fragments.items():
        check_at_home(fragment, identity, name)


def check_consent(
    manifest: Manifest, name: str, consent: Path | None, revocations: list[Path], uses: Path | None
) -> None:
    """Refuse, before the others are called, what a run would refuse of this party's own."""
    ledger = None if uses is None else Uses(uses, name)
    brought = bring_consent(manifest, name, consent, revocations, ledger)
    if brought.consent is not None:
        check_covers(Consent.read(brought.consent, name), manifest)


def announce(sealed: Session, name: str) -> None:
    """Say whom this party waits for."""
    typer.echo(f"{name}: waiting for {', '.join(n for n in sealed.manifest.names if n != name)}", err=True)


def teller(name: str) -> Callable[[Role, Phase, Progress], None]:
    """One line a finished phase; a person who waits sees that something moves."""

    def tell(role: Role, phase: Phase, event: Progress) -> None:
        if event.done == event.total:
            typer.echo(f"{name} ({role}): {phase.name.lower()} done ({event.total} steps)", err=True)

    return tell


def read_size(text: str) -> int:
    """Bytes from 500M, 4G or a number."""
    found = re.fullmatch(r"(\d{1,15})([KMGT]?)", text.upper())
    if found is None or not int(found[1]):
        raise ConfigError(f"--budget {text} is not a size", hint="500M, 4G, or bytes")
    return int(found[1]) << (10 * " KMGT".index(found[2] or " "))


def main() -> None:
    """Entry point: errors become two lines and an exit code."""
    try:
        code = app(standalone_mode=False)
    except PrivinferError as error:
        complain(str(error), error.hint)
        code = error.exit_code
    except typer.TyperException as error:
        said = error.format_message()
        if said:  # else nothing was typed, and the help has been printed
            complain(said[:1].lower() + said[1:].rstrip("."), "see --help")
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except OSError as error:
        complain(f"{error.filename or 'a file'}: {(error.strerror or 'cannot be used').lower()}", None)
        code = 1
    if code == 130:  # typer turns the key into this code
        complain("stopped", None)
    sys.exit(code if isinstance(code, int) else 0)


def version(value: bool) -> None:
    """Print the version and stop."""
    if value:
        typer.echo(f"privinfer {__version__}")
        raise typer.Exit


@app.callback()
def root(
    show: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the command itself."""


if __name__ == "__main__":
    main()
