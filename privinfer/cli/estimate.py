"""`privinfer estimate`: seconds, bytes, memory, trust and price of a session before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from privinfer.cli.common import (
    BitsOption,
    CalibrationOption,
    JsonOption,
    RangeOption,
    load_model,
    say_json,
    size,
)
from privinfer.errors import ConfigError
from privinfer.plan.calibrate import calibrate
from privinfer.plan.estimate import NETWORKS, Estimate
from privinfer.plan.estimate import estimate as plan
from privinfer.plan.prices import TEMPLATE, Prices
from privinfer.plan.wishes import Ranked, Wishes, rank, verdict
from privinfer.session.manifest import Manifest

SCHEMA = "privinfer.estimate/1"
WIDTH = 116
COLUMNS = ("setup s", "offline s", "online s", "rounds", "sent", "memory", "keys", "error", "price")


def estimate(
    model: Annotated[Path, typer.Argument(help="The model's ONNX file.")],
    session: Annotated[Path, typer.Argument(help="Session file, sealed or a draft.")] = Path("session.toml"),
    batch: Annotated[int, typer.Option(min=1, help="Rows of a run.")] = 1,
    net: Annotated[
        str, typer.Option(help=f"Networks: some of {', '.join(NETWORKS)}; own is what the session says.")
    ] = "own,lo,lan,wan",
    within: Annotated[float | None, typer.Option(min=0, help="At most so many seconds a run.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="At most this price a run.")] = None,
    memory: Annotated[float | None, typer.Option(min=0, help="At most so many MB at any party.")] = None,
    no_helper: Annotated[bool, typer.Option("--no-helper", help="Without a helper.")] = False,
    prices: Annotated[Path | None, typer.Option(help="TOML of prices; written there if missing.")] = None,
    ranges: RangeOption = None,
    comparison_bits: BitsOption = None,
    calibration: CalibrationOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what a session would cost, whom it trusts, and which choice meets your wishes."""
    networks = [n for n in net.split(",") if n]
    if not networks or any(n not in NETWORKS for n in networks):
        raise ConfigError(f"--net {net} names no network", hint=f"some of {', '.join(NETWORKS)}")
    loaded = load_model(model, ranges, comparison_bits, calibration)
    manifest = read_session(session, loaded.architecture.digest())
    table = read_prices(prices)
    if not as_json:
        typer.echo("measuring this machine, about five seconds", err=True)
    found = plan(loaded, manifest, batch=batch, networks=networks, speeds=calibrate(), prices=table)
    wishes = Wishes(within, price, None if memory is None else int(memory * 1e6), no_helper)
    ranked = {n: rank([c for c in found.choices if c.network == n], wishes) for n in networks}
    said = {n: verdict(r, wishes, table.currency) for n, r in ranked.items()}
    if as_json:
        say_json(_document(found, ranked, said))
        return
    for name in networks:
        _show(found, name, ranked[name], said[name])


def read_session(path: Path, digest: str) -> Manifest:
    """A sealed session file, or a draft as if it were sealed now."""
    try:
        return Manifest.load(path)
    except ConfigError as error:
        if "this looks like a draft" not in (error.hint or ""):
            raise
    return Manifest.seal(path, digest)


def read_prices(path: Path | None) -> Prices:
    """The user's prices; where the file is missing, the usual ones are written there to be edited."""
    if path is None:
        return Prices()
    if not path.exists():
        path.write_text(TEMPLATE)
        typer.echo(f"{path}  written, edit it", err=True)
    return Prices.load(path)


def _document(found: Estimate, ranked: dict[str, list[Ranked]], said: dict[str, str]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "batch": found.batch,
        "speeds": found.speeds.as_json(),
        "currency": found.prices.currency,
        "choices": [c.as_json() for c in found.choices],
        "ranking": {
            name: [{"backend": r.choice.backend, "misses": _factors(r)} for r in rs]
            for name, rs in ranked.items()
        },
        "verdict": said,
    }


def _factors(one: Ranked) -> dict[str, float | None]:
    """By what factor each wish is missed; None where nothing would do, for JSON knows no infinity."""
    return {k: round(v, 4) if v < float("inf") else None for k, v in one.misses.items()}


def _show(found: Estimate, name: str, ranked: list[Ranked], said: str) -> None:
    screen = Console()
    screen.width = max(screen.width, WIDTH)  # a figure that is cut off is worse than a line that wraps
    table = Table(title=f"{name}, {found.batch} rows", title_justify="left", box=None)
    table.add_column("choice", no_wrap=True)
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("misses")
    for one in ranked:
        c = one.choice
        table.add_row(
            c.backend,
            *(f"{c.seconds[p]:.3g}" for p in ("setup", "offline", "online")),
            str(c.rounds),
            size(c.bytes["offline"] + c.bytes["online"]),
            size(c.memory),
            size(c.key_bytes),
            f"{c.error_bound:.1e}",
            f"{found.prices.currency}{c.price:.2g}",
            ", ".join(one.misses) or "-",
        )
    screen.print(table)
    for c in found.choices:
        if c.network == name and c.reason is not None:
            screen.print(f"{c.backend}: cannot be: {c.reason}", highlight=False, soft_wrap=True, markup=False)
    for text in dict.fromkeys(one.choice.trust for one in ranked):
        of = ", ".join(one.choice.backend for one in ranked if one.choice.trust == text)
        screen.print(f"{of}: {text}", highlight=False, soft_wrap=True, markup=False)
    screen.print(f"{name}: {said}", highlight=False, soft_wrap=True, markup=False)
