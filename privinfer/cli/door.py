"""`privinfer door`: what a door file says, and whether a file fits it; `--door` of `privinfer party`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from privinfer.errors import ConfigError, InputError
from privinfer.io.arrays import read_array
from privinfer.io.door import Door, digest
from privinfer.io.spec import choose, read_door, read_record

app = typer.Typer(no_args_is_help=True, help="How files become inputs, and what all parties agree of it.")

DoorFile = Annotated[Path, typer.Argument(help="Door file (TOML); docs/doors.md shows one of each kind.")]


@app.command()
def show(door: DoorFile) -> None:
    """Print a door's declaration and its digest, for [terms.doors] of a session's draft."""
    found = read_door(door)
    typer.echo(json.dumps(found.declaration(), indent=2, ensure_ascii=False))
    typer.echo(f"sha256 {digest(found)}")


@app.command("try")
def attempt(
    door: DoorFile,
    file: Annotated[str, typer.Argument(metavar="FILE[#ROW]", help="File or folder to read.")],
) -> None:
    """Read a file through a door and print shape and range; no value is shown."""
    record = read_record(file, read_door(door))
    typer.echo(f"shape {' x '.join(map(str, record.values.shape))}, range {record.low:g}..{record.high:g}")
    for what, count in sorted(record.notes.items()):
        typer.echo(f"{what}: {count}")


def bring(name: str, file: str, door_file: Path | None, agreed: str | None) -> Any:
    """Read an input through its door, or as a plain array where it has none.

    Parameters
    ----------
    name : str
        Of the input.
    file : str
        ``FILE`` or ``FILE#ROW``.
    door_file : path or None
        What ``--door`` names.
    agreed : str or None
        Digest in the session file.

    Raises
    ------
    ConfigError
        The session agreed to another door.
    InputError
        The file does not fit.
    """
    door: Door | None = read_door(door_file) if door_file is not None else None
    if door is None:
        suffix = file.rpartition("#")[0] if "#" in file and not Path(file).exists() else file
        door = choose(suffix, None)
    if agreed is not None and (door is None or digest(door) != agreed):
        raise ConfigError(
            f"input {name!r} has to come through the door the session agreed to",
            hint=f"--door {name}=FILE.toml with the door file whose digest the session holds",
        )
    return read_array(file) if door is None else read_record(file, door).values


def one_sample(file: str, door_file: Path) -> Any:
    """Read the one row of a file through a door; InputError where it has several."""
    values = read_record(file, read_door(door_file)).values
    if len(values) != 1:
        raise InputError(f"{Path(file).name} has {len(values)} rows, not one", hint="pick one with FILE#ROW")
    return values[0]


def check_names(doors: Mapping[str, str], inputs: Mapping[str, str]) -> None:
    """Raise InputError where ``--door`` names no ``--input``."""
    for name in doors:
        if name not in inputs:
            raise InputError(
                f"--door names {name!r}, and --input does not", hint="both take the input's name"
            )
