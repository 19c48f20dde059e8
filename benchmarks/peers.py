"""Virtual environments of the peers, outside the package and outside each other.

    python -m benchmarks.peers install crypten spu
    python -m benchmarks.peers check
    python -m benchmarks.peers remove spu

They live under ``~/.cache/privinfer-benchmarks`` or ``$PRIVINFER_BENCHMARKS``. Every version is pinned: a
row of a results file has to mean the same next year.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Peer:
    """How one peer is installed.

    Attributes
    ----------
    steps : tuple
        Arguments of successive ``pip install`` calls.
    imports : str
        What proves that it works.
    packages : tuple
        Whose versions go into the results.
    needs : str or None
        The one Python its wheels are built for; None where it takes the one that runs this.
    """

    steps: tuple[tuple[str, ...], ...]
    imports: str
    packages: tuple[str, ...]
    needs: str | None = None


PEERS = {
    "crypten": Peer(
        steps=(
            ("torch==2.13.0", "numpy<3"),
            ("--no-deps", "crypten==0.4.1"),  # it requires "sklearn", a name that no longer installs
            ("omegaconf", "onnx", "pyyaml"),
        ),
        imports="from benchmarks.peer_crypten import import_crypten; import_crypten()",
        packages=("crypten", "torch", "numpy"),
    ),
    "spu": Peer(
        steps=(("spu==0.9.5", "jax==0.4.34", "jaxlib==0.4.34", "numpy<2"),),
        imports="import spu, spu.utils.frontend",
        packages=("spu", "jax", "jaxlib", "numpy"),
    ),
    "openfhe": Peer(
        steps=(("openfhe==1.6.1.0.22.4", "numpy==2.2.6"),),
        imports="import numpy, openfhe",
        packages=("openfhe", "numpy"),
        needs="3.10",
    ),
}


def home() -> Path:
    """Folder of all peers' environments."""
    return Path(os.environ.get("PRIVINFER_BENCHMARKS", Path.home() / ".cache" / "privinfer-benchmarks"))


def python(peer: str) -> Path:
    """Interpreter of a peer's environment, there or not."""
    return home() / peer / "bin" / "python"


def why_missing(peer: str) -> str | None:
    """One line on why a peer cannot run here, or None where it can."""
    if not python(peer).exists():
        return f"not installed: python -m benchmarks.peers install {peer}"
    found = _run(peer, PEERS[peer].imports)
    if found.returncode:
        last = (found.stderr.strip() or "no message").splitlines()[-1]
        return f"installed but does not import: {last}"
    return None


def versions(peer: str) -> dict[str, str]:
    """Installed version of each of a peer's packages."""
    names = PEERS[peer].packages
    code = f"import importlib.metadata as m, json; print(json.dumps({{n: m.version(n) for n in {names!r}}}))"
    found = _run(peer, code)
    return dict(json.loads(found.stdout)) if found.returncode == 0 else {}


def install(peer: str) -> None:
    """Make the environment anew where it does not work already."""
    if why_missing(peer) is None:
        print(f"{peer}: is there")
        return
    folder = home() / peer
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    print(f"{peer}: installing into {folder}", flush=True)
    if (needs := PEERS[peer].needs) is None:
        venv.create(folder, with_pip=True)
    else:
        subprocess.run([_interpreter(needs), "-m", "venv", str(folder)], check=True)  # noqa: S603 - a Python
    for step in PEERS[peer].steps:
        command = [str(python(peer)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *step]
        subprocess.run(command, check=True)  # noqa: S603 - pinned packages named above


def _interpreter(version: str) -> str:
    """A Python of this version: on the path, or one of pyenv's."""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for candidate in (f"python{version}", *map(str, sorted(root.glob(f"{version}.*/bin/python")))):
        with contextlib.suppress(OSError):  # a shim of pyenv's is there for every version, working or not
            found = subprocess.run([candidate, "--version"], capture_output=True, check=False)  # noqa: S603
            if found.returncode == 0:
                return candidate
    raise SystemExit(f"there is no Python {version}, which this peer's wheels are built for")


def _run(peer: str, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - a peer's own interpreter and our code
        [str(python(peer)), "-W", "ignore", "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.peers", description="install the peers")
    parser.add_argument("action", choices=["install", "check", "remove"])
    parser.add_argument("peers", nargs="*", help=f"of {', '.join(PEERS)}; all by default")
    args = parser.parse_args(argv)
    failed = 0
    for peer in args.peers or list(PEERS):
        if peer not in PEERS:
            parser.error(f"unknown peer {peer!r}; known: {', '.join(PEERS)}")
        if args.action == "remove":
            shutil.rmtree(home() / peer, ignore_errors=True)
            continue
        try:
            if args.action == "install":
                install(peer)
        except subprocess.CalledProcessError as error:
            print(f"{peer}: pip failed with status {error.returncode}")
        trouble = why_missing(peer)
        failed += trouble is not None
        print(f"{peer}: {trouble or versions(peer)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
