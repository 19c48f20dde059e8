"""A small session with backend ckks on one stage: three owners, a model of two layers and a polynomial."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np

from privinfer.graph import ir, reference
from privinfer.graph.load import from_onnx
from privinfer.graph.to_onnx import to_onnx
from privinfer.runtime.store import Store
from privinfer.session.manifest import Manifest, Party
from tests.adversarial import stage

SHAPES = {"xray": (1, 4, 4), "dna": (5,), "blood": (3,)}
OWNERS = {"xray": "hospital", "dna": "dna_company", "blood": "laboratory"}
NAMES = ("hospital", "dna_company", "laboratory", "startup", "patient")
HOLDERS = ("hospital", "dna_company", "laboratory", "patient")
#: Smudging gives each output 2^-11 a slot, as declared; six deviations of a sum of uniforms.
TOLERANCE = 6 * 2.0**-11


def architecture() -> ir.Architecture:
    """x -> risk (2 values); every value stays within its declared range for inputs in [-1, 1]."""
    return ir.Architecture(
        tuple(ir.Input(name, shape, -1.0, 1.0) for name, shape in SHAPES.items()),
        (
            ir.Node("flat", ir.Reshape((16,)), ("xray",)),
            ir.Node("all", ir.Concat(1), ("flat", "dna", "blood")),
            ir.Node("hidden", ir.Linear(24, 4), ("all",)),
            ir.Node("bend", ir.Polynomial(-2.0, 2.0, (0.3, 0.5, 0.2)), ("hidden",)),
            ir.Node("last", ir.Linear(4, 2), ("bend",)),
        ),
        (ir.Output("risk", "last"),),
    )


@functools.cache
def model(seed: int = 0) -> ir.Model:
    """With weights of which a row adds up to less than 2."""
    rng = np.random.default_rng(seed)
    parameters = {
        node: {k: rng.uniform(-1, 1, shape) / max(shape) for k, shape in own.items()}
        for node, own in architecture().parameter_shapes().items()
    }
    return from_onnx(to_onnx(ir.Model(architecture(), parameters)).SerializeToString())


def write_model(path: Path) -> Path:
    """The same as an ONNX file."""
    path.write_bytes(to_onnx(model()).SerializeToString())
    return path


def rows(count: int = 1, seed: int = 1) -> dict[str, dict[str, np.ndarray]]:
    """Inputs by owner."""
    rng = np.random.default_rng(seed)
    return {OWNERS[n]: {n: rng.uniform(-1, 1, (count, *s))} for n, s in SHAPES.items()}


def wanted(inputs: dict[str, dict[str, np.ndarray]]) -> np.ndarray:
    """The answer in the clear."""
    flat = {k: v for own in inputs.values() for k, v in own.items()}
    return reference.run(model(), flat)["risk"]


def manifest(**changes: object) -> Manifest:
    """A sealed session of the five, all owners and the patient holding the key."""
    parties = tuple(
        Party(n, "127.0.0.1", 1 + k, stage.identity(n).certificate_pem) for k, n in enumerate(NAMES)
    )
    fields = {
        "backend": "ckks",
        "model": model().architecture.digest(),
        "parties": parties,
        "evaluators": (),
        "helper": None,
        "inputs": OWNERS,
        "key_holders": HOLDERS,
        "threshold": len(HOLDERS),
    }
    return stage.manifest(20.0, **(fields | changes))


def stores(folder: Path, base: Manifest, digest: bytes | None = None) -> Callable[[str], Store]:
    """Opens each party's store in a folder."""
    return lambda name: Store(folder / name, digest or base.digest(), name)


def deal(folder: Path, base: Manifest, count: int, batch: int = 1) -> None:
    """Make the joint keys once, for `count` inferences."""
    good(play(base, runs=0, stores=stores(folder, base), act=lambda _, party: party.deal(count, batch)))


def play(base: Manifest, **changes: object) -> dict[str, stage.Outcome]:
    """How a session over memory ended at each party."""
    return stage.Play(deadline=20.0, base=base, models={"startup": model()}, only=base.names, **changes).run()


def good(outcomes: dict[str, stage.Outcome]) -> dict[str, stage.Outcome]:
    """The same, where nobody met an error."""
    assert [o.error for o in outcomes.values()] == [None] * len(outcomes)
    return outcomes
