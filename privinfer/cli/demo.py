"""The demonstration: three owners, a startup and a patient, each a process of its own on this machine."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from privinfer.backends import plain
from privinfer.backends.base import Phase, Role
from privinfer.backends.base import Progress as Step
from privinfer.errors import ConfigError
from privinfer.graph import reference
from privinfer.graph.load import from_onnx
from privinfer.runtime.local import run_local

OWNERS = {"hospital": "xray", "dna_company": "dna", "laboratory": "blood"}
MODELS = {"mpc": "risk.onnx", "ckks": "risk-polynomial.onnx", "exact": "risk.onnx"}
SHOWN = 8
BETWEEN = {"evaluators": "between the evaluators", "refreshes": "for refreshes"}
SYNTHETIC = (
    "The patients are synthetic: X-ray, genotypes and bloods are real but of three different people, joined\n"
    "by a simulated outcome. Nothing here is medical advice; see examples/cohort/MODEL_CARD.md."
)


def run(patient: int, batch: int, examples: Path | None, backend: str = "mpc") -> dict[str, Any]:
    """Run the demonstration and print what the patient sees.

    Parameters
    ----------
    patient, batch : int
        Rows of the test cohort.
    examples : Path or None
        Folder with `cohort.py` and the models; that of the source tree by default.
    backend : {"mpc", "ckks", "exact"}
        "ckks" runs the model whose activations are polynomials, "exact" ckks' exact mode.

    Returns
    -------
    dict
        The run's report.
    """
    folder = examples or Path(__file__).resolve().parents[2] / "examples" / "cohort"
    if backend not in MODELS:
        raise ConfigError(
            f"the demonstration has no model for {backend!r}", hint=f"known: {', '.join(MODELS)}"
        )
    if not (folder / "cohort.py").is_file() or not (folder / MODELS[backend]).is_file():
        raise ConfigError(
            f"the demonstration's data are not in {folder}",
            hint="run it from a clone, or give the folder with --examples",
        )
    cohort = _load(folder / "cohort.py")
    patients = cohort.load("test")
    if patient + batch > len(patients):
        raise ConfigError(
            f"patients {patient} to {patient + batch - 1} are not all in the test cohort",
            hint=f"it has {len(patients)}: 0 to {len(patients) - 1}",
        )
    rows = slice(patient, patient + batch)
    inputs = {name: values[rows] for name, values in patients.inputs().items()}
    # polynomials have ranges of their own, which hold where the model owner's validation patients stay inside
    seen = cohort.load("validation").inputs() if backend == "ckks" else None
    model = from_onnx(folder / MODELS[backend], calibration=seen)
    screen = Console()
    screen.print(SYNTHETIC, style="yellow", highlight=False, soft_wrap=True)
    with Progress(
        TextColumn("{task.description:<12}"),
        TextColumn("{task.fields[phase]:<8}"),
        BarColumn(24),
        TimeElapsedColumn(),
        console=screen,
        transient=True,
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def watch(party: str, role: Role, phase: Phase, step: Step) -> None:
            if party not in tasks:
                tasks[party] = bars.add_task(party, phase="")
            bars.update(tasks[party], completed=step.done, total=step.total, phase=phase.name.lower())

        result = run_local(
            model,
            {owner: {name: inputs[name]} for owner, name in OWNERS.items()},
            backend="ckks" if backend == "exact" else backend,
            nonlinear="exact" if backend == "exact" else "polynomial",
            evaluators=None if backend == "ckks" else ("startup", "hospital"),
            with_reference=True,
            progress=watch,
        )
    clear = reference.run(model, inputs)["risk"][:, 0]
    oracle = plain.run(model, inputs)["risk"][:, 0]
    private = result.outputs["risk"][:, 0]
    _show_risks(screen, patient, private, clear)
    agreed = int(((private > 0) == (oracle > 0)).sum())
    bound = result.report["precision"]["declared_error_bound"]
    screen.print(
        f"largest difference {np.abs(private - clear).max():.1e}, declared bound {bound:.1e}; "
        f"same decision as the fixed-point model in the clear for {agreed} of {batch}",
        highlight=False,
        soft_wrap=True,
    )
    for note in result.report["precision"].get("notes", []):
        screen.print(note, highlight=False, soft_wrap=True)
    _show_parties(screen, result.report)
    result.report["patients"] = [patient, patient + batch - 1]
    result.report["same_decision_as_oracle"] = [agreed, batch]
    return result.report


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("privinfer_demo_cohort", path)
    assert spec is not None  # noqa: S101 - the file is there
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise ConfigError(
            f"{path} cannot be run: {type(error).__name__}",
            hint="is it the folder examples/cohort of a clone",
        ) from error
    return module


def _show_risks(screen: Console, first: int, private: Any, clear: Any) -> None:
    table = Table(title="at the patient, and nowhere else", title_justify="left")
    for column in ("patient", "risk", "logit, private", "logit, in the clear", "difference"):
        table.add_column(column, justify="right")
    for k, (p, c) in enumerate(zip(private[:SHOWN], clear[:SHOWN], strict=True)):
        risk = 1 / (1 + np.exp(-p))
        table.add_row(str(first + k), f"{risk:.1%}", f"{p:.5f}", f"{c:.5f}", f"{p - c:+.1e}")
    if len(private) > SHOWN:
        table.add_row("...", "", "", "", "")
    screen.print(table)


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def _show_parties(screen: Console, report: dict[str, Any]) -> None:
    table = Table(title="what each party sent, received and could see", title_justify="left")
    table.add_column("party")
    for column in ("sent", "received", "of that online"):
        table.add_column(column, justify="right")
    table.add_column("saw, beyond sizes and times")
    for name, one in report["parties"].items():
        moved = {
            way: {phase: sum(peers.values()) for phase, peers in one["bytes"][way].items()}
            for way in ("sent", "received")
        }
        online = moved["sent"]["online"] + moved["received"]["online"]
        table.add_row(
            name,
            _size(sum(moved["sent"].values())),
            _size(sum(moved["received"].values())),
            _size(online),
            "; ".join(one["sees"]),
        )
    screen.print(table)
    seconds, rounds = report["seconds"], report["online_rounds"]
    once = "weights" if report["backend"] == "mpc" else "joint keys"
    between = {k: v for k, v in rounds.items() if k in ("evaluators", "refreshes")}
    screen.print(
        f"setup {seconds['setup']:.2f} s ({once}, once a session), offline {seconds['offline']:.2f} s, "
        f"online {seconds['online']:.3f} s; {sum(rounds.values())} online rounds "
        f"({', '.join(f'{v} {BETWEEN[k]}' for k, v in between.items())})\n{report['trust']}",
        highlight=False,
        soft_wrap=True,
    )
