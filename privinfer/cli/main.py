"""The `privinfer` command: arguments in, one line of error and one of hint out, never a traceback."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from privinfer import __version__, insecure
from privinfer.backends.base import Phase, Progress, Role
from privinfer.backends.ckks.moving import check_at_home
from privinfer.cli import demo as demo_command
from privinfer.cli import doctor as doctor_command
from privinfer.cli import estimate as estimate_command
from privinfer.cli import fragment as fragment_command
from privinfer.cli import new as new_command
from privinfer.cli import run as run_command
from privinfer.cli.common import (
    BitsOption,
    CalibrationOption,
    RangeOption,
    check_writable,
    complain,
    load_model,
    pairs,
    write_json,
)
from privinfer.errors import ConfigError, InputError, PrivinferError
from privinfer.graph import ir
from privinfer.io.arrays import read_array
from privinfer.runtime.bring import check_fragments, split
from privinfer.runtime.party import BACKENDS, Session, check_names
from privinfer.runtime.store import Store
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

StoreOption = Annotated[Path | None, typer.Option(help="Folder for what is dealt ahead.")]


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
) -> None:
    """Fix parties, certificates and model in a session file that every party then holds alike."""
    loaded = load_model(model, ranges, comparison_bits, calibration)
    manifest = Manifest.seal(draft, loaded.architecture.digest())
    if manifest.backend not in BACKENDS:
        raise ConfigError(
            f"backend {manifest.backend!r} cannot run between parties", hint=f"known: {', '.join(BACKENDS)}"
        )
    if manifest.backend == insecure.CRYPTEN:
        insecure.require(insecure.CRYPTEN, manifest.insecure)
    check_names(manifest, loaded.architecture)
    manifest.save(out)
    typer.echo(f"{out}  sha256 {manifest.digest().hex()}")


@app.command()
def party(
    name: Annotated[str, typer.Argument(help="Which party of the session this is.")],
    session: Annotated[Path, typer.Option(help="Sealed session file.")] = Path("session.toml"),
    identity: Annotated[Path | None, typer.Option(help="Key file; NAME.key by default.")] = None,
    model: Annotated[Path | None, typer.Option(help="ONNX file, for the model owner.")] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="NAME=FILE", help="An input: .npy, .npz, .csv or a fragment."),
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
) -> None:
    """Take part in one inference as one party; the others run the same command elsewhere."""
    sealed = Session.load(session)
    sealed.manifest.party(name)
    # an inference is spent once it has begun, so whatever could stop its end is looked at before
    check_writable(report)
    check_writable(output / "x" if output is not None else None, make=True)
    own = read_inputs(inputs, fragment_key or Path(f"{name}.ckks"))
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
    announce(sealed, name)
    with sealed.join(name, key, model=loaded, progress=teller(name), store=store) as member:
        result = member.run(own)
        if report is not None:
            write_json(report, member.report)
    if result is None:
        typer.echo(f"{name}: done; the result is the receiver's alone", err=True)
        return
    for shown, value in result.outputs.items():
        if output is not None:
            np.save(output / f"{shown}.npy", value)
            typer.echo(f"{shown} is in {output / f'{shown}.npy'}")
        else:
            typer.echo(f"{shown} {np.array2string(value, precision=6, threshold=1000)}")


@app.command()
def deal(
    name: Annotated[str, typer.Argument(help="Which party of the session this is.")],
    count: Annotated[int, typer.Option(min=1, help="For how many inferences; the same at all parties.")],
    session: Annotated[Path, typer.Option(help="Sealed session file.")] = Path("session.toml"),
    identity: Annotated[Path | None, typer.Option(help="Key file; NAME.key by default.")] = None,
    model: Annotated[Path | None, typer.Option(help="ONNX file, for the model owner.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Rows of each; the same at all parties.")] = 1,
    store: StoreOption = None,
    budget: Annotated[str, typer.Option(help="Disk this store may take: 500M, 4G.")] = "4G",
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
    with sealed.join(name, key, model=loaded, progress=teller(name), store=kept) as member:
        member.deal(count, batch)
    typer.echo(f"{name}: dealt for {count} inferences of {batch} rows", err=True)


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


def read_inputs(given: list[str] | None, key: Path) -> dict[str, Any]:
    """Arrays, and fragments, which `key` will open."""
    found: dict[str, Any] = {}
    for name, file in pairs(given, "--input", InputError, "NAME=FILE").items():
        at_rest = Path(file).suffix == ".fragment" or is_sealed(file)
        found[name] = Fragment(Path(file), key) if at_rest else read_array(file)
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
