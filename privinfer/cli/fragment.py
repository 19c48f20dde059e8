"""`privinfer fragment`: an owner encrypts an input under its own key, for sessions to come."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Annotated

import typer

from privinfer.backends.ckks import fragments
from privinfer.cli.door import one_sample
from privinfer.errors import ConfigError, InputError
from privinfer.io.arrays import read_array
from privinfer.protocols.ckks.parameters import Parameters
from privinfer.session.fragment import read_header, verify_fragment
from privinfer.session.identity import MAX_PEM, Identity, PublicIdentity, check_name

app = typer.Typer(no_args_is_help=True, help="Inputs at rest, encrypted under their owner's own key.")

Owner = Annotated[str, typer.Argument(help="Name of the owner.")]
IdentityOption = Annotated[Path | None, typer.Option(help="Key file of the party; NAME.key by default.")]


@app.command()
def keygen(
    name: Owner,
    identity: IdentityOption = None,
    out: Annotated[Path | None, typer.Option(help="New file; NAME.ckks by default.")] = None,
    degree: Annotated[int, typer.Option(help="Degree N of the ring.")] = fragments.DEGREE,
    levels: Annotated[int, typer.Option(help="Levels of a fresh ciphertext.")] = fragments.LEVELS,
) -> None:
    """Make an owner's CKKS key; the file opens with the owner's identity only."""
    who = load_identity(name, identity)
    file = out or Path(f"{name}.ckks")
    header = fragments.make_key(file, who, Parameters(degree, levels))
    typer.echo(f"{file}  secret, stays here; it opens with this identity only")
    typer.echo(f"key {header.key_id.hex()}")


@app.command()
def encrypt(
    name: Owner,
    input: Annotated[str, typer.Argument(help="Name of the input in the model.")],  # noqa: A002 - as it is shown
    file: Annotated[Path, typer.Argument(help="One sample: .npy, .npz, .csv, or what --door reads.")],
    bounds: Annotated[str, typer.Option("--range", metavar="LOW:HIGH", help="Range of the input.")],
    array: Annotated[str | None, typer.Option(help="Which array of an .npz with several.")] = None,
    door: Annotated[Path | None, typer.Option(help="Door file; docs/doors.md.")] = None,
    identity: IdentityOption = None,
    key: Annotated[Path | None, typer.Option(help="The owner's CKKS key; NAME.ckks by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="New file; INPUT.fragment by default.")] = None,
) -> None:
    """Encrypt one sample of an input and sign it."""
    interval = _range(bounds)
    if out is None and ("/" in input or input.startswith(".")):
        raise ConfigError(f"input {input!r} makes no file name", hint="name the file with --out")
    if door is not None and array is not None:
        raise ConfigError("--array and --door exclude each other", hint="an .npz has arrays, and no door")
    values = one_sample(str(file), door) if door is not None else read_array(file, array)
    who = load_identity(name, identity)
    own = fragments.open_key(key or Path(f"{name}.ckks"), who)
    target = out or Path(f"{input}.fragment")
    header = fragments.encrypt(target, who, own.public, input, values, interval)
    shape = " x ".join(map(str, header.shape)) or "one number"
    typer.echo(f"{target}  {shape} in {header.count} ciphertexts, {target.stat().st_size / 1e6:.1f} MB")


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A fragment.")],
    certificate: Annotated[
        Path | None, typer.Option(help="The owner's certificate: check the signature too.")
    ] = None,
) -> None:
    """Print what a fragment says of itself."""
    header = read_header(file)
    signature = "not checked; give the owner's certificate with --certificate"
    if certificate is not None:
        verify_fragment(file, load_certificate(certificate))
        signature = f"of {header.owner}, verified"
    created = dt.datetime.fromtimestamp(header.created, dt.UTC)
    for title, value in (
        ("owner", header.owner),
        ("input", header.input),
        ("shape", " x ".join(map(str, header.shape)) or "one number"),
        ("range", f"{header.low:g} to {header.high:g}"),
        ("created", f"{created:%Y-%m-%d %H:%M:%S} UTC"),
        ("ring", f"N = {header.n}, {header.levels} levels, {header.count} ciphertexts"),
        ("parameters", header.parameters.hex()),
        ("key", header.key_id.hex()),
        ("certificate", header.signer),
        ("signature", signature),
    ):
        typer.echo(f"{title:<12} {value}")


def load_identity(name: str, path: Path | None) -> Identity:
    """A party's identity; ConfigError where it is another party's."""
    check_name(name)
    file = path or Path(f"{name}.key")
    who = Identity.load(file)
    if who.name != name:
        raise ConfigError(f"identity {file} is of {who.name}, not of {name}", culprit=name)
    return who


def load_certificate(path: Path) -> PublicIdentity:
    """A certificate's file."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_PEM + 1)
    except OSError as error:
        why = (error.strerror or "error").lower()
        raise ConfigError(f"cannot read certificate {path}: {why}") from None
    return PublicIdentity.from_certificate(text.decode("ascii", "replace"))


def _range(text: str) -> tuple[float, float]:
    low, _, high = text.partition(":")
    try:
        return float(low), float(high)
    except ValueError:
        raise InputError(f"--range {text} is not LOW:HIGH") from None
