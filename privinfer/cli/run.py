"""`privinfer run`: all parties of a project folder on this machine, to try a session before it is one."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from privinfer.backends.base import Network, Phase, Role
from privinfer.backends.base import Progress as Step
from privinfer.backends.mpc import roles
from privinfer.cli.common import (
    BitsOption,
    CalibrationOption,
    JsonOption,
    RangeOption,
    check_writable,
    load_model,
    say_json,
    size,
    write_json,
)
from privinfer.cli.page import page as make_page
from privinfer.cli.page import read_report
from privinfer.errors import ConfigError, InputError
from privinfer.graph import ir, reference
from privinfer.io.arrays import read_array
from privinfer.plan.layers import Layer, layers
from privinfer.runtime.local import LocalWatcher, run_local
from privinfer.runtime.party import Result

DRAFT, MODEL = "session.draft.toml", "model.onnx"
PageOption = Annotated[Path | None, typer.Option(help="Write an HTML page of the run: one file, no network.")]


def run(
    folder: Annotated[
        Path, typer.Argument(help=f"Project: {DRAFT}, {MODEL} and inputs/NAME.npy or .csv.")
    ] = Path("."),
    model: Annotated[Path | None, typer.Option(help=f"ONNX file; {MODEL} of the folder by default.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write the report as JSON.")] = None,
    page: PageOption = None,
    ranges: RangeOption = None,
    comparison_bits: BitsOption = None,
    calibration: CalibrationOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run a project with every party a process of this machine; real keys and addresses are not used."""
    check_writable(report)
    check_writable(page)
    draft = read_draft(folder / DRAFT)
    loaded = load_model(model or folder / MODEL, ranges, comparison_bits, calibration)
    inputs = read_project_inputs(folder / "inputs", draft["inputs"])
    arguments = local_arguments(draft)
    with watching(quiet=as_json) as watch:
        result = run_local(loaded, inputs, with_reference=True, progress=watch, **arguments)
    merged = {k: v for own in inputs.values() for k, v in own.items()}
    clear = reference.run(loaded, {k: np.asarray(v, dtype=np.float64) for k, v in merged.items()})
    if report is not None:
        write_json(report, result.report)
    if page is not None:
        errors = np.concatenate([(v - clear[k]).reshape(-1) for k, v in result.outputs.items()])
        shown = cost_of_layers(loaded, draft, arguments, len(next(iter(merged.values()))))
        page.write_text(make_page(result.report, shown, errors.tolist()))
    show(result, draft, as_json=as_json)


def page(
    report: Annotated[Path, typer.Argument(help="Report of a run, from --report.")],
    out: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("run.html"),
    as_json: JsonOption = False,
) -> None:
    """Show a report as one HTML file with pictures."""
    check_writable(out)
    out.write_text(make_page(read_report(report)))
    if as_json:
        say_json({"page": str(out)})
    else:
        typer.echo(f"{out}  open it in a browser")


# -- the project -----------------------------------------------------------------------------------


def read_draft(path: Path) -> dict[str, Any]:
    """Who does what, of a draft; certificates and addresses are not looked at.

    Raises
    ------
    ConfigError
        It is missing or lacks a part; the message names it.
    """
    try:
        found = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        why = (error.strerror or "error").lower()
        raise ConfigError(
            f"cannot read draft {path}: {why}", hint="`privinfer new FOLDER` makes one"
        ) from None
    except ValueError as error:
        raise ConfigError(f"draft {path} is not TOML: {str(error).splitlines()[0].lower()}") from None
    for key in ("roles", "inputs", "receivers"):
        table = found.get(key)
        if not isinstance(table, dict) or not table:
            raise ConfigError(f"draft {path}: [{key}] is missing", hint="see docs/sessions.md")
    for key in ("inputs", "receivers"):
        for name, party in found[key].items():
            if not isinstance(party, str):
                raise ConfigError(f"draft {path}: {key}.{name} is not the name of a party")
    if not isinstance(found["roles"].get("model_owner"), str):
        raise ConfigError(f"draft {path}: roles.model_owner is missing")
    return found


