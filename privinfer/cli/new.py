"""`privinfer new`: a three-owner session that runs as it is, to be changed into one's own."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from privinfer.cli.common import JsonOption, say_json
from privinfer.errors import ConfigError
from privinfer.graph import ir
from privinfer.graph.ranges import declare
from privinfer.graph.to_onnx import to_onnx
from privinfer.session.identity import Identity

OWNERS = {"image": "hospital", "genes": "dna_company", "blood": "laboratory"}
SHAPES = {"image": (16,), "genes": (8,), "blood": (4,)}
RANGES = {"image": (0.0, 1.0), "genes": (0.0, 2.0), "blood": (-4.0, 4.0)}
NAMES = ("hospital", "dna_company", "laboratory", "startup", "helper", "patient")
HIDDEN = 8

_RUN = """\
#!/usr/bin/env sh
# All parties as processes of their own on this machine, with their real keys, files and addresses.
set -eu
cd "$(dirname "$0")"
[ -f session.toml ] || privinfer seal session.draft.toml --model model.onnx
{lines}wait
cat patient.log
"""

_README = """\
# A private session of three owners

    privinfer run .              # all parties on this machine, keys made for the run
    privinfer run . --page run.html
    privinfer estimate model.onnx session.draft.toml
    sh run.sh                    # the same with the keys, certificates and addresses of this folder

hospital, dna_company and laboratory bring an input each, startup the model, helper deals masks, patient gets
the answer. Private unless two of startup, hospital and helper collude.

Make it yours:

1. `inputs/NAME.npy` or `.csv`: your data, one row a person, within the ranges of the model's file.
2. `model.onnx`: your model. Names of its inputs and outputs stand in `session.draft.toml` too.
3. `session.draft.toml`: who takes part, at which address. Each party keeps its own `keys/NAME.key` and gives
   away `keys/NAME.crt`; a key made here for somebody else is good for trying only (`privinfer keygen`).
4. Delete `session.toml` and seal again after any change:
   `privinfer seal session.draft.toml --model model.onnx`.

`privinfer doctor --session session.toml --party NAME` looks at a party's machine.
"""


def new(
    folder: Annotated[Path, typer.Argument(help="Folder to make.")],
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long the certificates are valid.")] = 90,
    as_json: JsonOption = False,
) -> None:
    """Make a project: session draft, certificates, a tiny model, inputs, a run script and a README."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already and is not empty", hint="choose another folder")
    model = to_onnx(tiny()).SerializeToString()  # first, since it may say what is not installed
    for part in (folder, folder / "keys", folder / "inputs"):
        part.mkdir(mode=0o700 if part.name == "keys" else 0o755, parents=True, exist_ok=True)
    for name in NAMES:
        identity = Identity.generate(name, days)
        identity.save(folder / "keys" / f"{name}.key")
        (folder / "keys" / f"{name}.crt").write_text(identity.certificate_pem)
    (folder / "model.onnx").write_bytes(model)
    for name, shape in SHAPES.items():
        np.save(folder / "inputs" / f"{name}.npy", _numbers((3, *shape), *RANGES[name]))
    (folder / "session.draft.toml").write_text(draft(_ports(len(NAMES))))
    (folder / "run.sh").write_text(_script())
    (folder / "README.md").write_text(_README)
    (folder / ".gitignore").write_text("keys/*.key\n*.log\nsession.toml\n")
    if as_json:
        say_json({"folder": str(folder), "parties": list(NAMES)})
        return
    typer.echo(f"{folder}  made; keys in {folder / 'keys'} are secret")
    typer.echo(f"privinfer run {folder}")


def tiny() -> ir.Model:
    """A dense layer over all three inputs, ReLU, and a logit; its weights mean nothing."""
    width = sum(shape[0] for shape in SHAPES.values())
    model = ir.Model(
        ir.Architecture(
            tuple(ir.Input(n, SHAPES[n], *RANGES[n]) for n in SHAPES),
            (
                ir.Node("all", ir.Concat(1), tuple(SHAPES)),
                ir.Node("hidden", ir.Linear(width, HIDDEN), ("all",)),
                ir.Node("hidden.relu", ir.Relu(), ("hidden",)),
                ir.Node("logit", ir.Linear(HIDDEN, 1), ("hidden.relu",)),
            ),
            (ir.Output("risk", "logit"),),
        ),
        {
            "hidden": {
                "weight": _numbers((width, HIDDEN), -0.5, 0.5),
                "bias": _numbers((HIDDEN,), -0.1, 0.1),
            },
            "logit": {"weight": _numbers((HIDDEN, 1), -0.5, 0.5), "bias": _numbers((1,), -0.1, 0.1)},
        },
    )
    return declare(model, comparison_bits=32)


def draft(ports: list[int]) -> str:
    """The session's draft."""
    parties = "".join(
        f'\n[[parties]]\nname = "{name}"\naddress = "127.0.0.1:{port}"\n'
        f'certificate_file = "keys/{name}.crt"\n'
        for name, port in zip(NAMES, ports, strict=True)
    )
    inputs = "".join(f'{name} = "{owner}"\n' for name, owner in OWNERS.items())
    return (
        'version = 1\nbackend = "mpc"\ndeadline = 30.0\nconnect_timeout = 60.0\n\n[roles]\n'
        'model_owner = "startup"\nevaluators = ["startup", "hospital"]  # two that do not collude\n'
        'helper = "helper"                        # a third one\n\n'
        f"[inputs]  # name of the input = its owner\n{inputs}\n"
        f'[receivers]  # name of the output = who learns it\nrisk = "patient"\n{parties}'
    )


def _script() -> str:
    inputs = {owner: f" --input {name}=inputs/{name}.npy" for name, owner in OWNERS.items()}
    more = {"startup": " --model model.onnx", "patient": " --report report.json", **inputs}
    return _RUN.format(
        lines="".join(
            f"privinfer party {n} --identity keys/{n}.key{more.get(n, '')} >{n}.log 2>&1 &\n" for n in NAMES
        )
    )


def _numbers(
    shape: tuple[int, ...], low: float, high: float
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Numbers that look like data and are the same each time; not random."""
    k = np.arange(int(np.prod(shape)), dtype=np.float64)
    return (low + (high - low) * (0.5 + 0.5 * np.sin(1.7 * k + 0.3 * k * k))).reshape(shape)


def _ports(count: int) -> list[int]:
    """Ports that are free now."""
    with ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [s.getsockname()[1] for s in held]
