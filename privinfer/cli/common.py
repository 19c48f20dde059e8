"""What several commands share: options, models with typed ranges, files that will be written."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from privinfer.backends.base import Outputs
from privinfer.errors import ConfigError, PrivinferError
from privinfer.graph import ir
from privinfer.graph.load import from_onnx
from privinfer.io.arrays import read_arrays

RangeOption = Annotated[
    list[str] | None, typer.Option("--range", metavar="NAME=LOW:HIGH", help="Range of an input.")
]
BitsOption = Annotated[int | None, typer.Option(help="Bits of a comparison, public.", show_default="32")]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(help="The model owner's own rows, .npz with an array an input, to trust their ranges."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def load_model(
    path: Path, ranges: list[str] | None, comparison_bits: int | None, calibration: Path | None
) -> ir.Model:
    """An ONNX file with the ranges that were typed, which win over those the file carries."""
    typed: dict[str, tuple[float, float]] = {}
    for key, text in pairs(ranges, "--range", ConfigError, "NAME=LOW:HIGH").items():
        low, _, high = text.partition(":")
        try:
            typed[key] = (float(low), float(high))
        except ValueError:
            raise ConfigError(f"--range {key}={text} is not NAME=LOW:HIGH") from None
    return from_onnx(
        path,
        typed or None,
        comparison_bits=32 if comparison_bits is None else comparison_bits,
        calibration=None if calibration is None else read_arrays(calibration),
    )


def pairs(given: list[str] | None, option: str, kind: type[PrivinferError], form: str) -> dict[str, str]:
    """``NAME=VALUE`` arguments as a dictionary."""
    found: dict[str, str] = {}
    for text in given or []:
        key, equals, value = text.partition("=")
        if not equals or not key or not value:
            raise kind(f"{option} {text} is not {form}")
        if key in found:
            raise kind(f"{option} names {key} twice")
        found[key] = value
    return found


def check_writable(path: Path | None, *, make: bool = False) -> None:
    """Raise ConfigError where a file could not be written; `make` makes its folder."""
    if path is None:
        return
    folder = path.parent
    if make:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot make folder {folder}: {(error.strerror or '').lower()}") from None
    if not folder.is_dir():
        raise ConfigError(f"cannot write {path}: {folder} is not a folder")
    if path.is_dir() or not os.access(path if path.exists() else folder, os.W_OK):
        raise ConfigError(f"cannot write {path}")


def give_outputs(outputs: Outputs, folder: Path | None) -> None:
    """A receiver's outputs, as files of a folder or printed."""
    for shown, value in outputs.items():
        if folder is not None:
            np.save(folder / f"{shown}.npy", value)
            typer.echo(f"{shown} is in {folder / f'{shown}.npy'}")
        else:
            typer.echo(f"{shown} {np.array2string(value, precision=6, threshold=1000)}")


def write_json(path: Path, content: dict[str, Any] | None) -> None:
    """Write a report."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def complain(message: str, hint: str | None) -> None:
    """Print an error in the house form."""
    print(f"privinfer: error: {message}", file=sys.stderr)
    if hint:
        print(f"privinfer: hint: {hint}", file=sys.stderr)


def say_json(content: Any) -> None:
    """Print what a program reads."""
    typer.echo(json.dumps(content, indent=2, sort_keys=True))


def size(count: float) -> str:
    """Bytes as a person reads them."""
    for unit, least in (("GB", 1e9), ("MB", 1e5), ("kB", 1e2)):
        if count >= least:
            return f"{count / {'GB': 1e9, 'MB': 1e6, 'kB': 1e3}[unit]:.3g} {unit}"
    return f"{count:.0f} B"