def read_project_inputs(folder: Path, owners: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Arrays by owner: for each input one file inputs/NAME.npy, .npz or .csv."""
    found: dict[str, dict[str, Any]] = {}
    for name, owner in owners.items():
        files = [folder / f"{name}{end}" for end in (".npy", ".npz", ".csv")]
        there = [f for f in files if f.is_file()]
        if len(there) != 1:
            many = "several files" if there else "no file"
            raise InputError(
                f"input {name!r} of {owner} has {many} in {folder}",
                hint=f"one of {', '.join(f.name for f in files)}",
            )
        found.setdefault(owner, {})[name] = read_array(there[0])
    return found


def local_arguments(draft: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `run_local` that play a draft."""
    held = draft["roles"]
    found: dict[str, Any] = {
        "backend": draft.get("backend", "mpc"),
        "receiver": draft["receivers"],
        "model_owner": held["model_owner"],
        "nonlinear": draft.get("nonlinear", "polynomial"),
        "insecure": tuple(draft.get("insecure", ())),
    }
    for key in ("evaluators", "key_holders"):
        if names := held.get(key):
            if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
                raise ConfigError(f"draft: roles.{key} is not a list of parties")
            found[key] = tuple(names)
    for key, kind in (("helper", str), ("threshold", int)):
        if key in held:
            if not isinstance(held[key], kind):
                raise ConfigError(f"draft: roles.{key} is not {'a party' if kind is str else 'a number'}")
            found[key] = held[key]
    return found


def cost_of_layers(
    model: ir.Model, draft: dict[str, Any], arguments: dict[str, Any], batch: int
) -> list[Layer]:
    """Cost of each layer where evaluators compute; else none."""
    if arguments["backend"] != "mpc":
        return []
    network = Network("auto")  # as run_local has it, whatever the draft assumes
    three = (*arguments.get("evaluators", ()), arguments.get("helper", "helper"))
    exact = roles.needs_exact(three[:2], three[-1], draft["receivers"].values())
    return layers(model.architecture, network, batch, exact=exact)


# -- what a person sees ----------------------------------------------------------------------------


@contextlib.contextmanager
def watching(*, quiet: bool) -> Iterator[LocalWatcher | None]:
    """Show bars with phase, layer, step and the time that is left; nothing where a program reads."""
    screen = Console(stderr=True)
    if quiet or not screen.is_terminal:
        yield None
        return
    with Progress(
        TextColumn("{task.description:<12}"),
        TextColumn("{task.fields[phase]:<8}"),
        BarColumn(20),
        TextColumn("step {task.completed}/{task.total}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[layer]}"),
        console=screen,
        transient=True,
    ) as bars:
        tasks: dict[tuple[str, Role], TaskID] = {}
        last: dict[tuple[str, Role], Phase] = {}

        def watch(party: str, role: Role, phase: Phase, step: Step) -> None:
            key = party, role
            if key not in tasks:
                tasks[key] = bars.add_task(party, phase="", layer="")
            if last.get(key) is not phase:  # a new phase has a time of its own
                bars.reset(tasks[key])
                last[key] = phase
            shown = phase.name.lower()
            bars.update(tasks[key], completed=step.done, total=step.total, phase=shown, layer=step.label[:30])

        yield watch


def show(result: Result, draft: dict[str, Any], *, as_json: bool) -> None:
    """Print answers, times, bytes and trust."""
    report = result.report
    if as_json:
        say_json({"report": report, "outputs": {k: v.tolist() for k, v in result.outputs.items()}})
        return
    for name, value in result.outputs.items():
        typer.echo(
            f"{name}, at {draft['receivers'][name]}: {np.array2string(value, precision=6, threshold=100)}"
        )
    seconds = ", ".join(f"{p} {report['seconds'][p]:.3f} s" for p in ("setup", "offline", "online"))
    sent = sum(
        count
        for one in report["parties"].values()
        for by in one["bytes"]["sent"].values()
        for count in by.values()
    )
    rounds = sum((report.get("online_rounds") or {}).values())
    typer.echo(f"{seconds}; {rounds} online rounds; {size(sent)} sent by all")
    typer.echo(
        f"largest difference to the clear model {report['largest_absolute_error']:.1e}, "
        f"declared bound {report['precision']['declared_error_bound']:.1e}"
    )
    typer.echo(report["trust"])
