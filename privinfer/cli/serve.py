"""`privinfer serve` and `privinfer ask`: a party that stays, and who asks such parties for an answer."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from privinfer.cli.common import check_writable, give_outputs
from privinfer.errors import RefusedError
from privinfer.graph import ir
from privinfer.runtime import memory
from privinfer.runtime.knock import ask as ask_them
from privinfer.runtime.observe import Log
from privinfer.runtime.party import check_names
from privinfer.runtime.policy import Config
from privinfer.runtime.serve import Server
from privinfer.session.files import write_new
from privinfer.session.template import Template


def serve(
    name: Annotated[str, typer.Argument(help="Which party this is.")],
    config: Annotated[Path, typer.Option(help="What it serves, and to whom.")] = Path("serve.toml"),
    check: Annotated[bool, typer.Option("--check", help="Look at the file and stop.")] = False,
) -> None:
    """Take part in many sessions, at one port, until SIGTERM; logs are JSON lines without data."""
    loaded = Config.load(config, name)
    if check:
        typer.echo(f"{config} is good: {len(loaded.services)} services")
        return
    memory.few_arenas()
    server = Server(loaded, Log(name))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.request_stop())
    if not server.run():
        raise typer.Exit(1)  # sessions were cut off


def seal_template(draft: Path, architecture: ir.Architecture, out: Path) -> None:
    """Write a template for a draft whose last party is open."""
    template = Template.from_draft(draft, architecture.digest())
    check_names(template.sample(), architecture)
    write_new(out, template.dumps().encode())
    typer.echo(f"{out}  for {template.open}, whoever that will be")


def ask(
    template: Annotated[Path, typer.Option(help="What the serving parties serve.")] = Path("template.toml"),
    identity: Annotated[Path, typer.Option(help="Key file of who asks and receives.")] = Path("patient.key"),
    output: Annotated[Path | None, typer.Option(help="Folder for the outputs (.npy).")] = None,
    patience: Annotated[float, typer.Option(min=1, help="Seconds to wait for each server's answer.")] = 60.0,
    wait: Annotated[
        float, typer.Option(min=0, help="Seconds for which to ask again where a server is full.")
    ] = 0.0,
) -> None:
    """Get one answer from parties that run `privinfer serve`; no port of one's own is needed."""
    check_writable(output / "x" if output is not None else None, make=True)

    def again(error: RefusedError) -> None:
        typer.echo(f"{error}; asking again", err=True)

    result = ask_them(template, identity, patience=patience, wait=wait, asked=again)
    give_outputs(result.outputs, output)
